"""Averages over sequences, and the official result files."""

import math

import numpy as np
import pytest

from unspool.metrics import (
    ObjectScores,
    official_global_csv,
    official_per_sequence_csv,
    pooled_over_frames,
    pooled_over_objects,
)


def scored(j: list[list[float]], matched: list[list[int]] | None = None) -> ObjectScores:
    values = np.array(j, np.float64)
    ids, frames = (tuple(range(n)) for n in values.shape)
    return ObjectScores(ids, frames, values, values / 2, None if matched is None else np.array(matched))


def test_every_object_counts_once_however_many_its_sequence_has() -> None:
    summary = pooled_over_objects([scored([[1.0, 1.0]]), scored([[0.0], [0.2]])])
    assert summary.j_mean == pytest.approx(0.4)
    assert summary.jf_mean == pytest.approx(0.3)
    assert summary.j_recall == pytest.approx(1 / 3)


def test_every_frame_counts_once_when_frames_are_pooled() -> None:
    summary = pooled_over_frames([scored([[1.0, 1.0, 1.0]]), scored([[0.0]])])
    assert summary.j_mean == summary.j_recall == 0.75
    assert math.isnan(summary.j_decay)


def test_frames_that_do_not_count_are_left_out() -> None:
    late = [scored([[math.nan, 0.5, 1.0]])]
    assert pooled_over_objects(late).j_mean == pooled_over_frames(late).j_mean == 0.75


@pytest.mark.parametrize("pooled", [pooled_over_objects, pooled_over_frames])
def test_nothing_scored_is_not_a_number(pooled: object) -> None:
    assert all(map(math.isnan, pooled([]).named().values()))


def test_rows_in_proposal_order_are_sorted_anew_in_every_frame() -> None:
    ordered = scored([[0.1, 0.2], [0.3, 0.4]], matched=[[2, 1], [1, 5]]).in_proposal_order()
    assert ordered.j.tolist() == [[0.3, 0.2], [0.1, 0.4]]
    assert ordered.ids == (1, 2)


def test_the_global_file_has_the_official_columns() -> None:
    lines = official_global_csv(pooled_over_objects([scored([[0.75, 0.25]])])).split("\n")
    assert lines == [
        "J&F-Mean,J-Mean,J-Recall,J-Decay,F-Mean,F-Recall,F-Decay",
        "0.375,0.500,0.500,0.500,0.250,0.000,0.250",
        "",
    ]


def test_the_per_sequence_file_numbers_the_rows_of_a_sequence() -> None:
    text = official_per_sequence_csv([("swan", scored([[0.5], [1.0]])), ("dog", scored([[math.nan]]))])
    assert text == "Sequence,J-Mean,F-Mean\nswan_1,0.500,0.250\nswan_2,1.000,0.500\ndog_1,,\n"

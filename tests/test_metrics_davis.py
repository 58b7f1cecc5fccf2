"""DAVIS-2017 and vos-late, many objects."""

import math
import pickle

import numpy as np
import oracles_metrics as oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unspool.errors import DataError
from unspool.metrics import ObjectScores, davis17_semi, davis17_unsup, davis17_unsup_framewise, vos_late

SHAPE = (7, 70)
SEEDS = st.integers(0, 2**32 - 1)
quickly = settings(deadline=None, max_examples=25)


def video(rng: np.random.Generator, ids: list[int], frames: int = 5, *, first: int = 0) -> np.ndarray:
    """Random label maps; `first` is somewhere in frame 0, so it sets the number of objects."""
    maps = np.stack([oracle.blobs(rng, SHAPE, ids, 0.02) for _ in range(frames)])
    if first:
        maps[0][maps[0] > first] = 0
        maps[0, 0, 0] = first
    return maps


def square(*places: tuple[int, int] | None, label: int = 1) -> np.ndarray:
    """A 4x4 object that is at these places, frame by frame; None: absent."""
    maps = np.zeros((len(places), 20, 30), np.uint8)
    for labels, place in zip(maps, places, strict=True):
        if place:
            labels[place[0] : place[0] + 4, place[1] : place[1] + 4] = label
    return maps


# -------------------------------------------------------------------------------------- semi-supervised


@quickly
@given(SEEDS)
def test_semi_is_the_official_computation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, prediction = video(rng, [1, 2, 3, 255], first=3), video(rng, [1, 2, 3])
    scores = davis17_semi(prediction, truth)
    expected = oracle.davis17_semi(prediction, truth)
    assert scores.ids == (1, 2, 3)
    assert scores.frames == (1, 2, 3)
    assert np.array_equal(scores.j, expected[:, 0])
    assert np.array_equal(scores.f, expected[:, 1])


def test_semi_counts_an_object_missing_from_the_prediction_as_empty() -> None:
    truth = square((1, 1), (1, 1), (1, 1))
    assert davis17_semi(np.zeros_like(truth), truth).j.tolist() == [[0]]


def test_semi_gives_full_marks_where_both_are_empty() -> None:
    truth = square((1, 1), None, (1, 1))
    scores = davis17_semi(np.zeros_like(truth), truth)
    assert (scores.j.tolist(), scores.f.tolist()) == ([[1]], [[1]])


def test_semi_knows_an_id_gap_of_the_first_mask_as_an_object_that_is_never_there() -> None:
    truth = square((1, 1), (1, 1), (1, 1), label=2)
    scores = davis17_semi(truth, truth)
    assert scores.ids == (1, 2)
    assert scores.j.tolist() == [[1], [1]]


def test_semi_does_not_score_objects_that_come_later() -> None:
    truth = square((1, 1), (1, 1), (1, 1))
    truth[1, 10:, 10:] = 5
    assert davis17_semi(np.where(truth == 5, 0, truth), truth).ids == (1,)


def test_semi_treats_void_as_background() -> None:
    truth = square((1, 1), (1, 1), (1, 1))
    prediction = truth.copy()
    truth[1, 3:5, 1:5] = 255
    assert davis17_semi(prediction, truth).j.tolist() == [[0.5]]


def test_semi_refuses_more_ids_than_objects() -> None:
    truth = square((1, 1), (1, 1), (1, 1))
    with pytest.raises(DataError, match=r"frame 1 of the prediction holds id 2.*has 1 objects"):
        davis17_semi(truth * 2, truth)


def test_semi_does_not_look_at_predictions_of_the_ends() -> None:
    truth = square((1, 1), (1, 1), (1, 1))
    prediction = truth.copy()
    prediction[[0, 2]] = 9
    assert davis17_semi(prediction, truth).j.tolist() == [[1]]


@pytest.mark.parametrize("frames", [1, 2])
def test_semi_of_a_video_without_inner_frames_scores_nothing(frames: int) -> None:
    truth = square(*[(1, 1)] * frames)
    scores = davis17_semi(truth, truth)
    assert scores.j.shape == (1, 0)
    assert math.isnan(scores.statistics()[0][0].mean)


def test_frames_are_asked_for_one_at_a_time() -> None:
    truth = square(*[(1, 1)] * 4)
    assert davis17_semi(iter(truth), (labels for labels in truth)).j.tolist() == [[1, 1]]


def test_scores_travel_between_processes() -> None:
    truth = square((1, 1), (2, 2), (3, 3))
    sent = davis17_unsup(truth, truth)
    received = pickle.loads(pickle.dumps(sent))
    assert received.ids == sent.ids
    assert np.array_equal(received.j, sent.j)


# ----------------------------------------------------------------------------------------- unsupervised


@quickly
@given(SEEDS, st.integers(1, 4), st.integers(1, 4))
def test_unsup_finds_the_best_assignment_of_a_sequence(seed: int, objects: int, proposals: int) -> None:
    rng = np.random.default_rng(seed)
    truth = video(rng, [*range(1, objects + 1), 255], frames=3, first=objects)
    prediction = video(rng, list(range(1, proposals + 1)), frames=3)
    scores = davis17_unsup(prediction, truth)
    pairs = oracle.all_pairs(prediction, truth)
    assert scores.matched is not None
    for row, (label, proposal) in enumerate(zip(scores.ids, scores.matched[:, 0], strict=True)):
        assert np.array_equal(scores.j[row], pairs[proposal - 1, label - 1, 0])
        assert np.array_equal(scores.f[row], pairs[proposal - 1, label - 1, 1])
    best = oracle.best_assignment(pairs.mean(axis=(2, 3)))
    assert ((scores.j + scores.f) / 2).mean(axis=1).sum() == pytest.approx(best, abs=1e-12)


@quickly
@given(SEEDS, st.integers(1, 3), st.integers(1, 4))
def test_framewise_finds_the_best_assignment_of_every_frame(seed: int, objects: int, proposals: int) -> None:
    rng = np.random.default_rng(seed)
    truth = video(rng, [*range(1, objects + 1), 255], frames=3, first=objects)
    prediction = video(rng, list(range(1, proposals + 1)), frames=3)
    scores = davis17_unsup_framewise(prediction, truth)
    pairs = oracle.all_pairs(prediction, truth).mean(axis=2)
    for frame, total in enumerate(((scores.j + scores.f) / 2).sum(axis=0)):
        assert total == pytest.approx(oracle.best_assignment(pairs[:, :, frame]), abs=1e-12)


def switching() -> tuple[np.ndarray, np.ndarray]:
    """One true object, called 1 in the first half of the prediction and 2 in the second."""
    truth = square(*[(1, 1)] * 4)
    prediction = truth.copy()
    prediction[2:] *= 2
    return prediction, truth


def test_an_identity_switch_costs_nothing_framewise_and_half_the_sequence_otherwise() -> None:
    assert davis17_unsup_framewise(*switching()).j.mean() == 1
    assert davis17_unsup(*switching()).j.mean() == 0.5


def test_the_matched_proposals_are_told() -> None:
    framewise = davis17_unsup_framewise(*switching()).matched
    assert framewise is not None
    assert framewise.tolist() == [[1, 1, 2, 2]]


def test_an_object_without_a_proposal_scores_against_an_empty_mask() -> None:
    truth = square((1, 1), None, (1, 1)) + square((9, 9), (9, 9), (9, 9), label=2)
    prediction = np.where(truth == 2, 1, 0).astype(np.uint8)
    scores = davis17_unsup(prediction, truth)
    assert scores.j.tolist() == [[0, 1, 0], [1, 1, 1]]


def test_proposals_without_an_object_cost_nothing() -> None:
    truth = square((1, 1), (1, 1))
    prediction = truth + square((9, 9), (9, 9), label=7)
    assert davis17_unsup(prediction, truth).j.tolist() == [[1, 1]]


def test_void_is_left_out_on_both_sides() -> None:
    truth = square((1, 1), (1, 1))
    prediction = truth.copy()
    truth[:, 3:5, 1:5] = 255
    assert davis17_unsup(prediction, truth).j.tolist() == [[1, 1]]


@pytest.mark.parametrize("label", [21, 255])
def test_unsup_refuses_more_than_twenty_proposals(label: int) -> None:
    truth = square((1, 1), (1, 1))
    with pytest.raises(DataError, match=f"frame 0 holds proposal {label}, the protocol allows 20"):
        davis17_unsup(truth * label, truth)


def test_framewise_refuses_more_than_three_hundred_proposals() -> None:
    truth = square((1, 1), (1, 1))
    with pytest.raises(DataError, match="holds proposal 301, the protocol allows 300"):
        davis17_unsup_framewise(truth.astype(np.uint16) * 301, truth)


@pytest.mark.parametrize("protocol", [davis17_unsup, davis17_unsup_framewise, davis17_semi, vos_late])
def test_a_truth_without_objects_has_no_rows(protocol: object) -> None:
    nothing = square(None, None, None)
    scores = protocol(nothing, nothing)
    assert isinstance(scores, ObjectScores)
    assert scores.ids == ()
    assert scores.statistics() == []


# --------------------------------------------------------------------------------------------- vos-late


@quickly
@given(SEEDS, st.booleans())
def test_late_objects_are_scored_from_their_first_appearance_on_either_side(seed: int, skip: bool) -> None:
    rng = np.random.default_rng(seed)
    truth, prediction = video(rng, [2, 3, 9, 255]), video(rng, [2, 4, 9])
    truth[:2][truth[:2] == 9] = 0
    scores = vos_late(prediction, truth, skip_ends=skip)
    inner = slice(1, -1) if skip else slice(None)
    truth, prediction = truth[inner], prediction[inner]
    void = truth == 255
    assert scores.ids == tuple(sorted(set(np.unique(truth).tolist()) - {0, 255}))
    for row, label in enumerate(scores.ids):
        masks = (prediction == label) & ~void, truth == label
        start = int(np.flatnonzero((masks[0] | masks[1]).any(axis=(1, 2)))[0])
        expected = oracle.measures(*masks, void)
        expected[:, :start] = math.nan
        assert np.array_equal(scores.j[row], expected[0], equal_nan=True)
        assert np.array_equal(scores.f[row], expected[1], equal_nan=True)


def test_statistics_of_a_late_object_are_of_the_frames_that_count() -> None:
    truth = square(None, None, (1, 1), (1, 1))
    ((j, f),) = vos_late(truth, truth, skip_ends=False).statistics()
    assert (j.mean, j.recall, j.decay) == (f.mean, f.recall, f.decay) == (1, 1, 0)


def test_what_appears_only_in_the_skipped_frames_is_no_object() -> None:
    truth = square((1, 1), None, None)
    assert vos_late(truth, truth).ids == ()

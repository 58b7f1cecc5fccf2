"""One foreground: DAVIS-2016, SegTrack-v2 and FBMS-59, and clusters picked by truth."""

import numpy as np
import oracles_metrics as oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unspool.errors import ShapeError
from unspool.metrics import (
    davis16_allframes,
    davis16_official,
    segtrack_fbms,
    single_object_oracle_frame,
    single_object_oracle_video,
)

SEEDS = st.integers(0, 2**32 - 1)
quickly = settings(deadline=None, max_examples=25)


def video(seed: int, ids: list[int], frames: int = 4) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([oracle.blobs(rng, (7, 70), ids, 0.02) for _ in range(frames)])


@quickly
@given(SEEDS)
def test_davis16_scores_everything_that_is_not_zero(seed: int) -> None:
    prediction, truth = video(seed, [1, 2]), video(seed + 1, [255])
    expected = oracle.measures(prediction != 0, truth != 0, np.zeros(truth.shape, bool))
    every, inner = davis16_allframes(prediction, truth), davis16_official(prediction, truth)
    assert np.array_equal([every.j[0], every.f[0]], expected)
    assert np.array_equal([inner.j[0], inner.f[0]], expected[:, 1:-1])
    assert inner.frames == (1, 2)


def test_segtrack_and_fbms_score_annotated_frames_only() -> None:
    prediction, truth = video(0, [1]), video(1, [3, 4])
    sparse = [truth[0], None, None, truth[3]]
    scores, every = segtrack_fbms(prediction, sparse), davis16_allframes(prediction, truth)
    assert scores.frames == (0, 3)
    assert np.array_equal(scores.j, every.j[:, [0, 3]])


def test_segtrack_and_fbms_name_sizes_that_differ() -> None:
    with pytest.raises(ShapeError, match="frame 1: prediction is 7x70, truth is 4x4"):
        segtrack_fbms(video(0, [1], 2), [None, np.zeros((4, 4), np.uint8)])


def cluster_measures(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """[cluster, J or F, frame]."""
    no_void = np.zeros(truth.shape, bool)
    return np.array([oracle.measures(prediction == c, truth != 0, no_void) for c in np.unique(prediction)])


@quickly
@given(SEEDS)
def test_the_oracle_takes_the_best_cluster_of_every_frame(seed: int) -> None:
    prediction, truth = video(seed, [1, 3, 4]), video(seed + 1, [1])
    scores, expected = single_object_oracle_frame(prediction, truth), cluster_measures(prediction, truth)
    best = expected[:, 0].argmax(axis=0)
    assert np.array_equal(scores.j[0], expected[best, 0, range(len(truth))])
    assert np.array_equal(scores.f[0], expected[best, 1, range(len(truth))])
    assert scores.matched is not None
    assert np.array_equal(scores.matched[0], np.unique(prediction)[best])


@quickly
@given(SEEDS)
def test_the_oracle_takes_the_best_cluster_of_the_video(seed: int) -> None:
    prediction, truth = video(seed, [1, 3, 4]), video(seed + 1, [1])
    scores, expected = single_object_oracle_video(prediction, truth), cluster_measures(prediction, truth)
    best = expected[:, 0].mean(axis=1).argmax()
    assert np.array_equal([scores.j[0], scores.f[0]], expected[best])
    assert scores.j.mean() <= single_object_oracle_frame(prediction, truth).j.mean()


def test_the_background_of_a_cluster_map_is_a_cluster_too() -> None:
    truth = np.zeros((2, 5, 5), np.uint8)
    truth[:, 1:4, 1:4] = 1
    assert single_object_oracle_frame(1 - truth, truth).j.tolist() == [[1, 1]]

"""Two label maps read together, run by run."""

import numpy as np
import oracles_metrics as oracle
from hypothesis import given, settings
from hypothesis import strategies as st

from unspool.metrics.runs import Box, joint_runs

IDS = [1, 2, 7, 255]
quickly = settings(deadline=None, max_examples=60)


def two_maps(shape: tuple[int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return oracle.blobs(rng, shape, IDS), oracle.blobs(rng, shape, IDS)


@quickly
@given(st.tuples(st.integers(1, 12), st.integers(1, 20)), st.integers(0, 2**32 - 1))
def test_counts_are_the_joint_histogram(shape: tuple[int, int], seed: int) -> None:
    prediction, truth = two_maps(shape, seed)
    counts = joint_runs(prediction, truth).counts()
    expected = np.zeros((int(prediction.max()) + 1, int(truth.max()) + 1), int)
    for pair in zip(prediction.ravel(), truth.ravel(), strict=True):
        expected[pair] += 1
    assert np.array_equal(counts, expected)


@quickly
@given(st.tuples(st.integers(1, 12), st.integers(1, 20)), st.integers(0, 2**32 - 1))
def test_boxes_are_tight_around_every_id(shape: tuple[int, int], seed: int) -> None:
    prediction, truth = two_maps(shape, seed)
    runs = joint_runs(prediction, truth)
    for labels, ids in ((prediction, runs.predicted), (truth, runs.true)):
        expected = {}
        for label in np.unique(labels).tolist():
            rows, columns = np.nonzero(labels == label)
            expected[label] = Box(rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)
        assert runs.boxes(ids) == expected


def test_an_object_at_both_ends_of_rows_is_not_one_run() -> None:
    labels = np.array([[0, 0, 1], [1, 0, 0]], np.uint8)
    runs = joint_runs(labels, labels)
    assert runs.boxes(runs.true)[1] == Box(0, 0, 2, 3)
    assert runs.length.tolist() == [2, 1, 1, 2]


def test_ids_beyond_eight_bits_are_counted() -> None:
    prediction, truth = np.full((2, 3), 300, np.uint16), np.ones((2, 3), np.uint8)
    assert joint_runs(prediction, truth).counts()[300, 1] == 6

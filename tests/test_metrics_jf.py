"""J, F and their statistics."""

import math

import numpy as np
import oracles_metrics as oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from unspool.errors import ShapeError
from unspool.metrics import boundary_f, jaccard, statistics
from unspool.metrics.jf import frame_pair

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 140))
SEEDS = st.integers(0, 2**32 - 1)
SPECKLES = st.sampled_from([0.0, 0.02, 0.5])
quickly = settings(deadline=None, max_examples=50)
FULL, EMPTY = np.ones((6, 8), bool), np.zeros((6, 8), bool)


@quickly
@given(SHAPES, SEEDS, SPECKLES, st.integers(1, 4))
def test_j_and_f_of_masks_are_the_formulas(
    shape: tuple[int, int], seed: int, speckle: float, radius: int
) -> None:
    rng = np.random.default_rng(seed)
    prediction, truth, void = (oracle.blobs(rng, shape, [1], speckle) == 1 for _ in range(3))
    assert jaccard(prediction, truth) == oracle.jaccard(prediction, truth)
    assert jaccard(prediction, truth, void) == oracle.jaccard(prediction, truth, void)
    assert boundary_f(prediction, truth) == oracle.boundary_f(prediction, truth)
    expected = oracle.boundary_f(prediction, truth, void, radius)
    assert boundary_f(prediction, truth, void, tolerance=radius) == expected


@quickly
@given(SHAPES, SEEDS, SPECKLES)
def test_j_and_f_of_label_maps_are_those_of_their_masks(
    shape: tuple[int, int], seed: int, speckle: float
) -> None:
    rng = np.random.default_rng(seed)
    prediction, truth = (oracle.blobs(rng, shape, [1, 2, 254, 255], speckle) for _ in range(2))
    pair = frame_pair(prediction, truth)
    for predicted, true in [(1, 1), (2, 1), (0, 254), (255, 255), (3, 2), (3, 3)]:
        masks = prediction == predicted, truth == true
        assert pair.j(predicted, true) == oracle.jaccard(*masks)
        assert pair.f(predicted, true) == oracle.boundary_f(*masks)


@pytest.mark.parametrize(
    ("prediction", "truth", "j", "f"),
    [(EMPTY, EMPTY, 1, 1), (FULL, FULL, 1, 1), (FULL, EMPTY, 0, 1), (EMPTY, FULL, 0, 1)],
    ids=["both empty", "both full", "full and empty", "empty and full"],
)
def test_masks_without_boundary_agree_on_it(
    prediction: np.ndarray, truth: np.ndarray, j: float, f: float
) -> None:
    assert jaccard(prediction, truth) == j
    assert boundary_f(prediction, truth) == f


def test_one_empty_mask_scores_nothing() -> None:
    dot = EMPTY.copy()
    dot[3, 3] = True
    assert jaccard(dot, EMPTY) == jaccard(EMPTY, dot) == 0
    assert boundary_f(dot, EMPTY) == boundary_f(EMPTY, dot) == 0


def test_boundaries_too_far_apart_score_nothing() -> None:
    labels = np.zeros((9, 40), np.uint8)
    labels[4, 2], labels[4, 30] = 1, 2
    assert boundary_f(labels == 1, labels == 2) == 0


def test_the_rim_of_void_becomes_boundary() -> None:
    void = EMPTY.copy()
    void[2:4, 2:4] = True
    assert boundary_f(FULL, FULL, void) == 1
    assert boundary_f(FULL, void, void) == 0  # the truth is empty now, the prediction has a hole


def test_a_tolerance_from_one_on_is_pixels() -> None:
    one, other = np.zeros((2, 9, 40), bool)
    one[4, 10], other[4, 14] = True, True
    assert boundary_f(one, other, tolerance=2) == 0
    assert boundary_f(one, other, tolerance=4) == 1


@pytest.mark.parametrize("measure", [jaccard, boundary_f])
def test_sizes_that_differ_are_both_named(measure: object) -> None:
    with pytest.raises(ShapeError, match="prediction is 6x8, truth is 5x8"):
        measure(FULL, np.ones((5, 8), bool))


@quickly
@given(SHAPES, SEEDS)
def test_j_and_f_do_not_care_which_is_which_nor_about_mirrors(shape: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = (oracle.blobs(rng, shape, [1]) == 1 for _ in range(2))
    assert jaccard(one, other) == jaccard(other, one) == jaccard(one[::-1], other[::-1])
    assert boundary_f(one, other) == pytest.approx(boundary_f(other, one), abs=1e-12)


# ----------------------------------------------------------------------------------------- statistics


@quickly
@given(arrays(np.float64, st.integers(1, 700), elements=st.floats(0, 1)))
def test_decay_is_the_first_quarter_less_the_last(values: np.ndarray) -> None:
    n = len(values)
    edges = [round(1 + (n - 1) * k / 4 + 1e-10) - 1 for k in range(5)]
    found = statistics(values)
    expected = values[: edges[1] + 1].mean() - values[edges[3] :].mean()
    assert found.decay == pytest.approx(expected, abs=1e-12)
    assert found.mean == pytest.approx(values.mean(), abs=1e-12)
    assert found.recall == sum(v > 0.5 for v in values) / n


def test_exactly_a_half_is_no_recall_and_nan_is_a_miss() -> None:
    assert statistics(np.array([0.5, 0.6, math.nan, 0.7])).recall == 0.5


def test_nan_is_left_out_of_the_mean() -> None:
    assert statistics(np.array([math.nan, 0.25, 0.75])).mean == 0.5


def test_statistics_of_nothing_are_not_numbers() -> None:
    found = statistics(np.zeros(0))
    assert all(map(math.isnan, (found.mean, found.recall, found.decay)))

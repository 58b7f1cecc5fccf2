"""Boundaries and their surroundings, 64 pixels to a word."""

import numpy as np
import oracles_metrics as oracle
from hypothesis import given, settings
from hypothesis import strategies as st

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 140))  # words end at columns 64 and 128
SEEDS = st.integers(0, 2**32 - 1)
quickly = settings(deadline=None, max_examples=60)


@quickly
@given(SHAPES, SEEDS, st.sampled_from([0.0, 0.02, 0.5]), st.integers(0, 12))
def test_an_outline_is_the_formula_s(shape: tuple[int, int], seed: int, speckle: float, radius: int) -> None:
    mask = oracle.blobs(np.random.default_rng(seed), shape, [1], speckle) == 1
    edge, near = oracle.found_boundary(mask, radius)
    expected = oracle.boundary(mask)
    assert np.array_equal(edge, expected)
    assert np.array_equal(near, oracle.dilated(expected, radius))


@settings(deadline=None, max_examples=20)
@given(SEEDS, st.integers(30, 150))
def test_radii_beyond_a_word_reach_as_far(seed: int, radius: int) -> None:
    mask = np.zeros((5, 700), bool)
    mask[tuple(np.random.default_rng(seed).integers(0, mask.shape, (2, 2)).T)] = True
    edge, near = oracle.found_boundary(mask, radius)
    assert np.array_equal(near, oracle.dilated(edge, radius))


def test_an_object_cut_by_the_frame_has_no_boundary_there() -> None:
    left_half = np.zeros((6, 100), bool)
    left_half[:, :50] = True
    edge, _ = oracle.found_boundary(left_half)
    assert np.flatnonzero(edge.any(0)).tolist() == [49]


def test_a_full_mask_has_no_boundary() -> None:
    edge, near = oracle.found_boundary(np.ones((5, 64), bool))
    assert not edge.any()
    assert not near.any()


def test_outlines_far_apart_share_nothing_and_are_not_dilated() -> None:
    labels = np.zeros((40, 300), np.uint8)
    labels[2:5, 2:5], labels[30:35, 280:290] = 1, 2
    one, other = oracle.outlines(labels, radius=3)
    assert one.shared(other) == other.shared(one) == 0
    assert "near" not in vars(one)


def test_sharing_is_counted_in_this_boundary_s_pixels() -> None:
    labels = np.zeros((40, 300), np.uint8)
    labels[10:30, 60:70], labels[10:30, 70:130] = 1, 2
    one, other = oracle.outlines(labels, radius=3)
    edges = [oracle.boundary(labels == label) for label in (1, 2)]
    assert one.shared(other) == (edges[0] & oracle.dilated(edges[1], 3)).sum()
    assert other.shared(one) == (edges[1] & oracle.dilated(edges[0], 3)).sum()

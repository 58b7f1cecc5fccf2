"""One foreground chosen without truth: each cue by hand, and the rules that put them together."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from unspool.ops.foreground import (
    SIGNS,
    border_contact,
    means,
    ranks_of,
    standing_out,
    with_values,
)

LABELS = arrays(np.int64, st.tuples(st.integers(1, 3), st.integers(2, 6), st.integers(2, 6)),
                elements=st.integers(0, 5))  # fmt: skip
VALUES = st.lists(st.integers(0, 4).map(float) | st.just(np.nan), min_size=1, max_size=8).map(np.array)

# ----------------------------------------------------------------------------------- least border contact


def chosen(frames: np.ndarray) -> int:
    """By border contact alone."""
    contact = {"border contact": border_contact(frames)}
    return standing_out(contact, np.bincount(frames.ravel()), frames.size)


def test_the_cluster_that_touches_the_border_least_is_the_object() -> None:
    frames = np.ones((2, 20, 20), np.int64)
    frames[:, :8] = 2  # sky
    frames[:, 6:14, 6:14] = 3
    frames[:, 12:20, 14:18] = 4  # cut by the frame
    assert chosen(frames) == 3


def test_a_speck_is_no_object() -> None:
    frames = np.ones((2, 20, 20), np.int64)
    frames[:, 6:14, 6:20] = 3  # touches the border
    frames[:, 3, 3] = 2
    assert chosen(frames) == 3


def test_of_two_that_stand_free_the_larger_is_taken() -> None:
    frames = np.ones((2, 20, 20), np.int64)
    frames[:, 2:5, 2:5], frames[:, 8:15, 8:15] = 2, 3
    assert chosen(frames) == 3


def test_where_none_has_a_fitting_size_the_best_of_all_is_taken() -> None:
    assert chosen(np.full((1, 4, 4), 7)) == 7


def test_nobody_is_never_the_object() -> None:
    frames = np.zeros((2, 20, 20), np.int64)
    assert chosen(frames) == 0
    frames[:, :5] = 4
    assert chosen(frames) == 4


@given(LABELS)
def test_with_border_contact_alone_the_least_is_chosen(labels: np.ndarray) -> None:
    contact, areas = border_contact(labels), np.bincount(labels.ravel())
    there = [i for i in range(1, len(areas)) if areas[i]]
    candidates = [i for i in there if 0.01 <= areas[i] / labels.size <= 0.6] or there
    assert chosen(labels) == min(candidates, key=lambda i: (contact[i], -areas[i], i), default=0)


@given(LABELS)
def test_border_contact_is_border_pixels_over_roots_of_areas(labels: np.ndarray) -> None:
    contact = border_contact(labels)
    for label in range(1, len(contact)):
        inner = (labels == label)[:, 1:-1, 1:-1].sum()
        on_border = (labels == label).sum() - inner
        roots = sum(np.sqrt((frame == label).sum()) for frame in labels)
        assert np.isnan(contact[label]) if not roots else np.isclose(contact[label], on_border / roots)


# ------------------------------------------------------------------------------------------- all cues


@given(LABELS, st.integers(0, 9))
def test_means_are_over_the_tokens_of_a_cluster_that_have_a_value(labels: np.ndarray, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=labels.shape)
    values[0] = np.nan  # nothing came before the first frame
    found = means(with_values(np.zeros((2, 0)), labels, values))
    for label in range(6):
        own = values[(labels == label) & ~np.isnan(values)]
        expected = own.mean() if len(own) else np.nan
        np.testing.assert_allclose(found[label] if label < len(found) else np.nan, expected)


@given(LABELS, st.integers(0, 2), st.permutations(range(6)))
def test_clusters_under_other_numbers_have_the_same_means_in_any_pieces(
    labels: np.ndarray, cut: int, order: list[int]
) -> None:
    values = np.arange(labels.size).reshape(labels.shape) / 7
    whole = means(with_values(np.zeros((2, 6)), labels, values))
    other = np.array(order)[labels]
    totals = with_values(np.zeros((2, 6)), other[:cut], values[:cut])
    np.testing.assert_array_equal(means(with_values(totals, other[cut:], values[cut:]))[order], whole)


@given(VALUES)
def test_equal_values_share_a_rank_and_what_is_not_known_is_last(values: np.ndarray) -> None:
    known = [np.inf if np.isnan(value) else value for value in values]
    expected = [sum(o < v for o in known) + (known.count(v) - 1) / 2 for v in known]
    assert ranks_of(values).tolist() == expected


def plain_choice(cues: dict[str, np.ndarray], areas: np.ndarray, video: int) -> int:
    """Best mean rank, then the larger, then the lower; of ids of a fitting size, or of all."""
    there = [i for i in range(1, len(areas)) if areas[i]]
    candidates = [i for i in there if 0.01 <= areas[i] / video <= 0.6] or there

    def rank(name: str, id_: int) -> float:
        value = SIGNS[name] * cues[name]
        others = [value[i] for i in candidates if i != id_]
        return sum(other < value[id_] for other in others) + sum(other == value[id_] for other in others) / 2

    return min(candidates, key=lambda i: (sum(rank(name, i) for name in cues), -areas[i], i), default=0)


@given(st.data(), st.integers(1, 6), st.sets(st.sampled_from(sorted(SIGNS))))
def test_the_choice_is_the_best_mean_rank(data: st.DataObject, ids: int, names: set[str]) -> None:
    areas = np.array([0, *data.draw(st.lists(st.sampled_from([0, 1, 50, 900]), min_size=ids, max_size=ids))])
    values = st.lists(st.integers(0, 3).map(float), min_size=ids + 1, max_size=ids + 1)
    cues = {name: np.array(data.draw(values)) for name in sorted(names)}
    video = max(1, int(areas.sum()))
    assert standing_out(cues, areas, video) == plain_choice(cues, areas, video)


@pytest.mark.parametrize(("cue", "chosen"), [("border contact", 1), ("motion", 2), ("class attention", 2)])
def test_little_contact_much_motion_and_much_attention_speak_for_an_object(cue: str, chosen: int) -> None:
    assert standing_out({cue: np.array([np.nan, 0.1, 0.9])}, np.array([0, 50, 50]), 100) == chosen

"""Steps after segmentation, against their plain forms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from unspool.errors import UsageError
from unspool.ops.postprocessing import (
    PostProcessing,
    areas_of,
    border_contact,
    filled,
    postprocessed,
    standing_free,
)

LABELS = arrays(np.int64, st.tuples(st.integers(1, 3), st.integers(2, 6), st.integers(2, 6)),
                elements=st.integers(0, 5))  # fmt: skip


def holes_filled_by_flooding(mask: np.ndarray) -> np.ndarray:
    """Whatever background cannot be reached from beyond the frame is part of the mask."""
    open_air = np.pad(~mask, 1, constant_values=True)
    reached = np.zeros_like(open_air)
    todo = [(0, 0)]
    while todo:
        y, x = todo.pop()
        if 0 <= y < reached.shape[0] and 0 <= x < reached.shape[1] and open_air[y, x] and not reached[y, x]:
            reached[y, x] = True
            todo += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
    return ~reached[1:-1, 1:-1]


@given(LABELS)
def test_without_steps_nothing_changes(labels: np.ndarray) -> None:
    assert np.array_equal(postprocessed(labels, PostProcessing()), labels)


@given(LABELS, st.floats(0, 0.9))
def test_a_minimum_size_drops_what_never_reaches_it(labels: np.ndarray, share: float) -> None:
    after = postprocessed(labels, PostProcessing(minimum_size=share))
    for label in range(1, 6):
        own = labels == label
        reaches = (own.mean(axis=(1, 2)) >= share - 1e-12).any()
        assert np.array_equal(after == label, own if reaches else np.zeros_like(own))


@given(LABELS, st.integers(1, 6))
def test_the_largest_stay_and_keep_their_ids(labels: np.ndarray, count: int) -> None:
    after = postprocessed(labels, PostProcessing(largest=count))
    sizes = {i: int((labels == i).sum()) for i in range(1, 6) if (labels == i).any()}
    stay = sorted(sizes, key=lambda i: (-sizes[i], i))[:count]
    assert np.array_equal(after, np.where(np.isin(labels, stay), labels, 0))


@settings(deadline=None)  # the first call imports
@given(arrays(np.uint8, st.tuples(st.integers(1, 8), st.integers(1, 8)), elements=st.integers(0, 1)))
def test_holes_of_a_binary_mask_are_filled_as_by_flooding(mask: np.ndarray) -> None:
    assert np.array_equal(filled(mask) == 1, holes_filled_by_flooding(mask == 1))


def test_a_gap_between_two_clusters_belongs_to_neither() -> None:
    frame = np.array([[1, 1, 2, 2], [1, 0, 0, 2], [1, 1, 2, 2]])
    assert np.array_equal(filled(frame), frame)


def test_a_cluster_inside_another_is_no_hole() -> None:
    frame = np.array([[1, 1, 1], [1, 2, 1], [1, 1, 1]])
    assert np.array_equal(filled(frame), frame)


@pytest.mark.parametrize(
    ("how", "name"),
    [
        (PostProcessing(), "none"),
        (PostProcessing(fill_holes=True), "holes filled"),
        (PostProcessing(0.01, 20, True), "minimum size 0.01, 20 largest, holes filled"),
    ],
)
def test_steps_have_names(how: PostProcessing, name: str) -> None:
    assert how.name == name


@pytest.mark.parametrize("values", [{"minimum_size": 1.0}, {"minimum_size": -0.1}, {"largest": -1}])
def test_steps_out_of_range_are_refused(values: dict) -> None:
    with pytest.raises(UsageError):
        PostProcessing(**values)


# ------------------------------------------------------------------------------------- label-free choice


def chosen(frames: np.ndarray) -> int:
    return standing_free(border_contact(frames), areas_of(frames), frames[0].size)


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
def test_border_contact_is_border_pixels_over_roots_of_areas(labels: np.ndarray) -> None:
    contact = border_contact(labels)
    for label in range(1, len(contact)):
        inner = (labels == label)[:, 1:-1, 1:-1].sum()
        on_border = (labels == label).sum() - inner
        roots = sum(np.sqrt((frame == label).sum()) for frame in labels)
        assert np.isnan(contact[label]) if not roots else np.isclose(contact[label], on_border / roots)

"""Steps after segmentation, against their plain forms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from unspool.errors import UsageError
from unspool.ops.postprocessing import (
    PostProcessing,
    filled,
    postprocessed,
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

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import uniform_filter

from unspool.errors import UsageError
from unspool.ops.refining import (
    Refining,
    _box,
    areas_of,
    bilinear,
    guided,
    largest,
    largest_only,
    nearest,
    with_holes_filled,
    without_small,
)

IDS = arrays(np.int64, (3, 4, 5), elements=st.integers(0, 4))


def clip() -> torch.Tensor:
    """20 tokens each in 2 frames: id 1 covers 20, id 2 covers 12, id 3 covers 8."""
    ids = torch.ones(2, 4, 5, dtype=torch.int64)
    ids[1] = 2
    ids[1, :2, :4] = 3
    return ids


def test_what_covers_less_than_its_share_becomes_background() -> None:
    assert without_small(clip(), 0.25).unique().tolist() == [0, 1, 2]
    assert without_small(clip(), 0.2).equal(clip())


def test_the_largest_stay() -> None:
    assert largest_only(clip(), 2).unique().tolist() == [0, 1, 2]
    assert largest_only(clip(), 9).equal(clip())


@given(IDS, st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_no_more_than_asked_for_stay_and_what_stays_is_untouched(labels: np.ndarray, count: int) -> None:
    ids = torch.from_numpy(labels)
    found = largest_only(ids, count)
    assert len(set(found.unique().tolist()) - {0}) == min(count, len(set(labels.ravel().tolist()) - {0}))
    assert ids[found > 0].equal(found[found > 0])


def test_a_hole_within_one_object_is_filled_and_others_stay() -> None:
    ids = torch.zeros(9, 12, dtype=torch.int64)
    ids[1:6, 1:6], ids[3, 3] = 1, 0  # a hole
    ids[1:4, 7:11], ids[2, 8], ids[1:4, 10] = 2, 0, 3
    ids[2, 9] = 0  # between two objects
    ids[6:9, 1:4], ids[8, 2] = 4, 0  # reaches the border
    found = with_holes_filled(ids)
    assert found[3, 3] == 1
    assert found[2, 8] == 0 and found[2, 9] == 0
    assert found[8, 2] == 0 and found[0, 0] == 0


def test_nearest_is_what_masks_are_made_with() -> None:
    ids = torch.arange(6).view(2, 3)
    assert nearest(ids, (4, 6)).equal(ids.repeat_interleave(2, 0).repeat_interleave(2, 1))


@given(arrays(np.int64, (3, 4), elements=st.integers(0, 3)))
@settings(max_examples=30, deadline=None)
def test_bilinear_keeps_ids_at_the_centres_of_tokens(labels: np.ndarray) -> None:
    ids = torch.from_numpy(labels)
    assert bilinear(ids, (15, 20))[2::5, 2::5].equal(ids)


def test_bilinear_rounds_a_corner_that_nearest_leaves_square() -> None:
    ids = torch.zeros(4, 4, dtype=torch.int64)
    ids[1:3, 1:3] = 1
    assert nearest(ids, (32, 32))[8, 8] == 1
    assert bilinear(ids, (32, 32))[8, 8] == 0


def test_guided_follows_an_edge_of_the_image_that_the_grid_misses() -> None:
    ids = torch.zeros(4, 4, dtype=torch.int64)
    ids[:, 2:] = 1
    image = torch.zeros(3, 32, 32)
    image[:, :, 19:] = 1  # the grid says 16
    found = guided(ids, image, radius=6)
    assert (found[:, 19:] == 1).all()
    assert (found[:, :17] == 0).all()


def test_guided_by_nothing_is_smooth() -> None:
    ids = torch.zeros(4, 4, dtype=torch.int64)
    ids[:, 2:] = 1
    assert guided(ids, torch.full((3, 32, 32), 0.5), radius=4)[16].tolist() == [0] * 16 + [1] * 16


def test_the_box_is_the_mean_of_what_there_is() -> None:
    values = torch.randn(9, 11, generator=torch.Generator().manual_seed(0))
    weights = uniform_filter(np.ones((9, 11)), 5, mode="constant")
    expected = uniform_filter(values.double().numpy(), 5, mode="constant") / weights
    assert np.allclose(_box(values, 2).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("wrong", [{"smallest": 2.0}, {"largest": -1}])
def test_values_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="refining"):
        Refining(**wrong)  # type: ignore[arg-type]


@given(arrays(np.int64, (2, 3, 4), elements=st.integers(0, 5)), st.integers(1, 6))
def test_the_largest_of_label_maps_are_those_of_most_pixels(labels: np.ndarray, count: int) -> None:
    stays = largest(areas_of(labels), count)
    sizes = {i: int((labels == i).sum()) for i in range(1, 6) if (labels == i).any()}
    expected = sorted(sizes, key=lambda i: (-sizes[i], i))[:count]
    assert np.flatnonzero(stays).tolist() == sorted(expected)

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unspool.ops.resize import Rule, labels_to_soft, soft_to_labels, upsample_patches


@settings(max_examples=60, deadline=None)
@given(
    old=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    new=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    seed=st.integers(0, 2**31),
)
def test_nearest_picks_the_pixels_that_pillow_picks(
    old: tuple[int, int], new: tuple[int, int], seed: int
) -> None:
    labels = np.random.default_rng(seed).integers(0, 4, old).astype(np.uint8)
    expected = np.asarray(Image.fromarray(labels).resize(new[::-1], Image.Resampling.NEAREST))
    soft = labels_to_soft(torch.from_numpy(labels), (0, 1, 2, 3), new, "nearest")
    assert torch.equal(soft.argmax(dim=0), torch.from_numpy(expected.copy()).long())


@pytest.mark.parametrize("rule", ["align_corners", "half_pixel", "nearest"])
def test_soft_labels_of_a_full_partition_sum_to_one(rule: str) -> None:
    labels = torch.randint(0, 3, (40, 56), generator=torch.Generator().manual_seed(0))
    soft = labels_to_soft(labels, (0, 1, 2), (5, 7), rule)
    torch.testing.assert_close(soft.sum(dim=0), torch.ones(5, 7))


@pytest.mark.parametrize("rule", ["align_corners", "half_pixel", "nearest"])
def test_ids_with_gaps_are_kept(rule: str) -> None:
    soft = torch.zeros(3, 5, 7)
    soft[0, :, :3], soft[1, :, 3:5], soft[2, :, 5:] = 1, 1, 1
    labels, confidence = soft_to_labels(soft, (0, 7, 300), (40, 56), rule)
    assert labels.unique().tolist() == [0, 7, 300]
    assert confidence.max() > 0.999


@pytest.mark.parametrize("rule", ["align_corners", "half_pixel", "nearest"])
def test_where_nothing_is_known_the_label_is_background(rule: str) -> None:
    labels, _ = soft_to_labels(torch.zeros(2, 5, 7), (0, 1), (40, 56), rule)
    assert (labels == 0).all()
    labels, confidence = soft_to_labels(torch.zeros(0, 5, 7), (), (40, 56), rule)
    assert labels.shape == confidence.shape == (40, 56)
    assert (labels == 0).all()


def test_a_channel_that_is_the_same_everywhere_is_not_stretched() -> None:
    soft = torch.ones(1, 2, 3)
    assert torch.equal(upsample_patches(soft, 4), torch.ones(1, 8, 12))


@pytest.mark.parametrize("rule", ["align_corners", "half_pixel", "nearest"])
@pytest.mark.parametrize("channels", [3, 4, 9])
def test_upsampling_a_few_channels_at_a_time_changes_no_bit(rule: Rule, channels: int) -> None:
    soft = torch.rand(channels, 12, 20, generator=torch.Generator().manual_seed(0))
    soft[1] = soft[0]  # ties
    ids, threads = list(range(channels)), torch.get_num_threads()
    try:
        for count in (1, 2):  # torch's kernels differ
            torch.set_num_threads(count)
            whole = soft_to_labels(soft, ids, (96, 161), rule)
            parts = soft_to_labels(soft, ids, (96, 161), rule, memory=1)
            assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
    finally:
        torch.set_num_threads(threads)

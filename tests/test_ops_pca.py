import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unspool.errors import DataError
from unspool.ops.pca import moments, reduction


def features(count: int, channels: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, generator=generator) @ torch.randn(
        channels, channels, generator=generator
    )


@settings(deadline=None, max_examples=20)
@given(channels=st.integers(2, 8), dims=st.integers(1, 10), seed=st.integers(0, 100))
def test_it_is_pca_of_standardised_channels(channels: int, dims: int, seed: int) -> None:
    x = features(60, channels, seed)
    found = reduction(moments(x), dims)(x)
    standard = (x - x.mean(0)) / x.std(0, correction=0)
    variances = torch.linalg.svdvals(standard.double()).square() / len(x)
    kept = min(dims, channels)
    assert found.shape == (60, kept)
    torch.testing.assert_close(found.double().var(0, correction=0), variances[:kept], rtol=1e-3, atol=1e-4)
    if kept == channels:
        torch.testing.assert_close(
            torch.cdist(found, found), torch.cdist(standard, standard), atol=1e-2, rtol=1e-2
        )


def test_parts_add_up_to_the_whole() -> None:
    x = features(50, 5)
    whole, parts = reduction(moments(x), 3), reduction(moments(x[:20]) + moments(x[20:]), 3)
    torch.testing.assert_close(parts(x), whole(x))


def test_a_channel_that_never_changes_does_no_harm() -> None:
    x = features(40, 4)
    x[:, 2] = 7.0
    found = reduction(moments(x), 4)(x)
    assert found.isfinite().all()
    torch.testing.assert_close(found[:, 3], torch.zeros(40), atol=1e-5, rtol=0)


def test_features_that_are_all_alike_become_zeros() -> None:
    x = torch.full((9, 3), 2.5)
    torch.testing.assert_close(reduction(moments(x), 2)(x), torch.zeros(9, 2))


def test_nothing_cannot_be_standardised() -> None:
    with pytest.raises(DataError, match="unit is empty"):
        reduction(moments(torch.zeros(0, 3)), 2)

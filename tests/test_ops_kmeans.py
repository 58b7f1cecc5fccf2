import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unspool.errors import DataError, UsageError
from unspool.ops import kmeans
from unspool.ops.kmeans import KMeans, fit, nearest


def blobs(k: int, each: int = 20, d: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points around k places far from one another, and which place each is of."""
    generator = torch.Generator().manual_seed(seed)
    places = 100 * torch.arange(k, dtype=torch.float32)[:, None] * torch.ones(d)
    labels = torch.arange(k).repeat_interleave(each)[torch.randperm(k * each, generator=generator)]
    return places[labels] + torch.randn(k * each, d, generator=generator), labels


def cost(points: Tensor, centres: Tensor) -> float:
    return float(torch.cdist(points, centres).square().amin(dim=1).sum())


@settings(deadline=None, max_examples=20)
@given(k=st.integers(1, 6), seed=st.integers(0, 1000))
def test_clusters_far_apart_are_found_whatever_the_seed(k: int, seed: int) -> None:
    points, labels = blobs(k)
    found = nearest(points, fit(points, k, seed))
    assert len({(int(a), int(b)) for a, b in zip(found, labels, strict=True)}) == k


def test_the_same_seed_gives_the_same_centres_and_another_other_ones() -> None:
    points = torch.randn(300, 4, generator=torch.Generator().manual_seed(1))
    how = KMeans(iterations=2, tries=1)
    assert torch.equal(fit(points, 7, 3, how), fit(points, 7, 3, how))
    assert not torch.equal(fit(points, 7, 3, how), fit(points, 7, 4, how))


def test_centres_are_the_means_of_their_points() -> None:
    points = torch.randn(200, 3, generator=torch.Generator().manual_seed(2))
    centres = fit(points, 5, 0, KMeans(iterations=200))
    labels = nearest(points, centres)
    means = torch.stack([points[labels == c].mean(0) for c in range(5)])
    torch.testing.assert_close(centres, means)


def test_more_tries_are_never_worse() -> None:
    points = torch.randn(200, 2, generator=torch.Generator().manual_seed(3))
    costs = [cost(points, fit(points, 8, 0, KMeans(tries=tries))) for tries in (1, 4, 12)]
    assert costs[0] >= costs[1] - 1e-3 >= costs[2] - 2e-3


def test_parts_of_the_points_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.randn(100, 3, generator=torch.Generator().manual_seed(4))
    whole = nearest(points, points[:7])
    monkeypatch.setattr(kmeans, "PRODUCTS", 20)
    assert torch.equal(nearest(points, points[:7]), whole)
    assert torch.equal(whole, torch.cdist(points, points[:7]).argmin(dim=1))


def test_centres_are_fitted_to_a_sample_where_asked() -> None:
    points, _ = blobs(3, each=400)
    centres = fit(points, 3, 0, KMeans(sample=16))
    assert cost(points, centres) < 1.3 * cost(points, fit(points, 3, 0))
    assert not torch.equal(centres, fit(points, 3, 0))


def test_spherical_centres_have_length_one() -> None:
    points = torch.randn(100, 4, generator=torch.Generator().manual_seed(5))
    centres = fit(points, 6, 0, KMeans(spherical=True))
    torch.testing.assert_close(centres.norm(dim=1), torch.ones(6))


@pytest.mark.parametrize("k", [1, 3, 8])
def test_points_that_are_all_alike_give_finite_centres(k: int) -> None:
    centres = fit(torch.ones(8, 2), k, 0)
    torch.testing.assert_close(centres, torch.ones(k, 2))


def test_as_many_clusters_as_points_leave_no_distance() -> None:
    points = torch.randn(12, 2, generator=torch.Generator().manual_seed(6))
    assert cost(points, fit(points, 12, 0)) < 1e-9


@pytest.mark.parametrize("k", [0, 5])
def test_more_clusters_than_tokens_are_refused(k: int) -> None:
    with pytest.raises(DataError, match=rf"{k} clusters of 4 tokens"):
        fit(torch.randn(4, 2), k, 0)


def test_features_that_are_not_finite_are_refused() -> None:
    with pytest.raises(DataError, match="not finite"):
        fit(torch.tensor([[0.0], [float("nan")]]), 1, 0)


@pytest.mark.parametrize("wrong", [{"iterations": 0}, {"tries": 0}, {"sample": -1}])
def test_settings_out_of_range_are_refused_by_name(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=f"kmeans.{next(iter(wrong))} = "):
        KMeans(**wrong)


@pytest.mark.parametrize("tries", [1, 4])
def test_progress_is_told_after_each_iteration_and_sums_to_one(tries: int) -> None:
    told: list[float] = []
    fit(blobs(4)[0], 4, 0, KMeans(tries=tries), progress=told.append)
    assert len(told) >= 2 * tries
    assert sum(told) == pytest.approx(1)

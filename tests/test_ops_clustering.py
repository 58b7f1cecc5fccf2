import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles_ba import plain_algorithm_1, plain_attention, plain_clusters, plain_kl, plain_pass
from torch import Tensor

import unspool.ops.clustering as module
from unspool.errors import UsageError
from unspool.ops.clustering import Clustering, Rows, cluster, leaders, means, rows_of_attention, same_rows
from unspool.ops.divergence import compared, head_mean_attention, primal, symmetric_kl

SHAPES = {"frames": st.integers(1, 7), "tokens": st.integers(1, 12), "groups": st.integers(1, 4)}


def attention_of(
    frames: int, tokens: int, groups: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Rows of some groups, alike within one, [frames * tokens, 2 * tokens]."""
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(groups, 2 * tokens, generator=generator, dtype=torch.float64)
    of = torch.randint(groups, (frames * tokens,), generator=generator)
    noise = 0.3 * torch.randn(frames * tokens, 2 * tokens, generator=generator, dtype=torch.float64)
    return (centres[of] + noise).softmax(1).to(dtype)


def rows_of(attention: Tensor, frames: int) -> Rows:
    tokens = len(attention) // frames
    return lambda start, stop: attention[start * tokens : stop * tokens]


# --------------------------------------------------------------------------------------- against plain forms


@settings(max_examples=40, deadline=None)
@given(**SHAPES, seed=st.integers(0, 99), tau=st.sampled_from([0.05, 0.3, 1.0, 4.0]))
def test_windowed_clusters_are_those_of_the_plain_form(
    frames: int, tokens: int, groups: int, seed: int, tau: float
) -> None:
    attention = attention_of(frames, tokens, groups, seed)
    found = cluster(rows_of(attention, frames), frames, Clustering(tau=tau))
    labels, centroids = plain_clusters(attention, frames, tau)
    assert torch.equal(found.labels, labels)
    assert torch.allclose(found.centroids, centroids)


@settings(max_examples=40, deadline=None)
@given(**SHAPES, seed=st.integers(0, 99), tau=st.sampled_from([0.05, 0.3, 1.0, 4.0]))
def test_algorithm_1_is_that_of_the_plain_form(
    frames: int, tokens: int, groups: int, seed: int, tau: float
) -> None:
    attention = attention_of(frames, tokens, groups, seed)
    found = cluster(rows_of(attention, frames), frames, Clustering(tau=tau, algorithm="paper"))
    labels, centroids = plain_algorithm_1(attention, tau)
    assert torch.equal(found.labels, labels)
    assert torch.allclose(found.centroids, centroids)


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 700), groups=st.integers(1, 300), seed=st.integers(0, 9))
def test_a_leader_pass_in_blocks_is_one_row_by_row(count: int, groups: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(groups, 6, generator=generator, dtype=torch.float64)
    rows = centres[torch.randint(groups, (count,), generator=generator)].softmax(1)
    member = leaders(compared(rows, "kl"), 0.1)
    assert torch.allclose(means(rows, member), plain_pass(rows, 0.1))


def test_attention_is_the_mean_over_heads_of_the_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unspool.ops.divergence.ROWS", 3)
    q, k = torch.randn(4, 10, 5), torch.randn(4, 7, 5)
    assert torch.allclose(head_mean_attention(q, k, 0.4), plain_attention(q, k, 0.4), atol=1e-6)


def test_key_frames_are_attended_to_jointly() -> None:
    q, k = torch.randn(5, 2, 6, 4), torch.randn(3, 2, 6, 4)
    rows = rows_of_attention(q, k)(1, 3)
    every = plain_attention(q[1:3].transpose(0, 1).flatten(1, 2), k.transpose(0, 1).flatten(1, 2), 0.5)
    assert torch.allclose(rows, every, atol=1e-6)


# --------------------------------------------------------------------------------------- distances


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 5), k=st.integers(1, 5), m=st.integers(1, 9), seed=st.integers(0, 99))
def test_symmetric_kl_is_symmetric_not_negative_and_that_of_the_plain_form(
    n: int, k: int, m: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(rows, m, generator=generator, dtype=torch.float64).softmax(1) for rows in (n, k))
    found = symmetric_kl(x, y)
    assert torch.allclose(found, plain_kl(x, y))
    assert torch.allclose(found, symmetric_kl(y, x).T)
    assert bool((found > -1e-12).all())


def test_symmetric_kl_has_the_gradient_of_its_plain_form() -> None:
    x, y = torch.rand(3, 5, dtype=torch.float64) + 0.1, torch.rand(2, 5, dtype=torch.float64) + 0.1
    assert torch.autograd.gradcheck(symmetric_kl, (x.requires_grad_(), y.requires_grad_()))


@pytest.mark.parametrize("hold", [True, False])
def test_every_distance_is_what_its_name_says(hold: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unspool.ops.divergence.COLUMNS", 4)
    x = torch.rand(6, 9, dtype=torch.float64) + 0.1
    chosen = torch.tensor([4, 0])
    unit = torch.nn.functional.normalize(x, dim=1)
    for distance, expected in (
        ("kl", plain_kl(x, x)),
        ("cosine", 1 - unit @ unit.T),
        ("euclidean", torch.cdist(x, x) ** 2),
    ):
        rows = compared(x, distance, hold=hold)  # type: ignore[arg-type]
        assert torch.allclose(rows.distances(chosen), expected[chosen])
        products = rows.products()
        assert torch.allclose(rows.own[:, None] + rows.own - products - products.T, expected)


def test_cosine_rows_have_half_unit_length() -> None:
    assert torch.allclose(primal(torch.randn(4, 3), "cosine").norm(dim=1), torch.tensor(math.sqrt(0.5)))


def test_large_common_parts_do_not_drown_small_distances() -> None:
    generator = torch.Generator().manual_seed(0)
    common = 3 * torch.randn(1, 4000, generator=generator, dtype=torch.float64)
    x = (common + 0.01 * torch.randn(20, 4000, generator=generator, dtype=torch.float64)).softmax(1)
    rows = compared(x.float(), "kl")
    found = rows.distances(torch.arange(20))
    assert torch.allclose(found, plain_kl(x, x).float(), rtol=0.02, atol=2e-7)


# --------------------------------------------------------------------------------------- memory


def test_memory_changes_no_label() -> None:
    attention = attention_of(6, 12, 4, dtype=torch.float32)
    results = [
        cluster(rows_of(attention, 6), 6, Clustering(tau=0.5), finest=0.2, memory=memory)
        for memory in (40_000, 60_000, 200_000, 1 << 30)
    ]
    for found in results[1:]:
        assert torch.equal(found.labels, results[0].labels)
        assert torch.equal(found.centroids, results[0].centroids)
        assert found.leaves is not None and results[0].leaves is not None
        assert torch.equal(found.leaves.labels, results[0].leaves.labels)


def test_too_little_memory_says_how_much_is_needed() -> None:
    attention = attention_of(6, 12, 4, dtype=torch.float32)
    with pytest.raises(
        UsageError, match=r"memory = 0 MB is too little: a window of 36 rows of 24 takes 1 MB"
    ):
        cluster(rows_of(attention, 6), 6, Clustering(), memory=5_000)


def test_rows_are_made_once_where_they_fit() -> None:
    made = []

    def rows(start: int, stop: int) -> Tensor:
        made.append((start, stop))
        return torch.ones(stop - start, 4) / 4

    again = same_rows(rows, 100)
    for span in ((0, 3), (3, 6), (6, 9), (0, 3), (3, 6), (6, 9)):
        assert len(again(*span)) == 3
    assert made == [(0, 3), (3, 6), (6, 9), (6, 9)]


# --------------------------------------------------------------------------------------- leaves


def test_rows_are_compared_block_by_block_and_each_pair_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEADERS", (2, 5))
    rows = attention_of(1, 12, 3)
    near = module._near(compared(rows, "kl"), [0.3, 0.6])
    for tau, pairs in zip((0.3, 0.6), near, strict=True):
        assert torch.equal(pairs, plain_kl(rows, rows) <= tau) and not pairs.all()


def test_leaves_are_the_centroids_of_the_windowed_pass_at_the_finest_threshold() -> None:
    attention = attention_of(6, 12, 4)
    found = cluster(rows_of(attention, 6), 6, Clustering(tau=4.0), finest=0.3)
    assert found.leaves is not None
    parts = [
        plain_pass(module._smoothed(part, plain_kl(part, part) <= 0.3, "kl"), 0.3)
        for part in attention.split(36)
    ]
    assert torch.allclose(found.leaves.centroids, torch.cat(parts))
    for i, part in enumerate(attention.split(36)):
        first = sum(map(len, parts[:i]))
        assert torch.equal(
            found.leaves.labels[36 * i : 36 * (i + 1)], first + plain_kl(part, parts[i]).argmin(1)
        )


def test_leaves_do_not_change_the_clusters() -> None:
    attention = attention_of(5, 9, 3)
    with_leaves = cluster(rows_of(attention, 5), 5, Clustering(tau=0.7), finest=0.3)
    assert torch.equal(with_leaves.labels, cluster(rows_of(attention, 5), 5, Clustering(tau=0.7)).labels)


# --------------------------------------------------------------------------------------- K-means


@pytest.mark.parametrize("distance", ["kl", "cosine", "euclidean"])
def test_kmeans_finds_groups_that_stand_apart(distance: str) -> None:
    of = torch.arange(40) % 3
    attention = (6 * torch.eye(3, 12)[of] + 0.1 * torch.rand(40, 12)).softmax(1)
    how = Clustering(algorithm="kmeans", clusters=3, distance=distance)  # type: ignore[arg-type]
    labels = cluster(rows_of(attention, 4), 4, how).labels
    assert len({(int(a), int(b)) for a, b in zip(of, labels, strict=True)}) == 3


def test_kmeans_ends_at_means_of_nearest_rows() -> None:
    attention = attention_of(4, 10, 4)
    found = cluster(rows_of(attention, 4), 4, Clustering(algorithm="kmeans", clusters=5))
    for k, centroid in enumerate(found.centroids):
        own = attention[found.labels == k]
        assert not len(own) or torch.allclose(own.mean(0), centroid)
    assert torch.equal(plain_kl(attention, found.centroids).argmin(1), found.labels)


def test_kmeans_is_the_same_again_and_another_with_another_seed() -> None:
    attention = attention_of(4, 10, 4)
    how = Clustering(algorithm="kmeans", clusters=7)
    once, again = (cluster(rows_of(attention, 4), 4, how) for _ in range(2))
    assert torch.equal(once.labels, again.labels)
    other = cluster(rows_of(attention, 4), 4, Clustering(algorithm="kmeans", clusters=7, seed=3))
    assert not torch.equal(once.labels, other.labels)


def test_kmeans_of_fewer_different_rows_than_clusters_has_as_many_as_there_are() -> None:
    attention = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).repeat(6, 1)
    found = cluster(rows_of(attention, 2), 2, Clustering(algorithm="kmeans", clusters=8))
    assert len(found.centroids) == 2


# --------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("tau", [0, -1.0, math.nan])
def test_a_threshold_that_nothing_can_meet_is_refused(tau: float) -> None:
    with pytest.raises(UsageError, match=r"clustering\.tau"):
        Clustering(tau=tau)


@pytest.mark.parametrize("algorithm", ["windowed", "paper", "kmeans"])
def test_rows_that_are_not_finite_are_refused_by_number(algorithm: str) -> None:
    attention = attention_of(2, 6, 2)
    attention[7, 3] = math.nan
    how = Clustering(algorithm=algorithm)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"row 7 .* not finite"):
        cluster(rows_of(attention, 2), 2, how)


@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(1, 40),
    groups=st.integers(1, 5),
    crowded=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 9),
)
def test_rows_are_smoothed_by_runs_as_by_one_product(
    count: int, groups: int, crowded: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    of = torch.randint(groups, (count,), generator=generator)
    near = (of[:, None] == of) ^ (torch.rand(count, count, generator=generator) < 0.05)
    near.fill_diagonal_(True)
    rows = torch.rand(count, 11, generator=generator, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "RUN", 2)
        patch.setattr(module, "ADDED", 4)
        patch.setattr(module, "CROWDED", crowded)
        patch.setattr("unspool.ops.divergence.COLUMNS", 4)
        found = module._smoothed(rows, near, "kl")
    expected = near.double() @ rows
    assert torch.allclose(found, expected / expected.sum(1, keepdim=True))


def test_a_zero_does_not_take_every_token() -> None:
    q = torch.zeros(2, 1, 4, 1)
    q[0, 0, 0, 0] = 1.0
    k = torch.tensor([[[[300.0], [0.0], [0.0], [0.0]]]])
    found = cluster(rows_of_attention(q, k), 2, Clustering())
    assert found.labels.tolist() == [0] + [1] * 7


def test_rows_that_are_all_alike_are_one_cluster() -> None:
    found = cluster(lambda start, stop: torch.full(((stop - start) * 5, 8), 1 / 8), 4, Clustering(tau=1e-6))
    assert found.labels.tolist() == [0] * 20

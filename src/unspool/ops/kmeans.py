"""K-means: the same centres from the same seed, in bounded memory, distances by matrix products.

Of several tries the one with the smallest sum of squared distances is kept. Draws are made on the CPU, so
that devices agree; sums are made in a fixed order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from unspool.errors import DataError, UsageError

PRODUCTS = 1 << 20  # held at a time: 4 MB of float32, which stay in the cache
SEEDED_ON = 256  # points per cluster that seeds are chosen among


@dataclass(frozen=True)
class KMeans:
    """How clusters are found; the defaults are TimeT's (niter, nredo of faiss)."""

    iterations: int = 50  # at most; fewer where nothing moves any more
    tries: int = 5  # seedings, of which the best is kept
    sample: int = 0  # points per cluster that centres are fitted to, drawn at random; 0: all (faiss: 256)
    spherical: bool = False  # points and centres of length 1 (leopart's foreground extraction)

    def __post_init__(self) -> None:
        for name, valid in (
            ("iterations", self.iterations >= 1),
            ("tries", self.tries >= 1),
            ("sample", self.sample >= 0),
        ):
            if not valid:
                raise UsageError(f"kmeans.{name} = {getattr(self, name)!r} is out of range")


@torch.no_grad()
def fit(
    points: Float[Tensor, "n d"],
    k: int,
    seed: int,
    how: KMeans = KMeans(),
    weights: Float[Tensor, " n"] | None = None,
    *,
    progress: Callable[[float], None] | None = None,
) -> Float[Tensor, "k d"]:
    """Centres of k clusters. Seeds by k-means++; a cluster that loses all points moves to the worst-served.

    `weights`: how often each point counts, >= 0; the centres are those of points repeated so often.
    `progress` is told the share of the work that was just done, after each iteration; together 1.
    Raises DataError for fewer points than clusters, and for points that are not finite.
    """
    if not 1 <= k <= len(points):
        raise DataError(
            f"{k} clusters of {len(points)} tokens; ask for 1 to {len(points)}, or use larger images"
        )
    if not points.isfinite().all():
        raise DataError(
            "features to be clustered hold numbers that are not finite; use fp32 or other weights"
        )
    generator = torch.Generator().manual_seed(seed)
    if how.sample:
        points, weights = _some(points, weights, how.sample * k, generator)
    if how.spherical:
        points = normalize(points, dim=1)
    best, least = points[:k], math.inf
    for _ in range(how.tries):
        centres, cost = _lloyd(
            points, weights, _seeds(points, weights, k, generator), how, progress or _quiet
        )
        if cost < least:
            best, least = centres, cost
    return best


def _quiet(share: float) -> None:
    pass


@torch.no_grad()
def nearest(points: Float[Tensor, "n d"], centres: Float[Tensor, "k d"]) -> Int64[Tensor, " n"]:
    """The number of the nearest centre of every point, the first on ties."""
    found = points.new_empty(len(points), dtype=torch.long)
    for part, labels, _ in _chunks(points, centres):
        found[part] = labels
    return found


def _some(
    points: Float[Tensor, "n d"],
    weights: Float[Tensor, " n"] | None,
    count: int,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "m d"], Float[Tensor, " m"] | None]:
    if count >= len(points):
        return points, weights
    chosen = torch.randperm(len(points), generator=generator)[:count].to(points.device)
    return points[chosen], None if weights is None else weights[chosen]


def _seeds(
    points: Float[Tensor, "n d"],
    weights: Float[Tensor, " n"] | None,
    k: int,
    generator: torch.Generator,
) -> Float[Tensor, "k d"]:
    """K-means++ (Arthur and Vassilvitskii 2007): each seed drawn by its squared distance from the others."""
    points, weights = _some(points, weights, SEEDED_ON * k, generator)
    draws = torch.rand(k, generator=generator, dtype=torch.float64)
    first = int(draws[0] * len(points))
    if weights is not None:
        mass = weights.double().cumsum(0)
        first = int(torch.searchsorted(mass, draws[:1].to(mass.device) * mass[-1:], right=True))
    chosen = [min(first, len(points) - 1)]
    square = points.square().sum(dim=1)
    distance = torch.full_like(square, math.inf)
    for draw in draws[1:].tolist():
        last = points[chosen[-1]]
        distance = distance.minimum((square - 2 * (points @ last) + last @ last).clamp_(min=0))
        distance[chosen[-1]] = 0
        mass = (distance.double() if weights is None else distance.double() * weights).cumsum(0)
        place = torch.searchsorted(mass, draw * mass[-1:], right=True)
        chosen.append(min(int(place), len(points) - 1))
    return points[chosen]


def _lloyd(
    points: Float[Tensor, "n d"],
    weights: Float[Tensor, " n"] | None,
    centres: Float[Tensor, "k d"],
    how: KMeans,
    progress: Callable[[float], None],
) -> tuple[Float[Tensor, "k d"], float]:
    """Centres after the iterations, and the sum of squared distances to those before the last."""
    k, cost, last = len(centres), math.inf, torch.full((len(points),), -1, device=points.device)
    for iteration in range(how.iterations):
        sums, counts = torch.zeros_like(centres), torch.zeros(k, device=points.device)
        now, far = torch.empty_like(last), points.new_empty(len(points))
        for part, labels, distances in _chunks(points, centres):
            _add(sums, counts, points[part], labels, None if weights is None else weights[part])
            now[part], far[part] = labels, distances
        cost = float(far.double().sum() if weights is None else far.double() @ weights.double())
        still = torch.equal(now, last)
        progress((how.iterations - iteration if still else 1) / how.iterations / how.tries)
        if still:
            break
        last = now
        centres = sums / torch.where(counts > 0, counts, 1)[:, None]
        empty = (counts == 0).nonzero()[:, 0]
        if len(empty):
            centres[empty] = points[far.topk(len(empty))[1]]
        if how.spherical:
            centres = normalize(centres, dim=1)
    return centres, cost


def _chunks(
    points: Float[Tensor, "n d"], centres: Float[Tensor, "k d"]
) -> Iterator[tuple[slice, Int64[Tensor, " m"], Float[Tensor, " m"]]]:
    """(place of some points, their nearest centres, squared distances to them), part by part.

    Products of all parts are made in one place: allocated anew, they leave holes that none fits again.
    """
    towards, square = -2 * centres.T, centres.square().sum(dim=1)
    size = max(1, PRODUCTS // len(centres))
    held = points.new_empty(min(size, len(points)), len(centres))
    for start in range(0, len(points), size):
        part = slice(start, min(start + size, len(points)))
        some = points[part]
        near, labels = torch.addmm(square, some, towards, out=held[: len(some)]).min(dim=1)
        yield part, labels, near.add_(some.square().sum(dim=1)).clamp_(min=0)


def _add(
    sums: Float[Tensor, "k d"],
    counts: Float[Tensor, " k"],
    points: Float[Tensor, "m d"],
    labels: Int64[Tensor, " m"],
    weights: Float[Tensor, " m"] | None,
) -> None:
    """Add points to the sums of their clusters, in place; on a GPU as a product, whose order is fixed."""
    counts += labels.bincount(weights, minlength=len(sums))
    if weights is not None:
        points = points * weights[:, None]
    if points.is_cuda:
        sums += one_hot(labels, len(sums)).to(points.dtype).T @ points
    else:
        sums.index_add_(0, labels, points)

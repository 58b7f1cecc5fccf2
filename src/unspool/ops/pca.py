"""Features standardised per channel and cut to their principal components, fitted in one pass or many."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from unspool.errors import DataError


@dataclass(frozen=True)
class Moments:
    """Sums over the features seen so far; in float64, so that parts add up to the whole."""

    count: int | float
    total: Float64[Tensor, " c"]
    products: Float64[Tensor, "c c"]

    def __add__(self, other: Moments) -> Moments:
        """Of both together."""
        return Moments(self.count + other.count, self.total + other.total, self.products + other.products)


def moments(features: Float[Tensor, "n c"], weights: Float[Tensor, " n"] | None = None) -> Moments:
    """Of one part of the features; `weights`: how often each counts."""
    exact = features.double()
    if weights is None:
        return Moments(len(features), exact.sum(dim=0), exact.T @ exact)
    often = weights.double()
    return Moments(float(often.sum()), often @ exact, (exact * often[:, None]).T @ exact)


@dataclass(frozen=True)
class Reduction:
    """x -> ((x - mean) / deviation) axes."""

    mean: Float[Tensor, " c"]
    axes: Float[Tensor, "c d"]  # of the standardised channels, divided by their deviations

    def __call__(self, features: Float[Tensor, "*n c"]) -> Float[Tensor, "*n d"]:
        """Reduced features."""
        return (features - self.mean) @ self.axes


def reduction(seen: Moments, dims: int) -> Reduction:
    """Standardise, then keep the `dims` directions of the most variance (all, where there are fewer).

    A channel that never changes is left at 0. The sign of a direction is that of its largest entry, so that
    it does not depend on the machine. Raises DataError where nothing was seen.
    """
    if not seen.count:
        raise DataError("no features to standardise; the evaluation unit is empty")
    mean = seen.total / seen.count
    covariance = seen.products / seen.count - torch.outer(mean, mean)
    variance = covariance.diagonal().clamp(min=0)
    alive = variance > 1e-12 * variance.amax().clamp(min=1e-30)
    scale = torch.where(alive, variance.rsqrt(), 0.0)
    axes = torch.linalg.eigh(scale[:, None] * covariance * scale)[1].flip(1)[:, :dims]
    largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
    axes = scale[:, None] * axes * largest.sign()
    return Reduction(mean.float(), axes.float())

"""Cluster-based foreground extraction (CBFE) and `salient-jaccard`: what stands out in an image.

The class token's attention marks each image's foreground roughly. Clusters of the tokens of all images that
lie in it more often than a threshold says are foreground. The threshold is tuned on the truth of the
training images, so the number it leads to has seen labels. Label maps: 0 is background, 255 void; masks
are bool. Sources: leopart experiments/fully_unsup_seg; Timetuning cluster_based_foreground_extraction.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64, Integer
from torch import Tensor
from torch.nn.functional import pad

from unspool.errors import DataError, ShapeError, UsageError
from unspool.metrics.labels import VOID

MASS = 0.65  # of the attention that is foreground
SMALLEST = 3  # cells of a component that is kept
SPAN = (0.55, 0.75)  # shares of clusters below the cuts that are tried
ROUNDING = 0.05  # of the threshold

Maps = Integer[np.ndarray, "n h w"]
Masks = Bool[np.ndarray, "n h w"]
Void = Literal["ignored", "foreground", "background"]


def attention_foreground(
    attention: Float[Tensor, "b heads n"], grid: tuple[int, int], mass: float = MASS
) -> Bool[Tensor, "b h w"]:
    """The cells, fewest first to go, that hold the share `mass` of the class token's attention to patches.

    Mean over heads, smoothed (7x7 Gaussian, sigma 0.6, mirrored edges); components of 1 or 2 cells are
    dropped (touching by corners counts), which the published code means to do. Source: models.py:
    process_attentions.
    """
    if grid[0] * grid[1] != attention.shape[2]:
        raise ShapeError(
            f"attention to {attention.shape[2]} patches does not fit a grid of {grid[0]}x{grid[1]}"
        )
    smooth = _smoothed(attention.mean(dim=1).view(-1, *grid)).flatten(1)
    ascending, order = (smooth / smooth.sum(dim=1, keepdim=True)).sort(dim=1)
    kept = ascending.cumsum(dim=1) > 1 - mass
    mask = torch.zeros_like(kept).scatter_(1, order, kept).view(-1, *grid)
    return torch.from_numpy(np.stack([_without_specks(image) for image in mask.cpu().numpy()]))


def _smoothed(images: Float[Tensor, "b h w"], sigma: float = 0.6, reach: int = 3) -> Float[Tensor, "b h w"]:
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=images.device) / sigma) ** 2)
    weights = (weights / weights.sum()).to(images.dtype)
    for dim, edges in ((1, (0, 0, reach, reach)), (2, (reach, reach, 0, 0))):
        padded = pad(images[:, None], edges, mode="reflect")[:, 0]
        images = torch.tensordot(padded.unfold(dim, 2 * reach + 1, 1), weights, dims=1)
    return images


def _without_specks(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    from scipy.ndimage import label  # noqa: PLC0415  # slower than all else to import

    components, _ = label(mask, structure=np.ones((3, 3)))
    large = np.bincount(components.ravel()) >= SMALLEST
    large[0] = False
    return np.asarray(large[components])


def cluster_precisions(clusters: Maps, mask: Masks, k: int) -> Float64[np.ndarray, " k"]:
    """Of each cluster: the share of its cells that are in the mask, mean over the images that have any.

    0 for a cluster that no image has.
    """
    images, cells = len(clusters), clusters[0].size
    rows = (np.arange(images)[:, None] * k + clusters.reshape(images, cells)).ravel()
    size = np.bincount(rows, minlength=images * k).reshape(images, k)
    inside = np.bincount(rows, weights=mask.ravel(), minlength=images * k).reshape(images, k)
    share = np.where(size > 0, inside / np.maximum(size, 1), 0.0)
    return np.asarray(share.sum(axis=0) / np.maximum((size > 0).sum(axis=0), 1))


def jaccard(mask: Masks, truth: Maps, void: Void = "ignored") -> float:
    """`salient-jaccard`: mean over images of the IoU of the mask with the foreground; both empty: 1.

    The published code reports both: void as foreground, and as background.
    """
    if void == "background":
        truth = np.where(truth == VOID, 0, truth)
    known = truth != VOID if void == "ignored" else np.ones_like(mask)
    shared, either = mask & (truth != 0) & known, (mask | (truth != 0)) & known
    shared, either = (part.sum(axis=(1, 2)) for part in (shared, either))
    return float(np.where(either > 0, shared / np.maximum(either, 1), 1.0).mean())


@dataclass(frozen=True, eq=False)
class Cuts:
    """The cuts that were tried, the best last."""

    rank: Int64[np.ndarray, " n"]  # clusters from this rank on, by ascending precision, are foreground
    precision: Float64[np.ndarray, " n"]  # of the first of them
    iou: Float64[np.ndarray, " n"]

    @property
    def threshold(self) -> float:
        """The best cut's precision to the nearest multiple of 0.05, at most 0.95."""
        steps = round(1 / ROUNDING)
        choices = np.arange(steps) * ROUNDING
        return float(choices[np.abs(choices - self.precision[-1]).argmin()])


def tuned_cuts(
    clusters: Maps,
    precisions: Float64[np.ndarray, " k"],
    truth: Maps,
    void: Void = "ignored",
) -> Cuts:
    """Every cut between 55 % and 75 % of the clusters, scored on the truth of the training images.

    Raises UsageError for so few clusters that there is no cut.
    """
    k = len(precisions)
    starts = np.arange(int(SPAN[0] * k), int(SPAN[1] * k))
    if not len(starts):
        raise UsageError(f"{k} clusters leave no cut between {SPAN[0]:.0%} and {SPAN[1]:.0%}; use 6 or more")
    order = precisions.argsort(kind="stable")
    rank = np.empty(k, np.int64)
    rank[order] = np.arange(k)
    iou = np.array([jaccard(rank[clusters] >= start, truth, void) for start in starts])
    best = iou.argsort(kind="stable")
    return Cuts(starts[best], precisions[order][starts][best], iou[best])


def foreground(clusters: Maps, precisions: Float64[np.ndarray, " k"], threshold: float) -> Masks:
    """The cells of clusters whose precision reaches the threshold."""
    if not math.isfinite(threshold):
        raise DataError(f"threshold {threshold}: tune it on images that have a foreground")
    return np.asarray((precisions >= threshold)[clusters])

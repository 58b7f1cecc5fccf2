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

from unspool.data.features import Kept
from unspool.data.pictures import View
from unspool.errors import DataError, ShapeError, UsageError
from unspool.metrics import boundary_f
from unspool.metrics.labels import VOID
from unspool.ops import kmeans
from unspool.ops.kmeans import KMeans
from unspool.ops.pca import Reduction, moments, reduction

MASS = 0.65  # of the attention that is foreground
SMALLEST = 3  # cells of a component that is kept
SPAN = (0.55, 0.75)  # shares of clusters below the cuts that are tried
ROUNDING = 0.05  # of the threshold
HELD = 1 << 29  # bytes of reduced features that centres are fitted to at once

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


# ------------------------------------------------------------------------------------- the whole protocol


@dataclass(frozen=True)
class Extraction:
    """How foreground is found; the defaults are Leopart's."""

    clusters: int = 200  # K
    spherical: bool = True  # k-means on features of length 1
    together: bool = True  # training and scored pictures are clustered at once, not each on their own
    regions: Literal["foreground", "all"] = "foreground"  # K=21: what is clustered; all: features times mask
    iterations: int = 100
    tries: int = 5
    side: int = 448  # px of the encoder's input
    label_side: int = 100  # px that everything is scored at
    dims: int = 50  # principal components
    mass: float = MASS
    seed: int = 0  # of the K clusters
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)  # of the clusters afterwards

    def __post_init__(self) -> None:
        for name, valid in (
            ("clusters", self.clusters >= 6),
            ("label_side", self.label_side >= 1),
            ("dims", self.dims >= 1),
            ("mass", 0 < self.mass < 1),
            ("seeds", bool(self.seeds)),
        ):
            if not valid:
                raise UsageError(f"salient.{name} = {getattr(self, name)!r} is out of range")

    @property
    def shown(self) -> View:
        """How pictures are shown."""
        return View(self.side, self.label_side)

    @property
    def kmeans(self) -> KMeans:
        """Of the K clusters."""
        return KMeans(self.iterations, self.tries, spherical=self.spherical)


RECIPES = {
    "leopart": Extraction(),
    "timet": Extraction(300, False, False, "all", iterations=50),
}


@dataclass(frozen=True, eq=False)
class Extracted:
    """What was found in the scored pictures."""

    tuned: Masks  # foreground by the threshold that the training truth chose
    label_free: Masks  # by the threshold that no truth was needed for
    attention: Masks  # the noisy masks that both started from
    thresholds: dict[str, float]
    groups: dict[int, Maps]  # seed -> clusters of what `tuned` found
    classes: int  # how many those clusters are


def extract(
    train: Kept,
    val: Kept,
    attention: tuple[Kept, Kept],
    classes: int,
    how: Extraction,
    device: torch.device,
    void: Void = "ignored",
) -> Extracted:
    """CBFE of the pictures of `val`; `attention` holds `cls_attention` of both splits, of any encoder.
    Without `classes` nothing is clustered afterwards.

    Features are reduced and clustered as tokens; maps are stretched afterwards, nearest. Where the published
    code stretches first, a token counts as often as it has pixels (9 to 16 times); that is all that differs.
    """
    masks = [_stretched(noisy_masks(kept, how.mass), how.label_side) for kept in attention]
    splits = [train, val]
    reduces, centres = _clusters(splits, how, device)
    maps, precisions = [], []
    for kept, reduce, centre, mask in zip(splits, reduces, centres, masks, strict=True):
        tokens = _assigned(kept, reduce, centre, device)
        maps.append(_stretched(tokens, how.label_side))
        precisions.append(_precisions(maps[-1], mask, how.clusters))
    cuts = tuned_cuts(maps[0], precisions[0], np.asarray(train.labels), void)
    sizes = np.bincount(maps[1].ravel(), minlength=how.clusters)
    thresholds = {"tuned": cuts.threshold, "label-free": split_in_two(precisions[1], sizes)}
    tuned = foreground(maps[1], precisions[1], thresholds["tuned"])
    kept_clusters = precisions[1] >= thresholds["tuned"]
    inside = torch.from_numpy(kept_clusters[_assigned(val, reduces[1], centres[1], device)])
    return Extracted(
        tuned,
        foreground(maps[1], precisions[1], thresholds["label-free"]),
        masks[1].astype(bool),
        thresholds,
        {seed: _grouped(val, reduces[1], inside, classes, seed, how, device) for seed in how.seeds}
        if classes
        else {},
        classes,
    )


def noisy_masks(kept: Kept, mass: float = MASS) -> Masks:
    """`attention_foreground` of all pictures, at the size of their tokens."""
    found = []
    for part in _parts(kept):
        attention = kept.rows(part, "cls_attention")
        found.append(
            attention_foreground(attention.flatten(2), (attention.shape[2], attention.shape[3]), mass).numpy()
        )
    return np.concatenate(found)


def split_in_two(precisions: Float64[np.ndarray, " k"], sizes: Int64[np.ndarray, " k"]) -> float:
    """A threshold that needs no truth (ours): the split of the precisions into a low and a high group.

    Otsu's rule: the variance between the groups, clusters weighted by their cells, is the largest. Clusters
    of at least that precision are foreground; where all have one precision, all are.
    """
    order = precisions.argsort(kind="stable")
    value, weight = precisions[order], sizes[order].astype(np.float64)
    below = np.concatenate([[0.0], weight.cumsum()[:-1]])
    above = weight.sum() - below
    sums = np.concatenate([[0.0], (weight * value).cumsum()[:-1]])
    means = sums / np.maximum(below, 1), ((weight * value).sum() - sums) / np.maximum(above, 1)
    between = np.where(np.diff(value, prepend=-1.0) > 0, below * above * (means[1] - means[0]) ** 2, -1.0)
    return float(value[between.argmax()])


def boundary_score(mask: Masks, truth: Maps) -> float:
    """`salient-bf`: mean over images of the boundary F of the mask (`metrics.boundary_f`), void left out."""
    pairs = zip(mask, truth, strict=True)
    return float(np.mean([boundary_f(m, (t != 0) & (t != VOID), t == VOID) for m, t in pairs]))


def _parts(kept: Kept, size: int = 32) -> list[slice]:
    return [slice(start, min(start + size, len(kept))) for start in range(0, len(kept), size)]


def _stretched(maps: np.ndarray, side: int) -> np.ndarray:
    """Nearest, as torch."""
    rows, columns = (np.arange(side) * old // side for old in maps.shape[1:])
    return np.asarray(maps[:, rows][:, :, columns])


def _rows(kept: Kept, part: slice, device: torch.device) -> Float[Tensor, "n c"]:
    return kept.rows(part).to(device).permute(0, 2, 3, 1).flatten(0, 2)


def _clusters(
    splits: list[Kept], how: Extraction, device: torch.device
) -> tuple[list[Reduction], list[Float[Tensor, "k d"]]]:
    """Reduction and centres of every split."""
    groups = [splits] if how.together else [[kept] for kept in splits]
    reduces, centres = [], []
    for group in groups:
        parts = [moments(_rows(kept, part, device)) for kept in group for part in _parts(kept)]
        reduce = reduction(sum(parts[1:], parts[0]), how.dims)
        points = sum(len(kept) * kept.maps["tokens"][0, 0].size for kept in group)
        share = min(1.0, HELD / (4 * points * reduce.axes.shape[1]))
        generator = torch.Generator().manual_seed(how.seed)
        sample = []
        for kept in group:
            for part in _parts(kept):
                rows = reduce(_rows(kept, part, device))
                if share < 1:
                    rows = rows[(torch.rand(len(rows), generator=generator) < share).to(device)]
                sample.append(rows)
        found = kmeans.fit(torch.cat(sample), how.clusters, how.seed, how.kmeans)
        reduces += [reduce] * len(group)
        centres += [found] * len(group)
    return reduces, centres


def _assigned(
    kept: Kept, reduce: Reduction, centres: Float[Tensor, "k d"], device: torch.device
) -> Integer[np.ndarray, "n h w"]:
    """The cluster of every token (a unit centre is nearest to a vector of any length alike)."""
    grid = kept.maps["tokens"].shape[2:]
    found = [
        kmeans.nearest(reduce(_rows(kept, part, device)), centres).cpu().numpy().astype(np.int16)
        for part in _parts(kept)
    ]
    return np.concatenate(found).reshape(-1, *grid)


def _precisions(clusters: Maps, mask: Masks, k: int, at_once: int = 256) -> Float64[np.ndarray, " k"]:
    """`cluster_precisions`, of some images at a time."""
    total, images = np.zeros(k), np.zeros(k, np.int64)
    for start in range(0, len(clusters), at_once):
        part = clusters[start : start + at_once]
        having = np.zeros(k, np.int64)
        for image in part:
            having[np.unique(image)] += 1
        total += cluster_precisions(part, mask[start : start + at_once], k) * having
        images += having
    return np.asarray(total / np.maximum(images, 1))


def _grouped(
    kept: Kept,
    reduce: Reduction,
    inside: Bool[Tensor, "n h w"],
    classes: int,
    seed: int,
    how: Extraction,
    device: torch.device,
) -> Maps:
    """As many clusters as classes: of the foreground, background the last; or of features times mask."""
    plain = KMeans(how.iterations, how.tries)
    flat = inside.flatten().to(device)
    points = torch.cat([reduce(_rows(kept, part, device)) for part in _parts(kept)])
    if how.regions == "all":
        points = points * flat[:, None]
        labels = kmeans.nearest(points, kmeans.fit(points, classes, seed, plain))
    else:
        labels = torch.full_like(flat, classes - 1, dtype=torch.long)
        chosen = points[flat]
        if len(chosen) < classes - 1:
            raise DataError(
                f"the foreground holds {len(chosen)} tokens, too few for {classes - 1} clusters; "
                "use more pictures"
            )
        labels[flat] = kmeans.nearest(chosen, kmeans.fit(chosen, classes - 1, seed, plain))
    return _stretched(labels.view(inside.shape).cpu().numpy().astype(np.uint8), how.label_side)

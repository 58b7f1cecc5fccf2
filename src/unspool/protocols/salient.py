"""Cluster-based foreground extraction (CBFE) and `salient-jaccard`: what stands out in an image.

The class token's attention marks each image's foreground roughly. Clusters of the tokens of all images that
lie in it more often than a threshold says are foreground. The threshold is tuned on the truth of the
training images, so the number it leads to has seen labels. Label maps: 0 is background, 255 void; masks
are bool. Sources: leopart experiments/fully_unsup_seg; Timetuning cluster_based_foreground_extraction.py.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterator
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
    inside, known = _regions(truth, void)
    shared, either = (part.sum(axis=(1, 2)) for part in (mask & inside, (mask & known) | inside))
    return float(_iou(shared, either).mean())


def _regions(truth: Maps, void: Void) -> tuple[Masks, Masks]:
    """The true foreground, and what is scored."""
    inside = truth != 0 if void == "foreground" else (truth != 0) & (truth != VOID)
    return inside, truth != VOID if void == "ignored" else np.ones_like(inside)


def _iou(shared: np.ndarray, either: np.ndarray) -> Float64[np.ndarray, "*n"]:
    return np.asarray(np.where(either > 0, shared / np.maximum(either, 1), 1.0))


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

    `clusters` may be smaller than `truth`, as tokens are; they are stretched, nearest, some at a time.
    Raises UsageError for so few clusters that there is no cut.
    """
    k = len(precisions)
    starts = np.arange(int(SPAN[0] * k), int(SPAN[1] * k))
    if not len(starts):
        raise UsageError(f"{k} clusters leave no cut between {SPAN[0]:.0%} and {SPAN[1]:.0%}; use 6 or more")
    order = precisions.argsort(kind="stable")
    rank = np.empty(k, np.int64)
    rank[order] = np.arange(k)
    iou = _cut_scores(clusters, rank, truth, void)[starts]
    best = iou.argsort(kind="stable")
    return Cuts(starts[best], precisions[order][starts][best], iou[best])


def _cut_scores(
    clusters: Maps, rank: Int64[np.ndarray, " k"], truth: Maps, void: Void
) -> Float64[np.ndarray, " k"]:
    """`jaccard` of the clusters from each rank on, from the pixels of every cluster in every image."""
    scores = []
    for part in _some_at_once(len(clusters)):
        inside, known = _regions(truth[part], void)
        ranks = rank[_stretched(clusters[part], truth.shape[1:])]
        of_image = np.arange(len(ranks))[:, None, None] * len(rank) + ranks
        regions = (inside, known & ~inside)
        shared, kept = (_from_rank_on(of_image[r], len(ranks), len(rank)) for r in regions)
        scores.append(_iou(shared, shared[:, :1] + kept))
    return np.asarray(np.concatenate(scores).mean(axis=0))


def _from_rank_on(cells: Int64[np.ndarray, " n"], images: int, k: int) -> Int64[np.ndarray, "{images} {k}"]:
    """How many cells of each image have this rank or a higher one."""
    counts = np.bincount(cells, minlength=images * k).reshape(images, k)
    return np.asarray(counts[:, ::-1].cumsum(axis=1)[:, ::-1])


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
    pixels: bool = False  # features are stretched before they are clustered: tokens count by their pixels
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
    "timet": Extraction(300, False, False, "all", pixels=True, iterations=50),
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

    Features are never stretched: where the published code clusters pixels, a token counts as often as it has
    pixels (9 to 16 times), which gives the same centres.
    """
    side = how.label_side
    masks = [noisy_masks(kept, how.mass) for kept in attention]
    splits = [train, val]
    reduces, centres = _clusters(splits, how, device)
    maps, precisions = [], []
    for kept, reduce, centre, mask in zip(splits, reduces, centres, masks, strict=True):
        maps.append(_assigned(kept, reduce, centre, device))
        precisions.append(_precisions(maps[-1], mask, how.clusters, side))
    cuts = tuned_cuts(maps[0], precisions[0], np.asarray(train.labels), void)
    often = np.broadcast_to(pixels_of(maps[1].shape[1:], side), maps[1].shape)
    sizes = np.bincount(maps[1].ravel(), often.ravel(), minlength=how.clusters).astype(np.int64)
    thresholds = {"tuned": cuts.threshold, "label-free": split_in_two(precisions[1], sizes)}
    found = {name: foreground(maps[1], precisions[1], cut) for name, cut in thresholds.items()}
    inside, seeds = torch.from_numpy(found["tuned"]), how.seeds if classes else ()
    return Extracted(
        _stretched(found["tuned"], (side, side)),
        _stretched(found["label-free"], (side, side)),
        _stretched(masks[1], (side, side)),
        thresholds,
        {seed: _grouped(val, reduces[1], inside, classes, seed, how, device) for seed in seeds},
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


def _some_at_once(images: int, size: int = 64) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, images, size))


def _stretched(maps: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Nearest, as torch."""
    rows, columns = (np.arange(new) * old // new for new, old in zip(size, maps.shape[1:], strict=True))
    return np.asarray(maps[:, rows][:, :, columns])


def pixels_of(grid: tuple[int, ...], side: int) -> Int64[np.ndarray, "h w"]:
    """How many pixels of `side` x `side` are those of each token, stretched nearest."""
    rows, columns = (np.bincount(np.arange(side) * old // side, minlength=old) for old in grid)
    return np.asarray(np.outer(rows, columns))


def _often(kept: Kept, pictures: int, how: Extraction, device: torch.device) -> Float[Tensor, " n"]:
    """Pixels of every token of so many pictures."""
    each = pixels_of(kept.maps["tokens"].shape[2:], how.label_side)
    return torch.from_numpy(each).float().to(device).flatten().repeat(pictures)


def _rows(kept: Kept, part: slice, device: torch.device) -> Float[Tensor, "n c"]:
    return kept.rows(part).to(device).permute(0, 2, 3, 1).flatten(0, 2)


def _clusters(
    splits: list[Kept], how: Extraction, device: torch.device
) -> tuple[list[Reduction], list[Float[Tensor, "k d"]]]:
    """Reduction and centres of every split."""
    groups = [splits] if how.together else [[kept] for kept in splits]
    reduces, centres = [], []
    for group in groups:
        seen = (
            moments(rows, _often(kept, len(rows) // _cells(kept), how, device) if how.pixels else None)
            for kept in group
            for part in _parts(kept)
            for rows in [_rows(kept, part, device)]
        )
        reduce = reduction(functools.reduce(operator.add, seen), how.dims)
        points, often = _points(group, reduce, how, device, how.seed)
        weights = often if how.pixels else None
        centres += [kmeans.fit(points, how.clusters, how.seed, how.kmeans, weights)] * len(group)
        reduces += [reduce] * len(group)
    return reduces, centres


def _cells(kept: Kept) -> int:
    return int(kept.maps["tokens"][0, 0].size)


def _points(
    group: list[Kept],
    reduce: Reduction,
    how: Extraction,
    device: torch.device,
    seed: int,
    inside: Bool[Tensor, "n h w"] | None = None,
) -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"]]:
    """Reduced features that centres are fitted to, all or as many as may be held, and their pixels.

    `inside`: the foreground, which alone is taken, or outside of which features are 0 (`how.regions`).
    """
    total, dims = sum(len(kept) * _cells(kept) for kept in group), reduce.axes.shape[1]
    if inside is not None and how.regions == "foreground":
        total = int(inside.sum())
    share = min(1.0, HELD / (4 * max(total, 1) * dims))
    generator = torch.Generator().manual_seed(seed)
    points, often = torch.empty(total, dims, device=device), torch.empty(total, device=device)
    held = 0
    for kept in group:
        for part in _parts(kept):
            rows = reduce(_rows(kept, part, device))
            weights = _often(kept, part.stop - part.start, how, device)
            if inside is not None:
                flat = inside[part].flatten().to(device)
                all_of_it = how.regions == "all"
                rows, weights = (rows * flat[:, None], weights) if all_of_it else (rows[flat], weights[flat])
            if share < 1:
                drawn = (torch.rand(len(rows), generator=generator) < share).to(device)
                rows, weights = rows[drawn], weights[drawn]
            points[held : held + len(rows)], often[held : held + len(rows)] = rows, weights
            held += len(rows)
    return points[:held], often[:held]


def _assigned(
    kept: Kept, reduce: Reduction, centres: Float[Tensor, "k d"], device: torch.device
) -> Integer[np.ndarray, "n h w"]:
    """The cluster of every token (a unit centre is nearest to a vector of any length alike)."""
    grid = kept.maps["tokens"].shape[2:]
    found = [
        kmeans.nearest(reduce(_rows(kept, part, device)), centres).cpu().numpy().astype(np.int32)
        for part in _parts(kept)
    ]
    return np.concatenate(found).reshape(-1, *grid)


def _precisions(clusters: Maps, mask: Masks, k: int, side: int) -> Float64[np.ndarray, " k"]:
    """`cluster_precisions` of maps stretched to `side`, of some images at a time."""
    total, images = np.zeros(k), np.zeros(k, np.int64)
    for part in _some_at_once(len(clusters)):
        large, marked = (_stretched(each[part], (side, side)) for each in (clusters, mask))
        having = np.zeros(k, np.int64)
        for image in large:
            having[np.unique(image)] += 1
        total += cluster_precisions(large, marked, k) * having
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
    points, often = _points([kept], reduce, how, device, seed, inside)
    k = classes if how.regions == "all" else classes - 1
    if len(points) < k:
        raise DataError(
            f"the foreground holds {len(points)} tokens, too few for {k} clusters; use more pictures"
        )
    centres = kmeans.fit(points, k, seed, KMeans(how.iterations, how.tries), often)
    found = []
    for part in _parts(kept):
        flat = inside[part].flatten().to(device)
        rows = reduce(_rows(kept, part, device))
        labels = kmeans.nearest(rows * flat[:, None] if how.regions == "all" else rows, centres)
        if how.regions == "foreground":
            labels = torch.where(flat, labels, classes - 1)
        found.append(labels.cpu().numpy().astype(np.uint8))
    maps = np.concatenate(found).reshape(inside.shape)
    return _stretched(maps, (how.label_side, how.label_side))

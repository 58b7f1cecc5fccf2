"""Clustering and overclustering of features: `cluster-frame`, `-clip`, `-dataset` and their kin.

What is clustered and matched at once is a unit: a frame, the frames of a clip, or the whole data set (F, C, D
of TimeT's appendix B, Eq. 10-15). Within a unit features are standardised and cut to their principal
components, clustered by k-means, stretched to the size of the truth, and matched to its classes. Units count
equally; every number is a mean over seeds. A data set is read in passes and never held whole.
Source: Timetuning evaluation.py, clustering.py; leopart experiments/overcluster.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64, Integer
from torch import Tensor
from torch.nn.functional import interpolate

from unspool.errors import DataError, UsageError
from unspool.metrics.labels import VOID
from unspool.metrics.matching import ClusterScores, Rule, clustering_of_counts
from unspool.metrics.overlap import Counts, padded, total_counts
from unspool.ops import kmeans
from unspool.ops.kmeans import KMeans
from unspool.ops.pca import Moments, Reduction, moments, reduction
from unspool.ops.resize import nearest_source

NOTHING = "no unit of the data set holds a class; its truth is void throughout"
HELD = 1 << 30  # bytes of reduced features that centres of a data set are fitted to at once


@dataclass(frozen=True)
class Clustering:
    """One protocol, all but its data."""

    unit: Literal["frame", "clip", "dataset"]
    clusters: int = 0  # K; 0: the number of ids in the unit's truth, background included, void not
    rule: Rule = "hungarian"
    at: Literal["tokens", "pixels"] = "pixels"  # pixels: features are stretched bilinearly, then clustered
    side: int = 224  # px of the square that truth is scored at; 0: as it is
    classes: int = 0  # ids 0 to classes-1 are scored, whether they occur or not; 0: those in the unit's truth
    dims: int = 50  # principal components
    kmeans: KMeans = field(default_factory=KMeans)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)

    def __post_init__(self) -> None:
        for name, valid in (
            ("unit", self.unit in ("frame", "clip", "dataset")),
            ("clusters", self.clusters >= 0),
            ("rule", self.rule in ("hungarian", "many-iou", "many-precision")),
            ("at", self.at in ("tokens", "pixels")),
            ("side", self.side >= 0),
            ("classes", self.classes >= 0),
            ("dims", self.dims >= 1),
            ("seeds", bool(self.seeds)),
        ):
            if not valid:
                raise UsageError(f"clustering.{name} = {getattr(self, name)!r} is out of range")


PROTOCOLS = {
    "cluster-frame": Clustering("frame"),
    "cluster-clip": Clustering("clip"),
    "cluster-dataset": Clustering("dataset", side=112),
    "overcluster-frame": Clustering("frame", 10, "many-precision"),
    "overcluster-clip": Clustering("clip", 10, "many-precision"),
    "overcluster-dataset": Clustering("dataset", 200, "many-precision", "tokens", 100),  # DAVIS; YTVOS: 500
    "cluster-voc-k21": Clustering("dataset", 21, "hungarian", "tokens", 100, 21),
    "overcluster-voc-k500": Clustering("dataset", 500, "many-precision", "tokens", 100, 21),
    "cluster-voc-k21-timet": Clustering("dataset", 21, "hungarian", "pixels", 112, 21),  # TimeT's release
    "overcluster-voc-k500-timet": Clustering("dataset", 500, "many-precision", "pixels", 112, 21),
}


@dataclass(frozen=True, eq=False)
class Labelled:
    """A clip (or an image, of one frame) as an encoder sees it, and its truth."""

    name: str
    features: Float[Tensor, "t c h w"]
    truth: Integer[np.ndarray, "t H W"]  # 0 = background, 255 = void


@dataclass(frozen=True)
class Score:
    """Means over units, by seed, with id 0 (`bg`) and without it (`nobg`)."""

    name: str  # of the protocol, its rule included
    units: int
    bg: tuple[float, ...]
    nobg: tuple[float, ...]
    classes: Mapping[int, float]  # IoU by id, mean over units that have it, then over seeds
    having: Mapping[int, int]  # units that have the id

    def summary(self) -> dict[str, float]:
        """Mean and standard deviation over seeds (NaN of a single one), under the full names."""
        found = {}
        for ending, values in (("bg", self.bg), ("nobg", self.nobg)):
            found[f"{self.name}-{ending}"] = fmean(values)
            found[f"{self.name}-{ending}-sd"] = stdev(values) if len(values) > 1 else math.nan
        return found


# What of a unit's frames belongs to which class, for the first seed; whether more are wanted.
Draw = Callable[[Labelled, Int64[np.ndarray, "t H W"]], bool]
Progress = Callable[[float], None]  # so many frames more are clustered; a part of one counts
FITTING = 0.8  # share of the time that centres take, about


def score_clips(
    clips: Iterable[Labelled], how: Clustering, draw: Draw | None = None, progress: Progress | None = None
) -> Score:
    """The protocol's numbers; `clips` are gone through once, or for a data set three times.

    `draw` is handed units with their clusters as the classes that they were matched to, a data set clip by
    clip in a further pass, until it wants no more. `progress` hears of the frames of all seeds together, each
    counted once. Raises DataError, which names the clip, where there are
    more clusters than tokens; and where no unit has a class that is not void. Units of void alone are not
    scored.
    """
    score = score_dataset if how.unit == "dataset" else score_units
    return score(clips, how, draw, progress or _quiet)


def _quiet(frames: float) -> None:
    pass


def pooled(scores: Iterable[Score]) -> Score:
    """The score of all units together, from those of parts, of the same protocol and seeds."""
    parts = list(scores)
    units = sum(part.units for part in parts)
    if not units:
        raise DataError(NOTHING)
    bg, nobg = (
        tuple(
            sum(part.units * value for part, value in zip(parts, of_seed, strict=True)) / units
            for of_seed in zip(*(getattr(part, which) for part in parts), strict=True)
        )
        for which in ("bg", "nobg")
    )
    having = {
        id_: sum(part.having.get(id_, 0) for part in parts)
        for id_ in sorted({id_ for part in parts for id_ in part.having})
    }
    classes = {
        id_: sum(part.classes.get(id_, 0.0) * part.having.get(id_, 0) for part in parts) / number
        for id_, number in having.items()
    }
    return Score(parts[0].name, units, bg, nobg, classes, having)


def full_name(how: Clustering) -> str:
    """`cluster-UNIT-RULE`, or `overcluster-...` where K is given."""
    return f"{'overcluster' if how.clusters else 'cluster'}-{how.unit}-{how.rule}"


# --------------------------------------------------------------------------------------- frames and clips


def score_units(
    clips: Iterable[Labelled], how: Clustering, draw: Draw | None = None, progress: Progress = _quiet
) -> Score:
    """Each frame or clip on its own."""
    by_seed: dict[int, list[ClusterScores]] = {seed: [] for seed in how.seeds}
    for clip in clips:
        for unit in _units(clip, how.unit):
            for seed, scored in _score_unit(unit, how, draw, progress):
                by_seed[seed].append(scored)
    return _mean(by_seed, how)


def _units(clip: Labelled, unit: str) -> Iterator[Labelled]:
    if unit == "clip":
        yield clip
        return
    for t in range(len(clip.truth)):
        yield Labelled(f"{clip.name}, frame {t}", clip.features[t : t + 1], clip.truth[t : t + 1])


def _score_unit(
    unit: Labelled, how: Clustering, draw: Draw | None, progress: Progress
) -> Iterator[tuple[int, ClusterScores]]:
    truth = resized_truth(unit.truth, how.side)
    present = np.setdiff1d(truth, [VOID])
    if not len(present):
        return
    reduce = reduction(moments(_rows(unit.features)), how.dims)
    maps = _clustered_maps(unit.features, reduce, truth, how)
    points, each = _rows(maps), len(truth) / len(how.seeds)
    for seed in how.seeds:
        fitting = _scaled(progress, FITTING * each)
        centres = _fit(points, how.clusters or len(present), seed, how, unit.name, fitting)
        labels = _labels(maps, centres, truth)
        scored = _scored(total_counts(labels, truth), how)
        if draw and seed == how.seeds[0]:
            draw(unit, _as_classes(labels, scored))
        progress((1 - FITTING) * each)
        yield seed, scored


# ------------------------------------------------------------------------------------------- a data set


def score_dataset(
    clips: Iterable[Labelled], how: Clustering, draw: Draw | None = None, progress: Progress = _quiet
) -> Score:
    """All clips together: moments in a first pass, centres from (a sample of) a second, counts in a third."""
    seen, points, ids, frames = _first_pass(clips, how)
    reduce = reduction(seen, how.dims)
    kept = min(1.0, HELD / (4 * points * reduce.axes.shape[1]))
    sample = torch.cat(list(_second_pass(clips, reduce, how, kept)))
    k = how.clusters or len(ids)
    fitting = _scaled(progress, FITTING * frames / len(how.seeds))
    centres = {seed: _fit(sample, k, seed, how, "the data set", fitting) for seed in how.seeds}
    counts: dict[int, Counts] = {seed: np.zeros((1, 1), np.int64) for seed in how.seeds}
    for clip in clips:
        truth = resized_truth(clip.truth, how.side)
        maps = _clustered_maps(clip.features, reduce, truth, how)
        for seed, of_seed in centres.items():
            counts[seed] = _sum(counts[seed], total_counts(_labels(maps, of_seed, truth), truth))
        progress((1 - FITTING) * len(truth))
    scored = {seed: _scored(each, how) for seed, each in counts.items()}
    if draw:
        for clip in clips:
            truth = resized_truth(clip.truth, how.side)
            maps = _clustered_maps(clip.features, reduce, truth, how)
            labels = _labels(maps, centres[how.seeds[0]], truth)
            if not draw(clip, _as_classes(labels, scored[how.seeds[0]])):
                break
    return _mean({seed: [each] for seed, each in scored.items()}, how)


def _first_pass(clips: Iterable[Labelled], how: Clustering) -> tuple[Moments, int, set[int], int]:
    """Moments of all tokens, the number of points to be clustered, the ids of the truth, frames."""
    seen: Moments | None = None
    points, ids, frames = 0, set[int](), 0
    for clip in clips:
        truth = resized_truth(clip.truth, how.side)
        part = moments(_rows(clip.features))
        seen = part if seen is None else seen + part
        points += truth.size if how.at == "pixels" else clip.features[:, 0].numel()
        ids.update(np.unique(truth).tolist())
        frames += len(truth)
    if seen is None:
        raise DataError("the data set holds no clips")
    return seen, points, ids - {VOID}, frames


def _second_pass(
    clips: Iterable[Labelled], reduce: Reduction, how: Clustering, kept: float
) -> Iterator[Float[Tensor, "n d"]]:
    """Points of every clip, a random share `kept` of them; the same whatever is clustered, from seed 0."""
    generator = torch.Generator().manual_seed(0)
    for clip in clips:
        points = _rows(_clustered_maps(clip.features, reduce, resized_truth(clip.truth, how.side), how))
        if kept < 1:
            points = points[(torch.rand(len(points), generator=generator) < kept).to(points.device)]
        yield points


# ---------------------------------------------------------------------------------------------- pieces


def _rows(maps: Float[Tensor, "t c h w"]) -> Float[Tensor, "n c"]:
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


def _clustered_maps(
    features: Float[Tensor, "t c h w"],
    reduce: Reduction,
    truth: Integer[np.ndarray, "t H W"],
    how: Clustering,
) -> Float[Tensor, "t d H W"]:
    """Reduced features where they are clustered (stretching keeps the order: reducing is affine)."""
    maps = reduce(features.float().movedim(1, 3)).movedim(3, 1)
    if how.at == "tokens":
        return maps
    size = (truth.shape[1], truth.shape[2])
    return interpolate(maps, size, mode="bilinear", align_corners=False)


def _fit(
    points: Float[Tensor, "n d"], k: int, seed: int, how: Clustering, where: str, progress: Progress
) -> Float[Tensor, "k d"]:
    try:
        return kmeans.fit(points, k, seed, how.kmeans, progress=progress)
    except DataError as error:
        raise DataError(f"{where}: {error} (K is set by --clusters)") from error


def _scaled(progress: Progress, frames: float) -> Progress:
    """Told shares of so many frames."""
    return lambda share: progress(share * frames)


def _labels(
    maps: Float[Tensor, "t d h w"], centres: Float[Tensor, "k d"], truth: Integer[np.ndarray, "t H W"]
) -> Int64[np.ndarray, "t H W"]:
    """The cluster of every pixel of the truth; cluster maps of tokens are stretched, nearest."""
    labels = kmeans.nearest(_rows(maps), centres).view(len(maps), *maps.shape[2:]).cpu()
    return _stretched(labels, truth.shape[1:])


def _as_classes(labels: Int64[np.ndarray, "t H W"], scored: ClusterScores) -> Int64[np.ndarray, "t H W"]:
    """Clusters as their classes; one that lies in void throughout was not matched, and is background."""
    table = np.zeros(max(len(scored.class_of), int(labels.max()) + 1), np.int64)
    table[: len(scored.class_of)] = scored.class_of
    return np.asarray(table[labels])


def _stretched(labels: Int64[Tensor, "t h w"], size: tuple[int, ...]) -> Int64[np.ndarray, "t H W"]:
    rows, columns = (nearest_source(old, new) for old, new in zip(labels.shape[1:], size, strict=True))
    return np.asarray(labels[:, rows][:, :, columns].numpy())


def resized_truth(truth: Integer[np.ndarray, "t H W"], side: int) -> Integer[np.ndarray, "t h w"]:
    """Label maps at side x side, nearest; as they are for side 0."""
    if not side:
        return truth
    rows, columns = (nearest_source(old, side).numpy() for old in truth.shape[1:])
    return np.asarray(truth[:, rows][:, :, columns])


def _scored(counts: Counts, how: Clustering) -> ClusterScores:
    return clustering_of_counts(counts, how.rule, classes=how.classes or None)


def _sum(one: Counts, other: Counts) -> Counts:
    return np.asarray(padded(one, other.shape) + padded(other, one.shape))


def _mean(by_seed: Mapping[int, list[ClusterScores]], how: Clustering) -> Score:
    units = len(by_seed[how.seeds[0]])
    if not units:
        raise DataError(NOTHING)
    bg, nobg = (
        tuple(fmean(each.miou(background=background) for each in scores) for scores in by_seed.values())
        for background in (True, False)
    )
    of_class: dict[int, list[float]] = {}
    for scores in by_seed.values():
        for each in scores:
            for id_, iou in zip(each.classes.tolist(), each.iou().tolist(), strict=True):
                of_class.setdefault(id_, []).append(iou)
    classes = {id_: fmean(values) for id_, values in sorted(of_class.items())}
    having = {id_: len(of_class[id_]) // len(how.seeds) for id_ in classes}
    return Score(full_name(how), units, bg, nobg, classes, having)

"""Overlap of whole segmentations: foreground ARI, mean IoU and mBO, each reading under its own name.

All take (prediction, truth), label maps of one video. In truth 0 is background and 255 is void, whose pixels
do not exist. In predictions every id is a segment, 0 too. A video's number comes back; NaN, or no objects,
where the truth holds none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from unspool.metrics.assignment import cheapest
from unspool.metrics.jf import mean_of_known
from unspool.metrics.labels import VOID, LabelMaps, in_step
from unspool.metrics.runs import joint_runs

Counts = Int64[np.ndarray, "p k"]  # pixels of segment p in object k
UnitCounts = Int64[np.ndarray, "units p k"]  # frame by frame, or once for the whole video

# -------------------------------------------------------------------------------------- foreground ARI


def fg_ari_video(prediction: LabelMaps, truth: LabelMaps) -> float:
    """`fg-ari-video`: ARI of all foreground pixels of the video taken together.

    Source: google-research/slot-attention-video: savi/lib/metrics.py; videosaur: VideoARI.
    """
    return _fg_ari(total_counts(prediction, truth))


def fg_ari_frame(prediction: LabelMaps, truth: LabelMaps) -> float:
    """`fg-ari-frame`: mean over the frames with foreground of the ARI of their foreground pixels.

    With one true object in a frame it is 1 if one segment covers it, else 0. Source: videosaur: ImageARI.
    """
    return mean_of_known(np.array([_fg_ari(counts) for counts in frame_counts(prediction, truth)]))


def fg_ari_solv(prediction: LabelMaps, truth: LabelMaps) -> float:
    """`fg-ari-solv`: `fg-ari-frame` after the matching of `miou_solv`, unmatched segments merged into one.

    Real ids and all objects, where the source numbers anew and knows only the first frame's.
    Source: SOLV: utils.py.
    """
    counts = _stacked(prediction, truth)
    return _fg_ari_of_matched(counts, _matched_as_solv(counts))


def fg_ari_solv_quirks(prediction: LabelMaps, truth: LabelMaps) -> float:
    """`fg-ari-solv-quirks`: `fg-ari-solv` with what `miou_solv_quirks` does to ids and objects."""
    counts = _of_first_frame(_stacked(prediction, truth))
    return _fg_ari_of_matched(counts, _matched_by_row_number(counts))


def _fg_ari_of_matched(counts: UnitCounts, matching: ObjectOverlaps) -> float:
    """Mean over frames, where every segment carries the id of its object, 0 if it has none."""
    object_of = np.zeros(counts.shape[1], np.int64)
    for label, segment in zip(matching.ids, matching.segments[:, 0].tolist(), strict=True):
        if segment >= 0:
            object_of[segment] = label
    member = object_of[:, None] == np.arange(counts.shape[2])
    merged = np.einsum("po,tpk->tok", member, counts)
    return mean_of_known(np.array([_fg_ari(frame) for frame in merged]))


def adjusted_rand_index(counts: Counts) -> float:
    """ARI of two labellings from their contingency table; 1 where both are trivial (denominator 0).

    Whole numbers throughout: pair counts of a video pass 2**63.
    """
    pairs, rows, columns = (
        sum(n * (n - 1) for n in sums.ravel().tolist()) for sums in (counts, counts.sum(1), counts.sum(0))
    )
    size = int(counts.sum())
    every = max(size * (size - 1), 1)
    denominator = (rows + columns) * every - 2 * rows * columns
    return 2 * (pairs * every - rows * columns) / denominator if denominator else 1.0


def _fg_ari(counts: Counts) -> float:
    foreground = counts[:, 1:]
    return adjusted_rand_index(foreground) if foreground.any() else math.nan


# ------------------------------------------------------------------------------------- IoU of objects


@dataclass(frozen=True, eq=False)
class ObjectOverlaps:
    """IoU of every object of a video with the segment matched to it, per unit (frame, or whole video).

    NaN where the protocol leaves the object out of a unit; 0 and segment -1 where it went unmatched.
    """

    ids: tuple[int, ...]  # of the objects anywhere in the truth
    iou: Float64[np.ndarray, "objects units"]
    segments: Int64[np.ndarray, "objects units"]

    def of_objects(self) -> Float64[np.ndarray, " objects"]:
        """Mean over units, per object."""
        return np.array([mean_of_known(row) for row in self.iou])


def mean_over_objects(videos: Iterable[ObjectOverlaps]) -> float:
    """Every object of every video counts once: `miou-solv`."""
    return mean_of_known(np.concatenate([np.zeros(0), *(video.of_objects() for video in videos)]))


def mean_over_videos(videos: Iterable[ObjectOverlaps | float]) -> float:
    """Every video counts once, with the mean of its objects; all but `miou-solv`. Skips those without any."""
    values = [v if isinstance(v, float) else mean_of_known(v.of_objects()) for v in videos]
    return mean_of_known(np.array(values, np.float64))


def miou_solv(prediction: LabelMaps, truth: LabelMaps) -> ObjectOverlaps:
    """`miou-solv`: Hungarian per video on the mean frame IoU; frames without either of a pair are left out.

    Source: SOLV: utils.py hungarian_matching, get_iou.
    """
    return _matched_as_solv(_stacked(prediction, truth))


def miou_solv_quirks(prediction: LabelMaps, truth: LabelMaps) -> ObjectOverlaps:
    """`miou-solv-quirks`: `miou-solv` as its code computes it.

    Only the objects of the first frame exist, at most 19, those of lowest id; the pixels of others are
    background. And a match is known by its row, which is then taken for an id: where the ids of the
    prediction have a gap, an object gets a segment that was not matched to it, or none. Ids count from 0
    there; those of a prediction that never has 0 are counted from 1.
    Source: SOLV: utils.py hungarian_matching, swap_indices; datasets/ytvis19.py To_One_Hot.
    """
    return _matched_by_row_number(_of_first_frame(_stacked(prediction, truth)))


def miou_video_hungarian(prediction: LabelMaps, truth: LabelMaps) -> ObjectOverlaps:
    """`miou-video-hungarian`: IoU over all pixels of the video, Hungarian.

    Source: videosaur: VideoIoU, matching "hungarian".
    """
    return _matched_per_unit(total_counts(prediction, truth)[None], assigned)


def miou_frame(prediction: LabelMaps, truth: LabelMaps) -> ObjectOverlaps:
    """`miou-frame`: Hungarian in every frame, on the objects present in it. Ours; mirrors BA's J&F code."""
    return _matched_per_unit(_stacked(prediction, truth), assigned)


def mbo_video(prediction: LabelMaps, truth: LabelMaps) -> ObjectOverlaps:
    """`mbo-video`: every object takes its best segment, which others may take too; all pixels of the video.

    Source: videosaur: VideoIoU, matching "overlap".
    """
    return _matched_per_unit(total_counts(prediction, truth)[None], best)


def mbo_frame(prediction: LabelMaps, truth: LabelMaps) -> ObjectOverlaps:
    """`mbo-frame`: every object takes its best segment, anew in every frame.

    Source: videosaur: ImageIoU, matching "overlap".
    """
    return _matched_per_unit(_stacked(prediction, truth), best)


def _matched_as_solv(counts: UnitCounts) -> ObjectOverlaps:
    table = _overlap_table(counts)
    chosen = assigned(np.nanmean(table.iou[:, :-1], axis=0))
    return table.of(np.tile(chosen, (len(counts), 1)))


MOST_OF_SOLV = 19  # objects


def _of_first_frame(counts: UnitCounts) -> UnitCounts:
    """With the pixels of objects that are not in the first frame, or too many there, as background."""
    stays = np.flatnonzero(counts[0, :, 1:].any(axis=0))[:MOST_OF_SOLV] + 1
    kept = np.zeros_like(counts)
    kept[:, :, stays] = counts[:, :, stays]
    kept[:, :, 0] = counts.sum(axis=2) - kept.sum(axis=2)
    return kept


def _matched_by_row_number(counts: UnitCounts) -> ObjectOverlaps:
    table = _overlap_table(counts)
    means = np.nanmean(table.iou[:, :NOTHING], axis=0)
    missing = max(means.shape[1] - means.shape[0], 0)
    ids = assigned(np.pad(means, ((0, missing), (0, 0)))) + min(int(table.segments[0]), 1)
    row_of = {segment: row for row, segment in enumerate(table.segments[:NOTHING].tolist())}
    chosen = np.array([row_of.get(wanted, NOTHING) for wanted in ids.tolist()], np.int64)
    return table.of(np.tile(chosen, (len(counts), 1)))


def _matched_per_unit(
    counts: UnitCounts, match: Callable[[Float64[np.ndarray, "p k"]], Int64[np.ndarray, " k"]]
) -> ObjectOverlaps:
    table = _overlap_table(counts)
    chosen = np.full((len(counts), len(table.objects)), NOTHING)
    for unit, iou in enumerate(table.iou):
        present = ~np.isnan(iou[NOTHING])
        chosen[unit, present] = match(iou[:NOTHING, present])
    return table.of(chosen)


NOTHING = -1  # the last row of a table: an empty segment


@dataclass(frozen=True, eq=False)
class _OverlapTable:
    """IoU of the segments that occur, and of an empty one, with the objects that occur; NaN: both empty."""

    segments: Int64[np.ndarray, " p"]  # ids, the last one -1
    objects: Int64[np.ndarray, " k"]
    iou: Float64[np.ndarray, "units p k"]

    def of(self, chosen: Int64[np.ndarray, "units k"]) -> ObjectOverlaps:
        """With the rows chosen for every object in every unit."""
        iou = np.take_along_axis(self.iou, chosen[:, None], axis=1)[:, 0]
        return ObjectOverlaps(tuple(self.objects.tolist()), iou.T, self.segments[chosen].T)


def _overlap_table(counts: UnitCounts) -> _OverlapTable:
    segments = np.flatnonzero(counts.any(axis=(0, 2)))
    objects = np.flatnonzero(counts[:, :, 1:].any(axis=(0, 1))) + 1
    empty = np.where(counts[:, :, objects].any(axis=1), 0.0, math.nan)
    iou = iou_of(counts)[:, segments][:, :, objects]
    return _OverlapTable(np.append(segments, -1), objects, np.concatenate([iou, empty[:, None]], axis=1))


# --------------------------------------------------------------------------------------------- pieces


def iou_of(counts: Int64[np.ndarray, "*units p k"]) -> Float64[np.ndarray, "*units p k"]:
    """IoU of every segment with every object; NaN where both are empty."""
    union = counts.sum(-1)[..., :, None] + counts.sum(-2)[..., None, :] - counts
    return np.where(union > 0, counts / np.maximum(union, 1), math.nan)


def assigned(iou: Float64[np.ndarray, "p k"]) -> Int64[np.ndarray, " k"]:
    """Row assigned to every column, each row once, for the greatest sum; -1 for columns left over."""
    rows, columns = cheapest(-iou)
    chosen = np.full(iou.shape[1], NOTHING)
    chosen[columns] = rows
    return chosen


def best(iou: Float64[np.ndarray, "p k"]) -> Int64[np.ndarray, " k"]:
    """Row with the greatest value of every column, the first on ties."""
    return np.asarray(iou.argmax(axis=0))


def total_counts(prediction: LabelMaps, truth: LabelMaps) -> Counts:
    """Pixels of every predicted id in every true id, summed over the frames; void pixels left out."""
    total = np.zeros((1, 1), np.int64)
    for counts in frame_counts(prediction, truth):
        total = padded(total, counts.shape) + padded(counts, total.shape)
    return total


def _stacked(prediction: LabelMaps, truth: LabelMaps) -> UnitCounts:
    frames = list(frame_counts(prediction, truth))
    rows, columns = (max(counts.shape[axis] for counts in frames) for axis in (0, 1))
    return np.stack([padded(counts, (rows, columns)) for counts in frames])


def frame_counts(prediction: LabelMaps, truth: LabelMaps) -> Iterator[Counts]:
    """Pixels of every predicted id (rows, from 0) in every true id (columns, from 0), frame by frame."""
    for _, _, maps in in_step(prediction, truth):
        counts = joint_runs(*maps).counts()
        counts[:, VOID : VOID + 1] = 0
        yield counts


def padded(counts: Counts, size: tuple[int, ...]) -> Int64[np.ndarray, "rows columns"]:
    """With empty rows and columns added where fewer than `size`."""
    missing = (max(wanted - n, 0) for n, wanted in zip(counts.shape, size, strict=True))
    return np.pad(counts, [(0, n) for n in missing])

"""Region similarity J and boundary accuracy F of masks, from label maps (Perazzi et al. 2016).

Everything takes (prediction, truth), in that order. A frame is looked at once: one pass over the label maps
gives all overlaps, and every id's boundary is found and dilated once, inside the id's own bounding box.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8
from scipy.ndimage import find_objects

from unspool.errors import ShapeError

LabelMap = UInt8[np.ndarray, "h w"]

VOID = 255
TOLERANCE = 0.008  # of the frame's diagonal: how far apart boundaries may be and still agree


# ------------------------------------------------------------------------------------------ two masks


def jaccard(
    prediction: Bool[np.ndarray, "h w"],
    truth: Bool[np.ndarray, "h w"],
    void: Bool[np.ndarray, "h w"] | None = None,
) -> float:
    """Intersection over union, 0..1, void pixels left out; 1 if both are empty.

    Source: davis2017-evaluation: davis2017/metrics.py db_eval_iou.
    """
    _check_sizes(prediction, truth)
    if void is not None:
        prediction, truth = prediction & ~void, truth & ~void
    union = np.count_nonzero(prediction | truth)
    return np.count_nonzero(prediction & truth) / union if union else 1.0


def boundary_f(
    prediction: Bool[np.ndarray, "h w"],
    truth: Bool[np.ndarray, "h w"],
    void: Bool[np.ndarray, "h w"] | None = None,
    tolerance: float | int = TOLERANCE,
) -> float:
    """Harmonic mean of boundary precision and recall, 0..1.

    Two boundaries agree within `tolerance`: a share of the diagonal below 1, else px. Void is cleared in both
    masks first. No boundary on either side: 1 (so a full mask equals an empty one); on one side: 0.
    Source: davis2017-evaluation: davis2017/metrics.py f_measure.
    """
    _check_sizes(prediction, truth)
    if void is not None:
        prediction, truth = prediction & ~void, truth & ~void
    radius = boundary_radius(truth.shape[0], truth.shape[1], tolerance)
    predicted, true = (outline(mask, radius) for mask in (prediction, truth))
    return f_measure(predicted, true)


def boundary_radius(height: int, width: int, tolerance: float | int = TOLERANCE) -> int:
    """Distance in px within which boundaries agree: 8 for 480x854."""
    return math.ceil(tolerance if tolerance >= 1 else tolerance * math.hypot(height, width))


def boundary(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Pixels that differ from their right, lower or lower-right neighbour; none beyond the frame.

    So an object cut by the frame has no boundary there, and a full mask has none at all.
    Source: davis2017-evaluation: davis2017/metrics.py _seg2bmap.
    """
    edge: Bool[np.ndarray, "h w"] = np.zeros(mask.shape, bool)
    across, down = mask[:, 1:] != mask[:, :-1], mask[1:] != mask[:-1]
    edge[:, :-1] |= across
    edge[:-1] |= down
    edge[:-1, :-1] |= mask[1:, 1:] != mask[:-1, :-1]
    return edge


def dilate(mask: Bool[np.ndarray, "h w"], radius: int) -> Bool[np.ndarray, "h w"]:
    """All pixels at most `radius` from a set pixel (disc x² + y² <= r²), within the frame."""
    out = mask.copy()
    wide = mask.copy()  # mask dilated along its rows by `reach`
    reach = 0
    for dy in range(radius, -1, -1):  # the disc's rows grow towards its middle
        half = math.isqrt(radius * radius - dy * dy)
        while reach < half:
            reach += 1
            wide[:, reach:] |= mask[:, :-reach]
            wide[:, :-reach] |= mask[:, reach:]
        if dy:
            out[dy:] |= wide[:-dy]
            out[:-dy] |= wide[dy:]
    return out | wide


@dataclass(frozen=True, eq=False)
class Outline:
    """A mask's boundary and what lies within the radius of it, cut to where they are."""

    top: int
    left: int
    pixels: int  # length of the boundary, px
    edge: Bool[np.ndarray, "h w"]
    near: Bool[np.ndarray, "h w"]

    def shared(self, other: Outline) -> int:
        """How many of this boundary's pixels lie near the other boundary."""
        top, left = max(self.top, other.top), max(self.left, other.left)
        bottom = min(self.top + self.edge.shape[0], other.top + other.edge.shape[0])
        right = min(self.left + self.edge.shape[1], other.left + other.edge.shape[1])
        if bottom <= top or right <= left:
            return 0
        mine = self.edge[top - self.top : bottom - self.top, left - self.left : right - self.left]
        near = other.near[top - other.top : bottom - other.top, left - other.left : right - other.left]
        return int(np.count_nonzero(mine & near))


def outline(mask: Bool[np.ndarray, "h w"], radius: int, box: tuple[slice, slice] | None = None) -> Outline:
    """Boundary of `mask` and its surroundings; `box` is the mask's bounding box, if known."""
    box = box if box is not None else next(iter(find_objects(mask.view(np.uint8))), None)
    if box is None:
        return _EMPTY
    height, width = mask.shape
    margin = radius + 1  # the boundary lies up to one pixel outside the box
    rows = slice(max(0, box[0].start - margin), min(height, box[0].stop + margin))
    columns = slice(max(0, box[1].start - margin), min(width, box[1].stop + margin))
    edge = boundary(mask[rows, columns])
    return Outline(rows.start, columns.start, int(np.count_nonzero(edge)), edge, dilate(edge, radius))


_NOTHING = np.zeros((0, 0), bool)
_EMPTY = Outline(0, 0, 0, _NOTHING, _NOTHING)


def f_measure(predicted: Outline, true: Outline) -> float:
    """F of two outlines; see `boundary_f`."""
    if not predicted.pixels or not true.pixels:
        return float(predicted.pixels == true.pixels)
    precision = predicted.shared(true) / predicted.pixels
    recall = true.shared(predicted) / true.pixels
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


# ----------------------------------------------------------------------------------------- label maps


def without_void(prediction: LabelMap, truth: LabelMap) -> tuple[LabelMap, LabelMap]:
    """Both label maps with the truth's void pixels (255) turned into background."""
    void = truth == VOID
    if not void.any():
        return prediction, truth
    return np.where(void, 0, prediction).astype(np.uint8), np.where(void, 0, truth).astype(np.uint8)


def joint_histogram(prediction: LabelMap, truth: LabelMap) -> Int64[np.ndarray, "256 256"]:
    """Number of pixels with each pair (predicted id, true id), counted run by run."""
    _check_sizes(prediction, truth)
    pairs = (prediction.astype(np.uint16) << 8 | truth).ravel()
    starts = np.concatenate([[0], np.flatnonzero(pairs[1:] != pairs[:-1]) + 1])
    lengths = np.diff(starts, append=pairs.size)
    counts = np.bincount(pairs[starts], weights=lengths, minlength=65536)
    return counts.astype(np.int64).reshape(256, 256)


def j_of_pairs(
    prediction: LabelMap, truth: LabelMap, predicted_ids: list[int], true_ids: list[int]
) -> Float64[np.ndarray, "p k"]:
    """J of every predicted id against every true id; 1 where both are absent."""
    counts = joint_histogram(prediction, truth)
    intersection = counts[np.ix_(predicted_ids, true_ids)].astype(np.float64)
    predicted, true = counts.sum(1)[predicted_ids], counts.sum(0)[true_ids]
    union = predicted[:, None] + true[None] - intersection
    return np.where(union > 0, intersection / np.maximum(union, 1), 1.0)


def f_of_pairs(
    prediction: LabelMap,
    truth: LabelMap,
    predicted_ids: list[int],
    true_ids: list[int],
    *,
    paired: bool = False,
) -> Float64[np.ndarray, "p k"]:
    """F of every predicted id against every true id; with `paired` only of the equal places (diagonal)."""
    radius = boundary_radius(*truth.shape)
    predicted, true = (
        _outlines(labels, ids, radius) for labels, ids in ((prediction, predicted_ids), (truth, true_ids))
    )
    scores = np.zeros((len(predicted), len(true)))
    for i, one in enumerate(predicted):
        for j, other in enumerate(true):
            if not paired or i == j:
                scores[i, j] = f_measure(one, other)
    return scores


def _outlines(labels: LabelMap, ids: list[int], radius: int) -> list[Outline]:
    boxes = find_objects(labels, max_label=max(ids, default=0) or 1)
    return [_EMPTY if boxes[i - 1] is None else outline(labels == i, radius, boxes[i - 1]) for i in ids]


def _check_sizes(prediction: np.ndarray, truth: np.ndarray) -> None:
    if prediction.shape != truth.shape:
        raise ShapeError(
            f"prediction is {prediction.shape[1]}x{prediction.shape[0]}, truth is "
            f"{truth.shape[1]}x{truth.shape[0]}; resize predictions to the truth's size (nearest)"
        )


# ----------------------------------------------------------------------------------------- statistics


@dataclass(frozen=True)
class Statistics:
    """Of a per-frame measure of one object: its mean, the share of frames above 0.5, its loss over time."""

    mean: float
    recall: float
    decay: float


def statistics(values: Float64[np.ndarray, " n"]) -> Statistics:
    """Mean (NaN left out), recall (strictly above 0.5; NaN is a miss), decay (first less last quarter).

    The quarters overlap by one frame. Bin edges are int64: the released uint8 gives NaN from 256 frames on.
    Source: davis2017-evaluation: davis2017/utils.py db_statistics.
    """
    edges = np.round(np.linspace(1, len(values), 5) + 1e-10).astype(np.int64) - 1
    first, last = values[edges[0] : edges[1] + 1], values[edges[3] : edges[4] + 1]
    with np.errstate(invalid="ignore"):
        recall = float(np.mean(values > 0.5))
    return Statistics(_nanmean(values), recall, _nanmean(first) - _nanmean(last))


def _nanmean(values: Float64[np.ndarray, " n"]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan

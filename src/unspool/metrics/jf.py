"""Region similarity J and boundary accuracy F of masks, and their statistics (Perazzi et al. 2016).

Everything takes (prediction, truth), in that order. Of a frame's label maps, one pass gives all overlaps;
an id's boundary is found and dilated once, inside the id's own bounding box, and only if somebody asks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float64, Int64

from unspool.metrics.labels import LabelMap, check_sizes
from unspool.metrics.outlines import NOWHERE, Outline, outline
from unspool.metrics.runs import Box, joint_runs

TOLERANCE = 0.008  # of the frame's diagonal: how far apart boundaries may be and still agree

# ------------------------------------------------------------------------------------------ two masks


def jaccard(
    prediction: Bool[np.ndarray, "h w"],
    truth: Bool[np.ndarray, "height width"],
    void: Bool[np.ndarray, "height width"] | None = None,
) -> float:
    """Intersection over union, 0..1, void pixels left out; 1 if both are empty.

    Raises ShapeError for masks of different sizes.
    Source: davis2017-evaluation: davis2017/metrics.py db_eval_iou.
    """
    predicted, true = _without(prediction, truth, void)
    union = np.count_nonzero(predicted | true)
    return np.count_nonzero(predicted & true) / union if union else 1.0


def boundary_f(
    prediction: Bool[np.ndarray, "h w"],
    truth: Bool[np.ndarray, "height width"],
    void: Bool[np.ndarray, "height width"] | None = None,
    tolerance: float | int = TOLERANCE,
) -> float:
    """Harmonic mean of boundary precision and recall, 0..1.

    Boundaries agree within `tolerance`: a share of the diagonal below 1, else px, rounded up. Void is
    cleared in both masks first, so its rim becomes boundary. No boundary on either side: 1 (so a full mask
    equals an empty one); on one side only: 0. Raises ShapeError for masks of different sizes.
    Source: davis2017-evaluation: davis2017/metrics.py f_measure.
    """
    predicted, true = (mask.view(np.uint8) for mask in _without(prediction, truth, void))
    return frame_pair(predicted, true, tolerance).f(1, 1)


def boundary_radius(height: int, width: int, tolerance: float | int = TOLERANCE) -> int:
    """Distance in px within which boundaries agree: 8 for 480x854."""
    return math.ceil(tolerance if tolerance >= 1 else tolerance * math.sqrt(height**2 + width**2))


def _without(
    prediction: Bool[np.ndarray, "h w"],
    truth: Bool[np.ndarray, "height width"],
    void: Bool[np.ndarray, "height width"] | None,
) -> tuple[Bool[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
    check_sizes(prediction, truth)
    return (prediction, truth) if void is None else (prediction & ~void, truth & ~void)


# ----------------------------------------------------------------------------------------- label maps


@dataclass(frozen=True, eq=False)
class Regions:
    """The ids of one label map; an id that no pixel holds is an empty mask."""

    labels: LabelMap
    areas: dict[int, int]  # px, of the ids that are there, ascending; 0 is one of them
    boxes: dict[int, Box]
    radius: int  # px within which boundaries agree
    _outlines: dict[int, Outline] = field(default_factory=dict)

    def outline(self, label: int) -> Outline:
        """The id's boundary, found when first asked for."""
        if label not in self.boxes:
            return NOWHERE
        if label not in self._outlines:
            self._outlines[label] = outline(self.labels, label, self.boxes[label], self.radius)
        return self._outlines[label]


@dataclass(frozen=True, eq=False)
class FramePair:
    """Predicted and true regions of one frame, and how many pixels they share."""

    predicted: Regions
    true: Regions
    counts: Int64[np.ndarray, "p k"]  # px with predicted id p and true id k

    def j(self, predicted: int, true: int) -> float:
        """Intersection over union of two ids; 1 if both are empty."""
        areas = self.predicted.areas.get(predicted, 0), self.true.areas.get(true, 0)
        shared = int(self.counts[predicted, true]) if all(areas) else 0
        union = sum(areas) - shared
        return shared / union if union else 1.0

    def f(self, predicted: int, true: int) -> float:
        """Boundary measure of two ids, as `boundary_f`."""
        mine, other = self.predicted.outline(predicted), self.true.outline(true)
        if not mine.pixels or not other.pixels:
            return float(mine.pixels == other.pixels)
        precision, recall = mine.shared(other) / mine.pixels, other.shared(mine) / other.pixels
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def frame_pair(prediction: LabelMap, truth: LabelMap, tolerance: float | int = TOLERANCE) -> FramePair:
    """All that J and F of any two ids need, from one pass over two label maps of one size."""
    runs, radius = joint_runs(prediction, truth), boundary_radius(truth.shape[0], truth.shape[1], tolerance)
    counts = runs.counts()
    areas = ({i: n for i, n in enumerate(counts.sum(axis).tolist()) if n} for axis in (1, 0))
    return FramePair(
        predicted=Regions(prediction, next(areas), runs.boxes(runs.predicted), radius),
        true=Regions(truth, next(areas), runs.boxes(runs.true), radius),
        counts=counts,
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
    Of no values, or nothing but NaN in a quarter, what depends on them is NaN.
    Source: davis2017-evaluation: davis2017/utils.py db_statistics.
    """
    edges = np.round(np.linspace(1, len(values), 5) + 1e-10).astype(np.int64) - 1
    first, last = values[edges[0] : edges[1] + 1], values[edges[3] : edges[4] + 1]
    recall = np.count_nonzero(values > 0.5) / len(values) if len(values) else math.nan
    return Statistics(mean_of_known(values), recall, mean_of_known(first) - mean_of_known(last))


def mean_of_known(values: Float64[np.ndarray, " n"]) -> float:
    """Mean of what is not NaN; NaN if nothing is left."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan

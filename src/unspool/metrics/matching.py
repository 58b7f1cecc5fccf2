"""Clusters matched to classes, and the mean IoU that follows: `cluster-frame`, `-clip`, `-dataset`.

What is matched at once is a unit: one frame, the frames of a clip, or all of a data set. A unit is whatever
label maps one call is given; a table's number is the mean over its units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int64

from unspool.errors import DataError
from unspool.metrics.assignment import cheapest
from unspool.metrics.labels import LabelMaps
from unspool.metrics.overlap import Counts, iou_of, padded, total_counts

Rule = Literal["hungarian", "many-iou", "many-precision"]


@dataclass(frozen=True, eq=False)
class ClusterScores:
    """Of one unit: its classes, their pixels after matching, and the class of every cluster."""

    classes: Int64[np.ndarray, " k"]  # ids, ascending
    true_positives: Int64[np.ndarray, " k"]  # px
    false_positives: Int64[np.ndarray, " k"]  # px
    false_negatives: Int64[np.ndarray, " k"]  # px
    class_of: Int64[np.ndarray, " clusters"]  # by cluster id

    def iou(self) -> Float64[np.ndarray, " k"]:
        """IoU of every class; 0 for one that is on neither side."""
        union = self.true_positives + self.false_positives + self.false_negatives
        return np.asarray(self.true_positives / np.maximum(union, 1))

    def miou(self, *, background: bool = True) -> float:
        """Mean IoU, with id 0 (`bg`) or without it (`nobg`; 0 if nothing else is there). No classes: NaN."""
        if not len(self.classes):
            return math.nan
        counted = self.iou()[(self.classes != 0) | background]
        return float(counted.mean()) if len(counted) else 0.0


def clustering(
    prediction: LabelMaps,
    truth: LabelMaps,
    rule: Rule,
    *,
    clusters: int | None = None,
    classes: int | None = None,
) -> ClusterScores:
    """Clusters of one unit matched to its classes; void pixels (255 in truth) are left out first.

    hungarian: one cluster per class, minimising 1 - IoU; clusters left over become id 0. many-iou: every
    cluster takes the class of highest IoU; many-precision: the class that most of its pixels have; ties go
    to the lowest class. `clusters` and `classes` fix their numbers (VOC: 21 classes); otherwise they are the
    ids present in the unit. Source: Timetuning: metrics.py PredsmIoU; leopart: experiments/utils.py.
    """
    counts = total_counts(prediction, truth)
    return clustering_of_counts(counts, rule, clusters=clusters, classes=classes)


def unmatched(prediction: LabelMaps, truth: LabelMaps, classes: int) -> ClusterScores:
    """Predictions that are classes already, 0 to `classes` - 1; void pixels are left out first."""
    return unmatched_of_counts(total_counts(prediction, truth), classes)


def unmatched_of_counts(counts: Counts, classes: int) -> ClusterScores:
    """`unmatched` of maps that are known by their pixels of every predicted in every true class."""
    found = _ids("prediction", "classes", counts.sum(axis=1), classes)
    _ids("truth", "classes", counts.sum(axis=0), classes)
    counts = padded(counts, (classes, classes))[:classes, :classes]
    shared = counts.diagonal()
    return ClusterScores(found, shared, counts.sum(axis=1) - shared, counts.sum(axis=0) - shared, found)


def clustering_of_counts(
    counts: Counts, rule: Rule, *, clusters: int | None = None, classes: int | None = None
) -> ClusterScores:
    """`clustering` of a unit that is known by its pixels of every cluster in every class, void left out."""
    cluster_ids = _ids("prediction", "clusters", counts.sum(axis=1), clusters)
    class_ids = _ids("truth", "classes", counts.sum(axis=0), classes)
    counts = padded(counts, (clusters or 0, classes or 0))[np.ix_(cluster_ids, class_ids)]
    class_of = np.zeros(cluster_ids.max(initial=-1) + 1, np.int64)
    class_of[cluster_ids] = np.append(class_ids, 0)[_matched(counts, rule)]  # -1, unmatched: id 0
    member = class_of[cluster_ids][:, None] == class_ids
    shared = (counts * member).sum(axis=0)
    return ClusterScores(
        classes=class_ids,
        true_positives=shared,
        false_positives=counts.sum(axis=1) @ member - shared,
        false_negatives=counts.sum(axis=0) - shared,
        class_of=class_of,
    )


def _matched(counts: Counts, rule: Rule) -> Int64[np.ndarray, " p"]:
    """Column of every row, -1 for none."""
    if not counts.size:
        return np.full(len(counts), -1)
    if rule == "many-precision":
        return np.asarray(counts.argmax(axis=1))  # the row's sum divides all its precisions alike
    iou = np.nan_to_num(iou_of(counts))
    if rule == "many-iou":
        return np.asarray(iou.argmax(axis=1))
    rows, columns = cheapest(1 - iou)
    chosen = np.full(len(iou), -1)
    chosen[rows] = columns
    return chosen


def _ids(
    which: str, option: str, pixels: Int64[np.ndarray, " n"], number: int | None
) -> Int64[np.ndarray, " m"]:
    found = np.flatnonzero(pixels)
    if number is None:
        return found
    if found.max(initial=-1) >= number:
        raise DataError(
            f"the {which} holds id {found.max()}, but {option}={number} allows 0 to {number - 1}; number ids "
            f"from 0, or leave {option} out"
        )
    return np.arange(number)

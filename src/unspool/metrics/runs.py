"""Two label maps of a frame read together, run by run: all overlaps and all bounding boxes from one pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, Integer

from unspool.metrics.labels import LabelMap


class Box(NamedTuple):
    """Rows top..bottom-1 and columns left..right-1, px."""

    top: int
    left: int
    bottom: int
    right: int


@dataclass(frozen=True, eq=False)
class JointRuns:
    """Stretches of rows along which neither map changes its id, in reading order."""

    row: Int64[np.ndarray, " runs"]
    first: Int64[np.ndarray, " runs"]  # column, px
    length: Int64[np.ndarray, " runs"]  # px
    predicted: Integer[np.ndarray, " runs"]  # ids
    true: Integer[np.ndarray, " runs"]

    def counts(self) -> Int64[np.ndarray, "p k"]:
        """Pixels that hold predicted id p and true id k; p and k run from 0 to the greatest id."""
        rows, columns = (int(ids.max(initial=0)) + 1 for ids in (self.predicted, self.true))
        pairs = self.predicted.astype(np.int64) * columns + self.true
        # sums of lengths are whole numbers far below 2**53, so float64 holds them exactly
        counts = np.bincount(pairs, self.length, minlength=rows * columns)
        return counts.astype(np.int64).reshape(rows, columns)

    def boxes(self, ids: Integer[np.ndarray, " runs"]) -> dict[int, Box]:
        """Bounding box of every id of one of the maps; `ids` is `predicted` or `true`."""
        if not len(ids):
            return {}
        order = np.argsort(ids, kind="stable")  # reading order within an id: its rows ascend
        grouped = ids[order]
        heads = np.concatenate(([0], np.flatnonzero(grouped[1:] != grouped[:-1]) + 1))
        tails = np.append(heads[1:], len(ids)) - 1
        first, row = self.first[order], self.row[order]
        left = np.minimum.reduceat(first, heads)
        right = np.maximum.reduceat(first + self.length[order], heads)
        edges = np.stack([row[heads], left, row[tails] + 1, right], axis=1).tolist()
        return {label: Box(*edge) for label, edge in zip(grouped[heads].tolist(), edges, strict=True)}


def joint_runs(prediction: LabelMap, truth: LabelMap) -> JointRuns:
    """Where both maps keep their ids; a run ends with its row. The maps are of one size."""
    width = prediction.shape[1]
    predicted, true = prediction.ravel(), truth.ravel()
    change = np.empty(predicted.size, bool)
    np.not_equal(predicted[1:], predicted[:-1], out=change[1:])
    change[1:] |= true[1:] != true[:-1]
    change[::width] = True
    starts = np.flatnonzero(change)
    row, first = np.divmod(starts, width)
    return JointRuns(
        row=row,
        first=first,
        length=np.diff(starts, append=predicted.size),
        predicted=predicted[starts],
        true=true[starts],
    )

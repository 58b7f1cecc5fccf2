"""What may be done to a segmentation afterwards: small clusters dropped, holes filled.

Label maps `[H, W]` of one video: ids are clusters, 0 is nobody. Every step is optional, and named where it
was taken. None looks at truth.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64, Integer

from unspool.errors import UsageError

LabelMap = Integer[np.ndarray, "h w"]


@dataclass(frozen=True)
class PostProcessing:
    """Steps in the order in which they are taken."""

    minimum_size: float = 0.0  # share of a frame that a cluster has to reach once, 0..1
    largest: int = 0  # how many clusters stay, by their pixels in the whole video; 0: all
    fill_holes: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.minimum_size < 1:
            raise UsageError(f"minimum size {self.minimum_size} is no share of a frame; give 0 to below 1")
        if self.largest < 0:
            raise UsageError(f"the {self.largest} largest clusters cannot be kept; give 1 or more, 0 for all")

    @property
    def name(self) -> str:
        """What stands in results; "none" if nothing is done."""
        steps = {
            f"minimum size {self.minimum_size:g}": self.minimum_size > 0,
            f"{self.largest} largest": self.largest > 0,
            "holes filled": self.fill_holes,
        }
        return ", ".join(step for step, taken in steps.items() if taken) or "none"


def postprocessed(labels: Integer[np.ndarray, "t h w"], how: PostProcessing) -> Integer[np.ndarray, "t h w"]:
    """The clusters of a video after these steps; ids that stay keep their number."""
    areas = areas_of(labels)
    stays = reaching(areas, how.minimum_size * labels[0].size)
    if how.largest:
        stays &= largest(areas * stays, how.largest)
    kept = np.where(stays, np.arange(len(stays)), 0).astype(labels.dtype)[labels]
    return np.stack([filled(frame) for frame in kept]) if how.fill_holes else kept


def areas_of(frames: Iterable[LabelMap]) -> Int64[np.ndarray, "t ids"]:
    """Pixels of every id in every frame; ids from 0."""
    counts = [np.bincount(frame.ravel()) for frame in frames]
    ids = max((len(count) for count in counts), default=0)
    return np.array([np.pad(count, (0, ids - len(count))) for count in counts], np.int64).reshape(-1, ids)


def reaching(areas: Int64[np.ndarray, "t ids"], pixels: float) -> Bool[np.ndarray, " ids"]:
    """Ids that cover so many pixels in one frame at least; never 0."""
    found: Bool[np.ndarray, " ids"] = areas.max(axis=0) >= max(pixels, 1)
    found[:1] = False
    return found


def largest(areas: Int64[np.ndarray, "t ids"], count: int) -> Bool[np.ndarray, " ids"]:
    """The `count` ids with most pixels in all frames; the lower on ties, never 0 nor one that is nowhere."""
    total = areas.sum(axis=0)
    total[:1] = 0
    order = np.argsort(-total, kind="stable")[:count]
    found = np.zeros(len(total), bool)
    found[order] = total[order] > 0
    return found


def filled(frame: LabelMap) -> LabelMap:
    """Regions of 0 that one id alone encloses, and that do not touch the border, become that id.

    Of a binary mask these are its holes; neighbours are above, below, left and right.
    """
    from scipy.ndimage import find_objects, label  # noqa: PLC0415  (slow to import, seldom needed)

    out, (regions, _) = frame.copy(), label(frame == 0)
    height, width = frame.shape
    for number, (rows, columns) in enumerate(find_objects(regions), 1):
        if rows.start == 0 or columns.start == 0 or rows.stop == height or columns.stop == width:
            continue
        around = slice(rows.start - 1, rows.stop + 1), slice(columns.start - 1, columns.stop + 1)
        hole = regions[around] == number
        rim = np.zeros_like(hole)
        rim[1:] |= hole[:-1]
        rim[:-1] |= hole[1:]
        rim[:, 1:] |= hole[:, :-1]
        rim[:, :-1] |= hole[:, 1:]
        ids = np.unique(frame[around][rim & ~hole])
        if len(ids) == 1:
            out[around][hole] = ids[0]
    return out

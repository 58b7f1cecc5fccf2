"""What may be done to clusters before they are handed out as masks; each step by itself, none by default.

Ids are integers, 0 is background. The publication does nothing but nearest upsampling; the rest is ours, the
guided filter that of He, Sun and Tang, "Guided Image Filtering" (TPAMI 2013).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Integer
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import avg_pool1d, interpolate

from unspool.errors import UsageError

LabelMap = Integer[np.ndarray, "h w"]
Upsampling = Literal["nearest", "bilinear", "guided"]
EPS = 1e-3  # of the guided filter: variance of grey, in 0..1 squared, below which it smooths


@dataclass(frozen=True)
class Refining:
    """What is done to clusters, in this order."""

    smallest: float | int = 0.0  # share of all tokens, 0..1: clusters below it become background
    largest: int = 0  # so many stay; 0: all
    upsampling: Upsampling = "nearest"  # as published; assignments interpolated; or led by the image
    fill_holes: bool = False  # background that one object encloses in a frame becomes that object

    def __post_init__(self) -> None:
        for name, valid in (
            ("smallest", 0 <= self.smallest <= 1),
            ("largest", self.largest >= 0),
            ("upsampling", self.upsampling in ("nearest", "bilinear", "guided")),
        ):
            if not valid:
                raise UsageError(f"refining.{name} = {getattr(self, name)!r} is out of range")

    @property
    def steps(self) -> list[str]:
        """What is done, in words for results; nothing by default."""
        taken = {
            f"smallest {self.smallest:g} of the video": self.smallest > 0,
            f"{self.largest} largest": self.largest > 0,
            f"upsampling {self.upsampling}": self.upsampling != "nearest",
            "holes filled": self.fill_holes,
        }
        return [step for step, is_taken in taken.items() if is_taken]


def without_small(ids: Int64[Tensor, "t h w"], share: float | int) -> Int64[Tensor, "t h w"]:
    """Ids that cover less than `share` (0..1) of all frames together become background."""
    sizes = ids.flatten().bincount()
    return torch.where(sizes[ids] < share * ids.numel(), 0, ids)


def largest_only(ids: Int64[Tensor, "t h w"], count: int) -> Int64[Tensor, "t h w"]:
    """The `count` largest ids stay, the first of equals; the others become background."""
    sizes = ids.flatten().bincount()
    sizes[0] = 0
    kept = torch.zeros_like(sizes, dtype=torch.bool)
    kept[sizes.argsort(descending=True, stable=True)[:count]] = True
    return torch.where(kept[ids], ids, 0)


def with_holes_filled(ids: Int64[Tensor, "h w"]) -> Int64[Tensor, "h w"]:
    """Background that does not reach the border, and has one id alone around it, becomes that id."""
    labels = ids.cpu().numpy().copy()
    regions, _ = ndimage.label(labels == 0)
    edges = (regions[0], regions[-1], regions[:, 0], regions[:, -1])
    outside = set(np.concatenate(edges).tolist())
    for number, box in enumerate(ndimage.find_objects(regions), 1):
        if box is None or number in outside:
            continue
        around = tuple(slice(side.start - 1, side.stop + 1) for side in box)
        hole = regions[around] == number
        ring = np.unique(labels[around][ndimage.binary_dilation(hole) & ~hole])
        if len(ring) == 1:
            labels[around][hole] = ring[0]
    return torch.from_numpy(labels).to(ids.device)


def nearest(ids: Int64[Tensor, "h w"], size: tuple[int, int]) -> Int64[Tensor, "H W"]:
    """Each pixel takes the id of the token that it lies in, as published."""
    rows, columns = (
        torch.arange(full, device=ids.device) * grid // full
        for full, grid in zip(size, ids.shape, strict=True)
    )
    return ids[rows][:, columns]


def bilinear(ids: Int64[Tensor, "h w"], size: tuple[int, int]) -> Int64[Tensor, "H W"]:
    """The id whose assignments, interpolated, are largest at a pixel; the lowest of equals."""
    return _strongest(ids, _interpolated(ids, size))


def guided(
    ids: Int64[Tensor, "h w"], image: Float[Tensor, "3 H W"], radius: int, eps: float = EPS
) -> Int64[Tensor, "H W"]:
    """As `bilinear`, each id's map passed through the guided filter of the image's grey, 0..1.

    `radius`: px. Within a box of it, an id's map is a linear function of grey (Eq. 5, 6, 8 of He et al.).
    """
    grey = image.mean(0)
    mean = _box(grey, radius)
    variance = _box(grey * grey, radius) - mean**2

    def filtered(soft: Float[Tensor, "H W"]) -> Float[Tensor, "H W"]:
        average = _box(soft, radius)
        slope = (_box(grey * soft, radius) - mean * average) / (variance + eps)
        return _box(slope, radius) * grey + _box(average - slope * mean, radius)

    soft = _interpolated(ids, (grey.shape[0], grey.shape[1]))
    return _strongest(ids, ((number, filtered(one)) for number, one in soft))


def _interpolated(ids: Int64[Tensor, "h w"], size: tuple[int, int]) -> Iterator[tuple[int, Tensor]]:
    """Each id of a frame with its assignments (0 or 1 on the grid) at `size`, one at a time."""
    for number in torch.unique(ids).tolist():
        assigned = (ids == number)[None, None].float()
        yield number, interpolate(assigned, size=size, mode="bilinear", align_corners=False)[0, 0]


def _strongest(ids: Tensor, maps: Iterator[tuple[int, Tensor]]) -> Int64[Tensor, "H W"]:
    number, best = next(maps)
    found = torch.full_like(best, number, dtype=torch.int64)
    for number, one in maps:
        found = torch.where(one > best, number, found)
        best = torch.maximum(best, one)
    return found


def _box(values: Float[Tensor, "H W"], radius: int) -> Float[Tensor, "H W"]:
    """Mean over the pixels within `radius` in rows and columns that there are."""
    width = 2 * radius + 1
    across = avg_pool1d(values[None], width, 1, radius, count_include_pad=False)[0]
    return avg_pool1d(across.T[None], width, 1, radius, count_include_pad=False)[0].T


# ------------------------------------------------------------------------- of label maps, frame by frame


def areas_of(frames: Iterable[LabelMap]) -> Int64[np.ndarray, "t ids"]:
    """Pixels of every id in every frame; ids from 0."""
    counts = [np.bincount(frame.ravel()) for frame in frames]
    ids = max((len(count) for count in counts), default=0)
    return np.array([np.pad(count, (0, ids - len(count))) for count in counts], np.int64).reshape(-1, ids)


def largest(areas: Int64[np.ndarray, "t ids"], count: int) -> Bool[np.ndarray, " ids"]:
    """The `count` ids with most pixels in all frames; the lower on ties, never 0 nor one that is nowhere."""
    total = areas.sum(axis=0)
    total[:1] = 0
    order = np.argsort(-total, kind="stable")[:count]
    found = np.zeros(len(total), bool)
    found[order] = total[order] > 0
    return found

"""Flips, crops and zooms of images as coordinate maps, and their inverse; grids of anchors.

A `Zooms` records what was done to each image of a batch: flip, cut a box, bring it back to the image's
size. From the record come the pixels (`zoom`), the matrices between the two views (`matrices`), and the cell
of the first view that each cell of the second shows (`cells_under`).

A matrix theta [2, 3] maps the coordinates of an output to those of its input, both in -1..1 over the pixels'
outer edges (`affine_grid` and `grid_sample` with align_corners=False).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Int32, Int64, UInt8
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from unspool.errors import ShapeError


@dataclass(frozen=True)
class Zooms:
    """A flip, then a cut, of each of b images of one size; on the CPU, where they are drawn."""

    size: tuple[int, int]  # H, W of the image, px; the box is brought back to it
    flip: Bool[Tensor, " b"]  # left for right, before the cut
    scale: Float64[Tensor, " b"]  # s, > 0: side of the box in sides of the image, before truncation to pixels
    top: Int64[Tensor, " b"]  # i, px of the flipped image
    left: Int64[Tensor, " b"]  # j
    height: Int64[Tensor, " b"]  # h' = int(s H)
    width: Int64[Tensor, " b"]  # w' = int(s W)

    def __getitem__(self, part: slice) -> Zooms:
        """Those of a part of the images."""
        fields = (self.flip, self.scale, self.top, self.left, self.height, self.width)
        return Zooms(self.size, *(values[part] for values in fields))

    def matrices(self) -> tuple[Float[Tensor, "b 2 3"], Float[Tensor, "b 2 3"]]:
        """(first view to second, second to first), see `zoom_matrices`."""
        height, width = self.size
        shift = torch.stack([self.top + (self.height - height) / 2, self.left + (self.width - width) / 2], 1)
        sign = 1.0 - 2.0 * self.flip.double()
        return zoom_matrices(shift.double(), torch.zeros_like(sign), 1 / self.scale, sign, self.size)


def draw_zooms(
    count: int, size: tuple[int, int], scales: tuple[float, float], generator: torch.Generator
) -> Zooms:
    """Flip with probability 1/2, s uniform in `scales` (within 0..1), the box anywhere inside the image.

    Source: DUL datasets/daugm_video.py: GuidedRandHFlip, MaskRandScaleCrop (same laws, not the same stream).
    """
    height, width = size
    unit = torch.rand(4, count, generator=generator, dtype=torch.float64)
    scale = scales[0] + (scales[1] - scales[0]) * unit[1]
    box_height, box_width = (scale * height).long().clamp(min=1), (scale * width).long().clamp(min=1)
    top, left = (unit[2] * (height - box_height + 1)).long(), (unit[3] * (width - box_width + 1)).long()
    return Zooms(size, unit[0] < 0.5, scale, top, left, box_height, box_width)


def zoom_matrices(
    shift: Float64[Tensor, "b 2"],
    angle: Float64[Tensor, " b"],
    enlargement: Float64[Tensor, " b"],
    sign: Float64[Tensor, " b"],
    size: tuple[int, int],
) -> tuple[Float[Tensor, "b 2 3"], Float[Tensor, "b 2 3"]]:
    """Sampling matrices (first view to second, second to first) in float32.

    `shift`: (dy, dx) of the box's centre from the image's, px of the flipped image; `angle`: radians;
    `enlargement`: c = 1/s; `sign`: -1 for a flip, else 1; `size`: (H, W). The second matrix is the inverse
    of the first for angle 0 only, which is all that DUL draws: with a rotation the published one ignores the
    flip off the diagonal, and is kept so. Source: DUL datasets/dataloader_video.py: _get_affine(_inv).
    """
    height, width = size
    aspect = height / width
    (dy, dx), cos, sin = shift.unbind(1), angle.cos(), angle.sin()
    half_height, half_width = height // 2, width // 2  # floored as published; odd sizes are off by 1 in H
    forward = torch.stack(
        [
            *(sign * cos, aspect * sin, -(dx * cos + dy * sin) / half_width),
            *(-sin / aspect, cos, -(dy * cos - dx * sin) / half_height),
        ],
        dim=1,
    ).view(-1, 2, 3) * enlargement.view(-1, 1, 1)
    turn = torch.stack(
        [
            *(forward[:, 0, 0], aspect**2 * forward[:, 1, 0]),
            *(forward[:, 0, 1] / aspect**2, forward[:, 1, 1]),
        ],
        dim=1,
    ).view(-1, 2, 2)
    backward = torch.cat([turn, -turn @ forward[:, :, 2:]], dim=2) / enlargement.view(-1, 1, 1) ** 2
    return forward.float(), backward.float()


def align(
    maps: Float[Tensor, "n c h w"],
    theta: Float[Tensor, "n 2 3"],
    mode: Literal["nearest", "bilinear"] = "nearest",
) -> Float[Tensor, "n c h w"]:
    """The maps of one view as the other view shows them; 0 where it looks beyond the edge.

    Source: DUL models/framework.py: Framework._align.
    """
    grid = affine_grid(theta.to(maps), list(maps.shape), align_corners=False)
    return grid_sample(maps, grid, mode=mode, padding_mode="zeros", align_corners=False)


def cells_under(theta: Float[Tensor, "b 2 3"], grid: tuple[int, int]) -> Int64[Tensor, "b h w"]:
    """For each cell the flat index y*w + x of the cell that nearest `align` copies there; -1 beyond the edge.

    Aligning is this look-up, so it commutes with whatever is done to each cell on its own.
    """
    numbers = torch.arange(1.0, 1 + grid[0] * grid[1], device=theta.device)  # exact up to 2^24
    return align(numbers.view(1, 1, *grid).expand(len(theta), -1, -1, -1), theta)[:, 0].long() - 1


def draw_grids(
    count: int, grid: tuple[int, int], side: int, generator: torch.Generator
) -> Int64[Tensor, "count cells"]:
    """Regular grids of side x side cells with one random offset each: flat indices y*w + x, row by row.

    Strides are floor(h/side) and floor(w/side). The offset ranges over all places that keep the grid within
    the map, so that every cell can be drawn also where `side` does not divide h or w (the published code
    refuses those). Source: DUL models/framework.py: Framework._sample_index.
    """
    height, width = grid
    if side < 1 or side > min(grid):
        raise ShapeError(
            f"a feature map of {height}x{width} has no room for {side}x{side} anchors; "
            "use larger crops or fewer anchors"
        )
    x = _draw_line(count, width, side, generator)
    y = _draw_line(count, height, side, generator)
    return (y[:, :, None] * width + x[:, None, :]).flatten(1)


def _draw_line(count: int, length: int, side: int, generator: torch.Generator) -> Int64[Tensor, "count side"]:
    stride = length // side
    offsets = torch.randint(length - (side - 1) * stride, (count, 1), generator=generator)
    return offsets + stride * torch.arange(side)


def zoom(images: UInt8[Tensor, "b c h w"], zooms: Zooms) -> UInt8[Tensor, "b c h w"]:
    """The second views of `images`, bit for bit as Pillow's bilinear resize of the flipped, cut image.

    In integers, so CPU and GPU agree. Parts of a box beyond the image (only where s > 1) are black.
    """
    if images.shape[-2:] != zooms.size or len(images) != len(zooms.flip):
        raise ShapeError(
            f"images are {len(images)} of {tuple(images.shape[-2:])}, zooms {len(zooms.flip)} of {zooms.size}"
        )
    height, width = zooms.size
    views = []
    boxes = torch.stack([zooms.top, zooms.height, zooms.left, zooms.width], dim=1).tolist()
    for image, flip, (top, box_height, left, box_width) in zip(images, zooms.flip, boxes, strict=True):
        rows = resampling(box_height, height).within(top, height, mirrored=False)
        columns = resampling(box_width, width).within(left, width, mirrored=bool(flip))
        first, last = int(rows.sources.min()), int(rows.sources.max()) + 1  # rows that the box touches
        band = columns.apply(image[:, first:last], dim=2)
        views.append(Taps(rows.sources - first, rows.weights).apply(band, dim=1))
    return torch.stack(views)


WEIGHT_BITS = 22  # Pillow's fixed point for 8-bit images: Resample.c, PRECISION_BITS


@dataclass(frozen=True)
class Taps:
    """One axis of a resize: output i is the sum over t of weights[t, i] * input[sources[t, i]] / 2^22."""

    sources: Int64[Tensor, "taps out"]
    weights: Int32[Tensor, "taps out"]

    def within(self, offset: int, length: int, *, mirrored: bool) -> Taps:
        """The same taps on an image of `length`, of which the input is the part from `offset` on."""
        sources = self.sources + offset
        inside = (sources >= 0) & (sources < length)
        sources = sources.clamp(0, length - 1)
        return Taps(length - 1 - sources if mirrored else sources, self.weights * inside)

    def apply(self, image: UInt8[Tensor, "c h w"], dim: int) -> UInt8[Tensor, "c _ _"]:
        """Resize along one axis, rounding to 8 bits as Pillow does after each."""
        shape = [-1 if axis == dim else 1 for axis in range(3)]
        total = torch.tensor(1 << (WEIGHT_BITS - 1), dtype=torch.int32, device=image.device)
        sources, weights = self.sources.to(image.device), self.weights.to(image.device)
        for source, weight in zip(sources, weights, strict=True):
            total = total + image.index_select(dim, source).int() * weight.view(shape)
        return (total >> WEIGHT_BITS).clamp(0, 255).to(torch.uint8)


def resampling(old: int, new: int) -> Taps:
    """Pillow's bilinear resize of `old` pixels to `new`: a triangle as wide as the coarser of both pixels.

    Source: python-pillow/Pillow src/libImaging/Resample.c: precompute_coeffs, normalize_coeffs_8bpc.
    """
    stretch = max(old / new, 1.0)
    centres = (torch.arange(new, dtype=torch.float64) + 0.5) * (old / new)
    first = (centres - stretch + 0.5).long().clamp(min=0)
    last = (centres + stretch + 0.5).long().clamp(max=old)
    sources = first + torch.arange(2 * ceil(stretch) + 1)[:, None]
    heights = (1 - ((sources + 0.5 - centres) / stretch).abs()).clamp(min=0)
    heights = torch.where(sources < last, heights, 0.0)
    weights = (heights / heights.sum(0) * (1 << WEIGHT_BITS) + 0.5).int()
    used = int((weights > 0).any(1).nonzero().max()) + 1
    return Taps(sources[:used].clamp(max=old - 1), weights[:used])

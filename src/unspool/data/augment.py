"""Augmentation of clips: one draw per clip, all its frames alike; drawing apart from applying.

`draw` decides and records (`Draws`), on the CPU, one random generator per clip, so a clip's draw depends on
neither the batch, the rank nor the device that it is in. Then, on the device of the frames:
`place` (resize, crop, flip; 8 bits in, 8 bits out), `recolour` (jitter, grey, blur; 0..1), `normalise`.
The record gives the matrices from view to frame and back (`view_to_frame`, `frame_to_view`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Integer, UInt8
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad

from unspool.errors import ShapeError, UsageError
from unspool.ops.geometry import resampling
from unspool.ops.resize import nearest_source

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LUMA = (0.2989, 0.587, 0.114)  # grey of R, G, B, as torchvision's
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
TRIES = 10  # of a random box before the centre is taken


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a clip. Defaults: DUL's first view on YouTube-VOS."""

    size: tuple[int, int] = (256, 256)  # H, W of the view, px
    short_side: tuple[int, int] | None = (256, 320)  # px, a..b before the crop; None: frames stay as they are
    crop: Literal["random", "centre", "box", "whole"] = "random"  # box: random area and shape; whole: no crop
    box_scale: tuple[float, float] = (0.4, 1.0)  # share of the frame's area
    box_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height, drawn on a logarithmic scale
    resizing: Literal["fast", "pillow"] = "fast"  # pillow: bit for bit, slower; fast: within a level of 255
    flip: float = 0.5  # probability
    jitter: float = 0.0  # probability of colour jitter
    brightness: float = 0.8  # factor in 1-b..1+b, not below 0; likewise
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2  # turns, -h..h, h <= 0.5
    jitter_acts: Literal["all", "last"] = "all"  # last: only the last of the four, as TimeT's code
    grey: float = 0.0  # probability
    blur: float = 0.0  # probability
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # px
    blur_taps: tuple[int, int] = (13, 13)  # rows, columns of the kernel, odd; 13 holds 3 sigma of 2 px

    def __post_init__(self) -> None:
        if self.blur and not all(taps % 2 for taps in self.blur_taps):
            raise UsageError(f"blur_taps={self.blur_taps}: a kernel has a middle, so both are odd")
        if self.short_side and (self.short_side[0] > self.short_side[1] or self.short_side[0] < 1):
            raise UsageError(f"short_side={self.short_side}: give the smaller size first, above 0")


@dataclass(frozen=True)
class Draws:
    """What was drawn for each of b clips; on the CPU. Applying it again gives the same views."""

    how: Augmentation
    frame: Int64[Tensor, "b 2"]  # H, W of the clip's frames, px
    resized: Int64[Tensor, "b 2"]  # H, W before the crop
    box: Int64[Tensor, "b 4"]  # top, left, height, width of the crop, px of the resized frame
    flip: Bool[Tensor, " b"]  # left for right, after the crop
    factors: Float[Tensor, "b 4"]  # brightness, contrast, saturation factors, and hue in turns
    order: Int64[Tensor, "b 4"]  # the four by number, first to act first; -1 does not act
    grey: Bool[Tensor, " b"]
    sigma: Float[Tensor, " b"]  # px; 0 does not blur

    def part(self, start: int, stop: int) -> Draws:
        """Those of clips start, ..., stop-1."""
        fields = [getattr(self, name) for name in list(self.__dataclass_fields__)[1:]]
        return Draws(self.how, *(values[start:stop] for values in fields))

    def view_to_frame(self) -> Float[Tensor, "b 2 3"]:
        """Matrices that take a place in the view to its place in the frame (`affine_grid`'s -1..1)."""
        (top, left, height, width), resized = self.box.double().unbind(1), self.resized.double()
        sign, zero = 1.0 - 2.0 * self.flip.double(), torch.zeros(len(self.box), dtype=torch.float64)
        across = [sign * width / resized[:, 1], zero, (2 * left + width) / resized[:, 1] - 1]
        down = [zero, height / resized[:, 0], (2 * top + height) / resized[:, 0] - 1]
        return torch.stack([*across, *down], dim=1).view(-1, 2, 3).float()

    def frame_to_view(self) -> Float[Tensor, "b 2 3"]:
        """The inverse of `view_to_frame`."""
        matrix = self.view_to_frame().double()
        scale, shift = matrix[:, :, :2], matrix[:, :, 2:]
        inverse = torch.diag_embed(1 / scale.diagonal(dim1=1, dim2=2))
        return torch.cat([inverse, -inverse @ shift], dim=2).float()


@dataclass(frozen=True)
class Views:
    """Clips of one size after `place`, and where they show a frame at all."""

    frames: UInt8[Tensor, "b t 3 h w"]
    valid: Bool[Tensor, "b h w"]  # False where the crop passes the frame's edge


# --------------------------------------------------------------------------------------------- drawing


def draw(
    how: Augmentation, sizes: Sequence[tuple[int, int]], generators: Sequence[np.random.Generator]
) -> Draws:
    """One draw for each clip, of frames of `sizes` (H, W), px, from its own generator."""
    drawn = [_draw_one(how, size, rng) for size, rng in zip(sizes, generators, strict=True)]
    resized, boxes, flips, factors, orders, greys, sigmas = zip(*drawn, strict=True)
    return Draws(
        how,
        torch.tensor(sizes),
        torch.tensor(resized),
        torch.tensor(boxes),
        torch.tensor(flips),
        torch.tensor(factors, dtype=torch.float32),
        torch.tensor(orders),
        torch.tensor(greys),
        torch.tensor(sigmas, dtype=torch.float32),
    )


Drawn = tuple[tuple[int, int], tuple[int, int, int, int], bool, list[float], list[int], bool, float]


def _draw_one(how: Augmentation, size: tuple[int, int], rng: np.random.Generator) -> Drawn:
    resized = _draw_size(how, size, rng)
    box = _draw_box(how, resized, rng)
    flip = bool(rng.random() < how.flip)
    jittered = rng.random() < how.jitter
    factors = [
        *(rng.uniform(max(0.0, 1 - s), 1 + s) for s in (how.brightness, how.contrast, how.saturation)),
        rng.uniform(-how.hue, how.hue),
    ]
    order = rng.permutation(4).tolist()
    if not jittered:
        order = [-1] * 4
    elif how.jitter_acts == "last":
        order[:3] = [-1] * 3
    grey = bool(rng.random() < how.grey)
    sigma = rng.uniform(*how.blur_sigma) * bool(rng.random() < how.blur)
    return resized, box, flip, factors, order, grey, sigma


def _draw_size(how: Augmentation, size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
    """DUL: short side a + int((b-a)u), the long side truncated."""
    if how.short_side is None:
        return size
    low, high = how.short_side
    short = low + int((high - low) * rng.random())
    height, width = size
    return (short, int(short * width / height)) if height <= width else (int(short * height / width), short)


def _draw_box(
    how: Augmentation, frame: tuple[int, int], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    if how.crop == "whole":
        return 0, 0, *frame
    if how.crop == "box":
        return _draw_shaped_box(frame, how.box_scale, how.box_ratio, rng)
    spare = [have - want for have, want in zip(frame, how.size, strict=True)]
    if how.crop == "random":  # a frame that is too small stands in the middle of the view
        top, left = (int(rng.integers(s, endpoint=True)) if s > 0 else -(-s // 2) for s in spare)
    else:
        top, left = (s // 2 if s > 0 else -(-s // 2) for s in spare)
    return top, left, *how.size


def _draw_shaped_box(
    frame: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """A box of random area and shape; after ten that do not fit, the largest of an allowed shape, centred.

    Source: torchvision transforms.RandomResizedCrop.get_params.
    """
    height, width = frame
    for _ in range(TRIES):
        area = height * width * rng.uniform(*scale)
        shape = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        h, w = round(math.sqrt(area / shape)), round(math.sqrt(area * shape))
        if 0 < h <= height and 0 < w <= width:
            top = int(rng.integers(height - h, endpoint=True))
            return top, int(rng.integers(width - w, endpoint=True)), h, w
    h, w = height, width
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


# -------------------------------------------------------------------------------------------- geometry


def place(clips: Sequence[UInt8[Tensor, "t 3 _ _"]], draws: Draws) -> Views:
    """Resize, crop, flip each clip to the size of the view; 0 and not valid beyond the edge of the frame.

    Raises ShapeError for frames of another size than the draw was made for.
    """
    height, width = draws.how.size
    frames = torch.empty(
        (len(clips), len(clips[0]), height, width, 3), dtype=torch.uint8, device=clips[0].device
    ).permute(0, 1, 4, 2, 3)  # pixel by pixel in memory, as decoded frames are, and as `resize` is fastest
    valid = torch.empty((len(clips), height, width), dtype=torch.bool, device=frames.device)
    for number, clip in enumerate(clips):
        if list(clip.shape[-2:]) != draws.frame[number].tolist():
            raise ShapeError(
                f"clip {number} has frames of {tuple(clip.shape[-2:])}, but the draw was made for "
                f"{tuple(draws.frame[number].tolist())}; draw with the sizes of these clips"
            )
        change = resize_as_pillow if draws.how.resizing == "pillow" else resize
        whole = change(clip, _pair(draws.resized[number]))
        flip, box = bool(draws.flip[number]), draws.box[number].tolist()
        frames[number], valid[number] = _cut(whole, box, (height, width), flip, change)
    return Views(frames, valid)


def place_labels(
    maps: Sequence[Integer[Tensor, "t _ _"]], draws: Draws, beyond: int = 255
) -> Integer[Tensor, "b t h w"]:
    """The same for label maps: nearest, as Pillow; `beyond` the edge of the frame is void."""
    height, width = draws.how.size
    views = maps[0].new_full((len(maps), len(maps[0]), height, width), beyond)
    for number, clip in enumerate(maps):
        tall, wide = _pair(draws.resized[number])
        top, left, box_height, box_width = draws.box[number].tolist()
        (y, y_in), (x, x_in) = (
            _nearest(*of_axis)
            for of_axis in (
                (height, top, box_height, tall, clip.shape[1]),
                (width, left, box_width, wide, clip.shape[2]),
            )
        )
        inside = (y_in[:, None] & x_in).to(clip.device)
        view = clip[:, y[:, None].to(clip.device), x.to(clip.device)].masked_fill(~inside, beyond)
        views[number] = view.flip(-1) if draws.flip[number] else view
    return views


def _nearest(
    view: int, start: int, box: int, resized: int, frame: int
) -> tuple[Int64[Tensor, " view"], Bool[Tensor, " view"]]:
    """The frame's pixel that each of the view's shows through both resizes, and whether there is one."""
    cut = start + nearest_source(box, view)
    inside = (cut >= 0) & (cut < resized)
    return nearest_source(frame, resized)[cut.clamp(0, resized - 1)], inside


def _cut(
    frames: UInt8[Tensor, "t 3 _ _"],
    box: Sequence[int],
    size: tuple[int, int],
    flip: bool,
    change: Callable[[Tensor, tuple[int, int]], Tensor],
) -> tuple[UInt8[Tensor, "t 3 h w"], Bool[Tensor, "h w"]]:
    top, left, height, width = box
    have = frames.shape[-2:]
    rows = slice(max(top, 0), min(top + height, have[0]))
    columns = slice(max(left, 0), min(left + width, have[1]))
    edges = [columns.start - left, left + width - columns.stop, rows.start - top, top + height - rows.stop]
    part, valid = frames[..., rows, columns], torch.ones(have, dtype=torch.bool, device=frames.device)
    valid = valid[rows, columns]
    if any(edges):
        part, valid = pad(part, edges), pad(valid, edges)
    if (height, width) != size:
        part = change(part, size)
        valid = interpolate(valid[None, None].float(), size, mode="nearest-exact")[0, 0] > 0
    return (part.flip(-1), valid.flip(-1)) if flip else (part, valid)


def resize(frames: UInt8[Tensor, "t c _ _"], size: tuple[int, int]) -> UInt8[Tensor, "t c h w"]:
    """Bilinear, averaging over what a pixel covers: Pillow's resize to within one level of 255."""
    if frames.shape[-2:] == size:
        return frames
    if frames.is_cpu:  # 8-bit kernel, ten times faster than Pillow's own
        return interpolate(frames, size, mode="bilinear", antialias=True)
    exact = interpolate(frames.float(), size, mode="bilinear", antialias=True)
    return exact.round_().clamp_(0, 255).to(torch.uint8)


def resize_as_pillow(frames: UInt8[Tensor, "t c _ _"], size: tuple[int, int]) -> UInt8[Tensor, "t c h w"]:
    """Pillow's bilinear resize bit for bit, on any device alike: columns first, then rows."""
    rows, columns = (resampling(old, new) for old, new in zip(frames.shape[-2:], size, strict=True))
    planes = frames.flatten(0, 1)
    if frames.shape[-1] != size[1]:
        planes = columns.apply(planes, dim=2)
    if frames.shape[-2] != size[0]:
        planes = rows.apply(planes, dim=1)
    return planes.view(*frames.shape[:2], *size)


def _pair(values: Tensor) -> tuple[int, int]:
    first, second = values.tolist()
    return first, second


# ---------------------------------------------------------------------------------------------- colour


def recolour(frames: UInt8[Tensor, "b t 3 h w"], draws: Draws) -> Float[Tensor, "b t 3 h w"]:
    """Jitter, grey, blur, in this order; colours 0..1 out."""
    frames = frames.contiguous() if _changes_colour(draws) else frames  # planes are faster here
    frames = frames.float().div_(255)
    for number, clip in enumerate(frames):
        for change in draws.order[number].tolist():
            if change >= 0:
                CHANGES[change](clip, float(draws.factors[number, change]))
        if draws.grey[number]:
            clip.copy_(_grey(clip).expand_as(clip))
        if sigma := float(draws.sigma[number]):
            clip.copy_(gaussian_blur(clip, sigma, draws.how.blur_taps))
    return frames


def _changes_colour(draws: Draws) -> bool:
    return bool((draws.order >= 0).any() or draws.grey.any() or draws.sigma.any())


def normalise(
    frames: Float[Tensor, "b t 3 h w"],
    valid: Bool[Tensor, "b h w"],
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
) -> Float[Tensor, "b t 3 h w"]:
    """(frames - mean) / std per channel, and 0 where there is no frame; in place: a batch is large."""
    centre, spread = (frames.new_tensor(v).view(3, 1, 1) for v in (mean, std))
    return frames.sub_(centre).div_(spread).mul_(valid[:, None, None])


def adjust_brightness(clip: Float[Tensor, "t 3 h w"], factor: float) -> None:
    """factor * colour, in place."""
    clip.mul_(factor).clamp_(0, 1)


def adjust_contrast(clip: Float[Tensor, "t 3 h w"], factor: float) -> None:
    """Colours move away from the mean grey of their frame, in place."""
    mean = _grey(clip).mean(dim=(1, 2, 3), keepdim=True)
    clip.mul_(factor).add_(mean * (1 - factor)).clamp_(0, 1)


def adjust_saturation(clip: Float[Tensor, "t 3 h w"], factor: float) -> None:
    """Colours move away from their own grey, in place."""
    grey = _grey(clip)
    clip.mul_(factor).add_(grey, alpha=1 - factor).clamp_(0, 1)


def adjust_hue(clip: Float[Tensor, "t 3 h w"], turns: float) -> None:
    """Hue turns, in place; the largest and the smallest channel of a pixel keep their values.

    With the hue H in sixths of a turn, chroma C and minimum m (HSV):
    R = m + C c(|H-3|-1), G = m + C c(2-|H-2|), B = m + C c(2-|H-4|), c = clamp to 0..1.
    """
    red, green, blue = clip.unbind(1)
    low, high = clip.amin(1), clip.amax(1)
    chroma = high - low
    scale = chroma.clamp(min=1e-12).reciprocal_()
    sixth = torch.where(high == green, (blue - red) * scale + 2, (red - green) * scale + 4)
    sixth = torch.where(high == red, (green - blue) * scale, sixth).add_(6 * turns)
    sixth.sub_(torch.floor(sixth / 6), alpha=6)
    red.copy_((sixth - 3).abs_().sub_(1).clamp_(0, 1).mul_(chroma).add_(low))
    green.copy_((sixth - 2).abs_().neg_().add_(2).clamp_(0, 1).mul_(chroma).add_(low))
    blue.copy_((sixth - 4).abs_().neg_().add_(2).clamp_(0, 1).mul_(chroma).add_(low))


CHANGES = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)


def _grey(clip: Float[Tensor, "t 3 h w"]) -> Float[Tensor, "t 1 h w"]:
    grey = clip[:, 0:1] * LUMA[0]
    return grey.add_(clip[:, 1:2], alpha=LUMA[1]).add_(clip[:, 2:3], alpha=LUMA[2])


def gaussian_blur(
    clip: Float[Tensor, "t 3 h w"], sigma: float, taps: tuple[int, int]
) -> Float[Tensor, "t 3 h w"]:
    """Gaussian of `sigma` px cut to `taps` rows and columns, one axis after the other; edges are mirrored."""
    reach = [count // 2 for count in taps]
    if any(r >= side for r, side in zip(reach, clip.shape[-2:], strict=True)):
        size = "x".join(map(str, clip.shape[-2:]))
        raise ShapeError(f"a blur of {taps} taps reaches across a view of {size} px; use fewer taps")
    planes = pad(clip, [reach[1], reach[1], reach[0], reach[0]], mode="reflect").flatten(0, 1)[None]
    groups = planes.shape[1]  # one kernel for all planes, each by itself
    for axis, count in enumerate(taps):
        kernel = _gaussian(sigma, count).to(clip).view(1, 1, *((-1, 1) if axis == 0 else (1, -1)))
        planes = conv2d(planes, kernel.expand(groups, 1, -1, -1), groups=groups)
    return planes.view_as(clip)


def _gaussian(sigma: float, taps: int) -> Float[Tensor, " taps"]:
    heights = torch.exp(-0.5 * (torch.arange(-(taps // 2), taps // 2 + 1) / sigma) ** 2)
    return heights / heights.sum()

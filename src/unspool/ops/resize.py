"""Labels between the size of the video and the grid of the features, by each publication's own rule.

align_corners  bilinear, corner pixels on corner pixels, both ways (DUL)
half_pixel     bilinear, pixel centres at halves, no antialiasing, both ways (CRW: OpenCV's INTER_LINEAR)
nearest        down: nearest as Pillow's; up: bilinear by whole patches, min-max of each channel over the
               frame, largest channel, then nearest as Pillow's to the video's size (DINO)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int, Int32, Integer
from torch import Tensor
from torch.nn.functional import interpolate

Rule = Literal["align_corners", "half_pixel", "nearest"]

LARGE_BYTES = 2**28  # upsampled channels held at once
FEWEST = 4  # channels: torch takes another kernel for fewer, whose results differ in the last bits


def labels_to_soft(
    labels: Integer[Tensor, "height width"], ids: Sequence[int], grid: tuple[int, int], rule: Rule
) -> Float[Tensor, "k h w"]:
    """One soft mask in 0..1 per id at the size of the feature `grid`.

    Source: DUL labelprop/common.py; CRW code/data/vos.py; DINO eval_video_segmentation.py: read_seg.
    """
    if rule == "nearest":
        return _one_hot(_resize_nearest(labels, grid), ids)
    masks = _one_hot(labels, ids)
    return interpolate(masks[None], grid, mode="bilinear", align_corners=rule == "align_corners")[0]


def soft_to_labels(
    soft: Float[Tensor, "k h w"],
    ids: Sequence[int],
    size: tuple[int, int],
    rule: Rule,
    *,
    patch: int = 8,
    memory: int = LARGE_BYTES,
) -> tuple[Int32[Tensor, "height width"], Float[Tensor, "height width"]]:
    """Label map at `size`, px, and the value of the winning channel; ties go to the first id.

    `patch`: px per token of the encoder, which only the rule "nearest" asks for. No channels: all 0.
    `memory`: bytes of upsampled channels held at once, four channels at least; it changes no bit.
    Source: DUL infer_vos.py; CRW code/test.py; DINO eval_video_segmentation.py.
    """
    if not ids:
        return (
            torch.zeros(size, dtype=torch.int32, device=soft.device),
            torch.zeros(size, device=soft.device),
        )
    if rule == "nearest":
        count = memory // (4 * patch**2 * soft[0].numel())
        confidence, winner = _strongest(soft, lambda part: upsample_patches(part, patch), count)
        confidence, winner = _resize_nearest(confidence, size), _resize_nearest(winner, size)
    else:
        corners = rule == "align_corners"
        confidence, winner = _strongest(
            soft,
            lambda part: interpolate(part[None], size, mode="bilinear", align_corners=corners)[0],
            memory // (4 * size[0] * size[1]),
        )
    return torch.tensor(ids, dtype=torch.int32, device=soft.device)[winner], confidence


def _strongest(
    soft: Float[Tensor, "k h w"], upsample: Callable[[Tensor], Tensor], count: int
) -> tuple[Float[Tensor, "height width"], Integer[Tensor, "height width"]]:
    """The largest upsampled channel per pixel, its value and its number, `count` channels at a time.

    The last channels are taken with those before them, so that never fewer than FEWEST are: channels seen
    twice win nothing twice.
    """
    count = min(len(soft), max(FEWEST, count))
    confidence, winner = upsample(soft[:count]).max(dim=0)
    for start in range(count, len(soft), count):
        first = min(start, len(soft) - count)
        value, channel = upsample(soft[first : first + count]).max(dim=0)
        winner = torch.where(value > confidence, channel + first, winner)
        confidence = confidence.maximum(value)
    return confidence, winner


def upsample_patches(soft: Float[Tensor, "k h w"], patch: int) -> Float[Tensor, "k height width"]:
    """Every token becomes patch x patch pixels; each channel is stretched to 0..1 over the frame.

    A channel without any positive value stays as it is. Source: DINO eval_video_segmentation.py: norm_mask.
    """
    large = interpolate(soft[None], scale_factor=patch, mode="bilinear", align_corners=False)[0]
    lowest, highest = large.amin(dim=(1, 2), keepdim=True), large.amax(dim=(1, 2), keepdim=True)
    span = highest - lowest
    return torch.where((highest > 0) & (span > 0), (large - lowest) / span, large)


def _one_hot(labels: Integer[Tensor, "h w"], ids: Sequence[int]) -> Float[Tensor, "k h w"]:
    return (labels == torch.tensor(ids, device=labels.device).view(-1, 1, 1)).float()


def _resize_nearest(image: Tensor, size: tuple[int, int]) -> Tensor:
    rows, columns = (
        nearest_source(old, new).to(image.device) for old, new in zip(image.shape, size, strict=True)
    )
    return image[rows][:, columns]


def nearest_source(old: int, new: int) -> Int[Tensor, " new"]:
    """Source index of every target pixel: Pillow sums the step in float64, pixel by pixel, from its half."""
    step = torch.full((new,), old / new, dtype=torch.float64)
    step[0] *= 0.5
    return step.cumsum(0).long().clamp_(max=old - 1)

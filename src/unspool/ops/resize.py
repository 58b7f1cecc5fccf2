"""Labels between the size of the video and the grid of the features, by each publication's own rule.

align_corners  bilinear, corner pixels on corner pixels, both ways (DUL)
half_pixel     bilinear, pixel centres at halves, no antialiasing, both ways (CRW: OpenCV's INTER_LINEAR)
nearest        down: nearest as Pillow's; up: bilinear by whole patches, min-max of each channel over the
               frame, largest channel, then nearest as Pillow's to the video's size (DINO)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int, Int32, Integer
from torch import Tensor
from torch.nn.functional import interpolate

Rule = Literal["align_corners", "half_pixel", "nearest"]


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
) -> tuple[Int32[Tensor, "height width"], Float[Tensor, "height width"]]:
    """Label map at `size`, px, and the value of the winning channel; ties go to the first id.

    `patch`: px per token of the encoder, which only the rule "nearest" asks for. No channels: all 0.
    Source: DUL infer_vos.py; CRW code/test.py; DINO eval_video_segmentation.py.
    """
    if not ids:
        return (
            torch.zeros(size, dtype=torch.int32, device=soft.device),
            torch.zeros(size, device=soft.device),
        )
    if rule == "nearest":
        confidence, winner = upsample_patches(soft, patch).max(dim=0)
        confidence, winner = _resize_nearest(confidence, size), _resize_nearest(winner, size)
    else:
        large = interpolate(soft[None], size, mode="bilinear", align_corners=rule == "align_corners")[0]
        confidence, winner = large.max(dim=0)
    return torch.tensor(ids, dtype=torch.int32, device=soft.device)[winner], confidence


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

"""DUL the plain way: Pillow for the second view, the paper's pseudo code (Fig. 5) for the losses."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import affine_grid, cross_entropy, grid_sample

from unspool.ops.geometry import Zooms


def zoomed_by_pillow(image: np.ndarray, zooms: Zooms, index: int) -> np.ndarray:
    """uint8 [H, W, 3]: flipped, cut, resized."""
    picture = Image.fromarray(image)
    if zooms.flip[index]:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    top, left, height, width = (
        int(edge[index]) for edge in (zooms.top, zooms.left, zooms.height, zooms.width)
    )
    box = picture.crop((left, top, left + width, top + height))
    return np.asarray(box.resize(image.shape[1::-1], Image.Resampling.BILINEAR))


@dataclass(frozen=True)
class PlainLosses:
    space_time: Tensor
    cross_view: Tensor
    total: Tensor
    labels: Tensor  # [B T, h, w]
    aligned: Tensor  # [B T, B N N, h, w]
    errors: Tensor  # [B T, h, w]


def plain_losses(
    first: Tensor,  # k [B, T, K, h, w]
    second: Tensor,  # k hat [B, T, K, h, w]
    theta: Tensor,  # [B, 2, 3]
    anchors: Tensor,  # [B, N N] flat cells
    references: Tensor,  # [B, M M]
    *,
    temperature: float,
    weight: float,
) -> PlainLosses:
    """Fig. 5(b), with the logits of all frames and anchors in memory."""
    clips, frames = first.shape[:2]
    theta = theta.repeat_interleave(frames, dim=0)
    q = torch.cat([first[b, 0].flatten(1)[:, anchors[b]].T for b in range(clips)])
    z = warp(torch.einsum("nk,bkhw->bnhw", q, first.flatten(0, 1)) / temperature, theta)
    with torch.no_grad():
        z_hat = torch.einsum("nk,bkhw->bnhw", q, second.flatten(0, 1)) / temperature
        own = torch.eye(clips).repeat_interleave(frames, 0).repeat_interleave(anchors.shape[1], 1)
        labels = (z_hat.softmax(1) * own[:, :, None, None]).argmax(1)
    errors = cross_entropy(z, labels, reduction="none")
    space_time = errors.unflatten(0, (clips, frames))[:, 1:].mean()

    aligned = warp(first[:, 0], theta[::frames])
    r = torch.cat([aligned[b].flatten(1)[:, references[b]].T for b in range(clips)])
    r_hat = torch.cat([second[b, 0].flatten(1)[:, references[b]].T for b in range(clips)])
    cross_view = cross_entropy(r @ r_hat.T / temperature, torch.arange(len(r)))
    return PlainLosses(space_time, cross_view, space_time + weight * cross_view, labels, z, errors)


def warp(maps: Tensor, theta: Tensor) -> Tensor:
    grid = affine_grid(theta.to(maps), list(maps.shape), align_corners=False)
    return grid_sample(maps, grid, mode="nearest", padding_mode="zeros", align_corners=False)

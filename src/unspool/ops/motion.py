"""How far tokens moved apart from the camera, by blocks of small images that are compared: no optical flow.

Ours. A cue that chooses among clusters (`ops/foreground.py`); it decides no label.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

PER_TOKEN = 4  # px of the small images along a token's side
REACH = 6  # px of these that something may move from frame to frame: one and a half tokens
BLOCK = 2  # tokens along the side of a block that is compared
STILL = 1e-4  # cost of a px of displacement, of the range of a pixel: what has no texture stays
FLAT = 1e-4  # squared slope, of the range of a pixel: less is no texture
ROUNDS = 10  # of reweighting
NOISE = 0.02  # tokens: differences below tell nothing
BYTES_PER_TOKEN = 10_000  # while two frames are compared, about

Small = Float[Tensor, "c y x"]


def small(image: Float[Tensor, "c H W"], grid: tuple[int, int]) -> Small:
    """The image at `PER_TOKEN` px per token of a grid (h, w)."""
    size = (PER_TOKEN * grid[0], PER_TOKEN * grid[1])
    return interpolate(image[None], size=size, mode="area")[0]


def relative_motion(before: Small, after: Small) -> Float[Tensor, "h w"]:
    """How far each token of `after` moved apart from the camera, over the mean of its frame.

    `before`, `after`: `small` images, 0..1, of frames that follow each other. Near 0 where nothing moved.
    """
    moved = apart_from_camera(displacement(before, after).cpu().double())
    return (moved / moved.mean().clamp(min=NOISE)).float()


# ---------------------------------------------------------------------------------------- block matching


def displacement(before: Small, after: Small) -> Float[Tensor, "2 h w"]:
    """By how many tokens (x, y) the block around each token of `after` has moved since `before`.

    The step in whole px of least mean absolute difference within REACH, and what Lucas' and Kanade's equation
    adds to it, at most half a px. Of a block that was partly out of the picture the rest is compared, unless
    that is less than half.
    """
    steps = torch.arange(REACH, -REACH - 1, -1, device=after.device)
    wide = pad(before[None], (REACH,) * 4, mode="replicate")[0]
    rows = [_costs(wide, after, down, steps) for down in range(REACH, -REACH - 1, -1)]
    place = torch.cat(rows).argmin(0)
    down, right = REACH - place // len(steps), REACH - place % len(steps)
    rest = _rest(_brought(wide, down, right), after)
    return (torch.stack([right, down]) + rest) / PER_TOKEN


def _costs(
    wide: Float[Tensor, "c Y X"], after: Small, down: int, steps: Int64[Tensor, " s"]
) -> Float[Tensor, "s h w"]:
    """For one step down and all to the right, the farthest first; inf: too little of a block was in view."""
    height, width = after.shape[1:]
    rows = wide[:, REACH - down : REACH - down + height]
    differences = (rows.unfold(2, width, 1) - after[:, :, None]).abs_().mean(0).transpose(0, 1)
    same = torch.full_like(steps, down)
    seen = _was_in(height, same)[:, :, None] * _was_in(width, steps)[:, None]
    known, whole = _blocks(seen), _blocks(torch.ones_like(seen[:1]))
    cost = _blocks(differences * seen) / known.clamp(min=1e-6)
    far = STILL * torch.hypot(steps.float(), same.float())
    return torch.where(known >= 0.5 * whole, cost + far[:, None, None], torch.inf)


def _was_in(side: int, steps: Int64[Tensor, " s"]) -> Float[Tensor, "s side"]:
    """1 for the pixels of an axis that were in the picture before a step, 0 for others."""
    origin = torch.arange(side, device=steps.device) - steps[:, None]
    return ((origin >= 0) & (origin < side)).float()


def _blocks(values: Float[Tensor, "s y x"]) -> Float[Tensor, "s h w"]:
    """Means over the block around each token, 0 out of the picture."""
    side = BLOCK * PER_TOKEN
    return avg_pool2d(values[None], side, PER_TOKEN, (side - PER_TOKEN) // 2)[0]


def _brought(wide: Float[Tensor, "c Y X"], down: Int64[Tensor, "h w"], right: Int64[Tensor, "h w"]) -> Small:
    """What was a step away from each token's pixels before."""
    down, right = (
        step.repeat_interleave(PER_TOKEN, 0).repeat_interleave(PER_TOKEN, 1) for step in (down, right)
    )
    rows, columns = (torch.arange(side, device=wide.device) + REACH for side in down.shape)
    return wide[:, rows[:, None] - down, columns - right]


def _rest(brought: Small, after: Small) -> Float[Tensor, "2 h w"]:
    """The fraction of a px (x, y) that is left, by least squares on blocks; 0 where there is no texture.

    Source: Lucas and Kanade, An Iterative Image Registration Technique, IJCAI 1981; one step.
    """
    y, x = torch.gradient(after, dim=(1, 2))
    change = brought - after
    sums = torch.stack([x * x, x * y, y * y, x * change, y * change]).sum(1)
    xx, xy, yy, xt, yt = _blocks(sums)
    xx, yy = xx + FLAT, yy + FLAT
    right, down = yy * xt - xy * yt, xx * yt - xy * xt
    return torch.clamp(torch.stack([right, down]) / (xx * yy - xy * xy), -0.5, 0.5)


# ------------------------------------------------------------------------------------------- the camera


def apart_from_camera(moved: Float64[Tensor, "2 h w"]) -> Float64[Tensor, "h w"]:
    """What is left of displacements when the camera's are taken away, as lengths.

    The camera's: affine in the place, by least squares, iteratively reweighted with Cauchy's weights whose
    scale is the median of what is left; it begins with the median displacement.
    """
    height, width = moved.shape[1:]
    y, x = torch.meshgrid(_centred(height), _centred(width), indexing="ij")
    places = torch.stack([torch.ones_like(x), x, y], dim=-1).flatten(0, 1)
    steps = moved.flatten(1).T
    left = (steps - steps.median(0).values).norm(dim=1)
    slight = 1e-6 * torch.eye(3, dtype=moved.dtype)  # a grid of one row leaves an unknown open
    for _ in range(ROUNDS):
        weighted = places / (1 + (left / left.median().clamp(min=NOISE)) ** 2)[:, None]
        camera = torch.linalg.solve(places.T @ weighted + slight, weighted.T @ steps)
        left = (steps - places @ camera).norm(dim=1)
    apart: Tensor = left.unflatten(0, (height, width))
    return apart


def _centred(side: int) -> Float64[Tensor, " side"]:
    return (torch.arange(side, dtype=torch.float64) + 0.5) / side - 0.5

"""TimeT's Feature-Forwarder: label maps of a clip's first frames carried to its last, all clips at once.

The rule is that of `ops/propagation.py` with a square window for the reference too (Salehi et al. 2023,
Eq. 3-5; the released form is DINO's); this form is for small grids, whose affinities fit into memory, and
for many short clips, whose labels are all given in the same frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import embedding_bag

from unspool.errors import ShapeError, UsageError

NOWHERE = -float("inf")


@dataclass(frozen=True)
class Forwarder:
    """How maps travel; the defaults are those of the released code (mask_propagation.py)."""

    temperature: float = 0.1  # tau, > 0
    window: int = 6  # largest |dy|, |dx| from source to target, cells; 0: anywhere
    top_k: int = 5  # sources kept per target, jointly over all frames, and those that tie; 0: all
    context: int = 7  # frames before the target that are sources, besides the first, >= 0
    masked: Literal["first", "last"] = (
        "first"  # the window before Eq. 4 divides, or after (paper's Listing 1)
    )

    def __post_init__(self) -> None:
        for name, valid in (
            ("temperature", self.temperature > 0),
            ("window", self.window >= 0),
            ("top_k", self.top_k >= 0),
            ("context", self.context >= 0),
            ("masked", self.masked in ("first", "last")),
        ):
            if not valid:
                raise UsageError(f"forwarder.{name} = {getattr(self, name)!r} is out of range")


@torch.no_grad()
def forward_maps(
    features: Float[Tensor, "b t n c"],
    maps: Float[Tensor, "b given n k"],
    grid: tuple[int, int],
    how: Forwarder,
) -> Float[Tensor, "b t-given n k"]:
    """Maps of the frames after those `given`, each from its sources' maps, forwarded ones among them.

    `features`: of every frame, of any length; `grid`: (h, w) with h*w = n, tokens row by row. Sources of
    frame c are frame 0 and frames c - context, ..., c - 1. Maps are means of their sources', never scaled
    again; with `masked` = "last" weights sum to less than 1. In float32 or better, under autocast too;
    sources that tie with the k-th best are kept up to one per frame. Raises ShapeError for another grid.
    """
    (clips, frames, tokens, _), (given, prototypes) = features.shape, (maps.shape[1], maps.shape[3])
    if grid[0] * grid[1] != tokens or not 1 <= given <= frames:
        raise ShapeError(
            f"{given} of {frames} maps of {tokens} tokens do not fit a grid of {grid[0]}x{grid[1]}"
        )
    exact = torch.promote_types(features.dtype, torch.float32)
    with torch.autocast(features.device.type, enabled=False):
        features = features.to(exact)
        scales = vector_norm(features, dim=3).clamp_(min=1e-12).reciprocal_()
        known = maps.new_empty((clips, frames, tokens, prototypes), dtype=exact)
        known[:, :given] = maps
        for frame in range(given, frames):
            sources = [0, *range(max(1, frame - how.context), frame)]
            known[:, frame] = _forward(features, scales, known, sources, frame, grid, how)
    return known[:, given:]


def _forward(
    features: Float[Tensor, "b t n c"],
    scales: Float[Tensor, "b t n"],  # 1 / length of the features
    known: Float[Tensor, "b t n k"],
    sources: list[int],
    frame: int,
    grid: tuple[int, int],
    how: Forwarder,
) -> Float[Tensor, "b n k"]:
    """Eq. 3-5 for one frame of every clip."""
    skipped = sources[-1] + 1 - len(sources)  # frames after the first that are no sources
    part = sources if skipped else slice(0, len(sources))
    outside = _outside(grid, how.window, features.device, features.dtype)
    similar = _similar(features, scales, part, frame, outside if how.masked == "first" else None)
    sharpness = scales[:, frame, :, None] / how.temperature
    if not 0 < how.top_k < similar.shape[2]:
        weights = (similar * sharpness).softmax(dim=2)
        if outside is not None:
            weights.view(*weights.shape[:2], len(sources), -1).mul_((outside == 0)[:, None])
        return weights @ known[:, part].flatten(1, 2)
    wanted = min(how.top_k + len(sources) - 1, similar.shape[2])  # what stands still ties in every frame
    best, place = similar.topk(wanted, dim=2)
    weights = ((best - best[..., :1]) * sharpness).exp_()  # torch's softmax is slow at so few columns
    weights.mul_(best >= best[..., how.top_k - 1 : how.top_k])
    weights.div_(weights.sum(dim=2, keepdim=True))
    if outside is not None and how.masked == "last":
        rows = outside.expand(len(known), -1, -1)
        weights.mul_(rows.gather(2, place % outside.shape[1]) == 0)
    if skipped:
        place += (place >= features.shape[2]) * (skipped * features.shape[2])
    return _weighted_rows(known.flatten(1, 2), place, weights)


def _similar(
    features: Float[Tensor, "b t n c"],
    scales: Float[Tensor, "b t n"],
    part: slice | list[int],
    frame: int,
    outside: Float[Tensor, "n n"] | None,
) -> Float[Tensor, "b n m"]:
    """Cosines times the length of the target's features, -inf outside the window.

    Features become no unit vectors first: to divide products by the source's length costs no pass of its
    own, and to divide by the target's is left to the few that are kept.
    """
    products = features[:, frame] @ features[:, part].flatten(1, 2).transpose(1, 2)
    by_frame = products.view(*products.shape[:2], -1, features.shape[2])
    if outside is None:
        by_frame.mul_(scales[:, None, part])
    else:
        torch.addcmul(outside[:, None], by_frame, scales[:, None, part], out=by_frame)
    return products


def _weighted_rows(
    labels: Float[Tensor, "b m k"], place: Tensor, weights: Float[Tensor, "b n wanted"]
) -> Float[Tensor, "b n k"]:
    """Sums of rows `place[b, n, wanted]` of the labels of their own clip, without a copy of the rows."""
    clips, rows, prototypes = labels.shape
    starts = rows * torch.arange(clips, device=place.device).view(-1, 1, 1)
    bags, weights = (place + starts).flatten(0, 1), weights.flatten(0, 1)
    summed = embedding_bag(bags, labels.view(-1, prototypes), mode="sum", per_sample_weights=weights)
    return summed.view(clips, -1, prototypes)


@lru_cache(maxsize=16)
def _outside(grid: tuple[int, int], window: int, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    """-inf where a source [column] lies outside the window of a target [row], else 0.

    Kept by all that decides it; adding it is several times as fast as filling by a mask.
    """
    if not window or window >= max(grid) - 1:
        return None
    y, x = (axis.flatten() for axis in torch.meshgrid(*map(torch.arange, grid), indexing="ij"))
    far = torch.maximum((y[:, None] - y).abs(), (x[:, None] - x).abs()) > window
    return torch.zeros(far.shape, dtype=dtype).masked_fill_(far, NOWHERE).to(device)

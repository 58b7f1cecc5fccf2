"""`maskforward`: the first true mask carried through a video in steps of delta t (TimeT, Table 11).

Repeated as it is (the publication's GT_0), moved along optical flow, or by the Feature-Forwarder. A video is
sampled every delta t by its clock. Score: IoU of the foreground, all ids together, and its mean with the
background's, over frames after the first that have one, then over videos. Each prediction is held against
the truth of its own frame; the released code is one frame late (docs/timet.md, 18).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, UInt8
from torch import Tensor
from torch.nn.functional import interpolate, one_hot

from unspool.errors import DataError, UsageError, WeightsError
from unspool.metrics.labels import VOID
from unspool.ops.forwarding import Forwarder, forward_maps
from unspool.ops.resize import nearest_source

Image = UInt8[np.ndarray, "h w 3"]
Masks = Bool[np.ndarray, "t h w"]
Flow = Callable[[Image, Image], Float32[np.ndarray, "h w 2"]]  # px (dx, dy) from the first to the second


@dataclass(frozen=True)
class MaskForward:
    """The protocol; defaults are the publication's."""

    seconds: tuple[float, ...] = (0.1, 0.2, 0.4, 0.8)  # delta t, s
    side: int = 224  # px of the square that is encoded, and that masks are scored at
    forwarder: Forwarder = field(default_factory=lambda: Forwarder(window=12, context=4))

    def __post_init__(self) -> None:
        if not self.seconds or min(self.seconds) <= 0 or self.side < 1:
            raise UsageError(f"maskforward: seconds {self.seconds} and side {self.side} must be above 0")


@dataclass(frozen=True)
class Overlap:
    """Of one video and one way of carrying, 0..1."""

    foreground: float  # mean over frames
    both: float  # mean of foreground's and background's


def sampled(frames: int, fps: float, seconds: float) -> list[int]:
    """The frames nearest to 0, delta t, 2 delta t, ...; each once."""
    count = int((frames - 1) / (seconds * fps)) + 1 if frames else 0
    return sorted({min(frames - 1, round(k * seconds * fps)) for k in range(count)})


def score_video(
    images: Sequence[Image],
    truth: UInt8[np.ndarray, "t h w"],
    features: Float[Tensor, "t c h w"],
    fps: float,
    flows: Mapping[str, Flow],
    how: MaskForward,
) -> dict[str, Overlap]:
    """By `NAME-DELTAs`, e.g. `forwarder-0.1s`. `images` are square, as encoded; 255 in truth is left out.

    Raises DataError for a video without an object in its first frame, or too short for two steps of delta t.
    """
    small = resized(truth, how.side)
    first = object_of(small[0])
    if not first.any():
        raise DataError("no object in the first mask; there is nothing to carry")
    found = {}
    for seconds in how.seconds:
        at = sampled(len(truth), fps, seconds)
        if len(at) < 2:
            raise DataError(f"{len(truth)} frames at {fps:g}/s are shorter than delta t = {seconds:g} s")
        carried = {"repeat": np.repeat(first[None], len(at) - 1, axis=0)}
        for name, flow in flows.items():
            carried[name] = along_flow(first, [images[t] for t in at], flow)
        carried["forwarder"] = by_features(small[0], features[at], how)
        for name, masks in carried.items():
            found[f"{name}-{seconds:g}s"] = overlap(masks, small[at[1:]])
    return found


def resized(truth: UInt8[np.ndarray, "t h w"], side: int) -> UInt8[np.ndarray, "t side side"]:
    """Nearest."""
    rows, columns = (nearest_source(old, side).numpy() for old in truth.shape[1:])
    return np.asarray(truth[:, rows][:, :, columns])


def object_of(labels: UInt8[np.ndarray, "*shape"]) -> Bool[np.ndarray, "*shape"]:
    """All ids together; void is none."""
    return np.asarray((labels != 0) & (labels != VOID))


def along_flow(first: Bool[np.ndarray, "h w"], images: Sequence[Image], flow: Flow) -> Masks:
    """Every frame looks up where it came from in the mask of the frame before, nearest."""
    height, width = first.shape
    y, x = np.mgrid[:height, :width]
    masks = [first]
    for before, now in pairwise(images):
        moved = flow(now, before)
        rows, columns = (np.rint(grid + moved[..., i]).astype(int) for grid, i in ((y, 1), (x, 0)))
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        source = masks[-1][rows.clip(0, height - 1), columns.clip(0, width - 1)]
        masks.append(source & inside)
    return np.stack(masks[1:])


def by_features(
    first: UInt8[np.ndarray, "h w"], features: Float[Tensor, "t c gh gw"], how: MaskForward
) -> Masks:
    """The Feature-Forwarder on tokens; masks are stretched bilinearly and the larger one wins."""
    grid = (features.shape[2], features.shape[3])
    rows, columns = (nearest_source(how.side, new) for new in grid)
    tokens = torch.from_numpy(object_of(first)).to(features.device)[rows][:, columns]
    maps = one_hot(tokens.flatten().long(), 2).float()[None, None]
    rest = forward_maps(features.flatten(2).transpose(1, 2)[None], maps, grid, how.forwarder)[0]
    soft = rest.transpose(1, 2).reshape(len(rest), 2, *grid)
    large = interpolate(soft, (how.side, how.side), mode="bilinear", align_corners=False)
    return np.asarray((large[:, 1] > large[:, 0]).cpu().numpy())


def overlap(predicted: Masks, truth: UInt8[np.ndarray, "t h w"]) -> Overlap:
    """Means over frames; those without an object in truth say nothing of the foreground."""
    foreground, both = [], []
    for mask, labels in zip(predicted, truth, strict=True):
        seen, true = labels != VOID, object_of(labels)
        scores = [_iou(m & seen, t & seen) for m, t in ((mask, true), (~mask, ~true)) if (t & seen).any()]
        both.append(fmean(scores) if scores else 1.0)
        if true.any():
            foreground.append(scores[0])
    return Overlap(fmean(foreground) if foreground else 1.0, fmean(both))


def _iou(mask: Bool[np.ndarray, "h w"], true: Bool[np.ndarray, "h w"]) -> float:
    return float((mask & true).sum() / (mask | true).sum())


# ------------------------------------------------------------------------------------------ optical flow


def flows_at_hand(raft: Path | None = None, device: str = "cpu") -> Iterator[tuple[str, Flow]]:
    """Optical flow of OpenCV (DIS) where it is installed, and RAFT where its weights are given."""
    try:
        import cv2  # noqa: PLC0415 (the extra `flow`)
    except ImportError:
        pass
    else:
        yield "flow", _dis(cv2)
    if raft is not None:
        yield "raft", _raft(raft, device)


def _dis(cv2: Any) -> Flow:
    """Dense inverse search (Kroeger et al. 2016)."""
    method = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def flow(now: Image, before: Image) -> Float32[np.ndarray, "h w 2"]:
        grey = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (now, before)]
        return np.asarray(method.calc(*grey, None))

    return flow


def _raft(weights: Path, device: str) -> Flow:
    """RAFT (Teed and Deng 2020), large, from torchvision's state dict."""
    from torchvision.models.optical_flow import raft_large  # noqa: PLC0415

    network = raft_large(weights=None, progress=False)
    try:
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(
            f"{weights}: not the weights of torchvision's raft_large ({reason}); give raft_large_*.pth"
        ) from error
    network.to(device).eval()

    @torch.inference_mode()
    def flow(now: Image, before: Image) -> Float32[np.ndarray, "h w 2"]:
        pair = [torch.from_numpy(np.ascontiguousarray(i)).movedim(2, 0)[None] for i in (now, before)]
        found = network(*(image.to(device).float() / 127.5 - 1 for image in pair))[-1]
        return np.asarray(found[0].movedim(0, 2).float().cpu().numpy())

    return flow

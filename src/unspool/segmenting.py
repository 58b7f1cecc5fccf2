"""Cut a video into objects that keep their identity, with no labels and no number given.

"Betrayed by Attention" (Ding et al., ECCV 2024) as a tool: a block attends from every token of a video to
those of its key frames, and tokens that attend alike are one object (`ops/clustering.py`). Frames come in one
at a time; `window` of them are clustered together, and windows share some frames by whose labels identities
are carried over. Memory does not grow with the video but for the labels themselves, a few bytes per token.

A video of at most one window gets exactly the clusters of the published procedure, in its order.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from unspool.encoders import Encoder
from unspool.encoders.correlator import Correlator, untrained
from unspool.encoders.images import IMAGENET_MEAN, IMAGENET_STD
from unspool.errors import UnspoolWarning, UsageError, VideoError
from unspool.ops.clustering import (
    EPS,
    Clustering,
    Clusters,
    Leaves,
    Rows,
    cluster,
    leaders,
    means,
    rows_of_attention,
)
from unspool.ops.divergence import Distance, compared
from unspool.ops.hierarchy import merge_tree
from unspool.ops.motion import relative_motion, small
from unspool.segmentation import Carried, Segmentation, Window

Image = UInt8[np.ndarray, "h w 3"]
MOST_LEAVES = 2048  # of a window's tree: where there are more, the nearest are one (a leader pass)
KINETICS_MEAN, KINETICS_STD = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)


class Frames(Protocol):
    """What `segment` asks of a video: a size, and images in order."""

    name: str
    height: int
    width: int

    def __iter__(self) -> Iterator[Image]: ...


@dataclass(frozen=True)
class Segmenting:
    """How a video is segmented; the defaults are those of the released code, see docs/ba.md."""

    clustering: Clustering = field(default_factory=Clustering)
    represent: Literal["block", "attention", "features", "fused"] = "block"  # A_v, A, F, F_v of Tables 1, 4
    finest: float | None = 0.5  # threshold of the leaves of the hierarchy, > 0; None: no hierarchy
    resolution: tuple[int, int] | None = (320, 480)  # px, short side first; None: the video's own
    key_every: int = 0  # frames from one key frame to the next; 0: 10 from 20 frames on, else 1 (Table 9)
    whole_strides: bool = False  # as released: no key frame whose stride the clip's end cuts off
    window: int = 120  # frames clustered together, > overlap
    overlap: int = 12  # frames that two windows share, >= 1
    normalisation: Literal["imagenet", "kinetics"] = "imagenet"  # decision 11: kinetics as released
    memory: int = 2 << 30  # bytes that clustering may take; never changes a label

    def __post_init__(self) -> None:
        represents, normalisations = ("block", "attention", "features", "fused"), ("imagenet", "kinetics")
        for name, valid, wanted in (
            ("represent", self.represent in represents, ", ".join(represents)),
            ("finest", self.finest is None or 0 < self.finest < math.inf, "above 0, and finite"),
            ("resolution", self.resolution is None or min(self.resolution) >= 1, "at least 1 px"),
            ("key_every", self.key_every >= 0, "at least 1; 0 chooses"),
            ("overlap", self.overlap >= 1, "at least 1"),
            ("window", self.window > self.overlap, f"more than the overlap of windows, {self.overlap}"),
            ("normalisation", self.normalisation in normalisations, ", ".join(normalisations)),
            ("memory", self.memory >= 1, "at least 1 byte"),
        ):
            if not valid:
                raise UsageError(f"segmenting.{name} = {getattr(self, name)!r} is out of range: {wanted}")

    def keys(self, frames: int) -> int:
        """Frames from one key frame to the next, of a video (or first window) of `frames` frames."""
        return self.key_every or (10 if frames >= 20 else 1)


@dataclass(frozen=True)
class KeyFrames:
    """Queries and keys of the key frames of one window: softmax(q k / sqrt d) is where a token attends."""

    frames: tuple[int, ...]  # of the video
    grid: tuple[int, int]  # h, w; n = h w
    queries: Float[Tensor, "s heads n d"]
    keys: Float[Tensor, "s heads n d"]


Progress = Callable[[str, float], None]  # what is done ("encode", "cluster"), and how many frames of it
JOINING = 0.2  # share of the time of clustering that the tree takes, about


def segment(
    video: Frames,
    model: Encoder | Correlator,
    how: Segmenting | None = None,
    *,
    progress: Progress | None = None,
    attended: Callable[[KeyFrames], None] | None = None,
    carried: Carried | None = None,
    after_window: Callable[[Carried], None] | None = None,
) -> Segmentation:
    """The objects of a video, in one pass over its frames.

    `model`: a correlator, or an encoder, on which a block of random weights is put. `progress` is called
    after each frame that is encoded and each few that are clustered; `attended` gets the key frames of each
    window where a block is what is clustered. `after_window` gets what is known after each window; given as
    `carried` to a later call with the same arguments, that one goes on behind it. Raises UsageError for
    settings that the encoder cannot serve or that need more memory, VideoError for a video without frames, or
    whose features are not finite. Warns where everything is one cluster.
    Source: SSL-UVOS eval_oneshot.py: mem_efficient_inference; decisions in docs/ba.md.
    """
    how = how or Segmenting()
    correlator = model if isinstance(model, Correlator) else untrained(model)
    check_offers(correlator, how)
    carried, told = carried or Carried(), progress or _quiet
    for maps, cues in _windows_of_maps(video, correlator, how, carried.frames, told):
        every = carried.every or how.keys(len(maps))
        if attended and how.represent == "block":
            attended(_key_frames(maps, correlator, every, max(0, carried.frames - how.overlap)))
        fresh = 1 - (how.overlap if carried.frames else 0) / len(maps)
        window = segment_maps(maps, correlator, how, every, partial(_of_fresh, told, fresh))
        window, by_frame = replace(window, cues=cues), how.represent == "attention"
        carried = replace(carried.with_window(window, how.overlap, linked=not by_frame), every=every)
        if after_window:
            after_window(carried)
    if not carried.clusters.parts:
        raise VideoError(f"{video.name}: there is no frame in it")
    if carried.clusters.count == 1:
        warnings.warn(
            f"{video.name}: all of it is one cluster at tau = {how.clustering.tau:g}; is the video constant? "
            "Otherwise try a smaller tau",
            UnspoolWarning,
            stacklevel=2,
        )
    return carried.finished((video.height, video.width))


def _of_fresh(progress: Progress, share: float, stage: str, frames: float) -> None:
    """Of a window, only the frames that were not in the one before count."""
    progress(stage, share * frames)


def _quiet(stage: str, frames: float) -> None:
    pass


@torch.inference_mode()
def _key_frames(maps: Float[Tensor, "t c h w"], correlator: Correlator, every: int, first: int) -> KeyFrames:
    tokens = correlator.embedded(maps)[::every]
    queries, keys = correlator.projected(tokens)
    frames = range(first, first + len(maps), every)
    return KeyFrames(tuple(frames), (maps.shape[2], maps.shape[3]), queries, keys)


def check_offers(correlator: Correlator, how: Segmenting) -> None:
    """Raises UsageError where the encoder has not what is to be clustered."""
    encoder = correlator.encoder
    if how.represent == "attention" and "attention" not in encoder.offers:
        raise UsageError(
            f"encoder '{encoder.name}' has no attention of its own: represent = attention needs a ViT; "
            "take block, features or fused"
        )


# --- frames to maps ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoded:
    """One frame, as far as it is needed once it is encoded."""

    map: Float[Tensor, "c h w"]  # what `how.represent` needs
    image: Float[Tensor, "3 y x"]  # small
    cues: dict[str, Float[Tensor, "h w"]]  # see `ops/foreground.py`


Cues = dict[str, Float32[np.ndarray, "t h w"]]


def _windows_of_maps(
    video: Frames, correlator: Correlator, how: Segmenting, begun: int, progress: Progress
) -> Iterator[tuple[Float[Tensor, "t c h w"], Cues]]:
    """What is clustered together: each window begins with the last frames of the one before.

    The windows of the first `begun` frames are done.
    """
    size = input_size(video.height, video.width, correlator.encoder, how)
    held: list[Encoded] = []
    fresh = 0
    for index, image in enumerate(video):
        if index < begun - how.overlap:
            progress("reading again", 1)
            continue
        if len(held) == how.window:
            yield _stacked(held)
            held, fresh = held[-how.overlap :], 0
        held.append(encoded(image, correlator, size, how, held[-1] if held else None))
        if not bool(held[-1].map.sum().isfinite()):
            raise VideoError(
                f"{video.name}: the features of frame {index} are not finite; look at the model's weights"
            )
        fresh += index >= begun
        progress("encode", 1)
    if fresh:
        yield _stacked(held)


def _stacked(held: Sequence[Encoded]) -> tuple[Float[Tensor, "t c h w"], Cues]:
    cues = {name: np.stack([one.cues[name].cpu().numpy() for one in held]) for name in held[0].cues}
    return torch.stack([one.map for one in held]), cues


def input_size(height: int, width: int, encoder: Any, how: Segmenting) -> tuple[int, int]:
    """Height and width of the encoder's input, px: whole multiples of what it needs. Ratios are not kept."""
    step = encoder.multiple
    if how.resolution is None:
        return max(step, height // step * step), max(step, width // step * step)
    short, long = (max(step, round(side / step) * step) for side in how.resolution)
    return (short, long) if height <= width else (long, short)


@torch.inference_mode()
def encoded(
    image: Image,
    correlator: Correlator,
    size: tuple[int, int],
    how: Segmenting,
    before: Encoded | None = None,
) -> Encoded:
    """A frame, float32, of an encoder's input of `size` (h, w); `before`: the frame that it follows.

    The attention of the class token comes from the same pass, where the encoder has one.
    """
    encoder = correlator.encoder
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float() / 255
    if pixels.shape[-2:] != size:
        pixels = interpolate(pixels, size=size, mode="bilinear", align_corners=False)
    wish = {"attention": "attention", "features": "tokens"}.get(how.represent, correlator.features)
    want = (wish, "cls_attention") if "cls_attention" in encoder.offers else (wish,)
    found = encoder(_as_released(pixels) if how.normalisation == "kinetics" else pixels, want=want)
    own = found[wish][0].float()
    if how.represent == "attention":
        own = own.view(-1, size[0] // encoder.patch, size[1] // encoder.patch)
    grid = (own.shape[1], own.shape[2])
    tiny = small(pixels[0], grid).to(own.device)  # MPS shrinks by areas only where sizes divide
    cues = {"motion": relative_motion(before.image, tiny) if before else torch.full(grid, torch.nan)}
    if "cls_attention" in found:
        attention = found["cls_attention"][0].float().mean(0)
        cues["class attention"] = attention / attention.mean().clamp(min=EPS)
    return Encoded(own, tiny, cues)


def _as_released(pixels: Float[Tensor, "1 3 h w"]) -> Float[Tensor, "1 3 h w"]:
    """Pixels that ImageNet's normalisation turns into what that of Kinetics makes of the given ones."""
    theirs, ours = (KINETICS_MEAN, KINETICS_STD), (IMAGENET_MEAN, IMAGENET_STD)
    (mean, std), (own_mean, own_std) = (
        [torch.tensor(each).view(3, 1, 1) for each in pair] for pair in (theirs, ours)
    )
    return (pixels - mean) / std * own_std + own_mean


# --- maps to clusters -------------------------------------------------------------------------------------


@torch.inference_mode()
def segment_maps(
    maps: Float[Tensor, "t c h w"],
    correlator: Correlator,
    how: Segmenting,
    every: int,
    progress: Progress = _quiet,
) -> Window:
    """The clusters of frames whose maps are given; key frames are 0, every, 2 every, ...

    `progress` hears of all of them, as they are done. Raises UsageError where `whole_strides`
    leaves no key frame.
    """
    if how.represent == "attention":
        return _by_frame(maps, how, progress)
    tokens = correlator.embedded(maps)
    chosen = torch.arange(0, max(0, len(maps) - (every - 1 if how.whole_strides else 0)), every)
    if not len(chosen):
        raise UsageError(
            f"{len(maps)} frames hold no whole stride of key_every = {every}; set whole_strides = false"
        )
    clustering, finest = how.clustering, how.finest if how.clustering.algorithm == "windowed" else None
    if how.represent != "block" and clustering.distance == "kl":
        clustering = replace(clustering, distance="cosine")  # features are no distributions
    rows = {"block": _attending, "features": _encoded_tokens, "fused": _fused}[how.represent]
    counted = [0.0]

    def told(share: float) -> None:
        counted[0] += (1 - JOINING) * share * len(maps)
        progress("cluster", (1 - JOINING) * share * len(maps))

    shown = rows(tokens, chosen, correlator)
    found = cluster(shown, len(maps), clustering, finest=finest, memory=how.memory, progress=told)
    window = _window(found, (len(maps), *maps.shape[2:]), clustering.distance, how)
    progress("cluster", len(maps) - counted[0])
    return window


def _attending(tokens: Tensor, chosen: Tensor, correlator: Correlator) -> Rows:
    """A_v: attention of the block to the key frames."""
    keys = correlator.projected(tokens[chosen])[1]

    def rows(start: int, stop: int) -> Tensor:
        return rows_of_attention(correlator.projected(tokens[start:stop])[0], keys)(0, stop - start)

    return rows


def _encoded_tokens(tokens: Tensor, chosen: Tensor, correlator: Correlator) -> Rows:
    """F: features of the encoder."""
    return lambda start, stop: tokens[start:stop].flatten(0, 1)


def _fused(tokens: Tensor, chosen: Tensor, correlator: Correlator) -> Rows:
    """F_v: the block's output, its keys and values those of the key frames."""
    block = correlator.blocks[0]
    _, keys, values = block.projections(tokens[chosen].flatten(0, 1))

    def rows(start: int, stop: int) -> Tensor:
        own = tokens[start:stop].flatten(0, 1)
        queries = block.projections(own)[0]
        every = torch.arange(len(own), device=own.device)
        fused: Tensor = block.features(own, (queries, keys, values), every, None)
        return fused

    return rows


def _by_frame(maps: Float[Tensor, "t c h w"], how: Segmenting, progress: Progress) -> Window:
    """A: each frame by itself, from the encoder's attention; clusters of frames do not know each other."""
    every = maps.flatten(2).clamp(min=EPS)
    clustering = replace(how.clustering, frames=1)

    def labels_of(frame: int) -> Tensor:
        found = cluster(lambda start, stop: every[frame], 1, clustering, memory=how.memory).labels
        progress("cluster", 1)
        return found

    labels = torch.stack([labels_of(frame) for frame in range(len(maps))]).view(len(maps), *maps.shape[2:])
    return Window(labels.cpu().numpy(), int(labels.max()) + 1, None, None)


def _window(found: Clusters, shape: tuple[int, ...], distance: Distance, how: Segmenting) -> Window:
    labels = found.labels.view(shape).cpu().numpy()
    if how.finest is None:
        return Window(labels, len(found.centroids), None, None)
    leaves = _fewer(found.leaves or Leaves(found.labels, found.centroids), distance, how.finest)
    tree = merge_tree(leaves.centroids, distance, memory=how.memory)
    return Window(labels, len(found.centroids), leaves.labels.view(shape).cpu().numpy(), tree)


def _fewer(leaves: Leaves, distance: Distance, tau: float) -> Leaves:
    """At most MOST_LEAVES: leader passes of a growing threshold put the nearest together."""
    while len(leaves.centroids) > MOST_LEAVES:
        member = leaders(compared(leaves.centroids, distance, hold=False), tau)
        leaves = Leaves(member[leaves.labels], means(leaves.centroids, member))
        tau *= 1.25
    return leaves

"""Carry a mask through a video: features of every frame, labels along their affinities.

The evaluation of all three papers, used as a tool: the given mask is the reference, each later frame
takes its labels from the most similar places of the frames before it (`ops/propagation.py`).
Frames come in one at a time, label maps go out one at a time; memory does not grow with the video.
"""

from __future__ import annotations

import resource
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Sized as HasLength
from dataclasses import dataclass, field, fields, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, Integer, UInt8
from torch import Tensor

from unspool.encoders import Encoder
from unspool.errors import MaskError, ShapeError, UsageError
from unspool.masks import Mask, fit_mask, ids_in, read_mask
from unspool.ops import propagation
from unspool.ops.affinity import SCORE_BYTES, row_bytes, tiling_for
from unspool.ops.propagation import Propagation
from unspool.ops.propagation_state import times_needed, with_features, without_features
from unspool.ops.resize import FEWEST, Rule

Image = UInt8[np.ndarray, "h w 3"]
LabelMap = Integer[np.ndarray, "h w"]

FRAMES_IN_HAND = 48  # decoded ahead, waiting for a writer or inside one, at any length of the video


class Sized(Protocol):
    """What has a name and the size of a video's frames, px."""

    name: str
    height: int
    width: int


class Frames(Protocol):
    """What `track` asks of a video: a size, and images in order; a stream has no length."""

    name: str
    height: int
    width: int

    def __iter__(self) -> Iterator[Image]: ...


@dataclass(frozen=True)
class Tracking:
    """How a video is tracked; the defaults are DUL's protocol on DAVIS (`presets/dul.toml`)."""

    propagation: Propagation = field(default_factory=Propagation)
    features: str = "tokens"  # what the encoder is asked for: its final map, or a stage such as "layer3"
    short_side: int | None = None  # px of the encoder's input; None: the video's own size
    long_side_multiple: int = 1  # px: the longer side is cut down to a multiple of this
    normalisation_std: tuple[float, float, float] | None = None  # None: the encoder's own


PRESETS = ("dul", "crw", "dino")


def tracking_preset(name: str) -> Tracking:
    """The named publication's protocol: `dul`, `crw` or `dino`. Raises UsageError for other names."""
    if name not in PRESETS:
        raise UsageError(f"preset '{name}' is unknown; there are {', '.join(PRESETS)}")
    table = tomllib.loads((files("unspool") / "presets" / f"{name}.toml").read_text("utf-8"))
    return with_settings(Tracking(), {**table["tracking"], "propagation": table["propagation"]})


def with_settings(tracking: Tracking, settings: Mapping[str, Any]) -> Tracking:
    """`tracking` with fields replaced; `propagation` may be a table of its own fields.

    Raises UsageError naming an unknown field and those that exist.
    """
    changes = dict(settings)
    inner = changes.pop("propagation", {})
    if not isinstance(inner, Mapping):
        raise UsageError(f"setting 'propagation' is a table, got {inner!r}; e.g. propagation.top_k = 5")
    _known(changes, tracking, "")
    _known(inner, tracking.propagation, "propagation.")
    return replace(tracking, **changes, propagation=replace(tracking.propagation, **inner))


def _known(settings: Mapping[str, Any], config: Tracking | Propagation, prefix: str) -> None:
    """Raise UsageError for a field that does not exist, or a value of another kind than its default's."""
    names = [f.name for f in fields(config)]
    for key, value in settings.items():
        if key not in names:
            raise UsageError(f"setting '{prefix}{key}' is unknown; there are {', '.join(names)}")
        kind = {"short_side": int, "normalisation_std": Sequence}.get(key, type(getattr(config, key)))
        fits = (
            type(value) is int if kind is int else isinstance(value, (int, float) if kind is float else kind)
        )
        empty = value is None and key in ("short_side", "normalisation_std")
        if not (fits or empty) or (isinstance(value, bool) and kind is not bool):
            raise UsageError(f"setting '{prefix}{key}' = {value!r}: expected {kind.__name__}")
        if key == "short_side" and value is not None and value < 1:
            raise UsageError(f"setting 'short_side' (--resolution) = {value}: expected at least 1 px")


@dataclass
class Timings:
    """Seconds spent per stage."""

    decode: float = 0.0
    encode: float = 0.0
    propagate: float = 0.0
    write: float = 0.0  # by threads of their own, beside the rest


def track(
    video: Frames,
    mask: LabelMap | Mask | str | Path | Mapping[int, LabelMap | Mask | str | Path],
    encoder: Encoder,
    how: Tracking | None = None,
    *,
    resize_mask: bool = False,
    timings: Timings | None = None,
    memory: int | None = None,
) -> Iterator[LabelMap]:
    """Label maps `[H, W]` of all frames, 0 = background, one frame in memory at a time.

    `mask`: the objects of frame 0, as a label map, a mask file, or `{frame: mask}` for objects that come
    later; an id that is given again is corrected from that frame on. A frame for which a mask is given
    keeps it as given. `memory`: bytes that the process may take in all; it sizes the tiles that similarities
    and upsampled labels are worked on in, and changes no label. Raises MaskError where a mask does not fit
    the video, UsageError for settings that the encoder cannot serve and for less memory than the smallest
    tiles need. Source: Araslanov et al. 2021, supplement C; see `ops/propagation.py`.
    """
    options: dict[str, Any] = {"resize_mask": resize_mask, "timings": timings, "memory": memory}
    for _, labels in track_frames(video, mask, encoder, how, **options):
        yield labels


def track_frames(
    video: Frames,
    mask: LabelMap | Mask | str | Path | Mapping[int, LabelMap | Mask | str | Path],
    encoder: Encoder,
    how: Tracking | None = None,
    *,
    resize_mask: bool = False,
    timings: Timings | None = None,
    memory: int | None = None,
) -> Iterator[tuple[Image, LabelMap]]:
    """As `track`, with each frame's image beside its labels."""
    clock = timings or Timings()
    given = given_masks(video, mask, resize=resize_mask)
    tracker = Tracker(given, encoder, how, timings=clock, memory=memory)
    for image in timed(iter(video), clock):
        yield image, tracker.step(image)


class Tracker:
    """`track` for frames that come one at a time, from a camera for example: the same labels, frame by frame.

    Arguments and errors are those of `track`. What is remembered of earlier frames has a fixed size.
    `kept`: what `keep` of a tracker with the same arguments gave, from which this one goes on: it is given
    the same frames from the first, those done already through `recall`, and its labels are the same.
    """

    def __init__(
        self,
        mask: LabelMap | Mask | str | Path | Mapping[int, LabelMap | Mask | str | Path],
        encoder: Encoder,
        how: Tracking | None = None,
        *,
        resize_mask: bool = False,
        timings: Timings | None = None,
        memory: int | None = None,
        kept: Mapping[str, Any] | None = None,
    ) -> None:
        resident()  # before a frame is encoded
        self.frames = 0  # taken so far
        self._kept = kept or {}
        self._tile = 0  # bytes, see `Needs.tile`; known when a frame is encoded
        self._recalled: dict[int, Float[Tensor, "c h w"]] = {}
        self.encoder, self.how = encoder, how or tracking_preset("dul")
        self._masks, self._resize, self._memory = mask, resize_mask, memory
        self._given: dict[int, Mask] = {}
        self._clock = timings or Timings()
        self._state = propagation.start()

    def step(self, image: Image, mask: LabelMap | Mask | str | Path | None = None) -> LabelMap:
        """The labels `[H, W]` of the next frame `[H, W, 3]`, uint8 RGB.

        `mask`: objects that enter with this frame, or that it corrects. Raises ShapeError for a frame of
        another size than the first one's, UsageError for one that is to be recalled.
        """
        if self.frames < (done := self._kept.get("frames", 0)):
            raise UsageError(f"frame {self.frames} was done before `keep`, as all before {done}; recall it")
        self._check(image)
        if mask is not None:
            one = _as_mask(mask, f"mask of frame {self.frames}")
            self._given[self.frames] = fit_mask(one, self._size, resize=self._resize)
        features = self._encoded(image)
        started = perf_counter()
        if self._recalled:
            self._state, self._recalled = with_features(self._kept["state"], self._recalled), {}
        given = self._given.pop(self.frames, None)
        labels, self._state = _carry(
            features, self._state, given, self.how.propagation, self._upsample, self._tile
        )
        self.frames += 1
        self._clock.propagate += perf_counter() - started
        return labels

    def keep(self) -> dict[str, Any]:
        """What another tracker needs to go on from here: numbers, lists and tensors, no features."""
        if self.frames <= self._kept.get("frames", -1):  # not yet beyond what this one goes on from
            return dict(self._kept)
        return {"frames": self.frames, "state": without_features(self._state)}

    def recall(self, image: Image) -> None:
        """Take a frame that was done before `keep`: it is encoded only if later frames look at it.

        Raises UsageError where it was not, ShapeError as `step`.
        """
        if self.frames >= self._kept.get("frames", 0):
            raise UsageError(f"frame {self.frames} was not done before `keep`; give it to `step`")
        self._check(image)
        state = self._kept["state"]
        time = self.frames - (self._kept["frames"] - state["time"])  # counted from the first annotated frame
        if time in times_needed(state):
            self._recalled[time] = self._encoded(image)
        self._given.pop(self.frames, None)
        self.frames += 1

    def _check(self, image: Image) -> None:
        if not self.frames:
            self._begin(image)
        if image.shape != (*self._size, 3):
            height, width = self._size
            raise ShapeError(f"frame {self.frames} is {list(image.shape)}, expected [{height}, {width}, 3]")

    def _encoded(self, image: Image) -> Float[Tensor, "c h w"]:
        started = perf_counter()
        features = encode(image, self.encoder, self._input, self.how.features)
        self._clock.encode += perf_counter() - started
        if not self._tile:
            frame = _Camera("stream", *self._size)
            self._tile = needs(features, frame, self.encoder, self.how).tile(self._memory)
        return features

    def _begin(self, image: Image) -> None:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ShapeError(f"frame 0 is {list(image.shape)} of {image.dtype}, expected [H, W, 3] of uint8")
        self._size = (image.shape[0], image.shape[1])
        self._given = given_masks(_Camera("stream", *self._size), self._masks, resize=self._resize)
        self._input = input_size(*self._size, self.encoder, self.how)
        self._upsample = Upsampling(self._size, self.how.propagation.mask_resize, self.encoder.patch)


@dataclass
class _Camera:
    """What is known of frames that come one at a time: no length."""

    name: str
    height: int
    width: int


def timed(frames: Iterator[Image], clock: Timings) -> Iterator[Image]:
    """The frames; `clock.decode` takes the seconds that each kept us waiting."""
    while True:
        started = perf_counter()
        image = next(frames, None)
        clock.decode += perf_counter() - started
        if image is None:
            return
        yield image


def given_masks(
    video: Sized, mask: LabelMap | Mask | str | Path | Mapping[int, Any], *, resize: bool = False
) -> dict[int, Mask]:
    """The masks by frame, read and fitted to the video's size. Raises MaskError."""
    by_frame = mask if isinstance(mask, Mapping) else {0: mask}
    if not by_frame:
        raise MaskError(f"{video.name}: no mask is given; name the objects with --mask first.png")
    length = len(video) if isinstance(video, HasLength) else None  # a stream has none
    beyond = [frame for frame in by_frame if frame < 0 or (length is not None and frame >= length)]
    if beyond:
        known = "count from 0" if length is None else f"are 0 to {length - 1}"
        raise MaskError(
            f"{video.name}: a mask is given for frame {beyond[0]}, but the video's frames {known}"
        )
    masks = {t: _as_mask(one, f"{video.name}, mask of frame {t}") for t, one in sorted(by_frame.items())}
    return {t: fit_mask(one, (video.height, video.width), resize=resize) for t, one in masks.items()}


def _as_mask(mask: object, name: str) -> Mask:
    if isinstance(mask, Mask):
        return mask
    if isinstance(mask, (str, Path)):
        return read_mask(mask)
    labels = np.asarray(mask)
    if labels.ndim != 2 or not labels.size:
        raise MaskError(f"{name}: an array of shape {labels.shape}; give a label map [H, W]")
    if labels.dtype == bool:
        labels = labels.astype(np.uint8)
    if not np.issubdtype(labels.dtype, np.integer):
        raise MaskError(f"{name}: an array of {labels.dtype}; give integers: 0 = background, others are ids")
    if labels.min() < 0 or labels.max() > 65535:
        raise MaskError(
            f"{name}: values run from {labels.min()} to {labels.max()}, ids are 0 to 65535; renumber them"
        )
    if not labels.any():
        raise MaskError(f"{name}: no object in this mask, every pixel is background; paint at least one id")
    return Mask(labels=labels, ids=ids_in(labels), path=name)


def input_size(height: int, width: int, encoder: Encoder, how: Tracking) -> tuple[int, int]:
    """Size of the encoder's input, px: the preset's rule, then whole patches where the encoder needs them."""
    if how.short_side is not None:
        scale = how.short_side / min(height, width)
        height, width = (
            (how.short_side, int(width * scale)) if height <= width else (int(height * scale), how.short_side)
        )
    if how.long_side_multiple > 1:
        multiple = how.long_side_multiple
        if height <= width:
            width = max(multiple, width // multiple * multiple)
        else:
            height = max(multiple, height // multiple * multiple)
    step = encoder.multiple
    return max(step, round(height / step) * step), max(step, round(width / step) * step)


@dataclass(frozen=True)
class Needs:
    """Bytes that a process takes while it tracks a video, about."""

    fixed: int  # whatever the tiles: the program, weights, remembered features, frames in hand
    smallest: int  # the smallest tile of similarities or of upsampled labels
    largest: int  # a tile that holds all similarities of a frame, at most SCORE_BYTES

    @property
    def least(self) -> int:
        """With the smallest tiles; selecting the best takes as much again as the similarities."""
        return self.fixed + 2 * self.smallest

    def tile(self, memory: int | None) -> int:
        """Bytes of a tile where the process may take `memory` in all. Raises UsageError naming the least."""
        if memory is None:
            return SCORE_BYTES
        if memory < self.least:
            raise UsageError(
                f"memory of {memory} bytes is too little here; the least that works is {self.least}"
            )
        return min(SCORE_BYTES, (memory - self.fixed) // 2)

    def peak(self, memory: int | None) -> int:
        """Bytes at the widest moment."""
        return self.fixed + 2 * min(self.largest, self.tile(memory))


def needs(features: Float[Tensor, "c h w"], video: Sized, encoder: Encoder, how: Tracking) -> Needs:
    """What tracking a video takes whose frames give such features."""
    height, width = input_size(video.height, video.width, encoder, how)
    pixels = max(height * width, video.height * video.width)
    remembered = 2 * 4 * (how.propagation.context + 2) * features.numel()
    inside = getattr(encoder, "bytes_per_image", lambda height, width: 0)(height, width)
    tiling = tiling_for(features.shape[1], features.shape[2], features.device)
    row = row_bytes(tiling, how.propagation.window, how.propagation.context + 1)
    smallest = max(row, 4 * FEWEST * pixels)
    return Needs(
        resident() + inside + remembered + 4 * FRAMES_IN_HAND * video.height * video.width,
        smallest,
        min(SCORE_BYTES, max(row * tiling.rows, smallest)),
    )


@cache
def resident() -> int:
    """Bytes of this process before it tracks anything: what is asked later would count earlier videos."""
    return peak_memory(torch.device("cpu"))


def peak_memory(device: torch.device) -> int:
    """Most bytes in use so far: of the GPU, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def cost(video: Sized, encoder: Encoder, how: Tracking) -> tuple[float, Needs]:
    """Seconds per frame, and memory, about: one blank frame is encoded, products are counted."""
    blank = np.zeros((video.height, video.width, 3), np.uint8)
    size = input_size(video.height, video.width, encoder, how)
    resident()  # before the blank frame is encoded
    started = perf_counter()
    features = encode(blank, encoder, size, how.features)
    encoding = perf_counter() - started
    channels, height, width = features.shape
    window = min((2 * how.propagation.radius) ** 2, height * width)
    products = 2 * channels * height * width * (height * width + how.propagation.context * window)
    square = torch.ones(768, 768, device=features.device)
    started = perf_counter()
    float((square @ square @ square @ square)[0, 0])
    rate = 3 * 2 * 768**3 / (perf_counter() - started)
    return encoding + products / rate, needs(features, video, encoder, how)


@torch.inference_mode()
def encode(
    image: Image, encoder: Encoder, size: tuple[int, int], want: str = "tokens"
) -> Float[Tensor, "c h w"]:
    """Unit-length features of one frame at the encoder's input `size`."""
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    if pixels.shape[-2:] != size:
        pixels = torch.nn.functional.interpolate(
            pixels.float() / 255, size=size, mode="bilinear", align_corners=False, antialias=False
        )
    return torch.nn.functional.normalize(encoder(pixels, want=(want,))[want][0].float(), dim=0)


@dataclass(frozen=True)
class Upsampling:
    """From soft labels on the feature grid to a label map at the video's size."""

    size: tuple[int, int]  # (height, width), px
    rule: Rule
    patch: int  # px per token, which the rule "nearest" asks for

    def __call__(self, soft: Float[Tensor, "k h w"], ids: Sequence[int], memory: int) -> LabelMap:
        """The largest channel's id per pixel; ties go to the first. `memory`: as in `soft_to_labels`."""
        dtype = np.uint8 if max(ids, default=0) < 255 else np.uint16
        labels, _ = propagation.soft_to_labels(
            soft, ids, self.size, self.rule, patch=self.patch, memory=memory
        )
        return labels.cpu().numpy().astype(dtype)


@torch.inference_mode()
def _carry(
    features: Float[Tensor, "c h w"],
    state: propagation.State,
    given: Mask | None,
    how: Propagation,
    upsample: Upsampling,
    tile: int,
) -> tuple[LabelMap, propagation.State]:
    """The frame's label map, and the state that remembers the frame."""
    annotation = None if given is None else _soft_masks(given, state, features, how)
    state, soft = propagation.step(state, features, annotation, how, memory=tile)
    if given is None:
        return upsample(soft, state.ids, tile), state
    # the other objects as propagated, the given ones exactly as given
    free = [i for i, id_ in enumerate(state.ids) if id_ not in given.ids]
    labels = upsample(soft[free], [state.ids[i] for i in free], tile)
    return np.where(given.labels > 0, given.labels, labels), state


def _soft_masks(
    given: Mask, state: propagation.State, features: Float[Tensor, "c h w"], how: Propagation
) -> dict[int, Float[Tensor, "h w"]]:
    ids = given.ids if state.ids else (0, *given.ids)  # the background is an object of the first mask
    labels = torch.from_numpy(given.labels.astype(np.int64)).to(features.device)
    grid = (features.shape[-2], features.shape[-1])
    return dict(zip(ids, propagation.labels_to_soft(labels, ids, grid, how.mask_resize), strict=True))

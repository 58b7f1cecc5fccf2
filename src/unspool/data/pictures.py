"""Labelled pictures that encoders are judged on, and the views of them that an encoder sees.

A picture is one image and its label map: 0 is background, 255 void. Pictures come in two splits: heads and
memories learn from `train`, scores are of `val`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from unspool.data.augment import Augmentation, draw, place, place_labels, recolour
from unspool.data.scenes import scenes
from unspool.data.vos import davis, label_map
from unspool.errors import DataError, UsageError
from unspool.rendered import RenderedClip
from unspool.rendered.creatures import SEMANTIC
from unspool.video.source import place as place_of
from unspool.video.stills import read

FIRST_SEED = {"val": 750_000, "train": 800_000}  # of rendered pictures; training takes those from 1,000,000
FRAMES = 12  # of the clips that rendered pictures are taken from; the middle one is the picture


class Picture(NamedTuple):
    """One image and its truth."""

    image: UInt8[np.ndarray, "h w 3"]
    labels: UInt8[np.ndarray, "h w"]


class Pictures(Protocol):
    """A split of a data set."""

    kind: str  # names the protocols: `linear-KIND`
    classes: int  # ids 0 to classes-1
    digest: str  # changes with what is in it

    def __len__(self) -> int:
        """How many."""

    def __getitem__(self, index: int) -> Picture:
        """One of them."""


class RenderedPictures:
    """The middle frame, or every frame, of `count` rendered scenes, labelled by the kinds of creatures."""

    classes = max(SEMANTIC.values()) + 1

    def __init__(
        self, count: int, split: str, *, every: bool = False, size: tuple[int, int] = (240, 320)
    ) -> None:
        self.kind = "rendered-clips" if every else "rendered"
        self._frames = range(FRAMES) if every else range(FRAMES // 2, FRAMES // 2 + 1)
        drawn = [f.scene for f in scenes(count, size=size, frames=FRAMES) if f.scene is not None]
        first = FIRST_SEED[split]
        self._scenes = [replace(scene, seed=first + number) for number, scene in enumerate(drawn)]
        self.digest = hashlib.sha256(repr(self._scenes).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._scenes) * len(self._frames)

    def __getitem__(self, index: int) -> Picture:
        number, place = divmod(index, len(self._frames))
        clip, frame = RenderedClip(self._scenes[number]), self._frames[place]
        return Picture(clip.image(frame), clip.stage.semantic[clip.labels(frame)])


class DavisPictures:
    """Every frame of a list of DAVIS-2017; ids are objects of their own video, no classes."""

    kind, classes = "davis17", 0

    def __init__(self, root: Path, split: str) -> None:
        self._frames = [
            (Path(sequence.frames) / f"{name}.jpg", truth)
            for sequence in davis(root, year=2017, split=split)
            for name, truth in zip(sequence.frame_names, sequence.truth, strict=True)
        ]
        stamps = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for each in self._frames for p in each]
        self.digest = hashlib.sha256(repr(stamps).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Picture:
        image, truth = self._frames[index]
        return Picture(read(place_of(str(image))), label_map(truth, merge=False))


def pictures(data: str) -> dict[str, Pictures]:
    """The splits of `KIND:WHERE`.

    `rendered:N`: N rendered pictures to learn from and N to be scored; `rendered-clips:N`: all frames of N
    clips each; `davis17:ROOT`: all frames of its lists. Raises UsageError for another kind, DataError for a
    folder that is no DAVIS.
    """
    kind, _, where = data.partition(":")
    if kind == "davis17" and where:
        return {split: DavisPictures(Path(where), split) for split in FIRST_SEED}
    if kind not in ("rendered", "rendered-clips") or not where.isdecimal() or not int(where):
        raise UsageError(f"--data {data}: expected KIND:WHERE, e.g. rendered:50 for 50 rendered pictures")
    every = kind == "rendered-clips"
    return {split: RenderedPictures(int(where), split, every=every) for split in FIRST_SEED}


# ------------------------------------------------------------------------------------------------ views


@dataclass(frozen=True)
class View:
    """How a picture is shown: resized to a square, or a random cut of it."""

    side: int  # px of the square that the encoder sees
    label_side: int  # px of the square of labels that comes with it, nearest
    scale: tuple[float, float] | None = None  # share of the area of a random cut; None: all of the picture
    flip: float = 0.0  # probability
    jitter: float = 0.0  # of brightness, contrast, saturation and hue (0.1 each), each on its own
    seed: int = 0  # of the draws, with the number of the pass and of the picture


def shown(
    picture: Picture, view: View, number: int, turn: int = 0
) -> tuple[Float[Tensor, "3 s s"], UInt8[Tensor, "l l"]]:
    """Picture `number` as the encoder sees it in pass `turn`, 0..1, and its labels.

    Equal seeds, numbers and passes give equal views. Raises DataError for labels of another size.
    """
    if picture.labels.shape != picture.image.shape[:2]:
        raise DataError(
            f"picture {number}: labels {picture.labels.shape} do not fit an image {picture.image.shape}"
        )
    how = _augmentation(view)
    rng = np.random.default_rng((view.seed, turn, number))
    drawn = draw(how, [picture.labels.shape], [rng])
    acts = torch.from_numpy(rng.random(4) < view.jitter)  # each on its own, where the draw knows all or none
    drawn = replace(drawn, order=torch.where(acts[drawn.order], drawn.order, -1))
    frames = torch.from_numpy(np.ascontiguousarray(picture.image)).permute(2, 0, 1)[None]
    image = recolour(place([frames], drawn).frames, drawn)[0, 0]
    labels = torch.from_numpy(np.ascontiguousarray(picture.labels))[None]
    placed = place_labels([labels], drawn)[0, 0]
    if view.label_side != view.side:
        placed = _nearest(placed, view.label_side)
    return image, placed


def _augmentation(view: View) -> Augmentation:
    size = (view.side, view.side)
    drawn = {"brightness": 0.1, "contrast": 0.1, "saturation": 0.1, "hue": 0.1, "jitter": 1.0}
    if view.scale is None:
        return Augmentation(size, None, "whole", flip=view.flip, **drawn)  # type: ignore[arg-type]
    return Augmentation(size, None, "box", view.scale, flip=view.flip, **drawn)  # type: ignore[arg-type]


def _nearest(labels: UInt8[Tensor, "s s"], side: int) -> UInt8[Tensor, "l l"]:
    """As torch's `nearest`: the pixel at floor(i * old / new)."""
    at = torch.arange(side) * len(labels) // side
    return labels[at][:, at]


def all_shown(
    source: Pictures, view: View, turn: int = 0, start: int = 0
) -> Iterator[tuple[Float[Tensor, "3 s s"], UInt8[Tensor, "l l"]]]:
    """Every picture of one pass, from number `start` on."""
    for number in range(start, len(source)):
        yield shown(source[number], view, number, turn)

"""Labelled pictures that encoders are judged on, and the views of them that an encoder sees.

A picture is one image and its label map: 0 is background, 255 void. Pictures come in two splits: heads and
memories learn from `train`, scores are of `val`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from unspool.data.augment import Augmentation, draw, place, place_labels, recolour
from unspool.data.labelled import (
    RENDERED_CLASSES,
    LabelledSet,
    RenderedPart,
    Split,
    labelled_davis,
    labelled_visor,
    labelled_voc,
    labelled_ytvos,
)
from unspool.data.scenes import scenes
from unspool.errors import DataError, UsageError

FIRST_SEED = {"val": 750_000, "train": 800_000}  # of rendered pictures; training takes those from 1,000,000
FRAMES = 12  # of the clips that rendered pictures are taken from; the middle one is the picture


class Picture(NamedTuple):
    """One image and its truth."""

    image: UInt8[np.ndarray, "h w 3"]
    labels: UInt8[np.ndarray, "h w"]


class Pictures(Protocol):
    """A split of a data set."""

    kind: str  # names the protocols: `linear-KIND`
    split: str  # its name in the data set, e.g. trainaug
    classes: int  # ids 0 to classes-1; 0: ids are objects of their video
    digest: str  # changes with what is in it

    def __len__(self) -> int:
        """How many."""

    def __getitem__(self, index: int) -> Picture:
        """One of them."""


class FramesOf:
    """Every frame with truth of a labelled set, one picture each."""

    def __init__(self, kind: str, content: LabelledSet) -> None:
        self.kind, self.split = kind, content.split
        self._frames = [part for video in content.videos for part in video.parts(1)]
        self.classes = max(content.classes, default=-1) + 1
        stamps = [part.files or repr(part) for part in self._frames]
        self.digest = hashlib.sha256(repr(stamps).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Picture:
        images, truth = self._frames[index].read()
        return Picture(images[0], truth[0])


READERS: dict[str, Callable[..., LabelledSet]] = {
    "voc": labelled_voc,
    "ytvos": labelled_ytvos,
    "davis17": labelled_davis,
    "visor": labelled_visor,
}
SPLITS: tuple[Split, Split] = ("train", "val")


def pictures(data: str) -> dict[str, Pictures]:
    """The splits of `KIND:WHERE`.

    `rendered:N`: N rendered pictures to learn from and N to be scored; `rendered-clips:N`: all frames of N
    clips each; KIND:ROOT, KIND one of READERS: all frames with truth. Raises UsageError for another kind or
    a folder that is not there, DataError for one that is no such data set.
    """
    kind, _, where = data.partition(":")
    if kind in READERS and where:
        if not Path(where).is_dir():
            raise UsageError(f"--data {data}: no such folder {where}")
        return {split: FramesOf(kind, READERS[kind](Path(where), split=split)) for split in SPLITS}
    if kind not in ("rendered", "rendered-clips") or not where.isdecimal() or not int(where):
        raise UsageError(
            f"--data {data}: expected KIND:WHERE, e.g. rendered:50 for 50 rendered pictures, or KIND:FOLDER, "
            f"KIND one of {', '.join(READERS)}"
        )
    return {split: FramesOf(kind, _rendered(int(where), split, kind)) for split in SPLITS}


def _rendered(count: int, split: Split, kind: str) -> LabelledSet:
    """The middle frame, or every frame, of `count` rendered scenes, labelled by the kinds of creatures."""
    start, length = (0, FRAMES) if kind == "rendered-clips" else (FRAMES // 2, 1)
    drawn = [f.scene for f in scenes(count, size=(240, 320), frames=FRAMES) if f.scene is not None]
    seeded = [replace(scene, seed=FIRST_SEED[split] + number) for number, scene in enumerate(drawn)]
    return LabelledSet(tuple(RenderedPart(scene, start, length) for scene in seeded), RENDERED_CLASSES, split)


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

"""SegTrack-v2: frames, and masks of each object in a folder of its own, or of all in one.

ROOT/JPEGImages/SEQ/*.png|bmp|jpg   ROOT/GroundTruth/SEQ/*   or   ROOT/GroundTruth/SEQ/1..n/*
Names are not padded and differ between images and masks, so those alone are paired by their natural order.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from PIL import Image

from unspool.data.sequences import FileSequence, folders_in, pictures_of, warn_of_missing
from unspool.data.vos import LabelMap
from unspool.errors import DataError

PUBLISHED = (
    "birdfall", "bird_of_paradise", "bmx", "cheetah", "drift", "frog", "girl", "hummingbird", "monkey",
    "monkeydog", "parachute", "penguin", "soldier", "worm",
)  # fmt: skip
LAYOUT = "give the folder that holds JPEGImages/ and GroundTruth/ of SegTrack-v2"


def segtrack_sequences(root: Path) -> list[FileSequence]:
    """All sequences; the truth is the union of their objects (1). Raises DataError naming what is missing."""
    for folder in (root / "JPEGImages", root / "GroundTruth"):
        if not folder.is_dir():
            raise DataError(f"{folder}: not found; {LAYOUT}")
    names = [folder.name for folder in folders_in(root / "JPEGImages", LAYOUT)]
    warn_of_missing(root, names, PUBLISHED)
    return [_sequence(root, name) for name in names]


def _sequence(root: Path, name: str) -> FileSequence:
    images, truth = pictures_of(root / "JPEGImages" / name), root / "GroundTruth" / name
    if not truth.is_dir():
        raise DataError(f"{truth}: not found, but there are images of '{name}'; unpack the truth too")
    objects = [p for p in sorted(truth.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    masks = [pictures_of(folder) for folder in objects or [truth]]
    for folder, found in zip(objects or [truth], masks, strict=True):
        if len(found) != len(images):
            raise DataError(
                f"{folder}: {len(found)} masks for {len(images)} images of '{name}'; they are paired by "
                "order, so none may be missing"
            )
    union = Union(tuple(zip(*masks, strict=True)))
    return FileSequence(name, images, Fraction(24), union, tuple(p for found in masks for p in found))


@dataclass(frozen=True)
class Union:
    """Frame number to foreground, from the masks of all objects."""

    paths: tuple[tuple[Path, ...], ...]  # by frame, then by object

    def __call__(self, index: int) -> LabelMap:
        """1 where any object is. Raises DataError where sizes differ."""
        first, *others = [foreground(path) for path in self.paths[index]]
        for path, mask in zip(self.paths[index][1:], others, strict=True):
            if mask.shape != first.shape:
                raise DataError(f"{path}: is of another size than {self.paths[index][0]}")
            first = first | mask
        return first.astype(np.uint8)


def foreground(path: Path) -> Bool[np.ndarray, "h w"]:
    """Where any channel is not 0. Raises DataError."""
    return np.asarray(pixels(path).any(axis=2))


def pixels(path: Path) -> np.ndarray:
    """Channels as stored `[H, W, C]`: grey, or colours. Raises DataError."""
    try:
        with Image.open(path) as image:
            values = np.asarray(image if image.mode in ("L", "1", "P", "RGB") else image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a mask ({error}); unpack the archive again") from error
    return values.astype(np.uint8).reshape(*values.shape[:2], -1)

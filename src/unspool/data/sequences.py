"""Videos whose truth is known, in every frame or in some: what the readers of data sets for scoring give.

Images and masks are listed when a data set is opened and read one frame at a time. Truth that is sparse stays
so: a frame without a mask has None. Nothing is paired by order where names say which belong together.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from unspool.data.vos import LabelMap, davis, label_map
from unspool.errors import DataError, UnspoolWarning, UsageError
from unspool.rendered import RenderedClip, Scene
from unspool.video.source import IMAGES, natural_key, place
from unspool.video.stills import read

Picture = UInt8[np.ndarray, "h w 3"]
PICTURES = IMAGES | {".bmp", ".pgm"}
RENDERED_SIZE, RENDERED_FRAMES = (256, 384), 24  # h, w px


class Labelled(Protocol):
    """A video and its truth; can be sent to another process."""

    @property
    def name(self) -> str:
        """Unique in the data set."""

    @property
    def files(self) -> tuple[Path, ...]:
        """What a rerun must find unchanged."""

    @property
    def frame_names(self) -> tuple[str, ...]:
        """Stems of the frames, which name the masks of a prediction too."""

    def open(self) -> Any:
        """The pictures, with the face of `unspool.Video`; use as a context manager."""

    def truth(self) -> Iterator[LabelMap | None]:
        """One label map `[H, W]` per frame, in step with the pictures; None where there is none."""


class Pictures:
    """Frames by their number, with the face of `unspool.Video`."""

    pixel_aspect = Fraction(1)

    def __init__(
        self, name: str, size: tuple[int, int], count: int, fps: Fraction, read: Callable[[int], Picture]
    ) -> None:
        """`size`: h, w, px, of every frame; another one is an error when it is read."""
        self.name, self.fps, self._count, self._read = name, fps, count, read
        self.height, self.width = size
        self.times: Sequence[Fraction] = [index / fps for index in range(count)]  # s

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Picture]:
        return (self[index] for index in range(self._count))

    def __getitem__(self, index: int) -> Picture:
        """The index-th frame. Raises VideoError, DataError."""
        picture = self._read(index)
        if picture.shape[:2] != (self.height, self.width):
            raise DataError(
                f"{self.name}: frame {index} is {picture.shape[1]}x{picture.shape[0]}, the first is "
                f"{self.width}x{self.height}; a video has one size"
            )
        return picture

    def close(self) -> None:
        """Nothing is held open."""

    def __enter__(self) -> Pictures:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class FileSequence:
    """Images in files, and a mask that is read by frame number."""

    name: str
    images: tuple[Path, ...]  # in order
    fps: Fraction
    mask: Callable[[int], LabelMap | None]
    masks: tuple[Path, ...]  # files that `mask` reads

    @property
    def files(self) -> tuple[Path, ...]:
        """Images and masks."""
        return self.images + self.masks

    @property
    def frame_names(self) -> tuple[str, ...]:
        """Stems of the images."""
        return tuple(path.stem for path in self.images)

    def open(self) -> Pictures:
        """The images; of the size of the first."""
        height, width = read(place(self.images[0])).shape[:2]
        return Pictures(self.name, (height, width), len(self.images), self.fps, self._image)

    def _image(self, index: int) -> Picture:
        return read(place(self.images[index]))

    def truth(self) -> Iterator[LabelMap | None]:
        """As `Labelled`. Raises DataError where a mask is not of its image's size."""
        for index, path in enumerate(self.images):
            labels = self.mask(index)
            if labels is not None:
                self._refuse_other_size(index, path, labels)
            yield labels

    def _refuse_other_size(self, index: int, path: Path, labels: LabelMap) -> None:
        with Image.open(path) as image:
            width, height = image.size
        if labels.shape != (height, width):
            raise DataError(
                f"{self.name}: the mask of frame {index} is {labels.shape[1]}x{labels.shape[0]}, but "
                f"{path} is {width}x{height}; they are not of one data set"
            )


@dataclass(frozen=True)
class MasksByFrame:
    """Frame number to label map, from the file that belongs to it."""

    paths: tuple[Path | None, ...]
    read: Callable[[Path], LabelMap]

    def __call__(self, index: int) -> LabelMap | None:
        """The label map of a frame; None where there is no file."""
        path = self.paths[index]
        return None if path is None else self.read(path)


def pictures_of(folder: Path) -> tuple[Path, ...]:
    """The images of a folder, in natural order: 2 before 10. Raises DataError where there are none."""
    if not folder.is_dir():
        raise DataError(f"{folder}: not found; is the archive unpacked completely?")
    found = [p for p in folder.iterdir() if p.suffix.lower() in PICTURES and not p.name.startswith(".")]
    if not found:
        raise DataError(f"{folder}: holds no image ({', '.join(sorted(PICTURES))}); unpack the archive again")
    return tuple(sorted(found, key=lambda path: natural_key(path.name)))


def folders_in(root: Path, wanted: str) -> list[Path]:
    """Folders in natural order. Raises DataError with `wanted` where there are none."""
    found = [p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")] if root.is_dir() else []
    if not found:
        raise DataError(f"{root}: holds no sequences; {wanted}")
    return sorted(found, key=lambda path: natural_key(path.name))


def warn_of_missing(root: Path, found: Collection[str], published: Collection[str]) -> None:
    """An UnspoolWarning where some of the published sequences are there, and others are not."""
    missing = sorted(set(published) - set(found))
    if missing and len(missing) < len(published):
        warnings.warn(
            f"{root}: {len(missing)} of the {len(published)} published sequences are missing "
            f"({', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}); scores are over fewer",
            UnspoolWarning,
            stacklevel=3,
        )


# --------------------------------------------------------------------------------- DAVIS, rendered clips


def davis_sequences(root: Path, year: int) -> list[FileSequence]:
    """The val sequences of a DAVIS tree: 2017 with the unsupervised truth (255 = void), 2016 as one object.

    Raises DataError naming what was looked for.
    """
    annotations = "Annotations_unsupervised" if year == 2017 else "Annotations"
    found = []
    for sequence in davis(root, year=year, annotations=annotations):
        images = {path.stem: path for path in pictures_of(sequence.frames)}
        paired = tuple(images[name] for name in sequence.frame_names)
        reader = MasksByFrame(sequence.truth, partial(label_map, merge=sequence.merge))
        found.append(FileSequence(sequence.name, paired, Fraction(24), reader, sequence.truth))
    return found


@dataclass(frozen=True)
class RenderedSequence:
    """A rendered clip, drawn when asked for."""

    scene: Scene
    files: tuple[Path, ...] = ()  # none: the seed decides

    @property
    def name(self) -> str:
        """With the seed."""
        return f"rendered-{self.scene.seed}"

    @property
    def frame_names(self) -> tuple[str, ...]:
        """Numbers."""
        return tuple(f"{index:05d}" for index in range(self.scene.frames))

    def open(self) -> Any:
        """The pictures."""
        return RenderedClip(self.scene).video

    def truth(self) -> Iterator[LabelMap | None]:
        """Exact."""
        clip = RenderedClip(self.scene)
        return (clip.labels(index) for index in range(len(clip)))


def rendered_sequences(count: str, seed: int = 0) -> list[RenderedSequence]:
    """So many clips of seeds from `seed` on. Raises UsageError unless `count` is a number from 1 on."""
    if not count.isdigit() or int(count) < 1:
        raise UsageError(f"--data rendered:{count}: expected how many clips, e.g. rendered:8")
    height, width = RENDERED_SIZE
    return [
        RenderedSequence(Scene(seed=seed + number, height=height, width=width, frames=RENDERED_FRAMES))
        for number in range(int(count))
    ]

"""MOVi-E: rendered clips of 24 frames, as TFRecords of TensorFlow Datasets or as npz, one per clip.

TFRecords: `movi_e-validation.tfrecord-00000-of-00004`, features `video` and `segmentations`, a PNG per frame.
npz: arrays `video` uint8 `[T, H, W, 3]` and `segmentations` uint8 `[T, H, W]` or `[T, H, W, 1]`.
Ids are of the clip: 0 background, 1.. objects. Source: google-research/kubric: challenges/movi/movi_e.py.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unspool.data.sequences import Picture, Pictures
from unspool.data.tfrecord import Record, records
from unspool.data.vos import LabelMap
from unspool.errors import DataError
from unspool.video.source import natural_key

FPS = Fraction(12)
FIELDS = ("video", "segmentations")


@dataclass(frozen=True)
class MoviClip:
    """One clip; read as a whole when opened, 24 frames are small."""

    name: str
    held: Record | Path  # of a TFRecord, or an npz file

    @property
    def files(self) -> tuple[Path, ...]:
        """The one file."""
        return (self.held if isinstance(self.held, Path) else self.held.path,)

    @property
    def frame_names(self) -> tuple[str, ...]:
        """Numbers."""
        return tuple(f"{index:05d}" for index in range(len(self._field("segmentations"))))

    def open(self) -> Pictures:
        """The pictures. Raises DataError where the file does not hold them."""
        frames = self._field("video")
        first = self._picture(frames[0])
        size = (first.shape[0], first.shape[1])
        return Pictures(self.name, size, len(frames), FPS, lambda index: self._picture(frames[index]))

    def truth(self) -> Iterator[LabelMap]:
        """Ids of every frame. Raises DataError where there are not as many as pictures."""
        frames, pictures = self._field("segmentations"), self._field("video")
        if len(frames) != len(pictures):
            raise DataError(
                f"{self.files[0]}: {self.name} has {len(pictures)} frames and {len(frames)} masks"
            )
        for frame in frames:
            ids = frame if isinstance(frame, np.ndarray) else self._decoded(frame)
            yield np.asarray(ids.reshape(ids.shape[:2]), np.uint8)

    def _picture(self, frame: Any) -> Picture:
        picture = frame if isinstance(frame, np.ndarray) else self._decoded(frame)
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            raise DataError(
                f"{self.files[0]}: frames of {self.name} are {picture.dtype} {picture.shape}, not uint8 RGB"
            )
        return picture

    def _decoded(self, content: bytes) -> np.ndarray:
        try:
            with Image.open(io.BytesIO(content)) as image:
                return np.asarray(image)
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"{self.files[0]}: an image of {self.name} cannot be read ({error})") from error

    def _field(self, field: str) -> Any:
        """PNGs as bytes, or one array."""
        if isinstance(self.held, Record):
            found: Any = self.held.example()
        else:
            found = self._arrays(self.held, field)
        if field not in found or not len(found[field]):
            raise DataError(
                f"{self.files[0]}: {self.name} has no '{field}'; it has {', '.join(sorted(found))}"
            )
        return found[field]

    def _arrays(self, path: Path, field: str) -> dict[str, np.ndarray]:
        try:
            with np.load(path, allow_pickle=False) as held:
                return {name: held[name] if name == field else np.zeros(0) for name in held.files}
        except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
            raise DataError(f"{path}: is not a whole npz file ({error}); write it again") from error


def movi_clips(root: Path) -> list[MoviClip]:
    """The validation clips under `root`: TFRecords of that split, or npz files where there are none.

    Raises DataError naming what was looked for, and for shards of a set that are not there.
    """
    shards = sorted(root.rglob("*.tfrecord*"))
    scored = [path for path in shards if "validation" in path.name]
    if scored:
        _refuse_missing_shards(scored)
        found = [record for path in scored for record in records(path)]
        return [MoviClip(f"validation-{number:04d}", record) for number, record in enumerate(found)]
    arrays = sorted(root.rglob("*.npz"), key=lambda path: natural_key(path.relative_to(root).as_posix()))
    if arrays:
        names = ["-".join(path.relative_to(root).with_suffix("").parts) for path in arrays]
        return [MoviClip(name, path) for name, path in zip(names, arrays, strict=True)]
    other = f"; there are {len(shards)} TFRecords of other splits" if shards else ""
    raise DataError(
        f"{root}: holds neither *validation*.tfrecord* nor *.npz{other}. Give the folder of MOVi-E"
    )


def _refuse_missing_shards(paths: list[Path]) -> None:
    """Names end on `-00001-of-00004`."""
    parts = paths[0].name.rsplit("-of-", 1)
    if len(parts) == 2 and parts[1].isdigit() and len(paths) != int(parts[1]):
        raise DataError(
            f"{paths[0].parent}: {len(paths)} of {int(parts[1])} validation shards are there; "
            "download the others too"
        )

"""YouTube-VIS: images in folders, and one COCO-like json of run lengths for a whole split.

ROOT/train/JPEGImages/VIDEO/00000.jpg   ROOT/train.json, or ROOT/train/train.json
Only `train` has public truth. Source: youtubevos/cocoapi: PythonAPI/pycocotools/ytvos.py.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from unspool.data.sequences import FileSequence
from unspool.data.vos import LabelMap
from unspool.errors import DataError, MaskError
from unspool.masks import VOID, decode_rle

SOLV = slice(600, 900)  # of the videos of train.json, in file order: what SOLV scores (datasets/ytvis19.py)
FPS = Fraction(6)

Json = dict[str, Any]


def ytvis_sequences(root: Path) -> list[FileSequence]:
    """Videos 600 to 899 of `train.json`, as SOLV scores them; all where there are no more than 600.

    Objects are numbered from 1 in the order of the file; pixels of two objects are void (255), as videosaur
    leaves them out. Raises DataError naming the file, the video and what is missing.
    """
    path, content = _annotations(root)
    videos, annotations = (_table(content, key, path) for key in ("videos", "annotations"))
    of_video: dict[Any, list[Json]] = defaultdict(list)
    for annotation in annotations:
        of_video[annotation["video_id"]].append(annotation)
    return [_sequence(root, path, video, of_video[video["id"]]) for video in _scored(videos)]


def scored_folders(root: Path) -> frozenset[str]:
    """Names of the folders of frames that `ytvis_sequences` scores. Raises DataError as it does."""
    path, content = _annotations(root)
    return frozenset(
        Path(video["file_names"][0]).parent.name for video in _scored(_table(content, "videos", path))
    )


def _scored(videos: list[Json]) -> list[Json]:
    return videos[SOLV] if len(videos) > SOLV.start else videos


def _annotations(root: Path) -> tuple[Path, Json]:
    candidates = [root / "train.json", root / "train" / "train.json"]
    for path in candidates:
        if path.is_file():
            try:
                return path, json.loads(path.read_text("utf-8"))
            except ValueError as error:
                raise DataError(
                    f"{path}: is not whole json ({error}); unpack or download it again"
                ) from error
    raise DataError(
        f"{root}: no YouTube-VIS tree; found neither {' nor '.join(map(str, candidates))}. Give the folder "
        "that holds train/; valid and test have no public truth"
    )


def _table(content: Json, key: str, path: Path) -> list[Json]:
    rows = content.get(key)
    if not rows:
        reason = (
            "its truth is not public, only that of train is" if key == "annotations" else "is it cut off?"
        )
        raise DataError(f"{path}: holds no {key}; {reason}")
    return list(rows)


def _sequence(root: Path, path: Path, video: Json, annotations: list[Json]) -> FileSequence:
    names, size = list(video["file_names"]), (int(video["height"]), int(video["width"]))
    folder = Path(names[0]).parent.name
    images = tuple(root / "train" / "JPEGImages" / name for name in names)
    missing = [image for image in images if not image.is_file()]
    if missing:
        raise DataError(f"{missing[0]}: not found, but {path} lists it; is the archive unpacked completely?")
    rows = []
    for annotation in annotations:
        segmentations = annotation["segmentations"]
        if len(segmentations) != len(names):
            raise DataError(
                f"{path}: annotation {annotation['id']} has {len(segmentations)} masks, but its video "
                f"'{folder}' has {len(names)} frames"
            )
        rows.append(tuple(segmentations))
    if len(rows) >= VOID:
        raise DataError(f"{path}: video '{folder}' has {len(rows)} objects; a label map holds 254")
    return FileSequence(folder, images, FPS, RunLengths(folder, size, tuple(rows)), (path,))


@dataclass(frozen=True)
class RunLengths:
    """Frame number to label map, from the run lengths of every object."""

    name: str
    size: tuple[int, int]  # h, w, px
    objects: tuple[tuple[Json | None, ...], ...]  # by object and frame; None where it is absent

    def __call__(self, index: int) -> LabelMap:
        """Ids from 1; 255 where objects overlap."""
        labels = np.zeros(self.size, np.uint8)
        for number, segmentations in enumerate(self.objects, 1):
            segmentation = segmentations[index]
            if segmentation is not None:
                mask = self._mask(segmentation, index)
                labels[mask] = np.where(labels[mask] == 0, number, VOID)
        return labels

    def _mask(self, segmentation: Json, index: int) -> Bool[np.ndarray, "h w"]:
        where = f"{self.name}: frame {index}"
        if tuple(segmentation["size"]) != self.size:
            raise DataError(
                f"{where}: run lengths are of size {segmentation['size']}, the video is {self.size}"
            )
        try:
            counts = segmentation["counts"]
            if isinstance(counts, list):
                return plain_run_lengths(counts, self.size)
            return decode_rle({"size": list(self.size), "counts": counts})
        except MaskError as error:
            raise DataError(f"{where}: {error}") from error


def plain_run_lengths(counts: list[int], size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """A mask from uncompressed run lengths: background first, column by column. Raises MaskError."""
    if sum(counts) != size[0] * size[1] or min(counts) < 0:
        raise MaskError(f"run lengths sum to {sum(counts)}, a mask of size {size} has {size[0] * size[1]} px")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(size[1], size[0]).T

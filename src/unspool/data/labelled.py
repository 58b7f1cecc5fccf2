"""Labelled video and images: DAVIS-2017, YouTube-VOS, VISOR, Pascal VOC 2012, rendered clips.

Clustering reads whole videos; heads and memories read them picture by picture (`data/pictures.py`).

Truth is sparse: what counts is a frame that has a mask, and both are paired by name, never by order. Ids of
DAVIS and VISOR mean something only within their video; those of the others are classes.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from unspool.data.scenes import scenes
from unspool.data.vos import davis
from unspool.errors import DataError, UsageError, VideoError
from unspool.masks import VOID, read_truth
from unspool.rendered import SEMANTIC, RenderedClip, Scene
from unspool.video.source import IMAGES, natural_key

Pictures = UInt8[np.ndarray, "t h w 3"]
Truth = Integer[np.ndarray, "t h w"]
Split = Literal["train", "val"]  # learnt from; scored

RENDERED_CLASSES = {0: "background", **{number: kind for kind, number in SEMANTIC.items()}}
VOC_AUGMENTED = ("trainaug", "train_aug")  # what copies call the list
FIRST_RENDERED = 710_000  # seed; apart from those of training and of validation
VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train",
    "tv/monitor",
)  # fmt: skip


@dataclass(frozen=True)
class Clip:
    """Some frames of one video (or one image), each with its mask."""

    name: str
    images: tuple[Path, ...]
    truth: tuple[Path, ...]
    categories: Mapping[int, int] | None = None  # class of every object id; None: ids are the classes

    def __len__(self) -> int:
        return len(self.truth)

    def parts(self, length: int) -> list[Clip]:
        """Cut into clips of `length` frames; the last holds what is left."""
        return [
            replace(self, images=self.images[t : t + length], truth=self.truth[t : t + length])
            for t in range(0, len(self), length)
        ]

    @property
    def files(self) -> list[list[object]]:
        """What a rerun must find unchanged: path, bytes, time stamp."""
        stats = [(path, path.stat()) for path in (*self.images, *self.truth)]
        return [[str(path.resolve()), stat.st_size, stat.st_mtime_ns] for path, stat in stats]

    def read(self) -> tuple[Pictures, Truth]:
        """RGB pictures and label maps of the same size, 255 = void.

        Raises VideoError or MaskError for a file that cannot be read, DataError where sizes differ or an
        object has no category.
        """
        pictures = [_picture(path) for path in self.images]
        truth = [_classes(path, self.categories) for path in self.truth]
        for path, picture, labels in zip(self.truth, pictures, truth, strict=True):
            if picture.shape[:2] != labels.shape or labels.shape != truth[0].shape:
                raise DataError(
                    f"{path}: the mask is {labels.shape[1]}x{labels.shape[0]}, its frame "
                    f"{picture.shape[1]}x{picture.shape[0]}, the first mask {truth[0].shape[1]}x"
                    f"{truth[0].shape[0]}; all frames of a video must have one size"
                )
        return np.stack(pictures), np.stack(truth)


@dataclass(frozen=True)
class RenderedPart:
    """Some frames of a rendered clip, their objects named by what they are."""

    scene: Scene
    start: int
    length: int

    @property
    def name(self) -> str:
        """By its seed."""
        return f"rendered-{self.scene.seed}"

    def __len__(self) -> int:
        return self.length

    def parts(self, length: int) -> list[RenderedPart]:
        """As those of a `Clip`."""
        stop = self.start + self.length
        return [replace(self, start=t, length=min(length, stop - t)) for t in range(self.start, stop, length)]

    @property
    def files(self) -> list[list[object]]:
        """None: the seed decides everything."""
        return []

    def read(self) -> tuple[Pictures, Truth]:
        """Rendered anew."""
        clip = RenderedClip(self.scene)
        frames = range(self.start, self.start + self.length)
        truth = [clip.stage.semantic[clip.labels(t)] for t in frames]
        return np.stack([clip.image(t) for t in frames]), np.stack(truth)


@dataclass(frozen=True)
class LabelledSet:
    """Videos, and what their ids mean."""

    videos: tuple[Clip | RenderedPart, ...]
    classes: Mapping[int, str]  # names by id; empty where ids are objects, local to their video
    split: str = "val"  # as the record calls it

    @property
    def card(self) -> str:
        """What is in it, in one line."""
        frames = sum(len(video) for video in self.videos)
        ids = f"{len(self.classes)} classes" if self.classes else "ids that are local to their video"
        return f"{len(self.videos):,} videos, {frames:,} frames with truth, {ids}"


def _picture(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise VideoError(f"{path}: cannot be read as an image ({error}); unpack it again") from error


def _classes(path: Path, categories: Mapping[int, int] | None) -> Integer[np.ndarray, "h w"]:
    labels = read_truth(path)
    if categories is None:
        return labels
    try:
        return as_categories(labels, categories)
    except DataError as error:
        raise DataError(f"{path}: {error}; is meta.json that of this tree?") from error


def as_categories(
    labels: Integer[np.ndarray, "*shape"], table: Mapping[int, int]
) -> Integer[np.ndarray, "*shape"]:
    """Object ids as the categories that `table` gives them; background and void keep theirs.

    Looked up all at once: renaming id after id in place merges those whose new id is yet to be renamed.
    Objects of one category become one class. Raises DataError for an id that has no category.
    """
    renamed = {0: 0, VOID: VOID, **table}
    found, place = np.unique(labels, return_inverse=True)
    if missing := sorted(set(found.tolist()) - set(renamed)):
        raise DataError(f"ids {missing} have no category; the table knows {sorted(table)}")
    categories = np.array([renamed[id_] for id_ in found.tolist()], labels.dtype)
    return np.asarray(categories[place].reshape(labels.shape))


# ---------------------------------------------------------------------------------------------- readers


def labelled_davis(root: Path, names: tuple[str, ...] = (), split: Split = "val") -> LabelledSet:
    """A list of DAVIS-2017. Its ids are objects of their video; 255 is void."""
    sequences = davis(root, names=names, split=split)
    images = [{p.stem: p for p in s.frames.iterdir() if p.suffix.lower() in IMAGES} for s in sequences]
    videos = [
        Clip(s.name, tuple(found[n] for n in s.frame_names), s.truth)
        for s, found in zip(sequences, images, strict=True)
    ]
    return LabelledSet(tuple(videos), {}, split)


def labelled_visor(root: Path, names: tuple[str, ...] = (), split: Split = "val") -> LabelledSet:
    """A list of VISOR as `VISOR-VOS: visor_to_davis.py` leaves it: sparse masks, ids of their sequence."""
    listed = _list_of(
        [root / "ImageSets" / year / f"{split}.txt" for year in ("2022", "2017")],
        "VISOR tree in the layout of DAVIS (convert it with visor_to_davis.py of VISOR-VOS)",
    )
    chosen = _chosen(listed, names, root)
    images, masks = (root / part / "480p" for part in ("JPEGImages", "Annotations"))
    return LabelledSet(
        tuple(video_with_masks(name, images / name, masks / name) for name in chosen), {}, split
    )


def labelled_ytvos(root: Path, names: tuple[str, ...] = (), split: Split = "val") -> LabelledSet:
    """A fixed fifth of YouTube-VOS's training set, or the rest of it (`train`), by category.

    Split: names sorted, shuffled with seed 0, the last 20 %; the publication's own split is not released.
    Categories: their names sorted over the whole meta file, from 1. `names` chooses from all videos.
    """
    home = root / "train" if (root / "train").is_dir() else root
    described = ytvos_meta(home / "meta.json")
    kinds = sorted({o["category"] for video in described.values() for o in video["objects"].values()})
    number = {category: id_ for id_, category in enumerate(kinds, start=1)}
    held_out = ytvos_fifth(described)
    part = held_out if split == "val" else sorted(set(described) - set(held_out))
    videos = []
    for name in _chosen(sorted(described), names, root) if names else part:
        objects = described[name]["objects"]
        table = {int(id_): number[o["category"]] for id_, o in objects.items()}
        images, masks = (home / part / name for part in ("JPEGImages", "Annotations"))
        videos.append(video_with_masks(name, images, masks, categories=table))
    classes = {0: "background", **{id_: kind for kind, id_ in number.items()}}
    return LabelledSet(tuple(videos), classes, split)


def ytvos_fifth(videos: Iterable[str]) -> list[str]:
    """The names that are held out: sorted, shuffled with seed 0, the last 20 %."""
    every = sorted(videos)
    return sorted(random.Random(0).sample(every, len(every))[int(0.8 * len(every)) :])


def labelled_voc(root: Path, names: tuple[str, ...] = (), split: Split = "val") -> LabelledSet:
    """Pascal VOC 2012, one image a clip, in its own layout or in that of leopart. 255 is void.

    Learnt from is trainaug, where its list and SegmentationClassAug are there, else train; `split` of the
    set says which. Where a copy has the masks of train in SegmentationClassAug only, these are read.
    """
    home, lists, images = _voc_home(root, split)
    augmented = home / "SegmentationClassAug"
    called, masks = str(split), [home / "SegmentationClass"]
    if split == "train":
        lists_aug = [p for n in VOC_AUGMENTED if (p := lists / f"{n}.txt").exists()]
        masks += [augmented]
        if lists_aug and augmented.is_dir():
            called, masks = lists_aug[0].stem, [augmented]
    chosen = _chosen((lists / f"{called}.txt").read_text("utf-8").split(), names, root)
    clips = [
        _still(name, images / f"{name}.jpg", next((p for p in paths if p.is_file()), paths[0]))
        for name in chosen
        for paths in [[folder / f"{name}.png" for folder in masks]]
    ]
    return LabelledSet(tuple(clips), dict(enumerate(VOC_CLASSES)), called)


def _voc_home(root: Path, split: str) -> tuple[Path, Path, Path]:
    """The folder of the masks, of the lists, of the images. Raises DataError with what was looked for."""
    for home, lists, images in (
        (root / "VOCdevkit" / "VOC2012", "ImageSets/Segmentation", "JPEGImages"),
        (root / "VOC2012", "ImageSets/Segmentation", "JPEGImages"),
        (root, "ImageSets/Segmentation", "JPEGImages"),
        (root / "VOCSegmentation", "sets", "images"),
        (root, "sets", "images"),
    ):
        if (home / lists / f"{split}.txt").exists():
            return home, home / lists, home / images
    raise DataError(
        f"{root}: no Pascal VOC tree; found neither ImageSets/Segmentation/{split}.txt (VOCdevkit/VOC2012) "
        f"nor sets/{split}.txt (VOCSegmentation). Give the folder that holds one of them"
    )


def labelled_rendered(number: int, frames: int = 16) -> LabelledSet:
    """Rendered clips that nothing is trained on; the classes are kinds of creatures."""
    drawn = [f.scene for f in scenes(number, size=(192, 320), frames=frames, fps=12) if f.scene]
    videos = [RenderedPart(replace(s, seed=FIRST_RENDERED + i), 0, frames) for i, s in enumerate(drawn)]
    return LabelledSet(tuple(videos), RENDERED_CLASSES)


def video_with_masks(
    name: str, images: Path, masks: Path, categories: Mapping[int, int] | None = None
) -> Clip:
    """Every mask of a folder with the frame of its name; frames without a mask are left out."""
    for folder in (images, masks):
        if not folder.is_dir():
            raise DataError(f"{folder}: not found, but '{name}' is listed; unpack it, or shorten the list")
    found = {p.stem: p for p in images.iterdir() if p.suffix.lower() in IMAGES}
    truth = tuple(sorted(masks.glob("*.png"), key=lambda p: natural_key(p.name)))
    if not truth:
        raise DataError(f"{masks}: holds no PNG")
    if lonely := [p for p in truth if p.stem not in found]:
        raise DataError(
            f"{lonely[0]}: a mask without its frame; {images} holds {len(found)} images, none of them called "
            f"{lonely[0].stem}"
        )
    return Clip(name, tuple(found[p.stem] for p in truth), truth, categories)


def _still(name: str, image: Path, mask: Path) -> Clip:
    for path in (image, mask):
        if not path.is_file():
            raise DataError(f"{path}: not found, but '{name}' is listed; unpack it, or shorten the list")
    return Clip(name, (image,), (mask,))


def _list_of(candidates: list[Path], what: str) -> list[str]:
    for path in candidates:
        if path.exists():
            return path.read_text("utf-8").split()
    looked = " or ".join(map(str, candidates))
    raise DataError(f"{candidates[0].parents[2]}: no {what}; there is no {looked}")


def _chosen(listed: Iterable[str], names: tuple[str, ...], root: Path) -> list[str]:
    listed = list(listed)
    if unknown := [name for name in names if name not in listed]:
        raise UsageError(f"{root}: '{unknown[0]}' is not in its list of {len(listed)} names")
    return list(names) or listed


def ytvos_meta(path: Path) -> dict[str, Any]:
    """The videos of a meta.json of YouTube-VOS. Raises DataError for another file."""
    if not path.exists():
        raise DataError(
            f"{path}: not found; no YouTube-VOS tree. Give the folder that holds train/ with meta.json, "
            "JPEGImages/ and Annotations/"
        )
    try:
        videos: dict[str, Any] = json.loads(path.read_text("utf-8"))["videos"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not the meta.json of YouTube-VOS ({error}); unpack it again") from error
    return videos

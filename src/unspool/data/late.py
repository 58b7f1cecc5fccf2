"""Sequences whose objects may start late, with masks in some frames: YouTube-VOS and VISOR.

Every object is handed over in the first mask that has it. Where a tree holds no masks beyond these, as the
valid and test sets of YouTube-VOS, there is no truth to score against.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from unspool.data.labelled import Clip, labelled_visor, video_with_masks, ytvos_fifth, ytvos_meta
from unspool.data.vos import LabelMap, VosSequence, VosSet, label_map
from unspool.errors import DataError, UsageError
from unspool.masks import VOID
from unspool.video.source import IMAGES, natural_key


@dataclass(frozen=True)
class LateSequence(VosSequence):
    """A video whose masks are those of some frames; `truth` holds the files of these, in order."""

    stems: tuple[str, ...] = ()  # of all frames, in order

    @property
    def frame_names(self) -> tuple[str, ...]:
        """Stems of all frames, which name the results too."""
        return self.stems

    @property
    def annotated(self) -> tuple[int, ...]:
        """Numbers of the frames that have a mask."""
        place = {stem: number for number, stem in enumerate(self.stems)}
        return tuple(place[path.stem] for path in self.truth)

    def labels(self) -> Iterator[LabelMap | None]:
        """One label map per frame; None where there is none."""
        masks = {path.stem: path for path in self.truth}
        return (label_map(masks[stem]) if stem in masks else None for stem in self.stems)

    def given(self) -> Iterator[tuple[int, Path, LabelMap]]:
        """(frame, file, label map of the objects that start there); void is background."""
        return starting(zip(self.annotated, self.truth, strict=True))


def starting(masks: Iterator[tuple[int, Path]]) -> Iterator[tuple[int, Path, LabelMap]]:
    """The objects that no earlier mask has, mask by mask, where there are any."""
    seen = {0, VOID}
    for number, path in masks:
        labels = label_map(path)
        new = sorted(set(np.unique(labels).tolist()) - seen)
        if new:
            seen.update(new)
            yield number, path, np.where(np.isin(labels, new), labels, 0).astype(labels.dtype)


def late_visor(root: Path, names: tuple[str, ...] = ()) -> VosSet:
    """VISOR val as `VISOR-VOS: visor_to_davis.py` leaves it; frames without a mask are tracked too."""
    home = root / "JPEGImages" / "480p"
    videos = [
        LateSequence(clip.name, home / clip.name, clip.truth, stems=_stems(home / clip.name))
        for clip in labelled_visor(root, names).videos
        if isinstance(clip, Clip)
    ]
    return VosSet(tuple(videos), None, "val")


def late_ytvos(root: Path, names: tuple[str, ...] = ()) -> VosSet:
    """YouTube-VOS: `valid` where it is there, else a fixed fifth of `train`; or the one that `root` is.

    Categories count as seen where train/meta.json, beside it, has them. Raises DataError naming what was
    looked for.
    """
    home = next((p for p in (root / "valid", root / "train") if p.is_dir()), root)
    described = ytvos_meta(home / "meta.json")
    train = home.name == "train"
    listed = ytvos_fifth(described) if train else sorted(described)
    if unknown := [name for name in names if name not in described]:
        raise UsageError(f"{root}: '{unknown[0]}' is not in {home / 'meta.json'}, which has {len(described)}")
    videos = [_ytvos_video(home, name, described[name]) for name in names or listed]
    beyond = any(_beyond_starts(video, described[video.name]) for video in videos)
    if not beyond:
        videos = [replace(video, scored=False) for video in videos]
    known = home if train else home.parent / "train"
    seen = _categories(known / "meta.json") if (known / "meta.json").exists() else None
    return VosSet(tuple(videos), seen, f"a fifth of {home.name}" if train else home.name)


def _ytvos_video(home: Path, name: str, described: Mapping[str, Any]) -> LateSequence:
    images = home / "JPEGImages" / name
    clip = video_with_masks(name, images, home / "Annotations" / name)
    try:
        kinds = {int(i): str(o["category"]) for i, o in described["objects"].items() if "category" in o}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{home / 'meta.json'}: '{name}' is not described as in YouTube-VOS ({error})"
        ) from error
    return LateSequence(name, images, clip.truth, stems=_stems(images), categories=kinds)


def _beyond_starts(video: LateSequence, described: Mapping[str, Any]) -> bool:
    """Whether a mask is there in which nothing starts."""
    starts = {frames[0] for o in described["objects"].values() if (frames := sorted(o.get("frames", ())))}
    return any(path.stem not in starts for path in video.truth[1:])


def _categories(meta: Path) -> frozenset[str]:
    videos = ytvos_meta(meta).values()
    return frozenset(str(o["category"]) for video in videos for o in video["objects"].values())


def _stems(folder: Path) -> tuple[str, ...]:
    names = [p.name for p in folder.iterdir() if p.suffix.lower() in IMAGES and not p.name.startswith(".")]
    return tuple(Path(name).stem for name in sorted(names, key=natural_key))

"""Video object segmentation data sets: sequences of frames with label maps.

A sequence pairs frames and truth by name, never by order, and fails loudly where one is missing
(`docs/protocols.md` tells why). Layouts: DAVIS-2017 and DAVIS-2016 as published by their authors, and two
plain trees of masks (predictions beside truth).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from unspool.errors import DataError, UsageError
from unspool.masks import VOID, read_truth
from unspool.video.source import IMAGES, natural_key

LabelMap = UInt8[np.ndarray, "h w"]


@dataclass(frozen=True)
class VosSequence:
    """One video of a data set: where its frames and its truth lie, frame by frame."""

    name: str
    frames: Path  # folder of images
    truth: tuple[Path, ...]  # one label map per frame, in order
    merge: bool = False  # True: every id is foreground (DAVIS-2016)
    scored: bool = True  # False: masks only start objects
    categories: Mapping[int, str] = field(default_factory=dict)  # by object; empty where they have none

    @property
    def frame_names(self) -> tuple[str, ...]:
        """Stems of the frames, which name the results too."""
        return tuple(path.stem for path in self.truth)

    @property
    def annotated(self) -> tuple[int, ...]:
        """Numbers of the frames that have truth."""
        return tuple(range(len(self.truth)))

    def given(self) -> Iterator[tuple[int, Path, LabelMap]]:
        """(frame, file, label map) of the masks that tracking starts from: the first one."""
        first = label_map(self.truth[0], merge=self.merge)
        yield 0, self.truth[0], np.where(first == VOID, 0, first).astype(first.dtype)

    def labels(self) -> Iterator[LabelMap | None]:
        """The truth, one label map `[H, W]` at a time; 255 = void unless ids are merged."""
        return (label_map(path, merge=self.merge) for path in self.truth)


@dataclass(frozen=True)
class VosSet:
    """Sequences, and the categories that training has seen (None: not known, or there are none)."""

    sequences: tuple[VosSequence, ...]
    seen: frozenset[str] | None = None
    split: str = "val"  # what was read, for the record


def label_map(path: Path, *, merge: bool = False) -> LabelMap:
    """Ids of one PNG as stored; with `merge`, 1 wherever it is not 0 (DAVIS-2016: 255 is the object)."""
    ids = read_truth(path)
    return (ids != 0).astype(np.uint8) if merge else ids


def davis(
    root: Path,
    *,
    year: int = 2017,
    split: str = "val",
    names: tuple[str, ...] = (),
    annotations: str = "Annotations",
) -> list[VosSequence]:
    """Sequences of a DAVIS tree at 480p, in the order of its list; `names` keeps only those.

    `year` 2016 merges all ids to one foreground, as its truth has it. `annotations`: the folder of the truth,
    `Annotations_unsupervised` for that of all objects.
    Raises DataError naming the files looked for. Source: `davis2017-evaluation: davis2017/davis.py`.
    """
    listed = _davis_names(root, year, split)
    unknown = [n for n in names if n not in listed]
    if unknown:
        raise UsageError(
            f"{root}: sequence '{unknown[0]}' is not in its {year} {split} list ({', '.join(listed)})"
        )
    truth = root / annotations / "480p"
    return [_davis_sequence(root, truth, name, merge=year == 2016) for name in names or listed]


def _davis_names(root: Path, year: int, split: str) -> list[str]:
    candidates = [root / "ImageSets" / str(year) / f"{split}.txt"]
    if year == 2016:
        candidates.append(root / "ImageSets" / "480p" / f"{split}.txt")
    for path in candidates:
        if path.exists():
            # the older lists of 2016 hold one image and one mask path per line
            lines = [line.split()[0] for line in path.read_text("utf-8").splitlines() if line.strip()]
            names = [Path(line).parent.name if "/" in line else line for line in lines]
            return list(dict.fromkeys(names))
    looked = " or ".join(str(c) for c in candidates)
    raise DataError(
        f"{root}: no DAVIS-{year} tree; there is no {looked}. Give the folder that holds ImageSets/"
    )


def _davis_sequence(root: Path, truth_root: Path, name: str, *, merge: bool) -> VosSequence:
    frames = root / "JPEGImages" / "480p" / name
    annotations = truth_root / name
    for folder in (frames, annotations):
        if not folder.is_dir():
            raise DataError(
                f"{folder}: not found, but '{name}' is in the tree's list; unpack it "
                "(the unsupervised truth is an archive of its own), or shorten the list"
            )
    truth = tuple(sorted(annotations.glob("*.png"), key=lambda p: natural_key(p.name)))
    images = {p.stem for p in frames.iterdir() if p.suffix.lower() in IMAGES}
    if not truth:
        raise DataError(f"{annotations}: holds no PNG")
    without = [p.stem for p in truth if p.stem not in images] + sorted(images - {p.stem for p in truth})
    if without:
        raise DataError(
            f"{name}: frame {without[0]} has no partner (image and mask are paired by name; "
            f"{frames} holds {len(images)} images, {annotations} {len(truth)} masks)"
        )
    return VosSequence(name=name, frames=frames, truth=truth, merge=merge)


@dataclass(frozen=True)
class MaskPair:
    """Predicted and true label maps of one sequence, file by file; a missing prediction is None."""

    name: str
    prediction: tuple[Path | None, ...]
    truth: tuple[Path, ...]


def mask_trees(prediction: Path, truth: Path, names: Sequence[str] = ()) -> list[MaskPair]:
    """Two folders of label maps, paired by name: `TREE/SEQUENCE/FRAME.png`, or `TREE/FRAME.png` for one.

    `names`: only these sequences. Raises DataError for a sequence that has no prediction at all, UsageError
    for folders that do not exist and for a name that is not there.
    """
    for folder in (prediction, truth):
        if not folder.is_dir():
            raise UsageError(f"{folder}: no such folder; --pred and --truth take folders of label PNGs")
    flat = sorted(truth.glob("*.png"), key=lambda p: natural_key(p.name))
    if flat and set(names) <= {truth.resolve().name}:
        return [_mask_pair(truth.resolve().name, prediction, flat)]
    sequences = sorted(p for p in truth.iterdir() if p.is_dir() and any(p.glob("*.png")))
    if missing := [name for name in names if name not in {sequence.name for sequence in sequences}]:
        raise UsageError(f"{truth}: holds no sequence '{missing[0]}', which --sequences names")
    if not sequences:
        raise DataError(f"{truth}: holds neither PNGs nor folders of PNGs")
    sequences = [sequence for sequence in sequences if not names or sequence.name in names]
    return [
        _mask_pair(s.name, prediction / s.name, sorted(s.glob("*.png"), key=lambda p: natural_key(p.name)))
        for s in sequences
    ]


def _mask_pair(name: str, prediction: Path, truth: list[Path]) -> MaskPair:
    if not prediction.is_dir():
        raise DataError(
            f"{prediction}: not found; the truth's sequence '{name}' needs predictions of that name"
        )
    found = tuple((prediction / p.name) if (prediction / p.name).exists() else None for p in truth)
    if not any(found):
        raise DataError(
            f"{prediction}: none of the truth's {len(truth)} file names is there (first: {truth[0].name}); "
            "predictions and truth are paired by name"
        )
    return MaskPair(name=name, prediction=found, truth=tuple(truth))

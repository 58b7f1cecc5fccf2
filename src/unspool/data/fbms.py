"""FBMS-59: the 30 sequences of its test set, of which about every 20th frame has a mask.

Published: ROOT/Testset/SEQ/*.jpg, SEQ/GroundTruth/* (pgm and ppm; regions are colours).
Copies that circulate: ROOT/FBMS/SEQ/*.jpg, ROOT/FBMS_annotation/SEQ/N.png (0 and 255); what BA reads.
"""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np

from unspool.data.segtrack import pixels
from unspool.data.sequences import FileSequence, MasksByFrame, folders_in, pictures_of, warn_of_missing
from unspool.data.vos import LabelMap
from unspool.errors import DataError

TEST = (
    "camel01", "cars1", "cars10", "cars4", "cars5", "cats01", "cats03", "cats06", "dogs01", "dogs02",
    "farm01", "giraffes01", "goats01", "horses02", "horses04", "horses05", "lion01", "marple12", "marple2",
    "marple4", "marple6", "marple7", "marple9", "people03", "people1", "people2", "rabbits02", "rabbits03",
    "rabbits04", "tennis",
)  # fmt: skip
MASKS = {".png", ".pgm", ".ppm"}
LAYOUT = "give the folder that holds Testset/ (or FBMS/ and FBMS_annotation/) of FBMS-59"


def fbms_sequences(root: Path) -> list[FileSequence]:
    """Test sequences; truth is 1 on any object, and None in frames without a mask.

    Raises DataError naming what is missing, and for a mask whose frame is not there.
    """
    if (root / "Testset").is_dir():
        folders = _of_test(root, folders_in(root / "Testset", LAYOUT))
        return [_sequence(folder, folder / "GroundTruth") for folder in folders]
    images, truth = root / "FBMS", root / "FBMS_annotation"
    for folder in (images, truth):
        if not folder.is_dir():
            raise DataError(
                f"{root}: no FBMS-59 tree; found neither {root / 'Testset'} nor {folder}; {LAYOUT}"
            )
    return [_sequence(images / folder.name, folder) for folder in _of_test(root, folders_in(truth, LAYOUT))]


def _of_test(root: Path, folders: list[Path]) -> list[Path]:
    """Those of the test set, without training sequences that lie beside them; all, if none is known."""
    known = [folder for folder in folders if folder.name in TEST]
    warn_of_missing(root, [folder.name for folder in known], TEST)
    return known or folders


def _sequence(folder: Path, truth: Path) -> FileSequence:
    images = pictures_of(folder)
    masks = [path for path in pictures_of(truth) if path.suffix.lower() in MASKS]
    if not masks:
        raise DataError(f"{truth}: holds no mask ({', '.join(sorted(MASKS))}); unpack the archive again")
    at = _frames(images, masks, truth)
    paths = tuple(at.get(index) for index in range(len(images)))
    return FileSequence(folder.name, images, Fraction(24), MasksByFrame(paths, region_mask), tuple(masks))


def _frames(images: tuple[Path, ...], masks: list[Path], truth: Path) -> dict[int, Path]:
    """Frame number of every mask: that of the image with its number, else counted from the first mask.

    The second is the rule of SSL-UVOS: src/data.py.
    """
    index_of = {_number(path): index for index, path in enumerate(images)}
    numbers = [_number(path) for path in masks]
    if not all(number in index_of for number in numbers):
        index_of = {numbers[0] + index: index for index in range(len(images))}
    for number, path in zip(numbers, masks, strict=True):
        if number not in index_of:
            raise DataError(
                f"{path}: a mask without its frame; {images[0].parent} holds {len(images)} images, "
                f"{images[0].name} to {images[-1].name}"
            )
    found = {index_of[number]: path for number, path in zip(numbers, masks, strict=True)}
    if len(found) < len(masks):
        raise DataError(f"{truth}: two masks are of one frame; keep those of one kind")
    return found


def _number(path: Path) -> int:
    """The last number in a name: 20 of `cars1_020_gt.ppm`."""
    found = re.findall(r"\d+", path.stem)
    if not found:
        raise DataError(f"{path}: its name holds no number, so its frame is not known")
    return int(found[-1])


def region_mask(path: Path) -> LabelMap:
    """1 on every region but the background.

    Background is 0 in a PNG; in pgm and ppm, where it may be black or white, what holds most of the border.
    """
    colours = pixels(path).astype(np.int64)
    values = (colours * 256 ** np.arange(colours.shape[2])).sum(axis=2)
    border = np.concatenate([values[0], values[-1], values[1:-1, 0], values[1:-1, -1]])
    background = 0 if path.suffix.lower() == ".png" else Counter(border.tolist()).most_common(1)[0][0]
    return np.asarray(values != background, np.uint8)

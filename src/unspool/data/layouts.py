"""How data sets lie on disk: for each layout a few globs, and a rule for the frame rate of its frame folders.

Video files have their own times; a folder of frames has none, so its layout says what its names count.
Globs are relative to the folder that the user names; all of a layout are tried. Sources: `spec` pages of the
data sets' own sites and readers, collected in docs/training-data.md.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from statistics import median_low

from unspool.errors import DataError, UsageError
from unspool.video.source import IMAGES, VIDEO_ENDINGS, natural_key

Rate = Callable[[str, Sequence[str]], Fraction]  # (name of the video, stems of its frames) -> frames per s


def constant(fps: float | Fraction) -> Rate:
    """Every folder runs at `fps`."""
    return lambda name, stems: Fraction(fps)


def counted(fps: int) -> Rate:
    """Frame names count the frames of an original at `fps`: names that step by 5 from 30 fps run at 6."""

    def rate(name: str, stems: Sequence[str]) -> Fraction:
        numbers = [int(found[-1]) for stem in stems if (found := re.findall(r"\d+", stem))]
        steps = [b - a for a, b in pairwise(numbers) if b > a]
        return Fraction(fps, median_low(steps) if steps else 1)

    return rate


def epic(name: str, stems: Sequence[str]) -> Fraction:
    """EPIC-KITCHENS: the extension of 2020 (`P01_101`, three digits) runs at 50, the first videos at 60."""
    return Fraction(50) if re.search(r"_\d{3}$", name) else Fraction(60000, 1001)


@dataclass(frozen=True)
class Layout:
    """One data set on disk."""

    title: str
    globs: tuple[str, ...]  # of video files and of folders of frames; none: everything beneath the root
    rate: Rate  # of folders of frames


LAYOUTS = {
    "videos": Layout("videos and folders of frames", (), constant(24)),
    "davis": Layout("DAVIS", ("JPEGImages/480p/*",), constant(24)),
    "ytvos": Layout("YouTube-VOS", ("train/JPEGImages/*", "train_all_frames/JPEGImages/*"), counted(30)),
    "ytvis19": Layout("YouTube-VIS", ("train/JPEGImages/*",), counted(30)),
    "oxuva": Layout("OxUvA", ("images/dev/*", "images/test/*"), counted(30)),
    "trackingnet": Layout("TrackingNet", ("TRAIN_*/frames/*", "train/jpegs/*"), counted(30)),
    "kinetics": Layout("Kinetics-400", ("train/*/*", "video_jpeg/train/*/*"), constant(25)),
    "epic": Layout(
        "EPIC-KITCHENS",
        ("P??/videos/*", "P??/rgb_frames/*", "P??/P*", "train/P??/rgb_frames/*", "train/480p/*"),
        epic,
    ),
}  # fmt: skip


def layout_of(kind: str) -> Layout:
    """The layout called `kind`. Raises UsageError listing the known ones."""
    if kind not in LAYOUTS:
        raise UsageError(f"data layout '{kind}' is not known; there are {', '.join(LAYOUTS)} and shards")
    return LAYOUTS[kind]


def find_videos(root: Path, kind: str = "videos") -> list[Path]:
    """Video files and folders of frames under `root`, in natural order of their paths.

    A folder that holds video files is searched for these, one that holds images is one video; names that
    begin with a dot are passed over. A single file is itself. Raises UsageError for a root that does not
    exist, DataError naming what was looked for where nothing is found.
    """
    layout = layout_of(kind)
    if not root.exists():
        raise UsageError(f"{root}: no such folder of videos; check the path")
    if root.is_file():
        return [root]
    found = _beneath(root) if not layout.globs else _matching(root, layout.globs)
    videos = sorted(set(found), key=lambda path: natural_key(path.relative_to(root).as_posix()))
    if not videos:
        wanted = " or ".join(layout.globs) or "video files or folders of images (jpg, png, webp, ppm)"
        raise DataError(f"{root}: holds no {layout.title}; looked for {wanted}. Give the folder above these")
    return videos


def _matching(root: Path, globs: Sequence[str]) -> Iterator[Path]:
    for pattern in globs:
        for path in root.glob(pattern):
            if is_video_file(path) or (path.is_dir() and not _hidden(path) and _has_frames(path)):
                yield path


def _beneath(root: Path) -> Iterator[Path]:
    seen: set[str] = set()  # real paths: links may lead in a circle
    for folder, inner, files in os.walk(root, followlinks=True):
        here, real = Path(folder), os.path.realpath(folder)
        inner[:] = sorted(name for name in inner if not name.startswith(".") and real not in seen)
        seen.add(real)
        videos = [here / name for name in files if is_video_file(here / name)]
        yield from videos
        if not videos and any(is_image(name) for name in files):
            yield here


def frames_of(folder: Path) -> list[Path]:
    """The images of a folder in natural order: 2 before 10."""
    names = [entry.name for entry in os.scandir(folder) if is_image(entry.name)]
    return [folder / name for name in sorted(names, key=natural_key)]


def _has_frames(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(is_image(entry.name) for entry in entries)


def is_image(name: str) -> bool:
    """Whether a file of this name counts as a frame."""
    return Path(name).suffix.lower() in IMAGES and not name.startswith(".")


def is_video_file(path: Path) -> bool:
    """Whether a file of this name counts as a video."""
    return path.suffix.lower() in VIDEO_ENDINGS and not _hidden(path) and path.is_file()


def _hidden(path: Path) -> bool:
    return path.name.startswith(".")

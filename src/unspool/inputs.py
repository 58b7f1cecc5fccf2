"""What the words of a command line stand for: videos, their names, their masks, the folder of the results."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from unspool.errors import UsageError, VideoError
from unspool.results import safe_name
from unspool.video.source import IMAGES, VIDEO_ENDINGS, Place, place

STDIN = "-"  # the input that stands for a stream


def expand_inputs(inputs: Sequence[str]) -> list[str]:
    """The videos behind files, folders, globs, frame folders, `@list.txt` and fsspec addresses, in order.

    A folder of images is one video; a folder of videos is each of them. A path that does not exist is
    wrong use (UsageError); a file that cannot be read fails later, by itself.
    """
    found: list[str] = []
    for entry in inputs:
        found += _expand(entry)
    if not found:
        raise UsageError(f"{', '.join(inputs)}: names no video")
    return list(dict.fromkeys(found))


def _expand(entry: str) -> list[str]:
    if entry.startswith("@"):
        path = Path(entry[1:])
        if not path.is_file():
            raise UsageError(f"{path}: no such list; @FILE names a text file with one input per line")
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
        return [video for line in lines if line and not line.startswith("#") for video in _expand(line)]
    if entry == STDIN:
        return [entry]
    if "://" in entry:
        return _expand_address(entry)
    path = Path(entry)
    if path.is_dir():
        return _expand_folder(path)
    if path.exists():
        return [entry]
    matched = sorted(glob.glob(entry, recursive=True))  # noqa: PTH207 (entries may be absolute)
    if not matched:
        raise UsageError(f"{entry}: no such file or folder, and no file matches it")
    if all(Path(m).suffix.lower() in IMAGES for m in matched):
        return [entry]  # a glob of frames is one video
    return [video for m in matched for video in _expand(m)]


def _expand_address(entry: str) -> list[str]:
    """As for local paths; what cannot be looked into now is left to fail at its turn, by itself."""
    try:
        where = place(entry)
        ending = Path(where.path).suffix.lower()
        if "::" in entry or (ending in VIDEO_ENDINGS and not glob.has_magic(where.path)):
            return [entry]
        if where.files.exists(where.path):
            return _in_remote_folder(where) if where.is_folder else [entry]
        if not glob.has_magic(where.path):
            return [entry]
        matched = sorted(where.files.glob(where.path))
    except (VideoError, OSError, ValueError, RuntimeError, NotImplementedError):
        return [entry]
    if not matched:
        raise UsageError(f"{entry}: no file matches it")
    if all(Path(m).suffix.lower() in IMAGES for m in matched):
        return [entry]
    return [where.files.unstrip_protocol(m) for m in matched if Path(m).suffix.lower() in VIDEO_ENDINGS]


def _in_remote_folder(folder: Place) -> list[str]:
    """The videos of a remote folder; where it holds none, it is a folder of frames."""
    entries = sorted(folder.files.ls(folder.path, detail=False))
    videos = [e for e in entries if Path(e).suffix.lower() in VIDEO_ENDINGS and folder.files.isfile(e)]
    return [folder.files.unstrip_protocol(video) for video in videos] or [folder.address]


def _expand_folder(folder: Path) -> list[str]:
    entries = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    videos = [str(p) for p in entries if p.suffix.lower() in VIDEO_ENDINGS and p.is_file()]
    if videos:
        return videos
    if any(p.suffix.lower() in IMAGES for p in entries):
        return [str(folder)]
    inner = [p for p in entries if p.is_dir()]
    frames = [str(p) for p in inner if any(q.suffix.lower() in IMAGES for q in p.iterdir())]
    if not frames:
        raise UsageError(f"{folder}: holds no videos, no frames and no folders of frames")
    return frames


def names_of(videos: Sequence[str]) -> list[str]:
    """A short, unique, file-safe name per video: its stem, with its parent's name where stems are equal.

    No name is another one followed by a number as the page's data files are.
    """
    stems = [safe_name(_stem(v)) for v in videos]
    taken: list[str] = []
    for video, stem in zip(videos, stems, strict=True):
        base = stem if stems.count(stem) == 1 else safe_name(f"{Path(video).resolve().parent.name}-{stem}")
        if any(re.fullmatch(rf"{re.escape(other)}-\d{{3,}}", base) for other in stems):
            base += "_"
        name, number = base, 1
        while name in taken or (name != base and name in stems):
            name, number = f"{base}_{number}", number + 1
        taken.append(name)
    return taken


def _stem(video: str) -> str:
    if video == STDIN:
        return "stdin"
    path = Path(video.rstrip("/"))
    if glob.has_magic(path.name):
        return path.parent.name or "frames"
    return path.name if path.is_dir() else path.stem


def default_folder(verb: str, videos: Sequence[str]) -> Path:
    """`unspool-VERB-NAME` in the working directory; NAME is the video's, or its folder's for several."""
    if len(videos) == 1:
        return Path(f"unspool-{verb}-{names_of(videos)[0]}")
    common = os.path.commonpath([Path(v).resolve().parent for v in videos])
    return Path(f"unspool-{verb}-{safe_name(Path(common).name)}")


def masks_of(videos: Sequence[str], names: Sequence[str], given: Sequence[str]) -> list[dict[int, str] | str]:
    """Per video, its mask files by frame; or, where it has none, the sentence that says so.

    `given` holds `FILE`, `FRAME:FILE`, or one folder with `NAME.png` or `NAME/00030.png` per video: there,
    00030 is the name of a frame where the video is a folder of frames, and else its number.
    """
    if not given:
        raise UsageError("no mask is given; name the objects of the first frame with --mask first.png")
    if len(given) == 1 and Path(given[0]).is_dir():
        folder = Path(given[0])
        return [_masks_in_folder(folder, n, v) for n, v in zip(names, videos, strict=True)]
    by_frame: dict[int, str] = {}
    for frame, file in map(_frame_and_file, given):
        if frame in by_frame:
            raise UsageError(
                f"two masks for frame {frame}: {by_frame[frame]} and {file}; put them into one file"
            )
        by_frame[frame] = file
    if len(videos) > 1:
        raise UsageError(
            f"{len(videos)} videos and one --mask; give a folder that holds NAME.png per video "
            f"(here: {names[0]}.png, {names[1]}.png, ...)"
        )
    return [by_frame]


def _frame_and_file(text: str) -> tuple[int, str]:
    frame, colon, file = text.partition(":")
    where = (int(frame), file) if colon and frame.isdigit() else (0, text)
    if not Path(where[1]).is_file():
        raise UsageError(f"{where[1]}: no such mask file; --mask takes FILE, FRAME:FILE or a folder")
    return where


def _masks_in_folder(folder: Path, name: str, video: str) -> dict[int, str] | str:
    inner = sorted((folder / name).glob("*.png")) if (folder / name).is_dir() else []
    frames = _frame_numbers(video) if inner else {}
    by_frame: dict[int, str] = {}
    for path in inner:
        key = _frame_key(path.stem)
        number = frames.get(key) if frames else key
        if isinstance(number, int):
            by_frame[number] = str(path)
        elif frames:
            return f"{path}: '{video}' has no frame of this name; call each mask as its frame is called"
    single = folder / f"{name}.png"
    if single.is_file():
        by_frame.setdefault(0, str(single))
    return by_frame or f"{folder}: holds no mask for '{name}'; expected {name}.png or {name}/00000.png"


def _frame_key(stem: str) -> int | str:
    return int(stem) if stem.isdecimal() else stem


def _frame_numbers(video: str) -> dict[int | str, int]:
    """The numbers of a folder's frames by their names; nothing for a file, and where none can be read."""
    try:
        where = place(video)
        stills = where.is_folder or where.is_pattern
        images = where.images() if stills else []
    except (VideoError, OSError, ValueError, RuntimeError):
        return {}
    return {_frame_key(Path(image.path).stem): number for number, image in enumerate(images)}

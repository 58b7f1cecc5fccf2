"""What a run learns from: videos of several folders, rendered scenes, and where their frames are."""

from __future__ import annotations

import glob
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from unspool.data.clips import Clips, Decoded, FrameSource, OnDevice, Stored
from unspool.data.footage import Broken, Footage
from unspool.data.frames import Decoder, FrameStore, store_frames
from unspool.data.index import Index, index_videos
from unspool.data.layouts import LAYOUTS
from unspool.data.scenes import scenes
from unspool.data.ytvis import scored_folders
from unspool.errors import DataError, OutputError, UsageError
from unspool.training.settings import Settings

Keeping = Literal["auto", "device", "disk", "decode"]
AS_THEY_ARE = 100_000  # px of a short side that no video has
ON_DEVICE = 0.4  # of the free memory of a GPU that frames may take unasked


def index_all(data: Sequence[str], max_broken: float, *, exclude_eval: bool = False) -> Index:
    """The videos of all `[KIND:]PATH`, globs and `@list.txt` together, each once.

    `exclude_eval`: without those that `eval discovery` scores. Raises UsageError for what is not there and
    for kinds of which none is scored, DataError where there is no video or too many are broken.
    """
    videos: dict[str, Footage] = {}
    broken: dict[str, Broken] = {}
    excluded = 0
    for text in dict.fromkeys(word for given in data for word in _expanded(given)):
        kind, path = _kind_and_path(text)
        try:
            index = index_videos(path, kind, max_broken=1.0 if path.is_file() else max_broken)
        except DataError as error:
            if not path.is_file():
                raise
            broken[str(path)] = Broken(str(path), str(error))  # one file of many that are named
            continue
        if exclude_eval:
            index = without_scored(index, _scored_folders(kind, path, text))
            excluded += index.excluded
        videos |= {video.source: video for video in index.videos}
        broken |= {entry.source: entry for entry in index.broken}
    whole = Index(", ".join(data), tuple(videos.values()), excluded=excluded)
    return whole.without(tuple(broken.values()), max_broken)


SCORED = {"ytvis19": scored_folders}  # kinds whose training videos `eval discovery` scores in part


def _scored_folders(kind: str, path: Path, text: str) -> frozenset[str]:
    if kind not in SCORED:
        raise UsageError(
            f"--exclude-eval: of --data {text} no training video is known to be scored; that is known of "
            f"{', '.join(f'{each}:PATH' for each in SCORED)} alone. Name that, or leave --exclude-eval out"
        )
    return SCORED[kind](path)


def without_scored(index: Index, folders: frozenset[str]) -> Index:
    """The index without the videos of these names. Raises DataError where none is left."""
    rest = tuple(video for video in index.videos if Path(video.source).name not in folders)
    if not rest:
        raise DataError(
            f"{index.root}: all {len(index.videos)} videos are scored by eval discovery (a train.json of at "
            "most 600 is scored whole); --exclude-eval leaves nothing to learn from"
        )
    return replace(index, videos=rest, excluded=len(index.videos) - len(rest))


def _expanded(text: str) -> list[str]:
    if text.startswith("@"):
        try:
            lines = [line.strip() for line in Path(text[1:]).read_text("utf-8").splitlines()]
        except OSError as error:
            raise UsageError(
                f"--data {text}: cannot be read ({error.strerror}); it lists one PATH a line"
            ) from error
        return [line for line in lines if line and not line.startswith("#")]
    if glob.has_magic(text) and not Path(text).exists():
        return sorted(glob.glob(text, recursive=True)) or [text]  # noqa: PTH207 (paths may be absolute)
    return [text]


def _kind_and_path(text: str) -> tuple[str, Path]:
    kind, colon, rest = text.partition(":")
    if colon and kind in (*LAYOUTS, "shards") and not Path(text).exists():
        return kind, Path(rest)
    if not Path(text).exists():
        kinds = ", ".join((*LAYOUTS, "shards"))
        raise UsageError(
            f"--data {text}: no such file or folder; expected PATH or KIND:PATH (kinds: {kinds})"
        )
    return "videos", Path(text)


def rendered_scenes(settings: Settings) -> tuple[Footage, ...]:
    """As many scenes as the settings name, at the largest size that a clip is cut from."""
    how = settings.training
    if not how.rendered:
        return ()
    short = min(short_side(settings), 480)
    size = (short, short * 3 // 2)
    return scenes(how.rendered, seed=how.seed, size=size, frames=how.rendered_frames)


def short_side(settings: Settings) -> int:
    """px at which frames are kept: the largest that augmentation asks for."""
    sides = settings.augmentation.short_side
    return sides[1] if sides else AS_THEY_ARE


@dataclass(frozen=True)
class Kept:
    """Frames, ready to be drawn from."""

    source: FrameSource
    broken: tuple[Broken, ...]  # videos that could not be decoded
    where: str  # for people


def keep_frames(
    videos: Sequence[Footage],
    settings: Settings,
    keeping: Keeping,
    device: torch.device,
    *,
    workers: int,
    progress: Callable[[int, int], None],
) -> Kept:
    """Decode and render what is not kept yet. Raises OutputError where it does not fit the disk."""
    side = short_side(settings)
    if keeping == "decode":
        return Kept(Decoded(side, Decoder()), (), "decoded when they are asked for")
    try:
        store, broken = store_frames(videos, side, workers=workers, progress=progress)
    except OutputError as error:
        raise OutputError(f"{error} (--frames decode)") from error
    usable = [video for video in videos if video.source not in {b.source for b in broken}]
    size = sum(map(store.bytes, usable)) / 1e9
    if keeping == "device" or (keeping == "auto" and _fits(store, usable, device)):
        return Kept(OnDevice(store, usable, device), broken, f"on {device}, {size:.1f} GB")
    return Kept(Stored(store), broken, f"decoded in {store.folder}, {size:.1f} GB")


def _fits(store: FrameStore, videos: Sequence[Footage], device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    return sum(map(store.bytes, videos)) < ON_DEVICE * torch.cuda.mem_get_info(device)[0]


def clips_of(
    videos: Sequence[Footage],
    made: Sequence[Footage],
    source: FrameSource,
    settings: Settings,
    max_broken: float,
) -> Clips:
    """All clips of the run. Raises DataError where no video is long enough for one."""
    how = settings.training
    share = how.rendered_share
    if share is None:
        share = len(made) / (len(made) + len(videos)) if made else 0.0
    return Clips(
        videos,
        settings.sampling,
        source,
        batch=settings.config.clips,
        seed=how.seed,
        made=made,
        made_share=share if videos else 1.0,
        max_broken=max_broken,
    )


def without_broken(index: Index | None, kept: Kept, max_broken: float) -> Index | None:
    """The index without videos that could not be decoded. Raises DataError where these are too many."""
    if index is None or not kept.broken:
        return index
    return replace(index, broken=()).without(kept.broken, max_broken)

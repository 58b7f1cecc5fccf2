"""Pixels of footage at training size: decoded where asked for, or kept decoded on disk.

Frames are brought down until their short side is the size asked for, never enlarged; the store holds the
same bytes that decoding gives, so a run does not depend on whether it has one.
"""

from __future__ import annotations

import errno
import gc
import hashlib
import os
import shutil
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from jaxtyping import UInt8
from torch.utils.data import DataLoader

from unspool.data.augment import resize
from unspool.data.footage import Broken, Footage, Picture, pick, refuse_change, sized
from unspool.data.index import cache_folder
from unspool.data.layouts import frames_of
from unspool.data.shards import images_of_sample
from unspool.errors import OutputError, UnspoolError, UnspoolWarning, VideoError
from unspool.rendered import RenderedClip, RenderedVideo
from unspool.video import Video, open_video
from unspool.video.source import place
from unspool.video.stills import read as read_still

Pictures = UInt8[np.ndarray, "t h w 3"]
Numbers = Sequence[int] | npt.NDArray[np.int64]
T = TypeVar("T")


def size_at(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width) after bringing the short side down to `short_side`, px; the long one is truncated."""
    short = min(height, width)
    if short <= short_side:
        return height, width
    return tuple(short_side if side == short else side * short_side // short for side in (height, width))  # type: ignore[return-value]


def shrink(image: Picture, short_side: int) -> Picture:
    """The image at `size_at`, see `augment.resize`."""
    frames = torch.from_numpy(image)[None].permute(0, 3, 1, 2)  # one frame whose pixels stay together
    return resize(frames, size_at(image.shape[0], image.shape[1], short_side))[0].permute(1, 2, 0).numpy()


INHERITED: list[object] = []  # kept for ever, in forked processes only


class Decoder:
    """Reads frames of footage; a few videos stay open, for those that are asked for again."""

    def __init__(self, keep: int = 4) -> None:
        self.keep = keep
        self._open: OrderedDict[str, Video | RenderedVideo] = OrderedDict()
        self._process = os.getpid()

    def __reduce__(self) -> tuple[type[Decoder], tuple[int]]:
        return Decoder, (self.keep,)  # another process opens its own

    def read(self, video: Footage, indices: Numbers, short_side: int) -> Pictures:
        """The frames `indices` in that order, at `short_side`; each is decoded once, in ascending order.

        Raises DataError for files that have changed, VideoError for frames that cannot be read.
        """
        wanted, order = np.unique(np.asarray(indices), return_inverse=True)
        with quiet():
            images = [shrink(image, short_side) for image in self._images(video, wanted.tolist())]
        return np.stack(images)[order]

    def read_all(self, video: Footage, short_side: int) -> Iterator[Picture]:
        """All frames in order, at `short_side`, one at a time; what opening says again is not silenced."""
        for image in self._images(video, range(video.frames)):
            yield shrink(image, short_side)

    def _images(self, video: Footage, wanted: Iterable[int]) -> Iterator[Picture]:
        if video.scene is not None:
            yield from pick(self._video(video), video, wanted)
            return
        refuse_change(video)
        yield from self._images_of_files(video, wanted)
        refuse_change(video)  # between the look before and the opening

    def _images_of_files(self, video: Footage, wanted: Iterable[int]) -> Iterator[Picture]:
        if video.span[1]:
            yield from images_of_sample(video, wanted)
        elif Path(video.source).is_dir():
            frames = frames_of(Path(video.source))
            for index in wanted:
                yield sized(video, read_still(place(frames[index])))
        else:
            yield from pick(self._video(video), video, wanted)

    def _video(self, video: Footage) -> Video | RenderedVideo:
        if self._process != os.getpid():  # what the parent opened stays as it is, see `start_workers`
            INHERITED.append(self._open)
            self._open, self._process = OrderedDict(), os.getpid()
        if video.source not in self._open:
            scene = video.scene
            self._open[video.source] = (
                RenderedClip(scene).video if scene else open_video(video.source, decode_ahead=0)
            )
            while len(self._open) > self.keep:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(video.source)
        return self._open[video.source]

    def close(self) -> None:
        """Close what is open."""
        while self._open:
            self._open.popitem()[1].close()


def start_workers(loader: DataLoader[T]) -> Iterator[T]:
    """The iteration of `loader`, its processes forked so that they never free what they inherit.

    FFmpeg's threads do not survive a fork, and freeing a decoder waits for them: a worker would stand still
    for ever. So garbage goes before the fork, and the workers' collector leaves everything else alone.
    """
    if not loader.num_workers:
        return iter(loader)
    gc.collect()
    gc.freeze()
    try:
        return iter(loader)
    finally:
        gc.unfreeze()


# ----------------------------------------------------------------------------------------------- store


@dataclass(frozen=True)
class FrameStore:
    """Decoded frames on disk: one memory-mapped array [frames, h, w, 3] of uint8 per video."""

    folder: Path
    short_side: int  # px

    def path(self, video: Footage) -> Path:
        """Named by where the video is, then by its state, so that another state is another file."""
        state = f"{video.stamp} {video.span} {video.frames} {video.scene}"
        return self.folder / f"{_digest(video.source)}-{_digest(state)}.npy"

    def bytes(self, video: Footage) -> int:
        """Size of its frames."""
        height, width = size_at(video.height, video.width, self.short_side)
        return video.frames * height * width * 3

    def frames(self, video: Footage) -> Pictures:
        """All frames, mapped, not read."""
        return np.load(self.path(video), mmap_mode="r")  # type: ignore[no-any-return]

    def read(self, video: Footage, indices: Numbers) -> Pictures:
        """The frames `indices`, in that order."""
        return np.asarray(self.frames(video)[np.asarray(indices)])


def store_frames(
    videos: Sequence[Footage],
    short_side: int,
    *,
    limit_gb: float = 50.0,
    folder: Path | None = None,
    workers: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[FrameStore, tuple[Broken, ...]]:
    """Decode every video once, into `folder` (default: the cache); those that are there already are kept.

    Returns the store and the videos that could not be decoded. A video appears when it is whole, so a
    killed run goes on where it was. `limit_gb` bounds the frames of `videos` together, 10^9 bytes. Reading
    is fast in this process already; many rendered scenes are better shared by `workers` processes.
    Raises OutputError where they would pass the limit, or do not fit the disk.
    """
    folder = folder or cache_folder() / "frames" / f"short-{short_side}"
    store = FrameStore(folder, short_side)
    with _disk_errors_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        missing = [video for video in videos if not store.path(video).exists()]
        _refuse_size(store, videos, missing, limit_gb)
        broken = _store_all(store, missing, workers, progress)
    return store, tuple(broken)


def _refuse_size(
    store: FrameStore, videos: Sequence[Footage], missing: Sequence[Footage], limit_gb: float
) -> None:
    total = sum(map(store.bytes, videos)) / 1e9
    more, free = sum(map(store.bytes, missing)) / 1e9, shutil.disk_usage(store.folder).free / 1e9
    if total > limit_gb:
        raise OutputError(
            f"{store.folder}: {len(videos)} videos decoded at short side {store.short_side} take "
            f"{total:.1f} GB, the limit is {limit_gb:g} GB; raise the limit, choose a smaller size, or "
            "decode while training"
        )
    if more > free:
        raise OutputError(
            f"{store.folder}: decoded frames need {more:.1f} GB more, {free:.1f} GB are free; make room, set "
            "UNSPOOL_CACHE to a larger disk, choose a smaller size, or decode while training"
        )


def _store_all(
    store: FrameStore, videos: Sequence[Footage], workers: int, progress: Callable[[int, int], None]
) -> list[Broken]:
    broken = []
    filled: DataLoader[Broken | Exception | None] = DataLoader(
        _Filler(store, videos),  # type: ignore[arg-type]
        batch_size=None,
        sampler=range(len(videos)),
        num_workers=workers,
        generator=torch.Generator(),  # its own, so that storing moves no other random numbers
    )
    with quiet():
        for done, outcome in enumerate(start_workers(filled), start=1):
            if isinstance(outcome, Exception):
                raise outcome
            broken += [outcome] if outcome else []
            progress(done, len(videos))
    return broken


@dataclass(frozen=True)
class _Filler:
    """What a worker process does; errors travel as values, since raised ones would lose their message."""

    store: FrameStore
    videos: Sequence[Footage]

    def __getitem__(self, number: int) -> Broken | Exception | None:
        video, decoder = self.videos[number], Decoder(keep=1)
        try:
            with quiet():
                _write_frames(self.store, video, decoder)
        except VideoError as error:
            return Broken(video.source, str(error), video.stamp)
        except Exception as error:
            return error
        finally:
            decoder.close()
        return None


def _write_frames(store: FrameStore, video: Footage, decoder: Decoder) -> None:
    """Of processes that want the same frames one decodes; the others wait for it."""
    path = store.path(video)
    lock = path.with_name(f".{path.name}.lock")
    with FileLock(lock):
        try:
            if not path.exists():
                _write_first(store, video, decoder)
        finally:
            with suppress(OSError):  # those who wait for it look for the frames next
                lock.unlink()


def _write_first(store: FrameStore, video: Footage, decoder: Decoder) -> None:
    path = store.path(video)
    part = path.with_name(f"{path.name}.{uuid4().hex}.part")
    try:
        with part.open("wb") as file:
            write_npy(file, decoder.read_all(video, store.short_side), video.frames)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    for old in store.folder.glob(f"{_digest(video.source)}-*.npy"):
        if old != path:
            old.unlink(missing_ok=True)  # frames of a file that is no longer like this


def write_npy(file: BinaryIO, images: Iterable[Picture], count: int) -> None:
    """`images` one after the other as one array; written, not mapped, so that a full disk is an error."""
    for number, image in enumerate(images):
        if number == 0:
            shape = {"descr": "|u1", "fortran_order": False, "shape": (count, *image.shape)}
            np.lib.format.write_array_header_1_0(file, shape)
        file.write(np.ascontiguousarray(image).data)


@contextmanager
def quiet() -> Iterator[None]:
    """Without warnings about videos: what there is to say was said when they were looked at first."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnspoolWarning)
        yield


@contextmanager
def _disk_errors_named(folder: Path) -> Iterator[None]:
    try:
        yield
    except UnspoolError:
        raise
    except OSError as error:
        full = error.errno == errno.ENOSPC
        remedy = "make room" if full else "set UNSPOOL_CACHE to a folder that you may write to"
        what = f"decoded frames cannot be written ({error.strerror})"
        raise OutputError(f"{folder}: {what}; {remedy}") from error


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()

"""Video in and out: containers, folders of frames, globs, fsspec addresses; H.264 with exact times.

Frames are RGB arrays `[H, W, 3]` of uint8, in display order, upright.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import warnings
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import overload

import av

from unspool.errors import UnspoolError, UnspoolWarning, UsageError, VideoError
from unspool.video.container import Container, Notice, Picture
from unspool.video.source import Place, place
from unspool.video.stills import Stills
from unspool.video.writer import VideoWriter

__all__ = ["Video", "VideoWriter", "open_video"]

STILLS_FPS = 24


def open_video(source: str | Path, *, fps: float | Fraction | None = None, decode_ahead: int = 4) -> Video:
    """Open a video file, a folder or glob of frames, or any of these behind an fsspec address.

    `fps` is the rate of folders and globs (default 24); files have their own times. `decode_ahead` frames
    are kept ready by a thread while iterating; 0 decodes in the caller's thread.
    Raises VideoError where nothing can be decoded; lost frames are left out with an UnspoolWarning.
    """
    where = place(source)
    with _errors_named(where):
        if where.is_folder or where.is_pattern:
            rate = Fraction(fps if fps is not None else STILLS_FPS).limit_denominator(100_000)
            if rate <= 0:
                raise UsageError(f"fps={fps}: a rate is above 0, for example fps=24")
            return Video(where, Stills(where, rate), decode_ahead)
        if fps is not None:
            raise UsageError(f"{where}: fps={fps} is for folders of frames; a video file has its own times")
        _refuse_no_file(where)
        return Video(where, Container(where, _warn), decode_ahead)


class Video:
    """A lazy, sized sequence of frames `[H, W, 3]`, uint8 RGB, with times.

    Transparent pixels are white, more than 8 bits become 8; pixels that are not square stay as they are
    stored, `pixel_aspect` (width over height of one pixel) says so.
    """

    def __init__(self, where: Place, reader: Container | Stills, decode_ahead: int) -> None:
        self.source = where.address
        self.name = where.stem
        self.height, self.width = reader.height, reader.width
        self.fps = reader.fps  # average, frames per second
        self.pixel_aspect = reader.pixel_aspect
        self.frame_names: list[str] | None = reader.names  # stems of the images of a folder
        self.times: Sequence[Fraction] = _Times(reader)  # s; shrinks with the video if damage shows later
        self._where, self._reader, self._ahead = where, reader, decode_ahead
        self._running: weakref.WeakSet[Generator[Picture, None, None]] = weakref.WeakSet()

    def __len__(self) -> int:
        return len(self._reader)

    def __getitem__(self, index: int) -> Picture:
        """The index-th frame that iteration gives; negative counts from the end."""
        length = len(self)
        if not -length <= index < length:
            raise IndexError(f"{self.source}: frame {index} asked for, there are {length}")
        with _errors_named(self._where):
            return self._reader.at(index % length, _warn)

    def __iter__(self) -> Iterator[Picture]:
        frames = _decode_ahead(self._pictures, self._ahead) if self._ahead else self._pictures(_warn)
        self._running.add(frames)
        return frames

    def _pictures(self, notice: Notice) -> Generator[Picture, None, None]:
        with _errors_named(self._where):
            yield from self._reader.pictures(notice)

    def close(self) -> None:
        """Close the file and end the threads of iterations that are not finished."""
        for frames in list(self._running):
            with contextlib.suppress(ValueError):  # another thread is inside; it ends with its reader
                frames.close()
        self._reader.close()

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Times(Sequence[Fraction]):
    """Seconds of each frame, worked out when asked: a long video costs 8 bytes a frame."""

    def __init__(self, reader: Container | Stills) -> None:
        self._reader = reader

    def __len__(self) -> int:
        return len(self._reader)

    @overload
    def __getitem__(self, index: int) -> Fraction: ...
    @overload
    def __getitem__(self, index: slice) -> list[Fraction]: ...
    def __getitem__(self, index: int | slice) -> Fraction | list[Fraction]:
        numbers = range(len(self))[index]
        return (
            [self._reader.time(n) for n in numbers]
            if isinstance(numbers, range)
            else self._reader.time(numbers)
        )


def _decode_ahead(
    pictures: Callable[[Notice], Iterator[Picture]], depth: int
) -> Generator[Picture, None, None]:
    """What `pictures` gives, made by a thread that keeps up to `depth` ready and ends with this generator.

    Its errors are raised here, and its notices warned about here, in their place among the frames.
    """
    ready: queue.SimpleQueue[Picture | str | Exception | None] = queue.SimpleQueue()
    free: queue.SimpleQueue[None] = queue.SimpleQueue()  # one entry per frame that may still be made
    stop = threading.Event()

    def put(item: Picture | str | Exception | None) -> None:
        free.get()
        if stop.is_set():
            raise _StoppedError
        ready.put(item)

    def produce() -> None:
        with contextlib.suppress(_StoppedError):
            try:
                for picture in pictures(put):
                    put(picture)
                put(None)
            except Exception as error:
                put(error)

    for _ in range(depth):
        free.put(None)
    thread = threading.Thread(target=produce, name="unspool-decode-ahead", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            free.put(None)
            if isinstance(item, Exception):
                raise item
            if isinstance(item, str):
                _warn(item)
            else:
                yield item
    finally:
        stop.set()
        free.put(None)
        thread.join()


class _StoppedError(BaseException):
    """The reader has gone; the thread ends."""


def _warn(message: str) -> None:
    warnings.warn(message, UnspoolWarning, stacklevel=4)


@contextlib.contextmanager
def _errors_named(where: Place) -> Iterator[None]:
    try:
        yield
    except av.FFmpegError as error:
        raise VideoError(f"{where}: {_reason(where, error)}") from error
    except OSError as error:
        raise VideoError(f"{where}: cannot be read ({error.strerror or error}); check the file") from error
    except Exception as error:  # every kind of storage behind an address has errors of its own
        if where.files is None or isinstance(error, (UnspoolError, IndexError, Warning)):
            raise
        raise VideoError(f"{where}: cannot be read ({error}); check the address and your access") from error


def _refuse_no_file(where: Place) -> None:
    if not where.exists:
        raise VideoError(f"{where}: no such file or folder; check the path")
    if where.size == 0:
        raise VideoError(f"{where}: is empty (0 bytes); copy or record it again")


def _reason(where: Place, error: av.FFmpegError) -> str:
    if _misses_its_index(where):
        return (
            "its index (moov) is missing: the file was cut off, or its recording was never finished; "
            "get a whole copy, or rebuild the index with a tool such as untrunc"
        )
    return (
        f"FFmpeg cannot read it as a video ({error.strerror}); check that it is one and whole, or convert it"
    )


def _misses_its_index(where: Place) -> bool:
    """Whether this is an MP4 or MOV file without its `moov` box."""
    kinds: list[bytes] = []
    at = 0
    with where.open() as file:
        while len(head := file.read(8)) == 8 and len(kinds) < 100:
            size, kind = int.from_bytes(head[:4], "big"), head[4:]
            if size == 1:
                size = int.from_bytes(file.read(8), "big")
            kinds.append(kind)
            at += max(size, 8)
            file.seek(at)
    return kinds[:1] == [b"ftyp"] and b"moov" not in kinds

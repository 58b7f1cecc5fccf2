"""A video that comes through a pipe: read once, in order, without seeking; its length is not known."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from fractions import Fraction
from types import TracebackType
from typing import Any, BinaryIO

import av
import numpy as np
import numpy.typing as npt

from unspool.errors import UnspoolWarning, VideoError
from unspool.video.container import Upright, to_rgb
from unspool.video.packets import video_stream
from unspool.video.source import Place

REMEDY = (
    "an MP4 must have its index first or be cut into fragments (ffmpeg -movflags +faststart, or "
    "+frag_keyframe+empty_moov); Matroska, MPEG-TS and yuv4mpeg always work"
)


class Stream:
    """Frames `[H, W, 3]`, uint8 RGB, of an open binary file that cannot seek; to be iterated once.

    Each frame is given when the next one has been decoded: `times` (s) then holds both. `tick` is the unit of
    these times, s. Damaged packets are left out, and told in an UnspoolWarning at the end.
    Raises VideoError where no frame can be decoded.
    """

    frame_names = None

    def __init__(self, file: BinaryIO, name: str = "stdin") -> None:
        self.source, self.name = "-", name
        self._lost = 0
        try:
            self._container: Any = av.open(_Unseekable(file), metadata_errors="replace")
            self._stream: Any = video_stream(self._container, Place(name, name))
        except (av.FFmpegError, OSError) as error:
            raise VideoError(f"{name}: cannot be read as a video ({error.strerror}); {REMEDY}") from error
        self.tick = Fraction(self._stream.time_base)
        self.fps = Fraction(self._stream.average_rate or 24)
        self.times: list[Fraction] = []
        self._frames = self._decoded()
        self._next: Any = self._taken()
        if self._next is None:
            raise VideoError(f"{name}: no frame can be decoded without seeking; {REMEDY}")
        self._coded = (self._next.height, self._next.width)
        self._upright = Upright.of(self._next)
        self.height, self.width = self._coded[::-1] if self._upright.swap else self._coded
        aspect = Fraction(self._stream.sample_aspect_ratio or 1) or Fraction(1)
        self.pixel_aspect = 1 / aspect if self._upright.swap else aspect

    def __iter__(self) -> Iterator[npt.NDArray[np.uint8]]:
        while (frame := self._next) is not None:
            if (frame.height, frame.width) != self._coded:
                raise VideoError(
                    f"{self.name}: changes its size from {self._coded[1]}x{self._coded[0]} to "
                    f"{frame.width}x{frame.height}; end the stream there"
                )
            picture = self._upright.apply(to_rgb(frame))
            self._next = self._taken()
            yield picture
        if self._lost:
            told = f"{self.name}: {self._lost} packets were damaged and are left out"
            warnings.warn(f"{told}; check the sender", UnspoolWarning, stacklevel=2)

    def close(self) -> None:
        """Read no more."""
        self._container.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _taken(self) -> Any:
        """The next frame, its time noted; None at the end."""
        frame = next(self._frames, None)
        if frame is not None:
            self.times.append(self._time(frame.pts))
        return frame

    def _time(self, pts: int | None) -> Fraction:
        """The stamp's time; where it is missing or not later than the last, one frame after that."""
        if pts is not None and (not self.times or pts * self.tick > self.times[-1]):
            return pts * self.tick
        step = max(1, round(1 / self.fps / self.tick)) * self.tick
        return self.times[-1] + step if self.times else Fraction(0)

    def _decoded(self) -> Iterator[Any]:
        try:
            for packet in self._container.demux(self._stream):
                try:
                    frames = packet.decode()
                except av.FFmpegError:
                    self._lost += 1
                    continue
                yield from frames
        except av.FFmpegError:  # the sender broke off
            self._lost += 1


class _Unseekable:
    """Only `read`: FFmpeg then never tries to seek; gives what is there, for the sake of live streams."""

    def __init__(self, file: BinaryIO) -> None:
        self.read = getattr(file, "read1", file.read)

"""A video out for editors: ProRes 4444 with alpha in a QuickTime file, at exact times."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

from unspool.errors import OutputError
from unspool.video.writer import MP4_CLOCK, clock_of


class ProResWriter:
    """Writes frames `[H, W, 4]` (straight alpha) to a .mov that appears under its name only when it is whole.

    Any size, 4:4:4, 10 bits, alpha of 16, BT.709; `times` (s, one per frame, ascending) are kept exactly.
    As a context manager: closed on success, nothing is left after an error. Raises OutputError.
    """

    def __init__(self, path: Path, *, height: int, width: int, times: Sequence[Fraction]) -> None:
        self.path, self._times, self._frames = path, times, 0
        self._clock = clock_of(times, MP4_CLOCK)
        self._zero = min(Fraction(0), times[0])  # what is shown before 0 would be hidden
        self._part = path.with_name(f".{path.name}.part")
        options = {"movie_timescale": str(self._clock.denominator)}
        try:
            self._output: Any = av.open(str(self._part), "w", format="mov", options=options)
            self._stream: Any = self._output.add_stream("prores_ks", rate=self._rate())
        except (av.codec.codec.UnknownCodecError, ValueError) as error:
            self._part.unlink(missing_ok=True)
            raise OutputError(f"{path}: FFmpeg has no prores_ks; install the av wheel from PyPI") from error
        except (av.FFmpegError, OSError) as error:
            raise OutputError.of(path, error) from error
        codec = self._stream.codec_context
        codec.width, codec.height, codec.pix_fmt = width, height, "yuva444p10le"
        codec.time_base = self._stream.time_base = self._clock
        codec.colorspace, codec.color_range = 1, ColorRange.MPEG  # BT.709, as editors assume
        codec.color_primaries, codec.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        self._stream.options = {"profile": "4444", "alpha_bits": "16"}

    def _rate(self) -> Fraction:
        span = self._times[-1] - self._times[0]
        return ((len(self._times) - 1) / span).limit_denominator(100_000) if span else Fraction(24)

    def __enter__(self) -> ProResWriter:
        return self

    def write(self, picture: npt.NDArray[np.uint8]) -> None:
        """Take the next frame."""
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgba")
        frame = frame.reformat(
            format="yuva444p10le",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            threads=1,
        )
        frame.pts, frame.time_base = self._ticks(self._frames), self._clock
        self._mux(frame)
        self._frames += 1

    def _ticks(self, index: int) -> int:
        return round((self._times[index] - self._zero) / self._clock)

    def _mux(self, frame: Any) -> None:
        try:
            self._output.mux(self._stream.encode(frame))
        except (av.FFmpegError, OSError) as error:
            raise OutputError.of(self.path, error) from error

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if kind is None:
                self._mux(None)
            self._output.close()
            if kind is None:
                self._part.replace(self.path)
        except (av.FFmpegError, OSError) as failed:
            if kind is None:
                raise OutputError.of(self.path, failed) from failed
        finally:
            self._part.unlink(missing_ok=True)

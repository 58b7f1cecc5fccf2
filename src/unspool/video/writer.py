"""A video out: H.264 in MP4 with the source's own times and sound."""

from __future__ import annotations

import contextlib
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

from unspool.errors import OutputError, UnspoolWarning
from unspool.video.packets import open_container
from unspool.video.source import Place, place

Picture = npt.NDArray[np.uint8]  # [H, W, 3] RGB

ENCODERS = ("libx264", "libopenh264", "mpeg4")  # by preference; what they need is free to use
FINEST_CLOCK = {"mpeg4": 65_535}  # ticks per second that a codec's own header can hold
MP4_CLOCK = 10_000_000
PRESET = "superfast"  # of libx264: ultrafast takes 3/4 of the time and up to twice the bytes
KEY_FRAMES = 48  # at most this many frames apart, so that a player can step backwards


class VideoWriter:
    """Writes frames to an MP4 that appears under its name only when it is whole.

    H.264 4:2:0; odd sizes are padded to even by repeating the last row or column; `times` (s, one per
    frame, ascending) are kept exactly, variable rates too; the sound of `audio_from` is copied as it is
    (a folder of frames has none). `tick` (s): the unit of times that are not known yet; of a stream, `times`
    may grow while frames are written, and holds one more than there are, if there is one more.
    As a context manager: closed on success, nothing is left after an error. Raises OutputError.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        height: int,
        width: int,
        times: Sequence[Fraction],
        audio_from: str | Path | None = None,
        crf: int = 23,
        pixel_aspect: Fraction = Fraction(1),
        tick: Fraction | None = None,
    ) -> None:
        self.path, self.height, self.width = Path(path), height, width
        self.frames = self._muxed = 0
        self._times = times  # looked up frame by frame: a damaged source may turn out shorter
        self._part = self.path.with_name(self.path.name + ".part")
        self._audio: _Sound | None = None
        self._output: Any = None
        self.codec = _best_encoder(self.path)
        self._clock = clock_of(times if tick is None else [tick], FINEST_CLOCK.get(self.codec, MP4_CLOCK))
        with self._errors_named():
            where = place(audio_from) if audio_from is not None else None
            if where and not (where.is_folder or where.is_pattern):
                self._audio = _Sound(where)
            self._output = av.open(str(self._part), "w", format="mp4", options=self._mp4_options())
            self._stream = self._add_video(crf, pixel_aspect)
            if self._audio:
                self._audio.join(self._output, self._span(), self._before_zero())
            self._output.start_encoding()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def write(self, image: Picture) -> None:
        """Take the next frame, `[H, W, 3]` uint8 RGB."""
        assert image.shape == (self.height, self.width, 3), f"{image.shape} for {self.height}x{self.width}"
        assert self.frames < len(self._times), f"{self.path}: more frames than times ({len(self._times)})"
        with self._errors_named():
            frame = self._to_yuv(image)
            frame.pts, frame.time_base = self._ticks(self.frames), self._clock
            self.frames += 1
            self._mux(self._stream.encode(frame))

    def close(self) -> None:
        """Finish the file and give it its name."""
        if self._output is None:
            return
        with self._errors_named():
            self._mux(self._stream.encode(None))
            if self._audio:
                for packet in self._audio.before(None):
                    self._output.mux(packet)
            self._output.close()
            self._part.replace(self.path)
        self._output = None
        self.abort()

    def abort(self) -> None:
        """Give up: no file is left. Does nothing once closed."""
        if self._output is not None:
            with contextlib.suppress(av.FFmpegError, OSError):
                self._output.close()
            self._output = None
            self._part.unlink(missing_ok=True)
        if self._audio:
            self._audio.close()

    # --------------------------------------------------------------------------------------- inside

    def _mp4_options(self) -> dict[str, str]:
        """Index first; and a clock of the whole file in which late starts of both streams are exact."""
        ticks = self._clock.denominator
        common = math.lcm(ticks, self._audio.rate if self._audio else 1)
        return {"movflags": "+faststart", "movie_timescale": str(common if common < 2**31 else ticks)}

    def _add_video(self, crf: int, pixel_aspect: Fraction) -> Any:
        first, last = self._span()
        rate = (
            (len(self._times) / (last - first)).limit_denominator(100_000) if last > first else Fraction(24)
        )
        stream: Any = self._output.add_stream(self.codec, rate=rate)
        codec = stream.codec_context
        codec.width, codec.height = self.width + self.width % 2, self.height + self.height % 2
        codec.pix_fmt = "yuv420p"
        codec.time_base = stream.time_base = self._clock
        codec.gop_size, codec.max_b_frames = KEY_FRAMES, 0
        codec.thread_count = min(4, os.cpu_count() or 1)
        codec.sample_aspect_ratio = pixel_aspect
        high = self.height >= 720  # what players assume where nothing is said; so say it, and mean it
        self._colours = Colorspace.ITU709 if high else Colorspace.ITU601
        codec.colorspace = 1 if high else 6  # BT.709, SMPTE 170M
        codec.color_primaries = ColorPrimaries.BT709 if high else ColorPrimaries.SMPTE170M
        codec.color_trc = ColorTrc.BT709 if high else ColorTrc.SMPTE170M
        codec.color_range = ColorRange.MPEG
        if self.codec == "libx264":
            stream.options = {"preset": PRESET, "crf": str(crf)}
        else:
            codec.bit_rate = int(codec.width * codec.height * rate * Fraction(3, 20))
        return stream

    def _span(self) -> tuple[Fraction, Fraction]:
        """First time, and the end of the last frame."""
        times, count = self._times, len(self._times)
        if count < 2:
            start = times[0] if count else Fraction(0)
            return start, start + Fraction(1, 24)
        return times[0], 2 * times[-1] - times[-2]

    def _ticks(self, index: int) -> int:
        """Time of a frame in ticks of the clock; the one after the last is as far as the one before."""
        at = self._times[index] if index < len(self._times) else self._span()[1]
        return round((at - self._before_zero()) / self._clock)

    def _before_zero(self) -> Fraction:
        """An MP4 hides what is shown before 0: such a video is moved to start at 0, with its sound."""
        return min(Fraction(0), self._span()[0])

    def _to_yuv(self, image: Picture) -> Any:
        if self.height % 2 or self.width % 2:
            image = np.pad(image, ((0, self.height % 2), (0, self.width % 2), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        return frame.reformat(
            format="yuv420p", dst_colorspace=self._colours, dst_color_range=ColorRange.MPEG, threads=1
        )

    def _mux(self, packets: list[Any]) -> None:
        for packet in packets:  # in display order, as there are no B-frames
            packet.duration = self._ticks(self._muxed + 1) - self._ticks(self._muxed)
            self._muxed += 1
            if self._audio:
                for sound in self._audio.before(packet.pts * packet.time_base):
                    self._output.mux(sound)
            self._output.mux(packet)

    @contextlib.contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except (av.FFmpegError, OSError) as error:
            self.abort()
            raise OutputError.of(self.path, error) from error
        except BaseException:
            self.abort()
            raise


class _Sound:
    """The audio packets of another file, as they are, within the video's span."""

    def __init__(self, source: Place) -> None:
        self._path = source
        self._container, self._file = open_container(source)
        known = (s for s in self._container.streams.audio if s.codec_context is not None)
        self._source = next(known, None)
        self.rate: int = self._source.rate if self._source else 1
        self._packets: Iterator[Any] = iter(())
        self._next: Any = None

    def join(self, output: Any, span: tuple[Fraction, Fraction], zero: Fraction) -> None:
        """Give the output a stream for the sound, if there is one and an MP4 can hold it (else a warning)."""
        if self._source is None:
            return
        codec = self._source.codec_context
        if not {codec.name, codec.codec.canonical_name} & output.supported_codecs:
            warnings.warn(
                f"{self._path}: its sound ({codec.name}) does not fit into an MP4 and is left out; "
                "convert the sound to AAC to keep it",
                UnspoolWarning,
                stacklevel=4,
            )
            return
        (self._start, self._end), self._zero = span, zero
        self._target = output.add_stream_from_template(self._source)
        self._packets = self._container.demux(self._source)

    def before(self, time: Fraction | None) -> Iterator[Any]:
        """The packets up to `time` that have not been given yet; all that are left for None."""
        while (packet := self._next or self._read()) is not None:
            self._next = packet
            if time is not None and packet.pts * packet.time_base > time:
                return
            self._next = None
            back = round(self._zero / packet.time_base)
            packet.pts, packet.dts = packet.pts - back, None if packet.dts is None else packet.dts - back
            packet.stream = self._target
            yield packet

    def _read(self) -> Any:
        """The next packet within the span; None at the end, and where a cut-off file ends early."""
        with contextlib.suppress(av.FFmpegError):
            for packet in self._packets:
                if packet.pts is None or packet.size == 0:
                    continue
                begin = packet.pts * packet.time_base
                if begin >= self._end:
                    return None
                # One before the start is kept: it ends there, and the decoder needs it to warm up.
                if begin + (packet.duration or 0) * packet.time_base >= self._start:
                    return packet
        return None

    def close(self) -> None:
        self._container.close()
        if self._file:
            self._file.close()


def _best_encoder(path: Path) -> str:
    for name in ENCODERS:
        with contextlib.suppress(ValueError, av.FFmpegError):
            av.Codec(name, "w")
            if name != ENCODERS[0]:
                warnings.warn(
                    f"this build of FFmpeg lacks {ENCODERS[0]}: videos are written with {name}",
                    UnspoolWarning,
                    stacklevel=3,
                )
            return name
    known = ", ".join(ENCODERS)
    raise OutputError(f"{path}: FFmpeg has none of the encoders {known}; install the av wheel from PyPI")


def clock_of(times: Sequence[Fraction], finest: int) -> Fraction:
    """The coarsest tick in which every time is a whole number; 1/60000 s where that would be too fine."""
    ticks = 1
    for time in times:
        ticks = math.lcm(ticks, time.denominator)
        if ticks > finest:
            return Fraction(1, 60_000)
    return Fraction(1, ticks)

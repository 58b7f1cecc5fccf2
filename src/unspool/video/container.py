"""A video in a container: an index of its packets, exact random access, and what to do about damage.

Frames are numbered in display order. The index is built from the packets alone where that is known to
agree with what the decoder gives; wherever it might not, everything is decoded once, without converting.
Header counts are never trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any, BinaryIO

import av
import numpy as np
import numpy.typing as npt

from unspool.errors import VideoError
from unspool.video.source import Place

Picture = npt.NDArray[np.uint8]  # [H, W, 3] RGB
Notice = Callable[[str], None]

# Formats and codecs whose packets hold one shown frame each, and say when it is shown.
PLAIN_FORMATS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "gif"}
PLAIN_CODECS = {
    "h264",
    "hevc",
    "vp9",
    "libvpx-vp9",
    "av1",
    "libdav1d",
    "mpeg4",
    "mjpeg",
    "gif",
    "ffv1",
    "png",
    "prores",
}
NOT_VIDEO = {"tty", "ansi", "bin", "xbin", "adf", "idf"}  # FFmpeg would draw the text of a text file
HDR = {16: "PQ", 18: "HLG"}


@dataclass
class Index:
    """What the packets say."""

    pts: npt.NDArray[np.int64]  # of the frames, ascending
    anchors: npt.NDArray[np.int64]  # pts of frames where exact decoding can start, ascending
    announced: int  # frames by the header; 0 if it does not say
    packets: int
    suspicious: bool  # the packets alone are not to be trusted
    counted: bool = False  # frames have no usable time stamps and are counted from the start


class Container:
    """The frames of a container, by number."""

    names = None

    def __init__(self, source: Place, notice: Notice) -> None:
        self.source = source
        self.careful = False
        self._cursor: tuple[int, Iterator[tuple[int, Any]]] | None = None
        self._decoder: _Decoder | None = None
        with _Decoder(source, careful=False) as decoder:
            self.time_base = Fraction(decoder.stream.time_base)
            self._rate = decoder.stream.average_rate
            self.index = _read_packets(decoder)
        first = None if self.index.suspicious else self._first_frame()
        if first is None or first.interlaced_frame or first.pts != self.index.pts[0]:
            self.careful = True
            first = self._scan(notice)
        self._describe(first, notice)
        self.fps = self._fps()

    def __len__(self) -> int:
        return len(self.index.pts)

    def time(self, index: int) -> Fraction:
        """Seconds; the first frame may be later than 0."""
        if self.index.counted:
            return int(self.index.pts[index]) / self.fps
        return int(self.index.pts[index]) * self.time_base

    def close(self) -> None:
        """Close the file; a later look-up opens it again."""
        self._cursor = None
        if self._decoder:
            self._decoder.close()
            self._decoder = None

    # ------------------------------------------------------------------------------------- opening

    def _first_frame(self) -> Any:
        with _Decoder(self.source, careful=False) as decoder:
            try:
                return next(decoder.frames(), None)
            except av.FFmpegError:
                return None

    def _describe(self, first: Any, notice: Notice) -> None:
        self.coded = (first.height, first.width)
        self.turns = round(first.rotation / 90) % 4
        self.height, self.width = self.coded[::-1] if self.turns % 2 else self.coded
        with _Decoder(self.source, careful=False) as decoder:
            aspect = Fraction(decoder.stream.sample_aspect_ratio or 1) or Fraction(1)
        self.pixel_aspect = 1 / aspect if self.turns % 2 else aspect
        if (transfer := int(first.color_trc)) in HDR:
            look = "taken to 8 bits without tone mapping, so it looks flat"
            notice(f"{self.source}: is HDR ({HDR[transfer]}); {look}")

    def _fps(self) -> Fraction:
        """The stream's average rate where the time stamps agree to 5 %, else theirs."""
        stated = Fraction(self._rate) if self._rate else None
        if self.index.counted or len(self) < 2:
            return stated or Fraction(24)
        span = int(self.index.pts[-1] - self.index.pts[0]) * self.time_base
        measured = (len(self) - 1) / span
        if stated and abs(stated / measured - 1) < Fraction(1, 20):
            return stated
        return measured.limit_denominator(100_000)

    def _scan(self, notice: Notice) -> Any:
        """Decode everything once; the index then holds what really comes out. Returns the first frame."""
        first, pts = None, []
        with _Decoder(self.source, careful=True) as decoder:
            for frame in decoder.frames():
                first = first or frame
                pts.append(frame.pts)
            lost = sorted(p for p in decoder.lost if p is not None)
        if first is None:
            raise VideoError(
                f"{self.source}: announces {self.index.announced} frames, but none can be decoded; "
                "the file is cut off or damaged, get a whole copy"
            )
        counted = None in pts or any(b <= a for a, b in pairwise(pts))
        before = self.index
        frames = np.arange(len(pts)) if counted else np.array(pts, np.int64)
        anchors = np.empty(0, np.int64) if counted else np.intersect1d(before.anchors, frames)
        self.index = Index(frames, anchors, before.announced, before.packets, before.suspicious, counted)
        self._tell_losses(lost, notice)
        return first

    def _tell_losses(self, lost: list[int], notice: Notice) -> None:
        remaining, packets, announced = len(self), self.index.packets, self.index.announced
        remedy = "get a whole copy of the file if you can"
        if announced > packets:
            end = float(self.index.pts[-1] * self.time_base)
            notice(
                f"{self.source}: announces {announced} frames, but the file is cut off: {remaining} frames "
                f"(0-{remaining - 1}, to {end:.2f} s) could be decoded and are used; {remedy}"
            )
        elif lost:
            notice(f"{self.source}: {self._about(lost)}; {remedy}")

    def _about(self, lost: list[int]) -> str:
        """Which frames are lost, by number in the whole video, and which may look wrong after them."""
        whole = np.union1d(self.index.pts, np.array(lost, np.int64))
        numbers = np.searchsorted(whole, lost).tolist()
        when = " to ".join(f"{float(p * self.time_base):.2f} s" for p in dict.fromkeys((lost[0], lost[-1])))
        later = self.index.anchors[self.index.anchors > lost[-1]]
        healed = int(np.searchsorted(whole, later[0])) if len(later) else len(whole)
        doubt = [n for n in range(numbers[0], healed) if n not in set(numbers)]
        said = f"{_ranges(numbers, 'frame')} ({when}) cannot be decoded and are left out, "
        said += f"{len(self)} of {len(whole)} frames remain"
        return said + (
            f"; {_ranges(doubt, 'frame')}, up to the next key frame, may look wrong" if doubt else ""
        )

    # ------------------------------------------------------------------------------------- reading

    def pictures(self, notice: Notice) -> Iterator[Picture]:
        """All frames in display order, as `[H, W, 3]` RGB."""
        for _, frame in self._numbered(0, notice, keep=False):
            yield self._to_rgb(frame)

    def at(self, index: int, notice: Notice) -> Picture:
        """The index-th frame of `pictures`, for any index; in order, nothing is decoded twice."""
        position, frames = self._cursor or (-1, iter(()))
        if not position <= index or self._anchor_between(position, index) or position < 0:
            frames = self._numbered(index, notice, keep=True)
        for number, frame in frames:
            if number == index:
                self._cursor = (index + 1, frames)
                return self._to_rgb(frame)
        self._cursor = None
        raise IndexError(f"{self.source}: frame {index} of {len(self)}")

    def _anchor_between(self, position: int, index: int) -> bool:
        """Whether seeking saves decoding on the way from `position` to `index`."""
        if self.index.counted or index == position or position >= len(self):
            return index != position
        low, high = self.index.pts[position], self.index.pts[index]
        return bool(((self.index.anchors > low) & (self.index.anchors <= high)).any())

    def _numbered(self, start: int, notice: Notice, *, keep: bool) -> Iterator[tuple[int, Any]]:
        """Frames with their numbers, from `start` on; damage that shows only now shrinks the index."""
        wanted = int(self.index.pts[start])  # the pts that must come next
        decoder = self._decoder_at(wanted, keep=keep)
        try:
            while True:
                try:
                    for number, frame in self._from(decoder, wanted, notice):
                        yield number, frame
                        if number + 1 == len(self):
                            return
                        wanted = int(self.index.pts[number + 1])
                    break
                except av.FFmpegError:
                    # Frame threads blame the wrong packet: from here on slowly, one by one.
                    self.careful = True
                    decoder.close()
                    self._decoder = None
                    decoder = self._decoder_at(wanted, keep=keep)
        finally:
            if not keep:
                decoder.close()
        self._drop(self.index.pts[self.index.pts >= wanted], notice)

    def _from(self, decoder: _Decoder, wanted: int, notice: Notice) -> Iterator[tuple[int, Any]]:
        for count, frame in enumerate(decoder.frames()):
            pts = count if self.index.counted else frame.pts
            if pts < wanted:
                continue
            missing = self.index.pts[(self.index.pts >= wanted) & (self.index.pts < pts)]
            if len(missing):
                self._drop(missing, notice)
            number = int(np.searchsorted(self.index.pts, pts))
            if number < len(self) and self.index.pts[number] == pts:
                yield number, frame
                wanted = pts + 1

    def _drop(self, missing: npt.NDArray[np.int64], notice: Notice) -> None:
        self.index.pts = np.setdiff1d(self.index.pts, missing)
        self.index.anchors = np.setdiff1d(self.index.anchors, missing)
        notice(f"{self.source}: {self._about(missing.tolist())}; get a whole copy of the file if you can")

    def _decoder_at(self, wanted: int, *, keep: bool) -> _Decoder:
        """A decoder that stands at a place from where `wanted` comes out exact."""
        decoder = self._decoder if keep else None
        decoder = decoder or _Decoder(self.source, careful=self.careful)
        if not self._seek(decoder, wanted):
            decoder.close()
            decoder = _Decoder(self.source, careful=self.careful)
        if keep:
            self._decoder = decoder
        return decoder

    def _seek(self, decoder: _Decoder, wanted: int) -> bool:
        """Go to the last anchor at or before `wanted`; False where only the very start will do."""
        before = self.index.anchors[self.index.anchors <= wanted]
        if self.index.counted or len(before) < 2:
            return not decoder.used
        landed = decoder.seek(int(before[-1]))
        return landed is not None and landed <= before[-1] and bool(np.isin(landed, before))

    def _to_rgb(self, frame: Any) -> Picture:
        if (frame.height, frame.width) != self.coded:
            raise VideoError(
                f"{self.source}: changes its size from {self.coded[1]}x{self.coded[0]} to "
                f"{frame.width}x{frame.height} at {float(frame.time or 0):.2f} s; cut it there"
            )
        if any(component.is_alpha for component in frame.format.components):
            rgb = _on_white(frame.to_ndarray(format="rgba", threads=1))
        else:
            rgb = frame.to_ndarray(format="rgb24", threads=1)
        return np.ascontiguousarray(np.rot90(rgb, self.turns)) if self.turns else rgb


# ------------------------------------------------------------------------------------------ packets


class _Decoder:
    """One open file: packets in, frames out in display order."""

    def __init__(self, source: Place, *, careful: bool) -> None:
        self.careful = careful
        self.used = False  # whether packets have been taken
        self.lost: list[int | None] = []  # pts of packets that gave an error (careful only)
        self._pending: list[Any] = []
        self._file: BinaryIO | None = source.open() if source.files is not None else None
        try:
            self.container: Any = av.open(self._file or source.path, metadata_errors="replace")
        except BaseException:
            if self._file:
                self._file.close()
            raise
        self.stream: Any = video_stream(self.container, source)
        # One packet in, one frame or error out: only without frame threads is it known which is bad.
        self.stream.thread_type = "SLICE" if careful else "AUTO"

    def __enter__(self) -> _Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.container.close()
        if self._file:
            self._file.close()

    def packets(self) -> Iterator[Any]:
        self.used = True
        yield from self._pending
        self._pending = []
        try:
            yield from self.container.demux(self.stream)
        except av.FFmpegError:
            if not self.careful:
                raise

    def seek(self, pts: int) -> int | None:
        """Seek to a key frame; returns the pts of the packet where the file now stands."""
        try:
            self.container.seek(pts, stream=self.stream, backward=True)
            self._pending = [next(self.container.demux(self.stream))]
        except (av.FFmpegError, StopIteration):
            return None
        return self._pending[0].pts  # type: ignore[no-any-return]

    def frames(self) -> Iterator[Any]:
        for packet in self.packets():
            try:
                yield from packet.decode()
            except av.FFmpegError:
                if not self.careful:
                    raise
                self.lost.append(packet.pts)


def video_stream(container: Any, source: Place) -> Any:
    """The first stream of moving pictures; cover art is none. Raises VideoError."""
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if container.format.name in NOT_VIDEO:
        raise VideoError(f"{source}: is a text file, not a video; give a video file or a folder of frames")
    if not streams:
        kinds = sorted({s.type for s in container.streams}) or ["nothing"]
        raise VideoError(
            f"{source}: has no video stream, only {' and '.join(kinds)}; give a file with pictures"
        )
    return streams[0]


def audio_stream(source: Place) -> tuple[Any, Any]:
    """The opened container and its first audio stream, or None in its place."""
    container: Any = av.open(source.open() if source.files is not None else source.path)
    return container, next(iter(container.streams.audio), None)


def _read_packets(decoder: _Decoder) -> Index:
    stream = decoder.stream
    plain = decoder.container.format.name in PLAIN_FORMATS and stream.codec_context.name in PLAIN_CODECS
    nal = _NalReader.of(stream.codec_context)
    suspicious, count, pts, anchors = not plain, 0, [], []
    try:
        for packet in decoder.packets():
            if packet.size == 0 and packet.pts is None:
                continue  # the flush at the end
            odd = packet.is_corrupt or packet.is_discard or packet.pts is None
            odd |= not (nal.whole(packet) if nal else any(bytes(packet)[:64]))
            odd |= count == 0 and not packet.is_keyframe
            suspicious |= odd
            count += 1
            if packet.pts is not None:
                pts.append(packet.pts)
                if packet.is_keyframe and not odd and (nal is None or nal.restarts(packet)):
                    anchors.append(packet.pts)
    except av.FFmpegError:
        suspicious = True
    announced = stream.frames
    shown = np.unique(np.array(pts, np.int64))
    suspicious |= len(shown) != count or count == 0 or announced not in {0, count}
    return Index(shown, np.unique(np.array(anchors, np.int64)), announced, count, suspicious)


@dataclass(frozen=True)
class _NalReader:
    """Looks at the units of H.264 and HEVC packets that are stored with their lengths (MP4, MKV)."""

    hevc: bool
    length_bytes: int

    @classmethod
    def of(cls, codec: Any) -> _NalReader | None:
        extra = codec.extradata or b""
        if (
            codec.name not in {"h264", "hevc"}
            or len(extra) < 23 - 16 * (codec.name == "h264")
            or extra[0] != 1
        ):
            return None
        hevc = codec.name == "hevc"
        return cls(hevc, (extra[21 if hevc else 4] & 3) + 1)

    def types(self, packet: Any) -> list[int] | None:
        """Types of the units; None if their lengths do not fill the packet."""
        data, at, found = memoryview(packet), 0, []
        while at < len(data):
            size = int.from_bytes(data[at : at + self.length_bytes], "big")
            at += self.length_bytes
            if size == 0 or at + size > len(data):
                return None
            found.append(data[at] >> 1 & 63 if self.hevc else data[at] & 31)
            at += size
        return found

    def whole(self, packet: Any) -> bool:
        types = self.types(packet)
        return bool(types) and 0 not in (types if types and not self.hevc else [])

    def restarts(self, packet: Any) -> bool:
        """IDR in H.264; any random access picture in HEVC (what it leaves out is shown before it)."""
        types = self.types(packet) or []
        return any(16 <= t <= 21 for t in types) if self.hevc else 5 in types


def _on_white(rgba: npt.NDArray[np.uint8]) -> Picture:
    alpha = rgba[..., 3:].astype(np.uint16)
    mixed = rgba[..., :3] * alpha + np.uint16(255) * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)


def _ranges(numbers: list[int], word: str) -> str:
    """`frames 40-42, 50`."""
    starts = [n for n in numbers if n - 1 not in set(numbers)]
    ends = [n for n in numbers if n + 1 not in set(numbers)]
    shown = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
    return f"{word}{'s' * (len(numbers) > 1)} {shown}"

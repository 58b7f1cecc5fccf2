"""A video in a container: an index of its packets, exact random access, and what to do about damage.

Frames are numbered in display order. The index is built from the packets alone where that is known to
agree with what the decoder gives; wherever it might not, everything is decoded once, without converting.
Header counts are never trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import pairwise
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from unspool.errors import VideoError
from unspool.video.packets import Decoder, read_packets
from unspool.video.source import Place

Picture = npt.NDArray[np.uint8]  # [H, W, 3] RGB
Notice = Callable[[str], None]

REMEDY = "get a whole copy of the file if you can"
MOST_RATE = 480  # frames/s; a header that states more states its clock
HDR = {16: "PQ", 18: "HLG"}


class Container:
    """The frames of a container, by number."""

    names = None

    def __init__(self, source: Place, notice: Notice) -> None:
        self.source = source
        self.careful = False
        self._told = range(0)  # pts of frames whose damage is known
        self._cursor: tuple[int, Iterator[tuple[int, Any]]] | None = None
        self._decoder: Decoder | None = None
        with Decoder(source, careful=False) as decoder:
            self.time_base = Fraction(decoder.stream.time_base)
            self._rate = decoder.stream.average_rate
            self._nominal = nominal_rate(decoder.stream)
            aspect = Fraction(decoder.stream.sample_aspect_ratio or 1) or Fraction(1)
            self.index = read_packets(decoder)
        first = None if self.index.suspicious else self._first_frame()
        if first is None or first.interlaced_frame or first.pts != self.index.pts[0]:
            first = self._scan(notice)
        self.coded = (first.height, first.width)
        self.upright = Upright.of(first)
        self.height, self.width = self.coded[::-1] if self.upright.swap else self.coded
        self.pixel_aspect = 1 / aspect if self.upright.swap else aspect
        self.fps = self._fps()
        if (transfer := int(first.color_trc)) in HDR:
            look = "taken to 8 bits without tone mapping, so it looks flat"
            notice(f"{source}: is HDR ({HDR[transfer]}); {look}")

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
        with Decoder(self.source, careful=True) as decoder:  # one frame is not worth starting threads
            try:
                return next(decoder.frames(), None)
            except av.FFmpegError:
                return None

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
        try:
            frames, lost = self._decode_all(careful=False)
        except av.FFmpegError:
            self.careful = True
            frames, lost = self._decode_all(careful=True)
        if not frames:
            announced = self.index.announced or self.index.packets
            said = (
                f"announces {announced} frames, but none can be decoded" if announced else "holds no frames"
            )
            raise VideoError(f"{self.source}: {said}; the file is cut off or damaged, get a whole copy")
        stamps = [frame.pts for frame in frames if frame.pts is not None]
        ascending = len(stamps) == len(frames) and all(a < b for a, b in pairwise(stamps))
        same = len(frames) == len(stamps) > 1 == len(set(stamps))
        self.index.counted = same or (not ascending and not self.index.plain)
        # Where time stamps are to be trusted, a frame that comes too late is damage: lost, as in players.
        self.index.pts = np.arange(len(frames)) if self.index.counted else _ascending(stamps)
        self.index.anchors = np.intersect1d(self.index.anchors, self.index.pts)
        if same:
            self._rate = self._nominal or Fraction(24)  # an average over no time says nothing
            whose = "its header states" if self._nominal else "unspool takes where a header states none"
            notice(
                f"{self.source}: all {len(frames)} frames have the same time stamp; they are read at the "
                f"{float(self._rate):g} frames/s that {whose}"
            )
        self.fps = self._fps()
        self._tell_losses(lost, [f.pts for f in frames if f.damaged], notice)
        return frames[0].frame

    def _decode_all(self, *, careful: bool) -> tuple[list[_Seen], list[int | None]]:
        with Decoder(self.source, careful=careful) as decoder:
            seen = [
                _Seen(frame.pts, frame.is_corrupt, None if number else frame)
                for number, frame in enumerate(decoder.frames())
            ]
            return seen, decoder.lost

    def _tell_losses(self, lost: list[int | None], damaged: list[int | None], notice: Notice) -> None:
        index, remaining = self.index, len(self)
        stamps = sorted(p for p in lost if p is not None and not index.counted)
        silent = index.packets - index.hidden - remaining if index.plain else 0
        if index.announced > index.packets:
            said = (
                f"announces {index.announced} frames, but the file is cut off: {remaining} frames "
                f"(0-{remaining - 1}, to {float(self.time(remaining - 1)):.2f} s) can be decoded and are used"
            )
        elif stamps:
            said = self._about(stamps, index.pts)
        elif silent:
            said = (
                f"{silent} of {remaining + silent} frames cannot be shown, as the key frame that they build "
                "on is missing or damaged"
            )
        elif bad := len(lost) or index.corrupt:
            said = (
                f"{bad} of {index.packets} packets are damaged; {remaining} frames remain, and may look wrong"
            )
        elif damaged:
            said = f"{len(damaged)} of {remaining} frames are damaged; they are kept and may look wrong"
        else:
            return
        notice(f"{self.source}: {said}; {REMEDY}")

    def _about(self, lost: list[int], remaining: npt.NDArray[np.int64]) -> str:
        """Which frames are lost, by number in the whole video, and which may look wrong after them."""
        whole = np.union1d(remaining, np.array(lost, np.int64))
        numbers = np.searchsorted(whole, lost).tolist()
        healed = np.searchsorted(whole, [self._next_anchor(pts) for pts in lost]).tolist()
        spoilt = {n for start, end in zip(numbers, healed, strict=True) for n in range(start, end)}
        doubt = sorted(spoilt - set(numbers))
        when = " to ".join(f"{float(p * self.time_base):.2f} s" for p in dict.fromkeys((lost[0], lost[-1])))
        said = f"lost {_ranges(numbers)} ({when}), which cannot be decoded; "
        said += f"{len(remaining)} of {len(whole)} remain"
        return said + (f"; {_ranges(doubt)}, up to the next key frame, may look wrong" if doubt else "")

    def _next_anchor(self, pts: int) -> int:
        later = self.index.anchors[self.index.anchors > pts]
        return int(later[0]) if len(later) else int(np.iinfo(np.int64).max)

    # ------------------------------------------------------------------------------------- reading

    def pictures(self, notice: Notice) -> Iterator[Picture]:
        """All frames in display order, as `[H, W, 3]` RGB."""
        for _, frame in self._numbered(0, notice, shared=False):
            self._tell_damage(frame, notice)
            yield self._to_rgb(frame)

    def at(self, index: int, notice: Notice) -> Picture:
        """The index-th frame of `pictures`, for any index; in order, nothing is decoded twice."""
        position, frames = self._cursor or (-1, iter(()))
        if not 0 <= position <= index or self._anchor_between(position, index):
            frames = self._numbered(index, notice, shared=True)
        for number, frame in frames:
            if number == index:
                self._cursor = (index + 1, frames)
                self._tell_damage(frame, notice)
                return self._to_rgb(frame)
        self._cursor = None
        raise IndexError(f"{self.source}: frame {index} cannot be decoded, {len(self)} frames remain")

    def _tell_damage(self, frame: Any, notice: Notice) -> None:
        """Say so, once for the frames up to the next key frame, where the decoder had to patch."""
        if frame.is_corrupt and frame.pts is not None and frame.pts not in self._told:
            number = self._number(frame.pts)
            self._told = range(frame.pts, self._next_anchor(frame.pts))
            notice(
                f"{self.source}: frame {number} ({float(frame.time):.2f} s) is damaged; it is kept, and may "
                f"look wrong, as may those after it up to the next key frame; {REMEDY}"
            )

    def _anchor_between(self, position: int, index: int) -> bool:
        """Whether a seek to `index` saves decoding on the way there from `position`."""
        if position >= len(self):
            return True
        low, high = np.searchsorted(self.index.anchors, self.index.pts[[position, index]], side="right")
        return bool(high > low)

    def _numbered(self, start: int, notice: Notice, *, shared: bool) -> Iterator[tuple[int, Any]]:
        """Frames with their numbers, from `start` on; damage that shows only now shrinks the index.

        `shared`: with the decoder that `at` keeps, which the next call may seek.
        """
        wanted = int(self.index.pts[start])  # the pts of the next frame
        decoder = self._decoder_at(wanted, shared=shared)
        try:
            while True:
                try:
                    for number, frame in self._from(decoder, wanted, notice):
                        yield number, frame
                        wanted = int(self.index.pts[number]) + 1
                    return
                except (av.FFmpegError, _GapError):
                    # Frame threads blame the wrong packet, and a seek may land badly: from the very
                    # start, one packet at a time, only what is really lost is missing.
                    self.careful = True
                    decoder.close()
                    decoder = self._keep(Decoder(self.source, careful=True), shared=shared)
        finally:
            if not shared:
                decoder.close()

    def _from(self, decoder: Decoder, wanted: int, notice: Notice) -> Iterator[tuple[int, Any]]:
        """Frames at and after `wanted`. Where one is missing: it is dropped from the index, if sure."""
        expected = self._number(wanted)
        for count, frame in enumerate(decoder.frames()):
            pts = count if self.index.counted else frame.pts
            if pts is None or pts < wanted:
                continue
            number = self._number(pts)
            if number != expected:
                self._expect(decoder, wanted, pts, notice)
                number = self._number(pts)
            if number < len(self) and self.index.pts[number] == pts:
                wanted, expected = pts + 1, number + 1
                yield number, frame
            if number + 1 >= len(self):
                return
        self._expect(decoder, wanted, None, notice)

    def _number(self, pts: int) -> int:
        """How many frames come before `pts`."""
        return int(self.index.pts.searchsorted(pts))

    def _expect(self, decoder: Decoder, wanted: int, pts: int | None, notice: Notice) -> None:
        """Deal with indexed frames from `wanted` up to `pts` (None: the end) that did not come."""
        missing = self.index.pts[self._number(wanted) : len(self) if pts is None else self._number(pts)]
        if not len(missing):
            return
        if not decoder.sure:
            raise _GapError
        about = self._about(missing.tolist(), np.setdiff1d(self.index.pts, missing))
        self.index.anchors = np.setdiff1d(self.index.anchors, missing)
        self.index.pts = np.setdiff1d(self.index.pts, missing)
        notice(f"{self.source}: {about}; {REMEDY}")

    def _decoder_at(self, wanted: int, *, shared: bool) -> Decoder:
        """A decoder that stands where `wanted`, and all after it, will come out exact."""
        decoder = self._decoder if shared else None
        if decoder is None or decoder.careful < self.careful:
            decoder = self._keep(Decoder(self.source, careful=self.careful), shared=shared)
        if not self._seek(decoder, wanted):
            decoder.close()
            decoder = self._keep(Decoder(self.source, careful=self.careful), shared=shared)
        return decoder

    def _keep(self, decoder: Decoder, *, shared: bool) -> Decoder:
        if shared:
            self._decoder = decoder
        return decoder

    def _seek(self, decoder: Decoder, wanted: int) -> bool:
        """Go to the last anchor at or before `wanted`; False where only the very start will do."""
        before = self.index.anchors[: np.searchsorted(self.index.anchors, wanted, side="right")]
        if self.index.counted or len(before) < 2:
            return not decoder.used
        landed = decoder.seek(int(before[-1]))
        return landed is not None and bool(np.isin(landed, before))

    def _to_rgb(self, frame: Any) -> Picture:
        if (frame.height, frame.width) != self.coded:
            raise VideoError(
                f"{self.source}: changes its size from {self.coded[1]}x{self.coded[0]} to "
                f"{frame.width}x{frame.height} at {float(frame.time or 0):.2f} s; cut it there"
            )
        return self.upright.apply(to_rgb(frame))


@dataclass(frozen=True)
class _Seen:
    """What the scan keeps of a frame."""

    pts: int | None
    damaged: bool
    frame: Any  # the first one only


class _GapError(Exception):
    """A frame is missing, but it may be the fault of the way there."""


@dataclass(frozen=True)
class Upright:
    """How the display matrix turns and mirrors the coded picture, in right angles."""

    swap: bool = False
    reverse_rows: bool = False
    reverse_columns: bool = False

    @classmethod
    def of(cls, frame: Any) -> Upright:
        """With the matrix [a b; c d], the pixel (x, y) is shown at (ax + cy, bx + dy)."""
        for data in frame.side_data:
            if data.type.name == "DISPLAYMATRIX":
                a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].astype(int).tolist()
                swap = abs(b) > abs(a)
                return cls(swap, (b if swap else d) < 0, (c if swap else a) < 0)
        return cls()

    def apply(self, picture: Picture) -> Picture:
        """The picture as it is to be shown."""
        if self == Upright():
            return picture
        turned = picture.swapaxes(0, 1) if self.swap else picture
        rows, columns = -1 if self.reverse_rows else 1, -1 if self.reverse_columns else 1
        return np.ascontiguousarray(turned[::rows, ::columns])


def nominal_rate(stream: Any) -> Fraction | None:
    """Frames per second that the header states; units of a clock, such as 1000, are none."""
    stated = (stream.guessed_rate, stream.codec_context.framerate)
    return next((Fraction(rate) for rate in stated if rate and 0 < rate <= MOST_RATE), None)


def to_rgb(frame: Any) -> Picture:
    """A decoded frame as `[h, w, 3]`; transparent pixels are white."""
    if _has_alpha(frame.format.name):
        return _on_white(frame.to_ndarray(format="rgba", threads=1))
    rgb: Picture = frame.to_ndarray(format="rgb24", threads=1)
    return rgb


@cache
def _has_alpha(pixels: str) -> bool:
    return any(component.is_alpha for component in av.VideoFormat(pixels).components)


def _ascending(stamps: list[int]) -> npt.NDArray[np.int64]:
    """Those that are above all before them."""
    return np.unique(np.maximum.accumulate(np.array(stamps, np.int64)))


def _on_white(rgba: npt.NDArray[np.uint8]) -> Picture:
    alpha = rgba[..., 3:].astype(np.uint16)
    mixed = rgba[..., :3] * alpha + np.uint16(255) * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)


def _ranges(numbers: list[int]) -> str:
    """`frames 40-42, 50`."""
    known = set(numbers)
    starts = [n for n in numbers if n - 1 not in known]
    ends = [n for n in numbers if n + 1 not in known]
    shown = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
    return f"frame{'s' * (len(numbers) > 1)} {shown}"

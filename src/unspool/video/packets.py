"""What a container holds, packet by packet: the index of a video, and a decoder over one open file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import av
import numpy as np
import numpy.typing as npt

from unspool.errors import VideoError
from unspool.video.source import Place

# Formats and codecs whose packets hold one shown frame each, and say when it is shown.
PLAIN_FORMATS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "gif"}
PLAIN_CODECS = {
    "h264", "hevc", "vp9", "libvpx-vp9", "av1", "libdav1d", "mpeg4", "mjpeg", "gif", "ffv1", "png", "prores",
}  # fmt: skip
NOT_VIDEO = {"tty", "ansi", "bin", "xbin", "adf", "idf"}  # FFmpeg would draw the text of a text file


@dataclass
class Index:
    """What the packets say."""

    pts: npt.NDArray[np.int64]  # of the frames, ascending
    anchors: npt.NDArray[np.int64]  # pts of frames where exact decoding can start, ascending
    announced: int  # frames by the header; 0 if it does not say
    packets: int
    hidden: int  # packets that an edit list takes out
    corrupt: int  # packets that the container marks as damaged
    plain: bool  # each of the other packets should give a frame
    suspicious: bool  # the packets alone are not to be trusted
    counted: bool = False  # no usable time stamps: pts are 0, 1, 2, ...


class Decoder:
    """One open file: packets in, frames out in display order."""

    def __init__(self, source: Place, *, careful: bool) -> None:
        self.careful = careful
        self.used = False  # whether packets have been taken
        self.sure = careful  # whether a frame that does not come is really lost
        self.lost: list[int | None] = []  # pts of packets that gave an error (careful only)
        self._pending: list[Any] = []
        self.container, self._file = open_container(source)
        try:
            self.stream: Any = video_stream(self.container, source)
        except VideoError:
            self.close()
            raise
        # One packet in, one frame or error out: only without threads is it known which one is bad.
        self.stream.thread_type = "NONE" if careful else "AUTO"

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self.container.close()
        if self._file:
            self._file.close()

    def packets(self) -> Iterator[Any]:
        """The stream's packets in file order, from where the file stands; an empty one ends them."""
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
        self.used, self.sure = True, False
        try:
            self.container.seek(pts, stream=self.stream, backward=True)
            self._pending = [next(self.container.demux(self.stream))]
        except (av.FFmpegError, StopIteration):
            return None
        return self._pending[0].pts  # type: ignore[no-any-return]

    def frames(self) -> Iterator[Any]:
        """Decoded frames in display order; where careful, bad packets are noted in `lost`, else raised."""
        for packet in self.packets():
            try:
                yield from packet.decode()
            except av.FFmpegError:
                if not self.careful:
                    raise
                self.lost.append(packet.pts)


def open_container(source: Place) -> tuple[Any, BinaryIO | None]:
    """The container, and the file under it where that is ours to close."""
    file = source.open() if source.files is not None else None
    try:
        return av.open(file or source.path, metadata_errors="replace"), file
    except BaseException:
        if file:
            file.close()
        raise


def video_stream(container: Any, source: Place) -> Any:
    """The first stream of moving pictures; cover art is none. Raises VideoError."""
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if container.format.name in NOT_VIDEO:
        raise VideoError(f"{source}: is a text file, not a video; give a video file or a folder of frames")
    if not streams:
        kinds = " and ".join(sorted({s.type for s in container.streams}))
        only = f", only {kinds}" if kinds else ""
        raise VideoError(f"{source}: has no video stream{only}; give a file with pictures")
    if streams[0].codec_context is None:
        raise VideoError(f"{source}: FFmpeg does not know its video codec; convert it to H.264")
    return streams[0]


def read_packets(decoder: Decoder) -> Index:
    """Index a file without decoding it; `suspicious` where that is not enough."""
    stream = decoder.stream
    is_mp4 = decoder.container.format.name.startswith("mov,")
    # The header of an MP4 counts what an edit list hides, too; its sample table, as read here, does not.
    announced = len(stream.index_entries) if is_mp4 else stream.frames
    plain = decoder.container.format.name in PLAIN_FORMATS and stream.codec_context.name in PLAIN_CODECS
    nal = _NalReader.of(stream.codec_context)
    suspicious, count, hidden, corrupt, pts, anchors = not plain, 0, 0, 0, [], []
    try:
        for packet in decoder.packets():
            if packet.size == 0 and packet.pts is None:
                continue  # the flush at the end
            odd = packet.is_corrupt or packet.is_discard or packet.pts is None
            units = nal.types(packet) if nal else []
            odd |= not nal.plausible(units) if nal else not any(memoryview(packet)[:64])
            odd |= count == 0 and not packet.is_keyframe
            suspicious |= odd
            count += 1
            hidden += packet.is_discard
            corrupt += packet.is_corrupt
            if packet.pts is not None:
                pts.append(packet.pts)
                if packet.is_keyframe and not odd and (nal is None or nal.restarts(units)):
                    anchors.append(packet.pts)
    except av.FFmpegError:
        suspicious = True
    shown = np.unique(np.array(pts, np.int64))
    suspicious |= len(shown) != count or count == 0 or announced > count
    starts = np.unique(np.array(anchors, np.int64))
    return Index(shown, starts, announced, count, hidden, corrupt, plain, suspicious)


@dataclass(frozen=True)
class _NalReader:
    """Looks at the units inside the packets of H.264 and HEVC."""

    hevc: bool
    length_bytes: int  # of the length before each unit (MP4, MKV); 0: start codes between them (TS)

    @classmethod
    def of(cls, codec: Any) -> _NalReader | None:
        if codec.name not in {"h264", "hevc"}:
            return None
        hevc, extra = codec.name == "hevc", codec.extradata or b""
        at = 21 if hevc else 4
        return cls(hevc, (extra[at] & 3) + 1 if extra[:1] == b"\x01" and len(extra) > at else 0)

    def types(self, packet: Any) -> list[int]:
        """Types of the units; empty where their lengths do not fill the packet."""
        data = bytes(packet)
        firsts = self._by_length(data) if self.length_bytes else self._by_start_code(data)
        return [data[at] >> 1 & 63 if self.hevc else data[at] & 31 for at in firsts]

    def _by_length(self, data: bytes) -> list[int]:
        at, firsts = 0, []
        while at < len(data):
            size = int.from_bytes(data[at : at + self.length_bytes], "big")
            at += self.length_bytes
            if size == 0 or at + size > len(data):
                return []
            firsts.append(at)
            at += size
        return firsts

    @staticmethod
    def _by_start_code(data: bytes) -> list[int]:
        return [m.end() for m in re.finditer(rb"\x00\x00\x01(?=.)", data, re.DOTALL)]

    def plausible(self, types: list[int]) -> bool:
        """Whether a packet of these units can be a picture; H.264 has no type 0."""
        return bool(types) and (self.hevc or 0 not in types)

    def restarts(self, types: list[int]) -> bool:
        """IDR in H.264; any random access picture in HEVC (what it leaves out is shown before it)."""
        return any(16 <= t <= 21 for t in types) if self.hevc else 5 in types

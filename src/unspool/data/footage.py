"""One video of a data set: what drawing clips asks of it, and that its files are still those looked at."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
from jaxtyping import Float64

from unspool.data.layouts import is_image
from unspool.data.sampling import constant_times
from unspool.errors import DataError, VideoError
from unspool.rendered import RenderedVideo, Scene
from unspool.video import Video, open_video

Picture = npt.NDArray[np.uint8]  # [H, W, 3] RGB
Stamp = tuple[int, int, int]  # files, bytes, newest time of change in ns


@dataclass(frozen=True)
class Footage:
    """One video, as far as drawing clips asks."""

    source: str  # path; `SHARD.tar#KEY` within a shard; `rendered:SEED` of a scene
    name: str  # path within its data set
    frames: int
    height: int  # px, upright
    width: int
    fps: float  # frames per second, average
    start: float = 0.0  # s, time of the first frame
    stamps: tuple[float, ...] = ()  # s, one per frame; empty where the rate is constant
    stamp: Stamp = (0, 0, 0)  # of the files when they were looked at
    span: tuple[int, int] = (0, 0)  # bytes within its shard
    note: str = ""  # what opening it said: lost frames and the like
    scene: Scene | None = None  # what is rendered, where nothing is read

    @property
    def times(self) -> Float64[np.ndarray, " frames"]:
        """Seconds of each frame."""
        return np.array(self.stamps) if self.stamps else constant_times(self.frames, self.fps, self.start)


@dataclass(frozen=True)
class Broken:
    """A video that cannot be used, and why."""

    source: str
    reason: str
    stamp: Stamp = (0, 0, 0)


def describe(source: str, name: str, rate: Fraction | None) -> Footage:
    """What `open_video` says of one video; `rate`: frames/s of a folder. Raises VideoError."""
    with open_video(source, fps=rate, decode_ahead=0) as video:
        times = np.array([float(t) for t in video.times])
        fps, start = float(video.fps), float(times[0])
        steady = np.abs(times - constant_times(len(times), fps, start)).max() < 0.5e-3
        stamps = () if steady else tuple(np.round(times, 6).tolist())
        return Footage(source, name, len(video), video.height, video.width, fps, start, stamps)


def stamp_of(path: Path) -> Stamp:
    """Files, bytes and newest time of change of a video file, or of the images of a folder."""
    if path.is_dir():
        found = [entry.stat() for entry in os.scandir(path) if is_image(entry.name)]
        newest = max((s.st_mtime_ns for s in found), default=0)
        return len(found), sum(s.st_size for s in found), newest
    stat = path.stat()
    return 1, stat.st_size, stat.st_mtime_ns


def refuse_change(video: Footage) -> None:
    """Raises DataError if the files behind `video` are not those that were looked at."""
    path = Path(video.source.split(".tar#")[0] + ".tar") if video.span[1] else Path(video.source)
    try:
        stamp = stamp_of(path)
    except OSError as error:
        raise DataError(
            f"{path}: has vanished while it is in use ({error.strerror}); bring it back and continue, "
            "or start anew without it"
        ) from error
    if stamp != video.stamp:
        was, now = (f"{files} files of {size} bytes" for files, size, _ in (video.stamp, stamp))
        what = f"{was}, now {now}" if was != now else "other bytes, of the same size"
        raise DataError(
            f"{path}: has changed while it is in use (was {what}); clips from before and after do not belong "
            "together: bring it back and continue, or start anew"
        )


def pick(opened: Video | RenderedVideo, video: Footage, wanted: Iterable[int]) -> Iterator[Picture]:
    """Frames by ascending number. Raises VideoError if `opened` has not as many as were counted."""
    for index in wanted:
        if len(opened) != video.frames:
            raise VideoError(
                f"{video.source}: has {len(opened)} frames that can be decoded, not {video.frames} as its "
                "index says; get a whole copy, or take it out"
            )
        yield sized(video, opened[index])


def sized(video: Footage, image: Picture) -> Picture:
    """The image. Raises VideoError if it is not of the video's size."""
    if image.shape[:2] != (video.height, video.width):
        raise VideoError(
            f"{video.source}: holds a frame of {image.shape[1]}x{image.shape[0]}, the first is "
            f"{video.width}x{video.height}; a video has one size, take that frame out or resize it"
        )
    return image

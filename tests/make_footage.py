"""Small videos and folders of frames in which every frame tells its number by its brightness."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from unspool.data.footage import Footage
from unspool.video import VideoWriter

LEVELS = 10  # brightness from one frame to the next


def picture(number: int, height: int = 32, width: int = 48) -> np.ndarray:
    """[H, W, 3]: brightness says the number, and it grows a little from left to right."""
    ramp = np.linspace(0, 4, width)
    return np.broadcast_to(20 + LEVELS * number + ramp[None, :, None], (height, width, 3)).astype(np.uint8)


def numbers(frames: np.ndarray) -> list[int]:
    """The numbers of frames [T, H, W, 3]."""
    return [round((float(frame.mean()) - 22) / LEVELS) for frame in frames]


def write_frames(folder: Path, names: Sequence[str], height: int = 32, width: int = 48) -> Path:
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        Image.fromarray(picture(number, height, width)).save(folder / name, quality=95)
    return folder


def write_video(
    path: Path, count: int, height: int = 32, width: int = 48, times: Sequence[Fraction] | None = None
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    times = times or [Fraction(i, 10) for i in range(count)]
    with VideoWriter(path, height=height, width=width, times=times, crf=10) as writer:
        for number in range(count):
            writer.write(picture(number, height, width))
    return path


def footage(name: str, frames: int, fps: float = 10.0) -> Footage:
    """A video that exists only as an entry of an index."""
    return Footage(name, name, frames, 32, 48, fps)

"""Which frames of a video make a clip: the publications' rules, as index arithmetic on one random generator.

Each rule takes the number of frames L of the video, the number T of the clip, and draws from `rng`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from jaxtyping import Float64

Indices = npt.NDArray[np.int64]  # [T], within 0..L-1
Mode = Literal["regular", "uniform", "dense", "permuted", "stretched", "centred"]


@dataclass(frozen=True)
class Sampling:
    """Which frames make a clip."""

    frames: int = 5  # T of a clip, > 0
    mode: Mode = "regular"  # see the functions of this file
    gap: int = 1  # stored frames from one frame of the clip to the next (DUL g, TimeT step, BA stride), > 0
    seconds: float | None = None  # s between neighbours, > 0; takes the place of `gap`

    @property
    def shortest(self) -> int:
        """Videos with fewer frames are left out; the other rules repeat frames. Source: DUL DataVideo."""
        return self.frames if self.mode == "permuted" else 1


def draw_frames(times: Float64[np.ndarray, " frames"], how: Sampling, rng: np.random.Generator) -> Indices:
    """Frame numbers of one clip, in the order in which the clip holds them; `times` in s, ascending.

    With `seconds`, `regular` looks up the time stamps (variable rates too), the others take the nearest
    number of frames at the average rate, at least one.
    """
    length = len(times)
    if how.mode == "uniform":
        return uniform(length, how.frames, rng)
    if how.mode == "dense":
        return regular(length, how.frames, 1, rng)
    if how.mode == "regular" and how.seconds is not None:
        return regular_in_time(times, how.frames, how.seconds, rng)
    rules: dict[Mode, Callable[[int, int, int, np.random.Generator], Indices]] = {
        "regular": regular,
        "permuted": permuted_window,
        "stretched": stretched_window,
        "centred": centred,
    }
    return rules[how.mode](length, how.frames, frame_gap(times, how), rng)


def frame_gap(times: Float64[np.ndarray, " frames"], how: Sampling) -> int:
    """Frames between neighbours of a clip, at least 1."""
    if how.seconds is None or len(times) < 2:
        return max(1, how.gap)
    return max(1, round(how.seconds * (len(times) - 1) / float(times[-1] - times[0])))


def regular(length: int, frames: int, step: int, rng: np.random.Generator) -> Indices:
    """Every step-th frame from a random start; a video shorter than T*step is stepped through evenly.

    One shorter than T repeats its last frame. With step 1 this is TimeT's dense sampling.
    Source: TimeT data_loader.py: generate_indices.
    """
    if length < frames:
        return np.minimum(np.arange(frames), length - 1)
    step = step if length >= frames * step else length // frames
    start = int(rng.integers(0, length - frames * step, endpoint=True))
    return np.arange(start, start + frames * step, step)


def regular_in_time(
    times: Float64[np.ndarray, " length"], frames: int, seconds: float, rng: np.random.Generator
) -> Indices:
    """Frames shown at start, start + seconds, ...; the same as `regular` where the rate is constant."""
    length = len(times)
    if length < 2:
        return np.zeros(frames, np.int64)
    shown = float(times[-1] - times[0]) / (length - 1)  # s of one frame on average
    end = float(times[-1]) + shown
    starts = int(np.searchsorted(times, end - frames * seconds + 1e-6 * shown, side="right"))
    if starts == 0:  # the whole video is too short for the clip
        return regular(length, frames, max(1, length // frames), rng)
    wanted = times[rng.integers(0, starts)] + seconds * np.arange(frames)
    after = np.searchsorted(times, wanted).clip(1, length - 1)
    nearest: Indices = after - (wanted - times[after - 1] < times[after] - wanted)
    return nearest


def uniform(length: int, frames: int, rng: np.random.Generator) -> Indices:
    """Sorted random frames of the whole video, all different where it has enough.

    Source: TimeT data_loader.py: generate_indices.
    """
    return np.sort(rng.choice(length, frames, replace=length < frames)).astype(np.int64)


def permuted_window(length: int, frames: int, gap: int, rng: np.random.Generator) -> Indices:
    """DUL: W = min(L, gT), stride W//T, a random start, and the frames in random order; L >= T.

    Frame 0 of the clip, its reference, so is a random one. Source: DUL dataloader_video.py: DataVideo.
    """
    offsets = min(length, gap * frames) // frames * np.arange(frames)
    start = int(rng.integers(0, length - 1 - int(offsets[-1]), endpoint=True))
    return np.asarray(rng.permutation(start + offsets))


def stretched_window(length: int, frames: int, gap: int, rng: np.random.Generator) -> Indices:
    """DUL on Kinetics: W = min(L, gT), real stride W/T, in order; frames repeat where L < T.

    Source: DUL dataloader_video.py: DataVideoKinetics.
    """
    window = min(length, gap * frames)
    offsets = (np.arange(frames) * (window / frames)).astype(np.int64)
    return int(rng.integers(0, length - window, endpoint=True)) + offsets


def centred(length: int, frames: int, stride: int, rng: np.random.Generator) -> Indices:
    """BA: T frames around a random centre; the stride shrinks until they fit, and ends repeat if L < T."""
    stride, low, high = centre_range(length, frames, stride)
    centre = int(rng.integers(low, high, endpoint=True))
    return (centre + stride * (np.arange(frames) - frames // 2)).clip(0, length - 1)


def centre_range(length: int, frames: int, stride: int, *, released: bool = False) -> tuple[int, int, int]:
    """(stride used, lowest, highest centre frame), both inclusive.

    `released`: the test of the released code, which refuses ranges of one frame and may end at stride 0 (one
    frame T times). Source: BA src/data.py: Dataloader.__getitem__; the other is decision 20 of its table.
    """
    half = frames // 2
    if released:
        while stride * half >= length - stride * half - 1:
            stride -= 1
    else:
        while stride > 1 and stride * half > length - stride * half - 1:
            stride -= 1
    low, high = stride * half, length - 1 - stride * half
    return (stride, low, high) if low <= high else (stride, (length - 1) // 2, (length - 1) // 2)


def constant_times(length: int, fps: float, start: float = 0.0) -> Float64[np.ndarray, " length"]:
    """Time stamps in s of a constant rate."""
    return start + np.arange(length, dtype=np.float64) / fps

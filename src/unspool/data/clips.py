"""Clips for training: a fixed map from (seed, epoch, position) to a clip, and batches of them.

Nothing else decides what a clip holds: no worker, no rank, no earlier draw. So any number of workers and
ranks sees the same batches, and a run continues in mid-epoch from two integers, epoch and step.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float64, Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader

from unspool.data.footage import Footage
from unspool.data.frames import Decoder, FrameStore, Numbers, start_workers
from unspool.data.sampling import Sampling, draw_frames
from unspool.errors import DataError, UnspoolError, UnspoolWarning, UsageError, VideoError

ORDER, FRAMES, AUGMENTATION = range(3)  # what a generator is for
SUBSTITUTES = 10  # other videos tried where one turns out to be broken
NAMED = 5  # videos named in a message; the others are counted

Frames = UInt8[Tensor, "t 3 h w"]
Key = tuple[int, int, int]  # seed, epoch, position in the epoch


def generator(purpose: int, key: Key, attempt: int = 0) -> np.random.Generator:
    """The random numbers of one clip, or of the order of one epoch, for one purpose."""
    return np.random.default_rng((purpose, *key, attempt))


# -------------------------------------------------------------------------------------- where frames are


class FrameSource(Protocol):
    """Gives frames of a video, at training size."""

    def clip(self, video: Footage, indices: Numbers) -> Frames:
        """The frames `indices`, in that order."""


@dataclass(frozen=True)
class Decoded:
    """Frames decoded when they are asked for."""

    short_side: int  # px
    decoder: Decoder

    def clip(self, video: Footage, indices: Numbers) -> Frames:
        """The frames `indices`, in that order."""
        return _channels_first(torch.from_numpy(self.decoder.read(video, indices, self.short_side)))


@dataclass(frozen=True)
class Stored:
    """Frames of a `FrameStore`."""

    store: FrameStore

    def clip(self, video: Footage, indices: Numbers) -> Frames:
        """The frames `indices`, in that order."""
        return _channels_first(torch.from_numpy(self.store.read(video, indices)))


class OnDevice:
    """All frames of a `FrameStore` in the memory of one device."""

    def __init__(self, store: FrameStore, videos: Sequence[Footage], device: torch.device) -> None:
        _refuse_too_large(sum(map(store.bytes, videos)), device)
        self.frames = {v.source: torch.from_numpy(np.array(store.frames(v))).to(device) for v in videos}

    def clip(self, video: Footage, indices: Numbers) -> Frames:
        """The frames `indices`, in that order."""
        frames = self.frames[video.source]
        wanted = torch.as_tensor(np.asarray(indices), device=frames.device)
        return _channels_first(frames.index_select(0, wanted))


def _refuse_too_large(needed: int, device: torch.device) -> None:
    """Raises UsageError where less than a fifth of what is free would be left."""
    if device.type != "cuda":
        return
    free, _ = torch.cuda.mem_get_info(device)
    if needed > 0.8 * free:
        raise UsageError(
            f"{device}: decoded frames take {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free and the "
            "training needs some of it; keep them on disk, or choose a smaller size"
        )


def _channels_first(frames: UInt8[Tensor, "t h w 3"]) -> Frames:
    return frames.permute(0, 3, 1, 2)


# --------------------------------------------------------------------------------------------- one clip


@dataclass(frozen=True)
class Clip:
    """A few frames of one video."""

    frames: Frames
    video: str  # name of its footage
    indices: tuple[int, ...]  # frame numbers, in the order of `frames`
    times: tuple[float, ...]  # s
    key: Key


@dataclass(frozen=True)
class ClipBatch:
    """Clips of one step; frames of different clips may differ in size until `augment.place`."""

    epoch: int
    step: int  # of the epoch
    clips: tuple[Clip, ...]

    @property
    def frames(self) -> list[Frames]:
        """Of each clip."""
        return [clip.frames for clip in self.clips]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """H, W of each clip's frames, px."""
        return [(clip.frames.shape[2], clip.frames.shape[3]) for clip in self.clips]

    @property
    def indices(self) -> Int64[Tensor, "b t"]:
        """Frame numbers within their videos."""
        return torch.tensor([clip.indices for clip in self.clips])

    @property
    def times(self) -> Float64[Tensor, "b t"]:
        """Seconds within their videos."""
        return torch.tensor([clip.times for clip in self.clips], dtype=torch.float64)

    def generators(self, purpose: int = AUGMENTATION) -> list[np.random.Generator]:
        """One per clip, the same wherever the clip is; for `augment.draw`."""
        return [generator(purpose, clip.key) for clip in self.clips]

    def to(self, device: torch.device) -> ClipBatch:
        """With frames on `device`."""
        return self._with([clip.frames.to(device, non_blocking=True) for clip in self.clips])

    def pin_memory(self) -> ClipBatch:
        """With frames in memory that a GPU reads while the CPU goes on."""
        return self._with([clip.frames.pin_memory() for clip in self.clips])

    def _with(self, frames: Sequence[Frames]) -> ClipBatch:
        moved = [Clip(f, c.video, c.indices, c.times, c.key) for c, f in zip(self.clips, frames, strict=True)]
        return ClipBatch(self.epoch, self.step, tuple(moved))


class Clips:
    """All clips of a run, by (epoch, step); an epoch visits every video once, in its own random order.

    `made`: rendered footage, drawn in turn, that makes up the share `made_share` (0..1) of every epoch.
    Fewer videos than `batch` clips are visited several times an epoch. Videos shorter than the sampling
    allows are left out with an UnspoolWarning. Raises DataError where none is left.
    """

    def __init__(
        self,
        videos: Sequence[Footage],
        sampling: Sampling,
        source: FrameSource,
        *,
        batch: int,
        seed: int = 0,
        made: Sequence[Footage] = (),
        made_share: float = 0.0,
        max_broken: float = 0.2,
    ) -> None:
        _refuse_shares(videos, made, made_share)
        self.videos = _long_enough(videos, sampling.shortest) if made_share < 1 else []
        _warn_of_brief(self.videos, sampling)
        self.made = list(made) if made_share > 0 else []
        self.sampling, self.source, self.batch, self.seed = sampling, source, batch, seed
        self.max_broken, self.broken = max_broken, dict[str, str]()  # as this process found them
        kinds = len(self.videos) / (1 - made_share) if self.videos else len(self.made)
        self.visits = -(-batch // max(1, round(kinds)))
        self.real = len(self.videos) * self.visits  # clips of an epoch
        self.drawn = round(self.visits * kinds) - self.real
        self._order = lru_cache(maxsize=2)(self._draw_order)

    @property
    def steps(self) -> int:
        """Of an epoch; what does not fill a batch is left to the next epochs' orders."""
        return (self.real + self.drawn) // self.batch

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "_order"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._order = lru_cache(maxsize=2)(self._draw_order)

    def _draw_order(self, epoch: int) -> Int64[np.ndarray, " clips"]:
        return generator(ORDER, (self.seed, epoch, 0)).permutation(self.real + self.drawn)

    def footage(self, epoch: int, position: int) -> Footage:
        """The video at a position of an epoch."""
        number = int(self._order(epoch)[position])
        if number < self.real:
            return self.videos[number % len(self.videos)]
        return self.made[(epoch * self.drawn + number - self.real) % len(self.made)]

    def clip(self, epoch: int, position: int) -> Clip:
        """The clip at a position of an epoch; where its video turns out to be broken, one of another.

        Raises DataError for files that have changed, or when too much is broken.
        """
        key = (self.seed, epoch, position)
        video = self.footage(epoch, position)
        for attempt in range(SUBSTITUTES):
            rng = generator(FRAMES, key, attempt)
            if attempt:
                video = self.videos[rng.integers(len(self.videos))]
            indices = draw_frames(video.times, self.sampling, rng)
            try:
                frames = self.source.clip(video, indices)
            except VideoError as error:
                self._count_broken(video, str(error))
                continue
            times = tuple(video.times[indices].tolist())
            return Clip(frames, video.name, tuple(indices.tolist()), times, key)
        raise DataError(f"{SUBSTITUTES} videos one after the other cannot be read, the last: {video.source}")

    def _count_broken(self, video: Footage, reason: str) -> None:
        known = video.source in self.broken
        self.broken[video.source] = reason
        if len(self.broken) > self.max_broken * len(self.videos):
            reasons = "\n".join(f"  {r}" for r in list(self.broken.values())[:NAMED])
            raise DataError(
                f"{len(self.broken)} of {len(self.videos)} videos turn out to be broken, "
                f"{self.max_broken:.0%} are allowed; mend or remove them, or allow more (--max-broken):\n"
                f"{reasons}"
            )
        if not known:
            warnings.warn(f"{reason}; clips of other videos take its place", UnspoolWarning, stacklevel=2)

    def batch_at(self, epoch: int, step: int, rank: int = 0, ranks: int = 1) -> ClipBatch:
        """The part of a batch that `rank` of `ranks` works on; the parts in order are the whole batch."""
        share = self.batch // ranks
        first = step * self.batch + rank * share
        return ClipBatch(epoch, step, tuple(self.clip(epoch, p) for p in range(first, first + share)))


def _refuse_shares(videos: Sequence[Footage], made: Sequence[Footage], share: float) -> None:
    if not 0 <= share <= 1:
        raise UsageError(f"rendered clips: a share of {share:g} was asked for; give a number from 0 to 1")
    if share > 0 and not made:
        raise UsageError(f"rendered clips: a share of {share:g} was asked for, but there are none")
    if share < 1 and not videos:
        raise DataError("there is no video to draw clips from; give a folder that holds some")


def _long_enough(videos: Sequence[Footage], shortest: int) -> list[Footage]:
    kept = [video for video in videos if video.frames >= shortest]
    short = [f"{video.name} ({video.frames})" for video in videos if video.frames < shortest]
    named = ", ".join(short[:NAMED]) + (f" and {len(short) - NAMED} more" if len(short) > NAMED else "")
    if not kept:
        raise DataError(
            f"none of {len(short)} videos has the {shortest} frames of a clip: {named}; use shorter clips or "
            "longer videos"
        )
    if short:
        warnings.warn(
            f"{len(short)} of {len(videos)} videos have fewer frames than a clip ({shortest}) and are left "
            f"out: {named}",
            UnspoolWarning,
            stacklevel=3,
        )
    return kept


def _warn_of_brief(videos: Sequence[Footage], sampling: Sampling) -> None:
    """Frames `seconds` apart are not to be had from videos that end before the last of them."""
    span = (sampling.frames - 1) * (sampling.seconds or 0.0)
    brief = [video.name for video in videos if video.frames < 2 or video.times[-1] - video.times[0] < span]
    if sampling.seconds is None or not brief:
        return
    named = ", ".join(brief[:NAMED]) + (f" and {len(brief) - NAMED} more" if len(brief) > NAMED else "")
    warnings.warn(
        f"{len(brief)} of {len(videos)} videos last less than the {span:g} s of a clip; their clips show "
        f"frames closer together than {sampling.seconds:g} s, or repeat some: {named}",
        UnspoolWarning,
        stacklevel=3,
    )


# -------------------------------------------------------------------------------------------- batches


def load_batches(
    clips: Clips, *, start: tuple[int, int] = (0, 0), rank: int = 0, ranks: int = 1, workers: int = 0
) -> Iterator[ClipBatch]:
    """Batches without end, from (epoch, step) `start` on, prepared by `workers` processes (0: this one).

    Frames that are on a device already are best served by 0 workers. Raises UsageError where the ranks
    cannot share the batch evenly; errors of a worker are raised here as they are.
    """
    if clips.batch % ranks:
        raise UsageError(
            f"a batch of {clips.batch} clips cannot be shared by {ranks} processes; use a multiple of {ranks}"
        )
    schedule = _Schedule(clips.steps, start)
    if workers == 0:
        for epoch, step in schedule:
            yield clips.batch_at(epoch, step, rank, ranks)
    fetcher = _Fetcher(clips, rank, ranks)
    loader: DataLoader[Any] = DataLoader(
        fetcher,  # type: ignore[arg-type]
        batch_size=None,
        sampler=schedule,
        num_workers=workers,
        prefetch_factor=2,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # its own: the number of workers must not move the run's random numbers
    )
    for batch in start_workers(loader):
        if isinstance(batch, UnspoolError):
            raise batch
        yield batch


@dataclass(frozen=True)
class _Schedule:
    """(epoch, step) without end."""

    steps: int
    start: tuple[int, int]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, step = self.start
        while True:
            yield epoch + step // self.steps, step % self.steps
            step += 1


@dataclass(frozen=True)
class _Fetcher:
    """What a worker process does; errors travel as values, since raised ones would lose their message."""

    clips: Clips
    rank: int
    ranks: int

    def __getitem__(self, at: tuple[int, int]) -> ClipBatch | UnspoolError:
        try:
            return self.clips.batch_at(*at, self.rank, self.ranks)
        except UnspoolError as error:
            return error

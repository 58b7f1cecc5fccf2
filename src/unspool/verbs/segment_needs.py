"""What cutting a video takes: bytes and seconds, estimated before and told while it is done."""

from __future__ import annotations

import os
import warnings
from math import ceil
from time import perf_counter
from typing import Any

from unspool.errors import UnspoolError, UsageError
from unspool.jobs import Interrupted, Report, Stop, stage_event
from unspool.results import Json
from unspool.verbs.segment_settings import (
    SegmentSettings,
    Some,
    correlator_of,
    segmenting_of,
    segmenting_record,
)

SLACK = 1.1  # measurements of memory vary
TRIED_FRAMES, TRIED_TOKENS = 6, 160  # of a trial, and tokens of each of its frames
TRIALS = 3  # of which the fastest counts: other work on the machine holds a short one up

# -------------------------------------------------------------------------------------- before


def _shape(video: Any, correlator: Any, segmenting: Json) -> tuple[int, int, int]:
    """Frames, tokens of a frame, and columns of a row of what is clustered, for one window."""
    from unspool.segmenting import input_size  # noqa: PLC0415

    how = segmenting_of(segmenting)
    frames = min(len(video), how.window)
    height, width = input_size(video.height, video.width, correlator.encoder, how)
    tokens = (height // correlator.encoder.patch) * (width // correlator.encoder.patch)
    keys = -(-frames // how.keys(frames))
    columns = {"block": keys * tokens, "attention": tokens}.get(how.represent, correlator.encoder.dim)
    return frames, tokens, columns


def bytes_needed(video: Any, correlator: Any, segmenting: Json) -> tuple[int, int]:
    """Bytes beside clustering, and the least for clustering one of its windows."""
    from unspool.ops.motion import BYTES_PER_TOKEN  # noqa: PLC0415
    from unspool.tracking import FRAMES_IN_HAND, resident  # noqa: PLC0415

    frames, tokens, columns = _shape(video, correlator, segmenting)
    how = segmenting_of(segmenting)
    inside = getattr(correlator.encoder, "bytes_per_image", lambda height, width: 0)
    maps = 3 * 4 * frames * tokens * correlator.encoder.dim
    pictures = 4 * FRAMES_IN_HAND * video.height * video.width
    at_once = max(inside(video.height, video.width), BYTES_PER_TOKEN * tokens)
    beside = resident() + at_once + maps + pictures
    together = min(how.clustering.frames, frames) if how.clustering.algorithm == "windowed" else frames
    rows = together * tokens
    least = 4 * (2 * rows * columns + 2 * rows**2 + rows * min(columns, 4096))
    return beside, least * 3 // 2


def memory_for_clustering(
    settings: SegmentSettings, video: Any, correlator: Any, segmenting: Json
) -> int | None:
    """What is left of the memory; where none is named, the usual amount, or what one window takes.

    None where this machine has not that much. Raises UsageError where a named memory is too little.
    """
    memory = settings.memory_each
    beside, least = bytes_needed(video, correlator, segmenting)
    if memory is None:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // settings.processes
        return max(segmenting_of(segmenting).memory, least) if SLACK * (beside + least) < there else None
    if memory < SLACK * (beside + least):
        need = ceil(settings.processes * SLACK * (beside + least) / 10**7) / 100
        raise UsageError(
            f"--memory {(settings.memory or 0) / 1e9:g}GB is too little for a video of "
            f"{video.width}x{video.height}; the least that works is --memory {need:.2f}GB (less with a lower "
            "--resolution, a shorter --window, a lower --key-ratio or fewer --workers)"
        )
    return int(memory / SLACK) - beside


def estimate_of_frames(whole: Any, settings: SegmentSettings) -> tuple[int, float]:
    """How many frames of a video are segmented, and the seconds that they take, about."""
    video = Some(whole, settings.every)
    each = seconds_per_frame(whole, video, correlator_of(settings), segmenting_record(settings))
    return len(video), len(video) * each


def seconds_per_frame(whole: Any, video: Any, correlator: Any, segmenting: Json) -> float:
    """Of encoding and clustering: a blank frame is encoded; what clusters is timed on a few small frames."""
    import numpy as np  # noqa: PLC0415

    from unspool.ops.motion import relative_motion  # noqa: PLC0415
    from unspool.segmenting import check_offers, encoded, input_size  # noqa: PLC0415

    how = segmenting_of(segmenting)
    check_offers(correlator, how)
    clustering = _products(video, correlator, segmenting) * seconds_per_product(whole, correlator, segmenting)
    blank = np.zeros((video.height, video.width, 3), np.uint8)
    size = input_size(video.height, video.width, correlator.encoder, how)
    started = perf_counter()
    seen = encoded(blank, correlator, size, how)
    relative_motion(seen.image, seen.image)
    return perf_counter() - started + clustering


def _products(video: Any, correlator: Any, segmenting: Json) -> float:
    """What clustering costs for a frame, about: products of rows, fewer in larger frames.

    Near rows lie side by side and are added as one but at the edges of objects, whose share falls with the
    root of the tokens: from 160 to 2400 tokens of a frame this is within a factor of 1.5 of what is measured.
    """
    frames, tokens, columns = _shape(video, correlator, segmenting)
    how = segmenting_of(segmenting).clustering
    together = {"windowed": min(how.frames, frames) * tokens, "paper": frames * tokens}
    rows: int = together.get(how.algorithm, how.clusters) + correlator.encoder.dim
    return float(tokens ** (0.5 if how.algorithm == "windowed" else 1) * columns * rows)


def seconds_per_product(whole: Any, correlator: Any, segmenting: Json) -> float:
    """Of some trials: the first frames, small. How many clusters there are, and the machine's speed, tell."""
    from unspool.segmenting import input_size, segment  # noqa: PLC0415

    few = Some(whole, 1, TRIED_FRAMES)
    height, width = input_size(whole.height, whole.width, correlator.encoder, segmenting_of(segmenting))
    share = min(1.0, (TRIED_TOKENS * correlator.encoder.patch**2 / (height * width)) ** 0.5)
    sides = [max(1, round(share * side)) for side in sorted((height, width))]
    small = {**segmenting, "resolution": sides, "key_every": 1}
    took = []
    for _ in range(TRIALS):
        clock = _Stopwatch()
        try:
            with warnings.catch_warnings(action="ignore"):
                segment(few, correlator, segmenting_of(small), progress=clock)
        except UnspoolError:
            return 0.0  # the work itself will say what is wrong
        took.append(clock.seconds)
    return min(took) / (len(few) * _products(few, correlator, small))


class _Stopwatch:
    """The seconds that clustering took."""

    def __init__(self) -> None:
        self.seconds, self.last = 0.0, perf_counter()

    def __call__(self, stage: str, frames: float) -> None:
        now = perf_counter()
        self.seconds += now - self.last if stage == "cluster" else 0.0
        self.last = now


# --------------------------------------------------------------------------------------- during

STAGES = {"encode": "encoding", "cluster": "clustering"}


class Clock:
    """Tells of progress by stage, keeps their seconds, and ends the work when asked to."""

    def __init__(self, video: str, report: Report, stop: Stop) -> None:
        self.video, self.report, self.stop = video, report, stop
        self.total = 0  # frames
        self.totals: dict[str, int] = {}  # of stages that are not of all frames
        self.done: dict[str, float] = {}
        self.seconds: dict[str, float] = {}
        self.last = perf_counter()

    @property
    def timings(self) -> Json:
        """Seconds of each stage, for the record."""
        return {stage: round(seconds, 3) for stage, seconds in self.seconds.items()}

    def begin(self, stage: str) -> None:
        """What passed until here belongs to no stage."""
        self.last = perf_counter()
        self.done[stage] = 0

    def __call__(self, stage: str, frames: float) -> None:
        """So many more frames are through a stage."""
        now = perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self.last
        self.last = now
        total = self.totals.get(stage, self.total)
        done = self.done[stage] = min(total, self.done.get(stage, 0) + frames)
        rate = max(done, 1e-6) / max(self.seconds[stage], 1e-3)
        self.report(stage_event(self.video, STAGES.get(stage, stage), done, total, rate))
        if self.stop.is_set():
            raise Interrupted

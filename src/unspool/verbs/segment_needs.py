"""What cutting a video takes: bytes and seconds, estimated before and told while it is done."""

from __future__ import annotations

from math import ceil
from time import perf_counter
from typing import Any

from unspool.errors import UsageError
from unspool.jobs import Interrupted, Report, Stop
from unspool.results import Json
from unspool.verbs.segment_settings import SegmentSettings, segmenting_of

SLACK = 1.1  # measurements of memory vary

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
    from unspool.tracking import FRAMES_IN_HAND, resident  # noqa: PLC0415

    frames, tokens, columns = _shape(video, correlator, segmenting)
    how = segmenting_of(segmenting)
    inside = getattr(correlator.encoder, "bytes_per_image", lambda height, width: 0)
    maps = 3 * 4 * frames * tokens * correlator.encoder.dim
    pictures = 4 * FRAMES_IN_HAND * video.height * video.width
    beside = resident() + inside(video.height, video.width) + maps + pictures
    together = min(how.clustering.frames, frames) if how.clustering.algorithm == "windowed" else frames
    rows = together * tokens
    least = 4 * (2 * rows * columns + 2 * rows**2 + rows * min(columns, 4096))
    return beside, least * 3 // 2


def memory_for_clustering(
    settings: SegmentSettings, video: Any, correlator: Any, segmenting: Json
) -> int | None:
    """What is left of the memory. Raises UsageError naming the least that works."""
    memory = settings.memory_each
    if memory is None:
        return None
    beside, least = bytes_needed(video, correlator, segmenting)
    if memory < SLACK * (beside + least):
        need = ceil(settings.processes * SLACK * (beside + least) / 10**7) / 100
        raise UsageError(
            f"--memory {(settings.memory or 0) / 1e9:g}GB is too little for a video of "
            f"{video.width}x{video.height}; the least that works is --memory {need:.2f}GB (less with a lower "
            "--resolution, a shorter --window, a lower --key-ratio or fewer --workers)"
        )
    return int(memory / SLACK) - beside


def seconds_per_frame(video: Any, correlator: Any, segmenting: Json) -> float:
    """Of this machine: a blank frame is encoded, the products of clustering are counted."""
    import numpy as np  # noqa: PLC0415
    import torch  # noqa: PLC0415

    from unspool.segmenting import encoded, input_size  # noqa: PLC0415

    how = segmenting_of(segmenting)
    blank = np.zeros((video.height, video.width, 3), np.uint8)
    size = input_size(video.height, video.width, correlator.encoder, how)
    started = perf_counter()
    encoded(blank, correlator, size, how)
    encoding = perf_counter() - started
    _, tokens, columns = _shape(video, correlator, segmenting)
    products = 2 * tokens * columns * (2 * how.clustering.frames * tokens + correlator.encoder.dim)
    square = torch.ones(768, 768)
    started = perf_counter()
    float((square @ square @ square)[0, 0])
    rate = 2 * 2 * 768**3 / (perf_counter() - started)
    return float(encoding + products / rate)


# --------------------------------------------------------------------------------------- during

STAGES = {"encode": "encoding", "cluster": "clustering"}


class Clock:
    """Tells of progress by stage, keeps their seconds, and ends the work when asked to."""

    def __init__(self, video: str, report: Report, stop: Stop) -> None:
        self.video, self.report, self.stop = video, report, stop
        self.total = 0
        self.done: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        self.last = perf_counter()

    def begin(self, stage: str) -> None:
        """What passed until here belongs to no stage."""
        self.last = perf_counter()
        self.done[stage] = 0

    def __call__(self, stage: str, frames: int) -> None:
        """So many more frames are through a stage."""
        now = perf_counter()
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + now - self.last, 3)
        self.last = now
        done = self.done[stage] = min(self.total, self.done.get(stage, 0) + frames)
        rate = done / max(self.seconds[stage], 1e-3)
        self.report(
            {
                "event": "stage",
                "video": self.video,
                "stage": STAGES.get(stage, stage),
                "done": done,
                "total": self.total,
                "frames_per_second": round(rate, 2),
                "seconds_left": round((self.total - done) / rate),
            }
        )
        if self.stop.is_set():
            raise Interrupted

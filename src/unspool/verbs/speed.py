"""How fast a run was: three numbers, and what they were measured with.

`fps_model`: encoding and carrying labels, whose end is waited for (labels are on the CPU); no decoding, no
writing. The first three videos of a process warm it up and do not count, where there are more.
`fps_end_to_end`: from files to files. `peak_memory`: the most bytes in use, of the GPU or of the process.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from unspool.results import Json

WARM_UP = 3  # videos
BEFORE = count()  # videos that this process has begun


def speed(done: Sequence[Json]) -> Json:
    """Of all videos that are done and say how long the model took: `fps_model`, ..., for `run.json`."""
    timed = [entry for entry in done if "speed" in entry]
    if not timed:
        return {}
    own = [entry["speed"] for entry in timed]
    warm_up = min(WARM_UP, max(one["videos_before"] for one in own))
    warm = [entry for entry in timed if entry["speed"]["videos_before"] >= warm_up]
    model = sum(entry["speed"]["model_seconds"] for entry in warm)
    whole = sum(entry["seconds"] for entry in timed)
    return {
        "fps_model": _rate(sum(entry["frames"] for entry in warm), model),
        "warm_up_videos": warm_up,
        "fps_end_to_end": _rate(sum(entry["frames"] for entry in timed), whole),
        "peak_memory": max(one["peak_memory"] for one in own),
        "device": ", ".join(sorted({one["device"] for one in own})),
        "precision": ", ".join(sorted({one["precision"] for one in own})),
        "inputs": sorted({one["input"] for one in own}),
        "objects": max(len(entry["objects"]) for entry in timed),
        "context": max(one["context"] for one in own),
    }


def _rate(frames: int, seconds: float) -> float | None:
    return round(frames / seconds, 2) if seconds else None

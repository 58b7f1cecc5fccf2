"""J of the one object by each label-free cue and by all of them, beside truth's choice; seconds of motion.

python benchmarks/foreground.py davis16:DAVIS [TAU ...]
python benchmarks/foreground.py rendered:8

As `unspool segment` cuts the videos; all frames with truth, all true objects as one.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from unspool.data.sequences import davis_sequences, rendered_sequences
from unspool.ops.foreground import standing_out
from unspool.ops.motion import relative_motion, small
from unspool.segmenting import segment
from unspool.verbs.segment_settings import (
    SegmentSettings,
    correlator_of,
    segmenting_of,
    segmenting_record,
)

WAYS = ("border contact", "motion", "all cues", "largest", "truth, by video")


def overlaps(found: Any, truth: Any) -> np.ndarray:
    """J of every id, the mean over frames with truth."""
    rows = []
    for mask, true in zip(found.masks(), truth, strict=True):
        if true is None:
            continue
        seen, object_ = true != 255, (true > 0) & (true != 255)
        areas = np.bincount(mask[seen], minlength=found.clusters + 1)
        both = np.bincount(mask[object_], minlength=found.clusters + 1)
        rows.append(both / np.maximum(areas + object_.sum() - both, 1))
    return np.mean(rows, axis=0)


def choices(found: Any, j: np.ndarray) -> dict[str, int]:
    """The id that each way chooses."""
    ids, cues = found.labels + 1, found.cues
    areas = np.bincount(ids.ravel(), minlength=found.clusters + 1)
    alone = {cue: standing_out({cue: values}, areas, ids.size) for cue, values in cues.items()}
    return {
        **alone,
        "all cues": found.foreground(),
        "largest": int(areas.argmax()),
        "truth, by video": int(j.argmax()),
    }


def table(data: str, tau: float | None) -> None:
    """One line a video, and the mean."""
    kind, _, where = data.partition(":")
    videos: Any = rendered_sequences(where) if kind == "rendered" else davis_sequences(Path(where), 2016)
    settings = SegmentSettings()
    how = segmenting_of({**segmenting_record(settings), "finest": None})
    if tau:
        how = replace(how, clustering=replace(how.clustering, tau=tau))
    rows = []
    print(f"\n{data}, tau {how.clustering.tau:g}\n{'':16}" + "".join(f"{way:>17}" for way in WAYS))
    for sequence in videos:
        with sequence.open() as video:
            found = segment(video, correlator_of(settings), how)
        j = overlaps(found, sequence.truth())
        chosen = choices(found, j)
        rows.append([100 * j[chosen[way]] for way in WAYS])
        print(f"{sequence.name:16}" + "".join(f"{value:17.1f}" for value in rows[-1]), flush=True)
    print(f"{'mean':16}" + "".join(f"{value:17.1f}" for value in np.mean(rows, axis=0)))


def seconds(grid: tuple[int, int]) -> float:
    """Of one pair of frames."""
    frames = [small(torch.rand(3, 8 * grid[0], 8 * grid[1]), grid) for _ in range(2)]
    started = perf_counter()
    relative_motion(frames[0], frames[1])
    return perf_counter() - started


if __name__ == "__main__":
    for grid in ((20, 30), (40, 60)):
        took = min(seconds(grid) for _ in range(5))
        print(f"motion on {grid[0]}x{grid[1]} tokens: {1000 * took:.0f} ms a frame")
    for tau in [float(word) for word in sys.argv[2:]] or [None]:
        table(sys.argv[1], tau)

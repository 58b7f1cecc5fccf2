"""`unspool segment` with its encoder in float32 and in bfloat16: speeds, and the labels that change.

    python benchmarks/precision.py [--video clip.mp4] [--frames 24] [--device cpu] [MODEL[:HEIGHTxWIDTH] ...]

Without a video a rendered clip is cut. `encode` is the speed of encoding alone, `all` that of the whole; a
label has changed where a token's cluster is another, after clusters were paired for the most that agree.
"""

from __future__ import annotations

import argparse
import os
from itertools import islice
from time import perf_counter
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from unspool.rendered import render
from unspool.segmenting import segment
from unspool.verbs.segment_settings import (
    correlator_of,
    resolve_segment_settings,
    segmenting_of,
    segmenting_record,
)
from unspool.video import open_video

MODELS = ("dul-small", "random-vits8:192x384")
ROUNDS = 3


class Footage:
    """Frames in memory, so that decoding does not count."""

    def __init__(self, path: str | None, frames: int) -> None:
        if path:
            with open_video(path) as video:
                self.images = [np.asarray(image) for image in islice(video, frames)]
        else:
            clip = render(0, height=240, width=432, frames=frames, objects=3)
            self.images = [clip.image(t) for t in range(frames)]
        self.name = path or "rendered"
        self.height, self.width = self.images[0].shape[:2]

    def __iter__(self) -> Any:
        return iter(self.images)


class Stopwatch:
    """The seconds that encoding took."""

    def __init__(self, device: str) -> None:
        self.seconds, self.last, self.on_gpu = 0.0, perf_counter(), torch.device(device).type == "cuda"

    def __call__(self, stage: str, frames: float) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()
        now = perf_counter()
        self.seconds += now - self.last if stage == "encode" else 0.0
        self.last = now


def measured(model: str, precision: str, video: Footage, device: str) -> tuple[float, float, Any]:
    """Seconds of encoding and of everything, the best of some rounds after a first; and the labels."""
    name, _, size = model.partition(":")
    given = {"model": name, "device": device, "precision": precision}
    settings = resolve_segment_settings({**given, **({"resolution": size} if size else {})})
    correlator, how = correlator_of(settings), segmenting_of(segmenting_record(settings))
    encoding, whole = [], []
    for _ in range(ROUNDS + 1):
        started, watch = perf_counter(), Stopwatch(device)
        found = segment(video, correlator, how, progress=watch)
        encoding.append(watch.seconds)
        whole.append(perf_counter() - started)
    return min(encoding[1:]), min(whole[1:]), found.labels


def changed(ours: Any, theirs: Any) -> float:
    """Share of tokens in another cluster."""
    together = np.zeros((ours.max() + 1, theirs.max() + 1))
    np.add.at(together, (ours.ravel(), theirs.ravel()), 1)
    return float(1 - together[linear_sum_assignment(-together)].sum() / ours.size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL[:HEIGHTxWIDTH]")
    parser.add_argument("--video")
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    video = Footage(args.video, args.frames)
    count = len(video.images)
    for model in args.models:
        encode, whole, labels = measured(model, "fp32", video, args.device)
        low_encode, low_whole, low_labels = measured(model, "bf16", video, args.device)
        print(
            f"{model:24} encode {count / encode:6.1f} -> {count / low_encode:6.1f} frames/s "
            f"({encode / low_encode:.2f} x), all {count / whole:6.1f} -> {count / low_whole:6.1f} "
            f"({whole / low_whole:.2f} x), {changed(labels, low_labels):.1%} of labels changed, "
            f"{labels.max() + 1} and {low_labels.max() + 1} clusters"
        )


if __name__ == "__main__":
    main()

"""Where the time of `unspool track` goes on a 480p clip: decoding, encoding, propagating, writing.

    python benchmarks/track.py            a rendered 480x854 clip of 24 frames
    python benchmarks/track.py CLIP MASK  your own

Prints ms a frame per stage, the share of everything but encoder and propagation, and the rate at which a
result is written when nothing else runs (goal: 80 frames/s).
"""

from __future__ import annotations

import sys
import tempfile
from fractions import Fraction
from pathlib import Path
from time import perf_counter

from unspool.encoders import load_encoder
from unspool.masks import read_mask, write_mask
from unspool.rendered import render
from unspool.tracking import Timings, track_frames
from unspool.video import VideoWriter, open_video
from unspool.video_result import VideoResult

HEIGHT, WIDTH, FRAMES = 480, 854, 24
REPEATS = 8


def rendered(folder: Path) -> tuple[Path, Path]:
    clip = render(0, height=HEIGHT, width=WIDTH, frames=FRAMES, objects=3)
    with VideoWriter(folder / "clip.mp4", height=HEIGHT, width=WIDTH, times=clip.video.times) as writer:
        for image in clip.video:
            writer.write(image)
    write_mask(folder / "first.png", clip.labels(0))
    return folder / "clip.mp4", folder / "first.png"


def result(folder: Path, name: str, height: int, width: int, frames: int) -> VideoResult:
    times = [Fraction(t, 24) for t in range(frames)]
    return VideoResult(folder, name, source=name, height=height, width=width, times=times)


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    clip, mask = map(Path, sys.argv[1:3]) if len(sys.argv) > 2 else rendered(folder)
    encoder, clock = load_encoder("random-resnet18", device="cpu"), Timings()
    with open_video(clip) as video:
        size, tracked = (video.height, video.width), []
        started = perf_counter()
        with result(folder, "tracked", *size, len(video)) as written:
            for image, labels in track_frames(video, read_mask(mask), encoder, timings=clock):
                written.write(image, labels)
                tracked.append((image, labels))
            written.finish(seconds=1.0)
            clock.write = written.seconds_writing
        total = perf_counter() - started
    frames = len(tracked)
    print(f"{clip}: {frames} frames of {size[0]}x{size[1]}, {frames / total:.2f} frames/s in all")
    for stage in ("decode", "encode", "propagate", "write"):
        print(f"{stage:>10} {1000 * getattr(clock, stage) / frames:8.1f} ms a frame")
    rest = total - clock.encode - clock.propagate
    print(
        f"everything but encoder and propagation: {100 * rest / total:.1f} % of the time (goal: below 10 %)"
    )

    started = perf_counter()
    with result(folder, "alone", *size, REPEATS * frames) as written:
        for image, labels in tracked * REPEATS:
            written.write(image, labels)
        written.finish(seconds=1.0)
    rate = REPEATS * frames / (perf_counter() - started)
    print(f"writing alone: {rate:.0f} frames/s (goal: 80)")


if __name__ == "__main__":
    main()

"""Video and mask files: frames a second of each step of reading and writing, beside the plain form.

    python benchmarks/video.py [FOLDER OF FRAMES] [FOLDER OF MASKS]

Without folders, textured frames of 854x480 are made up. Each line is the best of several rounds, and
the rounds of things that are compared alternate. The floor of reading is a bare PyAV loop that converts
to RGB with the settings that are fastest here; of the others, a pass over the pixels. CPU time is that
of all threads: where the machine is shared, compare that.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from time import perf_counter, process_time

import av
import numpy as np
from PIL import Image

from unspool.masks import TracksWriter, display_colours, draw_overlay, read_truth, write_mask
from unspool.video import VideoWriter, open_video, writer

FRAMES, ROUNDS = 144, 5


def made_up(height: int = 480, width: int = 854) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (height // 8 + 40, width // 8 + 40, 3), np.uint8)
    texture = np.asarray(
        Image.fromarray(coarse).resize((width + 320, height + 320), Image.Resampling.BICUBIC)
    )
    rows, columns = np.mgrid[:height, :width]
    images, labels = [], []
    for k in range(FRAMES):
        images.append(np.ascontiguousarray(texture[k : k + height, 2 * k : 2 * k + width]))
        label = np.zeros((height, width), np.uint8)
        for i in range(1, 4):
            centre = (height * i / 4, (width * i / 4 + 3 * k) % width)
            label[(rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < (height / 8) ** 2] = i
        labels.append(label)
    return images, labels


def from_folders(frames: Path, masks: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    images = list(open_video(frames))
    labels = [read_truth(path) for path in sorted(masks.glob("*.png"))]
    there_and_back = [*range(len(images)), *reversed(range(len(images)))]
    order = (there_and_back * (FRAMES // len(images) + 1))[:FRAMES]
    return [images[k] for k in order], [labels[k] for k in order]


def bare_decode(path: Path, thread_type: str, threads: int | None) -> None:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = thread_type
        for frame in container.decode(stream):
            frame.to_ndarray(format="rgb24", **({} if threads is None else {"threads": threads}))


def read(path: Path) -> None:
    with open_video(path) as video:
        for _ in video:
            pass


def write(path: Path, images: list[np.ndarray], times: list[Fraction]) -> None:
    height, width = images[0].shape[:2]
    with VideoWriter(path, height=height, width=width, times=times) as output:
        for image in images:
            output.write(image)


def write_with(preset: str, path: Path, images: list[np.ndarray], times: list[Fraction]) -> None:
    ours, writer.PRESET = writer.PRESET, preset
    write(path, images, times)
    writer.PRESET = ours


def write_tracks(path: Path, labels: list[np.ndarray]) -> None:
    height, width = labels[0].shape
    with TracksWriter(path, name="clip", height=height, width=width) as output:
        for k, label in enumerate(labels):
            output.add(k, label)


def write_masks(folder: Path, labels: list[np.ndarray]) -> None:
    for k, label in enumerate(labels):
        write_mask(folder / f"{k:05d}.png", label)


def best(steps: dict[str, Callable[[], object]]) -> dict[str, tuple[float, float]]:
    """Least seconds and CPU seconds of each step, the rounds taken in turn."""
    least = dict.fromkeys(steps, (float("inf"), float("inf")))
    for _ in range(ROUNDS):
        for name, step in steps.items():
            start, cpu = perf_counter(), process_time()
            step()
            took = perf_counter() - start, process_time() - cpu
            least[name] = min(least[name][0], took[0]), min(least[name][1], took[1])
    return least


def main() -> None:
    images, labels = from_folders(*map(Path, sys.argv[1:3])) if len(sys.argv) > 2 else made_up()
    times = [Fraction(k, 25) for k in range(len(images))]
    colours = display_colours(range(1, 256))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip = folder / "clip.mp4"
        write(clip, images, times)
        seconds = best(
            {
                "decode, bare PyAV, its defaults": lambda: bare_decode(clip, "SLICE", None),
                "decode, bare PyAV, fastest settings": lambda: bare_decode(clip, "AUTO", 1),
                "decode, open_video, index included": lambda: read(clip),
                "encode H.264": lambda: write(folder / "o.mp4", images, times),
                "encode H.264, ultrafast": lambda: write_with("ultrafast", folder / "u.mp4", images, times),
                "draw overlay": lambda: [
                    draw_overlay(i, m, colours) for i, m in zip(images, labels, strict=True)
                ],
                "write mask PNG": lambda: write_masks(folder, labels),
                "write tracks.json": lambda: write_tracks(folder / "t.json", labels),
                "copy the pixels (floor)": lambda: [image.copy() for image in images],
            }
        )
        larger = (folder / "u.mp4").stat().st_size / (folder / "o.mp4").stat().st_size
    height, width = images[0].shape[:2]
    print(f"{len(images)} frames of {width}x{height}; av {av.__version__}")
    for step, (took, cpu) in seconds.items():
        each, busy = 1000 * took / len(images), 1000 * cpu / len(images)
        print(f"{step:38s} {1000 / each:6.0f} frames/s  {each:6.2f} ms  CPU {busy:6.2f} ms")
    ours = seconds["decode, open_video, index included"]
    for name in ("its defaults", "fastest settings"):
        plain = seconds[f"decode, bare PyAV, {name}"]
        print(f"open_video / bare PyAV, {name}: {ours[0] / plain[0]:.2f}, CPU {ours[1] / plain[1]:.2f}")
    print(f"ultrafast / {writer.PRESET}, bytes: {larger:.2f}")
    busy = 2 * seconds["encode H.264"][1]
    busy += sum(seconds[s][1] for s in ("draw overlay", "write mask PNG", "write tracks.json"))
    print(f"two videos, overlay, PNG and tracks, CPU of one core: {len(images) / busy:.0f} frames/s")


if __name__ == "__main__":
    main()

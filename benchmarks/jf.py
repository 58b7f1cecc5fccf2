"""J and F of a problem of DAVIS-2017 val's size, PNG decoding included, against the official tool's form.

    python benchmarks/jf.py [FOLDER]     a new folder is filled with masks first, an old one is used again

30 sequences, 61 objects, 1,999 frames of 480x854, one process per core. The plain form is ours, restated from
the official evaluator: whole sequences as float64 stacks of one-hot masks, J and F object by object on full
frames. It runs on the first sequences only, and its time is scaled by the number of frames. It dilates with
OpenCV as the official tool does, if that is installed (pip install opencv-python-headless), else with SciPy.
"""

from __future__ import annotations

import math
import os
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
from PIL import Image

from unspool.masks import davis_palette, read_truth
from unspool.metrics import ObjectScores, davis17_semi, pooled_over_objects
from unspool.metrics.jf import frame_pair

HEIGHT, WIDTH = 480, 854
FRAMES = [67] * 19 + [66] * 11  # of each sequence: 1,999
OBJECTS = [2] * 29 + [3]  # 61
SAMPLE = 2  # sequences that the plain form scores
Dilation = Callable[[np.ndarray], np.ndarray]
SPAWN = get_context("spawn")  # so that a worker's peak memory is its own

# ------------------------------------------------------------------------------------------ the problem


def blob(centre: np.ndarray, size: float, ripple: np.ndarray) -> np.ndarray:
    """A star-shaped region with a ragged outline; `ripple` is the phase of each harmonic."""
    rows, columns = np.ogrid[:HEIGHT, :WIDTH]
    dy, dx = rows - centre[0], columns - centre[1]
    order = np.arange(1, len(ripple) + 1)
    angles = np.linspace(-math.pi, math.pi, 2049)
    radius = size * (1 + (0.25 / order * np.cos(order * angles[:, None] + ripple)).sum(axis=1))
    reach = math.ceil(radius.max()) + 1
    y, x = np.clip(centre.astype(int), reach, np.array([HEIGHT, WIDTH]) - reach) - reach
    window = slice(max(y, 0), y + 2 * reach + 1), slice(max(x, 0), x + 2 * reach + 1)
    dy, dx = dy[window[0]], dx[:, window[1]]
    inside = np.zeros((HEIGHT, WIDTH), bool)
    inside[window] = np.hypot(dy, dx) < np.interp(np.arctan2(dy, dx), angles, radius)
    return inside


def write_sequence(folder: Path, number: int) -> None:
    """Truth and prediction: objects that wander and change shape, and the same a little off."""
    rng = np.random.default_rng(number)
    size = rng.uniform(40, 110, OBJECTS[number])
    centre = rng.uniform((120, 150), (HEIGHT - 120, WIDTH - 150), (OBJECTS[number], 2))
    ripple = rng.uniform(0, 2 * math.pi, (OBJECTS[number], 24))
    for kind in ("truth", "prediction"):
        (folder / kind / f"{number:02}").mkdir(parents=True, exist_ok=True)
    for frame in range(FRAMES[number]):
        centre += rng.normal(0, 2, centre.shape)
        ripple += rng.normal(0, 0.05, ripple.shape)
        for kind, off in (("truth", 0.0), ("prediction", 1.0)):
            labels = np.zeros((HEIGHT, WIDTH), np.uint8)
            for label in range(OBJECTS[number]):
                place = centre[label] + off * rng.normal(0, 2, 2)
                shape = ripple[label] + off * rng.normal(0, 0.2, ripple.shape[1])
                labels[blob(place, size[label], shape)] = label + 1
            image = Image.fromarray(labels)
            image.putpalette(davis_palette().tobytes())
            image.save(folder / kind / f"{number:02}" / f"{frame:05}.png")


def paths(folder: Path, kind: str, number: int) -> list[Path]:
    return sorted((folder / kind / f"{number:02}").glob("*.png"))


# ------------------------------------------------------------------------------------------------- ours


def ours(folder: Path, number: int) -> tuple[ObjectScores, int, int]:
    """A sequence's scores, decoded on the fly; this process and its peak bytes until now."""
    maps = ((read_truth(path) for path in paths(folder, kind, number)) for kind in ("prediction", "truth"))
    return davis17_semi(*maps), os.getpid(), peak_bytes()


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# --------------------------------------------------------------------------------------- the plain form


def plain(folder: Path, number: int) -> tuple[list[tuple[float, float]], float, int]:
    """Mean J and F of each object; CPU seconds, and peak bytes of this process."""
    start = process_time()
    truth, prediction = (plain_stack(paths(folder, kind, number)) for kind in ("truth", "prediction"))
    dilate = plain_dilation(math.ceil(0.008 * math.hypot(HEIGHT, WIDTH)))
    means = []
    for p, t in zip(prediction[:, 1:-1], truth[:, 1:-1], strict=True):
        f = [plain_f(*pair, np.zeros((HEIGHT, WIDTH), bool), dilate) for pair in zip(p, t, strict=True)]
        means.append((float(np.mean(plain_j(p, t, np.zeros_like(p)))), float(np.mean(f))))
    return means, process_time() - start, peak_bytes()


def plain_stack(files: list[Path]) -> np.ndarray:
    """[object, frame, row, column]."""
    labels = np.zeros((len(files), HEIGHT, WIDTH))
    for frame, path in enumerate(files):
        labels[frame] = np.array(Image.open(path))
    for frame in labels:
        frame[frame == 255] = 0
    count = int(labels.max())
    ids = np.ones((count, *labels.shape)) * np.arange(1, count + 1)[:, None, None, None]
    return (ids == labels) > 0


def plain_j(prediction: np.ndarray, truth: np.ndarray, void: np.ndarray) -> np.ndarray:
    shared = np.sum((prediction & truth) & np.logical_not(void), axis=(-2, -1))
    union = np.sum((prediction | truth) & np.logical_not(void), axis=(-2, -1))
    return np.where(union == 0, 1.0, shared / np.maximum(union, 1))


def plain_f(prediction: np.ndarray, truth: np.ndarray, void: np.ndarray, dilate: Dilation) -> float:
    edges = [plain_boundary(mask * np.logical_not(void)) for mask in (prediction, truth)]
    wide = [dilate(edge) for edge in edges]
    lengths = [np.sum(edge) for edge in edges]
    if not all(lengths):
        return float(not any(lengths))
    precision, recall = np.sum(edges[0] * wide[1]) / lengths[0], np.sum(edges[1] * wide[0]) / lengths[1]
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def plain_boundary(mask: np.ndarray) -> np.ndarray:
    east, south, south_east = np.zeros_like(mask), np.zeros_like(mask), np.zeros_like(mask)
    east[:, :-1], south[:-1], south_east[:-1, :-1] = mask[:, 1:], mask[1:], mask[1:, 1:]
    edge = mask ^ east | mask ^ south | mask ^ south_east
    edge[-1], edge[:, -1], edge[-1, -1] = mask[-1] ^ east[-1], mask[:, -1] ^ south[:, -1], 0
    return edge


def plain_dilation(radius: int) -> Dilation:
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    disc = (x**2 + y**2 <= radius**2).astype(np.uint8)
    try:
        import cv2  # noqa: PLC0415  # only this benchmark knows it
    except ImportError:
        from scipy.ndimage import binary_dilation  # noqa: PLC0415

        return lambda edge: binary_dilation(edge, disc)
    cv2.setNumThreads(1)
    return lambda edge: cv2.dilate(edge.astype(np.uint8), disc)


# ---------------------------------------------------------------------------------------------- results


def parts(folder: Path, number: int) -> Iterator[tuple[str, float]]:
    """CPU ms a frame, prediction and truth, of what `ours` is made of, and of merely copying the maps."""
    files = list(zip(paths(folder, "prediction", number), paths(folder, "truth", number), strict=True))
    start = process_time()
    frames = [(read_truth(p), read_truth(t)) for p, t in files]
    yield "decoding", (process_time() - start) / len(files) * 1e3
    start = process_time()
    for frame in frames:
        pair = frame_pair(*frame)
        for label in range(1, OBJECTS[number] + 1):
            pair.j(label, label), pair.f(label, label)
    yield "J and F", (process_time() - start) / len(files) * 1e3
    start = process_time()
    for frame in frames:
        for labels in frame:
            labels.copy()
    yield "one copy", (process_time() - start) / len(files) * 1e3


def on_every_core(work: Callable[..., Any], folder: Path) -> list[Any]:
    with ProcessPoolExecutor(os.cpu_count(), SPAWN) as pool:
        return list(pool.map(work, [folder] * len(FRAMES), range(len(FRAMES))))


def children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main(folder: Path) -> None:
    if not folder.exists():
        on_every_core(write_sequence, folder)
    cpu, wall = children_seconds(), perf_counter()
    results = on_every_core(ours, folder)
    cpu, wall = children_seconds() - cpu, perf_counter() - wall  # starting the processes included
    peak = sum({pid: peak for _, pid, peak in results}.values())
    with ProcessPoolExecutor(1, SPAWN, max_tasks_per_child=1) as pool:
        sample = list(pool.map(plain, [folder] * SAMPLE, range(SAMPLE)))
    plain_cpu = sum(cpu for _, cpu, _ in sample) * sum(FRAMES) / sum(FRAMES[:SAMPLE])
    plain_peak = max(peak for _, _, peak in sample)
    difference = max(
        abs(measure.mean - mean)
        for (scores, _, _), (means, _, _) in zip(results, sample, strict=False)
        for found, expected in zip(scores.statistics(), means, strict=True)
        for measure, mean in zip(found, expected, strict=True)
    )
    mean = pooled_over_objects(scores for scores, _, _ in results)
    print(f"{len(FRAMES)} sequences, {sum(OBJECTS)} objects, {sum(FRAMES)} frames of {HEIGHT}x{WIDTH}")
    print(f"{'':12}{'wall s':>8}{'CPU s':>8}{'peak MB':>9}")
    print(f"{'ours':12}{wall:8.1f}{cpu:8.1f}{peak / 1e6:9.0f}   all {os.cpu_count()} processes together")
    print(f"{'plain form':12}{'':8}{plain_cpu:8.1f}{plain_peak / 1e6:9.0f}   {SAMPLE} sequences, scaled")
    print(f"ratio of CPU {plain_cpu / cpu:.1f}; greatest difference of a mean {difference:.1e}")
    print(f"J {mean.j_mean:.3f}, F {mean.f_mean:.3f}. CPU ms a frame, prediction and truth:")
    print("; ".join(f"{name} {ms:.2f}" for name, ms in parts(folder, 0)))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(made) / "masks")

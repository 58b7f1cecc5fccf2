"""Foreground extraction (CBFE) at Pascal's size: 1,464 + 1,449 pictures of 28x28 tokens x 384, synthetic.

    python benchmarks/cbfe.py [SHARE]

SHARE of the pictures, 0..1; default 1. Features are made on the disk first, as the cache keeps them. Prints
seconds and the peak memory of extraction, its own and with the program, and what features stretched to
100x100 would take.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from time import perf_counter, sleep

import numpy as np
import torch

from unspool.data.features import Kept
from unspool.protocols.salient import RECIPES, extract

TRAIN, VAL, GRID, DIM, CLASSES = 1464, 1449, 28, 384, 21
ITERATIONS = 3  # of k-means, of 50 or 100: its memory is the same


def kept(folder: Path, count: int, seed: int) -> Kept:
    """A few blobs of other features in each picture, which attention sees with noise."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((CLASSES, DIM)).astype(np.float32)
    folder.mkdir()
    tokens = np.lib.format.open_memmap(folder / "tokens.npy", "w+", "float16", (count, DIM, GRID, GRID))
    attention = np.lib.format.open_memmap(folder / "a.npy", "w+", "float32", (count, 1, GRID, GRID))
    labels = np.zeros((count, 100, 100), np.uint8)
    at = np.arange(100) * GRID // 100
    for i in range(count):
        small = np.zeros((GRID, GRID), np.uint8)
        y, x = rng.integers(0, GRID // 2, 2)
        small[y : y + 12, x : x + 12] = rng.integers(1, CLASSES)
        tokens[i] = (centres[small] + rng.standard_normal((GRID, GRID, DIM), np.float32)).transpose(2, 0, 1)
        attention[i, 0] = (small > 0) + 0.1 + 0.2 * rng.random((GRID, GRID))
        labels[i] = small[at][:, at]
    tokens.flush()
    maps = {
        "tokens": np.load(folder / "tokens.npy", mmap_mode="r"),
        "cls_attention": np.load(folder / "a.npy", mmap_mode="r"),
    }
    return Kept(maps, labels, "synthetic")


class Anonymous:
    """Peak of the memory that is not a file's: pages of memory-mapped features can be dropped any time."""

    def __init__(self) -> None:
        self.peak, self._done = 0.0, False
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self._done:
            lines = Path("/proc/self/status").read_text().splitlines()
            self.peak = max(
                self.peak, *(int(li.split()[1]) / 1e6 for li in lines if li.startswith("RssAnon"))
            )
            sleep(0.02)

    def stop(self) -> float:
        self._done = True
        return self.peak


def main() -> None:
    share = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    counts = [max(40, round(share * n)) for n in (TRAIN, VAL)]
    with tempfile.TemporaryDirectory() as folder:
        train, val = (kept(Path(folder) / str(n), count, n) for n, count in enumerate(counts))
        print(f"{counts[0]} + {counts[1]} pictures of {GRID}x{GRID} tokens x {DIM}; "
              f"{torch.get_num_threads()} threads")  # fmt: skip
        for name, recipe in RECIPES.items():
            how = replace(recipe, tries=1, iterations=ITERATIONS, seeds=(0,))
            watch, started = Anonymous(), perf_counter()
            found = extract(train, val, (train, val), CLASSES, how, torch.device("cpu"))
            seconds, peak = perf_counter() - started, watch.stop()
            right = ((found.tuned > 0) == (np.asarray(val.labels) > 0)).mean()
            print(f"{name:>8}: {seconds:6.0f} s ({ITERATIONS} iterations of k-means), peak {peak:.2f} GB; "
                  f"{100 * right:.0f} % of the pixels right")  # fmt: skip
    stretched = 4 * sum(counts) * 100 * 100 * 50 / 1e9
    print(f"resident with mapped files: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")
    print(f"features of 50 channels stretched to 100x100 would be {stretched:.1f} GB")


if __name__ == "__main__":
    main()

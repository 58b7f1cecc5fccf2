"""In-context look-up: 20 pictures of 32x32 patches ask a memory of 1 M patches x 384, 30 neighbours each.

    python benchmarks/incontext.py [PICTURES] [ROWS]

Prints the rate of products of the same shapes, made in the same run between the parts of the search, what the
whole search reaches of it, the peak memory, and what 1,449 pictures and 10.24 M rows would take.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from unspool.ops import neighbours
from unspool.protocols.incontext import NEIGHBOURS, Stored, looked_up, needs

PATCHES, DIM, CLASSES = 32 * 32, 384, 21
PUBLISHED = 1449, 10_240_000  # pictures, rows
CALIBRATED_EVERY = 16  # tiles


def memory(rows: int, folder: Path) -> Stored:
    """Features with groups, as patches have, and labels."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(1000, DIM, generator=generator)
    features = np.lib.format.open_memmap(folder / "features.npy", "w+", "float16", (rows, DIM))
    labels = np.lib.format.open_memmap(folder / "labels.npy", "w+", "float32", (rows, CLASSES))
    for start in range(0, rows, 1 << 16):
        count = min(1 << 16, rows - start)
        kind = torch.randint(0, 1000, (count,), generator=generator)
        features[start : start + count] = centres[kind] + torch.randn(count, DIM, generator=generator)
        labels[start : start + count] = np.eye(CLASSES, dtype=np.float32)[kind.numpy() % CLASSES]
    return Stored(features, labels)


def resident(which: str) -> float:
    """GB of this process: now, or at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e6 for line in lines if line.startswith(which))


def main() -> None:
    pictures, rows = (int(a) for a in (*sys.argv[1:], *("20", "1000000")[len(sys.argv) - 1 :]))
    generator = torch.Generator().manual_seed(1)
    queries = [torch.randn(PATCHES, DIM, generator=generator) for _ in range(pictures)]
    tile = torch.randn(neighbours.ROWS, DIM, generator=generator)
    calibrating, calibrated = 0.0, 0

    def calibrate(row: int) -> None:
        """The products alone, now and then during the search: the machine has other work too."""
        nonlocal calibrating, calibrated
        if row // neighbours.ROWS % CALIBRATED_EVERY == 0:
            started = perf_counter()
            for each in queries[:4]:
                each @ tile.T
            calibrating += perf_counter() - started
            calibrated += len(queries[:4])

    with tempfile.TemporaryDirectory() as folder:
        stored = memory(rows, Path(folder))
        calibrate(0)
        calibrating, calibrated = 0.0, 0
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak counts from here
        before = resident("VmRSS")
        started = perf_counter()
        looked_up(queries, stored, seen=calibrate)
        seconds = perf_counter() - started - calibrating
        peak = resident("VmHWM")
    products = 2 * PATCHES * DIM * pictures * rows
    rate = 2 * PATCHES * DIM * neighbours.ROWS * calibrated / calibrating
    reached = products / seconds
    need = needs(PATCHES, DIM, CLASSES, NEIGHBOURS)
    full = 2 * PATCHES * DIM * PUBLISHED[0] * PUBLISHED[1]
    print(f"{pictures} pictures of {PATCHES} patches, {rows} rows x {DIM}, {torch.get_num_threads()} threads")
    print(f"products alone:   {rate / 1e9:8.1f} GFLOP/s")
    print(
        f"the whole search: {reached / 1e9:8.1f} GFLOP/s, {100 * reached / rate:.0f} % of it, {seconds:.1f} s"
    )
    reckoned = (need.fixed + pictures * need.image) / 1e9
    print(f"memory: grew by {peak - before:.2f} GB, pages of files included; reckoned {reckoned:.2f} GB")
    print(f"{PUBLISHED[0]} pictures, {PUBLISHED[1]} rows: {full / reached / 3600:.1f} h here; "
          f"{full / 40e12 / 60:.1f} min at 40 TFLOP/s of a GPU")  # fmt: skip


if __name__ == "__main__":
    main()

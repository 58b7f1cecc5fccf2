"""A linear head on kept features: seconds an epoch of 10,582 pictures of 28x28 tokens x 384, nothing encoded.

    python benchmarks/linear_head.py [PICTURES]

So many synthetic pictures are made on the disk (default 1,200, 0.7 GB: the published number needs 6.4 GB a
view), float16 and memory-mapped as the cache keeps them; the time is scaled to 10,582. The head is applied to
tokens; the plain form, to features stretched to 100x100, is timed on one batch beside it.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch.nn.functional import cross_entropy, interpolate

from unspool.data.features import Kept
from unspool.protocols.linear import RECIPES, _epoch, _optimiser, fresh, logits, rebuilt

PUBLISHED, GRID, DIM, CLASSES = 10_582, 28, 384, 21


def kept(folder: Path, count: int, side: int) -> Kept:
    rng = np.random.default_rng(0)
    tokens = np.lib.format.open_memmap(folder / "tokens.npy", "w+", "float16", (count, DIM, GRID, GRID))
    for i in range(count):
        tokens[i] = rng.standard_normal((DIM, GRID, GRID), np.float32)
    tokens.flush()
    labels = rng.integers(0, CLASSES, (count, side, side)).astype(np.uint8)
    return Kept({"tokens": np.load(folder / "tokens.npy", mmap_mode="r")}, labels, "synthetic")


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1200
    recipe, cpu = replace(RECIPES["leopart-linear"], views=1), torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        train = kept(Path(folder), count, recipe.loss_side)
        head = rebuilt(fresh(recipe, DIM, CLASSES, cpu).head, recipe, train, CLASSES, cpu)
        optimiser = _optimiser(head, recipe)
        started = perf_counter()
        _epoch(head, optimiser, train, recipe, 0, cpu)
        seconds = perf_counter() - started
        batch = min(recipe.batch, count)
        features = train.rows(slice(0, batch))
        labels = torch.from_numpy(train.labels[:batch]).long()

        def timed(plain: bool) -> float:
            started = perf_counter()
            side = (recipe.loss_side, recipe.loss_side)
            out = (
                head(interpolate(features, side, mode="bilinear"))
                if plain
                else logits(head, features, side[0])
            )
            torch.autograd.backward(cross_entropy(out, labels))
            return perf_counter() - started

        ours, plain = timed(False), timed(True)
    used = count - count % min(recipe.batch, count)
    threads = torch.get_num_threads()
    print(f"{used} pictures of {GRID}x{GRID} x {DIM}: {seconds:.1f} s an epoch, {threads} threads")
    print(f"scaled to {PUBLISHED}: {seconds * PUBLISHED / used:.0f} s an epoch")
    print(
        f"one batch of {batch}: {ours:.2f} s; head on stretched features {plain:.2f} s ({plain / ours:.1f}x)"
    )


if __name__ == "__main__":
    main()

"""The clustering protocols at Pascal's size: matching alone, and `overcluster-voc-k500` of one seed.

    python benchmarks/clustering_protocols.py [--images 1449] [--threads 2] [--sample 0]

Matching: 18 million pixels, K=500, 21 classes, from one confusion matrix. Protocol: 28x28 tokens of 384
channels an image, made up as they are read, so that nothing but the protocol takes memory; five seeds are
projected from one. The floor is the distances' products: iterations x points x clusters x dimensions.
"""

from __future__ import annotations

import argparse
import os
import resource
from collections.abc import Iterator
from dataclasses import replace
from time import perf_counter

import numpy as np
import torch
from floor import gemm_rate

from unspool.metrics import clustering
from unspool.ops.kmeans import KMeans
from unspool.protocols.clustering import PROTOCOLS, Labelled, score_clips

CLASSES, SIDE, GRID, CHANNELS = 21, 448, 28, 384


class Images:
    """Made from their number: tokens of a class lie around its own direction."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.directions = torch.randn(CLASSES, CHANNELS, generator=torch.Generator().manual_seed(0))

    def __iter__(self) -> Iterator[Labelled]:
        for number in range(self.count):
            generator = torch.Generator().manual_seed(number)
            coarse = torch.randint(0, CLASSES, (7, 7), generator=generator)
            tokens = coarse.repeat_interleave(4, 0).repeat_interleave(4, 1)
            noise = torch.randn(GRID, GRID, CHANNELS, generator=generator)
            features = (self.directions[tokens] + noise).movedim(2, 0)[None]
            truth = tokens.repeat_interleave(16, 0).repeat_interleave(16, 1)[None]
            yield Labelled(f"image{number}", features, truth.numpy().astype(np.uint8))


def matching() -> None:
    rng = np.random.default_rng(0)
    pixels = np.arange(100) * GRID // 100
    prediction = rng.integers(0, 500, (1800, GRID, GRID))[:, pixels][:, :, pixels]
    truth = rng.integers(0, CLASSES, (1800, 10, 10)).repeat(10, 1).repeat(10, 2).astype(np.uint8)
    for rule in ("many-precision", "hungarian"):
        start = perf_counter()
        clustering(prediction, truth, rule, clusters=500, classes=CLASSES)
        print(f"matching, {rule}: {perf_counter() - start:.2f} s for {prediction.size / 1e6:.0f} M pixels")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=1449)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--sample", type=int, default=0, help="points per cluster that are fitted; 0: all")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rate = gemm_rate()
    matching()
    how = replace(PROTOCOLS["overcluster-voc-k500"], seeds=(0,), kmeans=KMeans(sample=args.sample))
    images = Images(args.images)
    start = perf_counter()
    for _ in range(3):
        for _ in images:
            pass
    reading = perf_counter() - start
    start = perf_counter()
    score = score_clips(images, how)
    seconds = perf_counter() - start - reading
    points = args.images * GRID**2
    fitted = min(points, args.sample * how.clusters) if args.sample else points
    most = 2 * how.kmeans.iterations * how.kmeans.tries * fitted * how.clusters * how.dims / rate
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{points:,} tokens, K={how.clusters}, {fitted:,} fitted: one seed {seconds:.1f} s, five "
        f"{5 * seconds:.0f} s (projected); the products of all iterations take {most:.1f} s; "
        f"peak {peak:.2f} GB; mIoU {score.bg[0]:.3f}"
    )


if __name__ == "__main__":
    main()

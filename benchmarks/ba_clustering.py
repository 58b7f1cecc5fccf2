"""BA's clustering at its published sizes: the released form stated plainly beside ours, and the floor.

    python benchmarks/ba_clustering.py [--rounds 2] [--threads 2] [--case all|keys|long|lengths]

`all`: T=6 frames of 24x48 tokens, every token a key, at tau 1.0 and 0.05, each form in a process of its own:
seconds, and the most memory held beyond queries and keys (resident, Linux). Labels are compared. The floor is
the products that are needed (distances and smoothing of each window, attention, labels) at the measured rate.
`keys`: the same with one key frame of six. `long`: T=80, every tenth a key frame, ours only, and the share of
time in matrix products. `lengths`: 50, 500 and 5,000 frames of 12x24 tokens through `segment`, by seconds and
memory.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from floor import gemm_rate
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from unspool.encoders.correlator import untrained
from unspool.ops.clustering import Clustering, cluster, rows_of_attention
from unspool.segmenting import Segmenting, segment

HEADS, CHANNELS, GRID = 8, 48, (24, 48)


def features(frames: int, spread: float) -> Tensor:
    """Queries of all tokens: smooth over the frame, alike in all frames, and noise. [t, heads, n, d]."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.linspace(0, 1, GRID[0]), torch.linspace(0, 1, GRID[1]), indexing="ij")
    waves = torch.stack([torch.sin(6 * y), torch.cos(6 * x), torch.sin(9 * x + 5 * y)], -1).view(-1, 3)
    smooth = (waves @ torch.randn(3, HEADS * CHANNELS, generator=generator)).view(-1, HEADS, CHANNELS)
    noise = torch.randn(frames, HEADS, len(waves), CHANNELS, generator=generator)
    return spread * smooth.transpose(0, 1) + 0.5 * noise


CASES = {  # frames, spread of the features, tau, frames from one key frame to the next
    "tau 1.0": (6, 0.7, 1.0, 1),
    "tau 0.05": (6, 0.25, 0.05, 1),
    "one key frame": (6, 0.7, 1.0, 6),
}


# --------------------------------------------------------------------------------------- the released form


def plain_distances(x: Tensor, y: Tensor) -> Tensor:
    own, other = (x * x.log()).sum(1), (y * y.log()).sum(1)
    return own[:, None] + other - x @ y.log().T - x.log() @ y.T


def plain_pass(x: Tensor, tau: float) -> Tensor:
    distances = plain_distances(x, x)
    used = torch.zeros(len(x), dtype=torch.bool)
    found = []
    for i in range(len(x)):
        if not used[i]:
            near = (distances[i] <= tau) & ~used
            near[i] = True
            found.append(x[near].mean(0))
            used |= near
    return torch.stack(found)


def plain(q: Tensor, k: Tensor, tau: float) -> Tensor:
    keys = k.transpose(0, 1).flatten(1, 2)

    def rows(start: int) -> Tensor:
        queries = q[start : start + 3].transpose(0, 1).flatten(1, 2)
        return torch.softmax(queries @ keys.transpose(1, 2) * CHANNELS**-0.5, dim=-1).mean(0)

    parts = []
    for start in range(0, len(q), 3):
        x = rows(start)
        smooth = (plain_distances(x, x) <= tau).to(x.dtype) @ x
        parts.append(plain_pass(smooth / smooth.sum(1, keepdim=True), tau))
    centroids, count = torch.cat(parts), -1
    while count != len(centroids):
        count = len(centroids)
        centroids = plain_pass(centroids, tau)
    return torch.cat([plain_distances(centroids, rows(t)).argmin(0) for t in range(0, len(q), 3)])


def ours(q: Tensor, k: Tensor, tau: float) -> Tensor:
    return cluster(rows_of_attention(q, k), len(q), Clustering(tau=tau)).labels


# --------------------------------------------------------------------------------------- measuring


def resident(peak: bool) -> float:
    """MB of this process, now or at most since the last `forget_peak`."""
    field = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", "ascii")


def measure(form: Callable[[Tensor, Tensor, float], Tensor], case: str, rounds: int, file: str) -> None:
    frames, spread, tau, every = CASES[case]
    q = features(frames, spread)
    k = q[::every].clone()
    seconds, megabytes, labels = [], 0.0, torch.empty(0)
    for _ in range(rounds):
        forget_peak()
        before, start = resident(peak=False), perf_counter()
        labels = form(q, k, tau)
        seconds.append(perf_counter() - start)
        megabytes = max(megabytes, resident(peak=True) - before)
    torch.save((min(seconds), megabytes, labels), file)


def needed(case: str, clusters: int) -> float:
    """Operations of the products that the released procedure cannot do without."""
    frames, _, _, every = CASES[case]
    hw = GRID[0] * GRID[1]
    rows, columns = frames * hw, -(-frames // every) * hw
    window = 3 * hw
    return columns * (4 * frames // 3 * window**2 + 2 * rows * HEADS * CHANNELS + 4 * rows * clusters)


def compare(case: str, args: argparse.Namespace) -> None:
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for form in ("plain", "ours"):
            file = f"{folder}/{form}.pt"
            own = ["--form", form, "--file", file, "--of", case]
            subprocess.run([sys.executable, *sys.argv, *own], check=True)
            results[form] = torch.load(file)
    (plain_s, plain_mb, labels), (our_s, our_mb, own_labels) = results.values()
    clusters = len(labels.unique())
    floor = needed(case, clusters) / gemm_rate()
    same = int((labels != own_labels).sum())
    print(f"{case}: {clusters} clusters, {same} of {len(labels)} labels differ")
    print(f"  plain {plain_s:6.2f} s {plain_mb:6.0f} MB")
    print(f"  ours  {our_s:6.2f} s {our_mb:6.0f} MB   floor {floor:.2f} s")
    print(f"  {plain_s / our_s:.1f} times as fast, {our_s / floor:.2f} x the needed products")


def long() -> None:
    q = features(80, 0.7)
    forget_peak()
    before = resident(peak=False)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        start = perf_counter()
        labels = ours(q, q[::10], 1.0)
        seconds, megabytes = perf_counter() - start, resident(peak=True) - before
    times = {event.key: event.self_cpu_time_total for event in profiled.key_averages()}
    products = sum(times.get(f"aten::{name}", 0) for name in ("mm", "addmm_", "addmm", "bmm"))
    print(f"T=80, key ratio 0.1: {seconds:.1f} s, {megabytes:.0f} MB, {len(labels.unique())} clusters,")
    print(f"  {products / 1e6 / seconds:.0%} of the time in matrix products")


class Waves(nn.Module):
    """An encoder that costs nothing: tokens of the benchmark's features."""

    name, patch, multiple, dim, offers = "waves", 8, 8, 48, ("tokens",)

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor, want: tuple[str, ...] = ("tokens",)) -> dict[str, Tensor]:
        colours = nn.functional.avg_pool2d(images, 8)
        waves = torch.cat([torch.sin(i * colours + j) for i in (1, 3, 5, 7) for j in range(4)], dim=1)
        return {"tokens": 4 * waves}


class Footage:
    """Colours that drift over the frame."""

    name, height, width = "waves", 96, 192

    def __init__(self, frames: int) -> None:
        self.frames = frames

    def __iter__(self) -> Iterator[np.ndarray]:
        y, x = np.mgrid[0:96, 0:192] / 96
        for t in range(self.frames):
            waves = np.stack([np.sin(3 * x + t / 40), np.cos(4 * y), np.sin(2 * x * y)], axis=-1)
            yield (127 + 120 * waves).astype(np.uint8)


def lengths() -> None:
    correlator = untrained(Waves())
    correlator.blocks[0].attn["qkv"].weight *= 4
    how = Segmenting(clustering=Clustering(tau=0.1), resolution=(96, 192), finest=0.05)
    segment(Footage(130), correlator, how)
    for frames in (50, 500, 5000):
        forget_peak()
        start = perf_counter()
        found = segment(Footage(frames), correlator, how)
        seconds, megabytes = perf_counter() - start, resident(peak=True)
        assert found.leaves is not None
        stored = (found.labels.nbytes + found.leaves.nbytes) / 2**20
        print(
            f"{frames:5} frames: {seconds:7.1f} s ({seconds / frames * 1000:.0f} ms a frame), "
            f"{megabytes:5.0f} MB resident, {stored:.1f} of them labels; {found.clusters} clusters"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--case", default="", choices=("", "all", "keys", "long", "lengths"))
    parser.add_argument("--form", choices=("plain", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--of", help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.form:
        measure({"plain": plain, "ours": ours}[args.form], args.of, args.rounds, args.file)
        return
    print(f"{args.threads} threads, products at {gemm_rate() / 1e9:.0f} GFLOP/s")
    if args.case in ("", "all"):
        compare("tau 1.0", args)
        compare("tau 0.05", args)
    if args.case in ("", "keys"):
        compare("one key frame", args)
    if args.case in ("", "long"):
        long()
    if args.case in ("", "lengths"):
        lengths()


if __name__ == "__main__":
    main()

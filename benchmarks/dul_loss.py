"""DUL's losses, forward and backward, at the published size: the plain form of Fig. 5 beside ours.

    python benchmarks/dul_loss.py [--rounds 5] [--threads 2] [--float64]

B=16 clips, T=5 frames, 32x32 cells, K=128 features, N=8, M=4. Each form runs in its own process on the same
features: best time of the rounds, and the most memory that was held beyond the features (resident, Linux).
The floor is the three matrix products that the space-time loss cannot do without, for all cells and anchors.
Gradients of both forms are compared in the first process's features.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor
from torch.nn.functional import normalize

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from oracles_dul import plain_losses

from unspool.methods.dul import Config, Embeddings, objective
from unspool.ops.geometry import draw_grids, draw_zooms

CLIPS, FRAMES, GRID, CONFIG = 16, 5, (32, 32), Config()


def inputs(dtype: torch.dtype) -> tuple[Embeddings, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (CLIPS, 2 * FRAMES, CONFIG.embedding, *GRID)
    # Neighbouring frames and cells look alike, as in video: noise added to what the clip has in common
    features = torch.randn(shape[0], 1, *shape[2:], generator=generator) + 0.7 * torch.randn(
        shape, generator=generator
    )
    first, second, rest = normalize(features.to(dtype), dim=2).split([FRAMES, 1, FRAMES - 1], dim=1)
    k = Embeddings(first.clone().requires_grad_(), second[:, 0].clone().requires_grad_(), rest.clone())
    theta = draw_zooms(CLIPS, (256, 256), CONFIG.zoom, generator).matrices()[1]
    anchors, references = (draw_grids(CLIPS, GRID, side, generator) for side in (8, 4))
    return k, theta, anchors, references


def plain(k: Embeddings, theta: Tensor, anchors: Tensor, references: Tensor) -> Tensor:
    k_hat = torch.cat([k.second[:, None], k.regularising], dim=1)
    settings = {"temperature": CONFIG.temperature, "weight": CONFIG.cross_view}
    return plain_losses(k.first, k_hat, theta, anchors, references, **settings).total


def ours(k: Embeddings, theta: Tensor, anchors: Tensor, references: Tensor) -> Tensor:
    return objective(k, theta, anchors, references, CONFIG)[0]


def resident(peak: bool) -> float:
    """MB of this process, now or at most since the last `forget_peak`."""
    field = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", "ascii")


def measure(form: Callable[..., Tensor], rounds: int, dtype: torch.dtype, file: str) -> None:
    given = inputs(dtype)
    k = given[0]
    seconds, megabytes = [], 0.0
    for _ in range(rounds):
        k.first.grad = k.second.grad = None
        forget_peak()
        before, start = resident(peak=False), perf_counter()
        loss = form(*given)
        loss.backward()
        seconds.append(perf_counter() - start)
        megabytes = max(megabytes, resident(peak=True) - before)
    assert k.first.grad is not None
    gradient = torch.cat([k.first.grad.flatten(), torch.as_tensor(k.second.grad).flatten()])
    torch.save((loss.detach(), gradient, min(seconds), megabytes), file)


def floor(rounds: int, dtype: torch.dtype) -> float:
    rows, anchors = CLIPS * (FRAMES - 1) * GRID[0] * GRID[1], CLIPS * CONFIG.anchors**2
    queries, keys = (
        torch.randn(rows, CONFIG.embedding, dtype=dtype),
        torch.randn(anchors, CONFIG.embedding, dtype=dtype),
    )
    logits = queries @ keys.T
    seconds = []
    for _ in range(rounds):
        start = perf_counter()
        torch.mm(queries, keys.T, out=logits)
        torch.mm(logits, keys)
        torch.mm(logits.T, queries)
        seconds.append(perf_counter() - start)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--float64", action="store_true")
    parser.add_argument("--form", choices=("plain", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dtype = torch.float64 if args.float64 else torch.float32
    if args.form:
        measure({"plain": plain, "ours": ours}[args.form], args.rounds, dtype, args.file)
        return
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for form in ("plain", "ours"):
            file = f"{folder}/{form}.pt"
            own = ["--form", form, "--file", file]
            subprocess.run([sys.executable, *sys.argv, *own], check=True)
            results[form] = torch.load(file)
    (loss, gradient, plain_s, plain_mb), (our_loss, our_gradient, our_s, our_mb) = results.values()
    floor_s = floor(args.rounds, dtype)
    print(f"{'':10}{'seconds':>10}{'MB':>10}{'loss':>14}   ({args.threads} threads, {dtype})")
    print(f"{'plain':10}{plain_s:10.2f}{plain_mb:10.0f}{loss:14.7f}")
    print(f"{'ours':10}{our_s:10.2f}{our_mb:10.0f}{our_loss:14.7f}")
    print(f"{'floor':10}{floor_s:10.2f}   three matrix products, every cell")
    speed, memory = plain_s / our_s, our_mb / plain_mb
    print(f"{speed:.1f} times as fast, {memory:.0%} of the memory, {our_s / floor_s:.2f} x the floor")
    largest, difference = gradient.abs().max(), (our_gradient - gradient).abs().max()
    print(f"gradients differ by at most {difference:.1e}, {difference / largest:.1e} of the largest")


if __name__ == "__main__":
    main()

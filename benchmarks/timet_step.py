"""A whole step of TimeT, ViT-S/16, 8 clips of 4 frames of 224x224: the released structure beside ours.

    python benchmarks/timet_step.py [--rounds 3] [--clips 8] [--threads 2] [--device cpu] [--bf16]

The released structure: every call of the model runs the encoder twice, once for tokens and once for an
attention that nobody reads; the student is called twice and the teacher once, over all frames, the student's
graph through all frames, the forwarder clip by clip in float64 (tests/oracles_timet.py). Every form runs in
a process of its own: best step of the rounds, and the most memory beyond the weights. Use of the machine:
multiply-adds that our step needs, over its time, against a large matrix product's rate in the same process.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from floor import gemm_rate
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from oracles_timet import plain_loss, window_mask

from unspool.encoders import load_encoder
from unspool.methods import timet
from unspool.methods.timet import Config, Learner, after_step, build, optimiser

FRAMES, SIDE = 4, 224
GRID = (SIDE // 16, SIDE // 16)


def released_step(learner: Learner, clips: Tensor, mask: Tensor) -> Tensor:
    """The loss as the released code reaches it."""
    count = clips.shape[:2]

    def tokens() -> Tensor:
        learner.encoder(clips.flatten(0, 1), want=("cls_attention",))
        maps = learner.encoder(clips.flatten(0, 1))["tokens"]
        return maps.flatten(2).transpose(1, 2).unflatten(0, count)

    head = learner.student.head(tokens())
    backbone = tokens()
    first = None
    if learner.teacher is not None:
        with torch.no_grad():
            first = learner.teacher.head(tokens())
    return plain_loss(head, backbone, learner.student.prototypes, mask, assigning=first)


def needed_operations(clips: int) -> float:
    """Of the encoder in our step: 12 blocks of all frames, and twice the last two of the last frame."""
    tokens, dim = GRID[0] * GRID[1] + 1, 384
    block = 2 * tokens * 12 * dim**2 + 4 * tokens**2 * dim
    patches = 2 * tokens * 768 * dim
    return clips * (FRAMES * (12 * block + patches) + 2 * 2 * block)


def memory(device: torch.device, peak: bool) -> float:
    """MB in use, or at most since the last look."""
    if device.type == "cuda":
        used = torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return used / 2**20
    field = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    if not peak:
        Path("/proc/self/clear_refs").write_text("5", "ascii")
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def measure(args: argparse.Namespace) -> tuple[float, float]:
    device = torch.device(args.device)
    torch.manual_seed(0)
    config = Config(teacher="ema" if args.teacher else "none")
    learner = build(config, load_encoder("random-vits16", device="cpu")).to(device)
    stepper, schedule = optimiser(learner, config, 100)
    clips = torch.randint(0, 256, (args.clips, FRAMES, 3, SIDE, SIDE), dtype=torch.uint8).to(device)
    mask = window_mask(GRID, config.window).to(device)
    precision: Any = torch.autocast(device.type, torch.bfloat16) if args.bf16 else nullcontext()
    seconds, before = [], memory(device, peak=False)
    for step in range(args.rounds + 1):
        start = perf_counter()
        with precision:
            if args.form == "ours":
                loss, _ = timet.loss(learner, clips, torch.Generator())
            else:
                loss = released_step(learner, clips, mask)
        loss.backward()
        stepper.step()
        stepper.zero_grad()
        schedule.step()
        after_step(learner, step)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(perf_counter() - start)
    return min(seconds[1:] or seconds), memory(device, peak=True) - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--form", choices=("released", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--teacher", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.form:
        print(*measure(args), gemm_rate())
        return
    for teacher in ((), ("--teacher",)):
        found = {}
        for form in ("released", "ours"):
            own = [sys.executable, *sys.argv, "--form", form, *teacher]
            done = subprocess.run(own, check=True, capture_output=True, text=True)
            found[form] = [float(word) for word in done.stdout.split()[-3:]]
        (plain_s, plain_mb, _), (our_s, our_mb, rate) = found.values()
        used = needed_operations(args.clips) / our_s / rate
        print(
            f"{'with' if teacher else 'without'} a teacher: released {plain_s:.2f} s, {plain_mb:.0f} MB; "
            f"ours {our_s:.2f} s, {our_mb:.0f} MB: {plain_s / our_s:.1f}x as fast, {our_mb / plain_mb:.0%} "
            f"of the memory; {used:.0%} of {rate / 1e9:.0f} GFLOP/s (this machine's CPU, float32)"
        )


if __name__ == "__main__":
    main()

"""A training step of BA, forward and backward, at the published size: the released form beside ours.

    python benchmarks/ba_loss.py [--rounds 2] [--threads 2] [--float64]

One clip, T=3 frames of 24x48 tokens, 384 channels, 8 heads, 8 points; no dropout, so that both compute the
same. The released form holds the attention of all heads, sorts all of it and gathers whole rows for every
pair. Each form runs in a process of its own: best time of the rounds, and the most memory held beyond the
weights and tokens (resident, Linux). Losses and gradients of both are compared.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from time import perf_counter

import torch
from ba_clustering import forget_peak, resident
from floor import gemm_rate
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, gelu, normalize

from unspool.methods.ba import Config, Learner, build, objective

FRAMES, GRID, CONFIG = 3, (24, 48), Config(dropout=(0.0, 0.0))
COUNT = GRID[0] * GRID[1]


class Nothing(nn.Module):
    """Stands for the encoder, whose maps are given here."""

    name, patch, multiple, dim, offers = "nothing", 8, 8, 384, ("tokens",)


def inputs(dtype: torch.dtype) -> tuple[Learner, Tensor, Tensor]:
    torch.manual_seed(0)
    learner = build(CONFIG, Nothing()).to(dtype)  # type: ignore[arg-type]
    learner.blocks[0].attn["qkv"].weight.data *= 3
    tokens = torch.randn(1, COUNT, 384, dtype=dtype) + 0.5 * torch.randn(FRAMES, COUNT, 384, dtype=dtype)
    return learner, tokens, torch.randperm(COUNT)[: CONFIG.points]


def ours(learner: Learner, tokens: Tensor, positions: Tensor) -> Tensor:
    return objective(learner.attend(tokens), GRID, positions, CONFIG)["loss"]


def released(learner: Learner, tokens: Tensor, positions: Tensor) -> Tensor:
    """Attention and features of the whole block, then the losses of the released trainer."""
    block, x = learner.blocks[0], tokens.flatten(0, 1)
    q, k, v = block.projections(x)
    maps = torch.softmax(q @ k.transpose(1, 2) * block.scale, dim=-1)
    x = x + block.attn["proj"]((maps @ v).transpose(0, 1).flatten(1))
    slot = x + block.mlp["fc2"](gelu(block.mlp["fc1"](block.norm2(x))))
    slot = slot.view(FRAMES, COUNT, -1)
    attention = maps.mean(0)
    order = (
        attention.view(-1, FRAMES, COUNT).sort(dim=-1, descending=True)[1].view(FRAMES, COUNT, FRAMES, COUNT)
    )
    order = order[:, positions]  # [t, p, s, n]
    frame = torch.arange(FRAMES)[:, None]

    query = slot[:, positions][:, :, None, None]
    near, far = (
        slot[torch.arange(FRAMES)[None, None, :, None], part]
        for part in (order[..., : CONFIG.semantic_sets[0]], order[..., -CONFIG.semantic_sets[1] :])
    )
    semantic = (0.9 - cosine_similarity(query, near, dim=-1)).relu().mean()
    semantic = semantic + (cosine_similarity(query, far, dim=-1) - 0.1).relu().mean()

    rows = normalize(attention, p=1, dim=1).view(FRAMES, COUNT, -1)
    own = order[torch.arange(FRAMES), :, torch.arange(FRAMES)]  # [t, p, n]
    queries = rows[:, positions].detach()
    weights = (queries * (queries + 1e-10).log()).sum(-1).softmax(1)
    likely, unlikely = (
        (queries[:, :, None] * (rows[frame[:, :, None], part] + 1e-10).log()).sum(-1)
        for part in (own[..., : CONFIG.sets[0]], own[..., -CONFIG.sets[1] :])
    )
    pairs = (unlikely[:, :, None] - likely[:, :, :, None] + 1).relu()
    return semantic + (weights[:, :, None, None] * pairs).sum(1).mean()


def measure(form: Callable[..., Tensor], rounds: int, dtype: torch.dtype, file: str) -> None:
    learner, tokens, positions = inputs(dtype)
    seconds, megabytes, total = [], 0.0, torch.zeros(())
    for _ in range(rounds):
        learner.zero_grad()
        forget_peak()
        before, start = resident(peak=False), perf_counter()
        total = form(learner, tokens, positions)
        total.backward()
        seconds.append(perf_counter() - start)
        megabytes = max(megabytes, resident(peak=True) - before)
    gradient = torch.cat([torch.as_tensor(p.grad).flatten() for p in learner.parameters() if p.requires_grad])
    torch.save((total.detach(), gradient, min(seconds), megabytes), file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--float64", action="store_true")
    parser.add_argument("--form", choices=("released", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dtype = torch.float64 if args.float64 else torch.float32
    if args.form:
        measure({"released": released, "ours": ours}[args.form], args.rounds, dtype, args.file)
        return
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for form in ("released", "ours"):
            file = f"{folder}/{form}.pt"
            subprocess.run([sys.executable, *sys.argv, "--form", form, "--file", file], check=True)
            results[form] = torch.load(file)
    (loss, gradient, plain_s, plain_mb), (our_loss, our_gradient, our_s, our_mb) = results.values()
    tokens = FRAMES * COUNT
    # attention and its gradients for all tokens, and the layers around it, three times each
    needed = 3 * (4 * tokens**2 * 384 + 24 * tokens * 384**2)
    print(f"{'':10}{'seconds':>10}{'MB':>10}{'loss':>14}   ({args.threads} threads, {dtype})")
    print(f"{'released':10}{plain_s:10.2f}{plain_mb:10.0f}{loss:14.7f}")
    print(f"{'ours':10}{our_s:10.2f}{our_mb:10.0f}{our_loss:14.7f}")
    print(f"{'floor':10}{needed / gemm_rate():10.2f}   the block's products for all tokens, with gradients")
    print(f"{plain_s / our_s:.1f} times as fast, {our_mb / plain_mb:.0%} of the memory")
    largest, difference = gradient.abs().max(), (our_gradient - gradient).abs().max()
    print(f"gradients differ by at most {difference:.1e}, {difference / largest:.1e} of the largest")


if __name__ == "__main__":
    main()

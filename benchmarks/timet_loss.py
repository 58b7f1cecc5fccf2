"""TimeT's loss without the encoder, forward and backward: the released form restated beside ours.

    python benchmarks/timet_loss.py [--rounds 9] [--threads 2]

8 clips of 4 frames, 14x14 tokens, 384 channels (the forwarder's) and 256 (the head's), K=200. Rounds of both
forms alternate; the best of each counts. Then clips double: the cost is linear. The floor is the products
that cannot be left out: affinities of the later frames with the earlier ones, scores of the first and the
last frame, and their gradients, at the rate of a large matrix product.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch
from floor import gemm_rate
from torch import Tensor
from torch.nn.functional import normalize

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from oracles_timet import plain_loss, window_mask

from unspool.methods.timet import Config, Seen, objective, scores

FRAMES, GRID, CHANNELS, CONFIG = 4, (14, 14), 384, Config()
TOKENS = GRID[0] * GRID[1]


def inputs(clips: int) -> tuple[Tensor, Tensor, Tensor]:
    """The head's features, the encoder's, and the prototypes; what a clip has in common moves a little."""
    generator = torch.Generator().manual_seed(0)

    def alike(channels: int) -> Tensor:
        common = torch.randn(clips, 1, TOKENS, channels, generator=generator)
        return common + 0.7 * torch.randn(clips, FRAMES, TOKENS, channels, generator=generator)

    prototypes = normalize(torch.randn(CONFIG.prototypes, CONFIG.head[-1], generator=generator), dim=1)
    return alike(CONFIG.head[-1]).requires_grad_(), alike(CHANNELS), prototypes.requires_grad_()


def ours(first: Tensor, last: Tensor, backbone: Tensor, prototypes: Tensor) -> Tensor:
    """From the head's features of the two frames that the network puts through it."""
    with torch.no_grad():
        assigned = scores(first, prototypes)
    return objective(Seen(backbone, assigned, first, scores(last, prototypes)), GRID, CONFIG)[0]


def timed(form: Callable[..., Tensor], given: tuple[Tensor, ...]) -> tuple[float, Tensor, Tensor]:
    """Seconds of forward and backward, the loss and all gradients."""
    for tensor in given:
        tensor.grad = None
    start = perf_counter()
    loss = form(*given)
    loss.backward()
    seconds = perf_counter() - start
    gradients = [tensor.grad for tensor in given if tensor.grad is not None]
    of_last = gradients[0][:, -1] if gradients[0].ndim == 4 else gradients[0]
    return seconds, loss.detach(), torch.cat([of_last.flatten(), gradients[1].flatten()])


def floor_operations(clips: int) -> float:
    pairs = FRAMES * (FRAMES - 1) // 2
    affinities = 2 * clips * pairs * TOKENS**2 * CHANNELS
    return affinities + 4 * 2 * clips * TOKENS * CONFIG.head[-1] * CONFIG.prototypes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    mask = window_mask(GRID, CONFIG.window)
    rate = gemm_rate()

    def released(head: Tensor, backbone: Tensor, prototypes: Tensor) -> Tensor:
        return plain_loss(head, backbone, prototypes, mask)

    print(f"{args.threads} threads, {rate / 1e9:.0f} GFLOP/s")
    for clips in (8, 16, 32):
        head, backbone, prototypes = inputs(clips)
        first, last = head.detach()[:, :1].clone(), head.detach()[:, -1].clone().requires_grad_()
        best = {"released": (9e9, None, None), "ours": (9e9, None, None)}
        for _ in range(args.rounds):
            for name, form, given in (
                ("released", released, (head, backbone, prototypes)),
                ("ours", ours, (first, last, backbone, prototypes)),
            ):
                best[name] = min(best[name], timed(form, given), key=lambda found: found[0])
        (plain_s, loss, gradient), (our_s, our_loss, our_gradient) = best.values()
        floor = floor_operations(clips) / rate
        print(
            f"{clips:3} clips: released {1e3 * plain_s:6.1f} ms, ours {1e3 * our_s:6.1f} ms, "
            f"{plain_s / our_s:4.1f}x as fast, {our_s / floor:4.1f}x the floor; loss differs by "
            f"{abs(loss - our_loss):.0e}, gradients by {(gradient - our_gradient).abs().max():.0e}"
        )


if __name__ == "__main__":
    main()

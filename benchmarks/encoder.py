"""Encoders beside the bare forward pass of torchvision or timm, and beside this machine's matrix products.

    python benchmarks/encoder.py [ENCODER ...]

One 480p frame, bytes in, tokens out; the bare pass gets the same frame already normalised and cut to whole
patches. The rounds of the two alternate, and each takes its best. GFLOP are those of convolutions and matrix
products (two per multiply-add). Peak is what the process grows by while encoding, beside `bytes_per_image`.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from unspool.encoders import load_encoder
from unspool.encoders.images import IMAGENET_STD, normalised

ROUNDS = 5
ENCODERS = ("random-resnet18", "random-resnet50", "random-vits16", "random-vits8")


def bare(encoder: Any) -> Callable[[Tensor], Tensor]:
    """The network as its library runs it: all stages of a ResNet, `forward_features` of a ViT."""
    net = encoder.network
    if hasattr(net, "forward_features"):
        net.dynamic_img_size = net.patch_embed.dynamic_img_pad = True
        return net.forward_features  # type: ignore[no-any-return]

    def forward(x: Tensor) -> Tensor:
        x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
        return net.layer4(net.layer3(net.layer2(net.layer1(x))))  # type: ignore[no-any-return]

    return forward


def seconds(what: Callable[[], object]) -> float:
    start = perf_counter()
    what()
    return perf_counter() - start


def product_rate() -> float:
    """GFLOP/s of a square fp32 matrix product."""
    a, b = torch.rand(2, 2048, 2048)
    best = min(seconds(lambda: a @ b) for _ in range(2 * ROUNDS))
    return 2 * 2048**3 / best / 1e9


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@torch.no_grad()
def measure(name: str) -> None:
    encoder: Any = load_encoder(name, device="cpu")
    frame = torch.randint(0, 256, (1, 3, 480, 854), dtype=torch.uint8)
    frame = frame[..., : 854 // encoder.multiple * encoder.multiple]
    before = peak_megabytes()
    tokens = encoder(frame)["tokens"]
    grown = peak_megabytes() - before
    plain, ready = bare(encoder), normalised(frame, IMAGENET_STD, torch.empty(0))
    plain(ready)
    with FlopCounterMode(display=False) as counter:
        plain(ready)
    gflop = counter.get_total_flops() / 1e9
    ours = theirs = float("inf")
    for _ in range(ROUNDS):
        ours = min(ours, seconds(lambda: encoder(frame)))
        theirs = min(theirs, seconds(lambda: plain(ready)))
    rate = product_rate()
    bound = encoder.bytes_per_image(*frame.shape[-2:]) / 2**20
    print(
        f"{name:16} {'x'.join(map(str, tokens.shape[1:])):>12}"
        f" {ours:8.3f} s {theirs:8.3f} s {ours / theirs:5.2f} x"
        f" {gflop:6.0f} GFLOP {gflop / ours:4.0f} GFLOP/s {gflop / ours / rate:5.0%} of {rate:.0f}"
        f" {grown:5.0f} MB, said {bound:.0f}"
    )


if __name__ == "__main__":
    if len(sys.argv) == 2:
        measure(sys.argv[1])
    else:
        print(
            f"{'encoder':16} {'tokens':>12}   ours       bare       ratio   work   rate   of products   peak"
        )
        for each in sys.argv[1:] or ENCODERS:  # a process each, for the peak is the process's
            subprocess.run([sys.executable, __file__, each], check=True)

"""Label propagation with the `dul` preset at 60x107 tokens, 512 channels, 21 context frames, float32.

    python benchmarks/propagation.py [FRAMES_FOLDER MASK]

Compares, in one run on the same features: the published form (every frame multiplied whole, then masked,
then ranked), only the tokens inside the window multiplied, and bounds that spare most of these products.
Features are those of the default encoder on the given frames (480p), or on a rendered clip.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from time import perf_counter

import torch
from floor import gemm_rate
from torch import Tensor

from unspool.encoders import load_encoder
from unspool.masks import read_mask
from unspool.ops import bounds
from unspool.ops.propagation import DUL, labels_to_soft, start, step
from unspool.rendered import render
from unspool.tracking import encode
from unspool.video import open_video

FRAMES = 25  # the context is full from frame 21 on
TIMED = 3  # last frames, of which the median is taken


def clip() -> tuple[list[Tensor], Tensor]:
    """Features of the frames, and the label map of the first."""
    encoder = load_encoder("random-resnet18", device="cpu")
    if len(sys.argv) > 2:
        video, labels = open_video(sys.argv[1]), read_mask(Path(sys.argv[2])).labels
        images = [video[t] for t in range(min(FRAMES, len(video)))]
    else:
        scene = render(0, height=480, width=854, frames=FRAMES, objects=3)
        images, labels = [scene.image(t) for t in range(FRAMES)], scene.labels(0)
    features = [encode(image, encoder, labels.shape) for image in images]
    return features, torch.from_numpy(labels.astype("int64"))


def run(features: list[Tensor], soft: dict[int, Tensor]) -> tuple[list[Tensor], list[float]]:
    state, out, seconds = start(), [], []
    for t, frame in enumerate(features):
        started = perf_counter()
        state, labels = step(state, frame, soft if t == 0 else None, DUL)
        seconds.append(perf_counter() - started)
        out.append(labels)
    return out, seconds


def published(features: list[Tensor], labels: list[Tensor], t: int) -> tuple[Tensor, float]:
    """Frame t from the labels of the frames before it: 21 whole affinities, masked, jointly ranked."""
    height, width = features[0].shape[1:]
    context = [0, *(max(s, 0) for s in range(t - DUL.context, t))]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    y, x = y.flatten(), x.flatten()
    outside = ((y[:, None] - y) ** 2 + (x[:, None] - x) ** 2) >= DUL.radius**2
    started = perf_counter()
    query = features[t].flatten(1)
    affinity = torch.stack([features[s].flatten(1).T @ query for s in context])  # [21, keys, queries]
    affinity[1:] += outside * -1e10
    best, index = (affinity.flatten(0, 1) / DUL.temperature).topk(DUL.top_k, dim=0)
    known = torch.stack([labels[s].flatten(1) for s in context], dim=1).flatten(1)  # [k, 21 * keys]
    out = (known[:, index] * best.softmax(dim=0)).sum(1).unflatten(1, (height, width))
    return out, perf_counter() - started


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def _apart(whole: Tensor, labels: list[Tensor]) -> str:
    return f"{(whole - labels[-1]).abs().max().item():.1e}"


@torch.inference_mode()
def main() -> None:
    rate = gemm_rate()
    features, labels = clip()
    ids = sorted({0, *labels.unique().tolist()})
    grid = (features[0].shape[1], features[0].shape[2])
    soft = dict(zip(ids, labels_to_soft(labels, ids, grid, DUL.mask_resize), strict=True))
    before = peak()
    bounded, bounded_s = run(features, soft)
    fewest, bounds.FEWEST_TOKENS = bounds.FEWEST_TOKENS, sys.maxsize
    windowed, windowed_s = run(features, soft)
    ours = peak()
    bounds.FEWEST_TOKENS = fewest
    last = len(features) - 1
    whole, whole_s = published(features, windowed, last)
    from_bounded, _ = published(features, bounded, last)

    tokens, channels = grid[0] * grid[1], features[0].shape[0]
    useful = 2 * channels * tokens * (437 * DUL.context + tokens) / rate
    print(
        f"{grid[0]}x{grid[1]} tokens, {channels} channels, {len(features)} frames; {rate / 1e9:.0f} GFLOP/s"
    )
    for name, seconds in (
        ("published form", whole_s),
        ("window only", sorted(windowed_s[-TIMED:])[TIMED // 2]),
        ("with bounds", sorted(bounded_s[-TIMED:])[TIMED // 2]),
    ):
        print(
            f"{name:>15}: {seconds:6.2f} s a frame, {whole_s / seconds:5.1f}x the published form, "
            f"{seconds / useful:4.1f}x the products inside the window"
        )
    drift = max((a - b).abs().max().item() for a, b in zip(bounded, windowed, strict=True))
    print("last frame against the published form from the same labels: ", end="")
    print(f"{_apart(whole, windowed)} (window only), {_apart(from_bounded, bounded)} (with bounds)")
    print(f"window only against with bounds after {len(features)} frames: {drift:.1e}")
    print(f"peak beyond the features: {ours - before:.2f} GB (ours), {peak() - before:.2f} GB (published)")


if __name__ == "__main__":
    main()

"""Plain forms of BA, slow and readable: its clustering row by row, its losses with every pair written out.

Sources: SSL-UVOS eval_oneshot.py and train_RGB_cluster.py (as described), and the paper's equations.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity


def plain_kl(x: Tensor, y: Tensor) -> Tensor:
    """Symmetric KL of all pairs, [n, k]."""
    return torch.stack([((row - y) * (row.log() - y.log())).sum(1) for row in x])


def plain_pass(x: Tensor, tau: float, *, strict: bool = False) -> Tensor:
    """One leader pass: centroids."""
    distances = plain_kl(x, x)
    free = torch.ones(len(x), dtype=torch.bool)
    found = []
    for i in range(len(x)):
        if free[i]:
            near = distances[i] < tau if strict else distances[i] <= tau
            near[i] = True
            found.append(x[near & free].mean(0))
            free &= ~near
    return torch.stack(found)


def plain_smoothing(x: Tensor, tau: float) -> Tensor:
    sums = (plain_kl(x, x) <= tau).to(x.dtype) @ x
    return sums / sums.sum(1, keepdim=True)


def plain_clusters(attention: Tensor, frames: int, tau: float, window: int = 3) -> tuple[Tensor, Tensor]:
    """(labels, centroids) of the released procedure."""
    tokens = len(attention) // frames
    parts = [plain_pass(plain_smoothing(rows, tau), tau) for rows in attention.split(window * tokens)]
    return _until_stable(attention, torch.cat(parts), tau, strict=False)


def plain_algorithm_1(attention: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    return _until_stable(attention, attention, tau, strict=True)


def _until_stable(attention: Tensor, centroids: Tensor, tau: float, *, strict: bool) -> tuple[Tensor, Tensor]:
    while True:
        merged = plain_pass(centroids, tau, strict=strict)
        stable = len(merged) == len(centroids)
        centroids = merged
        if stable:
            return plain_kl(attention, centroids).argmin(1), centroids


def plain_attention(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """[heads, n, d] and [heads, m, d]: mean over heads of the softmax."""
    return torch.softmax(queries @ keys.transpose(1, 2) * scale, dim=-1).mean(0)


def plain_released_losses(
    attention: Tensor,
    features: Tensor,
    frames: int,
    positions: Tensor,
    semantic: tuple[int, int],
    motion: tuple[int, int],
    *,
    weighted: bool = True,
) -> tuple[Tensor, Tensor]:
    """(L_sem, L_mot) of one clip: full sort, vectors gathered."""
    count = len(attention) // frames
    rows = attention / attention.sum(1, keepdim=True)
    attraction, repulsion, moves = [], [], []
    for t in range(frames):
        queries = t * count + positions
        certainty = (rows[queries].detach() * (rows[queries].detach() + 1e-10).log()).sum(1)
        weights = certainty.softmax(0) if weighted else torch.full_like(certainty, 1 / len(positions))
        for query, weight in zip(queries, weights, strict=True):
            for s in range(frames):
                order = attention[query, s * count : (s + 1) * count].sort(descending=True)[1] + s * count
                near, far = order[: semantic[0]], order[-semantic[1] :]
                attraction.append((0.9 - cosine_similarity(features[query], features[near], dim=1)).relu())
                repulsion.append((cosine_similarity(features[query], features[far], dim=1) - 0.1).relu())
                if s == t:
                    q = rows[query].detach()
                    near, far = order[: motion[0]], order[-motion[1] :]
                    likely = (q * (rows[near] + 1e-10).log()).sum(1)
                    unlikely = (q * (rows[far] + 1e-10).log()).sum(1)
                    pairs = (unlikely[None] - likely[:, None] + 1).relu()
                    moves.append(weight * pairs.mean())
    return (
        torch.cat(attraction).mean() + torch.cat(repulsion).mean(),
        torch.stack(moves).sum() / frames,
    )


def plain_printed_loss(
    attention: Tensor,
    features: Tensor,
    frames: int,
    sets: tuple[int, int],
    margins: tuple[float, float],
    *,
    detached: bool = True,
) -> Tensor:
    """Eq. 4-9 of one clip, sums over pairs."""
    count = len(attention) // frames
    entropy = -(attention * attention.log()).sum(1)
    weights = torch.softmax(-entropy, 0)
    weights = weights.detach() if detached else weights
    total = torch.zeros((), dtype=attention.dtype)
    for i in range(len(attention)):
        orders = [
            attention[i, s * count : (s + 1) * count].sort(descending=True)[1] + s * count
            for s in range(frames)
        ]
        near = torch.cat([order[: sets[0]] for order in orders])
        far = torch.cat([order[-sets[1] :] for order in orders])
        cosine = 1 - cosine_similarity(features[i], features, dim=1)
        divergence = plain_kl(attention[i : i + 1], attention)[0]
        for distance, margin in zip((cosine, divergence), margins, strict=True):
            total = total + weights[i] * (distance[near][:, None] - distance[far] + margin).relu().sum()
    return total


def plain_block(x: Tensor, weights: dict[str, Tensor], heads: int) -> tuple[Tensor, Tensor]:
    """(output, head-mean attention) of one clip's tokens [n, c]."""
    dim = x.shape[1]

    def norm(values: Tensor, name: str) -> Tensor:
        spread = values - values.mean(1, keepdim=True)
        return (
            spread / (spread.square().mean(1, keepdim=True) + 1e-5).sqrt() * weights[f"{name}.weight"]
            + weights[f"{name}.bias"]
        )

    qkv = (norm(x, "norm1") @ weights["attn.qkv.weight"].T).view(len(x), 3, heads, dim // heads)
    q, k, v = qkv.permute(1, 2, 0, 3)
    maps = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(dim // heads), dim=-1)
    mixed = (maps @ v).transpose(0, 1).reshape(len(x), dim)
    x = x + mixed @ weights["attn.proj.weight"].T + weights["attn.proj.bias"]
    hidden = norm(x, "norm2") @ weights["mlp.fc1.weight"].T + weights["mlp.fc1.bias"]
    hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    return x + hidden @ weights["mlp.fc2.weight"].T + weights["mlp.fc2.bias"], maps.mean(0)

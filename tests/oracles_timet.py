"""TimeT the plain way: the published algorithms, and those of its errors that recordings hold."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize


def plain_sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Rows and columns of the whole matrix scaled in turn."""
    plan = (scores / epsilon).exp().T
    plan /= plan.sum()
    prototypes, tokens = plan.shape
    for _ in range(iterations):
        plan /= plan.sum(dim=1, keepdim=True) * prototypes
        plan /= plan.sum(dim=0, keepdim=True) * tokens
    return (plan / plan.sum(dim=0, keepdim=True)).T


def window_mask(grid: tuple[int, int], window: int) -> Tensor:
    """[sources, targets]: 1 within the window, made cell by cell."""
    height, width = grid
    mask = torch.ones(height * width, height * width)
    if window:
        for i in range(height * width):
            for j in range(height * width):
                far = max(abs(i // width - j // width), abs(i % width - j % width))
                mask[i, j] = far <= window
    return mask


def plain_forward(
    features: Tensor,  # [T, N, C] of one clip
    first: Tensor,  # [K, N]
    mask: Tensor,  # [N, N]
    *,
    context: int,
    top_k: int,
    temperature: float = 0.1,
) -> list[Tensor]:
    """Maps [K, N] of frames 1.., step by step as mask_propagation.py takes them, the means in float64."""
    maps = [first.double()]
    for now in range(1, len(features)):
        sources = [0, *range(max(1, now - context), now)]
        keys = normalize(torch.stack([features[s] for s in sources]), dim=2)
        query = normalize(features[now].T.repeat(len(sources), 1, 1), dim=1)
        affinity = (torch.bmm(keys, query) / temperature).exp() * mask.repeat(len(sources), 1, 1)
        affinity = affinity.flatten(0, 1)
        if top_k:
            least = affinity.topk(min(top_k, len(affinity)), dim=0)[0].amin(dim=0)
            affinity[affinity < least] = 0
        affinity = affinity.double() / affinity.double().sum(dim=0, keepdim=True)
        maps.append(torch.cat([maps[s] for s in sources], dim=1) @ affinity)
    return maps[1:]


def plain_loss(
    head: Tensor,  # [B, T, N, D]
    backbone: Tensor,  # [B, T, N, C]
    prototypes: Tensor,  # [K, D]
    mask: Tensor,
    *,
    assigning: Tensor | None = None,  # [B, T, N, D] of a teacher
    context: int = 7,
    top_k: int = 5,
    epsilon: float = 0.05,
    iterations: int = 10,
    temperature: float = 0.1,
) -> Tensor:
    """The released loss: scores of all frames, assignments of the first and last frames, clip by clip."""
    clips, _, tokens, _ = head.shape
    scores = normalize(head, dim=3) @ prototypes.T
    with torch.no_grad():
        sources = scores if assigning is None else normalize(assigning, dim=3) @ prototypes.T
        assigned = plain_sinkhorn(sources[:, 0].detach().flatten(0, 1), epsilon, iterations)
        plain_sinkhorn(sources[:, -1].detach().flatten(0, 1), epsilon, iterations)  # computed, never used
        assigned = assigned.view(clips, tokens, -1)
    total = torch.zeros((), device=head.device)
    for clip in range(clips):
        with torch.no_grad():
            forwarded = plain_forward(
                backbone[clip].detach(), assigned[clip].T, mask, context=context, top_k=top_k
            )
            label = forwarded[-1].float().argmax(dim=0)
        total = total + cross_entropy(scores[clip, -1] / temperature, label)
    return total / clips


def released_propagation_scores(prediction: np.ndarray, truth: np.ndarray) -> dict[int, float]:
    """By class: counts add up over frames; running IoUs are summed over all and divided by those with it."""
    scores = {}
    for class_ in [c for c in np.unique(truth) if c]:
        shared, wrong, missed, total, frames = 0, 0, 0, 0.0, 0
        for found, true in zip(prediction == class_, truth == class_, strict=True):
            shared, wrong = shared + (found & true).sum(), wrong + (found & ~true).sum()
            missed = missed + (~found & true).sum()
            total += shared / max(shared + wrong + missed, 1e-8)
            frames += bool(true.any())
        scores[int(class_)] = total / frames
    return scores


def released_remap(labels: np.ndarray, table: np.ndarray) -> np.ndarray:
    """In place, ids ascending: what was renamed is renamed again where its new id is yet to come."""
    renamed = labels.copy()
    for id_ in np.unique(labels):
        renamed[renamed == id_] = table[id_]
    return renamed

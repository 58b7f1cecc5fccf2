"""Label propagation as the publications write it: every product, then the mask. Slow and short."""

import torch
from torch import Tensor


def in_window(h: int, w: int, shape: str, radius: float) -> Tensor:
    """[hw, hw] whether the query (row) may look at the key (column)."""
    y, x = torch.arange(h).repeat_interleave(w), torch.arange(w).repeat(h)
    dy, dx = y[:, None] - y, x[:, None] - x
    if shape == "disc":
        return (dy**2 + dx**2).double().sqrt() < radius
    return (dy.abs() <= radius) & (dx.abs() <= radius)


def propagate(query: Tensor, contexts: list[tuple[Tensor, Tensor, bool]], how) -> Tensor:
    """Labels [K, hw] of one frame. `contexts`: (features [c,h,w], labels [K,hw], restricted), with copies."""
    _, h, w = query.shape
    seen = in_window(h, w, how.neighbourhood, how.radius)
    scores = []
    for features, _, restricted in contexts:
        affinity = query.flatten(1).T @ features.flatten(1)
        scores.append(affinity.masked_fill(~seen, -1e10) if restricted else affinity)
    joint = torch.cat(scores, dim=1)
    labels = torch.cat([labels for _, labels, _ in contexts], dim=1)
    top, where = joint.topk(min(how.top_k, joint.shape[1]), dim=1)
    if how.keep_ties:
        kept = joint.masked_fill(joint < top[:, -1:], -float("inf"))
        return labels @ (kept / how.temperature).softmax(dim=1).T
    weights = (top / how.temperature).softmax(dim=1)
    return (labels[:, where] * weights).sum(dim=-1)


def run(features: Tensor, first: Tensor, how) -> Tensor:
    """Labels [T, K, hw] of a clip whose frame 0 has the labels `first` [K, hw]; no late objects."""
    labels = [first]
    for now in range(1, len(features)):
        recent = [max(t, 0) for t in range(now - how.context, now)]
        if not how.repeat_reference:
            recent = list(range(max(1, now - how.context), now))
        contexts = [(features[0], labels[0], how.restrict_reference)]
        contexts += [(features[t], labels[t], True) for t in recent]
        labels.append(propagate(features[now], contexts, how))
    return torch.stack(labels)

"""Softmax cross-entropy of many tokens against many anchors, without the matrix of their logits."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from unspool.errors import ShapeError

CHUNK = 1 << 22  # logits in memory at a time, 16 MB; a quarter and twice as many are no faster


def contrast(
    queries: Float[Tensor, "n c"],
    keys: Float[Tensor, "m c"],
    rows: Int64[Tensor, " t"],
    labels: Int64[Tensor, " t"],
    temperature: float,
) -> Float[Tensor, ""]:
    """Mean over targets t of -log softmax_m(<queries[rows[t]], keys[m]> / temperature) at m = labels[t].

    A query may have any number of targets, none included; each costs one look-up, its logits are computed
    once. `rows` ascend (best on the CPU: they are read to cut the work). Gradients of both inputs are
    formed in the same pass, chunk by chunk, so nothing of size n x m is ever kept; no second derivatives.
    Computed in the precision of the inputs. Raises ShapeError if there is no target.
    """
    if not len(rows):
        raise ShapeError("a contrast needs at least one target, got none")
    loss: Tensor = _Contrast.apply(queries, keys / temperature, rows, labels)
    return loss


class _Contrast(torch.autograd.Function):
    """The gradient of a query's logits is (its targets * softmax - its targets' labels) / all targets."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, rows: Tensor, labels: Tensor) -> Tensor:
        loss = queries.new_zeros(())
        of_queries, of_keys = torch.empty_like(queries), torch.zeros_like(keys)
        step = max(CHUNK // len(keys), 1)
        starts = range(0, len(queries), step)
        firsts = torch.searchsorted(rows, torch.tensor([*starts, len(queries)], device=rows.device)).tolist()
        counts, rows = rows.bincount(minlength=len(queries)).to(queries), rows.to(queries.device)
        for start, (first, last) in zip(starts, pairwise(firsts), strict=True):
            part = slice(start, start + step)
            targets = (rows[first:last] - start, labels[first:last])
            logits = queries[part] @ keys.T
            logits -= logits.amax(dim=1, keepdim=True)
            chosen = logits[targets]
            softmax = logits.exp_()
            total = softmax.sum(dim=1, keepdim=True)
            loss += (total.log()[targets[0], 0] - chosen).sum()
            gradient = softmax.mul_(counts[part, None] / total)
            gradient.index_put_(targets, gradient.new_full((), -1.0), accumulate=True)
            torch.mm(gradient, keys, out=of_queries[part])
            of_keys.addmm_(gradient.T, queries[part])
        ctx.save_for_backward(of_queries.div_(len(rows)), of_keys.div_(len(rows)))
        return loss / len(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        of_queries, of_keys = ctx.saved_tensors
        return gradient * of_queries, gradient * of_keys, None, None

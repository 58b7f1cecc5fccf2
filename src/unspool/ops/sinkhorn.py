"""Balanced assignment of tokens to prototypes: entropic optimal transport, by Sinkhorn-Knopp."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from unspool.errors import ShapeError
from unspool.ops.distributed import ALONE, Ranks


@torch.no_grad()
def sinkhorn(
    scores: Float[Tensor, "m k"], epsilon: float, iterations: int, ranks: Ranks = ALONE
) -> Float[Tensor, "m k"]:
    """Soft assignments of m tokens to k prototypes, each used equally: rows sum to 1, columns to about m/k.

    Q = exp(scores / epsilon); `iterations` times its columns are scaled to sum 1/k, then its rows to sum 1/m
    over all tokens of all processes, each of which holds m and gets its own rows. In float32 or better, under
    autocast too. Only the two scales are iterated, the matrix is read and never written. Scores may differ by
    80 epsilon within a token, beyond which a prototype that no token wants is left empty; no gradient flows.
    Raises ShapeError without tokens. Source: TimeT my_utils.py: sinkhorn (paper Eq. 7-8).
    """
    if not scores.numel():
        raise ShapeError(f"assignment needs tokens and prototypes, got scores of {list(scores.shape)}")
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    with torch.autocast(scores.device.type, enabled=False):
        best = scores.amax(dim=1)
        kernel = (scores - best[:, None]).div_(epsilon).exp_()  # no row of which can vanish
        top = ranks.gather(best.amax()[None]).amax()
        of_token = ((best - top) / epsilon).exp_()
        of_prototype = torch.ones_like(scores[0])
        least = torch.finfo(scores.dtype).tiny
        for _ in range(iterations):
            columns = ranks.sum(kernel.T.mv(of_token))
            of_prototype = columns.clamp_(min=least).mul_(scores.shape[1]).reciprocal_()
            of_token = kernel.mv(of_prototype).mul_(ranks.size * len(scores)).reciprocal_()
        assigned = kernel.mul_(of_prototype)
        return assigned.div_(assigned.sum(dim=1, keepdim=True))

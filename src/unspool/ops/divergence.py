"""Distances whose value for all pairs of two sets is matrix products, and the attention that they compare.

Each distance is D(x, y) = (a_x - a_y) . (l_x - l_y) of primal coordinates a and dual ones l:
`kl`: symmetric Kullback-Leibler divergence KL(x||y) + KL(y||x), nats; a = x, l = log x
`cosine`: 1 - cos(x, y); a = l = x / (|x| sqrt 2)
`euclidean`: |x - y|^2; a = l = x.
With h = a . l, D(x, y) = h_x + h_y - a_x . l_y - a_y . l_x; within one set a single product S gives S + S^T.
Adding a constant row to l changes nothing, so l is taken about that of the mean row: less is cancelled.

Products are made in slices of COLUMNS columns, always the same ones: what is held between them, for which
memory is needed, is computed again or not, and the numbers are the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import normalize

Distance = Literal["kl", "cosine", "euclidean"]
COLUMNS = 2048  # of the rows that are compared, in a product
ROWS = 128  # of attention, at a time


def symmetric_kl(x: Float[Tensor, "n m"], y: Float[Tensor, "k m"]) -> Float[Tensor, "n k"]:
    """KL(x||y) + KL(y||x) of all pairs of rows, nats, differentiable; NaN where a row holds a zero.

    Source: SSL-UVOS eval_oneshot.py: kl_distance; paper Eq. 2.
    """
    log_x, log_y = x.log(), y.log()
    own = (x * log_x).sum(1)[:, None] + (y * log_y).sum(1)
    return own - torch.cat([x, log_x], dim=1) @ torch.cat([log_y, y], dim=1).T


# --------------------------------------------------------------------------------------- rows to compare


def primal(rows: Float[Tensor, "n m"], distance: Distance) -> Float[Tensor, "n m"]:
    """The coordinates a of the rows; for `kl` and `euclidean` the rows themselves."""
    return normalize(rows, dim=1) / math.sqrt(2) if distance == "cosine" else rows


@dataclass(frozen=True)
class Compared:
    """Rows in primal coordinates, with what their distances need."""

    primal: Float[Tensor, "n m"]
    dual: Float[Tensor, "n m"] | None  # l about the centre; None: computed again for every product
    own: Float[Tensor, " n"]  # h
    centre: Float[Tensor, " m"]  # l of the mean row
    distance: Distance

    def part(self, chosen: Int64[Tensor, " some"]) -> Compared:
        """Some of the rows."""
        dual = None if self.dual is None else self.dual[chosen]
        return Compared(self.primal[chosen], dual, self.own[chosen], self.centre, self.distance)

    def slices(self) -> Iterator[tuple[Float[Tensor, "n c"], Float[Tensor, "n c"]]]:
        """(a, l) of some columns at a time."""
        for columns in slices(self.primal.shape[1]):
            a = self.primal[:, columns]
            yield (
                a,
                _dual(a, self.centre[columns], self.distance) if self.dual is None else self.dual[:, columns],
            )

    def distances(self, chosen: Int64[Tensor, " some"]) -> Float[Tensor, "some n"]:
        """D from some of the rows to all."""
        found = self.own[chosen][:, None] + self.own
        for a, dual in self.slices():
            found.addmm_(a[chosen], dual.T, alpha=-1)
            found.addmm_(dual[chosen], a.T, alpha=-1)
        return found

    def products(self) -> Float[Tensor, "n n"]:
        """S[i, j] = a_i . l_j, so that D[i, j] = h_i + h_j - (S[i, j] + S[j, i])."""
        found = self.own.new_zeros((len(self.own), len(self.own)))
        for a, dual in self.slices():
            found.addmm_(a, dual.T)
        return found

    def from_rows(self, rows: Float[Tensor, "n m"]) -> Float[Tensor, "n k"]:
        """D from other rows to these, less h of the others: what decides the nearest."""
        other = primal(rows, self.distance)
        found = self.own.expand(len(rows), -1).clone()
        for columns, (a, dual) in zip(slices(rows.shape[1]), self.slices(), strict=True):
            part = other[:, columns]
            found.addmm_(part, dual.T, alpha=-1)
            found.addmm_(_dual(part, self.centre[columns], self.distance), a.T, alpha=-1)
        return found


def compared(
    rows: Float[Tensor, "n m"],
    distance: Distance,
    *,
    hold: bool = True,
    centre: Float[Tensor, " m"] | None = None,
) -> Compared:
    """Rows ready to be compared. `hold`: keep l, as large as the rows; `centre`: that of other rows."""
    a = primal(rows, distance)
    if centre is None:
        mean = a.mean(0)
        centre = mean.log() if distance == "kl" else mean
    dual = torch.empty_like(a) if hold else None
    own = a.new_zeros(len(a))
    for columns in slices(a.shape[1]):
        held = None if dual is None else dual[:, columns]
        part = _dual(a[:, columns], centre[columns], distance, held)
        own += torch.einsum("nc,nc->n", a[:, columns], part)
    return Compared(a, dual, own, centre, distance)


def _dual(
    a: Float[Tensor, "n c"],
    centre: Float[Tensor, " c"],
    distance: Distance,
    out: Float[Tensor, "n c"] | None = None,
) -> Float[Tensor, "n c"]:
    return torch.log(a, out=out).sub_(centre) if distance == "kl" else torch.sub(a, centre, out=out)


def slices(columns: int, width: int | None = None) -> Iterator[slice]:
    """All columns, `width` at a time; None: COLUMNS."""
    width = width or COLUMNS
    for start in range(0, columns, width):
        yield slice(start, start + width)


# --------------------------------------------------------------------------------------- attention


def head_mean_attention(
    queries: Float[Tensor, "heads n d"],
    keys: Float[Tensor, "heads m d"],
    scale: float,
    eps: float | int = 0.0,
) -> Float[Tensor, "n m"]:
    """Mean over heads of softmax(q k^T scale), at least `eps`, without ever holding that of all heads.

    Source: SSL-UVOS eval_oneshot.py: mem_efficient_hierarchical_cluster; paper Eq. 1.
    """
    heads, tokens, _ = queries.shape
    found, scaled = queries.new_empty((tokens, keys.shape[1])), queries * scale
    held = queries.new_empty((min(ROWS, tokens), keys.shape[1]))
    for start in range(0, tokens, ROWS):
        part = found[start : start + ROWS]
        of_head = held[: len(part)]
        for head in range(heads):
            torch.mm(scaled[head, start : start + ROWS], keys[head].T, out=of_head)
            torch.softmax(of_head, dim=1, out=part if head == 0 else of_head)
            if head:
                part.add_(of_head)
        part.div_(heads).clamp_(min=eps)
    return found

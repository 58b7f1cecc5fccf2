"""The rows of a memory that are most like a query, exactly, of a memory that is seen part by part.

Products are made tile by tile and only the best are carried on. Once a query has k rows, a tile matters to it
where the largest of some products beats the k-th: few tiles do, so that finding the best costs little beside
the products themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

ROWS = 8192  # of a tile; what is found does not depend on how much memory there is, so neither does this
GROUP = 64  # neighbouring rows of which only the largest product is compared at first


class Nearest(NamedTuple):
    """The k rows of the largest products so far, largest first; -inf and row 0 where there are fewer."""

    products: Float[Tensor, "n k"]
    rows: Int64[Tensor, "n k"]


def none_yet(queries: int, k: int, device: torch.device) -> Nearest:
    """Before the first tile."""
    products = torch.full((queries, k), -torch.inf, device=device)
    return Nearest(products, torch.zeros((queries, k), dtype=torch.long, device=device))


def merged(best: Nearest, products: Float[Tensor, "n m"], first: int) -> Nearest:
    """`best` and `products`, whose columns are the rows from `first` on. Earlier rows win ties."""
    whole = products.shape[1] // GROUP
    groups = products[:, : whole * GROUP].view(len(products), whole, GROUP)
    if groups.shape[1] * GROUP < products.shape[1]:
        return _of_all(best, products, first)
    at, group = (groups.amax(dim=2) > best.products[:, -1:]).nonzero(as_tuple=True)
    if not len(at):
        return best
    hits = at.bincount(minlength=len(products))
    widest = int(hits.max())
    if 2 * widest > groups.shape[1]:  # the first tile, mostly
        return _of_all(best, products, first)
    place = torch.arange(len(at), device=at.device) - (hits.cumsum(0) - hits)[at]
    found = products.new_full((len(products), widest, GROUP), -torch.inf)
    found[at, place] = groups[at, group]
    rows = best.rows.new_zeros(found.shape)
    rows[at, place] = first + GROUP * group[:, None] + torch.arange(GROUP, device=at.device)
    return _best_of(best, found.flatten(1), rows.flatten(1))


def _of_all(best: Nearest, products: Float[Tensor, "n m"], first: int) -> Nearest:
    rows = torch.arange(first, first + products.shape[1], device=products.device)
    return _best_of(best, products, rows.expand(len(products), -1))


def _best_of(best: Nearest, products: Float[Tensor, "n m"], rows: Int64[Tensor, "n m"]) -> Nearest:
    k = best.products.shape[1]
    new, place = products.topk(min(k, products.shape[1]), dim=1)
    joined, order = torch.cat([best.products, new], dim=1).sort(dim=1, descending=True, stable=True)
    rows = torch.cat([best.rows, rows.gather(1, place)], dim=1)
    return Nearest(joined[:, :k], rows.gather(1, order[:, :k]))


def nearest(
    queries: list[Float[Tensor, "_ d"]], tiles: Iterable[tuple[int, Float[Tensor, "_ d"]]], k: int
) -> list[Nearest]:
    """The k rows of the largest inner products with each query, set of queries by set of queries.

    `tiles`: parts of the memory in order, each with the number of its first row, at most `ROWS` long. Every
    product is made in a tile of its own set, so results do not depend on which sets are asked together.
    """
    best = [none_yet(len(each), k, each.device) for each in queries]
    for first, tile in tiles:
        best = [merged(b, each @ tile.T, first) for b, each in zip(best, queries, strict=True)]
    return best

"""A merge tree over clusters: any granularity is a look-up, from leaves that never split to all in one.

A tree is a list of joins between leaves, lowest first: the clusters at a height are the connected parts of
the leaves under the joins up to it. Two trees that share leaves are joined by putting their lists together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from unspool.ops.divergence import Distance, compared


@dataclass(frozen=True)
class Tree:
    """Which leaves are joined, and from which height on."""

    leaves: int
    joins: Int64[Tensor, "m 2"]  # leaves; at most leaves - 1 joins, none of them superfluous
    heights: Float64[Tensor, " m"]  # ascending; distance, nats for `kl`


def merge_tree(centroids: Float[Tensor, "k m"], distance: Distance = "kl", *, memory: int = 2 << 30) -> Tree:
    """The tree of the centroids by the mean distance between the members of two clusters (UPGMA).

    The height of a join is that mean. Of the members, the first leaf stands for a cluster.
    """
    count = len(centroids)
    if count < 2:
        return Tree(count, torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, dtype=torch.float64))
    rows = compared(centroids, distance, hold=memory >= 2 * centroids.nbytes)
    products = rows.products()
    between = (rows.own[:, None] + rows.own - (products + products.T)).double().clamp(min=0).cpu()
    merges = linkage(squareform(between.fill_diagonal_(0).numpy(), checks=False), "average")
    first = list(range(count))
    joins = []
    for a, b in merges[:, :2].astype(int):
        joins.append((first[a], first[b]))
        first.append(min(first[a], first[b]))
    heights = torch.from_numpy(merges[:, 2].copy())
    return joined(count, torch.tensor(joins), heights)


def joined(leaves: int, joins: Int64[Tensor, "m 2"], heights: Float64[Tensor, " m"]) -> Tree:
    """The tree of any joins: those that join what lower ones have joined already are left out."""
    order = heights.argsort(stable=True)
    parent = list(range(leaves))
    kept = []
    for index, (a, b) in zip(order.tolist(), joins[order].tolist(), strict=True):
        low, high = sorted((_root(parent, a), _root(parent, b)))
        if low != high:
            parent[high] = low
            kept.append(index)
    return Tree(leaves, joins[kept].view(-1, 2), heights[kept])


def cut(tree: Tree, height: float | int) -> Int64[Tensor, " leaves"]:
    """The cluster of each leaf where joins up to `height` are made, numbered by their first leaves."""
    return _parts(tree, int((tree.heights <= height).sum()))


def cut_into(tree: Tree, clusters: int) -> Int64[Tensor, " leaves"]:
    """The cluster of each leaf where as many joins are made as leave `clusters`, or what there is."""
    return _parts(tree, min(max(0, tree.leaves - clusters), len(tree.joins)))


def _parts(tree: Tree, joins: int) -> Int64[Tensor, " leaves"]:
    parent = list(range(tree.leaves))
    for a, b in tree.joins[:joins].tolist():
        low, high = sorted((_root(parent, a), _root(parent, b)))
        parent[high] = low
    roots = [_root(parent, leaf) for leaf in range(tree.leaves)]
    number = {root: i for i, root in enumerate(sorted(set(roots)))}
    return torch.tensor([number[root] for root in roots], dtype=torch.int64)


def _root(parent: list[int], leaf: int) -> int:
    while parent[leaf] != leaf:
        parent[leaf] = parent[parent[leaf]]
        leaf = parent[leaf]
    return leaf

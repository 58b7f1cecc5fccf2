"""Cluster the rows of an attention map, the number of clusters unknown ("Betrayed by Attention", Alg. 1).

A leader pass goes through the rows in order: the first free row is a leader, takes all free rows that are
near it, and their unweighted mean is one centroid. Passes over centroids repeat until their number stays.
`windowed` (as released) makes the first pass on windows of few frames, on rows that are first replaced by the
mean of the rows near them; `paper` is Algorithm 1 as printed; `kmeans` is the row "K-means" of Table 4.

The order is fixed: rows frame by frame, then row by row of the frame; windows by time; centroids by creation.
A row belongs to the nearest centroid, the first of equals. Distances of a block of coming leaders are made
in one go; what is decided does not depend on the block, nor on the memory that may be used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import embedding_bag, pad

from unspool.errors import UsageError
from unspool.ops.divergence import COLUMNS, Compared, Distance, compared, head_mean_attention, slices

Rows = Callable[[int, int], Float[Tensor, "n m"]]  # rows of frames start, ..., stop - 1
LEADERS = (16, 256)  # fewest and most candidates whose distances are made together
EPS = 1e-10  # least attention: as released, one zero would take nearly every token
RUN = 8  # rows that are added up once, and runs of these
CROWDED = 0.4  # share of all pairs that remain to be added from which one product is faster
ADDED = 128  # columns of rows that are added up, at a time: what the processor's cache holds
PASSES = 10_000  # at most, as released
ASSIGNING = 0.15  # share of the time that the last step takes, about


@dataclass(frozen=True)
class Clustering:
    """How rows are put together; the defaults are those of the released code."""

    tau: float | int = 1.0  # distance (nats for `kl`) up to which rows are near, > 0; 1.6 for a single object
    algorithm: Literal["windowed", "paper", "kmeans"] = "windowed"
    distance: Distance = "kl"  # `cosine` for features, see `ops/divergence.py`
    frames: int = 3  # of a window, >= 1
    clusters: int = 8  # K of K-means, >= 1
    iterations: int = 100  # of K-means, at most
    seed: int = 0  # of K-means++

    def __post_init__(self) -> None:
        for name, valid, wanted in (
            ("tau", 0 < self.tau < math.inf, "above 0, and finite"),
            ("algorithm", self.algorithm in ("windowed", "paper", "kmeans"), "windowed, paper or kmeans"),
            ("distance", self.distance in ("kl", "cosine", "euclidean"), "kl, cosine or euclidean"),
            ("frames", self.frames >= 1, "at least 1"),
            ("clusters", self.clusters >= 1, "at least 1"),
            ("iterations", self.iterations >= 1, "at least 1"),
        ):
            if not valid:
                raise UsageError(f"clustering.{name} = {getattr(self, name)!r} is out of range: {wanted}")


@dataclass(frozen=True)
class Leaves:
    """Finer clusters, of which larger ones can be made (`ops/hierarchy.py`)."""

    labels: Int64[Tensor, " tokens"]  # the nearest of the leaves of a token's own window
    centroids: Float[Tensor, "l m"]  # of the windowed pass at the finest threshold; window by window


@dataclass(frozen=True)
class Clusters:
    """What was found. Some centroids may be nobody's nearest."""

    labels: Int64[Tensor, " tokens"]  # number of the nearest centroid
    centroids: Float[Tensor, "k m"]  # in the order of their creation
    sizes: tuple[int, ...]  # number of rows or centroids before each pass, and after the last
    leaves: Leaves | None = None


@torch.no_grad()
def cluster(
    rows: Rows,
    frames: int,
    how: Clustering,
    *,
    finest: float | int | None = None,
    memory: int = 2 << 30,
    progress: Callable[[float], None] | None = None,
) -> Clusters:
    """Clusters of the rows of frames 0, ..., frames-1; for an attention map see `rows_of_attention`.

    `finest`: threshold of the leaves that `windowed` finds on the way, if any are wanted. `memory`: bytes for
    the rows of a window and what is computed from them; it decides what is held and what is computed again,
    never a label. `paper` compares all rows with all and holds them. `progress` is told the share of the work
    that was just done, window by window; not by `kmeans`, whose passes are not known beforehand. Raises
    UsageError where `memory` is too little for one window, and for rows that are not finite.
    Source: SSL-UVOS eval_oneshot.py: mem_efficient_hierarchical_cluster.
    """
    if how.algorithm == "kmeans":
        return kmeans(rows, frames, how)
    leaves, told = None, progress or _quiet
    if how.algorithm == "paper":
        centroids = checked(rows(0, frames))
    else:
        rows, memory = same_rows(rows, memory // 4), memory - memory // 4
        centroids, leaves = _of_windows(rows, frames, how, finest, memory, told)
    centroids, sizes = merged(centroids, how)
    return Clusters(assign(rows, frames, centroids, how, told), centroids, sizes, leaves)


def _quiet(share: float) -> None:
    pass


def _of_windows(
    rows: Rows,
    frames: int,
    how: Clustering,
    finest: float | int | None,
    memory: int,
    told: Callable[[float], None],
) -> tuple[Float[Tensor, "k m"], Leaves | None]:
    """The centroids of all windows, and their leaves."""
    taus = [how.tau] if finest is None else [how.tau, finest]
    parts, fine, labels, count = [], [], [], 0
    for span in windows(frames, how):
        own = rows(*span)
        coarse, *leaves = window_centroids(own, how, taus, memory)
        parts.append(coarse)
        for one in leaves:
            fine.append(one)
            labels.append(count + nearest(own, compared(one, how.distance)))
            count += len(one)
        told((1 - ASSIGNING) * (span[1] - span[0]) / frames)
    return torch.cat(parts), Leaves(torch.cat(labels), torch.cat(fine)) if fine else None


def rows_of_attention(
    queries: Float[Tensor, "t heads n d"],
    keys: Float[Tensor, "s heads n d"],
    scale: float | None = None,
    eps: float | int = EPS,
) -> Rows:
    """Rows of the attention of all frames to some key frames, jointly, its heads averaged.

    `scale`: of the products before the softmax; None: one over the square root of d.
    """
    flat = keys.transpose(0, 1).flatten(1, 2)
    scale = scale or queries.shape[-1] ** -0.5

    def rows(start: int, stop: int) -> Float[Tensor, "n m"]:
        return head_mean_attention(queries[start:stop].transpose(0, 1).flatten(1, 2), flat, scale, eps)

    return rows


def same_rows(rows: Rows, memory: int) -> Rows:
    """The same rows, not made again as far as they fit into `memory` bytes."""
    made: dict[tuple[int, int], Tensor] = {}

    def again(start: int, stop: int) -> Float[Tensor, "n m"]:
        if (start, stop) in made:
            return made[start, stop]
        new = rows(start, stop)
        if sum(one.nbytes for one in made.values()) + new.nbytes <= memory:
            made[start, stop] = new
        return new

    return again


def windows(frames: int, how: Clustering) -> Iterator[tuple[int, int]]:
    """(start, stop) of each window of frames."""
    for start in range(0, frames, how.frames):
        yield start, min(start + how.frames, frames)


def checked(rows: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    """The rows. Raises UsageError where they are not finite: one such row would take nearly every token."""
    if not bool(rows.sum().isfinite()):
        bad = int((~rows.isfinite().all(1)).nonzero()[0])
        raise UsageError(f"row {bad} of what is to be clustered is not finite; look at the model's weights")
    return rows


# --------------------------------------------------------------------------------------- passes


@torch.no_grad()
def window_centroids(
    rows: Float[Tensor, "n m"], how: Clustering, taus: Sequence[float | int], memory: int = 2 << 30
) -> list[Float[Tensor, "_ m"]]:
    """Centroids of one window for each threshold: the rows are smoothed, then one leader pass goes over them.

    The distances between the rows are made once for all thresholds.
    """
    hold = _hold(rows, memory)
    near = _near(compared(checked(rows), how.distance, hold=hold), taus)
    found = []
    for tau, pairs in zip(taus, near, strict=True):
        smooth = _smoothed(rows, pairs, how.distance)
        member = leaders(compared(smooth, how.distance, hold=hold), tau)
        found.append(means(smooth, member))
    return found


def merged(centroids: Float[Tensor, "n m"], how: Clustering) -> tuple[Float[Tensor, "k m"], tuple[int, ...]]:
    """Leader passes until the number of centroids stays, and the numbers on the way."""
    sizes = [len(centroids)]
    while len(sizes) < PASSES:
        member = leaders(compared(centroids, how.distance), how.tau, strict=how.algorithm == "paper")
        centroids = means(centroids, member)
        sizes.append(len(centroids))
        if sizes[-1] == sizes[-2]:
            break
    return centroids, tuple(sizes)


@torch.no_grad()
def leaders(rows: Compared, tau: float | int, *, strict: bool = False) -> Int64[Tensor, " n"]:
    """The leader pass: the number of each row's leader, in the order in which they are found.

    `strict`: near is D < tau, as printed, not D <= tau, as released. A leader takes itself whatever D says.
    """
    member = np.full(len(rows.own), -1)
    active = np.arange(len(member))  # the rows that `rows` holds
    count, block = 0, LEADERS[0]
    while len(free := np.flatnonzero(member[active] < 0)):
        if 2 * len(free) <= len(active):
            rows, active = rows.part(torch.from_numpy(free).to(rows.own.device)), active[free]
            free = np.arange(len(active))
        candidates = torch.from_numpy(free[:block]).to(rows.own.device)
        distances = rows.distances(candidates)
        near = (distances < tau if strict else distances <= tau).cpu().numpy()
        before = count
        for candidate, close in zip(active[free[:block]], near, strict=True):
            if member[candidate] < 0:
                taken = active[close]
                member[taken[member[taken] < 0]] = count
                member[candidate] = count
                count += 1
        crowded = 2 * (count - before) > len(near)
        block = min(2 * block, LEADERS[1]) if crowded else max(block // 2, LEADERS[0])
    return torch.from_numpy(member).to(rows.own.device)


def means(rows: Float[Tensor, "n m"], member: Int64[Tensor, " n"]) -> Float[Tensor, "k m"]:
    """The unweighted mean of each leader's rows."""
    order = member.argsort(stable=True)
    groups = torch.split(order, member.bincount().tolist())
    return torch.stack([rows[group].mean(0) if len(group) > 1 else rows[group[0]] for group in groups])


def _near(rows: Compared, taus: Sequence[float | int]) -> list[Bool[Tensor, "n n"]]:
    products = rows.products()
    near = [torch.empty_like(products, dtype=torch.bool) for _ in taus]
    for start in range(0, len(products), LEADERS[1]):
        part, rest = slice(start, start + LEADERS[1]), slice(start, None)
        both = products[part, rest] + products[rest, part].T
        distances = (rows.own[part, None] + rows.own[rest]).sub_(both)
        for tau, pairs in zip(taus, near, strict=True):
            pairs[part, rest] = close = distances <= tau
            pairs[rest, part] = close.T
    for pairs in near:
        pairs.fill_diagonal_(True)
    return near


def _smoothed(
    rows: Float[Tensor, "n m"], near: Bool[Tensor, "n n"], distance: Distance
) -> Float[Tensor, "n m"]:
    """Each row's near rows, added up and brought to the sum 1 (`kl`), or their mean.

    Rows that are near each other are put side by side; a set of near rows is then runs, whose sums are made
    once, and single rows. Where too many remain to be added, one product of all pairs is made.
    """
    order = _side_by_side(near)
    sets = _as_runs(near[:, order])
    if int(sets.count_nonzero()) > CROWDED * near.numel():
        smooth = _added(near.to(rows.dtype), rows)
    else:
        smooth = _added_by_runs(rows, order, sets.flatten().nonzero()[:, 0], sets.shape[1])
    total = smooth.sum(1) if distance == "kl" else near.sum(1)
    return smooth.div_(total[:, None])


def _added(weights: Float[Tensor, "n n"], rows: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    found = torch.empty_like(rows)
    for columns in slices(rows.shape[1]):
        torch.mm(weights, rows[:, columns], out=found[:, columns])
    return found


def _as_runs(pairs: Bool[Tensor, "n n"]) -> Bool[Tensor, "n members"]:
    """What each row's set is made of: single rows, then runs, then runs of runs."""
    parts, level = [], pad(pairs, (0, -len(pairs) % RUN**2))
    for _ in range(2):
        whole = level.view(len(level), -1, RUN).all(2)
        parts.append(level & ~whole.repeat_interleave(RUN, 1))
        level = whole
    return torch.cat([*parts, level], dim=1)


def _added_by_runs(
    rows: Float[Tensor, "n m"], order: Int64[Tensor, " n"], members: Int64[Tensor, " all"], count: int
) -> Float[Tensor, "n m"]:
    """`members`: of the sets of `count` single rows, runs and runs of runs, one by one; used up."""
    smooth, first = torch.empty_like(rows), torch.arange(0, (len(rows) + 1) * count, count)
    starts = torch.searchsorted(members, first.to(members.device))
    members = members.remainder_(count)
    singles = len(rows) + -len(rows) % RUN**2
    runs, table = singles + singles // RUN, rows.new_zeros(count, min(ADDED, rows.shape[1]))
    for columns in slices(rows.shape[1], ADDED):
        part = rows[:, columns]
        held = table[:, : part.shape[1]]
        torch.index_select(part, 0, order, out=held[: len(rows)])
        torch.sum(held[:singles].view(-1, RUN, held.shape[1]), 1, out=held[singles:runs])
        torch.sum(held[singles:runs].view(-1, RUN, held.shape[1]), 1, out=held[runs:])
        smooth[:, columns] = embedding_bag(members, held, starts, mode="sum", include_last_offset=True)
    return smooth


def _side_by_side(near: Bool[Tensor, "n n"]) -> Int64[Tensor, " n"]:
    """An order of rows in which those near the same leader follow each other."""
    pairs = near.cpu().numpy()
    member = np.full(len(pairs), -1)
    for row, close in enumerate(pairs):
        if member[row] < 0:
            member[close & (member < 0)] = row
    return torch.from_numpy(member.argsort(kind="stable")).to(near.device)


def _hold(rows: Float[Tensor, "n m"], memory: int) -> bool:
    """Whether l may be held. Raises UsageError where the rest does not fit."""
    count, columns = rows.shape
    least = rows.element_size() * (2 * rows.numel() + 2 * count**2 + count * min(columns, COLUMNS))
    if memory < least:
        raise UsageError(
            f"memory = {memory >> 20} MB is too little: a window of {count} rows of {columns} takes "
            f"{(least >> 20) + 1} MB; allow that, or use fewer key frames (key_every) or a smaller resolution"
        )
    return memory >= least + rows.nbytes


# --------------------------------------------------------------------------------------- the nearest


@torch.no_grad()
def assign(
    rows: Rows,
    frames: int,
    centroids: Float[Tensor, "k m"],
    how: Clustering,
    told: Callable[[float], None] = _quiet,
) -> Int64[Tensor, " tokens"]:
    """The number of the nearest centroid of every row (Eq. 3), some frames at a time."""
    centres = compared(centroids, how.distance)
    found = []
    for start, stop in windows(frames, how):
        found.append(nearest(rows(start, stop), centres))
        told(ASSIGNING * (stop - start) / frames)
    return torch.cat(found)


def nearest(rows: Float[Tensor, "n m"], centres: Compared) -> Int64[Tensor, " n"]:
    """The number of the nearest centre of each row, the lowest of equals."""
    return centres.from_rows(rows).argmin(1)


@torch.no_grad()
def kmeans(rows: Rows, frames: int, how: Clustering) -> Clusters:
    """K-means on rows: k-means++ with `how.seed`, centres are means; stops when no label changes.

    An empty cluster restarts from the row that is farthest from its own centre. Source: Table 4 (ours where
    it says nothing: number of iterations, start, distance).
    """
    centroids = _plus_plus(rows, frames, how)
    labels = None
    for _ in range(how.iterations):
        found, far = _with_distances(rows, frames, centroids, how)
        if labels is not None and torch.equal(found, labels):
            break
        labels = found
        centroids = _centres(rows, frames, labels, far, centroids, how)
    assert labels is not None
    return Clusters(labels, centroids, (len(labels), len(centroids)))


def _plus_plus(rows: Rows, frames: int, how: Clustering) -> Float[Tensor, "k m"]:
    """Rows as first centres, each drawn in proportion to the distance to those before."""
    spans = list(windows(frames, how))
    generator = torch.Generator().manual_seed(how.seed)
    lengths = [len(rows(*span)) for span in spans]
    weights = torch.ones(sum(lengths), dtype=torch.float64)
    chosen: list[Tensor] = []
    while len(chosen) < min(how.clusters, len(weights)) and weights.sum() > 0:
        index = int(torch.multinomial(weights, 1, generator=generator))
        span = int(np.searchsorted(np.cumsum(lengths), index, side="right"))
        chosen.append(checked(rows(*spans[span]))[index - sum(lengths[:span])])
        to_last = _with_distances(rows, frames, chosen[-1][None], how)[1].double().cpu().clamp(min=0)
        weights = to_last if len(chosen) == 1 else torch.minimum(weights, to_last)
        weights[index] = 0
    return torch.stack(chosen)


def _with_distances(
    rows: Rows, frames: int, centroids: Float[Tensor, "k m"], how: Clustering
) -> tuple[Int64[Tensor, " tokens"], Float[Tensor, " tokens"]]:
    """Number of, and distance to, the nearest centroid of all rows."""
    centres = compared(centroids, how.distance)
    found = []
    for span in windows(frames, how):
        part = rows(*span)
        own = compared(part, how.distance, hold=False, centre=centres.centre).own
        found.append(centres.from_rows(part) + own[:, None])
    distances = torch.cat(found)
    return distances.argmin(1), distances.amin(1)


def _centres(
    rows: Rows,
    frames: int,
    labels: Int64[Tensor, " tokens"],
    far: Float[Tensor, " tokens"],
    centroids: Float[Tensor, "k m"],
    how: Clustering,
) -> Float[Tensor, "k m"]:
    """Means of the rows of each label; the farthest rows where there are none."""
    count = len(centroids)
    empty = [k for k in range(count) if not bool((labels == k).any())]
    farthest = far.argsort(descending=True, stable=True)[: len(empty)].tolist()
    total = torch.zeros_like(centroids)
    start = 0
    for span in windows(frames, how):
        part = rows(*span)
        share = torch.nn.functional.one_hot(labels[start : start + len(part)], count).to(part.dtype)
        total += share.T @ part
        for k, index in zip(empty, farthest, strict=True):
            if start <= index < start + len(part):
                total[k] = part[index - start]
        start += len(part)
    return total / labels.bincount(minlength=count).clamp(min=1)[:, None]

"""The searches of `affinity.py` with most products never made, and the same result.

Every token gets a sketch: its first coordinates along the principal axes of the reference frame, and the
length of what is left. By Cauchy-Schwarz the product of two sketches is never below that of the tokens, at a
quarter of the cost. Where a floor under the k-th best similarity of a query is known, only the keys whose
sketch reaches the floor need their full product. This pays on a CPU, where single products are cheap next
to matrix products, and while neighbouring frames resemble each other.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from unspool.ops.affinity import (
    NOWHERE,
    Matches,
    Tiling,
    Window,
    best_in_window,
    pairs_in_reach,
    row_major,
    tile_offsets,
)

MARGIN = 1e-5  # more than float32 rounding takes off a bound or a floor of unit vectors
FEWEST_TOKENS = 1024  # of a frame for which all this is worth its while
WORTHWHILE = 0.12  # largest share of products still to be made at which the bounds save time
REST = 16  # frames for which the bounds rest where they did not pay
NEAR = Window("disc", 4.0)  # where the last frame is asked for places like this one, feature cells
GUIDES = 4  # such places whose own matches become candidates
SAMPLE = 64  # queries asked how many keys their floor leaves
WHOLE_FRAME_TILES = 4  # key tiles worked on together where there is no window: fits the cache


@dataclass(frozen=True)
class Tokens:
    """A frame's features cut into tiles, and their sketches (of no columns where bounds do not pay)."""

    features: Float[Tensor, "tiles cells c"]
    sketch: Float[Tensor, "tiles cells s"]


def principal_axes(features: Float[Tensor, "tiles cells c"], count: int) -> Float[Tensor, "c count"]:
    """Orthonormal directions that hold most of the features' energy; not centred, as products are wanted."""
    flat = features.flatten(0, 1).double()
    axes: Tensor = torch.linalg.eigh(flat.T @ flat)[1]
    return axes[:, -count:].to(features.dtype)


def sketched(features: Float[Tensor, "tiles cells c"], axes: Float[Tensor, "c count"]) -> Tokens:
    """Features with sketches: up to rounding, products of sketches are at least those of the features."""
    head = features @ axes
    rest = features.square().sum(-1, keepdim=True) - head.square().sum(-1, keepdim=True)
    return Tokens(features, torch.cat([head, rest.clamp_(min=0).add_(MARGIN).sqrt_()], dim=-1))


@dataclass(frozen=True)
class Winners:
    """Where the labels of a frame came from: its tokens' most similar places, by time of the frame."""

    time: Integer[Tensor, "n k"]
    token: Integer[Tensor, "n k"]


def candidates(
    queries: Tokens, last: Tokens, last_time: int, winners: Winners | None, tiling: Tiling, k: int
) -> Winners:
    """Places likely to be like the queries: those nearby in the last frame, and what these were like."""
    near = best_in_window(queries.sketch, [last.sketch], tiling, NEAR, k).token
    time, token = torch.full_like(near, last_time), near
    if winners is None:
        return Winners(time, token)
    guides = near[:, :GUIDES]
    return Winners(
        torch.cat([time, winners.time[guides].flatten(1)], dim=1),
        torch.cat([token, winners.token[guides].flatten(1)], dim=1),
    )


def floor_of_candidates(
    queries: Tokens,
    frames: Sequence[Tokens],
    frame: Integer[Tensor, "n m"],
    token: Integer[Tensor, "n m"],
    tiling: Tiling,
    *,
    k: int,
) -> Float[Tensor, " n"]:
    """A floor under the k-th best similarity of each query: the k-th best of these candidates.

    `frame`: position in `frames`, -1 for no candidate. Candidates may repeat: those of equal similarity
    count once, which can only lower the floor. -inf where there are fewer than k.
    """
    tokens = tiling.tokens(token.device)
    visit = tokens[tokens >= 0]  # queries in the order of their cells
    cell = (tokens.view(-1) >= 0).nonzero()[:, 0]
    cell_of_token = torch.empty_like(cell).scatter_(0, visit, cell)
    frame, target = frame[visit], cell_of_token[token[visit]]
    similarity = torch.full(frame.shape, NOWHERE)
    for number, keys in enumerate(frames):
        here = frame == number
        row, _ = here.nonzero(as_tuple=True)
        similarity[here] = _products(
            keys.features.flatten(0, 1), queries.features.flatten(0, 1), target[here], cell[row]
        )
    ranked = similarity.sort(dim=1, descending=True)[0]
    distinct = torch.ones_like(ranked, dtype=torch.int32)
    distinct[:, 1:] = ranked[:, 1:] < ranked[:, :-1]
    ranked.masked_fill_(distinct.cumsum_(1) < k, NOWHERE)
    floor = torch.empty(len(visit))
    return floor.scatter_(0, visit, ranked.amax(dim=1))


def open_share(
    queries: Tokens, frames: Sequence[Tokens], tiling: Tiling, window: Window, *, floor: Float[Tensor, " n"]
) -> float:
    """The share of products inside the window that the floor leaves to be made, from a sample of queries."""
    tokens = tiling.tokens(floor.device).view(-1)
    some = torch.linspace(0, tiling.height * tiling.width - 1, SAMPLE, device=floor.device).long()
    cell = (tokens[:, None] == some).nonzero()[:, 0]
    query, key = tokens[cell, None], tokens
    dy, dx = query // tiling.width - key // tiling.width, query % tiling.width - key % tiling.width
    inside = window.holds(dy, dx) & (key >= 0)
    sketch = queries.sketch.flatten(0, 1)[cell]
    bounds = torch.stack([sketch @ frame.sketch.flatten(0, 1).T for frame in frames])
    open_ = (bounds >= floor[tokens[cell], None]) & inside
    return open_.sum().item() / (inside.sum().item() * len(frames))


def bounded_in_window(
    queries: Tokens,
    keys: Sequence[Tokens],
    tiling: Tiling,
    window: Window,
    k: int,
    *,
    floor: Float[Tensor, " n"],
) -> Matches:
    """As `best_in_window`, for keys of similarity >= `floor` only."""
    tokens = tiling.tokens(floor.device)
    floors = _in_tile_order(floor - MARGIN, tokens)
    offsets, bias = tile_offsets(tiling, window, floor.device)
    pairs = pairs_in_reach(tiling, offsets, range(tiling.rows))
    hidden = -bias.transpose(1, 2)  # [offset, cell of the key tile, cell of the query tile]
    cells = torch.arange(tokens.numel()).view_as(tokens)
    found = []
    for top in range(0, len(tokens), tiling.columns):
        row = slice(top, top + tiling.columns)
        sketches = torch.stack([key.sketch[row] for key in keys], dim=1)
        open_ = []
        for tile, sketch in enumerate(sketches.flatten(1, 2)):
            part = pairs.of_key[top + tile][1]
            near = pairs.query[part]
            least = floors.index_select(0, near)[:, None] + hidden.index_select(0, pairs.offset[part])
            least.masked_fill_((tokens[top + tile] < 0)[:, None], float("inf"))
            bound = sketch @ queries.sketch.index_select(0, near).flatten(0, 1).T
            key, query = _reaching(bound, least.transpose(0, 1).flatten(1))
            open_.append((key + tile * len(sketch), cells.index_select(0, near).view(-1)[query]))
        key, query = (torch.cat(column) for column in zip(*open_, strict=True))
        features = torch.stack([key.features[row] for key in keys], dim=1)
        similarity = _products(queries.features.flatten(0, 1), features.flatten(0, 2), query, key)
        kept = (similarity >= floors.view(-1)[query]).nonzero()[:, 0]
        key = key[kept]
        frame, token = key // tokens.shape[1] % len(keys), _token_of(key, tokens[row], len(keys))
        found.append((similarity[kept], query[kept], frame, token))
    return _ranked(found, tokens, k)


def _token_of(
    key: Integer[Tensor, " hits"], tokens: Integer[Tensor, "row cells"], frames: int
) -> Integer[Tensor, " hits"]:
    cells = tokens.shape[1]
    return tokens[key // (cells * frames), key % cells]


def bounded_anywhere(
    queries: Tokens, keys: Tokens, tiling: Tiling, k: int, *, floor: Float[Tensor, " n"]
) -> Matches:
    """As `best_anywhere`, for keys of similarity >= `floor` only."""
    tokens = tiling.tokens(floor.device)
    floors = _in_tile_order(floor - MARGIN, tokens)
    least = floors.view(1, -1)
    query_sketch, cells = queries.sketch.flatten(0, 1).T, tokens.shape[1]
    open_ = []
    for start, sketch in enumerate(torch.split(keys.sketch, WHOLE_FRAME_TILES)):
        bound = sketch.flatten(0, 1) @ query_sketch
        key, query = _reaching(bound, least)
        open_.append((key + start * WHOLE_FRAME_TILES * cells, query))
    key, query = (torch.cat(column) for column in zip(*open_, strict=True))
    similarity = _products(queries.features.flatten(0, 1), keys.features.flatten(0, 1), query, key)
    token = tokens.view(-1)[key]
    kept = ((similarity >= floors.view(-1)[query]) & (token >= 0)).nonzero()[:, 0]
    return _ranked([(similarity[kept], query[kept], torch.zeros_like(kept), token[kept])], tokens, k)


def _in_tile_order(
    floor: Float[Tensor, " n"], tokens: Integer[Tensor, "tiles cells"]
) -> Float[Tensor, "tiles cells"]:
    """Padded cells look for nothing."""
    return torch.where(tokens < 0, float("inf"), floor[tokens.clamp(min=0)])


def _reaching(
    bound: Float[Tensor, "m n"], least: Float[Tensor, "f n"]
) -> tuple[Integer[Tensor, " pairs"], Integer[Tensor, " pairs"]]:
    """Row and column, in row-major order, where the bound reaches what it must; `least` repeats over m."""
    reaches = bound.view(-1, *least.shape) >= least
    flat = torch.from_numpy(np.flatnonzero(reaches.numpy()))  # five times as fast as torch's
    row = flat // bound.shape[1]
    return row, flat - row * bound.shape[1]


def _products(
    queries: Float[Tensor, "n c"],
    keys: Float[Tensor, "m c"],
    query: Integer[Tensor, " pairs"],
    key: Integer[Tensor, " pairs"],
) -> Float[Tensor, " pairs"]:
    """Single products; the pairs are sorted by key."""
    starts = torch.searchsorted(key, torch.arange(len(keys) + 1))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        wanted = torch.sparse_csr_tensor(
            starts, query, keys.new_zeros(len(key)), (len(keys), len(queries)), check_invariants=False
        )
    products: Tensor = torch.sparse.sampled_addmm(wanted, keys, queries.T, beta=0.0).values()
    return products


def _ranked(
    found: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]], tokens: Integer[Tensor, "tiles cells"], k: int
) -> Matches:
    """The k best of each query among (similarity, query cell, frame, token) in any order."""
    similarity, query, frame, token = (torch.cat(column) for column in zip(*found, strict=True))
    order = similarity.argsort(descending=True, stable=True)
    order = order[query[order].argsort(stable=True)]
    query = query[order]
    counts = torch.bincount(query, minlength=tokens.numel())
    rank = torch.arange(len(query)) - (counts.cumsum(0) - counts)[query]
    kept = rank < k
    place, order = (query[kept], rank[kept]), order[kept]
    empty = frame.new_zeros((tokens.numel(), k))
    columns = [similarity.new_full(empty.shape, NOWHERE), empty, empty.clone()]
    for column, values in zip(columns, (similarity, frame, token), strict=True):
        column[place] = values[order]
    return row_major(columns, tokens)

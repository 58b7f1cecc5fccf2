"""The most similar places of other frames, exactly, without the products that no window can see.

A frame's features are kept in square tiles. Each tile of keys, of all context frames at once, meets only
the query tiles within its reach: one matrix product of a good shape per tile, with few products wasted at
the rim of the window. The top-k is taken in two exact passes: the k groups of columns with the largest
maxima hold the k largest columns, so only they are read again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor
from torch.nn.functional import pad

GROUP = 16  # columns that share one maximum in the first pass of the top-k
SCORE_BYTES = 2**28  # similarities held at once; decides how many tile rows are worked on together
NOWHERE = -float("inf")


@dataclass(frozen=True)
class Window:
    """Where a query at (y, x) may look in another frame; clipped at the border.

    disc: Euclidean distance < `radius` (strict); square: |dy| and |dx| <= `radius`. Unit: feature cells.
    """

    shape: Literal["disc", "square"] = "disc"
    radius: float | int = 12.0

    def holds(self, dy: Integer[Tensor, "*n"], dx: Integer[Tensor, "*n"]) -> Bool[Tensor, "*n"]:
        """Whether the window holds the offset (dy, dx)."""
        if self.shape == "disc":
            return dy**2 + dx**2 < self.radius**2
        return (dy.abs() <= self.radius) & (dx.abs() <= self.radius)


@dataclass(frozen=True)
class Tiling:
    """How a grid of `height` x `width` tokens is cut into tiles of `side` x `side`, the last ones padded.

    Small tiles waste few products at the window's rim; large ones give a GPU enough to do at once.
    """

    height: int
    width: int
    side: int  # a multiple of 4

    @property
    def rows(self) -> int:
        """Tiles from top to bottom."""
        return -(-self.height // self.side)

    @property
    def columns(self) -> int:
        """Tiles from left to right."""
        return -(-self.width // self.side)

    def cut(self, features: Float[Tensor, "c h w"]) -> Float[Tensor, "tiles cells c"]:
        """Features tile by tile; padded cells are zero."""
        right, below = self.columns * self.side - self.width, self.rows * self.side - self.height
        padded = pad(features, (0, right, 0, below))
        blocks = padded.reshape(len(features), self.rows, self.side, self.columns, self.side)
        cells = blocks.permute(1, 3, 2, 4, 0)
        return cells.reshape(self.rows * self.columns, self.side**2, len(features))

    def tokens(self, device: torch.device) -> Integer[Tensor, "tiles cells"]:
        """Row-major token index of every cell, -1 where padded."""
        index = torch.arange(self.height * self.width, device=device).view(1, self.height, self.width)
        return self.cut((index + 1).double()).long()[..., 0] - 1


def tiling_for(height: int, width: int, device: torch.device) -> Tiling:
    """The tile side that measured best: 4 on a CPU; on a GPU launches, not wasted products, set the pace."""
    return Tiling(height, width, 4 if device.type == "cpu" else 16)


@dataclass(frozen=True)
class Matches:
    """The `k` most similar keys of each of `n` queries, most similar first.

    Where the window holds fewer than k keys, the rest has similarity -inf.
    """

    similarity: Float[Tensor, "n k"]
    frame: Integer[Tensor, "n k"]  # position in the sequence of key frames
    token: Integer[Tensor, "n k"]  # row-major position in that frame


def best_in_window(
    queries: Float[Tensor, "tiles cells c"],
    keys: Sequence[Float[Tensor, "tiles cells c"]],
    tiling: Tiling,
    window: Window,
    k: int,
    *,
    memory: int = SCORE_BYTES,
) -> Matches:
    """The k most similar keys of all frames jointly, among those inside the window.

    All inputs are unit vectors cut by `tiling`. Queries come back in row-major order. Products of half
    precision are summed and compared in float32. About `memory` bytes of similarities are held at once,
    whatever the number of frames, and one row of tiles (`row_bytes`) at least.
    """
    tokens = tiling.tokens(queries.device)
    bands = _bands(tiling, window, len(keys), memory)
    parts = [_best_in_band(queries, keys, tokens, tiling, window=window, k=k, band=band) for band in bands]
    return row_major([torch.cat(column) for column in zip(*parts, strict=True)], tokens)


def row_bytes(tiling: Tiling, window: Window, frames: int) -> int:
    """Bytes of the similarities of one row of query tiles: the least that is held at once."""
    reachable = len(tile_offsets(tiling, window, torch.device("cpu"))[0])
    return 4 * tiling.columns * tiling.side**4 * reachable * frames


def _bands(tiling: Tiling, window: Window, frames: int, memory: int) -> Iterator[range]:
    """Rows of query tiles whose similarities are held together."""
    count = min(tiling.rows, -(-row_bytes(tiling, window, frames) * tiling.rows // memory))
    height = -(-tiling.rows // count)
    for top in range(0, tiling.rows, height):
        yield range(top, min(top + height, tiling.rows))


def tile_offsets(
    tiling: Tiling, window: Window, device: torch.device
) -> tuple[Integer[Tensor, "offsets 2"], Float[Tensor, "offsets cells cells"]]:
    """Steps from a query tile to the key tiles in its reach; 0 where a cell sees a cell, else -inf."""
    side = tiling.side
    reach = min(int(window.radius + side - 1) // side, max(tiling.rows, tiling.columns) - 1)
    steps = torch.arange(-reach, reach + 1, device=device)
    offsets = torch.cartesian_prod(steps, steps)
    cell = torch.arange(side, device=device)
    y, x = cell.repeat_interleave(side), cell.repeat(side)
    dy = side * offsets[:, 0, None, None] + y - y[:, None]
    dx = side * offsets[:, 1, None, None] + x - x[:, None]
    seen = window.holds(dy, dx)
    kept = seen.flatten(1).any(dim=1)
    return offsets[kept], torch.where(seen[kept], 0.0, NOWHERE)


@dataclass(frozen=True)
class _Pairs:
    """Pairs of a query tile and a key tile within reach, ordered by key tile."""

    query: Integer[Tensor, " pairs"]
    offset: Integer[Tensor, " pairs"]
    of_key: list[tuple[int, slice]]  # key tile, its pairs
    table: Integer[Tensor, "queries offsets"]  # the pair of a query tile and an offset; len(query) if none
    key: Integer[Tensor, " pairs"]


def pairs_in_reach(tiling: Tiling, offsets: Integer[Tensor, "offsets 2"], band: range) -> _Pairs:
    """Which key tiles the query tiles of some rows see, and by which step."""
    device = offsets.device
    query = torch.arange(band.start * tiling.columns, band.stop * tiling.columns, device=device)
    row = query[:, None] // tiling.columns + offsets[:, 0]
    column = query[:, None] % tiling.columns + offsets[:, 1]
    inside = (row >= 0) & (row < tiling.rows) & (column >= 0) & (column < tiling.columns)
    which = inside.nonzero()
    key = (row * tiling.columns + column)[inside]
    order = key.argsort(stable=True)
    table = torch.full_like(row, len(order))
    table[inside] = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=device))
    counts = torch.bincount(key, minlength=tiling.rows * tiling.columns).tolist()
    slices, start = [], 0
    for tile, count in enumerate(counts):
        if count:
            slices.append((tile, slice(start, start + count)))
            start += count
    return _Pairs(query[which[order, 0]], which[order, 1], slices, table, key[order])


def _best_in_band(
    queries: Float[Tensor, "tiles cells c"],
    keys: Sequence[Float[Tensor, "tiles cells c"]],
    tokens: Integer[Tensor, "tiles cells"],
    tiling: Tiling,
    *,
    window: Window,
    k: int,
    band: range,
) -> tuple[Tensor, Tensor, Tensor]:
    """Similarity, frame and token `[n, k]` for the query cells of some rows of tiles, in tile order."""
    offsets, bias = tile_offsets(tiling, window, queries.device)
    pairs = pairs_in_reach(tiling, offsets, band)
    scores, maxima = _score_pairs(queries, keys, tokens, bias, pairs)

    _, cells, groups = maxima.shape
    of_query = maxima[pairs.table].transpose(1, 2).flatten(2).flatten(0, 1)  # [n, offsets * groups]
    largest, place = of_query.topk(min(k, of_query.shape[1]), dim=1, sorted=False)
    cell = torch.arange(len(place), device=place.device)[:, None]
    pair = pairs.table[cell // cells, place // groups]
    member = torch.arange(GROUP, device=place.device) * groups
    column = (place % groups)[..., None] + member
    address = (pair * cells + cell % cells)[..., None] * (GROUP * groups) + column
    candidates = scores.view(-1).take(address.clamp_(max=scores.numel() - 1))
    candidates.masked_fill_((largest == NOWHERE)[..., None], NOWHERE)

    similarity, best = candidates.flatten(1).topk(min(k, candidates[0].numel()), dim=1)
    column = column.flatten(1).gather(1, best)
    key = pairs.key[pair.clamp_(max=len(pairs.key) - 1).gather(1, best // GROUP)]
    return similarity, column % len(keys), tokens[key, column // len(keys)]


def _score_pairs(
    queries: Float[Tensor, "tiles cells c"],
    keys: Sequence[Float[Tensor, "tiles cells c"]],
    tokens: Integer[Tensor, "tiles cells"],
    bias: Float[Tensor, "offsets cells cells"],
    pairs: _Pairs,
) -> tuple[Float[Tensor, "pairs cells columns"], Float[Tensor, "pairs_or_none cells groups"]]:
    """Similarities of all pairs, columns = (cell of the key tile, frame); and the maxima of their groups."""
    cells, width = queries.shape[1], queries.shape[1] * len(keys)
    count = len(pairs.query)
    scores = queries.new_empty((count, cells, width), dtype=torch.float32)
    maxima = scores.new_full((count + 1, cells, width // GROUP), NOWHERE)
    for tile, part in pairs.of_key:
        block = scores[part].view(-1, width)
        key = torch.stack([frame[tile] for frame in keys], dim=1).flatten(0, 1)
        _multiply(queries.index_select(0, pairs.query[part]).flatten(0, 1), key, block)
        hidden = torch.where(tokens[tile] < 0, NOWHERE, bias.index_select(0, pairs.offset[part]))
        block.view(-1, cells, cells, len(keys)).add_(hidden[..., None])
        maxima[part] = _group_maxima(block).view(-1, cells, width // GROUP)
    return scores, maxima


def _multiply(queries: Float[Tensor, "n c"], keys: Float[Tensor, "m c"], out: Float[Tensor, "n m"]) -> None:
    if queries.dtype == torch.float32:
        torch.mm(queries, keys.T, out=out)
    elif queries.is_cuda:
        torch.mm(queries, keys.T, out_dtype=torch.float32, out=out)
    else:
        torch.mm(queries.float(), keys.float().T, out=out)


def _group_maxima(scores: Float[Tensor, "n m"]) -> Float[Tensor, "n groups"]:
    """Group g holds the columns g, g + m/GROUP, ...: halving keeps every pass contiguous."""
    members = scores.view(len(scores), GROUP, -1)
    while members.shape[1] > 1:
        half = members.shape[1] // 2
        members = torch.maximum(members[:, :half], members[:, half:])
    return members[:, 0]


def best_anywhere(
    queries: Float[Tensor, "tiles cells c"],
    keys: Float[Tensor, "tiles cells c"],
    tiling: Tiling,
    k: int,
    *,
    memory: int = SCORE_BYTES,
) -> Matches:
    """The k most similar keys of one whole frame; otherwise as `best_in_window`."""
    tokens = tiling.tokens(queries.device)
    padding = (tokens.flatten() < 0).nonzero()[:, 0]
    key = keys.flatten(0, 1)
    rows = max(1, memory // 32 // len(key))
    parts = [_best_of_all(part, key, padding, k) for part in torch.split(queries.flatten(0, 1), rows)]
    similarity, column = (torch.cat(each) for each in zip(*parts, strict=True))
    return row_major([similarity, torch.zeros_like(column), tokens.flatten()[column]], tokens)


def _best_of_all(
    queries: Float[Tensor, "n c"], keys: Float[Tensor, "m c"], padding: Integer[Tensor, " padded"], k: int
) -> tuple[Tensor, Tensor]:
    scores = queries.new_empty((len(queries), len(keys)), dtype=torch.float32)
    _multiply(queries, keys, scores)
    scores.index_fill_(1, padding, NOWHERE)
    groups = scores.shape[1] // GROUP
    _, group = _group_maxima(scores).topk(min(k, groups), dim=1, sorted=False)
    column = (group[..., None] + torch.arange(GROUP, device=group.device) * groups).flatten(1)
    similarity, best = scores.gather(1, column).topk(min(k, column.shape[1]), dim=1)
    return similarity, column.gather(1, best)


def row_major(columns: list[Tensor], tokens: Integer[Tensor, "tiles cells"]) -> Matches:
    """Queries from tile order to row-major order, padded cells dropped; padded keys point at token 0."""
    order = tokens.flatten().argsort(stable=True)[int((tokens < 0).sum()) :]
    similarity, frame, token = (column.index_select(0, order) for column in columns)
    return Matches(similarity, frame, token.clamp_(min=0))

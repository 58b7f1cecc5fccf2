"""`incontext-voc`: labels looked up in a memory of labelled patches, without any training.

Patches of labelled images fill a memory; a patch of another image takes the labels of the rows most like it.
Source: vpariza/open-hummingbird-eval: hbird/hbird_eval.py (Balazevic et al. 2023, Towards In-Context Scene
Understanding). Labels are maps whose sides are whole patches; 255 is void, which the memory takes for
background and the score leaves out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float16, Float32, Int64, Integer, UInt8
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from unspool.errors import DataError, ShapeError, UsageError
from unspool.metrics import ClusterScores, clustering
from unspool.metrics.labels import VOID
from unspool.metrics.matching import unmatched
from unspool.ops import neighbours

NEIGHBOURS, TEMPERATURE = 30, 0.02  # published
CELLS, SEARCHED, ROWS_OF_A_CELL = 512, 32, 39  # of the approximate index (published leaves; faiss's least)
QUERIES = 1024  # looked up at a time in a memory that is held whole


def patch_labels(labels: Integer[Tensor, "n H W"], patch: int, classes: int) -> Float[Tensor, "n p classes"]:
    """Share of each class among the pixels of every patch, patches row by row; void counts as background.

    Raises ShapeError for sides that are not whole patches, DataError for other ids.
    """
    images, height, width = labels.shape
    if height % patch or width % patch:
        raise ShapeError(f"labels of {height}x{width} are no whole patches of {patch}; resize them, nearest")
    known = labels.long().masked_fill(labels == VOID, 0)
    if (largest := int(known.max())) >= classes:
        raise DataError(f"labels hold class {largest}, but there are {classes} (0 to {classes - 1})")
    cells = known.view(images, height // patch, patch, width // patch, patch).transpose(2, 3)
    cells = cells.flatten(3).flatten(1, 2)
    places = torch.arange(cells[..., 0].numel(), device=cells.device).view(*cells.shape[:2], 1) * classes
    counts = (cells + places).flatten().bincount(minlength=cells[..., 0].numel() * classes)
    return counts.view(*cells.shape[:2], classes) / float(patch * patch)


def rare_patches(
    labels: Float[Tensor, "n p classes"], count: int, uniform: Float[Tensor, "n p"]
) -> Int64[Tensor, "n count"]:
    """The patches of each image that a memory of bounded size keeps: those with rare classes, mostly.

    A patch's score is its draw from 0..1 times the number of patches of its image that hold a class of its
    own, summed over its classes; the smallest are kept, in ascending order.
    """
    present = (labels > 0).to(uniform.dtype)
    crowd = (present * present.sum(dim=1, keepdim=True)).sum(dim=2)
    return (uniform * crowd).sort(dim=1, stable=True)[1][:, :count]


@dataclass(frozen=True)
class Memory:
    """Labelled patches."""

    features: Float[Tensor, "rows d"]  # of length 1
    labels: Float[Tensor, "rows classes"]  # shares, summing to 1


def nearest_rows(
    queries: Float[Tensor, "n d"], memory: Float[Tensor, "rows d"], k: int
) -> Int64[Tensor, "n k"]:
    """The k rows of the largest inner products, largest first; exact, a part of the products at a time."""
    refuse_few_rows(len(memory), k)
    found = []
    for part in torch.split(queries, QUERIES):
        starts = range(0, len(memory), neighbours.ROWS)
        tiles = ((start, memory[start : start + neighbours.ROWS]) for start in starts)
        found.append(neighbours.nearest([part], tiles, k)[0].rows)
    return torch.cat(found)


def refuse_few_rows(rows: int, k: int) -> None:
    """Raise DataError for a memory that has not k rows."""
    if k > rows:
        raise DataError(f"{k} neighbours of a memory of {rows} rows; ask for fewer, or remember more")


Search = Callable[[Tensor, int], Tensor]  # queries [n, d], k -> rows [n, k]


def search_by(
    name: Literal["exact", "faiss", "faiss-approximate"], memory: Float[Tensor, "rows d"]
) -> Search:
    """How neighbours are found: `nearest_rows`, or an index of faiss, on the CPU.

    faiss-approximate: rows in 512 cells (fewer for small memories), of which the 32 nearest are searched.
    Raises UsageError where faiss is not installed.
    """
    if name == "exact":
        return lambda queries, k: nearest_rows(queries, memory, k)
    try:
        faiss = import_module("faiss")
    except ImportError as error:
        raise UsageError(f"--search {name} needs faiss; use: pip install unspool[faiss]") from error
    rows, dim = memory.shape
    index = faiss.IndexFlatIP(dim)
    if name == "faiss-approximate":
        cells = max(1, min(CELLS, rows // ROWS_OF_A_CELL))
        index = faiss.IndexIVFFlat(index, dim, cells, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = min(SEARCHED, cells)
        index.train(memory.cpu().numpy())
    index.add(memory.cpu().numpy())

    def search(queries: Tensor, k: int) -> Tensor:
        if k > rows:
            return nearest_rows(queries, memory, k)  # says what is wrong
        found = torch.from_numpy(index.search(queries.cpu().numpy(), k)[1]).to(queries.device)
        short = (found < 0).any(dim=1)  # the cells that were searched hold fewer than k rows
        if bool(short.any()):
            found[short] = nearest_rows(queries[short], memory, k)
        return found

    return search


def voted(
    queries: Float[Tensor, "*n d"],
    keys: Float[Tensor, "*n k d"],
    values: Float[Tensor, "*n k classes"],
    temperature: float = TEMPERATURE,
) -> Float[Tensor, "*n classes"]:
    """Mean of the values, weighted by softmax(cosine / temperature)."""
    cosines = (normalize(keys, dim=-1) @ normalize(queries, dim=-1)[..., None])[..., 0]
    return weighted(cosines, values, temperature)


def weighted(
    cosines: Float[Tensor, "*n k"], values: Float[Tensor, "*n k classes"], temperature: float
) -> Float[Tensor, "*n classes"]:
    """Mean of the values, weighted by softmax(cosine / temperature)."""
    weights = (cosines / temperature).softmax(dim=-1)
    return (weights[..., None, :] @ values)[..., 0, :]


def labelled(
    queries: Float[Tensor, "m p d"],
    memory: Memory,
    *,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    search: Search | None = None,
) -> Float[Tensor, "m p classes"]:
    """Soft labels of every patch of the images, one at a time; `search` is exact by default."""
    search = search or search_by("exact", memory.features)
    found = []
    for image in queries:
        rows = search(image, k)
        found.append(voted(image, memory.features[rows], memory.labels[rows], temperature))
    return torch.stack(found)


# ------------------------------------------------------------------------------------ a memory on the disk


@dataclass(frozen=True, eq=False)
class Stored:
    """Labelled patches that need not fit into memory: they are read tile by tile."""

    features: Float16[np.ndarray, "rows d"]  # as encoded, of any length
    labels: Float32[np.ndarray, "rows classes"]  # shares, summing to 1

    def tiles(self, device: torch.device) -> Iterator[tuple[int, Float[Tensor, "_ d"]]]:
        """Features of length 1, float32, and the number of the first row of each tile."""
        for start in range(0, len(self.features), neighbours.ROWS):
            part = torch.from_numpy(np.array(self.features[start : start + neighbours.ROWS]))
            yield start, normalize(part.to(device).float(), dim=1)

    def held(self, device: torch.device) -> Memory:
        """All of it, for an index."""
        features = torch.cat([tile for _, tile in self.tiles(device)])
        return Memory(features, torch.from_numpy(np.array(self.labels)).to(device))


def looked_up(
    queries: list[Float[Tensor, "p d"]],
    memory: Stored,
    *,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    seen: Callable[[int], None] = lambda row: None,
) -> list[Float[Tensor, "p classes"]]:
    """`labelled`, of images that ask a stored memory together; exact, and the same in any company.

    `seen` is called with the first row of each tile, and may raise to stop.
    """
    refuse_few_rows(len(memory.features), k)
    device = queries[0].device

    def tiles() -> Iterator[tuple[int, Tensor]]:
        for start, tile in memory.tiles(device):
            seen(start)
            yield start, tile

    found = neighbours.nearest([normalize(image, dim=1) for image in queries], tiles(), k)
    return [
        weighted(
            best.products, torch.from_numpy(memory.labels[best.rows.cpu().numpy()]).to(device), temperature
        )
        for best in found
    ]


@dataclass(frozen=True)
class Needs:
    """Bytes that looking up takes, about."""

    fixed: int  # a tile of the memory, its products and the best of them
    image: int  # each image that asks: its queries and what they have found

    @property
    def least(self) -> int:
        """With one image at a time."""
        return self.fixed + self.image

    def images(self, memory: int) -> int:
        """How many can ask together within so many bytes. Raises UsageError naming the least."""
        if memory < self.least:
            raise UsageError(
                f"--memory {memory / 1e9:g}GB is too little to look labels up; the least that works is "
                f"--memory {-(-self.least // 10**6)}MB"
            )
        return (memory - self.fixed) // self.image


def needs(patches: int, dim: int, classes: int, k: int) -> Needs:
    """Of images of so many patches."""
    tile = 10 * neighbours.ROWS * dim  # float16, float32, and of length 1
    products = (4 + 4 + 12) * patches * neighbours.ROWS  # once more and with rows, where all may matter
    votes = 8 * patches * k * (classes + 4)
    return Needs(tile + products + votes, patches * (8 * dim + 36 * k + 4 * classes))


def enlarged(
    soft: Float[Tensor, "m p classes"], grid: tuple[int, int], size: tuple[int, int]
) -> UInt8[np.ndarray, "m H W"]:
    """Label maps: soft labels stretched bilinearly to `size`, then the likeliest class of every pixel."""
    maps = soft.transpose(1, 2).reshape(len(soft), -1, *grid)
    labels = [interpolate(each[None], size, mode="bilinear").argmax(dim=1)[0] for each in maps]
    return torch.stack(labels).to(torch.uint8).cpu().numpy()


def score(
    prediction: UInt8[np.ndarray, "m H W"], truth: Integer[np.ndarray, "m H W"], classes: int
) -> dict[str, ClusterScores]:
    """`incontext-voc`, and `incontext-voc-matched`: the released score, which matches classes to classes."""
    return {
        "incontext-voc": unmatched(prediction, truth, classes),
        "incontext-voc-matched": clustering(
            prediction, truth, "hungarian", clusters=classes, classes=classes
        ),
    }

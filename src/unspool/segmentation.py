"""The clusters of a video: of one window, of all windows so far under one numbering, of the whole.

"Betrayed by Attention" (Ding et al., ECCV 2024) clusters a video at once; that windows share frames, by whose
labels identities are carried over, is ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64, Integer
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from unspool.errors import UsageError
from unspool.ops.foreground import Totals, border_contact, means, standing_out, with_values
from unspool.ops.hierarchy import Tree, cut, joined

LabelMap = Integer[np.ndarray, "h w"]
LINK = 0.2  # IoU, in the shared frames, from which clusters of two windows are the same (ours)


@dataclass(frozen=True)
class Window:
    """The clusters of some frames, numbered by themselves."""

    labels: Integer[np.ndarray, "t h w"]
    count: int  # of clusters
    leaves: Integer[np.ndarray, "t h w"] | None
    tree: Tree | None
    cues: Mapping[str, Float32[np.ndarray, "t h w"]] = field(default_factory=dict)  # see `ops/foreground.py`


@dataclass(frozen=True)
class Numbers:
    """Clusters of all windows so far under one numbering."""

    parts: tuple[Integer[np.ndarray, "_ h w"], ...] = ()  # by window, frames that are shared only once
    count: int = 0

    def joined_by(
        self, labels: Integer[np.ndarray, "t h w"], count: int, shared: int
    ) -> tuple[Numbers, Int64[np.ndarray, " n"]]:
        """With another window, whose first frames are `shared`; and the number of each of its clusters."""
        if not self.parts:
            return Numbers((labels.astype(np.int32),), count), np.arange(count)
        last = len(self.parts) - 1
        while sum(map(len, self.parts[last:])) < shared:
            last -= 1
        before = np.concatenate(self.parts[last:])[-shared:]
        number = same(before, labels[:shared], count, self.count)
        more = number[labels[shared:]].astype(np.int32)
        return Numbers((*self.parts, more), max(self.count, int(number.max(initial=-1)) + 1)), number


def same(
    before: Integer[np.ndarray, "t h w"], after: Integer[np.ndarray, "t h w"], count: int, fresh: int
) -> Int64[np.ndarray, " n"]:
    """For each of `count` clusters of a window, the one that it continues, or a new number from `fresh` on.

    Both label the same tokens. Clusters are paired for the largest sum of IoU, and linked from LINK on.
    """
    known, index = np.unique(before, return_inverse=True)
    both = np.zeros((len(known), count))
    np.add.at(both, (index.ravel(), after.ravel()), 1)
    iou = both / (both.sum(1, keepdims=True) + both.sum(0) - both)
    old, new = linear_sum_assignment(-iou)
    linked = iou[old, new] >= LINK
    number = np.full(count, -1)
    number[new[linked]] = known[old[linked]]
    number[number < 0] = fresh + np.arange(int((number < 0).sum()))
    return number


@dataclass(frozen=True)
class Carried:
    """What is known after some windows."""

    clusters: Numbers = field(default_factory=Numbers)
    leaves: Numbers = field(default_factory=Numbers)
    joins: tuple[Tensor, ...] = ()
    heights: tuple[Tensor, ...] = ()
    every: int = 0  # frames from one key frame to the next, of all windows; 0: before the first
    cues: Mapping[str, Totals] = field(default_factory=dict)  # of each cluster so far

    @property
    def frames(self) -> int:
        """How many there are labels of."""
        return sum(map(len, self.clusters.parts))

    def with_window(self, window: Window, shared: int, *, linked: bool = True) -> Carried:
        """One more, whose first `shared` frames are known by then; by them identities are `linked`."""
        if linked:
            clusters, _ = self.clusters.joined_by(window.labels, window.count, shared)
        else:
            own = window.labels[shared if self.clusters.parts else 0 :].astype(np.int32)
            clusters = Numbers((*self.clusters.parts, own), max(self.clusters.count, window.count))
        known = replace(self, clusters=clusters, cues=self._with_cues(window, clusters.parts[-1]))
        return known._with_leaves(window, shared) if linked else known

    def _with_cues(
        self, window: Window, fresh: Integer[np.ndarray, "_ h w"]
    ) -> dict[str, Float64[np.ndarray, "2 _"]]:
        """With those of a window's last frames, whose clusters are `fresh`: each frame counts once."""
        nothing = np.zeros((2, 0))
        return {
            name: with_values(self.cues.get(name, nothing), fresh, values[-len(fresh) :])
            for name, values in window.cues.items()
        }

    def _with_leaves(self, window: Window, shared: int) -> Carried:
        if window.leaves is None or window.tree is None:
            return self
        leaves, number = self.leaves.joined_by(window.leaves, window.tree.leaves, shared)
        more = torch.from_numpy(number)[window.tree.joins]
        joins, heights = (*self.joins, more), (*self.heights, window.tree.heights)
        return replace(self, leaves=leaves, joins=joins, heights=heights)

    def finished(self, size: tuple[int, int]) -> Segmentation:
        """The whole video."""
        labels = np.concatenate(self.clusters.parts)
        cues = {name: means(totals) for name, totals in self.cues.items() if totals[1].any()}
        if not self.leaves.parts:
            return Segmentation(size, labels, None, None, cues)
        tree = joined(self.leaves.count, torch.cat(self.joins), torch.cat(self.heights))
        return Segmentation(size, labels, np.concatenate(self.leaves.parts), tree, cues)

    def kept(self) -> dict[str, Any]:
        """As tensors and numbers, for a file."""
        parts = {"clusters": self.clusters, "leaves": self.leaves}
        labels = {name: _small(of) for name, of in parts.items() if of.parts}
        counts = {name: of.count for name, of in parts.items()}
        tree = {"joins": list(self.joins), "heights": list(self.heights)}
        cues = {name: torch.from_numpy(totals) for name, totals in self.cues.items()}
        return {"labels": labels, "counts": counts, "every": self.every, "cues": cues, **tree}

    @staticmethod
    def recalled(kept: Mapping[str, Any]) -> Carried:
        """What `kept` gave."""
        labels = {name: (found.numpy().astype(np.int32),) for name, found in kept["labels"].items()}
        clusters, leaves = (
            Numbers(labels.get(name, ()), kept["counts"][name]) for name in ("clusters", "leaves")
        )
        cues = {name: totals.numpy() for name, totals in kept["cues"].items()}
        return Carried(clusters, leaves, tuple(kept["joins"]), tuple(kept["heights"]), kept["every"], cues)


def _small(numbers: Numbers) -> Tensor:
    """All labels, in as few bytes as they take."""
    kind = next(k for k in (np.uint8, np.int16, np.int32) if numbers.count <= np.iinfo(k).max)
    return torch.from_numpy(np.concatenate([part.astype(kind) for part in numbers.parts]))


@dataclass(frozen=True)
class Segmentation:
    """The objects of a video on the grid of its tokens; every cluster is one, the background's too."""

    size: tuple[int, int]  # H, W of the video, px
    labels: Integer[np.ndarray, "t h w"]  # clusters of the published procedure at tau, from 0
    leaves: Integer[np.ndarray, "t h w"] | None  # of the hierarchy
    tree: Tree | None
    means: Mapping[str, Float64[np.ndarray, " _"]] = field(default_factory=dict)  # of cues, by cluster

    @property
    def clusters(self) -> int:
        """How many there are, some perhaps without a token."""
        return int(self.labels.max(initial=-1)) + 1

    @property
    def cues(self) -> dict[str, Float64[np.ndarray, " ids"]]:
        """What tells an object from its ground (`ops/foreground.py`), by id: of cluster k at k+1."""
        found = {"border contact": border_contact(frame + 1 for frame in self.labels)}
        for name, known in self.means.items():
            found[name] = np.full(self.clusters + 1, np.nan)
            found[name][1 : len(known) + 1] = known[: self.clusters]
        return found

    def foreground(self, ids: Integer[np.ndarray, "t h w"] | None = None) -> int:
        """The id of a single object by all cues, without truth; 0 where there is nobody.

        `ids`: those that are left of the clusters' (k+1), where some are not.
        """
        left = self.labels + 1 if ids is None else ids
        areas = np.bincount(left.ravel(), minlength=self.clusters + 1)
        return standing_out(self.cues, areas, left.size)

    def at(self, height: float) -> Integer[np.ndarray, "t h w"]:
        """Clusters of the hierarchy with all joins up to `height` made: a look-up, nothing is computed.

        Raises UsageError where there is no hierarchy.
        """
        if self.tree is None or self.leaves is None:
            raise UsageError("this segmentation has no hierarchy; set segmenting.finest, e.g. to 0.5")
        found: Integer[np.ndarray, "t h w"] = cut(self.tree, height).numpy()[self.leaves]
        return found

    def masks(self, labels: Integer[np.ndarray, "t h w"] | None = None) -> Iterator[LabelMap]:
        """Label maps at the video's size, one frame at a time: cluster k is id k+1, 0 is nobody.

        Nearest, as published. 16 bits where an 8-bit PNG would not hold the ids (254).
        """
        chosen = self.labels if labels is None else labels
        kind = np.uint8 if chosen.max(initial=-1) + 1 <= 254 else np.uint16
        rows, columns = (
            np.arange(full) * grid // full for full, grid in zip(self.size, chosen.shape[1:], strict=True)
        )
        for frame in chosen:
            yield (frame[rows][:, columns] + 1).astype(kind)

"""What a segmentation leaves beside its masks: the merge tree as a file, and what the page needs to cut it.

videos/NAME/hierarchy.npz   labels, leaves `[t, h, w]` on the grid; joins, heights; frames; height, width; tau
data/NAME.tree/tree.js      joins and heights, and which key frames tell where they attend
data/NAME.tree/leaves-000.js      run-length leaves on the grid, by chunks of frames
data/NAME.tree/attention-000.js   8-bit queries and keys of a key frame, by its place among the frames shown
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, Integer
from torch import Tensor

from unspool.display import CHUNK_FRAMES, encode_runs, label_runs
from unspool.errors import MaskError, UsageError
from unspool.masks import Mask, ids_in, read_truth
from unspool.ops.hierarchy import Tree, cut_into
from unspool.ops.refining import (
    Refining,
    Upsampling,
    bilinear,
    guided,
    largest_only,
    nearest,
    with_holes_filled,
    without_small,
)
from unspool.results import Json, read_done, write_script, written_whole
from unspool.segmentation import LabelMap, Segmentation
from unspool.segmenting import Image, KeyFrames

ATTENTION_BYTES = 48 << 20  # of all queries and keys of a video, as text; more would make pages slow
SHOWN_IDS = 30  # in a message
HALF = 0.5  # of its largest area: from there on an object is thought to be in view


# ------------------------------------------------------------------------------------------ the tree


def write_hierarchy(path: Path, found: Segmentation, frames: Sequence[int], tau: float) -> None:
    """Write labels, leaves and tree; `frames`: the numbers of the video's frames that were segmented."""
    content: dict[str, Any] = {
        "labels": _smallest(found.labels),
        "frames": np.asarray(frames, np.int64),
        "size": np.asarray(found.size, np.int64),
        "tau": np.float64(tau),
    }
    if found.tree is not None and found.leaves is not None:
        content["leaves"] = _smallest(found.leaves)
        content["joins"], content["heights"] = found.tree.joins.numpy(), found.tree.heights.numpy()
        content["count"] = np.int64(found.tree.leaves)
    with written_whole(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **content)


def _smallest(labels: Integer[np.ndarray, "t h w"]) -> Integer[np.ndarray, "t h w"]:
    return labels.astype(np.min_scalar_type(int(labels.max(initial=0))))


@dataclass(frozen=True)
class Hierarchy:
    """What `hierarchy.npz` holds."""

    labels: Integer[np.ndarray, "t h w"]
    frames: tuple[int, ...]  # numbers in the video
    size: tuple[int, int]  # H, W of the video, px
    tau: float
    leaves: Integer[np.ndarray, "t h w"] | None
    tree: Tree | None

    def ids(self, clusters: int) -> Integer[np.ndarray, "t h w"]:
        """The cut into so many clusters, as the page numbers it: the first leaf of a cluster, from 1.

        Raises UsageError where there is no hierarchy.
        """
        if self.tree is None or self.leaves is None:
            raise UsageError("this segmentation has no hierarchy to cut; segment with segmenting.finest set")
        parts = cut_into(self.tree, clusters).numpy()
        first = np.unique(parts, return_index=True)[1]
        found: Integer[np.ndarray, "t h w"] = (first[parts] + 1)[self.leaves]
        return found


def read_hierarchy(path: Path) -> Hierarchy:
    """The hierarchy of a result. Raises MaskError where there is none, or it cannot be read."""
    try:
        with np.load(path) as file:
            held = {name: file[name] for name in file.files}
        tree = None
        if "leaves" in held:
            joins, heights = torch.from_numpy(held["joins"]), torch.from_numpy(held["heights"])
            tree = Tree(int(held["count"]), joins, heights)
        height, width = held["size"].tolist()
        labels, frames = held["labels"], tuple(held["frames"].tolist())
        return Hierarchy(labels, frames, (height, width), float(held["tau"]), held.get("leaves"), tree)
    except (OSError, ValueError, KeyError) as error:
        raise MaskError(f"{path}: no readable hierarchy ({error}); run unspool segment again") from error


def refined_ids(found: Segmentation, how: Refining) -> Int64[Tensor, "t h w"]:
    """Ids on the grid of tokens that are left: cluster k is id k+1, 0 nobody."""
    ids = torch.from_numpy(found.labels.astype(np.int64) + 1)
    ids = without_small(ids, how.smallest)
    return largest_only(ids, how.largest) if how.largest else ids


def refined_masks(
    found: Segmentation, images: Iterable[Image], how: Refining, patch: float
) -> Iterator[tuple[Image, LabelMap]]:
    """Each image with its label map at the video's size, refined as asked; cluster k is id k+1, 0 nobody.

    `patch`: px of the video that a token covers; the guided filter looks as far.
    """
    if how == Refining():
        yield from zip(images, found.masks(), strict=True)
        return
    ids = refined_ids(found, how)
    kind = np.uint8 if int(ids.max()) <= 254 else np.uint16
    for image, frame in zip(images, ids, strict=True):
        whole = _upsampled(frame, image, found.size, how.upsampling, patch)
        whole = with_holes_filled(whole) if how.fill_holes else whole
        yield image, whole.numpy().astype(kind)


def _upsampled(frame: Tensor, image: Image, size: tuple[int, int], how: Upsampling, patch: float) -> Tensor:
    if how == "nearest":
        return nearest(frame, size)
    if how == "bilinear":
        return bilinear(frame, size)
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 255
    return guided(frame, pixels, max(1, round(patch)))


# -------------------------------------------------------------------------------------- for the page


@dataclass
class AttentionWriter:
    """Writes 8-bit queries and keys of key frames while a video is segmented; not of all where they are many.

    The page multiplies them again: A of a patch is the mean over heads of exp(q k scale - z).
    """

    home: Path  # data/NAME.tree
    expected: int  # key frames of the video, about
    shown: list[int] = field(default_factory=list)  # frames whose queries and keys are there
    seen: int = 0  # key frames so far

    @property
    def state(self) -> Json:
        """The arguments of a writer that goes on from here."""
        return {"shown": list(self.shown), "seen": self.seen}

    @property
    def files(self) -> list[Path]:
        """What is written so far."""
        return [self._path(frame) for frame in self.shown]

    def _path(self, frame: int) -> Path:
        return self.home / f"attention-{frame:06d}.js"

    def __call__(self, key_frames: KeyFrames) -> None:
        """Take the key frames of one window."""
        _, heads, count, channels = key_frames.queries.shape
        each = heads * count * (2 * channels + 4) * 4 // 3
        step = max(1, -(-self.expected * each // ATTENTION_BYTES))
        known = set(self.shown)
        wanted = [
            place
            for place, frame in enumerate(key_frames.frames)
            if (self.seen + place) % step == 0 and frame not in known
        ]
        self.seen += len(key_frames.frames)
        normalisers = _normalisers(key_frames, wanted)
        for place, z in zip(wanted, normalisers, strict=True):
            frame = key_frames.frames[place]
            content = {
                "window": key_frames.frames[0],
                "grid": list(key_frames.grid),
                "heads": heads,
                "scale": channels**-0.5,
                "queries": _eight_bits(key_frames.queries[place]),
                "keys": _eight_bits(key_frames.keys[place]),
                "z": _text(z.float().cpu().numpy().astype("<f4")),
            }
            write_script(self._path(frame), "attention", frame, content)
            self.shown.append(frame)


def _normalisers(key_frames: KeyFrames, wanted: Sequence[int]) -> list[Float[Tensor, "heads n"]]:
    """log sum exp of each query's products with the keys of all key frames of the window."""
    scale = key_frames.queries.shape[-1] ** -0.5
    return [
        torch.logsumexp(
            torch.stack([
                torch.logsumexp(key_frames.queries[place] @ keys.transpose(1, 2) * scale, dim=-1)
                for keys in key_frames.keys
            ]),
            dim=0,
        )
        for place in wanted
    ]  # fmt: skip


def _eight_bits(values: Float[Tensor, "heads n d"]) -> Json:
    """Each head's values as bytes -127..127 and what they are to be multiplied by."""
    steps = values.abs().amax(dim=(1, 2)).clamp(min=1e-12) / 127
    levels = (values / steps[:, None, None]).round().to(torch.int8)
    return {"levels": _text(levels.cpu().numpy()), "steps": steps.float().tolist()}


def _text(values: Any) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")


def write_tree(home: Path, found: Segmentation) -> Json | None:
    """Write the tree and its leaves for the page; returns what the page's record says of them."""
    if found.tree is None or found.leaves is None:
        return None
    for number, start in enumerate(range(0, len(found.leaves), CHUNK_FRAMES)):
        part = found.leaves[start : start + CHUNK_FRAMES]
        texts = [encode_runs(*label_runs(frame)) for frame in part]
        content = {"start": start, "count": len(part), "leaves": texts}
        write_script(home / f"leaves-{number:03d}.js", "leaves", number, content)
    tree = {
        "leaves": found.tree.leaves,
        "joins": found.tree.joins.flatten().tolist(),
        "heights": [round(height, 6) for height in found.tree.heights.tolist()],
    }
    write_script(home / "tree.js", "tree", tree)
    return {"leaves": found.tree.leaves, "fewest": found.tree.leaves - len(found.tree.heights)}


# --------------------------------------------------------------------------- objects as first masks


@dataclass(frozen=True)
class Chosen:
    """Objects of a segmentation that are to be tracked."""

    folder: Path
    name: str  # of the video in the result
    objects: tuple[tuple[int, ...], ...] = ()  # ids; those of one tuple become one object; (): all
    clusters: int | None = None  # ids of the cut into so many; None: of the masks

    def masks(self) -> dict[int, Mask]:
        """Each object in the first frame where it covers half of its largest area; ids 1, 2, ... as chosen.

        Without `objects` ids stay. Raises MaskError for an id that is nowhere.
        """
        hierarchy = read_hierarchy(self.home / "hierarchy.npz")
        groups = self.objects or tuple((i,) for i in _ids_of(self._of_frames(hierarchy)))
        number = [group[0] for group in groups] if not self.objects else list(range(1, len(groups) + 1))
        areas = np.zeros((len(groups), len(hierarchy.frames)), np.int64)
        for place, labels in enumerate(self._of_frames(hierarchy)):
            counts = np.bincount(labels.ravel())
            for row, group in enumerate(groups):
                areas[row, place] = sum(int(counts[i]) for i in group if i < len(counts))
        if not areas.any(axis=1).all():
            seen = _ids_of(self._of_frames(hierarchy))
            raise MaskError(self.why_absent(seen))
        entry = (areas >= np.maximum(HALF * areas.max(axis=1, keepdims=True), 1)).argmax(axis=1)
        given: dict[int, Mask] = {}
        for place, labels in enumerate(self._of_frames(hierarchy)):
            entering = [(number[row], groups[row]) for row in np.flatnonzero(entry == place)]
            if entering:
                given[hierarchy.frames[place]] = self._mask(labels, entering)
        return given

    @property
    def home(self) -> Path:
        """The video's folder in the result."""
        return self.folder / "videos" / self.name

    def _of_frames(self, hierarchy: Hierarchy) -> Any:
        """Label maps at the video's size, one at a time."""
        if self.clusters is None:
            for index in range(len(hierarchy.frames)):
                yield read_truth(self.home / "masks" / f"{index:05d}.png")
            return
        ids = hierarchy.ids(self.clusters)
        rows, columns = (
            np.arange(full) * grid // full
            for full, grid in zip(hierarchy.size, ids.shape[1:], strict=True)
        )  # fmt: skip
        for frame in ids:
            yield frame[rows][:, columns]

    def _mask(self, labels: Any, entering: Sequence[tuple[int, tuple[int, ...]]]) -> Mask:
        kind = np.uint8 if max(number for number, _ in entering) < 255 else np.uint16
        shown = np.zeros(labels.shape, kind)
        for number, group in entering:
            shown[np.isin(labels, group)] = number
        return Mask(shown, ids_in(shown), path=str(self.home / "masks"))

    def why_absent(self, known: Iterable[int]) -> str:
        """Which of the objects are none of the known ids, and what these are; empty where all are known."""
        known = set(known)
        absent = ["+".join(map(str, group)) for group in self.objects if not known & set(group)]
        there = ", ".join(map(str, sorted(known)[:SHOWN_IDS])) + (", ..." if len(known) > SHOWN_IDS else "")
        return f"{self.home}: holds no object {', '.join(absent)}; there are {there}" if absent else ""

    def known(self, done: Json) -> set[int]:
        """Ids to choose from; `done`: what the segmentation's `done.json` says."""
        if self.clusters is None:
            return {entry["id"] for entry in done["objects"]}
        return set(np.unique(read_hierarchy(self.home / "hierarchy.npz").ids(self.clusters)).tolist())


def _ids_of(frames: Any) -> tuple[int, ...]:
    found: set[int] = set()
    for labels in frames:
        found |= set(ids_in(labels))
    return tuple(sorted(found))


def parse_objects(text: str | None) -> tuple[tuple[int, ...], ...]:
    """`1,3+5` as ((1,), (3, 5)): those with a plus become one object. Raises UsageError for other texts."""
    if text is None:
        return ()
    try:
        groups = tuple(tuple(int(i) for i in group.split("+")) for group in text.split(","))
    except ValueError:
        groups = ()
    if not groups or min(i for group in groups for i in group) < 1:
        raise UsageError(f"--objects {text}: expected ids, e.g. --objects 1,3 or 1,3+5 for 3 and 5 as one")
    if len({i for group in groups for i in group}) < sum(map(len, groups)):
        raise UsageError(f"--objects {text}: an id stands there twice")
    return groups


def chosen_of(
    folder: Path, names: Sequence[str], objects: str | None, clusters: int | None
) -> list[Chosen | str]:
    """Per video, what is to be tracked; or, where the segmentation lacks it, the sentence that says so.

    Raises UsageError where the folder is no result, or was not made by `unspool segment`, and where no video
    of it holds what is chosen.
    """
    if not (folder / "run.json").is_file():
        raise UsageError(f"--from {folder}: no result folder (it holds no run.json)")
    groups = parse_objects(objects)
    found: list[Chosen | str] = []
    absent: list[str] = []
    for name in names:
        done = read_done(folder, name)
        if done is None or not (folder / "videos" / name / "hierarchy.npz").is_file():
            found.append(f"{folder}: holds no finished segmentation of '{name}'; run unspool segment on it")
        else:
            chosen = Chosen(folder, name, groups, clusters)
            why = chosen.why_absent(chosen.known(done))
            found.append(why or chosen)
            absent += [why] if why else []
    if absent and len(absent) == len(names):
        raise UsageError(absent[0])
    return found

"""Features of labelled pictures, encoded once and kept on disk: float16, memory-mapped, safe to be trusted.

FOLDER/KEY/{tokens.npy, ..., labels.npy, state.json}: the key is a digest of the encoder's weights, name and
precision, of the pictures, and of how they are shown. What has been kept is used only where the encoder still
gives the same features of a probe image, so that code that changed under the same weights is noticed.
Encoding goes on where it was stopped. Of processes that want the same features one encodes, the others wait.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from jaxtyping import UInt8
from torch import Tensor

from unspool.data.index import cache_folder
from unspool.data.pictures import Pictures, View, all_shown
from unspool.encoders import Encoder, encode_batches
from unspool.errors import OutputError, UsageError

BATCH = 16  # pictures encoded, then kept, at a time
ASKED_EVERY = 1.0  # s: whether to go on waiting for another process
PROBE = 7  # seed of the probe image
CLOSE = 2e-2  # of the probe's features, relative to the largest

Progress = Callable[[int, int], None]  # done, total; may raise to stop


@dataclass(frozen=True, eq=False)
class Kept:
    """Arrays on disk, one row per picture, or per pass and picture."""

    maps: dict[str, np.ndarray]  # name -> [n, c, h, w]: float16, attention float32
    labels: UInt8[np.ndarray, "n l l"]
    key: str

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, numbers: Any, name: str = "tokens") -> Tensor:
        """Some of them, float32."""
        return torch.from_numpy(np.array(self.maps[name][numbers], np.float32))


def kept_features(
    encoder: Encoder,
    source: Pictures,
    view: View,
    *,
    want: tuple[str, ...] = ("tokens",),
    passes: int = 1,
    folder: Path | None = None,
    progress: Progress = lambda done, total: None,
) -> Kept:
    """Features and labels of all pictures, from the disk where they are there; passes one after another.

    `folder`: where they are kept; default: in the cache. Raises UsageError for a size that the encoder does
    not take, OutputError where the disk is full.
    """
    if view.side % encoder.multiple:
        nearest = max(1, round(view.side / encoder.multiple)) * encoder.multiple
        raise UsageError(
            f"'{encoder.name}' takes sides that are multiples of {encoder.multiple} px, not {view.side}; "
            f"use --resolution {nearest}"
        )
    key = _key(encoder, source, view, want, passes)
    home = (folder or cache_folder() / "features") / key
    try:
        with _alone(home, lambda done: progress(done, passes * len(source))):
            return _filled(home, encoder, source, view, want, passes, progress)
    except OSError as error:
        raise OutputError.of(home, error) from error


@contextmanager
def _alone(home: Path, waiting: Callable[[int], None]) -> Iterator[None]:
    """No other process looks into this folder; while one does, `waiting` is told how much is there."""
    home.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(home.with_name(f".{home.name}.lock"))
    while True:
        try:
            lock.acquire(timeout=ASKED_EVERY)
            break
        except Timeout:
            waiting(int((_state(home) or {"done": 0})["done"]))
    try:
        yield
    finally:
        lock.release()


def bytes_kept(encoder: Encoder, source: Pictures, view: View, passes: int = 1) -> int:
    """On disk, of the tokens and the labels."""
    cells = (view.side // encoder.patch) ** 2
    return passes * len(source) * (2 * encoder.dim * cells + view.label_side**2)


def _key(encoder: Encoder, source: Pictures, view: View, want: tuple[str, ...], passes: int) -> str:
    network: Any = encoder
    dtype = next((str(p.dtype) for p in network.parameters()), "") if hasattr(network, "parameters") else ""
    of_encoder = [encoder.name, encoder.weights_hash, encoder.patch, encoder.dim, dtype]
    settings = [str(getattr(encoder, "std", "")), str(getattr(encoder, "positions", ""))]
    shown = [source.kind, len(source), source.digest, asdict(view), list(want), passes]
    return hashlib.sha256(json.dumps([of_encoder, settings, shown]).encode()).hexdigest()[:24]


def _filled(
    home: Path,
    encoder: Encoder,
    source: Pictures,
    view: View,
    want: tuple[str, ...],
    passes: int,
    progress: Progress,
) -> Kept:
    probe = _probe(encoder, view.side)
    state = _state(home)
    if state is None or not np.allclose(state["probe"], probe, atol=CLOSE * float(np.abs(probe).max())):
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        state = {"done": 0, "probe": probe.tolist()}
    total, done = passes * len(source), int(state["done"])
    arrays: dict[str, np.ndarray] = {}
    if done:
        arrays = {name: np.load(home / f"{name}.npy", mmap_mode="r+") for name in (*want, "labels")}
    views = _views(source, view, passes, done)
    while batch := list(islice(views, BATCH)):
        images = torch.stack([image for image, _ in batch])
        parts = list(encode_batches(encoder, images, want))
        found = {name: torch.cat([p[name] for p in parts]).float().cpu().numpy() for name in want}
        found["labels"] = torch.stack([labels for _, labels in batch]).numpy()
        for name, rows in found.items():
            if name not in arrays:
                arrays[name] = _created(home / f"{name}.npy", (total, *rows.shape[1:]), _dtype(name))
            arrays[name][done : done + len(batch)] = rows
            arrays[name].flush()  # type: ignore[attr-defined]
        done += len(batch)
        _note(home, {**state, "done": done})
        progress(done, total)
    maps = {name: np.load(home / f"{name}.npy", mmap_mode="r") for name in want}
    return Kept(maps, np.load(home / "labels.npy", mmap_mode="r"), home.name)


def _views(source: Pictures, view: View, passes: int, done: int) -> Iterator[tuple[Tensor, Tensor]]:
    first, start = divmod(done, len(source))
    for turn in range(first, passes):
        yield from all_shown(source, view, turn, start if turn == first else 0)


def _dtype(name: str) -> str:
    return {"labels": "uint8", "cls_attention": "float32"}.get(name, "float16")


def _created(path: Path, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)


def _probe(encoder: Encoder, side: int) -> np.ndarray:
    """A few numbers that tell what the encoder gives now."""
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(PROBE))
    tokens = encoder(image)["tokens"].float().cpu()
    return np.asarray(tokens[0, :: max(1, tokens.shape[1] // 32), 0].numpy())


def _state(home: Path) -> dict[str, Any] | None:
    try:
        state = json.loads((home / "state.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return state if isinstance(state, dict) and {"done", "probe"} <= set(state) else None


def _note(home: Path, state: dict[str, Any]) -> None:
    part = home / ".state.json.part"
    part.write_text(json.dumps(state), "utf-8")
    part.replace(home / "state.json")

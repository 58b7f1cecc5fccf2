"""Tiny training runs: a few small videos, a network of a few thousand weights, crops of 32 px."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from unspool.training.settings import resolve
from unspool.training.validation import HeldOut
from unspool.verbs.train import Order
from unspool.video import VideoWriter

SMALL = (
    "dul.clips=4",
    "dul.width=4",
    "dul.embedding=8",
    "dul.anchors=2",
    "dul.references=2",
    "augmentation.size=[32, 32]",
    "augmentation.short_side=[32, 40]",
)
HELD_OUT = HeldOut(clips=2, frames=4, height=48, width=64)
COMMAND = [sys.executable, "-m", "unspool", "train", "dul", "--device", "cpu", "--validate-every", "0"]
COMMAND += [word for setting in SMALL for word in ("--set", setting)]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

Report = Callable[[dict[str, Any]], None]


def write_noise(path: Path, frames: int = 8, seed: int = 0) -> Path:
    """A video of moving noise: enough to learn from for a moment."""
    rng = np.random.default_rng(seed)
    texture = rng.integers(0, 256, (60, 90, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    times = [Fraction(t, 10) for t in range(frames)]
    with VideoWriter(path, height=40, width=56, times=times, crf=20) as writer:
        for t in range(frames):
            writer.write(np.ascontiguousarray(texture[t : t + 40, 2 * t : 2 * t + 56]))
    return path


def write_videos(folder: Path, count: int = 6, frames: int = 8) -> Path:
    for number in range(count):
        write_noise(folder / f"clip{number}.mp4", frames, number)
    return folder


def write_ytvis(root: Path, videos: int, frames: int = 8) -> Path:
    """A YouTube-VIS tree of moving noise; every video has one object, which is never seen."""
    listed, annotations = [], []
    for number in range(videos):
        texture = np.random.default_rng(number).integers(0, 256, (60, 90, 3), dtype=np.uint8)
        names = [f"v{number}/{5 * t:05d}.jpg" for t in range(frames)]
        (root / "train/JPEGImages" / f"v{number}").mkdir(parents=True)
        for t, name in enumerate(names):
            Image.fromarray(texture[t : t + 40, t : t + 56]).save(root / "train/JPEGImages" / name)
        listed.append({"id": number, "file_names": names, "height": 40, "width": 56})
        annotations.append({"id": number, "video_id": number, "segmentations": [None] * frames})
    (root / "train.json").write_text(json.dumps({"videos": listed, "annotations": annotations}))
    return root


def order(folder: Path, *data: Path, settings: tuple[str, ...] = (), steps: int = 6, **more: Any) -> Order:
    """What the command would ask for; without validation unless `rhythm` says so."""
    from unspool.training import Rhythm
    from unspool.training.processes import Machines

    resolved = resolve("dul", None, None, [*SMALL, *settings], {"training.steps": steps})
    named: dict[str, Any] = {
        "machines": Machines("cpu"),
        "rhythm": Rhythm(validate_every=0),
        "held_out": HELD_OUT,
        **more,
    }
    return Order(resolved, tuple(map(str, data)), folder, **named)


def state(folder: Path, name: str = "last.pt") -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder / "checkpoints" / name)
    return found


def assert_equal_states(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Bit for bit: weights, statistics, optimiser, step."""
    assert first["step"] == second["step"]
    for part in ("learner", "optimiser"):
        torch.testing.assert_close(first[part], second[part], rtol=0, atol=0, equal_nan=True)


def read_lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]

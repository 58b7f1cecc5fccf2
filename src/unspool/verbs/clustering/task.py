"""What is clustered and how: data sets, all that decides the numbers, and the jobs that it is done in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from unspool.data.labelled import (
    Clip,
    LabelledSet,
    RenderedPart,
    labelled_davis,
    labelled_rendered,
    labelled_visor,
    labelled_voc,
    labelled_ytvos,
)
from unspool.encoders import load_encoder
from unspool.errors import UsageError
from unspool.protocols.clustering import HELD, Clustering
from unspool.results import Json
from unspool.tracking import resident

WHOLE = "data-set"  # name of the job that sees all videos at once
SHOWN_VIDEOS = 8  # of which there are pictures


@dataclass(frozen=True)
class Kind:
    """A data set as TimeT clusters it."""

    read: Callable[..., LabelledSet]
    frames: int  # of a clip
    protocols: tuple[str, ...]
    side: int = 224  # px of the encoder's input
    over: int = 200  # K of overclustering the whole


UNITS = ("cluster-frame", "cluster-clip", "overcluster-frame", "overcluster-clip")
SETS = ("cluster-dataset", "overcluster-dataset")
STRETCHED = ("cluster-voc-k21-timet", "overcluster-voc-k500-timet")  # 16 times the points: only when named
KINDS = {
    "davis17": Kind(labelled_davis, 16, UNITS + SETS),
    "ytvos": Kind(labelled_ytvos, 4, UNITS + SETS, over=500),
    "visor": Kind(labelled_visor, 4, UNITS),
    "voc": Kind(labelled_voc, 1, ("cluster-voc-k21", "overcluster-voc-k500"), side=448),
    "rendered": Kind(labelled_rendered, 16, UNITS + SETS),
}


@dataclass(frozen=True)
class Task:
    """All that decides the numbers, but the data."""

    folder: Path
    models: Mapping[str, str]  # by role: `model`, and `before` where two are compared
    protocols: Mapping[str, Clustering]  # by full name
    side: int  # px of the encoder's square input
    frames: int  # of a clip
    device: str = "auto"
    precision: str = "fp32"
    seed: int = 0  # of random encoders
    memory: int | None = None  # bytes of each process, all in all; decides no result

    def encoder(self, role: str) -> Any:
        """Loaded once in a process."""
        return _encoder(self.models[role], self.device, self.precision, self.seed)

    def of_unit(self, *units: str) -> dict[str, Clustering]:
        """Its protocols of these units."""
        return {name: how for name, how in self.protocols.items() if how.unit in units}


@lru_cache(maxsize=2)
def _encoder(model: str, device: str, precision: Any, seed: int) -> Any:
    return load_encoder(model, device=device, precision=precision, seed=seed)


def shown(task: Task) -> str:
    """The protocol that is drawn: of clips if there is one, so that colours are those of one clustering."""
    return next(iter(task.of_unit("clip") or task.of_unit("frame") or task.protocols))


# ------------------------------------------------------------------------------------------------ jobs


@dataclass(frozen=True)
class VideoJob:
    """The frames and clips of one video."""

    name: str
    video: Clip | RenderedPart
    task: Task
    drawn: bool

    @property
    def identity(self) -> Json:
        """Its files."""
        return {"files": _digest(self.video.files)}


@dataclass(frozen=True)
class SetJob:
    """All videos at once."""

    content: LabelledSet
    task: Task
    drawn: bool

    @property
    def name(self) -> str:
        """One for all."""
        return WHOLE

    @cached_property
    def identity(self) -> Json:
        """All files."""
        return {"files": _digest([video.files for video in self.content.videos])}


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


# ---------------------------------------------------------------------------------------------- memory


def room(videos: Sequence[Clip | RenderedPart], task: Task) -> int:
    """Bytes of features that a process may keep between passes: what its memory leaves, HELD at most.

    Raises UsageError naming the least that works.
    """
    if task.memory is None:
        return HELD
    encoder, longest = task.encoder("model"), max(min(len(v), task.frames) for v in videos)
    inside = getattr(encoder, "bytes_per_image", lambda height, width: 0)(task.side, task.side)
    clip = 4 * longest * (encoder.dim * (task.side // encoder.patch) ** 2 + 3 * task.side**2)
    dims = max(how.dims for how in task.protocols.values())
    points = max(
        longest * (how.side or task.side) ** 2
        if how.unit != "dataset"
        else min(HELD // (4 * dims), sum(len(v) for v in videos) * cells(how, task, encoder.patch))
        for how in task.protocols.values()
    )
    least = resident() + longest * inside + 3 * clip + 3 * 4 * dims * points
    if task.memory < least:
        raise UsageError(
            f"--memory: {task.memory / 1e9:.2f} GB for each process are too little; the least that works is "
            f"{-(-least // 10**7) / 100:.2f}GB each (less with fewer --frames or a lower --resolution)"
        )
    return int(min(HELD, task.memory - least))


def cells(how: Clustering, task: Task, patch: int) -> int:
    """Points of a frame."""
    return (task.side // patch) ** 2 if how.at == "tokens" else (how.side or task.side) ** 2

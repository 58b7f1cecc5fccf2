"""What `unspool eval incontext` plans and does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Literal

import numpy as np
import torch

from unspool.data.features import Kept, bytes_kept
from unspool.data.pictures import Pictures, View, pictures
from unspool.encoders import device_named
from unspool.errors import UsageError
from unspool.jobs import Estimate, Interrupted, Plan, Report, Stop
from unspool.metrics.matching import clustering_of_counts, unmatched_of_counts
from unspool.protocols.incontext import (
    NEIGHBOURS,
    TEMPERATURE,
    Memory,
    enlarged,
    labelled,
    memory_of,
    patch_labels,
    search_by,
)
from unspool.protocols.linear import confusion
from unspool.results import Json, safe_name
from unspool.verbs.heads.shared import (
    SHOWN,
    Settings,
    encoder_of,
    keep,
    model_record,
    refuse_without_classes,
    show_pictures,
    splits_of,
    write_scores,
)

MEMORY_ROWS = 1_024_000  # published: 102,400, 1,024,000 and 10,240,000
NOTES = {
    "identity": "predicted classes are scored as they are",
    "hungarian": "the released score: predicted classes are matched to true ones first",
}


@dataclass(frozen=True)
class InContext:
    """How labels are looked up."""

    rows: int = MEMORY_ROWS  # of the memory; 0: all patches
    passes: int = 1  # over the training pictures, each with other cuts and colours; published: 2
    neighbours: int = NEIGHBOURS
    temperature: float = TEMPERATURE
    side: int = 0  # px of the encoder's input; 0: 512, or 504 for patches of 14
    search: Literal["exact", "faiss", "faiss-approximate"] = "exact"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, valid in (
            ("rows", self.rows >= 0),
            ("passes", self.passes >= 1),
            ("neighbours", self.neighbours >= 1),
            ("search", self.search in ("exact", "faiss", "faiss-approximate")),
            ("temperature", self.temperature > 0),
        ):
            if not valid:
                raise UsageError(f"incontext.{name} = {getattr(self, name)!r} is out of range")

    def view(self, patch: int, *, remembered: bool) -> View:
        """How pictures are shown to the memory, or asked about."""
        side = self.side or 512 // patch * patch
        return View(side, side, (0.5, 2.0), jitter=0.5, seed=self.seed) if remembered else View(side, side)


@dataclass(frozen=True)
class InContextJob:
    """One memory to be filled and asked."""

    name: str
    folder: Path
    settings: Settings
    data: str
    how: InContext

    @property
    def identity(self) -> Json:
        """What is in the data."""
        return {"data": {split: source.digest for split, source in pictures(self.data).items()}}


def incontext_plan(
    *,
    output: Path | None,
    settings: Settings,
    data: str,
    rows: int,
    passes: int,
    neighbours: int,
    search: Literal["exact", "faiss", "faiss-approximate"],
) -> Plan:
    """`unspool eval incontext`: labels from a memory of labelled patches."""
    how = InContext(
        rows, passes, neighbours, side=settings.resolution or 0, search=search, seed=settings.seed or 0
    )
    sources = pictures(data)
    refuse_without_classes(data, sources)
    kind = sources["val"].kind
    folder = output or Path(f"unspool-eval-incontext-{kind}-{safe_name(settings.model)}")
    job = InContextJob("incontext", folder, settings, data, how)
    config = {
        "model": settings.model, "precision": settings.precision, "seed": settings.seed, "data": data,
        "incontext": asdict(how), "splits": splits_of(sources),
    }  # fmt: skip
    return Plan(
        "eval incontext",
        folder,
        config,
        [job],
        look_up,
        model=partial(model_record, settings),
        finish=partial(_finish, how, sources),
        estimate=partial(_estimate, settings, sources, how),
    )


def look_up(job: InContextJob, report: Report, stop: Stop) -> Json:
    """Encode, remember, ask, score."""
    started = perf_counter()
    sources, how, device = pictures(job.data), job.how, device_named(job.settings.device)
    patch, classes = encoder_of(job.settings).patch, sources["val"].classes
    remembered, asked = (how.view(patch, remembered=each) for each in (True, False))
    train = keep(job.settings, sources["train"], remembered, report, stop, passes=how.passes)
    val = keep(job.settings, sources["val"], asked, report, stop)
    memory = _filled(train, classes, how, patch, device)
    counts, first = np.zeros((classes, classes), np.int64), dict[int, np.ndarray]()
    for number, found in _predicted(val, memory, how, device):
        counts += confusion(found, np.asarray(val.labels[number : number + 1]), classes)
        if number < SHOWN:
            first[number] = found[0]
        if stop.is_set():
            raise Interrupted
    measured = {
        "identity": unmatched_of_counts(counts, classes).miou(),
        "hungarian": clustering_of_counts(counts, "hungarian", clusters=classes, classes=classes).miou(),
    }
    return show_pictures(
        job.folder,
        job.name,
        sources["val"],
        asked,
        first,
        seconds=perf_counter() - started,
        extra={
            "identity": job.identity,
            "measured": {name: round(value, 6) for name, value in measured.items()},
            "memory_rows": len(memory.features),
        },
    )


def _filled(train: Kept, classes: int, how: InContext, patch: int, device: torch.device) -> Memory:
    """Picture by picture, so that only the rows that stay are held."""
    generator = torch.Generator().manual_seed(how.seed)
    each = max(1, how.rows // len(train)) if how.rows else None
    parts = []
    for number in range(len(train)):
        features = train.rows([number]).flatten(2).transpose(1, 2)
        labels = patch_labels(torch.from_numpy(np.array(train.labels[[number]])), patch, classes)
        uniform = torch.rand(labels.shape[:2], generator=generator)
        part = memory_of(features, labels, rows=each, uniform=uniform)
        parts.append(part)
    features, labels = (torch.cat([getattr(p, name) for p in parts]) for name in ("features", "labels"))
    return Memory(features.to(device), labels.to(device))


def _predicted(
    val: Kept, memory: Memory, how: InContext, device: torch.device
) -> Iterator[tuple[int, np.ndarray]]:
    """The label map `[1, H, W]` of every picture."""
    height, width = val.maps["tokens"].shape[2:]
    search = search_by(how.search, memory.features)
    size = (val.labels.shape[1], val.labels.shape[2])
    for number in range(len(val)):
        queries = val.rows([number]).to(device).flatten(2).transpose(1, 2)
        soft = labelled(queries, memory, k=how.neighbours, temperature=how.temperature, search=search)
        yield number, enlarged(soft, (height, width), size)


def _finish(how: InContext, sources: Mapping[str, Pictures], folder: Path, done: list[Json]) -> str:
    more = {"notes": NOTES, "memory_rows": done[0]["memory_rows"], "settings": asdict(how)}
    more["splits"] = splits_of(sources)
    return write_scores(folder, f"incontext-{sources['val'].kind}", done, "identity", **more)


def _estimate(
    settings: Settings,
    sources: Mapping[str, Pictures],
    how: InContext,
    jobs: Sequence[InContextJob],
    workers: int,
) -> Estimate:
    encoder = encoder_of(settings)
    train, val = (how.view(encoder.patch, remembered=each) for each in (True, False))
    kept = bytes_kept(encoder, sources["train"], train, how.passes) + bytes_kept(encoder, sources["val"], val)
    patches = how.passes * len(sources["train"]) * (train.side // encoder.patch) ** 2
    rows = min(how.rows, patches) if how.rows else patches
    memory = 4 * rows * (encoder.dim + sources["val"].classes)
    return Estimate(
        f"{encoder.name}: a memory of about {rows} patches ({memory / 1e9:.2g} GB), {len(sources['val'])} "
        f"pictures to be scored; {kept / 1e9:.2g} GB of features in the cache"
    )

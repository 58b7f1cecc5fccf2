"""What `unspool eval incontext` plans and does."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Literal

import numpy as np
import torch

from unspool.data.features import Kept, bytes_kept
from unspool.data.pictures import Pictures, View, pictures
from unspool.encoders import device_named
from unspool.errors import OutputError, UsageError
from unspool.jobs import Estimate, Interrupted, Plan, Report, Stop
from unspool.metrics.matching import clustering_of_counts, unmatched_of_counts
from unspool.ops import neighbours
from unspool.options import size_in_bytes
from unspool.protocols.incontext import (
    NEIGHBOURS,
    TEMPERATURE,
    Stored,
    enlarged,
    labelled,
    looked_up,
    needs,
    patch_labels,
    rare_patches,
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
    pictures_of_classes,
    progress_of,
    show_pictures,
    splits_of,
    write_scores,
)

MEMORY_ROWS = 1_024_000  # published: 102,400, 1,024,000 and 10,240,000
TOGETHER = 64  # pictures that ask at once, at most: more spare nothing
MEMORY = 2 * 10**9  # bytes that looking up takes by default
RELEASED_STD = (0.229, 0.224, 0.255)  # as the released code has it; ImageNet's ends in 0.225
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
    normalisation: Literal["imagenet", "code"] = "imagenet"  # of colours; code: RELEASED_STD

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
    memory: int | None = None  # bytes that looking up may take; decides no result; None: MEMORY, faiss all

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
    memory: str | None = None,
    normalisation: Literal["imagenet", "code"] = "imagenet",
) -> Plan:
    """`unspool eval incontext`: labels from a memory of labelled patches."""
    side, seed = settings.resolution or 0, settings.seed or 0
    how = InContext(
        rows, passes, neighbours, side=side, search=search, seed=seed, normalisation=normalisation
    )
    settings = replace(settings, std=RELEASED_STD) if normalisation == "code" else settings
    sources = pictures_of_classes(data)
    kind = sources["val"].kind
    folder = output or Path(f"unspool-eval-incontext-{kind}-{safe_name(settings.model)}")
    allowed = None if memory is None else size_in_bytes(memory)
    job = InContextJob("incontext", folder, settings, data, how, allowed)
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
        estimate=partial(_estimate, settings, sources, how, allowed),
    )


def look_up(job: InContextJob, report: Report, stop: Stop) -> Json:
    """Encode, remember, ask, score."""
    started = perf_counter()
    sources, how, device = pictures(job.data), job.how, device_named(job.settings.device)
    patch, classes = encoder_of(job.settings).patch, sources["val"].classes
    remembered, asked = (how.view(patch, remembered=each) for each in (True, False))
    train = keep(job.settings, sources["train"], remembered, report, stop, passes=how.passes)
    val = keep(job.settings, sources["val"], asked, report, stop)
    counts, first = np.zeros((classes, classes), np.int64), dict[int, np.ndarray]()
    with memory_on_disk(job.folder / "memory") as folder:
        memory = filled(train, classes, how, patch, folder)
        for number, found in predicted(
            val, memory, how, device, job.memory, progress_of("looking up", report, stop)
        ):
            counts += confusion(found, np.asarray(val.labels[number : number + 1]), classes)
            if number < SHOWN:
                first[number] = found[0]
            if stop.is_set():
                raise Interrupted
        rows = len(memory.features)
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
            "memory_rows": rows,
        },
    )


@contextmanager
def memory_on_disk(folder: Path) -> Iterator[Path]:
    """An empty folder that is removed again; what a killed run left in it is removed first."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise OutputError.of(folder, error) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def filled(train: Kept, classes: int, how: InContext, patch: int, folder: Path) -> Stored:
    """Picture by picture, in files that are read again as they are needed."""
    generator = torch.Generator().manual_seed(how.seed)
    patches, dim = train.maps["tokens"][0, 0].size, train.maps["tokens"].shape[1]
    each = min(patches, max(1, how.rows // len(train))) if how.rows else patches
    shape = len(train) * each
    features = np.lib.format.open_memmap(folder / "features.npy", "w+", "float16", (shape, dim))
    labels = np.lib.format.open_memmap(folder / "labels.npy", "w+", "float32", (shape, classes))
    for number in range(len(train)):
        tokens = torch.from_numpy(np.array(train.maps["tokens"][number])).flatten(1).T
        shares = patch_labels(torch.from_numpy(np.array(train.labels[[number]])), patch, classes)
        uniform = torch.rand(shares.shape[:2], generator=generator)
        chosen = rare_patches(shares, each, uniform)[0] if how.rows else torch.arange(patches)
        rows = slice(number * each, (number + 1) * each)
        features[rows], labels[rows] = tokens[chosen].numpy(), shares[0, chosen].numpy()
    return Stored(features, labels)


def predicted(
    val: Kept,
    memory: Stored,
    how: InContext,
    device: torch.device,
    allowed: int | None,
    seen: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[tuple[int, np.ndarray]]:
    """The label map `[1, H, W]` of every picture; as many ask together as `allowed` bytes let.

    `seen` is called with tiles that are done and all there are. Raises UsageError naming the least memory.
    """
    height, width = val.maps["tokens"].shape[2:]
    size = (val.labels.shape[1], val.labels.shape[2])
    together, index = TOGETHER, None
    need = needs(height * width, memory.features.shape[1], memory.labels.shape[1], how.neighbours)
    if how.search == "exact":
        together = min(need.images(MEMORY if allowed is None else allowed), TOGETHER)
    else:
        _refuse_little(
            allowed, held_by_index(len(memory.features), memory.features.shape[1], memory.labels.shape[1])
        )
        index = memory.held(device)
        search = search_by(how.search, index.features)
    tiles = -(-len(memory.features) // neighbours.ROWS)
    for start in range(0, len(val), together):
        numbers = range(start, min(start + together, len(val)))
        queries = [val.rows([number]).to(device).flatten(2).transpose(1, 2)[0] for number in numbers]
        if index is None:
            how_far = partial(_seen_of_all, seen, start * tiles, len(numbers), tiles * len(val))
            found = looked_up(queries, memory, k=how.neighbours, temperature=how.temperature, seen=how_far)
        else:
            ask = partial(labelled, k=how.neighbours, temperature=how.temperature, search=search)
            found = [ask(image[None], index)[0] for image in queries]
        for number, soft in zip(numbers, found, strict=True):
            yield number, enlarged(soft[None], (height, width), size)


def _seen_of_all(seen: Callable[[int, int], None], before: int, pictures: int, total: int, row: int) -> None:
    seen(before + row // neighbours.ROWS * pictures, total)


def held_by_index(rows: int, dim: int, classes: int) -> int:
    """Bytes of a memory that faiss searches: as it is given, and as faiss keeps it."""
    return 4 * rows * (2 * dim + classes)


def _refuse_little(allowed: int | None, needed: int) -> None:
    if allowed is not None and allowed < needed:
        raise UsageError(
            f"--memory {allowed / 1e9:g}GB: faiss holds all rows at once; the least that works is --memory "
            f"{-(-needed // 10**6)}MB, with fewer --rows less; --search exact needs a part of that"
        )


def _finish(how: InContext, sources: Mapping[str, Pictures], folder: Path, done: list[Json]) -> str:
    more = {"notes": NOTES, "memory_rows": done[0]["memory_rows"], "settings": asdict(how)}
    more["splits"] = splits_of(sources)
    name = f"incontext-{sources['val'].kind}" + ("-std255" if how.normalisation == "code" else "")
    return write_scores(folder, name, done, "identity", **more)


def _estimate(
    settings: Settings,
    sources: Mapping[str, Pictures],
    how: InContext,
    allowed: int | None,
    jobs: Sequence[InContextJob],
    workers: int,
) -> Estimate:
    encoder, classes = encoder_of(settings), sources["val"].classes
    train, val = (how.view(encoder.patch, remembered=each) for each in (True, False))
    kept = bytes_kept(encoder, sources["train"], train, how.passes) + bytes_kept(encoder, sources["val"], val)
    patches = (train.side // encoder.patch) ** 2
    rows = how.passes * len(sources["train"]) * patches
    rows = min(how.rows, rows) if how.rows else rows
    need = needs(patches, encoder.dim, classes, how.neighbours)
    if how.search == "exact":
        together = min(need.images(MEMORY if allowed is None else allowed), TOGETHER, len(sources["val"]))
        peak = need.fixed + together * need.image
    else:
        peak = held_by_index(rows, encoder.dim, classes)
        _refuse_little(allowed, peak)
    kept += rows * (2 * encoder.dim + 4 * classes)
    return Estimate(
        f"{encoder.name}: a memory of about {rows} patches, {len(sources['val'])} pictures to be scored; "
        f"{kept / 1e9:.2g} GB on the disk, {peak / 1e9:.2g} GB to look up, beside the encoder's own"
    )

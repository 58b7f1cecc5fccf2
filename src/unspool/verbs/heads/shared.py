"""What evaluations on labelled pictures share: the encoder, its features, what the result folder holds.

Features are encoded once and kept in the cache; a job leaves its scores, and predictions beside the truth of
the first pictures, to look through on the page.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from unspool.data.features import Kept, kept_features
from unspool.data.pictures import Pictures, View, pictures, shown
from unspool.encoders import facts_of, load_encoder
from unspool.errors import UsageError
from unspool.jobs import Interrupted, Report, Stop
from unspool.metrics.labels import VOID
from unspool.results import Json, write_json, written_whole
from unspool.video_result import VideoResult

SHOWN = 60  # pictures on the page


@dataclass(frozen=True)
class Settings:
    """Options that evaluations on pictures share."""

    model: str = "dul-small"  # encoder: a name or a checkpoint file
    resolution: int | None = None  # px of the square that the encoder sees; None: the protocol's
    device: str = "auto"
    precision: str = "fp32"
    seed: int | None = None  # None: the protocol's
    std: tuple[float, float, float] | None = None  # that colours are divided by; None: the encoder's own


REPORTED_EVERY = 5.0  # s
OF_OBJECTS = ("davis17", "visor")  # kinds whose ids are no classes


@lru_cache(maxsize=2)
def encoder_of(settings: Settings) -> Any:
    """The encoder that the settings name."""
    precision: Any = settings.precision
    seed = settings.seed or 0
    return load_encoder(
        settings.model, device=settings.device, precision=precision, seed=seed, std=settings.std
    )


def model_record(settings: Settings) -> Json:
    """Facts of the encoder for `run.json`."""
    return {**facts_of(encoder_of(settings)), "device": settings.device}


def pictures_of_classes(data: str) -> dict[str, Pictures]:
    """The splits of `KIND:WHERE`. Raises UsageError for data whose ids mean nothing beyond their video."""
    if data.partition(":")[0] in OF_OBJECTS:
        raise UsageError(
            f"--data {data}: its ids are objects of their video, not classes; use voc:FOLDER, ytvos:FOLDER "
            "or rendered:N"
        )
    return pictures(data)


def progress_of(what: str, report: Report, stop: Stop) -> Callable[[int, int], None]:
    """Now and then, what is left; raises Interrupted when stopped."""
    started = last = perf_counter()

    def seen(done: int, total: int) -> None:
        nonlocal last
        if stop.is_set():
            raise Interrupted
        now = perf_counter()
        if now - last < REPORTED_EVERY:
            return
        last = now
        left = round((total - done) * (now - started) / max(done, 1))
        report({"event": "storing", "what": what, "done": done, "total": total, "seconds_left": left})

    return seen


def splits_of(sources: Mapping[str, Pictures]) -> Json:
    """What is learnt from and what is scored, for `run.json` and `scores.json`."""
    return {role: f"{source.split}, {len(source)} pictures" for role, source in sources.items()}


def keep(settings: Settings, source: Pictures, view: View, report: Report, stop: Stop, **more: Any) -> Kept:
    """Features of all pictures, with progress. Raises Interrupted when stopped; what is kept stays."""
    started = perf_counter()
    first: list[int] = []

    def progress(done: int, total: int) -> None:
        first.append(done)
        rate = (done - first[0]) / max(perf_counter() - started, 1e-6)
        left = round((total - done) / rate) if rate else 0
        report({"event": "storing", "what": "encoding", "done": done, "total": total, "seconds_left": left})
        if stop.is_set() and done < total:
            raise Interrupted

    return kept_features(encoder_of(settings), source, view, progress=progress, **more)


# ---------------------------------------------------------------------------------------------- results


def show_pictures(
    folder: Path,
    name: str,
    source: Pictures,
    view: View,
    maps: Mapping[int, np.ndarray],
    *,
    seconds: float,
    extra: Json,
    foreground: bool = False,
) -> Json:
    """Predictions beside the truth, as a video of one picture a second; returns its `done.json`.

    `foreground`: the truth is merged to one object.
    """
    side = view.label_side
    times = [Fraction(i) for i in range(len(maps))]
    shown_as = replace(view, side=side)
    with VideoResult(
        folder, name, source=source.kind, height=side, width=side, times=times, with_truth=True
    ) as result:
        for number, labels in maps.items():
            image, truth = shown(source[number], shown_as, number)
            pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
            true = truth.numpy()
            if foreground:
                true = np.where((true != 0) & (true != VOID), 1, true).astype(np.uint8)
            result.write(pixels, labels, true)
        return result.finish(seconds=seconds, extra=extra)


def first_pictures(parts: Iterable[tuple[slice, np.ndarray]], count: int = SHOWN) -> dict[int, np.ndarray]:
    """Label maps of the first pictures by number."""
    found: dict[int, np.ndarray] = {}
    for part, maps in parts:
        found.update(zip(range(part.start, min(part.stop, count)), maps, strict=False))
        if part.stop >= count:
            break
    return found


def write_scores(folder: Path, protocol: str, done: Sequence[Json], lead: str, **more: Any) -> str:
    """`scores.json` and `scores.csv` of all jobs; returns the sentence: the score named `lead` first."""
    by_name = {entry["name"]: entry["measured"] for entry in done}
    first = by_name[done[0]["name"]]
    table = {"protocol": protocol, "global": first, "sequences": by_name, **more}
    write_json(folder / "scores.json", table)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["protocol", "job", "score", "value"])
    for name, measured in by_name.items():
        writer.writerows([protocol, name, key, value] for key, value in measured.items())
    with written_whole(folder / "scores.csv") as part:
        part.write_text(out.getvalue(), "utf-8")
    others = ", ".join(f"{key} {100 * value:.1f}" for key, value in first.items() if key != lead)
    return f"{protocol}: {lead} {100 * first[lead]:.1f}" + (f" ({others})" if others else "")

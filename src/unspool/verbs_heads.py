"""What `unspool eval linear` plans and does, and what it shares with its like: labelled pictures.

Features are encoded once and kept in the cache; a job leaves its scores, and predictions beside the truth of
the first pictures, to look through on the page.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import lru_cache, partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from unspool.data.features import Kept, bytes_kept, kept_features
from unspool.data.pictures import Pictures, View, pictures, shown
from unspool.encoders import device_named, load_encoder
from unspool.errors import UsageError
from unspool.jobs import Estimate, Interrupted, Plan, Report, Stop
from unspool.protocols.linear import (
    RECIPES,
    Recipe,
    State,
    fresh,
    predicted,
    rebuilt,
    score,
    scores_of,
    trained,
)
from unspool.results import Json, VideoResult, safe_name, write_json, written_whole

SHOWN = 60  # pictures on the page


@dataclass(frozen=True)
class Settings:
    """Options that evaluations on pictures share."""

    model: str = "random-resnet18"  # encoder: a name or a checkpoint file
    resolution: int | None = None  # px of the square that the encoder sees; None: the protocol's
    device: str = "auto"
    precision: str = "fp32"
    seed: int | None = None  # None: the protocol's


@lru_cache(maxsize=1)
def encoder_of(settings: Settings) -> Any:
    """The encoder that the settings name."""
    precision: Any = settings.precision
    return load_encoder(settings.model, device=settings.device, precision=precision, seed=settings.seed or 0)


def model_record(settings: Settings) -> Json:
    """Facts of the encoder for `run.json`."""
    encoder = encoder_of(settings)
    names = ("name", "weights_hash", "dim", "patch")
    return {**{name: getattr(encoder, name) for name in names}, "device": settings.device}


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
) -> Json:
    """Predictions beside the truth, as a video of one picture a second; returns its `done.json`."""
    side = view.label_side
    times = [Fraction(i) for i in range(len(maps))]
    shown_as = replace(view, side=side)
    with VideoResult(
        folder, name, source=source.kind, height=side, width=side, times=times, with_truth=True
    ) as result:
        for number, labels in maps.items():
            image, truth = shown(source[number], shown_as, number)
            pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
            result.write(pixels, labels, truth.numpy())
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


# --------------------------------------------------------------------------------------- eval linear


@dataclass(frozen=True)
class HeadJob:
    """One head to be trained and scored."""

    name: str
    folder: Path
    settings: Settings
    data: str
    recipe: Recipe

    @property
    def identity(self) -> Json:
        """What is in the data."""
        return {"data": {split: source.digest for split, source in pictures(self.data).items()}}


def linear_plan(
    *, output: Path | None, settings: Settings, data: str, recipe: str, views: int | None, epochs: int | None
) -> Plan:
    """`unspool eval linear`: one head on frozen features."""
    if recipe not in RECIPES:
        raise UsageError(f"--recipe {recipe}: there are {', '.join(RECIPES)}")
    changes: dict[str, Any] = {
        "views": views,
        "epochs": epochs,
        "seed": settings.seed,
        "side": settings.resolution,
    }
    how = replace(RECIPES[recipe], **{k: v for k, v in changes.items() if v is not None})
    sources = pictures(data)
    kind = sources["val"].kind
    folder = output or Path(f"unspool-eval-{how.head}-{kind}-{safe_name(settings.model)}")
    job = HeadJob(recipe, folder, settings, data, how)
    protocol = f"{how.head}-{kind}"
    config = {
        "model": settings.model, "precision": settings.precision, "seed": settings.seed, "data": data,
        "protocol": protocol, "recipe": asdict(how),
    }  # fmt: skip
    return Plan(
        "eval linear",
        folder,
        config,
        [job],
        train_head,
        model=partial(model_record, settings),
        finish=partial(_finish_linear, protocol, how),
        estimate=partial(_estimate_linear, settings, sources, how),
    )


def train_head(job: HeadJob, report: Report, stop: Stop) -> Json:
    """Encode, train, score; goes on where it was stopped."""
    started = perf_counter()
    sources, how = pictures(job.data), job.recipe
    device = device_named(job.settings.device)
    train = keep(job.settings, sources["train"], how.learnt_from, report, stop, passes=how.views)
    val = keep(job.settings, sources["val"], how.scored_on, report, stop)
    classes = sources["val"].classes
    checkpoint = job.folder / "checkpoints" / f"{job.name}.pt"
    made_of = [train.key, val.key, asdict(how)]
    state = _continued(checkpoint, made_of) or fresh(how, train.maps["tokens"].shape[1], classes, device)

    def after(now: State) -> None:
        with written_whole(checkpoint) as part:
            torch.save({"made_of": made_of, "state": vars(now)}, part)
        if now.epoch % max(1, how.epochs // 10) == 0:
            text = f"epoch {now.epoch} of {how.epochs}: loss {now.losses[-1]:.4f}"
            report({"event": "note", "text": text})
        if stop.is_set() and now.epoch < how.epochs:
            raise Interrupted

    state = trained(train, val, classes, how, state, device, after)
    scored = {
        name: scores_of(weights, how, val, classes, device)
        for name, weights in (("mIoU", state.head), ("mIoU-best-on-val", state.best))
    }
    head = rebuilt(state.head, how, val, classes, device)
    extra = {
        "identity": job.identity,
        "measured": {name: round(score(each, how), 6) for name, each in scored.items()},
        "classes": {str(i): round(v, 6) for i, v in enumerate(scored["mIoU"].iou().tolist())},
        "losses": state.losses,
        "validated": state.validated,
    }
    return show_pictures(
        job.folder,
        job.name,
        sources["val"],
        how.scored_on,
        first_pictures(predicted(head, val, how.score_side, device)),
        seconds=perf_counter() - started,
        extra=extra,
    )


def _continued(checkpoint: Path, made_of: Any) -> State | None:
    """What an earlier run of the same features and recipe reached."""
    if not checkpoint.is_file():
        return None
    try:
        saved = torch.load(checkpoint, weights_only=True, map_location="cpu")
    except Exception:  # many kinds; a file that is not whole is one that is not there
        return None
    return State(**saved["state"]) if _plain(saved["made_of"]) == _plain(made_of) else None


def _plain(value: Any) -> Any:
    """Tuples as lists, all the way down."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _finish_linear(protocol: str, how: Recipe, folder: Path, done: list[Json]) -> str:
    entry = done[0]
    notes = {
        "mIoU": "the head after the last epoch",
        "mIoU-best-on-val": "the head that was best on the scored pictures; it has seen their labels",
        "views": f"{how.views} of each picture in {how.epochs} epochs",
    }
    more = {name: entry[name] for name in ("classes", "losses", "validated")}
    return write_scores(folder, protocol, done, "mIoU", notes=notes, **more)


def _estimate_linear(
    settings: Settings, sources: Mapping[str, Pictures], how: Recipe, jobs: Sequence[Any], workers: int
) -> Estimate:
    encoder = encoder_of(settings)
    kept = bytes_kept(encoder, sources["train"], how.learnt_from, how.views)
    kept += bytes_kept(encoder, sources["val"], how.scored_on)
    text = (
        f"{encoder.name}: {len(sources['train'])} pictures in {how.views} views to learn from, "
        f"{len(sources['val'])} to be scored; {kept / 1e9:.2g} GB of features in the cache, "
        f"{how.epochs} epochs"
    )
    return Estimate(text)

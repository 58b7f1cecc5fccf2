"""What `unspool eval linear` plans and does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from unspool.data.features import bytes_kept
from unspool.data.pictures import Pictures, pictures
from unspool.encoders import device_named
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
from unspool.results import Json, safe_name, written_whole
from unspool.verbs.heads.shared import (
    Settings,
    encoder_of,
    first_pictures,
    keep,
    model_record,
    pictures_of_classes,
    progress_of,
    show_pictures,
    splits_of,
    write_scores,
)


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
    sources = pictures_of_classes(data)
    kind = sources["val"].kind
    folder = output or Path(f"unspool-eval-{how.head}-{kind}-{safe_name(settings.model)}")
    job = HeadJob(recipe, folder, settings, data, how)
    protocol = f"{how.head}-{kind}"
    config = {
        "model": settings.model, "precision": settings.precision, "seed": settings.seed, "data": data,
        "protocol": protocol, "recipe": asdict(how), "splits": splits_of(sources),
    }  # fmt: skip
    return Plan(
        "eval linear",
        folder,
        config,
        [job],
        train_head,
        model=partial(model_record, settings),
        finish=partial(_finish_linear, protocol, how, sources),
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
    seen, heads = progress_of("scoring", report, stop), {"mIoU": state.head, "mIoU-best-on-val": state.best}

    def told_of(number: int) -> Callable[[int], None]:
        return lambda scored: seen(number * len(val) + scored, len(heads) * len(val))

    scored = {
        name: scores_of(weights, how, val, classes, device, told_of(number))
        for number, (name, weights) in enumerate(heads.items())
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


def _finish_linear(
    protocol: str, how: Recipe, sources: Mapping[str, Pictures], folder: Path, done: list[Json]
) -> str:
    entry = done[0]
    notes = {
        "mIoU": "the head after the last epoch",
        "mIoU-best-on-val": "the head that was best on the scored pictures; it has seen their labels",
        "views": f"{how.views} of each picture in {how.epochs} epochs",
    }
    more = {name: entry[name] for name in ("classes", "losses", "validated")} | {"splits": splits_of(sources)}
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

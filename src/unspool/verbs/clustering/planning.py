"""What `unspool eval clustering` will do: its options, its jobs, and what cannot be done."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from unspool.data.labelled import Clip, LabelledSet, RenderedPart, labelled_rendered
from unspool.encoders import facts_of
from unspool.errors import UsageError, counted
from unspool.jobs import Estimate, Plan
from unspool.options import read_toml, size_in_bytes
from unspool.protocols.clustering import PROTOCOLS, Clustering, full_name
from unspool.results import Json, safe_name
from unspool.verbs.clustering.running import cluster
from unspool.verbs.clustering.scores import finish
from unspool.verbs.clustering.task import (
    KINDS,
    SETS,
    SHOWN_VIDEOS,
    STRETCHED,
    Kind,
    SetJob,
    Task,
    VideoJob,
    cells,
    room,
)

SHORT = {"f": "cluster-frame", "c": "cluster-clip", "d": "cluster-dataset"}
OPTIONS = (
    "model", "before", "resolution", "protocol", "clusters", "seeds", "sample", "frames", "device",
    "precision", "seed", "memory",
)  # fmt: skip


def resolve_options(given: Json, config: Path | None) -> Json:
    """Arguments of `clustering_plan`, command line (`given`) over file. Raises UsageError for others."""
    table = {} if config is None else read_toml(config)
    if unknown := sorted(set(table) - set(OPTIONS)):
        near = difflib.get_close_matches(unknown[0], OPTIONS, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise UsageError(f"{config}: '{unknown[0]}' is no setting{hint} (there are {', '.join(OPTIONS)})")
    merged = {**table, **given}
    protocols = merged.pop("protocol", ())
    merged["protocols"] = (protocols,) if isinstance(protocols, str) else tuple(protocols)
    merged["encoder"] = merged.pop("model", "dul-small")
    return merged


def clustering_plan(
    *,
    output: Path | None,
    data: str,
    encoder: str,
    before: str | None = None,
    names: tuple[str, ...] = (),
    protocols: Sequence[str] = (),
    clusters: int | None = None,
    seeds: int = 5,
    sample: int = 0,
    frames: int | None = None,
    resolution: int | None = None,
    device: str = "auto",
    precision: str = "fp32",
    seed: int = 0,
    memory: str | int | None = None,
    workers: int = 1,
) -> Plan:
    """One job per video for frames and clips, one for the data set. Raises UsageError before any work."""
    named, kind, content = _data(data, names)
    if seeds < 1 or (frames is not None and frames < 1):
        raise UsageError(f"--seeds {seeds}, --frames {frames}: both must be 1 or more")
    chosen = [_protocol(p, named, kind) for p in protocols or kind.protocols]
    change: Json = {"seeds": tuple(range(seeds))} | ({} if clusters is None else {"clusters": clusters})
    hows = {}
    for name in chosen:
        own: Json = {"clusters": kind.over} if name == "overcluster-dataset" else {}
        how = replace(PROTOCOLS[name], **{**own, **change})
        how = replace(how, kmeans=replace(how.kmeans, sample=sample))
        hows[_label(name, how)] = how
    folder = output or Path(f"unspool-eval-clustering-{named}-{safe_name(encoder)}")
    models = {"model": encoder} | ({} if before is None else {"before": before})
    processes = 1 if workers == 1 else workers + 1
    each = None if memory is None else size_in_bytes(memory) // processes
    side, length = resolution or kind.side, frames or kind.frames
    task = Task(folder, models, hows, side, length, device, precision, seed, each)
    jobs: list[VideoJob | SetJob] = []
    if task.of_unit("frame", "clip"):
        jobs += [VideoJob(v.name, v, task, i < SHOWN_VIDEOS) for i, v in enumerate(content.videos)]
    if task.of_unit("dataset"):
        jobs.append(SetJob(content, task, not jobs))
    config = {k: v for k, v in asdict(task).items() if k not in ("folder", "device", "protocols", "memory")}
    config |= {"data": data, "videos": len(content.videos), "protocols": plain(hows)}
    return Plan(
        "eval clustering",
        folder,
        config,
        jobs,
        cluster,
        model=partial(_model_record, task),
        finish=partial(finish, task, content, [job.name for job in jobs]),
        estimate=partial(_estimate, content, task),
    )


def _data(data: str, names: tuple[str, ...]) -> tuple[str, Kind, LabelledSet]:
    named, colon, path = data.partition(":")
    if named not in KINDS or not colon:
        raise UsageError(f"--data {data}: expected KIND:PATH, KIND one of {', '.join(KINDS)} (rendered:N)")
    kind = KINDS[named]
    if named == "rendered":
        if not path.isdigit() or not int(path):
            raise UsageError(f"--data {data}: expected rendered:N, N clips, e.g. rendered:20")
        return named, kind, labelled_rendered(int(path))
    if not Path(path).is_dir():
        raise UsageError(f"--data {data}: no such folder {path}")
    return named, kind, kind.read(Path(path), names)


def _protocol(name: str, named: str, kind: Kind) -> str:
    full = SHORT.get(name, name)
    if full not in PROTOCOLS:
        raise UsageError(
            f"protocol '{name}' is unknown; there are {', '.join(PROTOCOLS)} (f, c, d for short)"
        )
    allowed = (*kind.protocols, *STRETCHED, *SETS) if named == "voc" else kind.protocols
    if full not in allowed:
        why = "its ids are local to a sequence" if named == "visor" else "it is made for other data"
        raise UsageError(f"protocol '{full}' cannot be used with {named}: {why}; use {', '.join(allowed)}")
    return full


def _label(name: str, how: Clustering) -> str:
    return name if "-voc-" in name else full_name(how)


def plain(hows: Mapping[str, Clustering]) -> Json:
    """As JSON, seeds as how many."""
    return {name: {**asdict(how), "seeds": len(how.seeds)} for name, how in hows.items()}


def _model_record(task: Task) -> Json:
    found = {}
    for role in task.models:
        encoder = task.encoder(role)
        if task.side % encoder.multiple:
            fits = max(1, task.side // encoder.multiple) * encoder.multiple
            raise UsageError(
                f"an input of {task.side} px does not fit '{encoder.name}', whose sides are multiples of "
                f"{encoder.multiple} px; use --resolution {fits}"
            )
        found[role] = facts_of(encoder)
    record: Json = {**found.pop("model"), "device": task.device}
    return record | found


def _estimate(content: LabelledSet, task: Task, jobs: Sequence[Any], workers: int) -> Estimate:
    grid = task.side // task.encoder("model").patch
    text = f"{content.card}; {grid}x{grid} tokens a frame, {', '.join(task.protocols)}"
    room(content.videos, task)
    for role in task.models:
        _enough_points(content.videos, task, task.encoder(role).patch)
    return Estimate(text)


def _enough_points(videos: Sequence[Clip | RenderedPart], task: Task, patch: int) -> None:
    """UsageError where what is clustered at once, the least of a protocol, has fewer points than clusters."""
    last = min((len(video) - 1) % task.frames + 1 for video in videos)  # frames of the shortest clip
    at_once = {"frame": 1, "clip": last, "dataset": sum(map(len, videos))}
    for name, how in task.protocols.items():
        points = at_once[how.unit] * cells(how, task, patch)
        if how.clusters > points:
            what = (
                "the data set"
                if how.unit == "dataset"
                else f"a {how.unit} of {counted(at_once[how.unit], 'frame')}"
            )
            raise UsageError(
                f"--clusters {how.clusters}: {name} clusters {what}, which has {points} {how.at}; use "
                f"--clusters {points} or fewer, a higher --resolution than {task.side}, or other --protocol"
            )

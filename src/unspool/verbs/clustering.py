"""`unspool eval clustering`: a job per video and one for the whole data set, and the scores they leave."""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from PIL import Image

from unspool.data.labelled import (
    Clip,
    LabelledSet,
    Pictures,
    RenderedPart,
    labelled_davis,
    labelled_rendered,
    labelled_visor,
    labelled_voc,
    labelled_ytvos,
)
from unspool.encoders import encode_batches, facts_of, load_encoder
from unspool.errors import DataError, UsageError
from unspool.jobs import Estimate, Interrupted, Plan, Report, Stop
from unspool.masks import VOID, display_colours, draw_overlay, resize_labels
from unspool.options import read_toml, size_in_bytes
from unspool.protocols.clustering import (
    HELD,
    NOTHING,
    PROTOCOLS,
    Clustering,
    Labelled,
    Score,
    full_name,
    pooled,
    score_clips,
)
from unspool.results import Json, safe_name, write_json, written_whole
from unspool.tracking import resident

SHORT = {"f": "cluster-frame", "c": "cluster-clip", "d": "cluster-dataset"}
SHOWN_VIDEOS, SHOWN_FRAMES, SHOWN_HEIGHT = 8, 6, 144  # of the pictures; px
WHOLE = "data-set"  # name of the job that sees all videos at once


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


# ----------------------------------------------------------------------------------------------- plan


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
        finish=partial(_finish, task, content, [job.name for job in jobs]),
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
    allowed = (*kind.protocols, *SETS) if named == "voc" else kind.protocols
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
    return Estimate(text)


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
        else min(HELD // (4 * dims), sum(len(v) for v in videos) * _cells(how, task, encoder.patch))
        for how in task.protocols.values()
    )
    least = resident() + longest * inside + 3 * clip + 3 * 4 * dims * points
    if task.memory < least:
        raise UsageError(
            f"--memory: {task.memory / 1e9:.2f} GB for each process are too little; the least that works is "
            f"{-(-least // 10**7) / 100:.2f}GB each (less with fewer --frames or a lower --resolution)"
        )
    return int(min(HELD, task.memory - least))


def _cells(how: Clustering, task: Task, patch: int) -> int:
    """Points of a frame."""
    return (task.side // patch) ** 2 if how.at == "tokens" else (how.side or task.side) ** 2


# ----------------------------------------------------------------------------------------------- work


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


class Encoded:
    """Clips as an encoder sees them, to be gone through several times; kept while there is room."""

    def __init__(
        self, clips: Sequence[Clip | RenderedPart], encoder: Any, task: Task, seen: Callable[[int], None]
    ) -> None:
        self.clips, self.encoder, self.task, self.seen = clips, encoder, task, seen
        self._kept: dict[int, Labelled] = {}
        self._bytes, self._room = 0, room(clips, task)

    def __iter__(self) -> Iterator[Labelled]:
        for index in range(len(self.clips)):
            yield self[index]

    def __getitem__(self, index: int) -> Labelled:
        if index in self._kept:
            return self._kept[index]
        clip = self.clips[index]
        pictures, truth = clip.read()
        found = Labelled(clip.name, _features(pictures, self.encoder, self.task.side), truth)
        size = found.features.nbytes + truth.nbytes
        if self._bytes + size < self._room:
            self._bytes += size
            self._kept[index] = found
        self.seen(len(clip))
        return found


@torch.inference_mode()
def _features(pictures: Pictures, encoder: Any, side: int) -> torch.Tensor:
    pixels = torch.from_numpy(np.ascontiguousarray(pictures)).movedim(3, 1).float() / 255
    pixels = torch.nn.functional.interpolate(pixels, (side, side), mode="bilinear", antialias=True)
    return torch.cat([found["tokens"].float() for found in encode_batches(encoder, pixels)])


def cluster(job: VideoJob | SetJob, report: Report, stop: Stop) -> Json:
    """Score one job under its protocols, with every model; returns what `done.json` says."""
    started, task = perf_counter(), job.task
    videos = [job.video] if isinstance(job, VideoJob) else list(job.content.videos)
    units = ("frame", "clip") if isinstance(job, VideoJob) else ("dataset",)
    clips = [part for video in videos for part in video.parts(task.frames)]
    total, done = sum(map(len, clips)) * len(task.models), [0]
    report({"event": "video", "video": job.name, "frames": total})

    def seen(frames: int) -> None:
        done[0] += frames
        report({"event": "frame", "video": job.name, "frame": min(done[0], total), "frames": total})
        if stop.is_set():
            raise Interrupted

    sketches = Sketches(task.folder / "pictures", clips) if job.drawn else None
    clustered, hows = dict[str, Any](), task.of_unit(*units)
    clock = Clock(job.name, total * len(hows), report, stop)
    for rank, role in enumerate(sorted(task.models)):
        encoded = Encoded(clips, task.encoder(role), task, seen)
        clustered[role] = {}
        for number, (name, how) in enumerate(hows.items()):
            draw = partial(sketches.add, role) if sketches and name == _shown(task) else None
            clustered[role][name] = _scored(encoded, how, draw, clock)
            clock.until(clock.total * (rank * len(hows) + number + 1) / (len(task.models) * len(hows)))
    pictures = sketches.write(tuple(task.models)) if sketches else []
    seconds = perf_counter() - started
    local = isinstance(job, SetJob) and not job.content.classes
    record = {
        "name": job.name,
        "frames": sum(map(len, clips)),
        "seconds": round(seconds, 3),
        "frames_per_second": round(total / seconds, 2),
        "warnings": [LOCAL] if local else [],
        "clustered": clustered,
        "shares": _shares(encoded),
        "pictures": pictures,
        "identity": job.identity,
    }
    write_json(task.folder / "videos" / job.name / "done.json", record)
    return record


class Clock:
    """Tells, once a second, how many frames are clustered; ends the work when asked to."""

    def __init__(self, video: str, total: int, report: Report, stop: Stop) -> None:
        self.video, self.total, self.report, self.stop = video, total, report, stop
        self.done, self.first, self.began, self.told = 0.0, 0.0, 0.0, 0.0

    def __call__(self, frames: float) -> None:
        """So many more, of all protocols and models together."""
        now = perf_counter()
        self.done += frames
        if not self.began:  # what came before, frames were read and encoded
            self.first, self.began, self.told = self.done, now, now
        if now - self.told >= 1 or self.done >= self.total - 1e-6:
            self.told, rate = now, max(self.done - self.first, 1e-6) / max(now - self.began, 1e-3)
            self.report(
                {
                    "event": "stage",
                    "video": self.video,
                    "stage": "clustering",
                    "done": min(round(self.done), self.total),
                    "total": self.total,
                    "frames_per_second": round(rate, 2),
                    "seconds_left": round(max(0.0, self.total - self.done) / rate),
                }
            )
        if self.stop.is_set():
            raise Interrupted

    def until(self, done: float) -> None:
        """A protocol is through, whatever it told."""
        self(max(0.0, done - self.done))


LOCAL = (
    "ids of this data set are objects of their own video; clustering all of it takes object 1 of every video "
    "for one class, as published, and the number means little"
)


def _shown(task: Task) -> str:
    """The protocol that is drawn: of clips if there is one, so that colours are those of one clustering."""
    return next(iter(task.of_unit("clip") or task.of_unit("frame") or task.protocols))


def _scored(encoded: Encoded, how: Clustering, draw: Any, progress: Callable[[float], None]) -> Json | None:
    """A score as JSON; None where all truth is void."""
    if how.unit != "dataset" and all((clip.truth == VOID).all() for clip in encoded):
        return None
    return asdict(score_clips(encoded, how, draw, progress))


def _shares(encoded: Encoded) -> Json:
    """Pixels of each id, and frames that have it."""
    pixels: dict[int, int] = {}
    frames: dict[int, int] = {}
    for clip in encoded:
        for labels in clip.truth:
            for id_, count in zip(*np.unique(labels, return_counts=True), strict=True):
                pixels[int(id_)] = pixels.get(int(id_), 0) + int(count)
                frames[int(id_)] = frames.get(int(id_), 0) + 1
    return {str(id_): [pixels[id_], frames[id_]] for id_ in sorted(pixels) if id_ != VOID}


class Sketches:
    """Strips of frames with their classes: as they are, and as clusters matched to them."""

    def __init__(self, folder: Path, clips: Sequence[Clip | RenderedPart]) -> None:
        self.folder = folder
        self._clips = {clip.name: clip for clip in reversed(clips)}  # the first clip of each video
        self._maps: dict[str, dict[str, list[Int64[np.ndarray, "t H W"]]]] = {}

    def add(self, role: str, unit: Labelled, classes: Int64[np.ndarray, "t H W"]) -> bool:
        """The unit's classes; whether more are wanted."""
        of_role = self._maps.setdefault(role, {})
        name = unit.name.partition(", frame ")[0]
        shown = of_role.setdefault(name, [])
        if sum(map(len, shown)) < len(self._clips[name]):
            shown.append(classes)
        return len(of_role) < SHOWN_VIDEOS

    def write(self, roles: Sequence[str]) -> list[Json]:
        """One strip per video and row: `NAME-truth.jpg`, `NAME-before.jpg`, `NAME-model.jpg`."""
        found = []
        for name in next(iter(self._maps.values()), {}):
            pictures, truth = self._clips[name].read()
            rows = {"truth": np.where(truth == VOID, 0, truth)}
            rows |= {role: np.concatenate(self._maps[role][name]) for role in sorted(roles)}
            for row, labels in rows.items():
                path = self.folder / f"{safe_name(name)}-{row}.jpg"
                with written_whole(path) as part:
                    Image.fromarray(_strip(pictures, labels)).save(part, "JPEG", quality=85)
            ids = sorted(set(np.unique(rows["truth"]).tolist()) - {0})
            found.append({"name": name, "file": safe_name(name), "rows": list(rows), "ids": ids})
        return found


def _strip(pictures: Pictures, labels: Int64[np.ndarray, "t H W"]) -> Any:
    height, width = pictures.shape[1:3]
    size = (SHOWN_HEIGHT, max(1, round(SHOWN_HEIGHT * width / height)))
    frames = np.unique(np.linspace(0, len(pictures) - 1, SHOWN_FRAMES).round().astype(int))
    colours = display_colours(set(np.unique(labels).tolist()) - {0})
    drawn = []
    for t in frames:
        image = np.asarray(Image.fromarray(pictures[t]).resize(size[::-1], Image.Resampling.BILINEAR))
        drawn.append(draw_overlay(image, resize_labels(labels[t], size), colours, opacity=0.6))
    return np.concatenate(drawn, axis=1)


# --------------------------------------------------------------------------------------------- scores


def _finish(task: Task, content: LabelledSet, jobs: Sequence[str], folder: Path, done: Sequence[Json]) -> str:
    table = score_table(task, content, done)
    table["missing"] = [name for name in jobs if name not in {entry["name"] for entry in done}]
    write_json(folder / "scores.json", table)
    with written_whole(folder / "scores.csv") as part:
        part.write_text(score_csv(table), "utf-8")
    return sentence(table)


def score_table(task: Task, content: LabelledSet, done: Sequence[Json]) -> Json:
    """The content of `scores.json`: means over units and seeds, their spread, classes, videos."""
    roles = {
        role: {name: pooled(parts) for name in task.protocols if (parts := _parts(done, role, name))}
        for role in sorted(task.models, reverse=True)
    }
    if not roles["model"]:
        raise DataError(NOTHING)
    seeds = len(next(iter(task.protocols.values())).seeds)
    return {
        "protocol": f"clustering, mean of {seeds} seeds",
        "data": content.card,
        "models": dict(task.models),
        "global": _means(roles["model"]),
        "table": {role: {n: _row(score) for n, score in scores.items()} for role, scores in roles.items()},
        "sequences": {entry["name"]: _of_video(task, entry) for entry in done if entry["name"] != WHOLE},
        "classes": _classes(roles, content, done),
        "shown": _shown(task),
        "pictures": [picture for entry in done for picture in entry["pictures"]],
    }


def _of_video(task: Task, entry: Json) -> Json:
    return _means({n: pooled(parts) for n in task.protocols if (parts := _parts([entry], "model", n))})


def _parts(done: Sequence[Json], role: str, name: str) -> list[Score]:
    found = [entry["clustered"][role][name] for entry in done if entry["clustered"][role].get(name)]
    return [
        Score(
            each["name"],
            each["units"],
            tuple(each["bg"]),
            tuple(each["nobg"]),
            {int(k): v for k, v in each["classes"].items()},
            {int(k): v for k, v in each["having"].items()},
        )
        for each in found
    ]


def _means(scores: Mapping[str, Score]) -> Json:
    found: Json = {}
    for name, score in scores.items():
        row = _row(score)
        found |= {f"{name}-{ending}": row[ending] for ending in ("bg", "nobg")}
    return found


def _row(score: Score) -> Json:
    """Mean and standard deviation over seeds."""
    row: Json = {"units": score.units}
    for ending, value in score.summary().items():
        short = ending.removeprefix(f"{score.name}-")
        row[short] = None if np.isnan(value) else round(value, 6)
    return row


def _classes(
    roles: Mapping[str, Mapping[str, Score]], content: LabelledSet, done: Sequence[Json]
) -> list[Json]:
    """Every class with its share of pixels, the frames that have it, and its IoU by protocol and role."""
    source = [entry for entry in done if entry["name"] == WHOLE] or done
    ids = sorted({int(id_) for entry in source for id_ in entry["shares"]})
    counts = {i: np.sum([entry["shares"].get(str(i), [0, 0]) for entry in source], axis=0) for i in ids}
    total = max(1, sum(int(count[0]) for count in counts.values()))
    return [
        {
            "id": i,
            "name": content.classes.get(i, "background" if i == 0 else f"object {i}"),
            "share": round(int(counts[i][0]) / total, 6),
            "frames": int(counts[i][1]),
            "iou": {
                role: {name: round(s.classes[i], 6) for name, s in scores.items() if i in s.classes}
                for role, scores in roles.items()
            },
        }
        for i in ids
    ]


def score_csv(table: Json) -> str:
    """`scores.json` as a flat table."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["model", "protocol", "class", "units", "bg", "bg-sd", "nobg", "nobg-sd", "iou"])
    columns = ("units", "bg", "bg-sd", "nobg", "nobg-sd")
    for role, scores in table["table"].items():
        for name, row in scores.items():
            writer.writerow([table["models"][role], name, "all", *(row[k] for k in columns), ""])
            for of_class in table["classes"]:
                if name in of_class["iou"][role]:
                    cells = ["", "", "", "", "", of_class["iou"][role][name]]
                    writer.writerow([table["models"][role], name, of_class["name"], *cells])
    return out.getvalue()


def sentence(table: Json) -> str:
    """The result for people, one line per protocol."""
    lines = []
    for name, row in table["table"]["model"].items():
        text = f"{name}: bg {_percent(row, 'bg')}, nobg {_percent(row, 'nobg')}, {row['units']} units"
        if earlier := table["table"].get("before", {}).get(name):
            text += f" (before: bg {_percent(earlier, 'bg')}, nobg {_percent(earlier, 'nobg')})"
        lines.append(text)
    if table["missing"]:
        lines.append(f"without {', '.join(table['missing'])}")
    return "\n".join(lines)


def _percent(row: Json, ending: str) -> str:
    spread = row[f"{ending}-sd"]
    return f"{100 * row[ending]:.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")

"""What `unspool segment` plans and does: settings, one pure function per video, what it leaves behind."""

from __future__ import annotations

import difflib
import shlex
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from fractions import Fraction
from functools import lru_cache, partial
from itertools import islice
from math import ceil
from pathlib import Path
from time import perf_counter
from typing import Any

from unspool.errors import UnspoolError, UnspoolWarning, UsageError
from unspool.inputs import default_folder, expand_inputs, names_of
from unspool.jobs import Estimate, Interrupted, Plan, Report, Stop
from unspool.masks import display_colours
from unspool.options import file_stamp, in_words, parse_single, read_toml, size_in_bytes
from unspool.results import Json, VideoResult
from unspool.video import open_video

SLACK = 1.1  # measurements of memory vary
COSINE_TAU, COSINE_FINEST = 0.1, 0.07  # ours, where features are clustered
SHIPPED_TAU = 2.5  # published: 1.0; this block tells more apart; chosen on clips that it learnt from

PALETTE = 96  # colours that the clusters of a cut share

# ----------------------------------------------------------------------------------------- settings


@dataclass(frozen=True)
class SegmentSettings:
    """Options of `segment`; `segmenting` holds fields of `unspool.segmenting.Segmenting`."""

    model: str = "dul-small"  # a correlator or an encoder: a name or a checkpoint file
    every: int = 1  # one frame of so many is segmented
    device: str = "auto"
    precision: str = "fp32"
    seed: int = 0
    memory: int | None = None  # bytes that the command may take in all
    segmenting: Json = field(default_factory=dict)  # single settings over the defaults
    refining: Json = field(default_factory=dict)  # fields of `unspool.ops.refining.Refining`
    processes: int = 1  # that share the memory

    @property
    def memory_each(self) -> int | None:
        """Bytes for one process."""
        return None if self.memory is None else self.memory // self.processes


def resolve_segment_settings(
    given: Json, config: Path | None = None, single: Sequence[str] = (), *, workers: int = 1
) -> SegmentSettings:
    """Command line (`given`, then `--set KEY=VALUE`) over config file over default.

    Keys that are no option are fields of `Segmenting` (`window`, `represent`, ...) or, below `clustering`, of
    `Clustering`; `tau`, `key_ratio` and `resolution` are short for some. Raises UsageError for any other.
    """
    merged: Json = {"segmenting": {}, "refining": {}}
    if config is not None:
        _merge(merged, read_toml(config), str(config))
    for text in single:
        _merge(merged, parse_single(text), f"--set {text}")
    _merge(merged, given, "command line")
    if merged.get("memory") is not None:
        merged["memory"] = size_in_bytes(merged["memory"])
    settings = SegmentSettings(**merged, processes=1 if workers == 1 else workers + 1)
    if settings.every < 1:
        raise UsageError(f"--every {settings.every}: at least 1, which segments all frames")
    _refining(settings)
    return settings


def _merge(merged: Json, table: Json, origin: str) -> None:
    from unspool.ops.refining import Refining  # noqa: PLC0415
    from unspool.segmenting import Segmenting  # noqa: PLC0415 (torch only when work starts)

    own = {f.name for f in fields(SegmentSettings)} - {"segmenting", "refining", "processes"}
    after = {f.name for f in fields(Refining)}
    inner = {f.name for f in fields(Segmenting)} - {"memory"}
    target = merged["segmenting"]
    for key, value in {**table.pop("segmenting", {}), **table.pop("refining", {}), **table}.items():
        if key in own:
            merged[key] = value
        elif key == "tau":
            target.setdefault("clustering", {})["tau"] = value
        elif key == "key_ratio":
            target["key_every"] = _stride(value)
        elif key == "resolution":
            target["resolution"] = _resolution(value)
        elif key == "clustering" and isinstance(value, dict):
            target.setdefault("clustering", {}).update(value)
        elif key in after:
            merged["refining"][key] = value
        elif key in inner:
            target[key] = value
        else:
            known = sorted(own | inner | after | {"tau", "key_ratio"})
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise UsageError(f"{origin}: '{key}' is no setting{hint} (there are {', '.join(known)})")


def _stride(ratio: Any) -> int:
    if not isinstance(ratio, int | float) or not 0 < ratio <= 1:
        raise UsageError(f"--key-ratio {ratio}: expected a share of the frames, 0..1, e.g. 0.1")
    return max(1, round(1 / ratio))


def _resolution(given: Any) -> list[int] | None:
    """Short and long side of `320`, `320x480`, `native`; long is 1.5 times short, as published."""
    if given == "native":
        return None
    sides = given if isinstance(given, list) else str(given).lower().split("x")
    try:
        short, long = (int(side) for side in (sides if len(sides) == 2 else (*sides, int(sides[0]) * 3 // 2)))
    except ValueError:
        short, long = 0, 0
    if min(short, long) < 1:
        raise UsageError(f"--resolution {given}: expected px, e.g. 320, or 320x480, or native")
    return sorted((short, long))


def represented(settings: SegmentSettings) -> str:
    """What is clustered: attention where a block has learnt, else features, unless it is said."""
    from unspool.encoders.correlator import holds_block  # noqa: PLC0415

    given: str | None = settings.segmenting.get("represent")
    return given or ("block" if holds_block(settings.model) else "features")


def segmenting_record(settings: SegmentSettings) -> Json:
    """All that decides clusters, spelt out; what `run.json` records and a rerun compares."""
    from unspool.encoders import SHIPPED  # noqa: PLC0415 (torch only when work starts)

    represent = represented(settings)
    changes: Json = {**settings.segmenting, "represent": represent}
    usual = {"tau": SHIPPED_TAU} if represent == "block" and settings.model in SHIPPED else {}
    if represent in ("features", "fused"):
        changes, usual = {"finest": COSINE_FINEST, **changes}, {"tau": COSINE_TAU}
    clustering = {"seed": settings.seed, **usual, **changes.pop("clustering", {})}
    record = asdict(_how({**changes, "clustering": clustering}))
    del record["memory"]
    return record


def _how(record: Json, memory: int | None = None) -> Any:
    """`Segmenting` of a record. Raises UsageError for an unknown field, and for a value out of range."""
    from unspool.ops.clustering import Clustering  # noqa: PLC0415
    from unspool.segmenting import Segmenting  # noqa: PLC0415

    changes = {**record}
    clustering = _fitting(Clustering(), changes.pop("clustering", {}), "clustering.")
    if isinstance(changes.get("resolution"), list):
        changes["resolution"] = tuple(changes["resolution"])
    changes = _fitting(Segmenting(), changes, "")
    if memory is not None:
        changes["memory"] = memory
    return Segmenting(**changes, clustering=Clustering(**clustering))


def _refining(settings: SegmentSettings) -> Any:
    from unspool.ops.refining import Refining  # noqa: PLC0415

    return Refining(**_fitting(Refining(), settings.refining, "refining."))


def _fitting(defaults: Any, changes: Json, prefix: str) -> Json:
    """The changes, if each is a field and of its default's kind."""
    names = [f.name for f in fields(defaults)]
    for key, value in changes.items():
        if key not in names:
            raise UsageError(f"setting '{prefix}{key}' is unknown; there are {', '.join(names)}")
        kind: Any = type(getattr(defaults, key))
        empty = value is None and key in ("finest", "resolution")
        fits = isinstance(value, (int, float) if kind is float else kind)
        if not (empty or fits) or (isinstance(value, bool) and kind is not bool):
            raise UsageError(f"setting '{prefix}{key}' = {value!r}: expected {kind.__name__}")
    return changes


# -------------------------------------------------------------------------------------------- model


@lru_cache(maxsize=1)
def _correlator(model: str, device: str, precision: Any, seed: int) -> Any:
    from unspool.encoders import load_encoder  # noqa: PLC0415
    from unspool.encoders.correlator import holds_block, load_correlator, untrained  # noqa: PLC0415

    if holds_block(model):
        return load_correlator(model, device=device, precision=precision)
    return untrained(load_encoder(model, device=device, precision=precision, seed=seed), seed=seed)


def _model_of(settings: SegmentSettings) -> Any:
    return _correlator(settings.model, settings.device, settings.precision, settings.seed)


def _model_record(settings: SegmentSettings) -> Json:
    """Facts of the model for `run.json`: the hash is that of encoder and block together."""
    from unspool.encoders import facts_of  # noqa: PLC0415
    from unspool.encoders.checkpoints import weights_hash  # noqa: PLC0415
    from unspool.encoders.correlator import holds_block  # noqa: PLC0415

    correlator = _model_of(settings)
    return {
        **facts_of(correlator.encoder),
        "weights_hash": weights_hash(correlator),
        "block": "learnt" if holds_block(settings.model) else "random",
        "device": settings.device,
    }


# ------------------------------------------------------------------------------------ one video's job


@dataclass(frozen=True)
class SegmentJob:
    """One video to cut into objects, and where the result goes."""

    name: str
    source: str
    folder: Path
    settings: SegmentSettings
    segmenting: Json

    @property
    def identity(self) -> Json:
        """The file with size and time stamp: what a rerun must find unchanged."""
        return {"video": file_stamp(self.source)}


class Some:
    """One frame of so many of a video, and at most `most`."""

    def __init__(self, video: Any, every: int, most: int | None = None) -> None:
        self.video, self.every = video, every
        self.stop = len(video) if most is None else min(len(video), most * every)
        self.name: str = video.name
        self.height: int = video.height
        self.width: int = video.width

    def __len__(self) -> int:
        return (self.stop + self.every - 1) // self.every

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.video), 0, self.stop, self.every)

    @property
    def times(self) -> Sequence[Fraction]:
        """Of the frames that are left, s."""
        found: Sequence[Fraction] = list(self.video.times)[: self.stop : self.every]
        return found


def segment_video(job: SegmentJob, report: Report, stop: Stop) -> Json:
    """Segment one video and write its part of the result; returns `done.json`.

    Raises VideoError or OutputError for what is wrong with this video, Interrupted when stopped.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UnspoolWarning)
        return _segment_video(job, report, stop, caught)


def _segment_video(
    job: SegmentJob, report: Report, stop: Stop, caught: list[warnings.WarningMessage]
) -> Json:
    from unspool.segmenting import segment  # noqa: PLC0415
    from unspool.segments import AttentionWriter, refined_masks, write_hierarchy, write_tree  # noqa: PLC0415

    started = perf_counter()
    correlator, identity = _model_of(job.settings), job.identity
    clock = _Clock(job, report, stop)
    with open_video(job.source) as whole:
        video = Some(whole, job.settings.every)
        how = _how(job.segmenting, _memory_for_clustering(job.settings, video, correlator, job.segmenting))
        report({"event": "video", "video": job.name, "frames": len(video), "notes": []})
        with VideoResult(
            job.folder,
            job.name,
            source=job.source,
            height=video.height,
            width=video.width,
            times=video.times,
            audio_from=job.source,
            pixel_aspect=whole.pixel_aspect,
        ) as result:
            page = job.folder / "data" / f"{job.name}.tree"
            attention = AttentionWriter(page, -(-len(video) // how.keys(len(video))))
            clock.total = len(video)
            found = segment(video, correlator, how, progress=clock, attended=attention)
            clock.begin("writing")
            refining = _refining(job.settings)
            patch = video.height / found.labels.shape[1]
            for image, labels in refined_masks(found, video, refining, patch):
                result.write(image, labels)
                clock("writing", 1)
            frames = range(0, len(found.labels) * job.settings.every, job.settings.every)
            write_hierarchy(result.home / "hierarchy.npz", found, frames, how.clustering.tau)
            tree = write_tree(page, found)
            result.close()
            return result.finish(
                seconds=perf_counter() - started,
                warnings=list(
                    dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, UnspoolWarning))
                ),
                extra={
                    "identity": identity,
                    "clusters": found.clusters,
                    "largest": found.largest + 1,
                    "every": job.settings.every,
                    "refining": asdict(refining),
                    "grid": list(found.labels.shape[1:]),
                    "timings": {**clock.seconds, "write": round(result.seconds_writing, 3)},
                },
                page={"segments": for_page(job, found, tree, attention.shown, how)},
            )


def for_page(job: SegmentJob, found: Any, tree: Json | None, shown: Sequence[int], how: Any) -> Json:
    """What the page says of a segmentation, and why it lacks what it lacks."""
    why = "" if shown else f"'{how.represent}' was clustered, which has no queries and keys"
    return {
        "tau": how.clustering.tau,
        "grid": list(found.labels.shape[1:]),
        "tree": tree,
        "attention": list(shown),
        "why_not": why,
        "every": job.settings.every,
        "colours": [f"#{bytes(c).hex()}" for c in display_colours(range(1, PALETTE + 1)).values()],
        "track": ["unspool", "track", job.source],
        "from": str(job.folder),
    }


STAGES = {"encode": "encoding", "cluster": "clustering"}


class _Clock:
    """Tells of progress by stage, keeps their seconds, and ends the work when asked to."""

    def __init__(self, job: SegmentJob, report: Report, stop: Stop) -> None:
        self.job, self.report, self.stop = job, report, stop
        self.total = 0
        self.done: dict[str, float] = {}
        self.seconds: dict[str, float] = {}
        self.last = perf_counter()

    def begin(self, stage: str) -> None:
        """What passed until here belongs to no stage."""
        self.last = perf_counter()
        self.done[stage] = 0

    def __call__(self, stage: str, frames: float) -> None:
        """So many more frames are through a stage."""
        now = perf_counter()
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + now - self.last, 3)
        self.last = now
        done = self.done[stage] = min(self.total, self.done.get(stage, 0) + frames)
        rate = done / max(self.seconds[stage], 1e-3)
        self.report(
            {
                "event": "stage",
                "video": self.job.name,
                "stage": STAGES.get(stage, stage),
                "done": int(done + 1e-6),
                "total": self.total,
                "frames_per_second": round(rate, 2),
                "seconds_left": round((self.total - done) / rate),
            }
        )
        if self.stop.is_set():
            raise Interrupted


# -------------------------------------------------------------------------------------------- verb


def segment_plan(*, output: Path | None, settings: SegmentSettings, inputs: Sequence[str]) -> Plan:
    """`unspool segment`: one job per video."""
    videos = expand_inputs(inputs)
    names = names_of(videos)
    folder = output or default_folder("segment", videos)
    segmenting = segmenting_record(settings)
    jobs = [
        SegmentJob(name, video, folder, settings, segmenting)
        for name, video in zip(names, videos, strict=True)
    ]
    config = {
        "model": settings.model,
        "every": settings.every,
        "precision": settings.precision,
        "seed": settings.seed,
        "segmenting": segmenting,
        "refining": asdict(_refining(settings)),
    }
    return Plan(
        "segment",
        folder,
        config,
        jobs,
        segment_video,
        model=partial(_model_record, settings),
        estimate=partial(_estimate, settings, segmenting),
        finish=_next_step,
    )


def _next_step(folder: Path, done: list[Json]) -> str:
    """What was found, and how to go on, e.g. with the object that covers most."""
    counts = ", ".join(f"{entry['name']}: {len(entry['objects'])} objects" for entry in done)
    entry = next((e for e in done if e.get("largest") in [o["id"] for o in e["objects"]]), None)
    if entry is None:
        return counts
    words = ["unspool", "track", entry["source"], "--from", str(folder), "--objects", str(entry["largest"])]
    track = shlex.join(words)
    return f"{counts}\nChoose on the page what to carry at full frame rate; the largest alone: {track}"


def _estimate(
    settings: SegmentSettings, segmenting: Json, jobs: Sequence[SegmentJob], workers: int
) -> Estimate:
    """Frames, time and peak memory in one line: a blank frame is encoded, clustering tried on small frames.

    Raises UsageError naming the least memory that works where the settings allow less.
    """
    correlator = _model_of(settings)
    frames, seconds, peak, unreadable = 0, [0.0], 0, []
    measured: dict[tuple[int, int], float] = {}
    for job in jobs:
        try:
            with warnings.catch_warnings(action="ignore"), open_video(job.source) as whole:
                video = Some(whole, settings.every)
                need = _needs(video, correlator, segmenting)
                size = (video.height, video.width)
                if size not in measured:
                    measured[size] = _seconds_per_frame(whole, video, correlator, segmenting)
        except UsageError:
            raise
        except UnspoolError as error:
            unreadable.append((job.name, str(error)))
            continue
        _memory_for_clustering(settings, video, correlator, segmenting)
        frames += len(video)
        seconds.append(len(video) * measured[size])
        own = settings.memory_each
        peak = max(peak, sum(need) if own is None else min(own, need[0] + _how(segmenting).memory))
    took = max(sum(seconds), max(seconds) * min(workers, len(jobs)))
    text = (
        f"{correlator.encoder.name}: {frames} frames, about {in_words(took)}, "
        f"peak memory about {settings.processes * peak / 1e9:.1f} GB"
    )
    return Estimate(text, tuple(unreadable))


def _shape(video: Any, correlator: Any, segmenting: Json) -> tuple[int, int, int]:
    """Frames, tokens of a frame, and columns of a row of what is clustered, for one window."""
    from unspool.segmenting import input_size  # noqa: PLC0415

    how = _how(segmenting)
    frames = min(len(video), how.window)
    height, width = input_size(video.height, video.width, correlator.encoder, how)
    tokens = (height // correlator.encoder.patch) * (width // correlator.encoder.patch)
    keys = -(-frames // how.keys(frames))
    columns = {"block": keys * tokens, "attention": tokens}.get(how.represent, correlator.encoder.dim)
    return frames, tokens, columns


def _needs(video: Any, correlator: Any, segmenting: Json) -> tuple[int, int]:
    """Bytes beside clustering, and the least for clustering one of its windows."""
    from unspool.tracking import FRAMES_IN_HAND, resident  # noqa: PLC0415

    frames, tokens, columns = _shape(video, correlator, segmenting)
    how = _how(segmenting)
    inside = getattr(correlator.encoder, "bytes_per_image", lambda height, width: 0)
    maps = 3 * 4 * frames * tokens * correlator.encoder.dim
    pictures = 4 * FRAMES_IN_HAND * video.height * video.width
    beside = resident() + inside(video.height, video.width) + maps + pictures
    together = min(how.clustering.frames, frames) if how.clustering.algorithm == "windowed" else frames
    rows = together * tokens
    least = 4 * (2 * rows * columns + 2 * rows**2 + rows * min(columns, 4096))
    return beside, least * 3 // 2


def _memory_for_clustering(
    settings: SegmentSettings, video: Any, correlator: Any, segmenting: Json
) -> int | None:
    """What is left of the memory. Raises UsageError naming the least that works."""
    memory = settings.memory_each
    if memory is None:
        return None
    beside, least = _needs(video, correlator, segmenting)
    if memory < SLACK * (beside + least):
        need = ceil(settings.processes * SLACK * (beside + least) / 10**7) / 100
        raise UsageError(
            f"--memory {(settings.memory or 0) / 1e9:g}GB is too little for a video of "
            f"{video.width}x{video.height}; the least that works is --memory {need:.2f}GB (less with a lower "
            "--resolution, a shorter --window, a lower --key-ratio or fewer --workers)"
        )
    return int(memory / SLACK) - beside


def estimate_of_frames(whole: Any, settings: SegmentSettings) -> tuple[int, float]:
    """How many frames of a video are segmented, and the seconds that they take, about."""
    video = Some(whole, settings.every)
    each = _seconds_per_frame(whole, video, _model_of(settings), segmenting_record(settings))
    return len(video), len(video) * each


def _seconds_per_frame(whole: Any, video: Any, correlator: Any, segmenting: Json) -> float:
    """Of encoding and clustering: a blank frame is encoded; what clusters is timed on a few small frames."""
    import numpy as np  # noqa: PLC0415

    from unspool.segmenting import encoded, input_size  # noqa: PLC0415

    how = _how(segmenting)
    clustering = _products(video, correlator, segmenting) * _seconds_per_product(
        whole, correlator, segmenting
    )
    blank = np.zeros((video.height, video.width, 3), np.uint8)
    size = input_size(video.height, video.width, correlator.encoder, how)
    started = perf_counter()
    encoded(blank, correlator, size, how)
    return perf_counter() - started + clustering


TRIED_FRAMES, TRIED_TOKENS = 6, 160  # of a trial, and tokens of each of its frames


def _products(video: Any, correlator: Any, segmenting: Json) -> float:
    """What clustering costs for a frame, about: products of rows, fewer in larger frames.

    Near rows lie side by side and are added as one but at the edges of objects, whose share falls with the
    root of the tokens: from 160 to 2400 tokens of a frame this is within a factor of 1.5 of what is measured.
    """
    frames, tokens, columns = _shape(video, correlator, segmenting)
    how = _how(segmenting).clustering
    together = {"windowed": min(how.frames, frames) * tokens, "paper": frames * tokens}
    rows: int = together.get(how.algorithm, how.clusters) + correlator.encoder.dim
    return float(tokens ** (0.5 if how.algorithm == "windowed" else 1) * columns * rows)


def _seconds_per_product(whole: Any, correlator: Any, segmenting: Json) -> float:
    """Of a trial: the first frames, small. How many clusters there are, and the machine's load, tell."""
    from unspool.segmenting import input_size, segment  # noqa: PLC0415

    few = Some(whole, 1, TRIED_FRAMES)
    height, width = input_size(whole.height, whole.width, correlator.encoder, _how(segmenting))
    share = min(1.0, (TRIED_TOKENS * correlator.encoder.patch**2 / (height * width)) ** 0.5)
    sides = [max(1, round(share * side)) for side in sorted((height, width))]
    small = {**segmenting, "resolution": sides, "key_every": 1}
    last, took = [perf_counter()], {"encode": 0.0, "cluster": 0.0}

    def clock(stage: str, frames: float) -> None:
        now = perf_counter()
        took[stage] += now - last[0]
        last[0] = now

    try:
        with warnings.catch_warnings(action="ignore"):
            segment(few, correlator, _how(small), progress=clock)
    except UnspoolError:
        return 0.0  # the work itself will say what is wrong
    return took["cluster"] / (len(few) * _products(few, correlator, small))

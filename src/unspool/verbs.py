"""What each verb plans and does: `demo`, `track`, `eval tracking`.

A verb is a function from options to a `Plan`; its work is one pure function per video. The settings of a run
come together here: command line over config file over preset over default, and nothing else.
"""

from __future__ import annotations

import difflib
import shlex
import shutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache, partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np

from unspool.data.vos import VosSequence, davis, label_map, mask_trees
from unspool.errors import MaskError, UnspoolError, UnspoolWarning, UsageError
from unspool.inputs import STDIN, default_folder, expand_inputs, masks_of, names_of
from unspool.jobs import Estimate, Interrupted, Plan, Report, Stop
from unspool.masks import Mask, ids_in, write_mask
from unspool.options import digest, file_stamp, in_words, parse_single, read_toml, size_in_bytes
from unspool.protocols.tracking import (
    SequenceScores,
    curves,
    from_record,
    protocol_named,
    score_csv,
    score_sequence,
    score_standing_still,
    score_table,
    sentence,
    to_record,
    video_scores,
)
from unspool.rendered import RenderedClip, demo_scene
from unspool.results import Json, VideoResult, safe_name, write_json, written_whole
from unspool.video import Video, VideoWriter, open_video
from unspool.video.stream import Stream

if TYPE_CHECKING:
    from unspool.segments import Chosen
    from unspool.tracking import Needs

# ----------------------------------------------------------------------------------------- settings


@dataclass(frozen=True)
class Settings:
    """Options that `demo`, `track` and `eval tracking` share."""

    model: str = "dul-small"  # encoder: a name or a checkpoint file
    preset: str = "dul"  # whose protocol labels travel by: dul, crw, dino
    resolution: int | None = None  # px of the short side of the encoder's input; None: the preset's rule
    device: str = "auto"
    precision: str = "fp32"
    seed: int = 0
    memory: str | int | None = None  # what the command may take in all: bytes, or a text such as "4GB"
    tracking: Json = field(default_factory=dict)  # single settings over the preset's
    processes: int = 1  # that share the memory

    @property
    def memory_each(self) -> int | None:
        """Bytes for one process."""
        return None if self.memory is None else size_in_bytes(self.memory) // self.processes


def resolve_settings(
    given: Json, config: Path | None = None, single: Sequence[str] = (), *, workers: int = 1
) -> Settings:
    """Command line (`given`, then `--set KEY=VALUE`) over config file over default.

    Keys that are no field of `Settings` are fields of the preset: `propagation.top_k`, `features`, ...
    With several `workers`, each and the process that asks them takes an equal part of the memory.
    Raises UsageError naming the file, the unknown key and its neighbours.
    """
    merged: Json = {"tracking": {}}
    if config is not None:
        _merge(merged, read_toml(config), str(config))
    for text in single:
        _merge(merged, parse_single(text), f"--set {text}")
    _merge(merged, given, "command line")
    if merged.get("memory") is not None:
        merged["memory"] = size_in_bytes(merged["memory"])
    return Settings(**merged, processes=1 if workers == 1 else workers + 1)


def _merge(merged: Json, table: Json, origin: str) -> None:
    from unspool.tracking import Tracking  # noqa: PLC0415 (torch only when work starts)

    own = {f.name for f in fields(Settings)} - {"tracking", "processes"}
    of_preset = {f.name for f in fields(Tracking)}
    for key, value in {**table.pop("tracking", {}), **table}.items():
        if key in own:
            merged[key] = value
        elif key == "propagation" and isinstance(value, dict):
            merged["tracking"].setdefault("propagation", {}).update(value)
        elif key in of_preset:
            merged["tracking"][key] = value
        else:
            near = difflib.get_close_matches(key, sorted(own | of_preset), n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise UsageError(
                f"{origin}: '{key}' is no setting{hint} (there are {', '.join(sorted(own | of_preset))})"
            )


def _tracking_record(settings: Settings) -> Json:
    """The preset with all overrides, spelt out; what `run.json` records and a rerun compares."""
    from unspool.tracking import tracking_preset, with_settings  # noqa: PLC0415

    how = with_settings(tracking_preset(settings.preset), settings.tracking)
    if settings.resolution is not None:
        how = with_settings(how, {"short_side": settings.resolution})
    return asdict(how)


# ------------------------------------------------------------------------------------------ encoder


@lru_cache(maxsize=1)
def _encoder(model: str, device: str, precision: Any, seed: int, std: tuple[float, ...] | None) -> Any:
    from unspool.encoders import load_encoder  # noqa: PLC0415

    spread: Any = std
    return load_encoder(model, device=device, precision=precision, seed=seed, std=spread)


def _encoder_of(settings: Settings, tracking: Json) -> Any:
    """The encoder that the settings name, normalising images as the preset does."""
    std = tracking["normalisation_std"]
    spread = None if std is None else tuple(std)
    return _encoder(settings.model, settings.device, settings.precision, settings.seed, spread)


def _model_record(settings: Settings, tracking: Json) -> Json:
    """Facts of the encoder for `run.json`; UsageError if it does not offer what the preset wants."""
    encoder = _encoder_of(settings, tracking)
    if tracking["features"] not in encoder.offers:
        raise UsageError(
            f"preset '{settings.preset}' takes '{tracking['features']}' of the encoder, but '{encoder.name}' "
            f"offers {', '.join(encoder.offers)}; choose another --preset, or --set features=tokens"
        )
    names = ("name", "weights_hash", "dim", "patch")
    return {**{name: getattr(encoder, name) for name in names}, "device": settings.device}


# ------------------------------------------------------------------------------------ one video's job


@dataclass(frozen=True)
class TrackJob:
    """One video to carry masks through, where the result goes, and its truth if there is any."""

    name: str
    source: str
    folder: Path
    settings: Settings
    tracking: Json
    masks: Mapping[int, str] = field(default_factory=dict)  # frame -> file; a sequence brings its own
    resize_mask: bool = False
    chosen: Chosen | None = None  # objects of a segmentation, instead of masks
    sequence: VosSequence | None = None
    protocol: str = ""

    @property
    def identity(self) -> Json:
        """Files with size and time stamp: what a rerun must find unchanged."""
        masks: Json = {str(frame): file_stamp(file) for frame, file in self.masks.items()}
        if self.chosen is not None:
            chosen = self.chosen
            stamp = file_stamp(str(chosen.home / "hierarchy.npz"))
            masks = {"from": stamp, "objects": [list(g) for g in chosen.objects], "cut": chosen.clusters}
        truth = [file_stamp(str(path)) for path in self.sequence.truth] if self.sequence else []
        # what came through a pipe cannot be compared: never the same again
        video = [STDIN, uuid4().hex] if self.source == STDIN else file_stamp(self.source)
        return {"video": video, "mask": masks, "truth": digest(truth)}


def track_video(job: TrackJob, report: Report, stop: Stop) -> Json:
    """Track one video, write its part of the result, score it where truth is known; returns `done.json`.

    Raises VideoError, MaskError or OutputError for what is wrong with this video, Interrupted when stopped.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UnspoolWarning)
        return _track_video(job, report, stop, caught)


def _track_video(job: TrackJob, report: Report, stop: Stop, caught: list[warnings.WarningMessage]) -> Json:
    from unspool.tracking import Timings, Tracking, given_masks, track_frames, with_settings  # noqa: PLC0415

    started = perf_counter()
    encoder, timings = _encoder_of(job.settings, job.tracking), Timings()
    identity = job.identity  # of the files that are read now
    with _opened(job.source) as video:
        length, tick = (None, video.tick) if isinstance(video, Stream) else (len(video), None)
        masks = given_masks(video, _masks(job), resize=job.resize_mask)
        notes = list(dict.fromkeys(mask.note for mask in masks.values() if mask.note))
        report({"event": "video", "video": job.name, "frames": length, "notes": notes})
        truth = job.sequence.labels() if job.sequence else None
        with VideoResult(
            job.folder,
            job.name,
            source=job.source,
            height=video.height,
            width=video.width,
            times=video.times,
            audio_from=job.source if length is not None else None,
            pixel_aspect=video.pixel_aspect,
            with_truth=truth is not None,
            tick=tick,
        ) as result:
            how = with_settings(Tracking(), job.tracking)
            memory = job.settings.memory_each
            frames = track_frames(video, masks, encoder, how, timings=timings, memory=memory)
            taken = 0
            for index, (image, labels) in enumerate(frames):
                taken = index + 1
                result.write(image, labels, next(truth) if truth else None)
                report({"event": "frame", "video": job.name, "frame": index + 1, "frames": length})
                if stop.is_set() and length is None:
                    break  # a stream ends where it is told to: what came is the result
                if stop.is_set() and length is not None and index + 1 < length:
                    raise Interrupted
            unused = [frame for frame in masks if frame >= taken and length is None]
            if unused:
                warnings.warn(
                    f"{job.name}: ended after {taken} frames; the mask of frame {unused[0]} is not used",
                    UnspoolWarning,
                    stacklevel=2,
                )
            result.close()
            seconds, timings.write = perf_counter() - started, result.seconds_writing
            scored = _score(job)
            done = result.finish(
                seconds=seconds,
                scores=video_scores(scored) if scored else None,
                curves=curves(scored, taken) if scored else None,
                warnings=list(
                    dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, UnspoolWarning))
                ),
                extra={
                    "identity": identity,
                    "notes": notes,
                    "timings": _rounded(timings),
                    **({"per_frame": to_record(scored)} if scored else {}),
                },
            )
    return done


def _opened(source: str) -> Video | Stream:
    return Stream(sys.stdin.buffer) if source == STDIN else open_video(source)


def _rounded(timings: Any) -> Json:
    return {stage: round(seconds, 3) for stage, seconds in asdict(timings).items()}


def _masks(job: TrackJob) -> Mapping[int, Any]:
    if job.chosen is not None:
        return job.chosen.masks()
    if job.sequence is None:
        return job.masks
    first = label_map(job.sequence.truth[0], merge=job.sequence.merge)
    path, labels = str(job.sequence.truth[0]), np.where(first == 255, 0, first)
    if labels.max() > MOST_IDS:
        raise MaskError(
            f"{path}: holds id {labels.max()}, but in the layout of DAVIS ids end at {MOST_IDS}; renumber"
        )
    return {0: Mask(labels=labels, ids=ids_in(labels), path=path)}


def _score(job: TrackJob) -> SequenceScores | None:
    """Scores of the masks as written, so that what is scored is what is handed on."""
    if job.sequence is None:
        return None
    written = masks_written(job.folder, job.name, len(job.sequence.truth))
    return score_sequence(job.name, written, job.sequence.truth, job.protocol)


def masks_written(folder: Path, name: str, frames: int) -> list[Path]:
    """The mask files of a video in a result."""
    return [folder / "videos" / name / "masks" / f"{index:05d}.png" for index in range(frames)]


# -------------------------------------------------------------------------------------------- verbs


def track_plan(
    *,
    output: Path | None,
    settings: Settings,
    inputs: Sequence[str],
    masks: Sequence[str] = (),
    resize_mask: bool = False,
    result: Path | None = None,
    objects: str | None = None,
    cut: int | None = None,
) -> Plan:
    """`unspool track`: one job per video that has a mask; a video without one is failed work."""
    videos = expand_inputs(inputs)
    if STDIN in videos and len(videos) > 1:
        raise UsageError("a stream on stdin (-) is tracked alone; give the other videos to another command")
    names = names_of(videos)
    folder = output or default_folder("track", videos)
    tracking = _tracking_record(settings)
    jobs, failures = [], []
    for name, video, given in zip(
        names, videos, _objects_of(videos, names, masks, result, objects, cut), strict=True
    ):
        if isinstance(given, str):
            failures.append((name, given))
        else:
            jobs.append(TrackJob(name, video, folder, settings, tracking, **given, resize_mask=resize_mask))
    return _tracking_plan("track", folder, settings, tracking, jobs, failures=tuple(failures))


def _objects_of(
    videos: Sequence[str],
    names: Sequence[str],
    masks: Sequence[str],
    result: Path | None,
    objects: str | None,
    cut: int | None,
) -> list[Json | str]:
    """Per video, fields of its job that say what is tracked; or why nothing can be."""
    if result is None:
        if objects is not None or cut is not None:
            raise UsageError("--objects and --cut choose objects of a segmentation; name it with --from")
        return [g if isinstance(g, str) else {"masks": g} for g in masks_of(videos, names, masks)]
    if masks:
        raise UsageError("give either --mask or --from: the objects come from a file or from a segmentation")
    from unspool.segments import chosen_of  # noqa: PLC0415 (torch only when work starts)

    chosen = chosen_of(result, names, objects, cut)
    return [c if isinstance(c, str) else {"chosen": c} for c in chosen]


def eval_plan(
    *, output: Path | None, settings: Settings, data: str, names: tuple[str, ...], protocol: str | None
) -> Plan:
    """`unspool eval tracking --data KIND:PATH`: one job per sequence, scores over all of them."""
    kind, colon, path = data.partition(":")
    years = {"davis17": 2017, "davis16": 2016}
    if kind not in years or not colon:
        raise UsageError(f"--data {data}: expected KIND:PATH, KIND one of {', '.join(years)}")
    root = Path(path)
    if not root.is_dir():
        raise UsageError(f"--data {data}: no such folder {root}")
    protocol = protocol_named(protocol or {"davis17": "davis17-semi", "davis16": "davis16-official"}[kind])
    folder = output or Path(f"unspool-eval-{kind}-{safe_name(settings.model)}")
    tracking = _tracking_record(settings)
    jobs = [
        TrackJob(s.name, str(s.frames), folder, settings, tracking, sequence=s, protocol=protocol)
        for s in davis(root, year=years[kind], names=names)
    ]
    config = {"data": kind, "protocol": protocol}
    finish = partial(_finish_eval, jobs, protocol)
    return _tracking_plan("eval tracking", folder, settings, tracking, jobs, finish=finish, config=config)


def _finish_eval(jobs: Sequence[TrackJob], protocol: str, folder: Path, done: Sequence[Json]) -> str:
    """Scores over all sequences that are done, and their masks in the layout of the official tools."""
    records = {entry["name"]: entry["per_frame"] for entry in done}
    sequences = [job.sequence for job in jobs if job.sequence is not None and job.name in records]
    for sequence in sequences:
        link_official(folder, sequence.name, sequence.frame_names)
    scored = [from_record(s.name, records[s.name]) for s in sequences]
    still = [score_standing_still(s.name, s.truth, protocol) for s in sequences]
    missing = [job.name for job in jobs if job.name not in records]
    return _write_scores(folder, score_table(scored, protocol, still, missing=missing))


def link_official(folder: Path, name: str, frame_names: Sequence[str]) -> None:
    """`davis/SEQ/FRAME.png`: the same masks under the data set's own frame names."""
    target = folder / "davis" / name
    target.mkdir(parents=True, exist_ok=True)
    for mask, frame in zip(masks_written(folder, name, len(frame_names)), frame_names, strict=True):
        link = target / f"{frame}.png"
        if link.exists() and link.samefile(mask):
            continue
        with written_whole(link) as part:
            part.unlink(missing_ok=True)
            try:
                part.hardlink_to(mask)
            except OSError:  # a file system without hard links
                shutil.copyfile(mask, part)


def _write_scores(folder: Path, table: Json) -> str:
    write_json(folder / "scores.json", table)
    with written_whole(folder / "scores.csv") as part:
        part.write_text(score_csv(table), "utf-8")
    return sentence(table)


def score_plan(*, output: Path | None, pred: Path, truth: Path, protocol: str | None) -> Plan:
    """`unspool eval tracking --pred DIR --truth DIR`: masks made elsewhere; no encoder, no frames."""
    protocol = protocol_named(protocol or "davis17-semi")
    folder = output or Path(f"unspool-eval-{safe_name(pred.resolve().name)}")
    jobs = [ScoreJob(p.name, p.prediction, p.truth, protocol) for p in mask_trees(pred, truth)]
    config = {"pred": str(pred.resolve()), "truth": str(truth.resolve()), "protocol": protocol}
    finish = partial(_finish_scores, [job.name for job in jobs], protocol)
    return Plan("eval tracking", folder, config, jobs, score_masks, finish=finish)


def demo_plan(*, output: Path | None, settings: Settings) -> Plan:
    """`unspool demo`: a rendered clip with known truth, tracked and scored; needs no file and no network."""
    folder = output or Path("unspool-demo")
    tracking = _tracking_record(settings)
    job = DemoJob("rendered", folder, settings, tracking)
    plan = _tracking_plan("demo", folder, settings, tracking, [job])
    finish = partial(_finish_demo, job)
    return replace(plan, work=demo_video, finish=finish)


@dataclass(frozen=True)
class DemoJob:
    """The rendered clip."""

    name: str
    folder: Path
    settings: Settings
    tracking: Json

    @property
    def identity(self) -> Json:
        """Nothing but the seed decides the clip, and that is a setting."""
        return {}


def demo_video(job: DemoJob, report: Report, stop: Stop) -> Json:
    """Render the clip, its first mask and its truth to files as a user would have them, and track it."""
    report({"event": "note", "text": "rendering a clip of which every mask is known"})
    sequence = _render(job)
    done = track_video(_demo_track(job, sequence), report, stop)
    return done | {"identity": job.identity}


def _demo_track(job: DemoJob, sequence: VosSequence) -> TrackJob:
    return TrackJob(
        job.name, str(sequence.frames), job.folder, job.settings, job.tracking,
        sequence=sequence, protocol=DEMO_PROTOCOL,
    )  # fmt: skip


MOST_IDS = 254  # of the layout of DAVIS: 8 bits, less background and void
DEMO_PROTOCOL = "davis17-semi"


def _render(job: DemoJob) -> VosSequence:
    clip = RenderedClip(demo_scene(job.settings.seed))
    home = job.folder / "input"
    (home / "truth").mkdir(parents=True, exist_ok=True)
    truth = tuple(home / "truth" / f"{t:05d}.png" for t in range(len(clip)))
    video = home / "clip.mp4"
    height, width, times = clip.video.height, clip.video.width, clip.video.times
    with VideoWriter(video, height=height, width=width, times=times, crf=16) as writer:
        for t, path in enumerate(truth):
            writer.write(clip.image(t))
            write_mask(path, clip.labels(t))
    write_mask(home / "first.png", clip.labels(0))
    return VosSequence(job.name, video, truth)


def _finish_demo(job: DemoJob, folder: Path, done: Sequence[Json]) -> str:
    home = folder / "input"
    truth = sorted((home / "truth").glob("*.png"))
    scored = [from_record(entry["name"], entry["per_frame"]) for entry in done]
    still = [score_standing_still(job.name, truth, DEMO_PROTOCOL)]
    line = _write_scores(folder, score_table(scored, DEMO_PROTOCOL, still))
    clip = str(home / "clip.mp4")
    own = shlex.join(["unspool", "track", clip, "--mask", str(home / "first.png")])
    cut = shlex.join(["unspool", "segment", clip])
    return f"{line}\nThe same with files, as you would with your own: {own}\nWithout a mask: {cut}"


def _tracking_plan(
    verb: str, folder: Path, settings: Settings, tracking: Json, jobs: Sequence[Any], **more: Any
) -> Plan:
    config = {
        "model": settings.model,
        "preset": settings.preset,
        "precision": settings.precision,
        "seed": settings.seed,
        "tracking": tracking,
        **more.pop("config", {}),
    }
    estimate = partial(_estimate, settings, tracking)
    model = partial(_model_record, settings, tracking)
    return Plan(verb, folder, config, jobs, track_video, model=model, estimate=estimate, **more)


def _estimate(
    settings: Settings, tracking: Json, jobs: Sequence[TrackJob | DemoJob], workers: int
) -> Estimate:
    """Frames, time and peak memory in one line: one frame is encoded, the rest is arithmetic.

    Raises UsageError naming the least memory that works where the settings allow less.
    """
    from unspool.tracking import Tracking, cost, with_settings  # noqa: PLC0415

    how, encoder = with_settings(Tracking(), tracking), _encoder_of(settings, tracking)
    if any(isinstance(job, TrackJob) and job.source == STDIN for job in jobs):
        return Estimate(f"{encoder.name}: a stream, of unknown size and length")  # it can be read only once
    measured: dict[tuple[int, int], tuple[float, Needs]] = {}
    frames, seconds, unreadable = 0, [0.0], []
    for job in jobs:
        try:
            with warnings.catch_warnings(action="ignore"), _frames_of(job) as video:
                count, size = len(video), (video.height, video.width)
                if size not in measured:
                    measured[size] = cost(video, encoder, how)
        except UnspoolError as error:
            unreadable.append((job.name, str(error)))
            continue
        frames += count
        seconds.append(count * measured[size][0])
    # workers share the cores: together they are no faster, and the longest video runs on its share alone
    took = max(sum(seconds), max(seconds) * min(workers, len(jobs)))
    peak = max((_peak(size, need, settings) for size, (_, need) in measured.items()), default=0)
    text = f"{encoder.name}: {frames} frames, about {in_words(took)}, peak memory about {peak / 1e9:.1f} GB"
    return Estimate(text, tuple(unreadable))


def _peak(size: tuple[int, int], need: Needs, settings: Settings) -> int:
    """Bytes of all processes together, each at its widest moment."""
    memory = settings.memory_each
    if memory is not None and memory < need.least:
        least = -(-settings.processes * need.least * 21 // 20 // 10**7) / 100  # 5 %: measurements vary
        raise UsageError(
            f"--memory {size_in_bytes(settings.memory or 0) / 1e9:g}GB is too little for a video of "
            f"{size[1]}x{size[0]}{_shared(settings)}; the least that works is --memory {least:.2f}GB "
            "(less with a lower --resolution or fewer --workers)"
        )
    return settings.processes * need.peak(memory)


def _shared(settings: Settings) -> str:
    return f" in {settings.processes} processes" if settings.processes > 1 else ""


def _frames_of(job: TrackJob | DemoJob) -> Any:
    """The job's video; a rendered clip is as large as it will be."""
    return (
        RenderedClip(demo_scene(job.settings.seed)).video
        if isinstance(job, DemoJob)
        else open_video(job.source)
    )


@dataclass(frozen=True)
class ScoreJob:
    """Predicted and true masks of one sequence."""

    name: str
    prediction: tuple[Path | None, ...]
    truth: tuple[Path, ...]
    protocol: str

    @property
    def identity(self) -> Json:
        """Scores are always computed anew: never reuse a table without looking at the masks."""
        return {}


def score_masks(job: ScoreJob, report: Report, stop: Stop) -> Json:
    """Score one sequence; returns its entry of `run.json`."""
    started = perf_counter()
    scored = score_sequence(job.name, job.prediction, job.truth, job.protocol)
    seconds = perf_counter() - started
    return {
        "name": job.name,
        "frames": len(job.truth),
        "seconds": round(seconds, 3),
        "frames_per_second": round(len(job.truth) / seconds, 1),
        "scores": video_scores(scored),
        "per_frame": to_record(scored),
    }


def _finish_scores(names: Sequence[str], protocol: str, folder: Path, done: Sequence[Json]) -> str:
    records = {entry["name"]: entry["per_frame"] for entry in done}
    scored = [from_record(name, records[name]) for name in names if name in records]
    missing = [name for name in names if name not in records]
    return _write_scores(folder, score_table(scored, protocol, missing=missing))

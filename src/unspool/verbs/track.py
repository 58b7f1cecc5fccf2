"""`unspool track`, and what `demo` and `eval tracking` share with it: settings, a video's job, estimates."""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache, partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from unspool.data.vos import VosSequence
from unspool.errors import MaskError, UnspoolError, UnspoolWarning, UsageError, counted, told_by
from unspool.inputs import STDIN, default_folder, expand_inputs, masks_of, names_of
from unspool.jobs import Estimate, Interrupted, Plan, Report, Stop
from unspool.masks import Labels, Mask, ids_in
from unspool.options import digest, file_stamp, in_words, size_in_bytes, tables_of
from unspool.protocols.tracking import (
    SequenceScores,
    curves,
    score_sequence,
    to_record,
    video_scores,
)
from unspool.results import Json
from unspool.verbs.speed import BEFORE, speed
from unspool.verbs.unfinished import (
    KEEP_EVERY,
    decisive,
    kept_files,
    mask_again,
    read_again,
    read_unfinished,
    write_unfinished,
)
from unspool.video import Video, open_video
from unspool.video.stream import Stream
from unspool.video_result import VideoResult, mask_path

if TYPE_CHECKING:
    from unspool.segments import Chosen
    from unspool.tracking import Image, Needs, Tracker

MOST_IDS = 254  # of the layout of DAVIS: 8 bits, less background and void

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
    for table, origin in tables_of(given, config, single):
        _merge(merged, table, origin)
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


def tracking_record(settings: Settings) -> Json:
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
    from unspool.encoders import facts_of  # noqa: PLC0415

    encoder = _encoder_of(settings, tracking)
    if tracking["features"] not in encoder.offers:
        raise UsageError(
            f"preset '{settings.preset}' takes '{tracking['features']}' of the encoder, but '{encoder.name}' "
            f"offers {', '.join(encoder.offers)}; choose another --preset, or --set features=tokens"
        )
    return {**facts_of(encoder), "device": settings.device}


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
    protocol: str = ""  # "": the sequence's masks only start its objects, and nothing is scored

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

    def frames(self) -> Any:
        """The video."""
        return open_video(self.source)


def track_video(job: TrackJob, report: Report, stop: Stop) -> Json:
    """Track one video, write its part of the result, score it where truth is known; returns `done.json`.

    Raises VideoError, MaskError or OutputError for what is wrong with this video, Interrupted when stopped.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UnspoolWarning)
        return _track_video(job, report, stop, caught)


def _track_video(job: TrackJob, report: Report, stop: Stop, caught: list[warnings.WarningMessage]) -> Json:
    from unspool.encoders import facts_of  # noqa: PLC0415
    from unspool.tracking import Timings, Tracker, Tracking, given_masks, timed, with_settings  # noqa: PLC0415

    videos_before = next(BEFORE)
    started = perf_counter()
    encoder = _encoder_of(job.settings, job.tracking)
    identity = job.identity  # of the files that are read now
    with _opened(job.source) as video:
        length, tick = (None, video.tick) if isinstance(video, Stream) else (len(video), None)
        masks = given_masks(video, _masks(job), resize=job.resize_mask)
        notes = list(dict.fromkeys(mask.note for mask in masks.values() if mask.note))
        model, settings = facts_of(encoder), job.settings
        made_by = decisive(identity, job.tracking, model, settings.precision, settings.device)
        earlier = read_unfinished(job.folder, job.name, made_by) if length else None
        timings, before = (Timings(**earlier["timings"]), earlier["seconds"]) if earlier else (Timings(), 0.0)
        begun = earlier["tracker"]["frames"] if earlier else 0
        report({"event": "video", "video": job.name, "frames": length, "begun": begun, "notes": notes})
        truth = job.sequence.labels() if job.sequence and job.protocol else None
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
            kept=kept_files(job.folder, job.name, earlier),
        ) as result:
            how = with_settings(Tracking(), job.tracking)
            memory = job.settings.memory_each
            tracker = Tracker(
                masks, encoder, how, timings=timings, memory=memory, kept=earlier and earlier["tracker"]
            )

            def keep() -> None:
                spent = {"timings": asdict(timings), "seconds": before + perf_counter() - started}
                masks_so_far = (mask_path(job.folder, job.name, index) for index in range(tracker.frames))
                write_unfinished(result, made_by, masks_so_far, {"tracker": tracker.keep(), **spent})

            images = timed(iter(video), timings)
            taken = _write_frames(images, truth, tracker, result, length, begun, keep, report, stop)
            unused = [frame for frame in masks if frame >= taken and length is None]
            if unused:
                warnings.warn(
                    f"{job.name}: ended after {counted(taken, 'frame')}; the mask of frame {unused[0]} is "
                    "not used",
                    UnspoolWarning,
                    stacklevel=2,
                )
            result.close()
            seconds, timings.write = before + perf_counter() - started, result.seconds_writing
            scored = _score(job)
            done = result.finish(
                seconds=seconds,
                scores=video_scores(scored) if scored else None,
                curves=curves(scored, taken) if scored else None,
                warnings=told_by(caught),
                extra={
                    "identity": identity,
                    "notes": notes,
                    "timings": _rounded(timings),
                    "speed": {"videos_before": videos_before, **_speed(job, video, timings, how)},
                    **({"per_frame": to_record(scored)} if scored else {}),
                },
            )
    return done


def _write_frames(
    images: Iterator[Image],
    truth: Iterator[Labels | None] | None,
    tracker: Tracker,
    result: VideoResult,
    length: int | None,
    begun: int,
    keep: Callable[[], None],
    report: Report,
    stop: Stop,
) -> int:
    """Labels of all frames into the result, those before `begun` from its masks; returns how many came.

    Raises Interrupted, after `keep`, where it is stopped before the end; a stream (no `length`) ends there.
    """
    started = saved = perf_counter()
    taken = 0
    for index, image in enumerate(images):
        taken = index + 1
        if index < begun:
            tracker.recall(image)
            labels = mask_again(result, index)
            event = read_again(result.name, taken, begun, perf_counter() - started)
        else:
            labels = tracker.step(image)
            event = {"event": "frame", "video": result.name, "frame": taken, "frames": length}
        result.write(image, labels, next(truth) if truth else None)
        report(event)
        stopped = stop.is_set()
        if length is None and stopped:
            break
        if length is None or taken == length:
            continue
        if taken > begun and (stopped or perf_counter() - saved > KEEP_EVERY):
            keep()
            saved = perf_counter()
        if stopped:
            raise Interrupted
    return taken


def _opened(source: str) -> Video | Stream:
    return Stream(sys.stdin.buffer) if source == STDIN else open_video(source)


def _rounded(timings: Any) -> Json:
    return {stage: round(seconds, 3) for stage, seconds in asdict(timings).items()}


def _speed(job: TrackJob, video: Video | Stream, timings: Any, how: Any) -> Json:
    """What of a video's time and memory is the model's, and what decides them."""
    from unspool.encoders import device_named  # noqa: PLC0415
    from unspool.tracking import input_size, peak_memory  # noqa: PLC0415

    device = device_named(job.settings.device)
    height, width = input_size(video.height, video.width, _encoder_of(job.settings, job.tracking), how)
    return {
        "model_seconds": round(timings.encode + timings.propagate, 3),
        "peak_memory": peak_memory(device),
        "device": str(device),
        "precision": job.settings.precision,
        "input": f"{width}x{height}",
        "context": how.propagation.context,
    }


def _masks(job: TrackJob) -> Mapping[int, Any]:
    if job.chosen is not None:
        return job.chosen.masks()
    if job.sequence is None:
        return job.masks
    given = {}
    for frame, path, labels in job.sequence.given():
        if labels.max() > MOST_IDS:
            raise MaskError(
                f"{path}: holds id {labels.max()}, but in the layout of DAVIS ids end at {MOST_IDS}; renumber"
            )
        given[frame] = Mask(labels=labels, ids=ids_in(labels), path=str(path))
    return given


def _score(job: TrackJob) -> SequenceScores | None:
    """Scores of the masks as written, so that what is scored is what is handed on."""
    if job.sequence is None or not job.protocol:
        return None
    written = masks_written(job.folder, job.name, len(job.sequence.frame_names))
    annotated = job.sequence.annotated
    scored = score_sequence(job.name, [written[t] for t in annotated], job.sequence.truth, job.protocol)
    frames = tuple(annotated[t] for t in scored.objects.frames)
    return replace(scored, objects=replace(scored.objects, frames=frames))


def masks_written(folder: Path, name: str, frames: int) -> list[Path]:
    """The mask files of a video in a result."""
    return [mask_path(folder, name, index) for index in range(frames)]


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
    tracking = tracking_record(settings)
    jobs, failures = [], []
    for name, video, given in zip(
        names, videos, _objects_of(videos, names, masks, result, objects, cut), strict=True
    ):
        if isinstance(given, str):
            failures.append((name, given))
        else:
            jobs.append(TrackJob(name, video, folder, settings, tracking, **given, resize_mask=resize_mask))
    return tracking_plan("track", folder, settings, tracking, jobs, failures=tuple(failures))


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

    if cut is not None and cut < 1:
        raise UsageError(f"--cut {cut}: expected into how many clusters, at least 1")
    chosen = chosen_of(result, names, objects, cut)
    return [c if isinstance(c, str) else {"chosen": c} for c in chosen]


def tracking_plan(
    verb: str, folder: Path, settings: Settings, tracking: Json, jobs: Sequence[Any], **more: Any
) -> Plan:
    """A plan whose jobs carry labels: `jobs`, `more` of its fields, and what goes into `run.json`."""
    config = {
        "model": settings.model,
        "preset": settings.preset,
        "precision": settings.precision,
        "seed": settings.seed,
        "tracking": tracking,
        **more.pop("config", {}),
    }
    estimate = partial(_estimate, settings, tracking, alone=len(jobs) == 1 and not more.get("failures"))
    model = partial(_model_record, settings, tracking)
    return Plan(verb, folder, config, jobs, track_video, model=model, estimate=estimate, speed=speed, **more)


def _estimate(
    settings: Settings, tracking: Json, jobs: Sequence[Any], workers: int, *, alone: bool = False
) -> Estimate:
    """Frames, time and peak memory in one line: one frame is encoded, the rest is arithmetic.

    Raises UsageError naming the least memory that works where the settings allow less, and where the video is
    `alone` and its masks do not fit it.
    """
    from unspool.tracking import Tracking, cost, given_masks, with_settings  # noqa: PLC0415

    how, encoder = with_settings(Tracking(), tracking), _encoder_of(settings, tracking)
    if any(getattr(job, "source", None) == STDIN for job in jobs):
        return Estimate(f"{encoder.name}: a stream, of unknown size and length")  # it can be read only once
    measured: dict[tuple[int, int], tuple[float, Needs]] = {}
    frames, seconds, unreadable = 0, [0.0], []
    for job in jobs:
        try:
            with warnings.catch_warnings(action="ignore"), job.frames() as video:
                count, size = len(video), (video.height, video.width)
                if masks := getattr(job, "masks", None):
                    given_masks(video, masks, resize=job.resize_mask)
                if size not in measured:
                    measured[size] = cost(video, encoder, how)
        except UnspoolError as error:
            if alone and isinstance(error, MaskError):
                raise UsageError(str(error)) from error  # nothing else is to be done: no result is begun
            unreadable.append((job.name, str(error)))
            continue
        frames += count
        seconds.append(count * measured[size][0])
    # workers share the cores: together they are no faster, and the longest video runs on its share alone
    took = max(sum(seconds), max(seconds) * min(workers, len(jobs)))
    peak = max((_peak(size, need, settings) for size, (_, need) in measured.items()), default=0)
    text = (
        f"{encoder.name}: {counted(frames, 'frame')}, about {in_words(took)}, "
        f"peak memory about {peak / 1e9:.1f} GB"
    )
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

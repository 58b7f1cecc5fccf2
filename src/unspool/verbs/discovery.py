"""What `unspool eval discovery` plans and does: a data set is segmented, or masks are taken, and scored."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter

from unspool.data.fbms import fbms_sequences
from unspool.data.movi import movi_clips
from unspool.data.segtrack import segtrack_sequences
from unspool.data.sequences import Labelled, davis_sequences, rendered_sequences
from unspool.data.vos import LabelMap, label_map, mask_trees
from unspool.data.ytvis import ytvis_sequences
from unspool.errors import DataError, UnspoolWarning, UsageError, counted, told_by
from unspool.jobs import Estimate, Plan, Report, Stop
from unspool.options import digest, file_stamp, in_words
from unspool.protocols.discovery import (
    CUES,
    FOREGROUNDS,
    GIVEN,
    MANY,
    NO_CUES,
    PROTOCOLS,
    SINGLE,
    SPARSE,
    Prediction,
    Row,
    rows_of,
    score_csv,
    score_table,
    score_video,
    sentences,
    without_black_borders,
)
from unspool.results import Json, safe_name, write_json, written_whole
from unspool.verbs.scoring import link_official
from unspool.verbs.segment import foreground_of
from unspool.verbs.segment_needs import Clock, bytes_needed, memory_for_clustering, seconds_per_frame
from unspool.verbs.segment_settings import (
    BY_FRAME,
    SegmentSettings,
    correlator_of,
    correlator_record,
    refining_of,
    represented,
    segmenting_of,
    segmenting_record,
)
from unspool.verbs.track import MOST_IDS, masks_written
from unspool.video_result import VideoResult

TAU_OF_ONE = 1.6  # where one object is sought its parts should merge (BA)


@dataclass(frozen=True)
class Kind:
    """A data set that is scored: its reader, and the protocols that its published numbers use."""

    read: Callable[[Path], Sequence[Labelled]]
    protocols: tuple[str, ...]
    one_object: bool = False


OVERLAPS = tuple(name for name in MANY if not name.startswith("davis17"))
KINDS = {
    "davis17": Kind(partial(davis_sequences, year=2017), MANY),
    "davis16": Kind(partial(davis_sequences, year=2016), SINGLE, one_object=True),
    "ytvis19": Kind(ytvis_sequences, OVERLAPS),
    "movi-e": Kind(movi_clips, OVERLAPS),
    "segtrack": Kind(segtrack_sequences, SPARSE, one_object=True),
    "fbms": Kind(fbms_sequences, SPARSE, one_object=True),
}


def _videos(data: str, names: tuple[str, ...], seed: int) -> tuple[str, Sequence[Labelled], Kind]:
    """What `KIND:PATH` or `rendered:N` stands for. Raises UsageError, DataError."""
    name, colon, path = data.partition(":")
    if colon and name == "rendered":
        videos: Sequence[Labelled] = rendered_sequences(path, seed)
        return name, _only(videos, names, data), Kind(movi_clips, MANY)
    if name not in KINDS or not colon:
        raise UsageError(f"--data {data}: expected rendered:N or KIND:PATH, KIND one of {', '.join(KINDS)}")
    if not Path(path).is_dir():
        raise UsageError(f"--data {data}: no such folder {path}")
    return name, _only(KINDS[name].read(Path(path)), names, data), KINDS[name]


def _only(videos: Sequence[Labelled], names: tuple[str, ...], data: str) -> Sequence[Labelled]:
    known = [video.name for video in videos]
    for name in names:
        if name not in known:
            shown = ", ".join(known[:10]) + (", ..." if len(known) > 10 else "")
            raise UsageError(f"--data {data}: holds no sequence '{name}' ({shown})")
    return [video for video in videos if not names or video.name in names]


# -------------------------------------------------------------------------------------- a set of videos


@dataclass(frozen=True)
class DiscoveryJob:
    """One video with truth to segment and score, and where the result goes."""

    name: str
    video: Labelled
    folder: Path
    settings: SegmentSettings
    segmenting: Json
    rows: tuple[Row, ...]

    @property
    def identity(self) -> Json:
        """Files with size and time stamp: what a rerun must find unchanged."""
        return {"data": digest([file_stamp(str(path)) for path in self.video.files])}


def discovery_plan(
    *,
    output: Path | None,
    settings: SegmentSettings,
    data: str,
    names: tuple[str, ...],
    protocols: Sequence[str] | None,
    foregrounds: Sequence[str] | None,
) -> Plan:
    """`unspool eval discovery --data KIND:PATH`: one job per video, scores over all of them."""
    if settings.every != 1:
        raise UsageError(f"--every {settings.every}: protocols score all frames; leave it out")
    steps = ", ".join(refining_of(settings).steps) or "none"
    name, videos, kind = _videos(data, names, settings.seed)
    rows = rows_of(protocols or kind.protocols, _checked(foregrounds or FOREGROUNDS))
    rows, left_out = _with_a_choice(rows, {*(protocols or ()), *(foregrounds or ())}, settings)
    settings = _for_one_object(settings) if kind.one_object else settings
    folder = output or Path(f"unspool-eval-discovery-{name}-{safe_name(settings.model)}")
    segmenting = segmenting_record(settings)
    jobs = [
        DiscoveryJob(safe_name(video.name), video, folder, settings, segmenting, rows) for video in videos
    ]
    config = {
        "data": name,
        "protocols": [row.label for row in rows],
        "postprocessing": steps,
        "model": settings.model,
        "precision": settings.precision,
        "seed": settings.seed,
        "segmenting": segmenting,
    }
    return Plan(
        "eval discovery",
        folder,
        config,
        jobs,
        discover_video,
        model=partial(correlator_record, settings),
        estimate=partial(_estimate, settings, segmenting),
        finish=partial(_finish, jobs, rows, steps, left_out),
    )


def _checked(foregrounds: Sequence[str]) -> Sequence[str]:
    for name in foregrounds:
        if name not in (*FOREGROUNDS, GIVEN):
            raise UsageError(f"--foreground {name}: there are {', '.join((*FOREGROUNDS, GIVEN))}")
    return foregrounds


def _with_a_choice(
    rows: Sequence[Row], named: set[str], settings: SegmentSettings
) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Rows that can be scored, and those whose object nobody can choose; UsageError where one was `named`."""
    blind = tuple(r for r in rows if r.foreground == CUES and represented(settings) == "attention")
    if blind and named & {CUES, *(row.protocol for row in blind if PROTOCOLS[row.protocol].chosen)}:
        remedy = "take label-free, or represent = block, features or fused"
        raise UsageError(f"{blind[0].label}: {BY_FRAME}, so that it has nothing to choose; {remedy}")
    return tuple(row for row in rows if row not in blind), blind


def _for_one_object(settings: SegmentSettings) -> SegmentSettings:
    """With the published threshold for one object, where none was given; the shipped block keeps its own."""
    from unspool.encoders import SHIPPED  # noqa: PLC0415 (torch only when work starts)

    attention = represented(settings) in ("block", "attention")
    clustering = settings.segmenting.get("clustering", {})
    if "tau" in clustering or settings.model in SHIPPED or not attention:
        return settings
    changed = {**settings.segmenting, "clustering": {**clustering, "tau": TAU_OF_ONE}}
    return replace(settings, segmenting=changed)


def discover_video(job: DiscoveryJob, report: Report, stop: Stop) -> Json:
    """Segment one video, write its part of the result, score the masks as written; returns `done.json`.

    Raises VideoError, DataError or OutputError for what is wrong with this video, Interrupted when stopped.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UnspoolWarning)
        return _discover_video(job, report, stop, caught)


def _discover_video(
    job: DiscoveryJob, report: Report, stop: Stop, caught: list[warnings.WarningMessage]
) -> Json:
    from unspool.segmenting import segment  # noqa: PLC0415
    from unspool.segments import refined_ids, refined_masks  # noqa: PLC0415

    started = perf_counter()
    correlator, identity = correlator_of(job.settings), job.identity
    clock = Clock(job.name, report, stop)
    with job.video.open() as video:
        memory = memory_for_clustering(job.settings, video, correlator, job.segmenting)
        how = segmenting_of(job.segmenting, memory)
        report({"event": "video", "video": job.name, "frames": len(video), "notes": []})
        with VideoResult(
            job.folder,
            job.name,
            source=str(job.video.files[0]) if job.video.files else job.name,
            height=video.height,
            width=video.width,
            times=video.times,
            pixel_aspect=video.pixel_aspect,
            with_truth=True,
        ) as result:
            clock.total = len(video)
            found = segment(video, correlator, how, progress=clock)
            refining, patch = refining_of(job.settings), video.height / found.labels.shape[1]
            masks_of = refined_masks(found, video, refining, patch)
            clock.begin("writing")
            for (image, mask), true in zip(masks_of, job.video.truth(), strict=True):
                result.write(image, mask, true)
                clock("writing", 1)
            result.close()
            masks = tuple(masks_written(job.folder, job.name, len(video)))
            ids = refined_ids(found, refining).numpy()
            chosen, cues = foreground_of(found, ids, correlator.encoder.name, how)
            prediction = Prediction(masks, without_black_borders(video[0]), chosen["object"])
            scored = score_video(job.name, prediction, job.video.truth, job.rows, fewer=True)
            return result.finish(
                seconds=perf_counter() - started,
                warnings=told_by(caught),
                extra={
                    "identity": identity,
                    "clusters": found.clusters,
                    "foreground": chosen,
                    "cues": cues,
                    "timings": {**clock.timings, "write": round(result.seconds_writing, 3)},
                    "per_frame": scored,
                },
            )


def _finish(
    jobs: Sequence[DiscoveryJob],
    rows: Sequence[Row],
    steps: str,
    left_out: Sequence[Row],
    folder: Path,
    done: Sequence[Json],
) -> str:
    """Scores over all videos that are done, and their masks in the layout of the official tools."""
    entries = {entry["name"]: entry for entry in done}
    unfit = []
    for job in jobs:
        if job.name not in entries:
            continue
        if max((one["id"] for one in entries[job.name]["objects"]), default=0) > MOST_IDS:
            unfit.append(job.name)
        else:
            link_official(folder, job.name, job.video.frame_names)
    text = _write_scores(folder, [job.name for job in jobs], rows, steps, done)
    if left_out:
        text += f"\nwithout {'; '.join(row.label for row in left_out)}: {BY_FRAME}"
    if unfit:
        text += f"\nnot in {folder / 'davis'}, whose layout ends at id {MOST_IDS}: {', '.join(unfit)}"
    return text


def _write_scores(
    folder: Path, names: Sequence[str], rows: Sequence[Row], steps: str, done: Sequence[Json]
) -> str:
    records = {entry["name"]: entry["per_frame"] for entry in done}
    ordered = {name: records[name] for name in names if name in records}
    missing = [name for name in names if name not in records]
    table = score_table(ordered, rows, postprocessing=steps, missing=missing)
    write_json(folder / "scores.json", table)
    with written_whole(folder / "scores.csv") as part:
        part.write_text(score_csv(table), "utf-8")
    return sentences(table)


def _estimate(
    settings: SegmentSettings, segmenting: Json, jobs: Sequence[DiscoveryJob], workers: int
) -> Estimate:
    """Frames, time and peak memory in one line. Raises UsageError where the memory is too little."""
    correlator = correlator_of(settings)
    measured: dict[tuple[int, int], float] = {}
    frames, seconds, peak = 0, [0.0], 0
    unreadable = []
    for job in jobs:
        try:
            with job.video.open() as video:
                size = (video.height, video.width)
                if size not in measured:
                    measured[size] = seconds_per_frame(video, video, correlator, segmenting)
                memory = memory_for_clustering(settings, video, correlator, segmenting)
                beside, _ = bytes_needed(video, correlator, segmenting)
                peak = max(peak, beside + segmenting_of(segmenting, memory).memory)
                frames += len(video)
                seconds.append(len(video) * measured[size])
        except DataError as error:
            unreadable.append((job.name, str(error)))
    took = max(sum(seconds), max(seconds) * min(workers, len(jobs)))
    text = (
        f"{correlator.encoder.name}: {counted(frames, 'frame')}, about {in_words(took)}, "
        f"peak memory about {settings.processes * peak / 1e9:.1f} GB"
    )
    return Estimate(text, tuple(unreadable))


# ---------------------------------------------------------------------------------- masks made elsewhere


@dataclass(frozen=True)
class ScoreJob:
    """Predicted and true masks of one sequence."""

    name: str
    prediction: tuple[Path | None, ...]
    truth: tuple[Path, ...]
    rows: tuple[Row, ...]

    @property
    def identity(self) -> Json:
        """Scores are always computed anew: never reuse a table without looking at the masks."""
        return {}


def score_plan(
    *,
    output: Path | None,
    pred: Path,
    truth: Path,
    names: Sequence[str],
    protocols: Sequence[str] | None,
    foregrounds: Sequence[str] | None,
) -> Plan:
    """`unspool eval discovery --pred DIR --truth DIR`: masks made elsewhere; no model, no frames."""
    rows = rows_of(protocols or ["davis17-unsup"], _checked(foregrounds or [GIVEN]))
    blind = [row.label for row in rows if row.foreground == CUES]
    if blind:
        raise UsageError(f"{blind[0]}: {NO_CUES}; segment with --data, or take label-free")
    folder = output or Path(f"unspool-eval-{safe_name(pred.resolve().name)}")
    pairs = mask_trees(pred, truth, names)
    jobs = [ScoreJob(pair.name, pair.prediction, pair.truth, rows) for pair in pairs]
    config = {
        "pred": str(pred.resolve()),
        "truth": str(truth.resolve()),
        "protocols": [row.label for row in rows],
        **({"sequences": list(names)} if names else {}),
    }
    finish = partial(_finish_scores, [job.name for job in jobs], rows)
    return Plan("eval discovery", folder, config, jobs, score_masks, finish=finish)


def score_masks(job: ScoreJob, report: Report, stop: Stop) -> Json:
    """Score one sequence; returns its entry of `run.json`. Raises DataError naming a missing frame."""
    started = perf_counter()
    for predicted, true in zip(job.prediction, job.truth, strict=True):
        if predicted is None:
            raise DataError(
                f"{job.name}: no prediction for frame {true.name}; every frame with truth needs one"
            )
    paths = tuple(path for path in job.prediction if path is not None)
    scored = score_video(job.name, Prediction(paths), partial(_maps, job.truth), job.rows)
    seconds = perf_counter() - started
    return {
        "name": job.name,
        "frames": len(job.truth),
        "seconds": round(seconds, 3),
        "frames_per_second": round(len(job.truth) / seconds, 1),
        "per_frame": scored,
    }


def _maps(paths: Sequence[Path]) -> Iterator[LabelMap]:
    return (label_map(path) for path in paths)


def _finish_scores(names: Sequence[str], rows: Sequence[Row], folder: Path, done: Sequence[Json]) -> str:
    return _write_scores(folder, names, rows, "none", done)

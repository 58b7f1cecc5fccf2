"""What `unspool segment` plans and does: one pure function per video, what it leaves behind."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Integer

from unspool.errors import UnspoolError, UnspoolWarning, UsageError, counted, told_by
from unspool.inputs import default_folder, expand_inputs, names_of
from unspool.jobs import Estimate, Plan, Report, Stop
from unspool.masks import display_colours, write_mask
from unspool.ops.foreground import SIGNS
from unspool.options import file_stamp, in_words
from unspool.results import Json
from unspool.verbs.segment_needs import Clock, bytes_needed, memory_for_clustering, seconds_per_frame
from unspool.verbs.segment_settings import (
    BY_FRAME,
    SegmentSettings,
    Some,
    correlator_of,
    correlator_record,
    refining_of,
    segmenting_of,
    segmenting_record,
)
from unspool.verbs.unfinished import KEEP_EVERY, decisive, kept_files, read_unfinished, write_unfinished
from unspool.video import open_video
from unspool.video_result import VideoResult

if TYPE_CHECKING:
    from unspool.segmentation import Segmentation
    from unspool.segmenting import Segmenting

LabelMap = Integer[np.ndarray, "h w"]
PALETTE = 96  # colours that the clusters of a cut share

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
    from unspool.segments import refined_ids, refined_masks, write_hierarchy, write_tree  # noqa: PLC0415

    started = perf_counter()
    correlator, identity = correlator_of(job.settings), job.identity
    clock = Clock(job.name, report, stop)
    with open_video(job.source) as whole:
        video = Some(whole, job.settings.every)
        memory = memory_for_clustering(job.settings, video, correlator, job.segmenting)
        how = segmenting_of(job.segmenting, memory)
        made_by = _made_by(job, identity, video)
        earlier = read_unfinished(job.folder, job.name, made_by) or {}
        with VideoResult(
            job.folder,
            job.name,
            source=job.source,
            height=video.height,
            width=video.width,
            times=video.times,
            audio_from=job.source,
            pixel_aspect=whole.pixel_aspect,
            kept=kept_files(job.folder, job.name, earlier),
        ) as result:

            def seconds() -> Json:
                now = {**clock.timings, "all": perf_counter() - started}
                return _together(earlier.get("seconds", {}), now)

            page = job.folder / "data" / f"{job.name}.tree"
            keeping = Keeping(result, made_by, earlier, seconds)
            found, shown = _segmentation(video, correlator, how, page, clock, keeping)
            clock.begin("writing")
            refining = refining_of(job.settings)
            patch = video.height / found.labels.shape[1]
            ids = refined_ids(found, refining).numpy()
            chosen, cues = foreground_of(found, ids, correlator.encoder.name, how)
            masks = result.home / "foreground" if job.settings.foreground else None
            for index, (image, labels) in enumerate(refined_masks(found, video, refining, patch)):
                result.write(image, labels)
                if masks is not None:
                    masks.mkdir(exist_ok=True)
                    write_mask(masks / f"{index:05d}.png", only(labels, chosen["object"]))
                clock("writing", 1)
            frames = range(0, len(found.labels) * job.settings.every, job.settings.every)
            write_hierarchy(result.home / "hierarchy.npz", found, frames, how.clustering.tau)
            tree = write_tree(page, found)
            result.close()
            took = seconds()
            return result.finish(
                seconds=took.pop("all"),
                warnings=told_by(caught),
                extra={
                    "identity": identity,
                    "clusters": found.clusters,
                    "foreground": {**chosen, "written": masks is not None},
                    "cues": cues,
                    "every": job.settings.every,
                    "refining": asdict(refining),
                    "grid": list(found.labels.shape[1:]),
                    "timings": {**took, "write": round(result.seconds_writing, 3)},
                },
                page={"segments": for_page(job, found, tree, shown, how, chosen)},
            )


def _segmentation(
    video: Some, correlator: Any, how: Segmenting, page: Path, clock: Clock, keeping: Keeping
) -> tuple[Segmentation, Sequence[int]]:
    """The clusters of the video, from where an earlier run was; and which frames' attention the page has."""
    from unspool.segmentation import Carried  # noqa: PLC0415
    from unspool.segmenting import segment  # noqa: PLC0415
    from unspool.segments import AttentionWriter  # noqa: PLC0415

    earlier, total = keeping.earlier, len(video)
    carried = Carried.recalled(earlier["carried"]) if earlier else Carried()
    attention = AttentionWriter(page, -(-total // how.keys(total)), **earlier.get("attention", {}))
    again = max(0, carried.frames - how.overlap)
    clock.total = total
    clock.totals = {"reading again": again, "encode": total - again, "cluster": total - carried.frames}
    clock.report({"event": "video", "video": clock.video, "frames": total, "begun": carried.frames})
    try:
        found = segment(
            video,
            correlator,
            how,
            progress=clock,
            attended=attention,
            carried=carried,
            after_window=lambda known: keeping.after_window(known, attention),
        )
    finally:
        keeping.write()
    return found, attention.shown


class Keeping:
    """What is known after a window, kept for a later run: twice a minute, and when no more windows come."""

    def __init__(
        self, result: VideoResult, made_by: Json, earlier: Json, seconds: Callable[[], Json]
    ) -> None:
        self.result, self.made_by, self.earlier, self.seconds = result, made_by, earlier, seconds
        self.known: tuple[Any, Json, list[Path]] | None = None  # clusters, state and files of the attention
        self.written = perf_counter()

    def after_window(self, carried: Any, attention: Any) -> None:
        """Another window is clustered."""
        self.known = carried, attention.state, attention.files
        if perf_counter() - self.written > KEEP_EVERY:
            self.write()

    def write(self) -> None:
        """Write what is known, if it is more than an earlier run has left. Raises OutputError."""
        if self.known is not None:
            carried, attention, files = self.known
            state = {"carried": carried.kept(), "attention": attention, "seconds": self.seconds()}
            write_unfinished(self.result, self.made_by, files, state)
            self.known, self.written = None, perf_counter()


def _together(before: Json, now: Json) -> Json:
    """Seconds of two beginnings, by stage."""
    return {stage: round(before.get(stage, 0) + now.get(stage, 0), 3) for stage in {**before, **now}}


def _made_by(job: SegmentJob, identity: Json, video: Some) -> Json:
    """What decides clusters; what refines masks comes after. Of an address, no stamp tells what it holds."""
    chosen = {"segmenting": job.segmenting, "every": job.settings.every, "cues": list(SIGNS)}
    identity = {**identity, "frames": len(video), "size": (video.height, video.width)}
    model, settings = correlator_record(job.settings), job.settings
    return decisive(identity, chosen, model, settings.precision, settings.device)


def for_page(
    job: SegmentJob,
    found: Segmentation,
    tree: Json | None,
    shown: Sequence[int],
    how: Segmenting,
    foreground: Json,
) -> Json:
    """What the page says of a segmentation, and why it lacks what it lacks."""
    why = "" if shown else f"'{how.represent}' was clustered, which has no queries and keys"
    return {
        "tau": how.clustering.tau,
        "grid": list(found.labels.shape[1:]),
        "tree": tree,
        "attention": list(shown),
        "why_not": why,
        "foreground": foreground,
        "every": job.settings.every,
        "colours": [f"#{bytes(c).hex()}" for c in display_colours(range(1, PALETTE + 1)).values()],
        "track": ["unspool", "track", job.source],
        "from": str(job.folder),
    }


def only(labels: LabelMap, id_: int) -> LabelMap:
    """1 where the object is, 0 elsewhere; nowhere for 0, which is nobody."""
    there: LabelMap = ((labels == id_) & (id_ != 0)).astype(np.uint8)
    return there


def foreground_of(
    found: Segmentation, ids: Integer[np.ndarray, "t h w"], encoder: str, how: Segmenting
) -> tuple[Json, Json]:
    """What is recorded of the object that stands out, and of all clusters that are left as `ids`.

    Clusters of frames that do not know each other have no such object, and no cues.
    """
    linked = how.represent != "attention"
    areas, cues = np.bincount(ids.ravel(), minlength=found.clusters + 1), found.cues if linked else {}
    why = {"motion": "there is no second frame", "class attention": f"'{encoder}' has no class token"}
    chosen = {
        "object": found.foreground(ids) if linked else 0,
        "cues": list(cues),
        "left_out": {cue: why[cue] if linked else BY_FRAME for cue in SIGNS if cue not in cues},
    }
    of_clusters: Json = {
        str(id_): {
            "share": round(areas[id_] / ids.size, 6),
            **{cue: None if np.isnan(v[id_]) else round(float(v[id_]), 6) for cue, v in cues.items()},
        }
        for id_ in np.flatnonzero(areas)
        if id_
    }
    return chosen, of_clusters


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
        "refining": asdict(refining_of(settings)),
        "foreground": settings.foreground,
    }
    return Plan(
        "segment",
        folder,
        config,
        jobs,
        segment_video,
        model=partial(correlator_record, settings),
        estimate=partial(_estimate, settings, segmenting),
        finish=_next_step,
    )


def _next_step(folder: Path, done: list[Json]) -> str:
    """What was found, and how to go on, e.g. with the object that stands out."""
    counts = ", ".join(_found(entry) for entry in done)
    entry = next((e for e in done if e.get("foreground", {}).get("object")), None)
    if entry is None:
        return counts
    one, cues = str(entry["foreground"]["object"]), ", ".join(entry["foreground"]["cues"])
    track = shlex.join(["unspool", "track", entry["source"], "--from", str(folder), "--objects", one])
    choose = "Choose on the page what to carry at full frame rate"
    return f"{counts}\n{choose}; what stands out ({cues}): {track}"


def _found(entry: Json) -> str:
    objects = f"{entry['name']}: {counted(len(entry['objects']), 'object')}"
    one = entry.get("foreground", {})
    if not one.get("written"):
        return objects
    which = f"object {one['object']}" if one["object"] else "none, its masks are empty"
    return f"{objects}, foreground: {which} (videos/{entry['name']}/foreground)"


def _estimate(
    settings: SegmentSettings, segmenting: Json, jobs: Sequence[SegmentJob], workers: int
) -> Estimate:
    """Frames, time and peak memory in one line: a blank frame is encoded, clustering tried on small frames.

    Raises UsageError naming the least memory that works where the settings allow less.
    """
    correlator = correlator_of(settings)
    frames, seconds, peak, unreadable = 0, [0.0], 0, []
    measured: dict[tuple[int, int], float] = {}
    for job in jobs:
        try:
            with warnings.catch_warnings(action="ignore"), open_video(job.source) as whole:
                video = Some(whole, settings.every)
                need = bytes_needed(video, correlator, segmenting)
                size = (video.height, video.width)
                if size not in measured:
                    measured[size] = seconds_per_frame(whole, video, correlator, segmenting)
        except UsageError:
            raise
        except UnspoolError as error:
            unreadable.append((job.name, str(error)))
            continue
        memory_for_clustering(settings, video, correlator, segmenting)
        frames += len(video)
        seconds.append(len(video) * measured[size])
        own = settings.memory_each
        peak = max(peak, sum(need) if own is None else min(own, need[0] + segmenting_of(segmenting).memory))
    took = max(sum(seconds), max(seconds) * min(workers, len(jobs)))
    text = (
        f"{correlator.encoder.name}: {counted(frames, 'frame')}, about {in_words(took)}, "
        f"peak memory about {settings.processes * peak / 1e9:.1f} GB"
    )
    return Estimate(text, tuple(unreadable))

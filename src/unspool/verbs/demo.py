"""`unspool demo`: a rendered clip of which every mask is known, segmented, tracked and scored."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from unspool.data.vos import VosSequence, label_map
from unspool.errors import counted
from unspool.jobs import Estimate, Plan, Report, Stop
from unspool.masks import write_mask
from unspool.options import in_words
from unspool.protocols.tracking import (
    from_record,
    score_standing_still,
    score_table,
)
from unspool.rendered import RenderedClip, demo_scene
from unspool.results import Json
from unspool.verbs.scoring import write_scores
from unspool.verbs.segment import SegmentJob, segment_video
from unspool.verbs.segment_needs import estimate_of_frames
from unspool.verbs.segment_settings import SegmentSettings, segmenting_record
from unspool.verbs.track import Settings, TrackJob, track_video, tracking_plan, tracking_record
from unspool.video import VideoWriter

DEMO_PROTOCOL = "davis17-semi"


def demo_plan(*, output: Path | None, settings: Settings) -> Plan:
    """`unspool demo`: a rendered clip with known truth, segmented, tracked and scored; offline."""
    folder = output or Path("unspool-demo")
    tracking = tracking_record(settings)
    job = DemoJob("rendered", folder, settings, tracking)
    config = {"segmenting": segmenting_record(segmenting_of_demo(settings))}
    plan = tracking_plan("demo", folder, settings, tracking, [job], config=config)
    finish = partial(_finish_demo, job)
    estimate = partial(_estimate_demo, plan)
    return replace(plan, work=demo_video, finish=finish, estimate=estimate)


def _estimate_demo(plan: Plan, jobs: Sequence[DemoJob], workers: int) -> Estimate:
    """Of tracking, and of the frames that are segmented before."""
    assert plan.estimate is not None
    tracking, settings = plan.estimate(jobs, workers), segmenting_of_demo(jobs[0].settings)
    frames, seconds = estimate_of_frames(jobs[0].frames(), settings)
    segmenting = f"{frames} of its frames segmented before that, about {in_words(seconds)}"
    return Estimate(f"tracking with {tracking.text}; {segmenting}")


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

    def frames(self) -> Any:
        """As large and as many as they will be."""
        return RenderedClip(demo_scene(self.settings.seed)).video


def demo_video(job: DemoJob, report: Report, stop: Stop) -> Json:
    """Render the clip, its first mask and its truth to files as a user would have them; segment and track it.

    The segmentation is a second video of the page; tracking comes last, since its `done.json` ends the job.
    """
    report({"event": "note", "text": "rendering a clip of which every mask is known"})
    sequence = _render(job)
    found = segment_video(_demo_segment(job, sequence), report, stop)
    objects = counted(len(found["objects"]), "object")
    told = f"{counted(found['frames'], 'frame')} segmented, {objects} without any label"
    report({"event": "note", "text": f"{found['name']}: done, {told}"})
    done = track_video(_demo_track(job, sequence), report, stop)
    return done | {"identity": job.identity}


def _demo_track(job: DemoJob, sequence: VosSequence) -> TrackJob:
    return TrackJob(
        job.name, str(sequence.frames), job.folder, job.settings, job.tracking,
        sequence=sequence, protocol=DEMO_PROTOCOL,
    )  # fmt: skip


def _demo_segment(job: DemoJob, sequence: VosSequence) -> SegmentJob:
    settings = segmenting_of_demo(job.settings)
    return SegmentJob(
        f"{job.name}-segmented", str(sequence.frames), job.folder, settings, segmenting_record(settings)
    )


def segmenting_of_demo(settings: Settings) -> SegmentSettings:
    """Every other frame, small; by the default correlator where the named model is none."""
    from unspool.encoders.correlator import holds_block  # noqa: PLC0415

    return SegmentSettings(
        model=settings.model if holds_block(settings.model) else SegmentSettings.model,
        every=2,
        device=settings.device,
        precision=settings.precision,
        seed=settings.seed,
        segmenting={"resolution": [128, 224]},
    )


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
    still = [score_standing_still(job.name, truth, DEMO_PROTOCOL, [(0, label_map(truth[0]))])]
    line = write_scores(folder, score_table(scored, DEMO_PROTOCOL, still))
    clip = str(home / "clip.mp4")
    own = shlex.join(["unspool", "track", clip, "--mask", str(home / "first.png")])
    cut = shlex.join(["unspool", "segment", clip])
    return f"{line}\nThe same with files, as you would with your own: {own}\nWithout a mask: {cut}"

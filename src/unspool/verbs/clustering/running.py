"""One job: clips are encoded, clustered under every protocol with every model, and some of them drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from PIL import Image

from unspool.data.labelled import Clip, Pictures, RenderedPart
from unspool.encoders import encode_batches
from unspool.jobs import Interrupted, Report, Stop, stage_event
from unspool.masks import VOID, display_colours, draw_overlay, resize_labels
from unspool.protocols.clustering import Clustering, Labelled, score_clips
from unspool.results import Json, safe_name, write_json, written_whole
from unspool.verbs.clustering.task import SHOWN_VIDEOS, SetJob, Task, VideoJob, room, shown

SHOWN_FRAMES, SHOWN_HEIGHT = 6, 144  # of the pictures; px


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

    sketches = Sketches(task.folder / "pictures" / job.name, clips) if job.drawn else None
    clustered, hows = dict[str, Any](), task.of_unit(*units)
    clock = Clock(job.name, total * len(hows), report, stop)
    for rank, role in enumerate(sorted(task.models)):
        encoded = Encoded(clips, task.encoder(role), task, seen)
        clustered[role] = {}
        for number, (name, how) in enumerate(hows.items()):
            draw = partial(sketches.add, role) if sketches and name == shown(task) else None
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
            self.report(stage_event(self.video, "clustering", self.done, self.total, rate))
        if self.stop.is_set():
            raise Interrupted

    def until(self, done: float) -> None:
        """A protocol is through, whatever it told."""
        self(max(0.0, done - self.done))


LOCAL = (
    "ids of this data set are objects of their own video; clustering all of it takes object 1 of every video "
    "for one class, as published, and the number means little"
)


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
        """One strip per video and row: `JOB/NAME-truth.jpg`, `NAME-before.jpg`, `NAME-model.jpg`."""
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
            file = f"{self.folder.name}/{safe_name(name)}"
            found.append({"name": name, "file": file, "rows": list(rows), "ids": ids})
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

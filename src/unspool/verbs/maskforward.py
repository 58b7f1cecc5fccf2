"""`unspool eval tracking --protocol maskforward`: a job per sequence, and the table that they fill."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any

import numpy as np
import torch
from PIL import Image

from unspool.data.labelled import Clip, labelled_davis
from unspool.encoders import encode_batches, facts_of, load_encoder
from unspool.errors import DataError, UsageError
from unspool.jobs import Plan, Report, Stop
from unspool.protocols.maskforward import MaskForward, flows_at_hand, sampled, score_video
from unspool.results import Json, safe_name, write_json, written_whole

FPS = 24.0  # of DAVIS
WITHOUT_FLOW = "optical flow was left out: OpenCV is not installed; pip install 'unspool[flow]'"


@dataclass(frozen=True)
class ForwardJob:
    """One sequence."""

    name: str
    clip: Clip
    folder: Path
    how: MaskForward
    model: str
    raft: Path | None
    device: str
    precision: str
    seed: int

    @property
    def identity(self) -> Json:
        """Its files."""
        return {"files": hashlib.sha256(json.dumps(self.clip.files).encode()).hexdigest()[:16]}


def maskforward_plan(
    *,
    output: Path | None,
    data: str,
    names: tuple[str, ...],
    raft: Path | None = None,
    options: Json,
) -> Plan:
    """One job per sequence of DAVIS; `options` of the encoder as they stood on the command line.

    Raises UsageError before any work.
    """
    model, resolution = options.get("model", "dul-small"), options.get("resolution")
    device, precision = options.get("device", "auto"), options.get("precision", "fp32")
    seed = options.get("seed", 0)
    kind, _, path = data.partition(":")
    if kind not in ("davis17", "davis16") or not Path(path).is_dir():
        raise UsageError(f"--data {data}: maskforward takes davis17:FOLDER, a folder that is there")
    if raft is not None and not raft.is_file():
        raise UsageError(f"{raft}: no such file; --raft takes the weights of torchvision's raft_large")
    how = MaskForward(side=resolution or MaskForward.side)
    folder = output or Path(f"unspool-eval-maskforward-{safe_name(model)}")
    jobs = [
        ForwardJob(video.name, video, folder, how, model, raft, device, precision, seed)
        for video in _videos(Path(path), names)
    ]
    config = {"data": kind, "model": model, "precision": precision, "seed": seed, **asdict(how)}
    config |= {"flow": _installed(), "raft": str(raft) if raft else None}
    return Plan(
        "eval tracking",
        folder,
        config,
        jobs,
        forward,
        model=partial(_model_record, jobs[0]),
        finish=partial(_finish, [job.name for job in jobs]),
    )


def _videos(root: Path, names: tuple[str, ...]) -> list[Clip]:
    return [video for video in labelled_davis(root, names).videos if isinstance(video, Clip)]


def _installed() -> bool:
    return importlib.util.find_spec("cv2") is not None


@lru_cache(maxsize=1)
def _encoder(model: str, device: str, precision: Any, seed: int) -> Any:
    return load_encoder(model, device=device, precision=precision, seed=seed)


def _model_record(job: ForwardJob) -> Json:
    encoder = _encoder(job.model, job.device, job.precision, job.seed)
    if job.how.side % encoder.multiple:
        raise UsageError(
            f"an input of {job.how.side} px does not fit '{encoder.name}', whose sides are multiples of "
            f"{encoder.multiple} px; choose another --resolution"
        )
    return facts_of(encoder) | {"device": job.device}


def forward(job: ForwardJob, report: Report, stop: Stop) -> Json:
    """Score one sequence; returns what `done.json` says."""
    started = perf_counter()
    report({"event": "video", "video": job.name, "frames": len(job.clip)})
    encoder = _encoder(job.model, job.device, job.precision, job.seed)
    pictures, truth = job.clip.read()
    size = (job.how.side, job.how.side)
    images = [np.asarray(Image.fromarray(p).resize(size, Image.Resampling.BILINEAR)) for p in pictures]
    needed = sorted({t for seconds in job.how.seconds for t in sampled(len(truth), FPS, seconds)})
    features = _features([images[t] for t in needed], encoder)
    every = features.new_zeros((len(truth), *features.shape[1:]))
    every[needed] = features
    device = str(features.device)
    try:
        scores = score_video(
            images, truth.astype(np.uint8), every, FPS, dict(flows_at_hand(job.raft, device)), job.how
        )
    except DataError as error:
        raise DataError(f"{job.name}: {error}") from error
    seconds = perf_counter() - started
    record = {
        "name": job.name,
        "frames": len(truth),
        "seconds": round(seconds, 3),
        "frames_per_second": round(len(truth) / seconds, 2),
        "warnings": [] if _installed() else [WITHOUT_FLOW],
        "overlaps": {name: asdict(score) for name, score in scores.items()},
        "identity": job.identity,
    }
    write_json(job.folder / "videos" / job.name / "done.json", record)
    return record


@torch.inference_mode()
def _features(images: Sequence[Any], encoder: Any) -> torch.Tensor:
    pixels = torch.from_numpy(np.stack(images)).movedim(3, 1)
    return torch.cat([found["tokens"].float() for found in encode_batches(encoder, pixels)])


def _finish(names: Sequence[str], folder: Path, done: Sequence[Json]) -> str:
    """Means over sequences, the foreground's first, as published."""
    videos = {entry["name"]: entry["overlaps"] for entry in done}
    ways = list(next(iter(videos.values())))
    table: Json = {
        "protocol": "maskforward, IoU of the foreground",
        "missing": [name for name in names if name not in videos],
        "global": {w: round(fmean(v[w]["foreground"] for v in videos.values()), 6) for w in ways},
        "with background": {w: round(fmean(v[w]["both"] for v in videos.values()), 6) for w in ways},
        "sequences": {
            name: {way: round(scores[way]["foreground"], 6) for way in ways}
            for name, scores in videos.items()
        },
    }
    write_json(folder / "scores.json", table)
    with written_whole(folder / "scores.csv") as part:
        part.write_text(_csv(table, videos), "utf-8")
    return _sentence(table)


def _csv(table: Json, videos: Json) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["sequence", "way", "delta_t", "foreground", "foreground and background"])
    for name, scores in videos.items():
        writer.writerows([name, *way.rsplit("-", 1), s["foreground"], s["both"]] for way, s in scores.items())
    for way, value in table["global"].items():
        writer.writerow(["all", *way.rsplit("-", 1), value, table["with background"][way]])
    return out.getvalue()


def _sentence(table: Json) -> str:
    """As Table 11: a line per delta t."""
    lines: dict[str, list[str]] = {}
    for way, value in table["global"].items():
        name, step = way.rsplit("-", 1)
        lines.setdefault(step, []).append(f"{name} {100 * value:.1f}")
    found = "\n".join(f"maskforward, {step}: {', '.join(values)}" for step, values in lines.items())
    missing = table["missing"]
    return found + (f"\nwithout {', '.join(missing)}" if missing else "")

"""`unspool eval tracking`: sequences of a data set, or masks that were made elsewhere."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

from unspool.data.late import late_visor, late_ytvos
from unspool.data.vos import LabelMap, VosSequence, VosSet, davis, mask_trees
from unspool.errors import UsageError
from unspool.jobs import Plan, Report, Stop
from unspool.protocols.tracking import (
    from_record,
    protocol_named,
    score_csv,
    score_sequence,
    score_standing_still,
    score_table,
    sentence,
    to_record,
    video_scores,
    ytvos_g,
)
from unspool.results import Json, safe_name, write_json, written_whole
from unspool.verbs.track import Settings, TrackJob, masks_written, tracking_plan, tracking_record

DEFAULTS = {
    "davis17": "davis17-semi",
    "davis16": "davis16-official",
    "ytvos": "vos-late",
    "visor": "vos-late",
}


def eval_plan(
    *, output: Path | None, settings: Settings, data: str, names: tuple[str, ...], protocol: str | None
) -> Plan:
    """`unspool eval tracking --data KIND:PATH`: one job per sequence, scores over all of them.

    Where masks only start objects, as in YouTube-VOS valid, a submission is left instead of scores.
    """
    kind, colon, path = data.partition(":")
    if kind not in DEFAULTS or not colon:
        raise UsageError(f"--data {data}: expected KIND:PATH, KIND one of {', '.join(DEFAULTS)}")
    root = Path(path)
    if not root.is_dir():
        raise UsageError(f"--data {data}: no such folder {root}")
    protocol = protocol_named(protocol or DEFAULTS[kind])
    content = _content(kind, root, names)
    scored = all(s.scored for s in content.sequences)
    folder = output or Path(f"unspool-eval-{kind}-{safe_name(settings.model)}")
    tracking = tracking_record(settings)
    jobs = [
        TrackJob(
            s.name, str(s.frames), folder, settings, tracking, sequence=s, protocol=protocol if scored else ""
        )
        for s in content.sequences
    ]
    config = {"data": kind, "protocol": protocol if scored else "none: no truth", "split": content.split}
    finish = partial(_finish_eval, jobs, protocol, content.seen) if scored else _finish_unscored
    if kind == "ytvos":
        finish = partial(_finish_ytvos, jobs, finish)
    return tracking_plan("eval tracking", folder, settings, tracking, jobs, finish=finish, config=config)


def _content(kind: str, root: Path, names: tuple[str, ...]) -> VosSet:
    if kind == "ytvos":
        return late_ytvos(root, names)
    if kind == "visor":
        return late_visor(root, names)
    return VosSet(tuple(davis(root, year=int(f"20{kind[-2:]}"), names=names)))


def _finish_eval(
    jobs: Sequence[TrackJob],
    protocol: str,
    seen: frozenset[str] | None,
    folder: Path,
    done: Sequence[Json],
) -> str:
    """Scores over all sequences that are done, and their masks in the layout of the official tools."""
    records = {entry["name"]: entry["per_frame"] for entry in done}
    sequences = [job.sequence for job in jobs if job.sequence is not None and job.name in records]
    for sequence in sequences:
        link_official(folder, sequence.name, sequence.frame_names)
    scored = [from_record(s.name, records[s.name]) for s in sequences]
    still = [score_standing_still(s.name, s.truth, protocol, _starts(s)) for s in sequences]
    missing = [job.name for job in jobs if job.name not in records]
    table = score_table(scored, protocol, still, missing=missing)
    if g := ytvos_g(scored, {s.name: s.categories for s in sequences}, seen):
        table["ytvos-g"] = g
    return write_scores(folder, table)


def _starts(sequence: VosSequence) -> list[tuple[int, LabelMap]]:
    """Label maps that tracking starts from, by the number of the truth that they are of."""
    place = {frame: number for number, frame in enumerate(sequence.annotated)}
    return [(place[frame], labels) for frame, _, labels in sequence.given()]


def _finish_unscored(folder: Path, done: Sequence[Json]) -> str:
    return f"no truth: the masks of {len(done)} videos only start their objects, so nothing is scored"


def _finish_ytvos(
    jobs: Sequence[TrackJob],
    finish: Callable[[Path, Sequence[Json]], str],
    folder: Path,
    done: Sequence[Json],
) -> str:
    """What is said of the scores, and the submission."""
    names = {entry["name"] for entry in done}
    sequences = [job.sequence for job in jobs if job.sequence is not None and job.name in names]
    submission = folder / "submission.zip"
    with written_whole(submission) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        for sequence in sequences:
            stems = sequence.frame_names
            for mask, stem in zip(masks_written(folder, sequence.name, len(stems)), stems, strict=True):
                archive.write(mask, f"Annotations/{sequence.name}/{stem}.png")
    whole = "" if len(names) == len(jobs) else f", without {len(jobs) - len(names)} videos that failed"
    return f"{finish(folder, done)}; submission written to {submission}{whole}"


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


def write_scores(folder: Path, table: Json) -> str:
    """scores.json and scores.csv; returns what is said of them."""
    write_json(folder / "scores.json", table)
    with written_whole(folder / "scores.csv") as part:
        part.write_text(score_csv(table), "utf-8")
    return sentence(table)


def score_plan(
    *, output: Path | None, pred: Path, truth: Path, names: Sequence[str], protocol: str | None
) -> Plan:
    """`unspool eval tracking --pred DIR --truth DIR`: masks made elsewhere; no encoder, no frames."""
    protocol = protocol_named(protocol or "davis17-semi")
    folder = output or Path(f"unspool-eval-{safe_name(pred.resolve().name)}")
    jobs = [ScoreJob(p.name, p.prediction, p.truth, protocol) for p in mask_trees(pred, truth, names)]
    config: Json = {"pred": str(pred.resolve()), "truth": str(truth.resolve()), "protocol": protocol}
    config |= {"sequences": list(names)} if names else {}
    finish = partial(_finish_scores, [job.name for job in jobs], protocol)
    return Plan("eval tracking", folder, config, jobs, score_masks, finish=finish)


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
    return write_scores(folder, score_table(scored, protocol, missing=missing))

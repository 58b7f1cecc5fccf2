"""Many inputs, one pure function per input: done, recorded, continued.

A `Plan` says what a verb will do; `execute` does it: jobs that are done already are skipped, the others run
wherever `unspool.workers` puts them, `run.json` and the page are kept up to date, and what failed is named at
the end. A job is a small dataclass that can be pickled and holds all that it needs: done twice, it leaves the
same files.
"""

from __future__ import annotations

import os
import platform
import signal
import threading
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from unspool.errors import OutputError, UnspoolError, UsageError
from unspool.mirror import Mirror
from unspool.page import write_page
from unspool.results import Json, Run, parse_done, parse_run, read_done, refuse_other_settings
from unspool.workers import Cluster, Interrupted, Report, Stop, Work, run_jobs, stage_event

__all__ = [
    "Estimate",
    "Interrupted",
    "Job",
    "Plan",
    "Report",
    "Stop",
    "execute",
    "run_jobs",
    "stage_event",
    "stopping",
]
KEPT_ASIDE = (
    "identity",
    "cues",
    "per_frame",
    "clustered",
    "overlaps",
    "shares",
    "pictures",
)  # of done.json: not for run.json


class Job(Protocol):
    """One item of work; `identity` holds what a rerun must find unchanged to keep the earlier result."""

    @property
    def name(self) -> str:
        """Unique within the result."""

    @property
    def identity(self) -> Json:
        """Input files with size and time stamp, and whatever else decides the result."""


@dataclass(frozen=True)
class Plan:
    """What a verb will do, before anything is written."""

    verb: str
    folder: Path
    config: Json  # settings that decide results; a rerun with others is refused
    jobs: Sequence[Any]
    work: Work
    model: Callable[[], Json] | None = None  # loads the encoder; returns its name, weight hash and sizes
    failures: tuple[tuple[str, str], ...] = ()  # inputs that cannot be worked on, with the reason
    finish: Callable[[Path, list[Json]], str] | None = None  # writes scores; returns the sentence to print
    estimate: Callable[[Sequence[Any], int], Estimate] | None = None  # of these jobs, with so many workers
    speed: Callable[[Sequence[Json]], Json] | None = None  # of what is done, for `run.json`


@dataclass(frozen=True)
class Estimate:
    """What is known of jobs beforehand."""

    text: str  # frames, time and memory in one line
    unreadable: tuple[tuple[str, str], ...] = ()  # jobs that will fail, with the reason


# ------------------------------------------------------------------------------------------ running


def execute(
    plan: Plan,
    report: Report,
    *,
    command: Sequence[str],
    overwrite: bool = False,
    workers: int = 1,
    ray: str | None = None,
    address: str | None = None,
    dry_run: bool = False,
) -> int:
    """Carry out a plan; returns the exit code (0, 1, 130, 143).

    `ray`: the cluster that does the jobs, instead of so many `workers` of this machine. `address`: where the
    result is copied to, and continued from.

    Raises UsageError when the folder holds results of other settings and when the plan cannot be kept within
    its memory, OutputError when the folder cannot be written; nothing has been written, removed or
    fetched from the address then.
    """
    record: Json = {
        "unspool": _version(),
        "verb": plan.verb,
        "command": list(command),
        "config": plan.config,
        "model": plan.model() if plan.model else {},
        "machine": machine(),
    }
    Run(plan.folder, record, overwrite=overwrite)  # refuses other settings, as the next lines do
    mirror = Mirror(address, plan.folder) if address else None
    if mirror and not overwrite:
        mirror.look()
        _refuse_other_settings_at(mirror, record)
    todo, done = _remaining(plan, overwrite, mirror)
    if dry_run:
        return _describe(plan, report, todo, done, workers)
    estimate = plan.estimate(todo, workers) if todo and plan.estimate else None
    _make_writable(plan.folder)
    if mirror and not overwrite:
        mirror.fetch()
    run = Run(plan.folder, record, overwrite=overwrite)
    with stopping() as stop:
        run.begin()
        if mirror and overwrite:
            mirror.clear()
        unfinished = {job.name for job in todo}
        for earlier in done:
            report({"event": "skipped", "video": earlier["name"]})
            run.keep(_shown(earlier))
        if estimate:
            report({"event": "note", "text": estimate.text})
        outcomes = [*done]
        for name, reason in plan.failures:
            outcomes.append(_failed(run, report, name, reason))
        gpus = record["model"].get("device", "cpu") != "cpu"
        cluster = Cluster(ray, plan.folder, gpus) if ray else None
        for job, outcome in run_jobs(todo, plan.work, report, stop, workers=workers, cluster=cluster):
            outcomes.append(_recorded(run, report, job.name, outcome))
            write_page(plan.folder)
            if outcomes[-1]["status"] == "done":
                unfinished.discard(job.name)
                if mirror:
                    _copy_early(mirror, unfinished, report)
        code = _end(plan, run, report, outcomes, stop)
        if mirror:
            mirror.copy(unfinished)
            report({"event": "note", "text": f"copied to {mirror.address}"})
        return code


def _refuse_other_settings_at(mirror: Mirror, record: Json) -> None:
    name = "run.json"
    text = mirror.read(name)
    if text is not None and (earlier := parse_run(text, f"{mirror.address}/{name}")) is not None:
        refuse_other_settings(earlier, record, mirror.address)


def _copy_early(mirror: Mirror, unfinished: Collection[str], report: Report) -> None:
    """What cannot be copied now is copied at the end, with all that is new by then."""
    try:
        mirror.copy(unfinished)
    except OutputError as error:
        report({"event": "note", "text": f"{error}; tried again at the end"})


def _remaining(plan: Plan, overwrite: bool, mirror: Mirror | None) -> tuple[list[Any], list[Json]]:
    """Jobs to do, and the records of those that are done; UsageError where an input has changed."""
    if overwrite:
        return list(plan.jobs), []
    todo, done = [], []
    for job in plan.jobs:
        there = mirror.read(f"videos/{job.name}/done.json") if mirror else None
        record = read_done(plan.folder, job.name) if there is None else parse_done(there)
        if record is None:
            todo.append(job)
            continue
        changed = [k for k, v in job.identity.items() if record.get("identity", {}).get(k) != v]
        if changed:
            where = mirror.address if mirror and there is not None else plan.folder
            raise UsageError(
                f"{where}: '{job.name}' was done with another {' and another '.join(changed)}; "
                "choose another folder with -o, or --overwrite to start again"
            )
        done.append({**record, "name": job.name, "status": "done"})
    return todo, done


def _recorded(run: Run, report: Report, name: str, outcome: Json | BaseException) -> Json:
    if isinstance(outcome, Interrupted):
        entry: Json = {"name": name, "status": "interrupted"}
        run.video(entry)
        return entry
    if isinstance(outcome, BaseException):
        known = isinstance(outcome, UnspoolError)
        reason = str(outcome) if known else f"{name}: {type(outcome).__name__}: {outcome}"
        trace = "" if known else "".join(traceback.format_exception(outcome))
        return _failed(run, report, name, reason, trace)
    entry = {**outcome, "status": "done"}
    run.video(_shown(entry))
    report({"event": "done", "video": name, **_shown(entry)})
    return entry


def _shown(entry: Json) -> Json:
    return {k: v for k, v in entry.items() if k not in KEPT_ASIDE}


def _failed(run: Run, report: Report, name: str, reason: str, trace: str = "") -> Json:
    entry = {"name": name, "status": "failed", "error": reason}
    run.video(entry)
    report({"event": "failed", "video": name, "error": reason, "traceback": trace})
    return entry


def _end(plan: Plan, run: Run, report: Report, outcomes: list[Json], stop: Stopping) -> int:
    done = [o for o in outcomes if o["status"] == "done"]
    failed = [o for o in outcomes if o["status"] == "failed"]
    status = "interrupted" if stop.is_set() else "failed" if failed else "done"
    if done and not stop.is_set() and plan.finish:
        try:
            report({"event": "result", "text": plan.finish(plan.folder, done)})
        except UnspoolError:
            run.end("failed")
            raise
    timings: Json = {}
    for outcome in done:
        for stage, seconds in outcome.get("timings", {}).items():
            timings[stage] = round(timings.get(stage, 0.0) + seconds, 3)
    speed = plan.speed(done) if plan.speed else {}
    run.record |= {"speed": speed} if speed else {}
    run.end(status, timings=timings, warnings=[w for o in done for w in o.get("warnings", [])])
    page = write_page(plan.folder)
    counted: Json = {"timings": timings, "frames": _frames(done), "speed": speed}
    report({"event": "end", "status": status, "page": str(page), **counted})
    if stop.is_set():
        report({"event": "summary", "text": "stopped; run the same command again to continue"})
        return 128 + stop.signal
    if failed:
        names = ", ".join(o["name"] for o in failed)
        report({"event": "summary", "text": f"{len(failed)} of {len(outcomes)} failed: {names}"})
    return 1 if failed else 0


def _frames(done: list[Json]) -> int:
    return sum(o.get("frames", 0) for o in done)


def _describe(plan: Plan, report: Report, todo: list[Any], done: list[Json], workers: int) -> int:
    """The answer of a dry run."""
    estimate = plan.estimate(todo, workers) if todo and plan.estimate else None
    failing = dict([*plan.failures, *(estimate.unreadable if estimate else ())])
    lines = [f"{name}: would fail: {reason}" for name, reason in failing.items()]
    lines += [f"{record['name']}: already done" for record in done]
    lines += [f"{job.name} -> {plan.folder / 'videos' / job.name}" for job in todo if job.name not in failing]
    for line in [*lines, *([estimate.text] if estimate else [])]:
        report({"event": "result", "text": line})
    return 1 if failing else 0


def _make_writable(folder: Path) -> None:
    try:
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder}: is a file, not a folder; choose another with -o")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError.of(folder, error) from error


# ------------------------------------------------------------------------------------------ stopping


class Stopping:
    """Set by the first SIGINT or SIGTERM; a second SIGINT ends the process at once."""

    def __init__(self) -> None:
        self.signal = 0

    def is_set(self) -> bool:
        """True once a signal came."""
        return self.signal != 0

    def __call__(self, number: int, _: FrameType | None) -> None:
        """Handle a signal."""
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or number


@contextmanager
def stopping() -> Iterator[Stopping]:
    """Catch SIGINT and SIGTERM while the work runs (main thread only, elsewhere nothing is caught)."""
    stop = Stopping()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ------------------------------------------------------------------------------------------- record


def machine() -> Json:
    """What the results were made on."""
    import torch  # noqa: PLC0415 (only when work starts)

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "gpu": gpu,
    }


def environment() -> list[str]:
    """What `--version -v` tells: libraries, codecs, devices."""
    import av  # noqa: PLC0415
    import torch  # noqa: PLC0415

    devices = ["cpu"] + [
        f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())
    ]
    if torch.backends.mps.is_available():
        devices.append("mps")
    encoders = [name for name in ("libx264", "libopenh264", "mpeg4") if name in av.codecs_available]
    return [
        f"python {platform.python_version()}, torch {torch.__version__}, PyAV {av.__version__}",
        f"libavcodec {'.'.join(map(str, av.library_versions['libavcodec']))}, writes {', '.join(encoders)}",
        f"devices: {', '.join(devices)}",
    ]


def _version() -> str:
    from unspool import __version__  # noqa: PLC0415 (the package's face imports lazily)

    return __version__

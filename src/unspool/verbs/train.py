"""What `unspool train` does: settings, videos, processes, the loop, and the folder that it leaves."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any

import torch

from unspool import __version__
from unspool.data.clips import Clips, Decoded, OnDevice, Stored
from unspool.data.footage import Footage
from unspool.data.frames import Decoder, FrameStore
from unspool.data.index import Index, cache_folder
from unspool.encoders import device_named, load_encoder
from unspool.errors import UnspoolError, UnspoolWarning, UsageError
from unspool.jobs import Stopping, machine, stopping
from unspool.ops.distributed import ALONE
from unspool.page import duration, write_page
from unspool.results import Json, Run
from unspool.tracking import peak_memory
from unspool.training import Course, Rhythm, train
from unspool.training.footage import (
    Keeping,
    Kept,
    clips_of,
    index_all,
    keep_frames,
    rendered_scenes,
    short_side,
    without_broken,
)
from unspool.training.learner import Trainer, plain
from unspool.training.processes import Machines, Processes, start
from unspool.training.settings import Settings, method_named
from unspool.training.validation import HeldOut, Validation

PAGE_EVERY = 20.0  # s
Report = Callable[[Json], None]


@dataclass(frozen=True)
class Order:
    """What is asked for."""

    settings: Settings
    data: tuple[str, ...]  # [KIND:]PATH
    folder: Path
    model: str | None = None  # to start from; None: random weights
    machines: Machines = field(default_factory=Machines)
    frames: Keeping = "auto"
    workers: int | None = None  # processes that decode, render and prepare clips; None: as it seems best
    max_broken: float = 0.2
    exclude_eval: bool = False  # videos that `eval discovery` scores
    rhythm: Rhythm = field(default_factory=Rhythm)
    held_out: HeldOut = field(default_factory=HeldOut)
    overwrite: bool = False
    wandb: bool = False


def carry_out(order: Order, report: Report, command: Sequence[str]) -> int:
    """Train; returns the exit code: 0, or 128 and the signal that ended it. Only the first process tells."""
    _refuse_at_once(order)
    processes = start(order.machines, order.settings.training.precision)
    first = processes.ranks.rank == 0
    tell = report if first else _silent
    try:
        with stopping() as stop, _warnings_told(tell):
            _train(order, processes, tell, stop, command)
    except Stopped:
        pass
    except UnspoolError:
        if first:
            raise
        return 0  # it is told once; a failure here would end the first process before it has told
    processes.end()
    if first and stop.is_set():
        report({"event": "summary", "text": "stopped; run the same command again to continue"})
    return 128 + stop.signal if first and stop.is_set() else 0


class Stopped(UnspoolError):
    """Asked to end before learning began; what is decoded and rendered is kept."""


def _silent(event: Json) -> None:
    pass


def _refuse_at_once(order: Order) -> None:
    """What is wrong before any video is looked at."""
    if not order.data and not order.settings.training.rendered:
        raise UsageError(
            "nothing to train on; name videos with --data VIDEOS, or --rendered 200 for rendered ones"
        )
    if order.exclude_eval and not order.data:
        raise UsageError("--exclude-eval: there is no --data to take videos from; name it, or leave this out")
    if order.model is None:
        method_named(order.settings.method).build(order.settings.config)  # some need one to start from


def _train(
    order: Order, processes: Processes, report: Report, stop: Stopping, command: Sequence[str]
) -> None:
    settings = order.settings
    index = processes.in_turn(lambda: _index(order))
    encoder: Any = load_encoder(order.model, device="cpu") if order.model else None
    runs: list[Run] = []  # of the first process
    record = _record(order, index, encoder, command, processes)
    processes.first(lambda: runs.append(_begin(order, record)))
    report = _with_page(report, order.folder)
    try:
        clips, kept = _clips(order, index, processes, report, stop)
        trainer = Trainer(settings, steps_of(settings, clips), _named(index), processes, encoder)
        report({"event": "note", "text": sentence(settings, clips, trainer.steps, kept.where)})
        for run in runs:
            run.record["steps"] = trainer.steps
            run.save()
        course = Course(
            trainer,
            clips,
            settings.augmentation,
            order.folder,
            order.rhythm,
            report,
            stop,
            accumulate=settings.training.accumulate,
            workers=_loading_workers(order, kept, processes),
            validation=Validation(order.held_out, order.folder / "pictures"),
            wandb=order.wandb,
        )
        train(course)
    except UnspoolError as error:
        status = "interrupted" if isinstance(error, Stopped) else "failed"
        with suppress(UnspoolError):  # where the disk is full, that was told already
            for run in runs:
                run.end(status, warnings=[str(error)] if status == "failed" else [])
                write_page(order.folder)
        raise
    processes.first(lambda: _conclude(order, runs[0], trainer, report))


def _conclude(order: Order, run: Run, trainer: Trainer, report: Report) -> None:
    finished = trainer.done == trainer.steps
    if finished:
        report({"event": "note", "text": _praise(order, trainer)})
    run.end("done" if finished else "interrupted", timings={"learning": round(trainer.seconds, 1)})
    report({"event": "end", "page": str(write_page(order.folder)), "timings": {}, "frames": 0})


def _praise(order: Order, trainer: Trainer) -> str:
    """What there is now, and how to use it."""
    best = trainer.best
    scored = f"; best J {100 * best['J']:.1f} at step {best['step']:,}" if best else ""
    verb = "segment clip.mp4" if order.settings.method == "ba" else "track clip.mp4 --mask first.png"
    use = f"unspool {verb} --model {order.folder}"
    return f"learnt in {trainer.done:,} steps, {duration(trainer.seconds)}{scored}. To use it: {use}"


# ------------------------------------------------------------------------------------- what is learnt from


def _index(order: Order) -> Index | None:
    if not order.data:
        return None
    return index_all(order.data, order.max_broken, exclude_eval=order.exclude_eval)


def _clips(
    order: Order, index: Index | None, processes: Processes, report: Report, stop: Stopping
) -> tuple[Clips, Kept]:
    """All clips of the run, their frames decoded and rendered by the first process of each machine."""
    made = rendered_scenes(order.settings)
    videos = index.videos if index else ()
    progress = partial(_tell_storing, report, stop, perf_counter())
    kept = processes.in_turn(
        lambda: keep_frames(
            (*videos, *made),
            order.settings,
            order.frames,
            processes.device,
            workers=_storing_workers(order, made),
            progress=progress,
        )
    )
    index = without_broken(index, kept, order.max_broken)
    clips = clips_of(index.videos if index else (), made, kept.source, order.settings, order.max_broken)
    if clips.batch % processes.ranks.size:
        raise UsageError(
            f"{clips.batch} clips of a step cannot be shared by {processes.ranks.size} processes; use "
            f"--set {order.settings.method}.clips=N with a multiple of {processes.ranks.size}"
        )
    return clips, kept


def _storing_workers(order: Order, made: Sequence[Footage]) -> int:
    """Videos decode fast in one process; scenes are rendered one per core."""
    if order.workers is not None:
        return order.workers
    return (os.cpu_count() or 1) if made else 0


def _loading_workers(order: Order, kept: Kept, processes: Processes) -> int:
    """None where frames only have to be copied, or the CPU is busy learning."""
    if isinstance(kept.source, OnDevice):
        return 0
    if order.workers is not None:
        return order.workers
    if processes.device.type == "cpu" and isinstance(kept.source, Stored):
        return 0
    here = max(1, torch.cuda.device_count() if processes.ranks.size > 1 else 1)
    return max(1, min(8, (os.cpu_count() or 1) // here - 1))


def _tell_storing(report: Report, stop: Stopping, started: float, done: int, total: int) -> None:
    if stop.is_set():
        raise Stopped("stopped while frames were decoded")
    rate = done / max(perf_counter() - started, 1e-6)
    report({"event": "storing", "done": done, "total": total, "seconds_left": round((total - done) / rate)})


def steps_of(settings: Settings, clips: Clips) -> int:
    """Of the optimiser, in the whole run."""
    how = settings.training
    if how.steps is not None:
        return how.steps
    return max(1, int(settings.config.epochs) * clips.steps // how.accumulate)


def sentence(settings: Settings, clips: Clips, steps: int, where: str) -> str:
    """What lies ahead, in one line."""
    rendered = f" and {len(clips.made):,} rendered scenes" if clips.made else ""
    batch = f"{clips.batch} clips of {settings.sampling.frames} frames"
    if settings.training.accumulate > 1:
        batch = f"{settings.training.accumulate} times {batch}"
    view = "x".join(map(str, settings.augmentation.size))
    return (
        f"{len(clips.videos):,} videos{rendered}; {steps:,} steps of {batch} at {view}, "
        f"{clips.steps:,} batches an epoch; frames: {where}"
    )


# ------------------------------------------------------------------------------------------ the record


def _record(
    order: Order, index: Index | None, encoder: Any, command: Sequence[str], processes: Processes
) -> Json:
    start_from = {"name": "random", "weights_hash": None}
    if encoder is not None:
        start_from = {"name": encoder.name, "weights_hash": encoder.weights_hash}
    return {
        "unspool": __version__,
        "verb": f"train {order.settings.method}",
        "command": list(command),
        "config": plain({**order.settings.flat(), "data": _named(index), **_excluded(order, index)}),
        "model": start_from,
        "machine": {**machine(), "device": str(processes.device), "processes": processes.ranks.size},
    }


def _named(index: Index | None) -> str:
    """The videos, as a rerun compares them."""
    return f"{len(index.videos)} videos, digest {index.digest}" if index else "no videos"


def _excluded(order: Order, index: Index | None) -> Json:
    return {"exclude_eval": f"{index.excluded} videos"} if index and order.exclude_eval else {}


def _begin(order: Order, record: Json) -> Run:
    """The folder belongs to this run from here on. Raises UsageError where it holds another."""
    run = Run(order.folder, record, overwrite=order.overwrite)
    run.begin()
    return run


def _with_page(report: Report, folder: Path) -> Report:
    """`report`, and the page made anew now and then, so that a reload shows the newest."""
    last = [0.0]

    def tell(event: Json) -> None:
        report(event)
        now = monotonic()
        seen = event["event"] in ("validated", "continued")
        if seen or (event["event"] == "step" and now - last[0] > PAGE_EVERY):
            last[0] = now
            write_page(folder)

    return tell


@contextmanager
def _warnings_told(report: Report) -> Iterator[None]:
    """UnspoolWarnings go where everything else is told; processes that prepare clips inherit it."""

    def show(message: Warning | str, category: type[Warning], *more: Any, **named: Any) -> None:
        if issubclass(category, UnspoolWarning):
            report({"event": "warning", "text": str(message)})

    with warnings.catch_warnings():
        warnings.simplefilter("always", UnspoolWarning)
        warnings.showwarning = show
        yield


# ------------------------------------------------------------------------------------------ --dry-run


def describe(order: Order, report: Report) -> int:
    """Say what would be done, with time and memory of one step, measured on a single clip."""
    _refuse_at_once(order)
    settings = order.settings
    index = _index(order)
    made, videos = rendered_scenes(settings), index.videos if index else ()
    side = short_side(settings)
    clips = clips_of(videos, made, Decoded(side, Decoder()), settings, order.max_broken)
    store = FrameStore(cache_folder() / "frames" / f"short-{side}", side)
    size = sum(map(store.bytes, (*videos, *made))) / 1e9
    steps = steps_of(settings, clips)
    report({"event": "note", "text": sentence(settings, clips, steps, f"{size:.1f} GB in {store.folder}")})
    encoder: Any = load_encoder(order.model, device="cpu") if order.model else None
    seconds, memory = measure_step(settings, device_named(order.machines.device), encoder)
    text = (
        f"{order.folder}: about {duration(seconds)} a step, {duration(seconds * steps)} in all, peak memory "
        f"about {memory / 1e9:.1f} GB"
    )
    report({"event": "note", "text": text})
    return 0


def measure_step(
    settings: Settings, device: torch.device, encoder: torch.nn.Module | None = None
) -> tuple[float, float]:
    """(s, peak bytes) of a whole step, about: as many times one of a single clip as it has clips."""
    method, how = method_named(settings.method), settings.training
    learner = method.build(settings.config, encoder, ALONE).to(device)
    view = (1, settings.sampling.frames, 3, *settings.augmentation.size)
    clip = torch.randint(0, 256, view, dtype=torch.uint8, device=device)
    before = peak_memory(device)
    for _ in range(2):  # the first is slower
        started = perf_counter()
        loss, _ = method.loss(learner, clip, torch.Generator().manual_seed(0), ALONE)
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = perf_counter() - started
    clips, peak = settings.config.clips, peak_memory(device)
    return seconds * clips * how.accumulate, peak + (clips - 1) * (peak - before)

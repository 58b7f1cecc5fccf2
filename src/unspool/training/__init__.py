"""Train a method: one loop for all of them, on one process or many.

A method module (`unspool.methods`) offers `Config`, `build`, `loss`, `optimiser`, `encoder_of`, and
`after_step` where its paper has one; everything else is here. The order is that of time: draw clips, learn
from them, log, validate, save. The random numbers of a step come from (seed, step), its clips from (seed,
epoch, position), so a run that continues from a checkpoint repeats what it would have done.
"""

from __future__ import annotations

import io
import math
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import torch
from jaxtyping import UInt8
from torch import Tensor

from unspool.data import augment
from unspool.data.augment import Augmentation
from unspool.data.clips import ClipBatch, Clips, load_batches
from unspool.encoders import save_encoder
from unspool.encoders.correlator import Correlator, save_correlator
from unspool.errors import OutputError, UnspoolError
from unspool.tracking import peak_memory
from unspool.training.checkpoints import newest_checkpoint, save_checkpoint, write_durably
from unspool.training.journal import Journal
from unspool.training.learner import Trainer
from unspool.training.settings import Json
from unspool.training.validation import Validation
from unspool.workers import stage_event

POINTS = 500  # lines of log of a whole run, about
Report = Callable[[Json], None]
Batch = tuple[ClipBatch, UInt8[Tensor, "b t 3 H W"]]  # where clips come from, and their first views


class Stop(Protocol):
    """Asks whether the run should end after the step in hand."""

    def is_set(self) -> bool:
        """True once the run was asked to end."""


@dataclass(frozen=True)
class Rhythm:
    """How often what stands beside learning is done; none of it changes the weights."""

    log_every: int | None = None  # steps; None: about 500 times in a run
    validate_every: int | None = None  # steps; None: ten times in a run; 0: never
    checkpoint_every: int | None = None  # steps, at each validation too; None: by the clock
    checkpoint_minutes: float = 10.0
    keep: int = 3  # newest checkpoints


@dataclass
class Course:
    """One sitting: a learner, what it learns from, and where that is written down."""

    trainer: Trainer
    clips: Clips
    augmentation: Augmentation
    folder: Path
    rhythm: Rhythm
    report: Report
    stop: Stop
    accumulate: int = 1  # batches of a step
    workers: int = 0  # processes that prepare clips
    validation: Validation | None = None
    wandb: bool = False

    def __post_init__(self) -> None:
        steps, own = self.trainer.steps, self.rhythm
        self.rhythm = replace(
            own,
            log_every=max(1, steps // POINTS) if own.log_every is None else own.log_every,
            validate_every=max(1, steps // 10) if own.validate_every is None else own.validate_every,
        )
        self.journal: Journal | None = None  # of the first process
        self.meter = Meter()
        self.saved, self.saved_at = -1, perf_counter()  # step of the newest checkpoint, and when

    @property
    def checkpoints(self) -> Path:
        """Where they are."""
        return self.folder / "checkpoints"


def train(run: Course) -> None:
    """Learn until the last step, or until asked to stop. What was learnt is saved either way.

    Continues from the newest whole checkpoint of the folder. Raises UsageError where that is of other
    settings, DataError for videos that change, OutputError for a folder that cannot be written, and
    UnspoolError for a loss that is not finite.
    """
    trainer, processes = run.trainer, run.trainer.processes
    continue_from_checkpoint(run)
    watch = Watch(run)
    with _journal(run), closing(_batches(run)) as batches:
        if run.saved < 0 and run.rhythm.validate_every:  # what learning starts from
            if not validate(run):
                return
            save(run)
        while trainer.done < trainer.steps:
            drawn, trouble = _draw(run, batches)
            ending, due = processes.any(run.stop.is_set() or trouble is not None, _due(run))
            if ending:
                watch.finish()
                save(run)
                processes.settle(trouble)
                break
            logged = trainer.step([views for _, views in drawn])
            watch(drawn, logged)
            run.meter.count(logged, sum(views.shape[0] * views.shape[1] for _, views in drawn))
            if _falls_on(run.rhythm.log_every, trainer):
                log(run)
            if _falls_on(run.rhythm.validate_every, trainer):
                watch.finish()
                validate(run)
                save(run)
            elif due or _falls_on(run.rhythm.checkpoint_every, trainer):
                watch.finish()
                save(run)
        save(run)


def _falls_on(every: int | None, trainer: Trainer) -> bool:
    return bool(every) and (trainer.done % (every or 1) == 0 or trainer.done == trainer.steps)


# ------------------------------------------------------------------------------------------- clips


def _batches(run: Course) -> Generator[ClipBatch]:
    """From where the trainer stands, on, in the middle of an epoch or not."""
    ranks = run.trainer.processes.ranks
    start = divmod(run.trainer.done * run.accumulate, run.clips.steps)
    yield from load_batches(run.clips, start=start, rank=ranks.rank, ranks=ranks.size, workers=run.workers)


def _draw(run: Course, batches: Iterator[ClipBatch]) -> tuple[list[Batch], UnspoolError | None]:
    """The batches of a step; or what is wrong with their videos."""
    started = perf_counter()
    try:
        found = [next(batches) for _ in range(run.accumulate)]
    except UnspoolError as error:
        return [], error
    device = run.trainer.processes.device
    drawn = [(batch, first_view(batch.to(device), run.augmentation)) for batch in found]
    run.meter.loading += perf_counter() - started
    return drawn, None


def first_view(batch: ClipBatch, how: Augmentation) -> UInt8[Tensor, "b t 3 H W"]:
    """Clips as the method sees them, on the device of their frames; what is not of a frame is 0."""
    draws = augment.draw(how, batch.sizes, batch.generators())
    views = augment.place(batch.frames, draws)
    if not (how.jitter or how.grey or how.blur):
        return views.frames
    return (augment.recolour(views.frames, draws) * 255).round_().to(torch.uint8)


# -------------------------------------------------------------------------- a loss that is not finite


class Watch:
    """Looks at the loss of every step; on a GPU one step late, so that nothing waits for it."""

    def __init__(self, run: Course) -> None:
        self.run = run
        self.late = 1 if run.trainer.processes.device.type == "cuda" else 0
        self.open: deque[tuple[int, list[Batch], dict[str, Tensor]]] = deque()

    def __call__(self, drawn: list[Batch], logged: dict[str, Tensor]) -> None:
        """Take a step's batches and what it logged. Raises UnspoolError, with the batch in a file."""
        self.open.append((self.run.trainer.done, drawn, logged))
        while len(self.open) > self.late:
            self._look(*self.open.popleft())

    def finish(self) -> None:
        """Look at all that is left: before weights are saved."""
        while self.open:
            self._look(*self.open.popleft())

    def _look(self, step: int, drawn: list[Batch], logged: dict[str, Tensor]) -> None:
        error, value = None, float(logged["loss"])
        if not math.isfinite(value):
            path = keep_batch(self.run, step, drawn, logged)
            error = UnspoolError(
                f"step {step}: the loss is {value}, not a finite number; the batch is kept in {path}. Start "
                "again in another folder with a lower learning rate, clipped gradients (--set "
                "training.clip_gradients=1.0) or --precision fp32; what was saved before is whole"
            )
        self.run.trainer.processes.settle(error)


def keep_batch(run: Course, step: int, drawn: list[Batch], logged: dict[str, Tensor]) -> Path:
    """Write what a step learnt from, for inspection with `torch.load`."""
    rank = run.trainer.processes.ranks.rank
    path = run.folder / f"not-finite-step-{step:06d}{f'-rank{rank}' if rank else ''}.pt"
    content = io.BytesIO()
    clips = [clip for batch, _ in drawn for clip in batch.clips]
    torch.save(
        {
            "step": step,
            "logged": {name: float(value) for name, value in logged.items()},
            "videos": [clip.video for clip in clips],
            "frames": [clip.indices for clip in clips],
            "views": [views.cpu() for _, views in drawn],
        },
        content,
    )
    try:
        write_durably(path, content.getbuffer())
    except OSError as error:
        raise OutputError.of(path, error) from error
    return path


# --------------------------------------------------------------------------------- log, validate, save


@dataclass
class Meter:
    """What happened since the last line of log."""

    totals: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0
    frames: int = 0
    loading: float = 0.0  # s of waiting for clips
    beside: float = 0.0  # s of validating and saving
    started: float = field(default_factory=perf_counter)

    def count(self, logged: dict[str, Tensor], frames: int) -> None:
        """A step is done."""
        for name, value in logged.items():
            self.totals[name] = self.totals[name] + value if name in self.totals else value.clone()
        self.steps, self.frames = self.steps + 1, self.frames + frames

    def read(self) -> tuple[dict[str, float], float]:
        """Means over the steps, rates, and the seconds that learning took."""
        means = {name: float(total) / self.steps for name, total in self.totals.items()}
        seconds = max(perf_counter() - self.started - self.beside, 1e-9)
        rates = {"steps_per_second": self.steps / seconds, "frames_per_second": self.frames / seconds}
        return {**means, **rates, "loading": self.loading / seconds}, seconds


def log(run: Course) -> None:
    """A line of log, of the mean over processes since the last one."""
    trainer, meter = run.trainer, run.meter
    numbers, seconds = meter.read()
    numbers = trainer.processes.mean(numbers)
    numbers["frames_per_second"] *= trainer.processes.ranks.size
    trainer.seconds += seconds
    record = {
        "step": trainer.done,
        "epoch": round(trainer.done * run.accumulate / run.clips.steps, 4),
        **numbers,
        "learning_rate": trainer.learning_rate,
        "memory_gb": peak_memory(trainer.processes.device) / 1e9,
        "seconds": trainer.seconds,
    }
    run.meter = Meter()
    trainer.processes.first(lambda: _tell(run, record))


def _tell(run: Course, record: Json) -> None:
    assert run.journal is not None
    run.journal.write(record)
    run.report({"event": "step", "steps": run.trainer.steps, **record})


class CutOffError(Exception):
    """Asked to stop before anything was learnt."""


def validate(run: Course) -> bool:
    """Score what is learnt so far, on the first process; the others wait. False: stopped before step 1."""
    started, cut = perf_counter(), False

    def score() -> None:
        nonlocal cut
        try:
            _validate(run)
        except CutOffError:
            cut = True

    run.trainer.processes.first(score)
    run.meter.beside += perf_counter() - started
    return not run.trainer.processes.any(cut, False)[0]


def _validate(run: Course) -> None:
    if run.validation is None or run.journal is None:
        return
    trainer, started = run.trainer, perf_counter()

    def told(clips: int, total: int, frames: int) -> None:
        if run.stop.is_set() and not trainer.done:
            raise CutOffError
        seconds = max(perf_counter() - started, 1e-3)
        left = seconds * (total - clips) / max(clips, 1)
        run.report(stage_event(f"step {trainer.done:,}", "validating", clips, total, frames / seconds, left))

    scores = run.validation(trainer.encoder().to(trainer.processes.device), trainer.done, told)
    better = trainer.best is None or scores["J"] > trainer.best["J"]
    if better:
        trainer.best = {"step": trainer.done, **scores}
    run.journal.write({"step": trainer.done, **scores})
    run.report({"event": "validated", "step": trainer.done, "best": better, **scores})


def save(run: Course) -> None:
    """A checkpoint of this step and the encoder, unless they are there, on the first process."""
    if run.saved == run.trainer.done:
        return
    started = perf_counter()
    run.trainer.processes.first(lambda: _save(run))
    run.saved, run.saved_at = run.trainer.done, perf_counter()
    run.meter.beside += run.saved_at - started


def _save(run: Course) -> None:
    trainer = run.trainer
    best = trainer.best is not None and trainer.best["step"] == trainer.done
    path = save_checkpoint(run.checkpoints, trainer.state(), keep=run.rhythm.keep, best=best)
    encoder = trainer.encoder()
    write = save_correlator if isinstance(encoder, Correlator) else save_encoder
    write(encoder, run.folder / "encoder.safetensors")
    if best:
        write(encoder, run.folder / "encoder-best.safetensors")
    run.report({"event": "saved", "step": trainer.done, "path": str(path)})


def _due(run: Course) -> bool:
    """The clock says that it is time for a checkpoint."""
    by_clock = run.rhythm.checkpoint_every is None and run.trainer.processes.ranks.rank == 0
    return by_clock and perf_counter() - run.saved_at > 60 * run.rhythm.checkpoint_minutes


# ------------------------------------------------------------------------------------------ continuing


def continue_from_checkpoint(run: Course) -> None:
    """Stand where the newest whole checkpoint of the folder was taken, on all processes."""
    trainer = run.trainer
    found = trainer.processes.from_first(lambda: newest_checkpoint(run.checkpoints))
    if found is None:
        return
    path, state = found
    trainer.load(state, path)
    run.saved = trainer.done
    event = {"event": "continued", "step": trainer.done, "steps": trainer.steps}
    trainer.processes.first(lambda: run.report(event))


@contextmanager
def _journal(run: Course) -> Iterator[None]:
    """The first process writes it; what an earlier sitting wrote after its last checkpoint is dropped."""
    try:
        run.trainer.processes.first(lambda: _open_journal(run))
        yield
    finally:
        if run.journal:
            run.journal.close()


def _open_journal(run: Course) -> None:
    identity: Any = run.trainer.identity
    name = str(identity["method"])
    run.journal = Journal(run.folder, run.saved, name=name, config=identity, wandb=run.wandb)

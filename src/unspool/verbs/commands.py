"""Ordinary `unspool` commands, each in a process of its own: run to their end, kept when they are done.

Sweeps and suites are made of such commands, so that each leaves what it would leave alone and is continued as
it would be. Several are at work at a time, on this machine or on a cluster, as the jobs of `unspool.workers`.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from queue import Empty, Queue
from typing import Literal

from unspool.encoders import SAVED
from unspool.errors import OutputError, UnspoolError
from unspool.results import NOTE, Json, write_json
from unspool.workers import LOST, Cluster, Interrupted, Report, Stop, run_jobs

WHERE = ("--workers", "--ray", "--memory")  # options that decide where and how, never what
OURS = ("result", "end", "error", "summary")  # events of the command that are not passed on


@dataclass(frozen=True)
class Ended:
    """How a command ended, and why it failed."""

    status: Literal["done", "failed", "stopped"]
    reason: str = ""


@dataclass(frozen=True)
class Step:
    """One command, and the folder of its result."""

    command: tuple[str, ...]
    folder: Path
    replace: bool = False  # what another command, or the same of another stamp, left; else it decides itself
    stamp: str = ""  # of the content that it works on
    model: Path | None = None  # folder of a training, whose weights when its turn has come are part of that

    @property
    def words(self) -> tuple[str, ...]:
        """The whole command, but for where its result goes."""
        return (*self.command, "--model", str(self.model)) if self.model else self.command

    def of(self) -> str:
        """What it works on."""
        return self.stamp + (_digest(self.model / SAVED) if self.model else "")

    def absolute(self) -> Step:
        """The same, wherever it is at work."""
        return replace(self, folder=self.folder.absolute(), model=self.model and self.model.absolute())

    def is_done(self) -> bool:
        """Whether its folder holds what it leaves."""
        return already_done(self.words, self.folder, self.of())

    def replaces(self) -> bool:
        """Whether it overwrites what another command left; also where an earlier start of it did not yet."""
        if not self.replace or not (self.folder / NOTE).is_file():
            return False
        return not _same(self.words, self.folder, self.of()) or _not_yet_replaced(self.folder)


@dataclass(frozen=True)
class Chain:
    """Commands of which each needs what those before it have left: a job."""

    name: str
    steps: tuple[Step, ...]
    said: str = ""  # when it begins
    again: bool = False  # also what is done
    begun: bool = False  # some of it is done, and is needed where it goes on
    cwd: str = field(default_factory=lambda: str(Path.cwd()))  # of relative paths

    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return not self.again and all(step.is_done() for step in self.steps)


@dataclass(frozen=True)
class Place:
    """Where chains are at work, and how many at a time."""

    workers: int = 1
    ray: str | None = None  # address of a cluster, instead of `workers`
    gpus: bool = True  # on the cluster: one for each chain, where the cluster has any


HERE = Place()


def already_done(command: Sequence[str], folder: Path, stamp: str = "") -> bool:
    """Whether the folder holds what this very command leaves of the same content (`stamp`)."""
    finished = read_json(folder / NOTE).get("done") and read_json(folder / "run.json").get("status") == "done"
    return bool(finished) and _same(command, folder, stamp)


def not_done(chains: Sequence[Chain], report: Report) -> list[Chain]:
    """Those with something left to do; of the others it is told."""
    for chain in (found := {chain.name: chain for chain in chains if chain.is_done()}).values():
        for step in chain.steps:
            report({"event": "note", "text": f"{step.folder}: already done"})
    left = [chain for chain in chains if chain.name not in found]
    return [replace(c, begun=not c.again and any(step.is_done() for step in c.steps)) for c in left]


def replaced(chains: Sequence[Chain]) -> list[Path]:
    """Folders that these chains begin anew."""
    steps = [(step, chain.again) for chain in chains for step in chain.steps]
    return [step.folder for step, again in steps if (step.replace and again) or step.replaces()]


def run_chains(
    chains: Sequence[Chain], folder: Path, place: Place, report: Report, stop: Stop
) -> Iterator[tuple[str, Ended]]:
    """Yield names of chains and how they ended, as they end; their events are reported with `run`, the name.

    What chain NAME leaves is in `folder`/NAME. Raises UsageError where the cluster cannot be reached.
    """
    cluster = Cluster(place.ray, folder, place.gpus, files_below) if place.ray else None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError.of(folder, error) from error
    jobs = run_jobs(chains, run_chain, report, stop, workers=place.workers, cluster=cluster)
    for chain, outcome in jobs:
        yield chain.name, _how(outcome)


def files_below(folder: Path, name: str) -> list[Path]:
    """The files that the chain of this name has left."""
    return sorted(path for path in (folder / name).rglob("*") if path.is_file())


def _how(outcome: Json | BaseException) -> Ended:
    if isinstance(outcome, Interrupted):
        return Ended("stopped")
    if isinstance(outcome, BaseException):
        known = isinstance(outcome, UnspoolError)
        return Ended("failed", str(outcome) if known else f"{type(outcome).__name__}: {outcome}")
    return Ended(**outcome)


def run_chain(chain: Chain, report: Report, stop: Stop) -> Json:
    """Run what is not done, up to what does not end well; returns an `Ended` as a table."""
    if chain.said:
        report({"event": "note", "text": chain.said})
    away = Path.cwd() != Path(chain.cwd)  # a machine that does not see the result folder
    if away and chain.begun:
        reason = (
            f"{chain.name}: part of it is done, in a folder that {socket.gethostname()} does not see; put it "
            "where all machines see it, or leave --ray out"
        )
        return asdict(Ended("failed", reason))
    home = chain.cwd if away and Path(chain.cwd).is_dir() else None
    ended = Ended("done")
    for step in chain.steps:
        ended = _run_step(step, chain, home, report, stop)
        if ended.status != "done":
            break
    return asdict(ended)


def _run_step(step: Step, chain: Chain, home: str | None, report: Report, stop: Stop) -> Ended:
    folder = step.folder
    if not chain.again and step.is_done():
        report({"event": "note", "text": f"{folder}: already done"})
        return Ended("done")
    if stop.is_set():
        return Ended("stopped")
    at = step.absolute() if home else step
    words = [*at.words, "-o", str(at.folder)]
    report({"event": "note", "text": shlex.join(["unspool", *words])})
    replaces = step.replaces() or (step.replace and chain.again)
    words += ["--overwrite"] if replaces else []
    words += [word for word in ("--json", "--quiet") if word not in words]
    note: Json = {"command": list(step.words), "stamp": step.of()}
    write_json(folder / NOTE, note | {"done": False, "replaces": replaces})
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(
            [sys.executable, "-m", "unspool.verbs.child", str(folder.absolute()), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            cwd=home,
        )
        code, reason = _to_its_end(child, chain.name, report, stop)
        if code == 0:
            write_json(folder / NOTE, note | {"done": True})
            return Ended("done")
        if stop.is_set():
            return Ended("stopped")
        said.seek(0)
        last = (said.read().decode(errors="replace").strip().splitlines() or [f"exit code {code}"])[-1]
    killed = LOST if code == -9 else ""  # SIGKILL
    return Ended("failed", reason or killed or _failure(folder) or last)


def _to_its_end(child: subprocess.Popen[str], name: str, report: Report, stop: Stop) -> tuple[int, str]:
    """Exit code, and the error that ended the command before its work.

    Closing its stdin asks it to end when what is in hand is safe. So does Ray's KeyboardInterrupt.
    """
    assert child.stdin is not None
    lines: Queue[str] = Queue()

    def read() -> None:
        for line in child.stdout or ():
            lines.put(line)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reason, interrupted = "", False
    while reader.is_alive() or not lines.empty():
        try:
            if interrupted or stop.is_set():
                child.stdin.close()
            event = _event(lines.get(timeout=0.1))
            if event.get("event") == "error":
                reason = event["error"]
            elif event and event["event"] not in OURS:
                report({"run": name, **event})
        except Empty:
            continue
        except KeyboardInterrupt:
            interrupted = True
    code = child.wait()
    if interrupted:
        raise KeyboardInterrupt
    return code, reason


def _event(line: str) -> Json:
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) and "event" in event else {}


def _same(command: Sequence[str], folder: Path, stamp: str) -> bool:
    note = read_json(folder / NOTE)
    return _deciding(note.get("command", [])) == _deciding(command) and note.get("stamp", "") == stamp


def _not_yet_replaced(folder: Path) -> bool:
    """Whether the run that was to replace what is here ended before: each begins with a `run.json`."""
    run, note = folder / "run.json", folder / NOTE
    if not read_json(note).get("replaces") or not run.is_file():
        return False
    return run.stat().st_mtime_ns <= note.stat().st_mtime_ns


def _deciding(command: Sequence[str]) -> list[str]:
    """The words that decide what is left: without `WHERE` and what follows each of these."""
    return [
        word
        for before, word in zip(["", *command], command, strict=False)
        if word not in WHERE and before not in WHERE
    ]


def _failure(folder: Path) -> str:
    """What `run.json` says of the first thing that failed."""
    failed = [entry for entry in read_json(folder / "run.json").get("videos", []) if entry.get("error")]
    return str(failed[0]["error"]) if failed else ""


def without(again: bool) -> str:
    """What to leave out of a command that did finished work again, to go on from where it stopped."""
    return ", without --overwrite," if again else ""


def read_json(path: Path) -> Json:
    """A JSON table; empty where there is none."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _digest(path: Path) -> str:
    """Of a file's content; empty where there is none."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()[:32]
    except OSError:
        return ""

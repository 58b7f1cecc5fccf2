"""One ordinary `unspool` command in a process of its own: run to its end, kept when it is done.

Sweeps and suites are made of such commands, so that each leaves what it would leave alone and is continued as
it would be.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from typing import Literal

from unspool.jobs import Stopping
from unspool.results import Json, write_json

Report = Callable[[Json], None]
NOTE = "command.json"  # beside run.json: which command filled the folder, and of what
WHERE = ("--workers", "--ray", "--memory")  # options that decide where and how, never what
OURS = ("result", "end", "error", "summary")  # events of the command that are not passed on


@dataclass(frozen=True)
class Ended:
    """How a command ended, and why it failed."""

    status: Literal["done", "failed", "stopped"]
    reason: str = ""


def already_done(command: Sequence[str], folder: Path, stamp: object = None) -> bool:
    """Whether the folder holds what this very command leaves of the same content (`stamp`)."""
    finished = read_json(folder / NOTE).get("done") and read_json(folder / "run.json").get("status") == "done"
    return bool(finished) and _same(command, folder, stamp)


def run_command(
    command: Sequence[str],
    folder: Path,
    report: Report,
    stop: Stopping,
    *,
    again: bool = False,
    replace: bool = False,
    stamp: object = None,
) -> Ended:
    """Run one command into `folder`, unless it has been; its events are reported with `run`, its name.

    `again`: also where it has been. `replace`: what another command, or the same of another `stamp`, left is
    overwritten; else the command itself decides.
    """
    if not again and already_done(command, folder, stamp):
        report({"event": "note", "text": f"{folder}: already done"})
        return Ended("done")
    if stop.is_set():
        return Ended("stopped")
    words = [*command, "-o", str(folder)]
    report({"event": "note", "text": shlex.join(["unspool", *words])})
    if replace and (again or ((folder / NOTE).is_file() and not _same(command, folder, stamp))):
        words += ["--overwrite"]
    words += [word for word in ("--json", "--quiet") if word not in words]
    note = {"command": list(command), "stamp": stamp}
    write_json(folder / NOTE, note | {"done": False})
    with tempfile.TemporaryFile() as said:
        code, reason = _to_its_end(words, folder.name, report, stop, said)
        if code == 0:
            write_json(folder / NOTE, note | {"done": True})
            return Ended("done")
        if stop.is_set():
            return Ended("stopped")
        said.seek(0)
        last = (said.read().decode(errors="replace").strip().splitlines() or [f"exit code {code}"])[-1]
    return Ended("failed", reason or _failure(folder) or last)


def _to_its_end(
    words: Sequence[str], name: str, report: Report, stop: Stopping, said: object
) -> tuple[int, str]:
    """Exit code, and the error that ended the command before its work."""
    child: subprocess.Popen[str] = subprocess.Popen(
        [sys.executable, "-m", "unspool", *words], stdout=subprocess.PIPE, stderr=said, text=True
    )  # type: ignore[call-overload]
    lines: Queue[str] = Queue()

    def read() -> None:
        for line in child.stdout or ():
            lines.put(line)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    told, reason = False, ""
    while reader.is_alive() or not lines.empty():
        if stop.is_set() and not told:
            told = True
            child.terminate()  # it ends when what is in hand is safe
        try:
            event = _event(lines.get(timeout=0.1))
        except Empty:
            continue
        if event.get("event") == "error":
            reason = event["error"]
        elif event and event["event"] not in OURS:
            report({**event, "run": name})
    return child.wait(), reason


def _event(line: str) -> Json:
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) and "event" in event else {}


def _same(command: Sequence[str], folder: Path, stamp: object) -> bool:
    note = read_json(folder / NOTE)
    return _deciding(note.get("command", [])) == _deciding(command) and note.get("stamp") == stamp


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

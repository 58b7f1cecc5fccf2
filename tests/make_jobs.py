"""Jobs for tests of where jobs run: quick to import, for many fresh processes."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from unspool.results import Json, write_json
from unspool.workers import Interrupted, Report, Stop


@dataclass(frozen=True)
class Item:
    """A job whose process is killed so often."""

    name: str
    folder: Path
    deaths: int = 0


def do(item: Item, report: Report, stop: Stop) -> Json:
    item.folder.mkdir(exist_ok=True)
    with (item.folder / "begun.txt").open("a") as file:
        file.write(f"{item.name}\n")
    if (item.folder / "begun.txt").read_text().split().count(item.name) <= item.deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"name": item.name}


def wait_until_stopped(item: Item, report: Report, stop: Stop) -> Json:
    report({"event": "note", "text": item.name, "process": os.getpid()})
    while not stop.is_set():
        time.sleep(0.05)
    raise Interrupted


def write_part(item: Item, report: Report, stop: Stop) -> Json:
    """As a verb does: its part of the result, and something for the page."""
    (item.folder / "data" / f"{item.name}.tree").mkdir(parents=True, exist_ok=True)
    for name in (f"{item.name}.js", f"{item.name}-000.js", f"{item.name}.tree/leaves.js"):
        (item.folder / "data" / name).write_text("shown")
    write_json(item.folder / "pictures" / item.name / "model.json", {})
    write_json(item.folder / "checkpoints" / f"{item.name}.pt", {})
    write_json(item.folder / "videos" / item.name / "done.json", {"name": item.name})
    return {"name": item.name}

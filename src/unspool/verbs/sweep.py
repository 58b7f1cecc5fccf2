"""`unspool train METHOD --sweep FILE`: a list of overrides, an ordinary run each, and the table they fill.

Runs are commands of their own, one or several at a time, so that each leaves what it would leave alone and is
continued as it would be. What is finished is not run again.
"""

from __future__ import annotations

import json
import shlex
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unspool.errors import UsageError
from unspool.jobs import stopping
from unspool.mirror import copied
from unspool.page_sweep import write_sweep_page
from unspool.page_training import read_learning
from unspool.results import Json, safe_name, write_json, written_whole
from unspool.verbs.commands import (
    HERE,
    Chain,
    Place,
    Step,
    not_done,
    read_json,
    replaced,
    run_chains,
    without,
)

EXAMPLE = "e.g. `[[run]]`, `name = 'identity'`, `timet.forwards = 'identity'`"
Report = Callable[[Json], None]


@dataclass(frozen=True)
class Item:
    """One row of the table."""

    name: str
    overrides: Mapping[str, Any]  # `table.key` -> value; `preset` and `model` too

    def words(self) -> list[str]:
        """As they stand on a command line."""
        found = []
        for key, value in self.overrides.items():
            if key in ("preset", "model"):
                found += [f"--{key}", str(value)]
            else:
                found += ["--set", f"{key}={json.dumps(value)}"]
        return found


@dataclass(frozen=True)
class Sweep:
    """A sweep file."""

    title: str
    items: tuple[Item, ...]
    evaluations: tuple[tuple[str, ...], ...]  # words after `unspool eval`, once per run


def read_sweep(path: Path, given: Mapping[str, Any]) -> Sweep:
    """`[[run]]` tables of a TOML file; `given` settings of the command line must not be among them.

    Raises UsageError naming the file, the run and the key.
    """
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); --sweep takes a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not TOML: {error}") from error
    if unknown := sorted(set(content) - {"title", "run", "evaluate"}):
        raise UsageError(f"{path}: '{unknown[0]}' is unknown; there are title, evaluate and [[run]] tables")
    runs, evaluations = content.get("run"), content.get("evaluate", [])
    if not isinstance(runs, list) or not runs:
        raise UsageError(f"{path}: holds no runs; {EXAMPLE}")
    if not isinstance(evaluations, list) or not all(isinstance(words, str) for words in evaluations):
        raise UsageError(f"{path}: evaluate is a list of texts, e.g. ['clustering --data rendered:20']")
    items = tuple(_item(table, path) for table in runs)
    names = [item.name for item in items]
    for item in items:
        if names.count(item.name) > 1:
            raise UsageError(f"{path}: two runs are called '{item.name}'; each needs a name of its own")
        if both := sorted(set(item.overrides) & set(given)):
            raise UsageError(
                f"{path}: run '{item.name}' sets {both[0]}, and so does the command line; leave one out"
            )
    return Sweep(
        str(content.get("title", path.stem)), items, tuple(_split(each, path) for each in evaluations)
    )


def _split(words: str, path: Path) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(words))
    except ValueError as error:
        raise UsageError(f"{path}: evaluate: {words!r} cannot be split into words ({error})") from error


def _item(table: Json, path: Path) -> Item:
    name = table.get("name") if isinstance(table, dict) else None
    if not isinstance(name, str) or safe_name(name) != name:
        raise UsageError(f"{path}: every run needs a name of letters, digits, '.', '-', '_'; {EXAMPLE}")
    overrides: Json = {}
    for key, value in table.items():
        if isinstance(value, dict):
            overrides |= {f"{key}.{inner}": single for inner, single in value.items()}
        elif key in ("preset", "model"):
            overrides[key] = value
        elif key != "name":
            raise UsageError(f"{path}: run '{name}' sets '{key}'; settings are TABLE.KEY = VALUE, {EXAMPLE}")
    return Item(name, overrides)


def carry_out_sweep(
    sweep: Sweep,
    method: str,
    words: Sequence[str],
    folder: Path,
    report: Report,
    *,
    place: Place = HERE,
    address: str | None = None,
    again: bool = False,
    dry_run: bool = False,
) -> int:
    """Train and evaluate every item; `words` are those of all runs. Returns the exit code.

    `place`: where, and how many at a time. `address`: where the folder is copied to, and continued from.
    `again`: finished runs too. A run that fails is told and the others go on.
    """
    chains = [_chain(item, sweep, method, words, folder, again) for item in sweep.items]
    if dry_run:
        for step in (step for chain in chains for step in chain.steps):
            text = shlex.join(["unspool", *step.words, "-o", str(step.folder)])
            report({"event": "result", "text": text})
        return 0
    failed: list[str] = []
    with stopping() as stop, copied(address, folder, report) as copying:
        todo = not_done(chains, report)
        copying.anew(replaced(todo))
        at_work = {chain.name: folder / chain.name for chain in todo}
        for name, ended in run_chains(todo, folder, place, report, stop):
            del at_work[name]
            if ended.status == "failed":
                failed.append(name)
                report({"event": "failed", "video": name, "error": ended.reason})
            _write_table(sweep, folder, report)
            copying.copy(at_work.values())
        _write_table(sweep, folder, report)
    if stop.is_set():
        report(
            {"event": "summary", "text": f"stopped; run the same command again{without(again)} to continue"}
        )
        return 128 + stop.signal
    if failed:
        report(
            {"event": "summary", "text": f"{len(failed)} of {len(sweep.items)} failed: {', '.join(failed)}"}
        )
    report({"event": "result", "text": str(folder / "index.html")})
    return 1 if failed else 0


def _chain(item: Item, sweep: Sweep, method: str, words: Sequence[str], folder: Path, again: bool) -> Chain:
    """A training, then its evaluations, made anew where its weights have changed since."""
    home = folder / item.name
    steps = [Step(("train", method, *words, *item.words()), home, replace=again)]
    for number, each in enumerate(sweep.evaluations):
        steps.append(Step(("eval", *each), home / "eval" / str(number), replace=True, model=home))
    return Chain(item.name, tuple(steps), again=again)


# -------------------------------------------------------------------------------------------- the table


def _write_table(sweep: Sweep, folder: Path, report: Report) -> None:
    rows = [_row(item, folder / item.name, len(sweep.evaluations)) for item in sweep.items]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    others = {"run", "status", "steps", "loss"}.union(*(item.overrides for item in sweep.items))
    cells = [[_cell(row.get(column), score=column not in others) for column in columns] for row in rows]
    lines = [f"| {' | '.join(columns)} |", f"| {' | '.join('---' for _ in columns)} |"]
    lines += [f"| {' | '.join(row)} |" for row in cells]
    with written_whole(folder / "table.md") as part:
        part.write_text("\n".join([f"# {sweep.title}", "", *lines, ""]), "utf-8")
    write_json(folder / "sweep.json", {"title": sweep.title, "columns": columns, "rows": rows})
    write_sweep_page(folder, sweep.title, columns, cells, [item.name for item in sweep.items])


def _row(item: Item, home: Path, evaluations: int) -> Json:
    """What was set, how it ended, what it scored (validation's best J, then the evaluations), 0..1."""
    run = read_json(home / "run.json")
    row: Json = {"run": item.name, **item.overrides, "status": run.get("status", "not begun")}
    if learning := read_learning(home, run.get("steps")):
        last = {curve.title: curve.points[-1][1] for curve in learning.curves if curve.points}
        row |= {"steps": learning.step, "loss": round(last["Loss"], 4)} if "Loss" in last else {}
        row |= {"validation J": learning.best["J"]} if learning.best else {}
    for number in range(evaluations):
        row |= read_json(home / "eval" / str(number) / "scores.json").get("global", {})
    return row


def _cell(value: object, *, score: bool) -> str:
    """As the table shows it: scores in per cent."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{100 * value:.1f}" if score else f"{value:.4g}"
    return str(value).replace("|", "\\|")

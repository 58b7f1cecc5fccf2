"""What the tables of the papers are, and what data there are: TOML of ours and of the user."""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from unspool.errors import UsageError

PAPERS = ("dul", "timet", "ba", "rendered")
KINDS = ("davis17", "davis16", "ytvos", "visor", "voc", "ytvis19", "movi-e", "segtrack", "fbms", "rendered")
EXAMPLE = "[data]\ndavis17 = 'DAVIS'\nrendered = 8"


@dataclass(frozen=True)
class Evaluation:
    """What a cell can be read from: an `unspool eval` of one model on one data set."""

    name: str
    words: tuple[str, ...]  # after `unspool eval`
    data: Mapping[str, tuple[str, ...]]  # kinds that it reads, and what must lie in the folder
    needs: tuple[str, ...] = ()  # of the model: what it offers, `block` or `no block`

    @property
    def option_names(self) -> list[str]:
        """Under which words can be added to it: NAME on all data, NAME-KIND on one."""
        return [self.name, *(f"{self.name}-{kind}" for kind in self.data)]


@dataclass(frozen=True)
class Column:
    """One score of a table."""

    title: str
    protocol: str
    evaluation: str = ""  # none: nothing here measures it
    data: str = ""
    score: str = ""  # place in scores.json, keys joined by `/`; its deviation stands at the same with `-sd`
    seeds: int = 0  # 0: as many as the evaluation's words say, else one


@dataclass(frozen=True)
class Row:
    """One published line."""

    name: str
    published: tuple[float | None, ...]  # per column, in the paper's unit, per cent
    model: str = ""  # what `--model` is called that stands for this row
    words: tuple[str, ...] = ()  # what its evaluation adds
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """One table of a paper."""

    name: str
    paper: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    own: str = ""  # the row whose values stand beside a model that has none of its own
    note: str = ""
    filled_by: str = ""  # what fills a table that is about training
    variants: bool = False  # every model has every row, under the row's words


@dataclass(frozen=True)
class Data:
    """What the user has."""

    path: Path
    places: Mapping[str, str]  # kind -> what stands after `--data KIND:`
    options: Mapping[str, tuple[str, ...]] = field(
        default_factory=dict
    )  # evaluation, or evaluation-kind -> words added


def evaluations() -> dict[str, Evaluation]:
    """All that tables may name."""
    content = _ours("evaluations")
    return {
        name: Evaluation(
            name,
            tuple(shlex.split(entry["words"])),
            {kind: tuple(there) for kind, there in entry["data"].items()},
            tuple(entry.get("needs", ())),
        )
        for name, entry in content.items()
    }


def evaluation_of(name: str) -> Evaluation:
    """What `options.NAME` adds words to: an evaluation, or one on one kind of data."""
    return next(e for e in evaluations().values() if name in e.option_names)


def read_tables(chosen: Sequence[str] = ()) -> tuple[Table, ...]:
    """The tables of these names; a paper's name stands for all of its. Raises UsageError for another name."""
    found = [_table(paper, entry) for paper in PAPERS for entry in _ours(paper)["table"]]
    names = [table.name for table in found]
    for name in chosen:
        if name not in names and name not in PAPERS:
            raise UsageError(f"--tables {name}: there are {', '.join((*PAPERS, *names))}")
    return tuple(t for t in found if not chosen or t.name in chosen or t.paper in chosen)


def _ours(name: str) -> dict[str, Any]:
    return tomllib.loads((files("unspool") / "suite" / f"{name}.toml").read_text("utf-8"))


def _table(paper: str, entry: dict[str, Any]) -> Table:
    columns = tuple(Column(**column) for column in entry.pop("column"))
    rows = tuple(_row(row, len(columns), entry["name"]) for row in entry.pop("row"))
    return Table(paper=paper, columns=columns, rows=rows, **entry)


def _row(entry: dict[str, Any], columns: int, table: str) -> Row:
    published = tuple(None if value == "-" else float(value) for value in entry["published"])
    assert len(published) == columns, f"{table}: '{entry['name']}' has {len(published)} of {columns} values"
    words = tuple(shlex.split(entry.get("words", "")))
    return Row(entry["name"], published, entry.get("model", ""), words, tuple(entry.get("needs", ())))


def read_data(path: Path) -> Data:
    """The user's file: `[data]` with KIND = "PATH" (rendered: how many), `[options]` EVALUATION = "words".

    Paths are those of the file's own folder unless absolute. Raises UsageError naming the file and the key.
    """
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); --data takes a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not TOML: {error}") from error
    if unknown := sorted(set(content) - {"data", "options"}):
        raise UsageError(f"{path}: '{unknown[0]}' is unknown; there are [data] and [options]")
    if not isinstance(content.get("data"), dict) or not content["data"]:
        raise UsageError(f"{path}: names no data; e.g.\n{EXAMPLE}")
    places = {kind: _place(path, kind, value) for kind, value in content["data"].items()}
    return Data(path, places, _options(path, content.get("options", {})))


def _place(path: Path, kind: str, value: object) -> str:
    if kind not in KINDS:
        raise UsageError(f"{path}: data '{kind}' is unknown; there are {', '.join(KINDS)}")
    if kind == "rendered":
        if not str(value).isdecimal() or not int(str(value)):
            raise UsageError(f"{path}: rendered = {value!r}; expected how many clips, e.g. rendered = 8")
        return str(value)
    folder = path.parent / Path(str(value)).expanduser()
    if not folder.is_dir():
        raise UsageError(f"{path}: {kind} = {value!r}: no such folder {folder}; correct it, or leave it out")
    return str(folder)


def _options(path: Path, given: object) -> dict[str, tuple[str, ...]]:
    known = [name for evaluation in evaluations().values() for name in evaluation.option_names]
    if not isinstance(given, dict):
        raise UsageError(f"{path}: options is a table, e.g. [options] and clustering = '--seeds 2'")
    for name, words in given.items():
        if name not in known:
            raise UsageError(f"{path}: options of '{name}', which is none of {', '.join(known)}")
        if not isinstance(words, str):
            raise UsageError(f"{path}: options.{name} = {words!r}; expected words, e.g. '--seeds 2'")
    return {name: _words(path, name, words) for name, words in given.items()}


def _words(path: Path, name: str, words: str) -> tuple[str, ...]:
    try:
        found = tuple(shlex.split(words))
    except ValueError as error:
        raise UsageError(
            f"{path}: options.{name} = {words!r} cannot be split into words ({error})"
        ) from error
    for flag, value in zip(found, (*found[1:], ""), strict=True):
        if flag == "--seeds" and not value.isdigit():
            raise UsageError(f"{path}: options.{name}: --seeds {value}: expected how often, e.g. --seeds 5")
    return found

"""The runs that tables need, each once, one or several at a time; what is finished is kept.

OUTPUT/runs/NAME is the result of one ordinary `unspool eval`, OUTPUT/models.json what was found of models.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from unspool.errors import UsageError, WeightsUnavailable
from unspool.jobs import Stopping, stopping
from unspool.mirror import copied
from unspool.options import file_stamp
from unspool.results import Json, safe_name, write_json
from unspool.verbs.commands import (
    HERE,
    Chain,
    Ended,
    Place,
    Step,
    already_done,
    not_done,
    read_json,
    replaced,
    run_chains,
    without,
)
from unspool.verbs.suite.tables import Column, Data, Evaluation, Row, Table, evaluations
from unspool.verbs.suite.writing import Source, filled, write_tables

Report = Callable[[Json], None]
REPEATED = ("--set", "--protocol", "--sequences", "--foreground")  # options that add up
ANY = Row("", ())  # of a model that no row of the table is about


@dataclass(frozen=True)
class Model:
    """One of `--model`: `NAME=MODEL`, or a model that is its own name."""

    name: str
    given: str


@dataclass(frozen=True)
class Order:
    """What the command line asks for."""

    models: tuple[Model, ...]
    data: Data
    tables: tuple[Table, ...]
    folder: Path
    shared: tuple[str, ...] = ()  # words of all runs: --device cpu

    @classmethod
    def of(
        cls,
        models: Sequence[str],
        data: Data,
        tables: tuple[Table, ...],
        folder: Path,
        shared: Sequence[str] = (),
    ) -> Order:
        """`models` as they stand on the command line. Raises UsageError for two of one name."""
        named = tuple(_model(word) for word in models)
        places = [safe_name(model.name) for model in named]
        if twice := [m.name for m, place in zip(named, places, strict=True) if places.count(place) > 1]:
            raise UsageError(
                f"--model: two are called '{twice[0]}'; name them apart, e.g. a={named[0].given}"
            )
        return cls(named, data, tables, folder, tuple(shared))


def _model(word: str) -> Model:
    name, equals, given = word.partition("=")
    if equals and (not name or not given):
        raise UsageError(f"--model {word}: expected MODEL, or NAME=MODEL")
    return Model(name, given if equals else word)


@dataclass(frozen=True)
class Run:
    """One evaluation of one model."""

    name: str
    command: tuple[str, ...]
    model: str  # its name
    seeds: int


def carry_out_suite(
    order: Order,
    report: Report,
    *,
    place: Place = HERE,
    address: str | None = None,
    again: bool = False,
    dry_run: bool = False,
) -> int:
    """Run what is not finished, and write the tables after each run. Returns the exit code.

    `place`: where, and how many at a time. `address`: where the folder is copied to, and continued from.
    `again`: finished runs too. A run that fails is told, and the others go on.
    """
    if dry_run:
        facts = facts_of_models(order.models, order.folder, keep=False)
        return _describe(planned(order, facts), order, facts, report)
    ended: dict[str, Ended] = {}
    with stopping() as stop, copied(address, order.folder, report) as copying:
        facts = facts_of_models(order.models, order.folder)
        runs = planned(order, facts)
        chains = [_chain(run, order, facts, again) for run in runs.values()]
        todo = _numbered(not_done(chains, report), place)
        ended |= {name: Ended("done") for name in runs if name not in [chain.name for chain in todo]}
        write_tables(order.folder, _fill(order, facts, runs, ended))
        copying.anew(replaced(todo))
        where = HERE if len(todo) == 1 else place
        at_work = {chain.name: order.folder / "runs" / chain.name for chain in todo}
        for name, how in run_chains(todo, order.folder / "runs", where, report, stop):
            ended[name] = how
            del at_work[name]
            if how.reason:
                report({"event": "failed", "video": name, "error": how.reason})
            write_tables(order.folder, _fill(order, facts, runs, ended))
            copying.copy(at_work.values())
    return _end(order, ended, _fill(order, facts, runs, ended), stop, report, again)


def _chain(run: Run, order: Order, facts: Json, again: bool) -> Chain:
    stamp = facts[run.model]["weights_hash"]
    step = Step(run.command, order.folder / "runs" / run.name, replace=True, stamp=stamp)
    return Chain(run.name, (step,), again=again)


def _numbered(todo: Sequence[Chain], place: Place) -> list[Chain]:
    """Each says the how-manieth it is; one that is alone shares its own jobs out."""
    if len(todo) == 1 and (place.ray or place.workers > 1):
        given = ("--ray", place.ray) if place.ray else ("--workers", str(place.workers))
        (step,) = todo[0].steps
        todo = [replace(todo[0], steps=(replace(step, command=said_once((*step.command, *given))),))]
    return [replace(c, said=f"{number} of {len(todo)}: {c.name}") for number, c in enumerate(todo, 1)]


def _describe(runs: Mapping[str, Run], order: Order, facts: Json, report: Report) -> int:
    for run in runs.values():
        place = order.folder / "runs" / run.name
        done = already_done(run.command, place, facts[run.model]["weights_hash"])
        text = shlex.join(["unspool", *run.command, "-o", str(place)])
        report({"event": "result", "text": f"{place}: already done" if done else text})
    cells = [
        cell for table in _fill(order, facts, runs, {}) for row in table["rows"] for cell in row["cells"]
    ]
    empty = sum(cell["run"] is None for cell in cells)
    report({"event": "result", "text": f"{len(runs)} runs; {len(cells)} cells, {empty} of them stay empty"})
    return 0


def _end(
    order: Order,
    ended: Mapping[str, Ended],
    tables: Sequence[Json],
    stop: Stopping,
    report: Report,
    again: bool,
) -> int:
    if stop.is_set():
        report(
            {"event": "summary", "text": f"stopped; run the same command again{without(again)} to continue"}
        )
        return 128 + stop.signal
    cells = [cell for table in tables for row in table["rows"] for cell in row["cells"]]
    have = sum(cell["value"] is not None for cell in cells)
    report({"event": "note", "text": f"{len(tables)} tables, {have} of {len(cells)} cells filled"})
    failed = [name for name, how in ended.items() if how.status == "failed"]
    if failed:
        report({"event": "summary", "text": f"{len(failed)} of {len(ended)} failed: {', '.join(failed)}"})
    report({"event": "result", "text": str(order.folder / "index.html")})
    return 1 if failed else 0


# ------------------------------------------------------------------------------------------- models


def facts_of_models(models: Sequence[Model], folder: Path, *, keep: bool = True) -> Json:
    """By name: what each offers, whether it holds a block, its hash; or why it cannot be had.

    Loaded once; kept in `folder` until a file changes. Raises UsageError or WeightsError for a model that is
    none.
    """
    known, found = read_json(folder / "models.json"), {}
    for model in models:
        stamp = [model.given, file_stamp(model.given)]
        earlier = known.get(model.name, {})
        found[model.name] = (
            earlier if earlier.get("stamp") == stamp else {"stamp": stamp, **_facts(model.given)}
        )
    if keep:
        write_json(folder / "models.json", {n: facts for n, facts in found.items() if not facts["error"]})
    return found


def _facts(model: str) -> Json:
    from unspool.encoders import load_encoder  # noqa: PLC0415 (torch, which a finished suite does without)
    from unspool.encoders.correlator import holds_block  # noqa: PLC0415

    try:
        encoder = load_encoder(model, device="cpu")
    except WeightsUnavailable as error:
        return {"error": str(error), "weights_hash": "", "offers": []}
    offers = [*encoder.offers, "block" if holds_block(model) else "no block"]
    return {"error": "", "weights_hash": encoder.weights_hash, "offers": offers}


# --------------------------------------------------------------------------------------------- runs


def rows_of(table: Table, model: Model) -> list[Row]:
    """The rows that a model fills: every one of a table of variants, else one, with what is beside it."""
    if table.variants:
        return list(table.rows)
    for row in table.rows:
        if row.model == model.name:
            return [row]
    return [ANY]


def planned(order: Order, facts: Json) -> dict[str, Run]:
    """The runs that cells need, by name, in the order of the tables; equal ones are one."""
    found = {}
    for table in order.tables:
        for model in order.models:
            for row in rows_of(table, model):
                for column in table.columns:
                    if not why_empty(table, column, row, model, order.data, facts):
                        run = run_of(column, row, model, order)
                        found[run.name] = run
    return found


def run_of(column: Column, row: Row, model: Model, order: Order) -> Run:
    """What fills a cell."""
    evaluation = evaluations()[column.evaluation]
    options = order.data.options
    added = [options.get(name, ()) for name in (evaluation.name, f"{evaluation.name}-{column.data}")]
    words = said_once((*evaluation.words, *added[0], *added[1], *row.words, *order.shared))
    place = f"{column.data}:{order.data.places[column.data]}"
    command = ("eval", *words, "--data", place, "--model", model.given)
    name = safe_name("-".join([evaluation.name, column.data, model.name, *_told(row.words)]))
    return Run(name, command, model.name, column.seeds or _seeds(words))


def _told(words: Sequence[str]) -> list[str]:
    return [word.removeprefix("--").replace("=", "-") for word in words if word != "--set"]


def said_once(words: Sequence[str]) -> tuple[str, ...]:
    """The last of each option counts: `--seeds 5 --seeds=2` is `--seeds=2`; what may be repeated stays."""
    groups: list[list[str]] = []
    for word in words:
        if word.startswith("--") or not groups:
            groups.append([])
        groups[-1].append(word)
    flags = [group[0].partition("=")[0] for group in groups]
    last = [flag in REPEATED or flag not in flags[i + 1 :] for i, flag in enumerate(flags)]
    return tuple(word for group, kept in zip(groups, last, strict=True) if kept for word in group)


def _seeds(words: Sequence[str]) -> int:
    found = re.search(r"--seeds[ =](\d+)", " ".join(words))
    return int(found[1]) if found else 1


def why_empty(table: Table, column: Column, row: Row, model: Model, data: Data, facts: Json) -> str:
    """The reason for a dash that is known before any run; empty where there is none."""
    if table.filled_by:
        return table.filled_by
    if not column.evaluation:
        return "nothing here measures it"
    evaluation = evaluations()[column.evaluation]
    return (
        _data_missing(evaluation, column.data, data)
        or facts[model.name]["error"]
        or _part_missing((*evaluation.needs, *row.needs), model, facts)
    )


def _data_missing(evaluation: Evaluation, kind: str, data: Data) -> str:
    if kind not in evaluation.data:
        return f"`unspool eval {evaluation.words[0]}` does not read {kind}"
    if kind not in data.places:
        return f"no {kind} in {data.path.name}"
    for needed in evaluation.data[kind]:
        if not (Path(data.places[kind]) / needed).exists():
            return f"{kind} has no {needed}"
    return ""


def _part_missing(needs: Sequence[str], model: Model, facts: Json) -> str:
    parts = {
        "cls_attention": "has no class token, whose attention marks the foreground",
        "attention": "has no attention of its own",
        "block": "holds no trained block of BA",
        "no block": "holds a trained block of BA",
    }
    for need in needs:
        if need not in facts[model.name]["offers"]:
            return f"{model.name} {parts[need]}"
    return ""


# -------------------------------------------------------------------------------------------- cells


def _fill(order: Order, facts: Json, runs: Mapping[str, Run], ended: Mapping[str, Ended]) -> list[Json]:
    return [_filled(table, order, facts, runs, ended) for table in order.tables]


def _filled(
    table: Table, order: Order, facts: Json, runs: Mapping[str, Run], ended: Mapping[str, Ended]
) -> Json:
    lines = []
    for model in order.models[:1] if table.filled_by else order.models:
        for row in rows_of(table, model):
            cells = []
            for number, column in enumerate(table.columns):
                reason = why_empty(table, column, row, model, order.data, facts)
                run = None if reason else runs[run_of(column, row, model, order).name]
                if run and not reason:
                    reason = _not_done(ended.get(run.name))
                beside = row if row is not ANY else _own(table)
                source = Source(run.name, run.seeds, order.folder / "runs" / run.name) if run else None
                cells.append(filled(column, number, beside, source, reason))
            name = "here" if table.filled_by else model.name
            lines.append({"model": name, "row": row.name if table.variants else "", "cells": cells})
    return {
        "name": table.name,
        "title": table.title,
        "note": " ".join([table.note, *_otherwise(table, order.data)]).strip(),
        "columns": [{"title": c.title, "protocol": c.protocol} for c in table.columns],
        "rows": lines,
        "published": [{"row": row.name, "values": list(row.published)} for row in table.rows],
    }


def _otherwise(table: Table, data: Data) -> list[str]:
    """What the data file changes of the evaluations that a table is made of."""
    used = {(c.evaluation, c.data) for c in table.columns if c.data in data.places and not table.filled_by}
    names = dict.fromkeys(name for e, kind in sorted(used) for name in (e, f"{e}-{kind}"))
    changed = [f"{name} {shlex.join(data.options[name])}" for name in names if name in data.options]
    return [f"Ours with other options than published: {'; '.join(changed)}."] if changed else []


def _not_done(how: Ended | None) -> str:
    if how is None or how.status == "stopped":
        return "not run yet"
    return how.reason


def _own(table: Table) -> Row:
    return next((row for row in table.rows if row.name == table.own), ANY)

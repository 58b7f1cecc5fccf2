"""Cells, and the tables that they stand in: JSON, Markdown, LaTeX, and one page of all.

Numbers are per cent, as published. A cell without a value has a reason, which is a footnote of its table.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unspool.page_suite import write_suite_page
from unspool.results import Json, write_json, written_whole
from unspool.verbs.commands import read_json
from unspool.verbs.suite.tables import Column, Row

DASH = "–"


@dataclass(frozen=True)
class Source:
    """The run that a cell is read from."""

    run: str
    seeds: int
    folder: Path


def filled(column: Column, number: int, beside: Row, source: Source | None, reason: str) -> Json:
    """One cell: ours in per cent, its deviation over seeds, the published value of `beside`; or a reason."""
    scores = read_json(source.folder / "scores.json") if source and not reason else {}
    value, spread = _at(scores, column.score), _at(scores, f"{column.score}-sd")
    if not reason and value is None:
        reason = f"the run has no {column.score.replace('/', ', ')}"
    published = beside.published[number] if beside.published else None
    return {
        "value": None if reason or value is None else round(100 * value, 3),
        "sd": None if reason or spread is None else round(100 * spread, 3),
        "seeds": source.seeds if source and not reason else None,
        "protocol": column.protocol,
        "published": published,
        "published_row": beside.name if published is not None else None,
        "run": source.run if source else None,
        "command": _command(source) if source and not reason else None,
        "reason": reason or None,
    }


def _at(scores: Json, place: str) -> float | None:
    found: Any = scores
    for key in place.split("/"):
        found = found.get(key) if isinstance(found, dict) else None
    return float(found) if isinstance(found, int | float) else None


def _command(source: Source) -> list[str]:
    return ["unspool", *read_json(source.folder / "command.json").get("command", [])]


def write_tables(folder: Path, tables: Sequence[Json]) -> None:
    """`tables/NAME.json`, `.md`, `.tex` and `index.html`."""
    for table in tables:
        place = folder / "tables" / table["name"]
        write_json(place.with_name(f"{place.name}.json"), table)
        for ending, text in (("md", markdown(table)), ("tex", latex(table))):
            with written_whole(place.with_name(f"{place.name}.{ending}")) as part:
                part.write_text(text, "utf-8")
    write_suite_page(folder, [{**table, **_for_people(table)} for table in tables])


def _for_people(table: Json) -> Json:
    """Texts of rows, footnotes, the row whose published values stand beside ours."""
    reasons = footnotes(table)
    ours = [
        {"name": name_of(row), "cells": [_texts(cell, reasons) for cell in row["cells"]]}
        for row in table["rows"]
    ]
    published = [
        {"name": row["row"], "cells": list(map(number_of, row["values"]))} for row in table["published"]
    ]
    runs = {cell["run"]: cell["command"] for row in table["rows"] for cell in row["cells"] if cell["command"]}
    return {"ours": ours, "paper": published, "footnotes": reasons, "runs": runs}


def footnotes(table: Json) -> list[str]:
    """The reasons of its dashes, each once."""
    cells = [cell for row in table["rows"] for cell in row["cells"]]
    return list(dict.fromkeys(cell["reason"] for cell in cells if cell["reason"]))


def _texts(cell: Json, reasons: Sequence[str]) -> Json:
    found = {"value": value_of(cell), "note": 0, "beside": "", "seeds": cell["seeds"]}
    if cell["reason"]:
        found["note"] = reasons.index(cell["reason"]) + 1
    if cell["published"] is not None:
        found["beside"] = f"{number_of(cell['published'])} {cell['published_row']}"
    return found


def name_of(row: Json) -> str:
    """Of one of our rows: the model, and the paper's row where the table is about variants."""
    return f"{row['model']}, {row['row']}" if row["row"] else str(row["model"])


def number_of(value: float | None) -> str:
    """As published: one decimal."""
    return DASH if value is None else f"{value:.1f}"


BRACKETS = "Per cent. In brackets: the published value of the row named; of how many seeds ours is, if more."


def value_of(cell: Json) -> str:
    """Ours: one decimal, with its deviation over seeds."""
    if cell["value"] is None:
        return DASH
    return number_of(cell["value"]) + ("" if cell["sd"] is None else f" ± {cell['sd']:.1f}")


def beside_of(cell: Json) -> str:
    """The published value and whose it is; over how many seeds ours is, if over several."""
    told = [] if cell["published"] is None else [f"{number_of(cell['published'])} {cell['published_row']}"]
    if (cell["seeds"] or 0) > 1:
        told.append(f"{cell['seeds']} seeds")
    return "; ".join(told)


# ---------------------------------------------------------------------------------- Markdown and LaTeX


def markdown(table: Json) -> str:
    """A table of ours, published values in brackets, then the published rows; footnotes say why of a dash."""
    reasons = footnotes(table)
    columns = [f"{_plain(c['title'])}<br>`{c['protocol']}`" for c in table["columns"]]
    lines = [f"# {_plain(table['title'])}", "", _line(["", *columns]), _line(["---"] * (len(columns) + 1))]
    for row in table["rows"]:
        lines.append(
            _line([f"**{_plain(name_of(row))}**", *(_in_markdown(c, reasons) for c in row["cells"])])
        )
    for row in table["published"]:
        lines.append(_line([f"{_plain(row['row'])} (published)", *map(number_of, row["values"])]))
    notes = [_plain(table["note"]), BRACKETS]
    lines += ["", *(note for note in notes if note)]
    lines += ["", *(f"[{i}] {_plain(reason)}  " for i, reason in enumerate(reasons, 1))] if reasons else []
    return "\n".join([*lines, ""])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _in_markdown(cell: Json, reasons: Sequence[str]) -> str:
    text = value_of(cell) + (f" [{reasons.index(cell['reason']) + 1}]" if cell["reason"] else "")
    beside = beside_of(cell)
    return f"{text} ({_plain(beside)})" if beside else text


def _plain(text: str) -> str:
    """As Markdown shows it; code in backticks stays."""
    parts = text.split("`")
    escaped = [re.sub(r"([\\*_\[\]<>|#{}~])", r"\\\1", part) for part in parts[::2]]
    code = [f"`{part.replace('|', chr(92) + '|')}`" for part in parts[1::2]]
    return "".join(part for pair in zip(escaped, [*code, ""], strict=False) for part in pair)


def latex(table: Json) -> str:
    """The same as a `table` of LaTeX, which needs no package."""
    reasons = footnotes(table)
    count = len(table["columns"])
    lines = [
        r"\begin{table}",
        rf"\caption{{{_tex(table['title'])}}}",
        rf"\begin{{tabular}}{{l{'r' * count}}}",
    ]
    lines += [r"\hline", _row(["", *(_tex(c["title"]) for c in table["columns"])])]
    lines += [_row(["", *(rf"{{\tiny {_tex(c['protocol'])}}}" for c in table["columns"])]), r"\hline"]
    for row in table["rows"]:
        lines.append(_row([_tex(name_of(row)), *(_in_latex(cell, reasons) for cell in row["cells"])]))
    lines.append(r"\hline")
    for row in table["published"]:
        lines.append(_row([_tex(f"{row['row']} (published)"), *(_tex(number_of(v)) for v in row["values"])]))
    lines += [r"\hline", r"\end{tabular}", ""]
    notes = [table["note"], BRACKETS, *(f"{i}: {reason}" for i, reason in enumerate(reasons, 1))]
    lines += [rf"{_tex(note)}\\" for note in notes if note]
    return "\n".join([*lines, r"\end{table}", ""])


def _row(cells: Sequence[str]) -> str:
    return f"{' & '.join(cells)} \\\\"


def _in_latex(cell: Json, reasons: Sequence[str]) -> str:
    text = _tex(value_of(cell)) + (f"$^{{{reasons.index(cell['reason']) + 1}}}$" if cell["reason"] else "")
    beside = beside_of(cell)
    return f"{text} ({_tex(beside)})" if beside else text


TEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", DASH: "--",
    "±": r"$\pm$", "Ψ": r"$\Psi$", "†": r"$\dagger$", "δ": r"$\delta$", "`": r"{\textasciigrave}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(TEX.get(sign, sign) for sign in text)

"""The page of a suite: every table, ours above the published rows, each number linked to its run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from unspool.results import written_whole

HERE = Path(__file__).parent


def write_suite_page(folder: Path, tables: Sequence[dict[str, Any]]) -> None:
    """`index.html`; `tables` with the texts of their cells, footnotes and runs."""
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True)
    environment.globals["css"] = Markup((HERE / "page.css").read_text("utf-8"))
    environment.filters["command"] = shlex.join
    cells = [cell for table in tables for row in table["rows"] for cell in row["cells"]]
    have = sum(cell["value"] is not None for cell in cells)
    text = environment.get_template("page_suite.html").render(
        name=folder.resolve().name, tables=tables, cells=len(cells), filled=have
    )
    with written_whole(folder / "index.html") as part:
        part.write_text(text, "utf-8")

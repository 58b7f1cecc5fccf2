"""The page of a sweep: its table, each run linked to its own page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from unspool.results import written_whole

HERE = Path(__file__).parent


def write_sweep_page(
    folder: Path, title: str, columns: Sequence[str], cells: Sequence[Sequence[str]], names: Sequence[str]
) -> None:
    """`index.html` of the sweep; `cells` row by row, the first of each names the run."""
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True)
    environment.globals["css"] = Markup((HERE / "page.css").read_text("utf-8"))
    begun = [(folder / name / "index.html").is_file() for name in names]
    text = environment.get_template("page_sweep.html").render(
        title=title, columns=columns, rows=list(zip(names, cells, begun, strict=True))
    )
    with written_whole(folder / "index.html") as part:
        part.write_text(text, "utf-8")

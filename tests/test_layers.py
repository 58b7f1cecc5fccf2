"""A file imports only from the floors below its own (the table of CONTRIBUTING.md)."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "unspool"

FLOORS = [
    {"errors", "ops", "metrics"},
    {"video", "masks", "encoders", "rendered"},
    {"data", "methods", "segmentation"},
    {"tracking", "segmenting"},
    {"protocols"},
    {"results", "display"},
    {"video_result", "page_clustering", "page_training", "segments", "workers", "mirror"},
    {"page", "page_suite", "page_sweep", "training", "export"},
    {"inputs", "jobs", "options", "reporting", "page_server"},
    {"verbs"},
    {"cli"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
ENTRANCES = {"__init__", "__main__"}


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    modules = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            own = [f"{node.module}.{alias.name}" for alias in node.names]
            modules += own if node.module == "unspool" else [node.module]
    return {m.split(".")[1] for m in modules if m.startswith("unspool.")}


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_file_imports_only_from_lower_floors_or_its_own_folder(path: Path) -> None:
    here = room(path)
    if here in ENTRANCES:
        return
    assert here in FLOOR, f"{here} has no floor; add it to the table in CONTRIBUTING.md and here"
    known = {r for r in imported_rooms(path) if r in FLOOR}
    upward = {r for r in known - {here, "errors"} if FLOOR[r] >= FLOOR[here]}
    assert not upward, f"{path.name} on floor {FLOOR[here]} imports {sorted(upward)}"


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE)))
def test_operators_metrics_and_methods_never_touch_a_path(path: Path) -> None:
    if room(path) not in {"ops", "metrics", "methods"}:
        return
    assert "pathlib" not in path.read_text("utf-8")

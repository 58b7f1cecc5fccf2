"""The docs are true: verbs are documented, documented commands parse, links lead somewhere."""

import re
import shlex
import tomllib
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from unspool.cli import app
from unspool.data.layouts import LAYOUTS
from unspool.encoders import MODELS
from unspool.masks import write_mask
from unspool.metrics.scores import COLUMNS
from unspool.protocols import clustering, discovery, linear
from unspool.protocols.tracking import PROTOCOLS
from unspool.rendered import render
from unspool.tracking import PRESETS, tracking_preset
from unspool.training.settings import METHODS, Training, presets_of
from unspool.verbs.discovery import KINDS
from unspool.video import VideoWriter

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXT = {page.relative_to(ROOT): page.read_text("utf-8") for page in PAGES}
BLOCKS = re.compile(r"^```bash\n(.*?)^```", re.DOTALL | re.MULTILINE)
COMMANDS = sorted(
    {
        (str(page), line)
        for page, text in TEXT.items()
        for block in BLOCKS.findall(text)
        for line in block.splitlines()
        if re.search(r"\bunspool (?!-)", line)
    }
)
PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


class OwnModule(torch.nn.Module):
    """What a reader would bring: a map of 14 px per token."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(images, 14)


@pytest.mark.parametrize("page", [page for page, text in TEXT.items() if PYTHON.search(text)], ids=str)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "videos").mkdir()
    clip = render(0, height=56, width=84, frames=6, objects=2)
    for name in ("clip.mp4", "videos/a.mp4", "videos/b.mp4"):
        with VideoWriter(tmp_path / name, height=56, width=84, times=clip.video.times) as writer:
            for image in clip.video:
                writer.write(image)
    write_mask(tmp_path / "first.png", clip.labels(0))
    truth = [np.asarray(clip.labels(t)) for t in range(6)]
    names = {"my_module": OwnModule(), "prediction": truth, "truth": truth}
    for block in PYTHON.findall(TEXT[page]):  # later blocks go on from earlier ones
        exec(compile(block, str(page), "exec"), names)


def test_every_option_of_track_is_documented() -> None:
    documented = TEXT[Path("docs/track.md")]
    collection = app["track"].assemble_argument_collection(parse_docstring=False)
    names = {name for argument in collection for name in argument.names if name.startswith("-")}
    names = {name for name in names if not name.startswith(("--no-", "--empty-"))}
    assert names >= {"--memory", "--workers", "-o", "-q"}
    assert not {name for name in names if not re.search(rf"(?<![\w-]){name}\b", documented)}


def test_every_option_of_segment_is_documented() -> None:
    documented = TEXT[Path("docs/segment.md")]
    collection = app["segment"].assemble_argument_collection(parse_docstring=False)
    names = {name for argument in collection for name in argument.names if name.startswith("-")}
    names = {name for name in names if not name.startswith(("--no-", "--empty-"))}
    assert names >= {"--tau", "--workers", "-o"}
    assert not {name for name in names if not re.search(rf"(?<![\w-]){name}\b", documented)}


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_a_documented_command_parses(page: str, line: str) -> None:
    words = shlex.split(line.rsplit("&&", maxsplit=1)[-1], comments=True)
    at = next(i for i, word in enumerate(words) if Path(word).name == "unspool")
    app.parse_args(words[at + 1 :], exit_on_error=False, print_error=False)


def test_every_verb_is_documented() -> None:
    documented = "\n".join(TEXT.values())
    for verb in (
        "demo", "segment", "track", "eval tracking", "eval discovery", "eval clustering", "train dul",
        "train ba",
        "models", "view",
    ):  # fmt: skip
        assert f"unspool {verb}" in documented


def test_every_protocol_and_every_named_model_is_documented() -> None:
    assert all(f"`{name}`" in TEXT[Path("docs/protocols.md")] for name in (*PROTOCOLS, *discovery.PROTOCOLS))
    assert all(f"`{name}`" in TEXT[Path("docs/encoders.md")] for name in MODELS)
    assert all(f"`{name}`" in TEXT[Path("docs/protocols/clustering.md")] for name in clustering.PROTOCOLS)
    assert all(f"`{name}`" in TEXT[Path("docs/protocols/heads.md")] for name in linear.RECIPES)
    assert all(f"`{name}`" in TEXT[Path("docs/protocols/tracking.md")] for name in COLUMNS)


def test_every_page_of_a_protocol_has_the_same_parts_in_the_same_order() -> None:
    parts = [
        "What it measures", "Why", "Equations", "What is written",
        "What the official code does differently", "Commands",
    ]  # fmt: skip
    pages = [text for page, text in TEXT.items() if page.parent == Path("docs/protocols")]
    assert pages
    assert all(re.findall(r"^## (.+)$", text, re.MULTILINE) == parts for text in pages)


def test_every_data_set_of_discovery_is_documented() -> None:
    assert all(f"`{name}:" in TEXT[Path("docs/protocols/discovery.md")] for name in (*KINDS, "rendered"))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_names_its_paper_its_table_its_score_and_its_command(name: str) -> None:
    table = tomllib.loads((ROOT / "src" / "unspool" / "presets" / f"{name}.toml").read_text("utf-8"))
    assert set(table["source"]) >= {"paper", "code", "table", "expected", "command"}
    assert f"--preset {name}" in table["source"]["command"]
    assert tracking_preset(name).propagation


@pytest.mark.parametrize("method", METHODS)
def test_a_training_preset_names_its_paper_its_code_and_its_command(method: str) -> None:
    for name in presets_of(method):
        table = tomllib.loads((ROOT / "src" / "unspool" / "presets" / f"{name}.toml").read_text("utf-8"))
        assert set(table["source"]) >= {"paper", "code", "command"}
        words = shlex.split(table["source"]["command"])
        assert f"--preset {name}" in table["source"]["command"]
        kind = words[words.index("--data") + 1].partition(":")[0]
        assert kind in {*LAYOUTS, "VIDEOS"}
        app.parse_args(words[1:], exit_on_error=False, print_error=False)


def test_every_training_preset_and_setting_of_training_is_documented() -> None:
    text = TEXT[Path("docs/train.md")]
    assert all(f"`{name}`" in text for method in METHODS for name in presets_of(method))
    assert all(f"`{field.name}`" in text or f"--{field.name}" in text for field in fields(Training))


@pytest.mark.parametrize("method", METHODS)
def test_the_page_of_a_method_begins_with_the_sections_that_all_have(method: str) -> None:
    headings = re.findall(r"^## (.+)$", TEXT[Path(f"docs/{method}.md")], re.MULTILINE)
    assert headings[:5] == [
        "What it is", "Why", "Equations", "What is logged", "What the official code does differently"
    ]  # fmt: skip


def test_every_figure_of_the_performance_page_names_a_benchmark_that_exists() -> None:
    text = TEXT[Path("docs/performance.md")]
    named = set(re.findall(r"benchmarks/\w+\.py", text))
    assert named
    assert all((ROOT / name).is_file() for name in named)
    sections = [part for part in text.split("\n## ")[1:] if re.search(r"\d", part)]
    assert all("benchmarks/" in part for part in sections)


def test_links_lead_somewhere() -> None:
    for page, text in TEXT.items():
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            made = target.startswith("pictures/")  # by .ci/gallery.py
            assert made or (ROOT / page).parent.joinpath(target).exists(), f"{page}: {target}"


def test_the_first_lines_of_the_readme_hold_two_commands() -> None:
    head = "\n".join(TEXT[Path("README.md")].splitlines()[:25])
    lines = [line for block in BLOCKS.findall(head + "\n") for line in block.splitlines()]
    assert len(lines) == 2
    assert all("python3 -m venv .venv" in line for line in lines)


def test_no_page_names_a_place_that_readers_do_not_have() -> None:
    for page, text in TEXT.items():
        for word in ("../shared", "shared/", "/work/", "/root/", "/tmp/"):
            assert word not in text, f"{page} names {word}"


def test_every_page_is_in_the_site() -> None:
    listed = (ROOT / "mkdocs.yml").read_text("utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        assert f" {page.relative_to(ROOT / 'docs')}\n" in listed, page

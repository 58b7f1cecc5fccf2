"""`unspool eval suite`: the tables of the papers, filled by ordinary evaluations of small data."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_encoders_own import POOLED
from test_verbs_clustering import davis

from unspool.cli import app, main
from unspool.errors import UsageError
from unspool.verbs.commands import Chain, Place, Step
from unspool.verbs.suite.running import Model, _numbered, planned, run_of, said_once, why_empty
from unspool.verbs.suite.running import Order as Suite
from unspool.verbs.suite.tables import KINDS, Column, Row, evaluations, read_data, read_tables
from unspool.verbs.suite.writing import Source, beside_of, filled, latex, markdown

DATA = """
[data]
davis17 = "DAVIS"
rendered = 2
[options]
tracking = "--resolution 32"
clustering = "--seeds 2 --resolution 64 --frames 2 --protocol cluster-frame --protocol cluster-clip"
"""
TABLES = ("dul-davis", "timet-1a", "timet-4", "timet-6", "timet-9")


def call(folder: Path, *more: str, tables: tuple[str, ...] = TABLES, model: str = "my=my_encoder.py") -> int:
    words = ["eval", "suite", "--model", model, "--data", "data.toml", "-o", "out", "--device", "cpu"]
    here = Path.cwd()
    os.chdir(folder)
    try:
        with pytest.raises(SystemExit) as end:
            main([*words, "--tables", *tables, *more])
    finally:
        os.chdir(here)
    return int(end.value.code or 0)


def table(folder: Path, name: str) -> Any:
    return json.loads((folder / f"out/tables/{name}.json").read_text("utf-8"))


def set_up(folder: Path) -> Path:
    davis(folder / "DAVIS", {"cows": [1, 3]})
    (folder / "data.toml").write_text(DATA)
    (folder / "my_encoder.py").write_text(POOLED)
    return folder


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite that has run: tracking and clustering, of one model, side by side."""
    folder = set_up(tmp_path_factory.mktemp("suite"))
    assert call(folder, "--workers", "2") == 0
    return folder


# ------------------------------------------------------------------------------------- what has run


def test_each_evaluation_runs_once_for_all_tables(done: Path) -> None:
    runs = sorted(path.name for path in (done / "out/runs").iterdir())
    assert runs == ["clustering-davis17-my", "tracking-davis17-my"]
    assert json.loads((done / "out/runs/clustering-davis17-my/run.json").read_text())["status"] == "done"


def test_a_cell_holds_ours_its_spread_seeds_protocol_and_the_published_value(done: Path) -> None:
    frame = table(done, "timet-9")["rows"][0]["cells"][0]
    scores = json.loads((done / "out/runs/clustering-davis17-my/scores.json").read_text())
    row = scores["table"]["model"]["cluster-frame-hungarian"]
    assert frame["value"] == pytest.approx(100 * row["bg"], abs=1e-3)
    assert frame["sd"] == pytest.approx(100 * row["bg-sd"], abs=1e-3)
    assert (frame["seeds"], frame["protocol"]) == (2, "cluster-frame-hungarian-bg")
    assert (frame["published"], frame["published_row"]) == (56.5, "TimeT")
    assert frame["command"][:3] == ["unspool", "eval", "clustering"] and frame["reason"] is None


def test_a_dash_has_its_reason(done: Path) -> None:
    def reasons(name: str) -> list[str]:
        return [cell["reason"] for cell in table(done, name)["rows"][0]["cells"]]

    assert reasons("timet-4")[0] == "no ytvos in data.toml"
    assert reasons("timet-9")[2] == "the run has no table, model, cluster-dataset-hungarian, bg"
    assert "unspool train timet" in reasons("timet-1a")[0] and "--sweep" in reasons("timet-1a")[0]
    assert reasons("timet-6") == [
        "no voc in data.toml",
        "davis17 has no ImageSets/2017/train.txt",
        "no ytvos in data.toml",
    ]


def test_every_form_of_a_table_shows_ours_the_published_values_and_the_reasons(done: Path) -> None:
    ours = f"{table(done, 'dul-davis')['rows'][0]['cells'][0]['value']:.1f}"
    for path in (done / "out/index.html", *(done / f"out/tables/dul-davis.{end}" for end in ("md", "tex"))):
        text = path.read_text("utf-8")
        assert ours in text and "69.3" in text and "DUL, TrackingNet" in text and "davis17-semi" in text
    page = (done / "out/index.html").read_text("utf-8")
    assert "no ytvos in data.toml" in page and 'href="runs/tracking-davis17-my/index.html"' in page
    assert "no ytvos in data.toml" in (done / "out/tables/timet-4.md").read_text("utf-8")


def test_a_table_says_which_options_are_not_the_published_ones(done: Path) -> None:
    said = "Ours with other options than published: tracking --resolution 32."
    assert said in table(done, "dul-davis")["note"]
    assert said in (done / "out/index.html").read_text("utf-8")
    assert "options" not in table(done, "timet-1a")["note"]


def test_a_second_call_keeps_what_is_finished(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (done / "out/runs/tracking-davis17-my/run.json").stat().st_mtime_ns
    started = time.monotonic()
    assert call(done) == 0
    assert time.monotonic() - started < 5
    assert "out/runs/tracking-davis17-my: already done" in capsys.readouterr().err
    assert (done / "out/runs/tracking-davis17-my/run.json").stat().st_mtime_ns == before


def test_a_dry_run_lists_the_runs(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(done, "--dry-run", tables=("dul-davis", "rendered-clustering")) == 0
    out = capsys.readouterr().out
    assert "out/runs/tracking-davis17-my: already done" in out
    assert "unspool eval clustering --sample 256 --seeds 2" in out and "--data rendered:2" in out
    assert not (done / "out/runs/clustering-rendered-my").exists()


def test_a_failed_run_is_named_and_the_others_fill_their_cells(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(done, tmp_path / "copy")
    path = tmp_path / "copy"
    (path / "data.toml").write_text(DATA.replace("--resolution 32", "--preset crw"))  # layer3: not offered
    assert call(path) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "1 of 2 failed: tracking-davis17-my" in said
    cell = table(path, "dul-davis")["rows"][0]["cells"][0]
    assert cell["value"] is None and "offers tokens; choose another --preset" in cell["reason"]
    assert table(path, "timet-9")["rows"][0]["cells"][0]["value"] is not None
    (path / "data.toml").write_text(DATA)  # set right again, the run is done again
    assert call(path) == 0
    assert table(path, "dul-davis")["rows"][0]["cells"][0]["value"] is not None


def test_other_weights_of_the_same_name_are_run_anew(done: Path, tmp_path: Path) -> None:
    path = tmp_path / "copy"
    shutil.copytree(done, path)
    (path / "my_encoder.py").write_text(POOLED.replace("GELU", "ReLU"))
    note = path / "out/runs/tracking-davis17-my/command.json"
    before = json.loads(note.read_text())["stamp"]
    assert call(path, tables=("dul-davis",)) == 0
    assert json.loads(note.read_text())["stamp"] != before


def test_a_stop_leaves_what_can_be_continued(tmp_path: Path) -> None:
    set_up(tmp_path)
    words = [sys.executable, "-m", "unspool", "eval", "suite", "--model", "my=my_encoder.py"]
    words += ["--data", "data.toml", "-o", "out", "--device", "cpu", "--tables", "dul-davis", "timet-9"]
    child = subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    for line in child.stderr:
        if "unspool eval tracking" in line:
            break
    child.send_signal(signal.SIGINT)
    assert "run the same command again to continue" in child.stderr.read()
    assert child.wait() == 130
    assert table(tmp_path, "timet-9")["rows"][0]["cells"][0]["reason"] == "not run yet"
    assert call(tmp_path, tables=("dul-davis",)) == 0
    assert table(tmp_path, "dul-davis")["rows"][0]["cells"][0]["value"] is not None


# ------------------------------------------------------------------------------- without any run


def test_published_values_are_per_cent_and_every_cell_can_be_read() -> None:
    for each in read_tables():
        assert all(len(row.published) == len(each.columns) for row in each.rows)
        assert all(0 < value < 100 for row in each.rows for value in row.published if value is not None)
        assert not each.own or each.own in [row.name for row in each.rows]
        for column in each.columns:
            assert each.filled_by or column.evaluation in evaluations()
            assert column.data in (*KINDS, "")


def test_all_tables_of_the_papers_are_there() -> None:
    names = [each.name for each in read_tables()]
    expected = ["dul-davis", *(f"timet-{n}" for n in ("1a", "1b", "1c", *range(2, 12)))]
    assert set(names) >= {*expected, *(f"ba-{n}" for n in range(1, 10))}


def test_every_evaluation_is_a_command_that_parses() -> None:
    for each in evaluations().values():
        for kind in each.data:
            app.parse_args(["eval", *each.words, "--data", f"{kind}:8", "--model", "dul-small"])


def order(models: tuple[str, ...], tables: tuple[str, ...], folder: Path) -> Suite:
    for kind in ("DAVIS/ImageSets/2017", "DAVIS/Annotations_unsupervised/480p", "YTVIS"):
        (folder / kind).mkdir(parents=True)
    (folder / "DAVIS/ImageSets/2017/val.txt").write_text("cows")
    (folder / "data.toml").write_text('[data]\ndavis17 = "DAVIS"\nytvis19 = "YTVIS"\n')
    return Suite.of(models, read_data(folder / "data.toml"), read_tables(tables), folder / "out")


def facts(*models: str, offers: tuple[str, ...] = ("tokens", "no block"), error: str = "") -> Any:
    return {model: {"offers": list(offers), "error": error, "weights_hash": "0"} for model in models}


def test_a_table_of_variants_has_a_run_for_each_that_the_model_allows(tmp_path: Path) -> None:
    runs = planned(order(("a",), ("ba-4",), tmp_path), facts("a"))
    assert list(runs) == ["discovery-ytvis19-a-represent-features", "discovery-davis17-a-represent-features"]
    trained = planned(order(("a",), ("ba-9",), tmp_path / "b"), facts("a", offers=("tokens", "block")))
    assert len(trained) == 8


def test_a_row_that_a_model_stands_for_brings_its_own_words(tmp_path: Path) -> None:
    runs = planned(order(("crw=crw.pth", "b"), ("dul-davis",), tmp_path), facts("crw", "b"))
    assert [("--preset" in run.command) for run in runs.values()] == [True, False]


def test_a_part_that_a_model_lacks_is_a_reason(tmp_path: Path) -> None:
    suite = order(("a",), ("ba-4", "rendered-heads"), tmp_path)
    variants, heads = suite.tables
    model = Model("a", "a")
    of_block = why_empty(variants, variants.columns[0], variants.rows[1], model, suite.data, facts("a"))
    assert of_block == "a holds no trained block of BA"
    data = replace(suite.data, places={"rendered": "2"})
    row = Row("", ())
    assert "a has no class token" in why_empty(heads, heads.columns[3], row, model, data, facts("a"))
    gone = facts("a", error="not on this machine")
    assert why_empty(heads, heads.columns[0], row, model, data, gone) == "not on this machine"


def test_the_only_run_that_is_left_shares_its_own_jobs_out() -> None:
    chains = [Chain(name, (Step(("eval", name), Path(name)),)) for name in "ab"]
    alone, both = _numbered(chains[:1], Place(workers=3)), _numbered(chains, Place(workers=3))
    assert alone[0].steps[0].command == ("eval", "a", "--workers", "3")
    own = replace(chains[0], steps=(Step(("eval", "a", "--workers", "4"), Path("a")),))  # of the data file
    assert _numbered([own], Place(workers=3))[0].steps[0].command == ("eval", "a", "--workers", "3")
    assert [chain.steps for chain in both] == [chain.steps for chain in chains]
    assert [chain.said for chain in both] == ["1 of 2: a", "2 of 2: b"]
    assert _numbered(chains[:1], Place(ray="auto"))[0].steps[0].command[2:] == ("--ray", "auto")


def test_of_an_option_said_twice_the_last_counts() -> None:
    words = ("clustering", "--seeds", "5", "--set", "a=1", "--seeds", "2", "--set", "b=1")
    assert said_once(words) == ("clustering", "--set", "a=1", "--seeds", "2", "--set", "b=1")
    assert said_once(("linear", "--device=cuda", "--set=a=1", "--device", "cpu", "--set=b=1")) == (
        "linear", "--set=a=1", "--device", "cpu", "--set=b=1",
    )  # fmt: skip


def test_seeds_are_counted_however_they_are_said(tmp_path: Path) -> None:
    column = Column("mIoU", "clustering", "clustering", "rendered")
    for words in ("--seeds 2", "--seeds=2"):
        (tmp_path / "data.toml").write_text(f"[data]\nrendered = 1\n[options]\nclustering = '{words}'\n")
        order = Suite.of(["a"], read_data(tmp_path / "data.toml"), read_tables(), tmp_path)
        assert run_of(column, Row("", ()), order.models[0], order).seeds == 2


NASTY = "100% of_a & b | c <d> #1 \\x `code_1|2`"


def escaped() -> Any:
    column = Column(NASTY, "a_b")
    cell = filled(column, 0, Row("R_1 ± |", (12.34,)), None, NASTY)
    return {
        "title": NASTY, "note": NASTY, "columns": [{"title": NASTY, "protocol": "a_b"}],
        "rows": [{"model": NASTY, "row": "", "cells": [cell]}],
        "published": [{"row": "R_1 ± |", "values": [None]}],
    }  # fmt: skip


def test_latex_is_escaped() -> None:
    text = latex(escaped())
    assert r"100\% of\_a \& b | c <d> \#1 \textbackslash{}x {\textasciigrave}code\_1|2" in text
    assert r"R\_1 $\pm$ | (published) & -- \\" in text
    assert r"--$^{1}$ (12.3 R\_1 $\pm$ |)" in text


@pytest.mark.parametrize(("seeds", "told"), [(None, ""), (1, ""), (5, "5 seeds")])
def test_a_cell_tells_of_its_seeds_if_there_are_several(seeds: int | None, told: str) -> None:
    cell: dict[str, Any] = {"published": None, "published_row": None, "seeds": seeds}
    assert beside_of(cell) == told
    assert beside_of({**cell, "published": 12.34, "published_row": "R"}) == "; ".join(
        ["12.3 R", *([told] * bool(told))]
    )


def test_markdown_is_escaped() -> None:
    text = markdown(escaped())
    assert r"100% of\_a & b \| c \<d\> \#1 \\x `code_1\|2`" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.replace(r"\|", "").count("|") == 3 for line in rows)


def test_a_run_without_the_score_says_which(tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text('{"global": {"J": 0.5, "J-sd": 0.25}}')
    source = Source("run", 3, tmp_path)
    cell = filled(Column("J", "p", score="global/J"), 0, Row("", ()), source, "")
    assert (cell["value"], cell["sd"], cell["seeds"], cell["reason"]) == (50.0, 25.0, 3, None)
    none = filled(Column("F", "p", score="global/F"), 0, Row("", ()), source, "")
    assert (none["value"], none["reason"]) == (None, "the run has no global, F")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "names no data"),
        ("[data", "not TOML"),
        ('[data]\ndavis = "x"', "data 'davis' is unknown; there are davis17"),
        ('[data]\ndavis17 = "x"', "no such folder"),
        ("[data]\nrendered = 0", "expected how many clips"),
        ("[sets]\na = 1", "'sets' is unknown"),
        ("[data]\nrendered = 1\n[options]\nclusters = ''", "options of 'clusters', which is none of"),
        ("[data]\nrendered = 1\n[options]\nclustering = 3", "expected words"),
    ],
)
def test_a_wrong_data_file_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "data.toml").write_text(content)
    with pytest.raises(UsageError, match=message):
        read_data(tmp_path / "data.toml")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("clustering = '--seed 1 --cluster 5'",
         "options.clustering: --cluster cannot be added to `unspool eval clustering`; there are --before, "),
        ("discovery-voc = '--key_ration=1'", "options of 'discovery-voc', which is none of tracking, "),
        ("discovery-fbms = '--key_ration=1'", "options.discovery-fbms: --key_ration=1 cannot be added"),
        ("tracking = '-o elsewhere'", "options.tracking: -o cannot be added to `unspool eval tracking`"),
        ("fcn = '--dry-run'", "options.fcn: --dry-run cannot be added to `unspool eval linear`"),
        ("linear = '--model x'", "options.linear: --model cannot be added to `unspool eval linear`"),
        ("clustering-voc = '--clusters many'",
         'options.clustering-voc: Invalid value for --clusters: unable to convert "many" into int'),
        ("salient = 'leopart'", "options.salient: Unused Tokens: ['leopart']"),
    ],
)  # fmt: skip
def test_options_that_no_evaluation_takes_are_refused_before_any_run(
    options: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up(tmp_path)
    (tmp_path / "data.toml").write_text(f"[data]\nrendered = 1\n[options]\n{options}\n")
    assert call(tmp_path) == 2
    assert f"data.toml: {message}" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "given"), [("--workers 2", ("--ray", "auto")), ("--ray=auto", ("--workers", "2"))]
)
def test_a_cluster_and_workers_of_which_one_stands_in_the_data_file_are_refused_once(
    options: str, given: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up(tmp_path)
    (tmp_path / "data.toml").write_text(f"[data]\nrendered = 1\n[options]\nclustering = '{options}'\n")
    assert call(tmp_path, *given) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "options.clustering: --workers 2 and --ray auto come together there" in said
    assert not (tmp_path / "out").exists()


def test_options_of_the_command_line_win_over_those_of_the_data_file(tmp_path: Path) -> None:
    (tmp_path / "data.toml").write_text("[data]\nrendered = 1\n[options]\nlinear = '--device cuda'\n")
    order = Suite.of(["a"], read_data(tmp_path / "data.toml"), read_tables(), tmp_path, ["--device", "cpu"])
    column = Column("mIoU", "linear", "linear", "rendered")
    command = run_of(column, Row("", ()), order.models[0], order).command
    assert command == ("eval", "linear", "--device", "cpu", "--data", "rendered:1", "--model", "a")


def test_unknown_tables_and_models_are_refused_before_any_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up(tmp_path)
    assert call(tmp_path, tables=("timet-12",)) == 2
    assert "--tables timet-12: there are dul, timet" in capsys.readouterr().err
    assert call(tmp_path, model="dul-smal") == 2
    assert "did you mean dul-small" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="two are called 'a'"):
        Suite.of(("a=x", "a=y"), read_data(tmp_path / "data.toml"), (), tmp_path)
    with pytest.raises(UsageError, match="expected MODEL, or NAME=MODEL"):
        Suite.of(("a=",), read_data(tmp_path / "data.toml"), (), tmp_path)


# ---------------------------------------------------------------------------------------- the page


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_its_window_without_errors(done: Path, width: int, tmp_path: Path) -> None:
    if not all(map(shutil.which, ("chromium", "chromedriver"))):
        pytest.skip("no chromium")
    from chromium import Browser

    browser = Browser(tmp_path / "profile")
    try:
        browser.open(done / "out/index.html", width=width)
        assert browser.run("return document.documentElement.scrollWidth") <= width
        assert browser.run("return document.querySelectorAll('table').length") == len(TABLES)
        assert not browser.errors()
    finally:
        browser.close()

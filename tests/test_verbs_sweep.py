"""`unspool train METHOD --sweep FILE`: rows of a table, each an ordinary run."""

import json
import signal
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock
from make_training import COMMAND, SMALL, write_videos
from test_verbs_clustering import davis

from unspool.cli import main
from unspool.errors import UsageError
from unspool.results import Json, write_json
from unspool.verbs.commands import already_done
from unspool.verbs.sweep import Sweep, carry_out_sweep, read_sweep

TABLE = """
title = "Table 0"
evaluate = ["tracking --data davis17:DAVIS --device cpu"]
[[run]]
name = "slow"
dul.learning_rate = 1e-4
[[run]]
name = "wide"
dul.embedding = 16
augmentation.size = [24, 24]
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNSPOOL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def sweep(content: str, given: tuple[str, ...] = ()) -> Sweep:
    Path("sweep.toml").write_text(content)
    return read_sweep(Path("sweep.toml"), dict.fromkeys(given))


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main(["train", "dul", "--sweep", "sweep.toml", *map(str, arguments)])
    return int(end.value.code or 0)


def train(*more: object) -> int:
    settings = [word for setting in SMALL for word in ("--set", setting)]
    given = ("--data", "videos", "--device", "cpu", "--steps", 1, "--validate-every", 0)
    return call(*given, *settings, "-o", "out", *more)


def test_runs_fill_a_table_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_videos(tmp_path / "videos", 4)
    davis(tmp_path / "DAVIS", {"cows": [1]})
    Path("sweep.toml").write_text(TABLE)
    assert train("--dry-run") == 0
    assert "--set 'augmentation.size=[24, 24]' -o out/wide" in capfd.readouterr().out
    assert not Path("out").exists()
    assert train("--workers", 2) == 0
    rows = json.loads(Path("out/sweep.json").read_text())["rows"]
    assert [(row["run"], row["status"], row["steps"]) for row in rows] == [
        ("slow", "done", 1),
        ("wide", "done", 1),
    ]
    assert all(0 <= row["J&F-Mean"] <= 1 for row in rows)
    table = Path("out/table.md").read_text().splitlines()
    assert table[0] == "# Table 0" and "dul.embedding" in table[2] and "0.0001" in table[4]
    at = [cell.strip() for cell in table[2].split("|")].index("J&F-Mean")
    assert table[4].split("|")[at].strip() == f"{100 * rows[0]['J&F-Mean']:.1f}"
    record = json.loads(Path("out/wide/run.json").read_text())
    assert record["config"]["augmentation.size"] == [24, 24] and record["config"]["dul.width"] == 4
    assert 'href="wide/index.html"' in Path("out/index.html").read_text()

    before = Path("out/slow/run.json").stat().st_mtime_ns
    Path("out/wide/run.json").write_text("{}")  # as if it had never ended
    capfd.readouterr()
    train("--workers", 2)
    assert "out/slow: already done" in capfd.readouterr().err
    assert Path("out/slow/run.json").stat().st_mtime_ns == before


def test_a_run_that_fails_is_told_and_the_next_begins(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_videos(tmp_path / "videos", 4)
    Path("sweep.toml").write_text('[[run]]\nname = "a"\nmodel = "nowhere.pth"\n[[run]]\nname = "b"\n')
    assert train() == 1
    rows = json.loads(Path("out/sweep.json").read_text())["rows"]
    assert [row["status"] for row in rows] == ["not begun", "done"]
    assert "1 of 2 failed: a" in capfd.readouterr().err


def test_a_stop_ends_all_runs_that_are_at_work(tmp_path: Path) -> None:
    write_videos(tmp_path / "videos", 4)
    Path("sweep.toml").write_text('[[run]]\nname = "a"\n[[run]]\nname = "b"\n[[run]]\nname = "c"\n')
    words = [*COMMAND, "--data", "videos", "--sweep", "sweep.toml", "--steps", "2000", "-o", "out"]
    child = subprocess.Popen([*words, "--workers", "2", "--json"], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    learning: set[str] = set()
    for event in map(json.loads, child.stdout):
        if event["event"] == "step":
            learning.add(event["run"])
        if len(learning) == 2:
            break
    child.send_signal(signal.SIGTERM)
    child.stdout.read()
    assert child.wait() == 143
    rows = json.loads(Path("out/sweep.json").read_text())["rows"]
    assert [row["status"] for row in rows] == ["interrupted", "interrupted", "not begun"]
    for name in learning:  # nobody is at work there any more
        FileLock(Path("out", name, ".lock")).acquire(timeout=0)


def test_a_sweep_at_an_address_is_continued_from_there(tmp_path: Path) -> None:
    there = tmp_path / "there"
    write_json(there / "a/run.json", {"status": "done"})
    write_json(there / "a/command.json", {"command": ["train", "dul"], "done": True})
    events: list[Json] = []
    assert (
        carry_out_sweep(
            sweep('[[run]]\nname = "a"\n'), "dul", [], Path("out"), events.append, address=f"file://{there}"
        )
        == 0
    )
    assert {"event": "note", "text": "out/a: already done"} in events
    assert (there / "table.md").exists() and not (there / "a/.lock").exists()


def test_what_a_run_of_a_sweep_does_not_have_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("sweep.toml").write_text('[[run]]\nname = "a"\n')
    assert call("--ray", "auto", "--devices", "2") == 2
    assert "leave out --devices" in capsys.readouterr().err
    Path("sweep.toml").write_text('evaluate = ["tracking --ray auto"]\n[[run]]\nname = "a"\n')
    assert call("--ray", "auto") == 2
    assert "'tracking --ray auto': with --ray auto it is a job" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(SystemExit):
        main(["train", "dul", "--ray", "auto"])
    assert "for the runs of a --sweep" in " ".join(capsys.readouterr().err.split())


def test_a_wrong_setting_is_refused_before_the_first_run(capsys: pytest.CaptureFixture[str]) -> None:
    Path("sweep.toml").write_text('[[run]]\nname = "a"\n[[run]]\nname = "b"\ndul.widht = 2\n')
    assert call("--data", "videos", "-o", "out") == 2
    assert "'dul.widht' is no setting; did you mean 'width'" in " ".join(capsys.readouterr().err.split())
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no runs"),
        ("runs = 1", "'runs' is unknown"),
        ("[[run]]\ndul.width = 2", "every run needs a name"),
        ('[[run]]\nname = "a/b"', "every run needs a name"),
        ('[[run]]\nname = "a"\n[[run]]\nname = "a"', "two runs are called 'a'"),
        ('[[run]]\nname = "a"\nwidth = 2', "sets 'width'; settings are TABLE.KEY"),
        ('evaluate = "tracking"\n[[run]]\nname = "a"', "evaluate is a list of texts"),
        ('[[run]]\nname = "a"\ntraining.steps = 3', "sets training.steps, and so does the command line"),
        ("[[run]", "not TOML"),
    ],
)
def test_a_wrong_file_is_refused(content: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sweep(content, given=("training.steps",))


def test_a_file_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="--sweep takes a TOML file"):
        read_sweep(Path("nowhere.toml"), {})


def test_where_a_command_ran_is_no_part_of_what_it_is(tmp_path: Path) -> None:
    write_json(tmp_path / "command.json", {"command": ["eval", "linear", "--workers", "1"], "done": True})
    write_json(tmp_path / "run.json", {"status": "done"})
    assert already_done(["eval", "linear", "--ray", "auto"], tmp_path)
    assert not already_done(["eval", "linear", "--seeds", "2"], tmp_path)

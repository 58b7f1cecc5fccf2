"""Commands in processes of their own: alone in their folder, and never longer there than who began them."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from filelock import FileLock
from test_workers import Told

from unspool import workers
from unspool.encoders import SAVED
from unspool.results import Json, write_json
from unspool.verbs.commands import HERE, Chain, Ended, Step, files_below, run_chain, run_chains
from unspool.workers import LOST


def child(folder: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "unspool.verbs.child", str(folder), "--version"]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_command_waits_for_the_one_that_is_at_work_in_its_folder(tmp_path: Path) -> None:
    with FileLock(tmp_path / ".lock"):
        process = child(tmp_path)
        assert process.stdout is not None
        assert "waiting for the process that is at work" in json.loads(process.stdout.readline())["text"]
    assert process.stdout.read().startswith("unspool")
    assert process.wait() == 0


def test_a_command_ends_when_the_process_above_it_is_gone(tmp_path: Path) -> None:
    with FileLock(tmp_path / ".lock"):
        process = child(tmp_path)
        assert process.stdin is not None
        process.stdin.close()  # as the system does for a process that is killed
        assert process.wait() == -signal.SIGTERM


def chain(folder: Path, *commands: tuple[str, ...]) -> Chain:
    steps = [Step(command, folder / f"{number}") for number, command in enumerate(commands)]
    return Chain("a", tuple(steps))


def test_a_chain_ends_at_the_command_that_fails(tmp_path: Path) -> None:
    events: list[Json] = []
    failing = chain(tmp_path, ("eval", "nothing"), ("eval", "nothing"))
    ended = Ended(**run_chain(failing, events.append, Event()))
    assert ended.status == "failed" and "nothing" in ended.reason
    assert [path.name for path in tmp_path.iterdir()] == ["0"]


def test_a_command_that_is_killed_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = tmp_path / "python"
    killed.write_text("#!/bin/sh\nkill -9 $$")
    killed.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(killed))
    ended = run_chain(chain(tmp_path, ("models",)), lambda event: None, Event())
    assert ended == {"status": "failed", "reason": LOST}


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Chain], tuple[Any, Any]]:
    """Does a chain on a machine that does not see the folder `result`; commands only say where they are."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\npwd > "$3/where"; echo "$@" > "$3/words"')
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))

    def call(chain: Chain) -> tuple[Any, Any]:
        return workers._elsewhere(
            chain, run_chain, Told(), Path("result"), ".mark", str(tmp_path), files_below
        )

    return call


def test_a_machine_that_does_not_see_the_result_works_where_paths_hold_and_sends_all_back(
    tmp_path: Path, elsewhere: Callable[[Chain], tuple[Any, Any]]
) -> None:
    home = Path("result/a")
    steps = (Step(("train",), home), Step(("eval",), home / "eval", replace=True, model=home))
    outcome, sent = elsewhere(Chain("a", steps, cwd=str(tmp_path)))
    assert outcome == {"status": "done", "reason": ""}
    files = ("command.json", "where", "words")
    assert set(sent) == {f"a/{below}{name}" for below in ("", "eval/") for name in files}
    assert sent["a/where"].decode().strip() == str(tmp_path)
    model, folder = sent["a/eval/words"].decode().split("--model ")[1].split()[:3:2]
    assert folder == f"{model}/eval" and Path(model).is_absolute()
    assert json.loads(sent["a/eval/command.json"])["command"] == ["eval", "--model", str(home)]
    assert [path.name for path in tmp_path.iterdir()] == ["python"]


def test_what_is_half_done_here_is_not_begun_anew_where_it_cannot_be_seen(
    tmp_path: Path, elsewhere: Callable[[Chain], tuple[Any, Any]]
) -> None:
    half = Chain("a", (Step(("train",), Path("result/a")),), begun=True, cwd=str(tmp_path))
    outcome, sent = elsewhere(half)
    assert outcome["status"] == "failed" and "leave --ray out" in outcome["reason"]
    assert sent == {}


def test_a_run_that_was_stopped_before_it_replaced_anything_still_does(tmp_path: Path) -> None:
    step = Step(("eval", "new"), tmp_path, replace=True)
    write_json(tmp_path / "run.json", {"status": "done"})
    write_json(tmp_path / "command.json", {"command": ["eval", "old"], "done": True})
    assert step.replaces()
    note = {"command": ["eval", "new"], "stamp": "", "done": False, "replaces": True}
    write_json(tmp_path / "command.json", note)
    assert step.replaces() and not step.is_done()
    write_json(tmp_path / "run.json", {"status": "running"})
    assert not step.replaces()


def test_what_no_chain_has_begun_stays_so_after_a_stop(tmp_path: Path) -> None:
    stop = Event()
    stop.set()
    assert list(run_chains([chain(tmp_path, ("models",))], tmp_path, HERE, print, stop)) == []


def test_what_a_chain_reads_is_part_of_what_it_is_done_of(tmp_path: Path) -> None:
    (tmp_path / SAVED).write_bytes(b"a")
    step = Step(("eval",), tmp_path / "r", model=tmp_path)
    write_json(tmp_path / "r/run.json", {"status": "done"})
    write_json(tmp_path / "r/command.json", {"command": step.words, "done": True, "stamp": step.of()})
    assert Chain("a", (step,)).is_done() and not Chain("a", (step,), again=True).is_done()
    (tmp_path / SAVED).write_bytes(b"b")
    assert not Chain("a", (step,)).is_done()

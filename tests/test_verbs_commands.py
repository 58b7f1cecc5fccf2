"""Commands in processes of their own: alone in their folder, and never longer there than who began them."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from threading import Event

import pytest
from filelock import FileLock
from test_workers import Told

from unspool import workers
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


def test_a_machine_that_does_not_see_the_result_works_where_paths_hold_and_sends_all_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python, result = tmp_path / "python", Path("result")
    python.write_text('#!/bin/sh\npwd > "$3/where"')
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))
    there = Chain("a", (Step(("models",), result / "a"),), cwd=str(tmp_path))
    outcome, sent = workers._elsewhere(there, run_chain, Told(), result, ".mark", str(tmp_path), files_below)
    assert outcome == {"status": "done", "reason": ""}
    assert sorted(sent) == ["a/command.json", "a/where"]
    assert sent["a/where"].decode().strip() == str(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["python"]


def test_what_no_chain_has_begun_stays_so_after_a_stop(tmp_path: Path) -> None:
    stop = Event()
    stop.set()
    assert list(run_chains([chain(tmp_path, ("models",))], tmp_path, HERE, print, stop)) == []


def test_what_a_chain_reads_is_part_of_what_it_is_done_of(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"a")
    step = Step(("eval",), tmp_path / "r", reads=tmp_path / "weights")
    write_json(tmp_path / "r/run.json", {"status": "done"})
    write_json(tmp_path / "r/command.json", {"command": ["eval"], "done": True, "stamp": step.of()})
    assert Chain("a", (step,)).is_done() and not Chain("a", (step,), again=True).is_done()
    (tmp_path / "weights").write_bytes(b"b")
    assert not Chain("a", (step,)).is_done()

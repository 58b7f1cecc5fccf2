"""Plans are carried out, recorded, stopped and continued; nothing is lost and nothing is done twice."""

import json
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from unspool.errors import OutputError, UsageError, VideoError
from unspool.jobs import Estimate, Interrupted, Plan, Report, Stop, execute, run_jobs, stopping
from unspool.results import Json, write_json


@dataclass(frozen=True)
class Item:
    """A job that writes its record as `track_video` does."""

    name: str
    folder: Path
    fails: str = ""
    version: int = 1

    @property
    def identity(self) -> Json:
        return {"video": self.version}


def do(item: Item, report: Report, stop: Stop) -> Json:
    report({"event": "video", "video": item.name, "frames": 1})
    if item.fails == "known":
        raise VideoError(f"{item.name}.mp4: no frame decodes; export it again")
    if item.fails == "unknown":
        raise ZeroDivisionError("oops")
    if item.fails == "signal":
        os.kill(os.getpid(), signal.SIGTERM)
        raise Interrupted
    calls = item.folder / "calls.txt"
    with calls.open("a") as file:
        file.write(f"{item.name}\n")
    done = {
        "name": item.name,
        "frames": 1,
        "seconds": 0.1,
        "frames_per_second": 10.0,
        "identity": item.identity,
    }
    write_json(item.folder / "videos" / item.name / "done.json", done)
    return done


def plan(folder: Path, *items: Item, **more: object) -> Plan:
    return Plan("track", folder, {"model": "a"}, items, do, **more)  # type: ignore[arg-type]


def run(a_plan: Plan, **more: object) -> tuple[int, list[Json]]:
    events: list[Json] = []
    code = execute(a_plan, events.append, command=["unspool"], **more)  # type: ignore[arg-type]
    return code, events


def calls(folder: Path) -> list[str]:
    return (folder / "calls.txt").read_text().split()


def record(folder: Path) -> Json:
    return json.loads((folder / "run.json").read_text())


def test_all_jobs_are_done_and_recorded(tmp_path: Path) -> None:
    code, events = run(plan(tmp_path, Item("a", tmp_path), Item("b", tmp_path)))
    assert code == 0
    assert calls(tmp_path) == ["a", "b"]
    assert [(v["name"], v["status"]) for v in record(tmp_path)["videos"]] == [("a", "done"), ("b", "done")]
    assert record(tmp_path)["status"] == "done"
    assert (tmp_path / "index.html").exists()
    assert events[-1]["event"] == "end"


def test_a_rerun_skips_what_is_done_and_does_what_is_missing(tmp_path: Path) -> None:
    run(plan(tmp_path, Item("a", tmp_path), Item("b", tmp_path)))
    (tmp_path / "videos" / "b" / "done.json").unlink()
    code, events = run(plan(tmp_path, Item("a", tmp_path), Item("b", tmp_path)))
    assert code == 0
    assert calls(tmp_path) == ["a", "b", "b"]
    assert {"event": "skipped", "video": "a"} in events


def test_a_rerun_with_a_changed_input_is_refused(tmp_path: Path) -> None:
    run(plan(tmp_path, Item("a", tmp_path)))
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(UsageError, match="'a' was done with another video"):
        run(plan(tmp_path, Item("a", tmp_path, version=2)))
    assert (tmp_path / "run.json").read_bytes() == before


def test_a_failed_job_is_named_and_the_others_are_done(tmp_path: Path) -> None:
    code, events = run(plan(tmp_path, Item("a", tmp_path, fails="known"), Item("b", tmp_path)))
    assert code == 1
    assert calls(tmp_path) == ["b"]
    entry = record(tmp_path)["videos"][0]
    assert (entry["name"], entry["status"]) == ("a", "failed")
    assert "export it again" in entry["error"]
    assert events[-1]["text"] == "1 of 2 failed: a"


def test_an_unexpected_error_names_its_kind_and_keeps_its_trace(tmp_path: Path) -> None:
    code, events = run(plan(tmp_path, Item("a", tmp_path, fails="unknown")))
    assert code == 1
    (failed,) = [e for e in events if e["event"] == "failed"]
    assert failed["error"] == "a: ZeroDivisionError: oops"
    assert "in do" in failed["traceback"]


def test_an_input_that_cannot_be_planned_counts_as_failed(tmp_path: Path) -> None:
    code, _ = run(plan(tmp_path, Item("b", tmp_path), failures=(("a", "no mask for 'a'"),)))
    assert code == 1
    assert record(tmp_path)["videos"][0] == {"name": "a", "status": "failed", "error": "no mask for 'a'"}


def test_a_rerun_clears_an_earlier_failure(tmp_path: Path) -> None:
    run(plan(tmp_path, Item("a", tmp_path, fails="known")))
    code, _ = run(plan(tmp_path, Item("a", tmp_path)))
    assert code == 0
    assert [v["status"] for v in record(tmp_path)["videos"]] == ["done"]


def test_sigterm_ends_the_run_after_the_work_in_hand_and_a_rerun_continues(tmp_path: Path) -> None:
    items = Item("a", tmp_path), Item("b", tmp_path, fails="signal"), Item("c", tmp_path)
    code, _ = run(plan(tmp_path, *items))
    assert code == 143
    assert calls(tmp_path) == ["a"]
    assert record(tmp_path)["status"] == "interrupted"
    code, _ = run(plan(tmp_path, *[Item(n, tmp_path) for n in "abc"]))
    assert code == 0
    assert calls(tmp_path) == ["a", "b", "c"]


def test_the_second_ctrl_c_ends_at_once() -> None:
    with stopping() as stop, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.is_set()
        os.kill(os.getpid(), signal.SIGINT)


def test_worker_processes_give_the_same_outcomes_as_one(tmp_path: Path) -> None:
    items = [Item("a", tmp_path), Item("b", tmp_path, fails="known"), Item("c", tmp_path)]
    events: list[Json] = []
    with stopping() as stop:
        outcomes = {job.name: out for job, out in run_jobs(items, do, events.append, stop, workers=2)}
    assert outcomes["a"]["frames"] == outcomes["c"]["frames"] == 1  # type: ignore[index]
    assert isinstance(outcomes["b"], VideoError)
    assert sorted(calls(tmp_path)) == ["a", "c"]
    assert sorted(e["video"] for e in events) == ["a", "b", "c"]


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "result"
    code, events = run(
        plan(folder, Item("a", folder), estimate=lambda jobs, workers: Estimate("1 frame")), dry_run=True
    )
    assert code == 0
    assert not folder.exists()
    assert [e["text"] for e in events] == [f"a -> {folder / 'videos' / 'a'}", "1 frame"]


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "result").write_text("")
    with pytest.raises(OutputError, match=r"result: is a file, not a folder"):
        run(plan(tmp_path / "result", Item("a", tmp_path)))


def test_a_dry_run_names_what_is_done_and_what_would_fail(tmp_path: Path) -> None:
    run(plan(tmp_path, Item("a", tmp_path)))
    asked: list[tuple[list[str], int]] = []

    def estimate(jobs: Sequence[Item], workers: int) -> Estimate:
        asked.append(([job.name for job in jobs], workers))
        return Estimate("2 frames", (("c", "no frame decodes"),))

    items = [Item(name, tmp_path) for name in "abc"]
    a_plan = plan(tmp_path, *items, failures=(("d", "no mask"),), estimate=estimate)
    code, events = run(a_plan, dry_run=True, workers=3)
    assert code == 1
    assert [e["text"] for e in events if e["event"] == "result"] == [
        "d: would fail: no mask",
        "c: would fail: no frame decodes",
        "a: already done",
        f"b -> {tmp_path / 'videos' / 'b'}",
        "2 frames",
    ]
    assert asked == [(["b", "c"], 3)]


def test_a_refusal_by_the_estimate_removes_nothing_even_with_overwrite(tmp_path: Path) -> None:
    run(plan(tmp_path, Item("a", tmp_path)))

    def refuse(jobs: Sequence[Item], workers: int) -> Estimate:
        raise UsageError("too little memory")

    with pytest.raises(UsageError, match="too little"):
        run(plan(tmp_path, Item("a", tmp_path), estimate=refuse), overwrite=True)
    assert (tmp_path / "videos" / "a" / "done.json").exists()


def test_scores_that_cannot_be_written_leave_no_run_that_seems_to_go_on(tmp_path: Path) -> None:
    def finish(folder: Path, done: list[Json]) -> str:
        raise OutputError(f"{folder}: full")

    with pytest.raises(OutputError, match="full"):
        run(plan(tmp_path, Item("a", tmp_path), finish=finish))
    assert record(tmp_path)["status"] == "failed"

"""Jobs run here, in processes or on a Ray cluster: a worker that is killed loses nothing, doubles nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from make_jobs import Item, do, wait_until_stopped, write_part
from make_training import COMMAND, write_videos
from test_journeys import make_clip, make_mask
from test_verbs_clustering import davis

from unspool import workers
from unspool.cli import main
from unspool.errors import UnspoolError, UsageError
from unspool.jobs import Plan, Report, Stop, execute, stopping
from unspool.results import Json, files_of, read_log
from unspool.verbs.commands import Place, files_below
from unspool.verbs.sweep import carry_out_sweep, read_sweep
from unspool.verbs.track import Settings, TrackJob, track_plan, track_video
from unspool.workers import Cluster, run_jobs

with_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install 'unspool[ray]'"
)
EVERYWHERE = ["processes", pytest.param("ray", marks=with_ray)]
NAMES = ["a", "b", "c", "d"]


def track_and_die(job: TrackJob, report: Report, stop: Stop) -> Json:
    """`track_video`, killed in the middle of video b when it is begun for the first time."""
    killed = job.folder.parent / f"{job.folder.name}-killed"

    def kill(event: Json) -> None:
        report(event)
        if event["event"] == "frame" and event["frame"] == 3 and job.name == "b" and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    return track_video(job, kill, stop)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Ray cluster of two processes on this machine."""
    import ray

    os.environ["UNSPOOL_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    before, here = os.environ.get("PYTHONPATH", ""), str(Path(__file__).parent)
    os.environ |= {"PYTHONPATH": os.pathsep.join([here, before]), "RAY_USAGE_STATS_ENABLED": "0"}
    # Ray asks for 15, and a busy machine starves them
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (its name)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        yield ray.get_runtime_context().gcs_address
    finally:
        ray.shutdown()
        os.environ["PYTHONPATH"] = before
        del os.environ["UNSPOOL_CACHE"]


@pytest.fixture
def where(request: pytest.FixtureRequest) -> Json:
    """Arguments of `execute`: two processes, or the cluster."""
    return {"ray": request.getfixturevalue("cluster")} if request.param == "ray" else {"workers": 2}


def videos_of(folder: Path) -> list[str]:
    for name in NAMES:
        make_clip(folder / f"{name}.mp4")
        make_mask(folder / "masks" / f"{name}.png")
    return [str(folder / f"{name}.mp4") for name in NAMES]


def carry(folder: Path, videos: list[str], work: workers.Work, **more: Any) -> tuple[int, list[Json]]:
    settings = Settings(model="random-resnet18", device="cpu")
    planned = track_plan(
        output=folder, settings=settings, inputs=videos, masks=[str(Path(videos[0]).parent / "masks")]
    )
    events: list[Json] = []
    plan = Plan(planned.verb, planned.folder, planned.config, planned.jobs, work, planned.model)
    return execute(plan, events.append, command=["unspool"], **more), events


def masks(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.glob("videos/*/masks/*.png"))}


@pytest.mark.parametrize("where", EVERYWHERE, indirect=True)
def test_a_worker_killed_in_the_middle_loses_nothing_and_doubles_nothing(where: Json, tmp_path: Path) -> None:
    videos = videos_of(tmp_path / "videos")
    assert carry(tmp_path / "one", videos, track_video)[0] == 0
    code, events = carry(tmp_path / "many", videos, track_and_die, **where)
    assert code == 0
    assert (tmp_path / "many-killed").exists()
    assert masks(tmp_path / "many") == masks(tmp_path / "one")
    assert len(masks(tmp_path / "many")) == 6 * len(NAMES)
    recorded = json.loads((tmp_path / "many" / "run.json").read_text())["videos"]
    assert sorted((entry["name"], entry["status"]) for entry in recorded) == [(n, "done") for n in NAMES]
    assert sorted(e["video"] for e in events if e["event"] == "done") == NAMES
    assert [e["video"] for e in events if e["event"] == "lost"] == ["b"]
    frames = [(e["video"], e["frame"]) for e in events if e["event"] == "frame" and e["video"] != "b"]
    assert sorted(frames) == [(name, number) for name in "acd" for number in range(1, 7)]
    assert not list((tmp_path / "many").glob(".*"))


@pytest.mark.parametrize("where", EVERYWHERE, indirect=True)
def test_a_job_that_kills_every_worker_is_named_and_the_others_are_done(where: Json, tmp_path: Path) -> None:
    items = [Item("a", tmp_path), Item("b", tmp_path, deaths=9), Item("c", tmp_path)]
    (tmp_path / "result").mkdir()
    cluster = Cluster(where["ray"], tmp_path / "result") if "ray" in where else None
    with stopping() as stop:
        ended = [
            (job.name, outcome)
            for job, outcome in run_jobs(items, do, lambda event: None, stop, workers=2, cluster=cluster)
        ]
    outcomes: dict[str, Any] = dict(ended)
    assert sorted(name for name, _ in ended) == ["a", "b", "c"]
    assert outcomes["a"] == {"name": "a"} and outcomes["c"] == {"name": "c"}
    assert isinstance(outcomes["b"], UnspoolError)
    assert "b: a worker process was killed" in str(outcomes["b"])
    begun = (tmp_path / "begun.txt").read_text().split()
    assert sorted(begun) == ["a", "b", "b", "c"]


@pytest.mark.parametrize("where", EVERYWHERE, indirect=True)
def test_a_stop_ends_what_runs_and_begins_nothing_more(where: Json, tmp_path: Path) -> None:
    items = [Item(name, tmp_path) for name in NAMES]
    (tmp_path / "result").mkdir()
    cluster = Cluster(where["ray"], tmp_path / "result") if "ray" in where else None
    with stopping() as stop:

        def report(event: Json) -> None:
            if event["event"] == "note":
                os.kill(os.getpid(), signal.SIGTERM)

        ended = list(run_jobs(items, wait_until_stopped, report, stop, workers=2, cluster=cluster))
    assert 1 <= len(ended) <= 2
    assert all(isinstance(outcome, workers.Interrupted) for _, outcome in ended)


def test_worker_processes_end_with_the_command_that_is_killed(tmp_path: Path) -> None:
    code = """
from pathlib import Path; from threading import Event
from make_jobs import Item, wait_until_stopped; from unspool.workers import run_jobs
items, tell = [Item("a", Path()), Item("b", Path())], lambda event: print(event["process"], flush=True)
list(run_jobs(items, wait_until_stopped, tell, Event(), workers=2))
"""
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert command.stdout is not None
    at_work = {int(command.stdout.readline()) for _ in range(2)}
    command.kill()
    command.wait()
    deadline = time.monotonic() + 20
    while at_work & running() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not at_work & running()


def running() -> set[int]:
    listed = subprocess.run(["ps", "-eo", "pid,stat"], capture_output=True, text=True, check=True).stdout
    return {int(pid) for pid, stat in map(str.split, listed.splitlines()[1:]) if stat[0] != "Z"}


@with_ray
def test_an_error_on_the_cluster_keeps_its_kind_and_its_trace(cluster: str, tmp_path: Path) -> None:
    items = [Item("a", tmp_path / "missing" / "deeper")]
    with stopping() as stop:
        ((_, outcome),) = run_jobs(items, do, lambda event: None, stop, cluster=Cluster(cluster, tmp_path))
    assert isinstance(outcome, FileNotFoundError)
    assert "in do" in outcome.__notes__[0]


class Told:
    """In place of Ray's queue."""

    def __init__(self) -> None:
        self.events: list[Json] = []
        self.actor = self.put_nowait = self
        self.remote, self.qsize = self.events.append, self.events.__len__


def test_where_the_result_folder_is_not_seen_the_files_of_the_job_are_sent_back(tmp_path: Path) -> None:
    events, result = Told(), Path("result")
    outcome, sent = workers._elsewhere(Item("a", result), write_part, events, result, ".mark", str(tmp_path))
    assert outcome == {"name": "a"}
    assert sorted(sent) == parts("a")
    assert not (tmp_path / "result").exists()
    assert events.events[0]["event"] == "begun"


def parts(name: str) -> list[str]:
    data = [f"data/{name}{ending}" for ending in ("-000.js", ".js", ".tree/leaves.js")]
    return [f"checkpoints/{name}.pt", *data, f"pictures/{name}/model.json", f"videos/{name}/done.json"]


def test_jobs_that_share_a_folder_elsewhere_take_nothing_of_each_other(tmp_path: Path) -> None:
    result, away = tmp_path / "node" / "result", str(tmp_path / "driver")
    names = ["a", "b", "a-b", "a1", "a.tree"]

    def and_its_own(name: str) -> tuple[Json | Exception, workers.Sent]:
        return workers._elsewhere(Item(name, result), write_part, Told(), result, ".mark", away)

    for name in names:
        write_part(Item(name, result), lambda event: None, stop=threading.Event())
    for count, name in enumerate(names, 1):
        outcome, sent = and_its_own(name)
        assert outcome == {"name": name}
        assert sorted(sent) == parts(name)
        left = [path for path in result.rglob("*") if path.is_file()]
        assert len(left) == len(parts("")) * (len(names) - count)


def test_a_job_that_takes_its_files_away_finds_all_of_them_while_another_does_so(tmp_path: Path) -> None:
    def taken(name: str) -> list[str]:
        found = []
        for _ in range(50):
            write_part(Item(name, tmp_path), lambda event: None, stop=threading.Event())
            found.append(sorted(workers._collected(name, tmp_path)))
        return next((names for names in found if names != parts(name)), found[0])

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(taken, ["a", "b"])
    assert one == parts("a")
    assert other == parts("b")


def test_where_the_result_folder_is_seen_nothing_is_sent(tmp_path: Path) -> None:
    result = tmp_path / "result"
    result.mkdir()
    with workers._marked(result) as mark:
        _, sent = workers._elsewhere(Item("a", result), write_part, Told(), result, mark, str(tmp_path))
    assert sent == {}
    assert (result / "videos/a/done.json").exists()


def test_a_missing_extra_is_named_with_the_line_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'unspool\[ray\]'"):
        carry(tmp_path / "r", videos_of(tmp_path / "videos"), track_video, ray="auto")


def test_workers_beside_a_cluster_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video, mask = make_clip(tmp_path / "a.mp4"), make_mask(tmp_path / "a.png")
    with pytest.raises(SystemExit) as end:
        main(["track", str(video), "--mask", str(mask), "--ray", "local", "--workers", "2"])
    assert end.value.code == 2
    assert "--ray local takes what the cluster has" in capsys.readouterr().err


@with_ray
@pytest.mark.slow
def test_a_command_on_the_cluster_is_stopped_by_ctrl_c_and_continued(cluster: str, tmp_path: Path) -> None:
    for name in NAMES:
        make_clip(tmp_path / "videos" / f"{name}.mp4", frames=40)
        make_mask(tmp_path / "masks" / f"{name}.png")
    words = [sys.executable, "-m", "unspool", "track", "videos", "--mask", "masks", "-o", "result", "--json"]
    words += ["--model", "random-resnet18", "--device", "cpu", "--ray", cluster]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["event"] == "frame":
            process.send_signal(signal.SIGINT)
            break
    process.stdout.read()
    assert process.wait(60) == 130
    record = json.loads((tmp_path / "result" / "run.json").read_text())
    assert record["status"] == "interrupted"
    assert any(entry["status"] == "interrupted" for entry in record["videos"])
    assert subprocess.run(words, cwd=tmp_path, capture_output=True, check=False, timeout=120).returncode == 0
    record = json.loads((tmp_path / "result" / "run.json").read_text())
    assert sorted((v["name"], v["status"]) for v in record["videos"]) == [(n, "done") for n in NAMES]
    assert len(masks(tmp_path / "result")) == 160


@with_ray
@pytest.mark.parametrize(
    "words",
    [
        ["segment", "a.mp4", "b.mp4", "--resolution", "64x96", "--tau", "0.5"],
        ["eval", "tracking", "--data", "davis17:DAVIS", "--resolution", "32"],
    ],
    ids=lambda words: words[0],
)
def test_a_verb_leaves_on_the_cluster_what_it_leaves_here(
    words: list[str], cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if words[0] == "segment":
        for name in ("a.mp4", "b.mp4"):
            make_clip(tmp_path / name)
    else:
        davis(tmp_path / "DAVIS", {"cows": [1], "goat": [1, 2]})
    for folder, more in (("here", []), ("there", ["--ray", cluster])):
        with pytest.raises(SystemExit) as end:
            main([*words, "--model", "random-resnet18", "--device", "cpu", "-o", folder, *more])
        assert not end.value.code
    assert masks(Path("there")) == masks(Path("here")) != {}
    if words[0] == "eval":
        assert Path("there/scores.csv").read_text() == Path("here/scores.csv").read_text()


@with_ray
@pytest.mark.slow
def test_a_run_of_a_sweep_whose_worker_is_killed_goes_on_and_learns_the_same(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_videos(tmp_path / "videos", 4)
    Path("sweep.toml").write_text('[[run]]\nname = "a"\n[[run]]\nname = "b"\n')
    events: list[Json] = []
    killed: list[int] = []

    def report(event: Json) -> None:
        events.append(event)
        if event["event"] == "step" and event["run"] == "b" and not killed:
            killed.append(process_above("unspool.verbs.child", str(tmp_path / "out" / "b")))
            os.kill(killed[0], signal.SIGKILL)

    words = [*COMMAND[5:], "--data", str(tmp_path / "videos"), "--steps", "150"]
    place = Place(ray=cluster, gpus=False)
    sweep = read_sweep(Path("sweep.toml"), {})
    assert carry_out_sweep(sweep, "dul", words, Path("out"), report, place=place) == 0
    assert [e["video"] for e in events if e["event"] == "lost"] == ["b"]
    assert any(e["event"] == "continued" and e["run"] == "b" for e in events)
    a, b = ([(r["step"], r["loss"]) for r in read_log(Path("out", name, "log.jsonl"))] for name in "ab")
    assert a == b and a[-1][0] == 150


def process_above(*words: str) -> int:
    """The parent of the process that has these words in its command line."""
    listed = subprocess.run(["ps", "-wweo", "ppid,args"], capture_output=True, text=True, check=True).stdout
    (line,) = (line for line in listed.splitlines() if all(f" {word} " in line for word in words))
    return int(line.split()[0])


def fetch(sent: dict[str, bytes], folder: Path, name: str, files: workers.Files) -> None:
    kinds = ("TaskCancelledError", "RayTaskError", "RayError")
    ray = SimpleNamespace(
        get=lambda reference: ({}, sent),
        exceptions=SimpleNamespace(**{kind: type(kind, (Exception,), {}) for kind in kinds}),
    )
    workers._fetched(ray, None, SimpleNamespace(name=name), folder, files)


@pytest.mark.parametrize("done", [False, True])
def test_a_run_that_failed_elsewhere_removes_nothing_here(tmp_path: Path, done: bool) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/encoder.safetensors").write_bytes(b"learnt")
    fetch({"a/command.json": json.dumps({"done": done}).encode()}, tmp_path, "a", files_below)
    assert (tmp_path / "a/encoder.safetensors").exists() is not done


def test_what_is_fetched_whole_replaces_what_an_earlier_beginning_left_here(tmp_path: Path) -> None:
    home = tmp_path / "videos" / "clip"
    home.mkdir(parents=True)
    (home / ".unfinished.pt").write_bytes(b"kept")
    (home / "mask.png").write_bytes(b"old")
    whole = {"videos/clip/mask.png": b"new", "videos/clip/done.json": b"{}"}
    for sent in ({"videos/clip/mask.png": b"new"}, whole):
        fetch(sent, tmp_path, "clip", files_of)
        assert (home / ".unfinished.pt").exists() == (sent is not whole)
        assert (home / "mask.png").read_bytes() == b"new"
    assert sorted(path.name for path in home.iterdir()) == ["done.json", "mask.png"]

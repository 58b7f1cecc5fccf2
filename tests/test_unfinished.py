"""A video that is cut off: the same command goes on within it, and what it leaves is that of one piece."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_journeys import HEIGHT, WIDTH, Run, frame, make_clip, make_davis, make_mask, read, run

from unspool import tracking
from unspool.masks import write_mask
from unspool.verbs.segment import SegmentJob, _made_by
from unspool.verbs.segment_needs import Clock
from unspool.verbs.segment_settings import Some, resolve_segment_settings, segmenting_record
from unspool.verbs.unfinished import decisive
from unspool.video_result import VideoResult

__all__ = ["run"]  # the fixture

COMMAND = ["track", "clip.mp4", "--mask", "0:first.png", "--mask", "12:late.png", "-o", "r"]
FRAMES = 30


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where the result of `COMMAND` keeps its clip; an object enters at frame 12."""
    make_clip(tmp_path / "clip.mp4", frames=FRAMES)
    make_mask(tmp_path / "first.png")
    second = np.zeros((HEIGHT, WIDTH), np.uint8)
    second[34:46, 4:20] = 2
    write_mask(tmp_path / "late.png", second)
    return tmp_path / "r" / "videos" / "clip"


Stopped = Callable[..., str]


@pytest.fixture
def stopped(run: Run, monkeypatch: pytest.MonkeyPatch) -> Stopped:
    """Runs a command, which gets a signal while it tracks this frame; gives its stderr."""

    def call(at: int, number: signal.Signals = signal.SIGINT, command: Sequence[str] = COMMAND) -> str:
        step = tracking.Tracker.step

        def signalled(tracker: tracking.Tracker, *given: object) -> object:
            if tracker.frames == at:
                signal.raise_signal(number)
            return step(tracker, *given)

        with monkeypatch.context() as patch:
            patch.setattr(tracking.Tracker, "step", signalled)
            code, _, err = run(*command)
        assert code == 128 + number, err
        return err

    return call


def frames_done(home: Path) -> int:
    return int(torch.load(home / ".unfinished.pt", weights_only=True)["tracker"]["frames"])


def content(home: Path) -> dict[str, bytes]:
    """What a video's part of a result holds, byte by byte; of `done.json` all but seconds."""
    files = {path.name: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    files |= {path.name: path.read_bytes() for path in (home.parents[1] / "data").glob("*.js")}
    done = json.loads(files.pop("done.json"))
    for changes in ("seconds", "frames_per_second", "timings", "speed"):
        done.pop(changes, None)
    return {**files, "done": json.dumps(done, sort_keys=True).encode()}


def assert_as_in_one_piece(run: Run, home: Path, *more: str) -> None:
    cut = content(home)
    assert run(*COMMAND, *more, "--overwrite")[0] == 0
    assert cut == content(home)


def test_a_video_that_was_cut_off_twice_goes_on_and_ends_as_in_one_piece(
    run: Run, home: Path, stopped: Stopped
) -> None:
    stopped(4, signal.SIGINT)
    assert frames_done(home) == 5
    assert f"clip: goes on after frame 5 of {FRAMES}" in stopped(23, signal.SIGTERM)
    assert frames_done(home) == 24
    code, _, err = run(*COMMAND)
    assert code == 0
    assert f"clip: goes on after frame 24 of {FRAMES}" in err
    assert_as_in_one_piece(run, home)


def assert_killed(program: str, command: Sequence[str], where: Path) -> None:
    """Runs a command in a program that kills itself on the way."""
    words = [sys.executable, "-c", program, *command]
    ended = subprocess.run(words, check=False, cwd=where, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr


def test_a_video_goes_on_where_a_kill_left_it(run: Run, home: Path, tmp_path: Path) -> None:
    killed = """
import os, signal, sys
import unspool.verbs.track as verb
from unspool import tracking
from unspool.cli import main

verb.KEEP_EVERY = 0
step = tracking.Tracker.step

def fatal(tracker, *given):
    if tracker.frames == 17:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(tracker, *given)

tracking.Tracker.step = fatal
main(sys.argv[1:])
"""
    assert_killed(killed, COMMAND, tmp_path)
    assert frames_done(home) == 17
    code, _, err = run(*COMMAND)
    assert code == 0
    assert f"clip: goes on after frame 17 of {FRAMES}" in err
    assert_as_in_one_piece(run, home)


def test_a_stop_while_the_frames_that_are_done_are_read_again_loses_nothing(
    run: Run, home: Path, stopped: Stopped, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(19)
    kept, masks = (home / ".unfinished.pt").read_bytes(), len(list((home / "masks").iterdir()))
    recall = tracking.Tracker.recall

    def signalled(tracker: tracking.Tracker, image: np.ndarray) -> None:
        if tracker.frames == 6:
            signal.raise_signal(signal.SIGINT)
        recall(tracker, image)

    with monkeypatch.context() as patch:
        patch.setattr(tracking.Tracker, "recall", signalled)
        assert run(*COMMAND)[0] == 130
    assert (home / ".unfinished.pt").read_bytes() == kept
    assert len(list((home / "masks").iterdir())) == masks == 20
    assert run(*COMMAND)[0] == 0
    assert_as_in_one_piece(run, home)


@pytest.mark.parametrize("harm", ["clip", "state", "foreign", "bare", "mask", "settings"])
def test_what_does_not_fit_any_more_begins_anew(
    run: Run, home: Path, tmp_path: Path, stopped: Stopped, harm: str
) -> None:
    stopped(4)
    state, more = home / ".unfinished.pt", []
    if harm == "clip":
        make_clip(tmp_path / "clip.mp4", frames=FRAMES - 1)
    elif harm == "state":
        state.write_bytes(state.read_bytes()[:500])
    elif harm == "foreign":
        torch.save([1, 2], state)
    elif harm == "bare":
        torch.save({"of": torch.load(state, weights_only=True)["of"]}, state)
    elif harm == "settings":
        (tmp_path / "r/run.json").unlink()  # which would refuse them
        more = ["--set", "propagation.top_k=3"]
    else:
        (home / "masks" / "00002.png").unlink()
    code, _, err = run(*COMMAND, *more)
    assert code == 0, err
    assert "goes on" not in err
    assert_as_in_one_piece(run, home, *more)


def test_a_mask_that_was_damaged_is_named_and_the_next_run_begins_anew(
    run: Run, home: Path, stopped: Stopped
) -> None:
    stopped(4)
    (home / "masks" / "00002.png").write_bytes(b"")
    code, _, err = run(*COMMAND)
    assert code == 1
    assert "00002.png" in err and "begins anew" in err
    code, _, err = run(*COMMAND)
    assert code == 0
    assert "goes on" not in err


def test_ids_beyond_eight_bits_go_on(run: Run, home: Path, tmp_path: Path, stopped: Stopped) -> None:
    Image.fromarray(frame(0)[1].astype(np.uint16) * 300).save(tmp_path / "first.png")
    stopped(14)
    code, _, err = run(*COMMAND)
    assert code == 0
    assert f"clip: goes on after frame 15 of {FRAMES}" in err
    assert_as_in_one_piece(run, home)


def test_a_sequence_with_truth_goes_on_and_scores_as_in_one_piece(
    run: Run, tmp_path: Path, stopped: Stopped
) -> None:
    make_davis(tmp_path / "DAVIS")
    command = ["eval", "tracking", "--data", "davis17:DAVIS", "-o", "r"]
    stopped(3, command=command)
    code, _, err = run(*command)
    assert code == 0
    assert "ant: goes on after frame 4 of 6" in err
    cut = content(tmp_path / "r/videos/ant"), read(tmp_path / "r/scores.json")
    assert run(*command, "--overwrite")[0] == 0
    assert cut == (content(tmp_path / "r/videos/ant"), read(tmp_path / "r/scores.json"))


def test_reading_again_is_told_as_a_stage_of_its_own(run: Run, home: Path, stopped: Stopped) -> None:
    stopped(19)
    code, out, _ = run(*COMMAND, "--json")
    assert code == 0
    events = [json.loads(line) for line in out.splitlines()]
    again = [event for event in events if event["event"] == "stage"]
    assert again[-1]["done"] == 20
    assert {(event["stage"], event["total"]) for event in again} == {("reading again", 20)}
    tracked = [event["frame"] for event in events if event["event"] == "frame"]
    assert tracked[0] > 20
    assert tracked[-1] == FRAMES


def test_whatever_decides_labels_is_looked_at() -> None:
    first, second = ({"name": "random-resnet18", "weights_hash": seed} for seed in (0, 1))
    usual = decisive({"video": "a"}, {"top_k": 10}, first, "fp32", "cpu")
    others = [
        decisive({"video": "b"}, {"top_k": 10}, first, "fp32", "cpu"),
        decisive({"video": "a"}, {"top_k": 9}, first, "fp32", "cpu"),
        decisive({"video": "a"}, {"top_k": 10}, second, "fp32", "cpu"),
        decisive({"video": "a"}, {"top_k": 10}, first, "bf16", "cpu"),
        decisive({"video": "a"}, {"top_k": 10}, first, "fp32", "meta"),
    ]
    assert usual == decisive({"video": "a"}, {"top_k": 10}, first, "fp32", "auto")
    assert all(other != usual for other in others)


# --------------------------------------------------------------------------------- window by window

SEGMENT = [
    *("segment", "clip.mp4", "--resolution", "64x96", "--tau", "1.0", "--key-ratio", "0.2"),
    *("--window", "9", "--set", "overlap=3", "-o", "r"),
]  # windows begin with frames 0, 6, 12, 18 and 24


@pytest.fixture
def stopped_encoding(run: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> Stopped:
    """Runs `SEGMENT`, which gets a signal when it has encoded so many frames; gives its stderr."""

    def call(frames: int, number: signal.Signals = signal.SIGINT) -> str:
        told, stages = Clock.__call__, list[str]()

        def signalled(clock: Clock, stage: str, done: float) -> None:
            stages.append(stage)
            if stages.count("encode") == frames:
                signal.raise_signal(number)
            told(clock, stage, done)

        with monkeypatch.context() as patch:
            patch.setattr(Clock, "__call__", signalled)
            code, _, err = run(*SEGMENT)
        assert code == 128 + number, err
        return err

    return call


def windows_done(home: Path) -> int:
    """How many frames have their clusters."""
    kept = torch.load(home / ".unfinished.pt", weights_only=True)
    return len(kept["carried"]["labels"]["clusters"])


def assert_segmented_as_in_one_piece(run: Run, home: Path) -> None:
    def everything() -> dict[str, bytes]:
        tree = {path.name: path.read_bytes() for path in (home.parents[1] / "data" / "clip.tree").iterdir()}
        files = content(home)
        with np.load(home / "hierarchy.npz") as held:  # a zip, with times in it
            arrays = {name: held[name].tobytes() for name in held.files}
        files.pop("hierarchy.npz")
        return {**files, **tree, **arrays}

    cut = everything()
    assert run(*SEGMENT, "--overwrite")[0] == 0
    assert cut == everything()


def test_a_segmentation_that_was_cut_off_twice_goes_on_after_its_last_window(
    run: Run, home: Path, stopped_encoding: Stopped
) -> None:
    stopped_encoding(17)
    assert windows_done(home) == 15
    kept = home.parents[1] / "data" / "clip.tree"
    assert {path.name for path in kept.iterdir()} >= {"attention-000000.js", "attention-000005.js"}
    assert f"clip: goes on after frame 15 of {FRAMES}" in stopped_encoding(11, signal.SIGTERM)
    assert windows_done(home) == 21
    code, _, err = run(*SEGMENT)
    assert code == 0
    assert f"clip: goes on after frame 21 of {FRAMES}" in err
    assert not (home / ".unfinished.pt").exists()
    assert_segmented_as_in_one_piece(run, home)


def stop_writing(run: Run, command: Sequence[str]) -> None:
    """Runs `segment`, which gets a signal with its first mask, when all is clustered."""
    write = VideoResult.write

    def signalled(result: VideoResult, *given: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        write(result, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VideoResult, "write", signalled)
        assert run(*command)[0] == 130


def test_a_segmentation_that_was_cut_off_while_masks_were_written_is_not_clustered_again(
    run: Run, home: Path
) -> None:
    stop_writing(run, SEGMENT)
    assert windows_done(home) == FRAMES

    code, out, _ = run(*SEGMENT, "--json")
    assert code == 0
    assert '"clustering"' not in out
    assert_segmented_as_in_one_piece(run, home)


@pytest.mark.parametrize("harm", ["clip", "attention"])
def test_a_segmentation_that_does_not_fit_any_more_begins_anew(
    run: Run, home: Path, tmp_path: Path, stopped_encoding: Stopped, harm: str
) -> None:
    stopped_encoding(17)
    if harm == "clip":
        make_clip(tmp_path / "clip.mp4", frames=FRAMES - 1)
    else:
        (home.parents[1] / "data/clip.tree/attention-000005.js").unlink()
    code, _, err = run(*SEGMENT)
    assert code == 0, err
    assert "goes on" not in err
    assert_segmented_as_in_one_piece(run, home)


class Footage:
    """As much of a video as `_made_by` asks for."""

    name, height, width = "clip", 48, 64

    def __init__(self, frames: int) -> None:
        self.frames = frames

    def __len__(self) -> int:
        return self.frames


def decisive_of(frames: int = 30, **given: Any) -> dict[str, Any]:
    settings = resolve_segment_settings({"model": "random-resnet18", "device": "cpu", **given})
    job = SegmentJob("clip", "clip.mp4", Path("r"), settings, segmenting_record(settings))
    return _made_by(job, {"video": "clip.mp4"}, Some(Footage(frames), settings.every))


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"model": "dul-small"},
        {"precision": "bf16"},
        {"every": 2},
        {"tau": 0.5},
        {"window": 40},
        {"key_ratio": 0.5},
        {"frames": 29},
    ],
)
def test_whatever_decides_clusters_is_looked_at(other: dict[str, Any]) -> None:
    assert decisive_of(**other) != decisive_of()


@pytest.mark.parametrize("other", [{"memory": "3GB"}, {"smallest": 0.01}, {"upsampling": "guided"}])
def test_what_decides_no_cluster_is_not(other: dict[str, Any]) -> None:
    assert decisive_of(**other) == decisive_of()


def test_another_video_at_the_same_address_begins_anew(run: Run, home: Path, tmp_path: Path) -> None:
    command = ["segment", f"file://{tmp_path}/clip.mp4", *SEGMENT[2:]]
    stop_writing(run, command)
    make_clip(tmp_path / "clip.mp4", frames=12)
    code, _, err = run(*command)
    assert code == 0, err
    assert "goes on" not in err


def test_a_kill_costs_no_window_that_was_kept(run: Run, home: Path, tmp_path: Path) -> None:
    killed = """
import os, signal, sys
import unspool.verbs.segment as verb
from unspool.cli import main
from unspool.verbs.segment import SegmentJob, _made_by
from unspool.verbs.segment_needs import Clock
from unspool.verbs.segment_settings import Some, resolve_segment_settings, segmenting_record

verb.KEEP_EVERY = 0
told, frames = Clock.__call__, [0]

def fatal(clock, stage, done):
    frames[0] += stage == "encode"
    if frames[0] == 17:
        os.kill(os.getpid(), signal.SIGKILL)
    told(clock, stage, done)

Clock.__call__ = fatal
main(sys.argv[1:])
"""
    assert_killed(killed, SEGMENT, tmp_path)
    assert windows_done(home) == 15
    code, _, err = run(*SEGMENT)
    assert code == 0
    assert f"clip: goes on after frame 15 of {FRAMES}" in err
    assert_segmented_as_in_one_piece(run, home)


def test_stages_of_a_segmentation_that_goes_on_count_what_is_left(
    run: Run, home: Path, stopped_encoding: Stopped
) -> None:
    stopped_encoding(17)
    code, out, _ = run(*SEGMENT, "--json")
    assert code == 0
    stages = [event for line in out.splitlines() if (event := json.loads(line))["event"] == "stage"]
    last = {event["stage"]: (event["done"], event["total"]) for event in stages}
    assert last["reading again"] == (12, 12)
    assert last["encoding"] == (FRAMES - 12, FRAMES - 12)
    assert last["writing"] == (FRAMES, FRAMES)

"""Whole commands on small real inputs: what a person types, and what they hold afterwards."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unspool.cli import main
from unspool.masks import read_truth, write_mask
from unspool.video import VideoWriter, open_video

HEIGHT, WIDTH, FRAMES = 48, 80, 6


def frame(t: int) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    image = np.stack([(rows * 5) % 256, (columns * 3) % 256, (rows * columns) % 256], axis=-1).astype(
        np.uint8
    )
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[10:30, 10 + 2 * t : 30 + 2 * t] = 1
    image[labels == 1] = (240, 200, 30)
    return image, labels


def make_clip(path: Path, frames: int = FRAMES) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    times = [Fraction(t, 10) for t in range(frames)]
    with VideoWriter(path, height=HEIGHT, width=WIDTH, times=times) as writer:
        for t in range(frames):
            writer.write(frame(t % FRAMES)[0])
    return path


def make_mask(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mask(path, frame(0)[1])
    return path


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return call


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


# -------------------------------------------------------------------------------------------- track


def test_track_leaves_the_promised_folder_and_prints_its_page(run: Run, tmp_path: Path) -> None:
    make_clip(tmp_path / "clip.mp4")
    make_mask(tmp_path / "first.png")
    code, out, err = run("track", "clip.mp4", "--mask", "first.png")
    assert code == 0, err
    assert out.strip() == "unspool-track-clip/index.html"
    folder = tmp_path / "unspool-track-clip"
    assert sorted(p.name for p in (folder / "videos" / "clip").iterdir()) == [
        "done.json", "frames.mp4", "masks", "overlay.mp4", "thumbs.jpg", "tracks.json",
    ]  # fmt: skip
    masks = sorted((folder / "videos" / "clip" / "masks").iterdir())
    assert len(masks) == FRAMES
    assert np.array_equal(read_truth(masks[0]), frame(0)[1])
    record = read(folder / "run.json")
    assert record["status"] == "done"
    assert record["model"]["name"] == "dul-small"
    assert record["config"]["tracking"]["propagation"]["top_k"] == 10
    assert record["speed"]["fps_model"] > record["speed"]["fps_end_to_end"] > 0
    assert (record["speed"]["warm_up_videos"], record["speed"]["context"]) == (0, 20)
    with open_video(folder / "videos" / "clip" / "overlay.mp4") as overlay:
        assert list(overlay.times) == [Fraction(t, 10) for t in range(FRAMES)]


def test_the_default_model_is_named_everywhere(run: Run, tmp_path: Path) -> None:
    make_clip(tmp_path / "clip.mp4")
    make_mask(tmp_path / "first.png")
    _, _, err = run("track", "clip.mp4", "--mask", "first.png", "-o", "r")
    assert "dul-small" in err
    assert "dul-small" in (tmp_path / "r" / "index.html").read_text("utf-8")


def test_a_second_run_does_nothing_again(run: Run, tmp_path: Path) -> None:
    make_clip(tmp_path / "clip.mp4")
    make_mask(tmp_path / "first.png")
    run("track", "clip.mp4", "--mask", "first.png", "-o", "r")
    stamp = (tmp_path / "r" / "videos" / "clip" / "done.json").stat().st_mtime_ns
    code, _, err = run("track", "clip.mp4", "--mask", "first.png", "-o", "r")
    assert code == 0
    assert "already done" in err
    assert (tmp_path / "r" / "videos" / "clip" / "done.json").stat().st_mtime_ns == stamp


def test_other_settings_are_refused_and_named_until_overwrite(run: Run, tmp_path: Path) -> None:
    make_clip(tmp_path / "clip.mp4")
    make_mask(tmp_path / "first.png")
    run("track", "clip.mp4", "--mask", "first.png", "-o", "r")
    again = ("track", "clip.mp4", "--mask", "first.png", "-o", "r", "--set", "propagation.top_k=3")
    code, _, err = run(*again)
    assert code == 2
    assert "top_k" in err and "--overwrite" in err
    assert run(*again, "--overwrite")[0] == 0


def test_one_broken_video_among_many_is_named_and_the_rest_is_done(run: Run, tmp_path: Path) -> None:
    make_clip(tmp_path / "videos" / "a.mp4")
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"no video")
    make_clip(tmp_path / "videos" / "c.mp4")
    for name in ("a", "broken"):
        make_mask(tmp_path / "masks" / f"{name}.png")
    code, _, err = run("track", "videos", "--mask", "masks", "-o", "r")
    assert code == 1
    assert "2 of 3 failed: c, broken" in err
    assert "broken.mp4" in err and "holds no mask for 'c'" in err
    assert (tmp_path / "r" / "videos" / "a" / "done.json").exists()
    assert {v["name"]: v["status"] for v in read(tmp_path / "r" / "run.json")["videos"]} == {
        "a": "done", "broken": "failed", "c": "failed",
    }  # fmt: skip


def test_workers_give_the_same_masks_as_one(run: Run, tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_clip(tmp_path / "videos" / f"{name}.mp4")
        make_mask(tmp_path / "masks" / f"{name}.png")
    assert run("track", "videos", "--mask", "masks", "-o", "one")[0] == 0
    assert run("track", "videos", "--mask", "masks", "-o", "two", "--workers", "2")[0] == 0
    for mask in (tmp_path / "one").rglob("masks/*.png"):
        other = tmp_path / "two" / mask.relative_to(tmp_path / "one")
        assert mask.read_bytes() == other.read_bytes()


def test_json_events_stand_alone_on_stdout(run: Run, tmp_path: Path) -> None:
    make_clip(tmp_path / "clip.mp4")
    make_mask(tmp_path / "first.png")
    code, out, _ = run("track", "clip.mp4", "--mask", "first.png", "--json")
    assert code == 0
    events = [json.loads(line) for line in out.splitlines()]
    assert events[-1]["event"] == "end" and events[-1]["status"] == "done"
    assert {"video", "frame", "done"} <= {e["event"] for e in events}


def test_the_dino_preset_normalises_as_dino_does(run: Run, tmp_path: Path) -> None:
    from unspool.verbs.track import Settings, _encoder_of, tracking_record

    how = tracking_record(Settings(preset="dino"))
    assert _encoder_of(Settings(), how).std == (0.228, 0.224, 0.225)


def test_a_dry_run_estimates_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    make_clip(tmp_path / "clip.mp4")
    make_mask(tmp_path / "first.png")
    for more in ([], ["-q"]):
        code, out, _ = run("track", "clip.mp4", "--mask", "first.png", "--dry-run", *more)
        assert code == 0
        assert "6 frames, about" in out and "peak memory about" in out
    assert not (tmp_path / "unspool-track-clip").exists()


def test_a_dry_run_names_the_video_that_cannot_be_read(run: Run, tmp_path: Path) -> None:
    make_clip(tmp_path / "videos" / "a.mp4")
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"no video")
    for name in ("a", "broken"):
        make_mask(tmp_path / "masks" / f"{name}.png")
    code, out, _ = run("track", "videos", "--mask", "masks", "-o", "r", "--dry-run")
    assert code == 1
    assert "broken: would fail: videos/broken.mp4" in out
    assert "a -> r/videos/a" in out


def test_an_error_is_an_event_on_stdout_where_events_are_asked_for(run: Run) -> None:
    code, out, err = run("track", "nowhere.mp4", "--mask", "m.png", "--json")
    assert code == 2
    (event,) = [json.loads(line) for line in out.splitlines()]
    assert (event["event"], event["exit_code"]) == ("error", 2)
    assert "nowhere.mp4: no such file" in event["error"] and event["error"] in err
    code, out, _ = run("track", "--json", "--no-such-option")
    assert code == 2
    assert "no-such-option" in json.loads(out)["error"]


def test_a_budget_of_memory_changes_no_mask_and_too_small_a_one_names_the_least(
    run: Run, tmp_path: Path
) -> None:
    make_clip(tmp_path / "clip.mp4")
    make_mask(tmp_path / "first.png")
    arguments = ["track", "clip.mp4", "--mask", "first.png", "-o"]
    code, _, err = run(*arguments, "b", "--memory", "1MB")
    assert code == 2
    least = err.split("least that works is --memory ")[1].split()[0]
    assert not (tmp_path / "b").exists()
    assert run(*arguments, "a")[0] == run(*arguments, "b", "--memory", least)[0] == 0
    for mask in (tmp_path / "a").rglob("masks/*.png"):
        other = tmp_path / "b" / mask.relative_to(tmp_path / "a")
        assert mask.read_bytes() == other.read_bytes()
    assert "already done" in run(*arguments, "b")[2]  # a budget is no setting of the result


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GB", 4 * 10**9), ("800 mb", 8 * 10**8), ("1.5GiB", 3 * 2**29), ("2k", 2000), (7, 7), ("7B", 7)],
)
def test_sizes_are_read_as_people_write_them(text: str | int, size: int) -> None:
    from unspool.options import size_in_bytes

    assert size_in_bytes(text) == size


def test_a_config_file_stands_below_the_command_line(run: Run, tmp_path: Path) -> None:
    make_clip(tmp_path / "clip.mp4")
    make_mask(tmp_path / "first.png")
    (tmp_path / "c.toml").write_text('preset = "crw"\nseed = 3\n[propagation]\ntop_k = 4\n')
    code, _, err = run(
        "track", "clip.mp4", "--mask", "first.png", "--config", "c.toml", "--seed", "5", "-o", "r"
    )
    assert code == 0, err
    config = read(tmp_path / "r" / "run.json")["config"]
    assert (config["preset"], config["seed"]) == ("crw", 5)
    assert config["tracking"]["propagation"]["top_k"] == 4
    assert config["tracking"]["features"] == "layer3"


SLOW = """
import sys, time
import unspool.tracking as tracking
plain = tracking.encode
def slow(*a, **k):
    time.sleep(0.3)
    return plain(*a, **k)
tracking.encode = slow
from unspool.cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_keeps_its_masks_and_continues(
    run: Run, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    make_clip(tmp_path / "clip.mp4", frames=60)
    make_mask(tmp_path / "first.png")
    arguments = ["track", "clip.mp4", "--mask", "first.png", "-o", "r"]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *arguments], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    masks = tmp_path / "r" / "videos" / "clip" / "masks"
    end = time.monotonic() + 120
    while not (masks.is_dir() and any(masks.glob("*.png"))) and time.monotonic() < end:
        time.sleep(0.05)
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "run the same command again to continue" in err
    kept = sorted(masks.glob("*.png"))
    assert kept and len(kept) < 60
    assert all(read_truth(p).shape == (HEIGHT, WIDTH) for p in kept)
    assert not list((tmp_path / "r").rglob("*.part"))
    assert read(tmp_path / "r" / "run.json")["status"] == "interrupted"
    assert run(*arguments)[0] == 0
    assert len(list(masks.glob("*.png"))) == 60


def test_a_signal_to_the_whole_group_stops_the_workers_too_and_a_rerun_continues(
    run: Run, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        make_clip(tmp_path / "videos" / f"{name}.mp4", frames=20)
        make_mask(tmp_path / "masks" / f"{name}.png")
    guarded = SLOW.replace("main(sys.argv[1:])", "if __name__ == '__main__': main(sys.argv[1:])")
    (tmp_path / "slow.py").write_text(guarded)  # a file, so that the worker processes are slow as well
    arguments = ["track", "videos", "--mask", "masks", "-o", "r", "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, "slow.py", *arguments],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    end = time.monotonic() + 120
    while len(list((tmp_path / "r").glob("videos/*/masks/00000.png"))) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert "run the same command again to continue" in err and "Traceback" not in err
    assert not list((tmp_path / "r").rglob("*.part"))
    assert {v["status"] for v in read(tmp_path / "r" / "run.json")["videos"]} == {"interrupted"}
    assert run(*arguments[:-2])[0] == 0  # the number of workers is no setting of the result
    assert len(list((tmp_path / "r").glob("videos/*/masks/*.png"))) == 40


@pytest.mark.skipif(sys.platform == "win32", reason="limits of file sizes are POSIX")
def test_a_limit_on_file_sizes_is_named_and_what_was_written_stays_whole(tmp_path: Path) -> None:
    make_clip(tmp_path / "clip.mp4", frames=20)
    make_mask(tmp_path / "first.png")
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n" + SLOW
    arguments = ["track", "clip.mp4", "--mask", "first.png", "-o", "r"]
    process = subprocess.run(
        [sys.executable, "-c", limited.replace("0.3", "0"), *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == 1, process.stderr
    assert "ulimit -f" in process.stderr and "Traceback" not in process.stderr
    assert all(read_truth(p).shape == (HEIGHT, WIDTH) for p in (tmp_path / "r").rglob("masks/*.png"))


# --------------------------------------------------------------------------------------------- eval


def make_davis(root: Path, year: int = 2017) -> Path:
    for name in ("ant", "bee"):
        for t in range(FRAMES):
            image, labels = frame(t)
            picture = root / "JPEGImages" / "480p" / name / f"{t:05d}.jpg"
            picture.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(picture, quality=95)
            truth = root / "Annotations" / "480p" / name / f"{t:05d}.png"
            truth.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(labels * (255 if year == 2016 else 1)).save(truth)
    lists = root / "ImageSets" / str(year)
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("ant\nbee\n")
    return root


@pytest.mark.parametrize(
    ("kind", "year", "protocol"), [("davis17", 2017, "davis17-semi"), ("davis16", 2016, "davis16-official")]
)
def test_eval_tracking_scores_a_davis_tree(
    run: Run, tmp_path: Path, kind: str, year: int, protocol: str
) -> None:
    make_davis(tmp_path / "DAVIS", year)
    code, out, err = run("eval", "tracking", "--data", f"{kind}:DAVIS", "-o", "r")
    assert code == 0, err
    assert out.startswith(f"{protocol}: J&F ")
    scores = read(tmp_path / "r" / "scores.json")
    assert scores["protocol"] == protocol
    assert list(scores["sequences"]) == ["ant", "bee"]
    assert scores["global"]["J-Mean"] > scores["standing still"]["global"]["J-Mean"]
    names = sorted(p.name for p in (tmp_path / "r" / "davis" / "ant").iterdir())
    assert names == [f"{t:05d}.png" for t in range(FRAMES)]
    rows = list(csv.DictReader((tmp_path / "r" / "scores.csv").open()))
    assert [(r["sequence"], r["object"]) for r in rows] == [
        ("ant", "1"), ("ant", "all"), ("bee", "1"), ("bee", "all"), ("all", "all"),
    ]  # fmt: skip


def test_more_ids_than_the_layout_of_davis_holds_are_refused(run: Run, tmp_path: Path) -> None:
    root = make_davis(tmp_path / "DAVIS")
    for path in (root / "Annotations" / "480p" / "ant").iterdir():
        Image.fromarray(np.where(read_truth(path) > 0, 300, 0).astype(np.uint16)).save(path)
    code, _, err = run("eval", "tracking", "--data", "davis17:DAVIS", "-o", "r")
    assert code == 1
    assert "ant/00000.png: holds id 300, but in the layout of DAVIS ids end at 254" in err
    assert not (tmp_path / "r" / "davis" / "ant").exists()


def test_without_hard_links_the_official_layout_is_copied_whole(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no hard links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    make_davis(tmp_path / "DAVIS")
    for _ in range(2):
        assert run("eval", "tracking", "--data", "davis17:DAVIS", "-o", "r")[0] == 0
        for link in (tmp_path / "r" / "davis" / "ant").iterdir():
            assert link.read_bytes() == (tmp_path / "r" / "videos" / "ant" / "masks" / link.name).read_bytes()
    assert not list((tmp_path / "r").rglob("*.part"))


def test_scores_of_a_continued_eval_equal_those_of_one_run(run: Run, tmp_path: Path) -> None:
    make_davis(tmp_path / "DAVIS")
    run("eval", "tracking", "--data", "davis17:DAVIS", "-o", "r")
    whole = read(tmp_path / "r" / "scores.json")
    (tmp_path / "r" / "videos" / "bee" / "done.json").unlink()
    (tmp_path / "r" / "scores.json").unlink()
    assert run("eval", "tracking", "--data", "davis17:DAVIS", "-o", "r")[0] == 0
    assert read(tmp_path / "r" / "scores.json") == whole


def test_masks_made_elsewhere_score_as_those_of_the_run(run: Run, tmp_path: Path) -> None:
    make_davis(tmp_path / "DAVIS")
    run("eval", "tracking", "--data", "davis17:DAVIS", "-o", "r")
    code, out, err = run(
        "eval", "tracking", "--pred", "r/davis", "--truth", "DAVIS/Annotations/480p", "-o", "s"
    )
    assert code == 0, err
    assert out.startswith("davis17-semi: J&F ")
    assert read(tmp_path / "s" / "scores.json")["global"] == read(tmp_path / "r" / "scores.json")["global"]


def test_a_missing_prediction_is_named(run: Run, tmp_path: Path) -> None:
    make_davis(tmp_path / "DAVIS")
    truth = tmp_path / "DAVIS" / "Annotations" / "480p"
    for t in (0, 1, 2, 4, 5):
        write_mask(
            make_parent(tmp_path / "pred" / "ant" / f"{t:05d}.png"),
            read_truth(truth / "ant" / f"{t:05d}.png"),
        )
    for t in range(1, 5):  # the ends are not scored, and may be missing
        write_mask(
            make_parent(tmp_path / "pred" / "bee" / f"{t:05d}.png"),
            read_truth(truth / "bee" / f"{t:05d}.png"),
        )
    code, out, err = run("eval", "tracking", "--pred", "pred", "--truth", truth, "-o", "s")
    assert code == 1
    assert "ant: no prediction for frame 00003.png" in err
    assert out.startswith("davis17-semi: ") and "over 1 of 2 sequences, without ant" in out
    assert read(tmp_path / "s" / "scores.json")["missing"] == ["ant"]
    assert read(tmp_path / "s" / "scores.json")["sequences"]["bee"]["J-Mean"] == 1.0


def make_parent(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_a_tree_that_is_no_davis_says_what_was_looked_for(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, _, err = run("eval", "tracking", "--data", "davis17:empty")
    assert code == 1
    assert "ImageSets/2017/val.txt" in err


# ---------------------------------------------------------------------------------------- wrong use


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["track"], "no video is given"),
        (["track", "nowhere.mp4", "--mask", "m.png"], "nowhere.mp4: no such file"),
        (["track", "clip.mp4"], "--mask first.png"),
        (["track", "clip.mp4", "--mask", "nowhere.png"], "nowhere.png: no such mask file"),
        (["track", "clip.mp4", "--mask", "first.png", "--model", "dino-vits61"], "did you mean dino-vits16"),
        (["track", "clip.mp4", "--mask", "first.png", "--set", "top_k"], "expected KEY=VALUE"),
        (["track", "clip.mp4", "--mask", "first.png", "--set", "modell=x"], "did you mean 'model'?"),
        (["track", "clip.mp4", "--mask", "first.png", "--set", "propagation.temperature=0"], "out of range"),
        (["track", "clip.mp4", "--mask", "first.png", "--preset", "dull"], "dul"),
        (["track", "clip.mp4", "--mask", "first.png", "--device", "cuda:9"], "device 'cuda:9' is not there"),
        (["track", "clip.mp4", "--mask", "first.png", "--no-such-option"], "no-such-option"),
        (["track", "clip.mp4", "--mask", "first.png", "--set", "propagation.top_k=abc"], "expected int"),
        (["track", "clip.mp4", "--mask", "first.png", "--set", "propagation=5"], "is a table"),
        (["track", "clip.mp4", "--mask", "first.png", "--set", "a b=3"], "expected KEY=VALUE"),
        (["track", "clip.mp4", "--mask", "first.png", "--set", "short_side=true"], "expected int"),
        (["track", "clip.mp4", "--mask", "first.png", "--resolution", "0"], "at least 1 px"),
        (["track", "clip.mp4", "--mask", "first.png", "--workers", "0"], "at least 1"),
        (["track", "clip.mp4", "--mask", "first.png", "--memory", "much"], "e.g. --memory 4GB"),
        (["demo", "--memory", "1MB"], "the least that works is --memory"),
        (
            ["track", "clip.mp4", "--mask", "first.png", "--memory", "1MB", "--workers", "2"],
            "80x48 in 3 processes",
        ),
        (
            ["track", "clip.mp4", "--mask", "first.png", "--preset", "crw", "--model", "random-vits16"],
            "offers",
        ),
        (["eval", "tracking"], "either --data KIND:PATH"),
        (["eval", "tracking", "--pred", "a"], "--pred and --truth belong together"),
        (["eval", "tracking", "--data", "davis99:x"], "KIND one of davis17, davis16"),
        (["eval", "tracking", "--pred", "a", "--truth", "b", "--protocol", "jf"], "there are davis17-semi"),
        (["view", "nowhere"], "nowhere"),
        (["models", "dino-vits61"], "did you mean dino-vits16"),
        (["tracc"], "track"),
    ],
)
def test_wrong_use_ends_with_2_and_says_what_is_right(
    run: Run, tmp_path: Path, arguments: list[str], says: str
) -> None:
    make_clip(tmp_path / "clip.mp4")
    make_mask(tmp_path / "first.png")
    code, out, err = run(*arguments)
    assert code == 2, err
    assert says in " ".join(err.split())
    assert not out
    assert "Traceback" not in err


def test_a_mask_of_another_size_is_wrong_use_and_leaves_nothing(run: Run, tmp_path: Path) -> None:
    make_clip(tmp_path / "clip.mp4")
    write_mask(tmp_path / "small.png", frame(0)[1][::2, ::2])
    for more in ([], ["--dry-run"]):
        code, out, err = run("track", "clip.mp4", "--mask", "small.png", *more)
        assert code == 2, err
        assert "small.png: mask is 40x24, but the video is 80x48" in err
        assert "--resize-mask" in err
        assert not out
        assert not (tmp_path / "unspool-track-clip").exists()
    assert run("track", "clip.mp4", "--mask", "small.png", "--resize-mask")[0] == 0


def test_among_several_videos_a_mask_of_another_size_fails_its_own(run: Run, tmp_path: Path) -> None:
    for name in "ab":
        make_clip(tmp_path / f"{name}.mp4")
    make_mask(tmp_path / "masks" / "a.png")
    write_mask(tmp_path / "masks" / "b.png", frame(0)[1][::2, ::2])
    assert "b: would fail" in run("track", "a.mp4", "b.mp4", "--mask", "masks", "--dry-run")[1]
    code, _, err = run("track", "a.mp4", "b.mp4", "--mask", "masks", "-o", "r")
    assert code == 1
    assert "1 of 2 failed: b" in err
    assert read(tmp_path / "r" / "videos" / "a" / "done.json")["frames"] == FRAMES


def test_what_models_takes_is_shown_as_an_argument(run: Run) -> None:
    said = run("models", "--help")[1]
    assert "Arguments" in said
    assert "--name" not in said


def test_help_of_every_verb_ends_with_0_and_shows_an_example(run: Run) -> None:
    for verb in (["demo"], ["track"], ["eval", "tracking"], ["models"], ["view"]):
        code, out, _ = run(*verb, "--help")
        assert code == 0
        assert f"unspool {' '.join(verb)}" in out


def test_the_version_tells_what_it_runs_on(run: Run) -> None:
    assert run("--version")[1].startswith("unspool 0.")
    text = run("--version", "-v")[1]
    for part in ("python 3.", "torch ", "libavcodec", "devices: cpu"):
        assert part in text


# -------------------------------------------------------------------------------------------- train

SMALL = [
    word
    for setting in ("dul.clips=2", "dul.width=4", "dul.embedding=8", "dul.anchors=2", "dul.references=2")
    for word in ("--set", setting)
] + ["--set", "augmentation.size=[32, 32]", "--set", "augmentation.short_side=[32, 40]", "--device", "cpu"]


@pytest.fixture
def footage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNSPOOL_CACHE", str(tmp_path / "cache"))
    for name in "abc":
        make_clip(tmp_path / "videos" / f"{name}.mp4")
    return tmp_path / "videos"


def test_train_then_track_with_what_was_learnt(run: Run, tmp_path: Path, footage: Path) -> None:
    code, out, err = run("train", "dul", "--data", "videos", "--steps", 2, "--validate-every", 0, *SMALL)
    assert code == 0, err
    assert out.strip() == "unspool-train-dul/index.html"
    assert "3 videos; 2 steps of 2 clips of 4 frames at 32x32" in err
    assert "To use it: unspool track clip.mp4 --mask first.png --model unspool-train-dul" in err
    make_mask(tmp_path / "first.png")
    clip = footage / "a.mp4"
    code, _, err = run("track", clip, "--mask", "first.png", "--model", "unspool-train-dul", "-o", "t")
    assert code == 0, err
    assert read(tmp_path / "t" / "run.json")["model"]["dim"] == 32


def test_train_tells_machines_every_step(run: Run, footage: Path) -> None:
    options = ("--steps", 2, "--validate-every", 0, "--json", "-q")
    code, out, _ = run("train", "dul", "--data", footage / "a.mp4", footage / "b.mp4", *options, *SMALL)
    events = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [e["step"] for e in events if e["event"] == "step"] == [1, 2]
    assert events[-1]["event"] == "end"


def test_train_without_data_or_with_wrong_settings_is_wrong_use(run: Run, footage: Path) -> None:
    for words, expected in (
        ([], "nothing to train on"),
        (["--data", "nowhere"], "no such file or folder"),
        (["--data", "videos", "--set", "dul.widht=3"], "did you mean 'width'?"),
        (["--data", "videos", "--preset", "dino"], "there are dul-kinetics"),
        (["--data", "videos", "--device", "tpu"], "device 'tpu' is not there"),
        (["--data", "videos", "--devices", "0"], "1 or more of each"),
        (["--data", "videos", "--steps", "0"], "training.steps"),
    ):
        code, _, err = run("train", "dul", *words)
        assert code == 2, err
        assert expected in err

"""`unspool eval discovery` from the command line to what it leaves."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unspool.cli import main
from unspool.data import sequences
from unspool.masks import read_truth, write_mask
from unspool.metrics import mean_over_videos, miou_frame
from unspool.verbs.discovery import _for_one_object
from unspool.verbs.segment_settings import resolve_segment_settings, segmenting_record

Run = Callable[..., tuple[int, str, str]]
SMALL = ("--resolution", "64x96", "--model", "random-resnet18")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sequences, "RENDERED_SIZE", (48, 72))
    monkeypatch.setattr(sequences, "RENDERED_FRAMES", 4)

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        code = end.value.code
        return (code if isinstance(code, int) else 1), out, err

    return call


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def make_single(root: Path) -> Path:
    """SegTrack-v2: one object that stands still on a ground."""
    for t in range(3):
        image = np.random.default_rng(0).integers(0, 60, (48, 72, 3), np.uint8)
        mask = np.zeros((48, 72), np.uint8)
        image[12:36, 20:50], mask[12:36, 20:50] = (230, 60, 20), 255
        for path, pixels in (
            (root / "JPEGImages" / "own" / f"{t}.png", image),
            (root / "GroundTruth" / "own" / f"gt{t}.png", mask),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return root


@pytest.mark.parametrize("names", [("--sequences", "rendered-0", "rendered-2"),
                                   ("--sequences", "rendered-0", "--sequences", "rendered-2")])  # fmt: skip
def test_several_names_may_follow_one_option(run: Run, names: tuple[str, ...]) -> None:
    code, out, err = run("eval", "discovery", "--data", "rendered:3", *SMALL, *names, "--dry-run")
    assert code == 0, err
    assert [f"rendered-{n} ->" in out for n in range(3)] == [True, False, True]


@pytest.fixture
def trees(tmp_path: Path) -> Path:
    """Masks of two sequences, predicted and true."""
    for name in ("ant", "bee"):
        for side in ("pred", "truth"):
            folder = tmp_path / side / name
            folder.mkdir(parents=True)
            for t in range(3):
                mask = np.zeros((16, 24), np.uint8)
                mask[4:9, 4 + t : 9 + t] = 1
                Image.fromarray(mask).save(folder / f"{t:05d}.png")
    return tmp_path


MADE = ("--pred", "pred", "--truth", "truth")


@pytest.mark.parametrize("verb", ["tracking", "discovery"])
def test_of_masks_made_elsewhere_only_named_sequences_are_scored(run: Run, trees: Path, verb: str) -> None:
    code, _, err = run("eval", verb, *MADE, "--sequences", "bee", "-o", "r")
    assert code == 0, err
    assert list(read(trees / "r/scores.json")["sequences"]) == ["bee"]
    assert run("eval", verb, *MADE, "--sequences", "cat", "-o", "s")[::2] == (
        2,
        "error: truth: holds no sequence 'cat', which --sequences names\n",
    )
    assert "names nothing" in run("eval", verb, *MADE, "--sequences", "-o", "s")[2]


@pytest.mark.parametrize(
    ("verb", "options", "refused"),
    [
        ("tracking", ("--model", "dul-small"), "--model"),
        ("tracking", ("--set", "propagation.top_k=3"), "--set"),
        ("discovery", ("--tau", "1"), "--tau"),
        ("discovery", ("--smallest", "0.1"), "--smallest"),
    ],
)
def test_masks_made_elsewhere_take_no_options_of_a_model(
    run: Run, trees: Path, verb: str, options: tuple[str, ...], refused: str
) -> None:
    code, _, err = run("eval", verb, *MADE, *options, "-o", "r")
    assert code == 2
    assert f"--pred takes no {refused}" in err
    assert run("eval", verb, *MADE, "--device", "cpu", "-o", "r")[0] == 0


def test_rendered_clips_are_segmented_and_scored(run: Run, tmp_path: Path) -> None:
    command = ("eval", "discovery", "--data", "rendered:2", *SMALL, "-o", "r", "--largest", 3)
    code, out, err = run(*command)
    assert code == 0, err
    assert out.startswith("data: videos 2, frames 8, with truth 8, objects ")
    assert "post-processing: 3 largest" in out
    scores = read(tmp_path / "r" / "scores.json")
    assert list(scores["protocols"]) == [
        "davis17-unsup", "davis17-unsup-framewise", "fg-ari-video", "fg-ari-frame", "fg-ari-solv",
        "miou-solv", "miou-video-hungarian", "miou-frame", "mbo-video", "mbo-frame",
    ]  # fmt: skip
    assert list(scores["sequences"]) == ["rendered-0", "rendered-1"]
    whole = scores["global"]
    assert whole["davis17-unsup-framewise J&F"] >= whole["davis17-unsup J&F"]
    assert whole["mbo-video mBO"] >= whole["miou-video-hungarian mIoU"]
    rows = list(csv.DictReader((tmp_path / "r" / "scores.csv").open()))
    assert {row["video"] for row in rows} == {"rendered-0", "rendered-1", "all"}
    masks = [read_truth(path) for path in (tmp_path / "r" / "videos" / "rendered-1" / "masks").iterdir()]
    assert len(set(np.unique(masks)) - {0}) <= 3
    linked = sorted(path.name for path in (tmp_path / "r" / "davis" / "rendered-1").iterdir())
    assert linked == [f"{t:05d}.png" for t in range(4)]
    assert "davis17-unsup" in (tmp_path / "r" / "index.html").read_text("utf-8")

    (tmp_path / "r" / "videos" / "rendered-1" / "done.json").unlink()
    assert run(*command)[0] == 0  # a rerun does what is missing, and keeps the rest
    assert read(tmp_path / "r" / "scores.json") == scores
    code, _, err = run(*command[:-1], 4)
    assert code == 2
    assert "postprocessing" in err


def test_what_is_scored_are_the_masks_after_all_steps_that_the_result_names(run: Run, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text("smallest = 0.02\n")
    steps = ("--upsampling", "bilinear", "--config", "own.toml", "--fill-holes")
    scored = ("--protocol", "miou-frame")
    for options, folder in (((), "plain"), (steps, "r")):
        code, _, err = run(
            "eval", "discovery", "--data", "rendered:1", *SMALL, *scored, *options, "-o", folder
        )
        assert code == 0, err
    said = "smallest 0.02 of the video, upsampling bilinear, holes filled"
    scores = read(tmp_path / "r/scores.json")
    assert scores["postprocessing"] == read(tmp_path / "r/run.json")["config"]["postprocessing"] == said
    clip = sequences.rendered_sequences("1")[0]
    paths = sorted((tmp_path / "r/videos/rendered-0/masks").iterdir())
    overlaps = miou_frame([read_truth(path) for path in paths], [np.asarray(m) for m in clip.truth()])
    assert scores["global"]["miou-frame mIoU"] == pytest.approx(mean_over_videos([overlaps]), abs=1e-6)
    assert read(tmp_path / "plain/scores.json")["global"] != scores["global"]


def test_masks_that_were_left_score_the_same_when_given(run: Run, tmp_path: Path) -> None:
    run("eval", "discovery", "--data", "rendered:1", *SMALL, "-o", "r", "--largest", 5)
    clip = sequences.rendered_sequences("1")[0]
    for name, labels in zip(clip.frame_names, clip.truth(), strict=True):
        path = tmp_path / "truth" / clip.name / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_mask(path, np.asarray(labels))
    protocols = [word for name in ("davis17-unsup", "miou-solv") for word in ("--protocol", name)]
    code, _, err = run("eval", "discovery", "--pred", "r/davis", "--truth", "truth", *protocols, "-o", "s")
    assert code == 0, err
    mine, theirs = read(tmp_path / "s" / "scores.json"), read(tmp_path / "r" / "scores.json")
    assert mine["global"] == {key: theirs["global"][key] for key in mine["global"]}
    assert len(mine["global"]) == 2


def test_one_object_is_scored_for_every_way_of_choosing_it(run: Run, tmp_path: Path) -> None:
    root = make_single(tmp_path / "ST")
    code, _, err = run("eval", "discovery", "--data", f"segtrack:{root}", *SMALL, "-o", "r")
    assert code == 0, err
    protocols = read(tmp_path / "r" / "scores.json")["protocols"]
    assert list(protocols) == [
        "segtrack-fbms, label-free", "segtrack-fbms, label-free-cues",
        "segtrack-fbms, oracle-frame", "segtrack-fbms, oracle-video",
        "davis16-pooled, label-free", "davis16-pooled, label-free-cues",
        "davis16-pooled, oracle-frame", "davis16-pooled, oracle-video",
        "single-object-oracle-frame", "single-object-oracle-video", "single-object-label-free",
        "single-object-label-free-cues",
    ]  # fmt: skip
    best = protocols["single-object-oracle-frame"]["global"]["J-Mean"]
    assert best >= protocols["single-object-oracle-video"]["global"]["J-Mean"]
    assert best >= protocols["single-object-label-free"]["global"]["J-Mean"]
    done = [read(path) for path in (tmp_path / "r").glob("videos/*/done.json")]
    assert all(str(one["foreground"]["object"]) in one["cues"] for one in done)


ATTENTION = ("--resolution", "32x48", "--model", "random-vits16", "--set", "represent=attention")


def test_clusters_of_single_frames_are_not_scored_by_cues(run: Run, tmp_path: Path) -> None:
    root = make_single(tmp_path / "ST")
    code, out, err = run("eval", "discovery", "--data", f"segtrack:{root}", *ATTENTION, "-o", "r")
    assert code == 0, err
    protocols = read(tmp_path / "r" / "scores.json")["protocols"]
    assert "single-object-label-free" in protocols and not any("cues" in name for name in protocols)
    assert "single-object-label-free-cues: clusters of attention belong to single frames" in out
    done = [read(path) for path in (tmp_path / "r").glob("videos/*/done.json")]
    assert [(one["foreground"]["object"], one["foreground"]["cues"]) for one in done] == [(0, [])]


@pytest.mark.parametrize(
    "named", [("--foreground", "label-free-cues"), ("--protocol", "single-object-label-free-cues")]
)
def test_a_choice_by_cues_among_clusters_of_single_frames_is_refused(
    run: Run, tmp_path: Path, named: tuple[str, ...]
) -> None:
    root = make_single(tmp_path / "ST")
    code, _, err = run("eval", "discovery", "--data", f"segtrack:{root}", *ATTENTION, *named, "-o", "r")
    assert code == 2
    assert "belong to single frames, so that it has nothing to choose; take label-free" in err


def test_a_dry_run_tells_what_would_be_done(run: Run, tmp_path: Path) -> None:
    code, out, err = run("eval", "discovery", "--data", "rendered:2", *SMALL, "-o", "r", "--dry-run")
    assert code == 0, err
    assert "8 frames" in out and "peak memory" in out
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "kitti:x"], "expected rendered:N or KIND:PATH, KIND one of davis17, davis16"),
        (["--data", "davis17:nowhere"], "no such folder nowhere"),
        (["--data", "rendered:2", "--sequences", "cat"], "holds no sequence 'cat' (rendered-0, rendered-1)"),
        (["--data", "rendered:2", "--protocol", "mIoU"], "protocol 'mIoU' is unknown"),
        (["--data", "rendered:2", "--foreground", "best"], "--foreground best: there are label-free"),
        (["--data", "rendered:2", "--every", "2"], "protocols score all frames"),
        (["--data", "rendered:2", "--smallest", "7"], "refining.smallest = 7.0 is out of range"),
        (["--pred", "x"], "--pred and --truth belong together"),
        (["--pred", "x", "--truth", "y", "--protocol", "single-object-label-free-cues"], "masks alone tell"),
        ([], "give either --data KIND:PATH"),
    ],
)
def test_wrong_use_is_told_before_any_work(run: Run, arguments: list[str], message: str) -> None:
    code, _, err = run("eval", "discovery", *arguments)
    assert code == 2
    assert message in err


def test_a_prediction_that_is_missing_is_named(run: Run, tmp_path: Path) -> None:
    for t in range(3):
        for tree in ("pred", "truth"):
            if tree == "truth" or t != 1:
                path = tmp_path / tree / "ant" / f"{t:05d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_mask(path, np.eye(8, dtype=np.uint8))
    code, _, err = run("eval", "discovery", "--pred", "pred", "--truth", "truth", "-o", "s")
    assert code == 1
    assert "ant: no prediction for frame 00001.png" in err


@pytest.mark.parametrize(
    ("model", "represent", "several", "one"),
    [
        ("dul-small", None, ("block", 2.5), 2.5),
        ("dul-small", "features", ("features", 0.1), 0.1),
        ("random-resnet18", None, ("features", 0.1), 0.1),
        ("random-resnet18", "block", ("block", 1.0), 1.6),
        ("random-vits16", "attention", ("attention", 1.0), 1.6),
    ],
)
def test_the_threshold_suits_what_is_clustered(
    model: str, represent: str | None, several: tuple[str, float], one: float
) -> None:
    single = [f"represent={represent}"] if represent else []
    settings = resolve_segment_settings({"model": model}, None, single)
    record = segmenting_record(settings)
    assert (record["represent"], record["clustering"]["tau"]) == several
    assert segmenting_record(_for_one_object(settings))["clustering"]["tau"] == one

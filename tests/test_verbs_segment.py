"""`unspool segment` from the words of a command line to what lies in its folder."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch

from unspool.cli import main
from unspool.encoders import load_encoder
from unspool.encoders.correlator import save_correlator, untrained
from unspool.errors import UsageError
from unspool.masks import read_truth, write_mask
from unspool.ops import clustering
from unspool.ops.foreground import standing_out
from unspool.rendered import render
from unspool.segments import Chosen, read_hierarchy
from unspool.verbs.segment_needs import Clock, memory_for_clustering, seconds_per_product
from unspool.verbs.segment_settings import (
    correlator_of,
    resolve_segment_settings,
    segmenting_of,
    segmenting_record,
)
from unspool.video import VideoWriter, open_video

SMALL = ("--resolution", "64x96")
PIECES = (*SMALL, "--tau", "1.0")  # several of these small clips
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


def make_clip(path: Path, frames: int = 6, constant: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    clip = render(0, height=64, width=96, frames=frames, objects=2)
    with VideoWriter(path, height=64, width=96, times=[Fraction(t, 10) for t in range(frames)]) as writer:
        for t in range(frames):
            writer.write(np.full((64, 96, 3), 90, np.uint8) if constant else clip.image(t))
    return path


@pytest.fixture
def correlator(tmp_path: Path) -> Path:
    """A file as training leaves it, its block sharp enough to tell tokens apart."""
    made = untrained(load_encoder("random-resnet18", device="cpu"))
    weight = made.blocks[0].attn["qkv"].weight
    torch.nn.init.normal_(weight, std=0.12, generator=torch.Generator().manual_seed(0))
    save_correlator(made, tmp_path / "block.safetensors")
    return tmp_path / "block.safetensors"


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


# ----------------------------------------------------------------------------------- what it leaves


def test_segment_leaves_the_promised_folder_and_prints_its_page(run: Run, tmp_path: Path) -> None:
    make_clip(tmp_path / "clip.mp4")
    code, out, err = run("segment", "clip.mp4", *SMALL)
    assert code == 0, err
    assert out.splitlines()[-1] == "unspool-segment-clip/index.html"
    folder = tmp_path / "unspool-segment-clip"
    assert sorted(p.name for p in (folder / "videos" / "clip").iterdir()) == [
        "done.json", "frames.mp4", "hierarchy.npz", "masks", "overlay.mp4", "thumbs.jpg", "tracks.json",
    ]  # fmt: skip
    assert len(list((folder / "videos" / "clip" / "masks").iterdir())) == 6
    model = read(folder / "run.json")["model"]
    assert (model["name"], model["block"]) == ("dul-small", "learnt")


def test_the_next_command_names_the_object_that_stands_out(run: Run, tmp_path: Path) -> None:
    make_clip(tmp_path / "my clip.mp4")
    _, out, _ = run("segment", "my clip.mp4", *PIECES, "-o", "r")
    done = read(tmp_path / "r" / "videos" / "my_clip" / "done.json")
    chosen, areas = done["foreground"], np.array([0] + [one["share"] for one in done["cues"].values()])
    known = {cue: np.array([np.nan] + [one[cue] for one in done["cues"].values()]) for cue in chosen["cues"]}
    assert chosen["object"] == standing_out(known, (1e6 * areas).astype(int), 1_000_000)
    assert chosen["cues"] == ["border contact", "motion"]
    assert chosen["left_out"] == {"class attention": "'dul-small' has no class token"}
    assert f"unspool track 'my clip.mp4' --from r --objects {chosen['object']}" in out


def test_masks_of_the_object_that_stands_out_are_written_when_asked_for(run: Run, tmp_path: Path) -> None:
    make_clip(tmp_path / "clip.mp4", frames=3)
    code, out, err = run("segment", "clip.mp4", *PIECES, "-o", "r", "--foreground")
    assert code == 0, err
    home = tmp_path / "r" / "videos" / "clip"
    chosen = read(home / "done.json")["foreground"]["object"]
    assert f"foreground: object {chosen} (videos/clip/foreground)" in out
    for index in range(3):
        mask, alone = (read_truth(home / kind / f"{index:05d}.png") for kind in ("masks", "foreground"))
        assert np.array_equal(alone, (mask == chosen).astype(np.uint8))
    assert '"foreground":"videos/clip/foreground/"' in (tmp_path / "r/data/clip.js").read_text()


def test_where_no_object_is_left_the_foreground_is_empty_and_the_command_says_so(
    run: Run, tmp_path: Path
) -> None:
    make_clip(tmp_path / "clip.mp4", frames=2)
    code, out, err = run("segment", "clip.mp4", *PIECES, "-o", "r", "--foreground", "--smallest", "0.99")
    assert code == 0, err
    home = tmp_path / "r" / "videos" / "clip"
    assert read(home / "done.json")["foreground"]["object"] == 0
    assert not any(read_truth(path).any() for path in (home / "foreground").iterdir())
    assert "clip: 0 objects, foreground: none, its masks are empty (videos/clip/foreground)" in out


def test_masks_are_the_labels_of_the_hierarchy_file_at_the_videos_size(run: Run, tmp_path: Path) -> None:
    make_clip(tmp_path / "clip.mp4")
    run("segment", "clip.mp4", *SMALL, "-o", "r")
    held = read_hierarchy(tmp_path / "r" / "videos" / "clip" / "hierarchy.npz")
    mask = read_truth(tmp_path / "r" / "videos" / "clip" / "masks" / "00003.png")
    assert mask.shape == held.size == (64, 96)
    rows, columns = (np.arange(n) * g // n for n, g in zip(held.size, held.labels.shape[1:], strict=True))
    assert np.array_equal(mask, held.labels[3][rows][:, columns] + 1)


def test_every_third_frame_has_a_mask_and_keeps_its_time(run: Run, tmp_path: Path) -> None:
    make_clip(tmp_path / "clip.mp4", frames=8)
    assert run("segment", "clip.mp4", *SMALL, "--every", "3", "-o", "r")[0] == 0
    home = tmp_path / "r" / "videos" / "clip"
    assert len(list((home / "masks").iterdir())) == 3
    assert read_hierarchy(home / "hierarchy.npz").frames == (0, 3, 6)
    assert read(home / "tracks.json")["videos"][0]["length"] == 3
    with open_video(home / "overlay.mp4") as overlay:
        assert list(overlay.times) == [Fraction(t, 10) for t in (0, 3, 6)]


def test_a_correlators_key_frames_tell_where_they_attend(run: Run, tmp_path: Path, correlator: Path) -> None:
    make_clip(tmp_path / "clip.mp4", frames=4)
    model = ("--model", correlator, "--key-ratio", "0.5", "--tau", "0.5")
    code, _, err = run("segment", "clip.mp4", *SMALL, *model, "-o", "r")
    assert code == 0, err
    assert read(tmp_path / "r" / "run.json")["model"]["block"] == "learnt"
    names = sorted(p.name for p in (tmp_path / "r" / "data" / "clip.tree").glob("attention-*"))
    assert names == ["attention-000000.js", "attention-000002.js"]


# ---------------------------------------------------------------------------------- running it again


def test_a_second_run_does_nothing_again_and_other_settings_are_refused(run: Run, tmp_path: Path) -> None:
    make_clip(tmp_path / "clip.mp4")
    run("segment", "clip.mp4", *SMALL, "-o", "r")
    code, _, err = run("segment", "clip.mp4", *SMALL, "-o", "r")
    assert code == 0 and "already done" in err
    code, _, err = run("segment", "clip.mp4", *SMALL, "-o", "r", "--tau", "0.2")
    assert code == 2 and "segmenting.clustering.tau: 2.5 there, 0.2 now" in err


def test_workers_leave_the_same_masks_as_one(run: Run, tmp_path: Path) -> None:
    for name in "ab":
        make_clip(tmp_path / "videos" / f"{name}.mp4", frames=3)
    assert run("segment", "videos", *SMALL, "-o", "one")[0] == 0
    assert run("segment", "videos", *SMALL, "-o", "two", "--workers", "2")[0] == 0
    masks = sorted((tmp_path / "one").rglob("masks/*.png"))
    assert len(masks) == 6
    for mask in masks:
        assert mask.read_bytes() == (tmp_path / "two" / mask.relative_to(tmp_path / "one")).read_bytes()


def test_dry_run_writes_nothing_and_tells_frames_time_and_memory(run: Run, tmp_path: Path) -> None:
    make_clip(tmp_path / "clip.mp4")
    code, out, _ = run("segment", "clip.mp4", *SMALL, "--every", "2", "--dry-run", "-o", "r")
    assert code == 0 and "3 frames, about" in out and "peak memory" in out
    assert not (tmp_path / "r").exists()


def test_progress_is_told_by_stage(run: Run, tmp_path: Path) -> None:
    make_clip(tmp_path / "clip.mp4", frames=3)
    _, out, _ = run("segment", "clip.mp4", *SMALL, "-o", "r", "--json")
    stages = [e for e in map(json.loads, out.splitlines()) if e["event"] == "stage"]
    assert list(dict.fromkeys(e["stage"] for e in stages)) == ["encoding", "clustering", "writing"]
    assert stages[-1]["done"] == stages[-1]["total"] == 3
    assert all(e["seconds_left"] >= 0 for e in stages)


def test_clustering_of_one_window_tells_how_far_it_is(run: Run, tmp_path: Path) -> None:
    make_clip(tmp_path / "clip.mp4", frames=6)
    one = ("--set", "clustering.frames=1")
    _, out, _ = run("segment", "clip.mp4", *SMALL, *one, "-o", "r", "--json")
    events = [json.loads(line) for line in out.splitlines()]
    done = [e["done"] for e in events if e["event"] == "stage" and e["stage"] == "clustering"]
    assert len(done) > 4
    assert done == sorted(done)
    assert done[-1] == 6


@pytest.mark.parametrize("more", [[], ["represent=features"], ["clustering.algorithm=kmeans"]])
def test_the_estimate_holds_what_clustering_takes(tmp_path: Path, more: list[str]) -> None:
    settings = resolve_segment_settings({"device": "cpu", "resolution": "64x96"}, None, more)
    with open_video(make_clip(tmp_path / "clip.mp4")) as video:
        seconds = seconds_per_product(video, correlator_of(settings), segmenting_record(settings))
    assert seconds > 0


def test_seconds_of_many_short_steps_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = (tick * 0.0004 for tick in count())
    monkeypatch.setattr("unspool.verbs.segment_needs.perf_counter", lambda: next(moments))
    clock = Clock("clip", lambda event: None, Event())
    clock.total = 1000
    for _ in range(1000):
        clock("cluster", 1)
    assert clock.timings == {"cluster": 0.4}


@pytest.mark.parametrize(
    ("options", "distance", "finest"),
    [
        ((), "kl", 0.5),
        (("--tau", "0.2"), "kl", 0.2),
        (("--set", "represent=features"), "cosine", 0.07),
        (
            ("--set", "represent=features", "--set", "clustering.distance=euclidean", "--tau", "9"),
            "euclidean",
            pytest.approx(6.3),
        ),
    ],
)
def test_the_record_names_the_distance_and_the_finest_threshold_that_are_used(
    run: Run, tmp_path: Path, options: tuple[str, ...], distance: str, finest: float
) -> None:
    make_clip(tmp_path / "clip.mp4", frames=2)
    code, _, err = run("segment", "clip.mp4", *SMALL, "-o", "r", *options)
    assert code == 0, err
    made = read(tmp_path / "r/run.json")["config"]["segmenting"]
    assert (made["clustering"]["distance"], made["finest"]) == (distance, finest)


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--tau", "0"), "clustering.tau = 0.0 is out of range: above 0"),
        (("--tau", "inf"), "clustering.tau = inf is out of range"),
        (("--every", "0"), "--every 0"),
        (("--key-ratio", "2"), "--key-ratio 2.0"),
        (("--resolution", "big"), "--resolution big"),
        (("--window", "5"), "segmenting.window = 5 is out of range: more than the overlap of windows, 12"),
        (("--set", "represent=features", "--set", "clustering.distance=euclidean"), "give it with --tau"),
        (("--set", "represent=attention"), "represent = attention needs a ViT"),
        (("--set", "represent=features", "--set", "clustering.distance=kl"), "take cosine or euclidean"),
        (("--foreground", "--set", "represent=attention"), "clusters of attention belong to single frames"),
        (("--set", "foreground=3"), "foreground = 3: expected true or false"),
        (("--memory", "1MB"), "the least that works is --memory"),
        (("--set", "windo=9"), "did you mean 'window'"),
        (("--set", "represent=3"), "expected str"),
        (("--set", "clustering=3"), "clustering = 3: expected its fields"),
    ],
)
def test_wrong_use_is_refused_before_anything_is_written(
    run: Run, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    make_clip(tmp_path / "clip.mp4", frames=2)
    small = () if "--resolution" in options else SMALL
    code, _, err = run("segment", "clip.mp4", *small, "-o", "r", *options)
    assert code == 2
    assert said in err
    assert not (tmp_path / "r").exists()


def test_one_frame_is_segmented(run: Run, tmp_path: Path) -> None:
    make_clip(tmp_path / "clip.mp4", frames=1)
    assert run("segment", "clip.mp4", *SMALL, "-o", "r")[0] == 0


def test_a_constant_video_is_one_cluster_and_says_so(run: Run, tmp_path: Path) -> None:
    make_clip(tmp_path / "clip.mp4", frames=3, constant=True)
    options = ("--model", "random-resnet18", "--tau", "0.5")
    code, _, err = run("segment", "clip.mp4", *SMALL, "-o", "r", *options)
    assert code == 0
    assert "all of it is one cluster" in err


def test_fewer_frames_than_a_stride_of_keys_are_told_apart(
    run: Run, tmp_path: Path, correlator: Path
) -> None:
    make_clip(tmp_path / "clip.mp4", frames=3)
    wide = ("--model", correlator, "--key-ratio", "0.1", "--tau", "0.5")
    code, out, _ = run("segment", "clip.mp4", *SMALL, "-o", "r", *wide)
    assert code == 0
    assert int(out.split("clip: ")[1].split()[0]) > 1


def test_features_that_are_not_finite_fail_the_video(run: Run, tmp_path: Path, correlator: Path) -> None:
    from safetensors.torch import load_file, save_file

    held = load_file(correlator)
    name = next(k for k in held if k.endswith("conv1.weight"))
    held[name] = torch.full_like(held[name], torch.nan)
    save_file(held, correlator)
    make_clip(tmp_path / "clip.mp4", frames=2)
    code, _, err = run("segment", "clip.mp4", *SMALL, "-o", "r", "--model", correlator)
    assert code != 0
    assert "finite" in err


def test_more_clusters_than_an_indexed_png_holds_become_grey_masks_with_a_warning(
    run: Run, tmp_path: Path
) -> None:
    make_clip(tmp_path / "clip.mp4", frames=4)
    code, _, err = run("segment", "clip.mp4", *SMALL, "-o", "r", "--tau", "0.0002", "--set", "finest=0.0001")
    assert code == 0
    assert "16-bit grey PNG" in err
    assert read_truth(tmp_path / "r" / "videos" / "clip" / "masks" / "00003.png").dtype == np.uint16


# ----------------------------------------------------------------------------------------- settings


def test_command_line_wins_over_set_and_file(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text("tau = 0.3\nwindow = 40\n[clustering]\nframes = 5\n")
    found = resolve_segment_settings({"tau": 0.9}, tmp_path / "s.toml", ["window=50"])
    assert found.segmenting == {"clustering": {"frames": 5, "tau": 0.9}, "window": 50}


def test_resolution_is_short_by_long() -> None:
    found = [resolve_segment_settings({"resolution": r}).segmenting for r in ("192", "384x192", "native")]
    assert [f["resolution"] for f in found] == [[192, 288], [192, 384], None]


@pytest.mark.parametrize(
    ("given", "resolution"),
    [
        ({}, (160, 240)),
        ({"model": "random-resnet18"}, (320, 480)),
        ({"resolution": "320"}, (320, 480)),
        ({"resolution": "native"}, None),
    ],
)
def test_the_shipped_model_sees_frames_smaller_unless_told(
    given: dict[str, str], resolution: tuple[int, int] | None
) -> None:
    assert segmenting_of(segmenting_record(resolve_segment_settings(given))).resolution == resolution


def test_without_memory_named_a_window_of_all_frames_as_keys_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"model": "random-resnet18", "represent": "block", "key_ratio": 1.0, "device": "cpu"}
    settings = resolve_segment_settings({}, None, [f"{key}={value}" for key, value in given.items()])
    record, model = segmenting_record(settings), correlator_of(settings)

    class Long:
        height, width = 480, 854

        def __len__(self) -> int:
            return 36

    found = memory_for_clustering(settings, Long(), model, record)
    rows = torch.empty(3 * 2400, 36 * 2400, device="meta")
    assert found is not None
    assert clustering._hold(rows, found - found // 4) in (True, False)  # raises where it does not fit
    with pytest.raises(UsageError, match="too little"):
        clustering._hold(rows, segmenting_of(record).memory)
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1 << 19}.get)
    assert memory_for_clustering(settings, Long(), model, record) is None  # on a machine of 2 GB


def test_a_key_ratio_is_a_stride() -> None:
    assert resolve_segment_settings({"key_ratio": 0.2}).segmenting == {"key_every": 5}
    with pytest.raises(UsageError, match="--key-ratio"):
        resolve_segment_settings({"key_ratio": 0})


# ------------------------------------------------------------------------------- from there to tracking


def test_chosen_objects_are_tracked_at_full_frame_rate(run: Run, tmp_path: Path) -> None:
    make_clip(tmp_path / "clip.mp4", frames=8)
    assert run("segment", "clip.mp4", *PIECES, "--every", "3", "-o", "s")[0] == 0
    found = read_truth(tmp_path / "s" / "videos" / "clip" / "masks" / "00000.png")
    first, second = np.unique(found)[:2].tolist()
    objects = ("--from", "s", "--objects", f"{second},{first}")
    code, _, err = run("track", "clip.mp4", *objects, "-o", "t")
    assert code == 0, err
    masks = sorted((tmp_path / "t" / "videos" / "clip" / "masks").iterdir())
    assert len(masks) == 8
    assert np.array_equal(read_truth(masks[0]) == 1, found == second)
    assert np.array_equal(read_truth(masks[0]) == 2, found == first)


def test_objects_joined_by_a_plus_are_one(run: Run, tmp_path: Path) -> None:
    make_clip(tmp_path / "clip.mp4", frames=3)
    run("segment", "clip.mp4", *PIECES, "-o", "s")
    found = read_truth(tmp_path / "s" / "videos" / "clip" / "masks" / "00000.png")
    a, b = np.unique(found)[:2].tolist()
    given = Chosen(tmp_path / "s", "clip", ((a, b),)).masks()
    assert given[0].ids == (1,)
    assert np.array_equal(given[0].labels == 1, np.isin(found, (a, b)))


def test_an_object_enters_where_it_covers_half_of_its_largest_area(run: Run, tmp_path: Path) -> None:
    make_clip(tmp_path / "clip.mp4", frames=4)
    run("segment", "clip.mp4", *PIECES, "-o", "s")
    masks = sorted((tmp_path / "s" / "videos" / "clip" / "masks").iterdir())
    for t, path in enumerate(masks):
        labels = np.full((64, 96), 1, np.uint8)
        labels[: 4 * 2**t] = 7
        write_mask(path, labels)
    given = Chosen(tmp_path / "s", "clip", ((7,),)).masks()
    assert list(given) == [2]


def test_a_cut_of_the_tree_may_be_tracked(run: Run, tmp_path: Path) -> None:
    make_clip(tmp_path / "clip.mp4", frames=3)
    run("segment", "clip.mp4", *PIECES, "-o", "s")
    hierarchy = read_hierarchy(tmp_path / "s" / "videos" / "clip" / "hierarchy.npz")
    ids = np.unique(hierarchy.ids(2)).tolist()
    code, _, err = run("track", "clip.mp4", "--from", "s", "--cut", "2", "--objects", ids[0], "-o", "t")
    assert code == 0, err
    run("track", "clip.mp4", "--from", "s", "--cut", "2", "--objects", ids[0], "-o", "t")
    code, _, err = run("track", "clip.mp4", "--from", "s", "--cut", "2", "--objects", ids[1], "-o", "t")
    assert code == 2 and "was done with another mask" in err


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--from", "nowhere"), 2, "no result folder"),
        (("--from", "s", "--objects", "x"), 2, "--objects x"),
        (("--from", "s", "--objects", "1,1"), 2, "twice"),
        (("--from", "s", "--mask", "m.png"), 2, "either --mask or --from"),
        (("--objects", "1"), 2, "--from"),
        (("--from", "s", "--objects", "99"), 2, "holds no object 99; there are 1"),
        (("--from", "s", "--objects", "99", "--dry-run"), 2, "holds no object 99; there are 1"),
    ],
)
def test_what_cannot_be_tracked_from_a_result_is_said(
    run: Run, tmp_path: Path, options: tuple[str, ...], code: int, said: str
) -> None:
    make_clip(tmp_path / "clip.mp4", frames=2)
    run("segment", "clip.mp4", *SMALL, "-o", "s")
    found, _, err = run("track", "clip.mp4", *options, "-o", "t")
    assert found == code
    assert said in err
    assert not (tmp_path / "t").exists()


def test_a_video_that_was_not_segmented_is_named(run: Run, tmp_path: Path) -> None:
    make_clip(tmp_path / "videos" / "a.mp4", frames=2)
    run("segment", "videos", *SMALL, "-o", "s")
    make_clip(tmp_path / "videos" / "b.mp4", frames=2)
    code, _, err = run("track", "videos", "--from", "s", "-o", "t")
    assert code == 1
    assert "holds no finished segmentation of 'b'" in err


def test_a_dry_run_of_the_demo_tells_tracked_and_segmented_frames_apart(run: Run) -> None:
    code, out, err = run("demo", "--resolution", "64", "--dry-run", "-o", "d")
    assert code == 0, err
    assert "tracking with dul-small: 48 frames, about" in out
    assert "; 24 of its frames segmented before that, about" in out


def test_the_demo_takes_no_cluster(run: Run) -> None:
    code, _, err = run("demo", "--ray", "local", "-o", "d")
    assert code == 2
    assert "--ray local" in err
    assert not Path("d").exists()


@pytest.mark.slow
def test_the_demo_shows_its_clip_segmented_and_tracked_on_one_page(run: Run, tmp_path: Path) -> None:
    code, out, err = run("demo", "--resolution", "128", "-o", "d")
    assert code == 0, err
    assert "unspool segment" in out
    videos = tmp_path / "d" / "videos"
    assert sorted(p.name for p in videos.iterdir()) == ["rendered", "rendered-segmented"]
    assert read(videos / "rendered-segmented" / "done.json")["every"] == 2
    page = (tmp_path / "d" / "index.html").read_text("utf-8")
    assert '"rendered-segmented"' in page


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_in_the_middle_leaves_what_the_same_command_finishes(
    run: Run, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    for name in ("a", "b"):
        make_clip(tmp_path / "videos" / f"{name}.mp4")
    words = ["segment", "videos", *SMALL, "-o"]
    process = subprocess.Popen([sys.executable, "-m", "unspool", *words, "r"], stderr=subprocess.DEVNULL)
    while process.poll() is None and not (tmp_path / "r/videos/a/masks").exists():
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(120) == code
    assert read(tmp_path / "r" / "run.json")["status"] == "interrupted"
    for folder in ("r", "whole"):
        assert run(*words, folder)[0] == 0
    for name in ("a", "b"):
        masks = [sorted((tmp_path / d / "videos" / name / "masks").iterdir()) for d in ("r", "whole")]
        assert [p.read_bytes() for p in masks[0]] == [p.read_bytes() for p in masks[1]]


# --------------------------------------------------------------------------------- after clustering


@pytest.mark.parametrize("upsampling", ["nearest", "bilinear", "guided"])
def test_the_largest_objects_stay_and_the_result_names_what_was_done(
    run: Run, tmp_path: Path, upsampling: str
) -> None:
    make_clip(tmp_path / "clip.mp4", frames=2)
    options = ("--largest", "2", "--fill-holes", "--upsampling", upsampling)
    code, _, err = run("segment", "clip.mp4", *PIECES, "-o", "r", *options)
    assert code == 0, err
    mask = read_truth(tmp_path / "r" / "videos" / "clip" / "masks" / "00000.png")
    assert len(set(np.unique(mask).tolist()) - {0}) == 2
    said = {"smallest": 0.0, "largest": 2, "upsampling": upsampling, "fill_holes": True}
    assert read(tmp_path / "r" / "run.json")["config"]["refining"] == said

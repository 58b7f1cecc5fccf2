"""The loop: what a run leaves, how it continues, and what it says when something is wrong."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from make_training import (
    HELD_OUT,
    assert_equal_states,
    order,
    read_lines,
    state,
    write_noise,
    write_videos,
    write_ytvis,
)

from unspool import DataError, OutputError, UnspoolError, UnspoolWarning, UsageError, load_encoder
from unspool.data import ytvis
from unspool.methods import dul
from unspool.training import Rhythm, checkpoints
from unspool.training.footage import index_all
from unspool.training.settings import resolve
from unspool.verbs.train import Order, carry_out, describe

Events = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNSPOOL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    return write_videos(tmp_path / "videos")


def run(wanted: Order, at_step: Callable[[int], None] = lambda step: None) -> tuple[int, Events]:
    """Exit code and events; `at_step` is called after each logged step."""
    events: Events = []

    def report(event: dict[str, Any]) -> None:
        events.append(event)
        if event["event"] == "step":
            at_step(event["step"])

    return carry_out(wanted, report, ["unspool", "train", "dul"]), events


def interrupt_at(step: int, number: int = signal.SIGTERM) -> Callable[[int], None]:
    return lambda now: os.kill(os.getpid(), number) if now == step else None


# ------------------------------------------------------------------------------------ what it leaves


def test_a_run_leaves_the_promised_files(tmp_path: Path, videos: Path) -> None:
    wanted = order(tmp_path / "a", videos, steps=4, rhythm=Rhythm(validate_every=2))
    assert run(wanted)[0] == 0
    left = {p.name for p in (tmp_path / "a").iterdir()}
    assert left == {
        "checkpoints", "encoder-best.safetensors", "encoder.safetensors", "index.html", "log.jsonl",
        "pictures", "run.json", "tensorboard",
    }  # fmt: skip
    record = json.loads((tmp_path / "a/run.json").read_text())
    assert (record["status"], record["verb"], record["steps"]) == ("done", "train dul", 4)
    assert record["config"]["dul.width"] == 4
    assert record["config"]["data"].startswith("6 videos, digest ")


def test_every_step_of_a_short_run_is_logged_with_its_losses_and_rates(tmp_path: Path, videos: Path) -> None:
    run(order(tmp_path / "a", videos, steps=3))
    lines = read_lines(tmp_path / "a")
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert set(lines[0]) == {
        "step", "epoch", "loss", "space_time", "cross_view", "steps_per_second", "frames_per_second",
        "loading", "learning_rate", "memory_gb", "seconds",
    }  # fmt: skip
    assert lines[0]["loss"] == pytest.approx(lines[0]["space_time"] + 0.1 * lines[0]["cross_view"], rel=1e-5)


def test_tensorboard_holds_the_same_numbers(tmp_path: Path, videos: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(order(tmp_path / "a", videos, steps=3))
    board = EventAccumulator(str(tmp_path / "a/tensorboard"))
    board.Reload()
    logged = [(scalar.step, scalar.value) for scalar in board.Scalars("loss")]
    expected = [(line["step"], pytest.approx(line["loss"], rel=1e-6)) for line in read_lines(tmp_path / "a")]
    assert logged == expected


def test_what_is_learnt_loads_as_an_encoder(tmp_path: Path, videos: Path) -> None:
    run(order(tmp_path / "a", videos, steps=2))
    encoder: Any = load_encoder(tmp_path / "a", device="cpu")
    learnt = state(tmp_path / "a")["learner"]
    assert torch.equal(encoder.network.conv1.weight, learnt["backbone.conv1.weight"])
    assert torch.equal(encoder.head.conv2.weight, learnt["emb_q.conv2.weight"])
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    assert encoder(images, want=("head",))["head"].shape == (1, 8, 4, 4)


def test_each_step_logs_the_rate_that_it_learnt_with(tmp_path: Path, videos: Path) -> None:
    run(order(tmp_path / "a", videos, steps=4, settings=("dul.epochs=4", "dul.decay_every=2")))
    assert [line["learning_rate"] for line in read_lines(tmp_path / "a")] == [1e-3, 1e-3, 5e-4, 5e-4]


def test_without_steps_the_epochs_decide(tmp_path: Path, videos: Path) -> None:
    wanted = order(tmp_path / "a", videos, settings=("dul.epochs=3",), steps=99)
    training = replace(wanted.settings.training, steps=None)
    wanted = replace(wanted, settings=replace(wanted.settings, training=training))
    run(wanted)
    assert state(tmp_path / "a")["step"] == 3  # 6 videos are one batch of 4, and 2 that wait


def test_equal_commands_give_equal_weights_with_any_number_of_workers(tmp_path: Path, videos: Path) -> None:
    for name, workers in (("a", 0), ("b", 2)):
        run(order(tmp_path / name, videos, steps=3, workers=workers))
    assert_equal_states(state(tmp_path / "a"), state(tmp_path / "b"))


def test_kept_frames_and_decoded_ones_give_equal_weights(tmp_path: Path, videos: Path) -> None:
    run(order(tmp_path / "a", videos, steps=3))
    run(order(tmp_path / "b", videos, steps=3, frames="decode"))
    assert_equal_states(state(tmp_path / "a"), state(tmp_path / "b"))


def test_other_seeds_give_other_weights(tmp_path: Path, videos: Path) -> None:
    run(order(tmp_path / "a", videos, steps=1))
    run(order(tmp_path / "b", videos, steps=1, settings=("training.seed=1",)))
    first, second = (state(tmp_path / name)["learner"]["backbone.conv1.weight"] for name in "ab")
    assert not torch.equal(first, second)


def test_rendered_scenes_stand_beside_videos_or_alone(tmp_path: Path, videos: Path) -> None:
    rendered = ("training.rendered=2", "training.rendered_frames=5")
    _, events = run(order(tmp_path / "a", videos, steps=1, settings=rendered))
    assert any("6 videos and 2 rendered scenes" in e.get("text", "") for e in events)
    _, events = run(order(tmp_path / "b", steps=1, settings=rendered))
    assert any("0 videos and 2 rendered scenes" in e.get("text", "") for e in events)


def test_two_batches_of_a_step_give_the_mean_of_their_gradients(tmp_path: Path, videos: Path) -> None:
    rate = ("dul.optimiser='sgd'", "dul.learning_rate=1.0", "dul.momentum=0.0", "dul.weight_decay=0.0")
    run(order(tmp_path / "a", videos, steps=1, settings=(*rate, "training.accumulate=2")))
    run(order(tmp_path / "b", videos, steps=1, settings=rate))
    both, one = (state(tmp_path / name)["learner"]["emb_q.conv2.bias"] for name in "ab")
    assert not torch.equal(both, one)
    assert read_lines(tmp_path / "a")[0]["epoch"] == 2.0


def test_gradients_are_clipped_and_their_norm_is_logged(tmp_path: Path, videos: Path) -> None:
    run(order(tmp_path / "a", videos, steps=1, settings=("training.clip_gradients=1e-3",)))
    assert read_lines(tmp_path / "a")[0]["gradient_norm"] > 1e-3


def test_half_precision_learns_too(tmp_path: Path, videos: Path) -> None:
    run(order(tmp_path / "a", videos, steps=2, settings=("training.precision='bf16'",)))
    lines = read_lines(tmp_path / "a")
    assert all(0 < line["loss"] < 50 for line in lines)
    assert state(tmp_path / "a")["learner"]["backbone.conv1.weight"].dtype == torch.float32


def test_channels_last_gives_the_same_loss(tmp_path: Path, videos: Path) -> None:
    for name, last in (("a", "false"), ("b", "true")):
        run(order(tmp_path / name, videos, steps=1, settings=(f"training.channels_last={last}",)))
    first, second = (read_lines(tmp_path / name)[0]["loss"] for name in "ab")
    assert first == pytest.approx(second, rel=1e-4)


def test_a_run_can_start_from_what_another_learnt(tmp_path: Path, videos: Path) -> None:
    run(order(tmp_path / "a", videos, steps=1))
    run(order(tmp_path / "b", videos, steps=1, model=str(tmp_path / "a")))
    assert json.loads((tmp_path / "b/run.json").read_text())["model"]["weights_hash"]


# -------------------------------------------------------------------------------------- validation


def test_validation_scores_before_during_and_after_and_keeps_the_best(tmp_path: Path, videos: Path) -> None:
    _, events = run(order(tmp_path / "a", videos, steps=4, rhythm=Rhythm(validate_every=2)))
    validated = [e for e in events if e["event"] == "validated"]
    assert [e["step"] for e in validated] == [0, 2, 4]
    best = max(validated, key=lambda e: e["J"])
    assert state(tmp_path / "a", "best.pt")["step"] == best["step"]
    assert state(tmp_path / "a")["best"]["J"] == best["J"]
    pictures = sorted(p.name for p in (tmp_path / "a/pictures").iterdir())
    assert pictures == ["step-000000.jpg", "step-000002.jpg", "step-000004.jpg", "truth.jpg"]


def test_a_run_stopped_before_its_first_step_is_not_validated_twice(tmp_path: Path, videos: Path) -> None:
    rhythm = Rhythm(validate_every=2)

    def report(event: dict[str, Any]) -> None:
        if event["event"] == "validated":
            os.kill(os.getpid(), signal.SIGTERM)

    assert carry_out(order(tmp_path / "a", videos, steps=2, rhythm=rhythm), report, []) == 143
    run(order(tmp_path / "a", videos, steps=2, rhythm=rhythm))
    assert [line["step"] for line in read_lines(tmp_path / "a")] == [0, 1, 2, 2]


def test_validating_does_not_change_what_is_learnt(tmp_path: Path, videos: Path) -> None:
    run(order(tmp_path / "a", videos, steps=3))
    run(order(tmp_path / "b", videos, steps=3, rhythm=Rhythm(validate_every=1)))
    assert_equal_states(state(tmp_path / "a"), state(tmp_path / "b"))


# -------------------------------------------------------------------------------------- continuing


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_same_command_continues_to_equal_weights(
    tmp_path: Path, videos: Path, number: int, code: int
) -> None:
    assert threading.current_thread() is threading.main_thread()
    run(order(tmp_path / "whole", videos, steps=5))
    stopped, _ = run(order(tmp_path / "a", videos, steps=5), interrupt_at(2, number))
    assert stopped == code
    assert state(tmp_path / "a")["step"] == 2
    assert json.loads((tmp_path / "a/run.json").read_text())["status"] == "interrupted"
    assert run(order(tmp_path / "a", videos, steps=5))[0] == 0
    assert_equal_states(state(tmp_path / "whole"), state(tmp_path / "a"))
    assert [line["step"] for line in read_lines(tmp_path / "a")] == [1, 2, 3, 4, 5]


def test_a_signal_while_frames_are_decoded_ends_the_run(tmp_path: Path, videos: Path) -> None:
    events: Events = []

    def report(event: dict[str, Any]) -> None:
        events.append(event)
        if event["event"] == "storing" and event["done"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    assert carry_out(order(tmp_path / "a", videos), report, []) == 143
    assert [e["done"] for e in events if e["event"] == "storing"] == [1, 2]
    assert json.loads((tmp_path / "a/run.json").read_text())["status"] == "interrupted"
    assert run(order(tmp_path / "a", videos))[0] == 0


def test_a_signal_during_the_first_validation_ends_the_run_which_then_begins_with_it(
    tmp_path: Path, videos: Path
) -> None:
    rhythm = Rhythm(validate_every=3)
    wanted = order(tmp_path / "a", videos, steps=3, rhythm=rhythm)
    events: Events = []

    def report(event: dict[str, Any]) -> None:
        events.append(event)
        if event["event"] == "stage":
            os.kill(os.getpid(), signal.SIGINT)

    assert carry_out(wanted, report, []) == 130
    told = [(e["stage"], e["done"], e["total"]) for e in events if e["event"] == "stage"]
    assert told == [("validating", 1, HELD_OUT.clips)]
    assert not [e for e in events if e["event"] == "validated"]
    assert json.loads((tmp_path / "a/run.json").read_text())["status"] == "interrupted"
    assert run(wanted)[0] == 0
    run(order(tmp_path / "whole", videos, steps=3, rhythm=rhythm))
    assert [line["step"] for line in read_lines(tmp_path / "a")] == [0, 1, 2, 3, 3]
    assert_equal_states(state(tmp_path / "whole"), state(tmp_path / "a"))


@pytest.mark.parametrize("method", ["timet", "ba"])
def test_a_method_that_starts_from_an_encoder_says_so_before_it_leaves_anything(
    tmp_path: Path, videos: Path, method: str
) -> None:
    wanted = order(tmp_path / "a", videos)
    wanted = replace(wanted, settings=resolve(method, None, None, [], {}))
    with pytest.raises(UsageError, match="--model"):
        run(wanted)
    assert not (tmp_path / "a").exists()


def test_a_finished_run_is_not_repeated(tmp_path: Path, videos: Path) -> None:
    run(order(tmp_path / "a", videos, steps=2))
    before = (tmp_path / "a/checkpoints/last.pt").stat().st_mtime_ns
    code, events = run(order(tmp_path / "a", videos, steps=2))
    assert code == 0
    assert not [e for e in events if e["event"] == "step"]
    assert (tmp_path / "a/checkpoints/last.pt").stat().st_mtime_ns == before


def test_other_settings_are_refused_and_named_until_overwrite(tmp_path: Path, videos: Path) -> None:
    run(order(tmp_path / "a", videos, steps=2))
    other = order(tmp_path / "a", videos, steps=2, settings=("dul.cross_view=0.2",))
    with pytest.raises(UsageError, match=r"dul.cross_view: 0.1 there, 0.2 now.*--overwrite"):
        run(other)
    assert run(replace(other, overwrite=True))[0] == 0
    assert [line["step"] for line in read_lines(tmp_path / "a")] == [1, 2]


def test_other_videos_are_other_settings(tmp_path: Path, videos: Path) -> None:
    run(order(tmp_path / "a", videos, steps=1))
    write_noise(videos / "more.mp4", seed=9)
    with pytest.raises(UsageError, match=r"data: '6 videos, digest \w+' there, '7 videos"):
        run(order(tmp_path / "a", videos, steps=1))


def test_videos_that_discovery_scores_are_left_out_and_the_record_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ytvis, "SOLV", slice(1, 3))
    root = write_ytvis(tmp_path / "YTVIS", videos=5)
    scored = {sequence.name for sequence in ytvis.ytvis_sequences(root)}
    wanted = replace(order(tmp_path / "a", steps=1), data=(f"ytvis19:{root}",), exclude_eval=True)
    index = index_all(wanted.data, 0.0, exclude_eval=True)
    assert {Path(video.source).name for video in index.videos} == {f"v{n}" for n in range(5)} - scored
    run(wanted)
    config = json.loads((tmp_path / "a/run.json").read_text("utf-8"))["config"]
    assert (config["exclude_eval"], config["data"][:8]) == ("2 videos", "3 videos")


def test_only_kinds_that_are_scored_in_part_can_be_left_out(tmp_path: Path, videos: Path) -> None:
    with pytest.raises(UsageError, match=rf"--data {videos} .*ytvis19:PATH alone.*leave --exclude-eval out"):
        run(order(tmp_path / "a", videos, exclude_eval=True))


def test_a_small_set_that_is_scored_whole_leaves_nothing_to_learn_from(tmp_path: Path) -> None:
    root = write_ytvis(tmp_path / "YTVIS", videos=2)
    with pytest.raises(DataError, match="all 2 videos are scored by eval discovery"):
        index_all([f"ytvis19:{root}"], 0.0, exclude_eval=True)


def test_checkpoints_that_lost_their_run_json_are_refused_too(tmp_path: Path, videos: Path) -> None:
    run(order(tmp_path / "a", videos, steps=1))
    (tmp_path / "a/run.json").unlink()
    with pytest.raises(UsageError, match=r"made with other settings \(training.seed: 0 there"):
        run(order(tmp_path / "a", videos, steps=1, settings=("training.seed=4",)))


def test_a_checkpoint_of_another_version_names_it_and_what_differs(tmp_path: Path, videos: Path) -> None:
    run(order(tmp_path / "a", videos, steps=1))
    (tmp_path / "a/run.json").unlink()
    old = state(tmp_path / "a")
    old |= {"version": "0.0.7", "settings": {**old["settings"], "dul.warm_up": 10}}
    torch.save(old, tmp_path / "a/checkpoints/step-000001.pt")
    with pytest.raises(UsageError, match=r"written by unspool 0.0.7.*dul.warm_up: 10 there, None now"):
        run(order(tmp_path / "a", videos, steps=1))


def test_a_checkpoint_cut_in_half_is_passed_over_for_the_one_before_it(tmp_path: Path, videos: Path) -> None:
    run(order(tmp_path / "whole", videos, steps=5))
    rhythm = Rhythm(validate_every=0, checkpoint_every=1)
    run(order(tmp_path / "a", videos, steps=5, rhythm=rhythm), interrupt_at(3))
    newest = tmp_path / "a/checkpoints/step-000003.pt"
    os.truncate(newest, newest.stat().st_size // 2)
    _, events = run(order(tmp_path / "a", videos, steps=5))
    told = [e["text"] for e in events if e["event"] == "warning"]
    assert len(told) == 1
    assert "step-000003.pt: is cut short or damaged" in told[0]
    assert told[0].endswith("step-000002.pt is used")
    assert_equal_states(state(tmp_path / "whole"), state(tmp_path / "a"))
    assert [line["step"] for line in read_lines(tmp_path / "a")] == [1, 2, 3, 4, 5]


# ---------------------------------------------------------------------------------------- bad input


def test_nothing_to_train_on_is_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="name videos with --data"):
        run(order(tmp_path / "a"))


def test_an_empty_folder_names_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: holds no videos and folders of frames; looked for"):
        run(order(tmp_path / "a", tmp_path / "empty"))
    assert not (tmp_path / "a").exists()


def test_a_path_that_does_not_exist_is_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--data .*nowhere: no such file or folder; expected PATH or"):
        run(order(tmp_path / "a", tmp_path / "nowhere"))


def test_one_video_is_trained_on(tmp_path: Path) -> None:
    write_noise(tmp_path / "one.mp4")
    assert run(order(tmp_path / "a", tmp_path / "one.mp4", steps=2))[0] == 0


def test_the_same_video_named_twice_counts_once(tmp_path: Path, videos: Path) -> None:
    run(order(tmp_path / "a", videos, videos / "clip0.mp4", videos, steps=1))
    assert json.loads((tmp_path / "a/run.json").read_text())["config"]["data"].startswith("6 videos")


def test_globs_and_lists_name_videos(tmp_path: Path, videos: Path) -> None:
    (tmp_path / "list.txt").write_text(f"# mine\n{videos / 'clip4.mp4'}\n\n{videos / 'clip5.mp4'}\n")
    wanted = replace(
        order(tmp_path / "a", steps=1), data=(str(videos / "clip[0-3].mp4"), f"@{tmp_path / 'list.txt'}")
    )
    run(wanted)
    assert json.loads((tmp_path / "a/run.json").read_text())["config"]["data"].startswith("6 videos")
    with pytest.raises(UsageError, match=r"--data @.*gone.txt: cannot be read"):
        run(replace(wanted, data=(f"@{tmp_path / 'gone.txt'}",)))


def test_short_videos_are_left_out_with_a_warning(tmp_path: Path, videos: Path) -> None:
    write_noise(videos / "short.mp4", frames=3)
    _, events = run(order(tmp_path / "a", videos, steps=1))
    told = [e["text"] for e in events if e["event"] == "warning"]
    assert told == ["1 of 7 videos have fewer frames than a clip (4) and are left out: short.mp4 (3)"]


def test_only_short_videos_are_an_error_that_names_them(tmp_path: Path) -> None:
    write_noise(tmp_path / "videos/short.mp4", frames=3)
    with pytest.raises(DataError, match=r"none of 1 videos has the 4 frames of a clip: short.mp4 \(3\)"):
        run(order(tmp_path / "a", tmp_path / "videos"))
    assert json.loads((tmp_path / "a/run.json").read_text())["status"] == "failed"


def test_broken_videos_are_listed_and_left_out(tmp_path: Path, videos: Path) -> None:
    (videos / "nothing.mp4").touch()
    _, events = run(order(tmp_path / "a", videos, steps=1))
    assert any("nothing.mp4" in e["text"] for e in events if e["event"] == "warning")


def test_too_many_broken_videos_end_the_run_unless_allowed(tmp_path: Path, videos: Path) -> None:
    whole = (videos / "clip0.mp4").read_bytes()
    (videos / "nothing.mp4").touch()
    (videos / "cut.mp4").write_bytes(whole[:100])
    with pytest.raises(DataError, match=r"2 of 8 videos cannot be read, 20% are allowed.*--max-broken"):
        run(order(tmp_path / "a", videos, steps=1))
    assert run(order(tmp_path / "a", videos, steps=1, max_broken=0.3))[0] == 0


def test_one_broken_file_of_many_that_are_named_does_not_end_the_run(tmp_path: Path, videos: Path) -> None:
    (videos / "clip9.mp4").touch()
    named = sorted(videos.iterdir())
    assert len(named) == 7
    assert run(order(tmp_path / "a", *named, steps=1))[0] == 0


def test_a_video_that_changes_ends_the_run_until_it_is_back(tmp_path: Path, videos: Path) -> None:
    """Without kept frames: kept ones do not change."""
    run(order(tmp_path / "whole", videos, steps=6, frames="decode"))
    aside = shutil.copytree(videos, tmp_path / "aside")

    def spoil(step: int) -> None:
        if step == 2:
            for number in range(6):
                write_noise(videos / f"clip{number}.mp4", frames=9, seed=30)

    with pytest.raises(DataError, match=r"clip\d.mp4: has changed while it is in use.*bring it back"):
        run(order(tmp_path / "a", videos, steps=6, frames="decode"), spoil)
    assert 2 <= state(tmp_path / "a")["step"] < 6  # what was prepared already is learnt from
    for path in aside.iterdir():
        shutil.copy2(path, videos / path.name)
    assert run(order(tmp_path / "a", videos, steps=6, frames="decode"))[0] == 0
    assert_equal_states(state(tmp_path / "whole"), state(tmp_path / "a"))


def test_kept_frames_outlive_their_videos(tmp_path: Path, videos: Path) -> None:
    def remove(step: int) -> None:
        if step == 1:
            shutil.rmtree(videos)

    assert run(order(tmp_path / "a", videos, steps=3), remove)[0] == 0


def test_a_loss_that_is_not_finite_stops_and_keeps_the_batch(
    tmp_path: Path, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn, calls = dul.loss, []

    def fail(*arguments: Any) -> Any:
        total, logged = learn(*arguments)
        calls.append(arguments[1])
        return (total * float("nan"), logged) if len(calls) == 3 else (total, logged)

    monkeypatch.setattr(dul, "loss", fail)
    rhythm = Rhythm(validate_every=0, checkpoint_every=1)
    with pytest.raises(UnspoolError, match=r"step 3: the loss is nan.*not-finite-step-000003.pt") as raised:
        run(order(tmp_path / "a", videos, rhythm=rhythm))
    assert raised.value.exit_code == 1
    kept = torch.load(tmp_path / "a/not-finite-step-000003.pt")
    assert torch.equal(kept["views"][0], calls[2])
    assert len(kept["videos"]) == len(kept["frames"]) == 4
    assert state(tmp_path / "a")["step"] == 2


def test_a_gpu_that_is_full_names_the_ways_out(
    tmp_path: Path, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*arguments: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nMore words.")

    monkeypatch.setattr(dul, "loss", fill)
    with pytest.raises(UnspoolError, match=r"\(4, 4, 3, 32, 32\) \(CUDA out.*--set dul.clips=N"):
        run(order(tmp_path / "a", videos))


def test_a_full_disk_during_a_checkpoint_leaves_the_older_one(
    tmp_path: Path, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = checkpoints.write_durably, []

    def fill(path: Path, content: Any) -> None:
        written.append(path)
        if len(written) == 2:
            path.with_name(f".{path.name}.part").write_bytes(content[: len(content) // 2])
            path.with_name(f".{path.name}.part").unlink()
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    rhythm = Rhythm(validate_every=0, checkpoint_every=2)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "write_durably", fill)
        with pytest.raises(OutputError, match=r"step-000004.pt: cannot be written \(No space.*same command"):
            run(order(tmp_path / "a", videos, rhythm=rhythm))
    assert state(tmp_path / "a")["step"] == 2
    assert run(order(tmp_path / "a", videos, rhythm=rhythm))[0] == 0
    run(order(tmp_path / "whole", videos))
    assert_equal_states(state(tmp_path / "whole"), state(tmp_path / "a"))


def test_a_folder_that_is_a_file_is_named(tmp_path: Path, videos: Path) -> None:
    (tmp_path / "a").write_text("mine")
    with pytest.raises(OutputError, match="is a file, not a folder"):
        run(order(tmp_path / "a", videos))


def test_half_precision_of_gpus_is_refused_on_the_cpu(tmp_path: Path, videos: Path) -> None:
    with pytest.raises(UsageError, match="fp16 is for GPUs"):
        run(order(tmp_path / "a", videos, settings=("training.precision='fp16'",)))


def test_a_dry_run_says_what_would_be_done_and_leaves_nothing(tmp_path: Path, videos: Path) -> None:
    told: list[str] = []
    assert describe(order(tmp_path / "a", videos, steps=7), lambda e: told.append(e["text"])) == 0
    assert "6 videos; 7 steps of 4 clips of 4 frames at 32x32" in told[0]
    assert "a step" in told[1]
    assert "peak memory" in told[1]
    assert not (tmp_path / "a").exists()


def test_frames_that_pass_the_limit_name_the_way_out(
    tmp_path: Path, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import unspool.data.frames as module

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(OutputError, match="--frames decode"):
        run(order(tmp_path / "a", videos))


def test_an_extra_that_is_missing_is_named_before_any_work(
    tmp_path: Path, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UsageError, match=r"training needs tensorboard.*pip install 'unspool\[train\]'"):
        run(order(tmp_path / "a", videos))
    assert not (tmp_path / "a").exists()


def test_damaged_checkpoints_warn(tmp_path: Path) -> None:
    (tmp_path / "step-000005.pt").write_bytes(b"")
    with pytest.warns(UnspoolWarning, match="training starts from the beginning"):
        assert checkpoints.newest_checkpoint(tmp_path) is None

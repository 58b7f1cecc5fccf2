"""BA through the loop that all methods share: a block learns, its encoder stays."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from make_training import ENVIRONMENT, HELD_OUT, assert_equal_states, read_lines, state, write_videos

from unspool import UsageError, load_encoder
from unspool.encoders.checkpoints import save_encoder
from unspool.encoders.correlator import load_correlator
from unspool.encoders.resnet import ResNetEncoder, resnet18_stride8
from unspool.methods.ba import Config, build
from unspool.training import Rhythm
from unspool.training.processes import Machines
from unspool.training.settings import METHODS, presets_of, resolve
from unspool.verbs.train import Order, carry_out, describe

SMALL = (
    "ba.clips=2",
    "ba.semantic_sets=[1, 2]",
    "ba.sets=[1, 2]",
    "ba.points=2",
    "sampling.gap=1",
    "augmentation.size=[32, 48]",
    "augmentation.short_side=[32, 40]",
)
QUIET = Rhythm(validate_every=0, checkpoint_every=2)
COMMAND = [sys.executable, "-m", "unspool", "train", "ba", "--device", "cpu"]
COMMAND += ["--validate-every", "0", "-q", *(word for one in SMALL for word in ("--set", one))]


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("UNSPOOL_CACHE", str(tmp_path / "cache"))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A ResNet of 32 channels, as a file."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("encoder") / "small.safetensors"
    save_encoder(ResNetEncoder(resnet18_stride8("zeros", width=4), name="small"), path)
    return str(path)


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    return write_videos(tmp_path / "videos", 3)


def order(
    folder: Path,
    videos: Path,
    steps: int,
    *single: str,
    model: str | None = None,
    rhythm: Rhythm = QUIET,
) -> Order:
    settings = resolve("ba", None, None, [*SMALL, *single], {"training.steps": steps})
    machines = Machines("cpu")
    return Order(settings, (str(videos),), folder, model, machines=machines, rhythm=rhythm, held_out=HELD_OUT)


def run(wanted: Order, stop_after: int = 0) -> int:
    def report(event: dict[str, object]) -> None:
        if event["event"] == "step" and event["step"] == stop_after:
            raise KeyboardInterrupt

    return carry_out(wanted, report, ["unspool", "train", "ba"])


def command(folder: Path, videos: Path, model: str, *more: object) -> tuple[list[str], dict[str, str]]:
    words = [*COMMAND, "--model", model, "--data", str(videos), "-o", str(folder), *map(str, more)]
    return words, {**ENVIRONMENT, "UNSPOOL_CACHE": str(folder.parent / "cache")}


def test_every_preset_of_ba_resolves() -> None:
    assert "ba" in METHODS
    assert presets_of("ba") == ["ba-code", "ba-paper", "ba-small"]
    forms = {name: resolve("ba", name, None, [], {}).config.form for name in presets_of("ba")}
    assert forms == {"ba-code": "code", "ba-paper": "paper", "ba-small": "code"}


def test_the_block_learns_and_its_encoder_does_not(tmp_path: Path, videos: Path, small: str) -> None:
    assert run(order(tmp_path / "a", videos, 2, model=small)) == 0
    assert {"loss", "semantic", "motion"} <= set(read_lines(tmp_path / "a")[-1])
    before, after = load_encoder(small, device="cpu"), load_encoder(tmp_path / "a", device="cpu")
    for old, new in zip(before.parameters(), after.parameters(), strict=True):
        assert torch.equal(old, new)
    torch.manual_seed(0)
    start = build(Config(), before).blocks[0]
    assert not torch.equal(start.attn["qkv"].weight, _block(tmp_path / "a").attn["qkv"].weight)


def _block(folder: Path) -> torch.nn.Module:
    block: torch.nn.Module = load_correlator(folder, device="cpu").blocks[0]
    return block


def test_what_is_saved_is_what_was_learnt(tmp_path: Path, videos: Path, small: str) -> None:
    run(
        order(
            tmp_path / "a",
            videos,
            2,
            "ba.heads=4",
            "ba.temporal_embedding=3",
            'ba.features="tokens"',
            model="random-vits16",
        )
    )
    kept, learnt = load_correlator(tmp_path / "a", device="cpu"), state(tmp_path / "a")["learner"]
    assert (kept.blocks[0].heads, kept.features) == (4, "tokens")
    found = kept.state_dict()
    assert all(torch.equal(found[key], learnt[key]) for key in learnt)


def test_a_run_that_stopped_ends_where_it_would_have_ended(tmp_path: Path, videos: Path, small: str) -> None:
    run(order(tmp_path / "whole", videos, 4, model=small))
    with pytest.raises(KeyboardInterrupt):
        run(order(tmp_path / "stopped", videos, 4, model=small), stop_after=3)
    assert run(order(tmp_path / "stopped", videos, 4, model=small)) == 0
    assert_equal_states(state(tmp_path / "whole"), state(tmp_path / "stopped"))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_loses_nothing(tmp_path: Path, videos: Path, small: str, how: signal.Signals) -> None:
    options = ("--steps", 40, "--checkpoint-every", 3)
    words, environment = command(tmp_path / "stopped", videos, small, *options)
    process = subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (tmp_path / "stopped/checkpoints/last.pt").exists():
        time.sleep(0.02)
    process.send_signal(how)
    assert process.wait() in (143, -signal.SIGKILL)
    assert 0 < state(tmp_path / "stopped")["step"] < 40
    for name in ("stopped", "whole"):
        assert run(order(tmp_path / name, videos, 40, model=small)) == 0
    assert_equal_states(state(tmp_path / "whole"), state(tmp_path / "stopped"))


@pytest.mark.parametrize("single", [(), ("ba.semantic=false",)], ids=["both", "motion"])
def test_two_processes_learn_what_one_learns(
    tmp_path: Path, videos: Path, small: str, single: tuple[str, ...]
) -> None:
    more = [word for one in single for word in ("--set", one)]
    run(order(tmp_path / "one", videos, 2, *single, model=small))
    words, environment = command(tmp_path / "two", videos, small, "--steps", 2, "--devices", 2, *more)
    subprocess.run(words, env=environment, check=True, timeout=300)
    losses = [[line["loss"] for line in read_lines(tmp_path / name)] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    one, two = (state(tmp_path / name)["optimiser"]["state"] for name in ("one", "two"))
    assert one.keys() == two.keys()
    for key in one:  # the mean of gradients
        apart = (one[key]["exp_avg"] - two[key]["exp_avg"]).norm()
        assert apart <= 1e-4 * one[key]["exp_avg"].norm()


def test_validation_cuts_held_out_clips_into_objects(tmp_path: Path, videos: Path, small: str) -> None:
    run(order(tmp_path / "a", videos, 1, model=small, rhythm=Rhythm(validate_every=1)))
    scored = [line for line in read_lines(tmp_path / "a") if "J" in line]
    assert [line["step"] for line in scored] == [0, 1]
    assert all(0 < line["J"] <= 1 and line["clusters"] >= 1 for line in scored)
    assert (tmp_path / "a/encoder-best.safetensors").is_file()
    assert (tmp_path / "a/pictures/step-000001.jpg").is_file()
    assert (tmp_path / "a/index.html").is_file()


def test_a_dry_run_measures_with_the_encoder(tmp_path: Path, videos: Path, small: str) -> None:
    told: list[str] = []
    assert (
        describe(order(tmp_path / "a", videos, 3, model=small), lambda event: told.append(event["text"])) == 0
    )
    assert "peak memory" in told[1]
    assert not (tmp_path / "a").exists()


def test_without_an_encoder_there_is_nothing_to_attend_with(tmp_path: Path, videos: Path) -> None:
    with pytest.raises(UsageError, match="ba trains a block on a frozen encoder; name one with --model"):
        run(order(tmp_path / "a", videos, 1))


def test_heads_that_do_not_divide_the_channels_are_refused(tmp_path: Path, videos: Path, small: str) -> None:
    with pytest.raises(UsageError, match=r"ba\.heads = 7 does not divide the encoder's 32 channels"):
        run(order(tmp_path / "a", videos, 1, "ba.heads=7", model=small))

"""TimeT through the loop that all methods share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from make_training import HELD_OUT, assert_equal_states, read_lines, state, write_videos

from unspool import UsageError, load_encoder
from unspool.training import Rhythm
from unspool.training.processes import Machines
from unspool.training.settings import resolve
from unspool.verbs.train import Order, carry_out

SMALL = (
    "timet.clips=2",
    "timet.head=[16, 8]",
    "timet.prototypes=6",
    'timet.teacher="ema"',
    "sampling.seconds=0.2",
    "augmentation.size=[32, 32]",
    "augmentation.short_side=[32, 32]",
    "augmentation.blur=0.0",
)


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("UNSPOOL_CACHE", str(tmp_path / "cache"))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def order(folder: Path, videos: Path, steps: int, model: str | None = "random-vits16") -> Order:
    settings = resolve("timet", None, None, list(SMALL), {"training.steps": steps})
    machines, rhythm = Machines("cpu"), Rhythm(validate_every=0, checkpoint_every=2)
    return Order(settings, (str(videos),), folder, model, machines=machines, rhythm=rhythm, held_out=HELD_OUT)


def run(wanted: Order, stop_after: int = 0) -> int:
    def report(event: dict[str, object]) -> None:
        if event["event"] == "step" and event["step"] == stop_after:
            raise KeyboardInterrupt

    return carry_out(wanted, report, ["unspool", "train", "timet"])


def test_a_run_logs_what_tells_of_collapse_and_tunes_the_last_blocks_only(tmp_path: Path) -> None:
    videos = write_videos(tmp_path / "videos", 3)
    assert run(order(tmp_path / "a", videos, steps=2)) == 0
    lines = read_lines(tmp_path / "a")
    assert {"loss", "prototypes", "entropy", "commonest"} <= set(lines[-1])
    before, after = load_encoder("random-vits16", device="cpu"), load_encoder(tmp_path / "a", device="cpu")
    changed = {
        name.split(".")[2]
        for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True)
        if not torch.equal(old, new)
    }
    assert changed == {"10", "11"}


def test_a_run_that_stopped_ends_where_it_would_have_ended(tmp_path: Path) -> None:
    videos = write_videos(tmp_path / "videos", 3)
    run(order(tmp_path / "whole", videos, steps=4))
    with pytest.raises(KeyboardInterrupt):
        run(order(tmp_path / "stopped", videos, steps=4), stop_after=3)
    assert run(order(tmp_path / "stopped", videos, steps=4)) == 0
    assert_equal_states(state(tmp_path / "whole"), state(tmp_path / "stopped"))


def test_without_an_encoder_there_is_nothing_to_tune(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="timet tunes an encoder that has learnt already: --model"):
        run(order(tmp_path / "a", write_videos(tmp_path / "videos", 2), steps=1, model=None))

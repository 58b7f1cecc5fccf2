"""Checkpoints: whole or not there."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from unspool import OutputError, UnspoolWarning
from unspool.training import checkpoints
from unspool.training.checkpoints import checkpoints_in, newest_checkpoint, save_checkpoint


def save(folder: Path, step: int, keep: int = 3, best: bool = False) -> Path:
    state = {"step": step, "version": "1", "learner": {"w": torch.full((1000,), float(step))}}
    return save_checkpoint(folder, state, keep=keep, best=best)


def newest_step(folder: Path) -> int:
    found = newest_checkpoint(folder)
    assert found is not None
    return int(found[1]["step"])


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    path = save(tmp_path, 7)
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found[0] == path
    assert torch.equal(found[1]["learner"]["w"], torch.full((1000,), 7.0))


def test_there_may_be_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "nowhere") is None


def test_the_newest_few_stay_and_the_best_beside_them(tmp_path: Path) -> None:
    for step in range(1, 8):
        save(tmp_path, step, keep=2, best=step == 3)
    assert [p.name for p in checkpoints_in(tmp_path)] == ["step-000007.pt", "step-000006.pt"]
    assert torch.load(tmp_path / "best.pt")["step"] == 3
    assert torch.load(tmp_path / "last.pt")["step"] == 7
    assert not list(tmp_path.glob(".*"))


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    for step in (999_999, 1_000_000):
        save(tmp_path, step)
    assert newest_step(tmp_path) == 1_000_000


def test_without_hard_links_names_are_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    save(tmp_path, 2)
    assert torch.load(tmp_path / "last.pt")["step"] == 2


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_cut_one_is_passed_over(tmp_path: Path, share: float) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    os.truncate(path, int(share * path.stat().st_size))
    with pytest.warns(UnspoolWarning, match=r"step-000002.pt: is cut short.*step-000001.pt is used"):
        assert newest_step(tmp_path) == 1


@pytest.mark.parametrize("place", [0.3, 0.5, 0.7])
def test_one_byte_that_has_changed_is_noticed(tmp_path: Path, place: float) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.warns(UnspoolWarning, match="damaged"):
        assert newest_step(tmp_path) == 1


def test_one_of_another_format_is_refused_with_the_remedy(tmp_path: Path) -> None:
    torch.save({"format": 9, "version": "3.0"}, tmp_path / "step-000001.pt")
    with pytest.raises(OutputError, match=r"format 9, written by unspool 3.0.*--overwrite"):
        newest_checkpoint(tmp_path)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_while_writing_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    save(tmp_path, 1)

    def fail(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints.os if call == "fsync" else Path, call, fail)
        with pytest.raises(OutputError, match=r"step-000002.pt: cannot be written \(No space"):
            save(tmp_path, 2)
    assert newest_step(tmp_path) == 1
    assert not list(tmp_path.glob(".*"))

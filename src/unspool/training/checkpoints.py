"""Checkpoints of a training run: written whole or not at all, read whole or not at all.

FOLDER/step-000123.pt, the newest few; `last.pt` and `best.pt` are the same files under a second name.
"""

from __future__ import annotations

import io
import os
import pickle
import shutil
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from unspool.errors import OutputError, UnspoolWarning

FORMAT = 1  # of what a checkpoint holds
Json = dict[str, Any]


def save_checkpoint(folder: Path, state: Json, *, keep: int, best: bool) -> Path:
    """Write `state` as `step-NNNNNN.pt` of its `step`; the `keep` newest stay.

    The file is on the disk before it gets its name. Raises OutputError where it cannot be written; the
    older checkpoints are as they were then.
    """
    path = folder / f"step-{state['step']:06d}.pt"
    content = io.BytesIO()
    torch.save({"format": FORMAT, **state}, content)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(path, content.getbuffer())
        for name in ("last.pt", *(["best.pt"] if best else [])):
            _second_name(path, folder / name)
        for old in checkpoints_in(folder)[keep:]:
            old.unlink()
    except OSError as error:
        raise OutputError.of(path, error) from error
    return path


def write_durably(path: Path, content: memoryview | bytes) -> None:
    """Bytes that are safe from a crash of the process and of the machine, under their name when whole."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        part.unlink(missing_ok=True)


def _second_name(path: Path, name: Path) -> None:
    part = name.with_name(f".{name.name}.part")
    part.unlink(missing_ok=True)
    try:
        part.hardlink_to(path)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, part)
    part.replace(name)


def checkpoints_in(folder: Path) -> list[Path]:
    """`step-*.pt`, newest first."""
    return sorted(folder.glob("step-*.pt"), key=lambda path: int(path.stem[5:]), reverse=True)


def newest_checkpoint(folder: Path) -> tuple[Path, Json] | None:
    """The newest that is whole, and what it holds, on the CPU; None where there is none.

    One that is damaged is passed over with an UnspoolWarning. Raises OutputError for one of another format.
    """
    found = checkpoints_in(folder)
    for number, path in enumerate(found):
        try:
            state = read_checkpoint(path)
        except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, pickle.PickleError) as error:
            rest = found[number + 1 :]
            instead = f"{rest[0].name} is used" if rest else "training starts from the beginning"
            warnings.warn(
                f"{path}: is cut short or damaged ({str(error).splitlines()[0]}); {instead}",
                UnspoolWarning,
                stacklevel=2,
            )
            continue
        _refuse_other_format(path, state)
        return path, state
    return None


def read_checkpoint(path: Path) -> Json:
    """What a checkpoint holds. Raises (any of several errors) where one of its bytes is not as written."""
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():  # every byte is read and compared with its checksum
            raise ValueError(f"{damaged} does not fit its checksum")
    state: Json = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _refuse_other_format(path: Path, state: Json) -> None:
    if state.get("format") != FORMAT:
        raise OutputError(
            f"{path}: is a checkpoint of format {state.get('format')}, written by unspool "
            f"{state.get('version', '?')}; this version reads format {FORMAT}. Continue with that version, "
            "or start again in another folder (-o) or with --overwrite"
        )

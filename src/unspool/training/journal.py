"""What a run writes down as it goes: log.jsonl, TensorBoard, and W&B where it is asked for."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

from unspool.errors import OutputError, UsageError
from unspool.results import read_log, written_whole

Json = dict[str, Any]


def imported(module: str, extra: str) -> Any:
    """A module of an extra. Raises UsageError with the line that installs it."""
    try:
        return import_module(module)
    except ImportError as error:
        line = f"pip install '{extra}'"
        raise UsageError(f"training needs {module.partition('.')[0]} ({error}): {line}") from error


class Journal:
    """One line per record in `folder/log.jsonl`; those after step `saved` (-1: all) are dropped first."""

    def __init__(self, folder: Path, saved: int, *, name: str, config: Json, wandb: bool = False) -> None:
        self.path = folder / "log.jsonl"
        _cut(self.path, saved)
        writer = imported("torch.utils.tensorboard", "unspool[train]").SummaryWriter
        try:
            self._file = self.path.open("a", encoding="utf-8")
            self._board = writer(str(folder / "tensorboard"), purge_step=saved + 1)
        except OSError as error:
            raise OutputError.of(self.path, error) from error
        self._wandb: Any = None
        if wandb:
            run_name = folder.resolve().name
            self._wandb = imported("wandb", "wandb").init(
                project="unspool", name=run_name, id=f"{name}-{run_name}", resume="allow", config=config,
                dir=str(folder),
            )  # fmt: skip

    def write(self, record: Json) -> None:
        """Append a record; its numbers also become scalars at its `step`."""
        numbers = {k: v for k, v in record.items() if isinstance(v, int | float) and k != "step"}
        try:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
            for name, value in numbers.items():
                self._board.add_scalar(name, value, record["step"])
        except OSError as error:
            raise OutputError.of(self.path, error) from error
        if self._wandb is not None:
            self._wandb.log(numbers, step=record["step"])

    def close(self) -> None:
        """All of it is on the disk then."""
        self._file.close()
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def _cut(path: Path, saved: int) -> None:
    kept = [json.dumps(record) for record in read_log(path) if record["step"] <= saved]
    with written_whole(path) as part:
        part.write_text("".join(f"{line}\n" for line in kept), "utf-8")

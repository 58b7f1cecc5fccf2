"""What options of a command line and of a config file stand for: sizes, tables, stamps of files."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

from unspool.errors import UsageError
from unspool.results import Json

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
UNITS |= {f"{unit}i": 2 ** (10 * power) for power, unit in enumerate("kmgt", 1)}


def size_in_bytes(size: str | int) -> int:
    """Bytes of `4GB`, `800MB`, `1.5 GiB` or a plain number. Raises UsageError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", str(size).strip().lower())
    if not found or found[2] not in UNITS:
        raise UsageError(f"--memory {size}: expected a size, e.g. --memory 4GB")
    return int(float(found[1]) * UNITS[found[2]])


def read_toml(path: Path) -> Json:
    """The tables of a config file. Raises UsageError where it cannot be read."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); --config takes a TOML file") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: not TOML: {error}") from error


def parse_single(text: str) -> Json:
    """The table of one `--set KEY=VALUE`; dots make tables. Raises UsageError for anything else."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"--set {text}: expected KEY=VALUE, e.g. --set propagation.top_k=5")
    for line in (f"{key} = {value}", f'{key} = "{value}"'):
        try:
            return tomllib.loads(line)
        except tomllib.TOMLDecodeError:
            continue
    raise UsageError(f"--set {text}: expected KEY=VALUE, e.g. --set propagation.top_k=5")


def tables_of(given: Json, config: Path | None, single: Sequence[str]) -> Iterator[tuple[Json, str]]:
    """Tables of options and where each stands, the later over the earlier: file, `--set`, command line."""
    if config is not None:
        yield read_toml(config), str(config)
    for text in single:
        yield parse_single(text), f"--set {text}"
    yield given, "command line"


def file_stamp(path: str) -> list[object]:
    """Path, size and time stamp of a file, or of all files of a folder: what changes if they do."""
    if "://" in path or not Path(path).exists():
        return [path]
    if Path(path).is_dir():
        inside = sorted(p for p in Path(path).iterdir() if p.is_file())
        return [str(Path(path).resolve()), digest([file_stamp(str(p)) for p in inside])]
    stat = Path(path).stat()
    return [str(Path(path).resolve()), stat.st_size, stat.st_mtime_ns]


def digest(content: object) -> str:
    """Sixteen hexadecimal digits that stand for anything JSON can hold."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def in_words(seconds: float) -> str:
    """A duration for people, rounded: `12 s`, `3 min`, `2 h 5 min`."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"

"""What a folder of videos holds: frames, rates, time stamps, sizes; looked up once and remembered.

The memory lies outside the data (`cache_folder`), one JSON line per video; a video is looked at again when
its bytes or its time of change differ. Videos that cannot be read are listed once, with the reason.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from unspool.data.footage import Broken, Footage, describe, stamp_of
from unspool.data.layouts import constant, find_videos, frames_of, layout_of
from unspool.data.shards import look_at_shards
from unspool.errors import DataError, UnspoolError, UnspoolWarning

VERSION = 1  # of the remembered lines
NAMED = 5  # videos named in a message; the others are counted


@dataclass(frozen=True)
class Index:
    """The videos of a data set in natural order, and those that are broken."""

    root: str
    videos: tuple[Footage, ...]
    broken: tuple[Broken, ...] = ()
    excluded: int = 0  # videos that are scored elsewhere, and therefore left out

    def without(self, broken: Sequence[Broken], max_broken: float) -> Index:
        """The rest, where later work found more that is broken. Raises DataError as `index_videos`."""
        gone = {b.source for b in broken}
        rest = tuple(v for v in self.videos if v.source not in gone)
        index = replace(self, videos=rest, broken=(*self.broken, *broken))
        _refuse_broken(index, max_broken)
        return index

    @property
    def digest(self) -> str:
        """Equal for equal videos: a run that continues compares it."""
        lines = [f"{v.name} {v.frames} {v.height}x{v.width} {v.stamp[:2]}" for v in self.videos]
        return hashlib.blake2b("\n".join(lines).encode(), digest_size=8).hexdigest()


def cache_folder() -> Path:
    """Where unspool keeps what it can make again: `$UNSPOOL_CACHE`, else the system's place for caches."""
    if named := os.environ.get("UNSPOOL_CACHE"):
        return Path(named)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "unspool"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "unspool" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unspool"


def index_videos(
    root: str | Path, kind: str = "videos", *, fps: float | None = None, max_broken: float = 0.2
) -> Index:
    """All videos under `root`, laid out as `kind` (a key of `LAYOUTS`, or `shards`).

    `fps` replaces the layout's rule for folders of frames. Broken videos are warned about once and left out.
    Raises DataError where there is no video, or more than the share `max_broken` (0..1) is broken.
    """
    root = Path(root).absolute()
    memory = cache_folder() / "index" / f"{_safe(root.name)}-{_digest(f'{root} {kind} {fps}')}.jsonl"
    known = _recall(memory)
    if kind == "shards":
        entries = look_at_shards(root, known)
    else:
        entries = _look_at_all(root, find_videos(root, kind), kind, fps, known)
    if entries != list(known.values()):
        _remember(memory, entries)
    index = Index(
        str(root),
        tuple(entry for entry in entries if isinstance(entry, Footage)),
        tuple(entry for entry in entries if isinstance(entry, Broken)),
    )
    _refuse_broken(index, max_broken)
    _tell(index)
    return index


def _look_at_all(
    root: Path, paths: Sequence[Path], kind: str, fps: float | None, known: dict[str, Footage | Broken]
) -> list[Footage | Broken]:
    rate = constant(fps) if fps is not None else layout_of(kind).rate

    def look(path: Path) -> Footage | Broken:
        name = path.relative_to(root).as_posix() if path != root else path.name
        stamp = (0, 0, 0)
        try:
            stamp = stamp_of(path)
            entry = known.get(str(path))
            if entry is not None and entry.stamp == stamp:
                return entry
            stems = [frame.stem for frame in frames_of(path)] if path.is_dir() else []
            return replace(describe(str(path), name, rate(path.name, stems) if stems else None), stamp=stamp)
        except (UnspoolError, OSError) as error:
            return Broken(str(path), str(error), stamp)

    with _notes() as notes, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        entries = list(pool.map(look, paths))
    said = {entry.source: "; ".join(n for n in notes if n.startswith(entry.source)) for entry in entries}
    return [_noted(entry, said[entry.source]) for entry in entries]


def _noted(entry: Footage | Broken, note: str) -> Footage | Broken:
    return replace(entry, note=note) if isinstance(entry, Footage) and note else entry


def _refuse_broken(index: Index, max_broken: float) -> None:
    number, total = len(index.broken), len(index.broken) + len(index.videos)
    if number > max_broken * total or not index.videos:
        raise DataError(
            f"{index.root}: {number} of {total} videos cannot be read, {max_broken:.0%} are allowed; "
            f"mend or remove them, or allow more (--max-broken):\n{_list([b.reason for b in index.broken])}"
        )


def _tell(index: Index) -> None:
    if index.broken:
        warnings.warn(
            f"{index.root}: {len(index.broken)} of {len(index.broken) + len(index.videos)} videos cannot be "
            f"read and are left out:\n{_list([b.reason for b in index.broken])}",
            UnspoolWarning,
            stacklevel=3,
        )
    if notes := [video.note for video in index.videos if video.note]:
        warnings.warn(f"{index.root}: about some videos:\n{_list(notes)}", UnspoolWarning, stacklevel=3)


def _list(lines: Sequence[str]) -> str:
    more = [f"  and {len(lines) - NAMED} more"] if len(lines) > NAMED else []
    return "\n".join([f"  {line}" for line in lines[:NAMED]] + more)


@contextmanager
def _notes() -> Iterator[list[str]]:
    """Collects the warnings of all threads that run inside."""
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UnspoolWarning)
        yield notes
    notes += [str(w.message) for w in caught if issubclass(w.category, UnspoolWarning)]


# ---------------------------------------------------------------------------------------------- memory


def _recall(path: Path) -> dict[str, Footage | Broken]:
    """The entries of an earlier look by source; nothing where there is none, or of another version."""
    try:
        lines = path.read_text("utf-8").splitlines()
        if not lines or json.loads(lines[0]) != {"unspool-index": VERSION}:
            return {}
        entries = [_entry(json.loads(line)) for line in lines[1:]]
    except (OSError, ValueError, TypeError, KeyError):
        return {}
    return {entry.source: entry for entry in entries}


def _entry(fields: dict[str, Any]) -> Footage | Broken:
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    return Broken(**fields) if "reason" in fields else Footage(**fields)


def _remember(path: Path, entries: Sequence[Footage | Broken]) -> None:
    """Written whole or not at all; a cache that cannot be written costs time, not the run."""
    part = path.with_name(f"{path.name}.{uuid4().hex}.part")  # other processes, and machines, write it too
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"unspool-index": VERSION}), *(json.dumps(asdict(entry)) for entry in entries)]
        part.write_text("\n".join(lines) + "\n", "utf-8")
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        warnings.warn(
            f"{path}: cannot be written ({error.strerror}), so the videos are looked at again next time; "
            "set UNSPOOL_CACHE to a folder that you may write to",
            UnspoolWarning,
            stacklevel=3,
        )


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in name)[:40] or "root"

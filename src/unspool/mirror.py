"""A result at an fsspec address: made in a local folder, copied as each job is done, continued from there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unspool.errors import OutputError, UsageError
from unspool.results import OWN_FILES, OWN_FOLDERS, Json, is_of, vouches, written_whole

Stamp = list[int]  # bytes, time of the last change in ns
KNOWN = ".address.json"  # in the folder, and never copied: what is equal here and there
MARKS = (
    "ETag", "etag", "md5Hash", "checksum", "content_hash", "generation",
    "mtime", "LastModified", "last_modified", "updated", "modified", "modify", "modificationTime", "created",
)  # fmt: skip  # of fsspec's listings: one of them changes with the content


class Mirror:
    """A local result folder and its copy at an address. `done.json` of a job is copied after its other files.

    Of each file that was copied or fetched, size and time here and what the listing of the address said of it
    are kept in the folder: a file that either side has changed since is seen without reading it.

    Raises UsageError for an address of an unknown kind, OutputError for one that cannot be read or written.
    """

    def __init__(self, address: str, folder: Path) -> None:
        import fsspec  # noqa: PLC0415  (50 ms, and only addresses need it)

        self.address, self.folder = address.rstrip("/"), folder
        try:
            self._files, root = fsspec.core.url_to_fs(self.address)
        except (ValueError, ImportError) as error:
            raise UsageError(f"-o {address}: this kind of address cannot be opened ({error})") from error
        self._root: str = root.rstrip("/")
        self._here: dict[str, Stamp] = {}
        self._there: dict[str, Json] = {}  # what is not known is missing, and taken to have changed
        self._sending: set[str] = set()  # perhaps only half there
        self._listing: dict[str, Json] = {}
        self._read_known()

    def look(self) -> None:
        """List what the address has, for `read` and `fetch`."""
        self._listing = self._listed(self._root)

    def read(self, name: str) -> bytes | None:
        """What the address has of this file, read there only if it was changed; None where there is none."""
        if name not in self._listing:
            return None
        with self._told(name):
            if self._counts(name):
                return (self.folder / name).read_bytes()
            content: bytes = self._files.cat_file(f"{self._root}/{name}")
        return content

    def fetch(self) -> None:
        """Bring here what the folder lacks, and what was changed at the address since it was last equal.

        What was equal, and has been removed here since, does not come back; unless all of it was.
        """
        self._there = {name: mark for name, mark in self._there.items() if name in self._listing}
        if not any((self.folder / name).exists() for name in self._there):
            self._there.clear()
        try:
            for name in sorted(self._listing, key=_vouching_last):
                if not self._counts(name) and not self._removed(name):
                    local = self.folder / name
                    with written_whole(local) as part, self._told(name):
                        self._files.get_file(f"{self._root}/{name}", str(part))
                    self._here[name], self._there[name] = _stamp(local), _mark(self._listing[name])
                    self._sending.discard(name)
        finally:
            self._write_known()

    def _counts(self, name: str) -> bool:
        """Whether the file here counts, which may be newer than that at the address.

        It does if the address still has what was copied or fetched last, or a copy that was cut.
        """
        mark = _mark(self._listing[name])
        same = bool(mark) and mark == self._there.get(name)
        return (same or name in self._sending) and (self.folder / name).exists()

    def _removed(self, name: str) -> bool:
        """Whether it was removed here since it was equal, and not changed at the address."""
        mark = _mark(self._listing[name])
        return bool(mark) and mark == self._there.get(name) and not (self.folder / name).exists()

    def remove(self, below: str) -> None:
        """Remove at the address what is in this folder of the result."""
        with self._told(below):
            if self._files.exists(f"{self._root}/{below}"):
                self._files.rm(f"{self._root}/{below}", recursive=True)
        gone = f"{below}/"
        self._there = {name: mark for name, mark in self._there.items() if not name.startswith(gone)}
        self._sending = {name for name in self._sending if not name.startswith(gone)}
        self._write_known()

    def clear(self) -> None:
        """Remove at the address what unspool has written there."""
        with self._told():
            for name in (*OWN_FOLDERS, *OWN_FILES):
                if self._files.exists(f"{self._root}/{name}"):
                    self._files.rm(f"{self._root}/{name}", recursive=name in OWN_FOLDERS)
        self._there.clear()
        self._sending.clear()
        self._write_known()

    def copy(self, unfinished: Collection[str] = (), folders: Collection[str] = ()) -> None:
        """Copy what is new or changed, but nothing of `unfinished` videos, nor what is in these `folders`."""
        inside = tuple(f"{folder}/" for folder in folders)
        stamps = {n: stamp for n, stamp in self._whole(unfinished).items() if not n.startswith(inside)}
        changed = [n for n, stamp in stamps.items() if n not in self._there or self._here.get(n) != stamp]
        for name in changed:
            self._there.pop(name, None)
        self._sending.update(changed)
        self._write_known()  # before anything is half there
        try:
            for name in changed:
                target = f"{self._root}/{name}"
                with self._told(name):
                    self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
                    self._files.put_file(str(self.folder / name), target)
                self._here[name] = stamps[name]
            self._mark_copied(changed)
        finally:
            self._write_known()

    def _mark_copied(self, names: Collection[str]) -> None:
        """One listing for each folder that was written to."""
        for parent in {name.rpartition("/")[0] for name in names}:
            listed = self._listed(f"{self._root}/{parent}".rstrip("/"), maxdepth=1)
            self._there.update({name: _mark(listed[name]) for name in names if name in listed})
        self._sending -= self._there.keys()

    def _listed(self, path: str, **how: Any) -> dict[str, Json]:
        with self._told():
            self._files.invalidate_cache()
            there = self._files.find(path, detail=True, **how)
        return {found.removeprefix(self._root).lstrip("/"): info for found, info in there.items()}

    def _whole(self, unfinished: Collection[str]) -> dict[str, Stamp]:
        """Names and stamps of what may be copied; what other processes have in work is not looked at."""
        found = {}
        for folder, inner, files in os.walk(self.folder):
            above = Path(folder).relative_to(self.folder).parts
            inner[:] = [name for name in inner if not name.startswith(".")]
            for file in files:
                parts = (*above, file)
                if not file.startswith(".") and not is_of(parts, unfinished):  # hidden: not whole yet
                    with suppress(FileNotFoundError):  # a link to nothing, or replaced just now
                        found["/".join(parts)] = _stamp(Path(folder, file))
        return {name: found[name] for name in sorted(found, key=_vouching_last)}

    def _read_known(self) -> None:
        """Of another address, or cut: nothing is known then."""
        try:
            known = json.loads((self.folder / KNOWN).read_text("utf-8"))
        except (OSError, ValueError):
            return
        if known["address"] == self.address:
            self._here, self._there = known["here"], known["there"]
            self._sending = set(known.get("sending", ()))

    def _write_known(self) -> None:
        known = {
            "address": self.address,
            "here": self._here,
            "there": self._there,
            "sending": sorted(self._sending),
        }
        with written_whole(self.folder / KNOWN) as part:
            part.write_text(json.dumps(known), "utf-8")

    @contextmanager
    def _told(self, name: str = "") -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError, NotImplementedError) as error:
            raise OutputError(
                f"{self.address}/{name}: cannot be read or written ({type(error).__name__}: {error}); "
                f"what is done is whole in {self.folder}: run the same command again"
            ) from error


@dataclass(frozen=True)
class Copying:
    """A folder of runs and its copy at an address, if there is one."""

    mirror: Mirror | None
    report: Callable[[Json], None]

    def anew(self, runs: Collection[Path]) -> None:
        """These runs begin again: what the address has of them goes, so that it never comes back."""
        if self.mirror is not None:
            for run in runs:
                self.mirror.remove(run.relative_to(self.mirror.folder).as_posix())

    def copy(self, at_work: Collection[Path]) -> None:
        """Copy what is there now, but of runs that are at work; what cannot be is copied at the end."""
        if self.mirror is not None:
            folders = [run.relative_to(self.mirror.folder).as_posix() for run in at_work]
            try:
                self.mirror.copy(folders=folders)
            except OutputError as error:
                self.report({"event": "note", "text": f"{error}; tried again at the end"})


@contextmanager
def copied(address: str | None, folder: Path, report: Callable[[Json], None]) -> Iterator[Copying]:
    """A folder of runs, brought up to date from `address` first and copied there at the end; None: no copy.

    Raises UsageError and OutputError as `Mirror` does.
    """
    if address is None:
        yield Copying(None, report)
        return
    mirror = Mirror(address, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError.of(folder, error) from error
    mirror.look()
    mirror.fetch()
    yield Copying(mirror, report)
    mirror.copy()
    report({"event": "note", "text": f"copied to {mirror.address}"})


def _vouching_last(name: str) -> tuple[bool, str]:
    """A `done.json` or `command.json` after the files that it vouches for."""
    return vouches(name), name


def _stamp(path: Path) -> Stamp:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _mark(listed: Json) -> Json:
    """What a listing says of a file's content; empty where it says nothing but the size."""
    told = {key: str(listed[key]) for key in MARKS if listed.get(key) is not None}
    return {"size": listed["size"], **told} if told else {}

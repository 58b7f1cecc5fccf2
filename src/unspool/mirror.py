"""A result at an fsspec address: made in a local folder, copied as each job is done, continued from there."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from unspool.errors import OutputError, UsageError
from unspool.results import OWN_FILES, OWN_FOLDERS, written_whole

Stamp = tuple[int, int]  # bytes, time of the last change in ns


class Mirror:
    """A local result folder and its copy at an address. `done.json` of a job is copied after its other files.

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
        self._copied: dict[str, Stamp] = {}

    def fetch(self) -> None:
        """Bring here what the address has and the folder lacks; files of equal size are taken for equal."""
        with self._told():
            there = self._files.find(self._root, detail=True)
        names = {path.removeprefix(self._root).lstrip("/"): path for path in there}
        for name in sorted(names, key=_vouching_last):
            path, info = names[name], there[names[name]]
            local = self.folder / name
            if not local.exists():
                with self._told(name), written_whole(local) as part:
                    self._files.get_file(path, str(part))
            if local.stat().st_size == info["size"]:
                self._copied[name] = _stamp(local)

    def clear(self) -> None:
        """Remove at the address what unspool has written there."""
        with self._told():
            for name in (*OWN_FOLDERS, *OWN_FILES):
                if self._files.exists(f"{self._root}/{name}"):
                    self._files.rm(f"{self._root}/{name}", recursive=name in OWN_FOLDERS)
        self._copied.clear()

    def copy(self, unfinished: Collection[str]) -> None:
        """Copy what is new or changed, but nothing of the videos that are `unfinished`."""
        for name in sorted(self._whole(unfinished), key=_vouching_last):
            stamp, target = _stamp(self.folder / name), f"{self._root}/{name}"
            if self._copied.get(name) != stamp:
                with self._told(name):
                    self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
                    self._files.put_file(str(self.folder / name), target)
                self._copied[name] = stamp

    def _whole(self, unfinished: Collection[str]) -> Iterator[str]:
        for path in self.folder.rglob("*"):
            parts = path.relative_to(self.folder).parts
            hidden = any(part.startswith(".") for part in parts)  # not whole yet
            if path.is_file() and not hidden and not (parts[0] == "videos" and parts[1] in unfinished):
                yield "/".join(parts)

    @contextmanager
    def _told(self, name: str = "") -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError, NotImplementedError) as error:
            raise OutputError(
                f"{self.address}/{name}: cannot be read or written ({type(error).__name__}: {error}); "
                f"what is done is whole in {self.folder}: run the same command again"
            ) from error


def _vouching_last(name: str) -> tuple[bool, str]:
    """A `done.json` after the files that it vouches for."""
    return name.endswith("done.json"), name


def _stamp(path: Path) -> Stamp:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns

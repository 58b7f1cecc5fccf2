"""Where bytes come from: local paths, and any address that fsspec knows."""

from __future__ import annotations

import fnmatch
import glob
import posixpath
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from unspool.errors import VideoError

IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".ppm"}
VIDEO_ENDINGS = {
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".flv",
    ".ogv", ".wmv", ".3gp", ".gif", ".mxf", ".y4m",
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A path, local or behind fsspec, as far as reading a video asks."""

    address: str  # as the user gave it
    path: str  # as its file system names it
    files: Any = None  # the fsspec file system; None for local paths

    def __str__(self) -> str:
        return self.address

    @property
    def stem(self) -> str:
        """The name of the video: without ending; a folder's or a glob's frames are named after the folder."""
        path = self.path.rstrip("/")
        if not self.is_pattern and not self.is_folder:
            return posixpath.splitext(posixpath.basename(path))[0]
        folder = posixpath.dirname(path) if self.is_pattern else path
        name = Path(folder).resolve().name if self.files is None else posixpath.basename(folder)
        return name or "frames"

    @property
    def is_pattern(self) -> bool:
        """Whether this is a glob; a file that is really called so wins."""
        return glob.has_magic(posixpath.basename(self.path)) and not self.exists

    @property
    def is_folder(self) -> bool:
        """Whether frames are to be looked for inside; behind an address, what is called a video is one."""
        if self.files is None:
            return Path(self.path).is_dir()
        named_video = posixpath.splitext(self.path)[1].lower() in VIDEO_ENDINGS
        return not named_video and bool(self.files.isdir(self.path))  # over HTTP, asking reads the whole file

    @property
    def exists(self) -> bool:
        """Whether there is anything."""
        return Path(self.path).exists() if self.files is None else bool(self.files.exists(self.path))

    @property
    def size(self) -> int:
        """Bytes of a file."""
        return Path(self.path).stat().st_size if self.files is None else int(self.files.size(self.path) or 0)

    def open(self) -> BinaryIO:
        """The file, for reading bytes."""
        if self.files is None:
            return Path(self.path).open("rb")
        opened: BinaryIO = self.files.open(self.path, "rb")
        return opened

    def images(self) -> list[Place]:
        """The images of a folder or of a glob, in natural order (2 before 10)."""
        folder, pattern = posixpath.split(self.path) if self.is_pattern else (self.path, "*")
        named = sorted(((posixpath.basename(p), p) for p in self._inside(folder)), key=_by_nature)
        return [Place(path, path, self.files) for name, path in named if _is_frame(name, pattern)]

    def _inside(self, folder: str) -> list[str]:
        if self.files is not None:
            return [str(p) for p in self.files.ls(folder, detail=False)] if self.files.isdir(folder) else []
        local = Path(folder or ".")
        return [p.as_posix() for p in local.iterdir()] if local.is_dir() else []


def _is_frame(name: str, pattern: str) -> bool:
    image = posixpath.splitext(name)[1].lower() in IMAGES
    return image and not name.startswith(".") and fnmatch.fnmatch(name, pattern)


def _by_nature(named: tuple[str, str]) -> tuple[list[tuple[bool, int, str]], str]:
    return natural_key(named[0]), named[0]


def place(source: str | Path) -> Place:
    """Local unless the address has a scheme (`memory://`, `s3://`, `file://`). Raises VideoError."""
    address = str(source)
    if "://" not in address:
        return Place(address, Path(address).as_posix())
    import fsspec  # noqa: PLC0415  (50 ms, and only addresses need it)

    try:
        files, path = fsspec.core.url_to_fs(address)
    except (ValueError, ImportError) as error:
        raise VideoError(f"{address}: this kind of address cannot be opened ({error})") from error
    return Place(address, path, files)


def natural_key(name: str) -> list[tuple[bool, int, str]]:
    """Sorts `frame2` before `frame10`; numbers come before letters."""
    parts = re.findall(r"(\D+)|(\d+)", name)
    return [(not digits, int(digits or 0), digits or text.lower()) for text, digits in parts]

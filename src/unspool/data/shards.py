"""WebDataset shards: tar files that hold one video per sample, read with the webdataset library.

A sample is `KEY.00000.jpg`, `KEY.00001.jpg`, ... or `KEY.mp4`, and `KEY.json` with `fps` (frames per second
of the images; 24 where it is not said) and `times` (s, one per image; optional). Where each sample lies in
its shard is looked up once, so that clips are drawn from shards as from files: any video, at any time.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

from unspool.data.footage import Broken, Footage, Picture, Stamp, describe, pick, sized, stamp_of
from unspool.data.layouts import is_image
from unspool.errors import DataError, UnspoolError, UsageError, VideoError
from unspool.video import open_video
from unspool.video.source import VIDEO_ENDINGS, Place, natural_key
from unspool.video.stills import read as read_still

IMAGES_FPS = 24.0
TAR_BLOCK = 512  # bytes

Sample = dict[str, Any]  # field (what follows the first dot of a file's name) -> bytes; `__key__`


def webdataset() -> Any:
    """The library. Raises UsageError where it is absent."""
    try:
        return import_module("webdataset")
    except ImportError as error:
        raise UsageError(
            "shards are read and written with the webdataset library: pip install 'unspool[shards]'"
        ) from error


# ------------------------------------------------------------------------------------------ looking up


def look_at_shards(root: Path, known: dict[str, Footage | Broken]) -> list[Footage | Broken]:
    """The videos of all `*.tar` under `root`, or of that one file; `known`: an earlier look.

    Raises UsageError without the library or the folder, DataError where there is no shard.
    """
    webdataset()
    if not root.exists():
        raise UsageError(f"{root}: no such folder of shards; check the path")
    shards = [root] if root.is_file() else sorted(root.rglob("*.tar"), key=lambda p: natural_key(str(p)))
    if not shards:
        raise DataError(f"{root}: holds no shards; looked for *.tar. Give the folder that holds them")
    earlier: dict[str, list[Footage | Broken]] = {}
    for entry in known.values():
        earlier.setdefault(_shard_of(entry.source), []).append(entry)
    found: list[Footage | Broken] = []
    for shard in shards:
        stamp, remembered = stamp_of(shard), earlier.get(str(shard), [])
        fresh = bool(remembered) and all(entry.stamp == stamp for entry in remembered)
        found += remembered if fresh else _look_at(shard, stamp)
    return found


def _look_at(shard: Path, stamp: Stamp) -> list[Footage | Broken]:
    try:
        spans = sample_spans(shard)
    except (tarfile.TarError, OSError) as error:
        return [Broken(str(shard), f"{shard}: is no whole tar file ({error}); get it again", stamp)]
    return [_describe_sample(shard, key, span, stamp) for key, span in spans]


def sample_spans(shard: Path) -> list[tuple[str, tuple[int, int]]]:
    """Key and first and last byte (exclusive) of each sample: files of one key that follow one another."""
    key_of = webdataset().tariterators.base_plus_ext
    with tarfile.open(shard) as tar:
        files = [member for member in tar if member.isreg()]
    groups = [(key, list(group)) for key, group in groupby(files, lambda file: key_of(file.name)[0])]
    return [(key, (group[0].offset, _end(group[-1]))) for key, group in groups if key is not None]


def _end(member: tarfile.TarInfo) -> int:
    return member.offset_data + -(-member.size // TAR_BLOCK) * TAR_BLOCK


def _describe_sample(shard: Path, key: str, span: tuple[int, int], stamp: Stamp) -> Footage | Broken:
    source = f"{shard}#{key}"
    try:
        sample = read_sample(shard, span)
        if video := _video_field(sample):
            with in_memory(sample[video], f".{video}") as address:
                found = describe(address, key, None)
        else:
            found = _describe_images(source, key, sample)
        return replace(found, source=source, stamp=stamp, span=span)
    except (UnspoolError, ValueError, OSError) as error:
        return Broken(source, f"{source}: {error}", stamp)


def _describe_images(source: str, key: str, sample: Sample) -> Footage:
    images = _image_fields(sample)
    if not images:
        raise VideoError("holds neither a video nor images (jpg, png, webp, ppm)")
    height, width = _still(source, sample, images[0]).shape[:2]
    about = json.loads(sample.get("json", b"{}"))
    times = tuple(float(t) for t in about.get("times", ()))
    if times and len(times) != len(images):
        raise VideoError(f"has {len(images)} images, but {len(times)} times in its json")
    return Footage(source, key, len(images), height, width, float(about.get("fps", IMAGES_FPS)), stamps=times)


# --------------------------------------------------------------------------------------------- reading


def read_sample(shard: Path, span: tuple[int, int]) -> Sample:
    """One sample, as the webdataset library reads it."""
    readers = webdataset().tariterators
    with shard.open("rb") as file:
        file.seek(span[0])
        part = io.BytesIO(file.read(span[1] - span[0]))
    files = readers.tar_file_expander([{"url": str(shard), "stream": part}])
    sample: Sample = next(readers.group_by_keys(files))
    return sample


def images_of_sample(video: Footage, wanted: Iterable[int]) -> Iterator[Picture]:
    """Frames of a video of a shard, by ascending number. Raises VideoError."""
    sample = read_sample(Path(_shard_of(video.source)), video.span)
    if field := _video_field(sample):
        with in_memory(sample[field], f".{field}") as address, open_video(address, decode_ahead=0) as opened:
            yield from pick(opened, video, wanted)
        return
    images = _image_fields(sample)
    for index in wanted:
        yield sized(video, _still(video.source, sample, images[index]))


def _shard_of(source: str) -> str:
    shard, ending, _ = source.partition(".tar#")
    return f"{shard}.tar" if ending else source


def _video_field(sample: Sample) -> str | None:
    return next((field for field in sample if f".{field.rpartition('.')[2]}" in VIDEO_ENDINGS), None)


def _image_fields(sample: Sample) -> list[str]:
    return sorted((field for field in sample if is_image(f"image.{field}")), key=natural_key)


@dataclass(frozen=True)
class _Bytes(Place):
    """An image that has been read already."""

    data: bytes = b""

    def open(self) -> BinaryIO:
        return io.BytesIO(self.data)


def _still(source: str, sample: Sample, field: str) -> Picture:
    return read_still(_Bytes(f"{source}.{field}", field, data=sample[field]))


@contextlib.contextmanager
def in_memory(data: bytes, ending: str) -> Iterator[str]:
    """An address under which `open_video` finds `data`."""
    import fsspec  # noqa: PLC0415  (50 ms, and only videos inside shards need it)

    files, path = fsspec.filesystem("memory"), f"/unspool-{os.getpid()}-{id(data)}{ending}"
    files.pipe(path, data)
    try:
        yield f"memory://{path}"
    finally:
        files.rm(path)

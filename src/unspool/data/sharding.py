"""Footage into WebDataset shards, for `unspool.data.shards` and others to read."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from unspool.data.footage import Footage
from unspool.data.frames import Decoder
from unspool.data.shards import Sample, webdataset


def write_shards(
    videos: Sequence[Footage], folder: Path, short_side: int, *, quality: int = 92, shard_mb: float = 500.0
) -> list[Path]:
    """The frames of `videos` at `short_side`, px, as JPEGs of `quality` 1..100; `shard_mb`: size of a shard.

    A shard appears when it is whole. Raises UsageError without the library.
    """
    written: list[Path] = []

    def publish(part: str) -> None:
        whole = Path(part.removesuffix(".part"))
        written.append(Path(part).replace(whole))

    folder.mkdir(parents=True, exist_ok=True)
    pattern = str(folder / "videos-%06d.tar.part")
    writer = webdataset().ShardWriter(pattern, maxsize=shard_mb * 1e6, post=publish, verbose=0)
    decoder = Decoder(keep=1)
    try:
        for video in videos:
            writer.write(_sample_of(video, decoder, short_side, quality))
    except BaseException:
        writer.post = None  # a shard that is not whole
        raise
    finally:
        part = Path(writer.fname)
        writer.close()
        part.unlink(missing_ok=True)
        decoder.close()
    return written


def _sample_of(video: Footage, decoder: Decoder, short_side: int, quality: int) -> Sample:
    about = {"fps": video.fps, "times": np.round(video.times, 6).tolist()}
    key = "".join(c if c.isalnum() or c in "-_/" else "-" for c in video.name)
    sample: Sample = {"__key__": key, "json": json.dumps(about).encode()}
    for number, image in enumerate(decoder.read_all(video, short_side)):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "jpeg", quality=quality, subsampling=0)
        sample[f"{number:05d}.jpg"] = file.getvalue()
    return sample

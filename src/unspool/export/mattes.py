"""Objects of a result cut out of its pictures, for editors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from unspool.export.finished import Finished, Report, told
from unspool.results import written_whole
from unspool.video.prores import ProResWriter


def write_mattes(video: Finished, folder: Path, report: Report) -> None:
    """`object-ID/FRAME.png` per object and frame: the source's picture, alpha 255 on the object, else 0."""
    for label in video.ids:
        (folder / f"object-{label}").mkdir(parents=True, exist_ok=True)
    stems = video.stems()
    for index, image, labels in _with_images(video, report):
        for label in video.ids:
            picture = Image.fromarray(_cut_out(image, labels == label))
            with written_whole(folder / f"object-{label}" / f"{stems[index]}.png") as part:
                picture.save(part, "PNG", compress_level=1)


def write_prores(video: Finished, folder: Path, report: Report) -> None:
    """`object-ID.mov` per object: ProRes 4444 with alpha, its frames at the source's times, without sound."""
    folder.mkdir(parents=True, exist_ok=True)
    times = video.times()
    with ExitStack() as files:
        writers = {
            label: files.enter_context(
                ProResWriter(
                    folder / f"object-{label}.mov", height=video.height, width=video.width, times=times
                )
            )
            for label in video.ids
        }
        for _, image, labels in _with_images(video, report):
            for label, writer in writers.items():
                writer.write(_cut_out(image, labels == label))


def _with_images(
    video: Finished, report: Report
) -> Iterator[tuple[int, npt.NDArray[np.uint8], npt.NDArray[np.integer[Any]]]]:
    for (index, labels), image in zip(told(video, report), video.images(), strict=True):
        yield index, image, labels


def _cut_out(image: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """`[H, W, 4]`: straight (not premultiplied) alpha, colours kept everywhere."""
    return np.dstack([image, np.where(mask, np.uint8(255), np.uint8(0))])

"""Label maps of a result as images: submissions, MOTS, first masks of every object."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from unspool.export.finished import Finished, Report, told
from unspool.masks import ids_in, label_rles, read_truth, write_mask
from unspool.results import Json, write_json, written_whole

MOTS_INSTANCES = 1000  # ids below this share a class: pixel = 1000 * class + id


def write_palette(video: Finished, folder: Path, report: Report) -> None:
    """`FRAME.png` per frame, 8-bit palette: what the tools of DAVIS and YouTube-VOS read.

    Frames are called as those of the source where it is a folder of images (the data sets' own), else 00000.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stems = video.stems()
    for index, labels in told(video, report):
        write_mask(folder / f"{stems[index]}.png", labels.astype(np.uint8))


def write_youtube_vos(videos: Sequence[Finished], folder: Path, report: Report) -> None:
    """`VIDEO/FRAME.png` inside `folder`, which is called Annotations: what the server takes, zipped."""
    for video in videos:
        write_palette(video, folder / video.name, report)


def write_mots(video: Finished, path: Path, report: Report) -> None:
    """A zip of MOTS PNGs (16 bit, 1000 * class + id; class 1 is `object`): what CVAT imports as tracks.

    Frames of a video file are called frame_000000 as CVAT calls them, those of a folder by their own names.
    Source: datumaro plugins/data_formats/mots.py.
    """
    stems = video.stems("frame_{:06d}")
    with written_whole(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("train/instances/labels.txt", "object\n")
        for index, labels in told(video, report):
            coded = np.where(labels > 0, MOTS_INSTANCES + labels.astype(np.uint16), 0).astype(np.uint16)
            packed = BytesIO()
            Image.fromarray(coded).save(packed, "PNG", compress_level=1)
            archive.writestr(f"train/instances/{stems[index]}.png", packed.getvalue())


def write_mots_text(video: Finished, path: Path) -> None:
    """The same as MOTS text, which TrackEval reads: `frame id class height width run-lengths` a line.

    Source: TrackEval trackeval/datasets/kitti_mots.py.
    """
    with written_whole(path) as part, part.open("w", encoding="ascii", newline="\n") as out:
        for number, labels in zip(video.numbers, video.labels(), strict=True):
            for label, rle in label_rles(labels).items():
                height, width = rle["size"]
                out.write(f"{number} {MOTS_INSTANCES + label} 1 {height} {width} {rle['counts']}\n")


def write_first_masks(videos: Sequence[Finished], folder: Path, report: Report) -> None:
    """`VIDEO/FRAME.png` (8-bit palette) for each frame in which objects appear first, holding only these.

    Nothing else is in these folders: Cutie takes all that is there for videos and masks.
    Source: Cutie cutie/inference/data/vos_test_dataset.py; sam2 tools/vos_inference.py.
    """
    for video in videos:
        (folder / video.name).mkdir(parents=True, exist_ok=True)
        stems, seen = video.stems(), set[int]()
        for index, labels in told(video, report):
            new = set(ids_in(labels)) - seen
            if new:
                first = np.where(np.isin(labels, list(new)), labels, 0).astype(np.uint8)
                write_mask(folder / video.name / f"{stems[index]}.png", first)
            seen |= new
            if seen.issuperset(video.ids):
                break


def write_prompts(videos: Sequence[Finished], masks: Path, folder: Path) -> None:
    """`VIDEO.json`: of each object in the first masks its `frame` (number), `mask` (file), `box` and `point`.

    `box` is [x0, y0, x1, y1] in px (x1, y1 exclusive), `point` [x, y] the pixel farthest from its edge.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for video in videos:
        prompts = [
            _prompt(number, stem, label, labels == label)
            for number, stem in zip(video.numbers, video.stems(), strict=True)
            if (path := masks / video.name / f"{stem}.png").is_file()
            for labels in [read_truth(path)]
            for label in ids_in(labels)
        ]
        size = {"width": video.width, "height": video.height, "frames": video.frames}
        write_json(folder / f"{video.name}.json", {"video": video.source, **size, "prompts": prompts})


def _prompt(frame: int, stem: str, label: int, mask: npt.NDArray[np.bool_]) -> Json:
    from scipy.ndimage import distance_transform_edt  # noqa: PLC0415 (50 ms)

    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    inside = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]  # the border is an edge too
    y, x = np.unravel_index(inside.argmax(), mask.shape)
    where = {"box": [int(v) for v in box], "point": [int(x), int(y)]}
    return {"frame": frame, "mask": f"{stem}.png", "object": label, **where}

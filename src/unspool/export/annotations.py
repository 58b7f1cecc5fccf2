"""Run lengths of a result as json: COCO, an annotation per frame; YouTube-VIS, a record per object."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pycocotools import mask as coco

from unspool.errors import OutputError
from unspool.export.finished import Finished, Report, told
from unspool.masks import label_rles
from unspool.results import Json, written_whole


def write_coco(videos: Sequence[Finished], path: Path, report: Report) -> None:
    """One COCO json of all frames: an image per frame, an annotation per object and frame.

    `track_id` is the object's id in the masks; `video_id`, `frame_id` (from 0) say where an image belongs.
    Source: cocoapi PythonAPI/pycocotools/coco.py; its place and name datumaro plugins/data_formats/coco.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as part, part.open("w", encoding="utf-8", newline="\n") as out:
        images, number = (image for image in _coco_images(videos)), 0
        out.write(f'{{"info":{{"description":"unspool"}},"videos":{_json(_videos(videos))},"categories":')
        out.write(_json(CATEGORIES) + ',"images":[')
        out.writelines("," * bool(n) + "\n" + _json(image) for n, image in enumerate(images))
        out.write('],"annotations":[')
        for at, video in enumerate(videos):
            first = sum(v.frames for v in videos[:at]) + 1
            for index, labels in told(video, report):
                for label, rle in label_rles(labels).items():
                    number += 1
                    record = _annotation(number, label, rle) | {"image_id": first + index, "video_id": at + 1}
                    out.write("," * (number > 1) + "\n" + _json(record))
        out.write("\n]}\n")


CATEGORIES = [{"id": 1, "name": "object"}]


def _videos(videos: Sequence[Finished]) -> list[Json]:
    return [
        {"id": n, "name": v.name, "width": v.width, "height": v.height, "length": v.frames}
        for n, v in enumerate(videos, 1)
    ]


def _coco_images(videos: Sequence[Finished]) -> Iterator[Json]:
    number = 0
    for at, video in enumerate(videos, 1):
        for index, stem in enumerate(video.stems()):
            number += 1
            names = {"file_name": f"{video.name}/{stem}.jpg", "video_id": at, "frame_id": index}
            yield {"id": number, "width": video.width, "height": video.height, **names}


def _annotation(number: int, label: int, rle: Any) -> Json:
    raw = {"size": rle["size"], "counts": rle["counts"].encode("ascii")}
    measured = {"bbox": coco.toBbox(raw).tolist(), "area": int(coco.area(raw)), "segmentation": rle}
    track = {"track_id": label, "attributes": {"track_id": label}}  # the second is what datumaro keeps
    return {"id": number, "category_id": 1, "iscrowd": 0, **track, **measured}


def write_ytvis(videos: Sequence[Finished], path: Path) -> None:
    """One YouTube-VIS json of the data set's own form: `tracks.json` of all videos, numbered through.

    `track_id` is the object's id. Run lengths are plain lists, as in the published files: TrackEval reads
    no others as truth. Those of one video are in memory at a time. Source: youtubevos/cocoapi, ytvos.py.
    """
    listed = [
        {**record, "file_names": [f"{video.name}/{stem}.jpg" for stem in video.stems()]}
        for record, video in zip(_videos(videos), videos, strict=True)
    ]
    with written_whole(path) as part, part.open("w", encoding="utf-8", newline="\n") as out:
        out.write(f'{{"videos":{_json(listed)},"categories":{_json(CATEGORIES)},"annotations":[')
        for number, (at, track) in enumerate(_numbered_tracks(videos), 1):
            plain = [rle and {**rle, "counts": run_lengths(rle)} for rle in track["segmentations"]]
            record = {**track, "segmentations": plain, "id": number, "video_id": at, "track_id": track["id"]}
            out.write("," * (number > 1) + "\n" + _json(record))
        out.write("\n]}\n")


def write_ytvis_results(videos: Sequence[Finished], path: Path) -> None:
    """The same as the YouTube-VIS server and TrackEval take a prediction: a list, each object of score 1."""
    with written_whole(path) as part, part.open("w", encoding="utf-8", newline="\n") as out:
        out.write("[")
        for number, (at, track) in enumerate(_numbered_tracks(videos)):
            record = {"video_id": at, "category_id": 1, "score": 1.0, "segmentations": track["segmentations"]}
            out.write("," * bool(number) + "\n" + _json(record))
        out.write("\n]\n")


def _numbered_tracks(videos: Sequence[Finished]) -> Iterator[tuple[int, Json]]:
    for at, video in enumerate(videos, 1):
        for track in _tracks(video):
            yield at, track


def run_lengths(rle: Json) -> list[int]:
    """Plain run lengths of COCO's compressed ones.

    Each is 5 bits a character, low bits first, bit 5 set where another follows, and from the third on the
    difference to the one before the last. Source: cocoapi common/maskApi.c: rleFrString.
    """
    counts: list[int] = []
    value = shift = 0
    for character in rle["counts"].encode("ascii"):
        digit = character - 48
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            continue
        if digit & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    return counts


def _tracks(video: Finished) -> list[Json]:
    path = video.home / "tracks.json"
    try:
        tracks: list[Json] = json.loads(path.read_text("utf-8"))["annotations"]
    except (OSError, ValueError, KeyError) as error:
        raise OutputError(f"{path}: cannot be read ({error}); make the result again") from error
    return tracks


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)

"""A result in the formats of other tools: data sets, annotation tools, label-trained trackers, editors.

Each function reads what `results.py` promises (`videos/NAME/{masks,tracks.json,done.json}`) and writes one
format, file by file, each whole or not at all, one frame in memory at a time. `export.json` in the folder
says what it holds: the same export may be run again, anything else needs `overwrite`.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image
from pycocotools import mask as coco

from unspool.errors import MaskError, OutputError, UnspoolError, UsageError, VideoError
from unspool.masks import Labels, ids_in, label_rles, read_truth, write_mask
from unspool.results import Json, read_done, write_json, written_whole
from unspool.video import Video, open_video
from unspool.video.prores import ProResWriter
from unspool.video.source import place

Kind = Literal[
    "coco", "ytvis", "davis", "youtube-vos", "mots", "prompts", "mattes", "prores", "features", "timm"
]
KINDS: tuple[Kind, ...] = get_args(Kind)
Report = Callable[[Json], None]

MOST_IDS = 254  # of an 8-bit palette PNG, less background and void
MOTS_INSTANCES = 1000  # ids below this share a class: pixel = 1000 * class + id
RECORD = "export.json"


@dataclass(frozen=True)
class Export:
    """What is exported, and how."""

    result: Path  # a result folder of `track`, `segment` or `eval tracking`; of `train` for the kind timm
    kind: Kind
    videos: tuple[str, ...] = ()  # names in the result; none: all of them
    model: str = ""  # features, timm: an encoder's name or file; timm may take the result's own
    layer: str = "tokens"  # features: what the encoder is asked for
    resolution: int | None = None  # features: px of the short side of the encoder's input; None: the video's
    device: str = "auto"  # features

    @property
    def record(self) -> Json:
        """What `export.json` says, and a second run must find."""
        return {**asdict(self), "result": str(self.result.resolve()), "videos": list(self.videos)}


@dataclass(frozen=True)
class Finished:
    """A finished video of a result."""

    name: str
    home: Path  # RESULT/videos/NAME
    source: str
    frames: int
    height: int
    width: int
    ids: tuple[int, ...]  # of all objects that appear

    def labels(self) -> Iterator[Labels]:
        """Its label maps `[H, W]`, frame by frame. MaskError where one is missing or of another size."""
        for index in range(self.frames):
            path = self.home / "masks" / f"{index:05d}.png"
            labels = read_truth(path)
            if labels.shape != (self.height, self.width):
                raise MaskError(
                    f"{path}: is {labels.shape[1]}x{labels.shape[0]}, its video {self.width}x{self.height}; "
                    "make the result again (--overwrite)"
                )
            yield labels

    def stems(self, pattern: str = "{:05d}") -> list[str]:
        """Names of the frames: those of the source where it is a folder of images, else numbers."""
        numbered = [pattern.format(index) for index in range(self.frames)]
        try:
            where = place(self.source)
            named = [Path(i.path).stem for i in where.images()] if where.is_folder or where.is_pattern else []
        except (UnspoolError, OSError, ValueError):
            return numbered
        return named if len(named) == self.frames else numbered

    def images(self) -> Video:
        """The source itself. Raises VideoError where it has gone, or is not what was tracked."""
        video = open_video(self.source)
        if (len(video), video.height, video.width) != (self.frames, self.height, self.width):
            found = f"{len(video)} frames of {video.width}x{video.height}"
            video.close()
            raise VideoError(
                f"{self.source}: holds {found}, but its result {self.home} was made from {self.frames} of "
                f"{self.width}x{self.height}; put the same video there, or make the result again"
            )
        return video


def finished_videos(result: Path, names: Sequence[str] = ()) -> list[Finished]:
    """The finished videos of a result folder, by name. Raises UsageError where there is none of a name."""
    if not (result / "run.json").is_file():
        raise UsageError(f"{result}: no result folder (it holds no run.json); give one that `track` left")
    there = sorted(path.parent.name for path in (result / "videos").glob("*/done.json"))
    unknown = sorted(set(names) - set(there))
    if unknown or not there:
        missing = f"'{unknown[0]}' is no finished video" if unknown else "holds no finished video"
        raise UsageError(f"{result}: {missing} (there are: {', '.join(there) or 'none'}); finish it first")
    return [_finished(result, name) for name in (names or there)]


def _finished(result: Path, name: str) -> Finished:
    done, home = read_done(result, name), result / "videos" / name
    try:
        assert done is not None
        ids = tuple(entry["id"] for entry in done["objects"])
        return Finished(name, home, done["source"], done["frames"], done["height"], done["width"], ids)
    except (AssertionError, KeyError, TypeError) as error:
        raise OutputError(f"{home / 'done.json'}: is not readable; make the result again") from error


def export(what: Export, out: Path, *, overwrite: bool = False, report: Report = lambda event: None) -> Path:
    """Write `what` into the folder `out`; returns the folder.

    Raises UsageError for what the kind cannot hold or needs and for a folder that holds something else,
    MaskError and VideoError for a result that is not whole or whose source has gone, OutputError where
    nothing can be written.
    """
    if what.kind not in KINDS:
        raise UsageError(f"--to {what.kind}: unknown; there are {', '.join(KINDS)}")
    writers = _writers(what, report)
    _claim(what, out, sorted(writers), overwrite=overwrite)
    try:
        for entry, write in writers.items():
            _remove(out / entry)  # of an earlier run: what it wrote may be more than what comes now
            write(out / entry)
    except OSError as error:
        raise OutputError.of(out, error) from error
    return out


def _writers(what: Export, report: Report) -> dict[str, Callable[[Path], None]]:
    """What will stand in the folder, and who writes it. Raises UsageError for what cannot be written."""
    if what.kind == "timm":
        from unspool.export_encoder import write_timm  # noqa: PLC0415 (torch only where it is needed)

        return {"encoder": partial(write_timm, what.model or str(what.result))}
    videos = finished_videos(what.result, what.videos)
    _refuse_ids(videos, what.kind)
    if what.kind == "coco":
        return {"annotations.json": lambda path: write_coco(videos, path, report)}
    if what.kind == "ytvis":
        return {"instances.json": lambda path: write_ytvis(videos, path)}
    if what.kind == "youtube-vos":
        return {"Annotations": partial(write_youtube_vos, videos, report=report)}
    if what.kind == "mots":
        return {f"{v.name}.zip": partial(write_mots, v, report=report) for v in videos}
    if what.kind == "features":
        return _feature_writers(what, videos, report)
    per_video = {
        "davis": write_palette,
        "prompts": write_prompts,
        "mattes": write_mattes,
        "prores": write_prores,
    }
    return {v.name: partial(per_video[what.kind], v, report=report) for v in videos}


def _feature_writers(what: Export, videos: Sequence[Finished], report: Report) -> dict[str, Any]:
    if not what.model:
        raise UsageError("--to features: name the encoder with --model, e.g. --model dino-vits16")
    from unspool.encoders import load_encoder  # noqa: PLC0415
    from unspool.encoders.images import offered  # noqa: PLC0415
    from unspool.export_encoder import write_features  # noqa: PLC0415

    encoder = load_encoder(what.model, device=what.device)
    offered((what.layer,), encoder.offers, encoder.name)
    write = partial(
        write_features, encoder=encoder, layer=what.layer, resolution=what.resolution, report=report
    )
    return {f"{v.name}.safetensors": partial(write, v) for v in videos}


def _refuse_ids(videos: Sequence[Finished], kind: Kind) -> None:
    most = MOTS_INSTANCES - 1 if kind == "mots" else MOST_IDS
    if kind not in ("davis", "youtube-vos", "prompts", "mots"):
        return
    for video in videos:
        if max(video.ids, default=0) > most:
            raise UsageError(
                f"{video.home}: has {len(video.ids)} objects with ids up to {max(video.ids)}, but ids of "
                f"{kind} end at {most}; choose --to coco or ytvis, or name other --videos"
            )


def _claim(what: Export, out: Path, entries: list[str], *, overwrite: bool) -> None:
    """Make the folder ours: `export.json` is there before the first file."""
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: is a file, not a folder; choose another with -o")
    earlier, record = _read_record(out), what.record
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        changed = [key for key in record if earlier.get(key) != record[key]]
        if changed:
            held = f"another export ({', '.join(changed)} differ)" if earlier else "files of others"
            raise UsageError(f"{out}: holds {held}; choose another folder with -o, or --overwrite")
    for entry in earlier.get("entries", []):
        _remove(out / Path(entry).name)
    write_json(out / RECORD, {**record, "entries": entries})


def _read_record(out: Path) -> Json:
    try:
        content = json.loads((out / RECORD).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _remove(path: Path) -> None:
    try:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError.of(path, error) from error


def _told(video: Finished, report: Report) -> Iterator[tuple[int, Labels]]:
    """The label maps with their numbers; each is reported when it is done with."""
    report({"event": "video", "video": video.name, "frames": video.frames})
    for index, labels in enumerate(video.labels()):
        yield index, labels
        report({"event": "frame", "video": video.name, "frame": index + 1, "frames": video.frames})


# -------------------------------------------------------------------------------------------- json


def write_coco(videos: Sequence[Finished], path: Path, report: Report) -> None:
    """One COCO json of all frames: an image per frame, an annotation per object and frame.

    `track_id` is the object's id in the masks; `video_id`, `frame_id` (from 0) say where an image belongs.
    Source: cocoapi PythonAPI/pycocotools/coco.py.
    """
    with written_whole(path) as part, part.open("w", encoding="utf-8", newline="\n") as out:
        images, number = (image for image in _coco_images(videos)), 0
        out.write(f'{{"info":{{"description":"unspool"}},"videos":{_json(_videos(videos))},"categories":')
        out.write(_json(CATEGORIES) + ',"images":[')
        out.writelines("," * bool(n) + "\n" + _json(image) for n, image in enumerate(images))
        out.write('],"annotations":[')
        for at, video in enumerate(videos):
            first = sum(v.frames for v in videos[:at]) + 1
            for index, labels in _told(video, report):
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
    return {"id": number, "category_id": 1, "track_id": label, "iscrowd": 0, **measured}


def write_ytvis(videos: Sequence[Finished], path: Path) -> None:
    """One YouTube-VIS json: `tracks.json` of all videos, numbered through; `track_id` is the object's id.

    Holds the run lengths of one video in memory at a time. Source: youtubevos/cocoapi, ytvos.py.
    """
    listed = [
        {**record, "file_names": [f"{video.name}/{stem}.jpg" for stem in video.stems()]}
        for record, video in zip(_videos(videos), videos, strict=True)
    ]
    with written_whole(path) as part, part.open("w", encoding="utf-8", newline="\n") as out:
        out.write(f'{{"videos":{_json(listed)},"categories":{_json(CATEGORIES)},"annotations":[')
        number = 0
        for at, video in enumerate(videos, 1):
            for track in _tracks(video):
                number += 1
                record = {**track, "id": number, "video_id": at, "track_id": track["id"]}
                out.write("," * (number > 1) + "\n" + _json(record))
        out.write("\n]}\n")


def _tracks(video: Finished) -> list[Json]:
    path = video.home / "tracks.json"
    try:
        tracks: list[Json] = json.loads(path.read_text("utf-8"))["annotations"]
    except (OSError, ValueError, KeyError) as error:
        raise OutputError(f"{path}: cannot be read ({error}); make the result again") from error
    return tracks


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


# ----------------------------------------------------------------------------------- label images


def write_palette(video: Finished, folder: Path, report: Report) -> None:
    """`FRAME.png` per frame, 8-bit palette: what the tools of DAVIS and YouTube-VOS read.

    Frames are called as those of the source where it is a folder of images (the data sets' own), else 00000.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stems = video.stems()
    for index, labels in _told(video, report):
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
        for index, labels in _told(video, report):
            coded = np.where(labels > 0, MOTS_INSTANCES + labels.astype(np.uint16), 0).astype(np.uint16)
            packed = BytesIO()
            Image.fromarray(coded).save(packed, "PNG", compress_level=1)
            archive.writestr(f"train/instances/{stems[index]}.png", packed.getvalue())


# ---------------------------------------------------------------------------------------- prompts


def write_prompts(video: Finished, folder: Path, report: Report) -> None:
    """First-frame prompts of every object, for trackers that take a mask (Cutie, SAM 2), a box or a click.

    `FRAME.png` (8-bit palette) for each frame in which objects appear first, holding only these;
    `prompts.json` with `frame` (number), `object`, `box` [x0, y0, x1, y1] in px (x1, y1 exclusive) and
    `point` [x, y]: the pixel farthest from the object's edge.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stems, seen, prompts = video.stems(), set[int](), list[Json]()
    for index, labels in _told(video, report):
        new = [i for i in ids_in(labels) if i not in seen]
        seen.update(new)
        if new:
            write_mask(
                folder / f"{stems[index]}.png", np.where(np.isin(labels, new), labels, 0).astype(np.uint8)
            )
            prompts += [_prompt(index, stems[index], i, labels == i) for i in new]
        if seen.issuperset(video.ids):
            break
    size = {"width": video.width, "height": video.height, "frames": video.frames}
    write_json(folder / "prompts.json", {"video": video.source, **size, "prompts": prompts})


def _prompt(frame: int, stem: str, label: int, mask: npt.NDArray[np.bool_]) -> Json:
    from scipy.ndimage import distance_transform_edt  # noqa: PLC0415 (50 ms)

    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    inside = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]  # the border is an edge too
    y, x = np.unravel_index(inside.argmax(), mask.shape)
    where = {"box": [int(v) for v in box], "point": [int(x), int(y)]}
    return {"frame": frame, "mask": f"{stem}.png", "object": label, **where}


# ----------------------------------------------------------------------------------------- mattes


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
    """`object-ID.mov` per object: ProRes 4444 with alpha, all frames at the source's times, without sound."""
    folder.mkdir(parents=True, exist_ok=True)
    with video.images() as source:
        times = list(source.times)
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
    with video.images() as source:
        for (index, labels), image in zip(_told(video, report), source, strict=True):
            yield index, image, labels


def _cut_out(image: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """`[H, W, 4]`: straight (not premultiplied) alpha, colours kept everywhere."""
    return np.dstack([image, np.where(mask, np.uint8(255), np.uint8(0))])

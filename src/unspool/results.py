"""The promised result folder: what a command leaves behind, written atomically while it works.

RESULT/
  index.html, run.json, scores.json, scores.csv
  videos/NAME/{masks/00000.png, overlay.mp4, frames.mp4, thumbs.jpg, tracks.json, done.json}
  videos/NAME/hierarchy.npz          segment only: merge tree and labels on the grid (`unspool.segments`)
  data/NAME.js, data/NAME-000.js     what the page needs: run-length labels at display size
  data/NAME.tree/                    segment only: leaves of the tree, queries and keys
  pictures/NAME/                     eval clustering only
  davis/SEQ/00000.png                eval only
  checkpoints/, encoder.safetensors, log.jsonl, pictures/, tensorboard/     train only (`unspool.training`)

Every file appears under a temporary name and is renamed when whole; `done.json` comes last, so a video
without it is redone. Nothing here knows of encoders: images and label maps come in, files go out.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from unspool.errors import OutputError, UsageError
from unspool.masks import (
    VOID,
    TracksWriter,
    display_colours,
    draw_overlay,
    ids_in,
    resize_labels,
    write_mask,
)
from unspool.video import VideoWriter

DISPLAY_SHORT_SIDE = 480  # px: larger sources are scaled down for the page
CHUNK_FRAMES = 500  # frames in one data file of the page
THUMBS, THUMB_WIDTH = 12, 160
OWN_FOLDERS = ("videos", "data", "davis", "checkpoints", "tensorboard", "pictures")
OWN_FILES = ("index.html", "run.json", "scores.json", "scores.csv", "log.jsonl")  # --overwrite removes both

Json = dict[str, Any]
Labels = Integer[np.ndarray, "h w"]


# ---------------------------------------------------------------------------------------- atomic files


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; rename it on success, remove it on failure.

    Raises OutputError naming the file and the remedy when the disk is full or not writable.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        part.replace(path)
    except OSError as error:
        with suppress(OSError):  # of a folder that is none
            part.unlink(missing_ok=True)
        raise OutputError.of(path, error) from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Json) -> None:
    """Write `content` whole, readable by people, with a stable key order."""
    with written_whole(path) as part:
        part.write_text(json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n", "utf-8")


def write_script(path: Path, call: str, *arguments: object) -> None:
    """Write `unspool.call(arguments);`: data that a page opened from disk can load.

    `<` is escaped so that the text may also stand inside an inline script.
    """
    text = ",".join(json.dumps(a, separators=(",", ":"), ensure_ascii=False) for a in arguments)
    text = text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    with written_whole(path) as part:
        part.write_text(f"unspool.{call}({text});\n", "utf-8")


# --------------------------------------------------------------------------------- labels for the page


def label_runs(
    labels: Labels,
) -> tuple[Integer[np.ndarray, " runs"], Integer[np.ndarray, " runs"]]:
    """Labels and lengths of the runs over the row-major grid; the lengths sum to H·W."""
    flat = labels.ravel()
    ends = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate([[0], ends, [flat.size]])
    return flat[edges[:-1]].astype(np.int64), np.diff(edges)


def encode_runs(values: Integer[np.ndarray, " runs"], lengths: Integer[np.ndarray, " runs"]) -> str:
    """Base64 of the pairs (label, length), each number as an unsigned LEB128 varint."""
    numbers = np.stack([values, lengths], axis=1).ravel().astype(np.uint64)
    digits = (numbers[:, None] >> np.arange(0, 35, 7, dtype=np.uint64)) & np.uint64(0x7F)
    used = np.maximum((digits != 0) * np.arange(1, 6), 0).max(axis=1).clip(1)
    place = np.arange(5)
    digits = digits + np.where(place < used[:, None] - 1, 0x80, 0).astype(np.uint64)
    return base64.b64encode(digits[place < used[:, None]].astype(np.uint8).tobytes()).decode("ascii")


def display_size(height: int, width: int) -> tuple[int, int]:
    """Size of the page's frames: short side at most 480 px, both sides even as H.264 wants."""
    scale = min(1.0, DISPLAY_SHORT_SIDE / min(height, width))
    return max(2, int(height * scale) // 2 * 2), max(2, int(width * scale) // 2 * 2)


def to_display(image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "h2 w2 3"]:
    """The frame at display size; an odd last row or column is dropped, not resampled."""
    height, width = image.shape[:2]
    if 0 <= height - size[0] <= 1 and 0 <= width - size[1] <= 1:
        return np.ascontiguousarray(image[: size[0], : size[1]])
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR, reducing_gap=2.0))


def labels_to_display(labels: Labels, size: tuple[int, int]) -> Labels:
    """The same for label maps, without mixing labels."""
    height, width = labels.shape
    if 0 <= height - size[0] <= 1 and 0 <= width - size[1] <= 1:
        return labels[: size[0], : size[1]]
    return resize_labels(labels, size)


# ----------------------------------------------------------------------------------------- one video


class Lane:
    """One background thread that takes work in order; at most `depth` frames wait in it."""

    def __init__(self, name: str, depth: int = 4) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"unspool-{name}")
        self._pending: deque[Future[None]] = deque()
        self._depth = depth
        self.seconds = 0.0  # spent on the work

    def submit(self, work: Callable[..., None], *arguments: object) -> None:
        """Queue the call; waits while the lane is full, raises what an earlier call raised."""
        while len(self._pending) >= self._depth:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(self._timed, work, *arguments))

    def _timed(self, work: Callable[..., None], *arguments: object) -> None:
        started = perf_counter()
        work(*arguments)
        self.seconds += perf_counter() - started

    def drain(self) -> None:
        """Wait for all queued calls; raises what one of them raised."""
        while self._pending:
            self._pending.popleft().result()

    def close(self) -> None:
        """End the thread; what still waits is not started."""
        self._pool.shutdown(wait=True, cancel_futures=True)


@dataclass
class _Totals:
    """What grows with the video: a few numbers per frame and object."""

    area: dict[int, array[int]] = field(default_factory=dict)  # object -> px in each frame, so far
    prediction: list[str] = field(default_factory=list)  # runs of the chunk in hand
    truth: list[str | None] = field(default_factory=list)
    frames: int = 0
    chunks: int = 0


class VideoResult:
    """Writes one video's part of the result folder, frame by frame, in bounded memory.

    `write` takes the frames in order; `finish` closes the files and writes `done.json`; leaving the
    context without `finish` removes what is not whole and keeps the masks written so far.
    `tick` (s) says that the video is a stream, whose `times` grow (as in `VideoWriter`).
    Three lanes work beside the caller: masks and records, overlay, plain frames.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        source: str,
        height: int,
        width: int,
        times: Sequence[Fraction],
        audio_from: str | None = None,
        pixel_aspect: Fraction = Fraction(1),
        with_truth: bool = False,
        tick: Fraction | None = None,
    ) -> None:
        self.folder, self.name, self.source = folder, name, source
        self.height, self.width, self.times = height, width, times
        self.with_truth = with_truth
        self.home = folder / "videos" / name
        with _as_output_error(self.home):
            for stale in files_of(folder, name):
                stale.unlink()
            shutil.rmtree(self.home, ignore_errors=True)
            (self.home / "masks").mkdir(parents=True)
        self.display = display_size(height, width)
        self._colours: dict[int, tuple[int, int, int]] = {}
        self._totals = _Totals()
        self._thumbs: dict[int, Image.Image] = {}
        wanted = np.linspace(0, max(len(times) - 1, 0), THUMBS).round().astype(int)
        self._thumb_frames = set(wanted.tolist())
        self._thumb_stride = (
            0 if tick is None else 1
        )  # of a stream: doubles, so that at most twice THUMBS stay
        with ExitStack() as undo:  # what is open already, if the next cannot be opened
            self._tracks = TracksWriter(self.home / "tracks.json", name=name, height=height, width=width)
            undo.callback(self._tracks.abort)
            self._overlay = VideoWriter(
                self.home / "overlay.mp4",
                height=height,
                width=width,
                times=times,
                audio_from=audio_from,
                pixel_aspect=pixel_aspect,
                tick=tick,
            )
            undo.callback(self._overlay.abort)
            self._plain = VideoWriter(
                self.home / "frames.mp4",
                height=self.display[0],
                width=self.display[1],
                times=times,
                pixel_aspect=pixel_aspect,
                tick=tick,
            )
            undo.pop_all()
        self._lanes = {lane: Lane(lane) for lane in ("masks", "overlay", "frames")}
        self._closed = self._finished = False

    def __enter__(self) -> VideoResult:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        for lane in self._lanes.values():
            lane.close()
        if not self._finished:
            for writer in (self._overlay, self._plain, self._tracks):
                writer.abort()

    def write(
        self, image: UInt8[np.ndarray, "h w 3"], labels: Labels, truth: UInt8[np.ndarray, "h w"] | None = None
    ) -> None:
        """Take the next frame. Raises OutputError when an earlier one could not be written."""
        index = self._totals.frames
        self._totals.frames += 1
        present = set(ids_in(labels)) | (set() if truth is None else set(ids_in(truth)) - {VOID})
        self._colours.update(display_colours(present - self._colours.keys()))
        with _as_output_error(self.home):
            self._lanes["masks"].submit(self._record, index, labels, truth)
            self._lanes["overlay"].submit(self._draw, index, image, labels, dict(self._colours))
            self._lanes["frames"].submit(lambda: self._plain.write(to_display(image, self.display)))

    def _record(self, index: int, labels: Labels, truth: UInt8[np.ndarray, "h w"] | None) -> None:
        write_mask(self.home / "masks" / f"{index:05d}.png", labels)
        self._tracks.add(index, labels)
        values, lengths = label_runs(labels)
        for label in np.unique(values).tolist():
            if label:
                area = self._totals.area.setdefault(label, array("I"))
                area.extend([0] * (index - len(area)))
                area.append(int(lengths[values == label].sum()))
        shown = labels_to_display(labels, self.display)
        self._totals.prediction.append(encode_runs(*label_runs(shown)))
        if self.with_truth:
            shown_truth = None if truth is None else labels_to_display(truth, self.display)
            self._totals.truth.append(None if shown_truth is None else encode_runs(*label_runs(shown_truth)))
        if len(self._totals.prediction) == CHUNK_FRAMES:
            self._flush_chunk()

    def _flush_chunk(self) -> None:
        totals = self._totals
        count = len(totals.prediction)
        if not count:
            return
        content = {
            "start": totals.chunks * CHUNK_FRAMES,
            "count": count,
            "prediction": totals.prediction,
            "truth": totals.truth if self.with_truth else None,
        }
        path = self.folder / "data" / f"{self.name}-{totals.chunks:03d}.js"
        write_script(path, "chunk", self.name, totals.chunks, content)
        totals.chunks += 1
        totals.prediction, totals.truth = [], []

    def _draw(
        self,
        index: int,
        image: UInt8[np.ndarray, "h w 3"],
        labels: Labels,
        colours: Mapping[int, tuple[int, int, int]],
    ) -> None:
        drawn = draw_overlay(image, labels, colours)
        self._overlay.write(drawn)
        stride = self._thumb_stride
        if index % stride == 0 if stride else index in self._thumb_frames:
            size = (THUMB_WIDTH, max(1, round(THUMB_WIDTH * self.height / self.width)))
            self._thumbs[index] = Image.fromarray(drawn).resize(size, Image.Resampling.LANCZOS)
        if stride and len(self._thumbs) == 2 * THUMBS:
            self._thumb_stride = 2 * stride
            self._thumbs = {i: t for i, t in self._thumbs.items() if i % self._thumb_stride == 0}

    @property
    def seconds_writing(self) -> float:
        """What the lanes have worked so far, taken together; they run beside the caller and each other."""
        return sum(lane.seconds for lane in self._lanes.values())

    def close(self) -> None:
        """Wait for the lanes and make their files whole: from here on all masks can be read."""
        if self._closed:
            return
        with _as_output_error(self.home):
            for lane in self._lanes.values():
                lane.drain()
            self._flush_chunk()
            self._overlay.close()
            self._plain.close()
            self._tracks.close()
            self._write_thumbs()
        self._closed = True

    def finish(
        self,
        *,
        seconds: float,
        scores: Json | None = None,
        curves: Json | None = None,
        warnings: Sequence[str] = (),
        extra: Json | None = None,
        page: Json | None = None,
    ) -> Json:
        """Close all files and write `done.json`; returns its content.

        `scores`: numbers shown beside the video (`{"protocol", "J", "F", "J&F"}`); `curves`:
        `{"J": {id: [value or None per frame]}, "F": ...}`; `extra`: what a rerun compares;
        `page`: more for the page's record of this video.
        """
        self.close()
        objects = [
            {"id": i, "name": f"object {i}", "colour": "#" + bytes(self._colours[i]).hex()}
            for i in sorted(self._colours)
        ]
        write_script(
            self.folder / "data" / f"{self.name}.js",
            "video",
            self.name,
            {**self._page_record(objects, curves, warnings), **(page or {})},
        )
        done = {
            "name": self.name,
            "source": self.source,
            "frames": self._totals.frames,
            "height": self.height,
            "width": self.width,
            "objects": objects,
            "seconds": round(seconds, 3),
            "frames_per_second": round(self._totals.frames / seconds, 2) if seconds else None,
            "warnings": list(warnings),
            **({"scores": scores} if scores else {}),
            **(extra or {}),
        }
        write_json(self.home / "done.json", done)
        self._finished = True
        return done

    def _page_record(self, objects: list[Json], curves: Json | None, warnings: Sequence[str]) -> Json:
        frames, at = self._totals.frames, f"videos/{self.name}"
        shown = []
        for entry in objects:
            area = self._totals.area.get(entry["id"], array("I")).tolist()
            by_frame = area + [0] * (frames - len(area))
            first = next((t for t, pixels in enumerate(area) if pixels), 0)
            shown.append({**entry, "area": by_frame, "first": first})
        thumb = next(iter(self._thumbs.values()), None)
        return {
            "name": self.name,
            "frames": frames,
            "height": self.height,
            "width": self.width,
            "display": list(self.display),
            "times": [round(float(t), 6) for t in self.times[:frames]],
            "objects": shown,
            "truth": self.with_truth,
            "scores": curves,
            "chunks": self._totals.chunks,
            "chunk_frames": CHUNK_FRAMES,
            "thumbs": {
                "count": len(self._thumbs),
                "width": thumb.width if thumb else 0,
                "height": thumb.height if thumb else 0,
            },
            "files": {
                "frames": f"{at}/frames.mp4",
                "overlay": f"{at}/overlay.mp4",
                "masks": f"{at}/masks/",
                "tracks": f"{at}/tracks.json",
            },
            "warnings": list(warnings),
        }

    def _write_thumbs(self) -> None:
        if not self._thumbs:
            return
        thumbs = [self._thumbs[i] for i in sorted(self._thumbs)]
        strip = Image.new("RGB", (sum(t.width for t in thumbs), thumbs[0].height))
        for place, thumb in enumerate(thumbs):
            strip.paste(thumb, (place * thumb.width, 0))
        with written_whole(self.home / "thumbs.jpg") as part:
            strip.save(part, "JPEG", quality=82)


@contextmanager
def _as_output_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError.of(path, error) from error


# ------------------------------------------------------------------------------------- a whole run


def safe_name(text: str) -> str:
    """A name that is also a file name everywhere: letters, digits, `.`, `-`, `_`."""
    return re.sub(r"[^\w.\-]+", "_", text).strip("._") or "video"


def files_of(folder: Path, name: str) -> list[Path]:
    """The files that the job of this name has left, and no other job: it may remove them while others write.

    A job writes `videos/NAME/`, `data/NAME.js`, `data/NAME-000.js`, `data/NAME.tree/` and `pictures/NAME/`.
    """
    data = re.compile(rf"{re.escape(name)}(\.tree|(-\d{{3,}})?\.js)")
    tops = [folder / "videos" / name, folder / "pictures" / name]
    if (folder / "data").is_dir():
        tops += [path for path in (folder / "data").iterdir() if data.fullmatch(path.name)]
    inside = [path for top in tops for path in ([top] if top.is_file() else top.rglob("*"))]
    return sorted(path for path in inside if path.is_file())


def read_done(folder: Path, name: str) -> Json | None:
    """The finished record of a video, or None when it must be (re)done."""
    try:
        return parse_done((folder / "videos" / name / "done.json").read_bytes())
    except OSError:
        return None


def parse_done(text: bytes) -> Json | None:
    """The content of a `done.json`; None where it was cut."""
    try:
        content = json.loads(text)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def read_log(path: Path) -> Iterator[Json]:
    """The records of a log.jsonl; a line that a kill has cut is passed over."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "step" in record:
            yield record


class Run:
    """`run.json` of a result folder: begun, updated after every video, ended.

    Continues a folder of the same settings; refuses one of other settings (UsageError that names the
    differences) unless `overwrite`, which empties what unspool wrote there.
    """

    def __init__(self, folder: Path, record: Json, *, overwrite: bool = False) -> None:
        self.folder = folder
        self._overwrite = overwrite
        earlier = None if overwrite else self._read()
        if earlier is None and folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder}: is a file, not a folder; choose another with -o")
        if earlier is not None:
            refuse_other_settings(earlier, record, folder)
        self.record: Json = {
            **record,
            "started": (earlier or {}).get("started", _now()),
            "ended": None,
            "status": "running",
            "timings": (earlier or {}).get("timings", {}),
            "videos": (earlier or {}).get("videos", []),
            "warnings": [],
        }

    def begin(self) -> None:
        """Write `run.json`: from here on the folder belongs to this run, and nothing of others is in it."""
        if self._overwrite:
            self._clear()
        self.save()

    def _read(self) -> Json | None:
        path = self.folder / "run.json"
        return parse_run(path.read_bytes(), path) if path.exists() else None

    def _clear(self) -> None:
        for name in OWN_FOLDERS:
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for name in OWN_FILES:
            (self.folder / name).unlink(missing_ok=True)
        for path in self.folder.glob("encoder*.safetensors"):
            path.unlink()

    def video(self, entry: Json) -> None:
        """Add or replace the entry of one video (`name`, `status`, ...) and save."""
        others = [v for v in self.record["videos"] if v["name"] != entry["name"]]
        self.record["videos"] = [*others, entry]
        self.save()

    def keep(self, entry: Json) -> None:
        """The entry of a video that was done earlier, if none is there: elsewhere, or its record was lost."""
        if all(earlier["name"] != entry["name"] for earlier in self.record["videos"]):
            self.video(entry)

    def end(self, status: str, *, timings: Json | None = None, warnings: Iterable[str] = ()) -> None:
        """Set the final status: `done`, `failed` (some work) or `interrupted`."""
        if timings:
            self.record["timings"] = timings
        self.record.update(ended=_now(), status=status, warnings=list(warnings))
        self.save()

    def save(self) -> None:
        """Write `run.json` whole."""
        write_json(self.folder / "run.json", self.record)


def parse_run(text: bytes, where: Path | str) -> Json | None:
    """The content of a `run.json`. Raises OutputError where it cannot be read."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise OutputError(f"{where}: not readable ({error}); use --overwrite or another folder") from error
    return content if isinstance(content, dict) else None


def refuse_other_settings(earlier: Json, record: Json, where: Path | str) -> None:
    """Raise UsageError that names what differs between the `run.json` of a folder or address and this one."""
    old, new = (
        _flat(
            {"verb": r.get("verb"), "weights": r.get("model", {}).get("weights_hash"), **r.get("config", {})}
        )
        for r in (earlier, record)
    )
    differing = [k for k in sorted(old.keys() | new.keys()) if _plain(old.get(k)) != _plain(new.get(k))]
    if differing:
        listed = ", ".join(f"{k}: {old.get(k)!r} there, {new.get(k)!r} now" for k in differing)
        raise UsageError(
            f"{where}: holds results of other settings ({listed}); "
            "choose another folder with -o, or --overwrite to start again"
        )


def _flat(table: Json, prefix: str = "") -> Json:
    found: Json = {}
    for key, value in table.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _plain(value: object) -> object:
    return json.loads(json.dumps(value, default=str))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

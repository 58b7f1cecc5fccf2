"""One video's part of a result folder, written frame by frame while the work goes on.

Nothing here knows of encoders: images and label maps come in, files go out.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from time import perf_counter

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from unspool.display import (
    CHUNK_FRAMES,
    Labels,
    display_size,
    encode_runs,
    label_runs,
    labels_to_display,
    to_display,
)
from unspool.errors import OutputError
from unspool.masks import VOID, TracksWriter, display_colours, draw_overlay, ids_in, write_mask
from unspool.results import Json, files_of, write_json, write_script, written_whole
from unspool.video import VideoWriter

THUMBS, THUMB_WIDTH = 12, 160


def mask_path(folder: Path, name: str, index: int) -> Path:
    """The mask of a frame in a result."""
    return folder / "videos" / name / "masks" / f"{index:05d}.png"


def unfinished_path(folder: Path, name: str) -> Path:
    """What the job of a video needs to go on, until it is done (`verbs/unfinished.py`)."""
    return folder / "videos" / name / ".unfinished.pt"  # hidden, as all that is not whole: never copied


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
    `tick` (s) says that the video is a stream, whose `times` grow (as in `VideoWriter`). `kept`: files of an
    earlier beginning that stay, to be read and written again; all others of this video go.
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
        kept: Collection[Path] = (),
    ) -> None:
        self.folder, self.name, self.source = folder, name, source
        self.height, self.width, self.times = height, width, times
        self.with_truth = with_truth
        self.home = folder / "videos" / name
        with _as_output_error(self.home):
            for stale in set(files_of(folder, name)) - set(kept):
                stale.unlink()
            (self.home / "masks").mkdir(parents=True, exist_ok=True)
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

    def settle(self) -> None:
        """Wait until the masks of all frames so far are on the disk. Raises OutputError."""
        with _as_output_error(self.home):
            self._lanes["masks"].drain()

    def _record(self, index: int, labels: Labels, truth: UInt8[np.ndarray, "h w"] | None) -> None:
        write_mask(mask_path(self.folder, self.name, index), labels)
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
        unfinished_path(self.folder, self.name).unlink(missing_ok=True)  # all it is for is written
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
                **({"foreground": f"{at}/foreground/"} if (self.home / "foreground").is_dir() else {}),
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

"""The finished videos of a result folder, as an export reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from unspool.errors import MaskError, OutputError, UnspoolError, UsageError, VideoError
from unspool.masks import Labels, read_truth
from unspool.results import Json, read_done
from unspool.video import Video, open_video
from unspool.video.source import place

Report = Callable[[Json], None]

STREAM = "-"  # the source of `track -`


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
    every: int = 1  # frames of the source to one of the result: `segment --every`

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

    @property
    def numbers(self) -> range:
        """Number in the source of every frame, from 0."""
        return range(0, self.frames * self.every, self.every)

    def stems(self, pattern: str = "{:05d}") -> list[str]:
        """Names of the frames: those of the source where it is a folder of images, else their numbers."""
        numbered = [pattern.format(number) for number in self.numbers]
        try:
            where = place(self.source)
            named = [Path(i.path).stem for i in where.images()] if where.is_folder or where.is_pattern else []
        except (UnspoolError, OSError, ValueError):
            return numbered
        chosen = named[:: self.every]
        return chosen if len(chosen) == self.frames else numbered

    def images(self) -> Iterator[npt.NDArray[np.uint8]]:
        """The pictures `[H, W, 3]` that the label maps are of. Raises as `source_video` does."""
        with self.source_video() as video:
            yield from islice(video, 0, None, self.every)

    def times(self) -> list[Fraction]:
        """Their times, s. Raises as `source_video` does."""
        with self.source_video() as video:
            return list(video.times)[:: self.every]

    def source_video(self) -> Video:
        """The source itself. Raises VideoError where it has gone, or is not what the result was made from."""
        if self.source == STREAM:
            raise VideoError(
                f"{self.home}: its pictures came from a stream (-), which cannot be read again; choose a "
                "kind that needs none, e.g. --to coco, or save the stream and track the file"
            )
        video = open_video(self.source)
        frames = len(range(0, len(video), self.every))
        if (frames, video.height, video.width) != (self.frames, self.height, self.width):
            found = f"{len(video)} frames of {video.width}x{video.height}"
            video.close()
            made = f"{self.frames} of {self.width}x{self.height}"
            raise VideoError(
                f"{self.source}: holds {found}, but its result {self.home} was made from {made}"
                f"{f' (every {self.every}th)' * (self.every > 1)}; put the same video there, or make the "
                "result again"
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
        size = done["frames"], done["height"], done["width"]
        return Finished(name, home, done["source"], *size, ids, done.get("every", 1))
    except (AssertionError, KeyError, TypeError) as error:
        raise OutputError(f"{home / 'done.json'}: is not readable; make the result again") from error


def told(video: Finished, report: Report) -> Iterator[tuple[int, Labels]]:
    """The label maps with their numbers; each is reported when it is done with."""
    report({"event": "video", "video": video.name, "frames": video.frames})
    for index, labels in enumerate(video.labels()):
        yield index, labels
        report({"event": "frame", "video": video.name, "frame": index + 1, "frames": video.frames})

"""One video's part of a result: all promised files, or no record that says so."""

import errno
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unspool.errors import OutputError
from unspool.results import read_done
from unspool.video import VideoWriter
from unspool.video_result import VideoResult

FRAMES, HEIGHT, WIDTH = 5, 31, 47
TIMES = [Fraction(i, 10) for i in range(FRAMES)]


def frame(index: int) -> tuple[np.ndarray, np.ndarray]:
    image = np.full((HEIGHT, WIDTH, 3), 20 * index, np.uint8)
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[5:15, 5 + index : 20 + index] = 1
    if index >= 2:
        labels[20:25, 30:40] = 7
    return image, labels


def write_result(folder: Path, finish: bool = True) -> VideoResult:
    with VideoResult(
        folder, "clip", source="clip.mp4", height=HEIGHT, width=WIDTH, times=TIMES, with_truth=True
    ) as result:
        for index in range(FRAMES):
            image, labels = frame(index)
            result.write(image, labels, labels if index else None)
        if finish:
            result.finish(seconds=1.0, warnings=["careful"])
    return result


def test_a_finished_video_leaves_all_promised_files(tmp_path: Path) -> None:
    write_result(tmp_path)
    home = tmp_path / "videos" / "clip"
    assert sorted(p.name for p in home.iterdir()) == [
        "done.json", "frames.mp4", "masks", "overlay.mp4", "thumbs.jpg", "tracks.json",
    ]  # fmt: skip
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == ["clip-000.js", "clip.js"]
    for index in range(FRAMES):
        mask = Image.open(home / "masks" / f"{index:05d}.png")
        assert mask.mode == "P"
        assert np.array_equal(np.asarray(mask), frame(index)[1])


def test_the_record_of_a_video_counts_frames_and_objects(tmp_path: Path) -> None:
    write_result(tmp_path)
    done = read_done(tmp_path, "clip")
    assert done is not None
    assert done["frames"] == FRAMES
    assert [o["id"] for o in done["objects"]] == [1, 7]
    assert done["warnings"] == ["careful"]


def page_record(folder: Path) -> dict:
    text = (folder / "data" / "clip.js").read_text("utf-8")
    return json.loads("[" + text.removeprefix("unspool.video(").removesuffix(");\n") + "]")[1]


def test_the_page_gets_areas_times_and_first_appearances(tmp_path: Path) -> None:
    write_result(tmp_path)
    record = page_record(tmp_path)
    by_id = {o["id"]: o for o in record["objects"]}
    assert by_id[1]["area"] == [150] * FRAMES
    assert by_id[7]["area"] == [0, 0, 50, 50, 50]
    assert by_id[7]["first"] == 2
    assert record["times"] == [0.0, 0.1, 0.2, 0.3, 0.4]
    assert record["display"] == [30, 46]


def test_what_is_not_finished_has_no_record_and_keeps_its_masks(tmp_path: Path) -> None:
    write_result(tmp_path, finish=False)
    assert read_done(tmp_path, "clip") is None
    home = tmp_path / "videos" / "clip"
    assert not (home / "overlay.mp4").exists()
    assert not list(home.glob(".*.part"))
    for mask in (home / "masks").iterdir():
        assert np.asarray(Image.open(mask)).shape == (HEIGHT, WIDTH)


def test_a_video_done_again_leaves_nothing_of_the_first_time(tmp_path: Path) -> None:
    write_result(tmp_path)
    (tmp_path / "videos" / "clip" / "masks" / "00099.png").write_bytes(b"old")
    write_result(tmp_path)
    assert not (tmp_path / "videos" / "clip" / "masks" / "00099.png").exists()


def test_a_failing_writer_is_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("unspool.video_result.write_mask", full)
    with pytest.raises(OutputError, match="free some space"):
        write_result(tmp_path)
    assert read_done(tmp_path, "clip") is None


def test_a_writer_that_cannot_be_opened_leaves_no_other_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_up: list[str] = []
    plain = VideoWriter.__init__

    def second_fails(self: VideoWriter, path: Path, **options: Any) -> None:
        if path.name == "frames.mp4":
            raise OutputError(f"{path}: full")
        plain(self, path, **options)

    abort = VideoWriter.abort
    monkeypatch.setattr(VideoWriter, "__init__", second_fails)
    monkeypatch.setattr(VideoWriter, "abort", lambda self: given_up.append(self.path.name) or abort(self))
    with pytest.raises(OutputError, match="full"):
        VideoResult(tmp_path, "clip", source="c", height=8, width=8, times=[Fraction(0)])
    assert given_up == ["overlay.mp4"]
    assert not [p for p in (tmp_path / "videos" / "clip").rglob("*") if p.is_file()]


def test_an_object_that_comes_and_goes_keeps_its_areas_by_frame(tmp_path: Path) -> None:
    maps = [np.full((4, 6), label, np.uint8) for label in (0, 5, 0, 5, 0)]
    times = [Fraction(t, 10) for t in range(5)]
    with VideoResult(tmp_path, "clip", source="c", height=4, width=6, times=times) as result:
        for labels in maps:
            result.write(np.zeros((4, 6, 3), np.uint8), labels)
        result.close()
        assert result.seconds_writing > 0
        assert len(list((result.home / "masks").iterdir())) == 5
        result.finish(seconds=1.0)
    text = (tmp_path / "data" / "clip.js").read_text()
    assert '"area":[0,24,0,24,0],"first":1' in text

"""The promised folder: whole files only, and a record that a rerun can trust."""

import base64
import errno
import json
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from unspool.errors import OutputError, UsageError
from unspool.results import (
    Run,
    VideoResult,
    display_size,
    encode_runs,
    label_runs,
    read_done,
    safe_name,
    write_json,
    write_script,
    written_whole,
)
from unspool.video import VideoWriter


def decode_runs(text: str) -> list[int]:
    """The page's decoder, restated: pairs of varints (label, length)."""
    numbers, value, shift = [], 0, 0
    for byte in base64.b64decode(text):
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            numbers.append(value)
            value = shift = 0
    return [label for label, length in zip(numbers[::2], numbers[1::2], strict=True) for _ in range(length)]


@given(arrays(np.uint16, st.tuples(st.integers(1, 9), st.integers(1, 400)), elements=st.integers(0, 3000)))
def test_runs_decode_to_the_label_map(labels: np.ndarray) -> None:
    assert decode_runs(encode_runs(*label_runs(labels))) == labels.ravel().tolist()


def test_a_single_long_run_is_a_few_bytes() -> None:
    assert len(base64.b64decode(encode_runs(*label_runs(np.zeros((1080, 1920), np.uint8))))) == 4


@pytest.mark.parametrize(
    ("size", "shown"),
    [((480, 854), (480, 854)), ((181, 321), (180, 320)), ((1080, 1920), (480, 852)), ((1, 1), (2, 2))],
)
def test_the_page_shows_at_most_480_lines_of_even_size(size: tuple[int, int], shown: tuple[int, int]) -> None:
    assert display_size(*size) == shown


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_json(target, {"a": 1})
    with pytest.raises(RuntimeError), written_whole(target) as part:
        part.write_text("half")
        raise RuntimeError
    assert json.loads(target.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_is_named_with_what_to_do(tmp_path: Path) -> None:
    says = r"b\.json: cannot be written.*free some space.*is whole"
    with pytest.raises(OutputError, match=says), written_whole(tmp_path / "b.json"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_data_of_the_page_cannot_close_its_script(tmp_path: Path) -> None:
    write_script(tmp_path / "x.js", "video", "</script><b>", {"a": "\u2028"})
    text = (tmp_path / "x.js").read_text("utf-8")
    assert "<" not in text and "\u2028" not in text and text.startswith("unspool.video(")


@pytest.mark.parametrize(
    ("text", "name"),
    [("my clip", "my_clip"), ("../../x", "x"), ("ä-1.b", "ä-1.b"), ("<>", "video"), (".hidden", "hidden")],
)
def test_names_are_files_everywhere(text: str, name: str) -> None:
    assert safe_name(text) == name


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

    monkeypatch.setattr("unspool.results.write_mask", full)
    with pytest.raises(OutputError, match="free some space"):
        write_result(tmp_path)
    assert read_done(tmp_path, "clip") is None


def test_a_run_continues_with_the_same_settings(tmp_path: Path) -> None:
    run = Run(tmp_path, {"verb": "track", "config": {"model": "a", "size": (1, 2)}})
    run.begin()
    run.video({"name": "x", "status": "done"})
    run.end("done")
    again = Run(tmp_path, {"verb": "track", "config": {"model": "a", "size": (1, 2)}})
    assert [v["name"] for v in again.record["videos"]] == ["x"]


def test_a_run_refuses_other_settings_and_names_them(tmp_path: Path) -> None:
    Run(tmp_path, {"verb": "track", "config": {"model": "a"}}).end("done")
    with pytest.raises(UsageError, match=r"model: 'a' there, 'b' now.*--overwrite"):
        Run(tmp_path, {"verb": "track", "config": {"model": "b"}})
    assert json.loads((tmp_path / "run.json").read_text())["config"] == {"model": "a"}


def test_overwrite_starts_again_and_keeps_what_is_not_ours(tmp_path: Path) -> None:
    Run(tmp_path, {"verb": "track", "config": {"model": "a"}}).end("done")
    write_result(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    run = Run(tmp_path, {"verb": "track", "config": {"model": "b"}}, overwrite=True)
    run.begin()
    assert run.record["videos"] == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt", "run.json"]


def test_overwrite_mends_a_record_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{half")
    with pytest.raises(OutputError, match="use --overwrite"):
        Run(tmp_path, {"verb": "track", "config": {}})
    Run(tmp_path, {"verb": "track", "config": {}}, overwrite=True).begin()
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "running"


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


def test_a_limit_on_the_size_of_files_is_told_from_a_full_disk() -> None:
    def said(number: int) -> str:
        return str(OutputError.of("x.mp4", OSError(number, os.strerror(number))))

    assert "ulimit -f" in said(errno.EFBIG)
    assert "free some space" in said(errno.ENOSPC)
    assert "with -o" in said(errno.EACCES)

"""The promised folder: whole files only, and a record that a rerun can trust."""

import errno
import json
import os
from pathlib import Path

import pytest

from unspool.errors import OutputError, UsageError
from unspool.results import Run, safe_name, write_json, write_script, written_whole


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


def test_a_run_continues_with_the_same_settings(tmp_path: Path) -> None:
    run = Run(tmp_path, {"verb": "track", "config": {"model": "a", "size": (1, 2)}})
    run.begin()
    run.video({"name": "x", "status": "done"})
    run.end("done")
    again = Run(tmp_path, {"verb": "track", "config": {"model": "a", "size": (1, 2)}})
    assert [v["name"] for v in again.record["videos"]] == ["x"]


def test_a_video_that_is_done_is_recorded_so_though_an_earlier_try_failed(tmp_path: Path) -> None:
    run = Run(tmp_path, {"verb": "track", "config": {}})
    run.video({"name": "x", "status": "failed", "error": "no frame decodes"})
    run.video({"name": "y", "status": "done", "frames": 2})
    for name in "xy":
        run.keep({"name": name, "status": "done", "frames": 1})
    assert {v["name"]: (v["status"], v["frames"]) for v in run.record["videos"]} == {
        "x": ("done", 1),
        "y": ("done", 2),
    }


def test_a_run_refuses_other_settings_and_names_them(tmp_path: Path) -> None:
    Run(tmp_path, {"verb": "track", "config": {"model": "a"}}).end("done")
    with pytest.raises(UsageError, match=r"model: 'a' there, 'b' now.*--overwrite"):
        Run(tmp_path, {"verb": "track", "config": {"model": "b"}})
    assert json.loads((tmp_path / "run.json").read_text())["config"] == {"model": "a"}


def test_overwrite_starts_again_and_keeps_what_is_not_ours(tmp_path: Path) -> None:
    Run(tmp_path, {"verb": "track", "config": {"model": "a"}}).end("done")
    write_json(tmp_path / "videos/clip/done.json", {"name": "clip"})
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


def test_a_limit_on_the_size_of_files_is_told_from_a_full_disk() -> None:
    def said(number: int) -> str:
        return str(OutputError.of("x.mp4", OSError(number, os.strerror(number))))

    assert "ulimit -f" in said(errno.EFBIG)
    assert "free some space" in said(errno.ENOSPC)
    assert "with -o" in said(errno.EACCES)

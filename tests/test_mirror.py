"""A result at an address: a copy that is never ahead of its files, and from which a rerun continues."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from test_jobs import Item, calls, plan, run

from unspool.errors import OutputError, UsageError
from unspool.mirror import Mirror

ADDRESS = "memory://bucket/result"


@pytest.fixture(autouse=True)
def bucket() -> Iterator[None]:
    yield
    files = fsspec.filesystem("memory")
    if files.exists("/bucket"):
        files.rm("/bucket", recursive=True)


def there(address: str = ADDRESS) -> list[str]:
    files, root = fsspec.core.url_to_fs(address)
    return sorted(path.removeprefix(root).lstrip("/") for path in files.find(root))


@pytest.mark.parametrize("address", [ADDRESS, "file://{}/remote"])
def test_a_result_is_copied_and_continued_from_the_address_on_another_machine(
    address: str, tmp_path: Path
) -> None:
    address, folder = address.format(tmp_path), tmp_path / "here"
    code, events = run(plan(folder, Item("a", folder), Item("b", folder, fails="known")), address=address)
    assert code == 1
    assert there(address) == ["calls.txt", "index.html", "run.json", "videos/a/done.json"]
    assert {"event": "note", "text": f"copied to {address}"} in events
    shutil.rmtree(folder)
    code, events = run(plan(folder, Item("a", folder), Item("b", folder)), address=address)
    assert code == 0
    assert {"event": "skipped", "video": "a"} in events
    assert calls(folder) == ["a", "b"]
    assert "videos/b/done.json" in there(address)


def test_worker_processes_and_an_address_go_together(tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    items = [Item(name, folder) for name in "abc"]
    assert run(plan(folder, *items), address=ADDRESS, workers=2)[0] == 0
    assert [name for name in there() if "done" in name] == [f"videos/{n}/done.json" for n in "abc"]


def test_nothing_of_an_unfinished_video_is_copied_and_nothing_half_written(tmp_path: Path) -> None:
    for name in ("videos/a/x.png", "videos/b/x.png", "videos/a/.y.png.part", "data/a.js"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    Mirror(ADDRESS, tmp_path).copy({"b"})
    assert there() == ["data/a.js", "videos/a/x.png"]


def test_what_has_not_changed_is_not_copied_again(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("1")
    mirror = Mirror(ADDRESS, tmp_path)
    mirror.copy(())
    fsspec.filesystem("memory").rm("/bucket/result/run.json")
    mirror.copy(())
    assert there() == []
    (tmp_path / "run.json").write_text("12")
    mirror.copy(())
    assert there() == ["run.json"]


def test_overwrite_removes_what_was_there_and_nothing_of_others(tmp_path: Path) -> None:
    folder = tmp_path / "here"
    run(plan(folder, Item("old", folder)), address=ADDRESS)
    fsspec.filesystem("memory").pipe("/bucket/result/notes.txt", b"mine")
    run(plan(folder, Item("a", folder)), address=ADDRESS, overwrite=True)
    assert "videos/old/done.json" not in there()
    assert {"notes.txt", "videos/a/done.json"} <= set(there())


def test_an_address_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="-o nowhere://x: this kind of address"):
        run(plan(tmp_path / "r", Item("a", tmp_path)), address="nowhere://x")


def test_an_address_that_cannot_be_written_is_named_and_the_result_stays_here(tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"file/result.*cannot be read or written.*same command again"):
        run(plan(folder, Item("a", folder)), address=f"file://{tmp_path}/file/result")
    assert (folder / "videos/a/done.json").exists()

"""A result at an address: a copy that is never ahead of its files, and from which a rerun continues."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from test_jobs import Item, calls, do, plan, record, run

from unspool.errors import OutputError, UsageError
from unspool.jobs import Plan
from unspool.mirror import Copying, Mirror

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
    done = ("data/a-000.js", "data/a.js", "data/b1.js", "pictures/a/x.jpg", "videos/a/x.png")
    in_work = ("data/b-000.js", "data/b.js", "data/b.tree/000.js", "pictures/b/x.jpg", "videos/b/x.png")
    for name in (*done, *in_work, "videos/a/.y.png.part", ".parts/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "data/gone.js").symlink_to(tmp_path / "nothing")
    Mirror(ADDRESS, tmp_path).copy({"b"})
    assert there() == sorted(done)


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


def files() -> fsspec.AbstractFileSystem:
    return fsspec.filesystem("memory")


class Reading:
    """Counts what is read of the address."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        kind = type(files())
        get_file, cat_file = kind.get_file, kind.cat_file

        def get(fs: fsspec.AbstractFileSystem, path: str, *more: object, **how: object) -> None:
            self.names.append(path)
            get_file(fs, path, *more, **how)

        def cat(fs: fsspec.AbstractFileSystem, path: str, *more: object, **how: object) -> bytes:
            self.names.append(path)
            return bytes(cat_file(fs, path, *more, **how))

        monkeypatch.setattr(kind, "get_file", get)
        monkeypatch.setattr(kind, "cat_file", cat)


@pytest.mark.parametrize("address", [ADDRESS, "file://{}/remote"])
def test_a_file_that_was_changed_at_the_address_is_fetched_though_its_size_is_the_same(
    address: str, tmp_path: Path
) -> None:
    address, folder = address.format(tmp_path), tmp_path / "here"
    run(plan(folder, Item("a", folder)), address=address)
    there, root = fsspec.core.url_to_fs(address)
    there.pipe_file(f"{root}/calls.txt", b"z\n")
    assert run(plan(folder, Item("a", folder)), address=address)[0] == 0
    assert calls(folder) == ["z"]
    assert there.cat_file(f"{root}/calls.txt") == b"z\n"


@pytest.mark.parametrize("address", [ADDRESS, "file://{}/remote"])
def test_what_is_equal_here_and_there_is_not_read_again(address: str, tmp_path: Path) -> None:
    address, folder = address.format(tmp_path), tmp_path / "here"
    run(plan(folder, Item("a", folder), Item("b", folder)), address=address)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.suffix != ".json"}
    mirror = Mirror(address, folder)
    mirror.look()
    mirror.fetch()
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.suffix != ".json"}
    assert after == before


def test_a_rerun_reads_nothing_of_what_it_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "here"
    run(plan(folder, Item("a", folder), Item("b", folder)), address=ADDRESS)
    reading = Reading(monkeypatch)
    assert run(plan(folder, Item("a", folder), Item("b", folder)), address=ADDRESS)[0] == 0
    assert reading.names == []


def test_what_is_newer_here_is_kept_and_copied(tmp_path: Path) -> None:
    folder = tmp_path / "here"
    run(plan(folder, Item("a", folder)), address=ADDRESS)
    (folder / "calls.txt").write_text("a\nnewer\n")
    run(plan(folder, Item("a", folder)), address=ADDRESS)
    assert calls(folder) == ["a", "newer"]
    assert files().cat_file("/bucket/result/calls.txt") == b"a\nnewer\n"


def test_what_is_known_of_one_address_says_nothing_of_another(tmp_path: Path) -> None:
    folder, other = tmp_path / "here", tmp_path / "there"
    run(plan(folder, Item("a", folder)), address=ADDRESS)
    run(plan(other, Item("a", other)), address="memory://bucket/other")
    files().pipe_file("/bucket/other/calls.txt", b"z\n")
    run(plan(folder, Item("a", folder)), address="memory://bucket/other")
    assert calls(folder) == ["z"]


@pytest.mark.parametrize("dry_run", [False, True])
def test_other_settings_at_the_address_are_told_before_anything_is_fetched(
    dry_run: bool, tmp_path: Path
) -> None:
    folder, other = tmp_path / "here", tmp_path / "there"
    run(plan(folder, Item("a", folder)), address=ADDRESS)
    changed = Plan("track", other, {"model": "b"}, [Item("a", other)], do)
    with pytest.raises(UsageError, match=f"{ADDRESS}: holds results of other settings .model: 'a' there"):
        run(changed, address=ADDRESS, dry_run=dry_run)
    assert not other.exists()


def test_another_input_at_the_address_is_told_before_anything_is_fetched(tmp_path: Path) -> None:
    folder, other = tmp_path / "here", tmp_path / "there"
    run(plan(folder, Item("a", folder)), address=ADDRESS)
    with pytest.raises(UsageError, match=f"{ADDRESS}: 'a' was done with another video"):
        run(plan(other, Item("a", other, version=2)), address=ADDRESS)
    assert not other.exists()


def test_other_settings_in_the_folder_are_told_before_anything_is_fetched(tmp_path: Path) -> None:
    folder, other = tmp_path / "here", tmp_path / "there"
    run(plan(folder, Item("a", folder)), address=ADDRESS)
    run(Plan("track", other, {"model": "b"}, [], do))
    before = sorted(other.rglob("*"))
    with pytest.raises(UsageError, match=r"there: holds results of other settings .model: 'b' there"):
        run(plan(other, Item("a", other)), address=ADDRESS)
    assert sorted(other.rglob("*")) == before


def test_a_dry_run_says_what_is_done_at_the_address_and_fetches_nothing(tmp_path: Path) -> None:
    folder, other = tmp_path / "here", tmp_path / "there"
    run(plan(folder, Item("a", folder)), address=ADDRESS)
    code, events = run(plan(other, Item("a", other), Item("b", other)), address=ADDRESS, dry_run=True)
    assert code == 0
    assert [e["text"] for e in events] == ["a: already done", f"b -> {other}/videos/b"]
    assert not other.exists()


def test_a_video_done_elsewhere_is_in_the_record_though_another_record_was_copied_since(
    tmp_path: Path,
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    run(plan(here, Item("a", here)), address=ADDRESS)
    (here / "run.json").unlink()
    files().rm("/bucket/result/run.json")
    run(plan(there, Item("a", there), Item("b", there)), address=ADDRESS)
    assert [entry["name"] for entry in record(there)["videos"]] == ["a", "b"]


def test_a_fetch_that_was_cut_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    run(plan(here, Item("a", here)), address=ADDRESS)
    kind, first = type(files()), type(files()).get_file

    def cut(fs: fsspec.AbstractFileSystem, path: str, *more: object) -> None:
        if path.endswith("run.json"):
            raise OSError("gone")
        first(fs, path, *more)

    monkeypatch.setattr(kind, "get_file", cut)
    with pytest.raises(OutputError, match=r"run\.json: cannot be read"):
        run(plan(there, Item("a", there)), address=ADDRESS)
    monkeypatch.setattr(kind, "get_file", first)
    reading = Reading(monkeypatch)
    assert run(plan(there, Item("a", there)), address=ADDRESS)[0] == 0
    fetched = {name.removeprefix("/bucket/result/") for name in reading.names}
    assert fetched == {"run.json", "videos/a/done.json"}  # calls.txt and index.html are known


@pytest.mark.parametrize("cut_at", ["calls.txt", "run.json", "videos/a/done.json"])
def test_a_copy_that_was_cut_does_not_harm_what_is_whole_here(
    cut_at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, kind, put = tmp_path / "here", type(files()), type(files()).put_file
    known: list[str] = []

    def cut(fs: fsspec.AbstractFileSystem, source: str, target: str, *more: object) -> None:
        if not target.endswith(cut_at):
            return put(fs, source, target, *more)
        known.append((here / ".address.json").read_text())
        fs.pipe_file(target, Path(source).read_bytes()[:1])
        raise OSError("gone")

    monkeypatch.setattr(kind, "put_file", cut)
    with pytest.raises(OutputError, match=f"{cut_at}: cannot be read or written"):
        run(plan(here, Item("a", here)), address=ADDRESS)
    monkeypatch.setattr(kind, "put_file", put)
    if cut_at == "calls.txt":
        (here / ".address.json").write_text(known[-1])  # as a kill would have left it
    code, events = run(plan(here, Item("a", here)), address=ADDRESS)
    assert code == 0
    assert {"event": "skipped", "video": "a"} in events
    assert (here / "calls.txt").read_text() == "a\n"
    for name in there():
        assert files().cat_file(f"/bucket/result/{name}") == (here / name).read_bytes()


@pytest.fixture
def known(tmp_path: Path) -> Mirror:
    """A folder `here` and its copy, equal: two runs of a file each."""
    for name in "ab":
        (tmp_path / "here" / name).mkdir(parents=True)
        (tmp_path / "here" / name / "done.json").write_text("{}")
    mirror = Mirror(f"file://{tmp_path}/there", tmp_path / "here")
    mirror.copy()
    mirror.look()
    return mirror


def test_what_was_removed_here_does_not_come_back_unless_all_was(known: Mirror) -> None:
    (known.folder / "a/done.json").unlink()
    known.fetch()
    assert not (known.folder / "a/done.json").exists()
    (known.folder / "b/done.json").unlink()
    known.fetch()
    assert (known.folder / "a/done.json").exists() and (known.folder / "b/done.json").exists()


def test_runs_that_begin_again_are_removed_at_the_address_and_copied_when_they_have_ended(
    known: Mirror, tmp_path: Path
) -> None:
    copying = Copying(known, print)
    copying.anew([known.folder / "a"])
    assert there(known.address) == ["b/done.json"]
    (known.folder / "a/done.json").write_text('{"again": 1}')
    copying.copy([known.folder / "a"])
    assert there(known.address) == ["b/done.json"]
    copying.copy([])
    assert (tmp_path / "there/a/done.json").read_text() == '{"again": 1}'

import json
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from make_footage import write_frames, write_video

from unspool import DataError, UnspoolWarning
from unspool.data import index as module
from unspool.data.footage import refuse_change
from unspool.data.index import cache_folder, index_videos


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNSPOOL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    for name in "abcd":
        write_video(tmp_path / f"videos/{name}.mp4", 4)
    return tmp_path / "videos"


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the videos that are opened."""
    opened: list[str] = []
    describe = module.describe

    def spy(source: str, name: str, rate: Fraction | None) -> module.Footage:
        opened.append(name)
        return describe(source, name, rate)

    monkeypatch.setattr(module, "describe", spy)
    return opened


def test_an_index_tells_frames_rate_times_and_size(tmp_path: Path) -> None:
    write_video(tmp_path / "videos/clip.mp4", 5, height=34, width=50)
    (video,) = index_videos(tmp_path / "videos").videos
    assert (video.name, video.frames, video.height, video.width, video.fps) == ("clip.mp4", 5, 34, 50, 10)
    assert np.allclose(video.times, [0, 0.1, 0.2, 0.3, 0.4])


def test_a_variable_rate_keeps_its_time_stamps(tmp_path: Path) -> None:
    times = [Fraction(t, 10) for t in (0, 1, 2, 6, 7)]
    write_video(tmp_path / "videos/clip.mp4", 5, times=times)
    for _ in range(2):  # looked up, then remembered
        (video,) = index_videos(tmp_path / "videos").videos
        assert np.allclose(video.times, [0, 0.1, 0.2, 0.6, 0.7], atol=1e-4)


def test_a_folder_of_frames_takes_the_rate_that_is_asked_for(tmp_path: Path) -> None:
    write_frames(tmp_path / "videos/clip", ["1.jpg", "2.jpg"])
    assert index_videos(tmp_path / "videos").videos[0].fps == 24
    assert index_videos(tmp_path / "videos", fps=6).videos[0].fps == 6


def test_videos_are_looked_at_once(videos: Path, looks: list[str]) -> None:
    first, second = index_videos(videos), index_videos(videos)
    assert first == second
    assert sorted(looks) == ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]


@pytest.mark.parametrize("change", ["size", "time"])
def test_a_video_that_changed_is_looked_at_again(videos: Path, looks: list[str], change: str) -> None:
    index_videos(videos)
    looks.clear()
    if change == "size":
        write_video(videos / "b.mp4", 6)
    else:
        os.utime(videos / "b.mp4", ns=(1, 1))
    assert index_videos(videos).videos[1].frames == (6 if change == "size" else 4)
    assert looks == ["b.mp4"]


def test_videos_that_come_and_go_change_the_index(videos: Path) -> None:
    before = index_videos(videos)
    (videos / "a.mp4").rename(videos / "e.mp4")
    after = index_videos(videos)
    assert [video.name for video in after.videos] == ["b.mp4", "c.mp4", "d.mp4", "e.mp4"]
    assert before.digest != after.digest


def test_the_digest_forgets_when_files_were_copied(videos: Path) -> None:
    before = index_videos(videos).digest
    os.utime(videos / "b.mp4", ns=(1, 1))
    assert index_videos(videos).digest == before


def test_the_memory_lies_outside_the_data(videos: Path, cache: Path) -> None:
    before = sorted(videos.iterdir())
    index_videos(videos)
    assert sorted(videos.iterdir()) == before
    assert len(list((cache / "index").glob("*.jsonl"))) == 1


@pytest.mark.parametrize("damage", ["", "{", '{"unspool-index": 0}\n', '{"unspool-index": 1}\n{"x": 1}\n'])
def test_a_memory_that_cannot_be_used_is_made_anew(videos: Path, cache: Path, damage: str) -> None:
    index = index_videos(videos)
    (memory,) = (cache / "index").glob("*.jsonl")
    memory.write_text(damage)
    assert index_videos(videos) == index
    assert json.loads(memory.read_text().splitlines()[0]) == {"unspool-index": 1}


def test_a_cache_that_cannot_be_written_costs_a_warning(videos: Path, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.warns(UnspoolWarning, match="UNSPOOL_CACHE"):
        assert len(index_videos(videos).videos) == 4


def test_broken_videos_are_named_once_and_left_out(videos: Path) -> None:
    (videos / "zero.mp4").write_bytes(b"")
    for _ in range(2):  # found, then remembered
        with pytest.warns(UnspoolWarning, match="1 of 5 videos cannot be read") as told:
            index = index_videos(videos)
        assert [broken.source for broken in index.broken] == [str(videos / "zero.mp4")]
        assert "is empty (0 bytes)" in str(told[0].message)
        assert len(index.videos) == 4


def test_more_broken_videos_than_allowed_fail_and_are_named(videos: Path) -> None:
    whole = (videos / "a.mp4").read_bytes()
    (videos / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (videos / "zero.mp4").write_bytes(b"")
    with pytest.raises(DataError, match=r"2 of 6 videos.*20%.*--max-broken(.|\n)*cut.mp4(.|\n)*zero.mp4"):
        index_videos(videos)
    with pytest.warns(UnspoolWarning, match="2 of 6"):
        assert len(index_videos(videos, max_broken=0.5).videos) == 4


def test_long_lists_of_broken_videos_are_counted(videos: Path) -> None:
    for number in range(9):
        (videos / f"zero{number}.mp4").write_bytes(b"")
    with pytest.raises(DataError, match="and 4 more"):
        index_videos(videos)


def test_only_broken_videos_fail_whatever_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "zero.mp4").write_bytes(b"")
    with pytest.raises(DataError, match="1 of 1 videos cannot be read"):
        index_videos(tmp_path, max_broken=1.0)


def test_a_folder_with_an_unreadable_frame_is_broken(tmp_path: Path) -> None:
    write_frames(tmp_path / "videos/clip", ["1.jpg", "2.jpg", "3.jpg"])
    (tmp_path / "videos/clip/2.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"2\.jpg"):
        index_videos(tmp_path / "videos")


def test_one_video_is_an_index(videos: Path) -> None:
    index = index_videos(videos / "a.mp4")
    assert [video.name for video in index.videos] == ["a.mp4"]


def test_what_is_found_broken_later_counts_with_the_rest(videos: Path) -> None:
    index = index_videos(videos)
    found = module.Broken(index.videos[0].source, "a.mp4: decodes to nothing")
    assert [video.name for video in index.without([found], 0.25).videos] == ["b.mp4", "c.mp4", "d.mp4"]
    with pytest.raises(DataError, match="decodes to nothing"):
        index.without([found], 0.2)


def test_a_file_that_changes_in_use_is_an_error_that_says_how(videos: Path) -> None:
    video = index_videos(videos).videos[0]
    refuse_change(video)
    write_video(videos / "a.mp4", 9)
    with pytest.raises(DataError, match=r"has changed while it is in use .was 1 files of"):
        refuse_change(video)


def test_a_file_of_equal_size_but_other_time_has_changed(videos: Path) -> None:
    video = index_videos(videos).videos[0]
    os.utime(videos / "a.mp4", ns=(1, 1))
    with pytest.raises(DataError, match="other bytes, of the same size"):
        refuse_change(video)


def test_a_file_that_vanishes_in_use_is_an_error(videos: Path) -> None:
    video = index_videos(videos).videos[0]
    (videos / "a.mp4").unlink()
    with pytest.raises(DataError, match="vanished"):
        refuse_change(video)


def test_frames_added_to_a_folder_in_use_are_noticed(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "videos/clip", ["1.jpg", "2.jpg"])
    video = index_videos(tmp_path / "videos").videos[0]
    (folder / "3.jpg").write_bytes((folder / "2.jpg").read_bytes())
    with pytest.raises(DataError, match=r"was 2 files of .* now 3 files"):
        refuse_change(video)


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNSPOOL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.setattr(module.sys, "platform", "linux")
    assert cache_folder() == Path("/x/unspool")
    monkeypatch.setattr(module.sys, "platform", "darwin")
    assert cache_folder() == Path.home() / "Library/Caches/unspool"


def test_real_damage_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    traps = Path(os.environ.get("UNSPOOL_SHARED", Path(__file__).parents[2] / "shared")) / "data/traps"
    if not traps.is_dir():
        pytest.skip("no sample footage: set $UNSPOOL_SHARED")
    with pytest.warns(UnspoolWarning) as told:
        index = index_videos(traps, max_broken=0.5)
    names = {Path(broken.source).stem for broken in index.broken}
    assert names == {"zero", "text", "audio_only", "truncated_nomoov", "truncated_faststart"}
    assert any("corrupt_middle.mp4" in str(w.message) and "40-42" in str(w.message) for w in told)

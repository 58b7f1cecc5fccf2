from fractions import Fraction
from pathlib import Path

import pytest
from make_footage import write_frames, write_video

from unspool import DataError, UsageError
from unspool.data.index import index_videos
from unspool.data.layouts import LAYOUTS, counted, epic, find_videos


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSPOOL_CACHE", str(tmp_path / "cache"))


def stems(count: int, step: int = 1, digits: int = 5, first: int = 0) -> list[str]:
    return [f"{first + step * i:0{digits}d}.jpg" for i in range(count)]


def test_davis_sequences_run_at_24_frames_per_second(tmp_path: Path) -> None:
    write_frames(tmp_path / "JPEGImages/480p/bear", stems(3))
    write_frames(tmp_path / "Annotations/480p/bear", stems(3))
    index = index_videos(tmp_path, "davis")
    assert [(v.name, v.frames, v.fps) for v in index.videos] == [("JPEGImages/480p/bear", 3, 24)]


def test_youtube_vos_names_count_frames_of_a_30_fps_original(tmp_path: Path) -> None:
    write_frames(tmp_path / "train/JPEGImages/0a1b2c3d4e", stems(4, step=5, first=15))
    write_frames(tmp_path / "train/Annotations/0a1b2c3d4e", stems(4, step=5))
    index = index_videos(tmp_path, "ytvos")
    assert [(v.frames, v.fps) for v in index.videos] == [(4, 6)]


def test_oxuva_holds_a_folder_per_track(tmp_path: Path) -> None:
    write_frames(tmp_path / "images/dev/vid0001", [f"{i:06d}.jpeg" for i in range(3)])
    write_frames(tmp_path / "images/test/vid0002", [f"{i:06d}.jpeg" for i in range(2)])
    index = index_videos(tmp_path, "oxuva")
    assert [(v.frames, v.fps) for v in index.videos] == [(3, 30), (2, 30)]


def test_trackingnet_frames_are_sorted_by_number(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "TRAIN_0/frames/abc-1", [f"{i}.jpg" for i in range(12)])
    index = index_videos(tmp_path, "trackingnet")
    from unspool.data.frames import Decoder

    first_and_last = Decoder().read(index.videos[0], [2, 10], 64)
    assert index.videos[0].source == str(folder)
    assert first_and_last[0].mean() < first_and_last[1].mean()


def test_kinetics_is_read_as_videos_with_their_own_times_or_as_frames_at_25(tmp_path: Path) -> None:
    write_video(tmp_path / "train/juggling/clip.mp4", 4)
    write_frames(tmp_path / "video_jpeg/train/juggling/other", stems(3))
    index = index_videos(tmp_path, "kinetics")
    assert [(v.frames, v.fps) for v in index.videos] == [(4, 10), (3, 25)]


def test_epic_kitchens_runs_at_60_and_its_extension_at_50(tmp_path: Path) -> None:
    names = [f"frame_{i:010d}.jpg" for i in range(1, 4)]
    write_frames(tmp_path / "P01/rgb_frames/P01_01", names)
    write_frames(tmp_path / "P01/rgb_frames/P01_101", names)
    write_video(tmp_path / "P02/videos/P02_07.MP4", 3)
    index = index_videos(tmp_path, "epic")
    assert [v.fps for v in index.videos] == pytest.approx([59.94, 50, 10], abs=0.01)


def test_the_rate_rule_survives_a_missing_frame() -> None:
    assert counted(30)("any", ["00000", "00005", "00015", "00020"]) == 6
    assert epic("P01_01", []) == Fraction(60000, 1001)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_an_empty_folder_names_what_was_looked_for(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DataError, match="looked for"):
        find_videos(tmp_path, kind)


def test_an_unknown_layout_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="ytvos"):
        find_videos(tmp_path, "coco")


def test_a_root_that_does_not_exist_is_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        find_videos(tmp_path / "nowhere")


def test_plain_folders_are_searched_to_any_depth_but_not_behind_dots(tmp_path: Path) -> None:
    write_frames(tmp_path / "a/b/frames", stems(2))
    for name in ("a/clip2.mp4", "a/clip10.mp4", ".trash/clip.mp4", "a/._clip.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = [path.relative_to(tmp_path).as_posix() for path in find_videos(tmp_path)]
    assert found == ["a/b/frames", "a/clip2.mp4", "a/clip10.mp4"]


def test_pictures_beside_videos_are_no_video(tmp_path: Path) -> None:
    write_frames(tmp_path / "shoot", stems(2))
    (tmp_path / "shoot/clip.mp4").write_bytes(b"x")
    assert [path.name for path in find_videos(tmp_path)] == ["clip.mp4"]


def test_links_that_lead_in_a_circle_are_followed_once(tmp_path: Path) -> None:
    write_frames(tmp_path / "a/frames", stems(2))
    (tmp_path / "a/back").symlink_to(tmp_path / "a")
    assert len(find_videos(tmp_path)) == 1


def test_one_file_is_one_video(tmp_path: Path) -> None:
    assert find_videos(write_video(tmp_path / "clip.mp4", 2)) == [tmp_path / "clip.mp4"]

"""What the words of a command line stand for."""

from pathlib import Path

import pytest

from unspool.errors import UsageError
from unspool.inputs import default_folder, expand_inputs, masks_of, names_of


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_a_folder_of_videos_is_each_of_its_videos_in_order(tmp_path: Path) -> None:
    touch(tmp_path / "b.MP4", tmp_path / "a.webm", tmp_path / "notes.txt")
    assert expand_inputs([str(tmp_path)]) == [str(tmp_path / "a.webm"), str(tmp_path / "b.MP4")]


def test_a_folder_of_images_is_one_video(tmp_path: Path) -> None:
    touch(tmp_path / "1.JPG", tmp_path / "2.jpg")
    assert expand_inputs([str(tmp_path)]) == [str(tmp_path)]


def test_a_folder_of_frame_folders_is_each_of_them(tmp_path: Path) -> None:
    touch(tmp_path / "bear" / "1.jpg", tmp_path / "ant" / "1.png")
    (tmp_path / "empty").mkdir()
    assert expand_inputs([str(tmp_path)]) == [str(tmp_path / "ant"), str(tmp_path / "bear")]


def test_a_glob_of_videos_is_each_and_a_glob_of_images_is_one(tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4", tmp_path / "b.mp4", tmp_path / "1.png", tmp_path / "2.png")
    assert expand_inputs([str(tmp_path / "*.mp4")]) == [str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4")]
    assert expand_inputs([str(tmp_path / "*.png")]) == [str(tmp_path / "*.png")]


def test_a_list_file_names_one_input_per_line(tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4", tmp_path / "b.mp4")
    (tmp_path / "list.txt").write_text(f"# both\n{tmp_path / 'a.mp4'}\n\n{tmp_path / 'b.mp4'}\n")
    assert expand_inputs([f"@{tmp_path / 'list.txt'}"]) == [str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4")]


def test_the_same_video_twice_is_one(tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4")
    assert expand_inputs([str(tmp_path / "a.mp4")] * 2) == [str(tmp_path / "a.mp4")]


def test_addresses_are_left_as_they_are() -> None:
    assert expand_inputs(["memory://bucket/a.mp4"]) == ["memory://bucket/a.mp4"]


def test_a_missing_path_is_wrong_use_and_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.mp4: no such file"):
        expand_inputs([str(tmp_path / "nowhere.mp4")])
    with pytest.raises(UsageError, match="no such list"):
        expand_inputs([f"@{tmp_path / 'nolist.txt'}"])


def test_an_empty_folder_is_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no videos, no frames"):
        expand_inputs([str(tmp_path)])


def test_equal_stems_get_their_parents_name_in_front() -> None:
    assert names_of(["x/clip.mp4", "y/clip.mp4", "y/other.mp4"]) == ["x-clip", "y-clip", "other"]


def test_names_are_unique_even_when_parents_are_equal() -> None:
    names = names_of(["x/clip.mp4", "x/clip.mkv", "x/clip.webm"])
    assert len(set(names)) == 3


def test_names_are_safe_as_files() -> None:
    assert names_of(["my clip <1>.mp4"]) == ["my_clip_1"]


def test_the_default_folder_names_the_verb_and_the_video() -> None:
    assert default_folder("track", ["some/clip.mp4"]) == Path("unspool-track-clip")
    assert default_folder("track", ["some/a.mp4", "some/b.mp4"]) == Path("unspool-track-some")


def test_masks_may_name_their_frame(tmp_path: Path) -> None:
    touch(tmp_path / "a.png", tmp_path / "b.png")
    given = [str(tmp_path / "a.png"), f"30:{tmp_path / 'b.png'}"]
    assert masks_of(["v.mp4"], ["v"], given) == [{0: str(tmp_path / "a.png"), 30: str(tmp_path / "b.png")}]


def test_a_folder_of_masks_serves_many_videos_and_names_the_one_without(tmp_path: Path) -> None:
    touch(tmp_path / "a.png", tmp_path / "b" / "00000.png", tmp_path / "b" / "00030.png")
    a, b, c = masks_of(["a.mp4", "b.mp4", "c.mp4"], ["a", "b", "c"], [str(tmp_path)])
    assert a == {0: str(tmp_path / "a.png")}
    assert b == {0: str(tmp_path / "b" / "00000.png"), 30: str(tmp_path / "b" / "00030.png")}
    assert isinstance(c, str) and "'c'" in c and "c.png" in c


@pytest.mark.parametrize(
    ("videos", "given", "says"),
    [
        (["v.mp4"], [], "no mask is given"),
        (["v.mp4"], ["nothing.png"], "no such mask file"),
        (["v.mp4", "w.mp4"], ["MASK"], "give a folder"),
    ],
)
def test_wrong_masks_are_wrong_use(tmp_path: Path, videos: list[str], given: list[str], says: str) -> None:
    touch(tmp_path / "a.png")
    given = [g.replace("MASK", str(tmp_path / "a.png")) for g in given]
    with pytest.raises(UsageError, match=says):
        masks_of(videos, names_of(videos), given)


def test_two_masks_for_one_frame_are_refused(tmp_path: Path) -> None:
    touch(tmp_path / "a.png", tmp_path / "b.png")
    with pytest.raises(UsageError, match="two masks for frame 0"):
        masks_of(["v.mp4"], ["v"], [str(tmp_path / "a.png"), f"0:{tmp_path / 'b.png'}"])


def test_names_never_collide(tmp_path: Path) -> None:
    for videos in (
        ["x/clip.mp4", "x/clip.mkv", "z/x-clip_1.mp4"],
        ["clip.mp4", "clip-001.mp4", "clip-000.mp4"],
        ["clip.mp4", "sub/clip.mp4"],
    ):
        names = names_of(videos)
        assert len(set(names)) == len(videos)
        assert not any(n.startswith("-") for n in names)
        assert not {f"{n}-{i:03d}" for n in names for i in range(3)} & set(names)


def test_an_empty_list_is_wrong_use(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("\n")
    with pytest.raises(UsageError, match="names no video"):
        expand_inputs([f"@{tmp_path / 'list.txt'}"])


def test_masks_of_a_folder_of_frames_are_matched_by_the_names_of_its_frames(tmp_path: Path) -> None:
    touch(*(tmp_path / "bear" / f"{n}.jpg" for n in ("00005", "00010", "00015")))
    touch(tmp_path / "masks" / "bear" / "00005.png", tmp_path / "masks" / "bear" / "00015.png")
    for video in (str(tmp_path / "bear"), str(tmp_path / "bear" / "*.jpg")):
        (by_frame,) = masks_of([video], ["bear"], [str(tmp_path / "masks")])
        assert {n: Path(mask).name for n, mask in by_frame.items()} == {0: "00005.png", 2: "00015.png"}


def test_frame_names_that_are_no_numbers_match_too(tmp_path: Path) -> None:
    touch(tmp_path / "bear" / "left.jpg", tmp_path / "bear" / "right.jpg")
    touch(tmp_path / "masks" / "bear" / "right.png")
    (by_frame,) = masks_of([str(tmp_path / "bear")], ["bear"], [str(tmp_path / "masks")])
    assert by_frame == {1: str(tmp_path / "masks" / "bear" / "right.png")}


def test_a_mask_without_its_frame_is_named(tmp_path: Path) -> None:
    touch(tmp_path / "bear" / "00005.jpg", tmp_path / "masks" / "bear" / "00000.png")
    (said,) = masks_of([str(tmp_path / "bear")], ["bear"], [str(tmp_path / "masks")])
    assert isinstance(said, str)
    assert "00000.png" in said and "no frame of this name" in said


def test_addresses_of_folders_and_globs_are_each_of_their_videos() -> None:
    import fsspec

    files = fsspec.filesystem("memory")
    for path in ("v/b.mp4", "v/a.webm", "v/notes.txt", "f/1.png", "f/2.png"):
        files.pipe(f"/inputs/{path}", b"")
    a, b = "memory:///inputs/v/a.webm", "memory:///inputs/v/b.mp4"
    assert expand_inputs(["memory://inputs/v"]) == [a, b]
    assert expand_inputs(["memory://inputs/v/*.mp4"]) == [b]
    assert expand_inputs(["memory://inputs/f"]) == ["memory://inputs/f"]
    assert expand_inputs(["memory://inputs/f/*.png"]) == ["memory://inputs/f/*.png"]
    with pytest.raises(UsageError, match="no file matches"):
        expand_inputs(["memory://inputs/v/*.mkv"])


def test_an_address_of_an_unknown_kind_is_left_to_fail_by_itself() -> None:
    assert expand_inputs(["nosuch://bucket/a"]) == ["nosuch://bucket/a"]

"""DAVIS and rendered clips as videos with truth."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unspool.data.sequences import Pictures, davis_sequences, rendered_sequences
from unspool.errors import DataError, UsageError


def make_davis(root: Path, year: int) -> Path:
    annotations = root / ("Annotations_unsupervised" if year == 2017 else "Annotations") / "480p" / "ant"
    (root / "ImageSets" / str(year)).mkdir(parents=True)
    (root / "ImageSets" / str(year) / "val.txt").write_text("ant\n")
    (root / "JPEGImages" / "480p" / "ant").mkdir(parents=True)
    annotations.mkdir(parents=True)
    for t in range(3):
        ids = np.zeros((8, 12), np.uint8)
        ids[2:5, 2:5], ids[5:7, 7:9] = (1, 255) if year == 2017 else (255, 255)
        Image.fromarray(ids).save(annotations / f"{t:05d}.png")
        Image.new("RGB", (12, 8)).save(root / "JPEGImages" / "480p" / "ant" / f"{t:05d}.jpg")
    return root


@pytest.mark.parametrize(("year", "ids"), [(2017, [0, 1, 255]), (2016, [0, 1])])
def test_255_is_void_in_2017_and_the_object_in_2016(tmp_path: Path, year: int, ids: list[int]) -> None:
    (ant,) = davis_sequences(make_davis(tmp_path, year), year)
    assert ant.frame_names == ("00000", "00001", "00002")
    for labels in ant.truth():
        assert np.unique(np.asarray(labels)).tolist() == ids


def test_the_unsupervised_truth_is_an_archive_of_its_own(tmp_path: Path) -> None:
    root = make_davis(tmp_path, 2017)
    (root / "Annotations_unsupervised").rename(root / "Annotations")
    with pytest.raises(DataError, match=r"480p/ant: not found, .* archive of its own"):
        davis_sequences(root, 2017)


def test_a_mask_without_its_frame_is_named(tmp_path: Path) -> None:
    root = make_davis(tmp_path, 2017)
    (root / "JPEGImages" / "480p" / "ant" / "00001.jpg").unlink()
    with pytest.raises(DataError, match="ant: frame 00001 has no partner"):
        davis_sequences(root, 2017)


def test_rendered_clips_have_truth_in_step() -> None:
    first, second = rendered_sequences("2", seed=5)
    assert (first.name, second.name) == ("rendered-5", "rendered-6")
    with first.open() as video:
        assert len(video) == len(first.frame_names)
        assert next(iter(first.truth())).shape == (video.height, video.width)


@pytest.mark.parametrize("count", ["", "0", "-1", "many"])
def test_rendered_asks_for_a_number(count: str) -> None:
    with pytest.raises(UsageError, match="expected how many clips"):
        rendered_sequences(count)


def test_videos_can_be_sent_to_another_process(tmp_path: Path) -> None:
    for video in (*davis_sequences(make_davis(tmp_path, 2017), 2017), *rendered_sequences("1")):
        copy = pickle.loads(pickle.dumps(video))
        assert (copy.name, copy.files, copy.frame_names) == (video.name, video.files, video.frame_names)
        assert all(np.array_equal(a, b) for a, b in zip(copy.truth(), video.truth(), strict=True))


def test_frames_of_two_sizes_are_no_video() -> None:
    video = Pictures("odd", (4, 6), 2, 24, lambda index: np.zeros((4, 6 + index, 3), np.uint8))
    with pytest.raises(DataError, match="odd: frame 1 is 7x4, the first is 6x4"):
        list(video)

"""SegTrack-v2 and FBMS-59 in the layouts in which they circulate."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unspool.data.fbms import fbms_sequences
from unspool.data.segtrack import segtrack_sequences
from unspool.errors import DataError, UnspoolWarning

pytestmark = pytest.mark.filterwarnings("ignore:.*published sequences are missing")
HEIGHT, WIDTH = 10, 14


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def image(path: Path) -> Path:
    return save(path, np.full((HEIGHT, WIDTH, 3), 90, np.uint8))


def box(left: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[2:6, left : left + 4] = 255
    return mask


# ------------------------------------------------------------------------------------------- SegTrack-v2


def make_segtrack(root: Path) -> Path:
    for t in range(11):  # frame10 comes after frame9, not after frame1
        image(root / "JPEGImages" / "drift" / f"frame{t}.bmp")
        for number, left in ((1, 1), (2, 3)):
            save(root / "GroundTruth" / "drift" / str(number) / f"{t + 5}.png", box(left) * (t % 2))
        image(root / "JPEGImages" / "worm" / f"worm_{t}.png")
        save(root / "GroundTruth" / "worm" / f"{t}.png", np.stack([box(t % 8)] * 3, -1))
    return root


def test_objects_in_folders_of_their_own_are_one_foreground(tmp_path: Path) -> None:
    drift, worm = segtrack_sequences(make_segtrack(tmp_path))
    assert (drift.name, worm.name) == ("drift", "worm")
    for t, labels in enumerate(drift.truth()):
        assert np.array_equal(labels, ((box(1) | box(3)) > 0) * (t % 2))
    for t, labels in enumerate(worm.truth()):
        assert np.array_equal(labels, box(t % 8) > 0)


def test_names_that_are_not_padded_are_in_natural_order(tmp_path: Path) -> None:
    drift = segtrack_sequences(make_segtrack(tmp_path))[0]
    assert drift.frame_names == tuple(f"frame{t}" for t in range(11))


@pytest.mark.parametrize("gone", ["GroundTruth/drift/2/9.png", "JPEGImages/worm/worm_3.png"])
def test_a_mask_or_image_less_is_refused(tmp_path: Path, gone: str) -> None:
    (make_segtrack(tmp_path) / gone).unlink()
    with pytest.raises(DataError, match=r"1[01] masks for 1[01] images of"):
        segtrack_sequences(tmp_path)


def test_segtrack_without_its_truth_is_named(tmp_path: Path) -> None:
    image(tmp_path / "JPEGImages" / "drift" / "1.png")
    with pytest.raises(DataError, match="GroundTruth: not found; give the folder that holds JPEGImages/"):
        segtrack_sequences(tmp_path)
    (tmp_path / "GroundTruth").mkdir()
    with pytest.raises(DataError, match="there are images of 'drift'; unpack the truth too"):
        segtrack_sequences(tmp_path)


def test_a_mask_of_another_size_than_its_image_is_refused(tmp_path: Path) -> None:
    root = make_segtrack(tmp_path)
    save(root / "GroundTruth" / "worm" / "4.png", box(1)[:5])
    with pytest.raises(DataError, match=r"worm: the mask of frame 4 is 14x5, but .* is 14x10"):
        list(segtrack_sequences(root)[1].truth())


# ---------------------------------------------------------------------------------------------- FBMS-59


def coloured(background: tuple[int, int, int], left: int) -> np.ndarray:
    mask = np.full((HEIGHT, WIDTH, 3), background, np.uint8)
    mask[2:6, left : left + 2] = (255, 128, 0)
    mask[2:6, left + 2 : left + 4] = (9, 255, 255)
    return mask


def make_published(root: Path) -> Path:
    for sequence in ("cars1", "cars10"):
        for t in range(1, 42):
            image(root / "Testset" / sequence / f"{sequence}_{t:02d}.jpg")
    truth = root / "Testset" / "cars1" / "GroundTruth"
    save(truth / "001_gt.ppm", coloured((255, 255, 255), 1))
    save(truth / "020_gt.ppm", coloured((0, 0, 0), 5))
    save(truth / "040_gt.pgm", 255 - box(3))
    (truth / "cars1Def.dat").write_text("2\n")
    save(root / "Testset" / "cars10" / "GroundTruth" / "010_gt.pgm", box(3))
    return root


def test_masks_are_sparse_and_of_the_frame_of_their_number(tmp_path: Path) -> None:
    cars1, cars10 = fbms_sequences(make_published(tmp_path))
    assert (cars1.name, cars10.name) == ("cars1", "cars10")
    truth = list(cars1.truth())
    assert [t for t, labels in enumerate(truth) if labels is not None] == [0, 19, 39]
    assert [t for t, labels in enumerate(cars10.truth()) if labels is not None] == [9]


@pytest.mark.parametrize(("frame", "left"), [(0, 1), (19, 5), (39, 3)])
def test_all_regions_are_foreground_whatever_the_background_is(tmp_path: Path, frame: int, left: int) -> None:
    labels = list(fbms_sequences(make_published(tmp_path))[0].truth())[frame]
    assert labels is not None
    assert np.array_equal(labels, box(left) > 0)


def test_copies_number_masks_from_the_first(tmp_path: Path) -> None:
    for t in range(30):
        image(tmp_path / "FBMS" / "lion01" / f"lion01_{t}.jpg")
    for number in (101, 121):
        full = box(3)
        full[0] = full[-1] = 255  # an object along the border stays one: 0 is background in a PNG
        full[:, 0] = full[:, -1] = 255
        save(tmp_path / "FBMS_annotation" / "lion01" / f"{number}.png", full)
    (lion,) = fbms_sequences(tmp_path)
    truth = list(lion.truth())
    assert [t for t, labels in enumerate(truth) if labels is not None] == [0, 20]
    assert truth[0] is not None and truth[0][0, 0] == 1 and truth[0][2, 3] == 1 and truth[0][7, 7] == 0


def test_a_mask_without_its_frame_is_refused(tmp_path: Path) -> None:
    root = make_published(tmp_path)
    save(root / "Testset" / "cars1" / "GroundTruth" / "060_gt.pgm", box(3))
    with pytest.raises(DataError, match=r"060_gt\.pgm: a mask without its frame; .* holds 41 images"):
        fbms_sequences(root)


def test_sequences_that_are_missing_are_warned_of(tmp_path: Path) -> None:
    with pytest.warns(UnspoolWarning, match=r"28 of the 30 published sequences are missing \(camel01, "):
        fbms_sequences(make_published(tmp_path / "a"))
    with pytest.warns(UnspoolWarning, match="12 of the 14 published sequences are missing"):
        segtrack_sequences(make_segtrack(tmp_path / "b"))


def test_training_sequences_beside_those_of_the_test_are_left_out(tmp_path: Path) -> None:
    for name in ("lion01", "bear01"):
        image(tmp_path / "FBMS" / name / "1.jpg")
        save(tmp_path / "FBMS_annotation" / name / "1.png", box(3))
    assert [sequence.name for sequence in fbms_sequences(tmp_path)] == ["lion01"]


def test_a_wrong_root_of_fbms_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no FBMS-59 tree; found neither .*Testset nor .*FBMS; give"):
        fbms_sequences(tmp_path)


def test_frames_without_their_truth_are_named(tmp_path: Path) -> None:
    image(tmp_path / "Testset" / "cars1" / "cars1_01.jpg")
    with pytest.raises(DataError, match="GroundTruth: not found; is the archive unpacked completely"):
        fbms_sequences(tmp_path)


def test_a_mask_that_is_broken_is_named(tmp_path: Path) -> None:
    root = make_published(tmp_path)
    (root / "Testset" / "cars10" / "GroundTruth" / "010_gt.pgm").write_bytes(b"P5\n14 10\n255\nxx")
    with pytest.raises(DataError, match=r"010_gt\.pgm: cannot be read as a mask"):
        list(fbms_sequences(root)[1].truth())

"""Readers of labelled data, each on a tree in its published layout, traps included."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unspool.data.labelled import (
    VOC_CLASSES,
    as_categories,
    labelled_davis,
    labelled_rendered,
    labelled_visor,
    labelled_voc,
    labelled_ytvos,
)
from unspool.data.pictures import pictures
from unspool.errors import DataError, UsageError
from unspool.masks import write_mask

HEIGHT, WIDTH = 12, 20


def picture(path: Path, height: int = HEIGHT, width: int = WIDTH) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(path, quality=95)


def mask(path: Path, *ids: int) -> np.ndarray:
    """A palette PNG with a column of each id beside background."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    for column, id_ in enumerate(ids, start=2):
        labels[:, column] = id_
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mask(path, labels)
    return labels


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


# ------------------------------------------------------------------------------------------------ DAVIS


def davis_tree(root: Path) -> Path:
    text(root / "ImageSets/2017/val.txt", "cows\ngoat\n")
    for name, ids in (("cows", (1, 3)), ("goat", (1, 255))):
        for t in range(5):
            picture(root / f"JPEGImages/480p/{name}/{t:05d}.jpg")
            mask(root / f"Annotations/480p/{name}/{t:05d}.png", *ids)
    return root


def test_davis_keeps_palette_ids_gaps_and_void(tmp_path: Path) -> None:
    content = labelled_davis(davis_tree(tmp_path))
    assert [video.name for video in content.videos] == ["cows", "goat"]
    assert not content.classes  # object 1 of one video is not object 1 of another
    pictures, truth = content.videos[0].read()
    assert pictures.shape == (5, HEIGHT, WIDTH, 3)
    assert np.unique(truth).tolist() == [0, 1, 3]
    assert np.unique(content.videos[1].read()[1]).tolist() == [0, 1, 255]


def test_videos_are_cut_into_clips_and_the_rest(tmp_path: Path) -> None:
    video = labelled_davis(davis_tree(tmp_path)).videos[0]
    assert [len(part) for part in video.parts(2)] == [2, 2, 1]
    assert video.parts(2)[2].truth[0].name == "00004.png"


def test_a_mask_of_another_size_than_its_frame_is_refused(tmp_path: Path) -> None:
    root = davis_tree(tmp_path)
    picture(root / "JPEGImages/480p/cows/00001.jpg", HEIGHT, WIDTH + 2)
    with pytest.raises(DataError, match=r"00001\.png: the mask is 20x12, its frame 22x12"):
        labelled_davis(root).videos[0].read()


def test_a_changed_file_changes_what_a_rerun_compares(tmp_path: Path) -> None:
    root = davis_tree(tmp_path)
    before = labelled_davis(root).videos[0].files
    mask(root / "Annotations/480p/cows/00001.png", 1, 2, 3, 4)
    assert labelled_davis(root).videos[0].files != before


# ---------------------------------------------------------------------------------------- YouTube-VOS


def ytvos_tree(root: Path, videos: int = 10) -> Path:
    """Videos of 10 hex digits that start anywhere and step by five; ids with gaps; two of one kind."""
    meta = {}
    for number in range(videos):
        name = f"{number:010x}"
        frames = [f"{5 * t:05d}" for t in range(number % 3, number % 3 + 3)]
        kinds = {"2": "zebra", "5": "ape", "6": "ape"}
        meta[name] = {"objects": {id_: {"category": kind, "frames": frames} for id_, kind in kinds.items()}}
        for frame in frames:
            picture(root / f"train/JPEGImages/{name}/{frame}.jpg")
            mask(root / f"train/Annotations/{name}/{frame}.png", 2, 5, 6)
    text(root / "train/meta.json", json.dumps({"videos": meta}))
    return root


def test_ytvos_ids_become_categories_sorted_by_name_without_colliding(tmp_path: Path) -> None:
    content = labelled_ytvos(ytvos_tree(tmp_path))
    assert content.classes == {0: "background", 1: "ape", 2: "zebra"}
    for video in content.videos:  # 2 -> zebra 2, 5 and 6 -> ape 1
        labels = video.read()[1][0]
        assert labels[0, 2:5].tolist() == [2, 1, 1]


def test_ytvos_holds_out_a_fifth_that_does_not_depend_on_the_order_of_folders(tmp_path: Path) -> None:
    names = [f"{number:010x}" for number in range(10)]
    expected = sorted(random.Random(0).sample(names, 10)[8:])
    assert [video.name for video in labelled_ytvos(ytvos_tree(tmp_path)).videos] == expected
    assert len(labelled_ytvos(tmp_path, names=(names[0],)).videos) == 1


def test_ytvos_frames_without_a_mask_are_left_out(tmp_path: Path) -> None:
    root = ytvos_tree(tmp_path)
    video = labelled_ytvos(root).videos[0]
    picture(root / f"train/JPEGImages/{video.name}/00091.jpg")  # of the *_all_frames archives
    assert len(labelled_ytvos(root).videos[0]) == len(video) == 3


def test_an_object_that_meta_does_not_know_is_named_with_its_file(tmp_path: Path) -> None:
    root = ytvos_tree(tmp_path)
    video = labelled_ytvos(root).videos[0]
    mask(video.truth[1], 2, 9)
    with pytest.raises(DataError, match=rf"{video.truth[1].name}: ids \[9\] have no category.*meta\.json"):
        video.read()


def test_a_mask_without_its_frame_is_refused(tmp_path: Path) -> None:
    root = ytvos_tree(tmp_path)
    video = labelled_ytvos(root).videos[0]
    video.images[1].unlink()
    with pytest.raises(DataError, match=rf"{video.truth[1].name}: a mask without its frame"):
        labelled_ytvos(root)


@pytest.mark.parametrize("content", ["[]", "{}", "nothing"])
def test_another_meta_json_is_refused(tmp_path: Path, content: str) -> None:
    text(tmp_path / "train/meta.json", content)
    with pytest.raises(DataError, match=r"not the meta\.json of YouTube-VOS"):
        labelled_ytvos(tmp_path)


# --------------------------------------------------------------------------------------------- VISOR


def visor_tree(root: Path) -> Path:
    """As `visor_to_davis.py` leaves it: frames of no fixed step, objects that come later."""
    text(root / "ImageSets/2022/val.txt", "P01_107_seq_00001\n")
    for place, (frame, ids) in enumerate(((140, (1,)), (198, (1, 4)), (391, (4,)))):
        name = f"P01_107_seq_00001/P01_107_frame_{frame:010d}"
        picture(root / f"JPEGImages/480p/{name}.jpg")
        mask(root / f"Annotations/480p/{name}.png", *ids)
        assert place < 3
    picture(root / "JPEGImages/480p/P01_107_seq_00001/P01_107_frame_0000000150.jpg")
    return root


def test_visor_pairs_sparse_masks_by_name(tmp_path: Path) -> None:
    content = labelled_visor(visor_tree(tmp_path))
    assert not content.classes
    assert [path.stem for path in content.videos[0].images] == [path.stem for path in content.videos[0].truth]
    assert [np.unique(labels).tolist() for labels in content.videos[0].read()[1]] == [
        [0, 1],
        [0, 1, 4],
        [0, 4],
    ]


# --------------------------------------------------------------------------------------------- Pascal


def voc_tree(root: Path, images: str, lists: str) -> Path:
    text(root / lists / "val.txt", "2007_000033\n2007_000042\n")
    for number, size in (("33", (HEIGHT, WIDTH)), ("42", (HEIGHT, WIDTH))):
        picture(root / images / f"2007_0000{number}.jpg", *size)
        mask(root / "SegmentationClass" / f"2007_0000{number}.png", 15, 20, 255)
    return root


@pytest.mark.parametrize(
    ("place", "images", "lists"),
    [
        ("VOCdevkit/VOC2012", "JPEGImages", "ImageSets/Segmentation"),
        (".", "JPEGImages", "ImageSets/Segmentation"),
        ("VOCSegmentation", "images", "sets"),
        (".", "images", "sets"),
    ],
)
def test_voc_is_read_in_both_layouts(tmp_path: Path, place: str, images: str, lists: str) -> None:
    voc_tree(tmp_path / place, images, lists)
    content = labelled_voc(tmp_path)
    assert [len(image) for image in content.videos] == [1, 1]
    assert np.unique(content.videos[0].read()[1]).tolist() == [0, 15, 20, 255]
    assert content.classes[15] == "person" and len(VOC_CLASSES) == 21


def test_a_listed_image_that_is_not_there_is_named(tmp_path: Path) -> None:
    (voc_tree(tmp_path, "images", "sets") / "images/2007_000042.jpg").unlink()
    with pytest.raises(DataError, match=r"2007_000042\.jpg: not found, but '2007_000042' is listed"):
        labelled_voc(tmp_path)


# ------------------------------------------------------------------------------------------------ all


@pytest.mark.parametrize("reader", [labelled_davis, labelled_visor, labelled_ytvos, labelled_voc])
def test_a_wrong_root_is_named_with_what_was_looked_for(tmp_path: Path, reader: object) -> None:
    with pytest.raises(DataError, match=r"there is no |found neither |no YouTube-VOS tree") as error:
        reader(tmp_path)  # type: ignore[operator]
    assert str(tmp_path) in str(error.value)


def test_a_name_that_is_not_listed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'cat' is not in its list of 10 names"):
        labelled_ytvos(ytvos_tree(tmp_path), names=("cat",))


def test_rendered_truth_says_what_the_objects_are() -> None:
    video = labelled_rendered(1, frames=3).videos[0]
    part = video.parts(2)[1]
    pictures, truth = part.read()
    assert len(part) == len(pictures) == len(truth) == 1
    assert np.array_equal(truth[0], video.read()[1][2])
    assert set(np.unique(truth)) <= set(labelled_rendered(1).classes)


def test_ids_become_categories_without_colliding() -> None:
    labels = np.array([[1, 2, 3, 0, 255]], np.uint8)
    assert as_categories(labels, {1: 2, 2: 3, 3: 1}).tolist() == [[2, 3, 1, 0, 255]]
    assert as_categories(labels, {1: 9, 2: 9, 3: 1}).tolist() == [[9, 9, 1, 0, 255]]


def test_an_id_without_category_is_refused() -> None:
    with pytest.raises(DataError, match=r"ids \[4\] have no category"):
        as_categories(np.array([0, 4]), {1: 2})


# ---------------------------------------------------------- what heads learn from and are scored on


def augmented_voc(root: Path, images: str, lists: str, called: str) -> Path:
    """train holds one image, trainaug two; the masks of trainaug are plain grey."""
    voc_tree(root, images, lists)
    text(root / lists / "train.txt", "2007_000032\n")
    text(root / lists / f"{called}.txt", "2007_000032\n2008_000002\n")
    for name in ("2007_000032", "2008_000002"):
        picture(root / images / f"{name}.jpg")
        (root / "SegmentationClassAug").mkdir(exist_ok=True)
        labels = np.full((HEIGHT, WIDTH), 20, np.uint8)
        labels[0] = 255
        Image.fromarray(labels).save(root / "SegmentationClassAug" / f"{name}.png")
    mask(root / "SegmentationClass/2007_000032.png", 1, 255)
    return root


@pytest.mark.parametrize(
    ("images", "lists", "called"),
    [("images", "sets", "trainaug"), ("JPEGImages", "ImageSets/Segmentation", "train_aug")],
)
def test_voc_is_learnt_from_with_the_augmented_masks(
    tmp_path: Path, images: str, lists: str, called: str
) -> None:
    content = labelled_voc(augmented_voc(tmp_path, images, lists, called), split="train")
    assert (content.split, len(content.videos)) == (called, 2)
    assert np.unique(content.videos[0].read()[1]).tolist() == [20, 255]


def test_voc_without_the_augmented_masks_is_learnt_from_as_published(tmp_path: Path) -> None:
    root = augmented_voc(tmp_path, "images", "sets", "trainaug")
    (root / "sets/trainaug.txt").unlink()
    content = labelled_voc(root, split="train")
    assert (content.split, len(content.videos)) == ("train", 1)
    assert np.unique(content.videos[0].read()[1]).tolist() == [0, 1, 255]
    (root / "SegmentationClass/2007_000032.png").unlink()  # leopart's copy has those of train elsewhere
    assert labelled_voc(root, split="train").videos[0].truth[0].parent.name == "SegmentationClassAug"


def test_a_half_unpacked_voc_names_the_first_file_that_is_missing(tmp_path: Path) -> None:
    root = augmented_voc(tmp_path, "images", "sets", "trainaug")
    (root / "SegmentationClassAug/2008_000002.png").unlink()
    with pytest.raises(DataError, match=r"SegmentationClassAug/2008_000002\.png: not found.*unpack"):
        labelled_voc(root, split="train")


def test_pictures_of_voc_have_their_own_sizes_and_keep_void(tmp_path: Path) -> None:
    root = augmented_voc(tmp_path, "images", "sets", "trainaug")
    picture(root / "images/2007_000042.jpg", HEIGHT + 4, WIDTH)
    Image.fromarray(np.full((HEIGHT + 4, WIDTH), 255, np.uint8)).save(
        root / "SegmentationClass/2007_000042.png"
    )
    found = pictures(f"voc:{root}")
    assert [(found[s].split, len(found[s]), found[s].classes) for s in found] == [
        ("trainaug", 2, 21),
        ("val", 2, 21),
    ]
    assert [found["val"][i].labels.shape for i in (0, 1)] == [(HEIGHT, WIDTH), (HEIGHT + 4, WIDTH)]
    assert (found["val"][1].labels == 255).all()
    before = found["val"].digest
    mask(root / "SegmentationClass/2007_000033.png", 3)
    assert pictures(f"voc:{root}")["val"].digest != before


def test_the_fifth_of_ytvos_that_is_scored_is_not_learnt_from(tmp_path: Path) -> None:
    found = pictures(f"ytvos:{ytvos_tree(tmp_path)}")
    assert [(len(found[s]), found[s].classes) for s in ("train", "val")] == [(24, 3), (6, 3)]
    names = [{v.name for v in labelled_ytvos(tmp_path, split=s).videos} for s in ("train", "val")]  # type: ignore[arg-type]
    assert not names[0] & names[1]


@pytest.mark.parametrize("data", ["voc:nowhere", "coco:.", "rendered:0", "voc"])
def test_other_data_are_refused_with_what_there_is(data: str) -> None:
    with pytest.raises(UsageError, match=r"no such folder nowhere|KIND one of voc, ytvos"):
        pictures(data)

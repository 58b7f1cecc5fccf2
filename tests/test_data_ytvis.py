"""YouTube-VIS as published: run lengths with nulls, both kinds of counts, overlaps, names that step by 5."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unspool.data.ytvis import plain_run_lengths, ytvis_sequences
from unspool.errors import DataError, MaskError
from unspool.masks import encode_rle

HEIGHT, WIDTH = 12, 16
NAMES = ["00005", "00010", "00020"]


def box(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top:bottom, left:right] = True
    return mask


def as_list(mask: np.ndarray) -> dict[str, Any]:
    flat = np.concatenate([[False], mask.T.ravel()])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    return {"size": [HEIGHT, WIDTH], "counts": np.diff(edges, prepend=0, append=mask.size).tolist()}


FIRST, SECOND = box(2, 2, 8, 8), box(5, 5, 11, 12)


def content(videos: int = 1) -> dict[str, Any]:
    """One object in frames 0 and 2, another, in integer runs, in frames 0 and 1."""
    listed, annotations = [], []
    for number in range(videos):
        names = [f"v{number}/{name}.jpg" for name in NAMES]
        listed.append(
            {"id": 7 + number, "file_names": names, "height": HEIGHT, "width": WIDTH, "length": len(NAMES)}
        )
        for own, segmentations in enumerate(
            ([encode_rle(FIRST), None, encode_rle(FIRST)], [as_list(SECOND), as_list(SECOND), None])
        ):
            annotations.append(
                {"id": 90 + 2 * number + own, "video_id": 7 + number, "category_id": 3, "iscrowd": 0,
                 "segmentations": segmentations}
            )  # fmt: skip
    return {"videos": listed, "annotations": annotations, "categories": []}


def make_tree(root: Path, table: dict[str, Any], json_at: str = "train.json") -> Path:
    for video in table["videos"]:
        for name in video["file_names"]:
            path = root / "train" / "JPEGImages" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (WIDTH, HEIGHT)).save(path)
    (root / json_at).write_text(json.dumps(table))
    return root


@pytest.mark.parametrize("json_at", ["train.json", "train/train.json"])
def test_null_is_an_absent_object_and_overlaps_are_void(tmp_path: Path, json_at: str) -> None:
    (sequence,) = ytvis_sequences(make_tree(tmp_path, content(), json_at))
    truth = [labels for labels in sequence.truth() if labels is not None]
    expected = FIRST * 1 + SECOND * 2
    assert np.array_equal(truth[0], np.where(FIRST & SECOND, 255, expected))
    assert np.array_equal(truth[1], SECOND * 2)
    assert np.array_equal(truth[2], FIRST * 1)


def test_frames_are_those_that_the_file_lists(tmp_path: Path) -> None:
    root = make_tree(tmp_path, content())
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "train" / "JPEGImages" / "v0" / "00015.jpg")
    (sequence,) = ytvis_sequences(root)
    assert sequence.name == "v0"
    assert sequence.frame_names == tuple(NAMES)
    with sequence.open() as video:
        assert (len(video), video.height, video.width) == (3, HEIGHT, WIDTH)
        assert [float(t) for t in video.times] == [0, 1 / 6, 2 / 6]


def test_of_a_whole_training_split_videos_600_to_899_are_scored(tmp_path: Path) -> None:
    sequences = ytvis_sequences(make_tree(tmp_path, content(videos=903)))
    assert [sequences[0].name, sequences[-1].name, len(sequences)] == ["v600", "v899", 300]


def test_an_archive_that_is_half_unpacked_is_named(tmp_path: Path) -> None:
    root = make_tree(tmp_path, content())
    (root / "train" / "JPEGImages" / "v0" / "00010.jpg").unlink()
    with pytest.raises(DataError, match=r"00010\.jpg: not found, but .*train\.json lists it"):
        ytvis_sequences(root)


def test_a_wrong_root_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no YouTube-VIS tree; found neither .*\.json nor .*train\.json"):
        ytvis_sequences(tmp_path)


def test_a_split_without_truth_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no annotations; its truth is not public"):
        ytvis_sequences(make_tree(tmp_path, content() | {"annotations": None}))


def test_a_json_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text(json.dumps(content())[:-40])
    with pytest.raises(DataError, match="is not whole json"):
        ytvis_sequences(tmp_path)


def test_run_lengths_of_another_size_are_refused(tmp_path: Path) -> None:
    table = content()
    table["annotations"][0]["segmentations"][0] = encode_rle(np.ones((4, 4), bool))
    (sequence,) = ytvis_sequences(make_tree(tmp_path, table))
    with pytest.raises(DataError, match=r"frame 0: run lengths are of size \[4, 4\]"):
        next(iter(sequence.truth()))


def test_fewer_masks_than_frames_are_refused(tmp_path: Path) -> None:
    table = content()
    table["annotations"][1]["segmentations"].pop()
    with pytest.raises(DataError, match="annotation 91 has 2 masks, but its video 'v0' has 3 frames"):
        ytvis_sequences(make_tree(tmp_path, table))


def test_integer_run_lengths_that_do_not_fill_their_size_are_refused() -> None:
    with pytest.raises(MaskError, match="sum to 5, a mask of size"):
        plain_run_lengths([2, 3], (2, 3))

"""Masks: what a file means, that nothing is lost on the way out and back, colours and the overlay."""

import errno
import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from pycocotools import mask as coco

from unspool import MaskError, OutputError, UnspoolWarning, read_mask, write_mask
from unspool.masks import (
    Mask,
    TracksWriter,
    davis_palette,
    decode_rle,
    display_colours,
    draw_overlay,
    encode_rle,
    fit_mask,
    ids_in,
    label_rles,
    read_truth,
    resize_labels,
)

SHARED = Path(os.environ.get("UNSPOOL_SHARED", Path(__file__).parents[2] / "shared"))
small = array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24)
label_maps = arrays(np.uint8, small, elements=st.integers(0, 5))


def save(path, values, mode=None, palette=True):
    """An image with these pixel values; indexed if 8 bits and `palette`."""
    image = Image.fromarray(np.asarray(values))
    if palette and image.mode == "L":
        image.putpalette(davis_palette().tobytes())
    (image.convert(mode) if mode else image).save(path)
    return path


def inside(folder):
    return [path.name for path in folder.iterdir()]


def blocks(values, side=40):
    """A label map with one column of `side` pixels per value."""
    return np.repeat(np.repeat(np.array([values]), side, 1), side, 0).astype(np.uint8)


# ------------------------------------------------------------------------------------------- reading


def test_an_indexed_mask_keeps_its_ids_gaps_included(tmp_path):
    mask = read_mask(save(tmp_path / "m.png", blocks([0, 3, 7])))
    assert (mask.ids, mask.note) == ((3, 7), "")
    np.testing.assert_array_equal(mask.labels, blocks([0, 3, 7]))


def test_grey_0_and_255_is_object_1_and_the_note_says_so(tmp_path):
    mask = read_mask(save(tmp_path / "m.png", blocks([0, 255]), palette=False))
    assert mask.ids == (1,)
    assert mask.note == "0 and 255 only: 255 is object 1"
    np.testing.assert_array_equal(mask.labels, blocks([0, 1]))


def test_255_beside_other_ids_is_void_and_the_note_says_so(tmp_path):
    mask = read_mask(save(tmp_path / "m.png", blocks([0, 2, 255])))
    assert (mask.ids, mask.note) == ((2,), "255 beside other ids: 255 is void")
    np.testing.assert_array_equal(mask.labels, blocks([0, 2, 0]))


def test_a_mask_of_one_bit_is_object_1(tmp_path):
    path = tmp_path / "m.png"
    Image.fromarray(blocks([0, 255])).convert("1").save(path)
    assert read_mask(path).ids == (1,)


def test_ids_of_16_bits_are_read_and_255_is_one_of_them(tmp_path):
    values = blocks([0, 1, 2]).astype(np.uint16)
    values[values == 1], values[values == 2] = 255, 300
    mask = read_mask(save(tmp_path / "m.png", values))
    assert (mask.ids, mask.labels.dtype) == ((255, 300), np.uint16)


def test_16_bits_with_0_and_65535_is_object_1(tmp_path):
    values = blocks([0, 1]).astype(np.uint16) * 65535
    assert read_mask(save(tmp_path / "m.png", values)).ids == (1,)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "CMYK"])
def test_colours_are_refused_with_the_remedy(tmp_path, mode):
    path = save(tmp_path / "m.tif", blocks([0, 1]), mode)
    with pytest.raises(
        MaskError, match=rf"m.tif: mask is {mode}, expected one channel.*save it as an indexed"
    ):
        read_mask(path)


@pytest.mark.parametrize("ending", ["jpg", "webp"])
def test_lossy_formats_are_refused_with_the_remedy(tmp_path, ending):
    path = tmp_path / f"m.{ending}"
    Image.fromarray(blocks([0, 1])).save(path)
    with pytest.raises(MaskError, match=rf"m.{ending}: (JPEG|WEBP) is lossy.*indexed"):
        read_mask(path)


@pytest.mark.parametrize("values", [[0], [0, 0]])
def test_a_mask_without_an_object_is_refused(tmp_path, values):
    with pytest.raises(MaskError, match=r"m.png: no object in this mask"):
        read_mask(save(tmp_path / "m.png", blocks(values)))


def test_a_missing_mask_is_an_error_that_names_it(tmp_path):
    with pytest.raises(MaskError, match=r"none.png: no such file"):
        read_mask(tmp_path / "none.png")


@pytest.mark.parametrize(("content", "said"), [(b"", "is empty"), (b"text", "cannot identify")])
def test_an_unreadable_mask_is_an_error_that_names_it(tmp_path, content, said):
    (tmp_path / "m.png").write_bytes(content)
    with pytest.raises(MaskError, match=rf"m.png: cannot be read as a mask \(.*{said}"):
        read_mask(tmp_path / "m.png")


def test_a_cut_off_mask_is_an_error_that_names_it(tmp_path):
    noise = np.random.default_rng(0).integers(0, 5, (60, 60), np.uint8)
    path = save(tmp_path / "m.png", noise)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(MaskError, match=r"m.png: cannot be read as a mask"):
        read_mask(path)


def test_an_animation_is_not_a_mask(tmp_path):
    frames = [Image.fromarray(blocks([0, k])) for k in (1, 2)]
    frames[0].save(tmp_path / "m.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(MaskError, match=r"m.gif: holds 2 images"):
        read_mask(tmp_path / "m.gif")


def test_smoothed_edges_of_a_binary_mask_are_named_and_cut_at_half(tmp_path):
    values = blocks([0, 255], side=200)
    values[0, 198:202] = 20, 90, 160, 230
    with pytest.warns(UnspoolWarning, match=r"m.png: 4 values cover less than 0.05% .*\(20, 90, 160, 230\)"):
        mask = read_mask(save(tmp_path / "m.png", values, palette=False))
    np.testing.assert_array_equal(mask.labels, (values > 127).astype(np.uint8))


def test_stray_values_beside_ids_are_named_and_kept(tmp_path):
    values = blocks([0, 1, 2], side=200)
    values[0, :3] = 40, 41, 42
    with pytest.warns(UnspoolWarning, match=r"m.png: 3 values.*\(40, 41, 42\).*kept as ids"):
        assert read_mask(save(tmp_path / "m.png", values)).ids == (1, 2, 40, 41, 42)


def test_one_small_object_is_no_stray_value(tmp_path):
    values = blocks([0, 1], side=200)
    values[0, 0] = 2
    assert read_mask(save(tmp_path / "m.png", values)).ids == (1, 2)


def test_truth_keeps_255(tmp_path):
    values = blocks([0, 1, 255])
    np.testing.assert_array_equal(read_truth(save(tmp_path / "m.png", values)), values)


def test_a_mask_that_fits_is_left_alone():
    mask = Mask(blocks([0, 1]), (1,))
    assert fit_mask(mask, (40, 80)) is mask


def test_a_mask_of_another_size_is_refused_with_both_sizes_and_the_remedy():
    with pytest.raises(
        MaskError, match=r"first.png: mask is 80x40, but the video is 160x90; .*--resize-mask"
    ):
        fit_mask(Mask(blocks([0, 1]), (1,), path="first.png"), (90, 160))


def test_a_mask_of_another_size_is_stretched_when_asked():
    fitted = fit_mask(Mask(blocks([0, 4]), (4,)), (80, 160), resize=True)
    np.testing.assert_array_equal(fitted.labels, blocks([0, 4], side=80))
    assert fitted.ids == (4,)


def test_stretching_that_loses_an_object_is_refused_with_its_id():
    labels = blocks([0, 1])
    labels[0, 0] = 9
    with pytest.raises(MaskError, match=r"leaves nothing of ids \[9\]"):
        fit_mask(Mask(labels, (1, 9)), (10, 20), resize=True)


@given(labels=label_maps, height=st.integers(1, 40), width=st.integers(1, 40))
def test_resizing_takes_the_pixel_under_the_centre(labels, height, width):
    resized = resize_labels(labels, (height, width))
    for row in range(height):
        for column in range(width):
            old = (
                int((row + 0.5) * labels.shape[0] / height + 1e-9),
                int((column + 0.5) * labels.shape[1] / width + 1e-9),
            )
            assert resized[row, column] == labels[old]


# ------------------------------------------------------------------------------------------- writing


@given(labels=arrays(np.uint8, small))
def test_what_is_written_is_read_back(tmp_path_factory, labels):
    path = tmp_path_factory.mktemp("masks") / "m.png"
    write_mask(path, labels)
    with Image.open(path) as image:
        assert image.mode == "P"
        assert image.getpalette() == davis_palette().ravel().tolist()
    np.testing.assert_array_equal(read_truth(path), labels)


@given(labels=arrays(np.uint16, small, elements=st.integers(0, 2000)))
def test_ids_above_254_are_written_in_16_bits_with_a_warning(tmp_path_factory, labels):
    path = tmp_path_factory.mktemp("masks") / "m.png"
    with warnings.catch_warnings(record=True, action="always") as caught:
        write_mask(path, labels)
    assert bool(caught) == (labels.max() > 254)
    assert all("16-bit grey" in str(w.message) for w in caught)
    np.testing.assert_array_equal(read_truth(path), labels)


def test_the_palette_is_that_of_davis():
    assert davis_palette()[:4].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    masks = sorted((SHARED / "data" / "davis" / "Annotations").rglob("*.png"))
    if not masks:
        pytest.skip("shared/data/davis is not here")
    with Image.open(masks[0]) as image:
        stored = np.array(image.getpalette()).reshape(-1, 3)
    np.testing.assert_array_equal(davis_palette()[: len(stored)], stored)


def test_the_palette_spreads_the_bits_of_the_id():
    for label in range(256):
        colour = [sum((label >> (3 * n + c) & 1) << (7 - n) for n in range(3)) for c in range(3)]
        assert davis_palette()[label].tolist() == colour


def test_a_mask_that_cannot_be_written_is_an_error_that_names_it(tmp_path):
    with pytest.raises(OutputError, match=r"none/m.png: cannot be written \(No such file"):
        write_mask(tmp_path / "none" / "m.png", blocks([0, 1]))


def test_a_full_disk_leaves_the_earlier_mask_and_nothing_half_written(tmp_path, monkeypatch):
    path = tmp_path / "m.png"
    write_mask(path, blocks([0, 1]))

    def full(self, target, *rest, **options):
        Path(target).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OutputError, match=r"m.png: cannot be written \(No space left"):
        write_mask(path, blocks([0, 2]))
    assert read_mask(path).ids == (1,)
    assert inside(tmp_path) == ["m.png"]


# --------------------------------------------------------------------------------------- run lengths


@given(mask=arrays(bool, small))
def test_run_lengths_equal_those_of_coco_and_come_back(mask):
    rle = encode_rle(mask)
    plain = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert rle == {"size": list(mask.shape), "counts": plain["counts"].decode()}
    np.testing.assert_array_equal(decode_rle(rle), mask)


@given(labels=label_maps)
def test_the_run_lengths_of_all_ids_equal_each_alone(labels):
    assert label_rles(labels) == {i: encode_rle(labels == i) for i in ids_in(labels)}


@given(labels=label_maps)
def test_ids_are_the_values_but_0(labels):
    assert ids_in(labels) == tuple(i for i in np.unique(labels).tolist() if i)


def tracks(path, frames):
    """What `tracks.json` says about these label maps."""
    height, width = frames[0].shape
    with TracksWriter(path, name="clip", height=height, width=width) as writer:
        for number, labels in enumerate(frames):
            writer.add(number, labels)
    return json.loads(path.read_text())


@given(frames=st.lists(arrays(np.uint8, (6, 9), elements=st.integers(0, 3)), min_size=1, max_size=6))
@settings(max_examples=40)
def test_tracks_hold_every_object_in_every_frame(tmp_path_factory, frames):
    content = tracks(tmp_path_factory.mktemp("tracks") / "tracks.json", frames)
    ids = sorted({i for labels in frames for i in ids_in(labels)})
    assert [record["id"] for record in content["annotations"]] == ids
    for record in content["annotations"]:
        for number, labels in enumerate(frames):
            mine = labels == record["id"]
            entries = [record[key][number] for key in ("segmentations", "bboxes", "areas")]
            if not mine.any():
                assert entries == [None, None, None]
                continue
            rows, columns = np.flatnonzero(mine.any(1)), np.flatnonzero(mine.any(0))
            box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
            assert entries[1:] == [box, mine.sum()]
            np.testing.assert_array_equal(decode_rle(entries[0]), mine)


def test_tracks_have_the_layout_of_youtube_vis(tmp_path):
    content = tracks(tmp_path / "tracks.json", [blocks([0, 0]), blocks([0, 2])])
    video = content["videos"][0]
    assert (video["id"], video["length"], video["height"], video["width"]) == (1, 2, 40, 80)
    assert video["file_names"] == ["clip/00000.jpg", "clip/00001.jpg"]
    assert content["categories"] == [{"id": 1, "name": "object"}]
    record = content["annotations"][0]
    assert {k: record[k] for k in ("id", "video_id", "category_id", "iscrowd")} == {
        "id": 2, "video_id": 1, "category_id": 1, "iscrowd": 0
    }  # fmt: skip
    assert record["segmentations"][0] is None
    assert isinstance(record["segmentations"][1]["counts"], str)


def test_a_video_without_objects_has_no_records(tmp_path):
    assert tracks(tmp_path / "tracks.json", [blocks([0])])["annotations"] == []


def test_tracks_given_up_leave_nothing_behind(tmp_path):
    with pytest.raises(KeyError), TracksWriter(tmp_path / "t.json", name="x", height=40, width=40) as writer:
        writer.add(0, blocks([1]))
        raise KeyError
    assert inside(tmp_path) == []


def test_tracks_on_a_full_disk_leave_nothing_behind(tmp_path, monkeypatch):
    writer = TracksWriter(tmp_path / "t.json", name="x", height=40, width=40)
    writer.add(0, blocks([1]))

    def full(self, *rest):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match=r"t.json: cannot be written \(No space left"):
        writer.close()
    assert inside(tmp_path) == []


def test_run_lengths_that_do_not_decode_are_an_error():
    with pytest.raises(MaskError, match=r"size \[4, 4\] cannot be decoded"):
        decode_rle({"size": [4, 4], "counts": "0P1P1P1"})


# ------------------------------------------------------------------------------------------- showing


def test_an_id_has_the_same_colour_whoever_is_beside_it():
    assert display_colours([3])[3] == display_colours([1, 2, 3])[3]


def test_254_objects_have_254_colours():
    assert len(set(display_colours(range(1, 255)).values())) == 254


def test_more_objects_than_colours_start_again():
    assert display_colours([255])[255] == display_colours([1])[1]


def test_the_first_seven_colours_are_those_of_okabe_and_ito():
    assert display_colours([1, 2])[1] == (230, 159, 0)
    assert display_colours([7])[7] == (204, 121, 167)


def plain_overlay(image, labels, colours, opacity):
    """Pixel by pixel."""
    out = image.copy()
    height, width = labels.shape
    strength = round(256 * opacity)
    for row in range(height):
        for column in range(width):
            label = labels[row, column]
            if label == 0 or label not in colours:
                continue
            around = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
            edge = any(
                0 <= r < height and 0 <= c < width and labels[r, c] != label for r, c in around
            )  # fmt: skip
            for channel in range(3):
                value, colour = int(image[row, column, channel]), colours[label][channel]
                mixed = (value * (256 - strength) + colour * strength) >> 8
                out[row, column, channel] = colour if edge else mixed
    return out


@given(labels=label_maps, opacity=st.floats(0, 1), data=st.data())
@settings(max_examples=50, deadline=None)
def test_the_overlay_equals_the_plain_form(labels, opacity, data):
    image = data.draw(arrays(np.uint8, (*labels.shape, 3)))
    colours = {1: (230, 159, 0), 2: (0, 114, 178), 4: (255, 255, 255)}
    expected = plain_overlay(image, labels, colours, opacity)
    np.testing.assert_array_equal(draw_overlay(image, labels, colours, opacity), expected)


def test_the_overlay_leaves_its_image_alone():
    image = np.zeros((40, 40, 3), np.uint8)
    draw_overlay(image, blocks([1]), display_colours([1]))
    assert not image.any()


def test_the_overlay_takes_ids_above_255():
    image, labels = np.zeros((4, 4, 3), np.uint8), np.full((4, 4), 999, np.uint16)
    assert draw_overlay(image, labels, {999: (200, 0, 0)})[1, 1].tolist() == [100, 0, 0]

"""MOVi-E as TFRecords, written by TensorFlow and here byte by byte in their published layout, and as npz."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unspool.data.movi import movi_clips
from unspool.data.tfrecord import crc32c, parse_example, records
from unspool.errors import DataError

SIZE, FRAMES = 8, 3
RNG = np.random.default_rng(0)
VIDEO = RNG.integers(0, 256, (FRAMES, SIZE, SIZE, 3), np.uint8)
IDS = RNG.integers(0, 4, (FRAMES, SIZE, SIZE, 1), np.uint8)
IDS[IDS == 2] = 23  # ids have gaps


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def bytes_feature(items: list[bytes]) -> bytes:
    return field(1, b"".join(field(1, item) for item in items))


def float_feature(values: list[float]) -> bytes:
    return field(2, field(1, struct.pack(f"<{len(values)}f", *values)))  # packed, as proto3 has it


def int_feature(values: list[int]) -> bytes:
    return field(3, field(1, b"".join(map(varint, values))))


def example(features: dict[str, bytes]) -> bytes:
    entries = (field(1, name.encode()) + field(2, feature) for name, feature in features.items())
    return field(1, b"".join(field(1, entry) for entry in entries))


def masked_crc(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32)


def record(payload: bytes) -> bytes:
    length = struct.pack("<Q", len(payload))
    return length + masked_crc(length) + payload + masked_crc(payload)


def png(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image.squeeze()).save(out, "PNG")
    return out.getvalue()


def clip() -> bytes:
    return example({
        "metadata/video_name": bytes_feature([b"3641"]),
        "metadata/num_frames": int_feature([FRAMES, 2**40]),
        "camera/positions": float_feature([0.5, -1.25]),
        "video": bytes_feature([png(frame) for frame in VIDEO]),
        "segmentations": bytes_feature([png(frame) for frame in IDS]),
        "backward_flow": bytes_feature([]),
    })  # fmt: skip


def make_shards(root: Path, split: str = "validation", shards: int = 2) -> Path:
    home = root / "movi_e" / "256x256" / "1.0.0"
    home.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        path = home / f"movi_e-{split}.tfrecord-{shard:05d}-of-{shards:05d}"
        path.write_bytes(record(clip()) * (shard + 1))
    return home


def test_the_checksum_is_that_of_castagnoli() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720, the check value of CRC-32C


def test_lists_of_bytes_are_found_among_numbers() -> None:
    found = parse_example(clip())
    assert set(found) == {"metadata/video_name", "video", "segmentations", "backward_flow"}
    assert found["metadata/video_name"] == [b"3641"]
    assert [len(found[name]) for name in ("video", "segmentations", "backward_flow")] == [FRAMES, FRAMES, 0]


def test_clips_of_all_validation_shards_are_read(tmp_path: Path) -> None:
    make_shards(tmp_path)
    make_shards(tmp_path, "train", 1)
    clips = movi_clips(tmp_path)
    assert [c.name for c in clips] == ["validation-0000", "validation-0001", "validation-0002"]
    for one in clips:
        with one.open() as video:
            assert np.array_equal(np.stack(list(video)), VIDEO)
            assert float(video.times[1]) == 1 / 12
        assert np.array_equal(np.stack(list(one.truth())), IDS[..., 0])
        assert one.frame_names == ("00000", "00001", "00002")


def test_what_tensorflow_wrote_is_read() -> None:
    """TensorFlow 2.21 wrote `layouts/tensorflow`: tf.train.Example, tf.io.encode_png, TFRecordWriter."""
    home = Path(__file__).parent / "layouts" / "tensorflow"
    with np.load(home / "written.npz") as written:
        clips = movi_clips(home)
        assert len(clips) == 2
        for number, clip in enumerate(clips):
            with clip.open() as video:
                assert np.array_equal(np.stack(list(video)), written[f"video_{number}"])
            assert np.array_equal(np.stack(list(clip.truth())), written[f"segmentations_{number}"][..., 0])
            assert set(np.unique(written[f"segmentations_{number}"])) == {0, 1, 23}


def test_npz_clips_are_read_too(tmp_path: Path) -> None:
    for name, ids in (("clip-10", IDS), ("clip-2", IDS[..., 0])):
        np.savez(tmp_path / f"{name}.npz", video=VIDEO, segmentations=ids, depth=np.zeros(3))
    clips = movi_clips(tmp_path)
    assert [c.name for c in clips] == ["clip-2", "clip-10"]
    for one in clips:
        assert np.array_equal(np.stack(list(one.open())), VIDEO)
        assert np.array_equal(np.stack(list(one.truth())), IDS[..., 0])


def test_a_shard_that_is_missing_is_noticed(tmp_path: Path) -> None:
    next(iter(make_shards(tmp_path).iterdir())).unlink()
    with pytest.raises(DataError, match="1 of 2 validation shards are there"):
        movi_clips(tmp_path)


def test_a_shard_that_was_cut_off_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.tfrecord"
    path.write_bytes((record(clip()) * 2)[:-30])
    with pytest.raises(DataError, match="is cut off in its record 1"):
        records(path)


@pytest.mark.parametrize("content", [b"\x1f\x8b gzipped, or something else", record(clip())[:5]])
def test_a_file_that_is_no_tfrecord_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.tfrecord").write_bytes(content)
    with pytest.raises(DataError, match="no TFRecord from byte 0 on"):
        records(tmp_path / "x.tfrecord")


@pytest.mark.parametrize("payload", [b"\x0a\xff", b"\x0f", b"\xff" * 3])
def test_a_payload_that_is_no_example_is_refused(tmp_path: Path, payload: bytes) -> None:
    (tmp_path / "x.tfrecord").write_bytes(record(payload))
    with pytest.raises(DataError, match=r"is no tf\.train\.Example"):
        records(tmp_path / "x.tfrecord")[0].example()


def test_only_other_splits_are_told(tmp_path: Path) -> None:
    make_shards(tmp_path, "train", 1)
    with pytest.raises(DataError, match="there are 1 TFRecords of other splits"):
        movi_clips(tmp_path)


def test_a_clip_without_truth_says_what_it_holds(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", video=VIDEO, depth=np.zeros(3))
    with pytest.raises(DataError, match="a has no 'segmentations'; it has depth, video"):
        next(movi_clips(tmp_path)[0].truth())


def test_an_npz_that_was_cut_off_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", video=VIDEO, segmentations=IDS)
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:200])
    with pytest.raises(DataError, match="is not a whole npz file"):
        movi_clips(tmp_path)[0].open()

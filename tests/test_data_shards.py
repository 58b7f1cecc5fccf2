import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from make_footage import numbers, picture, write_frames, write_video
from PIL import Image

from unspool import DataError, UnspoolWarning, UsageError
from unspool.data.clips import Clips, Decoded
from unspool.data.frames import Decoder, store_frames
from unspool.data.index import Index, index_videos
from unspool.data.sampling import Sampling
from unspool.data.sharding import write_shards

wds = pytest.importorskip("webdataset")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSPOOL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def plain(tmp_path: Path) -> Index:
    write_video(tmp_path / "videos/a.mp4", 12)
    write_frames(tmp_path / "videos/b", [f"{i}.jpg" for i in range(9)])
    write_video(tmp_path / "videos/sub/c.mp4", 5, height=48, width=32)
    return index_videos(tmp_path / "videos")


def jpeg(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(number)).save(file, "jpeg", quality=95)
    return file.getvalue()


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_shards_hold_the_videos_that_were_written(plain: Index, tmp_path: Path) -> None:
    write_shards(plain.videos, tmp_path / "shards", 32)
    index = index_videos(tmp_path / "shards", "shards")
    assert [v.name for v in index.videos] == ["a-mp4", "b", "sub/c-mp4"]
    for shard, video in zip(index.videos, plain.videos, strict=True):
        assert (shard.frames, shard.height, shard.width) == (video.frames, video.height, video.width)
        assert np.allclose(shard.times, video.times, atol=1e-5)
        assert numbers(Decoder().read(shard, [4, 0, 3], 64)) == [4, 0, 3]


def test_shards_are_read_by_the_library_itself(plain: Index, tmp_path: Path) -> None:
    (shard,) = write_shards(plain.videos, tmp_path / "shards", 32)
    samples = list(wds.WebDataset(str(shard), shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in samples] == ["a-mp4", "b", "sub/c-mp4"]
    ours = index_videos(shard, "shards").videos[0]
    assert (samples[0]["00003.jpg"] == Decoder().read(ours, [3], 64)[0]).all()


def test_shards_of_the_library_are_read(tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.mp4", 6)
    with wds.TarWriter(str(tmp_path / "shards-000000.tar")) as writer:
        writer.write({"__key__": "first", "mp4": video.read_bytes(), "json": {"caption": "grey"}})
        writer.write(
            {"__key__": "second", "0.jpg": jpeg(0), "10.jpg": jpeg(2), "9.jpg": jpeg(1), "json": {"fps": 6}}
        )
    first, second = index_videos(tmp_path / "shards-000000.tar", "shards").videos
    assert (first.frames, first.fps, second.frames, second.fps) == (6, 10, 3, 6)
    assert numbers(Decoder().read(first, [5, 1], 64)) == [5, 1]
    assert numbers(Decoder().read(second, [0, 1, 2], 64)) == [0, 1, 2]  # natural order: 0, 9, 10


def test_shards_keep_to_their_size_and_appear_when_whole(plain: Index, tmp_path: Path) -> None:
    shards = write_shards(plain.videos, tmp_path / "shards", 32, shard_mb=1e-3)
    assert [path.name for path in shards] == [f"videos-{i:06d}.tar" for i in range(3)]
    assert sorted(tmp_path.joinpath("shards").iterdir()) == shards
    assert len(index_videos(tmp_path / "shards", "shards").videos) == 3


def test_a_shard_that_fails_leaves_nothing_half(plain: Index, tmp_path: Path) -> None:
    Path(plain.videos[1].source, "3.jpg").unlink()
    with pytest.raises(DataError, match="has changed"):
        write_shards(plain.videos, tmp_path / "shards", 32)
    assert list((tmp_path / "shards").iterdir()) == []


def test_clips_and_the_store_draw_from_shards(plain: Index, tmp_path: Path) -> None:
    write_shards(plain.videos, tmp_path / "shards", 32)
    videos = index_videos(tmp_path / "shards", "shards").videos
    batch = Clips(videos, Sampling(3, "permuted", 2), Decoded(32, Decoder()), batch=3).batch_at(0, 0)
    store, broken = store_frames(videos, 32)
    assert broken == ()
    by_name = {video.name: video for video in videos}
    for clip in batch.clips:
        assert (
            clip.frames.permute(0, 2, 3, 1).numpy() == store.read(by_name[clip.video], clip.indices)
        ).all()


def test_shards_are_looked_at_once(plain: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(plain.videos, tmp_path / "shards", 32)
    first = index_videos(tmp_path / "shards", "shards")
    monkeypatch.setattr("unspool.data.shards.sample_spans", lambda _: pytest.fail("looked again"))
    assert index_videos(tmp_path / "shards", "shards") == first


def test_a_changed_shard_is_an_error_while_in_use(plain: Index, tmp_path: Path) -> None:
    (shard,) = write_shards(plain.videos, tmp_path / "shards", 32)
    video = index_videos(shard, "shards").videos[0]
    shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(DataError, match=r"videos-000000\.tar: has changed"):
        Decoder().read(video, [0], 64)


def test_broken_samples_and_shards_are_told_with_their_reason(tmp_path: Path) -> None:
    good = {f"good{i}.{n}.jpg": jpeg(n) for i in range(6) for n in range(2)}
    times = {"clock.0.jpg": jpeg(0), "clock.json": json.dumps({"times": [0, 1]}).encode()}
    write_tar(tmp_path / "one.tar", {**good, "text.txt": b"hello", "bad.0.jpg": b"no jpeg", **times})
    (tmp_path / "two.tar").write_bytes(b"no tar" * 200)
    with pytest.warns(UnspoolWarning) as told:
        index = index_videos(tmp_path, "shards", max_broken=0.5)
    assert len(index.videos) == 6
    for reason in ("neither a video nor images", "bad", "1 images, but 2 times", "two.tar: is no whole tar"):
        assert reason in str(told[0].message)


def test_a_folder_without_shards_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\*\.tar"):
        index_videos(tmp_path, "shards")


def test_without_the_library_the_message_is_the_line_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(UsageError, match=r"pip install 'unspool\[shards\]'"):
        index_videos(tmp_path, "shards")

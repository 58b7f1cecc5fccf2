import errno
import os
import pickle
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from make_footage import numbers, write_frames, write_video
from PIL import Image

from unspool import DataError, OutputError, VideoError
from unspool.data import frames as module
from unspool.data.footage import Footage
from unspool.data.frames import Decoder, FrameStore, shrink, size_at, store_frames
from unspool.data.index import index_videos


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNSPOOL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def videos(tmp_path: Path) -> tuple[Footage, ...]:
    write_video(tmp_path / "videos/file.mp4", 12)
    write_frames(tmp_path / "videos/folder", [f"{i}.jpg" for i in range(12)])
    return index_videos(tmp_path / "videos").videos


def test_frames_come_in_the_order_asked_for_and_may_repeat(videos: tuple[Footage, ...]) -> None:
    for video in videos:
        assert numbers(Decoder().read(video, [7, 2, 11, 2], 64)) == [7, 2, 11, 2]


def test_any_order_of_reading_gives_the_same_pixels(videos: tuple[Footage, ...]) -> None:
    video = videos[0]
    whole = Decoder().read(video, range(12), 64)
    decoder = Decoder()
    for wanted in ([9, 3], [0, 1, 2], [11], [5, 4]):
        assert (decoder.read(video, wanted, 64) == whole[wanted]).all()


def test_reading_all_equals_reading_each(videos: tuple[Footage, ...]) -> None:
    for video in videos:
        assert (np.stack(list(Decoder().read_all(video, 20))) == Decoder().read(video, range(12), 20)).all()


def test_only_the_needed_frames_of_a_folder_are_read(
    videos: tuple[Footage, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    read_still = module.read_still
    monkeypatch.setattr(module, "read_still", lambda place: (read.append(place.stem), read_still(place))[1])
    Decoder().read(videos[1], [7, 2, 7], 64)
    assert read == ["2", "7"]


def test_no_more_videos_stay_open_than_allowed(tmp_path: Path) -> None:
    for name in "abc":
        write_video(tmp_path / f"videos/{name}.mp4", 3)
    decoder = Decoder(keep=2)
    for video in index_videos(tmp_path / "videos").videos:
        decoder.read(video, [0], 64)
    assert [Path(source).name for source in decoder._open] == ["b.mp4", "c.mp4"]
    decoder.close()
    assert not decoder._open


def test_a_decoder_travels_to_another_process_without_its_files(videos: tuple[Footage, ...]) -> None:
    decoder = Decoder(keep=3)
    decoder.read(videos[0], [0], 64)
    copy = pickle.loads(pickle.dumps(decoder))
    assert copy.keep == 3
    assert not copy._open


def test_frames_are_brought_down_but_never_enlarged() -> None:
    assert size_at(360, 640, 256) == (256, 455)
    assert size_at(640, 360, 256) == (455, 256)
    assert size_at(200, 300, 256) == (200, 300)


def test_shrinking_is_pillows_to_one_level() -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8)
    pillow = np.asarray(Image.fromarray(image).resize((106, 60), Image.Resampling.BILINEAR))
    assert np.abs(shrink(image, 60).astype(int) - pillow).max() <= 1


def test_a_changed_file_is_an_error_at_the_next_clip(videos: tuple[Footage, ...], tmp_path: Path) -> None:
    decoder = Decoder()
    decoder.read(videos[0], [0], 64)
    write_video(tmp_path / "videos/file.mp4", 3)
    with pytest.raises(DataError, match="has changed"):
        decoder.read(videos[0], [0], 64)


def test_a_file_that_changes_as_it_is_opened_is_an_error(
    videos: tuple[Footage, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = module.open_video

    def late(source: str, **options: int) -> object:
        kept = Path(source).stat()
        write_video(tmp_path / "videos/file.mp4", videos[0].frames)  # as many frames of another coding
        os.utime(source, ns=(kept.st_atime_ns, kept.st_mtime_ns + 1))
        return opened(source, **options)

    monkeypatch.setattr(module, "open_video", late)
    with pytest.raises(DataError, match="has changed"):
        Decoder().read(videos[0], [0], 64)


def test_a_video_with_fewer_frames_than_counted_is_an_error(videos: tuple[Footage, ...]) -> None:
    claimed = Footage(videos[0].source, "file.mp4", 20, 32, 48, 10.0, stamp=videos[0].stamp)
    with pytest.raises(VideoError, match="has 12 frames that can be decoded, not 20"):
        Decoder().read(claimed, [0], 64)


def test_a_frame_of_another_size_is_an_error(videos: tuple[Footage, ...]) -> None:
    claimed = Footage(videos[1].source, "folder", 12, 30, 48, 24.0, stamp=videos[1].stamp)
    with pytest.raises(VideoError, match="48x32"):
        Decoder().read(claimed, [0], 64)


# ----------------------------------------------------------------------------------------------- store


def test_the_store_holds_what_decoding_gives(videos: tuple[Footage, ...]) -> None:
    store, broken = store_frames(videos, 20)
    assert broken == ()
    for video in videos:
        assert (store.read(video, [7, 2, 7]) == Decoder().read(video, [7, 2, 7], 20)).all()
        assert store.frames(video).shape == (12, 20, 30, 3)


def test_the_store_is_written_once(
    videos: tuple[Footage, ...], monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    store, _ = store_frames(videos, 20)
    written = {path: path.stat().st_mtime_ns for path in store.folder.iterdir()}
    monkeypatch.setattr(module, "_write_frames", lambda *_: pytest.fail("written again"))
    store_frames(videos, 20)
    assert {path: path.stat().st_mtime_ns for path in store.folder.iterdir()} == written
    assert store.folder == cache / "frames" / "short-20"


def test_of_two_that_want_the_same_frames_at_once_one_decodes(
    videos: tuple[Footage, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []

    def slowly(store: FrameStore, video: Footage, decoder: Decoder) -> None:
        decoded.append(video.name)
        time.sleep(0.2)
        write(store, video, decoder)

    write = module._write_first
    monkeypatch.setattr(module, "_write_first", slowly)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: store_frames(videos, 20)[0], range(2))
    assert sorted(decoded) == sorted(video.name for video in videos)
    assert all((one.frames(video) == other.frames(video)).all() for video in videos)
    assert not list(one.folder.glob(".*"))


def test_another_size_is_another_store(videos: tuple[Footage, ...]) -> None:
    small, _ = store_frames(videos, 16)
    large, _ = store_frames(videos, 20)
    assert small.frames(videos[0]).shape[1] == 16
    assert large.frames(videos[0]).shape[1] == 20


def test_a_changed_video_takes_the_place_of_its_old_frames(
    videos: tuple[Footage, ...], tmp_path: Path
) -> None:
    store_frames(videos, 20)
    write_video(tmp_path / "videos/file.mp4", 5)
    again = index_videos(tmp_path / "videos").videos
    store, _ = store_frames(again, 20)
    assert len(store.frames(again[0])) == 5
    assert len(list(store.folder.iterdir())) == 2


def test_a_run_that_is_killed_while_storing_leaves_whole_videos_only(
    videos: tuple[Footage, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_npy = module.write_npy

    def killed(file: BinaryIO, images: Iterator[np.ndarray], count: int) -> None:
        write_npy(file, (next(images) for _ in range(3)), count)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_npy", killed)
    with pytest.raises(KeyboardInterrupt):
        store_frames(videos[:1], 20)
    monkeypatch.setattr(module, "write_npy", write_npy)
    store, _ = store_frames(videos[:1], 20)
    assert len(store.frames(videos[0])) == 12
    assert len(list(store.folder.iterdir())) == 1


def test_videos_that_cannot_be_decoded_are_told(videos: tuple[Footage, ...]) -> None:
    claimed = Footage(videos[0].source, "file.mp4", 20, 32, 48, 10.0, stamp=videos[0].stamp)
    store, broken = store_frames((claimed, videos[1]), 20)
    assert [b.source for b in broken] == [claimed.source]
    assert list(store.folder.iterdir()) == [store.path(videos[1])]


def test_a_limit_is_refused_before_anything_is_decoded(videos: tuple[Footage, ...]) -> None:
    with pytest.raises(OutputError, match=r"2 videos decoded at short side 20.*limit is 1e-06 GB"):
        store_frames(videos, 20, limit_gb=1e-6)


def test_a_disk_with_too_little_room_is_refused(
    videos: tuple[Footage, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(OutputError, match=r"0\.0 GB are free.*UNSPOOL_CACHE"):
        store_frames(videos, 20)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_disk_that_fills_up_is_an_error_with_a_remedy(
    videos: tuple[Footage, ...], monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "write_npy", full)
    with pytest.raises(OutputError, match=r"No space left on device.*make room"):
        store_frames(videos, 20, workers=workers)


def test_progress_counts_the_videos(videos: tuple[Footage, ...]) -> None:
    seen: list[tuple[int, int]] = []
    store_frames(videos, 20, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]

import gc
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from make_footage import footage, numbers, write_frames, write_video

from unspool import DataError, UnspoolWarning, UsageError, VideoError, open_video
from unspool.data.augment import Augmentation, draw
from unspool.data.clips import ClipBatch, Clips, Decoded, Frames, OnDevice, Stored, load_batches
from unspool.data.footage import Footage
from unspool.data.frames import Decoder, Numbers, store_frames
from unspool.data.index import index_videos
from unspool.data.sampling import Sampling

HOW = Sampling(frames=3, mode="permuted", gap=2)


class Numbered:
    """Frames that hold nothing but their number; videos named in `broken` cannot be read."""

    def __init__(self, *broken: str) -> None:
        self.broken = broken

    def clip(self, video: Footage, indices: Numbers) -> Frames:
        if video.name in self.broken:
            raise VideoError(f"{video.name}: is damaged")
        shown = torch.tensor(np.asarray(indices), dtype=torch.uint8)
        return shown.view(-1, 1, 1, 1).expand(-1, 3, 2, 2).clone()


def some(count: int = 7) -> list[Footage]:
    return [footage(f"v{i}", 20 + i) for i in range(count)]


def made(count: int = 5) -> list[Footage]:
    return [footage(f"made{i}", 9) for i in range(count)]


def seen(batches: list[ClipBatch]) -> list[tuple[str, tuple[int, ...]]]:
    return [(clip.video, clip.indices) for batch in batches for clip in batch.clips]


@pytest.fixture
def on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Footage, ...]:
    monkeypatch.setenv("UNSPOOL_CACHE", str(tmp_path / "cache"))
    write_video(tmp_path / "videos/file.mp4", 12)
    write_frames(tmp_path / "videos/folder", [f"{i}.jpg" for i in range(9)], height=48, width=32)
    return index_videos(tmp_path / "videos").videos


# ------------------------------------------------------------------------------------------- the map


def test_a_clip_depends_on_seed_epoch_and_position_alone() -> None:
    first, second = (Clips(some(), HOW, Numbered(), batch=2, seed=3) for _ in range(2))
    second.batch_at(5, 1)  # what was drawn before does not matter
    assert seen([first.batch_at(2, 1)]) == seen([second.batch_at(2, 1)])


@pytest.mark.parametrize("other", [(4, 2, 1), (3, 1, 1), (3, 2, 0)])
def test_another_seed_epoch_or_step_is_another_batch(other: tuple[int, int, int]) -> None:
    seed, epoch, step = other
    here = Clips(some(), HOW, Numbered(), batch=2, seed=3).batch_at(2, 1)
    assert seen([here]) != seen([Clips(some(), HOW, Numbered(), batch=2, seed=seed).batch_at(epoch, step)])


def test_an_epoch_visits_every_video_once_in_its_own_order() -> None:
    clips = Clips(some(6), HOW, Numbered(), batch=2)
    epochs = [[clip.video for step in range(3) for clip in clips.batch_at(e, step).clips] for e in range(4)]
    assert all(sorted(epoch) == [f"v{i}" for i in range(6)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_what_does_not_fill_a_batch_is_left_to_other_epochs() -> None:
    clips = Clips(some(7), HOW, Numbered(), batch=3)
    assert clips.steps == 2
    names = {name for e in range(10) for s in range(2) for name, _ in seen([clips.batch_at(e, s)])}
    assert len(names) == 7


def test_one_video_fills_a_batch_of_sixteen() -> None:
    clips = Clips(some(1), HOW, Numbered(), batch=16)
    assert clips.steps == 1
    assert len(set(seen([clips.batch_at(0, 0)]))) > 3


def test_the_ranks_parts_in_order_are_the_whole_batch() -> None:
    clips = Clips(some(8), HOW, Numbered(), batch=4)
    whole = seen([clips.batch_at(1, 1)])
    for ranks in (2, 4):
        assert seen([clips.batch_at(1, 1, rank, ranks) for rank in range(ranks)]) == whole


def test_augmentation_draws_follow_the_clip_to_its_rank() -> None:
    clips = Clips(some(8), HOW, Numbered(), batch=4)
    whole, part = clips.batch_at(1, 1), clips.batch_at(1, 1, rank=1, ranks=2)
    how = Augmentation(size=(2, 2), short_side=(2, 9))
    ours, theirs = (draw(how, batch.sizes, batch.generators()) for batch in (part, whole))
    assert torch.equal(ours.factors, theirs.part(2, 4).factors)
    assert torch.equal(ours.box, theirs.part(2, 4).box)


def test_times_and_numbers_belong_to_the_frames() -> None:
    batch = Clips(some(), HOW, Numbered(), batch=4).batch_at(0, 0)
    assert batch.indices.tolist() == [clip[:, 0, 0, 0].tolist() for clip in batch.frames]
    assert torch.allclose(batch.times, batch.indices.double() / 10)


# -------------------------------------------------------------------------------- what may go wrong


def test_short_videos_are_left_out_and_named() -> None:
    with pytest.warns(
        UnspoolWarning, match=r"1 of 8 videos have fewer frames than a clip \(3\).*short \(2\)"
    ):
        clips = Clips([*some(7), footage("short", 2)], HOW, Numbered(), batch=2)
    assert len(clips.videos) == 7


def test_only_short_videos_are_an_error() -> None:
    with pytest.raises(DataError, match=r"none of 2 videos has the 3 frames of a clip: a \(2\), b \(1\)"):
        Clips([footage("a", 2), footage("b", 1)], HOW, Numbered(), batch=2)


def test_other_samplings_repeat_frames_of_short_videos() -> None:
    clips = Clips([footage("a", 2)], Sampling(3, "regular"), Numbered(), batch=1)
    assert clips.batch_at(0, 0).clips[0].indices == (0, 1, 1)


def test_no_videos_are_an_error() -> None:
    with pytest.raises(DataError, match="no video"):
        Clips([], HOW, Numbered(), batch=2)


def test_a_video_that_turns_out_broken_is_told_once_and_replaced() -> None:
    clips = Clips(some(7), HOW, Numbered("v3"), batch=7)
    with pytest.warns(UnspoolWarning, match="v3: is damaged; clips of other videos") as told:
        batches = [clips.batch_at(e, 0) for e in range(3)]
    assert len(told) == 1
    assert "v3" not in {name for name, _ in seen(batches)}
    fresh = Clips(some(7), HOW, Numbered("v3"), batch=7)
    with pytest.warns(UnspoolWarning):
        assert seen([fresh.batch_at(2, 0)]) == seen(batches[2:])


def test_too_many_that_turn_out_broken_are_an_error() -> None:
    clips = Clips(some(7), HOW, Numbered("v3", "v5"), batch=7)
    with (
        pytest.warns(UnspoolWarning),
        pytest.raises(DataError, match=r"2 of 7 videos turn out to be broken.*20%"),
    ):
        clips.batch_at(0, 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_changes_while_training_ends_the_run_with_its_name(
    on_disk: tuple[Footage, ...], tmp_path: Path, workers: int
) -> None:
    clips = Clips(on_disk, HOW, Decoded(20, Decoder()), batch=2)
    write_video(tmp_path / "videos/file.mp4", 3)
    with pytest.raises(DataError, match=r"file\.mp4: has changed"):
        next(load_batches(clips, workers=workers))


def test_a_batch_that_the_ranks_cannot_share_is_refused() -> None:
    with pytest.raises(UsageError, match="a batch of 4 clips cannot be shared by 3 processes"):
        next(load_batches(Clips(some(), HOW, Numbered(), batch=4), ranks=3))


# ------------------------------------------------------------------------------------------- batches


def test_any_number_of_workers_gives_the_same_batches_and_random_numbers() -> None:
    runs = []
    for workers in (0, 1, 2):
        torch.manual_seed(0)
        clips = Clips(some(), HOW, Numbered(), batch=2, seed=1)
        batches = list(islice(load_batches(clips, workers=workers), 7))
        runs.append((seen(batches), [(b.epoch, b.step) for b in batches], torch.rand(1).item()))
    assert runs[0] == runs[1] == runs[2]
    assert runs[0][1] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)]


def test_workers_survive_what_their_parent_left_open(
    on_disk: tuple[Footage, ...], request: pytest.FixtureRequest
) -> None:
    class Collecting(Decoded):
        def clip(self, video: Footage, indices: Numbers) -> Frames:
            gc.collect()
            return super().clip(video, indices)

    clips = Clips(on_disk[:1] * 2, HOW, Collecting(20, Decoder(keep=1)), batch=2)
    here = [clips.batch_at(0, 0), clips.batch_at(1, 0)]  # leaves a decoder open
    request.addfinalizer(gc.enable)
    gc.disable()  # the garbage is still there at the fork
    video = open_video(on_disk[0].source, decode_ahead=0)
    video[5]  # FFmpeg's threads run
    video.itself = video  # type: ignore[attr-defined]
    del video
    there = list(islice(load_batches(clips, workers=1), 2))
    assert seen(here) == seen(there)


def test_two_integers_continue_a_run_in_mid_epoch() -> None:
    clips = Clips(some(), HOW, Numbered(), batch=2)
    whole = list(islice(load_batches(clips), 8))
    for start in range(7):
        at = (whole[start].epoch, whole[start].step)
        rest = list(islice(load_batches(Clips(some(), HOW, Numbered(), batch=2), start=at), 8 - start))
        assert seen(rest) == seen(whole[start:])


def test_every_way_to_the_frames_gives_the_same_bytes(on_disk: tuple[Footage, ...]) -> None:
    store, _ = store_frames(on_disk, 20)
    ways = [
        Decoded(20, Decoder()),
        Stored(store),
        OnDevice(store, on_disk, torch.device("cpu")),
    ]
    batches = [Clips(on_disk, HOW, way, batch=2, seed=5).batch_at(0, 0) for way in ways]
    for batch in batches[1:]:
        assert all(torch.equal(a, b) for a, b in zip(batch.frames, batches[0].frames, strict=True))
    assert {size for batch in batches for size in batch.sizes} == {(20, 30), (30, 20)}


@pytest.mark.parametrize("workers", [0, 2])
def test_decoded_frames_are_those_that_the_clip_names(on_disk: tuple[Footage, ...], workers: int) -> None:
    clips = Clips(on_disk, HOW, Decoded(64, Decoder()), batch=2)
    for batch in islice(load_batches(clips, workers=workers), 3):
        for clip in batch.clips:
            assert numbers(clip.frames.permute(0, 2, 3, 1).numpy()) == list(clip.indices)


def test_a_batch_moves_to_a_device_with_all_it_knows() -> None:
    batch = Clips(some(), HOW, Numbered(), batch=2).batch_at(0, 1)
    moved = batch.to(torch.device("meta"))
    assert moved.frames[0].is_meta
    assert seen([moved]) == seen([batch])
    assert (moved.epoch, moved.step) == (0, 1)


def test_frames_that_do_not_fit_the_device_are_refused(
    on_disk: tuple[Footage, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = store_frames(on_disk, 20)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 2000))
    with pytest.raises(UsageError, match="keep them on disk"):
        OnDevice(store, on_disk, torch.device("cuda"))


# ------------------------------------------------------------------------------------------ rendered


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_rendered_clips_make_up_their_share_of_every_epoch(share: float) -> None:
    clips = Clips(some(6), HOW, Numbered(), batch=2, made=made(), made_share=share)
    names = [name for step in range(clips.steps) for name, _ in seen([clips.batch_at(3, step)])]
    assert sum(name.startswith("made") for name in names) / len(names) == share
    assert sorted(name for name in names if name.startswith("v")) == [f"v{i}" for i in range(6)]


def test_rendered_clips_take_turns_over_the_epochs() -> None:
    clips = Clips(some(6), HOW, Numbered(), batch=8, made=made(5), made_share=0.25)
    drawn = [{n for n, _ in seen([clips.batch_at(e, 0)]) if n.startswith("made")} for e in range(3)]
    assert set.union(*drawn) == {f"made{i}" for i in range(5)}
    assert not drawn[0] & drawn[1]


def test_rendered_clips_alone_need_no_footage() -> None:
    clips = Clips([], HOW, Numbered(), batch=4, made=made(6), made_share=1.0)
    assert clips.steps == 1
    assert all(name.startswith("made") for name, _ in seen([clips.batch_at(0, 0)]))


def test_a_share_without_rendered_clips_is_refused() -> None:
    with pytest.raises(UsageError, match="there are none"):
        Clips(some(), HOW, Numbered(), batch=2, made_share=0.5)
    with pytest.raises(UsageError, match="from 0 to 1"):
        Clips(some(), HOW, Numbered(), batch=2, made=made(), made_share=1.5)


HALF_SECONDS = Sampling(frames=4, seconds=0.5)  # TimeT's clips, of 1.5 s


def test_videos_that_end_before_a_clip_does_are_named_and_kept() -> None:
    brief = Footage("brief", "brief", 9, 2, 2, fps=6.0)  # 1.33 s
    with pytest.warns(UnspoolWarning, match=r"1 of 2 videos last less than the 1.5 s of a clip.*: brief"):
        clips = Clips([Footage("long", "long", 10, 2, 2, fps=6.0), brief], HALF_SECONDS, Numbered(), batch=2)
    by_video = {clip.video: clip for clip in clips.batch_at(0, 0).clips}
    assert len(set(by_video["brief"].indices)) == 4


def test_videos_long_enough_say_nothing_with_time_stamps_or_without() -> None:
    stamps = tuple(np.cumsum([0.0, *[0.1, 0.3] * 12]).tolist())
    stamped = Footage("stamped", "stamped", len(stamps), 2, 2, fps=5.0, stamps=stamps)
    plain = Footage("plain", "plain", 30, 2, 2, fps=6.0)
    clips = Clips([stamped, plain], HALF_SECONDS, Numbered(), batch=2)
    by_video = {clip.video: clip for clip in clips.batch_at(0, 0).clips}
    assert set(np.diff(by_video["plain"].indices)) == {3}
    assert np.abs(np.diff(by_video["stamped"].times) - 0.5).max() <= 0.2

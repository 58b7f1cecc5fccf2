"""Carrying masks through a video: what goes in, what comes out, what is refused."""

import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import unspool
from unspool.encoders import Encoder, load_encoder
from unspool.errors import MaskError, ShapeError, UsageError
from unspool.masks import Mask, write_mask
from unspool.ops import propagation
from unspool.tracking import (
    PRESETS,
    Timings,
    Tracking,
    cost,
    given_masks,
    input_size,
    track,
    tracking_preset,
    with_settings,
)

HEIGHT, WIDTH, FRAMES = 48, 64, 6


class Moving:
    """Two squares of constant colours that move over a dark ground; their masks are known."""

    name = "moving"
    height, width = HEIGHT, WIDTH

    def __init__(self, enters: int = 0) -> None:
        self.frames, self.enters = FRAMES, enters  # the second square comes at frame `enters`

    def __len__(self) -> int:
        return self.frames

    def labels(self, t: int) -> np.ndarray:
        labels = np.zeros((HEIGHT, WIDTH), np.uint8)
        labels[8:24, 8 + 2 * t : 24 + 2 * t] = 1
        if t >= self.enters:
            labels[28:44, 40 - 2 * t : 56 - 2 * t] = 2
        return labels

    def __iter__(self) -> Iterator[np.ndarray]:
        colours = np.array([[20, 20, 20], [230, 40, 40], [40, 40, 230]], np.uint8)
        return (colours[self.labels(t)] for t in range(self.frames))


class Colours(torch.nn.Module):
    """Features are the colours themselves, 4 px per token."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(images, 4)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder(Colours(), patch=4, device="cpu")


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))


def test_objects_are_followed(encoder: Encoder) -> None:
    video = Moving()
    for t, labels in enumerate(track(video, video.labels(0), encoder)):
        for object_ in (1, 2):
            assert overlap(labels == object_, video.labels(t) == object_) > 0.7, (t, object_)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_gives_a_label_map_per_frame(encoder: Encoder, preset: str) -> None:
    video, how = Moving(), with_settings(tracking_preset(preset), {"features": "tokens"})
    maps = list(track(video, video.labels(0), encoder, how))
    assert [m.shape for m in maps] == [(HEIGHT, WIDTH)] * FRAMES
    assert all(set(np.unique(m)) <= {0, 1, 2} for m in maps)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_tracker_gives_what_track_gives_frame_by_frame(encoder: Encoder, preset: str) -> None:
    video, how = Moving(enters=2), with_settings(tracking_preset(preset), {"features": "tokens"})
    late = np.where(video.labels(2) == 2, 2, 0)
    tracker = unspool.Tracker(video.labels(0), encoder, how)
    expected = track(video, {0: video.labels(0), 2: late}, encoder, how)
    for t, (image, labels) in enumerate(zip(video, expected, strict=True)):
        assert np.array_equal(tracker.step(image, late if t == 2 else None), labels)
    assert tracker.frames == FRAMES


def test_a_tracker_remembers_no_more_after_many_frames(encoder: Encoder) -> None:
    video = Moving()
    how = with_settings(tracking_preset("dul"), {"propagation": {"context": 2}})
    tracker = unspool.Tracker(video.labels(0), encoder, how)
    sizes = []
    for t in range(12):
        tracker.step(list(video)[t % FRAMES])
        sizes.append(len(pickle.dumps(tracker._state)))
    assert max(sizes[4:]) <= 1.01 * max(sizes[:5])


def test_a_tracker_refuses_frames_that_change_their_size(encoder: Encoder) -> None:
    tracker = unspool.Tracker(Moving().labels(0), encoder)
    tracker.step(next(iter(Moving())))
    with pytest.raises(ShapeError, match=r"frame 1 is \[32, 64, 3\], expected \[48, 64, 3\]"):
        tracker.step(np.zeros((32, 64, 3), np.uint8))


def test_a_tracker_refuses_a_mask_of_another_size(encoder: Encoder) -> None:
    with pytest.raises(MaskError, match="the video is 64x48"):
        unspool.Tracker(np.ones((32, 64), np.uint8), encoder).step(next(iter(Moving())))


def test_a_given_mask_is_kept_exactly(encoder: Encoder) -> None:
    video = Moving()
    odd = video.labels(0)
    odd[1, 1] = 1  # one pixel that no feature grid can hold
    assert np.array_equal(next(iter(track(video, odd, encoder))), odd)


def test_ids_with_gaps_and_above_255_are_kept(encoder: Encoder) -> None:
    video = Moving()
    mask = np.array([0, 7, 300], np.uint16)[video.labels(0)]
    last = list(track(video, mask, encoder))[-1]
    assert set(np.unique(last)) == {0, 7, 300}


def test_an_object_that_comes_later_is_followed_from_its_frame_on(encoder: Encoder) -> None:
    video = Moving(enters=3)
    masks = {0: video.labels(0), 3: np.where(video.labels(3) == 2, 2, 0)}
    maps = list(track(video, masks, encoder))
    assert all(2 not in m for m in maps[:3])
    assert np.array_equal(maps[3] == 2, video.labels(3) == 2)
    assert overlap(maps[5] == 2, video.labels(5) == 2) > 0.7
    assert overlap(maps[5] == 1, video.labels(5) == 1) > 0.7


def test_an_object_that_is_given_again_is_corrected(encoder: Encoder) -> None:
    video = Moving()
    wrong = {0: video.labels(0), 2: np.where(video.labels(2) == 2, 1, 0)}  # object 1 is the other square now
    maps = list(track(video, wrong, encoder))
    assert overlap(maps[2] == 1, video.labels(2) == 2) == 1.0
    assert overlap(maps[5] == 1, video.labels(5) == 2) > 0.5


def test_the_frames_before_the_first_mask_are_empty(encoder: Encoder) -> None:
    video = Moving()
    maps = list(track(video, {2: video.labels(2)}, encoder))
    assert not maps[0].any() and not maps[1].any()
    assert np.array_equal(maps[2], video.labels(2))


def test_a_mask_file_and_its_array_give_the_same(encoder: Encoder, tmp_path: Path) -> None:
    video = Moving()
    write_mask(tmp_path / "first.png", video.labels(0))
    for a, b in zip(
        track(video, tmp_path / "first.png", encoder), track(video, video.labels(0), encoder), strict=True
    ):
        assert np.array_equal(a, b)


def test_a_mask_of_another_size_names_both_and_the_remedy(encoder: Encoder) -> None:
    mask = Mask(np.ones((24, 32), np.uint8), (1,), path="first.png")
    with pytest.raises(MaskError, match=r"first\.png: mask is 32x24, but the video is 64x48.*--resize-mask"):
        list(track(Moving(), mask, encoder))
    assert next(iter(track(Moving(), mask, encoder, resize_mask=True))).all()


def test_a_mask_beyond_the_last_frame_is_refused(encoder: Encoder) -> None:
    with pytest.raises(MaskError, match=r"frame 6, but the video's frames are 0 to 5"):
        list(track(Moving(), {6: Moving().labels(0)}, encoder))


def test_frames_are_taken_one_at_a_time(encoder: Encoder) -> None:
    taken = []

    class Counted(Moving):
        def __iter__(self) -> Iterator[np.ndarray]:
            for image in super().__iter__():
                taken.append(1)
                yield image

    maps = iter(track(Counted(), Moving().labels(0), encoder))
    next(maps)
    assert len(taken) == 1


def test_the_same_input_gives_the_same_output(encoder: Encoder) -> None:
    video = Moving()
    first, second = (np.stack(list(track(video, video.labels(0), encoder))) for _ in range(2))
    assert np.array_equal(first, second)


def test_stages_are_timed(encoder: Encoder) -> None:
    clock = Timings()
    list(track(Moving(), Moving().labels(0), encoder, timings=clock))
    assert clock.encode > 0 and clock.propagate > 0 and clock.decode > 0


@pytest.mark.parametrize(
    ("size", "how", "expected"),
    [
        ((480, 854), Tracking(), (480, 856)),
        ((480, 854), Tracking(short_side=480, long_side_multiple=64), (480, 832)),
        ((854, 480), Tracking(short_side=480, long_side_multiple=64), (832, 480)),
        ((1080, 1920), Tracking(short_side=240), (240, 424)),
    ],
)
def test_the_encoders_input_follows_the_preset_and_its_patches(
    encoder: Encoder, size: tuple[int, int], how: Tracking, expected: tuple[int, int]
) -> None:
    assert input_size(*size, encoder, how) == expected


def test_an_unknown_setting_names_those_that_exist() -> None:
    with pytest.raises(UsageError, match=r"'propagation\.topk' is unknown; there are top_k"):
        with_settings(Tracking(), {"propagation": {"topk": 5}})
    with pytest.raises(UsageError, match=r"preset 'dull' is unknown; there are dul, crw, dino"):
        tracking_preset("dull")


def test_costs_are_positive_and_grow_with_the_frame(encoder: Encoder) -> None:
    video = Moving()
    small = cost(video, encoder, Tracking())
    video.height, video.width = 480, 640
    large = cost(video, encoder, Tracking())
    assert 0 < small[0] < large[0]
    assert 0 < small[1].peak(None) < large[1].peak(None)


def test_track_is_public() -> None:
    assert unspool.track is track


def test_less_memory_changes_no_label(encoder: Encoder) -> None:
    video = Moving()
    free = np.stack(list(track(video, video.labels(0), encoder)))
    how = tracking_preset("dul")
    least = cost(video, encoder, how)[1].least
    tight = np.stack(list(track(video, video.labels(0), encoder, how, memory=least)))
    assert np.array_equal(free, tight)


def test_too_little_memory_names_the_least_that_works(encoder: Encoder) -> None:
    video, how = Moving(), tracking_preset("dul")
    least = cost(video, encoder, how)[1].least
    with pytest.raises(UsageError, match=f"the least that works is {least}"):
        next(track(video, video.labels(0), encoder, how, memory=least - 1))


def test_memory_sizes_the_tiles_of_similarities_and_of_labels(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []
    for name in ("step", "soft_to_labels"):
        plain = getattr(propagation, name)
        monkeypatch.setattr(
            propagation, name, lambda *a, plain=plain, **k: given.append(k["memory"]) or plain(*a, **k)
        )
    video, how = Moving(), tracking_preset("dul")
    needs = cost(video, encoder, how)[1]
    next(track(video, video.labels(0), encoder, how, memory=needs.fixed + 2 * 10**7))
    assert given and set(given) == {10**7}


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (np.zeros((HEIGHT, WIDTH), np.uint8), "no object in this mask"),
        (np.ones((HEIGHT, WIDTH), np.float32), "an array of float32; give integers"),
        (np.ones((HEIGHT, WIDTH, 3), np.uint8), r"shape \(48, 64, 3\); give a label map"),
        (np.full((HEIGHT, WIDTH), -1), "values run from -1 to -1"),
        (np.full((HEIGHT, WIDTH), 70_000), "ids are 0 to 65535"),
        (np.ones((0, 0), np.uint8), "label map"),
    ],
)
def test_an_array_that_is_no_mask_is_refused_with_what_would_be_one(mask: np.ndarray, says: str) -> None:
    with pytest.raises(MaskError, match=rf"moving, mask of frame 2: .*{says}"):
        given_masks(Moving(), {2: mask})


def test_a_mask_of_truth_values_holds_object_1() -> None:
    (mask,) = given_masks(Moving(), {0: Moving().labels(0) > 0}).values()
    assert mask.ids == (1,)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("done", [1, 3, FRAMES - 1])
def test_a_tracker_goes_on_where_another_was(encoder: Encoder, preset: str, done: int) -> None:
    video, how = Moving(enters=2), with_settings(tracking_preset(preset), {"features": "tokens"})
    masks = {0: video.labels(0), 2: np.where(video.labels(2) == 2, 2, 0)}
    expected = list(track(video, masks, encoder, how))
    images = list(video)
    earlier = unspool.Tracker(masks, encoder, how)
    for image in images[:done]:
        earlier.step(image)
    later = unspool.Tracker(masks, encoder, how, kept=earlier.keep())
    for image in images[:done]:
        later.recall(image)
    for image, labels in zip(images[done:], expected[done:], strict=True):
        assert np.array_equal(later.step(image), labels)
    assert later.frames == FRAMES


def test_what_is_kept_while_frames_are_recalled_is_what_was_kept_before(encoder: Encoder) -> None:
    video = Moving()
    images = list(video)
    expected = list(track(video, video.labels(0), encoder))
    kept = None
    for _ in range(2):  # the second time from a tracker that has stepped no further
        tracker = unspool.Tracker(video.labels(0), encoder, kept=kept)
        for image in images[:3]:
            tracker.step(image) if kept is None else tracker.recall(image)
        kept = tracker.keep()
    tracker = unspool.Tracker(video.labels(0), encoder, kept=kept)
    for image in images[:3]:
        tracker.recall(image)
    for image, labels in zip(images[3:], expected[3:], strict=True):
        assert np.array_equal(tracker.step(image), labels)


def test_of_the_frames_that_are_done_only_those_still_looked_at_are_encoded() -> None:
    class Counting(Colours):
        calls = 0

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            Counting.calls += 1
            return super().forward(images)

    video = Moving()
    how = with_settings(tracking_preset("dul"), {"features": "tokens", "propagation": {"context": 2}})
    encoder = load_encoder(Counting(), patch=4, device="cpu")
    earlier = unspool.Tracker(video.labels(0), encoder, how)
    images = list(video)
    for image in images[:-1]:
        earlier.step(image)
    later = unspool.Tracker(video.labels(0), encoder, how, kept=earlier.keep())
    Counting.calls = 0
    for image in images[:-1]:
        later.recall(image)
    assert Counting.calls == 3  # the reference and two recent frames, of five


def test_frames_are_recalled_first_and_tracked_then(encoder: Encoder) -> None:
    video = Moving()
    images = list(video)
    earlier = unspool.Tracker(video.labels(0), encoder)
    with pytest.raises(UsageError, match="frame 0 was not done"):
        earlier.recall(images[0])
    earlier.step(images[0])
    earlier.step(images[1])
    later = unspool.Tracker(video.labels(0), encoder, kept=earlier.keep())
    later.recall(images[0])
    with pytest.raises(UsageError, match="frame 1 was done before `keep`, as all before 2"):
        later.step(images[1])
    later.recall(images[1])
    with pytest.raises(UsageError, match="frame 2 was not done"):
        later.recall(images[2])

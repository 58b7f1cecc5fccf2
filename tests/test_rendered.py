"""Rendered clips: the same bytes every time, exact truth, and hard enough."""

import hashlib
import pickle
import time
import tracemalloc
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from scipy import ndimage

from unspool.errors import UsageError
from unspool.rendered import DEMOS, RenderedClip, RenderedFrame, demo_scene, render
from unspool.rendered.creatures import KINDS, SEMANTIC
from unspool.rendered.grounds import GROUNDS

SMALL = {"height": 96, "width": 128}


def digest(frame: RenderedFrame) -> str:
    parts = (frame.image, frame.labels, frame.semantic, frame.flow, frame.visibility)
    return hashlib.sha256(b"".join(np.ascontiguousarray(p).tobytes() for p in parts)).hexdigest()


def jaccard(prediction: np.ndarray, truth: np.ndarray, objects: int) -> list[float]:
    scores = []
    for k in range(1, objects + 1):
        union = np.count_nonzero((prediction == k) | (truth == k))
        scores.append(np.count_nonzero((prediction == k) & (truth == k)) / union if union else 1.0)
    return scores


# ------------------------------------------------------------------------------------- determinism


def test_equal_scenes_give_equal_bytes() -> None:
    frames = [digest(render(3, **SMALL)[7]) for _ in range(2)]
    assert frames[0] == frames[1]


def test_another_seed_is_another_clip() -> None:
    assert not np.array_equal(render(3, **SMALL).image(0), render(4, **SMALL).image(0))


def test_any_order_gives_the_frames_of_the_sequence() -> None:
    clip = render(5, frames=6, **SMALL)
    in_order = [digest(frame) for frame in clip]
    again = render(5, frames=6, **SMALL)
    assert [digest(again[t]) for t in (4, 0, 5, 2)] == [in_order[t] for t in (4, 0, 5, 2)]


def test_a_pickled_clip_renders_the_same_in_a_worker() -> None:
    clip = render(6, **SMALL)
    before = digest(clip[3])
    assert digest(pickle.loads(pickle.dumps(clip))[3]) == before


def test_the_number_of_frames_changes_no_frame() -> None:
    assert digest(render(2, frames=5, **SMALL)[4]) == digest(render(2, frames=500, **SMALL)[4])


# --------------------------------------------------------------------------------------- the masks


@pytest.mark.parametrize("seed", range(4))
def test_masks_are_those_of_a_clip_three_times_larger_read_at_the_pixel_centres(seed: int) -> None:
    clip, large = (render(seed, height=80 * k, width=112 * k) for k in (1, 3))
    for t in (0, 11, 30):
        np.testing.assert_array_equal(clip.labels(t), large.labels(t)[1::3, 1::3])


def test_a_ball_is_the_disc_that_its_path_says() -> None:
    clip = render(
        1,
        height=90,
        width=120,
        objects=1,
        lookalikes=0,
        occluders=0,
        kinds=("ball",),
        deformation=0.0,
        camera=0.0,
    )
    body = clip.stage.actors[0].body
    x, y = np.arange(120) + 0.5, (np.arange(90) + 0.5)[:, None]
    for t in range(0, 48, 6):
        centre_x, centre_y = body.path.at(t / 24)
        radius = 0.95 * body.scale
        disc = np.hypot((x - 60) / 90 - centre_x, (y - 45) / 90 - centre_y) < radius
        np.testing.assert_array_equal(clip.labels(t) == 1, disc)


def test_half_covered_pixels_are_half_mixed() -> None:
    """The picture's edge is smooth around the mask's: its mean is the supersampled one."""
    plain = {"grain": 0.0, "light": 0.0, "shutter": 0.0, "clutter": 0, "occluders": 0}
    clip, large = (render(8, height=64 * k, width=64 * k, **plain) for k in (1, 3))
    pooled = large.image(0).reshape(64, 3, 64, 3, 3).mean((1, 3))
    assert np.abs(pooled - clip.image(0)).mean() < 6


def test_motion_blur_moves_no_mask() -> None:
    sharp, blurred = (render(9, shutter=s, motion=2.0, **SMALL) for s in (0.0, 1.0))
    np.testing.assert_array_equal(sharp.labels(5), blurred.labels(5))
    assert np.abs(sharp.image(5).astype(int) - blurred.image(5)).mean() > 1


def test_semantic_ids_follow_the_objects_and_lookalikes_share_theirs() -> None:
    clip = render(0, objects=4, lookalikes=2, occluders=0, **SMALL)
    classes = clip.stage.semantic
    assert classes[0] == 0
    assert (classes[1], classes[2]) == (classes[3], classes[4])
    assert set(classes[1:].tolist()) <= set(SEMANTIC.values())
    frame = clip[0]
    np.testing.assert_array_equal(frame.semantic, classes[frame.labels])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_in_view_at_the_start(kind: str) -> None:
    clip = render(0, objects=2, lookalikes=0, occluders=0, kinds=(kind,), **SMALL)
    assert clip.visibility(0).min() > 0.5
    assert set(np.unique(clip.labels(0)).tolist()) == {0, 1, 2}


@pytest.mark.parametrize("ground", GROUNDS)
def test_every_ground_has_texture(ground: str) -> None:
    image = render(0, grounds=(ground,), clutter=0, occluders=0, grain=0.0, **SMALL).image(0)
    assert ndimage.generic_filter(image[..., 1].astype(float)[::3, ::3], np.std, 5).mean() > 3


# ---------------------------------------------------------------------------------------- the flow


def carried(frame: RenderedFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows and columns to which the pixels go (nearest), and whether that is in the picture."""
    height, width = frame.labels.shape
    rows, columns = np.indices((height, width))
    columns = np.floor(columns + 0.5 + frame.flow[..., 0]).astype(int)
    rows = np.floor(rows + 0.5 + frame.flow[..., 1]).astype(int)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1), inside


@pytest.mark.parametrize("seed", range(4))
def test_flow_carries_the_inside_of_an_object_into_itself(seed: int) -> None:
    clip = render(seed, objects=1, lookalikes=0, occluders=0, **SMALL)
    for t in (0, 9, 25):
        now, then = clip[t], clip.labels(t + 1)
        rows, columns, inside = carried(now)
        core = ndimage.binary_erosion(now.labels == 1) & inside
        within_rounding = ndimage.binary_dilation(then == 1, np.ones((3, 3)))
        assert within_rounding[rows, columns][core].all()


@pytest.mark.parametrize("seed", range(3))
def test_flow_carries_colours(seed: int) -> None:
    """With constant light the picture moved along the flow is the next picture, except where it is hidden."""
    clip = render(seed, height=160, width=160, light=0.0, grain=0.0, shutter=0.0, occluders=0)
    for t in (3, 20):
        now, then = clip[t], clip.image(t + 1).astype(float)
        y, x = np.indices(now.labels.shape) + np.stack([now.flow[..., 1], now.flow[..., 0]])
        moved = np.stack(
            [ndimage.map_coordinates(then[..., c], [y, x], order=1, mode="nearest") for c in range(3)], -1
        )
        _, _, inside = carried(now)
        error, still = (np.abs(p - now.image).mean(-1)[inside] for p in (moved, then))
        assert np.median(error) < 4
        assert error.mean() < 0.6 * still.mean()


@pytest.mark.parametrize("seed", range(3))
def test_labels_carried_along_the_flow_are_the_next_labels(seed: int) -> None:
    clip = render(seed, height=256, width=320)
    scores = []
    for t in range(0, 47, 6):
        now, then = clip[t], clip.labels(t + 1)
        rows, columns, inside = carried(now)
        depth = clip._truth(t).actors[inside]
        nearest_last = np.argsort(depth, kind="stable")  # where pixels meet, the front one is seen
        prediction = np.full(then.shape, 255, np.uint8)
        prediction[rows[inside][nearest_last], columns[inside][nearest_last]] = now.labels[inside][
            nearest_last
        ]
        known = prediction < 255  # what comes into view cannot be known
        scores += jaccard(prediction[known], then[known], 4)
    assert np.mean(scores) > 0.9


# ---------------------------------------------------------------------------------- the visibility


def test_visibility_is_the_share_that_the_others_leave() -> None:
    clip = render(2, height=120, width=160, objects=4)
    everybody = clip.stage.actors
    for t in (0, 15, 33):
        seen = clip[t]
        for number in clip.ids:
            clip.stage.actors = [a for a in everybody if a.label == number]
            alone, share = clip.labels(t) == number, clip.visibility(t)[number - 1]
            clip.stage.actors = everybody
            uncovered = np.count_nonzero(seen.labels == number) / max(1, np.count_nonzero(alone))
            assert seen.visibility[number - 1] == pytest.approx(share * uncovered, abs=1e-6)


def test_an_object_cut_by_the_frame_counts_its_area_outside() -> None:
    wide, narrow = (
        render(
            1,
            height=90,
            width=w,
            objects=1,
            lookalikes=0,
            occluders=0,
            kinds=("ball",),
            camera=0.0,
            deformation=0.0,
        )
        for w in (120, 120)
    )
    body = narrow.stage.actors[0].body
    area = np.pi * (0.95 * body.scale * 90) ** 2
    for t in range(48):
        assert narrow.visibility(t)[0] * area == pytest.approx(
            np.count_nonzero(wide.labels(t)), abs=0.02 * area
        )


def test_objects_leave_and_come_back() -> None:
    returned = 0
    for seed in range(6):
        clip = render(seed, height=64, width=96, frames=240)
        seen = np.stack([clip.visibility(t) for t in range(0, 240, 6)])
        hidden = seen < 0.02
        returned += sum(bool((h[:-1] & ~h[1:]).any()) for h in hidden.T)
    assert returned >= 6


# -------------------------------------------------------------------------------------- difficulty


def by_colour(clip: RenderedClip, t: int, prior: bool) -> np.ndarray:
    """Each pixel's most likely owner by the 16^3 colour histograms of frame 0, background included."""
    first = clip[0]

    def bins(image: np.ndarray) -> np.ndarray:
        coarse = image.astype(np.int64) // 16
        return coarse[..., 0] * 256 + coarse[..., 1] * 16 + coarse[..., 2]

    found = bins(first.image)
    counts = [np.bincount(found[first.labels == k], minlength=4096) for k in (0, *clip.ids)]
    likelihood = np.stack(counts) / (1 if prior else np.maximum(np.sum(counts, 1, keepdims=True), 1))
    return likelihood[:, bins(clip.image(t))].argmax(0)


@pytest.mark.parametrize("prior", [False, True])
def test_colour_alone_does_not_find_the_objects(prior: bool) -> None:
    scores = []
    for seed in range(6):
        clip = render(seed, height=120, width=160)
        for t in range(1, 48, 8):
            scores += jaccard(by_colour(clip, t, prior), clip.labels(t), 4)
    assert np.mean(scores) < 0.4


# ------------------------------------------------------------------------------------ any size


@pytest.mark.parametrize("size", [(96, 64), (64, 96), (33, 47), (16, 16), (17, 201), (240, 135)])
def test_any_size_renders(size: tuple[int, int]) -> None:
    height, width = size
    frame = render(0, height=height, width=width)[1]
    assert frame.image.shape == (height, width, 3) and frame.image.dtype == np.uint8
    assert frame.labels.shape == frame.semantic.shape == size and frame.labels.dtype == np.uint8
    assert frame.flow.shape == (height, width, 2) and frame.flow.dtype == np.float32
    assert frame.visibility.shape == (4,) and np.isfinite(frame.flow).all()
    assert ((frame.visibility >= 0) & (frame.visibility <= 1)).all()


def test_many_objects_have_many_ids() -> None:
    labels = render(0, height=128, width=128, objects=60, occluders=0, clutter=0).labels(0)
    assert len(np.unique(labels)) > 50


def test_a_frame_late_in_a_long_clip_costs_no_more_than_the_first() -> None:
    clip = render(0, height=64, width=96, frames=10_000)
    clip[0]
    tracemalloc.start()
    started = time.perf_counter()
    for t in (1, 5_000, 9_999):
        clip[t]
    assert time.perf_counter() - started < 5
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 200_000 and peak < 5_000_000
    assert clip[9_999].time == Fraction(9_999, 24)


def test_nothing_jumps_in_a_long_clip() -> None:
    clip = render(1, frames=10_000, **SMALL)
    for t in (0, 4_321, 9_998):
        speed = np.hypot(*np.moveaxis(clip[t].flow, -1, 0))
        assert speed.max() < 20


# ------------------------------------------------------------------------------------- as a video


def test_the_video_is_what_open_video_gives() -> None:
    clip = render(7, frames=5, fps=Fraction(30000, 1001), **SMALL)
    with clip.video as video:
        assert (video.name, video.height, video.width, len(video)) == ("rendered-7", 96, 128, 5)
        assert video.fps == Fraction(30000, 1001)
        assert list(video.times) == [Fraction(1001 * t, 30000) for t in range(5)]
        assert all(np.array_equal(a, clip.image(t)) for t, a in enumerate(video))
        np.testing.assert_array_equal(video[-1], clip.image(4))
        with pytest.raises(IndexError, match="frame 5 asked for, there are 5"):
            video[5]


def test_times_grow_steadily() -> None:
    times = render(0, frames=50, **SMALL).video.times
    assert {b - a for a, b in pairwise(times)} == {Fraction(1, 24)}
    assert times[2:4] == [Fraction(2, 24), Fraction(3, 24)]


@pytest.mark.parametrize(
    "field",
    [
        {"height": 8}, {"frames": 0}, {"objects": 0}, {"objects": 255}, {"lookalikes": 4}, {"shutter": 1.5},
        {"kinds": ("unicorn",)}, {"grounds": ()}, {"fps": Fraction(0)}, {"seed": -1},
    ],
)  # fmt: skip
def test_a_scene_out_of_range_is_refused_by_name(field: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=rf"scene\.{next(iter(field))} = "):
        render(**{"seed": 0, **field})  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------------- the demo


@pytest.mark.parametrize("seed", range(len(DEMOS)))
def test_a_demo_shows_three_objects_one_of_which_vanishes_and_returns(seed: int) -> None:
    scene = demo_scene(seed)
    clip = RenderedClip(replace(scene, height=64, width=112))
    seen = np.stack([clip.visibility(t) for t in range(len(clip))])
    assert (scene.objects, scene.lookalikes) == (3, 1)
    assert seen[0].min() > 0.9
    assert ((seen.min(0) < 0.02) & (seen[-1] > 0.5)).any()
    assert seen[-1].min() > 0.5


@pytest.mark.slow
def test_random_features_do_better_than_colour_and_worse_than_the_flow() -> None:
    from unspool.encoders import load_encoder
    from unspool.tracking import track

    encoder, scores, still = load_encoder("random-resnet18"), [], []
    for seed in (2, 3):
        clip = render(seed, height=256, width=320, frames=16)
        first = clip.labels(0)
        for t, labels in enumerate(track(clip.video, first, encoder)):
            scores += jaccard(labels, clip.labels(t), 4) if t else []
            still += jaccard(first, clip.labels(t), 4) if t else []
    assert np.mean(still) < np.mean(scores)
    assert 0.4 < np.mean(scores) < 0.8

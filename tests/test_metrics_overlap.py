"""Foreground ARI, mean IoU and mBO of whole segmentations."""

import math

import numpy as np
import oracles_metrics as oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from unspool.metrics import (
    adjusted_rand_index,
    fg_ari_frame,
    fg_ari_solv,
    fg_ari_solv_quirks,
    fg_ari_video,
    mbo_frame,
    mbo_video,
    mean_over_objects,
    mean_over_videos,
    miou_frame,
    miou_solv,
    miou_solv_quirks,
    miou_video_hungarian,
)

SHAPE = (5, 9)
SEEDS = st.integers(0, 2**32 - 1)
quickly = settings(deadline=None, max_examples=40)


def video(seed: int, ids: list[int], frames: int = 3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([oracle.blobs(rng, SHAPE, ids) for _ in range(frames)])


def pair_of_videos(seed: int) -> tuple[np.ndarray, np.ndarray]:
    return video(seed, [1, 2, 5]), video(seed + 1, [1, 3, 4, 255])


# -------------------------------------------------------------------------------------- foreground ARI


@quickly
@given(arrays(np.int64, st.tuples(st.integers(1, 4), st.integers(1, 4)), elements=st.integers(0, 6)))
def test_ari_is_its_definition_over_pairs_of_pixels(counts: np.ndarray) -> None:
    rows, columns = (np.repeat(i.ravel(), counts.ravel()) for i in np.indices(counts.shape))
    expected = oracle.adjusted_rand_index(rows, columns)
    assert adjusted_rand_index(counts) == pytest.approx(expected, abs=1e-12)


def test_ari_of_more_pixels_than_their_pairs_fit_into_64_bits() -> None:
    counts = np.array([[2, 1], [1, 2]])
    limit = adjusted_rand_index(counts * 10**5)
    assert adjusted_rand_index(counts * 10**12) == pytest.approx(limit, abs=1e-5)


@quickly
@given(SEEDS)
def test_fg_ari_looks_at_foreground_pixels_only(seed: int) -> None:
    prediction, truth = pair_of_videos(seed)
    kept = (truth > 0) & (truth != 255)
    expected = oracle.adjusted_rand_index(prediction[kept], truth[kept]) if kept.any() else math.nan
    assert fg_ari_video(prediction, truth) == pytest.approx(expected, abs=1e-12, nan_ok=True)
    frames = [
        oracle.adjusted_rand_index(p[k], t[k])
        for p, t, k in zip(prediction, truth, kept, strict=True)
        if k.any()
    ]
    expected = np.mean(frames) if frames else math.nan
    assert fg_ari_frame(prediction, truth) == pytest.approx(expected, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("ari", [fg_ari_video, fg_ari_frame, fg_ari_solv, fg_ari_solv_quirks])
def test_a_video_without_foreground_has_no_ari(ari: object) -> None:
    nothing = np.zeros((2, *SHAPE), np.uint8)
    assert math.isnan(ari(nothing, nothing))


@pytest.mark.parametrize(("segments", "expected"), [([2, 2], 1), ([2, 3], 0)])
def test_one_object_is_all_or_nothing(segments: list[int], expected: float) -> None:
    truth = np.ones((1, 2, 6), np.uint8)
    prediction = np.repeat(np.array(segments, np.uint8), 3)[None, None].repeat(2, axis=1)
    assert fg_ari_frame(prediction, truth) == expected


def test_solv_merges_segments_that_went_unmatched() -> None:
    truth = np.array([[[1, 1, 1, 1, 2, 2, 2, 2]]], np.uint8)
    prediction = np.array([[[1, 1, 3, 4, 2, 2, 5, 6]]], np.uint8)
    merged = np.array([[[1, 1, 0, 0, 2, 2, 0, 0]]], np.uint8)
    assert fg_ari_solv(prediction, truth) == fg_ari_frame(merged, truth)
    assert fg_ari_solv(prediction, truth) != fg_ari_frame(prediction, truth)


# ------------------------------------------------------------------------------------- IoU of objects


def iou(prediction: np.ndarray, truth: np.ndarray, segment: int, label: int) -> float:
    mask, true, kept = prediction == segment, truth == label, truth != 255
    union = ((mask | true) & kept).sum()
    return (mask & true).sum() / union if union else math.nan


def table(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """[segment, object], rows of zeros added so that there are enough."""
    segments = np.unique(prediction[truth != 255])
    objects = sorted(set(np.unique(truth).tolist()) - {0, 255})
    rows = [[iou(prediction, truth, s, o) for o in objects] for s in segments]
    enough = rows + [[0.0] * len(objects)] * len(objects)
    return np.array(enough).reshape(len(enough), len(objects))


@quickly
@given(SEEDS)
def test_video_measures_take_all_pixels_of_the_video_at_once(seed: int) -> None:
    prediction, truth = pair_of_videos(seed)
    expected = table(prediction, truth)
    if not expected.size:
        return
    assert np.array_equal(mbo_video(prediction, truth).iou[:, 0], expected.max(axis=0))
    found = miou_video_hungarian(prediction, truth).iou
    assert found.sum() == pytest.approx(oracle.best_assignment(expected), abs=1e-12)


@quickly
@given(SEEDS)
def test_frame_measures_match_anew_in_every_frame(seed: int) -> None:
    prediction, truth = pair_of_videos(seed)
    hungarian, overlap = miou_frame(prediction, truth), mbo_frame(prediction, truth)
    for t in range(len(truth)):
        present = [i in truth[t] for i in hungarian.ids]
        assert np.array_equal(~np.isnan(hungarian.iou[:, t]), present)
        expected = table(prediction[t], truth[t])
        if expected.size:
            total = np.nansum(hungarian.iou[:, t])
            assert total == pytest.approx(oracle.best_assignment(expected), abs=1e-12)
            assert np.array_equal(overlap.iou[present, t], expected.max(axis=0))


@quickly
@given(SEEDS)
def test_solv_matches_on_the_mean_over_frames_with_either(seed: int) -> None:
    prediction, truth = pair_of_videos(seed)
    found = miou_solv(prediction, truth)
    frames = list(zip(prediction, truth, strict=True))
    for row, label in enumerate(found.ids):
        segment = found.segments[row, 0]
        expected = [iou(p, t, segment, label) for p, t in frames]
        assert np.array_equal(found.iou[row], expected, equal_nan=True)
    segments = np.unique(prediction[truth != 255])
    means = [[np.nanmean([iou(p, t, s, o) for p, t in frames]) for o in found.ids] for s in segments]
    if found.ids:
        padded = np.array(means + [[0.0] * len(found.ids)] * len(found.ids))
        assert found.of_objects().sum() == pytest.approx(oracle.best_assignment(padded), abs=1e-12)


@quickly
@given(SEEDS, st.sampled_from([[0, 1, 2], [1, 2, 3], [0, 2, 5], [3, 4]]))
def test_solv_quirks_are_those_of_its_code(seed: int, ids: list[int]) -> None:
    prediction, truth = video(seed, ids), video(seed + 1, [1, 3, 4, 255])
    overlaps, ari = oracle.solv_quirks(prediction, truth)
    assert miou_solv_quirks(prediction, truth).of_objects().tolist() == pytest.approx(overlaps)
    assert fg_ari_solv_quirks(prediction, truth) == pytest.approx(ari, nan_ok=True)


def test_to_solv_objects_that_come_later_are_background() -> None:
    truth = np.array([[[1, 0]], [[1, 2]]], np.uint8)
    assert miou_solv(truth, truth).of_objects().tolist() == [1, 1]
    found = miou_solv_quirks(truth, truth)
    assert (found.ids, found.of_objects().tolist()) == ((1,), [1])


def test_solv_takes_a_row_for_an_id_where_ids_have_a_gap() -> None:
    truth = np.array([[[0, 1, 2]]], np.uint8)
    without_gap, with_gap = truth, np.array([[[0, 1, 7]]], np.uint8)
    assert miou_solv_quirks(without_gap, truth).of_objects().tolist() == [1, 1]
    assert miou_solv(with_gap, truth).of_objects().tolist() == [1, 1]
    assert miou_solv_quirks(with_gap, truth).of_objects().tolist() == [1, 0]


def test_solv_knows_nineteen_objects() -> None:
    truth = np.arange(25, dtype=np.uint8)[None, None]
    assert miou_solv_quirks(truth, truth).ids == tuple(range(1, 20))


def test_an_object_left_without_a_segment_scores_zero_where_it_is() -> None:
    truth = np.array([[[1, 2]], [[1, 0]]], np.uint8)
    prediction = np.zeros_like(truth)
    found = miou_solv(prediction, truth)
    assert found.segments[:, 0].tolist() in ([0, -1], [-1, 0])
    unmatched = found.segments[:, 0].tolist().index(-1)
    assert found.of_objects()[unmatched] == 0


def test_mbo_lets_objects_share_a_segment() -> None:
    truth = np.array([[[1, 2]]], np.uint8)
    prediction = np.zeros_like(truth)
    assert mbo_video(prediction, truth).iou.tolist() == [[0.5], [0.5]]
    assert sorted(miou_video_hungarian(prediction, truth).iou.ravel().tolist()) == [0, 0.5]


def test_void_pixels_do_not_exist() -> None:
    truth = np.array([[[1, 1, 255, 0]]], np.uint8)
    prediction = np.array([[[3, 3, 3, 0]]], np.uint8)
    assert miou_video_hungarian(prediction, truth).iou.tolist() == [[1]]


def test_the_same_numbers_give_other_means_over_objects_and_over_videos() -> None:
    def labelled(*ids: int) -> np.ndarray:
        return np.array([[list(ids)]], np.uint8)

    two = miou_frame(labelled(1, 2), labelled(1, 2))
    one = miou_frame(labelled(1, 1), labelled(1, 0))
    nothing = miou_frame(labelled(0, 0), labelled(0, 0))
    assert mean_over_objects([two, one, nothing]) == pytest.approx(2.5 / 3)
    assert mean_over_videos([two, one, nothing]) == 0.75
    assert mean_over_videos([1.0, math.nan, 0.0]) == 0.5

from pathlib import Path

import numpy as np
import pytest
import torch

from unspool.errors import DataError, UsageError, WeightsError
from unspool.protocols.maskforward import (
    MaskForward,
    along_flow,
    by_features,
    flows_at_hand,
    overlap,
    sampled,
    score_video,
)

SIDE = 16


def square(x: int) -> np.ndarray:
    labels = np.zeros((SIDE, SIDE), np.uint8)
    labels[4:12, x : x + 4] = 1
    return labels


def test_frames_are_those_nearest_to_the_clock() -> None:
    assert sampled(10, fps=24, seconds=0.1) == [0, 2, 5, 7]  # 0, 2.4, 4.8, 7.2
    assert sampled(4, fps=6, seconds=0.01) == [0, 1, 2, 3]  # each once
    assert sampled(1, fps=24, seconds=0.1) == [0]


def test_a_mask_follows_the_flow_that_is_true_and_leaves_the_frame() -> None:
    images = [np.zeros((SIDE, SIDE, 3), np.uint8)] * 4

    def backwards(now: np.ndarray, before: np.ndarray) -> np.ndarray:
        flow = np.zeros((SIDE, SIDE, 2), np.float32)
        flow[..., 0] = -4.2  # everything moves 4.2 px to the right: nearest, 4
        return flow

    masks = along_flow(square(4) > 0, images, backwards)
    assert [np.array_equal(mask, square(x) > 0) for mask, x in zip(masks[:2], (8, 12), strict=True)] == [
        True
    ] * 2
    assert not masks[2].any()


def test_features_that_are_the_object_carry_its_mask() -> None:
    maps = torch.stack(
        [torch.nn.functional.one_hot(torch.from_numpy(square(x)).long(), 2) for x in (4, 6, 8)]
    )
    masks = by_features(square(4), maps.permute(0, 3, 1, 2).float(), MaskForward(side=SIDE))
    assert np.array_equal(masks, np.stack([square(6), square(8)]) > 0)


def test_overlap_is_a_mean_over_frames_of_the_truth_of_the_same_frame() -> None:
    truth = np.stack([square(4), square(6)])
    truth[0, 0] = 255  # void is left out
    predicted = np.stack([square(4), square(4)]) > 0
    predicted[0, 0] = True
    found = overlap(predicted, truth)
    assert found.foreground == pytest.approx((1 + 1 / 3) / 2)  # 2 of 6 columns
    background = (SIDE * SIDE - 48) / (SIDE * SIDE - 16)
    assert found.both == pytest.approx((1 + (1 / 3 + background) / 2) / 2)


def test_a_frame_without_the_object_says_nothing_of_the_foreground() -> None:
    truth = np.stack([square(4), np.zeros((SIDE, SIDE), np.uint8)])
    found = overlap(np.stack([square(4)] * 2) > 0, truth)
    assert found.foreground == 1.0
    assert found.both < 1.0


def test_every_way_is_scored_at_every_step() -> None:
    truth = np.stack([square(2 + t) for t in range(8)])
    images = [np.zeros((SIDE, SIDE, 3), np.uint8)] * 8
    features = torch.nn.functional.one_hot(torch.from_numpy(truth).long(), 2).permute(0, 3, 1, 2).float()
    still = {"still": lambda now, before: np.zeros((SIDE, SIDE, 2), np.float32)}
    how = MaskForward(seconds=(0.1, 0.2), side=SIDE)
    found = score_video(images, truth, features, 10, still, how)
    assert list(found) == [
        f"{way}-{step}s" for step in ("0.1", "0.2") for way in ("repeat", "still", "forwarder")
    ]
    assert found["repeat-0.1s"] == found["still-0.1s"]
    assert found["forwarder-0.1s"].foreground == 1.0 > found["repeat-0.1s"].foreground


def test_what_cannot_be_carried_is_an_error() -> None:
    images, features = [np.zeros((SIDE, SIDE, 3), np.uint8)] * 2, torch.ones(2, 2, 4, 4)
    how = MaskForward(seconds=(0.5,), side=SIDE)
    with pytest.raises(DataError, match="no object in the first mask"):
        score_video(images, np.zeros((2, SIDE, SIDE), np.uint8), features, 24, {}, how)
    with pytest.raises(DataError, match=r"2 frames at 24/s are shorter than delta t = 0\.5 s"):
        score_video(images, np.stack([square(2)] * 2), features, 24, {}, how)
    with pytest.raises(UsageError, match="must be above 0"):
        MaskForward(seconds=(0.0,))


def test_weights_that_are_not_rafts_are_named(tmp_path: Path) -> None:
    torch.save({"nothing": torch.zeros(1)}, tmp_path / "raft.pth")
    with pytest.raises(WeightsError, match=r"raft\.pth: not the weights of torchvision's raft_large"):
        list(flows_at_hand(tmp_path / "raft.pth"))


def test_opencv_finds_a_shift() -> None:
    pytest.importorskip("cv2")
    noise = np.random.default_rng(0).integers(0, 256, (12, 12, 1)).astype(np.uint8)
    image = noise.repeat(8, 0).repeat(8, 1).repeat(3, 2)
    flow = dict(flows_at_hand())["flow"](np.roll(image, 3, 1), image)
    assert np.median(flow[20:-20, 20:-20, 0]) == pytest.approx(-3, abs=0.3)

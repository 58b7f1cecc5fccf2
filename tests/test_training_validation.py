"""Validation on rendered clips of held-out seeds."""

from pathlib import Path

import numpy as np
from PIL import Image

from unspool.data.scenes import FIRST_SEED
from unspool.encoders import load_encoder
from unspool.training.validation import HeldOut, Validation

SMALL = HeldOut(clips=2, frames=4, height=48, width=64)


def test_its_scenes_are_never_trained_on_and_all_different() -> None:
    seeds = [scene.seed for scene in HeldOut().scenes()]
    assert all(seed < FIRST_SEED for seed in seeds)
    assert len(set(seeds)) == len(seeds)


def test_its_scenes_are_varied() -> None:
    assert len({(s.objects, round(s.motion, 3)) for s in HeldOut().scenes()}) == HeldOut().clips


def test_the_same_encoder_scores_the_same_and_a_score_is_a_share(tmp_path: Path) -> None:
    encoder = load_encoder("random-resnet18", device="cpu")
    first, second = (Validation(SMALL, tmp_path / name)(encoder, 0) for name in "ab")
    assert first == second
    assert all(0 <= value <= 1 for value in first.values())
    assert first["J&F"] == (first["J"] + first["F"]) / 2


def test_it_leaves_a_picture_of_each_time_and_the_truth_beside_them(tmp_path: Path) -> None:
    encoder, validate = load_encoder("random-resnet18", device="cpu"), Validation(SMALL, tmp_path)
    validate(encoder, 0)
    validate(encoder, 250)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000.jpg", "step-000250.jpg", "truth.jpg"]
    with Image.open(tmp_path / "truth.jpg") as picture:
        assert np.asarray(picture).shape == (2 * 48, 4 * 64, 3)

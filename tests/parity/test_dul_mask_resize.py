"""Recordings of the resizing steps alone: mask_resize.npz."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from unspool.ops.resize import labels_to_soft, soft_to_labels, upsample_patches

GOLDEN = Path(os.environ.get("UNSPOOL_GOLDEN", Path(__file__).parents[1] / "golden")) / "dul"
RULES = {"dul": "align_corners", "crw": "half_pixel", "dino": "nearest"}


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(GOLDEN / "mask_resize.npz") as recorded:
        return {key: torch.from_numpy(recorded[key]) for key in recorded.files}


def channels(golden: dict[str, Tensor]) -> tuple[int, ...]:
    return tuple(range(int(golden["n_labels"])))


@pytest.mark.parametrize("method", RULES)
def test_a_mask_comes_down_to_the_feature_grid_as_published(method: str, golden: dict[str, Tensor]) -> None:
    grid = tuple(golden["feat_hw"].tolist())
    low = labels_to_soft(golden["mask"], channels(golden), grid, RULES[method])
    torch.testing.assert_close(low, golden[f"{method}_low"].view_as(low), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", RULES)
def test_soft_labels_go_up_to_ids_as_published(method: str, golden: dict[str, Tensor]) -> None:
    size = tuple(golden["mask"].shape)
    patch = golden["dino_norm"].shape[-1] // golden["soft"].shape[-1]
    labels, confidence = soft_to_labels(golden["soft"][0], channels(golden), size, RULES[method], patch=patch)
    recorded = golden[f"{method}_ids"].view_as(labels)
    assert (labels == recorded).double().mean() >= (0.999 if method == "crw" else 1)
    if method == "dul":
        torch.testing.assert_close(confidence, golden["dul_conf"][0], atol=1e-5, rtol=0)


def test_channels_are_stretched_over_the_frame_as_dino_does(golden: dict[str, Tensor]) -> None:
    patch = golden["dino_norm"].shape[-1] // golden["soft"].shape[-1]
    large = upsample_patches(golden["soft"][0], patch)
    torch.testing.assert_close(large, golden["dino_norm"], atol=1e-5, rtol=0)
    assert torch.equal(large.argmax(dim=0), golden["dino_ids_model"].long())

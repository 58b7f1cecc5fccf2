"""Recordings of DUL's second view: geometry.npz."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import affine_grid

from unspool.ops.geometry import Zooms, align, cells_under, zoom, zoom_matrices

GOLDEN = Path(os.environ.get("UNSPOOL_GOLDEN", Path(__file__).parents[1] / "golden")) / "dul"


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(GOLDEN / "geometry.npz") as recorded:
        return {key: torch.from_numpy(recorded[key]) for key in recorded.files}


@pytest.fixture(scope="module")
def zooms(golden: dict[str, Tensor]) -> Zooms:
    height, width = golden["crop_size"].tolist()
    scale, top, left, box_height, box_width, sign = golden["draws"].unbind(1)
    return Zooms(
        (height, width), sign < 0, scale, top.long(), left.long(), box_height.long(), box_width.long()
    )


def matrices_of(params: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    height, width = size.tolist()
    return zoom_matrices(params[:, :2], params[:, 2].deg2rad(), params[:, 3], params[:, 4], (height, width))


def test_the_draws_give_the_recorded_matrices(golden: dict[str, Tensor], zooms: Zooms) -> None:
    forward, backward = zooms.matrices()
    torch.testing.assert_close(forward, golden["theta_fwd"], atol=1e-6, rtol=0)
    torch.testing.assert_close(backward, golden["theta_inv"], atol=1e-6, rtol=0)


def test_the_recorded_parameters_give_the_recorded_matrices(golden: dict[str, Tensor]) -> None:
    forward, backward = matrices_of(golden["params"], golden["crop_size"])
    torch.testing.assert_close(forward, golden["theta_fwd"], atol=1e-6, rtol=0)
    torch.testing.assert_close(backward, golden["theta_inv"], atol=1e-6, rtol=0)


def test_the_formulas_hold_for_rotations_too(golden: dict[str, Tensor]) -> None:
    forward, backward = matrices_of(golden["general_params"], golden["crop_size"])
    torch.testing.assert_close(forward, golden["general_theta_fwd"], atol=1e-6, rtol=0)
    torch.testing.assert_close(backward, golden["general_theta_inv"], atol=1e-6, rtol=0)


def test_the_second_view_is_the_published_one_bit_for_bit(golden: dict[str, Tensor], zooms: Zooms) -> None:
    images = golden["image"].permute(2, 0, 1).expand(len(golden["draws"]), -1, -1, -1)
    assert torch.equal(zoom(images, zooms), golden["view2"].permute(0, 3, 1, 2))


def test_maps_are_aligned_exactly_as_published(golden: dict[str, Tensor]) -> None:
    assert torch.equal(align(golden["x"], golden["theta_inv"]), golden["aligned"])


def test_the_sampling_grid_is_the_published_one(golden: dict[str, Tensor]) -> None:
    grid = affine_grid(golden["theta_inv"], list(golden["x"].shape), align_corners=False)
    torch.testing.assert_close(grid, golden["grid"], atol=1e-6, rtol=0)


def test_looking_cells_up_is_aligning(golden: dict[str, Tensor]) -> None:
    x = golden["x"]
    cells = cells_under(golden["theta_inv"], (x.shape[2], x.shape[3])).flatten(1)
    looked_up = x.flatten(2).gather(2, cells.clamp(min=0)[:, None].expand(-1, x.shape[1], -1))
    looked_up *= (cells >= 0)[:, None]
    assert torch.equal(looked_up.view_as(x), golden["aligned"])

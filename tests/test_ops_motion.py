"""Motion apart from the camera: against its plain form, and on pictures whose motion is known."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles_motion import plain_steps
from torch import Tensor

from unspool.ops.motion import NOISE, PER_TOKEN, apart_from_camera, displacement, relative_motion, small

GRID = (8, 10)
STEP = st.integers(-4, 4)


def texture(seed: int, side: int = 64) -> Tensor:
    """Smooth, so that half a pixel tells something."""
    made = torch.rand(3, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.avg_pool2d(made, 3, 1, 1).float()


def part(picture: Tensor, down: int, right: int) -> Tensor:
    """What a camera sees that looks this far from the middle."""
    height, width = (PER_TOKEN * side for side in GRID)
    return picture[:, 10 + down : 10 + down + height, 10 + right : 10 + right + width]


@settings(max_examples=3, deadline=None)
@given(st.integers(0, 99))
def test_displacement_is_the_step_of_its_plain_form_and_a_fraction(seed: int) -> None:
    before, after = (texture(seed + other, 12) for other in (0, 100))
    steps = plain_steps(before.double().numpy(), after.double().numpy())
    rest = PER_TOKEN * displacement(before, after).numpy() - steps
    assert np.abs(rest).max() < 0.5 + 1e-5


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 99), STEP, STEP)
def test_a_camera_that_pans_moves_nothing_apart(seed: int, down: int, right: int) -> None:
    picture = texture(seed)
    found = displacement(part(picture, 0, 0), part(picture, down, right))
    panned = -torch.tensor([right, down]).view(2, 1, 1) / PER_TOKEN
    assert torch.allclose(found[:, 2:-2, 2:-2], panned.float(), atol=1e-6)
    assert apart_from_camera(found.double())[2:-2, 2:-2].max() < NOISE


def test_less_than_a_pixel_is_seen() -> None:
    rows = torch.arange(32)[:, None] / 5
    before, after = (
        torch.sin(rows + (torch.arange(40) - left) / 4).expand(3, -1, -1) / 2 + 0.5 for left in (0, 0.3)
    )
    found = PER_TOKEN * displacement(before, after)[:, 2:-2, 2:-2]
    along = found[0] / 4 + found[1] / 5  # of slanted stripes no more is seen
    assert torch.allclose(along, torch.full_like(along, 0.3 / 4), atol=0.02)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 99), STEP, STEP)
def test_what_moves_by_itself_under_any_camera_stands_out(seed: int, down: int, right: int) -> None:
    picture, square = texture(seed), texture(seed + 100, 16)
    before, after = part(picture, 0, 0).clone(), part(picture, down, right).clone()
    before[:, 8:24, 8:24], after[:, 8 - down : 24 - down, 12 - right : 28 - right] = square, square
    moved = relative_motion(before, after)
    there = torch.zeros(GRID, dtype=torch.bool)
    there[(12 - down) // 4 : (20 - down) // 4, (16 - right) // 4 : (24 - right) // 4] = True
    assert moved[there].mean() > 2 * moved[~there].median()


@given(st.floats(-1, 1), st.floats(-0.5, 0.5), st.floats(-0.5, 0.5))
def test_a_camera_that_turns_or_nears_moves_nothing_apart(pan: float, turn: float, near: float) -> None:
    y, x = np.meshgrid(np.linspace(-0.5, 0.5, 6), np.linspace(-0.5, 0.5, 9), indexing="ij")
    moved = torch.from_numpy(np.stack([pan + near * x - turn * y, turn * x + near * y]))
    assert apart_from_camera(moved).max() < 1e-4


def test_a_still_video_has_no_motion() -> None:
    image = small(texture(0), GRID)
    assert relative_motion(image, image).max() == 0


def test_what_has_no_texture_stays() -> None:
    grey = torch.full((3, 4 * GRID[0], 4 * GRID[1]), 0.5)
    assert displacement(grey, grey + 0.1).abs().max() == 0

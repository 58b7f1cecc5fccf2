import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracles_dul import zoomed_by_pillow
from PIL import Image
from torch import Tensor

from unspool.errors import ShapeError
from unspool.ops.geometry import (
    Zooms,
    align,
    cells_under,
    draw_grids,
    draw_zooms,
    resampling,
    zoom,
    zoom_matrices,
)

SIDES = st.integers(3, 40)
SEEDS = st.integers(0, 2**31)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def homogeneous(theta: Tensor) -> Tensor:
    last_row = torch.tensor([0.0, 0.0, 1.0]).expand(len(theta), 1, 3)
    return torch.cat([theta, last_row], dim=1)


@given(SIDES, SIDES, SEEDS)
def test_zooms_are_boxes_of_the_drawn_size_inside_the_image(height: int, width: int, seed: int) -> None:
    zooms = draw_zooms(20, (height, width), (0.5, 1.0), seeded(seed))
    assert torch.equal(zooms.height, (zooms.scale * height).long())
    assert torch.equal(zooms.width, (zooms.scale * width).long())
    assert ((zooms.scale >= 0.5) & (zooms.scale < 1)).all()
    assert ((zooms.top >= 0) & (zooms.top + zooms.height <= height)).all()
    assert ((zooms.left >= 0) & (zooms.left + zooms.width <= width)).all()


def test_every_place_of_a_box_and_both_flips_are_drawn_about_equally_often() -> None:
    zooms = draw_zooms(6000, (10, 14), (0.5, 0.5), seeded(0))
    for counts, share in (
        (zooms.top.bincount(), 1 / 6),
        (zooms.left.bincount(), 1 / 8),
        (zooms.flip.long().bincount(), 1 / 2),
    ):
        assert len(counts) == round(1 / share)
        torch.testing.assert_close(counts / 6000, torch.full((len(counts),), share), atol=0.02, rtol=0)


def test_the_same_generator_draws_the_same_zooms() -> None:
    one, two = (draw_zooms(5, (9, 9), (0.5, 1.0), seeded(3)) for _ in range(2))
    assert torch.equal(one.left, two.left)
    assert torch.equal(one.scale, two.scale)


def test_a_part_of_zooms_is_that_of_its_images() -> None:
    zooms = draw_zooms(6, (32, 48), (0.5, 1.0), seeded(1))
    images = torch.randint(0, 256, (6, 3, 32, 48), dtype=torch.uint8, generator=seeded(2))
    assert torch.equal(zoom(images[2:5], zooms[2:5]), zoom(images, zooms)[2:5])


@given(SIDES, SIDES, SEEDS)
def test_the_two_matrices_of_a_zoom_are_inverse_to_each_other(height: int, width: int, seed: int) -> None:
    forward, backward = draw_zooms(8, (height, width), (0.5, 1.0), seeded(seed)).matrices()
    both = homogeneous(forward) @ homogeneous(backward)
    torch.testing.assert_close(both, torch.eye(3).expand(8, 3, 3), atol=1e-5, rtol=0)


def test_the_matrix_of_a_zoom_leads_to_its_box_within_a_pixel() -> None:
    zooms = draw_zooms(50, (64, 96), (0.5, 1.0), seeded(5))
    theta = zooms.matrices()[1]
    corners = torch.tensor([[-1.0, -1.0, 1.0], [1.0, 1.0, 1.0]]).T
    x, y = (theta @ corners).unbind(1)
    sign = 1 - 2 * zooms.flip.float()[:, None]  # in the flipped image the box runs from left to right
    left, right = ((sign * x + 1) * 48).unbind(1)
    top, bottom = ((y + 1) * 32).unbind(1)
    for edge, pixel in (
        (left, zooms.left),
        (right, zooms.left + zooms.width),
        (top, zooms.top),
        (bottom, zooms.top + zooms.height),
    ):
        assert (edge - pixel).abs().max() <= 1


def test_rotations_mix_the_axes_by_the_aspect() -> None:
    quarter = torch.tensor([torch.pi / 2], dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    forward, _ = zoom_matrices(torch.zeros(1, 2, dtype=torch.float64), quarter, one, one, (40, 80))
    torch.testing.assert_close(forward[0], torch.tensor([[0.0, 0.5, 0.0], [-2.0, 0.0, 0.0]]))


@settings(deadline=None)
@given(SIDES, SIDES, SEEDS)
def test_the_second_view_is_pillows_bit_for_bit(height: int, width: int, seed: int) -> None:
    zooms = draw_zooms(3, (height, width), (0.5, 1.0), seeded(seed))
    images = torch.randint(0, 256, (3, 3, height, width), dtype=torch.uint8, generator=seeded(seed))
    views = zoom(images, zooms)
    for index in range(3):
        expected = zoomed_by_pillow(images[index].permute(1, 2, 0).numpy(), zooms, index)
        assert np.array_equal(views[index].permute(1, 2, 0).numpy(), expected)


def test_a_box_larger_than_the_image_is_black_around_it() -> None:
    box = [torch.tensor([number]) for number in (-3, -5, 30, 33)]
    zooms = Zooms((20, 22), torch.tensor([True]), torch.tensor([1.5], dtype=torch.float64), *box)
    image = torch.randint(0, 256, (1, 3, 20, 22), dtype=torch.uint8, generator=seeded(0))
    expected = zoomed_by_pillow(image[0].permute(1, 2, 0).numpy(), zooms, 0)
    assert np.array_equal(zoom(image, zooms)[0].permute(1, 2, 0).numpy(), expected)


@settings(deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), SEEDS)
def test_resampling_is_pillows_for_any_two_sizes(old: int, new: int, seed: int) -> None:
    image = torch.randint(0, 256, (3, old, 2), dtype=torch.uint8, generator=seeded(seed))
    resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((2, new), Image.Resampling.BILINEAR)
    ours = resampling(old, new).apply(image, dim=1)
    assert np.array_equal(ours.permute(1, 2, 0).numpy(), np.asarray(resized))


def test_zooms_of_another_size_are_refused() -> None:
    zooms = draw_zooms(2, (16, 16), (0.5, 1.0), seeded(0))
    with pytest.raises(ShapeError, match=r"zooms 2 of \(16, 16\)"):
        zoom(torch.zeros(2, 3, 16, 20, dtype=torch.uint8), zooms)


@settings(deadline=None)
@given(st.integers(2, 12), st.integers(2, 12), SEEDS)
def test_looking_up_cells_is_nearest_alignment(height: int, width: int, seed: int) -> None:
    theta = torch.randn(4, 2, 3, generator=seeded(seed)) * 0.6
    maps = torch.rand(4, 2, height, width, generator=seeded(seed)) + 0.1
    cells = cells_under(theta, (height, width)).flatten(1)
    looked_up = maps.flatten(2).gather(2, cells.clamp(min=0)[:, None].expand(-1, 2, -1))
    looked_up *= (cells >= 0)[:, None]
    assert torch.equal(looked_up.view_as(maps), align(maps, theta))


def test_aligning_the_first_view_shows_what_the_second_shows() -> None:
    smooth = torch.linspace(0, 255, 96)[None, :] / 2 + torch.linspace(0, 255, 64)[:, None] / 2
    images = smooth.to(torch.uint8).expand(6, 1, 64, 96)
    zooms = draw_zooms(6, (64, 96), (0.5, 1.0), seeded(4))
    aligned = align(images.float(), zooms.matrices()[1], mode="bilinear")
    difference = (aligned - zoom(images, zooms)).abs()
    assert difference[:, :, 2:-2, 2:-2].max() < 5  # a pixel's step is 2; the edge fades to zero


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 8), SEEDS)
def test_anchor_grids_are_regular_and_within_the_map(height: int, width: int, side: int, seed: int) -> None:
    assume(side <= min(height, width))
    cells = draw_grids(7, (height, width), side, seeded(seed))
    assert cells.shape == (7, side * side)
    assert ((cells >= 0) & (cells < height * width)).all()
    y, x = (cells // width).view(7, side, side), (cells % width).view(7, side, side)
    assert (y.diff(dim=1) == height // side).all()
    assert (x.diff(dim=2) == width // side).all()
    assert (y.diff(dim=2) == 0).all()
    assert (x.diff(dim=1) == 0).all()


@pytest.mark.parametrize("size", [(8, 8), (9, 13)])
def test_every_cell_can_become_an_anchor(size: tuple[int, int]) -> None:
    cells = draw_grids(4000, size, 4, seeded(0))
    assert len(cells.unique()) == size[0] * size[1]


def test_a_map_smaller_than_the_grid_is_refused_with_the_remedy() -> None:
    with pytest.raises(ShapeError, match=r"5x9 has no room for 8x8 anchors; use larger crops or fewer"):
        draw_grids(1, (5, 9), 8, seeded(0))

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles_augment import normalised, placed, recoloured
from PIL import Image
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from unspool import ShapeError, UsageError
from unspool.data import augment
from unspool.data.augment import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Augmentation,
    Draws,
    draw,
    normalise,
    place,
    recolour,
)

ALL = Augmentation(size=(24, 32), short_side=(30, 40), jitter=1.0, grey=0.3, blur=0.5, blur_taps=(7, 9))
SIZES = [(36, 64), (48, 30), (33, 33), (90, 41)]


def clips(sizes: list[tuple[int, int]] = SIZES, frames: int = 3) -> list[Tensor]:
    rng = np.random.default_rng(0)
    made = [rng.integers(0, 256, (frames, *size, 3), dtype=np.uint8) for size in sizes]
    return [torch.from_numpy(clip).permute(0, 3, 1, 2) for clip in made]


def drawn(how: Augmentation, sizes: list[tuple[int, int]] = SIZES, seed: int = 0) -> Draws:
    return draw(how, sizes, [np.random.default_rng((seed, i)) for i in range(len(sizes))])


def image_of(clip: Tensor, frame: int) -> np.ndarray:
    return clip[frame].permute(1, 2, 0).numpy()


# --------------------------------------------------------------------------------------------- drawing


def test_a_draw_depends_on_its_own_generator_alone() -> None:
    together = drawn(ALL)
    alone = draw(ALL, SIZES[2:3], [np.random.default_rng((0, 2))])
    for name in list(Draws.__dataclass_fields__)[1:]:
        assert torch.equal(getattr(together.part(2, 3), name), getattr(alone, name))


def test_the_short_side_lies_in_its_range_and_the_shape_is_kept() -> None:
    how = Augmentation(size=(24, 24), short_side=(30, 40))
    resized = torch.cat([drawn(how, [(36, 64)], seed).resized for seed in range(200)])
    assert set(resized[:, 0].tolist()) == set(range(30, 40))
    assert (resized[:, 1] == (resized[:, 0] * 64 / 36).long()).all()


def test_a_range_of_one_size_gives_that_size() -> None:
    assert drawn(replace(ALL, short_side=(30, 30)), [(60, 90)]).resized.tolist() == [[30, 45]]


def test_random_crops_reach_every_place() -> None:
    how = Augmentation(size=(4, 4), short_side=None)
    corners = {tuple(drawn(how, [(6, 7)], seed).box[0, :2].tolist()) for seed in range(300)}
    assert corners == {(top, left) for top in range(3) for left in range(4)}


def test_a_frame_smaller_than_the_crop_stands_in_the_middle_and_the_rest_is_not_valid() -> None:
    how = Augmentation(size=(8, 8), short_side=None, flip=0.0)
    for crop in ("random", "centre"):
        views = place(
            [torch.full((2, 3, 5, 8), 9, dtype=torch.uint8)], drawn(replace(how, crop=crop), [(5, 8)])
        )
        assert views.valid[0].all(dim=1).tolist() == [False] + [True] * 5 + [False] * 2
        assert torch.equal(views.frames[0, 0, 0] > 0, views.valid[0])


def test_boxes_follow_torchvisions_law() -> None:
    how = Augmentation(size=(8, 8), short_side=None, crop="box", box_scale=(0.4, 1.0))
    ours = np.array([drawn(how, [(60, 80)], seed).box[0].tolist() for seed in range(3000)], float)
    torch.manual_seed(0)
    get = torchvision.transforms.RandomResizedCrop.get_params
    theirs = np.array([get(torch.empty(3, 60, 80), [0.4, 1.0], [3 / 4, 4 / 3]) for _ in range(3000)], float)
    assert np.allclose(ours.mean(0), theirs.mean(0), atol=0.6)
    assert np.allclose(ours.std(0), theirs.std(0), atol=0.6)


@pytest.mark.parametrize("size", [(10, 200), (200, 10), (40, 40)])
def test_a_box_that_never_fits_becomes_torchvisions_central_one(size: tuple[int, int]) -> None:
    how = Augmentation(size=(8, 8), short_side=None, crop="box", box_scale=(4.0, 4.0))
    get = torchvision.transforms.RandomResizedCrop.get_params
    expected = get(torch.empty(3, *size), [4.0, 4.0], [3 / 4, 4 / 3])
    assert tuple(drawn(how, [size]).box[0].tolist()) == tuple(expected)


def test_the_four_colour_changes_come_in_any_order() -> None:
    orders = {tuple(drawn(ALL, [(60, 60)], seed).order[0].tolist()) for seed in range(400)}
    assert len(orders) == math.factorial(4)


def test_factors_keep_to_their_ranges() -> None:
    how = replace(ALL, brightness=0.4, contrast=1.5, saturation=0.2, hue=0.1)
    factors = torch.cat([drawn(how, [(60, 60)], seed).factors for seed in range(200)])
    low, high = torch.tensor([0.6, 0.0, 0.8, -0.1]), torch.tensor([1.4, 2.5, 1.2, 0.1])
    assert ((factors >= low) & (factors <= high)).all()
    assert (factors.amax(0) - factors.amin(0) > 0.8 * (high - low)).all()


def test_probabilities_are_kept() -> None:
    how = replace(ALL, flip=0.2, jitter=0.7, grey=0.4, blur=0.9)
    many = [drawn(how, [(60, 60)], seed) for seed in range(600)]
    shares = {
        "flip": sum(d.flip.item() for d in many) / 600,
        "jitter": sum(d.order[0, 3].item() >= 0 for d in many) / 600,
        "grey": sum(d.grey.item() for d in many) / 600,
        "blur": sum(d.sigma.item() > 0 for d in many) / 600,
    }
    assert shares == pytest.approx({"flip": 0.2, "jitter": 0.7, "grey": 0.4, "blur": 0.9}, abs=0.06)


def test_even_kernels_and_reversed_ranges_are_refused() -> None:
    with pytest.raises(UsageError, match="odd"):
        Augmentation(blur=0.5, blur_taps=(4, 5))
    with pytest.raises(UsageError, match="smaller size first"):
        Augmentation(short_side=(320, 256))


# -------------------------------------------------------------------------------------------- geometry


@pytest.mark.parametrize("crop", ["random", "centre", "box", "whole"])
@pytest.mark.parametrize("seed", range(4))
def test_views_are_pillows_to_two_levels(crop: str, seed: int) -> None:
    draws = drawn(replace(ALL, crop=crop), seed=seed)
    footage = clips()
    views = place(footage, draws)
    for number, clip in enumerate(footage):
        for frame in range(len(clip)):
            expected = placed(image_of(clip, frame), draws, number).astype(int)
            shown = views.frames[number, frame].permute(1, 2, 0).numpy()
            assert np.abs(shown - expected).max() <= 2  # one for each resize


def test_frames_that_already_fit_are_copied_bit_for_bit() -> None:
    footage = clips([(24, 32)] * 2)
    views = place(footage, drawn(Augmentation(size=(24, 32), short_side=None, flip=0.0), [(24, 32)] * 2))
    assert all(torch.equal(view, clip) for view, clip in zip(views.frames, footage, strict=True))
    assert views.valid.all()


def test_a_flip_flips_the_validity_too() -> None:
    how = Augmentation(size=(6, 9), short_side=None)
    footage = [torch.full((1, 3, 6, 6), 7, dtype=torch.uint8)]
    views = [place(footage, drawn(replace(how, flip=p), [(6, 6)])) for p in (0.0, 1.0)]
    assert torch.equal(views[0].valid, views[1].valid.flip(-1))
    assert all(torch.equal(v.frames[0, 0, 0] > 0, v.valid[0]) for v in views)


def test_frames_of_another_size_than_drawn_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"clip 1 has frames of \(9, 9\).*\(48, 30\)"):
        place([clips()[0], *clips([(9, 9)])], drawn(ALL, SIZES[:2]))


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), crop=st.sampled_from(["random", "centre", "box", "whole"]))
def test_the_matrices_are_each_others_inverse(seed: int, crop: str) -> None:
    draws = drawn(replace(ALL, crop=crop), seed=seed)
    bottom = torch.tensor([0.0, 0.0, 1.0]).expand(len(SIZES), 1, 3)
    there, back = (torch.cat([m, bottom], 1) for m in (draws.view_to_frame(), draws.frame_to_view()))
    assert torch.allclose(there @ back, torch.eye(3).expand(len(SIZES), 3, 3), atol=1e-5)


@pytest.mark.parametrize("crop", ["random", "centre", "box", "whole"])
def test_sampling_the_frame_by_the_matrix_shows_the_view(crop: str) -> None:
    ramp = torch.stack(torch.meshgrid(torch.arange(60), torch.arange(90), indexing="ij")).float()
    frame = torch.cat([ramp * 2, ramp[:1] * 0])[None].to(
        torch.uint8
    )  # smooth, so that resizing hardly matters
    for seed in range(6):
        how = replace(ALL, crop=crop, short_side=(40, 60))
        draws = drawn(how, [(60, 90)], seed)
        view = place([frame], draws)
        grid = affine_grid(draws.view_to_frame(), [1, 3, *how.size], align_corners=False)
        sampled = grid_sample(frame.float(), grid, align_corners=False, padding_mode="border")
        assert (sampled - view.frames[0].float()).abs()[..., 2:-2, 2:-2].max() < 3


# ---------------------------------------------------------------------------------------------- colour


@pytest.mark.parametrize("seed", range(5))
def test_colours_are_torchvisions(seed: int) -> None:
    draws = drawn(ALL, seed=seed)
    views = place(clips(), draws)
    ours = recolour(views.frames, draws)
    for number in range(len(SIZES)):
        for frame in range(3):
            expected = recoloured(views.frames[number, frame].float() / 255, draws, number)
            assert (ours[number, frame] - expected).abs().max() < 1e-4


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("change", range(4))
def test_plain_colours_and_limits_are_torchvisions(change: int, value: float) -> None:
    draws = drawn(replace(ALL, grey=0.0, blur=0.0), [(24, 32)])
    order, factors = torch.full((1, 4), -1), torch.zeros(1, 4)
    order[0, 0], factors[0, change] = change, value / 2 if change == augment.HUE else value
    draws = replace(draws, order=order, factors=factors)
    corners = torch.tensor(
        np.stack(np.meshgrid(*[[0, 128, 255]] * 3), 0).reshape(3, -1, 3), dtype=torch.uint8
    )
    ours = recolour(corners[None, None], draws)[0, 0]
    assert (ours - recoloured(corners.float() / 255, draws, 0)).abs().max() < 1e-5


def test_all_frames_of_a_clip_change_alike() -> None:
    footage = [clip[:1].expand(4, -1, -1, -1) for clip in clips()]
    draws = drawn(ALL)
    frames = recolour(place(footage, draws).frames, draws)
    assert (frames == frames[:, :1]).all()


def test_the_last_jitter_only_equals_that_one_change() -> None:
    how = replace(ALL, jitter_acts="last", grey=0.0, blur=0.0)
    draws, every = drawn(how), drawn(replace(how, jitter_acts="all"))
    assert (draws.order[:, :3] == -1).all()
    assert torch.equal(draws.order[:, 3], every.order[:, 3])


def test_without_colour_changes_the_frames_are_the_bytes_over_255() -> None:
    draws = drawn(replace(ALL, jitter=0.0, grey=0.0, blur=0.0))
    views = place(clips(), draws)
    assert torch.equal(recolour(views.frames, draws), views.frames / 255)


def test_a_blur_wider_than_the_view_is_refused() -> None:
    with pytest.raises(ShapeError, match="fewer taps"):
        augment.gaussian_blur(torch.zeros(1, 3, 5, 40), 1.0, (11, 11))


def test_normalising_is_torchvisions_and_zero_where_there_is_no_frame() -> None:
    frames, valid = torch.rand(2, 3, 3, 6, 7), torch.rand(2, 6, 7) > 0.3
    ours = normalise(frames.clone(), valid)
    for number in range(2):
        expected = normalised(frames[number], valid[number], IMAGENET_MEAN, IMAGENET_STD)
        assert torch.allclose(ours[number], expected, atol=1e-6)


def test_drawing_and_applying_leave_the_runs_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    draws = drawn(ALL)
    recolour(place(clips(), draws).frames, draws)
    assert torch.equal(before, torch.get_rng_state())


def test_jitter_is_kornias_where_it_is_installed() -> None:
    kornia = pytest.importorskip("kornia")
    clip = torch.rand(2, 3, 12, 16)
    for ours, theirs, value in (
        (augment.adjust_brightness, kornia.enhance.adjust_brightness_accumulative, 1.3),
        (augment.adjust_saturation, kornia.enhance.adjust_saturation_with_gray_subtraction, 0.4),
        (augment.adjust_hue, lambda x, turns: kornia.enhance.adjust_hue(x, 2 * math.pi * turns), 0.17),
    ):
        changed = clip.clone()
        ours(changed, value)
        assert (changed - theirs(clip, value)).abs().max() < 1e-3


# --------------------------------------------------------------------------------- labels, as Pillow


@pytest.mark.parametrize("size", [(16, 16), (31, 20), (40, 60)])
def test_resizing_as_pillow_is_pillows_resize_bit_for_bit(size: tuple[int, int]) -> None:
    frames = torch.randint(
        0, 256, (2, 3, 24, 36), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    found = augment.resize_as_pillow(frames, size)
    for frame, ours in zip(frames, found, strict=True):
        image = Image.fromarray(frame.permute(1, 2, 0).numpy())
        expected = np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR))
        assert np.array_equal(ours.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("seed", range(6))
def test_labels_are_placed_as_pillow_would_place_them(seed: int) -> None:
    how = Augmentation(size=(16, 20), short_side=(18, 26), crop="box", box_scale=(0.3, 1.0))
    draws = augment.draw(how, [(24, 36)], [np.random.default_rng(seed)])
    labels = torch.randint(
        0, 9, (1, 24, 36), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    top, left, height, width = draws.box[0].tolist()
    tall, wide = draws.resized[0].tolist()
    nearest = Image.Resampling.NEAREST
    image = Image.fromarray(labels[0].numpy()).resize((wide, tall), nearest)
    image = image.crop((left, top, left + width, top + height)).resize((20, 16), nearest)
    if draws.flip[0]:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert np.array_equal(augment.place_labels([labels], draws)[0, 0].numpy(), np.asarray(image))


def test_labels_beyond_the_edge_of_the_frame_are_void() -> None:
    how = Augmentation(size=(8, 8), short_side=None, crop="centre", flip=0.0)
    draws = augment.draw(how, [(4, 8)], [np.random.default_rng(0)])
    found = augment.place_labels([torch.ones(1, 4, 8, dtype=torch.uint8)], draws)[0, 0]
    assert (found[:2] == 255).all()
    assert (found[2:6] == 1).all()
    assert (found[6:] == 255).all()

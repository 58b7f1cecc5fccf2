from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles_timet import plain_forward, window_mask
from torch import Tensor
from torch.nn.functional import normalize

from unspool.errors import ShapeError, UsageError
from unspool.ops.forwarding import Forwarder, forward_maps

GRID = (5, 6)


def clips(count: int, frames: int, grid: tuple[int, int] = GRID, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features and first maps; neighbouring frames look alike."""
    generator = torch.Generator().manual_seed(seed)
    tokens = grid[0] * grid[1]
    common = torch.randn(count, 1, tokens, 8, generator=generator)
    features = common + 0.5 * torch.randn(count, frames, tokens, 8, generator=generator)
    return features, torch.rand(count, 1, tokens, 4, generator=generator).softmax(3)


@settings(deadline=None, max_examples=40)
@given(
    count=st.integers(1, 3),
    frames=st.integers(2, 5),
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    window=st.integers(0, 6),
    top_k=st.integers(0, 9),
    context=st.integers(0, 4),
    seed=st.integers(0, 2**31),
)
def test_it_is_the_plain_form_of_each_clip(
    *, count: int, frames: int, grid: tuple[int, int], window: int, top_k: int, context: int, seed: int
) -> None:
    features, first = clips(count, frames, grid, seed)
    how = Forwarder(window=window, top_k=top_k, context=context)
    found = forward_maps(features, first, grid, how)
    mask = window_mask(grid, window)
    for clip in range(count):
        plain = plain_forward(features[clip], first[clip, 0].T, mask, context=context, top_k=top_k)
        expected = torch.stack(plain).transpose(1, 2).float()
        torch.testing.assert_close(found[clip], expected, atol=1e-5, rtol=0)


def listing_one(features: Tensor, maps: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """The paper's Listing 1: exp, divide by the sum over sources, then mask; every frame's own map."""
    unit = normalize(features, dim=2)
    affinity = torch.cat([(frame @ unit[-1].T / temperature).exp() for frame in unit[:-1]])
    affinity = affinity / affinity.sum(0, keepdim=True) * mask.repeat(len(maps), 1)
    return affinity.T @ maps.flatten(0, 1)


def test_the_papers_listing_sends_every_frames_own_map_to_the_last() -> None:
    features, _ = clips(2, 4)
    maps = torch.rand(2, 3, 30, 4)
    how = Forwarder(window=2, top_k=0, masked="last")
    found = forward_maps(features, maps, GRID, how)
    assert found.shape == (2, 1, 30, 4)
    for clip in range(2):
        expected = listing_one(features[clip], maps[clip], window_mask(GRID, 2), how.temperature)
        torch.testing.assert_close(found[clip, 0], expected)
    assert (found.sum(3) < 0.999 * maps.sum(3).amax()).all()


def test_masking_last_with_few_sources_drops_those_outside() -> None:
    features, first = clips(1, 2)
    anywhere = forward_maps(features, torch.ones_like(first), GRID, Forwarder(window=0))
    torch.testing.assert_close(anywhere, torch.ones_like(anywhere))
    masked = forward_maps(features, torch.ones_like(first), GRID, Forwarder(window=1, masked="last"))
    assert (masked < 1 - 1e-3).any()
    assert (masked <= 1 + 1e-6).all()


def test_a_clip_that_stands_still_keeps_its_map_though_sources_tie() -> None:
    generator = torch.Generator().manual_seed(1)
    still = 20 * torch.randn(1, 1, 30, 16, generator=generator).expand(-1, 4, -1, -1)
    first = torch.eye(30)[None, None]
    found = forward_maps(still, first, GRID, Forwarder(temperature=0.01, top_k=1))
    torch.testing.assert_close(found, first.expand(-1, 3, -1, -1), atol=1e-4, rtol=0)


def test_rows_of_weights_sum_to_one() -> None:
    features, first = clips(2, 4)
    found = forward_maps(features, first, GRID, Forwarder())
    torch.testing.assert_close(found.sum(3), torch.ones(2, 3, 30))


def test_longer_clips_look_back_no_further_than_the_context_and_to_the_first_frame() -> None:
    features, first = clips(1, 6)
    how = Forwarder(context=1)
    changed = features.clone()
    changed[:, 2] = torch.randn(1, 30, 8)
    one, other = (forward_maps(f, first, GRID, how) for f in (features, changed))
    assert not torch.equal(one[:, 1], other[:, 1])
    assert torch.equal(one[:, 0], other[:, 0])


def test_single_precision_under_autocast_and_no_gradient() -> None:
    features, first = clips(2, 3)
    expected = forward_maps(features, first, GRID, Forwarder())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = forward_maps(features.requires_grad_(), first, GRID, Forwarder())
    assert torch.equal(found, expected)
    assert not found.requires_grad


def test_double_precision_where_asked() -> None:
    features, first = clips(1, 3)
    assert forward_maps(features.double(), first, GRID, Forwarder()).dtype == torch.float64


def test_other_grids_take_their_own_windows() -> None:
    features, first = clips(1, 2)
    one, other = (forward_maps(features, first, grid, Forwarder(window=1)) for grid in (GRID, (6, 5)))
    assert not torch.equal(one, other)


@pytest.mark.parametrize("grid", [(5, 5), (0, 30)])
def test_a_grid_that_does_not_fit_is_refused(grid: tuple[int, int]) -> None:
    with pytest.raises(ShapeError, match="do not fit a grid"):
        forward_maps(*clips(1, 2), grid, Forwarder())


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"window": -1}, {"top_k": -1}, {"context": -1}])
def test_settings_out_of_range_are_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=f"forwarder.{next(iter(wrong))} = "):
        replace(Forwarder(), **wrong)


def test_more_context_is_more_to_choose_from() -> None:
    features, first = clips(1, 5)
    maps = [forward_maps(features, first, GRID, Forwarder(context=context))[:, -1] for context in (0, 1, 9)]
    assert all(not torch.equal(a, b) for a, b in pairwise(maps))

"""Propagation that is broken off and goes on from what was written down is propagation in one piece."""

from dataclasses import replace
from io import BytesIO

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ops_propagation import carry, clip, settings_of_propagation, soft_masks

from unspool.ops import bounds, propagation
from unspool.ops.propagation import DINO, DUL, Propagation
from unspool.ops.propagation_state import times_needed, with_features, without_features

HEIGHT, WIDTH, FRAMES = 6, 7, 8


@pytest.fixture(params=[False, True], ids=["products", "bounds"])
def with_bounds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param:
        monkeypatch.setattr(bounds, "FEWEST_TOKENS", 1)


@pytest.mark.usefixtures("with_bounds")
@settings(deadline=None, max_examples=40)
@given(
    how=settings_of_propagation,
    seed=st.integers(0, 100),
    first=st.integers(0, 3),
    cut=st.integers(0, FRAMES - 1),
    late=st.integers(0, FRAMES - 1),
)
def test_going_on_gives_the_same_labels_bit_by_bit(
    how: Propagation, seed: int, first: int, cut: int, late: int
) -> None:
    features = clip(seed, FRAMES, HEIGHT, WIDTH)
    masks = soft_masks(seed, 4, HEIGHT, WIDTH)
    masks_at = {first: {0: masks[0], 1: masks[1]}}
    masks_at.setdefault(late, {}).update({7: masks[2], 1: masks[3]})
    whole = carry(features, masks_at, how)

    state, _ = whole[cut]
    written = BytesIO()
    torch.save(without_features(state), written)
    written.seek(0)
    content = torch.load(written, weights_only=True)
    begun = cut + 1 - content["time"]  # the first frame that has a label
    state = with_features(content, {time: features[begun + time] for time in times_needed(content)})
    for now in range(cut + 1, FRAMES):
        state, soft = propagation.step(state, features[now], masks_at.get(now), how)
        assert state.ids == whole[now][0].ids
        assert torch.equal(soft, whole[now][1])


@pytest.mark.parametrize("how", [DUL, DINO])
def test_only_frames_that_are_still_looked_at_are_needed(how: Propagation) -> None:
    how = replace(how, context=3)
    state, _ = carry(
        clip(0, FRAMES, HEIGHT, WIDTH), {0: dict(enumerate(soft_masks(0, 2, HEIGHT, WIDTH)))}, how
    )[-1]
    assert times_needed(without_features(state)) == {0, FRAMES - 3, FRAMES - 2, FRAMES - 1}


def test_before_the_first_mask_nothing_is_needed() -> None:
    content = without_features(propagation.start())
    assert times_needed(content) == set()
    assert with_features(content, {}) == propagation.start()

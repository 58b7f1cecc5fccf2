"""With bounds the search makes fewer products and finds the same."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from unspool.ops import bounds
from unspool.ops.propagation import CRW, DINO, DUL, Propagation, start, step


def clip(frames: int, channels: int, height: int, width: int, seed: int) -> list[Tensor]:
    """Features that drift from frame to frame, as those of video do."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(channels, height, width, generator=generator)
    features = torch.nn.functional.avg_pool2d(features[None], 5, 1, 2)[0]
    drift = 0.1 * features.std()
    out = []
    for _ in range(frames):
        features = features + drift * torch.randn(features.shape, generator=generator)
        out.append(normalize(features, dim=0))
    return out


def carried(features: list[Tensor], how: Propagation, late: int) -> list[Tensor]:
    state, out = start(), []
    height, width = features[0].shape[1:]
    left = (torch.arange(width) < width // 2).float().expand(height, width)
    for t, frame in enumerate(features):
        given = {0: {0: left, 1: 1 - left}, late: {2: left}}.get(t)
        state, soft = step(state, frame, given, how)
        out.append(soft)
    return out


@pytest.mark.parametrize("how", [DUL, CRW, DINO], ids=["dul", "crw", "dino"])
@pytest.mark.parametrize("seed", range(4))
def test_labels_are_the_same_with_bounds_and_without(
    how: Propagation, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = clip(frames=9, channels=32, height=17, width=23, seed=seed)
    plain = carried(features, how, late=4)
    used = []
    for name in ("bounded_in_window", "bounded_anywhere"):
        original = getattr(bounds, name)
        monkeypatch.setattr(bounds, name, lambda *a, f=original, **k: used.append(1) or f(*a, **k))
    monkeypatch.setattr(bounds, "FEWEST_TOKENS", 1)
    monkeypatch.setattr(bounds, "WORTHWHILE", 2.0)
    bounded = carried(features, how, late=4)
    assert used
    for a, b in zip(plain, bounded, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_the_sketch_bounds_the_product_from_above() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = normalize(torch.randn(3, 64, 40, generator=generator), dim=-1)
    sketched = bounds.sketched(tokens, bounds.principal_axes(tokens, 9))
    products = torch.einsum("tic,ujc->tiuj", tokens, tokens)
    bound = torch.einsum("tis,ujs->tiuj", sketched.sketch, sketched.sketch)
    assert (bound >= products).all()


def test_bounds_rest_where_they_do_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "FEWEST_TOKENS", 1)
    monkeypatch.setattr(bounds, "WORTHWHILE", -1.0)
    features = clip(frames=4, channels=16, height=9, width=11, seed=0)
    state = start()
    half = torch.ones(9, 11) / 2
    for t, frame in enumerate(features):
        state, _ = step(state, frame, {0: half, 1: half} if t == 0 else None, DUL)
    assert state.bounds_from > state.time

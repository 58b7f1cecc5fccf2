from pathlib import Path
from typing import Any

import pytest
import torch
from oracles_ba import plain_block

from unspool.encoders import load_encoder
from unspool.encoders.correlator import (
    Block,
    Correlator,
    Noise,
    Some,
    holds_block,
    load_correlator,
    save_correlator,
    untrained,
)
from unspool.encoders.vit import build_vit
from unspool.errors import UsageError, WeightsError


@pytest.fixture(scope="module")
def encoder() -> Any:
    return load_encoder("random-resnet18", device="cpu")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in the published layout, its weights random."""
    vit = build_vit("vit_small_patch8_224")
    state = {f"encoder.{key}": value for key, value in vit.state_dict().items()}
    state |= {f"temporal_transformer.0.{key}": value for key, value in Block(384, 8).state_dict().items()}
    path = tmp_path_factory.mktemp("ba") / "checkpoint.pth"
    content = {
        "iteration": 3,
        "model_state_dict": state,
        "optimizer_state_dict": {},
        "loss": torch.tensor(1.0),
    }
    torch.save(content, path)
    return path


def test_a_map_of_other_channels_than_the_block_reads_is_refused(encoder: Any) -> None:
    block = Correlator(encoder, features="layer1")
    with pytest.raises(
        UsageError, match=r"map 'layer1' of 'random-resnet18' has 64 channels; .*e\.g\. tokens"
    ):
        block.embedded(torch.zeros(2, 64, 3, 4))


def test_rows_of_attention_and_features_are_those_of_the_plain_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unspool.encoders.correlator.ROWS", 4)
    block = Block(12, 3).double()
    x = torch.randn(11, 12, dtype=torch.float64)
    features, attention = plain_block(x, dict(block.named_parameters()), 3)
    rows = torch.tensor([9, 0, 3, 3, 10])
    q, k, v = block.projections(x)
    assert torch.allclose(block.attention(q, k, rows, None), attention[rows])
    for noise in (None, Noise(0, 0.0, 0.0)):
        assert torch.allclose(block.features(x, (q, k, v), rows, noise), features[rows])


def test_gradients_of_chosen_rows_are_right() -> None:
    block = Block(6, 2).double()
    rows = torch.tensor([1, 4])

    def of(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        q, k, v = block.projections(x)
        noise = Noise(1, 0.4, 0.1)
        return block.attention(q, k, rows, noise), block.features(x, (q, k, v), rows, noise)

    assert torch.autograd.gradcheck(of, torch.randn(5, 6, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("noise", [None, Noise(1, 0.4, 0.1)])
def test_gradients_are_those_of_the_plain_block_where_some_rows_have_none(
    noise: Noise | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unspool.encoders.correlator.ROWS", 3)
    block = Block(6, 2).double()
    x = torch.randn(9, 6, dtype=torch.float64, requires_grad=True)
    rows, weights = torch.tensor([1, 4, 8, 2, 7]), torch.tensor([[0.0], [2.0], [0.0], [0.0], [-1.0]])
    learning = [x, *block.parameters()]

    def gradients(features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad((weights * features**2).sum(), learning)

    found = gradients(block.features(x, block.projections(x), rows, noise, few=True))
    with monkeypatch.context() as patch:  # all rows have one
        patch.setattr("unspool.encoders.correlator.where_wanted", everywhere)
        expected = gradients(block.features(x, block.projections(x), rows, noise, few=True))
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other)


def everywhere(function: Any, parameters: Any, rows: int, *inputs: torch.Tensor) -> Any:
    return function(Some(torch.arange(rows), rows), *inputs)


def test_noise_keeps_as_many_as_it_says_and_the_mean() -> None:
    kept = Noise(0, 0.4, 0.1)("attention", torch.ones(300_001))
    assert abs(float((kept > 0).float().mean()) - 0.6) < 0.01
    assert torch.allclose(kept[kept > 0], torch.tensor(1 / 0.6))
    assert torch.equal(kept, Noise(0, 0.4, 0.1)("attention", torch.ones(300_001)))
    assert abs(float(Noise(0, 0.4, 0.1)("mlp1", torch.ones(300_000)).mean()) - 1) < 0.01


def test_the_temporal_embedding_is_stretched_to_the_clip(encoder: Any) -> None:
    correlator = Correlator(encoder, heads=8, frames=3)
    table = torch.as_tensor(correlator.temporal_embedding)
    zeros = torch.zeros(5, encoder.dim, 2, 2)
    stretched = correlator.embedded(zeros)[:, 0]
    assert torch.allclose(stretched[[0, 2, 4]], table, atol=1e-6)
    assert torch.allclose(stretched[1], (table[0] + table[1]) / 2, atol=1e-6)
    assert correlator.embedded(zeros[:1]).shape == (1, 4, encoder.dim)


def test_keys_are_read_where_they_are_offered(encoder: Any) -> None:
    assert Correlator(encoder).features == "tokens"
    assert Correlator(load_encoder("random-vits16", device="cpu")).features == "keys"


def test_an_untrained_block_is_the_same_again(encoder: Any) -> None:
    once, again, other = untrained(encoder), untrained(encoder), untrained(encoder, seed=1)
    weights = [each.blocks[0].attn["qkv"].weight for each in (once, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_published_checkpoint_is_encoder_and_block(published: Path) -> None:
    correlator = load_correlator(published, device="cpu")
    state = torch.load(published)["model_state_dict"]
    for key, value in correlator.state_dict().items():
        if key.startswith("temporal_transformer."):
            assert torch.equal(value, state[key])
    assert torch.equal(correlator.encoder.network.cls_token, state["encoder.cls_token"])
    assert not any(p.requires_grad for p in correlator.parameters())


def test_a_checkpoint_with_a_missing_tensor_names_it(published: Path, tmp_path: Path) -> None:
    content = torch.load(published)
    del content["model_state_dict"]["temporal_transformer.0.norm2.bias"]
    torch.save(content, tmp_path / "short.pth")
    with pytest.raises(WeightsError, match=r"short\.pth.*1 missing: temporal_transformer\.0\.norm2\.bias"):
        load_correlator(tmp_path / "short.pth", device="cpu")


def test_an_encoder_alone_is_no_correlator(published: Path, tmp_path: Path) -> None:
    content = torch.load(published)
    state = {k: v for k, v in content["model_state_dict"].items() if k.startswith("encoder.")}
    torch.save({"model_state_dict": state}, tmp_path / "alone.pth")
    with pytest.raises(WeightsError, match="unspool train ba"):
        load_correlator(tmp_path / "alone.pth", device="cpu")


def test_what_is_saved_is_read_again_as_correlator_and_as_encoder(encoder: Any, tmp_path: Path) -> None:
    torch.manual_seed(3)
    correlator = Correlator(encoder, heads=4, layers=2, frames=3)
    save_correlator(correlator, tmp_path / "mine.safetensors")
    again = load_correlator(tmp_path / "mine.safetensors", device="cpu")
    assert again.blocks[0].heads == 4
    for ours, theirs in zip(correlator.state_dict().items(), again.state_dict().items(), strict=True):
        assert ours[0] == theirs[0]
        assert torch.equal(ours[1], theirs[1])
    assert load_encoder(tmp_path / "mine.safetensors", device="cpu").dim == encoder.dim


def test_heads_that_do_not_divide_the_channels_are_refused(encoder: Any) -> None:
    with pytest.raises(UsageError, match="does not divide"):
        Correlator(encoder, heads=7)


def test_the_shipped_model_is_encoder_and_learnt_block() -> None:
    assert holds_block("dul-small")
    shipped, encoder = load_correlator("dul-small", device="cpu"), load_encoder("dul-small", device="cpu")
    for one, other in zip(shipped.encoder.parameters(), encoder.parameters(), strict=True):  # type: ignore[attr-defined]
        assert torch.equal(one, other)
    assert shipped.encoder.name == "dul-small"
    assert all(torch.isfinite(p).all() for p in shipped.parameters())

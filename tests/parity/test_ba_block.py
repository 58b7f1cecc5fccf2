"""BA's block against the released one: outputs, attention, gradients, dropout, names and shapes."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from unspool.encoders.correlator import Block, Correlator, Some

Golden = Callable[[str], dict[str, np.ndarray]]
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
HEADS = 8  # of the block in encoder_forward; the recording's README


@pytest.fixture(scope="module")
def file(golden: Golden) -> dict[str, np.ndarray]:
    return golden("ba/block_layout")


@pytest.fixture
def block(file: dict[str, np.ndarray]) -> Block:
    block = Block(int(file["dim"]), int(file["heads"]))
    weights = {key.removeprefix("w."): torch.from_numpy(file[key]) for key in file if key.startswith("w.")}
    block.load_state_dict(weights)
    return block


class Recorded:
    """The recording's masks of one clip, instead of drawn ones."""

    def __init__(self, file: dict[str, np.ndarray], clip: int) -> None:
        self.masks = {
            name: torch.from_numpy(file[f"mask_{key}"][clip])
            for name, key in (("attention", "attn"), ("proj", "proj"), ("mlp1", "mlp1"), ("mlp2", "mlp2"))
        }

    def __call__(self, name: str, values: Tensor, some: Some | None = None) -> Tensor:
        kind = name.split(maxsplit=1)[0]
        mask = self.masks[kind] if some is None else self.masks[kind][..., some.places, :]
        return values * mask / (0.6 if kind == "attention" else 0.8)


def run(block: Block, x: Tensor, noise: Recorded | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Output, attention of all heads, and their mean, of one clip."""
    q, k, v = block.projections(x)
    rows = torch.arange(len(x))
    y = block.features(x, (q, k, v), rows, noise)
    return y, block.probabilities(q, k, noise, "0"), block.attention(q, k, rows, noise)


def test_output_and_attention(file: dict[str, np.ndarray], block: Block) -> None:
    for clip, x in enumerate(torch.from_numpy(file["x"])):
        found = run(block, x)
        for one, name in zip(found, ("y", "attn", "attn_mean"), strict=True):
            assert torch.allclose(one, torch.from_numpy(file[name][clip]), **TOLERANCE), name


def test_gradients(file: dict[str, np.ndarray], block: Block) -> None:
    inputs = torch.from_numpy(file["x"]).requires_grad_()
    total = torch.zeros(())
    for clip, x in enumerate(inputs):
        y, attention, _ = run(block, x)
        gy, ga = torch.from_numpy(file["gy"][clip]), torch.from_numpy(file["ga"][clip])
        total = total + (y * gy).sum() + (attention * ga).sum()
    total.backward()
    assert torch.allclose(torch.as_tensor(inputs.grad), torch.from_numpy(file["grad_x"]), **TOLERANCE)
    for name, parameter in block.named_parameters():
        expected = torch.from_numpy(file[f"grad.{name}"])
        assert torch.allclose(torch.as_tensor(parameter.grad), expected, **TOLERANCE), name


def test_dropout_falls_where_the_released_one_does(file: dict[str, np.ndarray], block: Block) -> None:
    for clip, x in enumerate(torch.from_numpy(file["x"])):
        y, attention, mean = run(block, x, Recorded(file, clip))
        assert torch.allclose(y, torch.from_numpy(file["train_y"][clip]), **TOLERANCE)
        expected = torch.from_numpy(file["train_attn"][clip])
        assert torch.allclose(attention, expected, **TOLERANCE)
        assert torch.allclose(mean, expected.mean(0), **TOLERANCE)


def test_names_and_shapes_at_the_published_size(file: dict[str, np.ndarray]) -> None:
    state = Block(384, 8).state_dict()
    assert list(state) == file["full_names"].tolist()
    shapes = [tuple(int(side) for side in text.strip("(),").split(",")) for text in _texts(file)]
    assert [tuple(value.shape) for value in state.values()] == shapes
    assert sum(value.numel() for value in state.values()) == int(file["full_param_count"])


def _texts(file: dict[str, np.ndarray]) -> list[str]:
    return [str(text).replace("x", ",").replace(" ", "") for text in file["full_shapes"]]


def by_rule(block: Block, amplitude: float) -> Block:
    state = block.state_dict()
    for p, (name, value) in enumerate(state.items()):
        i = np.arange(value.numel(), dtype=np.float64)
        numbers = amplitude * np.sin(0.37 * i + 1.3 * p + 0.2) / np.sqrt(value.shape[-1])
        numbers += "norm" in name and name.endswith("weight")
        state[name] = torch.from_numpy(numbers.astype(np.float32)).reshape(value.shape)
    block.load_state_dict(state)
    return block


@torch.no_grad()
def test_a_training_clip_with_its_class_tokens(golden: Golden) -> None:
    file = {name: torch.from_numpy(np.asarray(value)) for name, value in golden("ba/encoder_forward").items()}
    maps = file["k"]
    encoder = SimpleNamespace(dim=maps.shape[1], offers=("keys",), eval=lambda: None)
    correlator = Correlator(encoder, heads=HEADS)
    by_rule(correlator.blocks[0], float(file["rule_amp"]))
    attended = correlator.attend(correlator.embedded(maps), file["cls"])
    every = torch.arange(maps[:, 0].numel())
    assert torch.allclose(attended.attention(every), file["attn_temporal"][0], atol=1e-3)
    slot = file["slot"].flatten(0, 2)
    assert torch.allclose(attended.features(every), slot, rtol=1e-3, atol=1e-3)

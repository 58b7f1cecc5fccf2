"""BA's encoder against the official one, given what its ViT returns: attention, order of tokens, block.

The recording replaces the ViT by its outputs. What can be held to it here: the head-averaged attention of the
last block, the order of a map's tokens, and the attention of a block over the tokens of all frames. The
block's own network is a plain timm block under the recording's rule of weights.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from unspool.encoders.vit import attention_rows

Golden = Callable[[str], dict[str, np.ndarray]]
HEADS = 8  # of the block; the recording's README


@pytest.fixture(scope="module")
def file(golden: Golden) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.asarray(value)) for name, value in golden("ba/encoder_forward").items()}


def block_by_rule(dim: int, amplitude: float) -> Any:
    block = Block(dim, HEADS, qkv_bias=False, norm_layer=partial(nn.LayerNorm, eps=1e-5)).eval()
    state = block.state_dict()
    for p, (name, value) in enumerate(state.items()):
        i = np.arange(value.numel(), dtype=np.float64)
        numbers = amplitude * np.sin(0.37 * i + 1.3 * p + 0.2) / np.sqrt(value.shape[-1])
        numbers += "norm" in name and name.endswith("weight")
        state[name] = torch.from_numpy(numbers.astype(np.float32)).reshape(value.shape)
    block.load_state_dict(state)
    return block


@torch.inference_mode()
def test_attention_of_the_last_block(file: dict[str, Tensor]) -> None:
    whole = file["last_attn"]
    identity = torch.eye(whole.shape[-1]).expand_as(whole)
    queries = whole.log() * identity.shape[-1] ** 0.5  # their products with unit keys are the logarithms
    rows = torch.cat(list(attention_rows(queries, identity, rows=5)), dim=2)
    assert torch.allclose(rows.mean(1)[:, 1:, 1:], file["attn_dino"], atol=1e-3)


def test_order_of_a_maps_tokens(file: dict[str, Tensor]) -> None:
    assert torch.equal(file["x"].flatten(2).transpose(1, 2)[None], file["x_out"])


@torch.inference_mode()
def test_attention_and_features_over_all_frames(file: dict[str, Tensor]) -> None:
    keys = file["k"].flatten(2).transpose(1, 2)
    frames, tokens, dim = keys.shape
    sequence = torch.cat([file["cls"][:, None], keys], dim=1).reshape(1, -1, dim)
    patches = torch.arange(frames * (tokens + 1)) % (tokens + 1) > 0
    block = block_by_rule(dim, float(file["rule_amp"]))
    q, k, _ = block.attn.qkv(block.norm1(sequence)).view(1, -1, 3, HEADS, dim // HEADS).permute(2, 0, 3, 1, 4)
    attention = torch.cat(list(attention_rows(q, k, rows=7)), dim=2).mean(1)
    assert torch.allclose(attention[:, patches][:, :, patches], file["attn_temporal"], atol=1e-3)
    features = block(sequence)[:, patches].reshape(1, frames, tokens, dim)
    assert torch.allclose(features, file["slot"], rtol=1e-3, atol=1e-3)

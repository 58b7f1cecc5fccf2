"""Encoders: own files, what published files hold beside weights, attention in parts, batches, silent hubs."""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from unspool.encoders import encode_batches, load_encoder, save_encoder
from unspool.encoders.checkpoints import read_checkpoint, vit_architecture
from unspool.encoders.resnet import DulHead, ResNetEncoder, resnet18_stride8
from unspool.encoders.vit import ViTEncoder, build_vit
from unspool.errors import OutputError, ShapeError, UsageError, WeightsError, WeightsUnavailable

IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(3))


def tiny(depth: int = 2, architecture: str = "vit_small_patch16_224") -> nn.Module:
    network = build_vit(architecture, depth=depth)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05)
    return network


def resnet_state(prefix: str = "") -> dict[str, Tensor]:
    return {prefix + k: v for k, v in resnet18().state_dict().items() if not k.startswith("fc.")}


# -------------------------------------------------------------------------------------- our own format


@pytest.mark.parametrize("padding", ["zeros", "reflect"])
@torch.inference_mode()
def test_what_is_saved_is_what_is_loaded(tmp_path: Path, padding: Any) -> None:
    encoder = ResNetEncoder(resnet18_stride8(padding), name="own", head=DulHead()).eval()
    save_encoder(encoder, str(tmp_path / "encoder.safetensors"))
    plain = tmp_path / "plain"
    plain.touch()
    assert (tmp_path / "encoder.safetensors").stat().st_mode == plain.stat().st_mode  # others may read it
    again = load_encoder(tmp_path / "encoder.safetensors", device="cpu")
    for wish in ("tokens", "layer3", "head"):
        assert torch.equal(again(IMAGES, want=(wish,))[wish], encoder(IMAGES, want=(wish,))[wish])


@torch.inference_mode()
def test_a_saved_vit_is_loaded_from_the_folder_of_its_training(tmp_path: Path) -> None:
    encoder = ViTEncoder(tiny(), name="own").eval()
    save_encoder(encoder, tmp_path / "encoder.safetensors")
    again = load_encoder(tmp_path, device="cpu")
    assert torch.equal(again(IMAGES)["tokens"], encoder(IMAGES)["tokens"])


def test_a_folder_without_an_encoder_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"without encoder\.safetensors"):
        load_encoder(tmp_path)


def test_an_encoder_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    encoder = load_encoder("random-resnet18", device="cpu")
    with pytest.raises(OutputError, match="cannot be written"):
        save_encoder(encoder, tmp_path / "missing" / "encoder.safetensors")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------ published files


def test_arguments_and_numpy_numbers_beside_the_weights_are_harmless(tmp_path: Path) -> None:
    beside = {"args": argparse.Namespace(lr=0.1), "score": np.float64(0.69), "epoch": np.int64(3)}
    torch.save({"model": resnet_state("fast_net.backbone."), **beside}, tmp_path / "dul.pth")
    assert load_encoder(tmp_path / "dul.pth", device="cpu").dim == 512


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod."])
def test_wrappers_of_whole_models_are_undone(tmp_path: Path, wrapper: str) -> None:
    torch.save({"model": resnet_state(f"{wrapper}encoder.model.")}, tmp_path / "crw.pth")
    assert read_checkpoint(tmp_path / "crw.pth").layout == "CRW"


def test_every_layout_names_its_source() -> None:
    for path in (Path(__file__).parent / "layouts").glob("*.json"):
        assert "/" in json.loads(path.read_text())["source"], path.name


@torch.inference_mode()
def test_a_position_table_of_another_image_size_is_taken_as_it_is(tmp_path: Path) -> None:
    network = tiny(architecture="vit_small_patch14_dinov2")
    state = {**network.state_dict(), "pos_embed": torch.randn(1, 1 + 4 * 4, 384)}
    torch.save(state, tmp_path / "small.pth")
    encoder: Any = load_encoder(tmp_path / "small.pth", device="cpu")
    assert torch.equal(encoder._positions((4, 4)), state["pos_embed"])


def test_a_vit_of_unknown_width_is_named(tmp_path: Path) -> None:
    torch.save({"patch_embed.proj.weight": torch.zeros(100, 3, 16, 16)}, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match=r"odd\.pth .*width 100 with 16 px patches"):
        load_encoder(tmp_path / "odd.pth", device="cpu")


@pytest.mark.parametrize("bias", ["blocks.0.attn.qkv.bias", "blocks.0.attn.q_bias"])
def test_dinov3_with_biases_is_another_architecture(bias: str) -> None:
    state = {"patch_embed.proj.weight": torch.zeros(384, 3, 16, 16), "storage_tokens": torch.zeros(1)}
    assert vit_architecture(state, "x") == "vit_small_patch16_dinov3"
    assert vit_architecture({**state, bias: torch.zeros(1)}, "x") == "vit_small_patch16_dinov3_qkvb"


def test_a_resnet_in_the_place_of_a_vit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(resnet_state(), tmp_path / "dino-vits16.pth")
    monkeypatch.setenv("UNSPOOL_WEIGHTS", os.pathsep.join(["/nowhere", str(tmp_path)]))
    with pytest.raises(WeightsError, match="holds a resnet18, but 'dino-vits16' is a vit"):
        load_encoder("dino-vits16", device="cpu")


def test_dinov3_is_found_under_its_published_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(tiny(1, "vit_small_patch16_dinov3").state_dict(), tmp_path / DINOV3)
    monkeypatch.setenv("UNSPOOL_WEIGHTS", str(tmp_path))
    assert load_encoder("dinov3-vits16", device="cpu").patch == 16


DINOV3 = "dinov3_vits16_pretrain_lvd1689m-08c60483.pth"


# ---------------------------------------------------------------------------------- names, precision


@pytest.mark.parametrize(
    ("model", "says"), [("random-vits61", "random-vits16"), ("timm/vit_smal", "vit_small")]
)
def test_an_unknown_family_member_names_near_ones(model: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        load_encoder(model, device="cpu")


def test_unknown_settings_are_refused_before_any_work() -> None:
    with pytest.raises(UsageError, match="fp32, bf16, fp16"):
        load_encoder("random-resnet18", precision="fp64")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="published or timm"):
        ViTEncoder(tiny(1), name="x", positions="mine")  # type: ignore[arg-type]


def test_what_is_no_plain_vit_is_refused() -> None:
    with pytest.raises(UsageError, match="no plain ViT; wrap it"):
        ViTEncoder(resnet18(), name="timm/resnet18")


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 4, 32, 32)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"must be \[b, 3, h, w\]"):
        load_encoder("random-resnet18", device="cpu")(torch.zeros(shape))


def test_images_of_other_numbers_are_refused() -> None:
    with pytest.raises(UsageError, match=r"torch\.int64; give uint8"):
        load_encoder("random-resnet18", device="cpu")(torch.zeros(1, 3, 32, 32, dtype=torch.int64))


# --------------------------------------------------------------------------------------- own modules


def test_an_own_module_stays_trainable() -> None:
    module = nn.Conv2d(3, 4, 14, stride=14)
    encoder = load_encoder(module, patch=14, device="cpu")
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert not encoder(torch.rand(1, 3, 28, 28))["tokens"].requires_grad


def test_an_own_module_may_return_tokens_row_by_row() -> None:
    class Tokens(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).flatten(2).transpose(1, 2)

    torch.manual_seed(0)
    module = Tokens(3, 4, 14, stride=14)
    found = load_encoder(module, patch=14, device="cpu", std=(1, 1, 1))(torch.rand(2, 3, 28, 42))["tokens"]
    assert found.shape == (2, 4, 2, 3)


def test_an_own_module_whose_answer_does_not_fit_is_told_what_would() -> None:
    with pytest.raises(ShapeError, match=r"returned \[1, 4, 16, 16\].*must return \[b, c, 32, 32\]"):
        load_encoder(nn.Conv2d(3, 4, 14, stride=14), patch=7, device="cpu")


# ------------------------------------------------------------------------------- attention, in parts


@pytest.mark.parametrize("architecture", ["vit_small_patch16_224", "vit_small_patch16_dinov3"])
@torch.inference_mode()
def test_attention_by_rows_is_the_attention(architecture: str) -> None:
    encoder = ViTEncoder(tiny(2, architecture), name="tiny").eval()
    chunks = list(encoder.last_attention(IMAGES, rows=7))
    assert max(chunk.shape[2] for chunk in chunks) == 7
    whole = torch.cat(chunks, dim=2)
    tokens = encoder.prefix + 24
    assert whole.shape == (2, 6, tokens, tokens)
    assert torch.allclose(whole.sum(-1), torch.ones(()))
    found = encoder(IMAGES, want=("attention", "cls_attention"))
    assert torch.allclose(found["attention"], whole.mean(1)[:, encoder.prefix :, encoder.prefix :], atol=1e-6)
    assert torch.allclose(found["cls_attention"].flatten(2), whole[:, :, 0, encoder.prefix :], atol=1e-6)


@torch.inference_mode()
def test_rotated_attention_is_what_timms_block_uses() -> None:
    encoder = ViTEncoder(tiny(2, "vit_small_patch16_dinov3"), name="tiny").eval()
    block, net = encoder.network.blocks[-1], encoder.network
    sequence, (_, rotation) = encoder.begin(IMAGES, 1)
    values = encoder._heads(sequence)[2]
    attention = torch.cat(list(encoder.last_attention(IMAGES)), dim=2)
    mixed = block.attn.proj(block.attn.norm((attention @ values).transpose(1, 2).flatten(2)))
    expected = block.attn(block.norm1(sequence), rope=rotation)
    assert torch.allclose(mixed, expected, atol=1e-5)
    found = encoder(IMAGES, want=("keys", "tokens"))
    assert torch.allclose(found["tokens"], encoder(IMAGES)["tokens"])
    assert found["keys"].shape == (2, net.embed_dim, 4, 6)


@torch.inference_mode()
def test_without_a_class_token_nothing_of_it_is_offered() -> None:
    network = build_vit("vit_small_patch16_224", depth=1, class_token=False, global_pool="avg")
    encoder = ViTEncoder(network, name="x").eval()
    assert not [wish for wish in encoder.offers if wish.startswith("cls")]
    assert encoder(IMAGES)["tokens"].shape == (2, 384, 4, 6)


# ------------------------------------------------------------------------------------------- batches


@torch.inference_mode()
def test_batches_join_to_what_one_pass_gives() -> None:
    encoder: Any = load_encoder("random-resnet18", device="cpu")
    images = torch.rand(5, 3, 32, 48)
    parts = list(encode_batches(encoder, images, memory=2 * encoder.bytes_per_image(32, 48)))
    assert [len(part["tokens"]) for part in parts] == [2, 2, 1]
    joined = torch.cat([part["tokens"] for part in parts])
    assert torch.allclose(joined, encoder(images)["tokens"], rtol=1e-4, atol=1e-4)


def test_however_small_the_memory_one_image_is_encoded() -> None:
    parts = list(encode_batches(load_encoder("random-resnet18", device="cpu"), IMAGES, memory=1))
    assert [len(part["tokens"]) for part in parts] == [1, 1]


# --------------------------------------------------------------------------------------------- hubs


def test_a_model_that_timm_lacks_names_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNSPOOL_WEIGHTS", raising=False)
    with pytest.raises(WeightsUnavailable, match=r"timm has no copy of it.*dino_resnet50_pretrain\.pth"):
        load_encoder("dino-resnet50", device="cpu")


def test_a_hub_that_never_answers_is_given_up(tmp_path: Path) -> None:
    with socket.socket() as hub:
        hub.bind(("127.0.0.1", 0))
        hub.listen(8)
        environment = {
            **{k: v for k, v in os.environ.items() if "proxy" not in k.lower() and k != "HF_HUB_OFFLINE"},
            "HF_ENDPOINT": f"http://127.0.0.1:{hub.getsockname()[1]}",
            "HF_HOME": str(tmp_path),
            "UNSPOOL_WEIGHTS": "",
        }
        command = "from unspool.encoders import load_encoder; load_encoder('resnet18', device='cpu')"
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", command],
            env=environment,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
    assert "WeightsUnavailable" in done.stderr and "resnet18-f37072fd.pth" in done.stderr
    assert time.monotonic() - started < 60  # ten seconds of waiting; the rest is importing on a busy machine


def test_an_encoder_of_clips_or_of_other_channels_is_named_as_such() -> None:
    for shape in ((384, 3, 2, 16, 16), (384, 4, 16, 16), (384, 3, 16, 8)):
        state = {"patch_embed.proj.weight": torch.zeros(shape)}
        with pytest.raises(WeightsError, match=r"x\.pth: its patch weights are \(384, "):
            vit_architecture(state, "x.pth")

"""Encoders: what they return, where their weights come from, and what they say when they cannot."""

import json
import math
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.models import resnet18

from unspool.encoders import MODELS, describe_models, load_encoder
from unspool.encoders.checkpoints import read_checkpoint
from unspool.encoders.vit import ViTEncoder, build_vit
from unspool.errors import ShapeError, UsageError, WeightsError, WeightsUnavailable

LAYOUTS = sorted((Path(__file__).parent / "layouts").glob("*.json"))
MEAN, STD = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def tiny_vit(architecture: str = "vit_small_patch16_224", **more: Any) -> ViTEncoder:
    torch.manual_seed(0)
    network = build_vit(architecture, depth=2, **more)
    for parameter in network.parameters():  # biases and positions too, so that nothing is hidden by zeros
        nn.init.normal_(parameter, std=0.05)
    return ViTEncoder(network, name="tiny").eval()


# ------------------------------------------------------------------------------------------- ResNets


@torch.inference_mode()
def test_random_resnet18_is_torchvisions_of_the_seed_with_strides_removed() -> None:
    torch.manual_seed(0)
    network = resnet18().eval()
    for stage in (network.layer3, network.layer4):
        for module in stage.modules():
            if isinstance(module, nn.Conv2d):
                module.stride = (1, 1)
    images = torch.rand(1, 3, 64, 96)
    expected = network.maxpool(network.relu(network.bn1(network.conv1((images - MEAN) / STD))))
    expected = network.layer4(network.layer3(network.layer2(network.layer1(expected))))
    encoder = load_encoder("random-resnet18", device="cpu")
    assert torch.equal(encoder(images)["tokens"], expected)
    assert (encoder.dim, encoder.patch, encoder.multiple) == (512, 8, 1)


def test_making_a_random_encoder_leaves_the_callers_randomness_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_encoder("random-resnet18", device="cpu", seed=9)
    assert torch.equal(torch.rand(3), expected)


def test_the_hash_tells_seeds_apart_and_is_stable() -> None:
    a, b, c = (load_encoder("random-resnet18", device="cpu", seed=s).weights_hash for s in (0, 0, 1))
    assert a == b != c


@pytest.mark.parametrize(("size", "grid"), [((64, 96), (8, 12)), ((61, 90), (8, 12)), ((65, 97), (9, 13))])
@torch.inference_mode()
def test_resnets_take_any_size_and_round_the_grid_up(size: tuple[int, int], grid: tuple[int, int]) -> None:
    encoder = load_encoder("random-resnet18", device="cpu")
    assert encoder(torch.zeros(1, 3, *size))["tokens"].shape[-2:] == grid


@torch.inference_mode()
def test_bytes_and_floats_of_the_same_image_give_the_same_features() -> None:
    encoder = load_encoder("random-resnet18", device="cpu")
    image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    assert torch.allclose(encoder(image)["tokens"], encoder(image / 255)["tokens"], atol=1e-5)


@torch.inference_mode()
def test_stages_come_from_one_pass() -> None:
    encoder = load_encoder("random-resnet18", device="cpu")
    found = encoder(torch.rand(2, 3, 32, 32), want=("layer2", "layer3", "tokens"))
    assert [v.shape[1] for v in found.values()] == [128, 256, 512]
    assert torch.equal(
        encoder(torch.ones(1, 3, 32, 32), want=("layer3",))["layer3"],
        encoder(torch.ones(1, 3, 32, 32), want=("layer3", "layer4"))["layer3"],
    )


@torch.inference_mode()
def test_resnet50_keeps_28_by_28_at_448() -> None:
    encoder = load_encoder("random-resnet50", device="cpu")
    assert encoder.patch == 16
    assert encoder(torch.zeros(1, 3, 448, 448))["tokens"].shape == (1, 2048, 28, 28)


def test_a_wish_that_is_not_offered_names_what_is() -> None:
    with pytest.raises(UsageError, match=r"offers no 'keys'; it offers tokens, layer1"):
        load_encoder("random-resnet18", device="cpu")(torch.zeros(1, 3, 32, 32), want=("keys",))


# ---------------------------------------------------------------------------------------------- ViTs


def slow_vit(encoder: ViTEncoder, images: Tensor) -> dict[str, Tensor]:
    """Everything of a two-block ViT, step by step, with all attention held at once."""
    net: Any = encoder.network
    b, heads = len(images), net.blocks[0].attn.num_heads
    h, w = images.shape[-2] // encoder.patch, images.shape[-1] // encoder.patch
    patches = net.patch_embed.proj((images - MEAN) / STD).flatten(2).transpose(1, 2)
    x = torch.cat([net.cls_token.expand(b, -1, -1), patches], 1) + encoder._positions((h, w))
    for block in net.blocks:
        q, k, v = block.attn.qkv(block.norm1(x)).view(b, -1, 3, heads, x.shape[2] // heads).unbind(2)
        attention = (torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])).softmax(-1)
        x = x + block.attn.proj(torch.einsum("bhqk,bkhd->bqhd", attention, v).flatten(2))
        x = x + block.mlp(block.norm2(x))

    def as_map(t: Tensor) -> Tensor:
        return t[:, 1:].flatten(2).transpose(1, 2).reshape(b, -1, h, w)

    return {
        "tokens": as_map(net.norm(x)),
        "tokens_prenorm": as_map(x),
        "cls": net.norm(x)[:, 0],
        "cls_prenorm": x[:, 0],
        "queries": as_map(q),
        "keys": as_map(k),
        "values": as_map(v),
        "cls_attention": attention[:, :, 0, 1:].reshape(b, heads, h, w),
        "attention": attention.mean(1)[:, 1:, 1:],
    }


@torch.inference_mode()
def test_every_intermediate_of_a_vit_equals_the_slow_form() -> None:
    encoder = tiny_vit()
    images = torch.rand(2, 3, 48, 80)
    expected = slow_vit(encoder, images)
    found = encoder(images, want=encoder.offers)
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.allclose(found[name], expected[name], atol=2e-5), name


@torch.inference_mode()
def test_tokens_do_not_depend_on_what_else_is_wanted() -> None:
    encoder, images = tiny_vit(), torch.rand(1, 3, 32, 48)
    alone = encoder(images)["tokens"]
    assert torch.allclose(encoder(images, want=("keys", "tokens"))["tokens"], alone, atol=1e-5)


def test_positions_follow_the_published_rule() -> None:
    encoder = tiny_vit()
    table = encoder.network.pos_embed
    grid = table[:, 1:].reshape(1, 14, 14, -1).permute(0, 3, 1, 2)
    expected = interpolate(grid, scale_factor=(20.1 / 14, 9.1 / 14), mode="bicubic")
    found = encoder._positions((20, 9))
    assert torch.equal(found[:, :1], table[:, :1])
    assert torch.allclose(found[:, 1:], expected.flatten(2).transpose(1, 2), atol=1e-6)
    assert torch.equal(encoder._positions((14, 14)), table)


@torch.inference_mode()
def test_timms_own_positions_give_timms_own_tokens() -> None:
    encoder = tiny_vit()
    encoder.positions = "timm"
    images = torch.rand(1, 3, 64, 96)
    expected = encoder.network.forward_features((images - MEAN) / STD)[:, 1:]
    assert torch.allclose(encoder(images)["tokens"].flatten(2).transpose(1, 2), expected, atol=1e-4)


@pytest.mark.parametrize(
    "architecture", ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3"]
)
@torch.inference_mode()
def test_dinov2_and_dinov3_drop_what_is_no_patch(architecture: str) -> None:
    encoder = tiny_vit(architecture)
    encoder.positions = "timm"
    images = torch.rand(1, 3, 4 * encoder.patch, 6 * encoder.patch)
    found = encoder(images)["tokens"]
    assert found.shape == (1, 384, 4, 6)
    expected = encoder.network.forward_features((images - MEAN) / STD)[:, encoder.prefix :]
    assert torch.allclose(found.flatten(2).transpose(1, 2), expected, atol=1e-4)


def test_a_size_that_is_no_multiple_of_the_patch_names_the_nearest() -> None:
    with pytest.raises(ShapeError, match=r"multiples of 16, got 50x64 .*; nearest is 48x64"):
        tiny_vit()(torch.zeros(1, 3, 50, 64))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@torch.inference_mode()
def test_half_precision_stays_near(precision: Any) -> None:
    image = torch.rand(1, 3, 64, 64)
    full, half = (load_encoder("random-resnet18", device="cpu", precision=p) for p in ("fp32", precision))
    a, b = full(image)["tokens"], half(image)["tokens"].float()
    assert torch.nn.functional.cosine_similarity(a, b, dim=1).min() > 0.99


# --------------------------------------------------------------------------------------- checkpoints


def layout_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A file as published, with seeded numbers; and its tensors."""
    layout = json.loads(path.read_text())
    generator = torch.Generator().manual_seed(1)
    tensors: dict[str, Tensor] = {}
    for key, shape in layout["tensors"].items():
        for block in range(layout["blocks"]) if "*" in key else [0]:
            value = 0.05 * torch.randn(shape, generator=generator)
            if key.endswith("num_batches_tracked"):
                value = torch.zeros((), dtype=torch.int64)
            elif key.endswith("running_var"):
                value = value.abs() + 1
            tensors[key.replace("*", str(block)).replace("%", str(block // 4))] = value
    content: Any = tensors
    for step in reversed(layout["nest"]):
        content = {step: content}
    return {**content, **layout["beside"]}, tensors


@pytest.mark.parametrize("path", LAYOUTS, ids=lambda p: p.stem)
@torch.inference_mode()
def test_a_published_layout_loads_and_uses_its_own_numbers(path: Path, tmp_path: Path) -> None:
    content, tensors = layout_checkpoint(path)
    file = tmp_path / "weights.pth"
    torch.save(content, file)
    encoder: Any = load_encoder(file, device="cpu")
    side = 4 * encoder.patch
    assert encoder(torch.zeros(1, 3, side, side))["tokens"].shape == (1, encoder.dim, 4, 4)
    stem = next(
        v
        for k, v in tensors.items()
        if k.endswith(("patch_embed.proj.weight", "conv1.weight", "conv1.1.weight"))
    )
    own = (
        encoder.network.patch_embed.proj if hasattr(encoder.network, "patch_embed") else encoder.network.conv1
    )
    assert torch.equal(own.weight, stem)
    last = [v for k, v in tensors.items() if k.endswith("blocks.11.mlp.fc2.weight")]
    assert not last or torch.equal(encoder.network.blocks[11].mlp.fc2.weight, last[0])


def test_crw_is_reflect_padded_and_ends_at_layer3(tmp_path: Path) -> None:
    content, _ = layout_checkpoint(Path(__file__).parent / "layouts" / "crw_older.json")
    torch.save(content, tmp_path / "crw.pth")
    encoder: Any = load_encoder(tmp_path / "crw.pth", device="cpu")
    assert encoder.dim == 256
    assert "layer3" in encoder.offers and "layer4" not in encoder.offers
    assert encoder.network.conv1.padding_mode == "reflect"


@torch.inference_mode()
def test_dul_offers_its_head(tmp_path: Path) -> None:
    content, _ = layout_checkpoint(Path(__file__).parent / "layouts" / "dul.json")
    torch.save(content, tmp_path / "dul.pth")
    encoder = load_encoder(tmp_path / "dul.pth", device="cpu")
    assert encoder(torch.zeros(1, 3, 32, 32), want=("head",))["head"].shape == (1, 128, 4, 4)


def test_the_teacher_of_dino_is_taken(tmp_path: Path) -> None:
    content, _ = layout_checkpoint(Path(__file__).parent / "layouts" / "dino_full.json")
    torch.save(content, tmp_path / "full.pth")
    assert read_checkpoint(tmp_path / "full.pth").layout == "DINO (full, teacher)"


def test_safetensors_are_read(tmp_path: Path) -> None:
    _, tensors = layout_checkpoint(Path(__file__).parent / "layouts" / "torchvision_resnet18.json")
    safetensors.torch.save_file(tensors, tmp_path / "r18.safetensors")
    assert load_encoder(tmp_path / "r18.safetensors", device="cpu").dim == 512


def test_missing_unexpected_and_misshapen_tensors_are_listed(tmp_path: Path) -> None:
    _, tensors = layout_checkpoint(Path(__file__).parent / "layouts" / "torchvision_resnet18.json")
    tensors.pop("layer1.0.conv2.weight")
    tensors["layer9.extra"] = torch.zeros(1)
    tensors["bn1.weight"] = torch.zeros(3)
    torch.save(tensors, tmp_path / "odd.pth")
    with pytest.raises(WeightsError) as error:
        load_encoder(tmp_path / "odd.pth", device="cpu")
    for part in (
        "odd.pth",
        "1 missing: layer1.0.conv2.weight",
        "1 unexpected: layer9.extra",
        "bn1.weight: (3,)",
    ):
        assert part in str(error.value)


def test_weights_of_another_architecture_than_named_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, _ = layout_checkpoint(Path(__file__).parent / "layouts" / "dino_hub.json")
    torch.save(content, tmp_path / MODELS["dino-vitb16"].file)
    monkeypatch.setenv("UNSPOOL_WEIGHTS", str(tmp_path))
    with pytest.raises(
        WeightsError, match="vit_small_patch16_224, but 'dino-vitb16' is a vit_base_patch16_224"
    ):
        load_encoder("dino-vitb16", device="cpu")


def test_a_named_model_is_found_in_the_weights_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, _ = layout_checkpoint(Path(__file__).parent / "layouts" / "dino_hub.json")
    torch.save(content, tmp_path / MODELS["dino-vits16"].file)
    monkeypatch.setenv("UNSPOOL_WEIGHTS", str(tmp_path))
    assert load_encoder("dino-vits16", device="cpu").name == "dino-vits16"


class Unsafe:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("never printed",)


def test_a_file_that_could_run_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": {}, "opt": Unsafe()}, tmp_path / "unsafe.pth")
    with pytest.raises(WeightsError, match=r"unsafe\.pth: holds more than tensors"):
        load_encoder(tmp_path / "unsafe.pth", device="cpu")
    assert "never printed" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"no weights at all"])
def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=r"broken\.pth"):
        load_encoder(tmp_path / "broken.pth", device="cpu")


def test_a_checkpoint_without_an_encoder_says_what_it_holds(tmp_path: Path) -> None:
    torch.save({"classifier": {"weight": torch.zeros(2)}}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"looked for unspool, DUL.*holds classifier/weight"):
        load_encoder(tmp_path / "other.pth", device="cpu")


# --------------------------------------------------------------------------------- names and modules


def test_an_unknown_name_suggests_near_ones() -> None:
    with pytest.raises(UsageError, match=r"'dino-vits61' is unknown.*did you mean dino-vits16"):
        load_encoder("dino-vits61")


def test_a_missing_file_is_no_name() -> None:
    with pytest.raises(UsageError, match=r"nowhere\.pth: no such weights file"):
        load_encoder("nowhere.pth")


def test_a_device_that_is_not_there_is_wrong_use() -> None:
    with pytest.raises(UsageError, match="device 'cuda:99' is not there"):
        load_encoder("random-resnet18", device="cuda:99")


@torch.inference_mode()
def test_any_module_becomes_an_encoder() -> None:
    class Mine(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return nn.functional.avg_pool2d(images, 14).flatten(2).transpose(1, 2)  # tokens [b, n, c]

    encoder = load_encoder(Mine(), patch=14, device="cpu")
    found = encoder(torch.full((1, 3, 28, 42), 0.5))["tokens"]
    assert found.shape == (1, 3, 2, 3)
    assert torch.allclose(found[0, :, 0, 0], ((0.5 - MEAN) / STD).flatten())
    with pytest.raises(UsageError, match="offers no 'keys'; it offers tokens"):
        encoder(torch.zeros(1, 3, 28, 28), want=("keys",))


def test_a_module_without_its_patch_size_is_asked_for_it() -> None:
    with pytest.raises(UsageError, match="patch=14"):
        load_encoder(nn.Identity())


def test_the_list_of_models_names_all() -> None:
    text = describe_models()
    assert all(name in text for name in MODELS)
    assert "512 channels" in describe_models("random-resnet18")


# ------------------------------------------------------------------------------------------ downloads


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    """A loopback server in the hub's place that holds seeded weights of DINO ViT-S/16."""
    _, tensors = layout_checkpoint(Path(__file__).parent / "layouts" / "dino_hub.json")
    served = tmp_path / "hub" / "timm" / "vit_small_patch16_224.dino" / "resolve" / "main"
    served.mkdir(parents=True)
    safetensors.torch.save_file(tensors, served / "model.safetensors")

    class Hub(SimpleHTTPRequestHandler):
        def end_headers(self) -> None:
            self.send_header("ETag", '"seeded"')
            self.send_header("X-Repo-Commit", "0" * 40)
            super().end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, directory=tmp_path / "hub"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


DOWNLOAD = """
from unspool.encoders import load_encoder
encoder = load_encoder("dino-vits16", device="cpu")
print(encoder.name, float(encoder.network.patch_embed.proj.weight[0, 0, 0, 0]))
"""


def download(endpoint: str, home: Path) -> subprocess.CompletedProcess[str]:
    import os

    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "NO_PROXY": "*",
        "UNSPOOL_WEIGHTS": "",
    }
    for variable in ("HF_HUB_OFFLINE", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        environment.pop(variable, None)
    return subprocess.run(
        [sys.executable, "-c", DOWNLOAD],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_named_model_is_downloaded(hub: str, tmp_path: Path) -> None:
    _, tensors = layout_checkpoint(Path(__file__).parent / "layouts" / "dino_hub.json")
    done = download(hub, tmp_path / "home")
    assert done.returncode == 0, done.stderr
    name, number = done.stdout.split()[-2:]
    assert name == "dino-vits16"
    assert float(number) == pytest.approx(float(tensors["patch_embed.proj.weight"][0, 0, 0, 0]))


def test_without_a_network_the_file_and_its_place_are_named(tmp_path: Path) -> None:
    done = download("http://127.0.0.1:9", tmp_path / "home")
    assert WeightsUnavailable.__name__ in done.stderr
    assert "dino_deitsmall16_pretrain.pth" in done.stderr
    assert "UNSPOOL_WEIGHTS" in done.stderr


@pytest.mark.parametrize("name", ["random-vits16", "random-resnet18"])
@pytest.mark.parametrize("count", [1, 3])
def test_beginning_and_ending_give_the_tokens_of_one_pass(name: str, count: int) -> None:
    encoder = load_encoder(name, device="cpu")
    images = torch.rand(2, 3, 32, 48)
    with torch.no_grad():
        begun, beside = encoder.begin(images, count)
        tail = encoder.tail(count)
        whole = encoder(images)["tokens"]
        torch.testing.assert_close(encoder.end(begun, beside, tail), whole)
        torch.testing.assert_close(encoder.end(begun[1:], beside, tail), whole[1:])

"""Encoders: images in, a grid of features out; frozen.

`load_encoder` takes a name, a checkpoint file, a Python file, or any module of your own.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from unspool.encoders.checkpoints import (
    Checkpoint,
    as_timm,
    load_strictly,
    read_checkpoint,
    save_encoder,
    vit_architecture,
    vit_sizes,
    weights_hash,
)
from unspool.encoders.images import IMAGENET_STD, encode_batches
from unspool.encoders.own import ModuleEncoder, encoder_of_file, facts_of
from unspool.encoders.resnet import (
    DulHead,
    ResNetEncoder,
    random_resnet,
    resnet18_stride8,
    resnet50_stride16,
)
from unspool.encoders.vit import Positions, ViTEncoder, build_vit
from unspool.errors import UsageError, WeightsError, WeightsUnavailable

__all__ = [
    "MODELS",
    "Encoder",
    "describe_models",
    "encode_batches",
    "facts_of",
    "load_encoder",
    "save_encoder",
]

Std = tuple[float, float, float]


class Encoder(Protocol):
    """What every encoder is: a callable from images to named maps, and a few facts."""

    name: str
    patch: int  # px per token
    dim: int  # channels of `tokens`
    multiple: int  # px that the sides of an input must be multiples of
    offers: tuple[str, ...]
    weights_hash: str

    def __call__(self, images: Tensor, want: tuple[str, ...] = ("tokens",)) -> dict[str, Tensor]:
        """Maps `[b, c, h, w]`, not normalised, of images `[b, 3, H, W]` (uint8, or float in 0..1, RGB)."""


@dataclass(frozen=True)
class Model:
    """A published encoder that has a name here."""

    timm: str  # architecture.tag of timm, for the download; empty where timm has none
    file: str  # the file that its authors publish
    about: str
    family: Literal["vit", "resnet18", "resnet50"] = "vit"


MODELS = {
    "dino-vits16": Model("vit_small_patch16_224.dino", "dino_deitsmall16_pretrain.pth", "DINO ViT-S/16"),
    "dino-vits8": Model("vit_small_patch8_224.dino", "dino_deitsmall8_pretrain.pth", "DINO ViT-S/8"),
    "dino-vitb16": Model("vit_base_patch16_224.dino", "dino_vitbase16_pretrain.pth", "DINO ViT-B/16"),
    "dino-vitb8": Model("vit_base_patch8_224.dino", "dino_vitbase8_pretrain.pth", "DINO ViT-B/8"),
    "dinov2-vits14": Model(
        "vit_small_patch14_dinov2.lvd142m", "dinov2_vits14_pretrain.pth", "DINOv2 ViT-S/14"
    ),
    "dinov2-vitb14": Model(
        "vit_base_patch14_dinov2.lvd142m", "dinov2_vitb14_pretrain.pth", "DINOv2 ViT-B/14"
    ),
    "dinov2-vits14-reg": Model(
        "vit_small_patch14_reg4_dinov2.lvd142m",
        "dinov2_vits14_reg4_pretrain.pth",
        "DINOv2 ViT-S/14, 4 registers",
    ),
    "dinov2-vitb14-reg": Model(
        "vit_base_patch14_reg4_dinov2.lvd142m",
        "dinov2_vitb14_reg4_pretrain.pth",
        "DINOv2 ViT-B/14, 4 registers",
    ),
    "dinov3-vits16": Model(
        "vit_small_patch16_dinov3.lvd1689m", "dinov3_vits16_pretrain_lvd1689m-08c60483.pth", "DINOv3 ViT-S/16"
    ),
    "dinov3-vitb16": Model(
        "vit_base_patch16_dinov3.lvd1689m", "dinov3_vitb16_pretrain_lvd1689m-73cec8be.pth", "DINOv3 ViT-B/16"
    ),
    "resnet18": Model(
        "resnet18.tv_in1k", "resnet18-f37072fd.pth", "ResNet-18, ImageNet labels, stride 8", "resnet18"
    ),
    "resnet50": Model(
        "resnet50.tv_in1k", "resnet50-0676ba61.pth", "ResNet-50, ImageNet labels, stride 16", "resnet50"
    ),
    "dino-resnet50": Model("", "dino_resnet50_pretrain.pth", "DINO ResNet-50, stride 16", "resnet50"),
}
SHIPPED = {  # files of unspool/weights, described in docs/models
    "dul-small": "ResNet-18 of stride 8 at half width, learnt from video alone by DUL",
}
RANDOM_VITS = {
    "random-vits16": "vit_small_patch16_224",
    "random-vits8": "vit_small_patch8_224",
    "random-vitb16": "vit_base_patch16_224",
    "random-vitb8": "vit_base_patch8_224",
}
RANDOM = {
    "random-resnet18": "ResNet-18 of stride 8 that has learnt nothing (DUL's architecture)",
    "random-resnet50": "ResNet-50 of stride 16 that has learnt nothing",
    **{name: f"ViT-{name[10].upper()}/{name[11:]} that has learnt nothing" for name in RANDOM_VITS},
}
SAVED = "encoder.safetensors"  # what a training result holds
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ENDINGS = (".pth", ".pt", ".safetensors", ".ckpt", ".bin", ".tar")


def load_encoder(
    model: str | Path | nn.Module,
    *,
    device: str = "auto",
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    seed: int = 0,
    positions: Positions = "published",
    std: Std | None = None,
    patch: int | None = None,
) -> Encoder:
    """An encoder, frozen and in evaluation mode.

    `model`: a name (`unspool models` lists them), a checkpoint file in any of the published layouts, a folder
    that training left, a Python file whose function `encoder()` makes one (it is run; see
    `unspool.encoders.own`), or a module of your own from images `[b, 3, h, w]` (normalised as ImageNet) to
    maps `[b, c, h', w']` or tokens `[b, n, c]`, whose `patch` (px per token) you name. A published name is
    looked for in the folders of `$UNSPOOL_WEIGHTS` and then downloaded through timm. `seed` decides random
    models only, `positions` how ViTs stretch theirs. A module of your own is put into evaluation mode, on
    `device` and, unless `precision` is fp32, cast, all in place; whether it can still be trained is left to
    you.
    Raises UsageError for an unknown name, WeightsUnavailable where weights cannot be had, WeightsError where
    they do not fit.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"precision '{precision}' is unknown; choose one of {', '.join(PRECISIONS)}")
    place = device_named(device)
    spread = std or IMAGENET_STD
    cast = None if precision == "fp32" else PRECISIONS[precision]
    if isinstance(model, nn.Module):
        return ModuleEncoder(model, patch, spread, place, cast)
    if Path(model).suffix == ".py":
        own: Any = encoder_of_file(Path(model), seed=seed, std=spread, device=place, dtype=cast)
        return own  # type: ignore[no-any-return]
    if str(model) in SHIPPED:
        encoder: Any = _encoder_of(read_checkpoint(shipped(str(model))), str(model), positions, spread)
    elif str(model).startswith("random-"):
        encoder = _random(str(model), seed, positions, spread)
    elif str(model) in MODELS or str(model).startswith("timm/"):
        encoder = _published(str(model), positions, spread)
    else:
        encoder = _from_file(Path(model), positions, spread)
    encoder.requires_grad_(False).eval()
    encoder.weights_hash = weights_hash(encoder)
    return encoder.to(place, PRECISIONS[precision])  # type: ignore[no-any-return]


def device_named(name: str) -> torch.device:
    """`auto` is the GPU where there is one. Raises UsageError for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(
            f"device '{name}' is not there ({str(error).splitlines()[0]}); try auto or cpu"
        ) from error
    return device


# ----------------------------------------------------------------------------------------- where from


def _random(name: str, seed: int, positions: Positions, std: Std) -> nn.Module:
    if name not in RANDOM:
        raise UsageError(f"model '{name}' is unknown; there are {', '.join(RANDOM)}")
    if name not in RANDOM_VITS:
        return random_resnet(name.removeprefix("random-"), seed, std)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = build_vit(RANDOM_VITS[name])
    return ViTEncoder(network, name=name, positions=positions, std=std)


def _published(name: str, positions: Positions, std: Std) -> nn.Module:
    model = MODELS.get(name) or Model(name.removeprefix("timm/"), "", name)
    for folder in filter(None, os.environ.get("UNSPOOL_WEIGHTS", "").split(os.pathsep)):
        for file in filter(None, (model.file, *(f"{name.replace('/', '-')}{e}" for e in ENDINGS))):
            if (Path(folder) / file).is_file():
                return _encoder_of(read_checkpoint(Path(folder) / file), name, positions, std)
    network = _download(name, model)
    if model.family == "vit":
        return ViTEncoder(network, name=name, positions=positions, std=std)
    state = {key: value for key, value in network.state_dict().items() if not key.startswith("fc.")}
    return _encoder_of(Checkpoint(Path(name), "timm", model.family, state, {}), name, positions, std)


def _download(name: str, model: Model) -> nn.Module:
    """Timm's network with its weights from the hub, or from the hub's own cache.

    The hub is asked once, for ten seconds at most, before its client is let go: that would try for minutes.
    """
    import timm  # noqa: PLC0415
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache  # noqa: PLC0415

    if not model.timm:
        raise _unavailable(name, model, "timm has no copy of it")
    known = timm.list_models(pretrained=True)
    if model.timm not in known and model.timm not in timm.list_models():
        near = difflib.get_close_matches(model.timm, known, n=3)
        raise UsageError(f"model '{name}': timm does not know it; near are {', '.join(near) or 'none'}")
    published = timm.get_pretrained_cfg(model.timm)
    hub = published.hf_hub_id if published is not None else None
    files = ("model.safetensors", "pytorch_model.bin")
    try:
        if hub and not any(isinstance(try_to_load_from_cache(hub, file), str) for file in files):
            get_hf_file_metadata(hf_hub_url(hub, files[0]), timeout=10)
        sizes: dict[str, Any] = {"dynamic_img_size": True} if "vit" in model.timm else {}
        return timm.create_model(model.timm, pretrained=True, num_classes=0, **sizes)
    except Exception as error:  # the hub's client raises many kinds; all mean that there are no weights
        reason = (str(error).splitlines() or [""])[0][:120]
        raise _unavailable(name, model, f"{type(error).__name__}: {reason}") from error


def _unavailable(name: str, model: Model, reason: str) -> WeightsUnavailable:
    own = f"{name.replace('/', '-')}.safetensors"
    file = f"{model.file}, as its authors publish it" if model.file else f"timm's model.safetensors as {own}"
    return WeightsUnavailable(
        f"model '{name}': its weights are not on this machine and cannot be downloaded ({reason}); get "
        f"{file}, where there is a network, put it into a folder that UNSPOOL_WEIGHTS names, or give the "
        "file itself as the model"
    )


def _from_file(path: Path, positions: Positions, std: Std) -> nn.Module:
    if path.is_dir():
        if not (path / SAVED).is_file():
            raise UsageError(
                f"{path}: a folder without {SAVED}; name a checkpoint file, or a training result"
            )
        path = path / SAVED
    if not path.is_file():
        if path.suffix in ENDINGS or len(path.parts) > 1:
            raise UsageError(f"{path}: no such weights file")
        known = [*SHIPPED, *MODELS, *RANDOM]
        near = difflib.get_close_matches(str(path), known, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
        raise UsageError(f"model '{path}' is unknown: neither a name nor a file; {hint}")
    return _encoder_of(read_checkpoint(path), path.name, positions, std)


def shipped(name: str) -> Path:
    """The file of a model that comes with unspool."""
    return Path(str(files("unspool") / "weights" / f"{name}.safetensors"))


def _encoder_of(checkpoint: Checkpoint, name: str, positions: Positions, std: Std) -> nn.Module:
    if name in MODELS and MODELS[name].family != checkpoint.family:
        raise WeightsError(
            f"{checkpoint.path}: holds a {checkpoint.family}, but '{name}' is a {MODELS[name].family}"
        )
    if checkpoint.family == "vit":
        return _vit_of(checkpoint, name, positions, std)
    origin = f"{checkpoint.path} ({checkpoint.layout})"
    if checkpoint.family == "resnet50":
        network = resnet50_stride16()
    else:
        network = resnet18_stride8(checkpoint.padding, width=len(checkpoint.state["conv1.weight"]))
    if not any(key.startswith("layer4.") for key in checkpoint.state):
        del network.layer4  # CRW ends at layer3
    load_strictly(network, checkpoint.state, origin)
    head = None
    if "conv2.weight" in checkpoint.head:
        weight = checkpoint.head["conv2.weight"]
        head = DulHead(weight.shape[1], weight.shape[0])
        load_strictly(head, checkpoint.head, origin)
    return ResNetEncoder(network, name=name, head=head, std=std)


def _vit_of(checkpoint: Checkpoint, name: str, positions: Positions, std: Std) -> nn.Module:
    origin = f"{checkpoint.path} ({checkpoint.layout})"
    architecture = vit_architecture(checkpoint.state, origin)
    expected = MODELS[name].timm.split(".")[0] if name in MODELS else architecture
    if not architecture.startswith(expected):
        raise WeightsError(f"{checkpoint.path}: holds a {architecture}, but '{name}' is a {expected}")
    undrawn = {} if "dinov3" in architecture else {"weight_init": "skip"}
    try:
        network = build_vit(architecture, **vit_sizes(checkpoint.state), **undrawn)
    except RuntimeError as error:
        raise WeightsError(f"{origin}: timm has no {architecture} ({error})") from error
    load_strictly(network, as_timm(checkpoint.state, network, architecture), origin)
    return ViTEncoder(network, name=name, positions=positions, std=std)


def describe_models(name: str | None = None) -> str:
    """The table of `unspool models`, or what is known of one."""
    if name is None:
        rows = [(n, about, "comes with unspool") for n, about in SHIPPED.items()]
        rows += [
            (n, m.about, "downloaded through timm when named" if m.timm else f"from {m.file}")
            for n, m in MODELS.items()
        ]
        rows += [(n, about, "made on the spot") for n, about in RANDOM.items()]
        width = max(len(row[0]) for row in rows)
        lines = [f"{n:<{width}}  {about} ({how})" for n, about, how in rows]
        return "\n".join(
            [
                *lines,
                "Any checkpoint file of a published layout can be given in place of a name,",
                "and any Python file with a function encoder() that returns a torch.nn.Module.",
            ]
        )
    encoder = load_encoder(name, device="cpu")
    parameters = sum(p.numel() for p in encoder.parameters())  # type: ignore[attr-defined]
    return "\n".join(
        [
            f"{encoder.name}: {parameters / 1e6:.1f} M parameters, weights {encoder.weights_hash}",
            f"{encoder.patch} px per token, {encoder.dim} channels",
            f"offers {', '.join(encoder.offers)}",
        ]
    )

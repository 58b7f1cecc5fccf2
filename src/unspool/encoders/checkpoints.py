"""Published checkpoint files, translated at the border: which tensors are the encoder, and what it is.

`LAYOUTS` is the whole map: how each publication nests and prefixes its encoder, and which tensors beside it
are heads that an encoder does not need. What remains must fit the architecture exactly. `save_encoder` writes
our own: safetensors, the tensors of `network.` and `head.` under torchvision's or timm's names, and the facts
that shapes do not tell in the metadata.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from unspool.errors import OutputError, WeightsError

State = dict[str, Tensor]
SHOWN = 6  # keys listed in a message


@dataclass(frozen=True)
class Layout:
    """Where a publication keeps its encoder."""

    name: str
    inside: tuple[str, ...]  # entries of nested dictionaries that lead to the tensors
    prefix: str  # of the encoder's own tensors
    heads: str = ""  # pattern of the encoder's tensors that are not used, after the prefix


VIT_HEADS = r"(head|fc_norm|projection_head|prototypes|mask_token|masked_embed)\b.*"
LAYOUTS = (
    Layout("unspool", (), "network."),
    Layout("DUL", ("model",), "fast_net.backbone."),
    Layout("CRW", ("model",), "encoder.model.", r"fc\..*"),
    Layout("BA", ("model_state_dict",), "encoder.", VIT_HEADS),
    Layout("DINO (full, teacher)", ("teacher",), "backbone.", VIT_HEADS),
    Layout("MSN (target encoder)", ("target_encoder",), "", VIT_HEADS + r"|(fc|pred)\..*"),
    Layout("TimeT", (), "feature_extractor.backbone.", VIT_HEADS),
    Layout("Leopart", ("state_dict",), "model.", VIT_HEADS),
    Layout("Leopart (flat)", (), "model.", VIT_HEADS),
    Layout("iBOT", ("state_dict",), "", VIT_HEADS),
    Layout("backbone", (), "backbone.", VIT_HEADS),
    Layout("bare (DINO hub, DINOv2, DINOv3, torchvision)", (), "", VIT_HEADS + r"|fc\..*"),
)
WRAPPERS = ("module.", "_orig_mod.")  # of DataParallel and torch.compile
METADATA = "__metadata__"  # of a safetensors file

# What published files hold beside tensors, and what cannot run code: the arguments of the command line, and
# numpy's numbers, also under the module name that numpy had until its version 2.
HARMLESS = [
    argparse.Namespace,
    np.dtype,
    np._core.multiarray.scalar,  # type: ignore[attr-defined]
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),  # type: ignore[attr-defined]
    *{type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32)},
]


@dataclass(frozen=True)
class Checkpoint:
    """The encoder's tensors of a file, under plain names, and what they are."""

    path: Path
    layout: str
    family: str  # "vit", "resnet18" or "resnet50"
    state: State
    head: State  # DUL's emb_q, else empty
    padding: Literal["zeros", "reflect"] = "zeros"  # of a ResNet's convolutions


def read_checkpoint(path: Path) -> Checkpoint:
    """Find the encoder in a file. Raises WeightsError naming the file and the layouts that were tried."""
    content = _read(path)
    for layout in LAYOUTS:
        state = _inside(content, layout)
        if state is None:
            continue
        own = {k.removeprefix(layout.prefix): v for k, v in state.items() if k.startswith(layout.prefix)}
        own = {k: v for k, v in own.items() if not (layout.heads and re.fullmatch(layout.heads, k))}
        family = _family(own)
        if family:
            heads = re.compile(r"(.*\bemb_q|head)\.(conv1|bn1|conv2)\.")
            head = {heads.sub(r"\2.", k): v for k, v in state.items() if heads.match(k)}
            reflected = layout.name == "CRW" or content.get(METADATA, {}).get("padding") == "reflect"
            padding: Literal["zeros", "reflect"] = "reflect" if reflected else "zeros"
            return Checkpoint(path, layout.name, family, _plain_names(own), head, padding)
    raise WeightsError(
        f"{path}: no encoder found; looked for {', '.join(layout.name for layout in LAYOUTS)}. "
        f"The file holds {_listed(sorted(_keys(content)))}"
    )


def tensors_named(path: Path, beginnings: tuple[str, ...]) -> State:
    """The tensors of a file, of ours or of BA's, whose names begin so; none where it holds no such."""
    content = _read(path)
    state = _inside(content, Layout("BA", ("model_state_dict",), "")) or _inside(content, Layout("", (), ""))
    return {key: value for key, value in (state or {}).items() if key.startswith(beginnings)}


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
                return {**tensors, METADATA: file.metadata() or {}}
        with torch.serialization.safe_globals(HARMLESS):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(
            f"{path}: holds more than tensors ({reason}), which could run code; save its state dict alone "
            "with torch.save(checkpoint['state_dict'], ...) where you trust it, and give that file"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, SafetensorError) as error:
        raise WeightsError(f"{path}: cannot be read as weights ({error}); is the file whole?") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: holds a {type(content).__name__}, expected a dictionary of tensors")
    return content


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _inside(content: dict[str, Any], layout: Layout) -> State | None:
    for step in layout.inside:
        entry = content.get(step)
        if not isinstance(entry, dict):
            return None
        content = entry
    state = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    for wrapper in WRAPPERS:
        if state and all(key.startswith(wrapper) for key in state):
            state = {key.removeprefix(wrapper): value for key, value in state.items()}
    return state or None


def _keys(content: dict[str, Any], prefix: str = "") -> list[str]:
    keys = []
    for key, value in content.items():
        if key == METADATA:
            continue
        keys += _keys(value, f"{prefix}{key}/") if isinstance(value, dict) else [f"{prefix}{key}"]
    return keys


def _family(state: State) -> str:
    if "patch_embed.proj.weight" in state:
        return "vit"
    if "conv1.weight" in state or "conv1.1.weight" in state:
        return "resnet50" if any(k.startswith("layer1.0.conv3") for k in state) else "resnet18"
    return ""


def _plain_names(state: State) -> State:
    """Undo two wrappings: `conv1.1.` of older CRW files (a padding layer is in front), and `blocks.0.0.` of
    DINOv2's training snapshots (blocks in chunks, numbered through).
    """
    undone = (re.sub(r"\b(conv[12])\.1\.", r"\1.", key) for key in state)
    undone = (re.sub(r"\bblocks\.\d+\.(\d+)\.", r"blocks.\1.", key) for key in undone)
    return dict(zip(undone, state.values(), strict=True))


# ---------------------------------------------------------------------------------------- architecture


def vit_architecture(state: State, origin: str) -> str:
    """The timm name of the ViT that the tensors belong to, from their names and shapes.

    Raises WeightsError naming `origin` for sizes that have no name here.
    """
    shape = tuple(state["patch_embed.proj.weight"].shape)
    if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3]:
        raise WeightsError(
            f"{origin}: its patch weights are {shape}, an encoder of images has (width, 3, patch, patch); "
            "wrap one that takes clips (VideoMAE, V-JEPA) or other channels: load_encoder(module, patch=...)"
        )
    dim, _, patch, _ = shape
    size = {192: "tiny", 384: "small", 768: "base", 1024: "large"}.get(dim)
    registers = any(k in state for k in ("register_tokens", "reg_token", "storage_tokens"))
    if size and patch == 16 and "pos_embed" not in state:
        biased = "blocks.0.attn.qkv.bias" in state or "blocks.0.attn.q_bias" in state
        return f"vit_{size}_patch16_dinov3" + ("_qkvb" if biased else "")
    if size and patch == 14:
        return f"vit_{size}_patch14_reg4_dinov2" if registers else f"vit_{size}_patch14_dinov2"
    if size and patch in (8, 16):
        return f"vit_{size}_patch{patch}_224"
    raise WeightsError(f"{origin}: a ViT of width {dim} with {patch} px patches has no timm name here")


def vit_sizes(state: State) -> dict[str, int]:
    """Number of blocks, and the image size whose position table is stored, as timm's arguments."""
    numbers = [int(m[1]) for key in state if (m := re.match(r"blocks\.(\d+)\.", key))]
    sizes = {"depth": 1 + max(numbers, default=-1)}
    if "pos_embed" in state:
        sizes["img_size"] = (
            math.isqrt(state["pos_embed"].shape[1]) * state["patch_embed.proj.weight"].shape[2]
        )
    return sizes


def as_timm(state: State, network: Any, architecture: str) -> State:
    """Meta's names of DINOv2 and DINOv3 as timm's; other ViTs have them already.

    With registers, timm keeps the position of the class token inside the class token.
    """
    if "dinov3" in architecture:
        from timm.models import eva  # noqa: PLC0415

        return dict(eva.checkpoint_filter_fn(state, network))
    renamed = {
        ("reg_token" if k == "register_tokens" else k): v for k, v in state.items() if k != "mask_token"
    }
    table = renamed.get("pos_embed")
    if network.no_embed_class and table is not None and table.shape[1] == network.pos_embed.shape[1] + 1:
        renamed["cls_token"] = renamed["cls_token"] + table[:, :1]
        renamed["pos_embed"] = table[:, 1:]
    return renamed


def load_strictly(network: nn.Module, state: State, origin: str) -> None:
    """Load all tensors; WeightsError listing what is missing, unexpected or of another shape."""
    own = network.state_dict()
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in own]
    shapes = [
        f"{k}: {tuple(state[k].shape)} in the file, {tuple(own[k].shape)} in the model"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    if missing or unexpected or shapes:
        parts = [
            f"{len(keys)} {what}: {_listed(keys)}"
            for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
            if keys
        ]
        raise WeightsError(f"{origin}: these weights are of another architecture; {'; '.join(parts)}")
    network.load_state_dict(state, strict=False)


def _listed(keys: list[str]) -> str:
    rest = f", ... ({len(keys)} in all)" if len(keys) > SHOWN else ""
    return ", ".join(keys[:SHOWN]) + rest


def weights_hash(module: nn.Module) -> str:
    """Sixteen hex digits over names, shapes and bytes of all tensors."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def save_encoder(encoder: nn.Module, path: str | Path, beside: State | None = None) -> None:
    """Write an encoder as a safetensors file that `load_encoder` takes, whole or not at all.

    `beside`: tensors of what stands on the encoder, which `tensors_named` reads.
    Metadata: `unspool` (the format's number), `family` and `padding`.
    """
    network: Any = encoder.network
    convolution = getattr(network, "conv1", None)
    facts = {
        "unspool": "1",
        "family": _family(network.state_dict()),
        "padding": convolution.padding_mode if convolution is not None else "zeros",
    }
    state = {**encoder.state_dict(), **(beside or {})}
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(save(tensors, metadata=facts))  # `save_file` leaves it to its owner alone
        unfinished.replace(path)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"{path}: cannot be written ({error}); free space, or name another folder"
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)

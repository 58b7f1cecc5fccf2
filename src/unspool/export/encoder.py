"""Exports that need an encoder: dense features of a result's videos, and the encoder itself for timm."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from unspool.encoders import Encoder, load_encoder
from unspool.encoders.checkpoints import vit_architecture, vit_sizes
from unspool.encoders.images import IMAGENET_MEAN
from unspool.encoders.resnet import ResNetEncoder
from unspool.encoders.vit import ViTEncoder
from unspool.errors import UsageError
from unspool.results import Json, write_json, written_whole
from unspool.tracking import Tracking, input_size

# ---------------------------------------------------------------------------------------- features


def write_features(
    video: Any,
    path: Path,
    *,
    encoder: Encoder,
    layer: str,
    resolution: int | None,
    report: Callable[[Json], None],
) -> None:
    """`features` `[T, C, h, w]` float16 in a safetensors file, as the encoder gives them (not normalised).

    Metadata (texts): `grid` "h w", `layer`, `norm` (none), `input` "H W" in px, `patch`, `encoder`,
    `weights_hash`, `source`. One frame is in memory at a time: the tensor's bytes go straight into the file.
    """
    size = input_size(video.height, video.width, encoder, Tracking(short_side=resolution))
    report({"event": "video", "video": video.name, "frames": video.frames})
    with written_whole(path) as part, part.open("wb") as out:
        for index, image in enumerate(video.images()):
            map_ = _encoded(image, encoder, size, layer)
            if not index:
                out.write(_header(map_.shape, video, encoder, layer, size))
            out.write(map_.tobytes())
            report({"event": "frame", "video": video.name, "frame": index + 1, "frames": video.frames})


@torch.inference_mode()
def _encoded(image: Any, encoder: Encoder, size: tuple[int, int], layer: str) -> Any:
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float() / 255
    if pixels.shape[-2:] != size:
        pixels = torch.nn.functional.interpolate(pixels, size=size, mode="bilinear", align_corners=False)
    return encoder(pixels, want=(layer,))[layer][0].half().cpu().numpy()


def _header(shape: tuple[int, ...], video: Any, encoder: Encoder, layer: str, size: tuple[int, int]) -> bytes:
    """Length and json of a safetensors file that holds one tensor of all frames."""
    whole = [video.frames, *shape]
    facts = {
        "grid": " ".join(map(str, shape[1:])),
        "layer": layer,
        "norm": "none",
        "input": f"{size[0]} {size[1]}",
        "patch": str(encoder.patch),
        "encoder": encoder.name,
        "weights_hash": encoder.weights_hash,
        "source": video.source,
    }
    tensor = {"dtype": "F16", "shape": whole, "data_offsets": [0, 2 * int(np.prod(whole))]}
    text = json.dumps({"__metadata__": facts, "features": tensor}).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


# -------------------------------------------------------------------------------------------- timm


def timm_writer(model: str) -> Callable[[Path], None]:
    """Writes what `timm.create_model("local-dir:FOLDER", pretrained=True)` reads, a config and safetensors.

    ViTs, and ResNet-50 with its dilated last stage, give the same numbers there as here (ViTs at the size of
    their position table: for others timm stretches it by a rule of its own). Raises UsageError for networks
    that timm cannot build: ResNet-18 of stride 8 drops its strides without dilating, which timm does not.
    """
    encoder: Any = load_encoder(model, device="cpu")
    state = {key: value.contiguous() for key, value in encoder.network.state_dict().items()}
    if isinstance(encoder, ViTEncoder):
        architecture = vit_architecture(state, model)
        arguments: Json = {**vit_sizes(state), "dynamic_img_size": True}
    elif isinstance(encoder, ResNetEncoder) and encoder.dim == 2048:
        architecture, arguments = "resnet50", {"output_stride": 16}
    else:
        raise UsageError(
            f"--to timm: '{encoder.name}' ({encoder.patch} px per token) is no network that timm can build; "
            "its file already holds torchvision's tensor names after 'network.', and "
            "unspool.load_encoder reads it"
        )
    config = {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": encoder.dim,
        "model_args": arguments,
        "pretrained_cfg": _pretrained(encoder, arguments),
    }

    def write(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with written_whole(folder / "model.safetensors") as part:
            part.write_bytes(save(state, metadata={"format": "pt"}))
        write_json(folder / "config.json", config)

    return write


def _pretrained(encoder: Any, arguments: Json) -> Json:
    side = arguments.get("img_size", 224)
    return {
        "input_size": [3, side, side],
        "mean": list(IMAGENET_MEAN),
        "std": list(encoder.std),
        "num_classes": 0,
        "first_conv": "conv1" if encoder.offers[1] == "layer1" else "patch_embed.proj",
        "classifier": "",
    }

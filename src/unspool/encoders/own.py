"""Encoders of your own: a module, or a Python file that makes one.

    import torchvision

    def encoder():
        return torchvision.models.mobilenet_v3_small(weights=None).features

is a whole file for `--model my_encoder.py`. It is run as a program, unlike checkpoint files.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from runpy import run_path
from typing import Any

import torch
from torch import Tensor, nn

from unspool.encoders.checkpoints import weights_hash
from unspool.encoders.images import normalised, offered
from unspool.errors import ShapeError, UnspoolError, UsageError

Std = tuple[float, float, float]
PROBE = 224  # px of the square that tells how many px a token has
FACTS = ("name", "patch", "dim", "multiple", "offers")  # of an encoder that is complete as it stands


class ModuleEncoder(nn.Module):
    """Any module from normalised images to maps `[b, c, h', w']` or tokens `[b, h' w', c]`, row by row."""

    offers: tuple[str, ...] = ("tokens",)

    def __init__(
        self, module: nn.Module, patch: int | None, std: Std, device: torch.device, dtype: torch.dtype | None
    ) -> None:
        super().__init__()
        if patch is None:
            raise UsageError(
                "load_encoder(module): name the px per token, e.g. load_encoder(module, patch=14)"
            )
        self.module, self.std = module.eval().to(device, dtype), std
        self.name = type(module).__name__
        self.patch = self.multiple = patch
        self.weights_hash = weights_hash(module)
        side = -(-PROBE // patch) * patch
        with torch.no_grad():
            self.dim = self(torch.zeros(1, 3, side, side))["tokens"].shape[1]

    def forward(self, images: Tensor, want: tuple[str, ...] = ("tokens",)) -> dict[str, Tensor]:
        """The module's map of images `[b, 3, h, w]`, uint8 or float in 0..1, without gradients.

        Raises ShapeError where the module's answer is no map of one vector per patch.
        """
        offered(want, self.offers, self.name)
        like = next(self.module.parameters(), torch.zeros(1))
        with torch.no_grad():
            out: Tensor = self.module(normalised(images, self.std, like))
        height, width = images.shape[-2] // self.patch, images.shape[-1] // self.patch
        if out.ndim == 3 and out.shape[1] == height * width:
            out = out.transpose(1, 2).reshape(len(out), -1, height, width)
        if out.ndim != 4 or out.shape[-2:] != (height, width):
            raise ShapeError(
                f"module {self.name} returned {list(out.shape)} for images {list(images.shape)}; with "
                f"patch={self.patch} it must return [b, c, {height}, {width}] or [b, {height * width}, c]; "
                "drop class tokens, and name the patch that fits"
            )
        return {"tokens": out}


def encoder_of_file(
    path: Path, *, seed: int, std: Std, device: torch.device, dtype: torch.dtype | None
) -> nn.Module:
    """What the function `encoder()` of a Python file returns, as an encoder; frozen.

    It returns a module, as `ModuleEncoder` takes it, whose attribute `patch`, else its answer to an image of
    224x224, says how many px a token has; or a module that is an `Encoder` already. `seed`: of what it draws.
    Raises UsageError naming the file: it cannot be run, has no such function, which fails, or returns
    something else; ShapeError for an answer that is no grid of tokens.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        made = _made(path)
    made = made.eval()
    if all(hasattr(made, fact) for fact in FACTS):
        encoder: Any = made.to(device, dtype)
    else:
        try:
            patch = getattr(made, "patch", None) or _px_per_token(made)
            encoder = ModuleEncoder(made, patch, std, device, dtype)
        except ShapeError as error:
            raise ShapeError(f"{path}: {error}") from error
        except Exception as error:  # of a module that nobody here knows
            raise UsageError(
                f"{path}: the module that encoder() returned failed on an image of {PROBE}x{PROBE} "
                f"({_told(error)}); it takes images [b, 3, h, w]"
            ) from error
    content = path.read_bytes()
    encoder.name = path.name
    encoder.file = {"path": str(path.resolve()), "sha256": hashlib.sha256(content).hexdigest()}
    both = weights_hash(encoder) + encoder.file["sha256"]  # other code is another encoder
    encoder.requires_grad_(False)
    encoder.weights_hash = hashlib.sha256(both.encode()).hexdigest()[:16]
    return encoder  # type: ignore[no-any-return]


def _made(path: Path) -> nn.Module:
    if not path.is_file():
        raise UsageError(f"{path}: no such file; --model takes a Python file with a function encoder()")
    try:
        make = run_path(str(path)).get("encoder")
    except Exception as error:
        raise UsageError(f"{path}: cannot be run ({_told(error)})") from error
    if not callable(make):
        raise UsageError(f"{path}: has no function encoder(); let it return a torch.nn.Module")
    try:
        made = make()
    except UnspoolError:
        raise
    except Exception as error:
        raise UsageError(f"{path}: encoder() failed ({_told(error)})") from error
    if not isinstance(made, nn.Module):
        raise UsageError(f"{path}: encoder() returned {type(made).__name__}; it must be a torch.nn.Module")
    return made


def _px_per_token(module: nn.Module) -> int:
    """From the grid that a square image becomes. Raises ShapeError where that is no grid of whole patches."""
    like = next(module.parameters(), torch.zeros(1))
    with torch.no_grad():
        out = module(torch.zeros(1, 3, PROBE, PROBE).to(like))
    shape = list(out.shape) if isinstance(out, Tensor) else []
    side = shape[-1] if len(shape) == 4 else round(shape[1] ** 0.5) if len(shape) == 3 else 0
    whole = side and PROBE % side == 0 and (shape[-2:] == [side, side] or shape[1] == side**2)
    if not whole:
        raise ShapeError(
            f"the module that encoder() returned gave {shape or type(out).__name__} for an image of "
            f"{PROBE}x{PROBE}; it must return [b, c, h, w] or [b, h*w, c]: drop class tokens and pooling, or "
            f"name the px per token as its attribute `patch`"
        )
    return PROBE // side


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def facts_of(encoder: Any) -> dict[str, Any]:
    """What `run.json` holds of an encoder; of a Python file its place and hash too."""
    names = ("name", "weights_hash", "dim", "patch")
    file = getattr(encoder, "file", None)
    return {**{name: getattr(encoder, name) for name in names}, **({"file": file} if file else {})}

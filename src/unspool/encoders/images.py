"""What all encoders do with images and wishes, and how many images fit into memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from unspool.errors import ShapeError, UsageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalised(images: Tensor, std: tuple[float, float, float], like: Tensor) -> Tensor:
    """Images `[b, 3, h, w]`, uint8 or float in 0..1, less the mean, over `std`, placed and typed as `like`.

    Raises ShapeError for another shape, UsageError for other numbers.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ShapeError(f"images must be [b, 3, h, w], RGB; got {list(images.shape)}")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise UsageError(f"images are {images.dtype}; give uint8 in 0..255, or float in 0..1")
    scale = 255 if images.dtype == torch.uint8 else 1
    mean, spread = (torch.tensor(v, device=like.device).view(3, 1, 1) * scale for v in (IMAGENET_MEAN, std))
    return images.to(like.device).float().sub(mean).div_(spread).to(like.dtype)


def offered(want: Sequence[str], offers: Sequence[str], name: str) -> None:
    """Raise UsageError naming what is offered, if a wish is not."""
    for wish in want:
        if wish not in offers:
            raise UsageError(f"encoder '{name}' offers no '{wish}'; it offers {', '.join(offers)}")


def encode_batches(
    encoder: Any, images: Tensor, want: tuple[str, ...] = ("tokens",), memory: int = 2 << 30
) -> Iterator[dict[str, Tensor]]:
    """What is wanted of images `[b, 3, h, w]`, batch after batch, in order.

    A batch holds as many images as `memory` bytes allow for the encoder's widest moment, at least one; an
    encoder that cannot say what that takes gets one image at a time.
    """
    per_image = getattr(encoder, "bytes_per_image", lambda height, width: memory)
    size = max(1, memory // per_image(*images.shape[-2:]))
    for start in range(0, len(images), size):
        yield encoder(images[start : start + size], want=want)

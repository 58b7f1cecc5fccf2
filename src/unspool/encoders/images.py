"""What all encoders do with images and wishes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unspool.errors import UsageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalised(images: Tensor, std: tuple[float, float, float], like: Tensor) -> Tensor:
    """Images `[b, 3, h, w]`, uint8 or float in 0..1, less the mean, over `std`, on the device of `like`."""
    images = images.to(like.device)
    values = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    mean, spread = (torch.tensor(v, device=like.device).view(3, 1, 1) for v in (IMAGENET_MEAN, std))
    return ((values - mean) / spread).to(like.dtype)


def offered(want: Sequence[str], offers: Sequence[str], name: str) -> None:
    """Raise UsageError naming what is offered, if a wish is not."""
    for wish in want:
        if wish not in offers:
            raise UsageError(f"encoder '{name}' offers no '{wish}'; it offers {', '.join(offers)}")

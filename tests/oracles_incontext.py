"""The memory of open-hummingbird-eval, held whole."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize

from unspool.protocols.incontext import Memory, rare_patches


def memory_of(
    features: Tensor, labels: Tensor, *, rows: int | None = None, uniform: Tensor | None = None
) -> Memory:
    """All patches `[n, p, d]`, image by image, or about `rows` of them, as many of each image.

    `labels` `[n, p, classes]`: shares. `uniform` `[n, p]`: the random draws; needed with `rows`.
    """
    features = normalize(features, dim=2)
    if rows is not None:
        assert uniform is not None
        kept = rare_patches(labels, max(1, rows // len(features)), uniform)[..., None]
        features, labels = (each.gather(1, kept.expand(-1, -1, each.shape[2])) for each in (features, labels))
    return Memory(features.flatten(0, 1), labels.flatten(0, 1))

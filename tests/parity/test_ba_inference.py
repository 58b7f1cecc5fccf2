"""BA's inference from the encoder's maps to masks against the released one: inference_e2e.npz."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import torch

from unspool.encoders.correlator import Correlator
from unspool.ops.clustering import Clustering
from unspool.segmentation import Segmentation
from unspool.segmenting import Segmenting, segment_maps

Golden = Callable[[str], dict[str, np.ndarray]]


def test_labels_and_masks_are_the_released_ones(golden: Golden) -> None:
    file = golden("ba/inference_e2e")
    encoder = SimpleNamespace(dim=int(file["dim"]), offers=("keys",), eval=lambda: None)
    correlator = Correlator(encoder, heads=int(file["heads"]))
    weights = {name: torch.from_numpy(file[f"norm1_{name}"]) for name in ("weight", "bias")}
    block = correlator.blocks[0]
    block.norm1.load_state_dict(weights)
    block.attn["qkv"].load_state_dict({"weight": torch.from_numpy(file["qkv_weight"])})
    how = Segmenting(clustering=Clustering(tau=float(file["tau"])), whole_strides=True, finest=None)
    window = segment_maps(torch.from_numpy(file["feats"]), correlator, how, int(file["ratio"]))
    assert np.array_equal(window.labels, file["labels"])
    masks = np.stack([window.labels == k for k in range(window.count)])
    assert np.array_equal(masks, file["masks"].astype(bool))

    shape = tuple(file["upsampled_shape"].tolist())
    upsampled = np.unpackbits(file["upsampled"], axis=-1)[..., : shape[-1]].astype(bool)
    found = np.stack(list(Segmentation(shape[2:], window.labels, None, None).masks()))
    ours = np.stack([found == k + 1 for k in range(window.count)])
    assert np.array_equal(ours, upsampled[:, :-1])  # the released code shows its last frame twice
    assert np.array_equal(upsampled[:, -1], upsampled[:, -2])

"""Recordings of the published label propagation of DUL, CRW and DINO: labelprop_{dul,crw,dino}.npz."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from unspool.ops import propagation
from unspool.ops.propagation import CRW, DINO, DUL, Propagation, labels_to_soft, soft_to_labels

GOLDEN = Path(os.environ.get("UNSPOOL_GOLDEN", Path(__file__).parents[1] / "golden")) / "dul"


def cases(method: str) -> list[str]:
    with np.load(GOLDEN / f"labelprop_{method}.npz") as recorded:
        return sorted({key.split("/")[0] for key in recorded.files})


def load(method: str, case: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / f"labelprop_{method}.npz") as recorded:
        names = [key for key in recorded.files if key.split("/")[0] == case]
        return {key.split("/", 1)[1]: torch.from_numpy(recorded[key]) for key in names}


def with_parameters(preset: Propagation, parameters: Tensor) -> Propagation:
    context, radius, top_k, temperature = parameters[:4].tolist()
    return replace(preset, context=int(context), radius=radius, top_k=int(top_k), temperature=temperature)


def agreement(ids: Tensor, recorded: Tensor) -> float:
    return (ids == recorded).double().mean().item()


@pytest.mark.parametrize("case", cases("dul"))
def test_dul_propagation_equals_the_published_code(case: str) -> None:
    golden = load("dul", case)
    how = with_parameters(DUL, golden["params"])
    size = tuple(golden["onehot_masks"].shape[-2:])
    grid = tuple(golden["feats"].shape[-2:])
    ids, confidences = [], []
    state = propagation.start()
    for now, features in enumerate(golden["feats"]):
        born = [i for i, first in enumerate(golden["tracks"].tolist()) if first == now]
        given = {i: labels_to_soft(golden["onehot_masks"][i], (1,), grid, how.mask_resize)[0] for i in born}
        state, soft = propagation.step(state, features, given, how)
        channels = torch.zeros_like(golden["soft"][now])
        channels[list(state.ids)] = soft
        torch.testing.assert_close(channels, golden["soft"][now], atol=1e-5, rtol=0)
        labels, confidence = soft_to_labels(soft, state.ids, size, how.mask_resize)
        ids.append(labels)
        confidences.append(confidence)
    assert agreement(torch.stack(ids), golden["ids"]) >= 0.999
    torch.testing.assert_close(torch.stack(confidences), golden["conf"], atol=1e-5, rtol=0)
    if "valid_ids" in golden:
        assert agreement(torch.stack(ids), golden["valid_ids"]) >= 0.999


@pytest.mark.parametrize("case", cases("crw"))
def test_crw_propagation_equals_the_published_code(case: str) -> None:
    golden = load("crw", case)
    how = with_parameters(CRW, golden["params"])
    how = replace(how, normalise_pixels=bool(golden["params"][5]))
    channels = tuple(range(int(golden["params"][4])))
    features = normalize(golden["feats"], dim=1)
    first = labels_to_soft(golden["mask0"], channels, tuple(features.shape[-2:]), how.mask_resize)
    torch.testing.assert_close(first.permute(1, 2, 0), golden["mask0_low"], atol=1e-5, rtol=0)

    softs, ids = [], []
    state = propagation.start()
    for now, frame in enumerate(features):
        given = dict(zip(channels, first, strict=True)) if now == 0 else None
        state, soft = propagation.step(state, frame, given, how)
        softs.append(soft)
        ids.append(soft_to_labels(soft, state.ids, tuple(golden["mask0"].shape), how.mask_resize)[0])
    error = (torch.stack(softs) - golden["soft"]).abs()
    if how.normalise_pixels:  # copies of frame 0 tie, and theirs differ in their labels: see the README
        assert (error <= 1e-4).double().mean() >= 0.9
        assert error.max() <= 0.1
    else:
        assert error.max() <= 1e-5
    assert agreement(torch.stack(ids), golden["ids"]) >= 0.999


@pytest.mark.parametrize("case", cases("dino"))
def test_dino_propagation_equals_the_published_code(case: str) -> None:
    golden = load("dino", case)
    how = with_parameters(DINO, golden["params"])
    channels = tuple(range(int(golden["params"][4])))
    patch = int(golden["params"][5])
    features = normalize(golden["feats"], dim=1)
    first = labels_to_soft(golden["mask0"], channels, tuple(features.shape[-2:]), how.mask_resize)
    torch.testing.assert_close(first, golden["mask0_low"], atol=0, rtol=0)

    size = tuple(golden["mask0"].shape)
    softs, ids = [], [golden["mask0"].int()]
    state, _ = propagation.step(
        propagation.start(), features[0], dict(zip(channels, first, strict=True)), how
    )
    for frame in features[1:]:
        state, soft = propagation.step(state, frame, None, how)
        softs.append(soft)
        ids.append(soft_to_labels(soft, state.ids, size, how.mask_resize, patch=patch)[0])
    torch.testing.assert_close(torch.stack(softs), golden["soft"], atol=1e-5, rtol=0)
    assert agreement(torch.stack(ids), golden["ids"]) >= 0.999

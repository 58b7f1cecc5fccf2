"""Recordings of DUL's losses and their gradients: losses.npz."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from unspool.methods.dul import Config, Embeddings, at_cells, objective, pseudo_labels
from unspool.ops.geometry import align

GOLDEN = Path(os.environ.get("UNSPOOL_GOLDEN", Path(__file__).parents[1] / "golden")) / "dul"


@dataclass(frozen=True)
class Case:
    golden: dict[str, Tensor]
    config: Config
    features: Tensor  # [B, T+1, C, h, w]: view 1, then frame 0 of view 2
    k: Embeddings
    theta: Tensor
    anchors: Tensor
    references: Tensor


@pytest.fixture
def case() -> Case:
    with np.load(GOLDEN / "losses.npz") as recorded:
        golden = {key: torch.from_numpy(recorded[key]) for key in recorded.files}
    numbers = golden["params"].tolist()
    clips, frames, anchors, references = (int(numbers[place]) for place in (0, 1, 5, 6))
    config = Config(
        anchors=anchors,
        references=references,
        temperature=numbers[7],
        cross_view=numbers[8],
    )
    features = golden["main_feats"].unflatten(0, (clips, frames + 1)).requires_grad_()
    k = Embeddings(features[:, :-1], features[:, -1], golden["reg_feats"].unflatten(0, (clips, frames - 1)))
    theta = golden["theta_main"][::frames]
    cells = golden["anchor_index"].flatten(1), golden["ref_index"].flatten(1)
    return Case(golden, config, features, k, theta, *cells)


def gradient(case: Case, loss: Tensor) -> Tensor:
    return torch.autograd.grad(loss, case.features)[0].flatten(0, 1)


def test_the_losses_are_the_published_ones(case: Case) -> None:
    _, log = objective(case.k, case.theta, case.anchors, case.references, case.config)
    for ours, recorded in (("space_time", "temp"), ("cross_view", "cross"), ("loss", "main")):
        torch.testing.assert_close(log[ours], case.golden[f"loss_{recorded}"], rtol=1e-5, atol=0)


def test_the_gradient_of_the_total_is_the_published_one(case: Case) -> None:
    total, _ = objective(case.k, case.theta, case.anchors, case.references, case.config)
    torch.testing.assert_close(gradient(case, total), case.golden["grad_main"], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("weight", "recorded"), [(0.0, "grad_temp"), (1.0, "grad_cross_key")])
def test_the_gradient_of_each_loss_is_the_published_one(case: Case, weight: float, recorded: str) -> None:
    config = Config(**{**vars(case.config), "cross_view": weight})
    total, _ = objective(case.k, case.theta, case.anchors, case.references, config)
    ours = gradient(case, total)
    if weight:
        total, _ = objective(
            case.k, case.theta, case.anchors, case.references, Config(**{**vars(config), "cross_view": 0.0})
        )
        ours = ours - gradient(case, total)
    torch.testing.assert_close(ours, case.golden[recorded], atol=1e-6, rtol=0)


def test_the_pseudo_labels_are_the_published_ones(case: Case) -> None:
    own = at_cells(case.k.first[:, 0], case.anchors)
    k_hat = torch.cat([case.k.second[:, None], case.k.regularising], dim=1)
    labels = pseudo_labels(k_hat, own) + (torch.arange(len(own)) * own.shape[1])[:, None, None]
    assert (labels.flatten() == case.golden["pseudo"].flatten()).double().mean() >= 0.999


def test_logits_are_looked_up_where_the_features_are(case: Case) -> None:
    """The warp of the logits is that of the features: `space_time_loss` relies on it."""
    q = at_cells(case.k.first[:, 0], case.anchors).flatten(0, 1) / case.config.temperature
    frames = case.k.first.shape[1]
    aligned = align(case.k.first[0], case.theta[:1].expand(frames, -1, -1))
    logits = torch.einsum("mk,tkhw->tmhw", q, aligned)
    torch.testing.assert_close(logits, case.golden["vals_aligned_b0"], atol=1e-5, rtol=0)

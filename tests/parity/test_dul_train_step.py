"""Recordings of one whole training step from known weights: train_step.npz.

Where an activation is zero up to rounding, the instruction set of the convolutions decides whether its ReLU
passes a gradient, and the gradients of early layers move by a thousandth: more than the tolerance. So the
step is taken as this machine takes it, and, should its gradients differ, once more in a process that is held
to AVX2, on which the recordings of this repository were made.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from torch import Tensor

from unspool.methods.dul import (
    Config,
    Learner,
    Views,
    at_cells,
    build,
    embed,
    objective,
    optimiser,
    pseudo_labels,
)
from unspool.ops.geometry import align

GOLDEN = Path(os.environ.get("UNSPOOL_GOLDEN", Path(__file__).parents[1] / "golden")) / "dul"
PUBLISHED = "fast_net."  # what their keys have in front of ours
CONFIGS = {"Adam": Config(), "SGD": Config(optimiser="sgd", learning_rate=1e-3)}


def hashed(argument: np.ndarray) -> np.ndarray:
    """h(43758.5453 sin a), in -1..1."""
    value = 43758.5453 * np.sin(argument)
    return 2 * (value - np.floor(value)) - 1


def recorded_input(shape: tuple[int, ...], phase: float) -> Tensor:
    index = np.arange(np.prod(shape), dtype=np.float64)
    values = np.sin(0.013 * index + phase) + hashed(12.9898 * np.floor(index / 4) + 78.233 * phase + 1)
    return torch.from_numpy(values.astype(np.float32)).view(shape)


def set_recorded_weights(learner: Learner) -> None:
    for place, (key, tensor) in enumerate(learner.state_dict().items()):
        if key.endswith("num_batches_tracked"):
            continue
        s = hashed(12.9898 * np.arange(tensor.numel(), dtype=np.float64) + 78.233 * place + 1)
        if tensor.ndim == 4:
            s *= np.sqrt(6 / tensor[0].numel())
        elif key.endswith(("running_var", "weight")):
            s = 1 + 0.25 * s
        else:
            s *= 0.1
        tensor.copy_(torch.from_numpy(s).view(tensor.shape))


@dataclass(frozen=True)
class Step:
    """What one step of ours did."""

    log: dict[str, Tensor]
    labels: Tensor
    groups: Tensor  # lr, weight decay, tensors, elements
    gradients: dict[str, Tensor]
    deltas: dict[str, Tensor]
    state: dict[str, Tensor]


def golden_of(name: str) -> dict[str, np.ndarray]:
    """What both recordings share, and what is `name`'s own."""
    with np.load(GOLDEN / "train_step.npz") as recorded:
        return {
            key.removeprefix(f"{name}/"): recorded[key]
            for key in recorded.files
            if "/" not in key or key.startswith(f"{name}/")
        }


def take_step(name: str) -> Step:
    golden = golden_of(name)
    clips, frames = golden["bt"].tolist()
    height, width = golden["hw"].tolist()
    anchors, references = (torch.from_numpy(golden[key]) for key in ("anchor_index", "ref_index"))
    sizes = {"anchors": anchors.shape[1], "references": references.shape[1]}
    config = replace(CONFIGS[name], **sizes)
    learner = build(config).train()
    set_recorded_weights(learner)
    before = {key: value.detach().clone() for key, value in learner.named_parameters()}
    first = recorded_input((clips, frames, 3, height, width), float(golden["phase"]))
    theta = torch.from_numpy(golden["theta_main"])
    second = align(first.flatten(0, 1), theta, mode="bilinear").view_as(first)
    views = Views(first, second, theta[::frames])

    stepper, _ = optimiser(learner, config, steps=1)
    groups = [
        [g["lr"], g["weight_decay"], len(g["params"]), sum(p.numel() for p in g["params"])]
        for g in stepper.param_groups
    ]
    k = embed(learner, views, config)
    total, log = objective(k, views.theta, anchors.flatten(1), references.flatten(1), config)
    total.backward()
    stepper.step()

    q = at_cells(k.first[:, 0], anchors.flatten(1))
    labels = pseudo_labels(torch.cat([k.second[:, None], k.regularising], dim=1), q)
    return Step(
        log,
        labels + (torch.arange(clips) * q.shape[1])[:, None, None],
        torch.tensor(groups, dtype=torch.float64),
        {key: value.grad for key, value in learner.named_parameters() if value.grad is not None},
        {key: value.detach() - before[key] for key, value in learner.named_parameters()},
        learner.state_dict(),
    )


@cache
def steps_with_avx2() -> dict[str, Step]:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "steps.pt"
        environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
        subprocess.run([sys.executable, __file__, str(file)], env=environment, check=True)
        return {name: Step(**fields) for name, fields in torch.load(file).items()}


def norms_differ(step: Step, golden: dict[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    """Gradient norms that are more than a thousandth off: key, ours, theirs."""
    different = {}
    for key, theirs in zip(golden["param_keys"], golden["grad_norms"], strict=True):
        ours = step.gradients[key.removeprefix(PUBLISHED)].double().norm().item()
        before_a_norm = key.endswith("emb_q.conv1.bias")  # zero up to rounding
        if abs(ours / theirs - 1) > 1e-3 and not before_a_norm:
            different[str(key)] = (ours, float(theirs))
    return different


@dataclass(frozen=True)
class Both:
    name: str
    ours: Step
    golden: dict[str, np.ndarray]

    def recorded(self, kind: str) -> Iterator[tuple[str, Tensor]]:
        """(our key, recorded array) of one kind."""
        for key, value in self.golden.items():
            if key.startswith(f"{kind}/"):
                yield key.removeprefix(f"{kind}/{PUBLISHED}"), torch.from_numpy(value)


@pytest.fixture(scope="module", params=CONFIGS)
def step(request: pytest.FixtureRequest) -> Both:
    name, golden = request.param, golden_of(request.param)
    ours = take_step(name)
    if norms_differ(ours, golden):
        ours = steps_with_avx2()[name]
    return Both(name, ours, golden)


def test_the_losses_are_the_published_ones(step: Both) -> None:
    for ours, theirs in (("space_time", "temp"), ("cross_view", "cross_key"), ("loss", "main")):
        assert step.ours.log[ours].item() == pytest.approx(step.golden[f"loss_{theirs}"].item(), abs=1e-4)


def test_the_pseudo_labels_are_the_published_ones(step: Both) -> None:
    assert np.mean(step.ours.labels.flatten().numpy() == step.golden["pseudo"].flatten()) >= 0.999


def test_the_parameter_groups_are_the_published_ones_that_hold_anything(step: Both) -> None:
    filled = step.golden["groups"][:, 2] > 0
    np.testing.assert_allclose(step.ours.groups, step.golden["groups"][filled], rtol=1e-6)


def test_the_gradients_are_as_long_as_the_published_ones(step: Both) -> None:
    assert not norms_differ(step.ours, step.golden)


def test_the_weights_change_as_published(step: Both) -> None:
    for key, delta in step.recorded("delta"):
        near = (step.ours.deltas[key].flatten()[: len(delta)] - delta).abs() <= 1e-6
        # Adam divides by the gradient's size: where that is zero up to rounding, its sign is chance
        assert near.double().mean() >= (0.99 if step.name == "Adam" else 1), key


def test_running_statistics_count_both_passes(step: Both) -> None:
    for key, value in step.recorded("after"):
        torch.testing.assert_close(step.ours.state[key].flatten()[: len(value)], value, atol=1e-5, rtol=1e-5)
    counts = {int(v) for k, v in step.ours.state.items() if k.endswith("num_batches_tracked")}
    assert counts == {int(step.golden["num_batches_tracked"])}


if __name__ == "__main__":
    torch.save({name: vars(take_step(name)) for name in CONFIGS}, sys.argv[1])

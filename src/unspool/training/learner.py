"""A learner, its optimiser and schedule, and where it stands: `step`, `state`, `load`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from unspool import __version__
from unspool.errors import UnspoolError, UsageError
from unspool.training.processes import Processes
from unspool.training.settings import Json, Settings, differences, method_named


class Trainer:
    """Holds no random generator: a step's numbers come from (seed, step), so there is none to save."""

    def __init__(
        self,
        settings: Settings,
        steps: int,
        data: str,
        processes: Processes,
        encoder: torch.nn.Module | None = None,
    ) -> None:
        how = settings.training
        self.processes, self.steps, self.seed = processes, steps, how.seed
        self.clip_gradients = how.clip_gradients
        self.identity = plain({**settings.flat(), "steps": steps, "data": data})
        self.method = method_named(settings.method)
        torch.manual_seed(how.seed)
        self.learner = self.method.build(settings.config, encoder, processes.ranks)
        on_gpu = processes.device.type == "cuda"
        if on_gpu if how.channels_last is None else how.channels_last:
            self.learner.to(memory_format=torch.channels_last)
        if how.compile:
            self.learner.compile()
        optimiser, self.schedule = self.method.optimiser(self.learner, settings.config, steps)
        self.module, self.optimiser = processes.fabric.setup(self.learner, optimiser)
        self.done = 0  # steps
        self.learning_rate = 0.0  # of the first group of parameters, in the last step
        self.seconds = 0.0  # of learning, over all sittings
        self.best: Json | None = None  # step and scores of the best validation

    def step(self, batches: Sequence[UInt8[Tensor, "b t 3 H W"]]) -> dict[str, Tensor]:
        """Learn from the first views of a step's batches; returns the means of what the losses log.

        Raises UnspoolError where the memory of the GPU does not suffice.
        """
        try:
            return self._step(batches)
        except torch.OutOfMemoryError as error:
            clips, reason = tuple(batches[0].shape), str(error).splitlines()[0]
            raise UnspoolError(
                f"{self.processes.device}: memory does not suffice for a step of clips {clips} ({reason}); "
                f"take fewer of them (--set {self.identity['method']}.clips=N), "
                "smaller views (--set augmentation.size=[H,W]), --precision bf16 or more --devices"
            ) from error

    def _step(self, batches: Sequence[UInt8[Tensor, "b t 3 H W"]]) -> dict[str, Tensor]:
        fabric, ranks = self.processes.fabric, self.processes.ranks
        generator = torch.Generator().manual_seed(_drawn(self.seed, self.done))  # the same on all processes
        torch.manual_seed(_drawn(self.seed, self.done, 1 + ranks.rank))
        means: dict[str, Tensor] = {}
        for number, clips in enumerate(batches, start=1):
            with fabric.no_backward_sync(self.module, enabled=number < len(batches)):
                loss, logged = self.method.loss(self.module, clips, generator, ranks)
                fabric.backward(loss / len(batches))
            for name, value in {**logged, "loss": loss}.items():
                share = value.detach() / len(batches)
                means[name] = means[name] + share if name in means else share
        if self.clip_gradients:
            means["gradient_norm"] = fabric.clip_gradients(
                self.module, self.optimiser, max_norm=self.clip_gradients, error_if_nonfinite=False
            )
        self.learning_rate = float(self.schedule.get_last_lr()[0])
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.schedule.step()
        if after := getattr(self.method, "after_step", None):
            after(self.learner, self.done)
        self.done += 1
        return means

    def encoder(self) -> Any:
        """What is learnt so far, as `load_encoder` or `load_correlator` would give it: a copy, on the CPU."""
        return self.method.encoder_of(self.learner).requires_grad_(False).eval()

    def state(self) -> Json:
        """All that continuing needs."""
        return {
            "version": __version__,
            "settings": self.identity,
            "step": self.done,
            "seconds": self.seconds,
            "best": self.best,
            "learner": self.learner.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "precision": self.processes.fabric.strategy.precision.state_dict(),
        }

    def load(self, state: Json, path: Path) -> None:
        """Stand where `state` was taken. Raises UsageError where it was taken with other settings."""
        if other := list(differences(state["settings"], self.identity)):
            by = f", written by unspool {state['version']}" if state["version"] != __version__ else ""
            raise UsageError(
                f"{path}{by}: made with other settings ({', '.join(other)}); choose another folder with "
                "-o, or --overwrite to start again"
            )
        self.learner.load_state_dict(state["learner"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.processes.fabric.strategy.precision.load_state_dict(state["precision"])
        self.done, self.seconds, self.best = state["step"], state["seconds"], state["best"]


def plain(settings: Json) -> Json:
    """Tuples as lists, so that what is loaded equals what was saved."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}


def _drawn(*key: int) -> int:
    """A seed of 63 bits, unlike that of any other key."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))

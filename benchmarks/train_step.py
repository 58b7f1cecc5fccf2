"""A whole training step of DUL on the CPU, beside the bare forward and backward of its convolutions.

    python benchmarks/train_step.py [--preset dul-ytvos] [--clips 16] [--rounds 3] [--threads 2]
    python benchmarks/train_step.py --processes [--preset dul-small] [--clips 16]

A step: clips drawn from kept frames, resized, cropped, flipped; the second view; both branches; losses;
backward; the optimiser. The floor: `conv2d` of every convolution at the shapes that the step gives it,
forward for the branch without gradient, forward and backward for the other, each by itself in the same memory
format. Best of the rounds, formats in turn. `--processes`: throughput of one process and of two.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from unspool.data.clips import Stored
from unspool.data.frames import store_frames
from unspool.data.scenes import scenes
from unspool.methods import dul
from unspool.ops.distributed import ALONE
from unspool.training import first_view
from unspool.training.footage import clips_of, short_side
from unspool.training.settings import Settings, resolve

Call = tuple[nn.Conv2d, torch.Size, bool]  # which, its input, with gradient


def kept_clips(settings: Settings, folder: Path) -> Any:
    made = scenes(2, size=(short_side(settings), short_side(settings) * 3 // 2), frames=12)
    store, _ = store_frames(made, short_side(settings), folder=folder)
    return clips_of((), made, Stored(store), settings, 0.2)


@dataclass
class Form:
    """One memory format: a learner in it, and the best times so far."""

    settings: Settings
    last: bool
    calls: Counter[Call] = field(default_factory=Counter)
    steps: list[float] = field(default_factory=list)
    bare: dict[Call, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.format = torch.channels_last if self.last else torch.contiguous_format
        self.learner = dul.build(self.settings.config).to(memory_format=self.format)
        self.optimiser, _ = dul.optimiser(self.learner, self.settings.config, 1000)

    def step(self, clips: Any) -> None:
        """A whole one; the first also tells what its convolutions were given."""
        convolutions = [m for m in self.learner.modules() if isinstance(m, nn.Conv2d) and not self.steps]
        hooks = [m.register_forward_pre_hook(self._count) for m in convolutions]
        started = perf_counter()
        views = first_view(clips.batch_at(0, 0), self.settings.augmentation)
        loss, _ = dul.loss(self.learner, views, torch.Generator().manual_seed(0), ALONE)
        loss.backward()
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.steps.append(perf_counter() - started)
        for hook in hooks:
            hook.remove()

    def _count(self, module: nn.Conv2d, given: tuple[Tensor, ...]) -> None:
        self.calls[module, given[0].shape, torch.is_grad_enabled()] += 1

    def convolve(self) -> None:
        """Every convolution by itself, once."""
        for call in self.calls:
            self.bare.setdefault(call, []).append(bare_convolution(call, self.format))

    @property
    def floor(self) -> float:
        return sum(count * min(self.bare[call]) for call, count in self.calls.items())


def bare_convolution(call: Call, form: torch.memory_format) -> float:
    """Seconds of `conv2d` forward, and backward where the step goes backward."""
    module, shape, learns = call
    images = torch.randn(shape).to(memory_format=form).requires_grad_(learns and shape[1] != 3)
    weight = module.weight.detach().to(memory_format=form).requires_grad_(learns)
    started = perf_counter()
    out = conv2d(images, weight, None, module.stride, module.padding)  # type: ignore[arg-type]
    passed = perf_counter() - started
    if learns:
        gradient = torch.randn_like(out)
        started = perf_counter()
        out.backward(gradient)
        passed += perf_counter() - started
    return passed


def compare_steps(settings: Settings, rounds: int) -> None:
    size = "x".join(map(str, settings.augmentation.size))
    print(
        f"{settings.preset}: {settings.config.clips} clips of {settings.sampling.frames} frames at {size}, "
        f"width {settings.config.width}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    forms = {"contiguous": Form(settings, False), "channels last": Form(settings, True)}
    with tempfile.TemporaryDirectory() as folder:
        clips = kept_clips(settings, Path(folder))
        for _ in range(rounds):  # in turn, since other work on the machine comes and goes
            for form in forms.values():
                form.step(clips)
                form.convolve()
    frames = settings.config.clips * settings.sampling.frames
    print(f"{'':16}{'step, s':>10}{'convolutions, s':>18}{'ratio':>8}{'frames/s':>10}")
    for name, form in forms.items():
        step, floor = min(form.steps), form.floor
        print(f"{name:16}{step:10.2f}{floor:18.2f}{step / floor:8.2f}{frames / step:10.1f}")


def compare_processes(settings: Settings, threads: int) -> None:
    """Through the whole command, from kept frames: median steps per second."""
    with tempfile.TemporaryDirectory() as folder:
        for processes in (1, 2):
            words = [
                *(sys.executable, "-m", "unspool", "train", "dul", "--device", "cpu", "-q"),
                *("--preset", settings.preset, "--rendered", "2", "--steps", "7", "--validate-every", "0"),
                *("--set", f"dul.clips={settings.config.clips}", "-o", f"{folder}/{processes}"),
                *("--devices", str(processes), "--set", "training.rendered_frames=12"),
            ]
            own = {"OMP_NUM_THREADS": str(max(1, threads // processes)), "UNSPOOL_CACHE": f"{folder}/cache"}
            subprocess.run(words, env={**os.environ, **own}, check=True, stdout=subprocess.DEVNULL)
            lines = Path(f"{folder}/{processes}/log.jsonl").read_text("utf-8").splitlines()
            rates = sorted(json.loads(line)["steps_per_second"] for line in lines[1:])
            each = max(1, threads // processes)
            print(
                f"{processes} process(es) of {each} thread(s): {rates[len(rates) // 2]:.3f} steps/s",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--preset", default="dul-ytvos")
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--processes", action="store_true", help="one process against two")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    settings = resolve("dul", args.preset, None, [f"dul.clips={args.clips}"], {})
    if args.processes:
        compare_processes(settings, args.threads)
    else:
        compare_steps(settings, args.rounds)


if __name__ == "__main__":
    main()

"""Options that several verbs share, and how a verb is carried out."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter

from unspool.errors import UsageError

MODEL = Group("Model", sort_key=2)
MATCHING = Group("Matching", sort_key=3)
CUTTING = Group("Cutting", sort_key=3)
OUTPUT = Group("Output", sort_key=4)
RUNTIME = Group("Running", sort_key=5)
DATA = Group("Videos", sort_key=1)
LEARNING = Group("Learning", sort_key=2)


@Parameter(name="*")
@dataclass(frozen=True)
class ModelOptions:
    """Which features, and how labels travel along them."""

    model: Annotated[str | None, Parameter(group=MODEL)] = None
    "Encoder: a name (see `unspool models`) or a checkpoint file. Default: dul-small."
    preset: Annotated[Literal["dul", "crw", "dino"] | None, Parameter(group=MATCHING)] = None
    "Whose protocol labels travel by. Default: dul."
    resolution: Annotated[int | None, Parameter(group=MATCHING)] = None
    "Short side of the encoder's input, px. Default: the preset's (dul, crw: the video's own; dino: 480)."
    settings: Annotated[list[str] | None, Parameter(name="--set", group=MATCHING)] = None
    "One setting, KEY=VALUE; repeatable. E.g. `--set propagation.top_k=5`."
    config: Annotated[Path | None, Parameter(group=MATCHING)] = None
    "TOML file with these options; the command line wins over it, it wins over the preset."
    device: Annotated[str | None, Parameter(group=RUNTIME)] = None
    "auto, cpu, cuda, cuda:1 or mps. Default: auto."
    precision: Annotated[Literal["fp32", "bf16", "fp16"] | None, Parameter(group=RUNTIME)] = None
    "Arithmetic of the encoder. Default: fp32."
    memory: Annotated[str | None, Parameter(group=RUNTIME)] = None
    "What the command may take in all, e.g. 4GB; less is slower, results stay the same. Default: as needed."
    seed: Annotated[int | None, Parameter(group=RUNTIME)] = None
    "Seed of everything random (randomly initialised models, rendered clips). Default: 0."

    def given(self) -> dict[str, Any]:
        """What stood on the command line."""
        names = ("model", "preset", "resolution", "device", "precision", "memory", "seed")
        return {n: getattr(self, n) for n in names if getattr(self, n) is not None}


@Parameter(name="*")
@dataclass(frozen=True)
class RunOptions:
    """Where results go and how the run behaves."""

    output: Annotated[str | None, Parameter(name=["--output", "-o"], group=OUTPUT)] = None
    "Result folder. Default: unspool-VERB-NAME in the working directory; an fsspec address gets a copy of it."
    overwrite: Annotated[bool, Parameter(group=OUTPUT)] = False
    "Start again in a folder that holds results of other settings."
    workers: Annotated[int, Parameter(group=RUNTIME)] = 1
    "Videos in work at the same time, each in a process of its own."
    ray: Annotated[str | None, Parameter(group=RUNTIME)] = None
    "Work on a Ray cluster (extra `ray`), not by --workers: auto, HOST:PORT, or local, one on this machine."
    dry_run: Annotated[bool, Parameter(group=RUNTIME)] = False
    "Say what would be done, with estimated time and peak memory, and stop."
    timings: Annotated[bool, Parameter(group=RUNTIME)] = False
    "Print the seconds spent on each stage and, by threads beside these, on writing."
    json: Annotated[bool, Parameter(name="--json", group=RUNTIME)] = False
    "Events as JSON lines on stdout; words for people stay on stderr."
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], group=RUNTIME)] = False
    "Results and errors only."
    verbose: Annotated[bool, Parameter(name=["--verbose", "-v"], group=RUNTIME)] = False
    "Also show tracebacks."


@Parameter(name="*")
@dataclass(frozen=True)
class SegmentOptions:
    """Which features, and how finely they are cut."""

    model: Annotated[str | None, Parameter(group=MODEL)] = None
    "A correlator (from `unspool train ba`, or as published) or an encoder. Default: the shipped one."
    tau: Annotated[float | None, Parameter(group=CUTTING)] = None
    "Distance up to which tokens are one object, > 0. Default: 1.0; dul-small: 2.5; of features: 0.1."
    every: Annotated[int | None, Parameter(group=CUTTING)] = None
    "Segment one frame of so many; masks, overlay and tracks cover these. Default: 1."
    resolution: Annotated[str | None, Parameter(group=CUTTING)] = None
    "Encoder's input, px: `320` (then 320x480), `192x384`, or `native`. Default: 320x480; dul-small 160x240."
    key_ratio: Annotated[float | None, Parameter(group=CUTTING)] = None
    "Share of frames that are attended to, 0..1. Default: 0.1 from 20 frames on, else 1."
    window: Annotated[int | None, Parameter(group=CUTTING)] = None
    "Frames clustered together; identities are carried from window to window. Default: 120."
    smallest: Annotated[float | None, Parameter(group=CUTTING)] = None
    "Objects that cover less than this share of all frames become background, 0..1. Default: 0."
    largest: Annotated[int | None, Parameter(group=CUTTING)] = None
    "Only so many of the largest objects stay. Default: all."
    fill_holes: Annotated[bool | None, Parameter(group=CUTTING)] = None
    "Background that one object encloses becomes that object."
    upsampling: Annotated[Literal["nearest", "bilinear", "guided"] | None, Parameter(group=CUTTING)] = None
    "From tokens to pixels: as published, smooth, or along the edges of the image. Default: nearest."
    settings: Annotated[list[str] | None, Parameter(name="--set", group=CUTTING)] = None
    "One setting, KEY=VALUE; repeatable. E.g. `--set represent=features`, `--set clustering.frames=5`."
    config: Annotated[Path | None, Parameter(group=CUTTING)] = None
    "TOML file with these options; the command line wins over it."
    device: Annotated[str | None, Parameter(group=RUNTIME)] = None
    "auto, cpu, cuda, cuda:1 or mps. Default: auto."
    precision: Annotated[Literal["fp32", "bf16", "fp16"] | None, Parameter(group=RUNTIME)] = None
    "Arithmetic of the encoder. Default: fp32."
    memory: Annotated[str | None, Parameter(group=RUNTIME)] = None
    "What the command may take in all, e.g. 4GB; less is slower, results stay the same. Default: as needed."
    seed: Annotated[int | None, Parameter(group=RUNTIME)] = None
    "Seed of everything random (randomly initialised models, K-means). Default: 0."

    def given(self) -> dict[str, Any]:
        """What stood on the command line."""
        names = [f.name for f in fields(self) if f.name not in ("settings", "config")]
        return {n: getattr(self, n) for n in names if getattr(self, n) is not None}


def refuse_wrong_place(workers: int | None, ray: str | None) -> None:
    """UsageError for numbers of workers that nothing can be done with."""
    if workers is not None and workers < 1:
        raise UsageError(f"--workers {workers}: at least 1")
    if ray and (workers or 1) > 1:
        raise UsageError(f"--ray {ray} takes what the cluster has (`ray start --num-cpus N`); no --workers")


def folder_and_address(output: str | None, default: str) -> tuple[Path, str | None]:
    """Where runs are made, and the address that gets a copy."""
    address = output if output and "://" in output else None
    return Path(default if address or not output else output), address


def run_plan(plan: Any, run: RunOptions, model: ModelOptions | None, **arguments: Any) -> int:
    """The exit code of a verb: its plan is made from `arguments` and carried out, `model` as its settings."""
    from unspool import jobs
    from unspool.reporting import Reporter
    from unspool.verbs.track import resolve_settings

    refuse_wrong_place(run.workers, run.ray)
    if model is not None:
        single, workers = model.settings or [], run.workers
        arguments["settings"] = resolve_settings(model.given(), model.config, single, workers=workers)
    address = run.output if run.output and "://" in run.output else None
    folder = Path(run.output) if run.output and not address else None
    with Reporter(as_json=run.json, quiet=run.quiet, verbose=run.verbose, timings=run.timings) as reporter:
        return jobs.execute(
            plan(output=folder, **arguments),
            reporter,
            command=["unspool", *sys.argv[1:]],
            overwrite=run.overwrite,
            workers=run.workers,
            ray=run.ray,
            address=address,
            dry_run=run.dry_run,
        )

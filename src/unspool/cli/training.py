"""`unspool train ...`."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from unspool.cli.options import DATA, LEARNING, OUTPUT, RUNTIME, folder_and_address, refuse_wrong_place
from unspool.errors import UsageError

# options that say which runs there are and where, not what each is
OF_THE_SWEEP = ("sweep", "output", "dry_run", "overwrite", "workers", "ray")

training = App(
    name="train",
    help="Learn features from plain video without labels.",
    default_parameter=Parameter(negative=()),
)


@Parameter(name="*")
@dataclass(frozen=True)
class TrainOptions:
    """What is learnt from, how, and where."""

    data: Annotated[list[str] | None, Parameter(group=DATA, consume_multiple=True)] = None
    "Videos to learn from: folders, files, globs, `@list.txt`, KIND:PATH (ytvos:, shards:, ...)."
    rendered: Annotated[int | None, Parameter(group=DATA)] = None
    "Rendered scenes that stand beside the videos, or alone. They are drawn once, and kept. Default: 0."
    max_broken: Annotated[float, Parameter(group=DATA)] = 0.2
    "Share of videos that may be unreadable, 0..1."
    exclude_eval: Annotated[bool, Parameter(group=DATA)] = False
    "Of ytvis19:PATH, leave out the videos that `eval discovery --data ytvis19:PATH` scores."
    frames: Annotated[Literal["auto", "device", "disk", "decode"], Parameter(group=DATA)] = "auto"
    "Where decoded frames are kept: on the GPU, on disk (in the cache), or nowhere. auto: the GPU if all fit."
    preset: Annotated[str | None, Parameter(group=LEARNING)] = None
    "Settings of a publication, or ours for a CPU. Default: the small one, e.g. dul-small, on a GPU too."
    steps: Annotated[int | None, Parameter(group=LEARNING)] = None
    "Steps of the optimiser; the schedule scales with them. Default: what the epochs give."
    epochs: Annotated[int | None, Parameter(group=LEARNING)] = None
    "How often every video is seen. Default: the preset's."
    model: Annotated[str | None, Parameter(group=LEARNING)] = None
    "Weights to start from; dul alone has random ones by default. For ba the encoder that stays as it is."
    settings: Annotated[list[str] | None, Parameter(name="--set", group=LEARNING)] = None
    "One setting, TABLE.KEY=VALUE; repeatable. E.g. `--set dul.learning_rate=2e-4`."
    config: Annotated[Path | None, Parameter(group=LEARNING)] = None
    "TOML file with these settings; the command line wins over it, it wins over the preset."
    sweep: Annotated[Path | None, Parameter(group=LEARNING)] = None
    "TOML file with `[[run]]` tables of settings: a run each, in a folder of its own, and a table of all."
    precision: Annotated[Literal["fp32", "bf16", "fp16"] | None, Parameter(group=LEARNING)] = None
    "Arithmetic of the network. Default: fp32."
    seed: Annotated[int | None, Parameter(group=LEARNING)] = None
    "Seed of everything random. Default: 0."
    output: Annotated[str | None, Parameter(name=["--output", "-o"], group=OUTPUT)] = None
    "Result folder. Default: unspool-train-METHOD in the working directory. Of a --sweep: or an address."
    overwrite: Annotated[bool, Parameter(group=OUTPUT)] = False
    "Start again in a folder that holds a run."
    validate_every: Annotated[int | None, Parameter(group=OUTPUT)] = None
    "Steps between validations on rendered clips; 0: none. Default: ten in a run."
    checkpoint_every: Annotated[int | None, Parameter(group=OUTPUT)] = None
    "Steps between checkpoints. Default: every ten minutes; at validations always."
    keep: Annotated[int, Parameter(group=OUTPUT)] = 3
    "How many of the newest checkpoints stay."
    wandb: Annotated[bool, Parameter(group=OUTPUT)] = False
    "Log to Weights & Biases too."
    device: Annotated[str, Parameter(group=RUNTIME)] = "auto"
    "auto, cpu, cuda, cuda:1 or mps."
    devices: Annotated[int | None, Parameter(group=RUNTIME)] = None
    "Processes on each machine, one per GPU. Default: what torchrun or SLURM started, else 1."
    nodes: Annotated[int | None, Parameter(group=RUNTIME)] = None
    "Machines. Default: likewise."
    workers: Annotated[int | None, Parameter(group=RUNTIME)] = None
    "Processes that decode and prepare clips. Default: as it seems best. With --sweep: runs at a time."
    ray: Annotated[str | None, Parameter(group=RUNTIME)] = None
    "With --sweep: the runs on a Ray cluster (extra `ray`), not by --workers: auto, HOST:PORT, or local."
    dry_run: Annotated[bool, Parameter(group=RUNTIME)] = False
    "Say what would be done, with estimated time and peak memory, and stop."
    json: Annotated[bool, Parameter(name="--json", group=RUNTIME)] = False
    "Events as JSON lines on stdout; words for people stay on stderr."
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], group=RUNTIME)] = False
    "Results and errors only."
    verbose: Annotated[bool, Parameter(name=["--verbose", "-v"], group=RUNTIME)] = False
    "Also show tracebacks."

    def given(self, method: str) -> dict[str, Any]:
        """Settings that stood on the command line."""
        named = {f"training.{n}": getattr(self, n) for n in ("steps", "precision", "seed", "rendered")}
        named[f"{method}.epochs"] = self.epochs
        given = {key: value for key, value in named.items() if value is not None}
        if self.epochs is not None and self.steps is None:
            given["training.steps"] = None  # epochs decide, where a preset counts steps
        return given

    def words(self) -> list[str]:
        """The command line again, but for what a sweep decides: where each run goes."""
        found: list[str] = []
        for each in fields(self):
            value, name = getattr(self, each.name), f"--{each.name.replace('_', '-')}"
            if each.name in OF_THE_SWEEP or value == each.default:
                continue
            if each.name == "settings":
                found += [word for setting in value for word in ("--set", setting)]
            elif isinstance(value, bool):
                found.append(name)
            else:
                found += [name, *map(str, value if isinstance(value, list) else [value])]
        return found


@training.command(name="dul")
def train_dul(*, options: TrainOptions = TrainOptions()) -> int:
    """Dense Unsupervised Learning (NeurIPS 2021): a ResNet-18, from random weights and plain video.

    Leaves encoder.safetensors (what --model takes), checkpoints, and a page with curves. Run the same command
    again to continue after a stop, a crash or a kill.

    Example: `unspool train dul --data videos/ -o runs/a`

    Example: `unspool train dul --data videos/ --rendered 200 --steps 2000`

    Example: `unspool train dul --preset dul-ytvos --data ytvos:YTVOS --devices 4 --precision bf16`
    """
    return _train("dul", options)


@training.command(name="timet")
def train_timet(*, options: TrainOptions = TrainOptions()) -> int:
    """Time-tuning (ICCV 2023): the last blocks of a ViT that knows images (--model), and plain video.

    Leaves encoder.safetensors (what --model takes), checkpoints, and a page with curves. Run the same command
    again to continue after a stop, a crash or a kill.

    Example: `unspool train timet --model dino-vits16 --data videos/ -o runs/b`

    Example: `unspool train timet --preset timet-dino-vits16 --model dino-vits16 --data ytvos:YTVOS`

    Example: `unspool train timet --model dino-vits16 --data videos/ --sweep table2.toml -o table2`
    """
    return _train("timet", options)


@training.command(name="ba")
def train_ba(*, options: TrainOptions = TrainOptions()) -> int:
    """Betrayed by Attention (ECCV 2024): a block on a frozen encoder (--model) that attends to whole objects.

    Leaves encoder.safetensors (encoder and block: what `unspool segment --model` takes), checkpoints, and a
    page with curves. Run the same command again to continue after a stop, a crash or a kill.

    Example: `unspool train ba --model runs/a --data videos/ -o runs/b`

    Example: `unspool train ba --preset ba-paper --model dino-vits8 --data ytvos:YTVOS`
    """
    return _train("ba", options)


def _sweep(method: str, options: TrainOptions, path: Path) -> int:
    from unspool.reporting import Reporter
    from unspool.training.settings import resolve
    from unspool.verbs import sweep as verbs
    from unspool.verbs.commands import Place

    refuse_wrong_place(options.workers, options.ray)
    if options.ray and (options.devices or options.nodes):
        raise UsageError("--ray gives each run of a sweep one process; leave out --devices and --nodes")
    given: dict[str, Any] = {"preset": options.preset, "model": options.model}
    given = {k: v for k, v in given.items() if v is not None} | options.given(method)
    sweep = verbs.read_sweep(path, given)
    if options.ray and (inner := [words for words in sweep.evaluations if "--ray" in words]):
        raise UsageError(
            f"{path}: evaluate: '{' '.join(inner[0])}': with --ray {options.ray} it is a job of the cluster "
            "itself, and would wait for what it holds; leave --ray out there"
        )
    for item in sweep.items:  # a wrong setting is told before the first run
        single = [
            text for flag, text in zip(item.words()[::2], item.words()[1::2], strict=True) if flag == "--set"
        ]
        preset = item.overrides.get("preset", options.preset)
        resolve(method, preset, options.config, [*(options.settings or []), *single], options.given(method))
    folder, address = folder_and_address(options.output, f"unspool-sweep-{method}-{path.stem}")
    place = Place(options.workers or 1, options.ray, gpus=options.device != "cpu")
    with Reporter(as_json=options.json, quiet=options.quiet, verbose=options.verbose) as reporter:
        return verbs.carry_out_sweep(
            sweep,
            method,
            options.words(),
            folder,
            reporter,
            place=place,
            address=address,
            again=options.overwrite,
            dry_run=options.dry_run,
        )


def _train(method: str, options: TrainOptions) -> int:
    if options.sweep is not None:
        return _sweep(method, options, options.sweep)
    if options.ray:
        raise UsageError(f"--ray {options.ray}: for the runs of a --sweep; one run is shared by --devices")
    if options.output and "://" in options.output:
        raise UsageError(
            f"-o {options.output}: a run learns in a folder; only a --sweep is copied to an address"
        )
    from unspool.reporting import Reporter
    from unspool.training import Rhythm
    from unspool.training.processes import Machines
    from unspool.training.settings import resolve
    from unspool.verbs import train as verbs

    order = verbs.Order(
        settings=resolve(
            method, options.preset, options.config, options.settings or [], options.given(method)
        ),
        data=tuple(options.data or ()),
        folder=Path(options.output or f"unspool-train-{method}"),
        model=options.model,
        machines=Machines(options.device, options.devices, options.nodes),
        frames=options.frames,
        workers=options.workers,
        max_broken=options.max_broken,
        exclude_eval=options.exclude_eval,
        rhythm=Rhythm(
            validate_every=options.validate_every,
            checkpoint_every=options.checkpoint_every,
            keep=options.keep,
        ),
        overwrite=options.overwrite,
        wandb=options.wandb,
    )
    with Reporter(as_json=options.json, quiet=options.quiet, verbose=options.verbose) as reporter:
        if options.dry_run:
            return verbs.describe(order, reporter)
        return verbs.carry_out(order, reporter, ["unspool", *sys.argv[1:]])

"""The `unspool` command: parse, call one job, print. Every verb imports its work inside its function."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Group, Parameter

import unspool
from unspool.errors import UnspoolError, UsageError

MODEL = Group("Model", sort_key=2)
MATCHING = Group("Matching", sort_key=3)
OUTPUT = Group("Output", sort_key=4)
RUNTIME = Group("Running", sort_key=5)

app = App(
    name="unspool",
    help="Find and follow objects in video with features learnt without labels.\n\n"
    "Start with `unspool demo`, then `unspool track clip.mp4 --mask first.png`.",
    version_flags=[],
    default_parameter=Parameter(negative=()),
    help_format="markdown",
)
evaluate = App(
    name="eval",
    help="Measure encoders and masks with the protocols of the literature.",
    default_parameter=Parameter(negative=()),
)
app.command(evaluate)


@Parameter(name="*")
@dataclass(frozen=True)
class ModelOptions:
    """Which features, and how labels travel along them."""

    model: Annotated[str | None, Parameter(group=MODEL)] = None
    "Encoder: a name (see `unspool models`) or a checkpoint file. Default: random-resnet18."
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

    output: Annotated[Path | None, Parameter(name=["--output", "-o"], group=OUTPUT)] = None
    "Result folder. Default: unspool-VERB-NAME in the working directory."
    overwrite: Annotated[bool, Parameter(group=OUTPUT)] = False
    "Start again in a folder that holds results of other settings."
    workers: Annotated[int, Parameter(group=RUNTIME)] = 1
    "Videos in work at the same time, each in a process of its own."
    dry_run: Annotated[bool, Parameter(group=RUNTIME)] = False
    "Say what would be done, with estimated time and peak memory, and stop."
    timings: Annotated[bool, Parameter(group=RUNTIME)] = False
    "Print the seconds spent on decoding, encoding, propagating and, by threads beside these, writing."
    json: Annotated[bool, Parameter(name="--json", group=RUNTIME)] = False
    "Events as JSON lines on stdout; words for people stay on stderr."
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], group=RUNTIME)] = False
    "Results and errors only."
    verbose: Annotated[bool, Parameter(name=["--verbose", "-v"], group=RUNTIME)] = False
    "Also show tracebacks."


@app.command
def demo(*, model: ModelOptions = ModelOptions(), run: RunOptions = RunOptions()) -> int:
    """Render a clip, carry its objects through it, score the result against the known truth; offline.

    Leaves a page, the masks, an overlay video, and the rendered clip with its first mask to try `track` on.

    Example: `unspool demo`
    """
    from unspool import verbs

    return _run(verbs.demo_plan, run, model)


@app.command
def track(
    *inputs: str,
    mask: list[str] | None = None,
    resize_mask: bool = False,
    model: ModelOptions = ModelOptions(),
    run: RunOptions = RunOptions(),
) -> int:
    """Carry the objects of a first mask through a video, or through many.

    Example: `unspool track clip.mp4 --mask first.png`

    Example: `unspool track clip.mp4 --mask 0:first.png --mask 30:late.png -o result`

    Example: `unspool track videos/ --mask masks/ --workers 2`

    Parameters
    ----------
    inputs
        Videos: files, folders, globs, folders of frames, `@list.txt`, fsspec addresses.
    mask
        The objects: an indexed PNG (one id per object) or a grey one; `FRAME:FILE` for objects that come
        later or that are corrected; for many videos a folder with `NAME.png` or `NAME/00030.png`.
    resize_mask
        Resize a mask of another size than the video (nearest).
    """
    from unspool import verbs

    if not inputs:
        raise UsageError("no video is given; e.g. `unspool track clip.mp4 --mask first.png`")
    return _run(verbs.track_plan, run, model, inputs=inputs, masks=mask or [], resize_mask=resize_mask)


@evaluate.command(name="tracking")
def eval_tracking(
    *,
    data: str | None = None,
    sequences: list[str] | None = None,
    pred: Path | None = None,
    truth: Path | None = None,
    protocol: str | None = None,
    model: ModelOptions = ModelOptions(),
    run: RunOptions = RunOptions(),
) -> int:
    """Score label propagation on a data set, or masks that were made elsewhere.

    Example: `unspool eval tracking --data davis17:DAVIS --model dino-vits16 --preset dino`

    Example: `unspool eval tracking --pred masks/ --truth DAVIS/Annotations/480p`

    Parameters
    ----------
    data
        KIND:PATH. Kinds: `davis17` and `davis16`, the folder that holds ImageSets/.
    sequences
        Only these sequences of the data set.
    pred
        Folder of predicted label PNGs, `SEQUENCE/FRAME.png`; no encoder runs.
    truth
        Folder of true label PNGs of the same names.
    protocol
        davis17-semi (default of davis17 and of --pred), davis17-unsup, davis17-unsup-framewise,
        davis16-official (default of davis16), davis16-allframes, davis16-pooled, vos-late.
    """
    from unspool import verbs

    if (pred is None) != (truth is None):
        raise UsageError("--pred and --truth belong together: predictions and truth, both as folders of PNGs")
    if (pred is None) == (data is None):
        raise UsageError("give either --data KIND:PATH (an encoder tracks it), or --pred and --truth")
    if pred is not None and truth is not None:
        return _run(verbs.score_plan, run, None, pred=pred, truth=truth, protocol=protocol)
    return _run(verbs.eval_plan, run, model, data=data, names=tuple(sequences or ()), protocol=protocol)


@app.command
def models(name: str | None = None) -> int:
    """List the encoders that can be named, or show one.

    Example: `unspool models`

    Example: `unspool models dino-vits16`
    """
    from unspool.encoders import describe_models

    print(describe_models(name))
    return 0


@app.command
def view(result: Path, other: Path | None = None, /, *, port: int = 0, open_browser: bool = True) -> int:
    """Show one result, or two side by side, in the browser; served on this machine only.

    Example: `unspool view unspool-track-clip`

    Example: `unspool view run-a run-b --port 8000`

    Parameters
    ----------
    result
        A result folder.
    other
        A second one, to compare with.
    port
        Port on 127.0.0.1; 0 takes a free one.
    open_browser
        Open the page in the browser (`--no-open-browser` only prints its address).
    """
    from unspool.page import view as serve_view

    folders = [result] if other is None else [result, other]
    for folder in folders:
        if not (folder / "run.json").is_file():
            raise UsageError(f"{folder}: no result folder (it holds no run.json)")
    serve_view(folders, port=port, open_browser=open_browser)
    return 0


def _run(plan: Any, run: RunOptions, model: ModelOptions | None, **arguments: Any) -> int:
    from unspool import jobs, verbs
    from unspool.reporting import Reporter

    if run.workers < 1:
        raise UsageError(f"--workers {run.workers}: at least 1")
    if model is not None:
        single, workers = model.settings or [], run.workers
        arguments["settings"] = verbs.resolve_settings(model.given(), model.config, single, workers=workers)
    with Reporter(as_json=run.json, quiet=run.quiet, verbose=run.verbose, timings=run.timings) as reporter:
        return jobs.execute(
            plan(output=run.output, **arguments),
            reporter,
            command=["unspool", *sys.argv[1:]],
            overwrite=run.overwrite,
            workers=run.workers,
            dry_run=run.dry_run,
        )


def version(verbose: bool) -> str:
    """`unspool X`; verbose adds what it runs on: torch, codecs, devices."""
    if not verbose:
        return f"unspool {unspool.__version__}"
    from unspool.jobs import environment

    return "\n".join([f"unspool {unspool.__version__}", *environment()])


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 some work failed, 2 wrong use, 130/143 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--version" in arguments:
        print(version("-v" in arguments or "--verbose" in arguments))
        sys.exit(0)
    try:
        sys.exit(app(arguments, exit_on_error=False, print_error=True) or 0)
    except CycloptsError as error:
        _error_event(arguments, str(error), 2)
        sys.exit(2)
    except UnspoolError as error:
        print(f"error: {error}", file=sys.stderr)
        _error_event(arguments, str(error), error.exit_code)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # whoever read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _error_event(arguments: list[str], text: str, code: int) -> None:
    """Whoever asked for events learns of an error from them too."""
    if "--json" in arguments:
        print(json.dumps({"event": "error", "error": text, "exit_code": code}), flush=True)

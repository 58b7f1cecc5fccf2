"""The `unspool` command: parse, call one job, print. Every verb imports its work inside its function."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter

import unspool
from unspool.cli.evaluation import evaluate
from unspool.cli.options import ModelOptions, RunOptions, SegmentOptions, run_plan
from unspool.cli.suite import eval_suite
from unspool.cli.training import training
from unspool.errors import UnspoolError, UsageError

app = App(
    name="unspool",
    help="Find and follow objects in video with features learnt without labels.\n\n"
    "Start with `unspool demo`, then `unspool segment clip.mp4`,\n"
    "or `unspool track clip.mp4 --mask first.png`.",
    version_flags=[],
    default_parameter=Parameter(negative=()),
    help_format="markdown",
)
evaluate.command(eval_suite, name="suite")
app.command(evaluate)
app.command(training)


@app.command
def demo(*, model: ModelOptions = ModelOptions(), run: RunOptions = RunOptions()) -> int:
    """Render a clip, cut it into objects and carry its objects through it, scored against the truth; offline.

    Leaves a page, the masks, an overlay video, and the rendered clip with its first mask to try `track` on.

    Example: `unspool demo`
    """
    from unspool.verbs import demo as verbs

    if run.ray:
        raise UsageError(f"--ray {run.ray}: the demo is two short clips on this machine; no --ray")
    return run_plan(verbs.demo_plan, run, model)


@app.command
def track(
    *inputs: Annotated[str, Parameter(allow_leading_hyphen=True)],
    mask: list[str] | None = None,
    resize_mask: bool = False,
    result: Annotated[Path | None, Parameter(name="--from")] = None,
    objects: str | None = None,
    cut: int | None = None,
    model: ModelOptions = ModelOptions(),
    run: RunOptions = RunOptions(),
) -> int:
    """Carry the objects of a first mask through a video, or through many.

    Example: `unspool track clip.mp4 --mask first.png`

    Example: `unspool track clip.mp4 --mask 0:first.png --mask 30:late.png -o result`

    Example: `unspool track videos/ --mask masks/ --workers 2`

    Example: `ffmpeg -i rtsp://camera -f matroska - | unspool track - --mask first.png`

    Example: `unspool track clip.mp4 --from unspool-segment-clip --objects 1,3+5`

    Parameters
    ----------
    inputs
        Videos: files, folders, globs, folders of frames, `@list.txt`, fsspec addresses; `-` for a
        stream on stdin.
    mask
        The objects: an indexed PNG (one id per object) or a grey one; `FRAME:FILE` for objects that come
        later or that are corrected; for many videos a folder with `NAME.png` or `NAME/00030.png`.
    resize_mask
        Resize a mask of another size than the video (nearest).
    result
        A result of `unspool segment` whose objects are carried on, instead of --mask; each is given once,
        in the first frame where it covers half of its largest area.
    objects
        Which ones, e.g. `1,3+5`: object 1, and 3 and 5 as one. They get the ids 1, 2, ... Default: all.
    cut
        Objects are those of the merge tree cut into so many clusters, as the page numbers them.
    """
    from unspool.verbs import track as verbs

    unknown = [word for word in inputs if word.startswith("-") and word != "-"]  # - is a stream
    if unknown:
        raise UsageError(f"Unknown option: {unknown[0]}; `unspool track --help` lists them")
    if not inputs:
        raise UsageError("no video is given; e.g. `unspool track clip.mp4 --mask first.png`")
    chosen = {"result": result, "objects": objects, "cut": cut}
    return run_plan(
        verbs.track_plan, run, model, inputs=inputs, masks=mask or [], resize_mask=resize_mask, **chosen
    )


@app.command
def segment(
    *inputs: str,
    foreground: bool = False,
    options: SegmentOptions = SegmentOptions(),
    run: RunOptions = RunOptions(),
) -> int:
    """Cut a video, or many, into objects that keep their identity; without labels, their number not given.

    Example: `unspool segment clip.mp4`

    Example: `unspool segment videos/ --every 5 --resolution 192x384 -o result`

    Parameters
    ----------
    inputs
        Videos: files, folders, globs, folders of frames, `@list.txt`, fsspec addresses.
    foreground
        Also write masks of the one object that stands out, by where clusters touch the border, how they move
        and, of a ViT, what its class token attends to; without labels.
    """
    from unspool.verbs import segment as verbs
    from unspool.verbs.segment_settings import resolve_segment_settings

    if not inputs:
        raise UsageError("no video is given; e.g. `unspool segment clip.mp4`")
    given = {**options.given(), **({"foreground": True} if foreground else {})}
    settings = resolve_segment_settings(
        given, options.config, options.settings or [], workers=max(1, run.workers)
    )
    return run_plan(verbs.segment_plan, run, None, inputs=inputs, settings=settings)


@app.command
def export(
    result: Path | None = None,
    /,
    *,
    to: str,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    videos: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    model: str | None = None,
    layer: str = "tokens",
    resolution: int | None = None,
    device: str = "auto",
    overwrite: bool = False,
    json: Annotated[bool, Parameter(name="--json")] = False,
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"])] = False,
) -> int:
    """Write a result in the format of another tool; or an encoder for timm.

    Example: `unspool export unspool-track-clip --to coco -o coco`

    Example: `unspool export unspool-track-clip --to prores -o mattes`

    Example: `unspool export --to timm --model runs/tuned -o encoder`

    Parameters
    ----------
    result
        A result folder; for timm, one that training left.
    to
        coco, ytvis, davis, youtube-vos, mots (CVAT, TrackEval), prompts (SAM 2, Cutie), mattes (PNG,
        alpha), prores (4444 with alpha, per object), features (safetensors), timm.
    output
        Folder to write into.
    videos
        Only these videos of the result.
    model
        features, timm: the encoder, a name or a file.
    layer
        features: what the encoder is asked for; `unspool models NAME` lists what it offers.
    resolution
        features: short side of the encoder's input, px. Default: the video's own.
    device
        features: auto, cpu, cuda, cuda:1 or mps.
    overwrite
        Write into a folder that holds something else; an earlier export in it is removed, other files stay.
    json
        Events as JSON lines on stdout.
    quiet
        Results and errors only.
    """
    from unspool.export import Export
    from unspool.export import export as write_export
    from unspool.reporting import Reporter

    if result is None and (to != "timm" or model is None):
        raise UsageError("no result is given; e.g. `unspool export unspool-track-clip --to coco -o coco`")
    kind: Any = to
    what = Export(
        result or Path(),
        kind,
        tuple(videos or ()),
        model or "",
        layer=layer,
        resolution=resolution,
        device=device,
    )
    with Reporter(as_json=json, quiet=quiet) as reporter:
        folder = write_export(what, output, overwrite=overwrite, report=reporter)
        reporter({"event": "result", "text": str(folder)})
    return 0


@app.command
def models(name: str | None = None, /) -> int:
    """List the encoders that can be named, or show one.

    Example: `unspool models`

    Example: `unspool models dino-vits16`

    Parameters
    ----------
    name
        The encoder to show: it is loaded, and what it offers listed.
    """
    from unspool.encoders import describe_models

    print(describe_models(name))
    return 0


@app.command
def view(
    result: Path,
    other: Path | None = None,
    /,
    *,
    port: int = 0,
    open_browser: Annotated[bool, Parameter(negative="--no-open-browser")] = True,
) -> int:
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
    from unspool.page_server import view as serve_view

    folders = [result] if other is None else [result, other]
    for folder in folders:
        if not (folder / "run.json").is_file():
            raise UsageError(f"{folder}: no result folder (it holds no run.json)")
    serve_view(folders, port=port, open_browser=open_browser)
    return 0


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

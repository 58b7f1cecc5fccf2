"""`unspool eval suite`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import CycloptsError, Parameter

from unspool.cli.evaluation import evaluate
from unspool.cli.options import MODEL, OUTPUT, RUNTIME, folder_and_address, refuse_wrong_place
from unspool.errors import UsageError

SUITE = "unspool-eval-suite"
REFUSED = {"discovery": ("--every",)}  # protocols score all frames
# it gives these to every run, or decides them for all
OF_THE_SUITE = ("--data", "--model", "--output", "--overwrite", "--dry-run", "--json", "--quiet")


def eval_suite(
    *,
    model: Annotated[list[str], Parameter(group=MODEL, consume_multiple=True)],
    data: Path,
    tables: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    output: Annotated[str, Parameter(name=["--output", "-o"], group=OUTPUT)] = SUITE,
    overwrite: Annotated[bool, Parameter(group=OUTPUT)] = False,
    device: Annotated[str | None, Parameter(group=RUNTIME)] = None,
    precision: Annotated[Literal["fp32", "bf16", "fp16"] | None, Parameter(group=RUNTIME)] = None,
    workers: Annotated[int | None, Parameter(group=RUNTIME)] = None,
    ray: Annotated[str | None, Parameter(group=RUNTIME)] = None,
    dry_run: Annotated[bool, Parameter(group=RUNTIME)] = False,
    json: Annotated[bool, Parameter(name="--json", group=RUNTIME)] = False,
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], group=RUNTIME)] = False,
    verbose: Annotated[bool, Parameter(name=["--verbose", "-v"], group=RUNTIME)] = False,
) -> int:
    """Fill the tables of the papers: every evaluation that the data allow, published values beside ours.

    The data file says what there is, and what evaluations shall add to their options:

        [data]
        davis17 = "/data/DAVIS"
        voc = "/data/VOCdevkit/VOC2012"
        rendered = 8

        [options]
        clustering = "--seeds 2"

    Each evaluation is an ordinary run in OUTPUT/runs; run the same command again to continue, or to add a
    model or a data set: what is finished is kept. What cannot be filled is a dash, with the reason.

    Example: `unspool eval suite --model dino-vits16 dul-small --data data.toml -o suite`

    Example: `unspool eval suite --model timet=runs/a --data data.toml --tables timet-4 timet-9 -o suite`

    Parameters
    ----------
    model
        Encoders and correlators: names, files, training results. NAME=MODEL stands for the row that the
        paper's table has of NAME: `timet=runs/a` beside TimeT's published values.
    data
        TOML file; kinds: davis17, davis16, ytvos, visor, voc, ytvis19, movi-e, segtrack, fbms (folders),
        rendered (how many clips).
    tables
        Only these: names as dul-davis, timet-4, ba-7, rendered-clustering, or all of dul, timet, ba,
        rendered. Default: all.
    output
        Folder of tables and runs; an fsspec address gets a copy of it.
    overwrite
        Run again what is finished.
    device
        Of all runs: auto, cpu, cuda, cuda:1 or mps.
    precision
        Of all runs: arithmetic of the encoder.
    workers
        Runs at work at the same time, each with its share of the cores; in the only run left, its videos.
    ray
        The runs on a Ray cluster (extra `ray`), not by --workers: auto, HOST:PORT, or local. The only run
        left has its videos there.
    dry_run
        List the runs, and stop.
    json
        Events as JSON lines on stdout, those of runs with `run`, their name.
    quiet
        Results and errors only.
    verbose
        Also show tracebacks.
    """
    from unspool.reporting import Reporter
    from unspool.verbs import suite
    from unspool.verbs.commands import Place

    refuse_wrong_place(workers, ray)
    given = {"--device": device, "--precision": precision}
    shared = [word for flag, value in given.items() if value is not None for word in (flag, str(value))]
    there = suite.read_data(data)
    _refuse_wrong_options(there)
    _refuse_cluster_and_workers(there, ray, workers)
    folder, address = folder_and_address(output, SUITE)
    order = suite.Order.of(model, there, suite.read_tables(tables or ()), folder, shared)
    place = Place(workers or 1, ray, gpus=device != "cpu")
    with Reporter(as_json=json, quiet=quiet, verbose=verbose) as reporter:
        return suite.carry_out_suite(
            order, reporter, place=place, address=address, again=overwrite, dry_run=dry_run
        )


def _refuse_wrong_options(data: Any) -> None:
    """UsageError for words of the data file that their evaluation does not take."""
    from unspool.verbs import suite

    for name, words in data.options.items():
        evaluation = suite.evaluation_of(name)
        verb, known = evaluation.words[0], _options_of(evaluation.words[0])
        where = f"{data.path}: options.{name}"
        for word in words:
            if re.match("--?[a-z]", word) and word.partition("=")[0] not in known:
                raise UsageError(
                    f"{where}: {word} cannot be added to `unspool eval {verb}`; there are {', '.join(known)}"
                )
        given = ("--data", "any", "--model", "any")
        try:
            evaluate.parse_args(
                [*suite.said_once((*evaluation.words, *words)), *given],
                exit_on_error=False,
                print_error=False,
            )
        except CycloptsError as error:
            raise UsageError(f"{where}: {error} There are {', '.join(known)}") from error


def _refuse_cluster_and_workers(data: Any, ray: str | None, workers: int | None) -> None:
    """UsageError where a run would take a cluster's jobs twice, or processes and a cluster."""
    for name, words in data.options.items():
        pairs = zip(words, (*words[1:], ""), strict=True)
        said = {word.partition("=")[0]: word.partition("=")[2] or after for word, after in pairs}
        if ray and "--ray" in said:
            raise UsageError(
                f"{data.path}: options.{name}: --ray {said['--ray']}: with --ray {ray} the run is itself a "
                "job of the cluster, and would wait for what it holds; leave one of them out"
            )
        cluster, processes = ray or said.get("--ray"), workers or int(said.get("--workers", 1))
        if cluster and processes > 1:
            raise UsageError(
                f"{data.path}: options.{name}: --workers {processes} and --ray {cluster} come together "
                "there; a cluster decides how many jobs run at a time, so leave one of them out"
            )


def _options_of(verb: str) -> list[str]:
    """What can be added to `unspool eval VERB`."""
    names = [name for option in evaluate[verb].assemble_argument_collection() for name in option.names]
    cyclopts = ("--no-", "--empty-")  # off here
    added = (*cyclopts, *OF_THE_SUITE, *REFUSED.get(verb, ()))
    return [name for name in names if name.startswith("--") and not name.startswith(added)]

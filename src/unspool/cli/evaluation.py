"""`unspool eval ...`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from unspool.cli.options import MODEL, RUNTIME, ModelOptions, RunOptions, SegmentOptions, run_plan
from unspool.errors import UsageError

Several = Annotated[list[str] | None, Parameter(consume_multiple=True)]  # or each after its own option
evaluate = App(
    name="eval",
    help="Measure encoders and masks with the protocols of the literature.",
    default_parameter=Parameter(negative=()),
)


@evaluate.command(name="tracking")
def eval_tracking(
    *,
    data: str | None = None,
    sequences: Several = None,
    pred: Path | None = None,
    truth: Path | None = None,
    protocol: str | None = None,
    raft: Path | None = None,
    model: ModelOptions = ModelOptions(),
    run: RunOptions = RunOptions(),
) -> int:
    """Score label propagation on a data set, or masks that were made elsewhere.

    Example: `unspool eval tracking --data davis17:DAVIS --model dino-vits16 --preset dino`

    Example: `unspool eval tracking --pred masks/ --truth DAVIS/Annotations/480p`

    Parameters
    ----------
    data
        KIND:PATH. Kinds: `davis17` and `davis16`, the folder that holds ImageSets/; `visor`, what
        visor_to_davis.py leaves; `ytvos`, valid where it is there (masks only start objects: a submission is
        written), else a fifth of train, which is scored. Every object starts in the first mask that has it.
    sequences
        Only these sequences of the data set.
    pred
        Folder of predicted label PNGs, `SEQUENCE/FRAME.png`; no encoder runs.
    truth
        Folder of true label PNGs of the same names.
    protocol
        davis17-semi (default of davis17 and of --pred), davis17-unsup, davis17-unsup-framewise,
        davis16-official (default of davis16), davis16-allframes, davis16-pooled, vos-late (default of ytvos
        and visor), vos-late-allframes; maskforward: the
        foreground in steps of 0.1 to 0.8 s, repeated, along optical flow (extra `flow`), by features.
    raft
        maskforward: weights of torchvision's raft_large, to carry masks along RAFT's flow too.
    """
    from unspool.verbs import scoring as verbs

    if (pred is None) != (truth is None):
        raise UsageError("--pred and --truth belong together: predictions and truth, both as folders of PNGs")
    if (pred is None) == (data is None):
        raise UsageError("give either --data KIND:PATH (an encoder tracks it), or --pred and --truth")
    names = _named("sequences", sequences)
    if pred is not None and truth is not None:
        _refuse_with_pred({**vars(model), "raft": raft})
        return run_plan(verbs.score_plan, run, None, pred=pred, truth=truth, names=names, protocol=protocol)
    if protocol == "maskforward" and data is not None:
        from unspool.verbs.maskforward import maskforward_plan

        if unused := [n for n in ("preset", "settings", "config", "memory") if getattr(model, n) is not None]:
            raise UsageError(f"--protocol maskforward takes no --{unused[0].replace('settings', 'set')}")
        return run_plan(
            maskforward_plan,
            run,
            None,
            data=data,
            names=names,
            raft=raft,
            options=model.given(),
        )
    return run_plan(verbs.eval_plan, run, model, data=data, names=names, protocol=protocol)


def _named(option: str, given: list[str] | None) -> tuple[str, ...]:
    """All if the option is not there; but not if it names nothing, as an empty variable of a script would."""
    if given == []:
        raise UsageError(f"--{option}: names nothing; name at least one, or leave it out")
    return tuple(given or ())


def _refuse_with_pred(options: Mapping[str, Any]) -> None:
    """Options of a model have no meaning for masks that are there."""
    for name, value in options.items():
        if value is not None and name not in ("device", "precision", "memory", "seed"):
            option = {"settings": "set"}.get(name, name).replace("_", "-")
            raise UsageError(f"--pred takes no --{option}: masks that are there are scored, no model runs")


@evaluate.command(name="discovery")
def eval_discovery(
    *,
    data: str | None = None,
    sequences: Several = None,
    pred: Path | None = None,
    truth: Path | None = None,
    protocol: Several = None,
    foreground: Several = None,
    options: SegmentOptions = SegmentOptions(),
    run: RunOptions = RunOptions(),
) -> int:
    """Score segmentations made without labels on a data set, or masks that were made elsewhere.

    Example: `unspool eval discovery --data davis17:DAVIS --model correlator.safetensors`

    Example: `unspool eval discovery --data rendered:8 --protocol fg-ari-video miou-frame`

    Example: `unspool eval discovery --pred masks/ --truth truth/ --protocol davis17-unsup`

    Parameters
    ----------
    data
        KIND:PATH. Kinds: `davis17`, `davis16`, `ytvis19`, `movi-e`, `segtrack`, `fbms`; and `rendered:N`, so
        many clips that are drawn here.
    sequences
        Only these videos of the data set.
    pred
        Folder of predicted label PNGs, `SEQUENCE/FRAME.png`; no model runs.
    truth
        Folder of true label PNGs of the same names.
    protocol
        As in docs/protocols.md; several may be named. Default: all that suit the data; davis17-unsup of
        --pred.
    foreground
        Who chooses the one cluster that davis16-* and segtrack-fbms score: label-free, label-free-cues,
        oracle-frame, oracle-video, given (every id of the masks). Default: the first four, apart; given
        with --pred.
    """
    from unspool.verbs import discovery as verbs
    from unspool.verbs.segment_settings import resolve_segment_settings

    if (pred is None) != (truth is None):
        raise UsageError("--pred and --truth belong together: predictions and truth, both as folders of PNGs")
    if (pred is None) == (data is None):
        raise UsageError("give either --data KIND:PATH (which is segmented), or --pred and --truth")
    shared = {
        "protocols": _named("protocol", protocol) or None,
        "foregrounds": _named("foreground", foreground) or None,
    }
    names = _named("sequences", sequences)
    if pred is not None:
        _refuse_with_pred(vars(options))
        return run_plan(verbs.score_plan, run, None, pred=pred, truth=truth, names=names, **shared)
    settings = resolve_segment_settings(
        options.given(), options.config, options.settings or [], workers=max(1, run.workers)
    )
    return run_plan(
        verbs.discovery_plan,
        run,
        None,
        settings=settings,
        data=data,
        names=names,
        **shared,
    )


@evaluate.command(name="clustering")
def eval_clustering(
    *,
    data: str,
    model: Annotated[str | None, Parameter(group=MODEL)] = None,
    before: Annotated[str | None, Parameter(group=MODEL)] = None,
    resolution: Annotated[int | None, Parameter(group=MODEL)] = None,
    sequences: Several = None,
    protocol: Several = None,
    clusters: int | None = None,
    seeds: int | None = None,
    sample: int | None = None,
    frames: int | None = None,
    config: Path | None = None,
    device: Annotated[str | None, Parameter(group=RUNTIME)] = None,
    precision: Annotated[Literal["fp32", "bf16", "fp16"] | None, Parameter(group=RUNTIME)] = None,
    memory: Annotated[str | None, Parameter(group=RUNTIME)] = None,
    seed: Annotated[int | None, Parameter(group=RUNTIME)] = None,
    run: RunOptions = RunOptions(),
) -> int:
    """Cluster the features of an encoder, match clusters to classes, and score them.

    Example: `unspool eval clustering --data davis17:DAVIS --model dino-vits16 --protocol cluster-clip`

    Example: `unspool eval clustering --data rendered:20 --model runs/b --before dino-vits16`

    Parameters
    ----------
    data
        KIND:PATH. Kinds: davis17, ytvos, visor (in DAVIS's layout), voc, rendered (rendered:N, N clips).
    model
        Encoder: a name (see `unspool models`), a checkpoint file, or a training result. Default: dul-small.
    before
        A second encoder, e.g. that before tuning, shown beside the first.
    resolution
        Side of the encoder's square input, px. Default: 224 (voc: 448).
    sequences
        Only these videos or images.
    protocol
        cluster-frame, cluster-clip, cluster-dataset (f, c, d for short), overcluster-frame, -clip, -dataset,
        cluster-voc-k21, overcluster-voc-k500, and both with -timet: features stretched to 112x112 first.
        Default: all that suit the data, without -timet.
    clusters
        K. Default: as many as ids in the truth (cluster-...), the publication's number (overcluster-...).
    seeds
        How often k-means is run; the mean and standard deviation are given. Default: 5.
    sample
        Points per cluster that centres are fitted to; 0: all. The published code: 256. Default: 0.
    frames
        Frames of a clip. Default: 16 (ytvos, visor: 4).
    config
        TOML file with these options; the command line wins over it.
    device
        auto, cpu, cuda, cuda:1 or mps. Default: auto.
    precision
        Arithmetic of the encoder. Default: fp32.
    memory
        What the command may take in all, e.g. 4GB; less is slower (clips are encoded again), results stay
        the same. Default: as needed.
    seed
        Seed of randomly initialised encoders. Default: 0.
    """
    from unspool.verbs import clustering as verbs

    options = {
        "model": model, "before": before, "resolution": resolution, "protocol": protocol,
        "clusters": clusters, "seeds": seeds, "sample": sample, "frames": frames, "device": device,
        "precision": precision, "memory": memory, "seed": seed,
    }  # fmt: skip
    given = {name: value for name, value in options.items() if value is not None}
    return run_plan(
        verbs.clustering_plan, run, None, data=data, names=_named("sequences", sequences),
        workers=max(1, run.workers), **verbs.resolve_options(given, config),
    )  # fmt: skip


@Parameter(name="*")
@dataclass(frozen=True)
class EncoderOptions:
    """Which features, where no labels travel."""

    model: Annotated[str | None, Parameter(group=MODEL)] = None
    "Encoder: a name (see `unspool models`) or a checkpoint file. Default: dul-small."
    resolution: Annotated[int | None, Parameter(group=MODEL)] = None
    "Side of the square that the encoder sees, px. Default: the protocol's."
    device: Annotated[str | None, Parameter(group=RUNTIME)] = None
    "auto, cpu, cuda, cuda:1 or mps. Default: auto."
    precision: Annotated[Literal["fp32", "bf16", "fp16"] | None, Parameter(group=RUNTIME)] = None
    "Arithmetic of the encoder. Default: fp32."
    seed: Annotated[int | None, Parameter(group=RUNTIME)] = None
    "Seed of everything random. Default: the protocol's."

    def settings(self) -> Any:
        """What stood on the command line, the rest by default."""
        from unspool.verbs.heads import Settings

        names = ("model", "resolution", "device", "precision", "seed")
        return Settings(**{n: getattr(self, n) for n in names if getattr(self, n) is not None})


@evaluate.command(name="linear")
def eval_linear(
    *,
    data: str,
    recipe: str = "leopart-linear",
    views: int | None = None,
    epochs: int | None = None,
    encoder: EncoderOptions = EncoderOptions(),
    run: RunOptions = RunOptions(),
) -> int:
    """Train a small head on frozen features of labelled pictures, and score it on others.

    Features are kept in the cache, so that a second head costs only its own training.

    Example: `unspool eval linear --data rendered:50 --model dino-vits16`

    Example: `unspool eval linear --data voc:VOCdevkit/VOC2012 --recipe leopart-fcn`

    Parameters
    ----------
    data
        KIND:WHERE. Kinds: `voc`, Pascal VOC 2012 (trainaug where it is there, else train; val); `ytvos`,
        four fifths of its training videos and the rest; `rendered`, N rendered pictures each.
    recipe
        leopart-linear, leopart-fcn (random cuts, scored at 448x448, all classes), timet-linear, timet-fcn
        (whole pictures, scored at 100x100, classes that the truth has).
    views
        Random cuts of every picture that are encoded and kept; published: one an epoch. Default: 4.
    epochs
        Default: the recipe's.
    """
    from unspool.verbs import heads

    settings = encoder.settings()
    return run_plan(
        heads.linear_plan, run, None, settings=settings, data=data, recipe=recipe, views=views,
        epochs=epochs,
    )  # fmt: skip


@evaluate.command(name="salient")
def eval_salient(
    *,
    data: str,
    recipe: str = "leopart",
    clusters: int | None = None,
    attention: str | None = None,
    encoder: EncoderOptions = EncoderOptions(),
    run: RunOptions = RunOptions(),
) -> int:
    """Find what stands out in pictures or frames by clusters that attention marks (CBFE), and score it.

    Prints the score with a threshold chosen on the truth of training pictures, and without any truth.

    Example: `unspool eval salient --data rendered:50 --model dino-vits16`

    Example: `unspool eval salient --data davis17:DAVIS --model dino-vits16 --recipe timet`

    Parameters
    ----------
    data
        KIND:WHERE. Kinds: `voc`, Pascal VOC 2012 (the threshold chosen on trainaug where it is there, else
        train; val scored); `davis17`, `visor`, all frames with truth of the two lists; `ytvos`, four fifths
        of its training videos and the rest; `rendered`, N rendered pictures each; `rendered-clips`, likewise
        all frames of N clips.
    recipe
        leopart (200 clusters of both splits together) or timet (300, of each split on its own).
    clusters
        How many. Default: the recipe's.
    attention
        Encoder whose attention marks the foreground; needed where the encoder is no ViT. Default: its own.
    """
    from unspool.verbs import heads

    settings = encoder.settings()
    return run_plan(
        heads.salient_plan, run, None, settings=settings, data=data, recipe=recipe, clusters=clusters,
        attention=attention,
    )  # fmt: skip


@evaluate.command(name="incontext")
def eval_incontext(
    *,
    data: str,
    rows: int = 1_024_000,
    passes: int = 1,
    neighbours: int = 30,
    search: Literal["exact", "faiss", "faiss-approximate"] = "exact",
    normalisation: Literal["imagenet", "code"] = "imagenet",
    memory: Annotated[str | None, Parameter(group=RUNTIME)] = None,
    encoder: EncoderOptions = EncoderOptions(),
    run: RunOptions = RunOptions(),
) -> int:
    """Look up the labels of pictures in a memory of labelled patches, without training.

    Example: `unspool eval incontext --data rendered:50 --model dino-vits16`

    Example: `unspool eval incontext --data rendered:50 --rows 102400 --passes 2`

    Parameters
    ----------
    data
        KIND:WHERE. Kinds: `voc`, Pascal VOC 2012 (trainaug where it is there, else train; val); `ytvos`,
        four fifths of its training videos and the rest; `rendered`, N rendered pictures each.
    rows
        Patches in the memory, those with rare classes first; 0: all. Published: 102400 to 10240000.
    passes
        Over the pictures to remember, each with other cuts and colours. Published: 2.
    neighbours
        Patches that vote.
    search
        How they are found; faiss, an extra, searches on the CPU.
    normalisation
        Of colours; code: with the deviation 0.255 that the released code has for 0.225, a number of its own.
    memory
        What looking up may take beside the encoder, e.g. 500MB; results stay the same. Default: 2GB
        (faiss: as it needs).
    """
    from unspool.verbs import heads

    settings = encoder.settings()
    return run_plan(
        heads.incontext_plan, run, None, settings=settings, data=data, rows=rows, passes=passes,
        neighbours=neighbours, search=search, memory=memory, normalisation=normalisation,
    )  # fmt: skip

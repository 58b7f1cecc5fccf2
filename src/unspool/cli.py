"""The `unspool` command: parse, call one job, print. Every verb imports its work inside its function."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Group, Parameter

import unspool
from unspool.errors import UnspoolError, UsageError

MODEL = Group("Model", sort_key=2)
MATCHING = Group("Matching", sort_key=3)
CUTTING = Group("Cutting", sort_key=3)
OUTPUT = Group("Output", sort_key=4)
RUNTIME = Group("Running", sort_key=5)
DATA = Group("Videos", sort_key=1)
LEARNING = Group("Learning", sort_key=2)

app = App(
    name="unspool",
    help="Find and follow objects in video with features learnt without labels.\n\n"
    "Start with `unspool demo`, then `unspool segment clip.mp4`,\n"
    "or `unspool track clip.mp4 --mask first.png`.",
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
training = App(
    name="train",
    help="Learn features from plain video without labels.",
    default_parameter=Parameter(negative=()),
)
app.command(training)


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

    output: Annotated[Path | None, Parameter(name=["--output", "-o"], group=OUTPUT)] = None
    "Result folder. Default: unspool-VERB-NAME in the working directory."
    overwrite: Annotated[bool, Parameter(group=OUTPUT)] = False
    "Start again in a folder that holds results of other settings."
    workers: Annotated[int, Parameter(group=RUNTIME)] = 1
    "Videos in work at the same time, each in a process of its own."
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
    from unspool import verbs

    unknown = [word for word in inputs if word.startswith("-") and word != "-"]  # - is a stream
    if unknown:
        raise UsageError(f"Unknown option: {unknown[0]}; `unspool track --help` lists them")
    if not inputs:
        raise UsageError("no video is given; e.g. `unspool track clip.mp4 --mask first.png`")
    chosen = {"result": result, "objects": objects, "cut": cut}
    return _run(
        verbs.track_plan, run, model, inputs=inputs, masks=mask or [], resize_mask=resize_mask, **chosen
    )


@Parameter(name="*")
@dataclass(frozen=True)
class SegmentOptions:
    """Which features, and how finely they are cut."""

    model: Annotated[str | None, Parameter(group=MODEL)] = None
    "A correlator (from `unspool train ba`, or as published) or an encoder. Default: the shipped one."
    tau: Annotated[float | None, Parameter(group=CUTTING)] = None
    "Distance up to which tokens are one object, nats, > 0. Default: 1.0; 1.6 suits a single object."
    every: Annotated[int | None, Parameter(group=CUTTING)] = None
    "Segment one frame of so many; masks, overlay and tracks cover these. Default: 1."
    resolution: Annotated[str | None, Parameter(group=CUTTING)] = None
    "Encoder's input, px: `320` (then 320x480), `192x384`, or `native`. Default: 320x480."
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


@app.command
def segment(*inputs: str, options: SegmentOptions = SegmentOptions(), run: RunOptions = RunOptions()) -> int:
    """Cut a video, or many, into objects that keep their identity; without labels, their number not given.

    Example: `unspool segment clip.mp4`

    Example: `unspool segment videos/ --every 5 --resolution 192x384 -o result`

    Parameters
    ----------
    inputs
        Videos: files, folders, globs, folders of frames, `@list.txt`, fsspec addresses.
    """
    from unspool import verbs_segment as verbs

    if not inputs:
        raise UsageError("no video is given; e.g. `unspool segment clip.mp4`")
    settings = verbs.resolve_segment_settings(
        options.given(), options.config, options.settings or [], workers=max(1, run.workers)
    )
    return _run(verbs.segment_plan, run, None, inputs=inputs, settings=settings)


@evaluate.command(name="tracking")
def eval_tracking(
    *,
    data: str | None = None,
    sequences: list[str] | None = None,
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
        KIND:PATH. Kinds: `davis17` and `davis16`, the folder that holds ImageSets/.
    sequences
        Only these sequences of the data set.
    pred
        Folder of predicted label PNGs, `SEQUENCE/FRAME.png`; no encoder runs.
    truth
        Folder of true label PNGs of the same names.
    protocol
        davis17-semi (default of davis17 and of --pred), davis17-unsup, davis17-unsup-framewise,
        davis16-official (default of davis16), davis16-allframes, davis16-pooled, vos-late; maskforward: the
        foreground in steps of 0.1 to 0.8 s, repeated, along optical flow (extra `flow`), by features.
    raft
        maskforward: weights of torchvision's raft_large, to carry masks along RAFT's flow too.
    """
    from unspool import verbs

    if (pred is None) != (truth is None):
        raise UsageError("--pred and --truth belong together: predictions and truth, both as folders of PNGs")
    if (pred is None) == (data is None):
        raise UsageError("give either --data KIND:PATH (an encoder tracks it), or --pred and --truth")
    if pred is not None and truth is not None:
        return _run(verbs.score_plan, run, None, pred=pred, truth=truth, protocol=protocol)
    if protocol == "maskforward" and data is not None:
        from unspool.verbs_maskforward import maskforward_plan

        if unused := [n for n in ("preset", "settings", "config", "memory") if getattr(model, n) is not None]:
            raise UsageError(f"--protocol maskforward takes no --{unused[0].replace('settings', 'set')}")
        return _run(
            maskforward_plan,
            run,
            None,
            data=data,
            names=tuple(sequences or ()),
            raft=raft,
            options=model.given(),
        )
    return _run(verbs.eval_plan, run, model, data=data, names=tuple(sequences or ()), protocol=protocol)


@evaluate.command(name="discovery")
def eval_discovery(
    *,
    data: str | None = None,
    sequences: list[str] | None = None,
    pred: Path | None = None,
    truth: Path | None = None,
    protocol: list[str] | None = None,
    foreground: list[str] | None = None,
    minimum_size: float = 0.0,
    largest: int = 0,
    fill_holes: bool = False,
    options: SegmentOptions = SegmentOptions(),
    run: RunOptions = RunOptions(),
) -> int:
    """Score segmentations made without labels on a data set, or masks that were made elsewhere.

    Example: `unspool eval discovery --data davis17:DAVIS --model correlator.safetensors`

    Example: `unspool eval discovery --data rendered:8 --protocol fg-ari-video --protocol miou-frame`

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
        Repeatable; docs/protocols.md lists them. Default: all that suit the data; davis17-unsup of --pred.
    foreground
        Who chooses the one cluster that davis16-* and segtrack-fbms score: label-free, oracle-frame,
        oracle-video, given (every id of the masks). Default: the first three, apart; given with --pred.
    minimum_size
        Drop clusters that nowhere cover this share of a frame, 0..1. Default: 0, which drops none.
    largest
        Keep so many clusters of a video, the largest. Default: 0, which keeps all.
    fill_holes
        Let a cluster have the gaps that it encloses.
    """
    from unspool import verbs_discovery as verbs
    from unspool.verbs_segment import resolve_segment_settings

    if (pred is None) != (truth is None):
        raise UsageError("--pred and --truth belong together: predictions and truth, both as folders of PNGs")
    if (pred is None) == (data is None):
        raise UsageError("give either --data KIND:PATH (which is segmented), or --pred and --truth")
    shared = {"protocols": protocol, "foregrounds": foreground}
    if pred is not None:
        return _run(verbs.score_plan, run, None, pred=pred, truth=truth, **shared)
    settings = resolve_segment_settings(
        options.given(), options.config, options.settings or [], workers=max(1, run.workers)
    )
    return _run(
        verbs.discovery_plan,
        run,
        None,
        settings=settings,
        data=data,
        names=tuple(sequences or ()),
        steps={"minimum_size": minimum_size, "largest": largest, "fill_holes": fill_holes},
        **shared,
    )


@evaluate.command(name="clustering")
def eval_clustering(
    *,
    data: str,
    model: Annotated[str, Parameter(group=MODEL)] = "dul-small",
    before: Annotated[str | None, Parameter(group=MODEL)] = None,
    resolution: Annotated[int | None, Parameter(group=MODEL)] = None,
    sequences: list[str] | None = None,
    protocol: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    clusters: int | None = None,
    seeds: int = 5,
    sample: int = 0,
    frames: int | None = None,
    device: Annotated[str, Parameter(group=RUNTIME)] = "auto",
    precision: Annotated[Literal["fp32", "bf16", "fp16"], Parameter(group=RUNTIME)] = "fp32",
    seed: Annotated[int, Parameter(group=RUNTIME)] = 0,
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
        Encoder: a name (see `unspool models`), a checkpoint file, or a training result.
    before
        A second encoder, e.g. that before tuning, shown beside the first.
    resolution
        Side of the encoder's square input, px. Default: 224 (voc: 448).
    sequences
        Only these videos or images.
    protocol
        cluster-frame, cluster-clip, cluster-dataset (f, c, d for short), overcluster-frame, -clip, -dataset,
        cluster-voc-k21, overcluster-voc-k500. Default: all that suit the data.
    clusters
        K. Default: as many as ids in the truth (cluster-...), the publication's number (overcluster-...).
    seeds
        How often k-means is run; the mean and standard deviation are given.
    sample
        Points per cluster that centres are fitted to; 0: all. The published code: 256.
    frames
        Frames of a clip. Default: 16 (ytvos, visor: 4).
    device
        auto, cpu, cuda, cuda:1 or mps.
    precision
        Arithmetic of the encoder.
    seed
        Seed of randomly initialised encoders.
    """
    from unspool import verbs_clustering as verbs

    return _run(
        verbs.clustering_plan, run, None, data=data, encoder=model, before=before, resolution=resolution,
        names=tuple(sequences or ()), protocols=protocol or (), clusters=clusters, seeds=seeds, sample=sample,
        frames=frames, device=device, precision=precision, seed=seed,
    )  # fmt: skip


@Parameter(name="*")
@dataclass(frozen=True)
class EncoderOptions:
    """Which features, where no labels travel."""

    model: Annotated[str | None, Parameter(group=MODEL)] = None
    "Encoder: a name (see `unspool models`) or a checkpoint file. Default: random-resnet18."
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
        from unspool.verbs_heads import Settings

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

    Example: `unspool eval linear --data rendered:50 --recipe leopart-fcn`

    Parameters
    ----------
    data
        KIND:WHERE. Kinds: `rendered`, N rendered pictures to learn from and N to be scored.
    recipe
        leopart-linear, leopart-fcn (random cuts, scored at 448x448, all classes), timet-linear, timet-fcn
        (whole pictures, scored at 100x100, classes that the truth has).
    views
        Random cuts of every picture that are encoded and kept; published: one an epoch. Default: 4.
    epochs
        Default: the recipe's.
    """
    from unspool import verbs_heads

    settings = encoder.settings()
    return _run(
        verbs_heads.linear_plan, run, None, settings=settings, data=data, recipe=recipe, views=views,
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
        KIND:WHERE. Kinds: `rendered`, N rendered pictures to choose the threshold on and N to be scored;
        `rendered-clips`, likewise all frames of N clips; `davis17`, all frames of the two lists.
    recipe
        leopart (200 clusters of both splits together) or timet (300, of each split on its own).
    clusters
        How many. Default: the recipe's.
    attention
        Encoder whose attention marks the foreground; needed where the encoder is no ViT. Default: its own.
    """
    from unspool import verbs_heads

    settings = encoder.settings()
    return _run(
        verbs_heads.salient_plan, run, None, settings=settings, data=data, recipe=recipe, clusters=clusters,
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
    encoder: EncoderOptions = EncoderOptions(),
    run: RunOptions = RunOptions(),
) -> int:
    """Look up the labels of pictures in a memory of labelled patches, without training.

    Example: `unspool eval incontext --data rendered:50 --model dino-vits16`

    Example: `unspool eval incontext --data rendered:50 --rows 102400 --passes 2`

    Parameters
    ----------
    data
        KIND:WHERE. Kinds: `rendered`, N rendered pictures to remember and N to be scored.
    rows
        Patches in the memory, those with rare classes first; 0: all. Published: 102400 to 10240000.
    passes
        Over the pictures to remember, each with other cuts and colours. Published: 2.
    neighbours
        Patches that vote.
    search
        How they are found; faiss, an extra, searches on the CPU.
    """
    from unspool import verbs_heads

    settings = encoder.settings()
    return _run(
        verbs_heads.incontext_plan, run, None, settings=settings, data=data, rows=rows, passes=passes,
        neighbours=neighbours, search=search,
    )  # fmt: skip


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
    frames: Annotated[Literal["auto", "device", "disk", "decode"], Parameter(group=DATA)] = "auto"
    "Where decoded frames are kept: on the GPU, on disk (in the cache), or nowhere. auto: the GPU if all fit."
    preset: Annotated[str | None, Parameter(group=LEARNING)] = None
    "Settings of a publication, or ours for a CPU. Default: the small one (dul-small), on a GPU too."
    steps: Annotated[int | None, Parameter(group=LEARNING)] = None
    "Steps of the optimiser; the schedule scales with them. Default: what the epochs give."
    epochs: Annotated[int | None, Parameter(group=LEARNING)] = None
    "How often every video is seen. Default: the preset's."
    model: Annotated[str | None, Parameter(group=LEARNING)] = None
    "Weights to start from. Default: random ones."
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
    output: Annotated[Path | None, Parameter(name=["--output", "-o"], group=OUTPUT)] = None
    "Result folder. Default: unspool-train-METHOD in the working directory."
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
    "Processes that decode, render and prepare clips. Default: as it seems best."
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
            if each.name in ("sweep", "output", "dry_run") or value == each.default:
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
    from unspool import verbs_sweep as verbs
    from unspool.reporting import Reporter
    from unspool.training.settings import resolve

    given: dict[str, Any] = {"preset": options.preset, "model": options.model}
    given = {k: v for k, v in given.items() if v is not None} | options.given(method)
    sweep = verbs.read_sweep(path, given)
    for item in sweep.items:  # a wrong setting is told before the first run
        single = [
            text for flag, text in zip(item.words()[::2], item.words()[1::2], strict=True) if flag == "--set"
        ]
        preset = item.overrides.get("preset", options.preset)
        resolve(method, preset, options.config, [*(options.settings or []), *single], options.given(method))
    with Reporter(as_json=options.json, quiet=options.quiet, verbose=options.verbose) as reporter:
        return verbs.carry_out_sweep(
            sweep,
            method,
            options.words(),
            options.output or Path(f"unspool-sweep-{method}-{path.stem}"),
            reporter,
            again=options.overwrite,
            dry_run=options.dry_run,
        )


def _train(method: str, options: TrainOptions) -> int:
    if options.sweep is not None:
        return _sweep(method, options, options.sweep)
    from unspool import verbs_train as verbs
    from unspool.reporting import Reporter
    from unspool.training import Rhythm
    from unspool.training.processes import Machines
    from unspool.training.settings import resolve

    order = verbs.Order(
        settings=resolve(
            method, options.preset, options.config, options.settings or [], options.given(method)
        ),
        data=tuple(options.data or ()),
        folder=options.output or Path(f"unspool-train-{method}"),
        model=options.model,
        machines=Machines(options.device, options.devices, options.nodes),
        frames=options.frames,
        workers=options.workers,
        max_broken=options.max_broken,
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

    Example: `unspool export --to timm --model runs/a -o encoder`

    Parameters
    ----------
    result
        A result folder; for timm, one that training left.
    to
        coco, ytvis, davis, youtube-vos, mots (CVAT), prompts (SAM 2, Cutie), mattes (PNG with alpha), prores
        (4444 with alpha, per object), features (safetensors), timm.
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

"""What `unspool eval salient` plans and does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from time import perf_counter

import numpy as np

from unspool.data.features import bytes_kept
from unspool.data.pictures import Pictures, pictures
from unspool.encoders import device_named
from unspool.errors import UsageError
from unspool.jobs import Estimate, Plan, Report, Stop
from unspool.metrics import clustering
from unspool.protocols.salient import RECIPES, Extracted, Extraction, boundary_score, extract, jaccard
from unspool.results import Json, safe_name
from unspool.verbs.heads.shared import (
    SHOWN,
    Settings,
    encoder_of,
    keep,
    model_record,
    show_pictures,
    splits_of,
    write_scores,
)

NOTES = {
    "salient-jaccard": "the threshold was chosen with the truth of the training pictures",
    "salient-jaccard-label-free": "the threshold was chosen without any truth (ours)",
    "salient-jaccard-attention": "the noisy masks of the attention that all starts from",
    "salient-jaccard-void-foreground": "as the published code scores: void is foreground",
    "salient-bf": "boundary F of the masks of salient-jaccard",
    "cluster-cbfe": "as many clusters as classes after the extraction, matched by Hungarian, mean over seeds",
}


@dataclass(frozen=True)
class SalientJob:
    """One extraction to be done and scored."""

    name: str
    folder: Path
    settings: Settings
    data: str
    how: Extraction
    attention: str | None  # whose attention; None: the encoder's own

    @property
    def identity(self) -> Json:
        """What is in the data."""
        return {"data": {split: source.digest for split, source in pictures(self.data).items()}}

    @property
    def looking(self) -> Settings:
        """The encoder whose attention marks the foreground."""
        return replace(self.settings, model=self.attention) if self.attention else self.settings


def salient_plan(
    *,
    output: Path | None,
    settings: Settings,
    data: str,
    recipe: str,
    clusters: int | None,
    attention: str | None,
) -> Plan:
    """`unspool eval salient`: foreground without a head."""
    if recipe not in RECIPES:
        raise UsageError(f"--recipe {recipe}: there are {', '.join(RECIPES)}")
    changes: Json = {"clusters": clusters, "seed": settings.seed, "side": settings.resolution}
    how = replace(RECIPES[recipe], **{k: v for k, v in changes.items() if v is not None})
    sources = pictures(data)
    kind = sources["val"].kind
    folder = output or Path(f"unspool-eval-salient-{kind}-{safe_name(settings.model)}")
    job = SalientJob(recipe, folder, settings, data, how, attention)
    config = {
        "model": settings.model, "precision": settings.precision, "seed": settings.seed, "data": data,
        "attention": attention, "recipe": asdict(how), "splits": splits_of(sources),
    }  # fmt: skip
    return Plan(
        "eval salient",
        folder,
        config,
        [job],
        extract_and_score,
        model=partial(_model, job),
        finish=partial(_finish, how, sources),
        estimate=partial(_estimate, settings, sources, how),
    )


def _model(job: SalientJob) -> Json:
    """Facts of the encoder; UsageError where nothing has the attention that is needed."""
    looking = encoder_of(job.looking)
    if "cls_attention" not in looking.offers:
        raise UsageError(
            f"'{looking.name}' has no class token whose attention marks the foreground; name a ViT that has "
            "one, e.g. --attention dino-vits16, as the published code does for every encoder"
        )
    return model_record(job.settings)


def extract_and_score(job: SalientJob, report: Report, stop: Stop) -> Json:
    """Encode, cluster, cut, score."""
    started = perf_counter()
    sources, how = pictures(job.data), job.how
    own = job.attention is None
    want = ("tokens", "cls_attention") if own else ("tokens",)
    kept = {n: keep(job.settings, s, how.shown, report, stop, want=want) for n, s in sources.items()}
    seen = kept
    if not own:
        seen = {
            n: keep(job.looking, s, how.shown, report, stop, want=("cls_attention",))
            for n, s in sources.items()
        }
    device = device_named(job.settings.device)
    classes = sources["val"].classes
    attention = (seen["train"], seen["val"])
    report({"event": "note", "text": f"clustering tokens into {how.clusters}, then cutting and scoring"})
    found = extract(kept["train"], kept["val"], attention, classes, how, device)
    truth = np.asarray(kept["val"].labels)
    shown_maps = {i: mask.astype(np.uint8) for i, mask in enumerate(found.tuned[:SHOWN])}
    return show_pictures(
        job.folder,
        job.name,
        sources["val"],
        how.shown,
        shown_maps,
        seconds=perf_counter() - started,
        foreground=True,
        extra={
            "identity": job.identity,
            "measured": {
                name: round(value, 6) for name, value in _measured(found, truth, sources["val"].kind).items()
            },
            "thresholds": found.thresholds,
        },
    )


def _measured(found: Extracted, truth: np.ndarray, kind: str) -> dict[str, float]:
    numbers = {
        "salient-jaccard": jaccard(found.tuned, truth),
        "salient-jaccard-label-free": jaccard(found.label_free, truth),
        "salient-jaccard-attention": jaccard(found.attention, truth),
        "salient-jaccard-void-foreground": jaccard(found.tuned, truth, "foreground"),
        "salient-bf": boundary_score(found.tuned, truth),
        "salient-bf-label-free": boundary_score(found.label_free, truth),
    }
    grouped = [
        clustering(maps, truth, "hungarian", clusters=found.classes, classes=found.classes).miou()
        for maps in found.groups.values()
    ]
    if grouped:
        name = f"cluster-{kind}-k{found.classes}-cbfe"
        numbers[name] = fmean(grouped)
        numbers[f"{name}-sd"] = stdev(grouped) if len(grouped) > 1 else 0.0
    return numbers


def _finish(how: Extraction, sources: Mapping[str, Pictures], folder: Path, done: list[Json]) -> str:
    more = {"notes": NOTES, "thresholds": done[0]["thresholds"], "clusters": how.clusters}
    more |= {"data": sources["val"].kind, "splits": splits_of(sources)}
    return write_scores(folder, "salient-jaccard", done, "salient-jaccard", **more)


def _estimate(
    settings: Settings,
    sources: Mapping[str, Pictures],
    how: Extraction,
    jobs: Sequence[SalientJob],
    workers: int,
) -> Estimate:
    encoder = encoder_of(settings)
    kept = sum(bytes_kept(encoder, source, how.shown) for source in sources.values())
    return Estimate(
        f"{encoder.name}: {len(sources['train'])} pictures to choose the threshold on, "
        f"{len(sources['val'])} to be scored; {kept / 1e9:.2g} GB of features in the cache, "
        f"{how.clusters} clusters"
    )

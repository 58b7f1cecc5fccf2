"""What videos are cut by: options of `segment` and `eval discovery`, their record, the model, the frames."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from fractions import Fraction
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from unspool.errors import UsageError
from unspool.options import size_in_bytes, tables_of
from unspool.results import Json

COSINE_TAU, COSINE_FINEST = 0.1, 0.07  # ours, where features are clustered
SHIPPED_TAU = 2.5  # published: 1.0; this block tells more apart; chosen on clips that it learnt from
SHIPPED_RESOLUTION = (160, 240)  # published: 320x480; 192x288 takes three times as long and scores no better
BY_FRAME = "clusters of attention belong to single frames"  # and have no object of the video among them

# ----------------------------------------------------------------------------------------- settings


@dataclass(frozen=True)
class SegmentSettings:
    """Options of `segment`; `segmenting` holds fields of `unspool.segmenting.Segmenting`."""

    model: str = "dul-small"  # a correlator or an encoder: a name or a checkpoint file
    every: int = 1  # one frame of so many is segmented
    device: str = "auto"
    precision: str = "fp32"
    seed: int = 0
    memory: int | None = None  # bytes that the command may take in all
    segmenting: Json = field(default_factory=dict)  # single settings over the defaults
    refining: Json = field(default_factory=dict)  # fields of `unspool.ops.refining.Refining`
    foreground: bool = False  # whether masks of the one object that stands out are written beside the others
    processes: int = 1  # that share the memory

    @property
    def memory_each(self) -> int | None:
        """Bytes for one process."""
        return None if self.memory is None else self.memory // self.processes


def resolve_segment_settings(
    given: Json, config: Path | None = None, single: Sequence[str] = (), *, workers: int = 1
) -> SegmentSettings:
    """Command line (`given`, then `--set KEY=VALUE`) over config file over default.

    Keys that are no option are fields of `Segmenting` (`window`, `represent`, ...) or, below `clustering`, of
    `Clustering`; `tau`, `key_ratio` and `resolution` are short for some. Raises UsageError for any other.
    """
    merged: Json = {"segmenting": {}, "refining": {}}
    for table, origin in tables_of(given, config, single):
        _merge(merged, table, origin)
    if merged.get("memory") is not None:
        merged["memory"] = size_in_bytes(merged["memory"])
    settings = SegmentSettings(**merged, processes=1 if workers == 1 else workers + 1)
    if settings.every < 1:
        raise UsageError(f"--every {settings.every}: at least 1, which segments all frames")
    refining_of(settings)
    if not isinstance(settings.foreground, bool):
        raise UsageError(f"foreground = {settings.foreground!r}: expected true or false")
    if settings.foreground and represented(settings) == "attention":
        raise UsageError(f"--foreground: {BY_FRAME}; take block, features or fused")
    return settings


def _merge(merged: Json, table: Json, origin: str) -> None:
    from unspool.ops.refining import Refining  # noqa: PLC0415
    from unspool.segmenting import Segmenting  # noqa: PLC0415 (torch only when work starts)

    own = {f.name for f in fields(SegmentSettings)} - {"segmenting", "refining", "processes"}
    after = {f.name for f in fields(Refining)}
    inner = {f.name for f in fields(Segmenting)} - {"memory"}
    target = merged["segmenting"]
    for key, value in {**table.pop("segmenting", {}), **table.pop("refining", {}), **table}.items():
        if key in own:
            merged[key] = value
        elif key == "tau":
            target.setdefault("clustering", {})["tau"] = value
        elif key == "key_ratio":
            target["key_every"] = _stride(value)
        elif key == "resolution":
            target["resolution"] = _resolution(value)
        elif key == "clustering":
            if not isinstance(value, dict):
                raise UsageError(
                    f"{origin}: clustering = {value!r}: expected its fields, e.g. clustering.frames=5"
                )
            target.setdefault("clustering", {}).update(value)
        elif key in after:
            merged["refining"][key] = value
        elif key in inner:
            target[key] = value
        else:
            known = sorted(own | inner | after | {"tau", "key_ratio"})
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise UsageError(f"{origin}: '{key}' is no setting{hint} (there are {', '.join(known)})")


def _stride(ratio: Any) -> int:
    if not isinstance(ratio, int | float) or not 0 < ratio <= 1:
        raise UsageError(f"--key-ratio {ratio}: expected a share of the frames, 0..1, e.g. 0.1")
    return max(1, round(1 / ratio))


def _resolution(given: Any) -> list[int] | None:
    """Short and long side of `320`, `320x480`, `native`; long is 1.5 times short, as published."""
    if given == "native":
        return None
    sides = given if isinstance(given, list) else str(given).lower().split("x")
    try:
        short, long = (int(side) for side in (sides if len(sides) == 2 else (*sides, int(sides[0]) * 3 // 2)))
    except ValueError:
        short, long = 0, 0
    if min(short, long) < 1:
        raise UsageError(f"--resolution {given}: expected px, e.g. 320, or 320x480, or native")
    return sorted((short, long))


def represented(settings: SegmentSettings) -> str:
    """What is clustered: attention where a block has learnt, else features, unless it is said."""
    from unspool.encoders.correlator import holds_block  # noqa: PLC0415

    given: str | None = settings.segmenting.get("represent")
    return given or ("block" if holds_block(settings.model) else "features")


def segmenting_record(settings: SegmentSettings) -> Json:
    """All that decides clusters, spelt out; what `run.json` records and a rerun compares."""
    from unspool.encoders import SHIPPED  # noqa: PLC0415 (torch only when work starts)

    represent = represented(settings)
    changes: Json = {**settings.segmenting, "represent": represent}
    usual: Json = {}
    if represent == "block" and settings.model in SHIPPED:
        changes, usual = {"resolution": SHIPPED_RESOLUTION, **changes}, {"tau": SHIPPED_TAU}
    if represent in ("features", "fused"):
        changes, usual = {"finest": COSINE_FINEST, **changes}, {"tau": COSINE_TAU, "distance": "cosine"}
    given = changes.pop("clustering", {})
    clustering = {"seed": settings.seed, **usual, **given}
    if represent in ("features", "fused") and clustering["distance"] == "kl":
        raise UsageError(f"clustering.distance = 'kl' is for attention; {represent} take cosine or euclidean")
    if clustering.get("distance") == "euclidean":
        if "tau" not in given:
            raise UsageError("clustering.distance = 'euclidean' has no usual threshold; give it with --tau")
        share = COSINE_FINEST / COSINE_TAU
        changes["finest"] = settings.segmenting.get("finest", share * clustering["tau"])
    record = asdict(segmenting_of({**changes, "clustering": clustering}))
    if record["finest"] is not None:  # leaves are never coarser than what is made of them
        record["finest"] = min(record["finest"], record["clustering"]["tau"])
    del record["memory"]
    return record


def segmenting_of(record: Json, memory: int | None = None) -> Any:
    """`Segmenting` of a record, `memory` bytes for clustering.

    Raises UsageError for an unknown field, and for a value out of range.
    """
    from unspool.ops.clustering import Clustering  # noqa: PLC0415
    from unspool.segmenting import Segmenting  # noqa: PLC0415

    changes = {**record}
    clustering = _fitting(Clustering(), changes.pop("clustering", {}), "clustering.")
    if isinstance(changes.get("resolution"), list):
        changes["resolution"] = tuple(changes["resolution"])
    changes = _fitting(Segmenting(), changes, "")
    if memory is not None:
        changes["memory"] = memory
    return Segmenting(**changes, clustering=Clustering(**clustering))


def refining_of(settings: SegmentSettings) -> Any:
    """`Refining` of the settings. Raises UsageError as `segmenting_of` does."""
    from unspool.ops.refining import Refining  # noqa: PLC0415

    return Refining(**_fitting(Refining(), settings.refining, "refining."))


def _fitting(defaults: Any, changes: Json, prefix: str) -> Json:
    """The changes, if each is a field and of its default's kind."""
    names = [f.name for f in fields(defaults)]
    for key, value in changes.items():
        if key not in names:
            raise UsageError(f"setting '{prefix}{key}' is unknown; there are {', '.join(names)}")
        kind: Any = type(getattr(defaults, key))
        empty = value is None and key in ("finest", "resolution")
        fits = isinstance(value, (int, float) if kind is float else kind)
        if not (empty or fits) or (isinstance(value, bool) and kind is not bool):
            raise UsageError(f"setting '{prefix}{key}' = {value!r}: expected {kind.__name__}")
    return changes


# -------------------------------------------------------------------------------------------- model


@lru_cache(maxsize=1)
def _correlator(model: str, device: str, precision: Any, seed: int) -> Any:
    from unspool.encoders import load_encoder  # noqa: PLC0415
    from unspool.encoders.correlator import holds_block, load_correlator, untrained  # noqa: PLC0415

    if holds_block(model):
        return load_correlator(model, device=device, precision=precision)
    return untrained(load_encoder(model, device=device, precision=precision, seed=seed), seed=seed)


def correlator_of(settings: SegmentSettings) -> Any:
    """The block with its encoder, loaded once in a process; an untrained block where the model has none."""
    return _correlator(settings.model, settings.device, settings.precision, settings.seed)


def correlator_record(settings: SegmentSettings) -> Json:
    """Facts of the model for `run.json`: the hash is that of encoder and block together."""
    from unspool.encoders import facts_of  # noqa: PLC0415
    from unspool.encoders.checkpoints import weights_hash  # noqa: PLC0415
    from unspool.encoders.correlator import holds_block  # noqa: PLC0415

    correlator = correlator_of(settings)
    return {
        **facts_of(correlator.encoder),
        "weights_hash": weights_hash(correlator),
        "block": "learnt" if holds_block(settings.model) else "random",
        "device": settings.device,
    }


# ------------------------------------------------------------------------------------------- frames


class Some:
    """One frame of so many of a video, and at most `most`."""

    def __init__(self, video: Any, every: int, most: int | None = None) -> None:
        self.video, self.every = video, every
        self.stop = len(video) if most is None else min(len(video), most * every)
        self.name: str = video.name
        self.height: int = video.height
        self.width: int = video.width

    def __len__(self) -> int:
        return (self.stop + self.every - 1) // self.every

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.video), 0, self.stop, self.every)

    @property
    def times(self) -> Sequence[Fraction]:
        """Of the frames that are left, s."""
        found: Sequence[Fraction] = list(self.video.times)[: self.stop : self.every]
        return found

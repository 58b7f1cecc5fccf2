"""What the page shows of a training run: curves, scores over steps, pictures of the same clips over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unspool.results import read_log

MOST_POINTS = 1000  # of a curve; more are averaged in equal parts
SCORES = ("J&F", "J", "F")
CURVES = (  # key of a record, title, unit; what else a method logs comes after the loss
    ("loss", "Loss", ""),
    ("frames_per_second", "Speed", "frames/s"),
    ("loading", "Share of time that waits for clips", ""),
    ("learning_rate", "Learning rate", ""),
    ("memory_gb", "Most memory in use", "GB"),
)
EXACT = {"Learning rate", "Most memory in use"}  # titles of what has no noise to be smoothed
UNDRAWN = {"step", "epoch", "seconds", "steps_per_second", *SCORES}

Json = dict[str, Any]
Points = list[tuple[int, float]]


@dataclass(frozen=True)
class Curve:
    """One number over the steps."""

    title: str
    unit: str
    points: Points


@dataclass(frozen=True)
class Learning:
    """A training run, as far as it has come."""

    step: int
    steps: int | None  # of the whole run, where it is known
    seconds: float  # of learning
    curves: tuple[Curve, ...]
    validations: tuple[Json, ...]  # step, J, F, J&F
    pictures: tuple[int, ...]  # steps with a picture in pictures/

    @property
    def protocol(self) -> str:
        """Of validations: where clips are cut without labels, they tell of clusters."""
        return "davis17-unsup" if any("clusters" in v for v in self.validations) else "davis17-semi"

    @property
    def best(self) -> Json | None:
        """The validation with the highest J; the first of equals."""
        return max(self.validations, key=lambda v: v["J"], default=None)

    def as_json(self) -> Json:
        """What the page's script draws."""
        scores = [{"label": k, "points": [(v["step"], v[k]) for v in self.validations]} for k in ("J", "F")]
        return {
            "steps": self.steps,
            "curves": [
                {"title": c.title, "smooth": c.title not in EXACT, "points": c.points} for c in self.curves
            ],
            "scores": scores if self.validations else [],
            "pictures": list(self.pictures),
        }


def read_learning(folder: Path, steps: int | None) -> Learning | None:
    """What log.jsonl and pictures/ of a result say; None where nothing was learnt there."""
    if not (folder / "log.jsonl").is_file():
        return None
    records = list(read_log(folder / "log.jsonl"))
    lines = [r for r in records if "loss" in r]
    validations = tuple(r for r in records if all(_finite(r.get(k)) for k in SCORES))
    known = {int(p.stem[5:]) for p in (folder / "pictures").glob("step-*.jpg") if p.stem[5:].isdigit()}
    return Learning(
        step=max((int(r["step"]) for r in records), default=0),
        steps=steps,
        seconds=float(lines[-1].get("seconds", 0.0)) if lines else 0.0,
        curves=tuple(_curves(lines)),
        validations=validations,
        pictures=tuple(v["step"] for v in validations if v["step"] in known),
    )


def _curves(lines: Sequence[Json]) -> list[Curve]:
    named = {key for key, _, _ in CURVES} | UNDRAWN
    parts = [key for key in (lines[0] if lines else {}) if key not in named]
    own = [(key, key.replace("_", " ").capitalize(), "") for key in parts]
    found = []
    for key, title, unit in (CURVES[0], *own, *CURVES[1:]):
        points = [(int(r["step"]), float(r[key])) for r in lines if _finite(r.get(key))]
        if points:
            found.append(Curve(title, unit, thinned(points)))
    return found


def thinned(points: Points) -> Points:
    """At most `MOST_POINTS`: each the mean of as many neighbours, at the step of the last."""
    size = -(-len(points) // MOST_POINTS)
    if size <= 1:
        return [(step, _rounded(value)) for step, value in points]
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(part[-1][0], _rounded(sum(v for _, v in part) / len(part))) for part in parts]


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)

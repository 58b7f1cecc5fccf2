"""What the page shows of a clustering: protocols, classes, and strips of clips before and after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from unspool.masks import display_colours

Json = dict[str, Any]
ROWS = {"truth": "truth", "before": "before", "model": "now"}


@dataclass(frozen=True)
class Bar:
    """One class in a chart."""

    name: str
    colour: str
    value: float  # 0..1
    earlier: float | None = None  # of the model before


@dataclass(frozen=True)
class Chart:
    """Bars of all classes, in the order of their share."""

    title: str
    note: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Strips:
    """One clip: its rows, and what its colours mean."""

    name: str
    rows: tuple[tuple[str, str], ...]  # (caption, file)
    legend: tuple[tuple[str, str], ...]  # (class, colour)


@dataclass(frozen=True)
class Clustered:
    """A result of `eval clustering`."""

    data: str
    models: dict[str, str]
    table: tuple[Json, ...]  # protocol, units, bg, bg-sd, nobg, nobg-sd, before (the same) or None
    charts: tuple[Chart, ...]
    strips: tuple[Strips, ...]
    shown: str  # protocol of the strips


def read_clustered(scores: Json) -> Clustered | None:
    """From the content of scores.json; None where it is of something else."""
    if "models" not in scores or "classes" not in scores:
        return None
    before = scores["table"].get("before", {})
    now = scores["table"]["model"]
    rows = [{"protocol": name, **row, "before": before.get(name)} for name, row in now.items()]
    classes = sorted(scores["classes"], key=lambda c: (c["id"] != 0, -c["share"]))
    return Clustered(
        scores["data"],
        scores["models"],
        tuple(rows),
        (_distribution(classes), *(_of_classes(row["protocol"], classes) for row in rows)),
        tuple(_strips(picture, scores["models"], classes) for picture in scores["pictures"]),
        scores["shown"],
    )


def _colour(id_: int) -> str:
    return "#" + bytes(display_colours([id_])[id_]).hex() if id_ else "var(--rail)"


def _distribution(classes: list[Json]) -> Chart:
    bars = (Bar(f"{c['name']} ({c['frames']:,} frames)", _colour(c["id"]), c["share"]) for c in classes)
    return Chart("Classes of the truth", "share of pixels", tuple(bars))


def _of_classes(protocol: str, classes: list[Json]) -> Chart:
    bars = []
    for c in classes:
        earlier = c["iou"].get("before", {}).get(protocol)
        if protocol in c["iou"]["model"]:
            bars.append(Bar(c["name"], _colour(c["id"]), c["iou"]["model"][protocol], earlier))
    return Chart(protocol, "IoU", tuple(bars))


def _strips(picture: Json, models: dict[str, str], classes: list[Json]) -> Strips:
    names = {c["id"]: c["name"] for c in classes}
    rows = [
        (f"{ROWS[row]}: {models[row]}" if row in models else row, f"{quote(picture['file'])}-{row}.jpg")
        for row in ROWS
        if row in picture["rows"]
    ]
    legend = [(names.get(id_, f"object {id_}"), _colour(id_)) for id_ in picture["ids"]]
    return Strips(picture["name"], tuple(rows), tuple(legend))

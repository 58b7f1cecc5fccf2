"""The scores that jobs leave together: means over units and seeds, their spread, classes, videos."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from unspool.data.labelled import LabelledSet
from unspool.errors import DataError
from unspool.protocols.clustering import NOTHING, Score, pooled
from unspool.results import Json, write_json, written_whole
from unspool.verbs.clustering.task import WHOLE, Task, shown


def finish(task: Task, content: LabelledSet, jobs: Sequence[str], folder: Path, done: Sequence[Json]) -> str:
    """Write `scores.json` and `scores.csv` of the jobs that are done; returns the sentence to print."""
    table = score_table(task, content, done)
    table["missing"] = [name for name in jobs if name not in {entry["name"] for entry in done}]
    write_json(folder / "scores.json", table)
    with written_whole(folder / "scores.csv") as part:
        part.write_text(score_csv(table), "utf-8")
    return sentence(table)


def score_table(task: Task, content: LabelledSet, done: Sequence[Json]) -> Json:
    """The content of `scores.json`: means over units and seeds, their spread, classes, videos."""
    roles = {
        role: {name: pooled(parts) for name in task.protocols if (parts := _parts(done, role, name))}
        for role in sorted(task.models, reverse=True)
    }
    if not roles["model"]:
        raise DataError(NOTHING)
    seeds = len(next(iter(task.protocols.values())).seeds)
    return {
        "protocol": f"clustering, mean of {seeds} seeds",
        "data": content.card,
        "models": dict(task.models),
        "global": _means(roles["model"]),
        "table": {role: {n: _row(score) for n, score in scores.items()} for role, scores in roles.items()},
        "sequences": {entry["name"]: _of_video(task, entry) for entry in done if entry["name"] != WHOLE},
        "classes": _classes(roles, content, done),
        "shown": shown(task),
        "pictures": [picture for entry in done for picture in entry["pictures"]],
    }


def _of_video(task: Task, entry: Json) -> Json:
    return _means({n: pooled(parts) for n in task.protocols if (parts := _parts([entry], "model", n))})


def _parts(done: Sequence[Json], role: str, name: str) -> list[Score]:
    found = [entry["clustered"][role][name] for entry in done if entry["clustered"][role].get(name)]
    return [
        Score(
            each["name"],
            each["units"],
            tuple(each["bg"]),
            tuple(each["nobg"]),
            {int(k): v for k, v in each["classes"].items()},
            {int(k): v for k, v in each["having"].items()},
        )
        for each in found
    ]


def _means(scores: Mapping[str, Score]) -> Json:
    found: Json = {}
    for name, score in scores.items():
        row = _row(score)
        found |= {f"{name}-{ending}": row[ending] for ending in ("bg", "nobg")}
    return found


def _row(score: Score) -> Json:
    """Mean and standard deviation over seeds."""
    row: Json = {"units": score.units}
    for ending, value in score.summary().items():
        short = ending.removeprefix(f"{score.name}-")
        row[short] = None if np.isnan(value) else round(value, 6)
    return row


def _classes(
    roles: Mapping[str, Mapping[str, Score]], content: LabelledSet, done: Sequence[Json]
) -> list[Json]:
    """Every class with its share of pixels, the frames that have it, and its IoU by protocol and role."""
    source = [entry for entry in done if entry["name"] == WHOLE] or done
    ids = sorted({int(id_) for entry in source for id_ in entry["shares"]})
    counts = {i: np.sum([entry["shares"].get(str(i), [0, 0]) for entry in source], axis=0) for i in ids}
    total = max(1, sum(int(count[0]) for count in counts.values()))
    return [
        {
            "id": i,
            "name": content.classes.get(i, "background" if i == 0 else f"object {i}"),
            "share": round(int(counts[i][0]) / total, 6),
            "frames": int(counts[i][1]),
            "iou": {
                role: {name: round(s.classes[i], 6) for name, s in scores.items() if i in s.classes}
                for role, scores in roles.items()
            },
        }
        for i in ids
    ]


def score_csv(table: Json) -> str:
    """`scores.json` as a flat table."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["model", "protocol", "class", "units", "bg", "bg-sd", "nobg", "nobg-sd", "iou"])
    columns = ("units", "bg", "bg-sd", "nobg", "nobg-sd")
    for role, scores in table["table"].items():
        for name, row in scores.items():
            writer.writerow([table["models"][role], name, "all", *(row[k] for k in columns), ""])
            for of_class in table["classes"]:
                if name in of_class["iou"][role]:
                    cells = ["", "", "", "", "", of_class["iou"][role][name]]
                    writer.writerow([table["models"][role], name, of_class["name"], *cells])
    return out.getvalue()


def sentence(table: Json) -> str:
    """The result for people, one line per protocol."""
    lines = []
    for name, row in table["table"]["model"].items():
        text = f"{name}: bg {_percent(row, 'bg')}, nobg {_percent(row, 'nobg')}, {row['units']} units"
        if earlier := table["table"].get("before", {}).get(name):
            text += f" (before: bg {_percent(earlier, 'bg')}, nobg {_percent(earlier, 'nobg')})"
        lines.append(text)
    if table["missing"]:
        lines.append(f"without {', '.join(table['missing'])}")
    return "\n".join(lines)


def _percent(row: Json, ending: str) -> str:
    spread = row[f"{ending}-sd"]
    return f"{100 * row[ending]:.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")

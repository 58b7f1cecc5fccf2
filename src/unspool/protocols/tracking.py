"""Semi-supervised video object segmentation: label maps and truth of many sequences in, named scores out.

A protocol decides which frames count, what void is, how predictions are matched, and what is averaged over;
the name carries all of it (`docs/protocols.md`). Files are read one frame at a time.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from unspool.data.vos import LabelMap, label_map
from unspool.errors import DataError, ShapeError, UsageError
from unspool.metrics import (
    ObjectScores,
    Summary,
    davis16_allframes,
    davis16_official,
    davis17_semi,
    davis17_unsup,
    davis17_unsup_framewise,
    pooled_over_frames,
    pooled_over_objects,
    vos_late,
)

Json = dict[str, Any]


@dataclass(frozen=True)
class Protocol:
    """One sequence's measure, what sequences are averaged over, and what of a sequence is read."""

    score: Callable[[Iterable[LabelMap], Iterable[LabelMap]], ObjectScores]
    average: Callable[[Iterable[ObjectScores]], Summary]
    foreground: bool = False  # every id is one foreground: truth of DAVIS-2016
    ends: bool = True  # False: the first and the last frame are not scored, and may be missing


PROTOCOLS = {
    "davis17-semi": Protocol(davis17_semi, pooled_over_objects, ends=False),
    "davis17-unsup": Protocol(davis17_unsup, pooled_over_objects),
    "davis17-unsup-framewise": Protocol(davis17_unsup_framewise, pooled_over_objects),
    "davis16-official": Protocol(davis16_official, pooled_over_objects, foreground=True, ends=False),
    "davis16-allframes": Protocol(davis16_allframes, pooled_over_objects, foreground=True),
    "davis16-pooled": Protocol(davis16_allframes, pooled_over_frames, foreground=True),
    "vos-late": Protocol(vos_late, pooled_over_objects, ends=False),
    "vos-late-allframes": Protocol(partial(vos_late, skip_ends=False), pooled_over_objects),
}


def protocol_named(name: str) -> str:
    """`name`, if it is a protocol; UsageError listing them if not."""
    if name not in PROTOCOLS:
        raise UsageError(f"protocol '{name}' is unknown; there are {', '.join(PROTOCOLS)}")
    return name


@dataclass(frozen=True)
class SequenceScores:
    """What one sequence scored under a protocol."""

    name: str
    protocol: str
    objects: ObjectScores

    @property
    def summary(self) -> Summary:
        """Mean over the sequence's objects."""
        return PROTOCOLS[self.protocol].average([self.objects])


def score_sequence(
    name: str, prediction: Sequence[Path | None], truth: Sequence[Path], protocol: str
) -> SequenceScores:
    """Scores of a sequence's mask files against its truth, frame by frame.

    Raises DataError where a scored frame has no prediction, or as the official tool refuses; ShapeError
    where sizes differ. Both name the sequence.
    """
    rule = PROTOCOLS[protocol]
    predicted = _read(prediction, truth, rule)
    true = (label_map(path, merge=rule.foreground) for path in truth)
    try:
        return SequenceScores(name, protocol, rule.score(predicted, true))
    except (DataError, ShapeError) as error:
        raise type(error)(f"{name}: {error}") from error


def _read(prediction: Sequence[Path | None], truth: Sequence[Path], rule: Protocol) -> Iterator[LabelMap]:
    for index, path in enumerate(prediction):
        if path is not None and path.exists():
            yield label_map(path, merge=rule.foreground)
        elif not rule.ends and index in (0, len(prediction) - 1):
            yield np.zeros_like(label_map(truth[index]))  # not looked at
        else:
            raise DataError(f"no prediction for frame {truth[index].name}; every scored frame needs one")


def score_standing_still(
    name: str, truth: Sequence[Path], protocol: str, given: Iterable[tuple[int, LabelMap]]
) -> SequenceScores:
    """What the given masks score if they never move: the floor that tracking has to rise above.

    `given`: label maps and the numbers of the truth that they are of, the first at least.
    """
    rule = PROTOCOLS[protocol]
    starts = {
        number: (labels > 0).astype(np.uint8) if rule.foreground else labels for number, labels in given
    }

    def still() -> Iterator[LabelMap]:
        standing = np.zeros_like(starts[min(starts)])
        for index in range(len(truth)):
            if index in starts:
                standing = np.where(starts[index] > 0, starts[index], standing)
            yield standing

    true = (label_map(path, merge=rule.foreground) for path in truth)
    return SequenceScores(name, protocol, rule.score(still(), true))


# ------------------------------------------------------------------------------------------- reporting


def video_scores(scored: SequenceScores) -> Json:
    """The numbers that stand beside a video: protocol, J, F, J&F, 0..1."""
    summary = scored.summary
    return {
        "protocol": scored.protocol,
        "J&F": _rounded(summary.jf_mean),
        "J": _rounded(summary.j_mean),
        "F": _rounded(summary.f_mean),
    }


def curves(scored: SequenceScores, frames: int) -> Json:
    """J and F of every object for all `frames` of the video; None where the protocol does not score."""
    out: Json = {"J": {}, "F": {}}
    objects = scored.objects
    for measure, values in (("J", objects.j), ("F", objects.f)):
        for label, row in zip(objects.ids, values, strict=True):
            line: list[float | None] = [None] * frames
            for frame, value in zip(objects.frames, row.tolist(), strict=True):
                line[frame] = None if math.isnan(value) else round(value, 4)
            out[measure][str(label)] = line
    return out


def to_record(scored: SequenceScores) -> Json:
    """Every number of a sequence as plain JSON, exact, so that a later run need not score again."""
    objects = scored.objects
    return {
        "protocol": scored.protocol,
        "ids": list(objects.ids),
        "frames": list(objects.frames),
        "J": _exact(objects.j),
        "F": _exact(objects.f),
    }


def from_record(name: str, record: Json) -> SequenceScores:
    """The inverse of `to_record`."""
    shape = (len(record["ids"]), len(record["frames"]))
    j, f = (np.array(record[m], np.float64).reshape(shape) for m in ("J", "F"))
    objects = ObjectScores(tuple(record["ids"]), tuple(record["frames"]), j, f)
    return SequenceScores(name, record["protocol"], objects)


def _exact(values: np.ndarray) -> list[list[float | None]]:
    return [[None if math.isnan(v) else v for v in row] for row in values.tolist()]


def score_table(
    scored: Sequence[SequenceScores],
    protocol: str,
    still: Sequence[SequenceScores] = (),
    missing: Sequence[str] = (),
) -> Json:
    """The content of `scores.json`: the whole set, every sequence, every object."""
    average = PROTOCOLS[protocol].average
    table: Json = {
        "protocol": protocol,
        "missing": list(missing),  # sequences that failed: the average is not that of the whole set
        "global": _named(average(s.objects for s in scored)),
        "sequences": {s.name: _sequence(s) for s in scored},
    }
    if still:
        table["standing still"] = {
            "global": _named(average(s.objects for s in still)),
            "sequences": {s.name: _named(s.summary) for s in still},
        }
    return table


def ytvos_g(
    scored: Sequence[SequenceScores],
    categories: Mapping[str, Mapping[int, str]],
    seen: frozenset[str] | None,
) -> Json:
    """`ytvos-g`: J and F of objects of seen and of unseen categories, and the mean of all that there are.

    `categories`: by sequence and object; `seen`: those of the training set. The server's own list of frames
    is not public: an object counts from where the protocol counts it. Empty without categories.
    """
    if seen is None:
        return {}
    groups: dict[str, list[tuple[float, float]]] = {"seen": [], "unseen": []}
    for each in scored:
        for label, (j, f) in zip(each.objects.ids, each.objects.statistics(), strict=True):
            kind = categories.get(each.name, {}).get(label)
            if kind is not None:
                groups["seen" if kind in seen else "unseen"].append((j.mean, f.mean))
    means = {
        f"{measure}_{name}": float(np.mean([row[place] for row in rows]))
        for name, rows in groups.items()
        if rows
        for place, measure in enumerate("JF")
    }
    if not means:
        return {}
    counts = {f"objects_{name}": len(rows) for name, rows in groups.items()}
    return {"G": _rounded(float(np.mean(list(means.values())))), **{k: _rounded(v) for k, v in means.items()},
            **counts}  # fmt: skip


def _sequence(scored: SequenceScores) -> Json:
    objects = {}
    for label, (j, f) in zip(scored.objects.ids, scored.objects.statistics(), strict=True):
        row = Summary((j.mean + f.mean) / 2, *astuple(j), *astuple(f))
        objects[str(label)] = _named(row)
    return {**_named(scored.summary), "objects": objects}


def _named(summary: Summary) -> Json:
    return {name: _rounded(value) for name, value in summary.named().items()}


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)


def score_csv(table: Json) -> str:
    """`scores.json` as a flat table: one row per set, sequence and object."""
    columns = list(table["global"])
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["protocol", "sequence", "object", *columns])

    def row(sequence: str, label: str, values: Json) -> None:
        writer.writerow([table["protocol"], sequence, label, *(values[c] for c in columns)])

    for name, values in table["sequences"].items():
        for label, per_object in values["objects"].items():
            row(name, label, per_object)
        row(name, "all", values)
    row("all", "all", table["global"])
    return out.getvalue()


def sentence(table: Json) -> str:
    """The result in one line, for people."""
    numbers = table["global"]
    text = f"{table['protocol']}: " + ", ".join(
        f"{name} {100 * numbers[f'{name}-Mean']:.1f}" for name in ("J&F", "J", "F")
    )
    if "ytvos-g" in table:
        g = table["ytvos-g"]
        text += f"; ytvos-g of {g['objects_seen']} objects of seen and {g['objects_unseen']} of unseen "
        text += f"categories {100 * g['G']:.1f}"
    if "standing still" in table:
        text += f" (a mask that stands still: J&F {100 * table['standing still']['global']['J&F-Mean']:.1f})"
    if table["missing"]:
        done, missing = len(table["sequences"]), table["missing"]
        text += f"; over {done} of {done + len(missing)} sequences, without {', '.join(missing)}"
    return text

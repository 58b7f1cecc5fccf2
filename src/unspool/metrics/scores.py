"""What a sequence scored, and the tables that sequences are averaged into."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass

import numpy as np
from jaxtyping import Float64, Int64

from unspool.metrics.jf import Statistics, statistics


@dataclass(frozen=True, eq=False)
class ObjectScores:
    """J and F of every object of a sequence over the frames that the protocol scores.

    NaN marks frames that the protocol leaves out for an object. Small, and can be sent between processes.
    """

    ids: tuple[int, ...]  # of the true objects
    frames: tuple[int, ...]  # scored frames, counted from 0
    j: Float64[np.ndarray, "objects frames"]
    f: Float64[np.ndarray, "objects frames"]
    matched: Int64[np.ndarray, "objects frames"] | None = None  # predicted id, where the protocol chooses one

    def statistics(self) -> list[tuple[Statistics, Statistics]]:
        """(J, F) statistics of each object over the frames that count for it, in the order of `ids`."""
        return [
            (statistics(j[~np.isnan(j)]), statistics(f[~np.isnan(f)]))
            for j, f in zip(self.j, self.f, strict=True)
        ]

    def in_proposal_order(self) -> ObjectScores:
        """Rows as the official unsupervised tool prints them: numbered by matched proposal, not by object."""
        assert self.matched is not None, "only unsupervised protocols match proposals"
        order = np.argsort(self.matched, axis=0, kind="stable")
        j, f, matched = (np.take_along_axis(a, order, axis=0) for a in (self.j, self.f, self.matched))
        return ObjectScores(tuple(range(1, len(self.ids) + 1)), self.frames, j, f, matched)


def object_scores(ids: Sequence[int], frames: Mapping[int, Sequence[tuple[float, float]]]) -> ObjectScores:
    """From (J, F) of all objects for every scored frame."""
    table = np.array(list(frames.values()), np.float64).reshape(len(frames), len(ids), 2)
    j, f = np.ascontiguousarray(table.transpose(2, 1, 0))
    return ObjectScores(tuple(ids), tuple(frames), j, f)


# ------------------------------------------------------------------------------------- over sequences


@dataclass(frozen=True)
class Summary:
    """The seven numbers of the official table, 0..1; NaN where nothing was scored."""

    jf_mean: float
    j_mean: float
    j_recall: float
    j_decay: float
    f_mean: float
    f_recall: float
    f_decay: float

    def named(self) -> dict[str, float]:
        """With the column names of the official result file."""
        return dict(zip(COLUMNS, astuple(self), strict=True))


COLUMNS = ("J&F-Mean", "J-Mean", "J-Recall", "J-Decay", "F-Mean", "F-Recall", "F-Decay")


def pooled_over_objects(sequences: Iterable[ObjectScores]) -> Summary:
    """Mean over all objects of all sequences, each object counting once.

    On DAVIS-2016, where a sequence is one object, this is the mean over sequences.
    """
    rows = [(*astuple(j), *astuple(f)) for scores in sequences for j, f in scores.statistics()]
    # column by column, as the official tool does: its three decimals hang on the last bit of the sum
    means = [float(np.mean(column)) for column in zip(*rows, strict=True)] or [math.nan] * 6
    return Summary((means[0] + means[3]) / 2, *means)


def pooled_over_frames(sequences: Iterable[ObjectScores]) -> Summary:
    """Mean and recall over all scored frames of all sequences; decay has no meaning there (NaN).

    `davis16-pooled` is this of `davis16_allframes`.
    """
    scores = list(sequences)
    j, f = (_of_all_frames([s.j for s in scores]), _of_all_frames([s.f for s in scores]))
    return Summary((j.mean + f.mean) / 2, j.mean, j.recall, math.nan, f.mean, f.recall, math.nan)


def _of_all_frames(measures: list[Float64[np.ndarray, "_ _"]]) -> Statistics:
    values = np.concatenate([np.zeros(0), *(m.ravel() for m in measures)])
    return statistics(values[~np.isnan(values)])


# ------------------------------------------------------------------------------- the official result files


def official_global_csv(summary: Summary) -> str:
    """The text of the official tool's `global_results-SET.csv`."""
    named = summary.named()
    return ",".join(named) + "\n" + ",".join(_three_decimals(value) for value in named.values()) + "\n"


def official_per_sequence_csv(sequences: Iterable[tuple[str, ObjectScores]]) -> str:
    """The text of the official tool's `per-sequence_results-SET.csv`: one row per object.

    For the unsupervised task give `scores.in_proposal_order()`: the official rows follow the proposals.
    """
    lines = ["Sequence,J-Mean,F-Mean"]
    for name, scores in sequences:
        for number, (j, f) in enumerate(scores.statistics(), 1):
            lines.append(f"{name}_{number},{_three_decimals(j.mean)},{_three_decimals(f.mean)}")
    return "\n".join(lines) + "\n"


def _three_decimals(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"

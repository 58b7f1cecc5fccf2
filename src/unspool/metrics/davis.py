"""The protocols of video object segmentation: label maps of a sequence in, J and F per object and frame out.

Every protocol has its own name (`docs/protocols.md` says which published number is which). Prediction and
truth are iterables of label maps `[H, W]`, read in step, one frame at a time; 0 is background, 255 void
in truth.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from itertools import chain, zip_longest

import numpy as np
from jaxtyping import Float64
from scipy.optimize import linear_sum_assignment

from unspool.errors import DataError, ShapeError
from unspool.metrics.jf import (
    VOID,
    LabelMap,
    Statistics,
    f_of_pairs,
    j_of_pairs,
    statistics,
    without_void,
)

Maps = Iterable[LabelMap]
Pairs = Float64[np.ndarray, "p k"]
OFFICIAL_PROPOSALS, FRAMEWISE_PROPOSALS = 20, 300
EMPTY = VOID  # no mask holds it once void is cleared and proposals are counted


@dataclass(frozen=True, eq=False)
class ObjectScores:
    """J and F of every object of a sequence over the frames that the protocol scores.

    NaN marks frames that the protocol leaves out for an object.
    """

    ids: tuple[int, ...]  # of the true objects
    frames: tuple[int, ...]  # scored frames, counted from 0
    j: Float64[np.ndarray, "objects frames"]
    f: Float64[np.ndarray, "objects frames"]
    proposals: tuple[int, ...] = ()  # predicted id matched to each object, 0 for none (unsupervised only)

    def statistics(self) -> list[tuple[Statistics, Statistics]]:
        """(J, F) statistics of each object, in the order of `ids`."""
        return [(statistics(j), statistics(f)) for j, f in zip(self.j, self.f, strict=True)]

    def in_proposal_order(self) -> ObjectScores:
        """Rows as the official unsupervised tool prints them: by matched proposal, not by object."""
        order = np.argsort([p or FRAMEWISE_PROPOSALS + 1 for p in self.proposals], kind="stable")
        pick = [int(i) for i in order]
        return ObjectScores(
            tuple(self.ids[i] for i in pick),
            self.frames,
            self.j[pick],
            self.f[pick],
            tuple(self.proposals[i] for i in pick),
        )


# -------------------------------------------------------------------------------------------- DAVIS-2017


def davis17_semi(prediction: Maps, truth: Maps) -> ObjectScores:
    """`davis17-semi`: ids of truth frame 0, frames 2 to T-1, void in truth is background.

    A predicted id above the number of objects is refused (DataError), as the official tool does; one that
    is missing is an empty mask. Source: davis2017-evaluation: evaluation.py _evaluate_semisupervised.
    """
    rows, numbered = _Rows(), enumerate(_in_step(prediction, truth))
    first = next(numbered, None)
    ids = list(range(1, _without_void(first[1][1]).max(initial=0) + 1)) if first else []
    for index, (predicted, true) in _without_ends(chain([first], numbered) if first else []):
        if predicted.max(initial=0) > len(ids):
            raise DataError(
                f"frame {index} of the prediction holds id {predicted.max()}, but the truth has {len(ids)} "
                "objects; number objects as the first true mask does (255 is read as an id here)"
            )
        rows.add(index, *_paired(predicted, _without_void(true), ids))
    return rows.scores(tuple(ids))


def davis17_unsup(prediction: Maps, truth: Maps) -> ObjectScores:
    """`davis17-unsup`: all frames; one assignment of at most 20 proposals to the objects per sequence.

    The assignment maximises the mean of J and F over the sequence; proposals without an object cost
    nothing, objects without a proposal score against an empty mask; void is left out on both sides.
    Source: davis2017-evaluation: evaluation.py _evaluate_unsupervised.
    """
    j, f, objects = _proposal_scores(prediction, truth, OFFICIAL_PROPOSALS)
    rows, columns = linear_sum_assignment(-(np.nanmean(j, axis=2) + np.nanmean(f, axis=2)) / 2)
    matched = dict(zip(columns.tolist(), rows.tolist(), strict=True))
    order = [matched[o] for o in range(objects)]
    at = np.arange(objects)
    frames = tuple(range(j.shape[2]))
    ids = tuple(range(1, objects + 1))
    return ObjectScores(ids, frames, j[order, at], f[order, at], tuple(p + 1 for p in order))


def davis17_unsup_framewise(prediction: Maps, truth: Maps) -> ObjectScores:
    """`davis17-unsup-framewise`: as `davis17_unsup`, but assigned anew in every frame.

    Identity switches cost nothing, so scores are never below `davis17-unsup`. At most 300 proposals.
    Source: SSL-UVOS and SMTC: davis2017-evaluation/davis2017/evaluation.py.
    """
    j, f, objects = _proposal_scores(prediction, truth, FRAMEWISE_PROPOSALS)
    best_j, best_f = np.zeros((2, objects, j.shape[2]))
    for frame in range(j.shape[2]):
        rows, columns = linear_sum_assignment(-(j[:, :, frame] + f[:, :, frame]) / 2)
        best_j[columns, frame], best_f[columns, frame] = j[rows, columns, frame], f[rows, columns, frame]
    return ObjectScores(tuple(range(1, objects + 1)), tuple(range(j.shape[2])), best_j, best_f)


def _proposal_scores(
    prediction: Maps, truth: Maps, limit: int
) -> tuple[Float64[np.ndarray, "p k t"], Float64[np.ndarray, "p k t"], int]:
    """J and F of every proposal against every object and frame; as many proposals as objects at least."""
    frames: list[tuple[list[int], Pairs, Pairs]] = []
    objects = proposals = 0
    for index, pair in enumerate(_in_step(prediction, truth)):
        predicted, true = without_void(*pair)
        objects = objects if index else int(true.max(initial=0))
        proposals = max(proposals, int(predicted.max(initial=0)))
        if proposals > limit:
            raise DataError(
                f"frame {index} holds proposal {proposals}, the protocol allows {limit}; keep the {limit} "
                "largest and number them from 1"
            )
        present = sorted(set(np.unique(predicted).tolist()) - {0})
        pairs = [*present, EMPTY], list(range(1, objects + 1))
        frames.append((present, j_of_pairs(predicted, true, *pairs), f_of_pairs(predicted, true, *pairs)))
    shape = (max(proposals, objects), objects, len(frames))
    j, f = np.zeros(shape), np.zeros(shape)
    for index, (present, j_of_frame, f_of_frame) in enumerate(frames):
        rows = [i - 1 for i in present]
        for measure, values in ((j, j_of_frame), (f, f_of_frame)):
            measure[:, :, index] = values[-1]  # an absent proposal is an empty mask
            measure[rows, :, index] = values[:-1]
    return j, f, objects


# -------------------------------------------------------------------------------------------- DAVIS-2016


def davis16_official(prediction: Maps, truth: Maps) -> ObjectScores:
    """`davis16-official`: one foreground (every id, 255 included), frames 2 to T-1.

    Source: fperazzi/davis: python/lib/davis/dataset/loader.py, utils.py.
    """
    return _foreground(prediction, truth, inner=True)


def davis16_allframes(prediction: Maps, truth: Maps) -> ObjectScores:
    """`davis16-allframes` (and, pooled over all frames of all sequences, `davis16-pooled`): all T frames."""
    return _foreground(prediction, truth, inner=False)


def _foreground(prediction: Maps, truth: Maps, *, inner: bool) -> ObjectScores:
    rows = _Rows()
    numbered = enumerate(_in_step(prediction, truth))
    for index, (predicted, true) in _without_ends(numbered) if inner else numbered:
        one, other = ((labels != 0).astype(np.uint8) for labels in (predicted, true))
        rows.add(index, j_of_pairs(one, other, [1], [1])[0], f_of_pairs(one, other, [1], [1])[0])
    return rows.scores((1,))


# ------------------------------------------------------------------------------------- objects that come late


def vos_late(prediction: Maps, truth: Maps, *, skip_ends: bool = True) -> ObjectScores:
    """`vos-late`: every id of the truth, from its first appearance in truth or prediction on.

    Ids are kept, gaps included; `skip_ends` leaves out the first and the last frame, and what appears only
    there. Void (255) is left out on both sides, which the source does not do.
    Source: hkchengrex/vos-benchmark: vos_benchmark/evaluator.py.
    """
    frames: list[int] = []
    seen: list[int] = []  # ids of truth or prediction, in the order of their appearance
    true_ids: set[int] = set()
    values: dict[int, dict[int, tuple[float, float]]] = {}  # id -> frame -> J, F
    numbered = enumerate(_in_step(prediction, truth))
    for index, pair in _without_ends(numbered) if skip_ends else numbered:
        predicted, true = without_void(*pair)
        frames.append(index)
        present = (set(np.unique(true).tolist()) | set(np.unique(predicted).tolist())) - {0}
        seen += sorted(present - set(seen))
        true_ids |= set(np.unique(true).tolist()) - {0}
        j, f = _paired(predicted, true, seen)
        for place, label in enumerate(seen):
            values.setdefault(label, {})[index] = (float(j[place]), float(f[place]))
    ids = tuple(sorted(true_ids))
    j_all, f_all = np.full((2, len(ids), len(frames)), math.nan)
    for row, label in enumerate(ids):
        for column, frame in enumerate(frames):
            if frame in values[label]:
                j_all[row, column], f_all[row, column] = values[label][frame]
    return ObjectScores(ids, tuple(frames), j_all, f_all)


# -------------------------------------------------------------------------------------- over sequences


@dataclass(frozen=True)
class Summary:
    """The seven numbers of the official table, 0..1."""

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
    rows = [row for scores in sequences for row in scores.statistics()]
    return _summary(rows)


def pooled_over_frames(sequences: Iterable[ObjectScores]) -> Summary:
    """`davis16-pooled`: mean and recall over all frames of all sequences; decay has no meaning (NaN)."""
    scores = list(sequences)
    j, f = (np.concatenate([getattr(s, name).ravel() for s in scores]) for name in ("j", "f"))
    j_mean, f_mean = float(np.nanmean(j)), float(np.nanmean(f))
    nan = math.nan
    return Summary(
        (j_mean + f_mean) / 2, j_mean, float(np.mean(j > 0.5)), nan, f_mean, float(np.mean(f > 0.5)), nan
    )


def _summary(rows: list[tuple[Statistics, Statistics]]) -> Summary:
    j, f = (
        [float(np.mean([getattr(row[which], name) for row in rows])) for name in ("mean", "recall", "decay")]
        for which in (0, 1)
    )
    return Summary((j[0] + f[0]) / 2, j[0], j[1], j[2], f[0], f[1], f[2])


def official_global_csv(summary: Summary) -> str:
    """The text of the official tool's `global_results-SET.csv`."""
    named = summary.named()
    return ",".join(named) + "\n" + ",".join(f"{value:.3f}" for value in named.values()) + "\n"


def official_per_sequence_csv(sequences: Iterable[tuple[str, ObjectScores]]) -> str:
    """The text of the official tool's `per-sequence_results-SET.csv`: one row per object.

    For the unsupervised task give `scores.in_proposal_order()`: the official rows follow the proposals.
    """
    lines = ["Sequence,J-Mean,F-Mean"]
    for name, scores in sequences:
        for number, (j, f) in enumerate(scores.statistics(), 1):
            lines.append(f"{name}_{number},{j.mean:.3f},{f.mean:.3f}")
    return "\n".join(lines) + "\n"


# --------------------------------------------------------------------------------------------- pieces


class _Rows:
    """Collects one row of J and F per frame."""

    def __init__(self) -> None:
        self._frames: list[int] = []
        self._j: list[Float64[np.ndarray, " k"]] = []
        self._f: list[Float64[np.ndarray, " k"]] = []

    def add(self, frame: int, j: Float64[np.ndarray, " k"], f: Float64[np.ndarray, " k"]) -> None:
        self._frames.append(frame)
        self._j.append(j)
        self._f.append(f)

    def scores(self, ids: tuple[int, ...]) -> ObjectScores:
        j, f = (np.stack(rows, axis=1) if rows else np.zeros((len(ids), 0)) for rows in (self._j, self._f))
        return ObjectScores(ids, tuple(self._frames), j, f)


def _without_void(true: LabelMap) -> LabelMap:
    return np.where(true == VOID, 0, true).astype(np.uint8)


def _paired(
    predicted: LabelMap, true: LabelMap, ids: list[int]
) -> tuple[Float64[np.ndarray, " k"], Float64[np.ndarray, " k"]]:
    """J and F of every id against the same id."""
    j, f = j_of_pairs(predicted, true, ids, ids), f_of_pairs(predicted, true, ids, ids, paired=True)
    return j.diagonal().copy(), f.diagonal().copy()


def _in_step(prediction: Maps, truth: Maps) -> Iterator[tuple[LabelMap, LabelMap]]:
    for index, (predicted, true) in enumerate(zip_longest(prediction, truth)):
        if predicted is None or true is None:
            which, other = ("prediction", "truth") if predicted is None else ("truth", "prediction")
            raise ShapeError(f"{which} ends after {index} frames, {other} goes on; score the same frames")
        yield predicted, true


def _without_ends(
    items: Iterable[tuple[int, tuple[LabelMap, LabelMap]]],
) -> Iterator[tuple[int, tuple[LabelMap, LabelMap]]]:
    """All but the first and the last, holding back one."""
    waiting = None
    for number, item in enumerate(items):
        if waiting is not None:
            yield waiting
        waiting = item if number else None

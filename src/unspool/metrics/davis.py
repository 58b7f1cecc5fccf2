"""Video object segmentation, many objects: DAVIS-2017 in its three readings, and `vos-late`.

Every protocol has its own name, which carries all that changes the number: frames, void, matching. Prediction
and truth are iterables of label maps [H, W], read in step, one frame at a time: 0 is background, 255 void in
truth. What comes back is small, so sequences can be scored in processes of their own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64, Int64

from unspool.errors import DataError
from unspool.metrics.assignment import cheapest
from unspool.metrics.jf import FramePair, frame_pair
from unspool.metrics.labels import LabelMaps, in_step, without_void
from unspool.metrics.scores import ObjectScores, object_scores

OFFICIAL_PROPOSALS, FRAMEWISE_PROPOSALS = 20, 300

# -------------------------------------------------------------------------------------- semi-supervised


def davis17_semi(prediction: LabelMaps, truth: LabelMaps) -> ObjectScores:
    """`davis17-semi`: objects 1 to the greatest id of the first true mask, frames 2 to T-1.

    Void in truth is background, later ids are not scored. A predicted id above the number of objects is
    refused (DataError), as by the official tool; a missing one is an empty mask. Both empty: J = F = 1.
    Source: davis2017-evaluation: davis2017/evaluation.py _evaluate_semisupervised.
    """
    objects = range(0)
    scores: dict[int, list[tuple[float, float]]] = {}
    for index, at_end, (predicted, with_void) in in_step(prediction, truth):
        _, true = without_void(with_void, with_void)
        if index == 0:
            objects = range(1, int(true.max(initial=0)) + 1)
        if at_end:
            continue
        if predicted.max(initial=0) > len(objects):
            raise DataError(
                f"frame {index} of the prediction holds id {predicted.max()}, but the first true mask has "
                f"{len(objects)} objects; number predictions as that mask does (255 is read as an id here)"
            )
        pair = frame_pair(predicted, true)
        scores[index] = [(pair.j(i, i), pair.f(i, i)) for i in objects]
    return object_scores(objects, scores)


def vos_late(prediction: LabelMaps, truth: LabelMaps, *, skip_ends: bool = True) -> ObjectScores:
    """`vos-late`: every id of the truth, from its first appearance in truth or prediction on.

    Ids are kept, gaps included; `skip_ends` leaves out the first and the last frame, and what appears only
    there. Both empty: J = F = 1. Void (255) is cleared on both sides, which the source does not do.
    Source: hkchengrex/vos-benchmark: vos_benchmark/evaluator.py.
    """
    scores: dict[int, dict[int, tuple[float, float]]] = {}  # frame -> id that has appeared -> J, F
    objects: set[int] = set()
    appeared: set[int] = set()
    for index, at_end, maps in in_step(prediction, truth):
        if at_end and skip_ends:
            continue
        pair = frame_pair(*without_void(*maps))
        objects |= set(pair.true.areas) - {0}
        appeared |= objects | set(pair.predicted.areas) - {0}
        scores[index] = {i: (pair.j(i, i), pair.f(i, i)) for i in appeared}
    ids, not_yet = sorted(objects), (math.nan, math.nan)
    return object_scores(ids, {t: [row.get(i, not_yet) for i in ids] for t, row in scores.items()})


# ----------------------------------------------------------------------------------------- unsupervised


def davis17_unsup(prediction: LabelMaps, truth: LabelMaps) -> ObjectScores:
    """`davis17-unsup`: all frames; one assignment of at most 20 proposals to the objects per sequence.

    The assignment maximises the mean of J and F over the sequence; proposals without an object cost
    nothing, objects without a proposal score against an empty mask; void is cleared on both sides.
    More proposals are refused (DataError), as by the official tool.
    Source: davis2017-evaluation: davis2017/evaluation.py _evaluate_unsupervised.
    """
    scores = _proposals(prediction, truth, OFFICIAL_PROPOSALS)
    frames = [scores.of_frame(t) for t in range(len(scores))]
    j, f = (np.stack([frame[measure] for frame in frames], axis=-1) for measure in (0, 1))
    rows, columns = cheapest(-(j.mean(axis=2) + f.mean(axis=2)) / 2)
    row_of = rows[np.argsort(columns)]
    matched = np.repeat(row_of[:, None] + 1, len(scores), axis=1)
    at = np.arange(len(row_of))
    return scores.matched(j[row_of, at], f[row_of, at], matched)


def davis17_unsup_framewise(prediction: LabelMaps, truth: LabelMaps) -> ObjectScores:
    """`davis17-unsup-framewise`: as `davis17_unsup`, but assigned anew in every frame; 300 proposals.

    Identity switches cost nothing, so J&F is never below that of `davis17-unsup`.
    Source: SSL-UVOS and SMTC: davis2017-evaluation/davis2017/evaluation.py.
    """
    scores = _proposals(prediction, truth, FRAMEWISE_PROPOSALS)
    j, f = np.zeros((2, scores.objects, len(scores)))
    matched = np.zeros((scores.objects, len(scores)), np.int64)
    for frame in range(len(scores)):
        j_of_pairs, f_of_pairs = scores.of_frame(frame)
        rows, columns = cheapest(-(j_of_pairs + f_of_pairs) / 2)
        j[columns, frame], f[columns, frame] = j_of_pairs[rows, columns], f_of_pairs[rows, columns]
        matched[columns, frame] = rows + 1
    return scores.matched(j, f, matched)


@dataclass(eq=False)
class _Proposals:
    """J and F of every proposal against every object, frame by frame; only proposals present are stored."""

    objects: int = 0
    proposals: int = 0  # greatest id of the prediction, void included
    present: list[list[int]] = field(default_factory=list)  # per frame: proposals in it
    j: list[Float64[np.ndarray, "p k"]] = field(default_factory=list)  # per frame: present, then an empty one
    f: list[Float64[np.ndarray, "p k"]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.present)

    def add(self, pair: FramePair) -> None:
        """Score one more frame."""
        present = [i for i in pair.predicted.areas if i]
        rows = [*present, max(present, default=0) + 1]  # the last one is in no pixel
        objects = range(1, self.objects + 1)
        self.present.append(present)
        for measure, of_pair in ((self.j, pair.j), (self.f, pair.f)):
            scores = [[of_pair(p, o) for o in objects] for p in rows]
            measure.append(np.array(scores).reshape(len(rows), len(objects)))

    def of_frame(self, frame: int) -> tuple[Float64[np.ndarray, "p k"], Float64[np.ndarray, "p k"]]:
        """J and F of all proposals; there are at least as many as objects, the added ones empty."""
        row_of = np.full(max(self.proposals, self.objects), len(self.present[frame]))
        row_of[np.array(self.present[frame], int) - 1] = np.arange(len(self.present[frame]))
        return self.j[frame][row_of], self.f[frame][row_of]

    def matched(
        self,
        j: Float64[np.ndarray, "k t"],
        f: Float64[np.ndarray, "k t"],
        proposals: Int64[np.ndarray, "k t"],
    ) -> ObjectScores:
        """What the objects scored with the proposals chosen for them."""
        return ObjectScores(tuple(range(1, self.objects + 1)), tuple(range(len(self))), j, f, proposals)


def _proposals(prediction: LabelMaps, truth: LabelMaps, limit: int) -> _Proposals:
    """J and F of all proposals and objects; DataError for a proposal above `limit`."""
    scores = _Proposals()
    for index, _, (predicted, true) in in_step(prediction, truth):
        scores.proposals = max(scores.proposals, int(predicted.max(initial=0)))
        if scores.proposals > limit:
            raise DataError(
                f"frame {index} holds proposal {scores.proposals}, the protocol allows {limit}; keep the "
                f"{limit} largest and number them from 1"
            )
        pair = frame_pair(*without_void(predicted, true))
        scores.objects = scores.objects if index else int(pair.true.labels.max(initial=0))
        scores.add(pair)
    return scores

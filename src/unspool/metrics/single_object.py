"""Video object segmentation, one foreground: DAVIS-2016, SegTrack-v2, FBMS-59, and clusters picked by truth.

Truth is foreground wherever it is not 0 (255 included). Label maps are read as in `davis`.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from jaxtyping import Int64, UInt8

from unspool.metrics.jf import frame_pair
from unspool.metrics.labels import LabelMap, LabelMaps, check_sizes, in_step, paired
from unspool.metrics.scores import ObjectScores, object_scores

# ------------------------------------------------------------------------------- every id is foreground


def davis16_official(prediction: LabelMaps, truth: LabelMaps) -> ObjectScores:
    """`davis16-official`: every id is foreground, frames 2 to T-1; both empty: J = F = 1.

    Source: fperazzi/davis: python/lib/davis/dataset/loader.py, utils.py.
    """
    inner = ((index, pair) for index, at_end, pair in in_step(prediction, truth) if not at_end)
    return object_scores([1], {index: [_scores(*pair)] for index, pair in inner})


def davis16_allframes(prediction: LabelMaps, truth: LabelMaps) -> ObjectScores:
    """`davis16-allframes` (and, pooled over all frames of all sequences, `davis16-pooled`): all T frames."""
    return object_scores([1], {index: [_scores(*pair)] for index, _, pair in in_step(prediction, truth)})


def segtrack_fbms(prediction: LabelMaps, truth: Iterable[LabelMap | None]) -> ObjectScores:
    """`segtrack-fbms`: `davis16-allframes` on annotated frames; truth is None in the others.

    All objects of a frame are one foreground. Which prediction belongs to which true frame, and resizing to
    the truth's size (nearest), is the caller's. Source: SSL-UVOS: src/data.py (it has no scorer).
    """
    scores: dict[int, list[tuple[float, float]]] = {}
    for index, predicted, true in paired(prediction, truth):
        if true is not None:
            check_sizes(predicted, true, f"frame {index}: ")
            scores[index] = [_scores(predicted, true)]
    return object_scores([1], scores)


def _scores(predicted: LabelMap, true: LabelMap) -> tuple[float, float]:
    pair = frame_pair(_foreground(predicted), _foreground(true))
    return pair.j(1, 1), pair.f(1, 1)


def _foreground(labels: LabelMap) -> UInt8[np.ndarray, "h w"]:
    return np.asarray(labels != 0, np.uint8)


# -------------------------------------------------------------------------------- truth picks the cluster


def single_object_oracle_frame(prediction: LabelMaps, truth: LabelMaps) -> ObjectScores:
    """`single-object-oracle-frame`: the cluster with the best J, chosen by the truth anew in every frame.

    Every id of the prediction is a cluster, 0 too; one that is absent from the frame is an empty mask. Ties
    go to the lowest id. All frames. Source: BA, Tables 1 and 7, read literally; no scorer was released.
    """
    scores = _cluster_scores(prediction, truth)
    return _picked(scores, scores.j.argmax(axis=0))


def single_object_oracle_video(prediction: LabelMaps, truth: LabelMaps) -> ObjectScores:
    """`single-object-oracle-video`: as `single_object_oracle_frame`, with one cluster for all frames.

    It is the one with the best mean J; ties go to the lowest id.
    """
    scores = _cluster_scores(prediction, truth)
    return _picked(scores, np.full(len(scores.frames), scores.j.mean(axis=1).argmax()))


def _cluster_scores(prediction: LabelMaps, truth: LabelMaps) -> ObjectScores:
    """Of every cluster of the sequence against the foreground; `ids` are the clusters'."""
    present: list[dict[int, tuple[float, float]]] = []  # per frame: cluster in it -> J, F
    absent: list[tuple[float, float]] = []  # per frame: J, F of a cluster that is not in it
    for _, _, (predicted, true) in in_step(prediction, truth):
        pair = frame_pair(predicted, _foreground(true))
        clusters = list(pair.predicted.areas)
        nowhere = max(clusters, default=0) + 1
        present.append({i: (pair.j(i, 1), pair.f(i, 1)) for i in clusters})
        absent.append((pair.j(nowhere, 1), pair.f(nowhere, 1)))
    ids = sorted(set().union(*present))
    frames = [[row.get(i, empty) for i in ids] for row, empty in zip(present, absent, strict=True)]
    return object_scores(ids, dict(enumerate(frames)))


def _picked(scores: ObjectScores, choice: Int64[np.ndarray, " frames"]) -> ObjectScores:
    """The chosen row of every frame, as scores of the one object."""
    at = choice, np.arange(len(choice))
    matched = np.array(scores.ids)[None, choice]
    return ObjectScores((1,), scores.frames, scores.j[at][None], scores.f[at][None], matched)

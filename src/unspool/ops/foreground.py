"""One foreground, chosen without truth: by where clusters stand, how they move and what is attended to.

Label maps `[H, W]` of one video: ids are clusters, 0 is nobody. The rule is ours; it never looks at truth.

  border contact   with the frame's border; little speaks for an object
  motion           apart from the camera, over the frame's mean (`ops/motion.py`); much speaks for an object
  class attention  of a ViT's class token, over the frame's mean; much speaks for an object
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Float, Float64, Int64, Integer

LabelMap = Integer[np.ndarray, "h w"]
ByCluster = Float64[np.ndarray, " ids"]
Totals = Float64[np.ndarray, "2 ids"]  # by id: the sum over its tokens, and their number
SMALLEST, LARGEST = 0.01, 0.6  # share of the video that a foreground covers (ours)
SIGNS = {
    "border contact": 1,
    "motion": -1,
    "class attention": -1,
}  # makes the best of each the lowest


# --------------------------------------------------------------------------------------------- the cues


def border_contact(frames: Iterable[LabelMap]) -> ByCluster:
    """Pixels of every id on the frame's border, over the root of its area, summed over the video.

    Near 0 for what stands free, 1 and above for a ground. NaN where an id is nowhere, and for 0.
    Source: Zhu et al., Saliency Optimization from Robust Background Detection, CVPR 2014, Eq. 3; summed over
    frames by us.
    """
    on_border, roots = np.zeros((2, 0))
    for frame in frames:
        rim = np.concatenate([frame[0], frame[-1], frame[1:-1, 0], frame[1:-1, -1]])
        counts = np.bincount(frame.ravel())
        missing = max(len(counts) - len(roots), 0)
        on_border, roots = np.pad(on_border, (0, missing)), np.pad(roots, (0, missing))
        on_border[: len(counts)] += np.bincount(rim.ravel(), minlength=len(counts))
        roots[: len(counts)] += np.sqrt(counts)
    contact = np.where(roots > 0, on_border / np.maximum(roots, 1), np.nan)
    contact[:1] = np.nan
    return contact


def with_values(
    totals: Totals, labels: Integer[np.ndarray, "t h w"], values: Float[np.ndarray, "t h w"]
) -> Float64[np.ndarray, "2 more"]:
    """The totals and those of more frames. Values that are NaN count nowhere."""
    for frame, of_frame in zip(labels, values, strict=True):
        told = ~np.isnan(of_frame)
        ids = max(totals.shape[1], int(frame.max(initial=-1)) + 1)
        totals = np.pad(totals, ((0, 0), (0, ids - totals.shape[1])))
        totals[0] += np.bincount(frame[told], of_frame[told], minlength=ids)
        totals[1] += np.bincount(frame[told], minlength=ids)
    return totals


def means(totals: Totals) -> ByCluster:
    """The mean over the tokens of each id; NaN where there is none."""
    return np.where(totals[1] > 0, totals[0] / np.maximum(totals[1], 1), np.nan)


# ---------------------------------------------------------------------------------------------- the rule


def standing_out(cues: Mapping[str, ByCluster], areas: Int64[np.ndarray, " ids"], video: int) -> int:
    """The id of a single object, chosen without truth: the best mean rank over the cues that there are.

    Candidates cover 1 to 60 % of the video (where none does, all are); the larger on ties, then the lower;
    0 if there is no cluster at all. `cues`: of names in SIGNS, for every id; what a cue says nothing of comes
    last. `areas`: pixels of each id in the whole video; `video`: of all together.
    """
    candidates = _fitting(areas, video)
    ranks = sum((ranks_of(SIGNS[name] * cue[candidates]) for name, cue in cues.items()), np.zeros(1))
    order = np.lexsort((candidates, -areas[candidates], np.broadcast_to(ranks, candidates.shape)))
    return int(candidates[order[0]]) if len(order) else 0


def ranks_of(values: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """How many are below each, and half of the others that are the same; NaN is above all."""
    _, place, counts = np.unique(np.nan_to_num(values, nan=np.inf), return_inverse=True, return_counts=True)
    mean: Float64[np.ndarray, " m"] = np.cumsum(counts) - (counts + 1) / 2
    return mean[place]


def _fitting(areas: Int64[np.ndarray, " ids"], video: int) -> Int64[np.ndarray, " n"]:
    """Ids that cover 1 to 60 % of the video; all that are anywhere if none does. Never 0."""
    there = areas > 0
    there[:1] = False
    fits = there & (areas >= SMALLEST * video) & (areas <= LARGEST * video)
    return np.flatnonzero(fits if fits.any() else there)

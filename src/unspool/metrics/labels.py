"""Label maps: what their ids mean, and how those of a sequence are read side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import zip_longest
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from jaxtyping import Integer

from unspool.errors import DataError, ShapeError

LabelMap = Integer[np.ndarray, "h w"]  # 0 = background, 255 = void in truth
# Of a sequence, in order; read once, one frame at a time. Sizes are compared then, pair by pair.
LabelMaps = Iterable[Integer[np.ndarray, "_ _"]]
P = TypeVar("P")
T = TypeVar("T")

VOID = 255


def without_void(prediction: LabelMap, truth: LabelMap) -> tuple[LabelMap, LabelMap]:
    """Both label maps with the truth's void pixels turned into background."""
    void = truth == VOID
    if not void.any():  # the usual case: nothing to copy
        return prediction, truth
    return np.where(void, 0, prediction), np.where(void, 0, truth)


def in_step(prediction: LabelMaps, truth: LabelMaps) -> Iterator[tuple[int, bool, tuple[LabelMap, LabelMap]]]:
    """(index, whether it is the first or the last, prediction and truth) of each frame, read one ahead.

    Raises ShapeError where sizes or lengths differ, DataError where there are no frames.
    """
    waiting = None
    for index, predicted, true in paired(prediction, truth):
        check_sizes(predicted, true, f"frame {index}: ")
        if waiting is not None:
            yield index - 1, index == 1, waiting
        waiting = predicted, true
    assert waiting is not None, "no frames are an error already"
    yield index, True, waiting


def paired(prediction: Iterable[P], truth: Iterable[T]) -> Iterator[tuple[int, P, T]]:
    """Both with their index; ShapeError where one goes on after the other, DataError where both are empty."""
    end = object()
    both = zip_longest(prediction, truth, fillvalue=end)
    index = -1
    for index, (predicted, true) in enumerate(both):
        if predicted is end or true is end:
            longer = index + 1 + sum(1 for _ in both)
            lengths = (index, longer) if predicted is end else (longer, index)
            raise ShapeError(
                f"prediction has {lengths[0]} frames, truth {lengths[1]}; both must be of the same frames"
            )
        yield index, predicted, true  # type: ignore[misc]  # not the fill value
    if index < 0:
        raise DataError("prediction and truth hold no frames; give the label maps of one sequence")


def check_sizes(prediction: npt.NDArray[Any], truth: npt.NDArray[Any], where: str = "") -> None:
    """Raises ShapeError, its message opened by `where`, unless both are [H, W] of one size."""
    if prediction.ndim != 2 or prediction.shape != truth.shape:
        shapes = ("x".join(map(str, labels.shape)) for labels in (prediction, truth))
        raise ShapeError(
            f"{where}prediction is {next(shapes)}, truth is {next(shapes)}; both must be HxW of one size "
            "(resize predictions to the truth's, nearest)"
        )

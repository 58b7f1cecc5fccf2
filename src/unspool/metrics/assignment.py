"""One-to-one assignment."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64


def cheapest(
    cost: Float64[np.ndarray, "rows columns"],
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Rows, ascending, and their columns: the one-to-one choice of the smallest sum.

    The references call the same routine on the same matrices, so that ties fall alike.
    """
    from scipy.optimize import linear_sum_assignment  # noqa: PLC0415  # slower than all else to import

    rows, columns = linear_sum_assignment(cost)
    return rows, columns

"""Plain forms of `unspool.ops.motion`: one token, one step after another."""

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float64]


def plain_steps(before: Image, after: Image) -> NDArray[np.int64]:
    """(x, y) in px that each token (4 px) of images [c, y, x] has moved: least cost within 6 px."""
    height, width = after.shape[1:]
    steps = [(dx, dy) for dy in range(-6, 7) for dx in range(-6, 7)]
    found = np.zeros((2, height // 4, width // 4), np.int64)
    for row in range(height // 4):
        for column in range(width // 4):
            costs = [plain_cost(before, after, row, column, dy, dx) for dx, dy in steps]
            found[:, row, column] = steps[int(np.argmin(costs))]
    return found


def plain_cost(before: Image, after: Image, row: int, column: int, dy: int, dx: int) -> float:
    """Mean absolute difference over the 8 x 8 px around a token, of those that were in the picture."""
    height, width = after.shape[1:]
    differences, pixels = [], 0
    for y in range(4 * row - 2, 4 * row + 6):
        for x in range(4 * column - 2, 4 * column + 6):
            if 0 <= y < height and 0 <= x < width:
                pixels += 1
                if 0 <= y - dy < height and 0 <= x - dx < width:
                    differences.append(np.abs(after[:, y, x] - before[:, y - dy, x - dx]).mean())
    if 2 * len(differences) < pixels:
        return float("inf")
    return float(np.mean(differences)) + 1e-4 * float(np.hypot(dx, dy))

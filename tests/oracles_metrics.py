"""The metrics as their formulas read, for small masks: slow, literal, one mask at a time."""

import math
from itertools import permutations

import numpy as np

from unspool.metrics.outlines import WORD, Bits, outline
from unspool.metrics.runs import joint_runs


def boundary(mask: np.ndarray) -> np.ndarray:
    """(s xor E) or (s xor S) or (s xor SE); last row only E, last column only S, corner never."""
    height, width = mask.shape
    out = np.zeros(mask.shape, bool)
    for y in range(height):
        for x in range(width):
            neighbours = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
            inside = [mask[n] for n in neighbours if n[0] < height and n[1] < width]
            out[y, x] = any(n != mask[y, x] for n in inside)
    return out


def dilated(mask: np.ndarray, radius: int) -> np.ndarray:
    """Every pixel at most `radius` from a set one."""
    y, x = np.nonzero(mask)
    rows, columns = np.indices(mask.shape)
    squared = (rows[..., None] - y) ** 2 + (columns[..., None] - x) ** 2
    return (squared <= radius**2).any(-1)


def jaccard(prediction: np.ndarray, truth: np.ndarray, void: np.ndarray | None = None) -> float:
    kept = np.ones(truth.shape, bool) if void is None else ~void
    union = ((prediction | truth) & kept).sum()
    return 1.0 if union == 0 else (prediction & truth & kept).sum() / union


def boundary_f(
    prediction: np.ndarray, truth: np.ndarray, void: np.ndarray | None = None, radius: int | None = None
) -> float:
    if void is not None:
        prediction, truth = prediction & ~void, truth & ~void
    radius = math.ceil(0.008 * math.hypot(*truth.shape)) if radius is None else radius
    b_p, b_g = boundary(prediction), boundary(truth)
    if not b_p.any() or not b_g.any():
        return float(not b_p.any() and not b_g.any())
    precision = (b_p & dilated(b_g, radius)).sum() / b_p.sum()
    recall = (b_g & dilated(b_p, radius)).sum() / b_g.sum()
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def best_assignment(scores: np.ndarray) -> float:
    """Greatest sum over one-to-one choices of rows (at least as many as columns), by trying them all."""
    columns = range(scores.shape[1])
    return max(scores[list(rows), columns].sum() for rows in permutations(range(len(scores)), len(columns)))


def adjusted_rand_index(prediction: np.ndarray, truth: np.ndarray) -> float:
    """From the definition over pairs of elements, counted one by one."""
    same_p = prediction[:, None] == prediction
    same_t = truth[:, None] == truth
    off_diagonal = ~np.eye(len(truth), dtype=bool)
    both, of_p, of_t = ((m & off_diagonal).sum() for m in (same_p & same_t, same_p, same_t))
    expected = of_p * of_t / max(off_diagonal.sum(), 1)
    greatest = (of_p + of_t) / 2
    return 1.0 if greatest == expected else (both - expected) / (greatest - expected)


# ------------------------------------------------- what the package's bits are, as a mask of the frame


def unpacked(bits: Bits, top: int, word: int, shape: tuple[int, int]) -> np.ndarray:
    """Bits that start at row `top` and column 64 * `word`, as a mask of a frame of `shape`."""
    pixels = np.unpackbits(bits.astype("<u8").view(np.uint8), axis=1, bitorder="little").astype(bool)
    rows, columns = np.nonzero(pixels)
    rows, columns = rows + top, columns + word * WORD
    inside = (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1])
    out = np.zeros(shape, bool)
    out[rows[inside], columns[inside]] = True
    return out


def found_boundary(mask: np.ndarray, radius: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The package's boundary of a mask, and what it takes to be near it."""
    labels = mask.astype(np.uint8)
    boxes = (runs := joint_runs(labels, labels)).boxes(runs.true)
    if 1 not in boxes:
        return np.zeros(mask.shape, bool), np.zeros(mask.shape, bool)
    found = outline(labels, 1, boxes[1], radius)
    return (
        unpacked(found.edge, found.top, found.word, mask.shape),
        unpacked(found.near, found.top - radius, found.word, mask.shape),
    )

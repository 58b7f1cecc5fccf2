"""The metrics as their formulas read, for small masks: slow, literal, one mask at a time."""

import math
from itertools import permutations, product

import numpy as np
from scipy.optimize import linear_sum_assignment

from unspool.metrics.outlines import NOWHERE, WORD, Bits, Outline, outline
from unspool.metrics.runs import joint_runs


def boundary(mask: np.ndarray) -> np.ndarray:
    """(s xor E) or (s xor S) or (s xor SE); beyond the frame everything is as its edge."""
    beyond = np.pad(mask, ((0, 1), (0, 1)), "edge")
    return (mask ^ beyond[:-1, 1:]) | (mask ^ beyond[1:, :-1]) | (mask ^ beyond[1:, 1:])


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


def outlines(labels: np.ndarray, radius: int) -> list[Outline]:
    """The package's outlines of all objects of a label map, by id."""
    boxes = (runs := joint_runs(labels, labels)).boxes(runs.true)
    return [outline(labels, label, box, radius) for label, box in boxes.items() if label]


def found_boundary(mask: np.ndarray, radius: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The package's boundary of a mask, and what it takes to be near it."""
    (found,) = outlines(mask.astype(np.uint8), radius) or [NOWHERE]
    return (
        unpacked(found.edge, found.top, found.word, mask.shape),
        unpacked(found.near, found.top - radius, found.word, mask.shape),
    )


# --------------------------------------------------------------------------------- random label maps


def blobs(
    rng: np.random.Generator, shape: tuple[int, int], ids: list[int], speckle: float = 0.05
) -> np.ndarray:
    """Overlapping rectangles of random ids, some cut by the frame, with some pixels changed at random."""
    labels = np.zeros(shape, np.uint8)
    for label in rng.choice([0, *ids], size=2 * len(ids)):
        (top, left), (h, w) = (rng.integers(-2, n) for n in [shape, shape])
        labels[max(top, 0) : max(top + h, 0), max(left, 0) : max(left + w, 0)] = label
    noisy = rng.random(shape) < speckle
    labels[noisy] = rng.choice([0, *ids], size=int(noisy.sum()))
    return labels


# ------------------------------------------------------------ protocols, on stacks of one-hot masks


def measures(prediction: np.ndarray, truth: np.ndarray, void: np.ndarray) -> np.ndarray:
    """[J or F, frame] of one stack of masks against another."""
    frames = list(zip(prediction, truth, void, strict=True))
    return np.array([[measure(*frame) for frame in frames] for measure in (jaccard, boundary_f)])


def davis17_semi(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """[object, J or F, frames 2..T-1]."""
    true = np.where(truth == 255, 0, truth)
    no_void = np.zeros(truth[1:-1].shape, bool)
    objects = range(1, int(true[0].max()) + 1)
    return np.array([measures(prediction[1:-1] == o, true[1:-1] == o, no_void) for o in objects])


def all_pairs(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """[proposal, object, J or F, frame]; as many proposals as objects at least."""
    void = truth == 255
    objects = int(np.where(void, 0, truth)[0].max())
    proposals = max(int(prediction.max()), objects)
    return np.array(
        [
            [measures(prediction == p, truth == o, void) for o in range(1, objects + 1)]
            for p in range(1, proposals + 1)
        ]
    )


def solv_quirks(prediction: np.ndarray, truth: np.ndarray) -> tuple[list[float], float]:
    """IoU of every object, and FG-ARI, by the steps of SOLV's loader and evaluator; void pixels left out."""
    kept = truth != 255
    objects = sorted(set(np.unique(truth[0]).tolist()) - {0, 255})[:19]
    gt = sum((truth == label) * number for number, label in enumerate(objects, 1)) + np.zeros_like(truth)
    pred = prediction.astype(int) - (0 if (prediction[kept] == 0).any() else 1)
    rows = np.unique(pred[kept])

    def frames(segment: int, number: int) -> list[float]:
        pairs = [((p == segment) & k, (g == number) & k) for p, g, k in zip(pred, gt, kept, strict=True)]
        return [(a & b).sum() / (a | b).sum() for a, b in pairs if (a | b).any()]

    table = np.zeros((max(len(rows), len(objects)), len(objects)))
    for (row, segment), number in product(enumerate(rows), range(len(objects))):
        table[row, number] = np.mean(frames(segment, number + 1))
    new = np.zeros_like(gt)
    for row, column in zip(*linear_sum_assignment(-table), strict=True):
        new[pred == row] = column + 1
    pred = new
    overlaps = [float(np.mean(frames(number, number))) for number in range(1, len(objects) + 1)]
    seen = [(p[k & (g > 0)], g[k & (g > 0)]) for p, g, k in zip(pred, gt, kept, strict=True)]
    aris = [adjusted_rand_index(p, g) for p, g in seen if len(g)]
    return overlaps, float(np.mean(aris)) if aris else math.nan

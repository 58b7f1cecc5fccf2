"""Foreground extraction the plain way: features stretched to pixels, and everything done on these."""

import numpy as np
import torch
from torch import Tensor

from unspool.data.features import Kept
from unspool.ops import kmeans
from unspool.ops.kmeans import KMeans
from unspool.ops.pca import moments, reduction
from unspool.protocols.salient import Extraction, attention_foreground, jaccard, split_in_two


def stretched(maps: np.ndarray, side: int) -> np.ndarray:
    at = [np.arange(side) * old // side for old in maps.shape[1:]]
    return maps[:, at[0]][:, :, at[1]]


def token_of_pixel(kept: Kept, side: int) -> np.ndarray:
    count, _, height, width = kept.maps["tokens"].shape
    return stretched(np.arange(count * height * width).reshape(count, height, width), side)


def pixels(kept: Kept, side: int) -> tuple[Tensor, np.ndarray]:
    """Features of all pixels, those of a token one after another as random draws want it; where they lie."""
    rows = kept.rows(slice(None)).permute(0, 2, 3, 1).flatten(0, 2)
    tokens = token_of_pixel(kept, side).ravel()
    order = tokens.argsort(kind="stable")
    return rows[tokens[order]], order


def as_maps(values: np.ndarray, order: np.ndarray, kept: Kept, side: int) -> np.ndarray:
    out = np.empty_like(values)
    out[order] = values
    return out.reshape(len(kept), side, side)


def precisions_of(maps: np.ndarray, mask: np.ndarray, k: int) -> np.ndarray:
    out = np.zeros(k)
    for c in range(k):
        shares = [(m & (image == c)).sum() / (image == c).sum() for image, m in zip(maps, mask, strict=True)
                  if (image == c).any()]  # fmt: skip
        out[c] = np.mean(shares) if shares else 0.0
    return out


def plain_extraction(
    train: Kept, val: Kept, classes: int, how: Extraction
) -> tuple[np.ndarray, np.ndarray, dict[str, float], dict[int, np.ndarray]]:
    side, k = how.label_side, how.clusters
    both = [pixels(kept, side) for kept in (train, val)]
    groups = [torch.cat([rows for rows, _ in both])] * 2 if how.together else [rows for rows, _ in both]
    maps, precisions, reduces = [], [], []
    for kept, (rows, order), group in zip((train, val), both, groups, strict=True):
        reduce = reduction(moments(group), how.dims)
        centres = kmeans.fit(reduce(group), k, how.seed, how.kmeans)
        maps.append(as_maps(kmeans.nearest(reduce(rows), centres).numpy(), order, kept, side))
        attention = torch.from_numpy(kept.maps["cls_attention"])
        grid = (attention.shape[2], attention.shape[3])
        mask = stretched(attention_foreground(attention.flatten(2), grid, how.mass).numpy(), side)
        precisions.append(precisions_of(maps[-1], mask, k))
        reduces.append(reduce)
    ranked = precisions[0].argsort(kind="stable").argsort()
    starts = range(int(0.55 * k), int(0.75 * k))
    scores = [jaccard(ranked[maps[0]] >= start, train.labels) for start in starts]
    best = max(start for start, s in zip(starts, scores, strict=True) if s == max(scores))
    choices = np.arange(20) * 0.05
    threshold = float(choices[np.abs(choices - np.sort(precisions[0])[best]).argmin()])
    free = split_in_two(precisions[1], np.bincount(maps[1].ravel(), minlength=k))
    tuned, label_free = ((precisions[1] >= cut)[maps[1]] for cut in (threshold, free))
    rows, order = reduces[1](both[1][0]), both[1][1]
    inside = torch.from_numpy(tuned.ravel()[order])
    found = {}
    for seed in how.seeds:
        plain = KMeans(how.iterations, how.tries)
        if how.regions == "all":
            points = rows * inside[:, None]
            labels = kmeans.nearest(points, kmeans.fit(points, classes, seed, plain))
        else:
            labels = torch.full((len(rows),), classes - 1)
            labels[inside] = kmeans.nearest(rows[inside], kmeans.fit(rows[inside], classes - 1, seed, plain))
        found[seed] = as_maps(labels.numpy(), order, val, side)
    return tuned, label_free, {"tuned": threshold, "label-free": free}, found

"""Frames and label maps as the page shows them: at most 480 lines, labels in runs.

`label_runs` and `encode_runs` are what `decode` of page_frames.js undoes.
"""

from __future__ import annotations

import base64

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from unspool.masks import resize_labels

DISPLAY_SHORT_SIDE = 480  # px: larger sources are scaled down for the page
CHUNK_FRAMES = 500  # frames in one data file of the page

Labels = Integer[np.ndarray, "h w"]


def label_runs(
    labels: Labels,
) -> tuple[Integer[np.ndarray, " runs"], Integer[np.ndarray, " runs"]]:
    """Labels and lengths of the runs over the row-major grid; the lengths sum to H·W."""
    flat = labels.ravel()
    ends = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate([[0], ends, [flat.size]])
    return flat[edges[:-1]].astype(np.int64), np.diff(edges)


def encode_runs(values: Integer[np.ndarray, " runs"], lengths: Integer[np.ndarray, " runs"]) -> str:
    """Base64 of the pairs (label, length), each number as an unsigned LEB128 varint."""
    numbers = np.stack([values, lengths], axis=1).ravel().astype(np.uint64)
    digits = (numbers[:, None] >> np.arange(0, 35, 7, dtype=np.uint64)) & np.uint64(0x7F)
    used = np.maximum((digits != 0) * np.arange(1, 6), 0).max(axis=1).clip(1)
    place = np.arange(5)
    digits = digits + np.where(place < used[:, None] - 1, 0x80, 0).astype(np.uint64)
    return base64.b64encode(digits[place < used[:, None]].astype(np.uint8).tobytes()).decode("ascii")


def display_size(height: int, width: int) -> tuple[int, int]:
    """Size of the page's frames: short side at most 480 px, both sides even as H.264 wants."""
    scale = min(1.0, DISPLAY_SHORT_SIDE / min(height, width))
    return max(2, int(height * scale) // 2 * 2), max(2, int(width * scale) // 2 * 2)


def to_display(image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "h2 w2 3"]:
    """The frame at display size; an odd last row or column is dropped, not resampled."""
    height, width = image.shape[:2]
    if 0 <= height - size[0] <= 1 and 0 <= width - size[1] <= 1:
        return np.ascontiguousarray(image[: size[0], : size[1]])
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR, reducing_gap=2.0))


def labels_to_display(labels: Labels, size: tuple[int, int]) -> Labels:
    """The same for label maps, without mixing labels."""
    height, width = labels.shape
    if 0 <= height - size[0] <= 1 and 0 <= width - size[1] <= 1:
        return labels[: size[0], : size[1]]
    return resize_labels(labels, size)

"""Boundaries of masks and their surroundings, 64 pixels to a word.

Bit x of a row of words is the pixel in column x (least significant first). An outline is cut to its object
and keeps a margin of clear bits wider than the radius at both ends of every row, so that the words of all
rows can be shifted as one long number: what leaves a row never reaches a pixel of the next.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import UInt64

from unspool.metrics.labels import LabelMap
from unspool.metrics.runs import Box

WORD = 64  # pixels
Bits = UInt64[np.ndarray, "rows words"]


@dataclass(frozen=True, eq=False)
class Outline:
    """The boundary of one id of a label map.

    `edge` holds its rows from `top` on and its columns from `64 * word` on; both may lie outside the frame.
    """

    edge: Bits
    top: int
    word: int
    radius: int  # px within which two boundaries agree

    @cached_property
    def pixels(self) -> int:
        """Length of the boundary, px."""
        return _count(self.edge)

    @cached_property
    def near(self) -> Bits:
        """All pixels at most `radius` from the boundary; starts `radius` rows above it."""
        return dilate(self.edge, self.radius)

    def shared(self, other: Outline) -> int:
        """How many pixels of this boundary lie near the other one."""
        height, words = self.edge.shape
        top = max(self.top, other.top - other.radius)
        bottom = min(self.top + height, other.top + other.edge.shape[0] + other.radius)
        left = max(self.word, other.word)
        right = min(self.word + words, other.word + other.edge.shape[1])
        if top >= bottom or left >= right:
            return 0
        above = other.top - other.radius
        mine = self.edge[top - self.top : bottom - self.top, left - self.word : right - self.word]
        near = other.near[top - above : bottom - above, left - other.word : right - other.word]
        return _count(mine & near)


NOWHERE = Outline(np.zeros((0, 0), np.uint64), top=0, word=0, radius=0)


def outline(labels: LabelMap, label: int, box: Box, radius: int) -> Outline:
    """Boundary of `labels == label`, whose bounding box is `box`.

    A pixel belongs to it if its right, lower or lower-right neighbour inside the frame is on the other side.
    So an object cut by the frame has no boundary there, and a full mask has none at all.
    Source: davis2017-evaluation: davis2017/metrics.py _seg2bmap.
    """
    height, width = labels.shape
    top, left = max(box.top - 1, 0), max(box.left - 1, 0)  # one above and left of the box differ from it
    word = (left - radius - 1) // WORD
    words = (box.right + radius) // WORD + 1 - word
    mask = _packed(labels, label, (top, left, box.bottom, box.right), word, words)
    right_of = _right_neighbours(mask)
    across = mask ^ right_of
    down, diagonal = mask.copy(), mask.copy()  # the row under the box is empty
    down[:-1] ^= mask[1:]
    diagonal[:-1] ^= right_of[1:]
    with_right_neighbour = _columns(left - WORD * word, min(box.right, width - 1) - WORD * word, words)
    if box.bottom == height:  # the last row has no lower neighbours
        down[-1] = diagonal[-1] = 0
    return Outline(down | ((across | diagonal) & with_right_neighbour), top, word, radius)


def dilate(bits: Bits, radius: int) -> UInt64[np.ndarray, "tall words"]:
    """All pixels at most `radius` from a set one (disc x² + y² <= r²), from `radius` rows above on.

    Needs `radius` clear bits at both ends of each row.
    """
    height, words = bits.shape
    near = np.zeros((height + 2 * radius, words), np.uint64)
    wide, reach = bits, 0  # bits dilated along their rows by `reach`
    for dy in range(radius, -1, -1):  # the disc's rows grow towards its middle
        half = math.isqrt(radius * radius - dy * dy)
        while reach < half:
            step = min(half - reach, 2 * reach + 1, WORD - 1)  # a longer one would leave gaps
            wide = _widened(wide, step)
            reach += step
        near[radius - dy : radius - dy + height] |= wide
        near[radius + dy : radius + dy + height] |= wide
    return near


def _widened(bits: Bits, step: int) -> Bits:
    """Every pixel, and those `step` < 64 columns to its left and right."""
    words = bits.ravel()
    out = words | words << np.uint64(step)
    out |= words >> np.uint64(step)
    out[1:] |= words[:-1] >> np.uint64(WORD - step)
    out[:-1] |= words[1:] << np.uint64(WORD - step)
    return np.reshape(out, bits.shape)


def _packed(labels: LabelMap, label: int, box: tuple[int, int, int, int], word: int, words: int) -> Bits:
    """`labels == label` inside `box`, as words from column 64 * `word` on."""
    top, left, bottom, right = box
    left -= left % 8  # whole bytes; what comes in is outside the object's box, hence clear
    packed = np.packbits(labels[top:bottom, left:right] == label, axis=1, bitorder="little")
    rows = np.zeros((bottom - top, words * WORD // 8), np.uint8)
    first = left // 8 - word * WORD // 8
    rows[:, first : first + packed.shape[1]] = packed
    return rows.view("<u8").astype(np.uint64, copy=False)


def _columns(first: int, last: int, words: int) -> UInt64[np.ndarray, " words"]:
    """Bits first..last-1 set, in one row of words."""
    bits = ((1 << last) - 1) >> first << first
    return np.frombuffer(bits.to_bytes(words * WORD // 8, "little"), "<u8").astype(np.uint64, copy=False)


def _right_neighbours(bits: Bits) -> Bits:
    """In every place what its right neighbour holds."""
    words = bits.ravel()
    moved = words >> np.uint64(1)
    moved[:-1] |= words[1:] << np.uint64(WORD - 1)
    return moved.reshape(bits.shape)


def _count(bits: Bits) -> int:
    return int(np.bitwise_count(bits).sum())

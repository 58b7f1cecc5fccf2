"""Procedural pictures: random fields over the plane, patterns made of them, and bilinear look-up.

Every picture is a function of coordinates, never of a pixel grid: at another resolution it is the same
picture. `xs` and `ys` are the coordinates of columns and rows; colours are in 0..1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Colour = tuple[float, float, float]
Skin = Callable[[Array, Array], Array]  # (xs [w], ys [h]) -> colours [h, w, 3]

PERIOD = 64  # cells after which a random field repeats

PALETTES = (  # six colours each: three for creatures and ground alike, two accents, one dark
    ("d9a441", "7f9c3a", "b5532e", "f0e3c0", "3f6b4f", "33291f"),  # autumn meadow
    ("3d8fa6", "e0c48c", "e8744f", "f4efe1", "1f5673", "14303d"),  # reef
    ("c85a54", "e6b89c", "9b8b7a", "f2e9de", "6a4a3a", "2d2320"),  # brick and clay
    ("6aa84f", "f1c232", "cc4125", "fff2cc", "38761d", "1e3014"),  # orchard
    ("8e7cc3", "f4b6c2", "76a5af", "fdf3f4", "674ea7", "2a2140"),  # candy
    ("b08d57", "7b5b3a", "d8c3a5", "efe6d8", "4f6d5a", "2b2018"),  # wood
    ("5b7c99", "a3b1bf", "c98b5a", "e9edf0", "34495e", "1d2731"),  # harbour
    ("e07a5f", "81b29a", "f2cc8f", "f4f1de", "3d405b", "23253a"),  # toy shop
    ("4f772d", "90a955", "bc6c25", "ecf39e", "31572c", "132a13"),  # forest
    ("d4a373", "e9c46a", "a44a3f", "faedcd", "6d6875", "3a2e2c"),  # desert
)


def palette(rng: np.random.Generator) -> list[Colour]:
    """Six colours that go together."""
    chosen = PALETTES[int(rng.integers(len(PALETTES)))]
    return [_jittered(rng, tuple(int(code[i : i + 2], 16) / 255 for i in (0, 2, 4))) for code in chosen]


def _jittered(rng: np.random.Generator, colour: Sequence[float]) -> Colour:
    r, g, b = np.clip(np.asarray(colour) + rng.normal(0, 0.02, 3), 0, 1).tolist()
    return r, g, b


def between(one: Colour, other: Colour, weight: float) -> Colour:
    """`one` at weight 0, `other` at 1."""
    r, g, b = ((1 - weight) * x + weight * y for x, y in zip(one, other, strict=True))
    return r, g, b


# ------------------------------------------------------------------------------------ random fields


@dataclass(frozen=True, eq=False)
class Noise:
    """Random fields over the plane, in 0..1, periodic with 64 cells."""

    values: Array  # [64, 64] in 0..1
    points: Array  # [64, 64, 2] in 0..1: one point in each cell

    @classmethod
    def seeded(cls, rng: np.random.Generator) -> Noise:
        """Fields of their own for every state of `rng`."""
        return cls(rng.random((PERIOD, PERIOD), np.float32), rng.random((PERIOD, PERIOD, 2), np.float32))

    def smooth(self, xs: Array, ys: Array, x_rate: float, y_rate: float | None = None) -> Array:
        """Smooth values [h, w] with one knot per `1 / rate` units."""
        left, x_weight = _knots(xs, x_rate)
        top, y_weight = _knots(ys, x_rate if y_rate is None else y_rate)
        upper, lower = self.values[top], self.values[(top + 1) % PERIOD]
        rows = upper + (lower - upper) * y_weight[:, None]
        begin = rows[:, left]
        rows = rows[:, (left + 1) % PERIOD]
        rows -= begin
        rows *= x_weight
        rows += begin
        return rows

    def fractal(
        self,
        xs: Array,
        ys: Array,
        rate: float,
        octaves: int = 4,
        *,
        stretch: float = 1.0,
        rough: float = 0.55,
    ) -> Array:
        """Octaves of `smooth`, spread to use most of 0..1; `stretch` > 1 draws them out along y."""
        total = self.smooth(xs, ys, rate, rate / stretch)
        weight, sum_of_squares = 1.0, 1.0
        for octave in range(1, octaves):
            weight *= rough
            sum_of_squares += weight**2
            scale = rate * 2.03**octave
            total += weight * self.smooth(xs + 7.3 * octave, ys - 3.1 * octave, scale, scale / stretch)
        total -= float(total.mean())
        total *= 1.0 / np.sqrt(sum_of_squares, dtype=np.float32)
        total += 0.5
        return np.clip(total, 0, 1, out=total)

    def cells(self, xs: Array, ys: Array, rate: float) -> tuple[Array, Array, Array]:
        """Cellular fields [h, w]: distance to the nearest point, its lead over the second, its own value.

        Distances are in cells of `1 / rate` units.
        """
        columns, x = _cell(xs, rate)
        rows, y = _cell(ys, rate)
        nearest = np.full((len(ys), len(xs)), 9, np.float32)
        second, value = nearest.copy(), nearest.copy()
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                where = np.ix_((rows + dy) % PERIOD, (columns + dx) % PERIOD)
                point = self.points[where]
                distance = np.square(point[..., 0] + (dx - x)) + np.square(point[..., 1] + (dy - y)[:, None])
                closer = distance < nearest
                second = np.minimum(second, np.maximum(distance, nearest))
                np.copyto(value, self.values[where], where=closer)
                np.copyto(nearest, distance, where=closer)
        nearest = np.sqrt(nearest)
        return nearest, np.sqrt(second) - nearest, value


def _cell(at: Array, rate: float) -> tuple[npt.NDArray[np.int64], Array]:
    scaled = at * np.float32(rate)
    floor = np.floor(scaled)
    return floor.astype(np.int64) % PERIOD, scaled - floor


def _knots(at: Array, rate: float) -> tuple[npt.NDArray[np.int64], Array]:
    cell, weight = _cell(at, rate)
    return cell, weight * weight * (3 - 2 * weight)


def clamped(value: npt.NDArray[np.floating[Any]]) -> Array:
    """To 0..1."""
    inside: Array = np.clip(value, 0, 1).astype(np.float32, copy=False)
    return inside


def step(value: Array, edge: float, width: float) -> Array:
    """0 below `edge`, 1 above, smooth over `width`."""
    t = np.clip((value - (edge - width / 2)) / width, 0, 1)
    smooth: Array = t * t * (3 - 2 * t)
    return smooth


def ramp(value: Array, colours: Sequence[Colour]) -> Array:
    """Values 0..1 to colours [h, w, 3] along the given ones."""
    stops = np.linspace(0, 1, len(colours))
    table = np.stack(
        [np.interp(np.linspace(0, 1, 256), stops, channel) for channel in zip(*colours, strict=True)], 1
    )
    indices = np.clip(value * 255, 0, 255).astype(np.uint8)
    return table.astype(np.float32)[indices]


def mix(below: Array, above: Array | Colour, weight: Array) -> Array:
    """`above` over `below` with weights [h, w]."""
    mixed: Array = below + (np.asarray(above, np.float32) - below) * weight[..., None]
    return mixed


# --------------------------------------------------------------------------------------------- skins


def skin(rng: np.random.Generator, colours: Sequence[Colour], pattern: str) -> Skin:
    """One of the patterns in these colours (base, second, accent)."""
    noise = Noise.seeded(rng)
    rate, angle = float(rng.uniform(0.8, 1.25)), float(rng.uniform(-0.4, 0.4))

    def paint(xs: Array, ys: Array) -> Array:
        xs, ys = xs + np.float32(9), ys + np.float32(9)
        value = _PATTERN[pattern](noise, xs, ys, rate, angle)
        grain = noise.fractal(xs, ys, 5.0, 3, rough=0.8)
        colour = ramp(value, colours) * (0.72 + 0.56 * grain)[..., None]
        return np.clip(colour, 0, 1, out=colour)

    return paint


def _stripes(noise: Noise, xs: Array, ys: Array, rate: float, angle: float) -> Array:
    bend = noise.fractal(xs, ys, 1.1, 3)
    phase = xs[None] + angle * ys[:, None] + 0.45 * bend
    return step(np.sin(phase * np.float32(11 * rate)), 0.1, 0.5)


def _spots(noise: Noise, xs: Array, ys: Array, rate: float, angle: float) -> Array:
    nearest, _, value = noise.cells(xs, ys, 2.8 * rate)
    inside = 1 - step(nearest, 0.22 + 0.06 * rate, 0.12)
    return inside * (0.65 + 0.35 * value)


def _patches(noise: Noise, xs: Array, ys: Array, rate: float, angle: float) -> Array:
    field = noise.fractal(xs, ys, 1.3 * rate, 4)
    return 0.5 * step(field, 0.45, 0.05) + 0.5 * step(field, 0.6, 0.05)


def _checker(noise: Noise, xs: Array, ys: Array, rate: float, angle: float) -> Array:
    u = np.sin((xs[None] + angle * ys[:, None]) * np.float32(7 * rate))
    v = np.sin((ys[:, None] - angle * xs[None]) * np.float32(7 * rate))
    return step(u * v, 0, 0.15) * (0.8 + 0.2 * noise.smooth(xs, ys, 3))


def _rings(noise: Noise, xs: Array, ys: Array, rate: float, angle: float) -> Array:
    radius = np.hypot(xs[None] - 9, (ys[:, None] - 9) * np.float32(0.8))
    waves: Array = 0.5 + 0.5 * np.sin(radius * np.float32(15 * rate) + 4 * noise.fractal(xs, ys, 1.2, 3))
    return waves


def _marble(noise: Noise, xs: Array, ys: Array, rate: float, angle: float) -> Array:
    waves: Array = 0.5 + 0.5 * np.sin(9 * noise.fractal(xs, ys, 1.5 * rate, 5) + 3 * xs[None])
    return waves


def _scales(noise: Noise, xs: Array, ys: Array, rate: float, angle: float) -> Array:
    _, gap, value = noise.cells(xs, ys, 4.5 * rate)
    return step(gap, 0.12, 0.2) * (0.35 + 0.65 * value)


def _fur(noise: Noise, xs: Array, ys: Array, rate: float, angle: float) -> Array:
    hairs = noise.fractal(ys, xs, 9.0 * rate, 3, stretch=4).T
    return clamped(0.6 * hairs + 0.55 * noise.fractal(xs, ys, 1.0, 3) - 0.1)


def _speckles(noise: Noise, xs: Array, ys: Array, rate: float, angle: float) -> Array:
    nearest, _, value = noise.cells(xs, ys, 7.0 * rate)
    blush = noise.fractal(xs, ys, 0.7, 2)
    return clamped(0.75 * blush + 0.4 * (1 - step(nearest, 0.25, 0.2)) * value)


def _leaves(noise: Noise, xs: Array, ys: Array, rate: float, angle: float) -> Array:
    nearest, gap, value = noise.cells(xs + ys.mean() * np.float32(angle), ys * np.float32(1.3), 8 * rate)
    return clamped(step(gap, 0.06, 0.2) * (0.25 + 0.75 * value) * (1.15 - 0.7 * nearest))


def _bark(noise: Noise, xs: Array, ys: Array, rate: float, angle: float) -> Array:
    ridges = noise.fractal(xs, ys, 7 * rate, 4, stretch=5, rough=0.75)
    return clamped(1.3 * np.abs(2 * ridges - 1) * (0.6 + 0.8 * noise.smooth(xs, ys, 1.5)))


_PATTERN = {
    "stripes": _stripes,
    "spots": _spots,
    "patches": _patches,
    "checker": _checker,
    "rings": _rings,
    "marble": _marble,
    "scales": _scales,
    "fur": _fur,
    "speckles": _speckles,
    "leaves": _leaves,
    "bark": _bark,
}

# ------------------------------------------------------------------------------------ packed pictures

Packed = npt.NDArray[np.uint32]  # [h, w]: R, G, B, 255 in the bytes of one number: one look-up fetches all


def pack(picture: Array) -> Packed:
    """Colours 0..1 [h, w, 3], packed."""
    full = np.full((*picture.shape[:2], 4), 255, np.uint8)
    full[..., :3] = np.rint(np.clip(picture, 0, 1) * 255)
    return full.view(np.uint32)[..., 0]


def look_up(picture: Packed, x: Array, y: Array) -> Array:
    """Bilinear values [h, w, 4] in 0..255 at texel coordinates; beyond the edge as on it. Changes x and y."""
    height, width = picture.shape
    np.clip(x, 0, width - 1.001, out=x)
    np.clip(y, 0, height - 1.001, out=y)
    left, top = x.astype(np.int32), y.astype(np.int32)
    x -= left
    y -= top
    top *= width
    top += left
    flat = picture.reshape(-1)

    def texel(offset: int) -> Array:
        return flat.take(top + offset).view(np.uint8).reshape(*x.shape, 4).astype(np.float32)

    upper, lower = texel(0), texel(width)
    upper += (texel(1) - upper) * x[..., None]
    lower += (texel(width + 1) - lower) * x[..., None]
    lower -= upper
    lower *= y[..., None]
    lower += upper
    return lower

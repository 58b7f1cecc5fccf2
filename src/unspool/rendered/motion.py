"""Where everything is at any time: camera, paths, poses. Pure functions of seconds, smooth for ever.

World units: the picture's short side is 1, the origin is where the camera looks at second 0, y is down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import atan2, cos, exp, pi, sin, sqrt

import numpy as np
import numpy.typing as npt

from unspool.rendered.parts import Gait, Part
from unspool.rendered.textures import Array

Points = npt.NDArray[np.float64]  # [..., 2]
Affine = tuple[float, float, float, float, float, float]  # x' = a x + b y + c, y' = d x + e y + f


def affine(angle: float, x_scale: float, y_scale: float, at: tuple[float, float]) -> Affine:
    """Scale, then turn, then move."""
    c, s = cos(angle), sin(angle)
    return c * x_scale, -s * y_scale, at[0], s * x_scale, c * y_scale, at[1]


def compose(outer: Affine, inner: Affine) -> Affine:
    """First `inner`, then `outer`."""
    a, b, c, d, e, f = outer
    p, q, r, s, t, u = inner
    return (
        a * p + b * s,
        a * q + b * t,
        a * r + b * u + c,
        d * p + e * s,
        d * q + e * t,
        d * r + e * u + f,
    )


def inverse(matrix: Affine) -> Affine:
    """The way back."""
    a, b, c, d, e, f = matrix
    det = a * e - b * d
    return e / det, -b / det, (b * f - e * c) / det, -d / det, a / det, (d * c - a * f) / det


def unit_length(matrix: Affine) -> float:
    """Of a unit after the map, averaged over directions: the root of the determinant."""
    a, b, _, d, e, _ = matrix
    return sqrt(abs(a * e - b * d))


@dataclass(frozen=True)
class Sway:
    """value(t) = size * (sin(rate t + phase) - sin(phase)): 0 at second 0."""

    size: float
    rate: float  # rad/s
    phase: float

    @classmethod
    def random(cls, rng: np.random.Generator, size: float, period: tuple[float, float]) -> Sway:
        """With a period, in seconds, from the range."""
        return cls(size, 2 * pi / float(rng.uniform(*period)), float(rng.uniform(0, 2 * pi)))

    def at(self, time: float) -> float:
        """At `time` seconds."""
        return self.size * (sin(self.rate * time + self.phase) - sin(self.phase))


@dataclass(frozen=True)
class Camera:
    """Pan, zoom and roll of the picture."""

    size: tuple[int, int]  # px: height, width
    pan: tuple[Sway, Sway]  # world units
    zoom: Sway  # natural logarithm
    roll: Sway  # rad

    def view(self, time: float, parallax: float = 1.0) -> Affine:
        """World to pixels (the first pixel's centre is at 0.5); parallax > 1: nearer than the ground."""
        height, width = self.size
        scale = min(height, width) * exp(self.zoom.at(time))
        x, y = (parallax * p.at(time) for p in self.pan)
        turn = affine(self.roll.at(time), scale, scale, (width / 2, height / 2))
        return compose(turn, (1.0, 0.0, -x, 0.0, 1.0, -y))

    @property
    def reach(self) -> tuple[float, float]:
        """World half-width and half-height that the picture can ever show (at parallax 1)."""
        height, width = self.size
        short = min(height, width)
        grown = exp(2 * self.zoom.size) / 2
        turn = min(1.0, 2 * self.roll.size)
        x, y = (w / short * grown for w in (width, height))
        return x + turn * y + 2 * self.pan[0].size, y + turn * x + 2 * self.pan[1].size


@dataclass(frozen=True)
class Path:
    """An ellipse through a start and a far point, with a wobble of its own."""

    start: tuple[float, float]  # at second 0
    far: tuple[float, float]
    breadth: float  # minor over major axis, signed: which way round
    rate: float  # rad/s
    wobble: tuple[Sway, Sway]

    @classmethod
    def standing(cls, at: tuple[float, float]) -> Path:
        """Of something that stays where it is."""
        still = Sway(0.0, 1.0, 0.0)
        return cls(at, at, 0.0, 0.0, (still, still))

    def at(self, time: float) -> tuple[float, float]:
        """World position."""
        dx, dy = (self.far[0] - self.start[0]) / 2, (self.far[1] - self.start[1]) / 2
        along, across = 1 - cos(self.rate * time), self.breadth * sin(self.rate * time)
        x = self.start[0] + dx * along - dy * across + self.wobble[0].at(time)
        y = self.start[1] + dy * along + dx * across + self.wobble[1].at(time)
        return x, y

    def heading(self, time: float) -> float:
        """Direction of travel on the ellipse, rad; continuous."""
        dx, dy = self.far[0] - self.start[0], self.far[1] - self.start[1]
        along, across = sin(self.rate * time), self.breadth * cos(self.rate * time)
        return atan2(dy * along + dx * across, dx * along - dy * across)


@dataclass(frozen=True)
class Wave:
    """A shear with a sine profile; its exact inverse is the same shear the other way."""

    axis: int  # 0 moves x as a function of y, 1 moves y as a function of x
    size: float  # object units
    number: float  # rad per object unit
    rate: float  # rad/s
    phase: float  # rad

    def shift(self, across: Points) -> Points:
        """How far a frozen wave moves points along its axis, by their other coordinate."""
        moved: Points = self.size * np.sin(self.number * across + self.phase)
        return moved

    def frozen(self, time: float) -> Wave:
        """The wave as it stands at `time`: rate 0."""
        return Wave(self.axis, self.size, self.number, 0.0, (self.rate * time + self.phase) % (2 * pi))


@dataclass(frozen=True)
class Body:
    """A thing that moves: its parts, and how they do."""

    parts: tuple[Part, ...]
    path: Path
    gait: Gait
    scale: float  # world units per object unit
    mirrored: bool  # faces to -x
    rate: float  # rad/s of its limbs
    turn: Sway  # rad, rocking; for "spin" its rate is the turning speed
    breath: Sway  # natural logarithm of the scale
    squash: Sway  # natural logarithm of width over height
    waves: tuple[Wave, ...]
    parallax: float = 1.0

    def pose(self, time: float, view: Affine) -> Pose:
        """Everything about it at one moment, in a camera's view."""
        at = self.path.at(time)
        scale, squash = self.scale * exp(self.breath.at(time)), exp(self.squash.at(time) / 2)
        flip = -1.0 if self.mirrored else 1.0
        own = affine(self._angle(time), scale * squash * flip, scale / squash, at)
        rolled = flip * (at[0] - self.path.start[0]) / self.scale
        return Pose(
            self.parts,
            compose(view, own),
            joints(self.parts, self.rate * time, rolled),
            tuple(w.frozen(time) for w in self.waves),
        )

    def _angle(self, time: float) -> float:
        if self.gait == "heading":
            return self.path.heading(time) + self.turn.at(time)
        if self.gait == "spin":
            return self.turn.phase + self.turn.rate * time
        return self.turn.at(time)


def joints(parts: Sequence[Part], beat: float, rolled: float) -> list[Affine]:
    """Of every part: from its half-axes to object units; `beat` is the phase of the gait, rad."""
    frames: list[Affine] = []
    placed: list[Affine] = []
    for part in parts:
        angle = part.angle + part.swing * sin(beat + part.phase)
        if part.rolls:
            angle += rolled / part.size[0]
        fold = 1 - part.flap * (0.5 + 0.5 * sin(beat + part.phase))
        frame = affine(angle, 1.0, fold, part.at)
        if part.parent is not None:
            frame = compose(frames[part.parent], frame)
        frames.append(frame)
        placed.append(compose(frame, (part.size[0], 0.0, part.offset[0], 0.0, part.size[1], part.offset[1])))
    return placed


@dataclass(frozen=True, eq=False)
class Pose:
    """Parts at one moment: half-axes of a part -> object units -> waves -> pixels."""

    parts: tuple[Part, ...]
    to_pixels: Affine  # from object units
    to_object: list[Affine]  # from the half-axes of each part
    waves: tuple[Wave, ...] = ()

    @cached_property
    def contours(self) -> Points:
        """[parts, points, 2] outlines in pixels."""
        outlines = np.stack([part.contour for part in self.parts])
        x, y = outlines[..., 0], outlines[..., 1]
        a, b, c, d, e, f = np.array(self.to_object).T[..., None]
        return self.pixels(np.stack([a * x + b * y + c, d * x + e * y + f], -1))

    def object_grid(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Of pixel columns `x` [w] and rows `y` [h]: object coordinates [h, w] before the waves."""
        a, b, c, d, e, f = map(np.float32, inverse(self.to_pixels))
        points = [a * x + (b * y + c)[:, None], d * x + (e * y + f)[:, None]]
        for wave in reversed(self.waves):
            shift = points[1 - wave.axis] * np.float32(wave.number)
            shift += np.float32(wave.phase)
            np.sin(shift, out=shift)
            shift *= np.float32(wave.size)
            points[wave.axis] -= shift
        return points[0], points[1]

    def object_points(self, pixels: Points) -> Points:
        """Of pixel coordinates [..., 2]: object coordinates before the waves; the inverse of `pixels`."""
        a, b, c, d, e, f = inverse(self.to_pixels)
        x, y = pixels[..., 0], pixels[..., 1]
        points = [a * x + b * y + c, d * x + e * y + f]
        for wave in reversed(self.waves):
            points[wave.axis] = points[wave.axis] - wave.shift(points[1 - wave.axis])
        return np.stack(points, -1)

    def pixels(self, points: Points) -> Points:
        """Of object coordinates [..., 2] before the waves: pixel coordinates."""
        moved = [points[..., 0], points[..., 1]]
        for wave in self.waves:
            moved[wave.axis] = moved[wave.axis] + wave.shift(moved[1 - wave.axis])
        a, b, c, d, e, f = self.to_pixels
        return np.stack([a * moved[0] + b * moved[1] + c, d * moved[0] + e * moved[1] + f], -1)

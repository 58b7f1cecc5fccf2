"""Textured parts that swing about their joints, their outlines, and the workshop that puts them together.

An object lives in its own units: about 1 from its centre to its rim, x to where it faces, y down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.interpolate import CubicSpline

from unspool.rendered.textures import Array, Colour, Packed, Skin, mix, pack, skin, step

BEARINGS = 2048  # directions in which an outline is tabulated
CONTOUR = 40  # points of an outline that stand for it where its extent is asked for

Outline = npt.NDArray[np.float64]  # [BEARINGS] radii over -pi..pi, greatest is 1
Mark = tuple[float, float, float, float, Colour]  # x, y, half-axes, colour of an ellipse painted on a part
Gait = Literal["heading", "rock", "spin", "upright"]


@dataclass(frozen=True, eq=False)
class Part:
    """A star-shaped piece: what is nearer to its centre than the outline's radius in that direction."""

    radius: Outline
    size: tuple[float, float]  # half-axes, object units
    paint: Skin
    texels: float  # of its texture, per object unit
    at: tuple[float, float] = (0.0, 0.0)  # its joint, in the object or in the parent's frame at that joint
    offset: tuple[float, float] = (0.0, 0.0)  # from the joint to its centre, along its own axes
    angle: float = 0.0  # rad, at rest
    swing: float = 0.0  # rad, amplitude about the joint
    flap: float = 0.0  # 0..0.8: how far its y axis folds
    phase: float = 0.0  # rad, of swing and flap
    rolls: bool = False  # turns as a wheel does
    parent: int | None = None  # index of the part on which the joint sits
    marks: Sequence[Mark] = ()
    relief: float = 0.8  # 0 flat .. 1 ball
    gloss: float = 0.0  # 0..1, strength of the highlight

    @cached_property
    def inverse_radius(self) -> Array:
        """[BEARINGS] one over the radius."""
        inverse: Array = (1 / self.radius).astype(np.float32)
        return inverse

    @cached_property
    def rim(self) -> Array:
        """[BEARINGS] object units per unit of (1 - distance / radius), across the outline."""
        theta = bearings()
        slope = np.gradient(np.concatenate([self.radius[-1:], self.radius, self.radius[:1]]))[1:-1]
        slope *= BEARINGS / (2 * np.pi) / self.radius
        x = (np.cos(theta) + slope * np.sin(theta)) / self.radius / self.size[0]
        y = (np.sin(theta) - slope * np.cos(theta)) / self.radius / self.size[1]
        rim: Array = (1 / np.hypot(x, y)).astype(np.float32)
        return rim

    @cached_property
    def contour(self) -> npt.NDArray[np.float64]:
        """[CONTOUR, 2] points on the outline, in half-axes."""
        chosen = slice(None, None, BEARINGS // CONTOUR)
        theta, radius = bearings()[chosen], self.radius[chosen]
        return np.stack([np.cos(theta) * radius, np.sin(theta) * radius], 1)[:CONTOUR]

    @cached_property
    def texture(self) -> Packed:
        """Over -1..1 half-axes in both directions."""
        width, height = (int(np.clip(round(2 * s * self.texels), 6, 512)) for s in self.size)
        xs, ys = (_texel_centres(n, half) for n, half in ((width, self.size[0]), (height, self.size[1])))
        shift = np.float32(self.at[0] + self.offset[0]), np.float32(self.at[1] + self.offset[1])
        picture = self.paint(xs + shift[0], ys + shift[1])
        for x, y, rx, ry, colour in self.marks:
            reach: Array = np.hypot((xs[None] - x) / rx, (ys[:, None] - y) / ry).astype(np.float32)
            picture = mix(picture, colour, 1 - step(reach, 1.0, min(1.0, 1.5 / (self.texels * min(rx, ry)))))
        return pack(picture)


def _texel_centres(number: int, half: float) -> Array:
    centres: Array = np.linspace(half / number - half, half - half / number, number, dtype=np.float32)
    return centres


def bearings() -> Outline:
    """[BEARINGS] the angles at which outlines are tabulated: middles of equal steps from -pi to pi."""
    angles: Outline = (np.arange(BEARINGS) + 0.5) * 2 * np.pi / BEARINGS - np.pi
    return angles


# ---------------------------------------------------------------------------------------- outlines


def scaled(radius: Outline) -> Outline:
    """The same shape with 1 as its greatest radius, none below 0.04."""
    radii: Outline = np.maximum(radius / radius.max(), 0.04)
    return radii


def ellipse() -> Outline:
    """Round."""
    return np.ones(BEARINGS)


def box(power: float = 4.0) -> Outline:
    """A superellipse: 2 round, 4 a cushion, 10 a box."""
    theta = bearings()
    return scaled((np.abs(np.cos(theta)) ** power + np.abs(np.sin(theta)) ** power) ** (-1 / power))


def blob(rng: np.random.Generator, rough: float) -> Outline:
    """Round with random Fourier terms 2..6."""
    theta = bearings()
    terms = [rng.normal(0, rough / k) * np.cos(k * theta + rng.uniform(0, 6.28)) for k in range(2, 7)]
    return scaled(np.maximum(1 + np.sum(terms, axis=0), 0.4))


def star(points: int, depth: float, sharp: float = 1.0) -> Outline:
    """Lobes; `depth` 0..0.8 between them."""
    lobes = 0.5 + 0.5 * np.cos(points * bearings())
    return scaled(1 - depth + depth * lobes**sharp)


def spline(*knots: tuple[float, float]) -> Outline:
    """Through (degrees, radius) knots; 0 is ahead, 90 is down."""
    degrees, radii = zip(*knots, strict=True)
    curve = CubicSpline([*degrees, degrees[0] + 360], [*radii, radii[0]], bc_type="periodic")
    return scaled(np.maximum(curve(np.degrees(bearings())), 0.05))


def furry(rng: np.random.Generator, outline: Outline, amount: float) -> Outline:
    """With tufts along the rim."""
    theta = bearings()
    tufts = sum(np.abs(np.sin(k * theta + rng.uniform(0, 6.28))) for k in (11, 17, 29))
    return scaled(outline * (1 - amount * np.asarray(tufts) / 3))


# ---------------------------------------------------------------------------------------- workshop


@dataclass(eq=False)
class Workshop:
    """Collects the parts of one object."""

    rng: np.random.Generator
    colours: Sequence[Colour]  # base, second, accent, light, deep, dark
    pattern: str
    texels: float  # texture resolution, per object unit
    parts: list[Part] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.coat = skin(self.rng, self.colours[:3], self.pattern)
        self.trim = skin(self.rng, (self.colours[4], self.colours[1]), "speckles")
        self.bright = skin(self.rng, (self.colours[2], self.colours[3]), "marble")
        self.dark = skin(self.rng, (self.colours[5], self.colours[4]), "speckles")

    def add(
        self,
        radius: Outline,
        size: tuple[float, float],
        at: tuple[float, float] = (0.0, 0.0),
        offset: tuple[float, float] = (0.0, 0.0),
        *,
        paint: Skin | None = None,
        **more: Any,
    ) -> int:
        """One more part, in front of the others, with more fields of `Part`; its index."""
        self.parts.append(Part(radius, size, paint or self.coat, self.texels, at, offset, **more))
        return len(self.parts) - 1

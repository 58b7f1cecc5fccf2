"""Creatures, fruits, toys and vehicles, put together from textured parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from unspool.rendered.parts import (
    Gait,
    Mark,
    Part,
    Workshop,
    bearings,
    blob,
    box,
    ellipse,
    furry,
    scaled,
    spline,
    star,
)
from unspool.rendered.textures import Colour, between, skin

INK: Colour = (0.08, 0.06, 0.07)
BARK: Colour = (0.42, 0.3, 0.2)
GREEN: Colour = (0.3, 0.5, 0.2)
WHITE: Colour = (0.97, 0.96, 0.93)


def _eye(x: float, y: float, r: float) -> list[Mark]:
    return [
        (x, y, r, r, WHITE),
        (x + 0.25 * r, y, 0.6 * r, 0.65 * r, INK),
        (x + 0.4 * r, y - 0.25 * r, 0.2 * r, 0.2 * r, WHITE),
    ]


def fruit(shop: Workshop) -> None:
    """A body with dimple, stem and leaf."""
    waist = float(shop.rng.uniform(0.6, 1.0))
    top = 0.12 - 0.8 * waist
    body = spline((0, 0.95), (90, 0.86), (180, 0.95), (235, waist), (270, 0.8 * waist), (305, waist))
    shop.add(box(5), (0.06, 0.24), (0, top), (0, -0.2), paint=shop.dark, angle=0.25, swing=0.1)
    shop.add(body, (1.0, 1.0), gloss=0.6, relief=0.95)
    leaf_shape = spline(
        (0, 1), (40, 0.55), (90, 0.42), (140, 0.6), (180, 1), (220, 0.6), (270, 0.42), (320, 0.55)
    )
    shop.add(leaf_shape, (0.36, 0.36), (0.03, top - 0.12), (0.3, 0), paint=shop.trim, angle=-0.5, swing=0.25)


def ball(shop: Workshop) -> None:
    """Round and glossy."""
    shop.add(ellipse(), (0.95, 0.95), relief=1.0, gloss=0.7)


def starfish(shop: Workshop) -> None:
    """Five or six soft arms."""
    arms = int(shop.rng.integers(5, 7))
    shop.add(star(arms, float(shop.rng.uniform(0.5, 0.65)), 1.3), (1.1, 1.1), relief=0.7)
    shop.add(star(arms, 0.5), (0.42, 0.42), paint=shop.bright, relief=0.6)


def leaf(shop: Workshop) -> None:
    """A blade with lobes, midrib and stalk."""
    teeth = float(shop.rng.uniform(0.0, 0.12))
    blade = spline(
        (0, 1),
        (25, 0.62),
        (60, 0.5),
        (100, 0.55),
        (150, 0.62),
        (180, 0.75),
        (210, 0.62),
        (260, 0.55),
        (300, 0.5),
        (335, 0.62),
    )
    shop.add(box(4), (0.35, 0.035), (-0.7, 0), (-0.3, 0), paint=shop.dark, swing=0.2)
    rib: list[Mark] = [(0.0, 0.0, 0.95, 0.025, shop.colours[3])]
    shop.add(
        scaled(blade * (1 - teeth * np.abs(np.sin(14 * bearings())))), (1.1, 1.1), marks=rib, relief=0.45
    )


def fish(shop: Workshop) -> None:
    """A body with tail and fins, seen from the side."""
    deep = float(shop.rng.uniform(0.5, 0.72))
    fan = spline((0, 0.25), (60, 0.3), (140, 1), (180, 0.6), (220, 1), (300, 0.3))
    shop.add(fan, (0.55, 0.62), (-0.78, 0), (-0.22, 0), paint=shop.trim, swing=0.45, phase=1.2, relief=0.35)
    dorsal = spline((0, 0.7), (90, 0.4), (180, 1), (230, 0.9), (270, 0.6), (320, 0.5))
    shop.add(
        dorsal, (0.5, 0.36), (-0.05, -0.6 * deep), (-0.1, -0.12), paint=shop.bright, swing=0.12, relief=0.35
    )
    body = spline((0, 1), (35, 0.9), (90, 0.92), (145, 0.9), (180, 1), (215, 0.9), (270, 0.95), (325, 0.9))
    marks = [*_eye(0.58, -0.14 * deep, 0.13), (0.93, 0.16 * deep, 0.16, 0.03, INK)]
    shop.add(body, (0.98, deep), marks=marks, gloss=0.4)
    shop.add(dorsal, (0.3, 0.2), (0.12, 0.12), (-0.2, 0.06), paint=shop.trim, swing=0.5, relief=0.4)


def beetle(shop: Workshop) -> None:
    """Six legs, two feelers, a patterned back; seen from above."""
    for side in (-1, 1):
        for index, x in enumerate((0.42, 0.0, -0.42)):
            swing = {"angle": side * (1.15 + 0.35 * index), "swing": 0.35, "phase": 2.1 * index + 1.57 * side}
            shop.add(box(3), (0.42, 0.065), (x, side * 0.3), (0.42, 0), paint=shop.dark, **swing)
        shop.add(
            box(3),
            (0.3, 0.035),
            (0.8, side * 0.1),
            (0.28, 0),
            paint=shop.dark,
            angle=side * 0.5,
            swing=0.2,
            phase=side,
        )
    shop.add(
        ellipse(),
        (0.32, 0.36),
        (0.68, 0),
        paint=shop.dark,
        marks=_eye(0.1, -0.2, 0.09) + _eye(0.1, 0.2, 0.09),
        gloss=0.4,
    )
    seam: list[Mark] = [(-0.1, 0.0, 0.8, 0.02, INK)]
    shop.add(blob(shop.rng, 0.05), (0.85, 0.68), (-0.1, 0), marks=seam, gloss=0.6, relief=0.95)


def butterfly(shop: Workshop) -> None:
    """Four wings that fold, seen from above."""
    upper = spline((0, 0.5), (45, 0.95), (75, 1), (120, 0.75), (180, 0.3), (270, 0.25))
    lower = spline((0, 0.3), (70, 0.8), (110, 1), (150, 0.85), (180, 0.4), (270, 0.25))
    for side, flip in ((1, 1), (-1, -1)):
        shape_u, shape_l = (upper, lower) if flip > 0 else (upper[::-1], lower[::-1])
        spot = shop.colours[3]
        shop.add(
            shape_l,
            (0.72, 0.8),
            (-0.12, side * 0.06),
            (-0.1, side * 0.14),
            paint=shop.bright,
            flap=0.5,
            phase=0.5,
            relief=0.3,
            marks=[(-0.05, side * 0.5, 0.1, 0.1, spot)],
        )
        shop.add(
            shape_u,
            (0.95, 1.02),
            (0.1, side * 0.06),
            (0.0, side * 0.16),
            flap=0.5,
            relief=0.3,
            marks=[(0.2, side * 0.6, 0.13, 0.13, spot), (0.2, side * 0.6, 0.06, 0.06, INK)],
        )
    for side in (-1, 1):
        shop.add(
            box(3),
            (0.25, 0.025),
            (0.5, side * 0.04),
            (0.22, 0),
            paint=shop.dark,
            angle=side * 0.45,
            swing=0.15,
        )
    shop.add(box(2.5), (0.58, 0.11), paint=shop.dark, gloss=0.3)


def dog(shop: Workshop) -> None:
    """Four legs, a tail, a head with ears, in fur; seen from the side."""
    stretch = float(shop.rng.uniform(0.5, 0.72))
    rng = shop.rng
    leg = spline((0, 0.5), (80, 1), (100, 1), (180, 0.55), (270, 1))
    for x, phase in ((0.42, 0.0), (-0.48, 2.4)):
        shop.add(
            leg,
            (0.2, 0.36),
            (x + 0.14, 0.22),
            (0, 0.26),
            paint=shop.trim,
            swing=0.5,
            phase=phase + 3.14,
            relief=0.6,
        )
    shop.add(
        furry(rng, box(2.3), 0.12),
        (0.42, 0.1),
        (-stretch, -0.14),
        (-0.34, 0),
        angle=0.6,
        swing=0.5,
        phase=0.7,
    )
    body = spline(
        (0, 0.95), (50, 0.86), (90, 0.84), (130, 0.84), (180, 1), (230, 0.95), (270, 0.86), (310, 0.92)
    )
    shop.add(furry(rng, body, 0.07), (0.78, 0.44), relief=0.9)
    for x, phase in ((0.5, 0.4), (-0.5, 2.0)):
        shop.add(leg, (0.21, 0.38), (x, 0.2), (0, 0.28), swing=0.5, phase=phase, relief=0.7)
    head = shop.add(
        furry(rng, spline((0, 1), (30, 0.92), (90, 0.8), (180, 0.85), (270, 0.82), (330, 0.84)), 0.06),
        (0.42, 0.38), (0.72, -0.36), (0.12, -0.06), swing=0.14, phase=1.1,
        marks=[*_eye(0.1, -0.1, 0.085), (0.37, 0.03, 0.07, 0.06, INK), (0.26, 0.17, 0.12, 0.02, INK)],
    )  # fmt: skip
    ear = spline((0, 0.6), (90, 1), (180, 0.6), (270, 0.7))
    shop.add(
        ear, (0.15, 0.3), (-0.04, -0.22), (0, 0.14), paint=shop.trim, angle=0.35, swing=0.25, parent=head
    )


def car(shop: Workshop) -> None:
    """Body, cabin with windows, two wheels that turn; seen from the side."""
    tall = float(shop.rng.uniform(0.26, 0.4))
    glass: Colour = (0.55, 0.72, 0.8)
    windows: list[Mark] = [(-0.19, 0.02, 0.17, 0.17, glass), (0.21, 0.02, 0.17, 0.17, glass)]
    shop.add(box(3.5), (0.52, tall), (-0.08, -0.16), (0, -0.12), marks=windows, gloss=0.5, relief=0.5)
    lamps: list[Mark] = [
        (0.93, -0.04, 0.07, 0.08, WHITE),
        (-0.95, -0.04, 0.05, 0.08, (0.8, 0.1, 0.1)),
        (0, -0.02, 0.9, 0.03, shop.colours[3]),
    ]
    shop.add(box(5), (1.02, 0.32), (0, 0.14), marks=lamps, gloss=0.5, relief=0.55)
    hub: list[Mark] = [(0, 0, 0.13, 0.13, (0.75, 0.75, 0.78))]
    spokes: list[Mark] = [(0.07 * np.cos(a), 0.07 * np.sin(a), 0.035, 0.035, INK) for a in (0.5, 2.6, 4.7)]
    for x in (-0.56, 0.56):
        shop.add(
            ellipse(), (0.26, 0.26), (x, 0.42), paint=shop.dark, marks=hub + spokes, rolls=True, relief=0.4
        )


def caterpillar(shop: Workshop) -> None:
    """Beads in a row, each hinged to the one before; seen from above."""
    previous: int | None = None
    chain = []
    for index in range(5):
        chain.append((0.33 - 0.025 * index, -0.4 if index else 0.0, 0.9 * index))
    pieces: list[int] = []
    for index, (size, step_back, phase) in enumerate(chain):
        at = (step_back, 0.0) if index else (0.25, 0.0)
        previous = shop.add(
            ellipse(),
            (size, size),
            at,
            (-0.06, 0) if index else (0, 0),
            swing=0.32 if index else 0.0,
            phase=-phase,
            parent=previous,
        )
        pieces.append(previous)
    head = shop.add(
        ellipse(), (0.36, 0.36), (0.42, 0), (0.2, 0), paint=shop.trim, swing=0.2, gloss=0.4,
        marks=_eye(0.12, -0.17, 0.1) + _eye(0.12, 0.17, 0.1),
    )  # fmt: skip
    for side in (-1, 1):
        shop.add(
            box(3),
            (0.2, 0.035),
            (0.24, side * 0.1),
            (0.2, 0),
            paint=shop.dark,
            angle=side * 0.6,
            swing=0.3,
            parent=head,
        )


def duck(shop: Workshop) -> None:
    """A bath toy with a wing; seen from the side."""
    tail = spline(
        (0, 0.86), (60, 0.8), (90, 0.7), (140, 0.82), (180, 0.9), (205, 1.0), (235, 0.72), (300, 0.7)
    )
    shop.add(box(3), (0.26, 0.12), (0.72, -0.42), (0.14, 0), paint=shop.bright, swing=0.08, gloss=0.4)
    shop.add(tail, (1.0, 0.78), (0, 0.15), gloss=0.4, relief=0.95)
    shop.add(
        ellipse(),
        (0.44, 0.43),
        (0.42, -0.36),
        (0.04, -0.1),
        swing=0.1,
        marks=_eye(0.2, -0.08, 0.1),
        gloss=0.4,
    )
    wing = spline((0, 0.7), (90, 0.6), (150, 0.9), (190, 1), (230, 0.6), (300, 0.5))
    shop.add(
        wing, (0.48, 0.36), (0.12, 0.16), (-0.2, 0.04), paint=shop.trim, swing=0.3, phase=0.4, relief=0.6
    )


def robot(shop: Workshop) -> None:
    """A tin toy with arms, legs and a lamp; seen from the front."""
    for x, phase in ((-0.26, 0.0), (0.26, 3.14)):
        shop.add(
            box(5), (0.14, 0.28), (x, 0.5), (0, 0.2), paint=shop.dark, swing=0.3, phase=phase, relief=0.5
        )
    for side in (-1, 1):
        shop.add(
            box(4),
            (0.12, 0.36),
            (side * 0.5, -0.1),
            (0, 0.26),
            paint=shop.trim,
            angle=-side * 0.5,
            swing=0.5,
            phase=side * 1.57,
        )
    dial: list[Mark] = [
        (0, 0.1, 0.2, 0.2, WHITE),
        (0, 0.1, 0.14, 0.14, shop.colours[4]),
        (-0.25, -0.3, 0.05, 0.05, INK),
        (0.25, -0.3, 0.05, 0.05, INK),
    ]
    shop.add(box(7), (0.52, 0.54), (0, 0.12), marks=dial, gloss=0.45, relief=0.5)
    shop.add(box(3), (0.035, 0.2), (0, -0.85), (0, -0.12), paint=shop.dark, swing=0.2)
    face = _eye(-0.16, -0.02, 0.12) + _eye(0.16, -0.02, 0.12) + [(0.0, 0.19, 0.2, 0.035, INK)]
    shop.add(
        box(5),
        (0.4, 0.32),
        (0, -0.4),
        (0, -0.28),
        paint=shop.bright,
        swing=0.12,
        phase=0.9,
        marks=face,
        gloss=0.45,
        relief=0.5,
    )


def turtle(shop: Workshop) -> None:
    """A shell with flippers and head; seen from above."""
    flipper = spline((0, 1), (60, 0.6), (120, 0.6), (180, 0.8), (240, 0.6), (300, 0.6))
    for x, side, angle in ((0.45, -1, -0.7), (0.45, 1, 0.7), (-0.5, -1, -2.3), (-0.5, 1, 2.3)):
        shop.add(
            flipper,
            (0.4, 0.24),
            (x, side * 0.36),
            (0.34, 0),
            paint=shop.trim,
            angle=angle,
            swing=0.35,
            phase=x * 3 + side,
            relief=0.6,
        )
    shop.add(
        ellipse(),
        (0.3, 0.25),
        (0.68, 0),
        (0.2, 0),
        paint=shop.trim,
        swing=0.15,
        marks=_eye(0.1, -0.13, 0.07) + _eye(0.1, 0.13, 0.07),
    )
    shop.add(blob(shop.rng, 0.04), (0.82, 0.7), relief=1.0, gloss=0.35)


def trunk(shop: Workshop, tall: float) -> None:
    """An upright stem with bark, knots and tufts; `tall` is half its height."""
    wide = float(shop.rng.uniform(0.65, 0.85))
    bark = skin(shop.rng, [between(shop.colours[i], BARK, 0.55) for i in (5, 4, 1)], "bark")
    knots = [
        (
            float(shop.rng.uniform(-0.6, 0.6)) * wide,
            float(shop.rng.uniform(-1.5, 1.5)),
            0.08,
            0.12,
            shop.colours[5],
        )
        for _ in range(4)
    ]
    shop.add(box(9), (wide, tall), paint=bark, marks=knots, relief=0.85)
    for _ in range(3):
        y, side = float(shop.rng.uniform(-1.5, 1.2)), float(shop.rng.choice([-1, 1]))
        _foliage(shop, (side * wide, y), 0.36)


def bush(shop: Workshop) -> None:
    """A heap of foliage."""
    heap = (
        (-0.6, 0.1, 0.55),
        (0.65, 0.15, 0.55),
        (-0.3, -0.55, 0.5),
        (0.35, -0.6, 0.55),
        (0.0, -0.1, 0.7),
        (0.0, -1.0, 0.45),
    )
    for x, y, size in heap:
        _foliage(shop, (x, y), size)


def _foliage(shop: Workshop, at: tuple[float, float], size: float) -> None:
    greens = [between(shop.colours[i], GREEN, 0.5) for i in (5, 4, 1)]
    lobes = np.abs(np.sin(int(shop.rng.integers(8, 13)) / 2 * bearings() + shop.rng.uniform(0, 3)))
    outline = scaled(blob(shop.rng, 0.2) * (0.8 + 0.2 * lobes))
    wide = size * float(shop.rng.uniform(0.9, 1.2))
    paint = skin(shop.rng, greens, "leaves")
    shop.add(outline, (wide, 0.85 * size), at, paint=paint, swing=0.07, phase=3 * at[0])


KINDS: dict[str, tuple[Callable[[Workshop], None], Gait, tuple[str, ...]]] = {
    # builder, how it moves, the patterns that suit it
    "fruit": (fruit, "rock", ("speckles", "marble", "spots", "stripes")),
    "ball": (ball, "spin", ("checker", "stripes", "spots", "rings", "patches")),
    "starfish": (starfish, "spin", ("spots", "speckles", "scales", "marble")),
    "leaf": (leaf, "spin", ("marble", "stripes", "patches", "speckles")),
    "fish": (fish, "rock", ("stripes", "scales", "spots", "marble", "patches")),
    "beetle": (beetle, "heading", ("spots", "stripes", "marble", "rings")),
    "butterfly": (butterfly, "heading", ("stripes", "spots", "scales", "patches")),
    "dog": (dog, "rock", ("fur", "patches", "spots", "stripes")),
    "car": (car, "upright", ("patches", "checker", "stripes", "marble")),
    "caterpillar": (caterpillar, "heading", ("fur", "spots", "rings", "scales")),
    "duck": (duck, "rock", ("speckles", "fur", "scales", "patches")),
    "robot": (robot, "rock", ("checker", "speckles", "stripes", "rings")),
    "turtle": (turtle, "heading", ("scales", "patches", "rings", "spots")),
}
SEMANTIC = {kind: number for number, kind in enumerate(KINDS, start=1)}


def build(kind: str, rng: np.random.Generator, colours: Sequence[Colour], texels: float) -> tuple[Part, ...]:
    """The parts of a random individual, back to front."""
    builder, _, patterns = KINDS[kind]
    shop = Workshop(rng, colours, str(rng.choice(patterns)), texels)
    builder(shop)
    return tuple(shop.parts)

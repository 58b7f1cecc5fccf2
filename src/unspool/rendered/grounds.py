"""What creatures move over: meadow, bricks, tiles, planks, pebbles, hills, sand, cloth, camouflage."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from unspool.rendered.textures import Array, Colour, Noise, clamped, mix, ramp, step

Ground = Callable[[Noise, Array, Array, Sequence[Colour]], Array]


def paint_ground(
    name: str, rng: np.random.Generator, xs: Array, ys: Array, colours: Sequence[Colour]
) -> Array:
    """The named ground at world coordinates, [h, w, 3]; colours base, second, accent, light, deep, dark."""
    noise = Noise.seeded(rng)
    order = [*rng.permutation(3), 3, 4, 5]
    picture = GROUNDS[name](noise, xs + np.float32(20), ys + np.float32(20), [colours[i] for i in order])
    broad = noise.fractal(xs - 5, ys + 9, 0.9, 2)
    fine = noise.fractal(xs + 3, ys + 2, 26.0, 3, rough=0.9)
    mean, grey = picture.mean((0, 1)), picture.mean(2, keepdims=True)
    quiet: Array = 0.55 * picture + 0.2 * grey + 0.25 * mean  # than what moves over it
    quiet *= ((0.78 + 0.44 * broad) * (0.8 + 0.4 * fine))[..., None]
    return clamped(quiet)


def _meadow(noise: Noise, xs: Array, ys: Array, colours: Sequence[Colour]) -> Array:
    patches = noise.fractal(xs, ys, 2.5, 4)
    blades = noise.fractal(xs + 4, ys, 34.0, 3, stretch=6, rough=0.8)
    picture = ramp(
        clamped(0.15 + 0.5 * patches + 0.7 * (blades - 0.4)),
        (colours[5], colours[4], colours[0], colours[1]),
    )
    nearest, _, value = noise.cells(xs, ys, 7.0)
    flower = (1 - step(nearest, 0.16, 0.08)) * (value > 0.55)
    picture = mix(picture, ramp(value * 2 - 1, (colours[2], colours[3])), flower)
    return mix(picture, colours[1], (1 - step(nearest, 0.06, 0.05)) * (value > 0.55))


def _bricks(noise: Noise, xs: Array, ys: Array, colours: Sequence[Colour]) -> Array:
    row = np.floor(ys * 7)
    along = xs[None] * 3.2 + 0.5 * (row % 2)[:, None]
    tone = noise.values[(row.astype(np.int64) % 61)[:, None], np.floor(along).astype(np.int64) % 61]
    rough = noise.fractal(xs, ys, 9.0, 4)
    wobble = 0.05 * (rough - 0.5)
    edge = np.minimum(0.5 - np.abs(along % 1 - 0.5), 0.45 * (0.5 - np.abs(ys * 7 % 1 - 0.5))[:, None])
    brick = ramp(clamped(0.8 * tone + 0.35 * (rough - 0.3)), (colours[4], colours[0], colours[1], colours[2]))
    mortar = ramp(rough, (colours[1], colours[3]))
    return mix(
        mortar, brick * (0.75 + 0.25 * step(edge, 0.09, 0.12))[..., None], step(edge + wobble, 0.035, 0.03)
    )


def _tiles(noise: Noise, xs: Array, ys: Array, colours: Sequence[Colour]) -> Array:
    u, v = (xs * 3.5)[None], (ys * 3.5)[:, None]
    parity = (np.floor(u) + np.floor(v)) % 2
    du, dv = u % 1 - 0.5, v % 1 - 0.5
    ring = np.hypot(du, dv)
    field = noise.fractal(xs, ys, 5.0, 4)
    tile = mix(
        ramp(field, (colours[3], colours[1])),
        ramp(field, (colours[0], colours[4])),
        parity.astype(np.float32),
    )
    petal = step(np.cos(4 * np.arctan2(dv, du)) * 0.16 + 0.24 - ring, 0, 0.04)
    tile = mix(tile, ramp(field, (colours[2], colours[0])), petal * (0.4 + 0.6 * parity))
    tile = mix(tile, colours[2], step(0.02 - np.abs(ring - 0.42), 0, 0.02) * (1 - parity))
    edge = 0.5 - np.maximum(np.abs(du), np.abs(dv))
    return mix(np.full_like(tile, 1) * np.asarray(colours[5], np.float32), tile, step(edge, 0.025, 0.02))


def _planks(noise: Noise, xs: Array, ys: Array, colours: Sequence[Colour]) -> Array:
    row = np.floor(ys * 4)
    tone = noise.values[row.astype(np.int64) % 61, 7][:, None]
    shifted = noise.fractal(ys * 3, xs * 3 + 1, 2.0, 4, stretch=7, rough=0.7).T
    grain = 0.5 + 0.5 * np.sin(26 * shifted + 3 * tone)
    nearest, _, value = noise.cells(xs * np.float32(0.8), ys, 2.0)
    knot = (1 - step(nearest, 0.1, 0.1)) * (value > 0.6)
    board = ramp(clamped(0.55 * grain + 0.6 * tone - 0.1), (colours[4], colours[0], colours[2], colours[1]))
    board = mix(board, colours[5], 0.8 * knot)
    edge = (0.5 - np.abs(ys * 4 % 1 - 0.5))[:, None] + 0 * xs[None]
    return board * (0.25 + 0.75 * step(edge, 0.03, 0.04))[..., None]


def _pebbles(noise: Noise, xs: Array, ys: Array, colours: Sequence[Colour]) -> Array:
    nearest, gap, value = noise.cells(xs, ys, 5.0)
    speckle = noise.fractal(xs, ys, 14.0, 3, rough=0.8)
    stone = ramp(
        clamped(value + 0.5 * (speckle - 0.5)),
        (colours[4], colours[0], colours[3], colours[1], colours[2]),
    )
    return mix(
        ramp(speckle, (colours[5], colours[4])),
        stone * (1.1 - 0.6 * nearest)[..., None],
        step(gap, 0.1, 0.12),
    )


def _hills(noise: Noise, xs: Array, ys: Array, colours: Sequence[Colour]) -> Array:
    height = (ys[:, None] - 20) + 0.75
    clouds = noise.fractal(xs, ys, 1.4, 5, stretch=0.5)
    picture = mix(
        ramp(clamped(height * 0.8 + 0 * xs[None]), (colours[1], colours[3])),
        colours[3],
        step(clouds, 0.6, 0.25),
    )
    for layer, (top, low, high) in enumerate(((0.4, 4, 1), (0.62, 0, 4), (0.88, 2, 0), (1.12, 5, 1))):
        ridge = noise.fractal(xs + 5 * layer, np.asarray([3.0 * layer], np.float32), 1.6 + 0.6 * layer, 4)[0]
        texture = noise.fractal(xs + layer, ys, 7.0 + 3 * layer, 4, stretch=2.0, rough=0.8)
        over = step(height - top + 0.3 * (ridge[None] - 0.5) + 0.02 * (texture - 0.5), 0, 0.012)
        picture = mix(picture, ramp(texture, (colours[5], colours[low], colours[high])), over)
    return picture


def _sand(noise: Noise, xs: Array, ys: Array, colours: Sequence[Colour]) -> Array:
    bend = noise.fractal(xs, ys, 1.3, 4)
    ripple = 0.5 + 0.5 * np.sin(38 * (ys[:, None] + 0.1 * xs[None] + 0.35 * bend))
    picture = ramp(clamped(0.55 * ripple + 0.5 * bend), (colours[4], colours[0], colours[1], colours[3]))
    nearest, _, value = noise.cells(xs, ys, 6.0)
    return mix(
        picture,
        ramp(value, (colours[2], colours[5], colours[0])),
        (1 - step(nearest, 0.17, 0.06)) * (value > 0.4),
    )


def _cloth(noise: Noise, xs: Array, ys: Array, colours: Sequence[Colour]) -> Array:
    weave = 0.5 + 0.5 * np.sin(xs * 190)[None] * np.sin(ys * 190)[:, None]
    across = step(np.sin(xs * 13), 0.2, 0.1)[None] * np.ones_like(ys)[:, None]
    down = step(np.sin(ys * 13), 0.2, 0.1)[:, None] * np.ones_like(xs)[None]
    thin: Array = np.maximum(
        step(np.cos(xs * 13), 0.97, 0.02)[None], step(np.cos(ys * 13), 0.97, 0.02)[:, None]
    )
    picture = ramp(clamped(0.5 * across + 0.5 * down), (colours[0], colours[1], colours[2]))
    picture = mix(picture, colours[3], np.float32(0.8) * thin)
    folds = noise.fractal(xs, ys, 1.6, 3, stretch=2.5)
    return picture * ((0.82 + 0.25 * weave) * (0.7 + 0.6 * folds))[..., None]


def _camouflage(noise: Noise, xs: Array, ys: Array, colours: Sequence[Colour]) -> Array:
    picture = ramp(noise.fractal(xs, ys, 8.0, 3), (colours[4], colours[0]))
    for layer, colour in enumerate((colours[1], colours[2], colours[3], colours[0])):
        field = noise.fractal(xs + 11 * layer, ys - 5 * layer, 2.6 + 0.7 * layer, 4)
        picture = mix(picture, colour, step(field, 0.6, 0.03) * (0.75 + 0.25 * noise.smooth(xs, ys, 20)))
    return picture


GROUNDS: dict[str, Ground] = {
    "meadow": _meadow,
    "bricks": _bricks,
    "tiles": _tiles,
    "planks": _planks,
    "pebbles": _pebbles,
    "hills": _hills,
    "sand": _sand,
    "cloth": _cloth,
    "camouflage": _camouflage,
}

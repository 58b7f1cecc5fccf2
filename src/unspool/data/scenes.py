"""Rendered clips as footage: a pool of scenes, each another world, that stands beside real videos.

Evaluation on rendered clips uses seeds below `FIRST_SEED`, training those from it on, so none is in both.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from unspool.data.footage import Footage
from unspool.errors import UsageError
from unspool.rendered import Scene

FIRST_SEED = 1_000_000


def scenes(
    count: int, *, seed: int = 0, size: tuple[int, int] = (256, 384), frames: int = 40, fps: int = 24
) -> tuple[Footage, ...]:
    """`count` scenes of `size` (H, W), px, and `frames` frames; equal seeds give equal scenes.

    Each draws how many objects it has, how they move and deform, the camera, light, blur and noise.
    A larger count begins with the scenes of a smaller one. Raises UsageError for no scenes.
    """
    if count < 1:
        raise UsageError(f"rendered clips: {count} scenes were asked for; give 1 or more")
    drawn = [_scene(seed, number, size, frames, fps) for number in range(count)]
    return tuple(
        Footage(f"rendered:{s.seed}", f"rendered-{s.seed}", frames, *size, float(fps), scene=s) for s in drawn
    )


def _scene(seed: int, number: int, size: tuple[int, int], frames: int, fps: int) -> Scene:
    rng = np.random.default_rng((seed, number))
    objects = int(rng.integers(1, 8))
    return Scene(
        seed=FIRST_SEED + int(rng.integers(2**40)),
        height=size[0],
        width=size[1],
        frames=frames,
        fps=Fraction(fps),
        objects=objects,
        lookalikes=int(rng.integers(0, min(objects, 3))),
        occluders=int(rng.integers(0, 3)),
        clutter=int(rng.integers(0, 80)),
        motion=rng.uniform(0.3, 2.0),
        deformation=rng.uniform(0.2, 1.4),
        camera=rng.uniform(0.0, 1.6),
        light=rng.uniform(0.2, 1.6),
        shutter=rng.uniform(0.0, 0.8),
        grain=rng.uniform(0.0, 8.0),
    )

"""From a seed to a stage: who is there, how they look and move, on which ground, in what light."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import exp, hypot, pi, sqrt

import numpy as np

from unspool.errors import UsageError
from unspool.rendered import creatures
from unspool.rendered.creatures import KINDS, SEMANTIC
from unspool.rendered.drawing import Box, box_around, cast_shadow, draw, lay_over
from unspool.rendered.grounds import GROUNDS, paint_ground
from unspool.rendered.motion import Affine, Body, Camera, Path, Pose, Sway, Wave, affine, compose, joints
from unspool.rendered.parts import Part, Workshop
from unspool.rendered.textures import Array, Colour, Packed, between, pack, palette

OWN = 0.75  # how far an object's base colour is from the scene's palette, 0..1
CLUTTER = ("leaf", "fruit", "ball", "starfish", "leaf", "fruit")
STILL = Sway(0.0, 1.0, 0.0)
MOST = 254  # objects: their ids are uint8, and 255 means void


@dataclass(frozen=True)
class Scene:
    """What is rendered. Equal scenes give equal bytes."""

    seed: int = 0
    height: int = 256  # px, >= 16
    width: int = 256  # px, >= 16
    frames: int = 48  # >= 1
    fps: Fraction | int = Fraction(24)  # frames per second
    objects: int = 4  # 1..254; all start in the picture
    lookalikes: int = 1  # how many of the objects look like another one, 0..objects-1
    occluders: int = 1  # things in the foreground that belong to no object, 0..8
    clutter: int = 40  # small things on the ground in the objects' colours, 0..200
    kinds: tuple[str, ...] = tuple(KINDS)  # what the objects are drawn from
    grounds: tuple[str, ...] = tuple(GROUNDS)  # what the ground is drawn from
    motion: float = 1.0  # speed of objects, 0 stand still .. 3
    deformation: float = 1.0  # of objects, 0 rigid .. 1.5
    camera: float = 1.0  # pan, zoom and roll, 0 fixed .. 2
    light: float = 1.0  # change of light, 0 none .. 2
    shutter: float = 0.5  # share of the frame's time in which it is exposed, 0 sharp .. 1
    grain: float = 3.0  # standard deviation of the sensor's noise, 8-bit levels

    def __post_init__(self) -> None:
        for name, valid, rule in (
            ("seed", self.seed >= 0, "0 or more"),
            ("height", self.height >= 16, "16 px or more"),
            ("width", self.width >= 16, "16 px or more"),
            ("frames", self.frames >= 1, "1 or more"),
            ("fps", self.fps > 0, "above 0"),
            ("objects", 1 <= self.objects <= MOST, f"1 to {MOST}"),
            ("lookalikes", 0 <= self.lookalikes < self.objects, "0 to objects - 1"),
            ("occluders", 0 <= self.occluders <= 8, "0 to 8"),
            ("clutter", 0 <= self.clutter <= 200, "0 to 200"),
            ("kinds", self.kinds and set(self.kinds) <= set(KINDS), f"some of {', '.join(KINDS)}"),
            ("grounds", self.grounds and set(self.grounds) <= set(GROUNDS), f"some of {', '.join(GROUNDS)}"),
            ("motion", 0 <= self.motion <= 3, "0 to 3"),
            ("deformation", 0 <= self.deformation <= 1.5, "0 to 1.5"),
            ("camera", 0 <= self.camera <= 2, "0 to 2"),
            ("light", 0 <= self.light <= 2, "0 to 2"),
            ("shutter", 0 <= self.shutter <= 1, "0 to 1"),
            ("grain", self.grain >= 0, "0 or more"),
        ):
            if not valid:
                raise UsageError(f"scene.{name} = {getattr(self, name)!r} is out of range; it is {rule}")

    @property
    def aspect(self) -> tuple[float, float]:
        """Half width and half height in world units: the short side is 1."""
        short = min(self.width, self.height)
        return self.width / short / 2, self.height / short / 2


@dataclass(frozen=True)
class Lamp:
    """Brightness, tint and a soft spot, all wandering."""

    gain: Sway  # natural logarithm
    warmth: Sway  # natural logarithm, red up and blue down
    spot: tuple[Sway, Sway]  # px shares of its centre's travel
    depth: float  # how much darker it is far from the spot, 0..1

    def lit(self, picture: Array, time: float) -> None:
        """Light `picture` [H, W, 4] (changed)."""
        height, width = picture.shape[:2]
        gain, warmth = exp(self.gain.at(time) - 0.05), self.warmth.at(time)
        x = (np.arange(width, dtype=np.float32) + np.float32(0.5)) / width - np.float32(
            0.4 + self.spot[0].at(time)
        )
        y = (np.arange(height, dtype=np.float32) + np.float32(0.5)) / height - np.float32(
            0.35 + self.spot[1].at(time)
        )
        falloff = np.exp(-1.6 * y * y)[:, None] * np.exp(-1.6 * x * x)
        falloff *= np.float32(self.depth)
        falloff += np.float32(1.06 - self.depth)
        picture *= falloff[..., None]
        picture *= np.array([gain * exp(warmth), gain, gain * exp(-warmth), 1], np.float32)


@dataclass(frozen=True)
class Look:
    """What objects that look alike share."""

    kind: str
    parts: tuple[Part, ...]
    scale: float  # world units per object unit


@dataclass(frozen=True)
class Actor:
    """A body in the picture: an object, or something of the foreground (id 0)."""

    body: Body
    label: int
    semantic: int


class Stage:
    """Everything of a scene that does not depend on the frame."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.camera = _camera(scene)
        self.lamp = _lamp(scene)
        self.colours = palette(_stream(scene, "palette"))
        self.objects = _objects(scene, self.colours)
        front = _occluders(scene, self.colours, [actor.body for actor in self.objects])
        order = _stream(scene, "depth").permutation(scene.objects)
        self.actors = [self.objects[i] for i in order] + front  # back to front
        self.semantic = np.array(
            [0, *(actor.semantic for actor in self.objects)], np.uint8
        )  # class of every id
        self._density = float(min(scene.height, scene.width))  # texels of the ground per world unit
        self._reach = [r + 2 / self._density for r in self.camera.reach]  # world units that the ground covers

    @property
    def to_texels(self) -> Affine:
        """World units to the ground's texel coordinates, in which texel centres are whole numbers."""
        a, b, c, d, e, f = self._to_ground
        return a, b, c - 0.5, d, e, f - 0.5

    @property
    def _to_ground(self) -> Affine:
        half_x, half_y = self._reach
        return affine(0.0, self._density, self._density, (half_x * self._density, half_y * self._density))

    @cached_property
    def ground(self) -> Packed:
        """All ground that the camera can see, with clutter on it."""
        xs, ys = (
            (np.arange(int(2 * r * self._density) + 2, dtype=np.float32) + np.float32(0.5))
            / np.float32(self._density)
            - np.float32(r)
            for r in self._reach
        )
        name = str(_stream(self.scene, "ground").choice(self.scene.grounds))
        picture = np.ones((len(ys), len(xs), 4), np.float32)
        picture[..., :3] = paint_ground(name, _stream(self.scene, "ground noise"), xs, ys, self.colours)
        picture *= 255
        for pose in self._clutter():
            _stamp(picture, pose)
        picture *= np.float32(1 / 255)
        return pack(picture[..., :3])

    def _clutter(self) -> Iterator[Pose]:
        """Small still things on the ground: half of them shrunken objects, half fruits, leaves and stars."""
        rng = _stream(self.scene, "clutter")
        size = self.objects[0].body.scale
        texels = 0.7 * self._density * size
        small = [
            creatures.build(kind, _stream(self.scene, "clutter", i), _coat(rng, self.colours), texels)
            for i, kind in enumerate(CLUTTER)
        ]
        shapes = [shape for a, b in zip(small, self.objects, strict=False) for shape in (a, b.body.parts)]
        for index in range(self.scene.clutter):
            chosen = shapes[index % len(shapes)]
            scale = size * float(rng.uniform(0.3, 0.62))
            place = float(rng.uniform(-1, 1) * self._reach[0]), float(rng.uniform(-1, 1) * self._reach[1])
            at = affine(float(rng.uniform(-pi, pi)), scale, scale, place)
            yield Pose(chosen, compose(self._to_ground, at), joints(chosen, 0.0, 0.0))


def _stamp(picture: Array, pose: Pose) -> None:
    """Paint a still thing with its shadow on `picture` (changed)."""
    frame = Box(0, picture.shape[0], 0, picture.shape[1])
    box = box_around(pose.contours) & frame
    if not box.empty:
        cast_shadow(picture, pose, 0.3)
        lay_over(picture[box.within(frame)], draw(pose, box))


def _stream(scene: Scene, *name: str | int) -> np.random.Generator:
    """Random numbers of their own for every use, so that one never shifts another."""
    key = [n if isinstance(n, int) else int.from_bytes(n.encode(), "big") for n in name]
    return np.random.default_rng([scene.seed, *key])


def _camera(scene: Scene) -> Camera:
    rng = _stream(scene, "camera")
    much = scene.camera
    pan = Sway.random(rng, 0.13 * much, (3, 7)), Sway.random(rng, 0.07 * much, (3, 7))
    zoom, roll = Sway.random(rng, 0.07 * much, (3, 8)), Sway.random(rng, 0.03 * much, (3, 8))
    return Camera((scene.height, scene.width), pan, zoom, roll)


def _lamp(scene: Scene) -> Lamp:
    rng = _stream(scene, "lamp")
    much = scene.light
    spot = Sway.random(rng, 0.25 * much, (2, 6)), Sway.random(rng, 0.2 * much, (2, 6))
    return Lamp(
        Sway.random(rng, 0.1 * much, (1.5, 5)),
        Sway.random(rng, 0.05 * much, (2, 6)),
        spot,
        0.35 * min(much, 1.5),
    )


# ----------------------------------------------------------------------------------------- objects


def _objects(scene: Scene, colours: Sequence[Colour]) -> list[Actor]:
    rng = _stream(scene, "objects")
    scale = float(np.clip(0.4 / sqrt(scene.objects), 0.05, 0.22))
    starts = _spread(rng, scene, scene.objects, 0.75 * scale)
    looks = []
    for index, kind in enumerate(_deal(rng, scene.kinds, scene.objects - scene.lookalikes)):
        size, coat = scale * float(rng.uniform(0.85, 1.15)), _coat(rng, colours)
        texels = 1.25 * min(scene.height, scene.width) * size
        looks.append(Look(kind, creatures.build(kind, _stream(scene, "looks", index), coat, texels), size))
    actors = []
    for index, start in enumerate(starts):
        look, moves = looks[index % len(looks)], _stream(scene, "moves", index)
        body = _body(moves, scene, look, start, _far(moves, scene, index, starts, look.scale))
        actors.append(Actor(body, index + 1, SEMANTIC[look.kind]))
    return actors


def _coat(rng: np.random.Generator, colours: Sequence[Colour]) -> list[Colour]:
    """The scene's colours in another order, drawn towards a colour of the object's own."""
    own = colorsys.hsv_to_rgb(
        float(rng.random()), float(rng.uniform(0.45, 0.9)), float(rng.uniform(0.5, 1.0))
    )
    first, second, third = rng.permutation(4)[:3].tolist()
    mixed = [between(colours[first], own, OWN), between(colours[second], own, OWN / 3), colours[third]]
    return [*mixed, colours[3], between(colours[4], own, OWN / 2), colours[5]]


def _deal(rng: np.random.Generator, kinds: Sequence[str], count: int) -> list[str]:
    """`count` of `kinds`, none again before all have been dealt."""
    rounds = -(-count // len(kinds))
    return [kinds[i] for _ in range(rounds) for i in rng.permutation(len(kinds))][:count]


def _spread(rng: np.random.Generator, scene: Scene, count: int, margin: float) -> list[tuple[float, float]]:
    """Places in view, far from each other: each the best of many random ones."""
    half = np.maximum(np.array(scene.aspect) - 1.2 * margin, 0.02)
    chosen = [rng.uniform(-half, half)]
    for _ in range(count - 1):
        trial = rng.uniform(-half, half, (40, 2))
        chosen.append(trial[np.linalg.norm(trial[:, None] - np.array(chosen), axis=2).min(1).argmax()])
    return [(float(x), float(y)) for x, y in chosen]


def _far(
    rng: np.random.Generator, scene: Scene, index: int, starts: Sequence[tuple[float, float]], size: float
) -> tuple[float, float]:
    """Where a path turns: out of view, across another object, or somewhere in view."""
    half_x, half_y = scene.aspect
    x, y = starts[index]
    way = (index + scene.seed) % 3
    if way == 0:
        side = 1.0 if x > 0 else -1.0
        return side * (half_x + 1.2 * size), float(np.clip(y + rng.uniform(-0.3, 0.3), -half_y, half_y))
    if way == 1 and len(starts) > 1:
        other = starts[(index + 1) % len(starts)]
        reach = float(rng.uniform(1.1, 1.5))
        return x + reach * (other[0] - x), y + reach * (other[1] - y)
    return float(rng.uniform(-half_x, half_x)), float(rng.uniform(-half_y, half_y))


def _body(
    rng: np.random.Generator, scene: Scene, look: Look, start: tuple[float, float], far: tuple[float, float]
) -> Body:
    length = hypot(far[0] - start[0], far[1] - start[1])
    speed = float(rng.uniform(0.2, 0.38))  # short sides per second, on average
    gait = KINDS[look.kind][1]
    slender = {"heading": (0.5, 0.8), "upright": (0.0, 0.15)}.get(gait, (0.1, 0.5))
    breadth = float(rng.uniform(*slender) * rng.choice([-1, 1]))
    wobble = Sway.random(rng, 0.03, (1.5, 3)), Sway.random(rng, 0.0 if gait == "upright" else 0.03, (1.5, 3))
    much = scene.deformation
    return Body(
        parts=look.parts,
        path=Path(start, far, breadth, min(pi * speed / max(length, 0.2), 2.6), wobble),
        gait=gait,
        scale=look.scale,
        mirrored=gait in ("rock", "upright") and far[0] < start[0],
        rate=float(rng.uniform(5, 9)),
        turn=Sway.random(rng, {"rock": 0.22, "upright": 0.04}.get(gait, 0.1), (1.5, 3.5)),
        breath=Sway.random(rng, 0.09 * much, (2, 5)),
        squash=Sway.random(rng, 0.07 * much, (0.8, 2)),
        waves=tuple(_wave(rng, axis, much * (0.4 if gait == "upright" else 1.0)) for axis in (1, 0, 1)),
    )


def _wave(rng: np.random.Generator, axis: int, much: float) -> Wave:
    number = float(rng.uniform(1.5, 3.2))
    size = float(rng.uniform(0.08, 0.2)) * much / number
    return Wave(
        axis, size, number, float(rng.uniform(2, 6) * rng.choice([-1, 1])), float(rng.uniform(0, 2 * pi))
    )


# -------------------------------------------------------------------------------------- foreground


def _occluders(scene: Scene, colours: Sequence[Colour], bodies: Sequence[Body]) -> list[Actor]:
    """Trunks and bushes in the way of objects, as far as possible from where these start."""
    rng = _stream(scene, "occluders")
    half_x, half_y = scene.aspect
    scale = 1.5 * bodies[0].scale
    texels = scale * min(scene.height, scene.width)
    starts, fars = np.array([(body.path.start[0], body.path.far[0]) for body in bodies]).T
    taken = list(starts)
    actors = []
    for index in range(scene.occluders):
        way = rng.integers(len(bodies), size=40)
        trial = starts[way] + rng.uniform(0.3, 0.7, 40) * (fars - starts)[way]  # where objects pass
        trial = np.clip(trial, -0.9 * half_x, 0.9 * half_x)
        x = float(trial[np.abs(trial[:, None] - np.array(taken)).min(1).argmax()])
        taken.append(x)
        shop = Workshop(_stream(scene, "occluder", index), colours, "fur", texels)
        low = bool(rng.random() < 0.5)
        if low:
            creatures.bush(shop)
        else:
            creatures.trunk(shop, 2.3 * half_y / scale)
        body = Body(
            parts=tuple(shop.parts),
            path=Path.standing((x, half_y if low else 0.0)),
            gait="rock",
            scale=scale,
            mirrored=False,
            rate=2.0,
            turn=Sway.random(rng, 0.015, (2, 5)),
            breath=STILL,
            squash=STILL,
            waves=(_wave(rng, 0, 0.3),),
            parallax=1.12,
        )
        actors.append(Actor(body, 0, 0))
    return actors

"""Rendered clips: seeded, endless, with exact truth, one frame at a time.

Frame t is a function of (scene, t) alone: any order, any number of workers, the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from unspool.rendered.creatures import SEMANTIC
from unspool.rendered.drawing import Box, box_around, cast_shadow, draw, draw_ground, lay_over, owners
from unspool.rendered.motion import Affine, Points, Pose, compose, inverse
from unspool.rendered.stage import Actor, Scene, Stage
from unspool.rendered.textures import Array

__all__ = ["SEMANTIC", "RenderedClip", "RenderedFrame", "RenderedVideo", "Scene", "demo_scene", "render"]

Image = npt.NDArray[np.uint8]  # [H, W, 3] RGB
Labels = npt.NDArray[np.uint8]  # [H, W]

SMEAR = 2.2  # px that anything may move between two exposures that are averaged
EXPOSURES = 5  # at most, in one frame
DEMOS = (633, 934, 252, 481, 782, 26, 676)  # seeds of the scenes to show


@dataclass(frozen=True, eq=False)
class RenderedFrame:
    """A picture and all that is known about it, at the middle of its exposure."""

    image: Image  # [H, W, 3] RGB
    labels: Labels  # [H, W] ids 1..K of the objects, 0 elsewhere
    semantic: Labels  # [H, W] class of the object, 0 elsewhere; numbers of `SEMANTIC`
    flow: Array  # [H, W, 2] px (dx, dy): where what this pixel shows is in the next frame, hidden or not
    visibility: Array  # [K] share of each object's own area that the picture shows, 0..1
    time: Fraction  # s


def render(seed: int = 0, **scene: Any) -> RenderedClip:
    """A clip of the scene with these fields, see `Scene`. Raises UsageError for values out of range."""
    return RenderedClip(Scene(seed=seed, **scene))


def demo_scene(seed: int = 0) -> Scene:
    """A scene to show, one of seven that were looked at; `seed` counts through them.

    Three objects are in view at the start, two of them alike; one vanishes and comes back.
    """
    return Scene(
        seed=DEMOS[seed % len(DEMOS)],
        height=256,
        width=448,
        frames=48,
        fps=Fraction(16),
        objects=3,
        clutter=24,
        motion=1.3,
    )


class RenderedClip:
    """A sequence of `RenderedFrame`; `video` is the same as a video, without the truth."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.stage = Stage(scene)
        self._frame = Box(0, scene.height, 0, scene.width)

    def __reduce__(self) -> tuple[type[RenderedClip], tuple[Scene]]:
        return RenderedClip, (self.scene,)  # a worker builds its own stage: patterns are closures

    def __len__(self) -> int:
        return self.scene.frames

    def __getitem__(self, index: int) -> RenderedFrame:
        """The index-th frame; negative counts from the end."""
        t = self._checked(index)
        truth = self._truth(t)
        return RenderedFrame(
            image=self.image(t),
            labels=truth.labels,
            semantic=self.stage.semantic[truth.labels],
            flow=self._flow(t, truth),
            visibility=truth.visibility,
            time=self.video.times[t],
        )

    def __iter__(self) -> Iterator[RenderedFrame]:
        return (self[t] for t in range(len(self)))

    @property
    def ids(self) -> tuple[int, ...]:
        """Of the objects."""
        return tuple(range(1, self.scene.objects + 1))

    @property
    def video(self) -> RenderedVideo:
        """The pictures alone, as `open_video` would give them."""
        return RenderedVideo(self)

    def labels(self, index: int) -> Labels:
        """[H, W] ids of frame `index`, 0 elsewhere; many times faster than the frame."""
        return self._truth(self._checked(index)).labels

    def visibility(self, index: int) -> Array:
        """[K] share of each object's own area that frame `index` shows, 0..1."""
        return self._truth(self._checked(index)).visibility

    def image(self, index: int) -> Image:
        """[H, W, 3] RGB of frame `index`."""
        t = self._checked(index)
        picture = self._ground(t)
        for actor in self.stage.actors:
            self._put(picture, actor, t)
        self.stage.lamp.lit(picture, self._seconds(t))
        image = picture[..., :3]
        if self.scene.grain:
            rng = np.random.default_rng([self.scene.seed, t])
            noise = rng.standard_normal(image.shape, np.float32)
            noise *= np.float32(self.scene.grain)
            image = np.add(image, noise, out=noise)
        return np.rint(np.clip(image, 0, 255)).astype(np.uint8)

    # -------------------------------------------------------------------------------------- picture

    def _checked(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.video.source}: frame {index} asked for, there are {len(self)}")
        return index % len(self)

    def _seconds(self, t: float) -> float:
        return t / float(self.scene.fps)

    def _pose(self, actor: Actor, t: float) -> Pose:
        """At frame time `t`; fractions lie between frames."""
        seconds = self._seconds(t)
        return actor.body.pose(
            self.scene.motion * seconds, self.stage.camera.view(seconds, actor.body.parallax)
        )

    def _view(self, t: float) -> Affine:
        return self.stage.camera.view(self._seconds(t))

    def _exposures(self, t: int, smear: float) -> list[float]:
        """Frame times that are averaged where things move `smear` px while the shutter is open."""
        number = min(EXPOSURES, max(1, ceil(smear / SMEAR)))
        return [t + self.scene.shutter * ((i + 0.5) / number - 0.5) for i in range(number)]

    def _ground(self, t: int) -> Array:
        """[H, W, 4] the ground alone, 0..255."""
        half = self.scene.shutter / 2
        opened, closed = (np.array(self._view(at)).reshape(2, 3) for at in (t - half, t + half))
        corners = np.array([[x, y, 1.0] for x in (-0.5, 0.5) for y in (-0.5, 0.5)])
        times = self._exposures(t, float(np.abs(corners @ (closed - opened).T).max()))
        total = np.zeros((self.scene.height, self.scene.width, 4), np.float32)
        for time in times:
            total += draw_ground(
                self.stage.ground, compose(self.stage.to_texels, inverse(self._view(time))), self._frame
            )
        total *= np.float32(1 / len(times))
        return total

    def _put(self, picture: Array, actor: Actor, t: int) -> None:
        """Lay the actor, blurred by its motion, and its shadow over `picture` (changed)."""
        half = self.scene.shutter / 2
        opened, closed = (self._pose(actor, at).contours for at in (t - half, t + half))
        times = self._exposures(t, float(np.abs(closed - opened).max()))
        poses = [self._pose(actor, time) for time in times]
        cast_shadow(picture, poses[len(poses) // 2], 0.42)
        box = box_around(np.stack([opened, closed, *(pose.contours for pose in poses)])) & self._frame
        if box.empty:
            return
        layer = draw(poses[0], box)
        for pose in poses[1:]:
            layer += draw(pose, box)
        layer *= np.float32(1 / len(poses))
        lay_over(picture[box.within(self._frame)], layer)

    # ---------------------------------------------------------------------------------------- truth

    def _truth(self, t: int) -> _Truth:
        shape = self.scene.height, self.scene.width
        actors, parts = np.zeros(shape, np.uint16), np.zeros(shape, np.uint8)
        area = np.ones(self.scene.objects + 1)
        for number, actor in enumerate(self.stage.actors, start=1):
            pose = self._pose(actor, t)
            box = box_around(pose.contours)
            shown = box & self._frame
            if shown.empty:
                continue
            if not actor.label:
                box = shown
            owner = owners(pose, box)
            area[actor.label] = max(1, int(np.count_nonzero(owner)))
            owner = owner[shown.within(box)]
            at, inside = shown.within(self._frame), owner > 0
            actors[at][inside] = number
            parts[at][inside] = owner[inside]
        label_of = np.array([0, *(a.label for a in self.stage.actors)], np.uint8)
        labels = label_of[actors]
        seen = np.bincount(labels.ravel(), minlength=self.scene.objects + 1)
        return _Truth(labels, actors, parts, (seen / area)[1:].astype(np.float32))

    def _flow(self, t: int, truth: _Truth) -> Array:
        x, y = self._frame.grid
        a, b, c, d, e, f = compose(self._view(t + 1), inverse(self._view(t)))
        flow = np.empty((self.scene.height, self.scene.width, 2), np.float32)
        flow[..., 0] = (a - 1) * x + (b * y + c)[:, None]
        flow[..., 1] = d * x + ((e - 1) * y + f)[:, None]
        for number, actor in enumerate(self.stage.actors, start=1):
            rows, columns = np.nonzero(truth.actors == number)
            if len(rows):
                here: Points = np.stack([columns, rows], -1) + np.float64(0.5)
                flow[rows, columns] = self._carried(actor, t, here, truth.parts[rows, columns]) - here
        return flow

    def _carried(self, actor: Actor, t: int, pixels: Points, parts: Labels) -> Points:
        """Where the points of the actor at `pixels` [n, 2], on parts 1.. [n], are in frame t + 1."""
        now, then = self._pose(actor, t), self._pose(actor, t + 1)
        steps = [compose(b, inverse(a)) for a, b in zip(now.to_object, then.to_object, strict=True)]
        a, b, c, d, e, f = np.array(steps)[parts - 1].T
        x, y = now.object_points(pixels).T
        return then.pixels(np.stack([a * x + b * y + c, d * x + e * y + f], -1))


@dataclass(frozen=True, eq=False)
class _Truth:
    labels: Labels  # [H, W]
    actors: npt.NDArray[np.uint16]  # [H, W] 1.. from back to front, 0 ground
    parts: Labels  # [H, W] 1.. of that actor
    visibility: Array  # [K]


class RenderedVideo:
    """The pictures of a clip, with the face of `unspool.Video`."""

    def __init__(self, clip: RenderedClip) -> None:
        self._clip = clip
        scene = clip.scene
        self.name = f"rendered-{scene.seed}"
        self.source = f"rendered:seed={scene.seed}"
        self.height, self.width = scene.height, scene.width
        self.fps = Fraction(scene.fps)
        self.pixel_aspect = Fraction(1)
        self.frame_names: list[str] | None = None
        self.times: Sequence[Fraction] = _Times(scene.frames, self.fps)  # s

    def __len__(self) -> int:
        return len(self._clip)

    def __getitem__(self, index: int) -> Image:
        return self._clip.image(index)

    def __iter__(self) -> Iterator[Image]:
        return (self._clip.image(t) for t in range(len(self)))

    def close(self) -> None:
        """Nothing is held open."""

    def __enter__(self) -> RenderedVideo:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Times(Sequence[Fraction]):
    """Frame t is at t / fps; nothing is stored."""

    def __init__(self, frames: int, fps: Fraction) -> None:
        self._numbers, self._fps = range(frames), fps

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Fraction: ...
    @overload
    def __getitem__(self, index: slice) -> list[Fraction]: ...
    def __getitem__(self, index: int | slice) -> Fraction | list[Fraction]:
        chosen = self._numbers[index]
        return [t / self._fps for t in chosen] if isinstance(chosen, range) else chosen / self._fps

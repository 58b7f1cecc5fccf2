"""Pixels from poses: which part covers a pixel, and what it looks like there."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor

import numpy as np
import numpy.typing as npt

from unspool.rendered.creatures import BEARINGS, Affine, Part
from unspool.rendered.motion import Body, Points, Pose, compose, inverse
from unspool.rendered.textures import Array, Packed, look_up

LIGHT = np.array([-0.48, -0.6, 0.64])  # unit vector to the lamp: from the upper left, in front
HALFWAY = (LIGHT + (0, 0, 1)) / np.linalg.norm(LIGHT + (0, 0, 1))
SLACK = 0.08  # of a part's extent, around the box of its contour points
SHADOW = (0.14, 0.2)  # object units that a shadow falls beside its object


@dataclass(frozen=True)
class Box:
    """Pixels top <= y < bottom, left <= x < right; may reach beyond the picture."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def empty(self) -> bool:
        """Whether no pixel is inside."""
        return self.top >= self.bottom or self.left >= self.right

    def __and__(self, other: Box) -> Box:
        return Box(
            max(self.top, other.top),
            min(self.bottom, other.bottom),
            max(self.left, other.left),
            min(self.right, other.right),
        )

    def within(self, outer: Box) -> tuple[slice, slice]:
        """As slices of an array that covers `outer`."""
        return (
            slice(self.top - outer.top, self.bottom - outer.top),
            slice(self.left - outer.left, self.right - outer.left),
        )

    @property
    def grid(self) -> tuple[Array, Array]:
        """Centres of columns and rows, px."""
        return (
            np.arange(self.left, self.right, dtype=np.float32) + np.float32(0.5),
            np.arange(self.top, self.bottom, dtype=np.float32) + np.float32(0.5),
        )


def box_around(points: Points) -> Box:
    """The box of contour points [..., 2] with slack for what lies between them."""
    (x0, y0), (x1, y1) = points.reshape(-1, 2).min(0), points.reshape(-1, 2).max(0)
    dx, dy = SLACK * (x1 - x0) + 2, SLACK * (y1 - y0) + 2
    return Box(floor(y0 - dy), ceil(y1 + dy), floor(x0 - dx), ceil(x1 + dx))


def _part_points(to_object: Affine, x: Array, y: Array) -> tuple[Array, Array]:
    (a, b, c), (d, e, f) = inverse(to_object).astype(np.float32)
    u, v = a * x + b * y, d * x + e * y
    u += c
    v += f
    return u, v


def _bearing(u: Array, v: Array) -> npt.NDArray[np.int32]:
    angle = np.arctan2(v, u)
    angle *= np.float32(BEARINGS / (2 * np.pi))
    angle += np.float32(BEARINGS * 1.5)
    return angle.astype(np.int32) & (BEARINGS - 1)


def owners(body: Body, pose: Pose, box: Box) -> npt.NDArray[np.uint8]:
    """[h, w] of `box`: 1 + index of the front part that holds the pixel's centre; 0 outside the body."""
    owner = np.zeros((box.bottom - box.top, box.right - box.left), np.uint8)
    if box.empty:
        return owner
    x, y = pose.object_points(*box.grid)
    outlines = pose.contours(body.parts)
    for index, (part, to_object) in enumerate(zip(body.parts, pose.parts, strict=True)):
        inner = box_around(outlines[index]) & box
        if inner.empty:
            continue
        at = inner.within(box)
        u, v = _part_points(to_object, x[at], y[at])
        bearing = _bearing(u, v)
        u *= u
        v *= v
        u += v
        np.sqrt(u, out=u)
        u *= part.inverse_radius.take(bearing)
        owner[at][u < 1] = index + 1
    return owner


def draw(body: Body, pose: Pose, box: Box) -> Array:
    """The body's picture [h, w, 4] in `box`: colours 0..255 times coverage, and coverage 0..255."""
    layer = np.zeros((box.bottom - box.top, box.right - box.left, 4), np.float32)
    x, y = pose.object_points(*box.grid)
    outlines = pose.contours(body.parts)
    for part, to_object, outline in zip(body.parts, pose.parts, outlines, strict=True):
        inner = box_around(outline) & box
        if not inner.empty:
            at = inner.within(box)
            _draw_part(layer[at], part, compose(pose.to_pixels, to_object), to_object, x[at], y[at])
    return layer


def _draw_part(layer: Array, part: Part, to_pixels: Affine, to_object: Affine, x: Array, y: Array) -> None:
    """Lay one part over `layer` (changed)."""
    u, v = _part_points(to_object, x, y)
    bearing = _bearing(u, v)
    stretch = part.inverse_radius.take(bearing)
    normal_x, normal_y = u * stretch, v * stretch
    square = normal_x * normal_x
    square += normal_y * normal_y
    cover = 1 - np.sqrt(square)
    pixels_per_unit = np.sqrt(abs(np.linalg.det(to_pixels[:, :2]) / np.linalg.det(to_object[:, :2])))
    cover *= part.rim.take(bearing)
    cover *= np.float32(pixels_per_unit)
    cover += np.float32(0.5)
    np.clip(cover, 0, 1, out=cover)
    height, width = part.texture.shape
    u += 1
    u *= np.float32(width / 2)
    u -= np.float32(0.5)
    v += 1
    v *= np.float32(height / 2)
    v -= np.float32(0.5)
    colour = look_up(part.texture, u, v)
    _shade(colour, part, to_pixels, normal_x, normal_y, square)
    colour *= cover[..., None]
    np.subtract(1, cover, out=cover)
    layer *= cover[..., None]
    layer += colour


def _shade(
    colour: Array, part: Part, to_pixels: Affine, normal_x: Array, normal_y: Array, square: Array
) -> None:
    """Light the colours (changed) as on a cushion whose slope grows towards the rim."""
    np.minimum(square, 1, out=square)
    axes = to_pixels[:, :2] / np.linalg.norm(to_pixels[:, :2], axis=0)
    lamp = (LIGHT[:2] @ axes).astype(np.float32)
    facing = np.sqrt(1 - square)
    diffuse = lamp[0] * normal_x + lamp[1] * normal_y
    if part.gloss:
        shine = (HALFWAY[:2] @ axes).astype(np.float32)
        glint = shine[0] * normal_x
        glint += shine[1] * normal_y
        glint += np.float32(HALFWAY[2]) * facing
        np.clip(glint, 0, 1, out=glint)
        for _ in range(5):
            glint *= glint
        glint *= np.float32(170 * part.gloss)
    facing *= np.float32(LIGHT[2])
    diffuse += facing
    np.maximum(diffuse, -0.15, out=diffuse)
    diffuse *= np.float32(0.8 * part.relief)
    diffuse += np.float32(1 - 0.5 * part.relief)
    square *= square
    square *= square
    square *= np.float32(-0.25)
    square += 1
    diffuse *= square
    colour[..., :3] *= diffuse[..., None]
    if part.gloss:
        colour[..., :3] += glint[..., None]


def cast_shadow(picture: Array, body: Body, pose: Pose, strength: float) -> None:
    """Darken `picture` [H, W, 3] (changed) softly beside the large parts of the body."""
    frame = Box(0, picture.shape[0], 0, picture.shape[1])
    outlines = pose.contours(body.parts)
    unit = np.sqrt(abs(np.linalg.det(pose.to_pixels[:, :2])))
    offset = np.array(SHADOW) * unit
    largest = max(p.size[0] * p.size[1] for p in body.parts)
    large = [i for i, p in enumerate(body.parts) if p.size[0] * p.size[1] > 0.18 * largest]
    points = outlines[large]
    middle = points.mean(1, keepdims=True)
    box = box_around(middle + 1.25 * (points - middle) + offset) & frame
    if box.empty:
        return
    x, y = box.grid
    shade = np.zeros((len(y), len(x)), np.float32)
    for index in large:
        to_pixels = compose(pose.to_pixels, pose.parts[index])
        to_pixels[:, 2] += offset
        u, v = _part_points(to_pixels, x[None], y[:, None])
        u *= u
        v *= v
        u += v
        np.subtract(np.float32(1.45), u, out=u)
        np.maximum(shade, u, out=shade)
    np.minimum(shade, 1, out=shade)
    shade *= shade
    shade *= np.float32(-strength)
    shade += 1
    picture[box.within(frame)] *= shade[..., None]


def draw_ground(ground: Packed, to_texels: Affine, box: Box) -> Array:
    """The ground [h, w, 4] in `box`, 0..255; `to_texels` from pixels to its texel coordinates."""
    x, y = box.grid
    (a, b, c), (d, e, f) = to_texels.astype(np.float32)
    return look_up(ground, a * x + (b * y + c)[:, None], d * x + (e * y + f)[:, None])

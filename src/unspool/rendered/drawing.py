"""Pixels from poses: which part covers a pixel, and what it looks like there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, floor, hypot

import numpy as np
import numpy.typing as npt

from unspool.rendered.motion import Affine, Points, Pose, compose, inverse, unit_length
from unspool.rendered.parts import BEARINGS, Part
from unspool.rendered.textures import Array, Packed, look_up

LAMP = (-0.48, -0.6, 0.64)  # unit vector to the light: from the upper left, in front
HALFWAY = tuple(x / hypot(-0.48, -0.6, 1.64) for x in (-0.48, -0.6, 1.64))  # between lamp and eye
SLACK = 0.08  # of a part's extent, around the box of its contour points
SHADOW = (0.14, 0.2)  # object units that a shadow falls beside its object
CASTS = 0.18  # of the largest part's area: smaller parts cast no shadow


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
    def shape(self) -> tuple[int, int]:
        """Height, width."""
        return self.bottom - self.top, self.right - self.left

    @property
    def grid(self) -> tuple[Array, Array]:
        """Centres of columns and rows, px."""
        return (
            np.arange(self.left, self.right, dtype=np.float32) + np.float32(0.5),
            np.arange(self.top, self.bottom, dtype=np.float32) + np.float32(0.5),
        )


def box_around(points: Points) -> Box:
    """The box of contour points [..., 2] with slack for what lies between them."""
    (x0, y0), (x1, y1) = points.reshape(-1, 2).min(0).tolist(), points.reshape(-1, 2).max(0).tolist()
    dx, dy = SLACK * (x1 - x0) + 2, SLACK * (y1 - y0) + 2
    return Box(floor(y0 - dy), ceil(y1 + dy), floor(x0 - dx), ceil(x1 + dx))


# ------------------------------------------------------------------------------------------- parts


@dataclass(frozen=True, eq=False)
class _Piece:
    """A part and the pixels [h, w] that it may cover."""

    index: int
    part: Part
    to_pixels: Affine  # from its half-axes, waves aside
    across: Array  # [h, w] its own coordinates, half-axes
    down: Array
    at: tuple[slice, slice]  # where these pixels are in the box

    @property
    def bearing(self) -> npt.NDArray[np.int32]:
        """[h, w] index of the direction from the part's centre."""
        angle = np.arctan2(self.down, self.across)
        angle *= np.float32(BEARINGS / (2 * np.pi))
        angle += np.float32(BEARINGS * 1.5)
        return angle.astype(np.int32) & (BEARINGS - 1)


def _pieces(pose: Pose, box: Box) -> Iterator[_Piece]:
    """The parts that may touch `box`, back to front."""
    x, y = pose.object_grid(*box.grid)
    for index, (part, to_object) in enumerate(zip(pose.parts, pose.to_object, strict=True)):
        inner = box_around(pose.contours[index]) & box
        if not inner.empty:
            at = inner.within(box)
            across, down = _apply(inverse(to_object), x[at], y[at])
            yield _Piece(index, part, compose(pose.to_pixels, to_object), across, down, at)


def _apply(matrix: Affine, x: Array, y: Array) -> tuple[Array, Array]:
    a, b, c, d, e, f = map(np.float32, matrix)
    u, v = a * x + b * y, d * x + e * y
    u += c
    v += f
    return u, v


def owners(pose: Pose, box: Box) -> npt.NDArray[np.uint8]:
    """[h, w] of `box`: 1 + index of the front part that holds the pixel's centre; 0 outside the body."""
    owner = np.zeros(box.shape, np.uint8)
    for piece in _pieces(pose, box):
        distance = np.hypot(piece.across, piece.down)
        distance *= piece.part.inverse_radius.take(piece.bearing)
        owner[piece.at][distance < 1] = piece.index + 1
    return owner


def draw(pose: Pose, box: Box) -> Array:
    """The body's picture [h, w, 4] in `box`: colours 0..255 times coverage, and coverage 0..255."""
    layer = np.zeros((*box.shape, 4), np.float32)
    for piece in _pieces(pose, box):
        bearing = piece.bearing
        stretch = piece.part.inverse_radius.take(bearing)
        normal = piece.across * stretch, piece.down * stretch
        square = normal[0] * normal[0]
        square += normal[1] * normal[1]
        cover = _coverage(piece, square, bearing)
        colour = _texture(piece)
        diffuse, glint = _shading(piece, normal, square)
        diffuse *= cover
        colour *= diffuse[..., None]
        if glint is not None:
            glint *= cover
            colour += glint[..., None]
        np.multiply(cover, 255, out=colour[..., 3])
        np.subtract(1, cover, out=cover)
        below = layer[piece.at]
        below *= cover[..., None]
        below += colour
    return layer


def _coverage(piece: _Piece, square: Array, bearing: npt.NDArray[np.int32]) -> Array:
    """[h, w] 0..1 share of the pixel, from its distance to the outline; `square` is 1 there."""
    cover = np.sqrt(square)
    np.subtract(1, cover, out=cover)
    cover *= piece.part.rim.take(bearing)
    cover *= np.float32(unit_length(piece.to_pixels) / np.sqrt(piece.part.size[0] * piece.part.size[1]))
    cover += np.float32(0.5)
    return np.clip(cover, 0, 1, out=cover)


def _texture(piece: _Piece) -> Array:
    """Colours [h, w, 4]; uses the piece's coordinates up."""
    height, width = piece.part.texture.shape
    x, y = piece.across, piece.down
    x += np.float32(1 - 1 / width)
    x *= np.float32(width / 2)
    y += np.float32(1 - 1 / height)
    y *= np.float32(height / 2)
    return look_up(piece.part.texture, x, y)


def _shading(piece: _Piece, normal: tuple[Array, Array], square: Array) -> tuple[Array, Array | None]:
    """Light on a cushion whose slope grows towards the rim: factor, and highlight in 0..255 if it is glossy.

    `normal` [h, w] are the components in the picture's plane, `square` their length squared (changed).
    """
    part = piece.part
    a, b, _, d, e, _ = piece.to_pixels
    columns = (a / hypot(a, d), d / hypot(a, d)), (b / hypot(b, e), e / hypot(b, e))
    np.minimum(square, 1, out=square)
    facing = np.sqrt(1 - square)

    def towards(light: tuple[float, ...]) -> Array:
        x, y = (np.float32(light[0] * column[0] + light[1] * column[1]) for column in columns)
        cosine = x * normal[0]
        cosine += y * normal[1]
        cosine += np.float32(light[2]) * facing
        return cosine

    glint = None
    if part.gloss:
        glint = np.clip(towards(HALFWAY), 0, 1)
        for _ in range(5):
            glint *= glint
        glint *= np.float32(170 * part.gloss)
    diffuse = towards(LAMP)
    np.maximum(diffuse, -0.15, out=diffuse)
    diffuse *= np.float32(0.8 * part.relief)
    diffuse += np.float32(1 - 0.5 * part.relief)
    square *= square
    square *= square
    square *= np.float32(-0.25)  # creases are dark
    square += 1
    diffuse *= square
    return diffuse, glint


# ------------------------------------------------------------------------------------------ layers


def cast_shadow(picture: Array, pose: Pose, strength: float) -> None:
    """Darken `picture` [H, W, 4] (changed) softly beside the large parts of the body."""
    frame = Box(0, picture.shape[0], 0, picture.shape[1])
    offset = np.array(SHADOW) * unit_length(pose.to_pixels)
    areas = [part.size[0] * part.size[1] for part in pose.parts]
    large = [index for index, area in enumerate(areas) if area > CASTS * max(areas)]
    points = pose.contours[large]
    middle = points.mean(1, keepdims=True)
    box = box_around(middle + 1.25 * (points - middle) + offset) & frame
    if box.empty:
        return
    x, y = box.grid
    shade = np.zeros(box.shape, np.float32)
    for index in large:
        a, b, c, d, e, f = compose(pose.to_pixels, pose.to_object[index])
        u, v = _apply(inverse((a, b, c + float(offset[0]), d, e, f + float(offset[1]))), x[None], y[:, None])
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


def lay_over(picture: Array, layer: Array) -> None:
    """Put a layer of `draw` over `picture` [h, w, 4]; both are changed."""
    cover = layer[..., 3:]
    picture *= 1 - cover * np.float32(1 / 255)
    np.minimum(layer[..., :3], cover, out=layer[..., :3])  # no highlight is brighter than white
    picture += layer


def draw_ground(ground: Packed, to_texels: Affine, box: Box) -> Array:
    """The ground [h, w, 4] in `box`, 0..255; `to_texels` from pixels to its texel coordinates."""
    x, y = box.grid
    a, b, c, d, e, f = map(np.float32, to_texels)
    return look_up(ground, a * x + (b * y + c)[:, None], d * x + (e * y + f)[:, None])

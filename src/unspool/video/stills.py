"""A video that is a folder, or a glob, of images."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from unspool.errors import VideoError
from unspool.video.source import Place

Picture = npt.NDArray[np.uint8]  # [H, W, 3] RGB

Notice = Callable[[str], None]

ORIENTATION = 0x0112  # EXIF: which transposition shows the picture upright
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Stills:
    """Images in natural order at a constant rate; all of one size."""

    def __init__(self, source: Place, fps: Fraction) -> None:
        self.source, self.fps = source, fps
        self.pixel_aspect = Fraction(1)
        self._images = source.images()
        if not self._images:
            raise VideoError(f"{source}: {_nothing_found(source)}")
        self.names = [posixpath.splitext(posixpath.basename(image.path))[0] for image in self._images]
        _refuse_equal_names(source, self.names, self._images)
        self.width, self.height = _common_size(self._images)

    def __len__(self) -> int:
        return len(self._images)

    def time(self, index: int) -> Fraction:
        """Seconds from the start."""
        return index / self.fps

    def at(self, index: int, notice: Notice) -> Picture:
        """The index-th image as `[H, W, 3]` RGB. Raises VideoError."""
        picture = read(self._images[index])
        if picture.shape != (self.height, self.width, 3):
            raise _odd_one(self._images[index], picture.shape[1::-1], (self.width, self.height))
        return picture

    def pictures(self, notice: Notice) -> Iterator[Picture]:
        """All images in order; an unreadable one is an error, not a notice."""
        return (self.at(index, notice) for index in range(len(self)))

    def close(self) -> None:
        """Nothing is held open."""


def _nothing_found(source: Place) -> str:
    kinds = "jpg, jpeg, png, webp or ppm"
    if source.is_pattern:
        return f"no image matches this pattern ({kinds}); check the path, and quote it in the shell"
    return f"holds no images ({kinds}); give a folder of frames, or a video file"


def _refuse_equal_names(source: Place, names: list[str], images: list[Place]) -> None:
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        first, second = [posixpath.basename(i.path) for i, n in zip(images, names, strict=True) if n == name][
            :2
        ]
        raise VideoError(
            f"{source}: {first} and {second} are the same frame twice; "
            f"choose one kind with a glob such as '*{posixpath.splitext(first)[1]}'"
        )


def _common_size(images: list[Place]) -> tuple[int, int]:
    """Width and height, from the headers; behind an address only the first is looked at beforehand."""
    sizes = [_size(image) for image in (images if images[0].files is None else images[:1])]
    usual = Counter(sizes).most_common(1)[0][0]
    for image, size in zip(images, sizes, strict=False):
        if size != usual:
            raise _odd_one(image, size, usual)
    return usual


def _odd_one(image: Place, size: tuple[int, ...], usual: tuple[int, int]) -> VideoError:
    return VideoError(
        f"{image}: is {size[0]}x{size[1]}, but the other frames are {usual[0]}x{usual[1]}; "
        "a video has one size, take that frame out or resize it"
    )


def _size(place: Place) -> tuple[int, int]:
    try:
        with place.open() as file, Image.open(file) as image:
            width, height = image.size
            turned = _orientation(image) >= 5
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _unreadable(place, error) from error
    return (height, width) if turned else (width, height)


def _orientation(image: Image.Image) -> int:
    """By the header alone: for a PNG, Pillow would decode all of it to look behind the pixels."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    return int(image.getexif().get(ORIENTATION, 1))


def read(place: Place) -> Picture:
    """One image `[H, W, 3]`, uint8 RGB, upright, on white where transparent. Raises VideoError."""
    try:
        with place.open() as file, Image.open(file) as opened:
            turn = UPRIGHT.get(_orientation(opened))
            image: Image.Image = opened if turn is None else opened.transpose(turn)
            if image.mode.startswith("I;16"):  # 16-bit grey: keep the upper byte, convert() would clip
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if image.has_transparency_data:  # as GIF and WebM with alpha: on white
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _unreadable(place, error) from error


def _unreadable(place: Place, error: Exception) -> VideoError:
    reason = str(error).split(":")[-1].strip() or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        reason = "it is empty, or no image"
    return VideoError(
        f"{place}: frame cannot be read ({reason}); replace this image, unpack it again, or take it out of "
        "the folder"
    )

"""A video that is a folder, or a glob, of images."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from unspool.errors import VideoError
from unspool.video.source import Place

Picture = npt.NDArray[np.uint8]  # [H, W, 3] RGB

Notice = Callable[[str], None]

ORIENTATION = 0x0112  # EXIF; 5 to 8 swap height and width


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
        image = self._images[index]
        picture = _read(image)
        if picture.shape != (self.height, self.width, 3):
            raise VideoError(f"{image}: has changed since the folder was opened; open it again")
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
    """Width and height, from the headers alone."""
    sizes = [_size(image) for image in images]
    usual, times = Counter(sizes).most_common(1)[0]
    if times < len(sizes):
        odd = next(i for i, size in enumerate(sizes) if size != usual)
        raise VideoError(
            f"{images[odd]}: is {sizes[odd][0]}x{sizes[odd][1]}, but {times} of {len(sizes)} frames are "
            f"{usual[0]}x{usual[1]}; a video has one size, take that frame out or resize it"
        )
    return usual


def _size(place: Place) -> tuple[int, int]:
    try:
        with place.open() as file, Image.open(file) as image:
            width, height = image.size
            turned = image.getexif().get(ORIENTATION, 1) >= 5
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _unreadable(place, error) from error
    return (height, width) if turned else (width, height)


def _read(place: Place) -> Picture:
    try:
        with place.open() as file, Image.open(file) as opened:
            image: Image.Image = ImageOps.exif_transpose(opened)
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
    return VideoError(
        f"{place}: frame cannot be read ({reason}); replace this image or take it out of the folder"
    )

"""Masks as files and as strings: indexed PNG, COCO run lengths, colours, the overlay.

A label map is `[H, W]` of integers: 0 = background, other values = object ids, 255 = void in ground truth.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import IO, Any, TypedDict

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, UInt8
from PIL import Image
from pycocotools import mask as coco

from unspool.errors import MaskError, OutputError, UnspoolWarning

Labels = npt.NDArray[np.integer[Any]]  # [H, W]; uint8, or uint16 beyond 255 ids
Colour = tuple[int, int, int]

VOID = 255
RARE = 0.0005  # share of the pixels below which an id is more likely a smoothed edge than an object
LOSSY = {"JPEG", "MPO", "WEBP", "JPEG2000", "AVIF"}


class Rle(TypedDict):
    """COCO's compressed run lengths: `size` [h, w], `counts` a string, column by column."""

    size: list[int]
    counts: str


# ------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True, eq=False)
class Mask:
    """Objects of one frame; void is already background."""

    labels: Labels  # [H, W]
    ids: tuple[int, ...]  # present in labels, ascending, without 0
    note: str = ""  # what was decided while reading; "" if nothing
    path: str = "mask"  # for messages


def read_mask(path: str | Path) -> Mask:
    """The objects of a mask image.

    An indexed or grey image keeps its values as ids, gaps included. If 0 and the greatest value (255, or
    65535 in 16 bits) are the only ones, the object becomes id 1; 255 beside other ids is void and becomes
    background (not in 16 bits, where it is an id). Colours, lossy formats and masks without an object are
    refused (MaskError); values that look like smoothed edges are named in an UnspoolWarning.
    """
    raw = _read_ids(Path(path))
    labels, note = _object_or_void(raw, path)
    ids = ids_in(labels)
    if not ids:
        raise MaskError(f"{path}: no object in this mask, every pixel is background; paint at least one id")
    return Mask(labels, ids, note, str(path))


def read_truth(path: str | Path) -> Labels:
    """The label map `[H, W]` of a ground truth as it is stored, 255 (void) included. Raises MaskError."""
    return _read_ids(Path(path))


def ids_in(labels: Labels) -> tuple[int, ...]:
    """The ids of a label map, ascending, without 0."""
    flat = labels.ravel()
    changes = flat[1:][flat[1:] != flat[:-1]]  # few, so that sorting them is nothing beside a histogram
    present = np.unique(np.append(changes, flat[:1]))
    return tuple(present[present > 0].tolist())


def _read_ids(path: Path) -> Labels:
    try:
        with Image.open(path) as image:
            _refuse_what_holds_no_ids(image, path)
            image.load()
            ids = np.asarray(image)
    except FileNotFoundError:
        raise MaskError(f"{path}: no such file; give the path of a mask image (indexed PNG)") from None
    except (OSError, SyntaxError, ValueError) as error:
        reason = "is empty (0 bytes)" if path.is_file() and not path.stat().st_size else str(error)
        raise MaskError(
            f"{path}: cannot be read as a mask ({reason}); save it as an indexed PNG, or unpack it again"
        ) from error
    if ids.dtype.itemsize == 1:  # 8 bits, or 1
        return ids.astype(np.uint8)
    if ids.min() < 0 or ids.max() > 65535:
        raise MaskError(
            f"{path}: values run from {ids.min()} to {ids.max()}, ids are 0 to 65535; renumber them"
        )
    return ids.astype(np.uint16)


def _refuse_what_holds_no_ids(image: Image.Image, path: Path) -> None:
    remedy = "save it as an indexed (palette) or grey PNG whose pixel values are the object ids"
    if image.format in LOSSY:
        raise MaskError(f"{path}: {image.format} is lossy and smears ids along edges; {remedy}")
    if image.mode not in {"P", "L", "1", "I", "I;16", "I;16B"}:
        raise MaskError(f"{path}: mask is {image.mode}, expected one channel of object ids; {remedy}")
    if (images := getattr(image, "n_frames", 1)) > 1:
        raise MaskError(f"{path}: holds {images} images, a mask is one; {remedy}")


def _object_or_void(raw: Labels, path: str | Path) -> tuple[Labels, str]:
    counts = np.bincount(raw.ravel())
    top = 255 if raw.dtype == np.uint8 else 65535
    between = [v for v in np.flatnonzero(counts).tolist() if 0 < v < top]
    rare = [v for v in between if counts[v] < RARE * raw.size]
    smoothed = len(rare) >= 3
    has_top = len(counts) == top + 1
    if smoothed:
        _warn_smoothed(path, rare, binary=has_top and rare == between)
    if has_top and (not between or (smoothed and rare == between)):
        return (raw > top // 2).astype(np.uint8), f"0 and {top} only: {top} is object 1"
    if has_top and top == VOID:
        return np.where(raw == VOID, 0, raw).astype(np.uint8), "255 beside other ids: 255 is void"
    return raw, ""


def _warn_smoothed(path: str | Path, rare: list[int], *, binary: bool) -> None:
    shown = ", ".join(map(str, rare[:8])) + (", ..." if len(rare) > 8 else "")
    done = "values above half became object 1" if binary else "they are kept as ids"
    warnings.warn(
        f"{path}: {len(rare)} values cover less than {RARE:.2%} of the pixels each ({shown}), as smoothed "
        f"edges do; {done}; if they are no objects, save the mask without smoothing",
        UnspoolWarning,
        stacklevel=4,
    )


def fit_mask(mask: Mask, size: tuple[int, int], *, resize: bool = False) -> Mask:
    """The mask at the video's size (h, w); another size is refused unless `resize` (nearest neighbour)."""
    height, width = mask.labels.shape
    if (height, width) == size:
        return mask
    if not resize:
        raise MaskError(
            f"{mask.path}: mask is {width}x{height}, but the video is {size[1]}x{size[0]}; draw it on a "
            "frame of the video, or pass --resize-mask to stretch it"
        )
    labels = resize_labels(mask.labels, size)
    ids = ids_in(labels)
    if lost := sorted(set(mask.ids) - set(ids)):
        raise MaskError(
            f"{mask.path}: shrinking from {width}x{height} to {size[1]}x{size[0]} leaves nothing of "
            f"ids {lost}; draw the mask at the video's size"
        )
    return replace(mask, labels=labels, ids=ids)


def resize_labels(labels: Labels, size: tuple[int, int]) -> Labels:
    """Nearest neighbour to (h, w): each new pixel takes the old one under its centre."""
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip(size, labels.shape, strict=True)
    )
    resized: Labels = labels[rows[:, None], columns]
    return resized


# ------------------------------------------------------------------------------------------- writing


@cache
def davis_palette() -> UInt8[np.ndarray, "256 3"]:
    """The palette of DAVIS and PASCAL VOC: the bits of the id, lowest first, fill R, G, B from the top."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")  # [256, 8]
    padded = np.pad(bits, ((0, 0), (0, 1))).reshape(256, 3, 3)  # [id, which 3 bits, channel]
    places = np.uint8(1) << np.array([7, 6, 5], np.uint8)
    return np.asarray((padded * places[:, None]).sum(1, dtype=np.uint8))


def write_mask(path: str | Path, labels: Labels) -> None:
    """Write ids as an indexed PNG with the DAVIS palette; whole or not at all.

    Ids above 255 do not fit: 16-bit grey instead, with an UnspoolWarning. Raises OutputError.
    """
    path = Path(path)
    if labels.dtype != np.uint8 and labels.max(initial=0) >= VOID:
        warnings.warn(
            f"{path.parent}: ids above 254 do not fit an indexed PNG; such masks are 16-bit grey PNG",
            UnspoolWarning,
            stacklevel=2,
        )
        image = Image.fromarray(labels.astype(np.uint16))
    else:
        image = Image.fromarray(labels.astype(np.uint8, copy=False))
        image.putpalette(davis_palette().tobytes())
    part = path.with_name(path.name + ".part")
    try:
        # Run-length deflate: as small as level 6 on label maps, in a third of the time.
        image.save(part, "PNG", compress_level=1, compress_type=3)
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise OutputError.of(path, error) from error


# --------------------------------------------------------------------------------------- run lengths


def encode_rle(mask: Bool[np.ndarray, "h w"]) -> Rle:
    """COCO's compressed run lengths of a binary mask."""
    encoded = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode("ascii")}


def decode_rle(rle: Rle) -> Bool[np.ndarray, "h w"]:
    """The binary mask of compressed run lengths. Raises MaskError where they do not fill their size."""
    counts = rle["counts"]
    raw = {"size": rle["size"], "counts": counts.encode("ascii") if isinstance(counts, str) else counts}
    try:
        return np.asarray(coco.decode(raw), bool)
    except (ValueError, KeyError) as error:
        raise MaskError(f"run lengths of size {rle['size']} cannot be decoded ({error})") from error


def label_rles(labels: Labels) -> dict[int, Rle]:
    """Run lengths of every id, from one pass over the label map; equal to `encode_rle(labels == id)`."""
    height, width = labels.shape
    columns = labels.T.ravel()
    starts = np.concatenate(([0], np.flatnonzero(columns[1:] != columns[:-1]) + 1))
    ends = np.append(starts[1:], columns.size)
    values = columns[starts]
    found: dict[int, Rle] = {}
    for label in ids_in(values):
        mine = values == label
        edges = np.stack((starts[mine], ends[mine]), axis=1).ravel()
        counts = np.diff(edges, prepend=0, append=columns.size)
        kept = counts if counts[-1] else counts[:-1]  # COCO never ends on an empty run
        rle = coco.frPyObjects({"size": [height, width], "counts": kept.tolist()}, height, width)
        found[label] = {"size": [height, width], "counts": rle["counts"].decode("ascii")}
    return found


class TracksWriter:
    """Writes one video's `tracks.json` (YouTube-VIS layout, one record per object) in flat memory.

    `segmentations` (run lengths), `bboxes` ([x, y, w, h], px) and `areas` (px) have one entry per frame,
    null where the object is absent. Until `close` sorts them by object, they wait in a file beside the
    result, found again by their offsets (16 bytes per frame and object in memory).
    """

    def __init__(self, path: str | Path, *, name: str, height: int, width: int) -> None:
        self.path, self.name = Path(path), name
        self.height, self.width = height, width
        self.frames = 0
        self._at: dict[int, tuple[array[int], array[int]]] = {}  # id -> frames, offsets in the spool
        self._end = 0
        self._spool_path = self.path.with_name(self.path.name + ".spool")
        self._part = self.path.with_name(self.path.name + ".part")
        with self._errors_named():
            self._spool: IO[bytes] = self._spool_path.open("w+b")

    def __enter__(self) -> TracksWriter:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def add(self, frame: int, labels: Labels) -> None:
        """Take the labels of a frame; frames come in order, objects may appear late."""
        assert frame == self.frames, f"frame {frame} given, {self.frames} expected"
        self.frames += 1
        with self._errors_named():
            for label, rle in label_rles(labels).items():
                frames, offsets = self._at.setdefault(label, (array("q"), array("q")))
                frames.append(frame)
                offsets.append(self._end)
                raw = {"size": rle["size"], "counts": rle["counts"].encode("ascii")}
                parts = _json(rle), _json(coco.toBbox(raw).tolist()), str(int(coco.area(raw)))
                self._end += self._spool.write("\t".join(parts).encode("ascii") + b"\n")

    def close(self) -> None:
        """Write the file, whole or not at all. Raises OutputError."""
        with self._errors_named():
            self._spool.flush()
            with self._part.open("w", encoding="ascii", newline="\n") as out:
                out.writelines(self._pieces())
            self._part.replace(self.path)
        self.abort()

    def abort(self) -> None:
        """Leave nothing behind but what was already whole."""
        with contextlib.suppress(OSError, AttributeError):
            self._spool.close()
        for leftover in (self._spool_path, self._part):
            leftover.unlink(missing_ok=True)

    def _pieces(self) -> Iterator[str]:
        size = {"width": self.width, "height": self.height}
        video = {"id": 1, **size, "length": self.frames}
        yield f'{{"videos":[{_json(video)[:-1]},"file_names":['
        for frame in range(self.frames):
            yield "," * bool(frame) + _json(f"{self.name}/{frame:05d}.jpg")
        yield ']}],"categories":[{"id":1,"name":"object"}],"annotations":['
        for position, label in enumerate(sorted(self._at)):
            record = {"id": label, "video_id": 1, "category_id": 1, "iscrowd": 0, **size}
            yield ("," * bool(position)) + "\n" + _json(record)[:-1]
            for part, key in enumerate(("segmentations", "bboxes", "areas")):
                yield f',"{key}":['
                yield from self._column(label, part)
                yield "]"
            yield "}"
        yield "\n]}\n"

    def _column(self, label: int, part: int) -> Iterator[str]:
        frames, offsets = self._at[label]
        upcoming = 0
        for frame in range(self.frames):
            comma = "," * bool(frame)
            if upcoming == len(frames) or frames[upcoming] != frame:
                yield comma + "null"
                continue
            self._spool.seek(offsets[upcoming])
            yield comma + self._spool.readline().decode("ascii").rstrip("\n").split("\t")[part]
            upcoming += 1

    @contextlib.contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.abort()
            raise OutputError.of(self.path, error) from error


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


# ------------------------------------------------------------------------------------------- showing

# Okabe and Ito, "Color universal design" (2008), without black.
OKABE_ITO: tuple[Colour, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66),
    (0, 114, 178), (213, 94, 0), (204, 121, 167),
)  # fmt: skip
# Linear RGB as seen without L or M cones: Machado et al. 2009, severity 1.0.
PROTANOPIA = [
    [0.152286, 1.052583, -0.204868],
    [0.114503, 0.786281, 0.099216],
    [-0.003882, -0.048116, 1.051998],
]
DEUTERANOPIA = [
    [0.367322, 0.860646, -0.227968],
    [0.280085, 0.672501, 0.047413],
    [-0.011820, 0.042940, 0.968881],
]


def display_colours(ids: Iterable[int]) -> dict[int, Colour]:
    """A colour (r, g, b) per id, the same id always the same; told apart by colour-blind people too."""
    colours = _distinct_colours()
    return {i: colours[(i - 1) % len(colours)] for i in ids}


@cache
def _distinct_colours() -> tuple[Colour, ...]:
    """Okabe-Ito, then 247 more, each the farthest from all before it, for the worst of three eyes."""
    levels = np.linspace(0, 255, 10).round().astype(np.uint8)
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    lightness = _as_seen(candidates)[0, :, 0]
    candidates = candidates[(lightness > 35) & (lightness < 90)]  # visible on white and on black
    known = np.array(OKABE_ITO, np.uint8)
    seen, of_known = _as_seen(candidates), _as_seen(known)  # [eye, n, 3]
    nearest = np.linalg.norm(seen[:, :, None] - of_known[:, None], axis=-1).min(axis=(0, 2))
    chosen = list(OKABE_ITO)
    while len(chosen) < 254:
        best = int(nearest.argmax())
        r, g, b = candidates[best].tolist()
        chosen.append((r, g, b))
        nearest = np.minimum(nearest, np.linalg.norm(seen - seen[:, best, None], axis=-1).min(0))
    return tuple(chosen)


def _as_seen(rgb: UInt8[np.ndarray, "n 3"]) -> npt.NDArray[np.float64]:
    """Colours in CIE Lab, [eye, n, 3], for normal, protanope and deuteranope eyes."""
    linear = (rgb / 255.0) ** 2.2
    eyes = np.stack([np.eye(3), np.array(PROTANOPIA), np.array(DEUTERANOPIA)])
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    white = to_xyz.sum(1)
    xyz = np.cbrt((np.einsum("eij,nj->eni", eyes, linear).clip(0, 1) @ to_xyz.T) / white)
    x, y, z = np.moveaxis(xyz, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def draw_overlay(
    image: UInt8[np.ndarray, "h w 3"],
    labels: Labels,
    colours: Mapping[int, Colour],
    opacity: float = 0.5,
) -> UInt8[np.ndarray, "h w 3"]:
    """The image with its objects tinted (`opacity` in 0..1) and outlined in full colour, one pixel wide.

    Ids without a colour, and the background, stay as they are.
    """
    out = image.copy()
    rows = np.flatnonzero(labels.any(axis=1))
    if not len(rows):
        return out
    band = slice(rows[0], rows[-1] + 1)  # whole rows, so that `pixels` is a view
    paint = np.zeros((3, max([*colours, int(labels.max())]) + 1), np.uint16)
    for label, colour in colours.items():
        paint[:, label] = colour
    strength = np.uint16(round(256 * opacity))
    inside = np.flatnonzero(_with_colour(labels[band], colours))
    ids = labels[band].ravel()[inside]
    edge = np.flatnonzero(_contour(labels)[band].ravel()[inside])
    pixels = out[band].reshape(-1)
    for channel in range(3):  # one at a time: three times faster than rows of three
        at = 3 * inside + channel
        mixed = pixels[at] * (np.uint16(256) - strength) + (paint[channel] * strength)[ids]
        mixed >>= 8
        mixed[edge] = paint[channel][ids[edge]]
        pixels[at] = mixed
    return out


def _with_colour(labels: Labels, colours: Mapping[int, Colour]) -> Labels:
    """The labels without those that have no colour."""
    missing = [i for i in ids_in(labels) if i not in colours]
    return np.where(np.isin(labels, missing), 0, labels) if missing else labels


def _contour(labels: Labels) -> Bool[np.ndarray, "h w"]:
    """Pixels with another label above, below, left or right of them."""
    edge = np.zeros(labels.shape, bool)
    across, down = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    return edge

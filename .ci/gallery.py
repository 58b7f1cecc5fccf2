"""The pictures of the gallery, from a result of `unspool demo`: python .ci/gallery.py FOLDER."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from unspool import open_video
from unspool.masks import display_colours, draw_overlay, resize_labels
from unspool.segments import read_hierarchy

SHOWN, WIDTH = 4, 320  # frames of a strip; px of each
CUTS = 4, 16  # clusters of the tree, a row each


def evenly(count: int) -> list[int]:
    """Numbers of the frames that are shown, of so many."""
    return [int(i) for i in np.linspace(0, count - 1, SHOWN).round()]


def side_by_side(frames: Sequence[np.ndarray]) -> np.ndarray:
    """Frames as a strip."""
    images = [Image.fromarray(frame) for frame in frames]
    height = round(WIDTH * images[0].height / images[0].width)
    return np.concatenate([np.asarray(i.resize((WIDTH, height))) for i in images], axis=1)


def strip(video: Path) -> np.ndarray:
    """Frames of a video, evenly apart."""
    with open_video(video) as frames:
        return side_by_side([frames[i] for i in evenly(len(frames))])


def cuts(video: Path, hierarchy: Path) -> np.ndarray:
    """The frames as a segmentation's tree cuts them, coarse above fine."""
    tree, rows = read_hierarchy(hierarchy), []
    with open_video(video) as frames:
        for clusters in CUTS:
            ids = tree.ids(clusters)
            colours = display_colours({int(i) for i in np.unique(ids)})
            shown = [(frames[tree.frames[i]], resize_labels(ids[i], tree.size)) for i in evenly(len(ids))]
            rows.append(side_by_side([draw_overlay(image, labels, colours) for image, labels in shown]))
    return np.concatenate(rows)


def main(result: Path) -> None:
    """Write the pictures where the page expects them."""
    target = Path(__file__).parents[1] / "docs" / "pictures"
    target.mkdir(exist_ok=True)
    clip, videos = result / "input" / "clip.mp4", result / "videos"
    pictures = {
        "clip": strip(clip),
        "rendered": strip(videos / "rendered" / "overlay.mp4"),
        "rendered-segmented": strip(videos / "rendered-segmented" / "overlay.mp4"),
        "rendered-cuts": cuts(clip, videos / "rendered-segmented" / "hierarchy.npz"),
    }
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(target / f"{name}.jpg", quality=85)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""The pictures of the gallery, from a result of `unspool demo`: python .ci/gallery.py FOLDER."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from unspool import open_video

SHOWN, WIDTH = 4, 320  # frames of a strip; px of each


def strip(video: Path) -> Image.Image:
    """Frames of a video, evenly apart, side by side."""
    with open_video(video) as frames:
        chosen = np.linspace(0, len(frames) - 1, SHOWN).round().astype(int)
        images = [Image.fromarray(frames[int(index)]) for index in chosen]
    height = round(WIDTH * images[0].height / images[0].width)
    return Image.fromarray(np.concatenate([np.asarray(i.resize((WIDTH, height))) for i in images], axis=1))


def main(result: Path) -> None:
    """Write the pictures where the page expects them."""
    target = Path(__file__).parents[1] / "docs" / "pictures"
    target.mkdir(exist_ok=True)
    strip(result / "input" / "clip.mp4").save(target / "clip.jpg", quality=85)
    for name in ("rendered", "rendered-segmented"):
        strip(result / "videos" / name / "overlay.mp4").save(target / f"{name}.jpg", quality=85)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

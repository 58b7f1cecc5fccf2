"""Is it getting better? Rendered clips that training never sees, labelled on the way and scored.

An encoder carries the first frame's mask through them. A correlator (BA), whose encoder does not change, cuts
them into objects: by K-means on its attention, as its thresholds mean nothing before it has learnt.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from unspool.data.scenes import scenes
from unspool.encoders import Encoder
from unspool.encoders.correlator import Correlator
from unspool.errors import UnspoolWarning
from unspool.masks import display_colours, draw_overlay
from unspool.ops.clustering import Clustering
from unspool.protocols.tracking import PROTOCOLS
from unspool.rendered import RenderedClip, Scene
from unspool.results import written_whole
from unspool.segmentation import Segmentation
from unspool.segmenting import Segmenting, segment
from unspool.tracking import Tracking, track

FIRST_HELD_OUT = 700_000  # seed; below `data.scenes.FIRST_SEED`
CARRIED, CUT = "davis17-semi", "davis17-unsup"  # protocols
SHOWN_CLIPS, SHOWN_FRAMES = 2, 4  # of a picture
ROWS = 12  # tokens from top to bottom of a frame that is cut: a minute's work for all clips, not ten

Labels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class HeldOut:
    """Which clips. They do not depend on the run's seed, so that runs can be compared."""

    clips: int = 6
    frames: int = 20
    height: int = 192  # px
    width: int = 320

    def scenes(self) -> list[Scene]:
        """As varied as those of training."""
        drawn = scenes(self.clips, size=(self.height, self.width), frames=self.frames, fps=12)
        found = [footage.scene for footage in drawn if footage.scene]
        return [replace(scene, seed=FIRST_HELD_OUT + i) for i, scene in enumerate(found)]


@dataclass
class _Clip:
    """Frames that are rendered once, with the face of a video."""

    name: str
    height: int  # px
    width: int
    images: list[npt.NDArray[np.uint8]]
    truth: list[Labels]

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[npt.NDArray[np.uint8]]:
        return iter(self.images)


class Validation:
    """Renders its clips once, when it is first asked."""

    def __init__(self, held_out: HeldOut, pictures: Path) -> None:
        self.held_out, self.pictures = held_out, pictures
        self._clips: list[_Clip] = []

    def __call__(
        self, model: Encoder | Correlator, step: int, told: Callable[[int, int, int], None] | None = None
    ) -> dict[str, float]:
        """J, F and their mean, 0..1, and a picture of the first clips.

        `told` hears, clip by clip, how many are scored, of how many, and their frames.

        Of an encoder by `davis17-semi`, labels travelling by DUL's protocol; of a correlator by
        `davis17-unsup`, and `clusters`: how many the published procedure finds in a clip, on average.
        Raises OutputError where the picture cannot be written.
        """
        if not self._clips:
            self._clips = [_rendered(scene) for scene in self.held_out.scenes()]
        cutting = isinstance(model, Correlator)
        rule, labelled = PROTOCOLS[CUT if cutting else CARRIED], _cut if cutting else _carried
        shown: list[list[Labels]] = []
        for clip in self._clips:
            shown.append(list(labelled(clip, model)))
            if told:
                told(len(shown), len(self._clips), sum(map(len, shown)))
        scored = [rule.score(own, clip.truth) for own, clip in zip(shown, self._clips, strict=True)]
        self._draw(self.pictures / f"step-{step:06d}.jpg", shown)
        if not (self.pictures / "truth.jpg").exists():
            self._draw(self.pictures / "truth.jpg", [clip.truth for clip in self._clips])
        summary = rule.average(scored)
        scores = {"J": summary.j_mean, "F": summary.f_mean, "J&F": summary.jf_mean}
        if cutting:
            scores["clusters"] = float(np.mean([_clusters(clip, model) for clip in self._clips]))
        return scores

    def _draw(self, path: Path, labels: list[list[Labels]]) -> None:
        rows = [_row(clip, own) for clip, own in zip(self._clips[:SHOWN_CLIPS], labels, strict=False)]
        with written_whole(path) as part:
            Image.fromarray(np.concatenate(rows)).save(part, "JPEG", quality=80)


def _carried(clip: _Clip, encoder: Any) -> Iterator[Labels]:
    for labels in track(clip, clip.truth[0], encoder, Tracking()):
        yield np.asarray(labels, np.uint8)


def _cut(clip: _Clip, correlator: Any) -> Iterator[Labels]:
    """Eight segments, whatever the scale of distances; every one is a proposal, the ground's too."""
    for labels in _segmented(clip, correlator, Clustering(algorithm="kmeans")).masks():
        yield labels.astype(np.uint8)


def _clusters(clip: _Clip, correlator: Any) -> int:
    return len(np.unique(_segmented(clip, correlator, Clustering()).labels))


def _segmented(clip: _Clip, correlator: Any, clustering: Clustering) -> Segmentation:
    short = ROWS * correlator.encoder.patch
    how = Segmenting(clustering, finest=None, resolution=(short, round(short * clip.width / clip.height)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnspoolWarning)  # one cluster is what an untrained block finds
        return segment(clip, correlator, how)


def _row(clip: _Clip, labels: list[Labels]) -> npt.NDArray[np.uint8]:
    frames = np.linspace(0, len(clip) - 1, SHOWN_FRAMES + 1).round().astype(int)[1:]
    colours = display_colours(set(np.unique(labels).tolist()) - {0})
    return np.concatenate([draw_overlay(clip.images[t], labels[t], colours) for t in frames], axis=1)


def _rendered(scene: Scene) -> _Clip:
    clip = RenderedClip(scene)
    return _Clip(
        clip.video.name,
        scene.height,
        scene.width,
        [clip.image(t) for t in range(len(clip))],
        [clip.labels(t) for t in range(len(clip))],
    )

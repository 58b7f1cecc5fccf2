"""unspool: dense features from unlabelled video, and the objects they find.

Importing is light: torch comes with the first name that needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from unspool.errors import (
    DataError,
    MaskError,
    OutputError,
    ShapeError,
    UnspoolError,
    UnspoolWarning,
    UsageError,
    VideoError,
    WeightsError,
    WeightsUnavailable,
)

if TYPE_CHECKING:
    from unspool import metrics
    from unspool.encoders import Encoder, load_encoder
    from unspool.masks import read_mask, write_mask
    from unspool.rendered import render
    from unspool.segmenting import segment
    from unspool.tracking import track
    from unspool.video import Video, VideoWriter, open_video

__version__ = "0.1.0"

_HOME = {  # never the name of a module of ours: importing it would hide the function
    "Encoder": "unspool.encoders",
    "Video": "unspool.video",
    "VideoWriter": "unspool.video",
    "load_encoder": "unspool.encoders",
    "open_video": "unspool.video",
    "read_mask": "unspool.masks",
    "render": "unspool.rendered",
    "segment": "unspool.segmenting",
    "track": "unspool.tracking",
    "write_mask": "unspool.masks",
}

__all__ = [
    "DataError",
    "Encoder",
    "MaskError",
    "OutputError",
    "ShapeError",
    "UnspoolError",
    "UnspoolWarning",
    "UsageError",
    "Video",
    "VideoError",
    "VideoWriter",
    "WeightsError",
    "WeightsUnavailable",
    "load_encoder",
    "metrics",
    "open_video",
    "read_mask",
    "render",
    "segment",
    "track",
    "write_mask",
]


def __getattr__(name: str) -> object:
    if name == "metrics":
        return import_module("unspool.metrics")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'unspool' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)

"""A video that was cut off goes on where it was: what a rerun reads beside the masks written so far.

The frames that are done are decoded once more, for the pictures of the result; their masks are read back, and
only the frames that later ones look at are encoded again. The result is that of a run in one piece.
"""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from unspool import __version__
from unspool.errors import MaskError, OutputError
from unspool.masks import Labels, read_truth
from unspool.options import digest
from unspool.results import Json, written_whole
from unspool.video_result import VideoResult, mask_path, unfinished_path

KEEP_EVERY = 30.0  # s: what a kill may cost


def decisive(identity: Json, tracking: Json, encoder: Any, precision: str, device: str) -> Json:
    """All that decides labels, to the last bit: the files of a job, the settings, the model, the machine."""
    import torch  # noqa: PLC0415 (only when work starts)

    from unspool.encoders import device_named, facts_of  # noqa: PLC0415

    versions = {"unspool": __version__, "torch": torch.__version__}
    how = {"tracking": tracking, "model": facts_of(encoder), "precision": precision}
    return {**identity, **how, **versions, "device": str(device_named(device))}


def write_unfinished(result: VideoResult, made_by: Json, content: Mapping[str, Any]) -> None:
    """Keep `content` for a later run, beside all masks so far; `made_by`: `decisive`. Raises OutputError."""
    import torch  # noqa: PLC0415 (only when work starts)

    result.settle()
    buffer = BytesIO()
    torch.save({"of": digest(made_by), **content}, buffer)
    with written_whole(unfinished_path(result.folder, result.name)) as part:
        part.write_bytes(buffer.getvalue())


def read_unfinished(folder: Path, name: str, made_by: Json) -> Json | None:
    """What `write_unfinished` kept; None where there is nothing that was made so, or a mask is missing."""
    import torch  # noqa: PLC0415 (only when work starts)

    try:
        content = torch.load(unfinished_path(folder, name), map_location="cpu", weights_only=True)
        same, frames = content["of"] == digest(made_by), content["tracker"]["frames"]
    except Exception:  # many kinds; a file that is not whole is one that is not there
        return None
    masks = (mask_path(folder, name, index) for index in range(frames))
    return content if same and all(mask.is_file() for mask in masks) else None


def mask_again(result: VideoResult, index: int) -> Labels:
    """The labels of a frame that is done. Raises OutputError where the file was damaged since."""
    path = mask_path(result.folder, result.name, index)
    try:
        return read_truth(path)
    except MaskError as error:
        unfinished_path(result.folder, result.name).unlink(missing_ok=True)
        raise OutputError(
            f"{path}: is damaged; run the same command again: this video then begins anew"
        ) from error


def read_again(name: str, frame: int, begun: int, seconds: float) -> Json:
    """The event that tells of progress through the frames that are done."""
    rate = frame / max(seconds, 1e-3)
    return {
        "event": "stage",
        "video": name,
        "stage": "reading again",
        "done": frame,
        "total": begun,
        "frames_per_second": round(rate, 2),
        "seconds_left": round((begun - frame) / rate),
    }

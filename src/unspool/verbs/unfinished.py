"""A video that was cut off goes on where it was: what a rerun reads beside the masks written so far.

The frames that are done are decoded once more; only those that later ones look at are encoded again. What is
kept are the labels of `track` beside its masks, which are read back, and the clusters of `segment` after each
window. The result is that of a run in one piece.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from unspool import __version__
from unspool.errors import MaskError, OutputError
from unspool.jobs import stage_event
from unspool.masks import Labels, read_truth
from unspool.options import digest
from unspool.results import Json, written_whole
from unspool.video_result import VideoResult, mask_path, unfinished_path

KEEP_EVERY = 30.0  # s: what a kill may cost


def decisive(identity: Json, settings: Json, model: Json, precision: str, device: str) -> Json:
    """What decides labels: the files of a job, the settings, the model, the versions, the device.

    Other numbers of threads round differently, in the last bit; they are not looked at.
    """
    import torch  # noqa: PLC0415 (only when work starts)

    from unspool.encoders import device_named  # noqa: PLC0415

    versions = {"unspool": __version__, "torch": torch.__version__}
    how = {"settings": settings, "model": model, "precision": precision}
    return {**identity, **how, **versions, "device": str(device_named(device))}


def write_unfinished(
    result: VideoResult, made_by: Json, beside: Iterable[Path], content: Mapping[str, Any]
) -> None:
    """Keep `content` for a later run, which needs the files `beside` it too; `made_by`: `decisive`.

    Raises OutputError.
    """
    import torch  # noqa: PLC0415 (only when work starts)

    result.settle()
    buffer = BytesIO()
    files = [str(path.relative_to(result.folder)) for path in beside]
    torch.save({"of": digest(made_by), "files": files, **content}, buffer)
    with written_whole(unfinished_path(result.folder, result.name)) as part:
        part.write_bytes(buffer.getbuffer())


def read_unfinished(folder: Path, name: str, made_by: Json) -> Json | None:
    """What `write_unfinished` kept; None where there is nothing that was made so, or a file is missing."""
    import torch  # noqa: PLC0415 (only when work starts)

    try:
        content: Json = torch.load(unfinished_path(folder, name), map_location="cpu", weights_only=True)
        whole = all(path.is_file() for path in kept_files(folder, name, content))
        return content if whole and content["of"] == digest(made_by) else None
    except Exception:  # many kinds; a file that is not whole is one that is not there
        return None


def kept_files(folder: Path, name: str, content: Json | None) -> list[Path]:
    """The files of an earlier beginning that a job which goes on needs: `content` and what is beside it."""
    if not content:
        return []
    return [unfinished_path(folder, name), *(folder / path for path in content["files"])]


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
    return stage_event(name, "reading again", frame, begun, frame / max(seconds, 1e-3))

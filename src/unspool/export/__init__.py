"""A result in the formats of other tools: data sets, annotation tools, label-trained trackers, editors.

Each function reads what `results.py` promises (`videos/NAME/{masks,tracks.json,done.json}`) and writes one
format, file by file, each whole or not at all, one frame in memory at a time. `export.json` in the folder
says what it holds: the same export may be run again, anything else needs `overwrite`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from unspool.errors import OutputError, UsageError
from unspool.export.annotations import write_coco, write_ytvis, write_ytvis_results
from unspool.export.finished import Finished, Report, finished_videos
from unspool.export.images import (
    MOTS_INSTANCES,
    write_first_masks,
    write_mots,
    write_mots_text,
    write_palette,
    write_prompts,
    write_youtube_vos,
)
from unspool.export.mattes import write_mattes, write_prores
from unspool.results import Json, write_json

Kind = Literal[
    "coco", "ytvis", "davis", "youtube-vos", "mots", "prompts", "mattes", "prores", "features", "timm"
]
KINDS: tuple[Kind, ...] = get_args(Kind)

Writer = Callable[[Path], None]

MOST_IDS = 254  # of an 8-bit palette PNG, less background and void
RECORD = "export.json"


@dataclass(frozen=True)
class Export:
    """What is exported, and how."""

    result: Path  # a result folder of `track`, `segment` or `eval tracking`; of `train` for the kind timm
    kind: Kind
    videos: tuple[str, ...] = ()  # names in the result; none: all of them
    model: str = ""  # features, timm: an encoder's name or file; timm may take the result's own
    layer: str = "tokens"  # features: what the encoder is asked for
    resolution: int | None = None  # features: px of the short side of the encoder's input; None: the video's
    device: str = "auto"  # features

    @property
    def record(self) -> Json:
        """What `export.json` says, and a second run must find."""
        return {**asdict(self), "result": str(self.result.resolve()), "videos": list(self.videos)}


def export(what: Export, out: Path, *, overwrite: bool = False, report: Report = lambda event: None) -> Path:
    """Write `what` into the folder `out`; returns the folder.

    Raises UsageError for what the kind cannot hold or needs and for a folder that holds something else,
    MaskError and VideoError for a result that is not whole or whose source has gone, OutputError where
    nothing can be written.
    """
    if what.kind not in KINDS:
        raise UsageError(f"--to {what.kind}: unknown; there are {', '.join(KINDS)}")
    writers = _writers(what, out, report)
    _claim(what, out, sorted(writers), overwrite=overwrite)
    try:
        for entry, write in writers.items():
            _remove(out / entry)  # of an earlier run: what it wrote may be more than what comes now
            write(out / entry)
    except OSError as error:
        raise OutputError.of(out, error) from error
    return out


def _writers(what: Export, out: Path, report: Report) -> dict[str, Writer]:
    """What will stand in the folder, and who writes it. Raises UsageError for what cannot be written."""
    if what.kind == "timm":
        from unspool.export.encoder import timm_writer  # noqa: PLC0415 (torch only where it is needed)

        return {"encoder": timm_writer(what.model or str(what.result))}
    videos = finished_videos(what.result, what.videos)
    _refuse_ids(videos, what.kind)
    if what.kind in ("mattes", "prores", "features"):
        for video in videos:
            video.source_video().close()  # one that has gone is said before anything is written
    if what.kind == "coco":
        return {"annotations": lambda folder: write_coco(videos, folder / "instances_default.json", report)}
    if what.kind == "ytvis":
        return {
            "instances.json": lambda path: write_ytvis(videos, path),
            "results.json": lambda path: write_ytvis_results(videos, path),
        }
    if what.kind == "youtube-vos":
        return {"Annotations": partial(write_youtube_vos, videos, report=report)}
    if what.kind == "mots":
        images: dict[str, Writer] = {f"{v.name}.zip": partial(write_mots, v, report=report) for v in videos}
        return images | {f"{v.name}.txt": partial(write_mots_text, v) for v in videos}
    if what.kind == "prompts":
        masks = partial(write_first_masks, videos, report=report)
        return {"Annotations": masks, "prompts": partial(write_prompts, videos, out / "Annotations")}
    if what.kind == "features":
        return _feature_writers(what, videos, report)
    per_video = {
        "davis": write_palette,
        "mattes": write_mattes,
        "prores": write_prores,
    }
    return {v.name: partial(per_video[what.kind], v, report=report) for v in videos}


def _feature_writers(what: Export, videos: Sequence[Finished], report: Report) -> dict[str, Any]:
    if not what.model:
        raise UsageError("--to features: name the encoder with --model, e.g. --model dino-vits16")
    from unspool.encoders import load_encoder  # noqa: PLC0415
    from unspool.encoders.images import offered  # noqa: PLC0415
    from unspool.export.encoder import write_features  # noqa: PLC0415

    encoder = load_encoder(what.model, device=what.device)
    offered((what.layer,), encoder.offers, encoder.name)
    write = partial(
        write_features, encoder=encoder, layer=what.layer, resolution=what.resolution, report=report
    )
    return {f"{v.name}.safetensors": partial(write, v) for v in videos}


def _refuse_ids(videos: Sequence[Finished], kind: Kind) -> None:
    most = MOTS_INSTANCES - 1 if kind == "mots" else MOST_IDS
    if kind not in ("davis", "youtube-vos", "prompts", "mots"):
        return
    for video in videos:
        if max(video.ids, default=0) > most:
            raise UsageError(
                f"{video.home}: has {len(video.ids)} objects with ids up to {max(video.ids)}, but ids of "
                f"{kind} end at {most}; choose --to coco or ytvis, or name other --videos"
            )


def _claim(what: Export, out: Path, entries: list[str], *, overwrite: bool) -> None:
    """Make the folder ours: `export.json` is there before the first file."""
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: is a file, not a folder; choose another with -o")
    earlier, record = _read_record(out), what.record
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        changed = [key for key in record if earlier.get(key) != record[key]]
        if changed:
            held = f"another export ({', '.join(changed)} differ)" if earlier else "files of others"
            raise UsageError(f"{out}: holds {held}; choose another folder with -o, or --overwrite")
    for entry in earlier.get("entries", []):
        _remove(out / Path(entry).name)
    write_json(out / RECORD, {**record, "entries": entries})


def _read_record(out: Path) -> Json:
    try:
        content = json.loads((out / RECORD).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _remove(path: Path) -> None:
    try:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError.of(path, error) from error

"""A synthetic finished result folder in the exact format of `unspool.results`, for tests of the page.

The encoder of the runs is written out plainly here, so that it also checks the fast one. Every frame
carries its index as a bar code (`read_bar_code`), so that a test can tell which frame a browser shows.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

CHUNK = 500
COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#cc79a7")
BITS, CELL = 14, 6  # the bar code: 14 cells of 6 px in the top rows


@dataclass(frozen=True)
class Clip:
    """One synthetic video: discs that drift over a gradient."""

    name: str
    frames: int = 24
    size: tuple[int, int] = (96, 160)
    objects: int = 2
    times: Sequence[Fraction] | None = None  # None: 24 frames a second
    truth: bool = True
    truth_every: int = 1  # frames between annotated ones
    shift: int = 2  # px between prediction and truth: larger is worse
    error: str | None = None
    playable: bool = True  # with frames.mp4
    warnings: tuple[str, ...] = field(default=())


def run_length_text(labels: np.ndarray) -> str:
    """Base64 of varint(label), varint(length) over the row-major grid."""
    flat, out, start = labels.ravel().tolist(), bytearray(), 0
    for place in range(1, len(flat) + 1):
        if place == len(flat) or flat[place] != flat[start]:
            out += varint(flat[start]) + varint(place - start)
            start = place
    return base64.b64encode(bytes(out)).decode("ascii")


def varint(number: int) -> bytes:
    digits = []
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes([*digits, number])


def centre(clip: Clip, index: int, label: int) -> tuple[float, float] | None:
    """Row and column of a disc; even labels are absent in the middle third."""
    height, width = clip.size
    if label % 2 == 0 and clip.frames // 3 <= index < 2 * clip.frames // 3:
        return None
    across = (index / max(clip.frames - 1, 1) * 0.5 + 0.25) * width
    return height * label / (clip.objects + 1) + height * 0.1, across


def label_map(clip: Clip, index: int, shift: int = 0) -> np.ndarray:
    height, width = clip.size
    rows, columns = np.mgrid[:height, :width]
    labels = np.zeros((height, width), np.uint8)
    for label in range(1, clip.objects + 1):
        if (at := centre(clip, index, label)) is not None:
            near = (rows - at[0]) ** 2 + (columns - at[1] - shift) ** 2 < (
                height / (clip.objects + 2)
            ) ** 2 / 3
            labels[near] = label
    return labels


def image(clip: Clip, index: int) -> np.ndarray:
    height, width = clip.size
    rows, columns = np.mgrid[:height, :width]
    picture = np.stack([rows * 120 / height + 60, columns * 90 / width + 60, 0 * rows + 120], axis=2)
    picture[label_map(clip, index) > 0] = (210, 200, 190)
    for bit in range(BITS):
        picture[:CELL, bit * CELL : (bit + 1) * CELL] = 255 * (index >> bit & 1)
    return picture.astype(np.uint8)


READ_BAR_CODE = f"""
    const [video, wide] = [document.querySelector('video'), arguments[0]]; // pixel aspect
    const canvas = document.createElement('canvas');
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    const pen = canvas.getContext('2d');
    pen.drawImage(video, 0, 0);
    let index = 0;
    for (let bit = 0; bit < {BITS}; bit++) {{
        const x = (bit + 0.5) * {CELL} * wide, y = {CELL} / 2;
        if (pen.getImageData(x, y, 1, 1).data[0] > 128) index |= 1 << bit;
    }}
    return index;
"""


def jaccard(prediction: np.ndarray, truth: np.ndarray, label: int) -> float:
    a, b = prediction == label, truth == label
    return float((a & b).sum() / (a | b).sum()) if (a | b).any() else 1.0


def write_film(path: Path, clip: Clip, times: Sequence[Fraction]) -> None:
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=24, options={"preset": "ultrafast", "crf": "18"})
        stream.height, stream.width, stream.pix_fmt = *clip.size, "yuv420p"
        base = Fraction(1, 24000)
        stream.time_base = stream.codec_context.time_base = base
        for index, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(image(clip, index), format="rgb24")
            frame.pts, frame.time_base = round(time / base), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def script(path: Path, call: str, *arguments: object) -> None:
    text = ",".join(json.dumps(a, separators=(",", ":")) for a in arguments).replace("<", "\\u003c")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"unspool.{call}({text});\n", "utf-8")


def make_video(folder: Path, clip: Clip) -> dict[str, Any]:
    """Write everything of one video; returns `done.json`'s content."""
    home = folder / "videos" / clip.name
    (home / "masks").mkdir(parents=True)
    times = clip.times or [Fraction(t, 24) for t in range(clip.frames)]
    if clip.playable:
        write_film(home / "frames.mp4", clip, times)
        (home / "overlay.mp4").write_bytes((home / "frames.mp4").read_bytes())
    Image.fromarray(label_map(clip, 0)).save(home / "masks" / "00000.png")
    (home / "tracks.json").write_text('{"videos": [], "annotations": []}\n')
    count = write_thumbs(home / "thumbs.jpg", clip)
    ids = range(1, clip.objects + 1)
    area: dict[int, list[int]] = {k: [] for k in ids}
    curve: dict[int, list[float | None]] = {k: [] for k in ids}
    for number, start in enumerate(range(0, clip.frames, CHUNK)):
        inside = range(start, min(start + CHUNK, clip.frames))
        drawn, known = [], []
        for prediction, truth in label_maps(clip, inside):
            drawn.append(run_length_text(prediction))
            annotated = len(known) % clip.truth_every == 0
            known.append(run_length_text(truth) if annotated else None)
            for k in ids:
                area[k].append(int((prediction == k).sum()))
                curve[k].append(jaccard(prediction, truth, k))
        chunk = {
            "start": start,
            "count": len(drawn),
            "prediction": drawn,
            "truth": known if clip.truth else None,
        }
        script(folder / "data" / f"{clip.name}-{number:03d}.js", "chunk", clip.name, number, chunk)
    for k in ids:
        curve[k][0] = curve[k][-1] = None  # the protocol scores neither the first nor the last frame
    mean = float(np.mean([v for k in ids for v in curve[k] if v is not None] or [0]))
    objects = [{"id": k, "name": f"object {k}", "colour": COLOURS[(k - 1) % len(COLOURS)]} for k in ids]
    at = f"videos/{clip.name}"
    record = {
        "name": clip.name,
        "frames": clip.frames,
        "height": clip.size[0],
        "width": clip.size[1],
        "display": list(clip.size),
        "times": [round(float(t), 6) for t in times],
        "objects": [
            {**entry, "area": area[k], "first": next((t for t, a in enumerate(area[k]) if a), 0)}
            for k, entry in zip(ids, objects, strict=True)
        ],
        "truth": clip.truth,
        "scores": {name: {str(k): curve[k] for k in ids} for name in ("J", "F")} if clip.truth else None,
        "chunks": -(-clip.frames // CHUNK),
        "chunk_frames": CHUNK,
        "thumbs": {"count": count, "width": 160, "height": round(160 * clip.size[0] / clip.size[1])},
        "files": {
            "frames": f"{at}/frames.mp4",
            "overlay": f"{at}/overlay.mp4",
            "masks": f"{at}/masks/",
            "tracks": f"{at}/tracks.json",
        },
        "warnings": list(clip.warnings),
    }
    script(folder / "data" / f"{clip.name}.js", "video", clip.name, record)
    done = {
        "name": clip.name,
        "source": f"footage/{clip.name}.mp4",
        "frames": clip.frames,
        "height": clip.size[0],
        "width": clip.size[1],
        "objects": objects,
        "seconds": 151.0,
        "frames_per_second": round(clip.frames / 151.0, 2),
        "warnings": list(clip.warnings),
    }
    if clip.truth:
        done["scores"] = {"protocol": "davis17-semi", "J": mean, "F": mean, "J&F": mean}
    (home / "done.json").write_text(json.dumps(done))
    return done


def label_maps(clip: Clip, frames: range) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Prediction and truth."""
    for index in frames:
        yield label_map(clip, index, clip.shift), label_map(clip, index)


def write_thumbs(path: Path, clip: Clip) -> int:
    wanted = sorted(set(np.linspace(0, clip.frames - 1, 12).round().astype(int).tolist()))
    height = round(160 * clip.size[0] / clip.size[1])
    strip = Image.new("RGB", (160 * len(wanted), height))
    for place, index in enumerate(wanted):
        strip.paste(Image.fromarray(image(clip, index)).resize((160, height)), (160 * place, 0))
    strip.save(path, quality=82)
    return len(wanted)


def make_result(
    folder: Path,
    clips: Sequence[Clip],
    *,
    verb: str = "track",
    model: str = "random-resnet18",
    status: str = "done",
    warnings: Sequence[str] = (),
) -> Path:
    """Write a whole result folder without its page."""
    folder.mkdir(parents=True, exist_ok=True)
    done = {clip.name: make_video(folder, clip) for clip in clips if clip.error is None}
    videos = []
    for clip in clips:
        entry: dict[str, Any] = {"name": clip.name, "source": f"footage/{clip.name}.mp4"}
        if clip.error is not None:
            videos.append({**entry, "status": "failed", "error": clip.error})
            continue
        videos.append(
            {
                **entry,
                "status": "done",
                "frames": clip.frames,
                "objects": clip.objects,
                "seconds": 151.0,
                "fps": 24.0,
            }
        )
    scored = {name: d["scores"] for name, d in done.items() if "scores" in d}
    if scored:
        write_scores(folder, scored)
    run = {
        "unspool": "0.1.0",
        "verb": verb,
        "command": ["unspool", *verb.split(), "footage/*.mp4", "--mask", "first masks/", "--model", model],
        "config": {"model": model, "seed": 0, "propagation": {"top_k": 10, "context": 20}, "resolution": 480},
        "model": {"name": model, "weights_hash": "c0ffee12", "dim": 512, "patch": 8},
        "machine": {"device": "cpu", "threads": 2, "python": "3.11.2"},
        "started": "2026-08-01T10:00:00+00:00",
        "ended": None if status == "running" else "2026-08-01T10:02:31+00:00",
        "status": status,
        "timings": {"decode": 1.1, "encode": 80.2, "propagate": 61.0},
        "videos": videos,
        "warnings": list(warnings),
    }
    (folder / "run.json").write_text(json.dumps(run, indent=1))
    return folder


def write_scores(folder: Path, scored: dict[str, dict[str, Any]]) -> None:
    mean = float(np.mean([s["J&F"] for s in scored.values()]))
    kinds = ("Mean", "Recall", "Decay")
    content = {
        "protocol": "davis17-semi",
        "global": {"J&F-Mean": mean, **{f"{m}-{k}": mean for m in ("J", "F") for k in kinds}},
        "sequences": {
            name: {"J-Mean": s["J"], "F-Mean": s["F"], "objects": {"1": {"J-Mean": s["J"], "F-Mean": s["F"]}}}
            for name, s in scored.items()
        },
    }
    (folder / "scores.json").write_text(json.dumps(content, indent=1))

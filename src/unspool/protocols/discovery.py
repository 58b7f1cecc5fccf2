"""Object discovery: segmentations of many videos and their truth in, scores under their names out.

Which number is which (docs/protocols.md has all of it):

  davis17-unsup             official: one assignment per sequence, all frames; 20 proposals. What to compare.
  davis17-unsup-framewise   BA's and SMTC's copy: a new assignment in every frame; never below the official.
  fg-ari-video              ARI of the foreground of the whole clip: SAVi, STEVE, VideoSAUR.
  fg-ari-frame              ARI per frame: BA's own rows, by inference. Frames of one object give 0 or 1.
  fg-ari-solv               after SOLV's matching, the unmatched merged into background: SOLV's rows.
  miou-solv                 SOLV's: Hungarian per video on mean frame IoU, mean over all objects of the set.
  fg-ari-solv-quirks, miou-solv-quirks
                            both as SOLV's code computes them: objects of the first frame, rows taken for ids.
  miou-video-hungarian      videosaur's: IoU over all pixels of the clip, Hungarian.
  miou-frame                Hungarian per frame: our best reading of BA's Table 2.
  mbo-video, mbo-frame      every object takes its best segment, which others may take too: VideoSAUR.
  davis16-official          mean over sequences, frames 2 to T-1: the leaderboard.
  davis16-allframes         the same over all frames: most work on optical flow.
  davis16-pooled            mean over all frames of all sequences: BA's Table 7, literally.
  segtrack-fbms             davis16-allframes on annotated frames.
  single-object-oracle-frame, -oracle-video, -label-free, -label-free-cues
                            all frames; the cluster that is the object is chosen by truth in every frame (BA's
                            Tables 1, 7), by truth once for the video, or not by truth at all: by border
                            contact, or by all cues of `ops/foreground.py`, which only segmenting knows.

The davis16-* and segtrack-fbms rows need one foreground. A segmentation that names none is scored once for
each way of choosing it, and the row says which: `davis16-official, label-free`.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from unspool.data.vos import LabelMap, label_map
from unspool.errors import DataError, ShapeError, UsageError
from unspool.masks import VOID, ids_in
from unspool.metrics import (
    ObjectOverlaps,
    ObjectScores,
    davis16_allframes,
    davis16_official,
    davis17_unsup,
    davis17_unsup_framewise,
    fg_ari_frame,
    fg_ari_solv,
    fg_ari_solv_quirks,
    fg_ari_video,
    mbo_frame,
    mbo_video,
    mean_over_objects,
    mean_over_videos,
    miou_frame,
    miou_solv,
    miou_solv_quirks,
    miou_video_hungarian,
    pooled_over_frames,
    pooled_over_objects,
    segtrack_fbms,
    single_object_oracle_frame,
    single_object_oracle_video,
)
from unspool.metrics.davis import FRAMEWISE_PROPOSALS, OFFICIAL_PROPOSALS
from unspool.metrics.labels import LabelMaps
from unspool.ops.foreground import border_contact, standing_out
from unspool.ops.refining import areas_of, largest
from unspool.protocols.tracking import SequenceScores, from_record, to_record

Json = dict[str, Any]
Measured = ObjectScores | ObjectOverlaps | float
Truth = Callable[[], Iterator[LabelMap | None]]  # from the first frame on, whenever it is called

CUES = "label-free-cues"
FOREGROUNDS = ("label-free", CUES, "oracle-frame", "oracle-video")
GIVEN = "given"  # every id of the prediction is the foreground
NO_CUES = "masks alone tell neither motion nor attention, so that label-free-cues has nothing to choose by"


@dataclass(frozen=True)
class Protocol:
    """One video's measure, how videos are averaged, and what the measure asks of a prediction."""

    measure: Callable[[LabelMaps, LabelMaps], Measured]
    average: Callable[[Sequence[Any]], Json]
    headline: str  # which of the averages stands for all
    proposals: int = 0  # more are refused by the measure; 0: any number
    foreground: bool = False  # one foreground is scored, which somebody has to choose
    chosen: str = ""  # by whom, where the name says it
    cropped: bool = False  # black borders are not scored


def _jf(average: Callable[[Sequence[ObjectScores]], Any]) -> Callable[[Sequence[Any]], Json]:
    def named(videos: Sequence[Any]) -> Json:
        found: Json = average(videos).named()
        return found

    return named


def _one(name: str, average: Callable[[Sequence[Any]], float]) -> Callable[[Sequence[Any]], Json]:
    return lambda videos: {name: average(videos)}


OBJECTS, FRAMES = _jf(pooled_over_objects), _jf(pooled_over_frames)
ARI, MBO = _one("FG-ARI", mean_over_videos), _one("mBO", mean_over_videos)
IOU, IOU_OF_OBJECTS = _one("mIoU", mean_over_videos), _one("mIoU", mean_over_objects)

PROTOCOLS = {
    "davis17-unsup": Protocol(davis17_unsup, OBJECTS, "J&F-Mean", OFFICIAL_PROPOSALS),
    "davis17-unsup-framewise": Protocol(davis17_unsup_framewise, OBJECTS, "J&F-Mean", FRAMEWISE_PROPOSALS),
    "fg-ari-video": Protocol(fg_ari_video, ARI, "FG-ARI"),
    "fg-ari-frame": Protocol(fg_ari_frame, ARI, "FG-ARI"),
    "fg-ari-solv": Protocol(fg_ari_solv, ARI, "FG-ARI"),
    "miou-solv": Protocol(miou_solv, IOU_OF_OBJECTS, "mIoU"),
    "fg-ari-solv-quirks": Protocol(fg_ari_solv_quirks, ARI, "FG-ARI", cropped=True),
    "miou-solv-quirks": Protocol(miou_solv_quirks, IOU_OF_OBJECTS, "mIoU", cropped=True),
    "miou-video-hungarian": Protocol(miou_video_hungarian, IOU, "mIoU"),
    "miou-frame": Protocol(miou_frame, IOU, "mIoU"),
    "mbo-video": Protocol(mbo_video, MBO, "mBO"),
    "mbo-frame": Protocol(mbo_frame, MBO, "mBO"),
    "davis16-official": Protocol(davis16_official, OBJECTS, "J-Mean", foreground=True),
    "davis16-allframes": Protocol(davis16_allframes, OBJECTS, "J-Mean", foreground=True),
    "davis16-pooled": Protocol(davis16_allframes, FRAMES, "J-Mean", foreground=True),
    "segtrack-fbms": Protocol(segtrack_fbms, OBJECTS, "J-Mean", foreground=True),
    "single-object-oracle-frame": Protocol(single_object_oracle_frame, OBJECTS, "J-Mean"),
    "single-object-oracle-video": Protocol(single_object_oracle_video, OBJECTS, "J-Mean"),
    "single-object-label-free": Protocol(
        davis16_allframes, OBJECTS, "J-Mean", foreground=True, chosen="label-free"
    ),
    "single-object-label-free-cues": Protocol(
        davis16_allframes, OBJECTS, "J-Mean", foreground=True, chosen=CUES
    ),
}

QUIRKS = tuple(name for name, protocol in PROTOCOLS.items() if protocol.cropped)  # only when named
MANY = tuple(
    name for name in PROTOCOLS if name.startswith(("davis17", "fg-ari", "miou", "mbo")) and name not in QUIRKS
)
SINGLE = tuple(name for name in PROTOCOLS if name.startswith(("single-object", "davis16")))
SPARSE = ("segtrack-fbms", "davis16-pooled", *(name for name in SINGLE if name.startswith("single-object")))


@dataclass(frozen=True)
class Row:
    """One line of the table: a protocol, and who chose the foreground if it scores one."""

    protocol: str
    foreground: str = ""

    @property
    def label(self) -> str:
        """The name under which the number stands."""
        own = PROTOCOLS[self.protocol].chosen or GIVEN
        return f"{self.protocol}, {self.foreground}" if self.foreground not in ("", own) else self.protocol


def rows_of(protocols: Sequence[str], foregrounds: Sequence[str]) -> tuple[Row, ...]:
    """A row for each protocol, or for each way of choosing the foreground that it leaves open.

    Raises UsageError for a name that is none, listing those that there are.
    """
    found = []
    for name in protocols:
        if name not in PROTOCOLS:
            raise UsageError(f"protocol '{name}' is unknown; there are {', '.join(PROTOCOLS)}")
        protocol = PROTOCOLS[name]
        choices = (protocol.chosen,) if protocol.chosen else foregrounds if protocol.foreground else ("",)
        found += [Row(name, choice) for choice in choices]
    return tuple(dict.fromkeys(found))


# --------------------------------------------------------------------------------------------- one video


Inside = tuple[slice, slice]  # rows, columns
WHOLE = (slice(None), slice(None))


def without_black_borders(frame: UInt8[np.ndarray, "h w 3"]) -> Inside:
    """What is left where rows and columns of mean value below 1 end; all of a black frame.

    Of the first frame of a video, for all of it. Source: SOLV: datasets/ytvis19.py remove_borders.
    """
    bright = [np.flatnonzero(frame.mean(axis=axes) >= 1) for axes in ((1, 2), (0, 2))]
    if not all(len(found) for found in bright):
        return WHOLE
    rows, columns = (slice(int(found[0]), int(found[-1]) + 1) for found in bright)
    return rows, columns


@dataclass(frozen=True)
class Prediction:
    """Label maps of a video as PNGs, one per frame; read again by every protocol, one at a time."""

    paths: tuple[Path, ...]
    inside: Inside = WHOLE  # of black borders, as protocols see it that crop them
    by_cues: int | None = None  # id of the foreground by all cues; None: nobody knows them

    def maps(self, frames: Sequence[int] | None = None) -> Iterator[LabelMap]:
        """All of them, or those of some frames."""
        return (label_map(self.paths[index]) for index in (frames or range(len(self.paths))))


def score_video(
    name: str, prediction: Prediction, truth: Truth, rows: Sequence[Row], *, fewer: bool = False
) -> Json:
    """What a video scores in every row, as plain JSON, with what was seen of its truth.

    Only frames with truth are scored. `fewer`: where a protocol takes fewer proposals than there are, the
    largest are kept and the record says so; else that is an error. Raises DataError or ShapeError naming the
    video: no truth at all, other sizes, other lengths.
    """
    try:
        facts = truth_facts(truth(), len(prediction.paths))
        if not facts["annotated"]:
            raise DataError("no frame of it has truth; nothing can be scored")
        choices: dict[str, Choice] = {}
        records = {row.label: _score(name, prediction, truth, row, facts, choices, fewer) for row in rows}
    except (DataError, ShapeError) as error:
        raise type(error)(f"{name}: {error}") from error
    return {"truth": facts, "rows": records}


def truth_facts(truth: Iterator[LabelMap | None], frames: int) -> Json:
    """Which frames have truth, how many objects it names, its size: a line of the data card.

    Raises ShapeError where there are more or fewer frames than `frames`.
    """
    annotated, objects, size, count = [], set(), (0, 0), 0
    for index, labels in enumerate(truth):
        count += 1
        if labels is not None:
            annotated.append(index)
            objects |= set(ids_in(labels))
            size = (labels.shape[0], labels.shape[1])
    if count != frames:
        raise ShapeError(f"prediction has {frames} frames, truth {count}; both must be of the same frames")
    return {
        "annotated": annotated,
        "objects": len(objects - {VOID} or objects),
        "size": list(size),
        "frames": frames,
    }


Choice = Callable[[int], int]  # number of a frame with truth -> id of the foreground


def _score(
    name: str, prediction: Prediction, truth: Truth, row: Row, facts: Json, choices: dict[str, Choice],
    fewer: bool,
) -> Json:  # fmt: skip
    protocol = PROTOCOLS[row.protocol]
    frames, note = facts["annotated"], {}
    predicted = prediction.maps(frames)
    if protocol.foreground and row.foreground != GIVEN:
        choose = choices.get(row.foreground) or _choice(row.foreground, prediction, truth, frames)
        choices[row.foreground] = choose
        predicted = _foreground_maps(predicted, choose)
    if protocol.proposals and fewer:
        keep = _largest(prediction, protocol.proposals)
        if keep is not None:
            predicted = (keep[labels] for labels in predicted)
            note = {"proposals": f"the {protocol.proposals} largest"}
    crop = itemgetter(prediction.inside if protocol.cropped else WHOLE)
    known = (labels for labels in truth() if labels is not None)
    measured = protocol.measure(map(crop, predicted), map(crop, known))
    if isinstance(measured, ObjectScores):
        measured = replace(measured, frames=tuple(frames[index] for index in measured.frames))
    return {**measured_record(name, row.protocol, measured), **note}


def _foreground_maps(predicted: Iterator[LabelMap], choose: Choice) -> Iterator[LabelMap]:
    return ((labels == choose(place)).astype(np.uint8) for place, labels in enumerate(predicted))


def _choice(how: str, prediction: Prediction, truth: Truth, frames: Sequence[int]) -> Choice:
    """The cluster that is taken for the object: by a rule without truth, or the best one by truth."""
    if how.startswith("label-free"):
        chosen = _by_cues(prediction) if how == CUES else _by_border(prediction)
        return lambda place: chosen or NOWHERE
    oracle = {"oracle-frame": single_object_oracle_frame, "oracle-video": single_object_oracle_video}[how]
    scores = oracle(prediction.maps(frames), (labels for labels in truth() if labels is not None))
    assert scores.matched is not None, "an oracle says what it chose"
    matched = scores.matched[0].tolist()
    return lambda place: int(matched[place])


NOWHERE = -1  # the id of no pixel


def _by_border(prediction: Prediction) -> int:
    areas = areas_of(prediction.maps())
    cue = {"border contact": border_contact(prediction.maps())}
    return standing_out(cue, areas.sum(axis=0), int(areas.sum()))


def _by_cues(prediction: Prediction) -> int:
    if prediction.by_cues is None:
        raise DataError(NO_CUES)
    return prediction.by_cues


def _largest(prediction: Prediction, count: int) -> np.ndarray | None:
    """New ids of the `count` largest proposals, 0 for the others; None where there are no more."""
    areas = areas_of(prediction.maps())
    if areas.shape[1] - 1 <= count:
        return None
    stays = largest(areas, count)
    return np.where(stays, np.cumsum(stays), 0).astype(np.uint16)


# ------------------------------------------------------------------------------------------------ records


def measured_record(name: str, protocol: str, measured: Measured) -> Json:
    """Every number of a video as plain JSON, exact, so that a later run need not score again."""
    if isinstance(measured, float):
        return {"value": None if math.isnan(measured) else measured}
    if isinstance(measured, ObjectOverlaps):
        rows = [[None if math.isnan(v) else v for v in row] for row in measured.iou.tolist()]
        return {"ids": list(measured.ids), "iou": rows, "segments": measured.segments.tolist()}
    return to_record(SequenceScores(name, protocol, measured))


def measured_of(name: str, record: Json) -> Measured:
    """The inverse of `measured_record`."""
    if "value" in record:
        return math.nan if record["value"] is None else float(record["value"])
    if "iou" in record:
        ids = tuple(record["ids"])
        iou, segments = (
            np.array(record[k], kind) for k, kind in (("iou", np.float64), ("segments", np.int64))
        )
        units = iou.size // max(len(ids), 1)
        return ObjectOverlaps(ids, iou.reshape(len(ids), units), segments.reshape(len(ids), units))
    return from_record(name, record).objects


# ------------------------------------------------------------------------------------------------- tables


def score_table(
    records: dict[str, Json], rows: Sequence[Row], *, postprocessing: str, missing: Sequence[str] = ()
) -> Json:
    """The content of `scores.json`: the data card, every protocol over the set and by video.

    `records`: what `score_video` gave, by name. `global` and `sequences` hold one number per protocol.
    """
    table: Json = {
        "protocol": "",  # many: every number has its own name
        "data": data_card([record["truth"] for record in records.values()]),
        "postprocessing": postprocessing,
        "missing": list(missing),  # videos that failed: the averages are not those of the whole set
        "protocols": {},
    }
    for row in rows:
        table["protocols"][row.label] = _row(row, {n: r["rows"][row.label] for n, r in records.items()})
    table["global"] = {
        f"{label} {entry['headline'].removesuffix('-Mean')}": entry["global"][entry["headline"]]
        for label, entry in table["protocols"].items()
    }
    table["sequences"] = {
        name: {
            f"{label} {entry['headline'].removesuffix('-Mean')}": entry["videos"][name][entry["headline"]]
            for label, entry in table["protocols"].items()
        }
        for name in records
    }
    return table


def _row(row: Row, records: dict[str, Json]) -> Json:
    protocol = PROTOCOLS[row.protocol]
    measured = {name: measured_of(name, record) for name, record in records.items()}
    reduced = {name: record["proposals"] for name, record in records.items() if "proposals" in record}
    return {
        "protocol": row.protocol,
        "headline": protocol.headline,
        **({"foreground": row.foreground} if row.foreground else {}),
        **({"proposals": reduced} if reduced else {}),
        "global": _rounded(protocol.average(list(measured.values()))),
        "videos": {name: _rounded(protocol.average([one])) for name, one in measured.items()},
    }


def _rounded(values: Json) -> Json:
    return {name: None if math.isnan(value) else round(value, 6) for name, value in values.items()}


def data_card(facts: Sequence[Json]) -> Json:
    """What was scored: videos, frames, those with truth, objects, sizes."""
    sizes = sorted({f"{width}x{height}" for height, width in (fact["size"] for fact in facts)})
    return {
        "videos": len(facts),
        "frames": sum(fact["frames"] for fact in facts),
        "annotated frames": sum(len(fact["annotated"]) for fact in facts),
        "objects": sum(fact["objects"] for fact in facts),
        "sizes": sizes,
    }


def score_csv(table: Json) -> str:
    """`scores.json` as a flat table: one number a line."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["protocol", "foreground", "video", "measure", "value"])
    for entry in table["protocols"].values():
        for video, values in [*entry["videos"].items(), ("all", entry["global"])]:
            for measure, value in values.items():
                writer.writerow([entry["protocol"], entry.get("foreground", ""), video, measure, value])
    return out.getvalue()


def sentences(table: Json) -> str:
    """The result for people: what was scored, then a line for each protocol, in per cent."""
    card = table["data"]
    sizes = ", ".join(card["sizes"][:4]) + (", ..." if len(card["sizes"]) > 4 else "")
    lines = [
        f"data: videos {card['videos']}, frames {card['frames']}, with truth {card['annotated frames']}, "
        f"objects {card['objects']}, sizes {sizes}; post-processing: {table['postprocessing']}"
    ]
    for label, entry in table["protocols"].items():
        wanted = [k for k in entry["global"] if k.endswith("-Mean") or "-" not in k or k == "FG-ARI"]
        ordered = sorted(wanted, key=lambda k: k != entry["headline"])
        numbers = ", ".join(f"{k.removesuffix('-Mean')} {_per_cent(entry['global'][k])}" for k in ordered)
        reduced = entry.get("proposals", {})
        note = (
            f" ({next(iter(reduced.values()))} proposals in {len(reduced)} of {card['videos']} videos)"
            if reduced
            else ""
        )
        lines.append(f"{label}: {numbers}{note}")
    if table["missing"]:
        count = card["videos"] + len(table["missing"])
        lines.append(f"over {card['videos']} of {count} videos, without {', '.join(table['missing'])}")
    return "\n".join(lines)


def _per_cent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"

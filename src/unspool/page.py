"""One page for every result.

`write_page` reads run.json, scores.json and videos/*/done.json, and writes index.html: the words and
tables as plain HTML, page.css and the scripts inlined. What a video shows (masks, truth, curves) comes from
`data/*.js` when the reader opens it. All names are foreign text: escaped in HTML, percent-encoded in
addresses, and never read by the script except from JSON or through `textContent`.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from unspool.errors import OutputError
from unspool.page_clustering import Clustered, read_clustered
from unspool.page_training import Learning, read_learning
from unspool.results import written_whole

HERE = Path(__file__).parent
SCRIPTS = (
    "page_frames.js",
    "page_player.js",
    "page_segments.js",
    "page_training.js",
    "page.js",
)  # one script on the page, in this order
HEADLINE = ("J&F-Mean", "J-Mean", "F-Mean")

Json = dict[str, Any]


# ------------------------------------------------------------------------------- what a folder says


@dataclass(frozen=True)
class Entry:
    """One video as the page lists it."""

    name: str
    source: str
    status: str  # done, failed, running, ...
    error: str = ""
    frames: int | None = None
    objects: int | None = None
    seconds: float | None = None
    speed: float | None = None  # frames per second of work
    scores: dict[str, float] = field(default_factory=dict)
    per_object: dict[str, dict[str, float]] = field(default_factory=dict)
    pictures: bool = False  # the player has something to show
    segmented: bool = False  # cut into objects, rather than objects carried through it

    @property
    def quality(self) -> float | None:
        """The number that orders the list: J&F where both are known, else the protocol's first."""
        known = [self.scores[k] for k in HEADLINE if k in self.scores] or list(self.scores.values())
        return known[0] if known else None


@dataclass(frozen=True)
class Result:
    """A result folder as the page shows it."""

    folder: str
    run: Json
    protocol: str
    scores: dict[str, float]  # of the whole run
    entries: list[Entry]  # worst first
    learning: Learning | None = None  # of a training run
    clustered: Clustered | None = None  # of a clustering

    @property
    def headline(self) -> list[tuple[str, float]]:
        """At most three scores for the first glance."""
        if self.learning and self.learning.best:
            return [(k, self.learning.best[k]) for k in ("J&F", "J", "F")]
        known = [k for k in HEADLINE if k in self.scores] or list(self.scores)[:3]
        return [(k.removesuffix("-Mean"), self.scores[k]) for k in known]

    @property
    def columns(self) -> list[str]:
        """Score names of the table, in the order in which they first appear."""
        return list(dict.fromkeys(k for e in self.entries for k in e.scores))

    @property
    def title(self) -> str:
        """The video, or how many; a training run is called by its folder, a clustering by its data."""
        count = len(self.entries)
        if self.trains:
            return self.folder
        if self.clustered:
            return str(self.run.get("config", {}).get("data", self.folder))
        return self.entries[0].name if count == 1 else f"{count:,} videos"

    @property
    def trains(self) -> bool:
        """Whether this is a training run, begun or not."""
        return str(self.run.get("verb", "")).startswith("train ")

    @property
    def model(self) -> str:
        """Name of the encoder."""
        return str((self.run.get("model") or {}).get("name", ""))

    @property
    def command(self) -> str:
        """The command line, ready to paste."""
        words = [str(word) for word in self.run.get("command") or []]
        if words and Path(words[0]).name in {"__main__.py", "unspool", "unspool.exe"}:
            words[0] = "unspool"
        return shlex.join(words)

    @property
    def seconds(self) -> float | None:
        """How long the work took: by the clock, but a pause before a rerun does not count."""
        if self.learning:
            return self.learning.seconds
        try:
            began, ended = (datetime.fromisoformat(self.run[k]) for k in ("started", "ended"))
        except (KeyError, TypeError, ValueError):
            return None
        passed, worked = (ended - began).total_seconds(), sum(e.seconds or 0.0 for e in self.entries)
        return min(passed, worked) if worked else passed

    @property
    def settings(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """Everything else of run.json that is worth a table."""
        kinds = [("Settings", "config"), ("Model", "model"), ("Machine", "machine"), ("Timings", "timings")]
        return [(title, rows) for title, key in kinds if (rows := list(_flat(self.run.get(key) or {})))]

    @property
    def counts(self) -> list[tuple[str, int, int]]:
        """What was done (empty if all is alike), frames and objects; tracked and segmented ones apart."""
        kinds = sorted({entry.segmented for entry in self.entries if entry.status == "done"}) or [False]
        words = [("segmented" if kind else "tracked") if len(kinds) > 1 else "" for kind in kinds]
        chosen = [[e for e in self.entries if len(kinds) == 1 or e.segmented is kind] for kind in kinds]
        return [
            (word, sum(e.frames or 0 for e in entries), sum(e.objects or 0 for e in entries))
            for word, entries in zip(words, chosen, strict=True)
        ]

    def count(self, status: str) -> int:
        """Number of videos with that status."""
        return sum(entry.status == status for entry in self.entries)


def read_result(folder: Path) -> Result:
    """What run.json, scores.json and videos/*/done.json of a folder say, finished or not.

    Raises OutputError when there is no readable run.json.
    """
    run = _read(folder / "run.json")
    if run is None:
        raise OutputError(f"{folder}: holds no readable run.json; name a folder that unspool has written")
    scores = _read(folder / "scores.json") or {}
    listed = {str(v["name"]): v for v in run.get("videos") or [] if "name" in v}
    for path in sorted(folder.glob("videos/*/done.json")):
        listed.setdefault(path.parent.name, {"name": path.parent.name, "status": "done"})
    entries = [
        _entry(folder, video, (scores.get("sequences") or {}).get(name)) for name, video in listed.items()
    ]
    learning = read_learning(folder, run.get("steps"))
    return Result(
        folder=folder.resolve().name,
        run=run,
        protocol=_protocol(scores, learning),
        scores=_numbers(scores.get("global")),
        entries=sorted(entries, key=_worst_first),
        learning=learning,
        clustered=read_clustered(scores),
    )


def _protocol(scores: Json, learning: Learning | None) -> str:
    if learning and learning.best:
        return f"{learning.protocol} on rendered clips, best at step {learning.best['step']:,}"
    return str(scores.get("protocol", ""))


def _entry(folder: Path, video: Json, sequence: Json | None) -> Entry:
    name = str(video["name"])
    done = _read(folder / "videos" / name / "done.json") or {}
    own = {**video, **(video.get("scores") or {}), **(done.get("scores") or {})}
    plain = {f"{k}-Mean": own[k] for k in ("J&F", "J", "F") if k in own}
    objects = done.get("objects", video.get("objects"))
    return Entry(
        name=name,
        source=str(video.get("source", done.get("source", ""))),
        status=str(video.get("status", "done")),
        error=str(video.get("error") or ""),
        frames=done.get("frames", video.get("frames")),
        objects=len(objects) if isinstance(objects, list) else objects,
        seconds=done.get("seconds", video.get("seconds")),
        speed=done.get("frames_per_second"),
        scores=_with_mean(_numbers(sequence or plain)),
        per_object={
            str(k): _with_mean(_numbers(v)) for k, v in ((sequence or {}).get("objects") or {}).items()
        },
        pictures="objects" in done,
        segmented="clusters" in done,
    )


def _with_mean(scores: dict[str, float]) -> dict[str, float]:
    """With J&F in front, where J and F are known."""
    if "J-Mean" in scores and "F-Mean" in scores:
        return {"J&F-Mean": (scores["J-Mean"] + scores["F-Mean"]) / 2, **scores}
    return scores


def _worst_first(entry: Entry) -> tuple[bool, float, str]:
    return entry.status != "failed", math.inf if entry.quality is None else entry.quality, entry.name


def _numbers(content: object) -> dict[str, float]:
    """The finite numbers of a JSON object."""
    pairs = content.items() if isinstance(content, dict) else ()
    return {k: float(v) for k, v in pairs if isinstance(v, int | float) and math.isfinite(v)}


def _flat(content: Json, prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _read(path: Path) -> Json | None:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


# ------------------------------------------------------------------------------------------ the page


def write_page(folder: Path) -> Path:
    """Write `folder/index.html` from what the folder says, also while its run goes on.

    Raises OutputError when run.json is not readable or the page cannot be written.
    """
    page = folder / "index.html"
    text = render_page([read_result(folder)])
    with written_whole(page) as part:
        part.write_text(text, "utf-8")
    return page


def render_page(results: Sequence[Result], bases: Sequence[str] = ("",)) -> str:
    """The page of one result, or of two side by side; `bases` leads from the page to each folder."""
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters.update(duration=duration, score=_score, gain=_gain, share=_share, path=quote)
    cards = list_videos(results)
    two = len(results) == 2
    trained = [result.learning for result in results if result.learning]
    shown = [set(learning.pictures) for learning in trained]
    return environment.get_template("page.html").render(
        results=results,
        bases=bases,
        cards=cards,
        videos=bool(cards) or not any(result.trains for result in results),
        trained=trained,
        charts=list(dict.fromkeys((c.title, c.unit) for learning in trained for c in learning.curves)),
        shown=sorted(set.intersection(*shown)) if shown else [],
        rows=compare(*results) if two else [],
        columns=shared_columns(*results) if two else results[0].columns,
        differing=differing_settings(results),
        css=Markup((HERE / "page.css").read_text("utf-8")),
        js=Markup("\n".join((HERE / name).read_text("utf-8") for name in SCRIPTS)),
        data=Markup(_page_data(bases, cards, results)),
    )


def _page_data(bases: Sequence[str], cards: Sequence[Card], results: Sequence[Result]) -> str:
    """What the script needs to know at once, safe inside a script element."""
    videos = [{"name": c.name, "status": c.status, "error": c.error, "pictures": c.pictures} for c in cards]
    learning = [r.learning.as_json() if r.learning else None for r in results]
    content = {"bases": bases, "videos": videos, "learning": learning}
    return json.dumps(content).replace("<", "\\u003c")


@dataclass(frozen=True)
class Card:
    """One video in the list that opens it."""

    name: str
    status: str
    error: str
    pictures: bool
    number: str = ""  # its score, or by how much B is better
    quality: float | None = None


def list_videos(results: Sequence[Result]) -> list[Card]:
    """The videos of a result, or those that two results share: the largest loss of B first."""
    if len(results) == 2:
        return [_shared(row) for row in compare(*results) if row.first and row.second]
    return [
        Card(e.name, e.status, e.error, e.pictures, "" if e.quality is None else _score(e.quality), e.quality)
        for e in results[0].entries
    ]


def _shared(row: Difference) -> Card:
    marked = [(mark, e) for mark, e in zip("AB", (row.first, row.second), strict=True) if e]
    missing = next(((mark, e) for mark, e in marked if e.status != "done"), None)
    return Card(
        name=row.name,
        status=missing[1].status if missing else "done",
        error=f"{missing[0]}: {missing[1].error or missing[1].status}" if missing else "",
        pictures=any(e.pictures for _, e in marked),
        number=_gain(row.gain("")) if row.gain("") is not None else "",
    )


@dataclass(frozen=True)
class Difference:
    """One video of two results, or all of them: what each scored."""

    name: str
    first: Entry | None
    second: Entry | None

    def score(self, second: bool, column: str) -> float | None:
        """One side's score; an empty `column` means the number that orders the list."""
        entry = self.second if second else self.first
        if entry is None:
            return None
        return entry.scores.get(column) if column else entry.quality

    def gain(self, column: str) -> float | None:
        """Second minus first, where both are known."""
        a, b = self.score(False, column), self.score(True, column)
        return None if a is None or b is None else b - a


def compare(first: Result, second: Result) -> list[Difference]:
    """The videos of both results; the largest loss of the second one first, unknown ones last."""
    a, b = ({e.name: e for e in result.entries} for result in (first, second))
    rows = [Difference(name, a.get(name), b.get(name)) for name in dict.fromkeys([*a, *b])]
    return sorted(rows, key=lambda row: (row.gain("") is None, row.gain("") or 0.0, row.name))


def shared_columns(first: Result, second: Result) -> list[str]:
    """At most three scores that both results have."""
    both = [k for k in first.columns if k in second.columns]
    return [k for k in HEADLINE if k in both] or both[:3]


def differing_settings(results: Sequence[Result]) -> set[tuple[str, str]]:
    """(table, key) of the settings that are not the same in two results."""
    tables = [{(title, k): v for title, rows in r.settings for k, v in rows} for r in results]
    kept = {"Settings", "Model", "Machine"}
    return {k for t in tables for k in t if k[0] in kept and any(o.get(k) != t[k] for o in tables)}


def duration(seconds: float | None) -> str:
    """Seconds for people: `0.4 s`, `12 s`, `2 min 31 s`, `3 h 05 min`."""
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _score(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _gain(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:+.1f}".replace("-", "−")


def _share(value: float | None) -> str:
    """A score as a width."""
    return f"{100 * min(max(value or 0.0, 0.0), 1.0):.1f}%"

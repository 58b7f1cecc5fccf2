"""One page for every result, and the server behind `unspool view`.

`write_page` reads run.json, scores.json and videos/*/done.json, and writes index.html: the words and
tables as plain HTML, page.css and page.js inlined. What a video shows (masks, truth, curves) comes from
`data/*.js` when the reader opens it. All names are foreign text: escaped in HTML, percent-encoded in
addresses, and never read by the script except from JSON or through `textContent`.
"""

from __future__ import annotations

import json
import math
import mimetypes
import re
import shlex
import webbrowser
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from unspool.errors import OutputError, UsageError
from unspool.results import written_whole

HERE = Path(__file__).parent
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
    warnings: tuple[str, ...] = ()

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

    @property
    def headline(self) -> list[tuple[str, float]]:
        """At most three scores for the first glance."""
        known = [k for k in HEADLINE if k in self.scores] or list(self.scores)[:3]
        return [(k.removesuffix("-Mean"), self.scores[k]) for k in known]

    @property
    def columns(self) -> list[str]:
        """Score names of the table, in the order in which they first appear."""
        return list(dict.fromkeys(k for e in self.entries for k in e.scores))

    @property
    def title(self) -> str:
        """The video, or how many."""
        count = len(self.entries)
        return self.entries[0].name if count == 1 else f"{count:,} videos"

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
        """How long the run took, from its own clock."""
        try:
            began, ended = (datetime.fromisoformat(self.run[k]) for k in ("started", "ended"))
        except (KeyError, TypeError, ValueError):
            return None
        return (ended - began).total_seconds()

    @property
    def settings(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """Everything else of run.json that is worth a table."""
        kinds = [("Settings", "config"), ("Model", "model"), ("Machine", "machine"), ("Timings", "timings")]
        return [(title, rows) for title, key in kinds if (rows := list(_flat(self.run.get(key) or {})))]

    def total(self, what: str) -> int:
        """Sum over the videos of `frames` or `objects`."""
        return sum(getattr(entry, what) or 0 for entry in self.entries)

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
    entries = [_entry(folder, video, (scores.get("sequences") or {}).get(name)) for name, video in listed.items()]
    return Result(
        folder=folder.resolve().name,
        run=run,
        protocol=str(scores.get("protocol", "")),
        scores=_numbers(scores.get("global")),
        entries=sorted(entries, key=_worst_first),
    )


def _entry(folder: Path, video: Json, sequence: Json | None) -> Entry:
    name = str(video["name"])
    done = _read(folder / "videos" / name / "done.json") or {}
    own = {**video, **(done.get("scores") or {})}
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
        per_object={str(k): _with_mean(_numbers(v)) for k, v in ((sequence or {}).get("objects") or {}).items()},
        warnings=tuple(str(w) for w in done.get("warnings") or video.get("warnings") or ()),
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
    environment.filters.update(duration=duration, score=_score, share=_share, path=quote)
    return environment.get_template("page.html").render(
        results=results,
        bases=bases,
        rows=compare(*results) if len(results) == 2 else [],
        css=Markup((HERE / "page.css").read_text("utf-8")),
        js=Markup((HERE / "page.js").read_text("utf-8")),
        data=Markup(_page_data(results, bases)),
    )


def _page_data(results: Sequence[Result], bases: Sequence[str]) -> str:
    """What the script needs to know at once, safe inside a script element."""
    videos = [
        [{"name": e.name, "status": e.status, "error": e.error, "frames": e.frames} for e in result.entries]
        for result in results
    ]
    content = [{"base": base, "videos": v} for base, v in zip(bases, videos, strict=True)]
    return json.dumps({"results": content}).replace("<", "\\u003c")


@dataclass(frozen=True)
class Difference:
    """One video of two results; scores are those of `Entry.quality`."""

    name: str
    first: Entry | None
    second: Entry | None

    @property
    def gain(self) -> float | None:
        """Second minus first, where both are known."""
        a, b = (None if e is None else e.quality for e in (self.first, self.second))
        return None if a is None or b is None else b - a


def compare(first: Result, second: Result) -> list[Difference]:
    """The videos of both results; the largest loss of the second one first, unknown ones last."""
    a, b = ({e.name: e for e in result.entries} for result in (first, second))
    rows = [Difference(name, a.get(name), b.get(name)) for name in dict.fromkeys([*a, *b])]
    return sorted(rows, key=lambda row: (row.gain is None, row.gain or 0.0, row.name))


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
    return "–" if value is None else f"{value:.3f}"


def _share(value: float | None) -> str:
    """A score as a width."""
    return f"{100 * min(max(value or 0.0, 0.0), 1.0):.1f}%"


# ---------------------------------------------------------------------------------------- the server


class Server(ThreadingHTTPServer):
    """Serves one or two result folders on loopback; `url` is where."""

    daemon_threads = True

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://127.0.0.1:{self.server_address[1]}/"


def serve(folders: Sequence[Path], port: int = 0) -> Server:
    """A server for one result, or for two side by side; the caller runs `serve_forever`.

    Pages are made anew at each request, so that a reload shows the newest state of a running job.
    Raises OutputError for a folder without run.json, UsageError for another number of folders or a port
    that is taken.
    """
    if len(folders) not in {1, 2}:
        raise UsageError(f"view shows one result or two side by side, got {len(folders)}")
    roots = {"": folders[0]} if len(folders) == 1 else dict(zip(("a/", "b/"), folders, strict=True))
    roots = {base: folder.resolve() for base, folder in roots.items()}
    for folder in roots.values():
        read_result(folder)
    try:
        return Server(("127.0.0.1", port), partial(_Handler, roots))
    except (OSError, OverflowError) as error:
        raise UsageError(f"port {port} cannot be used ({error}); choose another, or 0 for any") from error


def view(folders: Sequence[Path], *, port: int = 0, open_browser: bool = True) -> None:
    """Serve until Ctrl-C, which ends it quietly."""
    with serve(folders, port) as server:
        print(f"{server.url}  (Ctrl-C ends)", flush=True)
        if open_browser:
            webbrowser.open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


class _Handler(BaseHTTPRequestHandler):
    """GET and HEAD of files below the roots, with byte ranges: browsers seek in videos by them."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "unspool", ""

    def __init__(self, roots: dict[str, Path], *arguments: Any) -> None:
        self.roots = roots
        super().__init__(*arguments)

    def do_GET(self) -> None:
        if urlsplit(f"//{self.headers.get('Host', '')}").hostname not in {"127.0.0.1", "localhost"}:
            return self._refuse(HTTPStatus.FORBIDDEN)  # a foreign name that resolves to loopback
        wanted = unquote(urlsplit(self.path).path).lstrip("/")
        page = self._page(wanted)
        if page is not None:
            return self._text(page)
        file = self._inside(wanted)
        if file is None:
            return self._refuse(HTTPStatus.NOT_FOUND)
        return self._text(_listing(file)) if file.is_dir() else self._file(file)

    do_HEAD = do_GET

    def _page(self, wanted: str) -> str | None:
        """A page is made at the root of the server and of each folder."""
        bases = [base for base in self.roots if wanted in {base, f"{base}index.html"}]
        if wanted in {"", "index.html"}:
            bases = list(self.roots)
        if not bases:
            return None
        results = [read_result(self.roots[base]) for base in bases]
        return render_page(results, bases if len(bases) == 2 else [""])

    def _inside(self, wanted: str) -> Path | None:
        """The file below one of the roots that the address names; nothing outside, by any trick."""
        for base, root in self.roots.items():
            if wanted.startswith(base) and "\0" not in wanted:
                file = (root / wanted.removeprefix(base)).resolve()
                return file if file.is_relative_to(root) and file.exists() else None
        return None

    def _file(self, file: Path) -> None:
        size = file.stat().st_size
        span = _byte_range(self.headers.get("Range", ""), size)
        if span is None:
            return self._refuse(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, {"Content-Range": f"bytes */{size}"})
        start, end = span
        partial_content = (start, end) != (0, size) or "Range" in self.headers
        kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        self._head(
            HTTPStatus.PARTIAL_CONTENT if partial_content else HTTPStatus.OK,
            f"{kind}; charset=utf-8" if kind.startswith("text/") else kind,
            end - start,
            {"Content-Range": f"bytes {start}-{end - 1}/{size}"} if partial_content else {},
        )
        if self.command == "GET":
            with file.open("rb") as source:
                source.seek(start)
                self._copy(source, end - start)

    def _copy(self, source: Any, count: int) -> None:
        while count > 0 and (block := source.read(min(count, 1 << 18))):
            try:
                self.wfile.write(block)
            except ConnectionError:  # the browser has seen enough
                self.close_connection = True
                return
            count -= len(block)

    def _text(self, text: str) -> None:
        content = text.encode()
        self._head(HTTPStatus.OK, "text/html; charset=utf-8", len(content))
        if self.command == "GET":
            self.wfile.write(content)

    def _refuse(self, status: HTTPStatus, headers: dict[str, str] | None = None) -> None:
        self._head(status, "text/plain", 0, headers)

    def _head(self, status: HTTPStatus, kind: str, size: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        fixed = {
            "Content-Type": kind,
            "Content-Length": str(size),
            "Accept-Ranges": "bytes",
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "default-src 'self' 'unsafe-inline' data: blob:",
        }
        for name, value in {**fixed, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Silent: the page shows what is missing."""


def _byte_range(header: str, size: int) -> tuple[int, int] | None:
    """Start and end (exclusive) of a Range header; the whole file if there is none; None if unsatisfiable."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header.strip())
    if match is None or match.groups() == ("", ""):
        return 0, size
    first, last = match.groups()
    if not first:  # the last n bytes
        return (max(size - int(last), 0), size) if int(last) and size else None
    start, end = int(first), min(int(last) + 1, size) if last else size
    return (start, end) if start < end else None


def _listing(folder: Path) -> str:
    names = sorted(f"{f.name}/" if f.is_dir() else f.name for f in folder.iterdir() if f.name[0] != ".")
    items = "".join(f'<li><a href="{quote(name)}">{escape(name)}</a></li>' for name in names)
    return f'<!doctype html><meta charset="utf-8"><title>{escape(folder.name)}</title><ul>{items}</ul>'

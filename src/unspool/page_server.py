"""The server behind `unspool view`: one result, or two side by side, on this machine only."""

from __future__ import annotations

import mimetypes
import re
import webbrowser
from collections.abc import Sequence
from functools import partial
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from unspool.errors import UsageError
from unspool.page import read_result, render_page


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
        try:
            print(f"{server.url}  (Ctrl-C ends)", flush=True)
            if open_browser:
                webbrowser.open(server.url)
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
        asked = _byte_range(self.headers.get("Range", ""), size)
        start, end = asked or (0, size)
        if asked and start >= end:
            self._refuse(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, {"Content-Range": f"bytes */{size}"})
            return
        kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        self._head(
            HTTPStatus.PARTIAL_CONTENT if asked else HTTPStatus.OK,
            f"{kind}; charset=utf-8" if kind.startswith("text/") else kind,
            end - start,
            {"Content-Range": f"bytes {start}-{end - 1}/{size}"} if asked else {},
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
    """Start and end (exclusive) of what a Range header asks for, empty if the file has no such bytes.

    None without a header, or with one that HTTP lets a server ignore (other units, several ranges).
    """
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header.strip())
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:  # the last n bytes
        return max(size - int(last), 0), size
    return int(first), min(int(last) + 1, size) if last else size


def _listing(folder: Path) -> str:
    names = sorted(f"{f.name}/" if f.is_dir() else f.name for f in folder.iterdir() if f.name[0] != ".")
    items = "".join(f'<li><a href="{quote(name)}">{escape(name)}</a></li>' for name in names)
    return f'<!doctype html><meta charset="utf-8"><title>{escape(folder.name)}</title><ul>{items}</ul>'

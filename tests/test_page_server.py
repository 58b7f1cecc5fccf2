"""Results over loopback, as `unspool view` serves them."""

from __future__ import annotations

import http.client
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from make_result import Clip, make_result

from unspool import page_server
from unspool.cli import main
from unspool.errors import UsageError
from unspool.page_server import Server, serve


def serving() -> Iterator[Callable[..., Server]]:
    """Start servers on free ports; they end with the test."""
    running: list[Server] = []

    def start(*folders: Path) -> Server:
        server = serve(list(folders))
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        running.append(server)
        return server

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


served = pytest.fixture(serving, name="served")


def get(
    server: Server, path: str, method: str = "GET", **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=10)
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response, body


def test_server_is_bound_to_loopback_only(tmp_path: Path, served: Callable[..., Server]) -> None:
    server = served(make_result(tmp_path, [Clip("swan", frames=2)]))
    assert server.server_address[0] == "127.0.0.1"
    assert b"swan" in get(server, "/")[1]


@pytest.mark.parametrize(
    ("asked", "start", "end"), [("bytes=0-", 0, None), ("bytes=10-19", 10, 20), ("bytes=-5", -5, None)]
)
def test_server_answers_byte_ranges(
    tmp_path: Path, served: Callable[..., Server], asked: str, start: int, end: int | None
) -> None:
    server = served(make_result(tmp_path, [Clip("swan", frames=2)]))
    whole = (tmp_path / "videos/swan/frames.mp4").read_bytes()
    response, body = get(server, "/videos/swan/frames.mp4", Range=asked)
    assert (response.status, body) == (206, whole[start:end])
    first = start % len(whole)
    assert response.headers["Content-Range"] == f"bytes {first}-{first + len(body) - 1}/{len(whole)}"


def test_server_sends_the_whole_file_without_a_range(tmp_path: Path, served: Callable[..., Server]) -> None:
    server = served(make_result(tmp_path, [Clip("swan", frames=2)]))
    whole = (tmp_path / "videos/swan/frames.mp4").read_bytes()
    for asked in ({}, {"Range": "lines=1-2"}):
        response, body = get(server, "/videos/swan/frames.mp4", **asked)
        assert (response.status, body, response.headers["Accept-Ranges"]) == (200, whole, "bytes")
    assert get(server, "/videos/swan/frames.mp4", "HEAD")[1] == b""


def test_server_refuses_a_range_beyond_the_end(tmp_path: Path, served: Callable[..., Server]) -> None:
    server = served(make_result(tmp_path, [Clip("swan", frames=2)]))
    assert get(server, "/videos/swan/frames.mp4", Range="bytes=99999999-")[0].status == 416


@pytest.mark.parametrize(
    "path",
    ["/../secret.txt", "/%2e%2e/secret.txt", "/data/../../secret.txt", "//etc/passwd", "/a%00b", "/link"],
)
def test_server_gives_nothing_outside_the_folder(
    tmp_path: Path, served: Callable[..., Server], path: str
) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    folder = make_result(tmp_path / "result", [Clip("swan", frames=2)])
    (folder / "link").symlink_to(tmp_path / "secret.txt")
    assert get(served(folder), path)[0].status == 404


def test_server_refuses_a_foreign_host_name(tmp_path: Path, served: Callable[..., Server]) -> None:
    server = served(make_result(tmp_path, [Clip("swan", frames=2)]))
    assert get(server, "/", Host="evil.example")[0].status == 403


def test_server_lists_the_masks_folder(tmp_path: Path, served: Callable[..., Server]) -> None:
    server = served(make_result(tmp_path, [Clip("swan", frames=2)]))
    assert b'href="00000.png"' in get(server, "/videos/swan/masks/")[1]


def test_two_results_are_compared_with_the_largest_loss_first(
    tmp_path: Path, served: Callable[..., Server]
) -> None:
    a = make_result(tmp_path / "a", [Clip("swan", shift=1), Clip("dog", shift=2), Clip("only-a")])
    b = make_result(tmp_path / "b", [Clip("swan", shift=2), Clip("dog", shift=9)])
    text = get(served(a, b), "/")[1].decode()
    table = text[text.index('<table id="differences"') :]
    assert re.findall(r'<th scope="row">(.*?)</th>', table)[:3] == ["dog", "swan", "only-a"]
    assert re.search(r'class="gain">−\d+\.\d<', table)


def test_view_refuses_three_results_and_a_port_in_use(tmp_path: Path, served: Callable[..., Server]) -> None:
    folder = make_result(tmp_path, [Clip("swan", frames=2)])
    with pytest.raises(UsageError, match="one result or two"):
        serve([folder] * 3)
    with pytest.raises(UsageError, match="choose another"):
        serve([folder], port=served(folder).server_address[1])


def test_the_browser_may_stay_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run.json").write_text("{}")
    asked: list[bool] = []
    monkeypatch.setattr(page_server, "view", lambda folders, port, open_browser: asked.append(open_browser))
    for more in ([], ["--no-open-browser"]):
        with pytest.raises(SystemExit) as ended:
            main(["view", str(tmp_path), *more])
        assert not ended.value.code
    assert asked == [True, False]


def test_ctrl_c_ends_view_quietly(tmp_path: Path) -> None:
    folder = make_result(tmp_path, [Clip("swan", frames=2)])
    script = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pathlib import Path; from unspool.page_server import view\n"
        f"view([Path({str(folder)!r})], open_browser=False)"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", script], **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        _, complaint = process.communicate(timeout=20)
    assert (process.returncode, complaint) == (0, "")

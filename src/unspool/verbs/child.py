"""`python -m unspool.verbs.child FOLDER WORDS...`: an `unspool` command that belongs to the process above it.

It works in FOLDER alone: what an earlier process of its kind has in hand there is waited for. It is asked to
end, as by SIGTERM, when its stdin is closed: by the process above, or because that process is no more.
"""

from __future__ import annotations

import io
import json
import os
import runpy
import signal
import sys
import threading
from pathlib import Path

from filelock import FileLock, Timeout


class _Stdout(io.TextIOWrapper):
    """Events that nobody reads any more are no error: the command is asked to end, and ends in order."""

    def flush(self) -> None:
        try:
            super().flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _end_with_stdin() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _alone_in(folder: Path) -> FileLock:
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        text = f"{folder}: waiting for the process that is at work there; if there is none, remove .lock"
        print(json.dumps({"event": "note", "text": text}), flush=True)
        lock.acquire()
    except OSError as error:
        text = f"{folder}: cannot be locked ({error.strerror}); choose a folder on another disk with -o"
        print(json.dumps({"event": "error", "error": text}), flush=True)
        raise SystemExit(1) from error
    return lock


def main() -> None:
    """Run the command of `sys.argv`."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a worker process above it ignores both
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout = _Stdout(sys.stdout.detach(), "utf-8")
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    held = _alone_in(Path(sys.argv[1]))
    sys.argv[1:] = sys.argv[2:]
    try:
        runpy.run_module("unspool", run_name="__main__", alter_sys=True)
    finally:
        held.release()


if __name__ == "__main__":
    main()

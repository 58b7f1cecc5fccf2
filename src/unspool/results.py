"""The promised result folder: what a command leaves behind, written atomically while it works.

RESULT/
  index.html, run.json, scores.json, scores.csv
  videos/NAME/{masks/00000.png, overlay.mp4, frames.mp4, thumbs.jpg, tracks.json, done.json}
  videos/NAME/.unfinished.pt         track, segment: of a video that was cut off (`verbs/unfinished.py`)
  videos/NAME/foreground/00000.png   segment --foreground only: the one object that stands out
  videos/NAME/hierarchy.npz          segment only: merge tree and labels on the grid (`unspool.segments`)
  data/NAME.js, data/NAME-000.js     what the page needs: run-length labels at display size
  data/NAME.tree/                    segment only: leaves of the tree, queries and keys
  pictures/NAME/                     eval clustering only
  checkpoints/NAME.pt                eval linear only: the head
  davis/SEQ/00000.png                eval only
  checkpoints/, encoder.safetensors, log.jsonl, pictures/, tensorboard/     train only (`unspool.training`)
  .address.json                      of a result at an address only (`unspool.mirror`)
  command.json, .lock                of a run of a sweep or suite only (`unspool.verbs.commands`, `.child`)

Every file appears under a temporary name and is renamed when whole; `done.json` comes last, so a video
without it is redone.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from unspool.errors import OutputError, UsageError

OWN_FOLDERS = ("videos", "data", "davis", "checkpoints", "tensorboard", "pictures")
OWN_FILES = ("index.html", "run.json", "scores.json", "scores.csv", "log.jsonl")  # --overwrite removes both

NOTE = "command.json"  # of a run of a sweep or suite, beside run.json: which command fills it, if it is done

Json = dict[str, Any]


# ---------------------------------------------------------------------------------------- atomic files


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; rename it on success, remove it on failure.

    Raises OutputError naming the file and the remedy when the disk is full or not writable.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        part.replace(path)
    except OSError as error:
        with suppress(OSError):  # of a folder that is none
            part.unlink(missing_ok=True)
        raise OutputError.of(path, error) from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Json) -> None:
    """Write `content` whole, readable by people, with a stable key order."""
    with written_whole(path) as part:
        part.write_text(json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n", "utf-8")


def write_script(path: Path, call: str, *arguments: object) -> None:
    """Write `unspool.call(arguments);`: data that a page opened from disk can load.

    `<` is escaped so that the text may also stand inside an inline script.
    """
    text = ",".join(json.dumps(a, separators=(",", ":"), ensure_ascii=False) for a in arguments)
    text = text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    with written_whole(path) as part:
        part.write_text(f"unspool.{call}({text});\n", "utf-8")


# ------------------------------------------------------------------------------------- a whole run


def safe_name(text: str) -> str:
    """A name that is also a file name everywhere: letters, digits, `.`, `-`, `_`."""
    return re.sub(r"[^\w.\-]+", "_", text).strip("._") or "video"


def files_of(folder: Path, name: str) -> list[Path]:
    """The files that the job of this name has left, and no other job: it may remove them while others write.

    A job writes `videos/NAME/`, `data/NAME.js`, `data/NAME-000.js`, `data/NAME.tree/` and `pictures/NAME/`.
    """
    data = re.compile(rf"{re.escape(name)}(\.tree|(-\d{{3,}})?\.js)")
    tops = [folder / "videos" / name, folder / "pictures" / name]
    if (folder / "data").is_dir():
        tops += [path for path in (folder / "data").iterdir() if data.fullmatch(path.name)]
    inside = [path for top in tops for path in ([top] if top.is_file() else top.rglob("*"))]
    return sorted(path for path in inside if path.is_file())


def vouches(name: str) -> bool:
    """Whether the file of this path says that others are there: it comes last."""
    return name.rpartition("/")[2] in ("done.json", NOTE)


def says_whole(name: str, content: bytes) -> bool:
    """Whether it says that all of its job is there; a note is also left by what failed."""
    return vouches(name) and (not name.endswith(NOTE) or json.loads(content)["done"] is True)


def is_of(parts: Sequence[str], names: Collection[str]) -> bool:
    """Whether the file of this path below the result folder is among `files_of` one of these names."""
    if len(parts) < 2 or parts[0] not in ("videos", "data", "pictures"):
        return False
    if parts[0] != "data":
        return parts[1] in names
    name = re.sub(r"\.(tree|js)$", "", parts[1])
    return name in names or re.sub(r"-\d{3,}$", "", name) in names


def read_done(folder: Path, name: str) -> Json | None:
    """The finished record of a video, or None when it must be (re)done."""
    try:
        return parse_done((folder / "videos" / name / "done.json").read_bytes())
    except OSError:
        return None


def parse_done(text: bytes) -> Json | None:
    """The content of a `done.json`; None where it was cut."""
    try:
        content = json.loads(text)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def read_log(path: Path) -> Iterator[Json]:
    """The records of a log.jsonl; a line that a kill has cut is passed over."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "step" in record:
            yield record


class Run:
    """`run.json` of a result folder: begun, updated after every video, ended.

    Continues a folder of the same settings; refuses one of other settings (UsageError that names the
    differences) unless `overwrite`, which empties what unspool wrote there.
    """

    def __init__(self, folder: Path, record: Json, *, overwrite: bool = False) -> None:
        self.folder = folder
        self._overwrite = overwrite
        earlier = None if overwrite else self._read()
        if earlier is None and folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder}: is a file, not a folder; choose another with -o")
        if earlier is not None:
            refuse_other_settings(earlier, record, folder)
        self.record: Json = {
            **record,
            "started": (earlier or {}).get("started", _now()),
            "ended": None,
            "status": "running",
            "timings": (earlier or {}).get("timings", {}),
            "videos": (earlier or {}).get("videos", []),
            "warnings": [],
        }

    def begin(self) -> None:
        """Write `run.json`: from here on the folder belongs to this run, and nothing of others is in it."""
        if self._overwrite:
            self._clear()
        self.save()

    def _read(self) -> Json | None:
        path = self.folder / "run.json"
        return parse_run(path.read_bytes(), path) if path.exists() else None

    def _clear(self) -> None:
        for name in OWN_FOLDERS:
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for name in OWN_FILES:
            (self.folder / name).unlink(missing_ok=True)
        for path in self.folder.glob("encoder*.safetensors"):
            path.unlink()

    def video(self, entry: Json) -> None:
        """Add or replace the entry of one video (`name`, `status`, ...) and save."""
        others = [v for v in self.record["videos"] if v["name"] != entry["name"]]
        self.record["videos"] = [*others, entry]
        self.save()

    def keep(self, entry: Json) -> None:
        """The entry of a video that was done earlier, where none says so: elsewhere, or before a kill."""
        done = [earlier["name"] for earlier in self.record["videos"] if earlier.get("status") == "done"]
        if entry["name"] not in done:
            self.video(entry)

    def end(self, status: str, *, timings: Json | None = None, warnings: Iterable[str] = ()) -> None:
        """Set the final status: `done`, `failed` (some work) or `interrupted`."""
        if timings:
            self.record["timings"] = timings
        self.record.update(ended=_now(), status=status, warnings=list(warnings))
        self.save()

    def save(self) -> None:
        """Write `run.json` whole."""
        write_json(self.folder / "run.json", self.record)


def parse_run(text: bytes, where: Path | str) -> Json | None:
    """The content of a `run.json`. Raises OutputError where it cannot be read."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise OutputError(f"{where}: not readable ({error}); use --overwrite or another folder") from error
    return content if isinstance(content, dict) else None


def refuse_other_settings(earlier: Json, record: Json, where: Path | str) -> None:
    """Raise UsageError that names what differs between the `run.json` of a folder or address and this one."""
    old, new = (
        _flat(
            {"verb": r.get("verb"), "weights": r.get("model", {}).get("weights_hash"), **r.get("config", {})}
        )
        for r in (earlier, record)
    )
    differing = [k for k in sorted(old.keys() | new.keys()) if _plain(old.get(k)) != _plain(new.get(k))]
    if differing:
        listed = ", ".join(f"{k}: {old.get(k)!r} there, {new.get(k)!r} now" for k in differing)
        raise UsageError(
            f"{where}: holds results of other settings ({listed}); "
            "choose another folder with -o, or --overwrite to start again"
        )


def _flat(table: Json, prefix: str = "") -> Json:
    found: Json = {}
    for key, value in table.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _plain(value: object) -> object:
    return json.loads(json.dumps(value, default=str))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

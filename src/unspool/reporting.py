"""What a running command tells: sentences on stderr for people, JSON lines on stdout for machines."""

from __future__ import annotations

import json
import os
from time import monotonic
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from unspool.errors import counted

Json = dict[str, Any]
PLAIN_EVERY = 30.0  # s between progress lines where there is no terminal


class Reporter:
    """Takes events (`{"event": ..., ...}`) and shows them; use as a context manager.

    On a terminal: one bar per running video with frames/s and the time left. Elsewhere: one plain line
    per tenth of a video or half a minute. `quiet` 1: results and errors only. `as_json`: every event also
    goes to stdout as one JSON line.
    """

    def __init__(
        self, *, as_json: bool = False, quiet: bool = False, verbose: bool = False, timings: bool = False
    ) -> None:
        no_colour = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
        self.console = Console(stderr=True, no_color=no_colour, highlight=False, soft_wrap=True)
        self.as_json, self.quiet, self.verbose, self.timings = as_json, quiet, verbose, timings
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=quiet or not self.console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._clock: dict[str, tuple[float, float, int]] = {}  # video -> start, last line, tenths shown
        self._pace: dict[str, tuple[float, int]] = {}  # video -> from when, and after which frame, to count
        self._frames: dict[str, int] = {}  # video -> the newest frame

    def __enter__(self) -> Reporter:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, event: Json) -> None:
        """Show one event."""
        named = _named(event)
        if self.as_json and self._worth_a_line(named):
            print(json.dumps(event, default=str), flush=True)
        show = getattr(self, f"_{event['event']}", None)
        if show is not None:
            show(named)

    def _worth_a_line(self, event: Json) -> bool:
        if event["event"] == "stage":
            name = f"{event['video']}: {event['stage']}"
            return self._due({"video": name, "frame": event["done"], "frames": event["total"]})
        return event["event"] != "frame" or self._due(event)

    def say(self, text: str) -> None:
        """A sentence for people; not shown when quiet."""
        if not self.quiet:
            self.console.print(text, markup=False)

    def warn(self, text: str) -> None:
        """Shown even when quiet, on stderr."""
        self.console.print(f"warning: {text}", style="yellow", markup=False)

    def error(self, text: str) -> None:
        """Shown always, on stderr."""
        self.console.print(f"error: {text}", style="bold red", markup=False)

    # one method per kind of event

    def _video(self, event: Json) -> None:
        self._clock[event["video"]] = (monotonic(), monotonic(), 0)
        self._frames[event["video"]] = event.get("begun", 0)
        self._pace[event["video"]] = (monotonic(), self._frames[event["video"]])
        length = "a stream" if event["frames"] is None else counted(event["frames"], "frame")
        if self._bars.disable:
            self.say(f"{event['video']}: {length}")
        else:
            self._tasks[event["video"]] = self._bars.add_task(
                event["video"], total=event["frames"], completed=event.get("begun", 0), rate=""
            )
        if begun := event.get("begun"):
            self.say(f"{event['video']}: goes on after frame {begun} of {event['frames']}")
        for note in event.get("notes", []):
            self.say(f"{event['video']}: {note}")

    def _frame(self, event: Json) -> None:
        name = event["video"]
        start, first = self._pace.setdefault(name, (monotonic(), 0))
        rate = max(event["frame"] - first, 1) / max(monotonic() - start, 1e-6)
        self._frames[name] = event["frame"]
        if name in self._tasks:
            self._bars.update(self._tasks[name], completed=event["frame"], rate=f"{rate:.1f} frames/s")
        elif not self.quiet and not self.as_json and self._due(event):
            if event["frames"] is None:
                self.say(f"{name}: {counted(event['frame'], 'frame')}, {rate:.1f} frames/s")
                return
            left = (event["frames"] - event["frame"]) / rate
            self.say(
                f"{name}: {event['frame']}/{event['frames']} frames, {rate:.1f} frames/s, {left:.0f} s left"
            )

    def _stage(self, event: Json) -> None:
        """One stage of one video: encoding, clustering, writing; reading what an earlier run did."""
        name = event["video"]
        self._pace[name] = (monotonic(), self._frames.get(name, 0))  # frames wait for as long as it takes
        shown = f"{event['frames_per_second']:.1f} frames/s"
        told = f"{shown}, {_duration(event['seconds_left'])} of {event['stage']} left"
        self._advance(f"{event['video']}: {event['stage']}", event["done"], event["total"], shown, told)

    def _due(self, event: Json) -> bool:
        """True once per tenth of the video, or after half a minute."""
        start, last, tenths = self._clock.setdefault(event["video"], (monotonic(), monotonic(), 0))
        now, total = monotonic(), event["frames"]
        reached = 0 if total is None else 10 * event["frame"] // max(total, 1)  # a stream has no tenths
        if reached <= tenths and now - last < PLAIN_EVERY:
            return False
        self._clock[event["video"]] = (start, now, reached)
        return True

    def _done(self, event: Json) -> None:
        self._drop(event["video"])
        scores = event.get("scores")
        score = f", J&F {100 * scores['J&F']:.1f}" if scores else ""
        self.say(
            f"{event['video']}: done, {counted(event['frames'], 'frame')} in {event['seconds']:.1f} s "
            f"({event['frames_per_second']} frames/s){score}"
        )
        for text in event.get("warnings", []):
            self.warn(text)

    def _skipped(self, event: Json) -> None:
        self.say(f"{event['video']}: already done")

    def _lost(self, event: Json) -> None:
        self._drop(event["video"])
        self.warn(event["text"])

    def _failed(self, event: Json) -> None:
        self._drop(event["video"])
        self.error(event["error"])
        if self.verbose and event.get("traceback"):
            self.console.print(event["traceback"], markup=False)

    # training

    def _storing(self, event: Json) -> None:
        what = event.get("what", "keeping decoded frames")
        self._advance(_of(event, what), event["done"], event["total"], f"{event['seconds_left']} s left")

    def _continued(self, event: Json) -> None:
        self.say(_of(event, f"continuing after step {event['step']:,} of {event['steps']:,}"))

    def _step(self, event: Json) -> None:
        rate = f"loss {event['loss']:.4f}, {_pace(event['steps_per_second'])}"
        self._advance(_of(event, "training"), event["step"], event["steps"], rate, self._told(event))

    @staticmethod
    def _told(event: Json) -> str:
        left = (event["steps"] - event["step"]) / event["steps_per_second"]
        rates = f"{_pace(event['steps_per_second'])}, {event['frames_per_second']:.0f} frames/s"
        memory = f"{event['memory_gb']:.1f} GB"
        return f"loss {event['loss']:.4f}, {rates}, {memory}, {_duration(left)} left"

    def _validated(self, event: Json) -> None:
        best = ", the best so far" if event["best"] else ""
        scores = f"J {100 * event['J']:.1f}, F {100 * event['F']:.1f}"
        self.say(_of(event, f"step {event['step']:,}: {scores}{best}"))

    def _warning(self, event: Json) -> None:
        self.warn(event["text"])

    def _advance(self, name: str, done: int, total: int, rate: str, plainly: str = "") -> None:
        """A bar on a terminal; elsewhere a line per tenth, or half a minute."""
        if not self._bars.disable:
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(name, total=total, rate="")
            self._bars.update(self._tasks[name], completed=done, rate=rate)
            if done >= total:
                self._drop(name)
        elif not self.as_json and self._due({"video": name, "frame": done, "frames": total}):
            self.say(f"{name}: {done:,}/{total:,}, {plainly or rate}")

    def _note(self, event: Json) -> None:
        self.say(event["text"])

    def _summary(self, event: Json) -> None:
        """What went wrong or was stopped is told even when quiet."""
        self.console.print(event["text"], markup=False)

    def _result(self, event: Json) -> None:
        """The answer itself goes to stdout, for pipes; events take its place with `as_json`."""
        if not self.as_json:
            print(event["text"], flush=True)

    def _end(self, event: Json) -> None:
        if self.timings and event["timings"]:
            frames = max(event["frames"], 1)
            for stage, seconds in event["timings"].items():
                self.console.print(f"{stage:>10} {seconds:8.2f} s {1000 * seconds / frames:8.1f} ms a frame")
        if self.timings and event.get("speed"):
            self.console.print(_speed_in_words(event["speed"]), markup=False)
        self._result({"text": event["page"]})

    def _drop(self, name: str) -> None:
        if name in self._tasks:
            self._bars.remove_task(self._tasks.pop(name))


def _of(event: Json, text: str) -> str:
    """Of runs that are at work side by side, each says its name first."""
    return f"{event['run']}: {text}" if "run" in event else text


def _named(event: Json) -> Json:
    return event | {key: _of(event, event[key]) for key in ("video", "text", "error") if key in event}


def _pace(steps_per_second: float) -> str:
    """Steps in a second, or seconds in a step where these are more."""
    if steps_per_second < 1:
        return f"{1 / steps_per_second:.1f} s/step"
    return f"{steps_per_second:.3g} steps/s"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 6000 else f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _speed_in_words(found: Json) -> str:
    """One line for people."""
    sizes = ", ".join(found["inputs"][:3]) + (", ..." if len(found["inputs"]) > 3 else "")
    return (
        f"model {found['fps_model']} frames/s (warm-up: {counted(found['warm_up_videos'], 'video')}), "
        f"end to end {found['fps_end_to_end']} frames/s, peak memory {found['peak_memory'] / 1e9:.2f} GB; "
        f"{found['device']}, {found['precision']}, input {sizes}, objects {found['objects']}, "
        f"context {found['context']} frames"
    )

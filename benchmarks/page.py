"""How fast the page opens and plays, in headless Chromium: `python benchmarks/page.py`.

Writes two results through `unspool.results`, as a command would, and prints for each the time from the
click to the first frame with its objects, the time to reach the last frame, and how many frames a second
reach the screen while it plays, next to the same file in a bare <video> (the physical limit here).
"""

from __future__ import annotations

import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import numpy as np

from unspool.page import write_page
from unspool.results import Run
from unspool.video_result import VideoResult

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from chromium import Browser

FPS = 30
PAINTED_PER_SECOND = """
    const [seconds, done] = arguments;
    let frames = 0;
    const began = performance.now();
    const video = document.querySelector('video');
    video.currentTime = 0;
    const count = () => {
        frames += 1;
        if (performance.now() - began < seconds * 1000) video.requestVideoFrameCallback(count);
        else { video.pause(); done(frames / seconds); }
    };
    video.requestVideoFrameCallback(count);
    video.play();
"""
PAINT_TIME = """
    const began = performance.now();
    for (let frame = 0; frame < 100; frame++) unspool.paint(frame);
    return (performance.now() - began) / 100;
"""


def make(folder: Path, frames: int, height: int, width: int, objects: int) -> Path:
    """A finished result: discs over noise that moves."""
    rows, columns = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).integers(40, 216, (height, width * 2, 3), dtype=np.uint8)
    run = Run(
        folder, {"verb": "track", "command": ["unspool", "track"], "config": {}, "model": {"name": "none"}}
    )
    times = [Fraction(t, FPS) for t in range(frames)]
    with VideoResult(folder, "clip", source="clip.mp4", height=height, width=width, times=times) as result:
        for t in range(frames):
            labels = np.zeros((height, width), np.uint8)
            for k in range(1, objects + 1):
                row, column = height * k / (objects + 1), width * (0.5 + 0.4 * np.sin(t / 40 + k))
                labels[(rows - row) ** 2 + (columns - column) ** 2 < (height / 6) ** 2] = k
            result.write(np.ascontiguousarray(noise[:, t % width : t % width + width]), labels)
        result.finish(seconds=1.0)
    run.video({"name": "clip", "status": "done", "frames": frames, "objects": objects})
    run.end("done")
    return write_page(folder)


def measure(browser: Browser, page: Path, frames: int) -> None:
    began = time.perf_counter()
    browser.open(page)
    browser.until("s.painted === 0 && !s.blind", 60)
    opened = time.perf_counter() - began
    began = time.perf_counter()
    browser.run("unspool.goTo(arguments[0])", frames - 1)
    browser.until(f"s.painted === {frames - 1}", 60)
    jumped = time.perf_counter() - began
    browser.run("unspool.goTo(0)")
    browser.until("s.painted === 0")
    paint = browser.run(PAINT_TIME)
    played = browser.driver.execute_async_script(PAINTED_PER_SECOND, 5)
    browser.open((page.parent / "videos/clip/frames.mp4").as_uri())
    bare = browser.driver.execute_async_script(PAINTED_PER_SECOND, 5)
    print(f"  opens in {opened:.2f} s, last frame in {jumped:.2f} s, objects of a frame in {paint:.2f} ms")
    print(f"  plays {played:.1f} frames/s of {FPS}; the bare <video> {bare:.1f}; ratio {played / bare:.2f}")


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        browser = Browser(root / "profile")
        browser.driver.set_script_timeout(60)
        try:
            for frames, height, width, objects in ((500, 480, 854, 5), (10_000, 64, 96, 2)):
                print(f"{frames} frames, {width} x {height}, {objects} objects")
                measure(browser, make(root / f"{frames}", frames, height, width, objects), frames)
        finally:
            browser.close()


if __name__ == "__main__":
    main()

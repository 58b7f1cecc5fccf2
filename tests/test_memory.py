"""Memory does not grow with the video."""

import gc
from pathlib import Path

import pytest

from unspool.encoders import load_encoder
from unspool.rendered import render
from unspool.results import Run
from unspool.tracking import track_frames
from unspool.video_result import VideoResult

FRAMES, WARM, GROWTH = 10_000, 500, 50e6


def resident() -> int:
    """Bytes of this process in memory."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory in use from /proc")
def test_ten_thousand_frames_are_tracked_and_written_in_the_memory_of_five_hundred(tmp_path: Path) -> None:
    clip = render(0, height=64, width=96, frames=FRAMES, objects=2)
    video = clip.video
    encoder = load_encoder("random-resnet18", device="cpu")
    Run(tmp_path, {"verb": "track", "config": {}})
    at_warm = 0
    with VideoResult(
        tmp_path, "long", source="rendered", height=64, width=96, times=video.times, with_truth=True
    ) as result:
        for t, (image, labels) in enumerate(track_frames(video, clip.labels(0), encoder)):
            result.write(image, labels, clip.labels(t))
            if t in (WARM, FRAMES - 1):
                gc.collect()
                at_warm = at_warm or resident()
        grown = resident() - at_warm
        result.finish(seconds=1.0)
    assert t == FRAMES - 1
    assert grown < GROWTH, f"{grown / 1e6:.0f} MB between frame {WARM} and {FRAMES}"
    assert len(list((tmp_path / "data").glob("long-*.js"))) == FRAMES // 500

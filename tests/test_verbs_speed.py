"""Three numbers of a run: what counts in each."""

from typing import Any

import pytest

from unspool.reporting import Reporter
from unspool.verbs.speed import speed


def video(before: int, model: float, **more: Any) -> dict[str, Any]:
    """Ten frames in 5 s, of which the model took so many."""
    own = {"videos_before": before, "model_seconds": model, "peak_memory": 10**9 + before, "device": "cpu"}
    own |= {"precision": "fp32", "input": "64x48", "context": 20, **more}
    return {"frames": 10, "seconds": 5.0, "objects": [{}] * (before + 1), "speed": own}


def test_three_videos_of_each_process_warm_the_model_up_and_do_not_count() -> None:
    done = [video(0, 4.0), video(1, 3.0), video(0, 4.0), video(2, 3.0), video(3, 2.0), video(4, 0.5)]
    found = speed(done)
    assert (found["fps_model"], found["warm_up_videos"]) == (8.0, 3)
    assert found["fps_end_to_end"] == 2.0
    assert (found["peak_memory"], found["objects"], found["inputs"]) == (10**9 + 4, 5, ["64x48"])


def test_of_fewer_videos_the_last_counts_and_the_result_says_how_little_came_before() -> None:
    assert speed([video(0, 4.0)]).items() >= {"fps_model": 2.5, "warm_up_videos": 0}.items()
    assert speed([video(0, 4.0), video(1, 2.0)]).items() >= {"fps_model": 5.0, "warm_up_videos": 1}.items()


def test_what_was_done_without_a_clock_has_no_speed() -> None:
    assert speed([{"frames": 3, "seconds": 1.0, "objects": []}]) == {}


def test_the_numbers_are_printed_with_the_timings(capsys: pytest.CaptureFixture[str]) -> None:
    done = [video(0, 4.0), video(1, 2.0)]
    with Reporter(timings=True) as report:
        report({"event": "end", "page": "r", "timings": {}, "frames": 10, "speed": speed(done)})
    told = " ".join(capsys.readouterr().err.split())
    assert "model 5.0 frames/s (warm-up: 1 video), end to end 2.0 frames/s, peak memory 1.00 GB" in told
    assert "cpu, fp32, input 64x48, objects 2, context 20 frames" in told

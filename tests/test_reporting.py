"""What a running command tells on stderr."""

import pytest

from unspool.reporting import Reporter


@pytest.mark.parametrize(
    ("rate", "told"), [(0.291, "3.4 s/step"), (0.05, "20.0 s/step"), (2.5, "2.5 steps/s")]
)
def test_slow_training_is_told_in_seconds_a_step(
    capsys: pytest.CaptureFixture[str], rate: float, told: str
) -> None:
    step = {"step": 5, "steps": 10, "loss": 1.0, "frames_per_second": 8.0, "memory_gb": 1.0}
    with Reporter() as report:
        report({"event": "step", "steps_per_second": rate, **step})
    assert f", {told}, 8 frames/s" in capsys.readouterr().err


def test_frames_that_follow_a_stage_are_counted_from_the_last_before_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stage = {"event": "stage", "video": "cows", "stage": "clustering"}
    stage |= {"frames_per_second": 9.0, "seconds_left": 1.0}
    with Reporter() as report:
        report({"event": "video", "video": "cows", "frames": 12})
        report({"event": "frame", "video": "cows", "frame": 5, "frames": 12})
        report({**stage, "done": 6, "total": 12})  # as many frames as the next event has, and more than it
        for frame in (6, 11):
            report({"event": "frame", "video": "cows", "frame": frame, "frames": 12})
    told = [line for line in capsys.readouterr().err.splitlines() if "cows: 11/12 frames" in line]
    assert len(told) == 1 and not told[0].split(", ")[1].startswith("-")

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

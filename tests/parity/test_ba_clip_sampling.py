"""Recordings of BA's clip sampling: clip_sampling.npz."""

import os
from pathlib import Path

import numpy as np

from unspool.data.sampling import centre_range

GOLDEN = Path(os.environ.get("UNSPOOL_GOLDEN", Path(__file__).parents[1] / "golden")) / "ba"


def test_stride_and_range_of_the_centre_equal_the_published_code() -> None:
    rows = np.load(GOLDEN / "clip_sampling.npz")["rows"]
    ours = [
        centre_range(int(length), int(frames), int(stride), released=True)
        for length, stride, frames, *_ in rows
    ]
    assert ours == [tuple(row) for row in rows[:, 3:6].tolist()]


def test_the_recorded_centres_lie_in_the_range() -> None:
    rows = np.load(GOLDEN / "clip_sampling.npz")["rows"]
    assert ((rows[:, 4] <= rows[:, 6]) & (rows[:, 6] <= rows[:, 5])).all()


def test_ours_never_repeats_a_frame_where_the_clip_fits() -> None:
    rows = np.load(GOLDEN / "clip_sampling.npz")["rows"]
    for length, stride, frames, *_ in rows.tolist():
        used, low, high = centre_range(length, frames, stride)
        assert used >= 1
        assert low - used * (frames // 2) >= 0
        assert high + used * (frames // 2) <= length - 1

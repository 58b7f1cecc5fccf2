from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unspool.data.sampling import (
    Mode,
    Sampling,
    centre_range,
    centred,
    constant_times,
    draw_frames,
    permuted_window,
    regular,
    regular_in_time,
    stretched_window,
    uniform,
)

MODES: list[Mode] = ["regular", "uniform", "dense", "permuted", "stretched", "centred"]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def starts(draw: Callable[[np.random.Generator], np.ndarray]) -> set[int]:
    return {int(draw(rng(seed)).min()) for seed in range(300)}


@given(
    mode=st.sampled_from(MODES),
    length=st.integers(1, 200),
    frames=st.integers(1, 12),
    gap=st.integers(1, 40),
    in_seconds=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_rule_stays_within_the_video(
    *, mode: Mode, length: int, frames: int, gap: int, in_seconds: bool, seed: int
) -> None:
    how = Sampling(frames, mode, gap, seconds=gap / 10 if in_seconds else None)
    if length < how.shortest:
        return
    indices = draw_frames(constant_times(length, 10.0), how, rng(seed))
    assert indices.shape == (frames,)
    assert indices.min() >= 0
    assert indices.max() < length


def test_a_permuted_window_holds_every_second_frame_in_random_order() -> None:
    drawn = [permuted_window(100, 5, 2, rng(seed)) for seed in range(50)]
    assert all(np.diff(np.sort(d)).tolist() == [2, 2, 2, 2] for d in drawn)
    assert any(np.diff(d)[0] < 0 for d in drawn)


def test_a_permuted_window_starts_anywhere_up_to_the_last_frame() -> None:
    assert starts(lambda r: permuted_window(12, 5, 2, r)) == set(range(4))  # 12 - 1 - 8 = 3, inclusive


def test_a_permuted_window_of_a_short_video_has_an_integer_stride() -> None:
    assert set(np.diff(np.sort(permuted_window(14, 5, 10, rng())))) == {2}  # 14 // 5
    assert sorted(permuted_window(5, 5, 10, rng()).tolist()) == [0, 1, 2, 3, 4]


def test_a_stretched_window_keeps_the_order_and_a_real_stride() -> None:
    assert (stretched_window(14, 5, 10, rng()) == [0, 2, 5, 8, 11]).all()  # int(i * 2.8)
    assert starts(lambda r: stretched_window(53, 5, 10, r)) == set(range(4))


def test_a_stretched_window_repeats_frames_of_a_video_shorter_than_the_clip() -> None:
    assert stretched_window(3, 5, 10, rng()).tolist() == [0, 0, 1, 1, 2]


def test_regular_starts_anywhere_where_the_steps_fit() -> None:
    assert starts(lambda r: regular(14, 4, 3, r)) == {0, 1, 2}
    assert np.diff(regular(14, 4, 3, rng())).tolist() == [3, 3, 3]


def test_regular_shortens_its_step_and_then_repeats_the_last_frame() -> None:
    assert np.diff(regular(10, 4, 3, rng())).tolist() == [2, 2, 2]
    assert regular(2, 4, 3, rng()).tolist() == [0, 1, 1, 1]


def test_uniform_frames_are_sorted_and_different() -> None:
    drawn = uniform(10, 4, rng())
    assert (np.diff(drawn) > 0).all()
    assert (np.diff(uniform(2, 4, rng())) >= 0).all()


@given(st.integers(4, 60), st.sampled_from([6.0, 24.0, 30.0]), st.integers(1, 5), st.integers(0, 20))
def test_regular_in_seconds_equals_regular_in_frames_at_a_constant_rate(
    length: int, fps: float, step: int, seed: int
) -> None:
    by_time = regular_in_time(constant_times(length, fps, start=1.5), 4, step / fps, rng(seed))
    assert by_time.tolist() == regular(length, 4, step, rng(seed)).tolist()


def test_regular_in_seconds_follows_a_variable_rate() -> None:
    times = np.concatenate([np.arange(0, 2, 0.1), np.arange(2, 6, 0.5)])
    for seed in range(20):
        indices = regular_in_time(times, 4, 0.5, rng(seed))
        wanted = times[indices[0]] + 0.5 * np.arange(4)
        assert (np.abs(times[:, None] - wanted).argmin(axis=0) == indices).all()


def test_seconds_become_the_nearest_number_of_frames() -> None:
    times = constant_times(60, 24.0)
    indices = draw_frames(times, Sampling(3, "stretched", seconds=0.5), rng())
    assert np.diff(indices).tolist() == [12, 12]


def test_the_centre_frame_is_in_the_middle_and_the_stride_shrinks_to_fit() -> None:
    assert np.diff(centred(100, 3, 4, rng())).tolist() == [4, 4]
    assert centre_range(9, 3, 4) == (4, 4, 4)
    assert centred(3, 3, 4, rng()).tolist() == [0, 1, 2]
    assert centred(1, 3, 4, rng()).tolist() == [0, 0, 0]


@pytest.mark.parametrize("mode", MODES)
def test_one_generator_state_gives_one_clip(mode: Mode) -> None:
    times = constant_times(50, 24.0)
    first, second = (draw_frames(times, Sampling(5, mode, 2), rng(7)).tolist() for _ in range(2))
    assert first == second

"""Label maps of a sequence, read side by side."""

import numpy as np
import pytest

from unspool.errors import DataError, ShapeError
from unspool.metrics import davis17_semi, fg_ari_video, segtrack_fbms
from unspool.metrics.labels import in_step, without_void


def maps(count: int, shape: tuple[int, int] = (4, 5)) -> list[np.ndarray]:
    return [np.full(shape, i, np.uint8) for i in range(count)]


def test_first_and_last_frame_are_marked() -> None:
    marks = [(index, at_end) for index, at_end, _ in in_step(maps(4), maps(4))]
    assert marks == [(0, True), (1, False), (2, False), (3, True)]


def test_a_single_frame_is_both_first_and_last() -> None:
    assert [(i, end) for i, end, _ in in_step(maps(1), maps(1))] == [(0, True)]


def test_no_more_than_one_frame_is_read_ahead() -> None:
    read = []

    def counted() -> object:
        for index, labels in enumerate(maps(5)):
            read.append(index)
            yield labels

    for index, _, _ in in_step(counted(), maps(5)):
        assert len(read) <= index + 2


@pytest.mark.parametrize(("predicted", "true"), [(3, 5), (5, 3)])
def test_lengths_that_differ_are_both_named(predicted: int, true: int) -> None:
    with pytest.raises(ShapeError, match=f"prediction has {predicted} frames, truth {true}"):
        fg_ari_video(maps(predicted), maps(true))


def test_sizes_that_differ_are_both_named_with_the_frame() -> None:
    truth = [*maps(2), np.zeros((4, 6), np.uint8)]
    with pytest.raises(ShapeError, match="frame 2: prediction is 4x5, truth is 4x6"):
        davis17_semi(maps(3), truth)


def test_one_map_in_place_of_a_sequence_is_refused() -> None:
    with pytest.raises(ShapeError, match="prediction is 5, truth is 5; both must be HxW"):
        fg_ari_video(iter(maps(1)[0]), iter(maps(1)[0]))


@pytest.mark.parametrize("protocol", [davis17_semi, fg_ari_video, segtrack_fbms])
def test_no_frames_at_all_are_refused(protocol: object) -> None:
    with pytest.raises(DataError, match="hold no frames"):
        protocol([], [])


def test_void_becomes_background_on_both_sides() -> None:
    truth = np.array([[0, 255, 3]], np.uint8)
    prediction = np.array([[1, 2, 3]], np.uint8)
    cleared = without_void(prediction, truth)
    assert [labels.tolist() for labels in cleared] == [[[1, 0, 3]], [[0, 0, 3]]]
    assert cleared[0].dtype == np.uint8

"""What the page shows of frames and label maps."""

import base64

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from unspool.display import display_size, encode_runs, label_runs


def decode_runs(text: str) -> list[int]:
    """The page's decoder, restated: pairs of varints (label, length)."""
    numbers, value, shift = [], 0, 0
    for byte in base64.b64decode(text):
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            numbers.append(value)
            value = shift = 0
    return [label for label, length in zip(numbers[::2], numbers[1::2], strict=True) for _ in range(length)]


@given(arrays(np.uint16, st.tuples(st.integers(1, 9), st.integers(1, 400)), elements=st.integers(0, 3000)))
def test_runs_decode_to_the_label_map(labels: np.ndarray) -> None:
    assert decode_runs(encode_runs(*label_runs(labels))) == labels.ravel().tolist()


def test_a_single_long_run_is_a_few_bytes() -> None:
    assert len(base64.b64decode(encode_runs(*label_runs(np.zeros((1080, 1920), np.uint8))))) == 4


@pytest.mark.parametrize(
    ("size", "shown"),
    [((480, 854), (480, 854)), ((181, 321), (180, 320)), ((1080, 1920), (480, 852)), ((1, 1), (2, 2))],
)
def test_the_page_shows_at_most_480_lines_of_even_size(size: tuple[int, int], shown: tuple[int, int]) -> None:
    assert display_size(*size) == shown

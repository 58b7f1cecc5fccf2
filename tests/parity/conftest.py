"""Golden recordings: `$UNSPOOL_GOLDEN` (default `tests/golden`), one npz per recording."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # the oracles

Recording = dict[str, np.ndarray]


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Recording]:
    folder = Path(os.environ.get("UNSPOOL_GOLDEN", Path(__file__).parents[1] / "golden"))

    def read(name: str) -> Recording:
        with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
            return {key: file[key] for key in file.files}

    return read

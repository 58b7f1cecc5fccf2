"""Which frames a protocol scores, by its name."""

from pathlib import Path

import numpy as np
import pytest

from unspool.errors import DataError
from unspool.masks import write_mask
from unspool.protocols.tracking import score_sequence, score_table


def masks(folder: Path, *present: bool) -> list[Path]:
    """A frame each, with an object where it is present."""
    folder.mkdir()
    paths = [folder / f"{t}.png" for t in range(len(present))]
    for path, there in zip(paths, present, strict=True):
        write_mask(path, np.pad(np.full((4, 4), int(there), np.uint8), 4))
    return paths


@pytest.mark.parametrize(("protocol", "j"), [("vos-late", 1.0), ("vos-late-allframes", 0.5)])
def test_the_ends_of_late_objects_count_only_by_the_name_that_says_so(
    tmp_path: Path, protocol: str, j: float
) -> None:
    truth = masks(tmp_path / "truth", True, True, True, True)
    prediction = masks(tmp_path / "prediction", False, True, True, False)
    table = score_table([score_sequence("a", prediction, truth, protocol)], protocol)
    assert (table["protocol"], table["global"]["J-Mean"]) == (protocol, j)


def test_where_the_ends_count_they_may_not_be_missing(tmp_path: Path) -> None:
    truth = masks(tmp_path / "truth", True, True, True)
    assert score_sequence("a", [None, truth[1], None], truth, "vos-late").summary.j_mean == 1
    with pytest.raises(DataError, match=r"a: no prediction for frame 0\.png"):
        score_sequence("a", [None, truth[1], None], truth, "vos-late-allframes")

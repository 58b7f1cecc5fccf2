"""What `eval discovery` prints of a tree of PNGs against the official command-line tool."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from unspool.masks import write_mask
from unspool.protocols.discovery import Prediction, Row, score_table, score_video


def test_davis17_unsup_of_a_tree_equals_the_official_tool(
    golden: Callable[[str], dict[str, np.ndarray]], tmp_path: Path
) -> None:
    recording = golden("metrics/official_cli")
    rows = [Row("davis17-unsup")]
    records = {}
    for name in map(str, recording["sequences"]):
        masks = recording[f"{name}_res_unsup"]
        paths = tuple(tmp_path / name / f"{t:05d}.png" for t in range(len(masks)))
        (tmp_path / name).mkdir()
        for path, mask in zip(paths, masks, strict=True):
            write_mask(path, mask)
        truth = recording[f"{name}_gt_unsup"]
        records[name] = score_video(name, Prediction(paths), truth.__iter__, rows)
    whole = score_table(records, rows, postprocessing="none")["protocols"]["davis17-unsup"]["global"]
    assert list(whole.values()) == pytest.approx(recording["unsup_global"].tolist(), abs=1e-6)

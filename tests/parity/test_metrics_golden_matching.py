"""Clusters matched to classes against leopart and Timetuning."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from unspool.metrics import clustering

Golden = Callable[[str], dict[str, np.ndarray]]


def test_matching_with_fixed_numbers_of_clusters_and_classes(golden: Golden) -> None:
    file = golden("metrics/clustering_match")
    pred, gt = file["pred"], file["gt"]
    rules = [key.removesuffix("_miou") for key in file if key.endswith("_miou")]
    assert rules
    for rule in rules:
        found = clustering(
            pred[None, None],
            gt[None, None],
            rule.replace("_", "-"),
            clusters=int(file["num_pred"]),
            classes=int(file["num_gt"]),
        )
        assert found.miou() == pytest.approx(float(file[f"{rule}_miou"]), abs=1e-6)
        pixels = [found.true_positives, found.false_positives, found.false_negatives]
        assert np.array_equal(pixels, file[f"{rule}_tp_fp_fn"])
        assert np.array_equal(found.class_of[pred], file[f"{rule}_remap"])


def units(kind: str, pred: np.ndarray, gt: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The maps that are matched together: [B, T, H, W] cut into frames, clips, or not at all."""
    axes = {"frame": 2, "sample": 1, "dataset": 0}[kind]
    count = int(np.prod(pred.shape[:axes]))
    for maps in zip(*(a.reshape(count, -1, *a.shape[2:]) for a in (pred, gt)), strict=True):
        yield tuple(m.reshape(-1, *pred.shape[2:]) for m in maps)


@pytest.mark.parametrize("background", [True, False])
def test_frames_clips_and_the_data_set_as_units(golden: Golden, background: bool) -> None:
    file = golden("metrics/clustering_fcd")
    ending = "_bg" if background else "_nobg"
    names = [key.removesuffix(ending) for key in file if key.endswith(ending)]
    assert names
    for name in names:
        kind, rule = name.split("_", 1)
        rule = rule.replace("m2o_", "many-")
        scores = [
            clustering(*unit, rule).miou(background=background)
            for unit in units(kind, file["pred"], file["gt"])
        ]
        assert np.mean(scores) == pytest.approx(float(file[name + ending]), abs=1e-6), name

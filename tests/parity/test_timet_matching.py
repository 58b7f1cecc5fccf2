"""Cluster matching against SMSD75/Timetuning, and the errors that its recordings hold on purpose."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from oracles_timet import released_propagation_scores, released_remap

from unspool.data.labelled import as_categories
from unspool.metrics import clustering

Recording = dict[str, np.ndarray]
Golden = Callable[[str], Recording]
RULES = {"hungarian": "hungarian", "m2o_iou": "many-iou", "m2o_prec": "many-precision"}
AXES = {"frame": 2, "sample": 1, "dataset": 0}


def units(maps: np.ndarray, axes: int) -> Iterator[np.ndarray]:
    count = int(np.prod(maps.shape[:axes]))
    yield from (unit.reshape(-1, *maps.shape[2:]) for unit in maps.reshape(count, -1, *maps.shape[2:]))


@pytest.mark.parametrize("kind", AXES)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("ending", ["", "_void"])
def test_frames_clips_and_the_data_set(golden: Golden, kind: str, rule: str, ending: str) -> None:
    file = golden("timet/matching")
    truth = file["gt" + ending]
    if kind != "dataset":  # decision 22: there void is a class like any other
        truth = np.where(truth == 255, truth[truth < 255].max() + 1, truth)
    pairs = zip(units(file["pred"], AXES[kind]), units(truth, AXES[kind]), strict=True)
    scores = [clustering(*pair, RULES[rule]).miou(background=False) for pair in pairs]
    assert np.mean(scores) == pytest.approx(float(file[f"{kind}_{rule}{ending}"]), abs=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_the_whole_set_with_background_and_its_relabelled_map(golden: Golden, rule: str) -> None:
    file = golden("timet/matching")
    whole = [file[name].reshape(-1, *file[name].shape[2:]) for name in ("pred", "gt")]
    found = clustering(*whole, RULES[rule])
    assert found.miou() == pytest.approx(float(file[f"all_bg_{rule}"]), abs=1e-6)
    assert np.array_equal(found.class_of[file["pred"]].ravel(), file[f"reordered_{rule}"])


def test_the_recorded_propagation_score_is_the_cumulative_one(golden: Golden) -> None:
    file = golden("timet/matching")
    found = released_propagation_scores(file["prop_pred"], file["gt"][0])
    assert list(found) == file["prop_classes"].tolist()
    np.testing.assert_allclose(list(found.values()), file["prop_scores"], atol=1e-6)


def test_the_recorded_remapping_collides_and_ours_does_not(golden: Golden) -> None:
    file = golden("timet/matching")
    assert np.array_equal(released_remap(file["remap_in"], file["remap_table"]), file["remap_out"])
    table = dict(enumerate(file["remap_table"].tolist()))
    assert np.array_equal(as_categories(file["remap_in"], table), file["remap_table"][file["remap_in"]])

"""Clusters matched to classes."""

import math

import numpy as np
import oracles_metrics as oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unspool.errors import DataError
from unspool.metrics import clustering
from unspool.metrics.matching import unmatched

quickly = settings(deadline=None, max_examples=40)
SEEDS = st.integers(0, 2**32 - 1)


def unit(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    prediction = np.stack([oracle.blobs(rng, (5, 9), [1, 2, 5, 7]) for _ in range(2)])
    return prediction, np.stack([oracle.blobs(rng, (5, 9), [3, 4, 255]) for _ in range(2)])


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return (one & other).sum() / union if (union := (one | other).sum()) else 0.0


@quickly
@given(SEEDS, st.sampled_from(["hungarian", "many-iou", "many-precision"]))
def test_every_cluster_goes_where_the_rule_says_and_iou_follows(seed: int, rule: str) -> None:
    prediction, truth = unit(seed)
    found = clustering(prediction, truth, rule)
    kept = truth != 255
    p, t = prediction[kept], truth[kept]
    clusters, classes = np.unique(p), np.unique(t)
    ious = np.array([[iou(p == k, t == c) for c in classes] for k in clusters])
    if rule == "hungarian":
        padded = np.pad(ious, ((0, len(classes)), (0, 0)))
        gained = sum(
            ious[i, classes.tolist().index(found.class_of[k])]
            for i, k in enumerate(clusters)
            if found.class_of[k] in classes and (found.class_of[k] or is_matched(ious, i))
        )
        assert gained >= oracle.best_assignment(padded) - 1e-12
    else:
        precisions = np.array([[((p == k) & (t == c)).mean() for c in classes] for k in clusters])
        best = (ious if rule == "many-iou" else precisions).argmax(axis=1)
        assert np.array_equal(found.class_of[clusters], classes[best])
    relabelled = found.class_of[p]
    assert np.array_equal(found.classes, classes)
    assert found.iou().tolist() == [iou(relabelled == c, t == c) for c in classes]


def is_matched(ious: np.ndarray, row: int) -> bool:
    """Whether class 0 can be this cluster's own, rather than where leftovers go."""
    return bool(ious[row].any())


def test_leftover_clusters_become_background() -> None:
    truth = np.array([[[0, 0, 0, 4, 4, 4]]], np.uint8)
    prediction = np.array([[[2, 2, 2, 5, 5, 6]]], np.uint8)
    found = clustering(prediction, truth, "hungarian")
    assert found.class_of[[2, 5, 6]].tolist() == [0, 4, 0]


def test_many_to_one_ties_go_to_the_lowest_class() -> None:
    truth = np.array([[[3, 4]]], np.uint8)
    prediction = np.array([[[1, 1]]], np.uint8)
    for rule in ("many-iou", "many-precision"):
        assert clustering(prediction, truth, rule).class_of[1] == 3


def test_iou_leans_to_small_classes_and_precision_does_not() -> None:
    truth = np.array([[[0] * 20 + [1]]], np.uint8)
    prediction = np.array([[[0] * 18 + [2] * 3]], np.uint8)
    assert clustering(prediction, truth, "many-iou").class_of[2] == 1
    assert clustering(prediction, truth, "many-precision").class_of[2] == 0


def test_a_unit_of_background_alone_scores_one_with_and_zero_without_background() -> None:
    truth = np.zeros((1, 3, 3), np.uint8)
    found = clustering(truth + 2, truth, "hungarian")
    assert found.miou() == 1
    assert found.miou(background=False) == 0


def test_a_unit_of_void_alone_has_no_score() -> None:
    truth = np.full((1, 3, 3), 255, np.uint8)
    assert math.isnan(clustering(truth, truth, "many-iou").miou())


def test_frames_of_a_unit_may_differ_in_size() -> None:
    frames = [np.full((2, 3), 1, np.uint8), np.full((4, 5), 1, np.uint8)]
    assert clustering(frames, frames, "hungarian").true_positives.tolist() == [26]


def test_a_fixed_class_absent_on_both_sides_counts_as_zero() -> None:
    labels = np.array([[[0, 1, 1]]], np.uint8)
    assert clustering(labels, labels, "hungarian", clusters=3, classes=3).miou() == pytest.approx(2 / 3)


@pytest.mark.parametrize(("option", "which"), [("clusters", "prediction"), ("classes", "truth")])
def test_an_id_beyond_the_fixed_number_is_refused(option: str, which: str) -> None:
    labels = np.array([[[0, 7]]], np.uint8)
    with pytest.raises(DataError, match=f"the {which} holds id 7, but {option}=5 allows 0 to 4"):
        clustering(labels, labels, "hungarian", **{option: 5})


def test_predictions_that_are_classes_are_not_matched() -> None:
    truth, swapped = np.array([[[0, 1], [2, 255]]]), np.array([[[0, 2], [1, 1]]])
    found = unmatched(swapped, truth, 3)
    assert found.iou().tolist() == [1.0, 0.0, 0.0]
    assert clustering(swapped, truth, "hungarian", clusters=3, classes=3).miou() == 1.0
    with pytest.raises(DataError, match="the prediction holds id 2, but classes=2"):
        unmatched(swapped, truth, 2)

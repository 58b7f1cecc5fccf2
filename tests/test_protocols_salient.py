import numpy as np
import pytest
import torch

from unspool.errors import ShapeError, UsageError
from unspool.protocols.salient import (
    Cuts,
    attention_foreground,
    cluster_precisions,
    foreground,
    jaccard,
    tuned_cuts,
)


def test_precision_is_a_mean_over_the_images_that_have_the_cluster() -> None:
    clusters = np.array([[[0, 0], [1, 1]], [[0, 0], [0, 0]]])
    mask = np.array([[[True, False], [True, True]], [[True, True], [True, False]]])
    found = cluster_precisions(clusters, mask, 3)
    assert found.tolist() == [(1 / 2 + 3 / 4) / 2, 1.0, 0.0]


@pytest.mark.parametrize(("void", "expected"), [("ignored", 1.0), ("foreground", 0.5), ("background", 1.0)])
def test_void_counts_as_named(void: str, expected: float) -> None:
    truth, mask = np.array([[[1, 255], [0, 0]]]), np.array([[[True, False], [False, False]]])
    assert jaccard(mask, truth, void) == expected
    assert jaccard(np.zeros((1, 2, 2), bool), np.zeros((1, 2, 2), int), void) == 1.0


def test_the_best_cut_separates_the_foreground() -> None:
    rng = np.random.default_rng(0)
    clusters = rng.integers(0, 20, (6, 8, 8))
    truth = (clusters >= 13).astype(np.uint8)  # the 7 of highest precision
    precisions = np.linspace(0.02, 0.98, 20)
    cuts = tuned_cuts(clusters, precisions, truth)
    assert (cuts.rank[-1], cuts.iou[-1]) == (13, 1.0)
    assert cuts.threshold == pytest.approx(0.7)
    assert jaccard(foreground(clusters, precisions, precisions[13]), truth) == 1.0


def test_the_threshold_is_a_multiple_below_one() -> None:
    cuts = Cuts(np.array([3]), np.array([0.999]), np.array([1.0]))
    assert cuts.threshold == pytest.approx(0.95)


def test_too_few_clusters_to_cut_are_refused() -> None:
    with pytest.raises(UsageError, match="1 clusters leave no cut"):
        tuned_cuts(np.zeros((1, 2, 2), int), np.array([0.5]), np.zeros((1, 2, 2), int))


def test_specks_of_one_or_two_cells_are_dropped() -> None:
    attention = torch.full((12, 12), 1e-6)
    attention[1:5, 1:5] = 1.0
    attention[10, 10] = 2.0
    found = attention_foreground(attention.view(1, 1, -1), (12, 12), mass=0.6)[0]
    assert found[2, 2]
    assert not found[8:, 8:].any()


def test_attention_of_another_grid_is_refused() -> None:
    with pytest.raises(ShapeError, match="49 patches does not fit a grid of 7x8"):
        attention_foreground(torch.rand(1, 2, 49), (7, 8))

from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles_salient import plain_extraction, stretched

from unspool.data.features import Kept
from unspool.errors import ShapeError, UsageError
from unspool.metrics import clustering
from unspool.ops import kmeans
from unspool.protocols.salient import (
    Cuts,
    Extraction,
    _precisions,
    attention_foreground,
    boundary_score,
    cluster_precisions,
    extract,
    foreground,
    jaccard,
    split_in_two,
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


# ------------------------------------------------------------------------------------- the whole protocol


SIDE = 24
HOW = Extraction(12, True, True, label_side=SIDE, iterations=20, tries=2, seeds=(0, 1))


def scenes_of(pictures: int, seed: int) -> Kept:
    """A square of other features than the rest, which attention sees with noise."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((pictures, 12, 12), np.uint8)
    for image in labels:
        y, x = rng.integers(0, 6, 2)
        image[y : y + 6, x : x + 6] = rng.integers(1, 3)
    tokens = 0.3 * rng.standard_normal((pictures, 3, 12, 12))
    tokens[:, 0] += 5 * (labels == 0)
    tokens[:, 1] += 5 * (labels == 1)
    tokens[:, 2] += 5 * (labels == 2)
    attention = (labels > 0) + 0.05 + 0.05 * rng.random((pictures, 12, 12))
    maps = {"tokens": tokens.astype(np.float16), "cls_attention": attention[:, None].astype(np.float32)}
    return Kept(maps, labels.repeat(2, 1).repeat(2, 2), "key")


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("regions", ["foreground", "all"])
def test_foreground_is_found_and_split_into_classes(together: bool, regions: str) -> None:
    train, val = scenes_of(6, 0), scenes_of(5, 1)
    how = replace(HOW, together=together, regions=regions, spherical=together)  # type: ignore[arg-type]
    found = extract(train, val, (train, val), 3, how, torch.device("cpu"))
    truth = val.labels
    assert jaccard(found.label_free, truth) > 0.9
    if together:  # unit features: under a quarter of the clusters is foreground, which no cut reaches
        return
    assert jaccard(found.tuned, truth) > 0.9
    assert boundary_score(found.tuned, truth) > 0.9
    for maps in found.groups.values():
        assert clustering(maps, truth, "hungarian", clusters=3, classes=3).miou() > 0.9


def test_the_same_seeds_find_the_same() -> None:
    train, val = scenes_of(4, 0), scenes_of(3, 1)
    one, other = (extract(train, val, (train, val), 3, HOW, torch.device("cpu")) for _ in range(2))
    assert np.array_equal(one.tuned, other.tuned) and one.thresholds == other.thresholds
    assert all(np.array_equal(one.groups[seed], other.groups[seed]) for seed in HOW.seeds)


def test_precisions_of_parts_are_those_of_all() -> None:
    rng = np.random.default_rng(0)
    clusters, mask = rng.integers(0, 9, (70, 5, 5)), rng.random((70, 5, 5)) > 0.5
    np.testing.assert_allclose(_precisions(clusters, mask, 10, 5), cluster_precisions(clusters, mask, 10))


@pytest.mark.parametrize("void", ["ignored", "foreground", "background"])
def test_cuts_of_tokens_are_those_of_their_pixels(void: str) -> None:
    rng = np.random.default_rng(3)
    tokens, precisions = rng.integers(0, 20, (5, 7, 7)), rng.random(20)
    truth = rng.choice([0, 1, 2, 255], (5, 24, 24)).astype(np.uint8)
    truth[4] = 255
    cuts = tuned_cuts(tokens, precisions, truth, void)  # type: ignore[arg-type]
    large = stretched(tokens, 24)
    expected = [jaccard(precisions[large] >= p, truth, void) for p in cuts.precision]  # type: ignore[arg-type]
    np.testing.assert_allclose(cuts.iou, expected, atol=1e-12)


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("regions", ["foreground", "all"])
def test_tokens_find_what_their_pixels_find(
    together: bool, regions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kmeans, "SEEDED_ON", 10**6)  # a random part of the pixels is not that of the tokens
    train, val = scenes_of(3, 0), scenes_of(2, 1)
    how = replace(HOW, together=together, regions=regions, spherical=False, pixels=True, label_side=30)  # type: ignore[arg-type]
    train, val = (replace(kept, labels=stretched(kept.labels, 30)) for kept in (train, val))
    found = extract(train, val, (train, val), 3, how, torch.device("cpu"))
    tuned, label_free, thresholds, groups = plain_extraction(train, val, 3, how)
    assert found.thresholds == pytest.approx(thresholds)
    assert np.array_equal(found.tuned, tuned) and np.array_equal(found.label_free, label_free)
    for seed, maps in groups.items():
        assert np.array_equal(found.groups[seed], maps)


def test_the_label_free_threshold_is_the_first_of_the_high_group() -> None:
    precisions, sizes = np.array([0.9, 0.1, 0.85, 0.15, 0.2]), np.array([1, 50, 20, 30, 20])
    assert split_in_two(precisions, sizes) == 0.85


def test_one_precision_alone_makes_all_foreground() -> None:
    assert split_in_two(np.array([0.4, 0.4]), np.array([3, 4])) == 0.4


def test_void_has_no_boundary_score_of_its_own() -> None:
    truth = np.zeros((1, 20, 20), np.uint8)
    truth[0, 5:10, 5:10] = 1
    mask = truth == 1
    truth[0, 15:] = 255
    assert boundary_score(mask, truth) == 1.0

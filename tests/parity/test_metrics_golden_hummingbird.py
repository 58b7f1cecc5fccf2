"""In-context labels against vpariza/open-hummingbird-eval."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from oracles_incontext import memory_of

from unspool.protocols import incontext

Recording = dict[str, np.ndarray]
Golden = Callable[[str], Recording]


def test_votes_are_the_published_cross_attention(golden: Golden) -> None:
    file = {key: torch.tensor(value) for key, value in golden("metrics/hummingbird").items()}
    for out, beta in (("out", float(file["beta"])), ("out_beta05", 0.5)):
        found = incontext.voted(file["q"], file["k"], file["v"], beta)
        torch.testing.assert_close(found, file[out], atol=1e-5, rtol=0)


def remembered(file: Recording, kind: str) -> incontext.Memory:
    features = torch.tensor(file["train_features"])
    labels = incontext.patch_labels(
        torch.tensor(file["train_labels"]), int(file["patch_size"]), int(file["num_classes"])
    )
    if kind == "full":
        return memory_of(features, labels)
    uniform, rows = torch.tensor(file["bounded_uniform"]), int(file["memory_size"])
    kept = incontext.rare_patches(labels, max(1, rows // len(features)), uniform)
    assert np.array_equal(kept, file["bounded_indices"])
    return memory_of(features, labels, rows=rows, uniform=uniform)


@pytest.mark.parametrize("kind", ["full", "bounded"])
def test_the_whole_way_from_features_to_scores(golden: Golden, kind: str) -> None:
    file = golden("metrics/hummingbird_e2e")
    memory, queries = remembered(file, kind), torch.tensor(file["val_features"])
    for name, found in (("feature", memory.features), ("label", memory.labels)):
        torch.testing.assert_close(found, torch.tensor(file[f"{kind}_{name}_memory"]), atol=1e-5, rtol=0)
    k, beta, classes = int(file["k"]), float(file["beta"]), int(file["num_classes"])
    rows = incontext.nearest_rows(queries.flatten(0, 1), memory.features, k)
    assert np.array_equal(rows.view(*queries.shape[:2], k), file[f"{kind}_knn"])
    soft = incontext.labelled(queries, memory, k=k, temperature=beta)
    torch.testing.assert_close(soft, torch.tensor(file[f"{kind}_label_hat"]), atol=1e-5, rtol=0)
    size, patch = file["val_labels"].shape[1:], int(file["patch_size"])
    maps = incontext.enlarged(soft, (size[0] // patch, size[1] // patch), size)
    assert np.array_equal(maps, file[f"{kind}_pred"])
    scores = incontext.score(maps, file["val_labels"], classes)
    for name, ending in (("incontext-voc", "_linear"), ("incontext-voc-matched", "")):
        found = scores[name]
        assert found.miou() == pytest.approx(float(file[f"{kind}_miou{ending}"]), abs=1e-6)
        pixels = [found.true_positives, found.false_positives, found.false_negatives]
        assert np.array_equal(pixels, file[f"{kind}_tp_fp_fn{ending}"]), name

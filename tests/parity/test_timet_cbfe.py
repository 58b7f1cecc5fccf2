"""Cluster-based foreground extraction against SMSD75/Timetuning."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from unspool.protocols.salient import (
    attention_foreground,
    cluster_precisions,
    foreground,
    jaccard,
    tuned_cuts,
)

Golden = Callable[[str], dict[str, np.ndarray]]


def test_clusters_in_the_attention_are_the_foreground(golden: Golden) -> None:
    file = golden("timet/cbfe")
    clusters, mask, truth = file["clusters"], file["attn_mask"] > 0, file["gt"]
    precisions = cluster_precisions(clusters, mask, len(file["precisions"]))
    np.testing.assert_allclose(precisions, file["precisions"], atol=1e-6)
    cuts = tuned_cuts(clusters, precisions, truth, "foreground")
    np.testing.assert_allclose(cuts.iou, file["cut_iou"], atol=1e-6)
    np.testing.assert_allclose(cuts.precision, file["cut_prec"], atol=1e-6)
    assert np.array_equal(cuts.rank, file["cuts"])
    assert cuts.threshold == pytest.approx(float(file["threshold"]), abs=1e-6)
    found = foreground(clusters, precisions, cuts.threshold)
    assert np.array_equal(found, file["fg"] > 0)
    assert jaccard(found, truth, "foreground") == pytest.approx(float(file["jac"]), abs=1e-6)
    assert jaccard(found, truth, "background") == pytest.approx(float(file["jac_noboundary"]), abs=1e-6)


def test_the_attention_mask_is_the_published_one(golden: Golden) -> None:
    file = golden("timet/cbfe")
    attention = torch.tensor(file["attn_cls"])
    side = math.isqrt(attention.shape[2])
    found = attention_foreground(attention, (side, side))
    assert np.array_equal(found[:, None].numpy(), file["attn_fg"] > 0)

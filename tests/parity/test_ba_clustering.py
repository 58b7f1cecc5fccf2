"""BA's clustering against the released code: labels exactly, centroids to 1e-4."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from unspool.ops.clustering import Clustering, Rows, cluster, rows_of_attention
from unspool.ops.divergence import symmetric_kl

Golden = Callable[[str], dict[str, np.ndarray]]


def rows_of(attention: Tensor, tokens: int) -> Rows:
    return lambda start, stop: attention[start * tokens : stop * tokens]


def close(found: Tensor, expected: np.ndarray, tolerance: float = 1e-4) -> None:
    assert np.allclose(found.numpy(), expected, rtol=0, atol=tolerance, equal_nan=True)


def test_symmetric_kl_is_the_released_one(golden: Golden) -> None:
    file = golden("ba/symkl")
    final, attention, zero = (torch.from_numpy(file[name]) for name in ("final", "attn", "zero"))
    close(symmetric_kl(final, attention), file["dist"])
    close(symmetric_kl(attention, attention), file["dist_self"])
    close(symmetric_kl(zero, zero), file["dist_zero"])


def test_clusters_of_an_attention_map_are_the_released_ones(golden: Golden) -> None:
    file = golden("ba/cluster_attn")
    frames, tokens = int(file["T"]), int(file["H"]) * int(file["W"])
    rows = rows_of(torch.from_numpy(file["attn"]), tokens)
    for i, tau in enumerate(file["taus"]):
        found = cluster(rows, frames, Clustering(tau=float(tau)))
        assert np.array_equal(found.labels.view(frames, file["H"], file["W"]), file[f"labels_{i}"])
        close(found.centroids, file[f"centroids_{i}"])
        assert found.sizes == tuple(file[f"level_sizes_{i}"].tolist())


def test_clusters_of_queries_and_keys_are_the_released_ones(golden: Golden) -> None:
    file = golden("ba/cluster_qk")
    q, k = torch.from_numpy(file["q"]), torch.from_numpy(file["k"])
    how = Clustering(tau=float(file["tau"]))
    for name in [key.removeprefix("labels_") for key in file if key.startswith("labels_")]:
        keys = k[torch.from_numpy(file[f"key_indices_{name}"])]
        found = cluster(rows_of_attention(q, keys, float(file["scale_f64"]), eps=0), len(q), how)
        assert np.array_equal(found.labels, file[f"labels_{name}"].ravel())
        close(found.centroids, file[f"centroids_{name}"])
        assert found.sizes == tuple(file[f"level_sizes_{name}"].tolist())


def test_clusters_of_algorithm_1_are_the_printed_ones(golden: Golden) -> None:
    file, attention = golden("ba/paper_form"), golden("ba/cluster_attn")
    frames, tokens = int(attention["T"]), int(attention["H"]) * int(attention["W"])
    rows = rows_of(torch.from_numpy(attention["attn"]), tokens)
    for i, tau in enumerate(file["taus"]):
        if file[f"alg1_stable_{i}"]:
            found = cluster(rows, frames, Clustering(tau=float(tau), algorithm="paper"))
            assert np.array_equal(found.labels, file[f"alg1_labels_{i}"].ravel())
            assert found.sizes == tuple(file[f"alg1_level_sizes_{i}"].tolist())

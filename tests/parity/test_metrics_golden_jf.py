"""J, F and their statistics against the official davis2017-evaluation."""

from collections.abc import Callable

import numpy as np
import pytest
from oracles_metrics import found_boundary, unpacked

from unspool.metrics import boundary_f, jaccard, statistics
from unspool.metrics.jf import boundary_radius
from unspool.metrics.outlines import dilate

Golden = Callable[[str], dict[str, np.ndarray]]
TOLERANCE = 1e-6


def test_j_and_f_of_single_frames_with_and_without_void(golden: Golden) -> None:
    file = golden("metrics/jf_object")
    for t, (gt, pred, void) in enumerate(zip(file["gt"], file["pred"], file["void"], strict=True)):
        assert jaccard(pred, gt) == pytest.approx(file["J"][t], abs=TOLERANCE)
        assert boundary_f(pred, gt) == pytest.approx(file["F"][t], abs=TOLERANCE)
        assert jaccard(pred, gt, void) == pytest.approx(file["J_void"][t], abs=TOLERANCE)
        assert boundary_f(pred, gt, void) == pytest.approx(file["F_void"][t], abs=TOLERANCE)
        assert boundary_f(pred, gt, tolerance=3) == pytest.approx(file["F_th3px"][t], abs=TOLERANCE)


def test_boundaries_and_their_dilations_are_exact(golden: Golden) -> None:
    file = golden("metrics/boundary_unit")
    radii = [int(key.removeprefix("dilated_r")) for key in file if key.startswith("dilated_r")]
    assert radii
    for i, mask in enumerate(file["masks"].astype(bool)):
        for radius in radii:
            edge, near = found_boundary(mask, radius)
            assert np.array_equal(edge, file["bmap"][i].astype(bool))
            assert np.array_equal(near, file[f"dilated_r{radius}"][i].astype(bool))


def test_the_structuring_element_is_the_disc(golden: Golden) -> None:
    file = golden("metrics/boundary_unit")
    for key in (k for k in file if k.startswith("disk_r")):
        radius = int(key.removeprefix("disk_r"))
        disc = dilate(np.array([[1 << radius]], np.uint64), radius)
        assert np.array_equal(unpacked(disc, 0, 0, file[key].shape), file[key].astype(bool))


def test_the_radius_follows_the_diagonal(golden: Golden) -> None:
    file = golden("metrics/boundary_unit")
    for (height, width), radius in zip(file["frame_hw"].tolist(), file["radius"].tolist(), strict=True):
        assert boundary_radius(height, width) == radius


def test_every_pair_of_awkward_masks(golden: Golden) -> None:
    file = golden("metrics/boundary_unit")
    masks = file["masks"].astype(bool)
    pixels = [(int(key[4:-2]), file[key]) for key in file if key.startswith("F_th")]
    for i, gt in enumerate(masks):
        for j, pred in enumerate(masks):
            assert jaccard(pred, gt) == pytest.approx(file["J"][i, j], abs=TOLERANCE)
            assert boundary_f(pred, gt) == pytest.approx(file["F"][i, j], abs=TOLERANCE)
            for tolerance, recorded in pixels:
                found = boundary_f(pred, gt, tolerance=tolerance)
                assert found == pytest.approx(recorded[i, j], abs=TOLERANCE)


def same(found: tuple[float, float, float], expected: np.ndarray) -> bool:
    return bool(np.allclose(found, expected, rtol=0, atol=TOLERANCE, equal_nan=True))


def test_mean_recall_and_decay(golden: Golden) -> None:
    file = golden("metrics/db_statistics")
    names = [key for key in file if key.startswith("v")]
    assert names
    for name in names:
        found = statistics(file[name])
        assert same((found.mean, found.recall, found.decay), file[f"mrd{name[1:]}"])


def test_a_long_sequence_with_the_decay_that_does_not_overflow(golden: Golden) -> None:
    file = golden("metrics/jf_long")
    shape = tuple(file["shape"].tolist())
    gt, pred = (np.unpackbits(file[k], -1)[..., : shape[2]].astype(bool) for k in ("gt", "pred"))
    j = np.array([jaccard(p, g) for p, g in zip(pred, gt, strict=True)])
    f = np.array([boundary_f(p, g) for p, g in zip(pred, gt, strict=True)])
    assert np.allclose(j, file["J"], rtol=0, atol=TOLERANCE)
    assert np.allclose(f, file["F"], rtol=0, atol=TOLERANCE)
    for row, length in enumerate(file["lengths"].tolist()):
        for values, name in ((j, "J"), (f, "F")):
            found = statistics(values[:length])
            assert same((found.mean, found.recall, found.decay), file[f"{name}_int"][row])

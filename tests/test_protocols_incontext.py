import sys

import numpy as np
import pytest
import torch
from oracles_incontext import memory_of
from torch.nn.functional import normalize

from unspool.errors import DataError, ShapeError, UsageError
from unspool.ops import neighbours
from unspool.protocols import incontext
from unspool.protocols.incontext import (
    enlarged,
    labelled,
    nearest_rows,
    patch_labels,
    rare_patches,
    score,
    search_by,
    voted,
)


def test_soft_labels_are_shares_of_each_patch_and_void_is_background() -> None:
    labels = torch.tensor([[[0, 1, 2, 2], [1, 1, 255, 2]]], dtype=torch.uint8)
    found = patch_labels(labels, 2, 3)
    assert found.tolist() == [[[0.25, 0.75, 0.0], [0.25, 0.0, 0.75]]]


def test_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError, match="no whole patches of 3"):
        patch_labels(torch.zeros(1, 4, 6, dtype=torch.uint8), 3, 2)
    with pytest.raises(DataError, match="hold class 5"):
        patch_labels(torch.full((1, 4, 4), 5, dtype=torch.uint8), 2, 3)


def test_patches_of_rare_classes_are_kept_first() -> None:
    labels = torch.zeros(1, 6, 3)
    labels[0, :, 0] = 1
    labels[0, 4] = torch.tensor([0.0, 1.0, 0.0])
    assert rare_patches(labels, 1, torch.full((1, 6), 0.5)).tolist() == [[4]]


def test_neighbours_are_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, memory = torch.randn(20, 4, generator=generator), torch.randn(30, 4, generator=generator)
    whole = nearest_rows(queries, memory, 5)
    monkeypatch.setattr(incontext, "QUERIES", 6)
    monkeypatch.setattr(neighbours, "ROWS", 7)
    assert torch.equal(nearest_rows(queries, memory, 5), whole)
    assert torch.equal(whole, (queries @ memory.T).argsort(dim=1, descending=True)[:, :5])


def test_more_neighbours_than_rows_are_refused() -> None:
    with pytest.raises(DataError, match="5 neighbours of a memory of 4 rows"):
        nearest_rows(torch.zeros(1, 2), torch.zeros(4, 2), 5)


def test_votes_lie_between_the_values() -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.rand(3, 5, 2, generator=generator)
    found = voted(torch.randn(3, 4, generator=generator), torch.randn(3, 5, 4, generator=generator), values)
    assert (found <= values.amax(1) + 1e-6).all()
    assert (found >= values.amin(1) - 1e-6).all()


def test_an_image_finds_its_own_labels() -> None:
    generator = torch.Generator().manual_seed(2)
    features = normalize(torch.randn(4, 9, 16, generator=generator), dim=2)
    labels = torch.randint(0, 3, (4, 6, 6), generator=generator).to(torch.uint8)
    labels = labels[:, ::2, ::2].repeat_interleave(2, 1).repeat_interleave(2, 2)
    soft = labelled(features, memory_of(features, patch_labels(labels, 2, 3)), k=1)
    maps = enlarged(soft, (3, 3), (3, 3))
    assert np.array_equal(maps, labels[:, ::2, ::2].numpy())
    assert score(maps, labels[:, ::2, ::2].numpy(), 3)["incontext-voc"].miou() == 1.0


def test_matching_forgives_classes_that_are_swapped() -> None:
    truth = np.array([[[0, 1], [2, 255]]], np.uint8)
    swapped = np.array([[[0, 2], [1, 1]]], np.uint8)
    found = score(swapped, truth, 3)
    assert found["incontext-voc"].miou() == pytest.approx(1 / 3)
    assert found["incontext-voc-matched"].miou() == 1.0


@pytest.mark.parametrize("name", ["faiss", "faiss-approximate"])
def test_faiss_finds_the_nearest_rows(name: str) -> None:
    pytest.importorskip("faiss")
    generator = torch.Generator().manual_seed(0)
    memory = torch.nn.functional.normalize(torch.randn(800, 8, generator=generator), dim=1)
    queries = torch.randn(20, 8, generator=generator)
    found, exact = search_by(name, memory)(queries, 5), nearest_rows(queries, memory, 5)  # type: ignore[arg-type]
    assert torch.equal(found, exact)  # few cells: all are searched


def test_without_faiss_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UsageError, match=r"unspool\[faiss\]"):
        search_by("faiss", torch.zeros(3, 2))

"""Neighbours of a memory that is seen tile by tile are those of the whole."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unspool.ops.neighbours import GROUP, merged, nearest, none_yet


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.integers(1, 400), st.integers(1, 9), st.sampled_from([7, GROUP, 3 * GROUP]))
def test_rows_are_those_of_all_products(seed: int, rows: int, k: int, tile: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    queries, memory = torch.randn(5, 3, generator=generator), torch.randn(rows, 3, generator=generator)
    k = min(k, rows)
    tiles = [(start, memory[start : start + tile]) for start in range(0, rows, tile)]
    found = nearest([queries[:2], queries[2:]], tiles, k)
    products, best = (queries @ memory.T).topk(k, dim=1)
    assert torch.equal(torch.cat([each.rows for each in found]), best)
    torch.testing.assert_close(torch.cat([each.products for each in found]), products)


def test_a_tile_that_few_queries_care_for_changes_only_these() -> None:
    before = none_yet(3, 2, torch.device("cpu"))
    before = merged(before, torch.full((3, 8 * GROUP), 0.5), 0)
    later = torch.zeros(3, 8 * GROUP)
    later[1, 70] = 1.0
    found = merged(before, later, 1000)
    assert found.rows[1, 0] == 1070 and found.products[1].tolist() == [1.0, 0.5]
    assert torch.equal(found.rows[[0, 2]], before.rows[[0, 2]])


def test_earlier_rows_win_ties() -> None:
    found = none_yet(1, 3, torch.device("cpu"))
    for first in (0, 4 * GROUP):
        found = merged(found, torch.ones(1, 4 * GROUP), first)
    assert int(found.rows.max()) < 4 * GROUP

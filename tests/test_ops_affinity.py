import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles_propagation import in_window
from torch import Tensor
from torch.nn.functional import normalize

from unspool.ops import affinity
from unspool.ops.affinity import Tiling, Window, best_anywhere, best_in_window


def unit_features(seed: int, *shape: int) -> Tensor:
    return normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-3)


def plain_top(query: Tensor, frames: list[Tensor], seen: Tensor, k: int) -> Tensor:
    scores = [(query.flatten(1).T @ f.flatten(1)).masked_fill(~seen, -float("inf")) for f in frames]
    joint = torch.cat(scores, dim=1)
    return joint.topk(min(k, joint.shape[1]), dim=1)[0]


def recomputed(query: Tensor, frames: list[Tensor], matches: affinity.Matches) -> Tensor:
    stack = torch.stack(frames).flatten(2)
    return torch.einsum(
        "cn,cnk->nk", query.flatten(1), stack[matches.frame, :, matches.token].permute(2, 0, 1)
    )


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 15),
    width=st.integers(1, 19),
    frames=st.integers(1, 4),
    side=st.sampled_from([4, 8, 16]),
    shape=st.sampled_from(["disc", "square"]),
    radius=st.sampled_from([0.5, 1, 1.5, 2.5, 3, 4.2, 7, 40]),
    k=st.integers(1, 30),
    seed=st.integers(0, 2**31),
)
def test_the_windowed_search_finds_what_a_dense_masked_top_k_finds(
    *, height: int, width: int, frames: int, side: int, shape: str, radius: float, k: int, seed: int
) -> None:
    query, *keys = unit_features(seed, frames + 1, 8, height, width)
    tiling = Tiling(height, width, side)
    matches = best_in_window(
        tiling.cut(query), [tiling.cut(key) for key in keys], tiling, Window(shape, radius), k
    )
    seen = in_window(height, width, shape, radius)
    expected = plain_top(query, keys, seen, k)
    found = matches.similarity[:, : expected.shape[1]]
    torch.testing.assert_close(found, expected[:, : found.shape[1]], atol=1e-6, rtol=0)
    assert (expected[:, found.shape[1] :] == -float("inf")).all()
    true = recomputed(query, keys, matches)
    real = matches.similarity > -float("inf")
    torch.testing.assert_close(true[real], matches.similarity[real], atol=1e-6, rtol=0)


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 15),
    width=st.integers(1, 19),
    side=st.sampled_from([4, 16]),
    k=st.integers(1, 30),
    seed=st.integers(0, 2**31),
)
def test_the_search_of_a_whole_frame_finds_what_a_dense_top_k_finds(
    height: int, width: int, side: int, k: int, seed: int
) -> None:
    query, key = unit_features(seed, 2, 8, height, width)
    tiling = Tiling(height, width, side)
    matches = best_anywhere(tiling.cut(query), tiling.cut(key), tiling, k)
    everywhere = torch.ones(height * width, height * width, dtype=torch.bool)
    expected = plain_top(query, [key], everywhere, k)
    found = matches.similarity[:, : expected.shape[1]]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        recomputed(query, [key], matches)[:, : found.shape[1]], found, atol=1e-6, rtol=0
    )


def test_bands_of_rows_find_what_the_whole_frame_at_once_finds() -> None:
    query, *keys = unit_features(3, 4, 8, 23, 14)
    tiling = Tiling(23, 14, 4)
    cut = [tiling.cut(key) for key in keys]
    whole = best_in_window(tiling.cut(query), cut, tiling, Window("disc", 5), 7)
    banded = best_in_window(tiling.cut(query), cut, tiling, Window("disc", 5), 7, memory=1)
    torch.testing.assert_close(banded.similarity, whole.similarity, atol=1e-6, rtol=0)
    assert torch.equal(banded.token, whole.token)
    assert torch.equal(banded.frame, whole.frame)


def test_half_precision_features_are_compared_in_float32() -> None:
    query, key = unit_features(5, 2, 8, 9, 9).bfloat16()
    tiling = Tiling(9, 9, 4)
    matches = best_in_window(tiling.cut(query), [tiling.cut(key)], tiling, Window("square", 2), 4)
    expected = plain_top(query.float(), [key.float()], in_window(9, 9, "square", 2), 4)
    torch.testing.assert_close(matches.similarity, expected, atol=1e-6, rtol=0)


def test_cutting_into_tiles_loses_no_token() -> None:
    features = unit_features(1, 5, 7, 10)
    tiling = Tiling(7, 10, 4)
    tokens = tiling.tokens(features.device)
    assert torch.equal(tokens[tokens >= 0].sort()[0], torch.arange(70))
    cells = tiling.cut(features)
    assert torch.equal(cells[tokens >= 0], features.flatten(1).T[tokens[tokens >= 0]])
    assert (cells[tokens < 0] == 0).all()


def test_one_row_of_queries_at_a_time_finds_what_the_whole_frame_at_once_finds() -> None:
    query, key = (Tiling(9, 14, 4).cut(one) for one in unit_features(3, 2, 8, 9, 14))
    whole = best_anywhere(query, key, Tiling(9, 14, 4), 7)
    parts = best_anywhere(query, key, Tiling(9, 14, 4), 7, memory=1)
    torch.testing.assert_close(parts.similarity, whole.similarity, atol=1e-6, rtol=0)
    assert torch.equal(parts.token, whole.token)

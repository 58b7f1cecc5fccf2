from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles_timet import plain_sinkhorn

from unspool.errors import ShapeError
from unspool.ops.distributed import Ranks
from unspool.ops.sinkhorn import sinkhorn


def cosines(m: int, k: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return 2 * torch.rand(m, k, generator=torch.Generator().manual_seed(seed), dtype=dtype) - 1


@settings(deadline=None, max_examples=50)
@given(
    m=st.integers(1, 30),
    k=st.integers(1, 9),
    epsilon=st.floats(0.03, 1.0),
    iterations=st.integers(1, 12),
    seed=st.integers(0, 2**31),
)
def test_it_is_the_plain_form(*, m: int, k: int, epsilon: float, iterations: int, seed: int) -> None:
    scores = cosines(m, k, seed)
    found = sinkhorn(scores, epsilon, iterations)
    torch.testing.assert_close(found, plain_sinkhorn(scores, epsilon, iterations), atol=1e-9, rtol=1e-7)
    torch.testing.assert_close(found.sum(1), torch.ones(m, dtype=torch.float64))


def test_prototypes_are_used_equally() -> None:
    used = sinkhorn(cosines(400, 8) ** 3, 0.3, 50).sum(0)
    torch.testing.assert_close(used, torch.full((8,), 50.0, dtype=torch.float64), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("m", "k", "iterations"), [(20_000, 8, 20), (4, 2000, 20), (2, 500, 30), (400, 8, 60)]
)
def test_many_rounds_in_float32_are_those_of_the_plain_form(m: int, k: int, iterations: int) -> None:
    scores = cosines(m, k)
    expected = plain_sinkhorn(scores, 0.05, iterations)
    found = sinkhorn(scores.float(), 0.05, iterations)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-3)


def test_tokens_that_are_all_alike_are_shared_out_evenly() -> None:
    found = sinkhorn(torch.full((6, 4), 0.7), 0.05, 3)
    torch.testing.assert_close(found, torch.full((6, 4), 0.25))


def test_the_same_in_float32_under_autocast() -> None:
    scores = cosines(50, 6, dtype=torch.float32)
    expected = sinkhorn(scores, 0.05, 10)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(sinkhorn(scores, 0.05, 10), expected)


def test_half_precision_scores_do_not_overflow() -> None:
    found = sinkhorn(cosines(50, 6, dtype=torch.float32).half(), 0.05, 10)
    assert found.dtype == torch.float32
    assert found.isfinite().all()


@pytest.mark.parametrize("shift", [-1000.0, 1000.0])
def test_scores_of_any_size_stay_finite(shift: float) -> None:
    scores = cosines(20, 5)
    torch.testing.assert_close(
        sinkhorn(scores + shift, 0.05, 5), sinkhorn(scores, 0.05, 5), atol=1e-6, rtol=1e-6
    )
    assert sinkhorn(50 * scores.float(), 0.05, 5).isfinite().all()


def test_no_gradient_flows_and_the_scores_stay() -> None:
    scores = cosines(8, 3).requires_grad_()
    before = scores.detach().clone()
    assert not sinkhorn(scores, 0.05, 3).requires_grad
    assert torch.equal(scores, before)


def test_nothing_to_assign_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"scores of \[0, 4\]"):
        sinkhorn(torch.zeros(0, 4), 0.05, 3)


def one_of_two(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    own = cosines(20, 6)[Ranks(rank, 2).share(10)]
    torch.save(sinkhorn(own, 0.05, 10, Ranks(rank, 2)), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_assign_as_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_of_two, (tmp_path,), nprocs=2)
    found = torch.cat([torch.load(tmp_path / f"{rank}.pt") for rank in range(2)])
    torch.testing.assert_close(found, sinkhorn(cosines(20, 6), 0.05, 10), atol=1e-12, rtol=1e-10)

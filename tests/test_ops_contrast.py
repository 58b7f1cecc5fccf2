import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from unspool.errors import ShapeError
from unspool.ops import contrast as module
from unspool.ops.contrast import contrast

COUNTS = st.integers(1, 30)


def example(queries: int, keys: int, targets: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    points = [torch.randn(n, 5, generator=generator, dtype=torch.float64) for n in (queries, keys)]
    rows = torch.randint(queries, (targets,), generator=generator).sort().values
    labels = torch.randint(keys, (targets,), generator=generator)
    return points[0].requires_grad_(), points[1].requires_grad_(), rows, labels


def plain(queries: Tensor, keys: Tensor, rows: Tensor, labels: Tensor, temperature: float) -> Tensor:
    return cross_entropy((queries @ keys.T / temperature)[rows], labels)


@settings(deadline=None)
@given(COUNTS, COUNTS, COUNTS, st.integers(0, 2**31), st.floats(0.05, 2))
def test_it_is_the_cross_entropy_of_the_logits_with_the_same_gradients(
    queries: int, keys: int, targets: int, seed: int, temperature: float
) -> None:
    inputs = example(queries, keys, targets, seed)
    ours, theirs = contrast(*inputs, temperature), plain(*inputs, temperature)
    torch.testing.assert_close(ours, theirs)
    for got, expected in zip(
        torch.autograd.grad(ours, inputs[:2]), torch.autograd.grad(theirs, inputs[:2]), strict=True
    ):
        torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-7)


@pytest.mark.parametrize("chunk", [1, 30, 47, 10_000])
def test_the_chunks_change_nothing(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    inputs = example(23, 7, 40)
    torch.testing.assert_close(contrast(*inputs, 0.3), plain(*inputs, 0.3))
    assert torch.autograd.gradcheck(lambda q, k: contrast(q, k, *inputs[2:], 0.3), inputs[:2])


def test_the_gradient_is_scaled_by_what_comes_after() -> None:
    inputs = example(6, 4, 9)
    once, thrice = (torch.autograd.grad(n * contrast(*inputs, 0.3), inputs[:2]) for n in (1, 3))
    torch.testing.assert_close([3 * gradient for gradient in once], list(thrice))


def test_a_query_without_targets_gets_no_gradient() -> None:
    queries, keys, _, labels = example(5, 4, 3)
    contrast(queries, keys, torch.tensor([0, 0, 4]), labels, 0.3).backward()
    assert queries.grad is not None
    assert not queries.grad[1:4].any()


def test_large_logits_stay_finite() -> None:
    queries, keys, rows, labels = example(8, 8, 12)
    loss = contrast(queries.float(), keys.float(), rows, labels, 1e-3)
    assert loss.isfinite()
    torch.testing.assert_close(loss, plain(queries, keys, rows, labels, 1e-3).float())


def test_no_target_is_refused() -> None:
    queries, keys, rows, labels = example(3, 3, 3)
    with pytest.raises(ShapeError, match="at least one target"):
        contrast(queries, keys, rows[:0], labels[:0], 0.1)

"""One process; two of them are started in test_methods_dul.py."""

import torch
from torch import nn

from unspool.ops.distributed import ALONE, Ranks, SharedBatchNorm, batch_norm, share_batch_norms


def images(*shape: int) -> torch.Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (3 + 2 * values).requires_grad_()


def test_alone_sums_and_gathers_are_what_came_in() -> None:
    values = images(3, 2)
    assert ALONE.sum(values) is values
    assert torch.equal(ALONE.gather(values), values)


def test_the_shares_of_all_ranks_are_the_batch_in_order() -> None:
    batch = list(range(12))
    assert [n for rank in range(3) for n in batch[Ranks(rank, 3).share(4)]] == batch


def test_the_norm_of_one_batch_is_torchs_with_the_same_gradients() -> None:
    x, weight, bias = images(4, 3, 5, 6), images(3), images(3)
    normal, mean, variance = batch_norm(x, weight, bias, 1e-5, ALONE)
    running = [torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)]
    expected = nn.functional.batch_norm(x, *running, weight, bias, training=True, momentum=1.0)
    torch.testing.assert_close(normal, expected)
    torch.testing.assert_close([mean, variance], running)
    seed = images(4, 3, 5, 6).detach().sin()
    ours, theirs = (torch.autograd.grad((y * seed).sum(), (x, weight, bias)) for y in (normal, expected))
    torch.testing.assert_close(ours, theirs)


def test_half_precision_images_are_normalised_in_single_precision() -> None:
    x = images(8, 2, 9, 9).detach()
    ones, zeros = torch.ones(2), torch.zeros(2)
    normal, _, variance = batch_norm(x.bfloat16(), ones, zeros, 1e-5, ALONE)
    assert normal.dtype == torch.bfloat16
    torch.testing.assert_close(variance, x.bfloat16().float().var((0, 2, 3)))


def test_shared_norms_keep_keys_and_values_of_the_state() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4)), nn.BatchNorm2d(4))
    x = images(4, 3, 5, 5).detach().float()
    network(x)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    share_batch_norms(network, ALONE)
    assert all(isinstance(norm, SharedBatchNorm) for norm in (network[1][0], network[2]))
    assert list(before) == list(network.state_dict())
    torch.testing.assert_close(before, dict(network.state_dict()))


def test_shared_norms_step_as_torchs_do() -> None:
    plain, shared = nn.Sequential(nn.BatchNorm2d(3)), nn.Sequential(nn.BatchNorm2d(3))
    share_batch_norms(shared, ALONE)
    for x in images(3, 4, 3, 5, 5).detach().float():
        torch.testing.assert_close(shared(x), plain(x))
    torch.testing.assert_close(dict(shared.state_dict()), dict(plain.state_dict()))
    torch.testing.assert_close(shared.eval()(x), plain.eval()(x))

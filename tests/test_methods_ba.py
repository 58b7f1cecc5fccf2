from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles_ba import plain_block, plain_printed_loss, plain_released_losses
from torch import Tensor, nn

from unspool.errors import ShapeError, UsageError
from unspool.methods import ba
from unspool.methods.ba import Config, Learner, build, loss, optimiser, ranked

SMALL = Config(heads=2, points=3, semantic_sets=(3, 5), sets=(2, 4), dropout=(0.0, 0.0))


class Stub(nn.Module):
    """An encoder of 8 px patches whose map is a fixed projection of the mean colours."""

    name, patch, multiple, dim, offers = "stub", 8, 8, 12, ("tokens", "keys", "cls_prenorm")

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(12, 3, generator=generator))

    def forward(self, images: Tensor, want: tuple[str, ...] = ("tokens",)) -> dict[str, Tensor]:
        colours = nn.functional.avg_pool2d(images.to(self.weight.dtype) / 64 - 2, 8)
        maps = torch.einsum("ck,nkhw->nchw", self.weight, colours)
        found = {"tokens": maps, "keys": maps.tanh(), "cls_prenorm": maps.mean((2, 3))}
        return {wish: found[wish] for wish in want}


def clips(count: int = 2, frames: int = 3, height: int = 24, width: int = 40) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (count, frames, 3, height // 8, width // 8)
    patches = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    return patches.repeat_interleave(8, -1).repeat_interleave(8, -2)


def learner(config: Config = SMALL, dtype: torch.dtype = torch.float32) -> Learner:
    torch.manual_seed(0)
    return build(config, Stub()).to(dtype)  # type: ignore[arg-type]


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def maps_of(module: Learner, clip: Tensor) -> tuple[Tensor, Tensor]:
    """(features, attention) of one clip by the plain block, with gradients."""
    maps = module.encoder(clip, want=("keys",))["keys"]
    tokens = maps.flatten(2).transpose(1, 2).flatten(0, 1)
    weights = {k.removeprefix("temporal_transformer.0."): v for k, v in module.named_parameters()}
    return plain_block(tokens, weights, module.config.heads)


def gradients(module: nn.Module) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in module.parameters() if p.requires_grad]


# --------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("weighted", [True, False])
def test_released_losses_and_gradients_are_those_of_the_plain_form(weighted: bool) -> None:
    config = replace(SMALL, entropy=weighted)
    module, plain, clip = learner(config), learner(config), clips()
    total, logged = loss(module, clip, seeded())
    total.backward()
    positions = torch.randperm(15, generator=seeded())[:3]
    parts = [
        plain_released_losses(
            *reversed(maps_of(plain, one)), 3, positions, config.semantic_sets, config.sets, weighted=weighted
        )
        for one in clip
    ]
    semantic, motion = (torch.stack(each).mean() for each in zip(*parts, strict=True))
    (semantic + motion).backward()
    assert torch.allclose(logged["semantic"], semantic, atol=1e-6)
    assert torch.allclose(logged["motion"], motion, atol=1e-6)
    assert torch.allclose(total, semantic + motion, atol=1e-6)
    for ours, theirs in zip(gradients(module), gradients(plain), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("detached", [True, False])
def test_the_printed_loss_and_its_gradients_are_those_of_the_plain_form(
    monkeypatch: pytest.MonkeyPatch, detached: bool
) -> None:
    monkeypatch.setattr(ba, "ROWS", 7)
    config = replace(SMALL, form="paper", reduction="sum", detach_weights=detached)
    module, plain, clip = learner(config), learner(config), clips(1)
    total, _ = loss(module, clip, seeded())
    total.backward()
    features, attention = maps_of(plain, clip[0])
    expected = plain_printed_loss(attention, features, 3, config.sets, (0.8, 1.0), detached=detached)
    expected.backward()
    assert torch.allclose(total, expected, rtol=1e-5)
    for ours, theirs in zip(gradients(module), gradients(plain), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-5)


def test_weights_that_pass_a_gradient_change_the_gradient_but_not_the_loss() -> None:
    config = replace(SMALL, form="paper")
    modules = [learner(config), learner(replace(config, detach_weights=False))]
    totals = [loss(module, clips(1), seeded())[0] for module in modules]
    torch.autograd.backward(totals)
    assert torch.equal(*totals)
    detached, attached = map(gradients, modules)
    assert not all(torch.allclose(*pair) for pair in zip(detached, attached, strict=True))


@pytest.mark.parametrize("others", [{"form": "code"}, {"form": "paper", "entropy": False}])
def test_weights_that_cannot_pass_a_gradient_are_not_asked_to(others: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"detach_weights = False changes nothing.*take form = 'paper'"):
        Config(detach_weights=False, **others)


def test_the_mean_over_pairs_is_the_sum_over_their_number() -> None:
    config = replace(SMALL, form="paper")
    mean, _ = loss(learner(config), clips(), seeded())
    total, _ = loss(learner(replace(config, reduction="sum")), clips(), seeded())
    assert torch.allclose(mean * 9 * 2 * 4, total)


@pytest.mark.parametrize("form", ["code", "paper"])
@pytest.mark.parametrize("part", ["semantic", "motion"])
def test_each_loss_can_be_left_out(form: str, part: str) -> None:
    config = replace(SMALL, form=form, **{part: False})  # type: ignore[arg-type]
    total, logged = loss(learner(config), clips(), seeded())
    assert part not in logged
    every = loss(learner(replace(config, **{part: True})), clips(), seeded())[1]  # type: ignore[arg-type]
    assert torch.allclose(total, every["loss"] - every[part], atol=1e-5)


@pytest.mark.parametrize("form", ["code", "paper"])
@pytest.mark.parametrize("motion_map", ["global", "local"])
def test_motion_may_be_compared_by_correlations_of_features(form: str, motion_map: str) -> None:
    config = replace(SMALL, form=form, motion_map=motion_map)  # type: ignore[arg-type]
    module = learner(config)
    total, logged = loss(module, clips(), seeded())
    total.backward()
    assert bool(total.isfinite())
    assert all(bool(gradient.isfinite().all()) for gradient in gradients(module))
    assert not torch.allclose(logged["motion"], loss(learner(), clips(), seeded())[1]["motion"])


@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(1, 9), most=st.integers(1, 9), least=st.integers(1, 9), seed=st.integers(0, 99))
def test_sets_are_both_ends_of_the_order_by_attention(tokens: int, most: int, least: int, seed: int) -> None:
    rows = torch.randn(2, 3, tokens, generator=torch.Generator().manual_seed(seed))
    if max(most, least) > tokens:
        with pytest.raises(ShapeError, match=f"{tokens} tokens has no {max(most, least)}"):
            ranked(rows, most, least)
        return
    order = rows.sort(-1, descending=True)[1]
    positives, negatives = ranked(rows, most, least)
    assert torch.equal(positives, order[..., :most])
    assert torch.equal(negatives, order[..., -least:])


def test_tokens_that_are_compared_with_nothing_get_no_gradient() -> None:
    module, clip = learner(), clips(1)
    maps = module.encoder(clip[0], want=("keys",))["keys"]
    attended = module.attend(module.embedded(maps))
    rows = attended.attention(torch.arange(45))
    rows.retain_grad()
    positions = torch.tensor([4])
    queries = torch.tensor([4, 19, 34])
    sets = ba.motion_sets(rows.detach()[queries].view(3, 3, 15), queries, SMALL)
    ba.motion_loss(rows, sets, len(positions), SMALL).backward()
    touched = torch.as_tensor(rows.grad).abs().sum(1).nonzero()[:, 0].tolist()
    assert set(touched) <= set(sets.positive.flatten().tolist() + sets.negative.flatten().tolist())


def test_losses_fall_when_trained() -> None:
    config = replace(SMALL, learning_rate=3e-3)
    module = learner(config)
    by_steps, schedule = optimiser(module, config, 30)
    generator, found = seeded(), []
    for _ in range(30):
        total, _ = loss(module, clips(1), generator)
        total.backward()
        by_steps.step()
        by_steps.zero_grad()
        schedule.step()
        found.append(float(total.detach()))
    assert sum(found[-5:]) < 0.8 * sum(found[:5])


# --------------------------------------------------------------------------------------- draws and dropout


def test_the_same_draws_give_the_same_loss_with_dropout_too() -> None:
    config = replace(SMALL, dropout=(0.4, 0.1))
    once, again = (loss(learner(config), clips(), seeded())[0] for _ in range(2))
    assert torch.equal(once, again)
    other = loss(learner(config), clips(), torch.Generator().manual_seed(6))[0]
    assert not torch.equal(once, other)


def test_gradients_see_the_dropout_that_the_loss_saw() -> None:
    config = replace(SMALL, dropout=(0.4, 0.1), noisy_attention=True)
    module = learner(config, torch.float64)
    module.encoder.double()
    weight = module.blocks[0].mlp["fc1"].weight
    total, _ = loss(module, clips(1), seeded())
    total.backward()
    index, step = (3, 2), 1e-6
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[index] += sign * step
            values.append(loss(module, clips(1), seeded())[0])
            weight[index] -= sign * step
    numeric = (values[0] - values[1]) / (2 * step)
    assert torch.allclose(weight.grad[index], numeric, rtol=1e-3, atol=1e-6)


def test_evaluation_has_no_dropout() -> None:
    config = replace(SMALL, dropout=(0.4, 0.1))
    trained, plain = learner(config).eval(), learner()
    assert torch.equal(loss(trained, clips(), seeded())[0], loss(plain, clips(), seeded())[0])


def test_the_loss_of_two_processes_is_that_of_one(tmp_path: Any) -> None:
    from unspool.ops.distributed import Ranks

    config, clip = replace(SMALL, dropout=(0.4, 0.1)), clips(4)
    whole = loss(learner(config), clip, seeded())[0]
    halves = [loss(learner(config), clip[2 * r : 2 * r + 2], seeded(), Ranks(r, 2))[0] for r in range(2)]
    assert torch.allclose(torch.stack(halves).mean(), whole, atol=1e-6)


@pytest.fixture
def group(tmp_path: Any) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("form", ["code", "paper"])
def test_a_wrapped_learner_has_the_same_gradients(form: str) -> None:
    config = replace(SMALL, form=form)  # type: ignore[arg-type]
    bare, inside = learner(config), learner(config)
    wrapped = nn.parallel.DistributedDataParallel(inside)
    for module in (bare, wrapped):
        loss(module, clips(), seeded())[0].backward()
    for ours, theirs in zip(gradients(inside), gradients(bare), strict=True):
        assert torch.allclose(ours, theirs)


# --------------------------------------------------------------------------------------- build, optimiser


def test_only_the_block_learns_and_the_encoder_stays_in_evaluation() -> None:
    module = learner()
    learning = {name for name, p in module.named_parameters() if p.requires_grad}
    assert learning and all(name.startswith("temporal_transformer.") for name in learning)
    assert module.training and not module.encoder.training


def test_matrices_decay_and_vectors_do_not() -> None:
    by_steps, schedule = optimiser(learner(), Config(learning_rate=1e-4), 100)
    for parameters, decay in zip(by_steps.param_groups, (0.1, 0.0), strict=True):
        assert parameters["weight_decay"] == decay
        assert all((p.ndim > 1) == (decay > 0) for p in parameters["params"])
    assert schedule.get_last_lr() == [1e-4, 1e-4]


def test_the_class_token_and_the_embedding_change_the_loss() -> None:
    plain = loss(learner(), clips(), seeded())[0]
    for change in ({"class_token": True}, {"temporal_embedding": 3}, {"layers": 2}, {"features": "tokens"}):
        assert not torch.allclose(loss(learner(replace(SMALL, **change)), clips(), seeded())[0], plain)  # type: ignore[arg-type]


@pytest.mark.parametrize("heads", [1, 3])
def test_attention_may_start_from_the_likeness_of_tokens(heads: int) -> None:
    block = learner(replace(SMALL, likeness=2.0, heads=heads, layers=2)).blocks[-1]
    tokens = torch.randn(7, 12, generator=seeded())
    queries, keys, _ = block.projections(tokens)
    likeness = block.norm1(tokens).view(7, heads, -1).transpose(0, 1)
    torch.testing.assert_close(queries @ keys.mT, 2 * likeness @ likeness.mT)


def test_an_encoder_is_needed_and_its_channels_are_shared_by_the_heads() -> None:
    with pytest.raises(UsageError, match="--model"):
        build(Config())
    with pytest.raises(UsageError, match="5 does not divide"):
        learner(replace(SMALL, heads=5))


@pytest.mark.parametrize(
    "change",
    [
        {"points": 0},
        {"dropout": (1.0, 0.1)},
        {"semantic": False, "motion": False},
        {"sets": (0, 1)},
        {"likeness": -1.0},
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="out of range"):
        Config(**change)


# --------------------------------------------------------------------------------------- presets

PRESETS = sorted(
    p.name.removesuffix(".toml") for p in (files("unspool") / "presets").iterdir() if p.name.startswith("ba-")
)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_settings_with_provenance(name: str) -> None:
    import tomllib

    from unspool.data.augment import Augmentation
    from unspool.data.sampling import Sampling

    table = tomllib.loads((files("unspool") / "presets" / f"{name}.toml").read_text("utf-8"))
    assert {"paper", "code", "command"} <= table["source"].keys()

    def tupled(values: dict[str, Any]) -> dict[str, Any]:
        return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}

    Sampling(**table["sampling"])
    Augmentation(**tupled(table["augmentation"]))
    Config(**tupled(table["ba"]))

import os
import tomllib
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles_dul import PlainLosses, plain_losses, zoomed_by_pillow
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from unspool.data.augment import Augmentation
from unspool.data.sampling import Sampling
from unspool.encoders import load_encoder
from unspool.encoders.resnet import ResNetEncoder, resnet18_stride8
from unspool.errors import ShapeError, UsageError
from unspool.methods import dul
from unspool.methods.dul import (
    Config,
    Embeddings,
    Learner,
    build,
    embed,
    objective,
    optimiser,
    random_transform,
)
from unspool.ops.distributed import ALONE, Ranks
from unspool.ops.geometry import draw_grids, draw_zooms

GOLDEN = Path(os.environ.get("UNSPOOL_GOLDEN", Path(__file__).parent / "golden")) / "dul"
TINY = Config(width=4, embedding=8, anchors=3, references=2)
CROP = (32, 40)
PRESETS = ("dul-ytvos", "dul-oxuva", "dul-trackingnet", "dul-kinetics", "dul-small")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clips(count: int, crop: tuple[int, int] = CROP, frames: int = 3) -> Tensor:
    return torch.randint(0, 256, (count, frames, 3, *crop), dtype=torch.uint8, generator=seeded())


def tiny(config: Config = TINY, ranks: Ranks = ALONE) -> Learner:
    torch.manual_seed(0)
    return build(config, ranks=ranks)


# ------------------------------------------------------------------------------------------- the losses


def embeddings(count: int, size: tuple[int, int], generator: torch.Generator, frames: int = 3) -> Embeddings:
    features = torch.randn(count, 2 * frames, 8, *size, generator=generator, dtype=torch.float64)
    first, second, rest = normalize(features, dim=2).split([frames, 1, frames - 1], dim=1)
    return Embeddings(first.clone().requires_grad_(), second[:, 0].clone().requires_grad_(), rest.clone())


def plainly(k: Embeddings, theta: Tensor, anchors: Tensor, references: Tensor, config: Config) -> PlainLosses:
    k_hat = torch.cat([k.second[:, None], k.regularising], dim=1)
    weights = {"temperature": config.temperature, "weight": config.cross_view}
    return plain_losses(k.first, k_hat, theta, anchors, references, **weights)


def gradients(loss: Tensor, k: Embeddings) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, (k.first, k.second), materialize_grads=True)


def test_the_plain_form_is_the_published_one() -> None:
    with np.load(GOLDEN / "losses.npz") as recorded:
        golden = {key: torch.from_numpy(recorded[key]) for key in recorded.files}
    count, frames = (int(number) for number in golden["params"][:2])
    temperature, weight = golden["params"][7:].tolist()
    features = golden["main_feats"].unflatten(0, (count, frames + 1)).requires_grad_()
    k_hat = torch.cat([features[:, -1:], golden["reg_feats"].unflatten(0, (count, frames - 1))], dim=1)
    cells = golden["anchor_index"].flatten(1), golden["ref_index"].flatten(1)
    theta = golden["theta_main"][::frames]
    plain = plain_losses(features[:, :-1], k_hat, theta, *cells, temperature=temperature, weight=weight)
    torch.testing.assert_close(plain.total, golden["loss_main"], rtol=1e-5, atol=0)
    gradient = torch.autograd.grad(plain.total, features)[0].flatten(0, 1)
    torch.testing.assert_close(gradient, golden["grad_main"], atol=1e-6, rtol=0)
    torch.testing.assert_close(plain.aligned[:frames], golden["vals_aligned_b0"], atol=1e-5, rtol=0)
    assert (plain.labels == golden["pseudo"]).double().mean() >= 0.999


@settings(deadline=None, max_examples=40)
@given(
    count=st.integers(1, 3),
    size=st.tuples(st.integers(4, 9), st.integers(4, 9)),
    sides=st.fixed_dictionaries({"anchors": st.integers(1, 4), "references": st.integers(1, 3)}),
    frames=st.integers(2, 4),
    zoom=st.floats(0.4, 2.5),
    seed=st.integers(0, 2**31),
)
def test_losses_and_gradients_are_those_of_the_plain_form(
    *, count: int, size: tuple[int, int], sides: dict[str, int], frames: int, zoom: float, seed: int
) -> None:
    config, generator = replace(TINY, **sides, cross_view=0.3), seeded(seed)
    k = embeddings(count, size, generator, frames)
    theta = zoom * torch.randn(count, 2, 3, generator=generator)  # some look beyond the edge
    anchors = draw_grids(count, size, config.anchors, generator)
    references = draw_grids(count, size, config.references, generator)
    plain = plainly(k, theta, anchors, references, config)
    total, log = objective(k, theta, anchors, references, config)
    torch.testing.assert_close(log["space_time"], plain.space_time)
    torch.testing.assert_close(log["cross_view"], plain.cross_view)
    torch.testing.assert_close(gradients(total, k), gradients(plain.total, k), atol=1e-9, rtol=1e-7)


def test_the_gradient_is_that_of_small_differences() -> None:
    config, size, generator = replace(TINY, temperature=0.5), (3, 4), seeded(3)
    k = embeddings(2, size, generator, frames=2)
    theta = draw_zooms(2, size, (0.5, 1.0), generator).matrices()[1]
    cells = [draw_grids(2, size, side, generator) for side in (config.anchors, config.references)]

    def total(first: Tensor, second: Tensor) -> Tensor:
        return objective(Embeddings(first, second, k.regularising), theta, *cells, config)[0]

    # frame 0 both chooses the labels and bears the anchors; small steps keep the labels
    assert torch.autograd.gradcheck(total, (k.first, k.second), eps=1e-7, atol=1e-5)


def test_single_precision_under_autocast_too() -> None:
    size, generator = (6, 6), seeded(1)
    k = embeddings(2, size, generator)
    k = Embeddings(k.first.detach().float(), k.second.detach().float(), k.regularising.float())
    theta = draw_zooms(2, size, (0.5, 1.0), generator).matrices()[1]
    cells = [draw_grids(2, size, side, generator) for side in (3, 2)]
    expected, _ = objective(k, theta, *cells, TINY)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _ = objective(k, theta, *cells, TINY)
    assert torch.equal(total, expected)


def test_anchors_of_other_clips_are_never_labels() -> None:
    k = embeddings(3, (5, 5), seeded(2))
    own = dul.at_cells(k.first[:, 0], draw_grids(3, (5, 5), 3, seeded(2)))
    labels = dul.pseudo_labels(k.regularising, own)
    assert labels.shape == (3, 2, 25)
    assert ((labels >= 0) & (labels < 9)).all()


# -------------------------------------------------------------------------------------- views, branches


def test_all_frames_of_a_clip_share_its_zoom_and_clips_differ() -> None:
    clip = clips(4)[:, :1].expand(-1, 3, -1, -1, -1)
    second = random_transform(clip, TINY, seeded(1)).second
    assert torch.equal(second[:, 0], second[:, 2])
    matrices = random_transform(clip, TINY, seeded(1)).theta
    assert len(matrices.flatten(1).unique(dim=0)) == 4


def test_the_second_view_is_pillows_cut_of_the_first() -> None:
    clip = clips(2)
    views = random_transform(clip, TINY, seeded(7))
    zooms = draw_zooms(2, CROP, TINY.zoom, seeded(7))
    image = zoomed_by_pillow(clip[1, 2].permute(1, 2, 0).numpy(), zooms, 1)
    expected = dul.normalised(torch.tensor(image).permute(2, 0, 1)[None], dul.IMAGENET_STD, views.first)
    torch.testing.assert_close(views.second[1, 2], expected[0])


def test_every_process_draws_its_own_part_of_the_batch() -> None:
    clip = clips(6)
    whole = random_transform(clip, TINY, seeded(2))
    parts = [random_transform(clip[2 * r : 2 * r + 2], TINY, seeded(2), Ranks(r, 3)) for r in range(3)]
    assert torch.equal(torch.cat([part.second for part in parts]), whole.second)
    assert torch.equal(torch.cat([part.theta for part in parts]), whole.theta)


def test_features_of_both_branches_are_unit_vectors_of_their_frames() -> None:
    learner, views = tiny().eval(), random_transform(clips(2), TINY, seeded())
    k = embed(learner, views, TINY)
    with torch.no_grad():
        torch.testing.assert_close(k.first[1, 2], learner(views.first[1, 2:])[0])
        torch.testing.assert_close(k.second[1], learner(views.second[1, :1])[0])
        torch.testing.assert_close(k.regularising[1, 1], learner(views.second[1, 2:])[0])
    torch.testing.assert_close(k.first.norm(dim=2), torch.ones(2, 3, 4, 5))


def test_the_regularising_branch_has_no_gradient() -> None:
    k = embed(tiny(), random_transform(clips(2), TINY, seeded()), TINY)
    assert k.first.requires_grad
    assert k.second.requires_grad
    assert not k.regularising.requires_grad


@pytest.mark.parametrize(("mode", "passes"), [("train", 2), ("eval", 1)])
def test_the_regularising_branch_counts_in_the_norms_unless_they_are_frozen(mode: str, passes: int) -> None:
    config = replace(TINY, regularising_norm=mode)
    learner = tiny(config)
    embed(learner, random_transform(clips(2), config, seeded()), config)
    norms = [m for m in learner.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {int(norm.num_batches_tracked) for norm in norms} == {passes}
    assert all(norm.training for norm in norms)


# ------------------------------------------------------------------------------------------------ a step


@pytest.mark.parametrize("crop", [(32, 40), (37, 51), (24, 24)])
def test_any_crop_gives_a_loss_and_gradients_everywhere(crop: tuple[int, int]) -> None:
    learner = tiny()
    loss, log = dul.loss(learner, clips(2, crop), seeded())
    loss.backward()
    assert set(log) == {"loss", "space_time", "cross_view"}
    assert log["loss"] == loss.detach()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learner.parameters())
    assert learner.emb_q.conv2.weight.grad.abs().sum() > 0
    assert learner.backbone.conv1.weight.grad.abs().sum() > 0


def test_the_same_generator_gives_the_same_loss() -> None:
    one, two, other = (dul.loss(tiny(), clips(2), seeded(seed))[0] for seed in (5, 5, 6))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_a_crop_without_room_for_the_anchors_is_refused() -> None:
    with pytest.raises(ShapeError, match="2x5 has no room for 3x3 anchors"):
        dul.loss(tiny(), clips(1, (16, 40)), seeded())


def test_a_clip_of_one_frame_is_refused() -> None:
    with pytest.raises(ShapeError, match="a clip of one frame"):
        dul.loss(tiny(), clips(2, frames=1), seeded())


def test_a_step_in_mixed_precision_has_losses_in_single_precision() -> None:
    learner = tiny()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, log = dul.loss(learner, clips(2), seeded())
    loss.backward()
    assert {value.dtype for value in log.values()} == {torch.float32}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learner.parameters())


def test_a_wrapped_learner_learns_the_same() -> None:
    wrapped = nn.Sequential(nn.Identity(), tiny())
    assert torch.equal(dul.loss(wrapped, clips(2), seeded())[0], dul.loss(tiny(), clips(2), seeded())[0])


def test_learning_lowers_the_loss_on_a_clip() -> None:
    config = replace(TINY, learning_rate=3e-3)
    learner, clip = tiny(config), clips(2)
    stepper, _ = optimiser(learner, config, steps=30)
    losses = []
    for _ in range(30):
        loss, log = dul.loss(learner, clip, seeded())
        stepper.zero_grad()
        loss.backward()
        stepper.step()
        losses.append(float(log["loss"]))
    assert losses[-1] < 0.8 * losses[0]


def test_biases_do_not_decay_and_learn_twice_as_fast() -> None:
    learner = tiny()
    stepper, _ = optimiser(learner, TINY, steps=1)
    weights, biases = stepper.param_groups
    assert (weights["lr"], weights["weight_decay"]) == (1e-4, 5e-4)
    assert (biases["lr"], biases["weight_decay"]) == (2e-4, 0)
    of_biases = {id(p) for p in biases["params"]}
    assert of_biases == {id(p) for name, p in learner.named_parameters() if name.endswith("bias")}
    assert len(weights["params"]) + len(of_biases) == len(list(learner.parameters()))


@pytest.mark.parametrize("steps", [12, 1200])
def test_the_learning_rate_falls_by_epochs_however_many_steps_these_have(steps: int) -> None:
    config = replace(TINY, epochs=6, decay_every=2, decay=0.5, optimiser="sgd")
    stepper, schedule = optimiser(tiny(config), config, steps)
    rates = []
    for _ in range(steps):
        rates.append(stepper.param_groups[1]["lr"])
        stepper.step()
        schedule.step()
    third = steps // 3
    assert rates == [2e-4] * third + [1e-4] * third + [5e-5] * third


# -------------------------------------------------------------------------------------- the network


def test_the_state_has_torchvisions_names_under_those_of_the_snapshots() -> None:
    keys = build(replace(TINY, width=64, embedding=128)).state_dict()
    with np.load(GOLDEN / "net_layout.npz") as recorded:
        assert list(keys) == [str(key).removeprefix("fast_net.") for key in recorded["keys"]]
        assert sum(p.numel() for p in build(Config()).parameters()) == recorded["n_params"]


def test_what_was_learnt_loads_as_an_encoder_of_its_width(tmp_path: Path) -> None:
    learner = tiny().eval()
    save_file(learner.state_dict(), tmp_path / "encoder.safetensors")
    encoder = load_encoder(str(tmp_path / "encoder.safetensors"))
    images = torch.rand(1, 3, 32, 40)
    found = encoder(images, want=("tokens", "head"))
    assert found["tokens"].shape == (1, 32, 4, 5)
    embedding = learner(dul.normalised(images, dul.IMAGENET_STD, images))
    torch.testing.assert_close(normalize(found["head"], dim=1), embedding)


def test_training_goes_on_from_an_encoder() -> None:
    network = resnet18_stride8(width=4)
    encoder = ResNetEncoder(network, name="own").requires_grad_(False)
    learner = build(TINY, encoder)
    assert learner.backbone is network
    assert all(p.requires_grad for p in learner.parameters())
    assert learner.training
    assert learner(torch.zeros(1, 3, 32, 32)).shape == (1, 8, 4, 4)


def test_an_encoder_of_another_kind_is_refused() -> None:
    with pytest.raises(UsageError, match="dul trains a ResNet-18 of stride 8"):
        build(TINY, nn.Linear(2, 2))


@pytest.mark.parametrize(
    "wrong",
    [{"zoom": (0.5, 1.5)}, {"temperature": 0.0}, {"optimiser": "rmsprop"}, {"regularising_norm": "frozen"}],
)
def test_settings_out_of_range_are_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=f"dul.{next(iter(wrong))} = "):
        replace(TINY, **wrong)


# ------------------------------------------------------------------------------------------- presets


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_settings_with_provenance(name: str) -> None:
    table = tomllib.loads((files("unspool") / "presets" / f"{name}.toml").read_text("utf-8"))
    assert set(table) == {"title", "source", "sampling", "augmentation", "dul"}
    assert {"paper", "code", "command"} <= set(table["source"])
    Sampling(**tuples(table["sampling"]))
    view = Augmentation(**tuples(table["augmentation"]))
    assert view.short_side is not None
    assert max(view.size) <= view.short_side[0], "the first view has nothing to pad"
    Config(**tuples(table["dul"]))
    for config, key in ((Config(), "dul"), (Sampling(), "sampling"), (Augmentation(), "augmentation")):
        assert all(getattr(config, name) != value for name, value in tuples(table[key]).items())


def tuples(table: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}


# -------------------------------------------------------------------------------------- two processes


PRECISIONS = {torch.float32: (1e-6, 1e-5), torch.float64: (1e-12, 1e-10)}  # of the loss, of the gradient


def step_of(ranks: Ranks, dtype: torch.dtype) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
    """What is logged, the gradient and the state after a step on this process's part of four clips."""
    learner = tiny(replace(TINY, width=8, embedding=32), ranks).to(dtype)
    module = DistributedDataParallel(learner) if ranks.size > 1 else learner
    loss, log = dul.loss(module, clips(4)[ranks.share(4 // ranks.size)], seeded(4), ranks)
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in learner.parameters() if p.grad is not None])
    return log, gradient, learner.state_dict()


def one_of_two(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save([step_of(Ranks(rank, 2), dtype) for dtype in PRECISIONS], folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one_on_the_union_of_their_clips(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_of_two, (tmp_path,), nprocs=2)
    both = zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in range(2)), strict=True)
    for (dtype, (of_loss, of_gradient)), (first, second) in zip(PRECISIONS.items(), both, strict=True):
        log, gradient, state = step_of(ALONE, dtype)
        for key, value in log.items():
            mean = (first[0][key] + second[0][key]) / 2
            torch.testing.assert_close(mean, value, rtol=of_loss, atol=of_loss)
        assert torch.equal(first[1], second[1])
        assert (first[1] - gradient).norm() <= of_gradient * gradient.norm()
        for key, value in state.items():
            torch.testing.assert_close(first[2][key], value, rtol=of_loss, atol=of_loss)
            assert torch.equal(first[2][key], second[2][key])

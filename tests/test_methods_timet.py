import tomllib
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles_timet import plain_loss, window_mask
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from unspool.data.augment import Augmentation
from unspool.data.sampling import Sampling
from unspool.encoders import load_encoder
from unspool.encoders.resnet import ResNetEncoder, resnet18_stride8
from unspool.encoders.vit import ViTEncoder
from unspool.errors import ShapeError, UnspoolWarning, UsageError
from unspool.methods import timet
from unspool.methods.timet import Config, Learner, Seen, after_step, build, encoder_of, objective, optimiser
from unspool.ops.distributed import ALONE, Ranks

TINY = Config(trained=1, head=(16, 8), prototypes=6, window=2, clips=4)
CROP = (32, 48)
PRESETS = sorted(
    p.name.removesuffix(".toml")
    for p in (files("unspool") / "presets").iterdir()
    if p.name.startswith("timet-")
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clips(count: int, frames: int = 4, crop: tuple[int, int] = CROP) -> Tensor:
    return torch.randint(0, 256, (count, frames, 3, *crop), dtype=torch.uint8, generator=seeded())


def vit(seed: int = 0) -> ViTEncoder:
    torch.manual_seed(seed)
    network = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=16, depth=3, num_heads=2, num_classes=0, dynamic_img_size=True
    )
    return ViTEncoder(network, name="tiny").requires_grad_(False).eval()


def tiny(config: Config = TINY, ranks: Ranks = ALONE) -> Learner:
    encoder = vit()
    torch.manual_seed(1)
    return build(config, encoder, ranks)


# ------------------------------------------------------------------------------------------- the loss


def seen(clips: int, frames: int, tokens: int, seed: int) -> tuple[Seen, Tensor, Tensor, Tensor]:
    """With the head's features, the encoder's and the prototypes."""
    generator = seeded(seed)
    common = torch.randn(clips, 1, tokens, 6, generator=generator, dtype=torch.float64)
    noise = torch.randn(clips, frames, tokens, 6, generator=generator, dtype=torch.float64)
    head = (common + 0.7 * noise).requires_grad_()
    backbone = common + torch.randn(clips, frames, tokens, 6, generator=generator, dtype=torch.float64)
    prototypes = normalize(
        torch.randn(5, 6, generator=generator, dtype=torch.float64), dim=1
    ).requires_grad_()
    assigned = timet.scores(head[:, :1], prototypes).detach()
    predicted = timet.scores(head[:, -1], prototypes)
    return Seen(backbone, assigned, head[:, :1].detach(), predicted), head, backbone, prototypes


@settings(deadline=None, max_examples=30)
@given(
    count=st.integers(1, 3),
    frames=st.integers(2, 5),
    grid=st.tuples(st.integers(2, 5), st.integers(2, 5)),
    window=st.integers(0, 3),
    top_k=st.integers(1, 6),
    seed=st.integers(0, 2**31),
)
def test_loss_and_gradients_are_those_of_the_plain_form(
    *, count: int, frames: int, grid: tuple[int, int], window: int, top_k: int, seed: int
) -> None:
    config = replace(TINY, window=window, top_k=top_k)
    given, head, backbone, prototypes = seen(count, frames, grid[0] * grid[1], seed)
    plain = plain_loss(head, backbone, prototypes, window_mask(grid, window), top_k=top_k)
    total, _ = objective(given, grid, config)
    torch.testing.assert_close(total, plain)
    ours, theirs = (torch.autograd.grad(each, (head, prototypes)) for each in (total, plain))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("target", ["hard", "soft"])
def test_the_gradient_is_that_of_small_differences(target: str) -> None:
    config = replace(TINY, target=target)
    given, head, _, prototypes = seen(2, 3, 6, 3)

    def total(last: Tensor, prototypes: Tensor) -> Tensor:
        predicted = timet.scores(last, prototypes)
        return objective(replace(given, predicted=predicted), (2, 3), config)[0]

    last = head[:, -1].detach().requires_grad_()
    assert torch.autograd.gradcheck(total, (last, prototypes))


def test_soft_targets_are_equation_nine() -> None:
    config = replace(TINY, target="soft")
    given, *_ = seen(2, 3, 6, 4)
    maps = timet.targets(given, (2, 3), config)
    expected = -(maps * (given.predicted / config.temperature).log_softmax(2)).sum(2).mean()
    torch.testing.assert_close(objective(given, (2, 3), config)[0], expected)


def test_variants_of_table_two() -> None:
    given, *_ = seen(2, 3, 6, 5)
    assigned = timet.assign(given.assigned, TINY)[:, 0]
    of = {name: timet.targets(given, (2, 3), replace(TINY, forwards=name)) for name in ("none", "identity")}
    torch.testing.assert_close(of["none"], assigned)
    torch.testing.assert_close(of["identity"], assigned)
    logits = replace(TINY, forwards="logits")
    forwarded = timet.forward_maps(given.features, given.assigned, (2, 3), logits.forwarder)[:, -1:]
    found = timet.targets(given, (2, 3), logits)
    torch.testing.assert_close(found, timet.assign(forwarded, logits)[:, 0])


def test_single_precision_under_autocast_too() -> None:
    given, *_ = seen(2, 3, 6, 6)
    given = Seen(*(getattr(given, name).detach().float() for name in given.__dataclass_fields__))
    expected, _ = objective(given, (2, 3), TINY)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = objective(given, (2, 3), TINY)
    assert torch.equal(found, expected)


# ------------------------------------------------------------------------------------- the network, once


def test_what_is_seen_are_the_encoders_tokens() -> None:
    learner, batch = tiny(), clips(2)
    found = learner(batch)
    with torch.no_grad():
        tokens = learner.encoder(batch.flatten(0, 1))["tokens"].flatten(2).transpose(1, 2)
        head = learner.student.head(tokens.unflatten(0, (2, 4)))
    torch.testing.assert_close(found.features, tokens.unflatten(0, (2, 4)))
    torch.testing.assert_close(found.assigned, timet.scores(head[:, :1], learner.student.prototypes).detach())
    torch.testing.assert_close(found.predicted, timet.scores(head[:, -1], learner.student.prototypes))


def test_every_frame_meets_the_frozen_blocks_once_and_only_the_last_bears_a_graph() -> None:
    learner, batch = tiny(replace(TINY, teacher="ema")), clips(2)
    blocks = learner.encoder.network.blocks
    seen_by: dict[int, list[tuple[int, bool]]] = {}
    for number, block in enumerate([*blocks, learner.teacher.tail[0]]):
        seen_by[number] = []
        block.register_forward_hook(
            lambda _, given, out, number=number: seen_by[number].append((len(out), out.requires_grad))
        )
    learner(batch)
    assert seen_by[0] == seen_by[1] == [(8, False)]
    assert sorted(seen_by[2]) == [(2, True), (6, False)]
    assert seen_by[3] == [(2, False)]


@pytest.mark.parametrize(("forwards", "frames"), [("none", 1), ("identity", 2), ("logits", 4)])
def test_frames_that_are_not_needed_are_not_encoded(forwards: str, frames: int) -> None:
    assert tiny(replace(TINY, forwards=forwards))(clips(2)).features.shape[:2] == (2, frames)


def test_frames_between_give_their_own_maps_where_forwarding_is_direct() -> None:
    learner = tiny(replace(TINY, recursive=False))
    assert learner(clips(2)).assigned.shape[:2] == (2, 3)
    loss, _ = timet.loss(learner, clips(2), seeded())
    assert loss.isfinite()


def test_only_the_last_part_head_and_prototypes_learn() -> None:
    learner = tiny()
    loss, log = timet.loss(learner, clips(2), seeded())
    loss.backward()
    learning = {name for name, p in learner.named_parameters() if p.grad is not None}
    assert learning == {name for name, p in learner.named_parameters() if p.requires_grad}
    assert all(name.startswith(("student.", "encoder.network.blocks.2.")) for name in learning)
    assert {name.split(".")[1] for name in learning if name.startswith("student")} <= {
        "tail",
        "head",
        "prototypes",
    }
    assert set(log) == {"loss", "prototypes", "entropy", "commonest"}
    assert all(p.grad.isfinite().all() for p in learner.parameters() if p.grad is not None)


def test_the_last_stage_of_a_resnet_learns_and_its_norms_rest() -> None:
    torch.manual_seed(0)
    encoder = ResNetEncoder(resnet18_stride8(width=4), name="own")
    learner = build(TINY, encoder)
    before = {name: value.clone() for name, value in learner.encoder.named_buffers()}
    loss, _ = timet.loss(learner, clips(2), seeded())
    loss.backward()
    learning = {name for name, p in learner.encoder.named_parameters() if p.requires_grad}
    assert learning == {f"network.layer4.{name}" for name, _ in encoder.network.layer4.named_parameters()}
    assert all(torch.equal(value, before[name]) for name, value in learner.encoder.named_buffers())


def test_a_wrapped_learner_learns_the_same() -> None:
    wrapped = nn.Sequential(tiny())
    one, other = (timet.loss(module, clips(2), seeded())[0] for module in (wrapped, tiny()))
    assert torch.equal(one, other)


def test_a_step_in_mixed_precision_has_its_loss_in_single_precision() -> None:
    learner = tiny()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, log = timet.loss(learner, clips(2), seeded())
    loss.backward()
    assert {value.dtype for value in (loss, *log.values())} == {torch.float32}
    assert all(p.grad.isfinite().all() for p in learner.parameters() if p.grad is not None)


def test_learning_lowers_the_loss_on_clips() -> None:
    config = replace(TINY, learning_rate=3e-3, encoder_rate=1e-3)
    learner, batch, losses = tiny(config), clips(4), []
    stepper, schedule = optimiser(learner, config, 40)
    for step in range(40):
        loss, _ = timet.loss(learner, batch, seeded())
        stepper.zero_grad()
        loss.backward()
        stepper.step()
        schedule.step()
        after_step(learner, step)
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    torch.testing.assert_close(learner.student.prototypes.norm(dim=1), torch.ones(6))


def test_the_queue_takes_part_once_it_is_full() -> None:
    learner, alone = tiny(replace(TINY, queue=50)), tiny()
    losses = []
    for _ in range(4):
        loss, _ = timet.loss(learner, clips(2), seeded())
        losses.append(loss.item())
    assert losses[0] == losses[1] == timet.loss(alone, clips(2), seeded())[0].item()
    assert learner.queue[-1].any()


# ------------------------------------------------------------------------------------- the teacher


def test_a_teacher_follows_slowly_and_never_learns() -> None:
    config = replace(TINY, teacher="ema", teacher_momentum=0.9)
    learner = tiny(config)
    optimiser(learner, config, 100)
    before = [p.clone() for p in learner.teacher.parameters()]
    with torch.no_grad():
        for p in learner.student.parameters():
            p.add_(1.0)
    after_step(learner, 0)
    moved = dict(zip(dict(learner.teacher.named_parameters()), before, strict=True))
    for name, p in learner.teacher.named_parameters():
        assert not p.requires_grad
        if name != "prototypes":
            torch.testing.assert_close(p.detach(), moved[name] + 0.1)


def test_the_teachers_momentum_rises_to_one() -> None:
    config = replace(TINY, teacher="ema")
    learner = tiny(config)
    optimiser(learner, config, 10)
    still = [p.clone() for p in learner.teacher.parameters()]
    with torch.no_grad():
        learner.student.head[0].weight.add_(1.0)
    after_step(learner, 10)
    torch.testing.assert_close(list(learner.teacher.parameters()), still)


def test_the_teacher_is_saved_with_the_learner() -> None:
    config = replace(TINY, teacher="ema", queue=20)
    state = tiny(config).state_dict()
    assert "teacher.prototypes" in state
    assert "queue" in state
    tiny(config).load_state_dict(state)


# --------------------------------------------------------------------------------------- collapse


def test_a_collapsed_run_says_so() -> None:
    learner = tiny()
    with torch.no_grad():
        learner.student.head[-1].weight.zero_()
        learner.student.head[-1].bias.copy_(learner.student.prototypes[2])
    _, log = timet.loss(learner, clips(2), seeded())
    assert log["commonest"] == 1
    with pytest.warns(UnspoolWarning, match="step 0: the run has collapsed, 100% of all tokens"):
        after_step(learner, 0)


def test_a_run_that_goes_well_says_nothing() -> None:
    learner = tiny()
    timet.loss(learner, clips(2), seeded())
    learner.commonest = torch.tensor(0.4)
    after_step(learner, 0)


def test_prototypes_in_use_and_the_entropy_of_targets_are_logged() -> None:
    labels = torch.tensor([[0, 0, 1, 1]])
    predicted = torch.eye(5)[torch.tensor([[3, 3, 3, 1]])]
    found = timet.statistics(labels, predicted, ALONE)
    assert found["prototypes"] == 2
    torch.testing.assert_close(found["entropy"], torch.tensor(2.0).log())
    assert found["commonest"] == 0.75


# ------------------------------------------------------------------------------------- bad input


def test_a_clip_of_one_frame_is_refused_unless_nothing_is_forwarded() -> None:
    with pytest.raises(ShapeError, match="a clip of one frame has nowhere to forward to"):
        timet.loss(tiny(), clips(2, frames=1), seeded())
    assert timet.loss(tiny(replace(TINY, forwards="none")), clips(2, frames=1), seeded())[0].isfinite()


def test_a_crop_that_the_encoders_grid_does_not_fit_is_refused() -> None:
    with pytest.raises(ShapeError, match="multiples of 8, got 36x48"):
        timet.loss(tiny(), clips(1, crop=(36, 48)), seeded())


@pytest.mark.parametrize("encoder", [None, nn.Linear(2, 2)])
def test_an_encoder_of_another_kind_and_none_are_refused(encoder: nn.Module | None) -> None:
    with pytest.raises(UsageError, match="timet tunes an encoder that has learnt already"):
        build(TINY, encoder)


def test_more_blocks_than_there_are_cannot_learn() -> None:
    with pytest.raises(UsageError, match="has 3 blocks, not 4"):
        build(replace(TINY, trained=4), vit())


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": 0.0}, {"head": ()}, {"forwards": "flow"}, {"teacher": "student"}, {"prototypes": 1}],
)
def test_settings_out_of_range_are_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=f"timet.{next(iter(wrong))} = "):
        replace(TINY, **wrong)


# ------------------------------------------------------------------------------- what is kept, presets


def test_what_is_kept_is_an_encoder_that_loads() -> None:
    learner = build(replace(TINY, std=(0.228, 0.224, 0.225)), load_encoder("random-vits16", device="cpu"))
    kept = encoder_of(learner)
    images = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(kept(images)["tokens"], learner.encoder(images)["tokens"])
    assert not kept.training
    assert kept.network.blocks[0].norm1.weight is not learner.encoder.network.blocks[0].norm1.weight


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_settings_with_provenance(name: str) -> None:
    table = tomllib.loads((files("unspool") / "presets" / f"{name}.toml").read_text("utf-8"))
    assert set(table) == {"title", "source", "sampling", "augmentation", "timet"}
    assert {"paper", "code", "command"} <= set(table["source"])
    assert f"--preset {name}" in table["source"]["command"]
    sampling = Sampling(**tuples(table["sampling"]))
    assert (sampling.frames, sampling.mode) == (4, "regular") or name == "timet-code"
    view = Augmentation(**tuples(table["augmentation"]))
    assert view.size[0] % 16 == 0
    Config(**tuples(table["timet"]))
    for config, key in ((Config(), "timet"), (Sampling(), "sampling"), (Augmentation(), "augmentation")):
        assert all(getattr(config, name) != value for name, value in tuples(table[key]).items())


def test_there_are_presets_of_both_lengths_and_all_encoders() -> None:
    assert len(PRESETS) >= 6


def tuples(table: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}


# -------------------------------------------------------------------------------------- two processes


def step_of(ranks: Ranks, config: Config) -> tuple[dict[str, Tensor], Tensor]:
    """What is logged, and the gradient, of this process's part of four clips, in float64."""
    learner = tiny(config, ranks).double()
    module = DistributedDataParallel(learner) if ranks.size > 1 else learner
    loss, log = timet.loss(module, clips(4)[ranks.share(4 // ranks.size)], seeded(4), ranks)
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in learner.parameters() if p.grad is not None])
    return log, gradient


CONFIGS = [TINY, replace(TINY, teacher="ema", target="soft"), replace(TINY, forwards="logits")]


def one_of_two(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save([step_of(Ranks(rank, 2), config) for config in CONFIGS], folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one_on_the_union_of_their_clips(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_of_two, (tmp_path,), nprocs=2)
    both = zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in range(2)), strict=True)
    for config, (first, second) in zip(CONFIGS, both, strict=True):
        log, gradient = step_of(ALONE, config)
        for key, value in log.items():
            torch.testing.assert_close((first[0][key] + second[0][key]) / 2, value, rtol=1e-10, atol=1e-10)
        assert torch.equal(first[1], second[1])
        assert (first[1] - gradient).norm() <= 1e-9 * gradient.norm()


def test_images_taken_a_few_at_a_time_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = timet.loss(tiny(), clips(3), seeded())
    monkeypatch.setitem(timet.FRAME_BYTES, "cpu", 1)
    parts, _ = timet.loss(tiny(), clips(3), seeded())
    torch.testing.assert_close(parts, whole)

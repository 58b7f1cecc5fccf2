"""TimeT's loss, head, schedules and teacher against SMSD75/Timetuning."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from unspool.encoders import load_encoder
from unspool.methods import timet
from unspool.methods.timet import Branch, Config, Seen, objective, optimiser, projection_head, scores, targets

Recording = dict[str, np.ndarray]
Golden = Callable[[str], Recording]


def cases(file: Recording, name: str) -> list[str]:
    found = [key.removeprefix(name) for key in file if key.removeprefix(name).isdigit()]
    assert found
    return found


def seen_in(file: Recording, case: str) -> tuple[Seen, Tensor, Tensor]:
    """What the network saw, its head's features and the prototypes (leaves, for gradients)."""
    features = torch.tensor(file[f"head_feats{case}"]).requires_grad_()
    prototypes = torch.tensor(file[f"prototypes{case}"]).requires_grad_()
    teaching = f"teacher_feats{case}" in file
    first = torch.tensor(file[f"teacher_feats{case}"]) if teaching else features.detach()
    own = torch.tensor(file[f"teacher_prototypes{case}"]) if teaching else prototypes.detach()
    backbone = torch.tensor(file[f"backbone_feats{case}"])
    predicted = scores(features[:, -1], prototypes)
    return Seen(backbone, scores(first[:, :1], own), first[:, :1], predicted), features, prototypes


def queued_in(file: Recording, case: str, monkeypatch: pytest.MonkeyPatch) -> Tensor | None:
    """Scores of the queue, once this step's tokens are in it, with the recorded random order."""
    if f"queue_before{case}" not in file:
        return None
    queue, order = torch.tensor(file[f"queue_before{case}"]), torch.tensor(file[f"randperm{case}"])
    tokens = torch.tensor(file[f"teacher_feats{case}"])
    with monkeypatch.context() as patched:
        patched.setattr(torch, "randperm", lambda *_, **__: order)
        timet.enter_queue(queue, tokens[:, 0].flatten(0, 1), len(tokens), torch.Generator())
    torch.testing.assert_close(queue, torch.tensor(file[f"queue_after{case}"]), atol=1e-5, rtol=0)
    return scores(queue, torch.tensor(file[f"teacher_prototypes{case}"])) if queue[-1].any() else None


def test_loss_and_gradients_equal_the_published_code(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    file, config = golden("timet/loss"), Config()
    for case in cases(file, "loss"):
        seen, features, prototypes = seen_in(file, case)
        queued = queued_in(file, case, monkeypatch)
        size = file[f"label{case}"].shape[1:]
        assigned = timet.assign(seen.assigned, config, queued)[:, 0]
        torch.testing.assert_close(assigned, torch.tensor(file[f"q{case}"]), atol=1e-5, rtol=0)
        maps = targets(seen, size, config, queued)
        recorded = torch.tensor(file[f"target{case}"]).flatten(2).transpose(1, 2)
        torch.testing.assert_close(maps, recorded, atol=1e-5, rtol=0)
        assert np.array_equal(maps.argmax(2).view(-1, *size), file[f"label{case}"])
        total, _ = objective(seen, size, config, queued=queued)
        torch.testing.assert_close(total, torch.tensor(file[f"loss{case}"]), atol=1e-5, rtol=0)
        found = torch.autograd.grad(total, (features, prototypes))
        for gradient, name in zip(found, ("feats", "prototypes"), strict=True):
            torch.testing.assert_close(gradient, torch.tensor(file[f"grad_{name}{case}"]), atol=1e-7, rtol=0)


def test_the_head_is_laid_out_as_published(golden: Golden) -> None:
    file = golden("timet/head_layout")
    widths = tuple(int(shape.strip("()").split(",")[0]) for shape in file["shapes"][::2])
    head = projection_head(file["x"].shape[1], widths)
    named = dict(head.named_parameters())
    assert list(named) == file["names"].tolist()
    assert [str(tuple(p.shape)) for p in named.values()] == file["shapes"].tolist()
    assert sum(p.numel() for p in named.values()) == file["head_params"]
    with torch.no_grad():
        for number, parameter in enumerate(named.values()):
            k = torch.arange(parameter.numel(), dtype=torch.float64)
            values = 0.05 * torch.sin(0.37 * k + number + int(file["phase"]))
            parameter.copy_(values.view_as(parameter))
        found = head(torch.tensor(file["x"]))
    torch.testing.assert_close(found, torch.tensor(file["y"]), atol=1e-5, rtol=0)
    assert Config().head == widths


def test_the_last_two_blocks_of_a_vit_learn(golden: Golden) -> None:
    file = golden("timet/head_layout")
    learner = timet.build(Config(), load_encoder("random-vits16", device="cpu"))
    found = {
        name.removeprefix("network."): p.numel()
        for name, p in learner.encoder.named_parameters()
        if p.requires_grad
    }
    assert found == dict(zip(file["trainable_names"].tolist(), file["trainable_numel"].tolist(), strict=True))


def small_learner(config: Config) -> timet.Learner:
    return timet.build(config, load_encoder("random-vits16", device="cpu"))


def test_rates_and_weight_decay_follow_the_published_schedules(golden: Golden) -> None:
    file = golden("timet/schedules")
    steps = int(file["epochs"] * file["niter"])
    decay, rise = float(file["wd"][0]), float(file["momentum"][0])
    remaining = timet.cosine(1.0, 0.0, steps - 1, steps)  # share of the start, at the last step
    end = (float(file["wd"][-1]) - remaining * decay) / (1 - remaining)
    rates = [float(rate) for rate in file["lr"][0]]
    config = Config(
        weight_decay=(decay, end), teacher_momentum=rise, learning_rate=rates[0], encoder_rate=rates[-1]
    )
    stepper, schedule = optimiser(small_learner(config), config, steps)
    rates, decays = [], []
    for step in range(steps):
        rates.append([group["lr"] for group in stepper.param_groups])
        decays.append([group["weight_decay"] for group in stepper.param_groups])
        assert decays[-1][0] == pytest.approx(file["wd"][step], abs=1e-12)
        assert timet.cosine(rise, 1.0, step, steps) == pytest.approx(file["momentum"][step], abs=1e-12)
        stepper.step()
        schedule.step()  # the published code fails after the last step; this does not
    assert str(file["last_step_error"]) == "IndexError"
    np.testing.assert_allclose(rates[: len(file["lr"])], file["lr"], atol=1e-12, rtol=0)
    np.testing.assert_allclose(decays[: len(file["wd_used"])], file["wd_used"], atol=1e-12, rtol=0)


def test_the_published_teacher_is_the_inverted_one(golden: Golden) -> None:
    file = golden("timet/schedules")

    def branch(weight: np.ndarray, prototypes: np.ndarray) -> Branch:
        body = nn.ParameterList([torch.tensor(weight)])
        return Branch([body], nn.Identity(), torch.tensor(prototypes))

    momentum = float(file["momentum"][file["ema_step"]])
    student = branch(file["ema_student"], file["ema_proto"])
    for sense, share in (("inverted", 1 - momentum), ("ema", momentum)):
        teacher = branch(file["ema_teacher_before"], file["ema_tproto_before"])
        timet.follow(teacher, student, share)
        body, prototypes = next(teacher.tail.parameters()), teacher.prototypes
        if sense == "inverted":
            torch.testing.assert_close(
                body.detach(), torch.tensor(file["ema_teacher_after"]), atol=1e-5, rtol=0
            )
            torch.testing.assert_close(
                prototypes.detach(), torch.tensor(file["ema_tproto_after"]), atol=1e-5, rtol=0
            )
        else:
            expected = momentum * file["ema_teacher_before"] + (1 - momentum) * file["ema_student"]
            torch.testing.assert_close(body.detach(), torch.tensor(expected), atol=1e-5, rtol=0)
    torch.testing.assert_close(prototypes, normalize(prototypes, dim=1))
    assert replace(Config(), teacher="inverted") != Config(), "the released direction is an option, not ours"

"""BA's losses and schedule against the released ones, and the paper's form against the recording."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from unspool.methods.ba import (
    Config,
    Sets,
    cosine_rate,
    motion_loss,
    motion_sets,
    printed_losses,
    query_weights,
    ranked,
    semantic_loss,
    semantic_sets,
)

Golden = Callable[[str], dict[str, np.ndarray]]
HINGES = Config().hinges


def tensors(file: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.asarray(value)) for name, value in file.items()}


def sets_of(attention: Tensor, sample: Tensor, frames: int, config: Config) -> tuple[Sets, Sets, Tensor]:
    """Sets of one clip, and the attention of its queries `[q, t, n]`."""
    count = len(attention) // frames
    queries = (count * torch.arange(frames)[:, None] + sample).flatten()
    rows = attention.detach()[queries].view(len(queries), frames, count)
    return semantic_sets(rows, queries, config), motion_sets(rows, queries, config), rows


def check(found: Tensor | None, expected: Tensor, rtol: float = 0, atol: float = 1e-4) -> None:
    assert found is not None
    assert torch.allclose(found, expected.view_as(found), rtol=rtol, atol=atol)


def check_gradient(found: Tensor | None, expected: Tensor) -> None:
    check(found, expected, rtol=2e-3, atol=1e-6)


def config_of(file: dict[str, Tensor]) -> Config:
    return Config(
        points=int(file["num_points"]),
        semantic_sets=(int(file["sem_pos"]), int(file["sem_neg"])),
        sets=(int(file["mot_pos"]), int(file["mot_neg"])),
    )


def test_released_sets_scores_and_weights(golden: Golden) -> None:
    file = tensors(golden("ba/losses_code"))
    config, frames = config_of(file), int(file["T"])
    points, count = config.points, file["attention"].shape[1] // frames
    for clip, attention in enumerate(file["attention"]):
        semantic, motion, _ = sets_of(attention, file["sample"], frames, config)
        for found, name in ((semantic.positive, "sem_pos_index"), (semantic.negative, "sem_neg_index")):
            expected = file[name][clip].flatten(0, 1).long()
            assert torch.equal(found.view(len(found), frames, -1) % count, expected)
        for found, name in ((motion.positive, "mot_pos_index"), (motion.negative, "mot_neg_index")):
            assert torch.equal(found % count, file[name][clip].flatten(0, 1).long())
        rows = attention / attention.sum(1, keepdim=True)
        query = rows[motion.queries]
        check(query_weights(query, points), file["query_score"][clip])
        scores = query @ (rows + 1e-10).log().T
        check(scores.gather(1, motion.positive).view(frames, points, -1), file["mot_pos_sim"][clip])
        check(scores.gather(1, motion.negative).view(frames, points, -1), file["mot_neg_sim"][clip])


def test_released_losses_and_gradients(golden: Golden) -> None:
    file = tensors(golden("ba/losses_code"))
    config, frames = config_of(file), int(file["T"])
    attention, slot = file["attention"].requires_grad_(), file["slot"].requires_grad_()
    semantic, motion = [], []
    for of_clip, features in zip(attention, slot, strict=True):
        likes, moves, _ = sets_of(of_clip, file["sample"], frames, config)
        semantic.append(semantic_loss(features.flatten(0, 1), likes, HINGES))
        pool, places = moves.pooled()
        motion.append(motion_loss(of_clip[pool], places, config.points, config))
    slot_loss, moving = torch.stack(semantic).mean(), torch.stack(motion).mean()
    check(slot_loss, file["slot_loss"])
    check(moving, file["motion_loss"])
    check(slot_loss + moving, file["loss"])
    slot_loss.backward()
    moving.backward()
    check_gradient(slot.grad, file["grad_slot"])
    check_gradient(attention.grad, file["grad_attention"])


def test_released_losses_with_their_own_constants(golden: Golden) -> None:
    file = tensors(golden("ba/losses_code_default"))
    config, frames = Config(points=len(file["sample"])), int(file["T"])
    q, k, slot = (file[name].requires_grad_() for name in ("q", "k", "slot"))
    attention = torch.softmax(q @ k.T, dim=1)
    semantic, motion, _ = sets_of(attention, file["sample"], frames, config)
    likes, places = semantic.pooled()
    slot_loss = semantic_loss(slot.flatten(0, 2)[likes], places, config.hinges)
    moves, places = motion.pooled()
    moving = motion_loss(attention[moves], places, config.points, config)
    check(slot_loss, file["slot_loss"])
    check(moving, file["motion_loss"])
    check(slot_loss + moving, file["loss"])
    (slot_loss + moving).backward()
    for found, name in ((q, "grad_q"), (k, "grad_k"), (slot, "grad_slot")):
        check_gradient(found.grad, file[name])


def test_the_printed_losses(golden: Golden) -> None:
    file = tensors(golden("ba/paper_form"))
    frames = int(file["T"])
    config = Config(
        form="paper",
        sets=(int(file["Kp"]), int(file["Kn"])),
        semantic_margin=float(file["lambda1"]),
        motion_margin=float(file["lambda2"]),
        reduction="sum",
    )
    attention, features = file["attention"], file["features"]
    count = len(attention) // frames
    starts = count * torch.arange(frames)[:, None]
    sets = ranked(attention.view(len(attention), frames, count), *config.sets)
    for found, name in zip(sets, ("Ip", "In"), strict=True):
        assert torch.equal((found + starts).sort(-1)[0], file[name].long())
    printed = printed_losses(attention, features, frames, config)
    check(printed.semantic, file["L_s"].float(), rtol=1e-5)
    check(printed.motion, file["L_m"].float(), rtol=1e-5)
    check(printed.weights, file["w"].float(), rtol=1e-5)
    total = sum(printed.total(config, 1).values())
    assert torch.allclose(torch.as_tensor(total), file["loss"].float(), rtol=1e-5)


def test_the_schedule(golden: Golden) -> None:
    file = golden("ba/schedule")
    steps = int(file["epochs"] * file["niter"])
    found = [cosine_rate(i, steps, float(file["base"]), float(file["final"])) for i in range(steps)]
    assert np.allclose(found, file["lr_f64"], rtol=0, atol=1e-9)

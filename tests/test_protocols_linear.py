"""Heads learn from frozen features, the same from the same seed, stopped or not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from unspool.data.features import Kept
from unspool.errors import DataError, UsageError
from unspool.metrics.matching import unmatched
from unspool.protocols.linear import (
    HEADS,
    RECIPES,
    Recipe,
    State,
    confusion,
    fresh,
    logits,
    score,
    scores_of,
    trained,
)

CPU = torch.device("cpu")
CLASSES, SIDE = 3, 8
TINY = Recipe(epochs=3, batch=2, loss_side=SIDE, score_side=SIDE, views=2, learning_rate=0.5)


def kept(pictures: int, seed: int) -> Kept:
    """Features that tell the class: one channel each, with noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, CLASSES, (pictures, 4, 4))
    tokens = np.moveaxis(np.eye(CLASSES)[coarse], 3, 1) + 0.1 * rng.standard_normal((pictures, CLASSES, 4, 4))
    labels = coarse.repeat(2, 1).repeat(2, 2).astype(np.uint8)
    labels[:, 0, 0] = 255
    return Kept({"tokens": tokens.astype(np.float16)}, labels, "key")


def run(recipe: Recipe, state: State | None = None, after: object = lambda state: None) -> State:
    state = state or fresh(recipe, CLASSES, CLASSES, CPU)
    return trained(kept(10, 0), kept(4, 1), CLASSES, recipe, state, CPU, after)  # type: ignore[arg-type]


def test_the_linear_head_may_be_applied_before_stretching() -> None:
    head = HEADS["linear"](5, 3)
    features = torch.randn(2, 5, 4, 4)
    plain = head(interpolate(features, (9, 9), mode="bilinear", align_corners=False))
    torch.testing.assert_close(logits(head, features, 9), plain)


def test_the_fcn_head_sees_the_stretched_features() -> None:
    head = HEADS["fcn"](5, 3).eval()
    features = torch.randn(2, 5, 4, 4)
    plain = head(interpolate(features, (6, 6), mode="bilinear", align_corners=False))
    torch.testing.assert_close(logits(head, features, 6), plain)


def test_the_fcn_head_is_the_published_one() -> None:
    sizes = {name: tuple(p.shape) for name, p in HEADS["fcn"](384, 21).named_parameters() if p.ndim > 1}
    assert sizes == {
        "first.weight": (512, 384, 3, 3),
        "second.weight": (512, 512, 3, 3),
        "beside.weight": (512, 896, 3, 3),
        "classifier.weight": (21, 512, 1, 1),
    }


@pytest.mark.parametrize(("head", "told"), [("linear", [8, 10]), ("fcn", list(range(1, 11)))])
def test_scoring_tells_of_pictures_and_a_large_head_takes_one_at_a_time(head: str, told: list[int]) -> None:
    recipe = replace(TINY, head=head)  # type: ignore[arg-type]
    state, seen = fresh(recipe, CLASSES, CLASSES, CPU), list[int]()
    found = scores_of(state.head, recipe, kept(10, 1), CLASSES, CPU, seen.append)
    assert seen == told
    assert np.array_equal(found.iou(), scores_of(state.head, recipe, kept(10, 1), CLASSES, CPU).iou())


def test_a_head_learns_what_the_features_tell() -> None:
    recipe = replace(TINY, epochs=20)
    state = run(recipe)
    assert state.losses[-1] < state.losses[0]
    assert score(scores_of(state.head, recipe, kept(4, 1), CLASSES, CPU), recipe) > 0.8


@pytest.mark.parametrize("head", ["linear", "fcn"])
def test_a_run_that_was_stopped_ends_with_the_same_head(head: str) -> None:
    recipe = replace(TINY, head=head, learning_rate=0.05)  # type: ignore[arg-type]
    whole, reached = run(recipe), []

    def stop(state: State) -> None:
        reached.append(state)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(recipe, after=stop)
    continued = run(recipe, reached[0])
    assert continued.losses == whole.losses and continued.validated == whole.validated
    assert all(torch.equal(continued.head[name], whole.head[name]) for name in whole.head)
    assert all(torch.equal(continued.best[name], whole.best[name]) for name in whole.best)


def test_another_seed_gives_another_head() -> None:
    assert run(TINY).losses != run(replace(TINY, seed=1)).losses


def test_training_leaves_the_callers_random_numbers_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    run(replace(TINY, head="fcn", epochs=1))
    assert torch.equal(torch.rand(1), expected)


def test_confusion_leaves_void_out() -> None:
    rng = np.random.default_rng(0)
    prediction, truth = rng.integers(0, 3, (2, 2, 5, 5))
    truth[0, 0] = 255
    expected = unmatched(prediction.astype(np.uint8), truth.astype(np.uint8), 3)
    counts = confusion(prediction, truth, 3)
    assert np.array_equal(counts.diagonal(), expected.true_positives)
    assert counts.sum() == 45


def test_confusion_refuses_an_id_that_is_no_class() -> None:
    with pytest.raises(DataError, match="class 3"):
        confusion(np.zeros((1, 2, 2), int), np.full((1, 2, 2), 3), 3)


def test_an_absent_class_counts_nothing_or_is_left_out() -> None:
    truth = np.zeros((1, 4, 4), np.uint8)
    scores = unmatched(truth, truth, 4)
    assert score(scores, RECIPES["leopart-linear"]) == 0.25
    assert score(scores, RECIPES["timet-linear"]) == 1.0


def test_features_that_are_not_finite_are_named() -> None:
    train = kept(4, 0)
    train.maps["tokens"][:] = np.nan
    with pytest.raises(DataError, match="not finite"):
        trained(train, train, CLASSES, TINY, fresh(TINY, CLASSES, CLASSES, CPU), CPU)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(UsageError, match=r"linear\.epochs"):
        Recipe(epochs=0)

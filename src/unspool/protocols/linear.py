"""`linear-voc` and `fcn-voc`: what a small head learns to read from frozen features.

Features of the training pictures are stretched to the size of the labels and a head of one or four layers is
trained on them by cross entropy; nothing is matched. The score is that of the head after the last epoch; the
one that was best on the scored pictures has seen their labels and is reported apart.
Source: leopart experiments/linear_probing; Timetuning linear_finetune.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from unspool.data.features import Kept
from unspool.data.pictures import View
from unspool.errors import DataError, UsageError
from unspool.metrics.labels import VOID
from unspool.metrics.matching import ClusterScores, unmatched_of_counts
from unspool.metrics.overlap import Counts

SCORED_AT_ONCE = 8  # pictures
Told = Callable[[int], None]  # hears of pictures, and may raise to stop


@dataclass(frozen=True)
class Recipe:
    """How a head is trained and scored; the defaults are Leopart's for the linear head."""

    head: Literal["linear", "fcn"] = "linear"
    epochs: int = 25
    batch: int = 120  # pictures; 60 in each of two processes
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    decay_every: int = 20  # epochs after which the learning rate falls to a tenth
    side: int = 448  # px of the encoder's input
    loss_side: int = 100  # px that features and labels are brought to in training
    score_side: int = 448  # px that the score is taken at
    cut: tuple[float, float] | None = (0.8, 1.0)  # share of the area of random cuts; None: whole pictures
    flip: float = 0.5  # probability
    views: int = 4  # of every picture that are encoded and kept, taken in turn; published: one an epoch
    shuffled: bool = True
    whole_batches: bool = True  # the last pictures of an epoch are left out where they fill no batch
    scored: Literal["all", "present"] = "all"  # classes in the mean: all, or those that the truth has
    seed: int = 400

    def __post_init__(self) -> None:
        for name, valid in (
            ("head", self.head in HEADS),
            ("epochs", self.epochs >= 1),
            ("batch", self.batch >= 1),
            ("learning_rate", self.learning_rate > 0),
            ("decay_every", self.decay_every >= 1),
            ("views", self.views >= 1),
            ("loss_side", self.loss_side >= 1),
            ("score_side", self.score_side >= 1),
        ):
            if not valid:
                raise UsageError(f"linear.{name} = {getattr(self, name)!r} is out of range")

    @property
    def learnt_from(self) -> View:
        """How training pictures are shown."""
        return View(self.side, self.loss_side, self.cut, self.flip, seed=self.seed)

    @property
    def scored_on(self) -> View:
        """How the others are shown."""
        return View(self.side, self.score_side)


class FcnHead(nn.Module):
    """Two 3x3 convolutions, a third on their result beside the features, a classifier; no norm layer."""

    def __init__(self, dim: int, classes: int, width: int = 512) -> None:
        super().__init__()
        self.first = nn.Conv2d(dim, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.beside = nn.Conv2d(dim + width, width, 3, padding=1)
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(width, classes, 1)

    def forward(self, features: Float[Tensor, "b d h w"]) -> Float[Tensor, "b k h w"]:
        """Scores of the classes."""
        deep = self.second(self.first(features).relu()).relu()
        out: Tensor = self.classifier(self.dropout(self.beside(torch.cat([features, deep], dim=1)).relu()))
        return out


HEADS: dict[str, Callable[[int, int], nn.Module]] = {
    "linear": lambda dim, classes: nn.Conv2d(dim, classes, 1),
    "fcn": FcnHead,
}
RELEASED: dict[str, Any] = {
    "epochs": 50, "batch": 60, "cut": None, "flip": 0.0, "views": 1, "shuffled": False,
    "whole_batches": False, "score_side": 100, "scored": "present",
}  # fmt: skip
RECIPES = {
    "leopart-linear": Recipe(),
    "leopart-fcn": Recipe("fcn", epochs=30, batch=64),
    "timet-linear": Recipe(**RELEASED),
    "timet-fcn": Recipe("fcn", **RELEASED),
}


def logits(head: nn.Module, features: Float[Tensor, "b d h w"], side: int) -> Float[Tensor, "b k side side"]:
    """The head's scores of the stretched features.

    A 1x1 convolution and bilinear stretching, whose weights sum to 1, can be exchanged: the linear head is
    applied to tokens, which gives the same for a thirteenth of the work at 28x28.
    """
    size = (side, side)
    if isinstance(head, nn.Conv2d) and head.kernel_size == (1, 1):
        return interpolate(head(features), size, mode="bilinear", align_corners=False)
    out: Tensor = head(interpolate(features, size, mode="bilinear", align_corners=False))
    return out


# ---------------------------------------------------------------------------------------------- training


@dataclass
class State:
    """A head on its way; all that is needed to go on."""

    head: dict[str, Tensor]
    optimiser: dict[str, Any]
    epoch: int = 0  # done
    losses: list[float] = field(default_factory=list)  # mean of each epoch
    validated: list[float] = field(default_factory=list)  # mIoU after each, at the size of the loss
    best: dict[str, Tensor] = field(default_factory=dict)  # the head after the best of them


def fresh(recipe: Recipe, dim: int, classes: int, device: torch.device) -> State:
    """Before the first epoch; drawn on the CPU from the recipe's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)
        head = HEADS[recipe.head](dim, classes).to(device)
    return State(head.state_dict(), _optimiser(head, recipe).state_dict())


def trained(
    train: Kept,
    val: Kept,
    classes: int,
    recipe: Recipe,
    state: State,
    device: torch.device,
    after: Callable[[State], None] = lambda state: None,
) -> State:
    """`state` taken to the last epoch; `after` is called with it after every epoch, and may raise to stop.

    `train` holds `recipe.views` passes. Each epoch draws from the seed and its own number, so a run that
    goes on where another was stopped ends with the same head. Raises DataError where the loss is not finite.
    """
    head = rebuilt(state.head, recipe, train, classes, device)
    optimiser = _optimiser(head, recipe)
    optimiser.load_state_dict(state.optimiser)
    for epoch in range(state.epoch, recipe.epochs):
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * 0.1 ** (epoch // recipe.decay_every)
        loss = _epoch(head, optimiser, train, recipe, epoch, device)
        miou = score(_scores(head, val, recipe.loss_side, classes, device), recipe)
        best = miou > max(state.validated, default=-1.0)
        weights = {name: value.detach().clone() for name, value in head.state_dict().items()}
        state = State(
            weights,
            optimiser.state_dict(),
            epoch + 1,
            [*state.losses, loss],
            [*state.validated, miou],
            weights if best else state.best,
        )
        after(state)
    return state


def rebuilt(
    weights: dict[str, Tensor], recipe: Recipe, kept: Kept, classes: int, device: torch.device
) -> nn.Module:
    """The head with these weights."""
    with torch.random.fork_rng(devices=[]):
        head = HEADS[recipe.head](kept.maps["tokens"].shape[1], classes).to(device)
    head.load_state_dict(weights)
    return head


def _optimiser(head: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    return torch.optim.SGD(
        head.parameters(), recipe.learning_rate, recipe.momentum, weight_decay=recipe.weight_decay
    )


def _epoch(
    head: nn.Module, optimiser: torch.optim.SGD, train: Kept, recipe: Recipe, epoch: int, device: torch.device
) -> float:
    """Mean loss."""
    losses = []
    head.train()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(recipe.seed + 1_000_003 * (epoch + 1))  # of dropout
        for numbers in _batches(len(train) // recipe.views, recipe, epoch):
            features = train.rows(numbers).to(device)
            labels = torch.from_numpy(np.array(train.labels[numbers])).to(device).long()
            if not bool((labels != VOID).any()):
                continue
            loss = cross_entropy(logits(head, features, recipe.loss_side), labels, ignore_index=VOID)
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimiser.step()
            losses.append(float(loss.detach()))
    mean = float(np.mean(losses)) if losses else float("nan")
    if not np.isfinite(mean):
        raise DataError(
            f"epoch {epoch + 1}: the loss is {mean}; features are not finite, or all labels are void"
        )
    return mean


def _batches(pictures: int, recipe: Recipe, epoch: int) -> Iterator[Int64[np.ndarray, " n"]]:
    """Rows of the kept features, in ascending order within a batch (faster to read)."""
    order = np.arange(pictures)
    if recipe.shuffled:
        order = np.random.default_rng((recipe.seed, epoch)).permutation(pictures)
    batch = min(recipe.batch, pictures)
    end = pictures - pictures % batch if recipe.whole_batches else pictures
    for start in range(0, end, batch):
        yield np.sort(order[start : start + batch]) + (epoch % recipe.views) * pictures


# ----------------------------------------------------------------------------------------------- scoring


def predicted(
    head: nn.Module, kept: Kept, side: int, device: torch.device
) -> Iterator[tuple[slice, np.ndarray]]:
    """Label maps `[n, side, side]` of some pictures at a time, and which these are.

    A head of larger convolutions takes one: at 448x448 each of its layers holds 0.4 GB of a picture.
    """
    head.eval()
    at_once = SCORED_AT_ONCE if isinstance(head, nn.Conv2d) else 1
    for start in range(0, len(kept), at_once):
        part = slice(start, min(start + at_once, len(kept)))
        with torch.no_grad():
            maps = logits(head, kept.rows(part).to(device), side).argmax(dim=1)
        yield part, maps.to(torch.uint8).cpu().numpy()


def _scores(
    head: nn.Module,
    kept: Kept,
    side: int,
    classes: int,
    device: torch.device,
    told: Told = lambda scored: None,
) -> ClusterScores:
    counts = np.zeros((classes, classes), np.int64)
    at = np.arange(side) * kept.labels.shape[1] // side  # labels are kept at the size of the score
    for part, maps in predicted(head, kept, side, device):
        counts += confusion(maps, np.asarray(kept.labels[part])[:, at][:, :, at], classes)
        told(part.stop)
    return unmatched_of_counts(counts, classes)


def scores_of(
    weights: dict[str, Tensor],
    recipe: Recipe,
    val: Kept,
    classes: int,
    device: torch.device,
    told: Told = lambda scored: None,
) -> ClusterScores:
    """Of the head with these weights, at the size of the score; `told`: how many pictures are through."""
    head = rebuilt(weights, recipe, val, classes, device)
    return _scores(head, val, recipe.score_side, classes, device, told)


def confusion(prediction: Int64[np.ndarray, "n h w"] | np.ndarray, truth: np.ndarray, classes: int) -> Counts:
    """Pixels of every predicted class in every true one, void left out. Raises DataError for other ids."""
    known = truth != VOID
    true = truth[known].astype(np.int64)
    if true.size and int(true.max()) >= classes:
        raise DataError(f"truth holds class {int(true.max())}, but there are {classes} (0 to {classes - 1})")
    cells = prediction[known].astype(np.int64) * classes + true
    return np.asarray(np.bincount(cells, minlength=classes * classes).reshape(classes, classes))


def score(scores: ClusterScores, recipe: Recipe) -> float:
    """Mean IoU over all classes (0 for one on neither side), or over those that the truth has."""
    iou = scores.iou()
    if recipe.scored == "present":
        iou = iou[scores.true_positives + scores.false_negatives > 0]
    if not len(iou):
        raise DataError("the truth is void throughout; nothing can be scored")
    return float(iou.mean())

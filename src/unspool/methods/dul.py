"""Dense Unsupervised Learning for video segmentation: Araslanov, Schaub-Meyer, Roth. NeurIPS 2021.

Features of a grid of anchors in one frame of a clip classify every place of its other frames. The labels
come from a flipped, zoomed second view of the clip (self-training, no gradient); the features of the first
view, brought into line with the second, must predict them, among the anchors of all clips of the batch
(space-time loss). A contrast between the two views of the one frame keeps the labels from collapsing
(cross-view loss).

Order and symbols are those of the supplement's Fig. 5, whose lines are quoted; "decision n" is a place
where paper and published code (visinf/dense-ulearn-vos) differ, listed in docs/dul.md.
B clips, T frames, H x W pixels, h x w cells, K features, N x N anchors and M x M references per clip.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, pad
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torchvision.models import ResNet

from unspool.encoders.images import IMAGENET_STD, normalised
from unspool.encoders.resnet import DulHead, ResNetEncoder, resnet18_stride8
from unspool.errors import ShapeError, UsageError
from unspool.ops.contrast import contrast
from unspool.ops.distributed import ALONE, Ranks, share_batch_norms
from unspool.ops.geometry import cells_under, draw_grids, draw_zooms, zoom


@dataclass(frozen=True)
class Config:
    """What DUL learns and how; the defaults are those of YouTube-VOS, the presets hold what others change.

    How clips are sampled and cut to the first view is said by the presets' other tables (decision 10).
    """

    # The second view
    zoom: tuple[float, float] = (0.5, 1.0)  # range of s, the side of the box in sides of the view
    # The network
    width: int = 64  # channels of the first stage; the last has 8 times as many
    embedding: int = 128  # K
    # The losses
    anchors: int = 8  # N
    references: int = 4  # M
    temperature: float = 0.05  # tau, > 0
    cross_view: float = 0.1  # lambda, >= 0
    regularising_norm: Literal["train", "eval"] = "train"  # decision 2: batch norm of the branch for labels
    # The optimisation
    clips: int = 16  # B, per step, over all processes
    epochs: int = 501  # >= 1; an epoch draws one clip of every video (the published loop runs 0..500)
    optimiser: Literal["adam", "sgd"] = "adam"
    learning_rate: float = 1e-4  # of weights; biases learn twice as fast
    betas: tuple[float, float] = (0.5, 0.999)  # of Adam
    momentum: float = 0.9  # of SGD
    weight_decay: float = 5e-4  # L2, of weights only
    decay_every: int = 100  # epochs
    decay: float = 0.5  # gamma, in 0..1

    def __post_init__(self) -> None:
        low, high = self.zoom
        for name, valid in (
            ("zoom", 0 < low <= high <= 1),
            ("width", self.width >= 1),
            ("embedding", self.embedding >= 1),
            ("anchors", self.anchors >= 1),
            ("references", self.references >= 1),
            ("temperature", self.temperature > 0),
            ("cross_view", self.cross_view >= 0),
            ("regularising_norm", self.regularising_norm in ("train", "eval")),
            ("clips", self.clips >= 1),
            ("epochs", self.epochs >= 1),
            ("optimiser", self.optimiser in ("adam", "sgd")),
            ("learning_rate", self.learning_rate > 0),
            ("decay_every", self.decay_every >= 1),
            ("decay", 0 < self.decay <= 1),
        ):
            if not valid:
                raise UsageError(f"dul.{name} = {getattr(self, name)!r} is out of range")


# --- net --------------------------------------------------------------------------------------------------


class Learner(nn.Module):
    """ResNet-18 at stride 8, and the MLP that training alone looks through (supplement B).

    Keys of its state: `backbone.*` (torchvision's names) and `emb_q.*`, as in the published snapshots.
    """

    def __init__(self, config: Config, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.backbone, self.emb_q = backbone, head

    def forward(self, images: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n k h w"]:
        """Unit vectors along k of normalised images; h = ceil(H/8), w = ceil(W/8)."""
        net: Any = self.backbone
        images = images.to(net.conv1.weight.dtype)
        features = net.maxpool(net.relu(net.bn1(net.conv1(images))))
        features = net.layer4(net.layer3(net.layer2(net.layer1(features))))  # layer4: decision 9
        embedding = self.emb_q(features)
        return normalize(embedding.to(torch.promote_types(embedding.dtype, torch.float32)), dim=1)


def build(config: Config, encoder: nn.Module | None = None, ranks: Ranks = ALONE) -> Learner:
    """A learner with random weights from torch's global generator, or one that goes on from an encoder.

    `encoder`: a ResNetEncoder of stride 8, whose network (and head, if it has one) is taken over, not copied;
    `config.width` is then its own. Raises UsageError for other encoders.
    """
    if encoder is None:
        backbone = resnet18_stride8(width=config.width)
        learner = Learner(config, backbone, DulHead(8 * config.width, config.embedding))
    elif isinstance(encoder, ResNetEncoder) and encoder.stages[-1] == "layer4" and encoder.patch == 8:
        head = encoder.head or DulHead(encoder.dim, config.embedding)
        learner = Learner(config, encoder.network, head).requires_grad_()
    else:
        raise UsageError("dul trains a ResNet-18 of stride 8; leave --model away, or name one of these")
    if ranks.size > 1:
        share_batch_norms(learner, ranks)
    return learner.train()


def encoder_of(module: Learner) -> ResNetEncoder:
    """What is kept of a learner: a copy of its network and its head, on the CPU, in evaluation mode."""
    network, head = (deepcopy(part).cpu().eval() for part in (module.backbone, module.emb_q))
    return ResNetEncoder(cast("ResNet", network), name="dul", head=head)


# --- x_hat, T = random_transform(x) -----------------------------------------------------------------------


@dataclass(frozen=True)
class Views:
    """Two views of the same clips, and the way from the second to the first."""

    first: Float[Tensor, "b t 3 H W"]  # x, normalised
    second: Float[Tensor, "b t 3 H W"]  # x_hat
    theta: Float[Tensor, "b 2 3"]  # T, as a sampling matrix (ops/geometry.py); on the CPU


def random_transform(
    clip: UInt8[Tensor, "b t 3 H W"], config: Config, generator: torch.Generator, ranks: Ranks = ALONE
) -> Views:
    """One flip and zoom per clip, the same for its frames: there is nothing to pad (supplement B.2).

    Every process draws for the clips of all and keeps its own, so `generator` is the same on each.
    """
    height, width = clip.shape[-2:]
    zooms = draw_zooms(ranks.size * len(clip), (height, width), config.zoom, generator)
    zooms = zooms[ranks.share(len(clip))]
    second = zoom(clip.flatten(1, 2), zooms).view_as(clip)
    like = torch.empty((), device=clip.device)
    first, second = (
        normalised(view.flatten(0, 1), IMAGENET_STD, like).view_as(view) for view in (clip, second)
    )
    return Views(first, second, zooms.matrices()[1])


# --- k, k_hat = net(x), net(x_hat) ------------------------------------------------------------------------


@dataclass(frozen=True)
class Embeddings:
    """Unit vectors along k. k_hat is held in two parts, since only its frame 0 carries a gradient."""

    first: Float[Tensor, "b t k h w"]  # k
    second: Float[Tensor, "b k h w"]  # k_hat of frame 0
    regularising: Float[Tensor, "b t-1 k h w"]  # k_hat of frames 1..


def embed(module: nn.Module, views: Views, config: Config) -> Embeddings:
    """The main branch with gradient, then the regularising branch without (supplement B.1).

    Decision 2: the batch norms of the regularising branch use, and count, its own batch.
    """
    clips, frames = views.first.shape[:2]
    main = module(torch.cat([views.first, views.second[:, :1]], dim=1).flatten(0, 1))
    main = main.unflatten(0, (clips, frames + 1))
    with torch.no_grad(), _norms_frozen(module, config.regularising_norm == "eval"):
        regularising = module(views.second[:, 1:].flatten(0, 1)).unflatten(0, (clips, frames - 1))
    return Embeddings(main[:, :-1], main[:, -1], regularising)


@contextmanager
def _norms_frozen(module: nn.Module, frozen: bool) -> Iterator[None]:
    norms = [m for m in module.modules() if frozen and m.training and isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.eval()
    yield
    for norm in norms:
        norm.train()


# --- LST = space_time_loss(k, k_hat, T, N) ----------------------------------------------------------------


def space_time_loss(
    k: Embeddings,
    sources: Int64[Tensor, "b cells"],
    anchors: Int64[Tensor, "b anchors"],
    temperature: float,
    ranks: Ranks = ALONE,
) -> Float[Tensor, ""]:
    """Which anchor is this? The second view decides it for every cell, the first must say the same.

    `sources`: the cell of the first view that each cell of the second shows (`cells_under`), on the CPU.
    `anchors`: cells of frame 0 of the first view. The mean is over frames 1.. only (decision 1).
    """
    own = at_cells(k.first[:, 0], anchors)
    q = ranks.gather(own.flatten(0, 1))  # q = grid_sample(k, N): of all clips, those of others are negatives
    clips = torch.arange(ranks.size * len(own), device=q.device)[ranks.share(len(own)), None, None]
    u_hat = clips * own.shape[1] + pseudo_labels(k.regularising, own)

    # cross_entropy(T(v), u_hat). T looks cells up in the logits v, which enter the one softmax as they are
    # (decision 7); so it may look them up in k, before the logits are computed.
    queries, rows, order = _look_up(k.first[:, 1:], sources)
    return contrast(queries, q, rows, u_hat.flatten()[order.to(q.device)], temperature)


def _look_up(
    first: Float[Tensor, "b t k h w"], sources: Int64[Tensor, "b cells"]
) -> tuple[Float[Tensor, "n k"], Int64[Tensor, " targets"], Int64[Tensor, " targets"]]:
    """T(k) with every cell of the first view once, however many of the second show it.

    Returns queries, rows, order: the cell of the second view, of b*t*cells, that is number order[i] shows
    queries[rows[i]]. Rows ascend. Cells that look beyond the edge show zeros.
    """
    table = first.permute(0, 1, 3, 4, 2).flatten(0, 3)
    clips, frames = first.shape[:2]
    starts = sources.shape[1] * torch.arange(clips * frames).view(clips, frames, 1)
    shown = torch.where(sources[:, None] < 0, len(table), starts + sources[:, None])
    shown, order = shown.flatten().sort(stable=True)
    new = shown.diff(prepend=shown.new_full((1,), -1)) > 0
    cells, rows = shown[new], new.cumsum(0) - 1
    inside = cells[cells < len(table)].to(table.device)
    return pad(table.index_select(0, inside), (0, 0, 0, len(cells) - len(inside))), rows, order


@torch.no_grad()
def pseudo_labels(
    k_hat: Float[Tensor, "b t k h w"], anchors: Float[Tensor, "b anchors k"]
) -> Int64[Tensor, "b t cells"]:
    """u_hat = (v_hat * block_ones).argmax(1): of the anchors of its own clip, the one most like each cell.

    Softmax keeps the order of logits, so it is left out, and so are the logits that block_ones sets to 0.
    """
    return (anchors[:, None] @ k_hat.flatten(3)).argmax(2)


def at_cells(maps: Float[Tensor, "b k h w"], cells: Int64[Tensor, "b n"]) -> Float[Tensor, "b n k"]:
    """The features at flat positions y*w + x."""
    index = cells.to(maps.device)[:, None].expand(-1, maps.shape[1], -1)
    return maps.flatten(2).gather(2, index).transpose(1, 2)


# --- LCV = cross_view_loss(k, k_hat, T, T, M) -------------------------------------------------------------


def cross_view_loss(
    k: Embeddings,
    sources: Int64[Tensor, "b cells"],
    references: Int64[Tensor, "b references"],
    temperature: float,
    ranks: Ranks = ALONE,
) -> Float[Tensor, ""]:
    """A reference cell of frame 0 is recognised in the other view, among those of all clips.

    -log(diag(softmax(r r_hat^T / tau))).mean(): both views learn, but rows only are normalised.
    `references`: cells of the second view; `sources` as in `space_time_loss`.
    """
    under = sources.gather(1, references)
    r = at_cells(k.first[:, 0], under.clamp(min=0)) * (under >= 0)[..., None].to(k.first.device)
    r_hat = ranks.gather(at_cells(k.second, references).flatten(0, 1))
    diagonal = torch.arange(len(r_hat), device=r_hat.device)[ranks.share(under.numel())]
    return cross_entropy(r.flatten(0, 1) @ r_hat.T / temperature, diagonal)


# --- loss = LST + lambda LCV ------------------------------------------------------------------------------


def loss(
    module: nn.Module, clip: UInt8[Tensor, "b t 3 H W"], generator: torch.Generator, ranks: Ranks = ALONE
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """(L, what to log) of clips in the first view, before normalisation and without padding.

    `module`: what `build` made, wrapped or not. `generator`: on the CPU, in the same state on all processes;
    it draws the second view, the anchors, the references, in this order, for the clips of all of them in the
    order of ranks. Each returns the mean over its own clips; the mean of these over processes is that of the
    union (see ops/distributed.py for gradients). Features that collapse show in `cross_view`: it stays near
    log(B M^2). Raises ShapeError for clips of one frame, and crops with fewer cells than anchors.
    """
    config = next(part.config for part in module.modules() if isinstance(part, Learner))
    if clip.shape[1] < 2:
        raise ShapeError("a clip of one frame has nothing to be compared with; sample 2 frames or more")
    views = random_transform(clip, config, generator, ranks)
    k = embed(module, views, config)
    count, own = ranks.size * len(clip), ranks.share(len(clip))
    grid = (k.second.shape[-2], k.second.shape[-1])
    anchors = draw_grids(count, grid, config.anchors, generator)[own]
    references = draw_grids(count, grid, config.references, generator)[own]
    return objective(k, views.theta, anchors, references, config, ranks=ranks)


def objective(
    k: Embeddings,
    theta: Float[Tensor, "b 2 3"],
    anchors: Int64[Tensor, "b anchors"],
    references: Int64[Tensor, "b references"],
    config: Config,
    *,
    ranks: Ranks = ALONE,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """LST + lambda LCV once all is drawn; in float32 under autocast too, since 1/tau magnifies rounding."""
    sources = cells_under(theta, (k.second.shape[-2], k.second.shape[-1])).flatten(1)
    with torch.autocast(k.second.device.type, enabled=False):
        space_time = space_time_loss(k, sources, anchors, config.temperature, ranks)
        cross_view = cross_view_loss(k, sources, references, config.temperature, ranks)
    total = space_time + config.cross_view * cross_view
    return total, {
        "loss": total.detach(),
        "space_time": space_time.detach(),
        "cross_view": cross_view.detach(),
    }


# --- optimizer.step() -------------------------------------------------------------------------------------


def optimiser(module: nn.Module, config: Config, steps: int) -> tuple[Optimizer, LRScheduler]:
    """The optimiser, and its schedule over `steps`, to be stepped once after each.

    Weights decay; biases do not and learn twice as fast. (The published code has two more groups, for layers
    without pretraining, which are always empty.) The learning rate falls by `decay` every `decay_every`
    of the `epochs`, which divide `steps` evenly. Source: models/base.py, base_trainer.py: get_optim.
    """
    named = list(module.named_parameters())
    groups = [
        {
            "params": [p for name, p in named if not name.endswith(".bias")],
            "lr": config.learning_rate,
            "weight_decay": config.weight_decay,
        },
        {
            "params": [p for name, p in named if name.endswith(".bias")],
            "lr": 2 * config.learning_rate,
            "weight_decay": 0.0,
        },
    ]
    by_steps: Optimizer
    if config.optimiser == "adam":
        by_steps = Adam(groups, betas=config.betas)
    else:
        by_steps = SGD(groups, momentum=config.momentum)

    def share(step: int) -> float:
        return config.decay ** (step * config.epochs // steps // config.decay_every)

    return by_steps, LambdaLR(by_steps, share)

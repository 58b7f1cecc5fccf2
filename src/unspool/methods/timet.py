"""Time-tuning: Salehi, Gavves, Snoek, Asano. Time Does Tell: Self-Supervised Time-Tuning of Dense Image
Representations. ICCV 2023.

The last part of an image-pretrained encoder learns from videos. Tokens of a clip's first frame are assigned
to prototypes, each used equally over the batch (Sinkhorn-Knopp); the assignments are carried to the last
frame along the similarity of features (Feature-Forwarder), and must be predicted there (cross-entropy).

Sections and equation numbers are the paper's; "decision n" is a place where paper and published code
(SMSD75/Timetuning) differ, listed in docs/timet.md.
B clips, T frames, H x W pixels, N = h x w tokens, K prototypes, D features of the head.
"""

from __future__ import annotations

import math
import warnings
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.linalg import vector_norm
from torch.nn.functional import cross_entropy, normalize
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from unspool.encoders.images import IMAGENET_STD
from unspool.encoders.resnet import ResNetEncoder
from unspool.encoders.vit import ViTEncoder
from unspool.errors import ShapeError, UnspoolWarning, UsageError
from unspool.ops.distributed import ALONE, Ranks
from unspool.ops.forwarding import Forwarder, forward_maps
from unspool.ops.sinkhorn import sinkhorn


@dataclass(frozen=True)
class Config:
    """What TimeT learns and how; the defaults are the released code's but for its errors (docs/timet.md).

    How clips are sampled and changed is said by the presets' other tables (decisions 7, 9 to 11).
    """

    # The network
    trained: int = 2  # last blocks of a ViT that learn; of a ResNet it is the last stage
    head: tuple[int, ...] = (1024, 1024, 512, 256)  # widths of the layers of g, D the last (decision 6)
    prototypes: int = 200  # K
    std: tuple[float, float, float] = IMAGENET_STD  # of RGB; the code's red is 0.228 (decision 12)
    # 3.1 The Feature-Forwarder
    forwards: Literal["none", "identity", "logits", "assignment"] = "assignment"  # Table 2
    forward_temperature: float = 0.1  # tau of Eq. 3, > 0
    window: int = 6  # largest |dy|, |dx| within the neighbourhood, tokens; 0: anywhere
    top_k: int = 5  # sources kept per token, jointly over frames; 0: all, as in Eq. 4 (decision 3)
    context: int = 7  # frames before the target that are sources, besides the first
    masked: Literal["first", "last"] = "first"  # decision 4: Eq. 4 first, Listing 1 last
    recursive: bool = True  # decision 5: frames between pass on what was forwarded to them; else their own
    # 3.2 Clustering
    epsilon: float = 0.05  # 1 / lambda of Eq. 7, > 0
    iterations: int = 10  # of Sinkhorn-Knopp, >= 1
    queue: int = 0  # tokens of earlier steps that are assigned too, over all processes; 0: none
    # 3.3 The loss
    target: Literal["hard", "soft"] = "hard"  # decision 2: the most likely prototype, or Eq. 9
    temperature: float = 0.1  # of the predictions, > 0
    teacher: Literal["none", "ema", "inverted"] = "none"  # who assigns (decision 1; inverted: as released)
    teacher_momentum: float = 0.995  # of the first step, rises to 1 along a cosine
    # The optimisation
    clips: int = 128  # B, per step, over all processes
    epochs: int = 30  # an epoch draws one clip of every video
    learning_rate: float = 1e-4  # of prototypes and head; falls to 0 along a cosine
    encoder_rate: float = 1e-5  # of the encoder's last part, likewise
    weight_decay: tuple[float, float] = (0.04, 0.4)  # of matrices, first step to last along a cosine

    def __post_init__(self) -> None:
        for name, valid in (
            ("trained", self.trained >= 1),
            ("head", bool(self.head) and min(self.head) >= 1),
            ("prototypes", self.prototypes >= 2),
            ("forwards", self.forwards in ("none", "identity", "logits", "assignment")),
            ("forward_temperature", self.forward_temperature > 0),
            ("window", self.window >= 0),
            ("top_k", self.top_k >= 0),
            ("context", self.context >= 0),
            ("masked", self.masked in ("first", "last")),
            ("epsilon", self.epsilon > 0),
            ("iterations", self.iterations >= 1),
            ("queue", self.queue >= 0),
            ("target", self.target in ("hard", "soft")),
            ("temperature", self.temperature > 0),
            ("teacher", self.teacher in ("none", "ema", "inverted")),
            ("teacher_momentum", 0 <= self.teacher_momentum <= 1),
            ("clips", self.clips >= 1),
            ("epochs", self.epochs >= 1),
            ("learning_rate", self.learning_rate > 0),
            ("encoder_rate", self.encoder_rate > 0),
            ("weight_decay", min(self.weight_decay) >= 0),
        ):
            if not valid:
                raise UsageError(f"timet.{name} = {getattr(self, name)!r} is out of range")

    @property
    def forwarder(self) -> Forwarder:
        """The settings of 3.1."""
        return Forwarder(self.forward_temperature, self.window, self.top_k, self.context, self.masked)


# --- Psi, g: the encoder, and the head that training alone looks through ----------------------------------


FRAME_BYTES = {"cpu": 1 << 26, "gpu": 1 << 33}  # that frames without a graph take at a time


class Branch(nn.Module):
    """What learns: the last part of Psi, the head g and the prototypes."""

    def __init__(self, tail: list[nn.Module], head: nn.Module, prototypes: Tensor) -> None:
        super().__init__()
        self.tail, self.head = nn.ModuleList(tail), head
        self.prototypes = nn.Parameter(prototypes)

    def scores(self, tokens: Float[Tensor, "b t n c"]) -> Float[Tensor, "b t n k"]:
        """Cosines of the head's features with the prototypes, which have length 1 already."""
        return scores(self.head(tokens), self.prototypes)


@dataclass  # not frozen: Lightning Fabric refuses such outputs
class Seen:
    """What a batch looks like to the network; only `predicted` bears a gradient."""

    features: Float[Tensor, "b t n c"]  # Psi(I) of the frames that forwarding looks at
    assigned: Float[Tensor, "b given n k"]  # scores of the frames whose tokens are assigned to prototypes
    tokens: Float[Tensor, "b given n d"]  # the head's features of these frames, for the queue
    predicted: Float[Tensor, "b n k"]  # scores of the last frame


class Learner(nn.Module):
    """The encoder, frozen but for its last part, and the head; a teacher and a queue if wanted.

    One pass: the frozen part sees all frames that are needed, once, without a graph. The last part then sees
    the last frame with a graph and the others without; a teacher has a last part of its own and shares the
    rest. Dropout and batch norm statistics of the encoder rest.
    """

    queue: Tensor  # [size, D]

    def __init__(self, config: Config, encoder: Any, tail: list[nn.Module], ranks: Ranks) -> None:
        super().__init__()
        self.config, self.steps = config, 1  # steps of the run, told by `optimiser`
        self.encoder = encoder
        prototypes = normalize(torch.randn(config.prototypes, config.head[-1]), dim=1)
        self.student = Branch(tail, projection_head(encoder.dim, config.head), prototypes)
        self.teacher = None
        if config.teacher != "none":
            self.teacher = deepcopy(self.student).requires_grad_(False)
        self.register_buffer("queue", torch.zeros(config.queue // ranks.size, config.head[-1]))
        self.commonest = torch.zeros(())  # share of the last batch's tokens nearest to one prototype

    def train(self, mode: bool = True) -> Learner:
        """The encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        self.student.tail.eval()
        return self

    def forward(self, clips: UInt8[Tensor, "b t 3 H W"]) -> Seen:
        """Raises ShapeError for frames that the encoder's patches do not cut evenly."""
        if not self.config.recursive and self.config.forwards in ("logits", "assignment"):
            given = clips.shape[1] - 1
        else:
            given = 1
        if self.config.forwards == "none":
            clips = clips[:, -1:]
        elif self.config.forwards == "identity":
            clips = clips[:, [0, -1]]
        at_once = self._images_at_once(clips)
        with torch.no_grad():
            parts = [
                self.encoder.begin(part, self.config.trained)
                for part in torch.split(clips.flatten(0, 1), at_once)
            ]
            beside = parts[-1][1]
            begun = torch.cat([part for part, _ in parts])
            begun = begun.reshape(*clips.shape[:2], *begun.shape[1:])
        last = self._end(self.student, begun[:, -1:], beside)
        predicted = self.student.scores(last)[:, 0]
        with torch.no_grad():
            features = last.detach()
            if clips.shape[1] > 1:
                clips_at_once = max(1, at_once // (clips.shape[1] - 1))
                earlier = [
                    self._end(self.student, part, beside)
                    for part in torch.split(begun[:, :-1], clips_at_once)
                ]
                features = torch.cat([torch.cat(earlier), features], dim=1)
            branch, first = self.student, features[:, :given]
            if self.teacher is not None:
                branch, first = self.teacher, self._end(self.teacher, begun[:, :given], beside)
            tokens = branch.head(first)
        return Seen(features, scores(tokens, branch.prototypes), tokens, predicted)

    def _images_at_once(self, clips: Tensor) -> int:
        """As many as a CPU's caches bear; a GPU is filled."""
        budget = FRAME_BYTES["cpu" if clips.device.type == "cpu" else "gpu"]
        return max(1, budget // int(self.encoder.bytes_per_image(clips.shape[-2], clips.shape[-1])))

    def _end(self, branch: Branch, begun: Tensor, beside: Any) -> Float[Tensor, "b t n c"]:
        """Tokens of the frames begun `[b, t, ...]`."""
        maps = self.encoder.end(begun.flatten(0, 1), beside, list(branch.tail))
        tokens: Tensor = maps.flatten(2).transpose(1, 2).unflatten(0, begun.shape[:2])
        return tokens


def projection_head(channels: int, widths: tuple[int, ...]) -> nn.Sequential:
    """Linear layers with GELU between them. Source: models.py: FeatureExtractor."""
    layers: list[nn.Module] = []
    for entering, leaving in pairwise((channels, *widths)):
        layers += [nn.Linear(entering, leaving), nn.GELU()]
    return nn.Sequential(*layers[:-1])


def scores(tokens: Float[Tensor, "*n d"], prototypes: Float[Tensor, "k d"]) -> Float[Tensor, "*n k"]:
    """Cosines, in float32 under autocast too: epsilon and the temperatures magnify rounding."""
    with torch.autocast(tokens.device.type, enabled=False):
        exact = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
        cosines: Tensor = _Cosines.apply(exact.reshape(-1, exact.shape[-1]), prototypes.to(exact.dtype))
        return cosines.view(*tokens.shape[:-1], len(prototypes))


class _Cosines(torch.autograd.Function):
    """s = p x / |x|; ds/dx = (p - s x / |x|) / |x| in one pass over x, where autograd's takes ten."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, prototypes: Tensor) -> Tensor:
        scale = vector_norm(tokens, dim=1, keepdim=True).clamp_(min=1e-12).reciprocal_()
        cosines = (tokens @ prototypes.T).mul_(scale)
        ctx.save_for_backward(tokens, prototypes, scale, cosines)
        return cosines

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        tokens, prototypes, scale, cosines = ctx.saved_tensors
        gradient = gradient * scale
        along = (gradient * cosines).sum(dim=1, keepdim=True).mul_(scale)
        of_tokens = (gradient @ prototypes).addcmul_(tokens, along, value=-1)
        return of_tokens, gradient.T @ tokens


def build(config: Config, encoder: nn.Module | None = None, ranks: Ranks = ALONE) -> Learner:
    """A learner that tunes `encoder`, which is taken over, not copied; new weights from torch's generator.

    `encoder`: what `load_encoder` gives for a ViT or a ResNet. Raises UsageError for others, and for none:
    tuning starts from an encoder that has learnt from images.
    """
    if not isinstance(encoder, ViTEncoder | ResNetEncoder):
        raise UsageError(
            "timet tunes an encoder that has learnt already: --model NAME or FILE of a ViT or ResNet"
        )
    encoder.requires_grad_(False)
    encoder.std = config.std
    tail = encoder.tail(config.trained)
    for part in tail:
        part.requires_grad_()
    return Learner(config, encoder, tail, ranks).train()


def encoder_of(module: Learner) -> ViTEncoder | ResNetEncoder:
    """What is kept of a learner: a copy of its encoder, on the CPU, in evaluation mode; no head."""
    encoder: ViTEncoder | ResNetEncoder = deepcopy(module.encoder).cpu().eval()
    return encoder


# --- 3.1 to 3.3: L = - sum FF(SK(g(Psi(I_t)))) log g(Psi(I_T)) --------------------------------------------


def loss(
    module: nn.Module, clip: UInt8[Tensor, "b t 3 H W"], generator: torch.Generator, ranks: Ranks = ALONE
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """(L, what to log) of clips after augmentation, before normalisation.

    `module`: what `build` made, wrapped or not. `generator`: on the CPU; it draws what enters the queue.
    Assignments are balanced over the tokens of all processes; each returns the mean over its own clips,
    whose mean over processes is that of the union. Logged: `prototypes` that are anyone's target, `entropy`
    of the targets in nats (at most log K), and `commonest`, the share of tokens whose prediction is one
    prototype: 1 is collapse, see `after_step`. Raises ShapeError for clips of one frame where two are needed.
    """
    learner = next(part for part in module.modules() if isinstance(part, Learner))
    if clip.shape[1] < 2 and learner.config.forwards != "none":
        raise ShapeError(
            "a clip of one frame has nowhere to forward to; sample 2 frames or more, or set "
            "timet.forwards=none"
        )
    seen: Seen = module(clip)
    grid = _grid(learner, clip, seen)
    queued = None
    if len(learner.queue):
        enter_queue(learner.queue, seen.tokens[:, 0].flatten(0, 1), clip.shape[0], generator)
        if learner.queue[-1].any():
            queued = scores(learner.queue, (learner.teacher or learner.student).prototypes)
    total, logged = objective(seen, grid, learner.config, queued=queued, ranks=ranks)
    learner.commonest = logged["commonest"]
    return total, logged


def _grid(learner: Learner, clip: Tensor, seen: Seen) -> tuple[int, int]:
    rows = -(-clip.shape[-2] // learner.encoder.patch)
    return rows, seen.features.shape[2] // rows


def objective(
    seen: Seen,
    grid: tuple[int, int],
    config: Config,
    *,
    queued: Float[Tensor, "queue k"] | None = None,
    ranks: Ranks = ALONE,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """The loss once the network has seen the clips; in float32 under autocast too."""
    with torch.autocast(seen.predicted.device.type, enabled=False):
        maps = targets(seen, grid, config, queued, ranks)
        labels = maps.argmax(dim=2)
        logits = seen.predicted.flatten(0, 1) / config.temperature
        wanted = labels.flatten() if config.target == "hard" else maps.flatten(0, 1)
        total = cross_entropy(logits, wanted)  # Eq. 6, 9
        return total, {"loss": total.detach(), **statistics(labels, seen.predicted, ranks)}


@torch.no_grad()
def targets(
    seen: Seen,
    grid: tuple[int, int],
    config: Config,
    queued: Float[Tensor, "queue k"] | None = None,
    ranks: Ranks = ALONE,
) -> Float[Tensor, "b n k"]:
    """FF(Y_t) of Eq. 9, and its variants of Table 2 (which are not released; as their caption says).

    none: the last frame's own assignment; identity: the first frame's, unmoved; logits: the first frame's
    scores are forwarded and assigned afterwards; assignment: assigned, then forwarded.
    """
    if config.forwards == "logits":
        forwarded = forward_maps(seen.features, seen.assigned, grid, config.forwarder)[:, -1:]
        return assign(forwarded, config, queued, ranks)[:, -1]
    assigned = assign(seen.assigned, config, queued, ranks)
    if config.forwards == "assignment":
        return forward_maps(seen.features, assigned, grid, config.forwarder)[:, -1]
    return assigned[:, 0]


def assign(
    of_tokens: Float[Tensor, "b given n k"],
    config: Config,
    queued: Float[Tensor, "queue k"] | None = None,
    ranks: Ranks = ALONE,
) -> Float[Tensor, "b given n k"]:
    """Y of Eq. 7-8: soft assignments of all clips' tokens together, and of those queued, to prototypes."""
    rows = of_tokens.flatten(0, 2)
    count = len(rows)
    if queued is not None:
        rows = torch.cat([rows, queued])
    return sinkhorn(rows, config.epsilon, config.iterations, ranks)[:count].view_as(of_tokens)


@torch.no_grad()
def statistics(
    labels: Int64[Tensor, "b n"], predicted: Float[Tensor, "b n k"], ranks: Ranks
) -> dict[str, Tensor]:
    """What tells of collapse, over the batches of all processes."""
    kinds = predicted.shape[2]
    counts = [part.flatten().bincount(minlength=kinds).float() for part in (labels, predicted.argmax(2))]
    targeted, chosen = ranks.sum(torch.stack(counts)) / (ranks.size * labels.numel())
    return {
        "prototypes": (targeted > 0).sum().float(),
        "entropy": -torch.special.xlogy(targeted, targeted).sum(),
        "commonest": chosen.amax(),
    }


def enter_queue(
    queue: Float[Tensor, "size d"], tokens: Float[Tensor, "m d"], clips: int, generator: torch.Generator
) -> None:
    """Ten random tokens per clip enter at the front, in place, and the oldest leave.

    Source: time_tuning.py: TimeT.get_loss.
    """
    order = torch.randperm(len(tokens), generator=generator)[: min(10 * clips, len(queue))]
    queue.copy_(torch.cat([tokens[order.to(tokens.device)].to(queue), queue])[: len(queue)])


# --- The optimisation (appendix A; time_tuning.py, my_utils.py) -------------------------------------------


def cosine(start: float, end: float, step: int, steps: int) -> float:
    """From start towards end; past the last step it stays there (decision 13)."""
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * min(step, steps) / steps))


class Schedule(LambdaLR):
    """Learning rates to 0 and the weight decay of what decays upwards, each step, along cosines."""

    def __init__(self, optimiser: Optimizer, weight_decay: tuple[float, float], steps: int) -> None:
        self.weight_decay, self.steps = weight_decay, steps
        super().__init__(optimiser, lambda step: cosine(1.0, 0.0, step, steps))

    def step(self, epoch: int | None = None) -> None:
        """To the next step."""
        super().step(epoch)
        for group in self.optimizer.param_groups:
            if group["weight_decay"]:
                group["weight_decay"] = cosine(*self.weight_decay, self.last_epoch, self.steps)


def optimiser(module: nn.Module, config: Config, steps: int) -> tuple[Optimizer, LRScheduler]:
    """AdamW and its schedule over `steps`, to be stepped once after each.

    Two groups each of prototypes, head and encoder: matrices, which decay, and biases and norms, which do
    not. The learner is told of `steps`, by which its teacher's momentum rises.
    """
    learner = next(part for part in module.modules() if isinstance(part, Learner))
    learner.steps = steps
    groups = []
    for part, rate in (
        ([learner.student.prototypes], config.learning_rate),
        (learner.student.head.parameters(), config.learning_rate),
        (learner.student.tail.parameters(), config.encoder_rate),
    ):
        learning = list(part)
        matrices = [p for p in learning if p.ndim > 1]
        others = [p for p in learning if p.ndim <= 1]
        groups += [
            {"params": matrices, "lr": rate, "weight_decay": config.weight_decay[0]},
            {"params": others, "lr": rate, "weight_decay": 0.0},
        ]
    by_steps = AdamW(groups)
    return by_steps, Schedule(by_steps, config.weight_decay, steps)


LOOK_EVERY = 20  # steps; looking makes a GPU wait
COLLAPSED = 0.99  # share of tokens with one prediction


@torch.no_grad()
def after_step(module: Learner, step: int) -> None:
    """Prototypes back to length 1, the teacher after the student; warns of collapse. `step` from 0.

    Raises no error: a run may recover. Source: time_tuning.py: normalize_prototypes,
    update_momentum_teacher.
    """
    student, teacher, config = module.student, module.teacher, module.config
    student.prototypes.copy_(normalize(student.prototypes, dim=1))
    if teacher is not None:
        momentum = cosine(config.teacher_momentum, 1.0, step, module.steps)
        follow(teacher, student, momentum if config.teacher == "ema" else 1 - momentum)
    if step % LOOK_EVERY == 0 and (share := float(module.commonest)) >= COLLAPSED:
        warnings.warn(
            f"step {step}: the run has collapsed, {share:.0%} of all tokens are predicted to be of one "
            "prototype; start again with a lower learning rate, more clips per step, or "
            "timet.epsilon and timet.iterations nearer to their defaults",
            UnspoolWarning,
            stacklevel=2,
        )


@torch.no_grad()
def follow(teacher: Branch, student: Branch, momentum: float) -> None:
    """teacher = momentum * teacher + (1 - momentum) * student, its prototypes brought back to length 1."""
    for theirs, ours in zip(teacher.parameters(), student.parameters(), strict=True):
        theirs.lerp_(ours, 1 - momentum)
    teacher.prototypes.copy_(normalize(teacher.prototypes, dim=1))

"""Betrayed by Attention: Ding, Qian, Xu, Lin, Xiong. ECCV 2024.

One Transformer block over the tokens of all frames of a clip, on top of a frozen encoder, attends to the
object that a token belongs to, wherever it is. Its attention maps are what is clustered into objects
(`ops/clustering.py`) and what teaches it: tokens that are attended to most are positives, least negatives.

Two forms of the losses: `code`, as released (few queries, two hinges), and `paper`, Eq. 4-9 as printed.
"Decision n" is a place where paper and published code (shvdiwnkozbw/SSL-UVOS) differ, listed in docs/ba.md.
B clips, T frames, h x w tokens each, N = T*h*w tokens, frame by frame, then row by row; C channels;
P sampled positions; A attention, its heads averaged after the softmax.
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from unspool.encoders import Encoder
from unspool.encoders.correlator import ROWS, Attended, Correlator, Noise, again
from unspool.errors import ShapeError, UsageError
from unspool.ops.distributed import ALONE, Ranks

EPS = 1e-10  # added to, or the least of, what a logarithm is taken of


@dataclass(frozen=True)
class Config:
    """What BA learns and how; the defaults are the released losses with the paper's optimisation.

    How clips are sampled and changed is said by the presets' other tables.
    """

    # 3.2 The spatio-temporal block
    features: str = "auto"  # of the encoder; auto: `keys` of a ViT's last block (decision 1), else `tokens`
    heads: int = 8
    layers: int = 1
    likeness: float = 0.0  # > 0: queries and keys start as this multiple of the tokens (ours); 0: random
    temporal_embedding: int = 0  # frames of the learnt pe; 0: none (decision 3)
    class_token: bool = False  # whether the class token joins each frame in training (decision 2)
    dropout: tuple[float, float] = (0.4, 0.1)  # of attention; of projection and MLP
    noisy_attention: bool = False  # whether the losses see A after its dropout (decision 5)
    # 3.3 Training
    form: Literal["code", "paper"] = "code"
    points: int = 8  # P of `code`, the same of every frame and clip; `paper` takes all (decision 6)
    semantic: bool = True  # L_s (Table 3)
    motion: bool = True  # L_m (Table 3)
    entropy: bool = True  # weights w; else all queries weigh the same (Table 3)
    detach_weights: bool = True  # w passes no gradient; false: it does; of `paper` with `entropy` only
    semantic_sets: tuple[int, int] = (30, 200)  # positives, negatives per frame, of `code` (decision 7)
    sets: tuple[int, int] = (10, 50)  # K_p, K_n: of L_m, and of L_s in `paper`
    hinges: tuple[float, float] = (0.9, 0.1)  # cosine of positives at least, of negatives at most, of `code`
    semantic_margin: float = 0.8  # lambda_1, of `paper`
    motion_margin: float = 1.0  # lambda_2
    reduction: Literal["mean", "sum"] = "mean"  # over pairs in `paper`; printed is the sum
    motion_map: Literal["attention", "global", "local"] = "attention"  # Table 6
    window: tuple[int, int, int] = (1, 3, 3)  # of `local`, largest |dt|, |dy|, |dx| (ours; not stated)
    # The optimisation
    clips: int = 16  # B, per step, over all processes
    epochs: int = 166  # an epoch draws one clip of every video; 30,000 steps on YouTube-VIS
    learning_rate: float = 1e-4  # falls to `final_rate` along a cosine
    final_rate: float = 1e-6
    weight_decay: float = 0.1  # of matrices only

    def __post_init__(self) -> None:
        for name, valid in (
            ("heads", self.heads >= 1),
            ("layers", self.layers >= 1),
            ("likeness", self.likeness >= 0),
            ("temporal_embedding", self.temporal_embedding >= 0),
            ("dropout", all(0 <= p < 1 for p in self.dropout)),
            ("form", self.form in ("code", "paper")),
            ("points", self.points >= 1),
            ("semantic", self.semantic or self.motion),
            ("semantic_sets", min(self.semantic_sets) >= 1),
            ("sets", min(self.sets) >= 1),
            ("reduction", self.reduction in ("mean", "sum")),
            ("motion_map", self.motion_map in ("attention", "global", "local")),
            ("window", min(self.window) >= 0),
            ("clips", self.clips >= 1),
            ("epochs", self.epochs >= 1),
            ("learning_rate", self.learning_rate > 0),
            ("final_rate", 0 <= self.final_rate <= self.learning_rate),
            ("weight_decay", self.weight_decay >= 0),
        ):
            if not valid:
                raise UsageError(f"ba.{name} = {getattr(self, name)!r} is out of range")
        if not self.detach_weights and not (self.form == "paper" and self.entropy):
            raise UsageError(
                f"ba.detach_weights = False changes nothing with ba.form = {self.form!r} and ba.entropy = "
                f"{self.entropy}; take form = 'paper' and entropy = true, or leave it out"
            )


# --- 3.2 The spatio-temporal block (encoders/correlator.py) -----------------------------------------------


class Learner(Correlator):
    """The block in training: clips in, losses out."""

    def __init__(self, config: Config, encoder: Encoder) -> None:
        super().__init__(
            encoder,
            heads=config.heads,
            layers=config.layers,
            frames=config.temporal_embedding,
            features=config.features,
        )
        self.config = config

    def forward(
        self, clip: UInt8[Tensor, "b t 3 H W"], draws: Draws
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The loss of clips, and its parts; all that has a gradient is computed here."""
        config = self.config
        encoded = self.encoded(clip.flatten(0, 1), config.class_token)
        dtype = self.blocks[0].norm1.weight.dtype
        maps, *classes = (each.view(*clip.shape[:2], *each.shape[1:]).to(dtype) for each in encoded)
        parts = []
        with torch.autocast(clip.device.type, enabled=False):
            for number, of_clip in enumerate(maps):
                leading = classes[0][number] if classes else None
                dropping = self.training and any(config.dropout)
                noise = Noise(draws.seed + number, *config.dropout) if dropping else None
                attended = self.attend(self.embedded(of_clip), leading, noise, noisy=config.noisy_attention)
                parts.append(
                    objective(attended, (of_clip.shape[-2], of_clip.shape[-1]), draws.positions, config)
                )
        logged = {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
        return logged["loss"], {name: value.detach() for name, value in logged.items()}


def build(config: Config, encoder: Encoder | None = None, ranks: Ranks = ALONE) -> Learner:
    """A correlator with random weights from torch's global generator, on a frozen encoder.

    Raises UsageError without an encoder, and for one whose channels the heads do not divide.
    """
    if encoder is None:
        raise UsageError("ba trains a block on a frozen encoder; name one with --model, e.g. dino-vits8")
    module: Any = encoder
    module.requires_grad_(False)
    learner = Learner(config, encoder)
    if config.likeness:
        start_alike(learner, config.likeness)
    if not config.semantic and config.motion_map == "attention":  # F_v teaches nothing then
        last = learner.blocks[-1]
        for part in (last.attn["proj"], last.norm2, last.mlp):
            part.requires_grad_(False)  # processes would wait for its gradients
    learner.train()
    return learner


@torch.no_grad()
def start_alike(learner: Learner, likeness: float) -> None:
    """Products of queries and keys of every block are `likeness` times those of its tokens.

    Positives are what attention already picks (Eq. 4): a random start may settle on places in the frame, this
    one begins with things that look alike. Ours.
    """
    for block in learner.blocks:
        queries, keys, _ = block.attn["qkv"].weight.chunk(3)
        for each in (queries, keys):
            each.copy_(math.sqrt(likeness) * torch.eye(len(each)))


def encoder_of(module: Learner) -> Correlator:
    """What is kept of a learner: a copy, on the CPU, of the block with the encoder, which has not changed."""
    return deepcopy(module).cpu().eval()


# --- 3.3 Training: positive and negative sets -------------------------------------------------------------


def ranked(
    rows: Float[Tensor, "q ... n"], positives: int, negatives: int
) -> tuple[Int64[Tensor, "q ... p"], Int64[Tensor, "q ... m"]]:
    """I_p, I_n: positions in a frame that are attended to most, and least (Eq. 4), by falling attention.

    Raises ShapeError where a frame has fewer positions.
    """
    if max(positives, negatives) > rows.shape[-1]:
        raise ShapeError(
            f"a frame of {rows.shape[-1]} tokens has no {max(positives, negatives)} to choose; "
            "give larger frames, or set smaller ba.sets and ba.semantic_sets"
        )
    most = rows.topk(positives, dim=-1)[1]
    return most, rows.topk(negatives, dim=-1, largest=False)[1].flip(-1)


@dataclass(frozen=True)
class Sets:
    """Tokens t*h*w + position that are to be like, and unlike, each query, by falling attention."""

    queries: Int64[Tensor, " q"]
    positive: Int64[Tensor, "q p"]
    negative: Int64[Tensor, "q m"]

    def pooled(self) -> tuple[Int64[Tensor, " r"], Sets]:
        """Every token that occurs, once; and the sets as places among these."""
        pool = torch.cat(self.near_and_far())
        return pool, self.among(pool)

    def near_and_far(self) -> tuple[Int64[Tensor, " r"], Int64[Tensor, " s"]]:
        """Queries and positives, each once; and tokens that are negatives only: most pass their hinge."""
        near = torch.unique(torch.cat([self.queries, self.positive.flatten()]))
        far = torch.unique(self.negative)
        return near, far[~torch.isin(far, near)]

    def among(self, pool: Int64[Tensor, " r"]) -> Sets:
        """The sets as places in a pool that holds each of their tokens once."""
        order = pool.argsort()
        queries, positive, negative = (
            order[torch.searchsorted(pool[order], each)]
            for each in (self.queries, self.positive, self.negative)
        )
        return Sets(queries, positive, negative)


def semantic_sets(rows: Float[Tensor, "q t n"], queries: Int64[Tensor, " q"], config: Config) -> Sets:
    """Sets over all frames."""
    starts = rows.shape[2] * torch.arange(rows.shape[1], device=rows.device)[:, None]
    positive, negative = (each + starts for each in ranked(rows, *config.semantic_sets))
    return Sets(queries, positive.flatten(1), negative.flatten(1))


def motion_sets(rows: Float[Tensor, "q t n"], queries: Int64[Tensor, " q"], config: Config) -> Sets:
    """Sets within the query's own frame (decision 8)."""
    own = queries // rows.shape[2]
    within = rows[torch.arange(len(rows), device=rows.device), own]
    starts = (own * rows.shape[2])[:, None]
    return Sets(queries, *(each + starts for each in ranked(within, *config.sets)))


# --- The losses as released -------------------------------------------------------------------------------


def semantic_loss(
    features: Float[Tensor, "r c"], sets: Sets, hinges: tuple[float, float]
) -> Float[Tensor, ""]:
    """Cosines of positives above one hinge, of negatives below the other (decision 7). No weights (9)."""
    unit = normalize(features, dim=1)
    cosine = unit[sets.queries] @ unit.T
    low = (hinges[0] - cosine.gather(1, sets.positive)).relu().mean()
    return low + (cosine.gather(1, sets.negative) - hinges[1]).relu().mean()


def motion_loss(
    attention: Float[Tensor, "r n"], sets: Sets, points: int, config: Config
) -> Float[Tensor, ""]:
    """Maps of positives must explain the query's map better than those of negatives do (decision 8).

    s_i = sum_c q_c log(v_ic + 1e-10) with v rows brought to 1, and the query's q without gradient. `points`
    queries of a frame follow each other; their weights sum to 1.
    """
    log = (normalize(attention, p=1, dim=1) + EPS).log()
    query = normalize(attention[sets.queries].detach(), p=1, dim=1)
    scores = query @ log.T
    positive, negative = scores.gather(1, sets.positive), scores.gather(1, sets.negative)
    pairs = (negative[:, None] - positive[:, :, None] + config.motion_margin).relu()
    weights = query_weights(query, points) if config.entropy else torch.full_like(query[:, 0], 1 / points)
    frames = len(query) // points
    return (weights[:, None, None] * pairs).sum() / (frames * pairs[0].numel())


def query_weights(query: Float[Tensor, "q n"], points: int) -> Float[Tensor, " q"]:
    """omega = softmax(-entropy) over the queries of each frame (Eq. 7, 8; decision 9)."""
    return (query * (query + EPS).log()).sum(1).view(-1, points).softmax(1).flatten()


def released_losses(
    attended: Attended, grid: tuple[int, int], positions: Int64[Tensor, " p"], config: Config
) -> dict[str, Tensor]:
    """The losses of P positions in every frame; only tokens that are compared are computed."""
    count = grid[0] * grid[1]
    queries = (count * torch.arange(attended.frames)[:, None] + positions).flatten().to(attended.q.device)
    with torch.no_grad():
        rows = attended.attention(queries).view(len(queries), attended.frames, count)
    parts = {}
    if config.semantic:
        sets = semantic_sets(rows, queries, config)
        near, far = sets.near_and_far()
        features = torch.cat([attended.features(near), attended.features(far, few=True)])
        parts["semantic"] = semantic_loss(features, sets.among(torch.cat([near, far])), config.hinges)
    if config.motion:
        pool, sets = motion_sets(rows, queries, config).pooled()
        parts["motion"] = motion_loss(motion_maps(attended, pool, grid, config), sets, len(positions), config)
    return parts


# --- The losses as printed --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Printed:
    """Eq. 5, 6 and 8 for every query; sums over its pairs."""

    semantic: Float[Tensor, " n"]  # L_s
    motion: Float[Tensor, " n"]  # L_m
    weights: Float[Tensor, " n"]  # w, with gradient if so configured

    def total(self, config: Config, pairs: int) -> dict[str, Tensor]:
        """sum_i w_i (L_s + L_m) (Eq. 9); `pairs` of a query are averaged over by `mean`."""
        weights = self.weights if config.entropy else torch.full_like(self.weights, 1 / len(self.weights))
        if config.reduction == "mean":
            weights = weights / pairs
        parts = {"semantic": weights @ self.semantic, "motion": weights @ self.motion}
        return {name: part for name, part in parts.items() if getattr(config, name)}


def printed_losses(
    attention: Float[Tensor, "n n"],
    features: Float[Tensor, "n c"],
    frames: int,
    config: Config,
    motion: Float[Tensor, "n n"] | None = None,
) -> Printed:
    """L_s, L_m and w of all tokens, some queries at a time. `motion`: maps that L_m compares, else A.

    Symmetric KL between all pairs is two products: H_i + H_j - A log A^T - log A A^T.
    """
    maps = attention if motion is None else motion
    unit, log = normalize(features, dim=1), maps.clamp(min=EPS).log()
    own = (maps * log).sum(1)
    count = attention.shape[1] // frames
    sets = ranked(attention.detach().view(-1, frames, count), *config.sets)
    starts = count * torch.arange(frames, device=attention.device)[:, None]
    positive, negative = ((each + starts).flatten(1) for each in sets)

    def of_queries(part: slice, unit: Tensor, maps: Tensor, log: Tensor, own: Tensor) -> Tensor:
        cosine = 1 - unit[part] @ unit.T
        divergence = own[part, None] + own - maps[part] @ log.T - log[part] @ maps.T
        margins = ((cosine, config.semantic_margin), (divergence, config.motion_margin))
        return torch.stack([_pairs(one, positive[part], negative[part], margin) for one, margin in margins])

    parts = [
        again(of_queries, slice(start, start + ROWS), unit, maps, log, own)
        for start in range(0, len(maps), ROWS)
    ]
    semantic, dynamic = torch.cat(parts, dim=1)
    entropy = -(attention * attention.clamp(min=EPS).log()).sum(1)
    weights = (-entropy).softmax(0)
    return Printed(semantic, dynamic, weights.detach() if config.detach_weights else weights)


def _pairs(
    distances: Float[Tensor, "q n"],
    positive: Int64[Tensor, "q p"],
    negative: Int64[Tensor, "q m"],
    margin: float,
) -> Float[Tensor, " q"]:
    """sum_j sum_k max(d_j - d_k + margin, 0) (Eq. 5, 6)."""
    near, far = distances.gather(1, positive), distances.gather(1, negative)
    return (near[:, :, None] - far[:, None] + margin).relu().sum((1, 2))


# --- Table 6: what stands for motion ----------------------------------------------------------------------


def motion_maps(
    attended: Attended, tokens: Int64[Tensor, " r"], grid: tuple[int, int], config: Config
) -> Float[Tensor, "r n"]:
    """Maps of some tokens over all: attention, or the softmax of the products of features F_v.

    `local` sees a window only. Scaled by 1/sqrt C (ours; the paper says nothing).
    """
    if config.motion_map == "attention":
        return attended.attention(tokens)
    features = attended.features(torch.arange(len(attended.patches), device=tokens.device))
    products = features[tokens] @ features.T / math.sqrt(features.shape[1])
    if config.motion_map == "local":
        products = products.masked_fill(~_inside(tokens, attended.frames, grid, config.window), -math.inf)
    return products.softmax(1)


def _inside(
    tokens: Int64[Tensor, " r"], frames: int, grid: tuple[int, int], window: tuple[int, int, int]
) -> Bool[Tensor, "r n"]:
    sides = (frames, *grid)
    every = torch.cartesian_prod(*(torch.arange(side, device=tokens.device) for side in sides)).view(-1, 3)
    far = (every[tokens][:, None] - every).abs()
    return (far <= torch.tensor(window, device=tokens.device)).all(-1)


# --- L = L_s + L_m ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Draws:
    """What is drawn for a step."""

    positions: Int64[Tensor, " p"]  # of a frame; the same in all of them
    seed: int  # of dropout in this process's first clip


def objective(
    attended: Attended, grid: tuple[int, int], positions: Int64[Tensor, " p"], config: Config
) -> dict[str, Tensor]:
    """`loss` of one clip, and its parts `semantic` and `motion`."""
    if config.form == "code":
        parts = released_losses(attended, grid, positions, config)
    else:
        every = torch.arange(len(attended.patches), device=attended.q.device)
        attention = attended.attention(every)
        motion = None if config.motion_map == "attention" else motion_maps(attended, every, grid, config)
        printed = printed_losses(attention, attended.features(every), attended.frames, config, motion)
        pairs = attended.frames**2 * math.prod(config.sets)
        parts = printed.total(config, pairs)
    return {"loss": torch.stack(list(parts.values())).sum(), **parts}


def loss(
    module: nn.Module, clip: UInt8[Tensor, "b t 3 H W"], generator: torch.Generator, ranks: Ranks = ALONE
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """(L, what to log) of clips as they are cut, before normalisation.

    `module`: what `build` made, wrapped or not. `generator`: on the CPU, in the same state on all processes;
    it draws positions, the same for all clips, and the seed of dropout. Each process returns the mean over
    its own clips. Attention that collapses shows in `motion`: it stays near `motion_margin`.
    Raises ShapeError for frames of fewer tokens than the sets hold.
    """
    learner = next(part for part in module.modules() if isinstance(part, Learner))
    config = learner.config
    height, width = (side // learner.encoder.patch for side in clip.shape[-2:])
    positions = torch.randperm(height * width, generator=generator)[: config.points]
    seed = int(torch.randint(1 << 40, (), generator=generator)) + ranks.share(len(clip)).start
    total, logged = module(clip, Draws(positions, seed))
    return total, logged


# --- the optimisation -------------------------------------------------------------------------------------


def cosine_rate(step: int, steps: int, base: float, final: float) -> float:
    """The learning rate of a step: from `base` down to `final`. Source: cosine_scheduler, no warm-up."""
    return final + (base - final) * (1 + math.cos(math.pi * step / steps)) / 2


def optimiser(module: nn.Module, config: Config, steps: int) -> tuple[Optimizer, LRScheduler]:
    """AdamW, and its cosine over `steps`, to be stepped once after each; biases and norms do not decay."""
    learning = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learning if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0},
    ]
    by_steps = AdamW(groups, lr=config.learning_rate)

    def share(step: int) -> float:
        return cosine_rate(step, steps, config.learning_rate, config.final_rate) / config.learning_rate

    return by_steps, LambdaLR(by_steps, share)

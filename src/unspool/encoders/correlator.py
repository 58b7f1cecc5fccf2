"""The spatio-temporal block of BA on a frozen encoder: attention over the tokens of all frames of a clip.

Network and inference of "Betrayed by Attention" (Ding et al., ECCV 2024; shvdiwnkozbw/SSL-UVOS:
src/model/attention.py, model_cluster.py); losses are in `methods/ba.py`, clustering in `ops/clustering.py`.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import gelu, interpolate, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from unspool.encoders import SAVED, SHIPPED, Encoder, encode_batches, load_encoder, save_encoder, shipped
from unspool.encoders.checkpoints import load_strictly, tensors_named
from unspool.errors import UsageError, WeightsError

Precision = Literal["fp32", "bf16", "fp16"]
ROWS = 128  # of attention, at a time
KEPT = 80 << 20  # bytes of the heads' attention that a clip keeps for a gradient; with dropout twice as many
OWN = ("temporal_transformer.", "temporal_embedding", "heads", "features")  # tensors of a correlator


@dataclass(frozen=True)
class Noise:
    """Dropout that can be drawn again: the same name gives the same mask."""

    seed: int
    attention: float  # probability to drop
    rest: float

    def __call__(self, name: str, values: Tensor, some: Some | None = None) -> Tensor:
        """`values`, some dropped, the others scaled up; names of attention begin so.

        `some`: the rows that `values` holds, of those that the mask is drawn for. Random bits are drawn 64 at
        a time, for four values: drawing is most of what dropout costs.
        """
        drop = self.attention if name.startswith("attention") else self.rest
        if not drop:
            return values
        shape = values.shape if some is None else (*values.shape[:-2], some.of, values.shape[-1])
        generator = torch.Generator(values.device).manual_seed(self.seed ^ zlib.crc32(name.encode()))
        words = torch.empty(-(-math.prod(shape) // 4), dtype=torch.int64, device=values.device)
        bits = words.random_(-(2**63), None, generator=generator).view(torch.int16)
        kept = bits[: math.prod(shape)].view(shape) >= round(drop * 2**16) - 2**15
        if some is not None:
            kept = kept[..., some.places, :]
        return values * kept.to(values.dtype).div_(1 - drop)


@dataclass(frozen=True)
class Some:
    """Some of the rows that are computed together. Each comes out the same without the others."""

    places: Int64[Tensor, " r"]  # rising
    of: int  # rows


Heads = Float[Tensor, "heads n d"]


class Block(nn.Module):
    """A pre-norm Transformer block whose attention is handed out. Source: src/model/attention.py: Block."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(dim, 3 * dim, bias=False), "proj": nn.Linear(dim, dim)})
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, 4 * dim), "fc2": nn.Linear(4 * dim, dim)})

    @property
    def scale(self) -> float:
        """Of the products before the softmax: per head (decision 4)."""
        return float((self.norm1.normalized_shape[0] // self.heads) ** -0.5)

    def projections(self, x: Float[Tensor, "n c"]) -> tuple[Heads, Heads, Heads]:
        """Queries, keys and values of all heads."""
        qkv = self.attn["qkv"](self.norm1(x)).view(len(x), 3, self.heads, -1).permute(1, 2, 0, 3)
        return qkv[0], qkv[1], qkv[2]

    def probabilities(
        self,
        q: Float[Tensor, "heads r d"],
        k: Heads,
        noise: Noise | None,
        name: str,
        some: Some | None = None,
    ) -> Float[Tensor, "heads r n"]:
        """softmax(q k^T / sqrt d) of some queries (Eq. 1), after dropout."""
        weights = torch.softmax((q * self.scale) @ k.transpose(1, 2), dim=-1)
        return weights if noise is None else noise(f"attention {name}", weights, some)

    def attention(
        self, q: Heads, k: Heads, rows: Int64[Tensor, " r"], noise: Noise | None
    ) -> Float[Tensor, "r n"]:
        """A of some queries, some at a time; the heads' own are kept for a gradient, or computed again."""

        def mean(some: Tensor, k: Tensor, name: str) -> Tensor:
            return self.probabilities(some, k, noise, name).sum(0) / self.heads

        parts = torch.split(q[:, rows], ROWS, dim=1)
        kept = KEPT // (ROWS * k.shape[:2].numel() * k.element_size())  # parts
        found = []
        for number, part in enumerate(parts):
            call = mean if number < kept else partial(again, mean)
            found.append(call(part, k, str(number)))
        return torch.cat(found)

    def features(
        self,
        x: Float[Tensor, "n c"],
        projections: tuple[Heads, Heads, Heads],
        rows: Int64[Tensor, " r"],
        noise: Noise | None,
        *,
        few: bool = False,
    ) -> Float[Tensor, "r c"]:
        """F_v: the block's output for some tokens of x. `few`: of these few will have a gradient."""
        q, k, v = projections
        if noise is None and not few:
            every = Some(torch.arange(len(rows), device=rows.device), len(rows))
            return self._output(None, "", every, x[rows], q[:, rows], k, v)
        after = (self.attn["proj"], self.norm2, self.mlp)
        learning = [each for module in after for each in module.parameters()]
        parts = []
        for number, part in enumerate(torch.split(rows, ROWS if noise else max(len(rows), 1))):
            output = partial(self._output, noise, f"few {number}" if few else str(number))
            parts.append(where_wanted(output, learning, len(part), x[part], q[:, part], k, v))
        return torch.cat(parts)

    def _output(
        self, noise: Noise | None, name: str, some: Some, x: Tensor, q: Tensor, k: Tensor, v: Tensor
    ) -> Tensor:
        drop = noise or _kept
        x, q = x[some.places], q[:, some.places]
        if noise is None:  # A V (Eq. 1)
            mixed = scaled_dot_product_attention(q[None], k[None], v[None], scale=self.scale)[0]
        else:
            mixed = self.probabilities(q, k, noise, name, some) @ v
        x = x + drop(f"proj {name}", self.attn["proj"](mixed.transpose(0, 1).flatten(1)), some)
        hidden = drop(f"mlp1 {name}", gelu(self.mlp["fc1"](self.norm2(x))), some)
        return x + drop(f"mlp2 {name}", self.mlp["fc2"](hidden), some)


def _kept(name: str, values: Tensor, some: Some) -> Tensor:
    return values


def again(function: Any, *inputs: Any) -> Tensor:
    """function(*inputs), and once more when its gradient is asked for: nothing between is kept."""
    if not torch.is_grad_enabled():
        return function(*inputs)  # type: ignore[no-any-return]
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)  # type: ignore[no-any-return]


def where_wanted(function: Any, parameters: Sequence[Tensor], rows: int, *inputs: Tensor) -> Tensor:
    """function(Some, *inputs) of all rows, and once more, for its gradient, of those rows that have one.

    A hinge gives most rows that it compares none. `parameters`: what else the function learns with.
    """
    found: Tensor = _WhereWanted.apply(function, rows, len(inputs), *inputs, *parameters)
    return found


class _WhereWanted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Any, rows: int, count: int, *given: Tensor) -> Tensor:
        ctx.function, ctx.rows, ctx.parameters = function, rows, given[count:]
        ctx.save_for_backward(*given[:count])
        every = torch.arange(rows, device=given[0].device)
        return function(Some(every, rows), *given[:count])  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (wanted,) = gradient.any(1).nonzero(as_tuple=True)
        needed = ctx.needs_input_grad[3:]
        inputs = [one.detach() for one in ctx.saved_tensors]
        given = [*inputs, *ctx.parameters]
        for one, learns in zip(inputs, needed, strict=False):
            one.requires_grad_(learns)
        with torch.enable_grad(), torch.autocast(gradient.device.type, enabled=False):
            found = ctx.function(Some(wanted, ctx.rows), *inputs)
        learning = [one for one, learns in zip(given, needed, strict=True) if learns]
        gradients = iter(torch.autograd.grad(found, learning, gradient[wanted]))
        return None, None, None, *(next(gradients) if learns else None for learns in needed)


@dataclass(frozen=True)
class Attended:
    """A clip before the last block, and that block's projections; rows of A and F_v are made when wanted."""

    block: Block
    frames: int  # T
    patches: Int64[Tensor, " n"]  # where the N tokens stand in the sequence, class tokens left out
    sequence: Float[Tensor, "s c"]
    q: Float[Tensor, "heads s d"]
    k: Float[Tensor, "heads s d"]
    v: Float[Tensor, "heads s d"]
    noise: Noise | None
    noisy: bool

    def attention(self, tokens: Int64[Tensor, " r"]) -> Float[Tensor, "r n"]:
        """A of some tokens; columns of class tokens are left out, rows not brought to 1 again."""
        noise = self.noise if self.noisy else None
        rows = self.block.attention(self.q, self.k, self.patches[tokens], noise)
        return rows if len(self.patches) == rows.shape[1] else rows[:, self.patches]

    def features(self, tokens: Int64[Tensor, " r"], *, few: bool = False) -> Float[Tensor, "r c"]:
        """F_v of some tokens. `few`: of these few will have a gradient."""
        projections = (self.q, self.k, self.v)
        return self.block.features(self.sequence, projections, self.patches[tokens], self.noise, few=few)


class Correlator(nn.Module):
    """A frozen encoder and the block that learns.

    Keys of its state: `temporal_transformer.*` as in the published checkpoints, and `encoder.*`, ours.
    """

    def __init__(
        self,
        encoder: Any,
        *,
        heads: int = 8,
        layers: int = 1,
        frames: int = 0,
        features: str = "auto",
    ) -> None:
        """`frames`: of the learnt temporal embedding, 0 for none. `features`: the encoder's map that is read.

        `auto`: `keys` where the encoder offers them, as released, else `tokens`. Raises UsageError where
        the heads do not divide the encoder's channels.
        """
        super().__init__()
        if encoder.dim % heads:
            raise UsageError(f"ba.heads = {heads} does not divide the encoder's {encoder.dim} channels")
        self.encoder = encoder
        self.features = ("keys" if "keys" in encoder.offers else "tokens") if features == "auto" else features
        self.temporal_transformer = nn.ModuleList(Block(encoder.dim, heads) for _ in range(layers))
        self.temporal_embedding = nn.Parameter(0.02 * torch.randn(frames, encoder.dim)) if frames else None

    def train(self, mode: bool = True) -> Correlator:
        """The block trains, the encoder never does."""
        super().train(mode)
        self.encoder.eval()
        return self

    @property
    def blocks(self) -> list[Any]:
        """First to last."""
        return list(self.temporal_transformer)

    @torch.no_grad()
    def encoded(self, images: UInt8[Tensor, "n 3 H W"], class_tokens: bool = False) -> list[Tensor]:
        """The encoder's maps `[n, c, h, w]` of images, and its class tokens `[n, c]` if wanted."""
        want = (self.features, "cls_prenorm") if class_tokens else (self.features,)
        found = list(encode_batches(self.encoder, images, want))
        return [torch.cat([one[name] for one in found]) for name in want]

    def embedded(self, maps: Float[Tensor, "t c h w"]) -> Float[Tensor, "t n c"]:
        """Tokens F_t + pe_t; the embedding is stretched to the clip's frames.

        Raises UsageError for maps of other channels than the block reads.
        """
        if maps.shape[1] != self.encoder.dim:
            raise UsageError(
                f"map '{self.features}' of '{self.encoder.name}' has {maps.shape[1]} channels; the block "
                f"reads {self.encoder.dim}; take another (ba.features), e.g. tokens"
            )
        tokens = maps.flatten(2).transpose(1, 2)
        if self.temporal_embedding is None:
            return tokens
        table = self.temporal_embedding.T[None]
        if len(maps) != len(self.temporal_embedding):
            table = interpolate(table, size=len(maps), mode="linear", align_corners=len(maps) > 1)
        return tokens + table[0].T[:, None]

    def projected(self, tokens: Float[Tensor, "t n c"]) -> tuple[Tensor, Tensor]:
        """Queries and keys `[t, heads, n, d]` of the first block, frame by frame.

        Source: eval_oneshot.py: mem_efficient_inference.
        """
        heads = self.blocks[0].projections(tokens.flatten(0, 1))[:2]
        queries, keys = (each.view(len(each), *tokens.shape[:2], -1).transpose(0, 1) for each in heads)
        return queries, keys

    def attend(
        self,
        tokens: Float[Tensor, "t n c"],
        classes: Float[Tensor, "t c"] | None = None,
        noise: Noise | None = None,
        *,
        noisy: bool = False,
    ) -> Attended:
        """The clip's tokens on the way to the last block.

        `classes`: a class token before each frame's tokens. `noisy`: A is handed out after its dropout.
        Source: src/model/model_cluster.py: AttEncoder.forward.
        """
        frames, count, _ = tokens.shape
        places = torch.arange(frames * count, device=tokens.device)
        if classes is not None:
            tokens = torch.cat([classes[:, None], tokens], dim=1)
            places = places + places // count + 1
        sequence = tokens.flatten(0, 1)
        *before, last = self.blocks
        for number, block in enumerate(before):
            every = torch.arange(len(sequence), device=sequence.device)
            own = (
                None if noise is None else Noise(noise.seed + (number + 1 << 20), noise.attention, noise.rest)
            )
            sequence = block.features(sequence, block.projections(sequence), every, own)
        q, k, v = last.projections(sequence)
        return Attended(last, frames, places, sequence, q, k, v, noise, noisy)


def untrained(encoder: Encoder, *, heads: int = 8, seed: int = 0) -> Correlator:
    """A block of random weights on an encoder: what the paper compares with."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        correlator = Correlator(encoder, heads=heads)
    return _ready(correlator, encoder)


def holds_block(model: str | Path) -> bool:
    """Whether a shipped model, a file, or a folder that training left, holds a block beside its encoder."""
    path = _file(model)
    return path.suffix != ".py" and path.is_file() and bool(tensors_named(path, OWN))


def _file(model: str | Path) -> Path:
    if str(model) in SHIPPED:
        return shipped(str(model))
    path = Path(model)
    return path / SAVED if path.is_dir() else path


def load_correlator(
    model: str | Path, *, device: str = "auto", precision: Precision = "fp32", heads: int = 8
) -> Correlator:
    """A correlator: one that comes with unspool, a published checkpoint, or what `save_correlator` wrote.

    `precision`: of the encoder. `heads`: of a published one, which does not say. Raises WeightsError where
    the file holds no block, or not exactly what a block has.
    """
    path = _file(model)
    encoder = load_encoder(model if str(model) in SHIPPED else path, device=device, precision=precision)
    state = tensors_named(path, OWN)
    if not state:
        raise WeightsError(f"{path}: holds an encoder, but no {OWN[0]}*; train one with: unspool train ba")
    heads = int(state.pop("heads", torch.tensor(heads)))
    layers = 1 + max(int(key.split(".")[1]) for key in state if key.startswith(OWN[0]))
    frames = len(state["temporal_embedding"]) if "temporal_embedding" in state else 0
    features = bytes(state.pop("features", torch.tensor(list(b"auto"))).tolist()).decode()
    correlator = Correlator(encoder, heads=heads, layers=layers, frames=frames, features=features)
    block = nn.ModuleDict({"temporal_transformer": correlator.temporal_transformer})
    if correlator.temporal_embedding is not None:
        correlator.temporal_embedding.data.copy_(state.pop("temporal_embedding"))
    load_strictly(block, state, str(path))
    return _ready(correlator, encoder)


def save_correlator(correlator: Correlator, path: str | Path) -> None:
    """Write encoder and block as one safetensors file, which `load_encoder` and `load_correlator` take."""
    own = {k: v for k, v in correlator.state_dict().items() if k.startswith(OWN)}
    own["heads"] = torch.tensor(correlator.blocks[0].heads)
    own["features"] = torch.tensor(list(correlator.features.encode()), dtype=torch.uint8)
    save_encoder(correlator.encoder, path, own)


def _ready(correlator: Correlator, encoder: Any) -> Correlator:
    device = next(encoder.parameters()).device
    return correlator.requires_grad_(False).train(False).to(device)

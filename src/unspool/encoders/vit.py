"""Vision Transformers as encoders: patch tokens, and the last block's queries, keys, values and attention.

The networks are timm's. What is added: positions for any input size by the published rule, and all wanted
intermediates from one pass, without ever holding the attention of all heads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import timm
import torch
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models.eva import Eva, EvaBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import interpolate, linear, scaled_dot_product_attention

from unspool.encoders.images import IMAGENET_STD, normalised, offered
from unspool.errors import ShapeError, UsageError

Positions = Literal["published", "timm"]
MAPS = ("tokens", "tokens_prenorm", "cls", "cls_prenorm")
OF_BLOCK = ("queries", "keys", "values", "attention", "cls_attention")
ROWS = 256  # rows of attention at a time


class ViTEncoder(nn.Module):
    """A frozen Vision Transformer.

    Offers `tokens` (patch tokens after the final norm), `tokens_prenorm` (before it), `cls` and `cls_prenorm`
    `[b, dim]`, and of the last block `queries`, `keys`, `values` (heads side by side, before any rotation),
    `cls_attention` `[b, heads, h, w]` and `attention` `[b, n, n]`: the mean over heads of the softmax, rows
    and columns of the patch tokens only, not renormalised. Attention is float32 in any precision.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        positions: Positions = "published",
        std: tuple[float, float, float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        net: Any = network
        if not _is_plain(network):
            raise UsageError(f"model '{name}' is no plain ViT; wrap it: load_encoder(module, patch=...)")
        if positions not in ("published", "timm"):
            raise UsageError(f"positions '{positions}' is no rule; choose published or timm")
        self.name, self.std, self.positions = name, std, positions
        self.network = net
        self.rotary = isinstance(network, Eva)
        self.dim: int = net.embed_dim
        self.patch: int = net.patch_embed.patch_size[0]
        self.multiple = self.patch
        self.prefix: int = net.num_prefix_tokens
        known = isinstance(net.blocks[-1], Block | EvaBlock)
        offers = MAPS + OF_BLOCK if known else MAPS
        without_class = [wish for wish in offers if not wish.startswith("cls")]
        self.offers = offers if net.cls_token is not None else tuple(without_class)

    def forward(self, images: Tensor, want: tuple[str, ...] = ("tokens",)) -> dict[str, Tensor]:
        """What is wanted of images `[b, 3, h, w]` (uint8, or float in 0..1), sides whole patches.

        Maps are `[b, c, h/patch, w/patch]`, not normalised. Raises ShapeError for other sizes.
        """
        offered(want, self.offers, self.name)
        grid = self._grid(images)
        sequence, rotation = self._before_blocks(images, 1)
        found: dict[str, Tensor] = {}
        of_block = set(want).intersection(OF_BLOCK)
        if of_block:
            sequence = self._last_block(sequence, rotation, grid, of_block, found)
        else:
            sequence = self._block(self.network.blocks[-1], sequence, rotation)
        found |= {"tokens_prenorm": self._to_map(sequence, grid), "cls_prenorm": sequence[:, 0]}
        if "tokens" in want or "cls" in want:
            normed = self.network.norm(sequence)
            found |= {"tokens": self._to_map(normed, grid), "cls": normed[:, 0]}
        return {wish: found[wish] for wish in want}

    def last_attention(self, images: Tensor, rows: int = ROWS) -> Iterator[Tensor]:
        """The last block's attention `[b, heads, rows, prefix + n]`, some rows at a time, none left out.

        The first `prefix` rows and columns are the class token and the registers; rows sum to 1.
        """
        with torch.no_grad():
            self._grid(images)
            sequence, rotation = self._before_blocks(images, 1)
            queries, keys, _ = self._heads(sequence)
            yield from attention_rows(*self._rotated(queries, keys, rotation), rows)

    def tail(self, count: int) -> list[nn.Module]:
        """The last `count` blocks; the final norm is none of them."""
        if not 1 <= count <= len(self.network.blocks):
            raise UsageError(f"encoder '{self.name}' has {len(self.network.blocks)} blocks, not {count}")
        return list(self.network.blocks[-count:])

    def begin(self, images: Tensor, count: int) -> tuple[Tensor, Any]:
        """What the last `count` blocks read, an image each along the first axis, and what `end` needs beside.

        Raises ShapeError as `forward` does.
        """
        grid = self._grid(images)
        sequence, rotation = self._before_blocks(images, count)
        return sequence, (grid, rotation)

    def end(self, begun: Tensor, beside: Any, tail: Sequence[nn.Module]) -> Tensor:
        """`tokens` of all or some of the images begun, through these last blocks (or copies of them)."""
        grid, rotation = beside
        for block in tail:
            begun = self._block(block, begun, rotation)
        return self._to_map(self.network.norm(begun), grid)

    def bytes_per_image(self, height: int, width: int) -> int:
        """About what one image takes at its widest moment, in the MLP."""
        tokens = self.prefix + (height // self.patch) * (width // self.patch)
        return int(22 * tokens * self.dim * self.network.patch_embed.proj.weight.element_size())

    def _grid(self, images: Tensor) -> tuple[int, int]:
        height, width = images.shape[-2:]
        if height % self.patch or width % self.patch or not height or not width:
            near = [max(1, round(side / self.patch)) * self.patch for side in (height, width)]
            raise ShapeError(
                f"encoder '{self.name}' needs sides that are multiples of {self.patch}, got {height}x{width} "
                f"(height x width); nearest is {near[0]}x{near[1]}"
            )
        return height // self.patch, width // self.patch

    def _to_map(self, sequence: Tensor, grid: tuple[int, int]) -> Tensor:
        patches = sequence[:, self.prefix :].transpose(1, 2)
        return patches.reshape(*patches.shape[:2], *grid)

    # --------------------------------------------------------------------------------------- the blocks

    def _before_blocks(self, images: Tensor, last: int) -> tuple[Tensor, Tensor | None]:
        """The sequence that the last blocks read, and the rotation of their keys where the model has one."""
        net = self.network
        pixels = normalised(images, self.std, net.patch_embed.proj.weight)
        rotation: Tensor | None = None
        if self.rotary:
            sequence, rotation = net._pos_embed(net.patch_embed(pixels))
        else:
            sequence = self._embedded(net.patch_embed.proj(pixels))
        sequence = net.norm_pre(sequence)
        for block in net.blocks[: len(net.blocks) - last]:
            sequence = self._block(block, sequence, rotation)
        return sequence, rotation

    def _block(self, block: Any, sequence: Tensor, rotation: Tensor | None) -> Tensor:
        return block(sequence, rope=rotation) if self.rotary else block(sequence)  # type: ignore[no-any-return]

    def _last_block(
        self,
        sequence: Tensor,
        rotation: Tensor | None,
        grid: tuple[int, int],
        want: set[str],
        found: dict[str, Tensor],
    ) -> Tensor:
        """The block's own output, with what is wanted of its attention on the way."""
        queries, keys, values = self._heads(sequence)
        for wish, of_heads in (("queries", queries), ("keys", keys), ("values", values)):
            if wish in want:
                found[wish] = self._to_map(of_heads.transpose(1, 2).flatten(2), grid)
        queries, keys = self._rotated(queries, keys, rotation)
        own = queries[:, :, self.prefix :]
        if "cls_attention" in want:
            (rows,) = attention_rows(queries[:, :, :1], keys)
            found["cls_attention"] = rows[:, :, 0, self.prefix :].reshape(*rows.shape[:2], *grid)
        if "attention" in want:
            means = [rows.mean(1)[..., self.prefix :] for rows in attention_rows(own, keys)]
            found["attention"] = torch.cat(means, dim=1)
        block = self.network.blocks[-1]
        if self.rotary:  # its projections twice: 2 % of the pass, for the sake of timm's own block
            return self._block(block, sequence, rotation)
        mixed = scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2)
        sequence = sequence + block.ls1(block.attn.proj(block.attn.norm(mixed)))
        return sequence + block.ls2(block.mlp(block.norm2(sequence)))  # type: ignore[no-any-return]

    def _heads(self, sequence: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys, values of the last block, each `[b, heads, prefix + n, d]`."""
        block = self.network.blocks[-1]
        attention, normed = block.attn, block.norm1(sequence)
        if attention.qkv is None:
            qkv = torch.cat([attention.q_proj(normed), attention.k_proj(normed), attention.v_proj(normed)], 2)
        else:
            bias = attention.qkv.bias
            if getattr(attention, "q_bias", None) is not None:
                bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
            qkv = linear(normed, attention.qkv.weight, bias)
        queries, keys, values = qkv.reshape(*qkv.shape[:2], 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
        return attention.q_norm(queries), attention.k_norm(keys), values

    def _rotated(self, queries: Tensor, keys: Tensor, rotation: Tensor | None) -> tuple[Tensor, Tensor]:
        if rotation is None:
            return queries, keys
        half = getattr(self.network.blocks[-1].attn, "rotate_half", False)
        queries, keys = (
            torch.cat(
                [x[:, :, : self.prefix], apply_rot_embed_cat(x[:, :, self.prefix :], rotation, half)], 2
            )
            for x in (queries, keys)
        )
        return queries, keys

    # ------------------------------------------------------------------------------ learnt positions

    def _embedded(self, patches: Tensor) -> Tensor:
        """Sequence of a map `[b, dim, h, w]` of patches: prefix tokens in front, positions added."""
        net = self.network
        positions = self._positions((patches.shape[2], patches.shape[3]))
        patches = net.patch_embed.norm(patches.flatten(2).transpose(1, 2))
        prefix = [t.expand(len(patches), -1, -1) for t in (net.cls_token, net.reg_token) if t is not None]
        if net.no_embed_class:
            return torch.cat([*prefix, patches + positions], dim=1)
        return torch.cat([*prefix, patches], dim=1) + positions

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """Position embeddings for the grid, those of the prefix tokens in front where the model has them.

        `published`: bicubic by the scale factors (h + 0.1) / h0 (DINO, DINOv2: vision_transformer.py); models
        with registers, and `timm`: bicubic to the size, antialiased.
        """
        table: Tensor = self.network.pos_embed
        prefix = 0 if self.network.no_embed_class else self.prefix
        own = math.isqrt(table.shape[1] - prefix)
        if grid == (own, own):
            return table
        patches = table[:, prefix:].transpose(1, 2).reshape(1, -1, own, own).float()
        if self.positions == "published" and self.network.reg_token is None:
            scale = ((grid[0] + 0.1) / own, (grid[1] + 0.1) / own)
            patches = interpolate(patches, scale_factor=scale, mode="bicubic")
        else:
            patches = interpolate(patches, size=grid, mode="bicubic", antialias=True)
        assert patches.shape[-2:] == grid, f"{patches.shape[-2:]} positions for a grid of {grid}"
        return torch.cat([table[:, :prefix], patches.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)


def _is_plain(network: nn.Module) -> bool:
    """Whether all that this file assumes of a network holds."""
    if isinstance(network, Eva):
        return not network.rope_mixed
    return isinstance(network, VisionTransformer) and network.pos_embed is not None


def attention_rows(queries: Tensor, keys: Tensor, rows: int = ROWS) -> Iterator[Tensor]:
    """softmax(q k / sqrt(d)) of `[b, heads, n, d]` and `[b, heads, m, d]`: `[b, heads, rows, m]` at a time.

    Float32 in any precision.
    """
    keys = keys.float().transpose(-1, -2) / math.sqrt(keys.shape[-1])
    for start in range(0, queries.shape[2], rows):
        yield (queries[:, :, start : start + rows].float() @ keys).softmax(dim=-1)


def build_vit(architecture: str, **changes: Any) -> nn.Module:
    """A timm ViT without classifier that takes any input size; `changes` are timm's arguments.

    `weight_init="skip"` leaves the numbers to a checkpoint; drawing them takes longer than reading them.
    """
    return timm.create_model(architecture, pretrained=False, num_classes=0, dynamic_img_size=True, **changes)

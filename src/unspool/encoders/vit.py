"""Vision Transformers as encoders: patch tokens, and the last block's queries, keys, values and attention.

The networks are timm's. What is added: positions for any input size by the published rule, and all wanted
intermediates from one pass, without ever holding the attention of all heads.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, scaled_dot_product_attention

from unspool.encoders.images import IMAGENET_STD, normalised, offered
from unspool.errors import ShapeError

Positions = Literal["published", "timm"]
ROWS = 256  # rows of attention at a time


class ViTEncoder(nn.Module):
    """A frozen Vision Transformer.

    Offers `tokens` (patch tokens after the final norm), `tokens_prenorm` (before it), `cls` `[b, dim]`, and
    of the last block `queries`, `keys`, `values` (heads side by side), `cls_attention` `[b, heads, h, w]` and
    `attention` `[b, n, n]`: the mean over heads of the softmax, rows and columns of the patch tokens only,
    not renormalised. Models with rotary positions (DINOv3) offer the tokens and `cls`.
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
        self.name, self.std, self.positions = name, std, positions
        facts: Any = network
        self.network: Any = network
        self.dim: int = facts.embed_dim
        self.patch: int = facts.patch_embed.patch_size[0]
        self.multiple = self.patch
        self.prefix: int = facts.num_prefix_tokens
        self.rotary = getattr(network, "rope", None) is not None
        maps = ("tokens", "tokens_prenorm", "cls")
        of_block = ("queries", "keys", "values", "attention", "cls_attention")
        self.offers = maps if self.rotary else maps + of_block

    def forward(self, images: Tensor, want: tuple[str, ...] = ("tokens",)) -> dict[str, Tensor]:
        """What is wanted of images `[b, 3, h, w]` (uint8, or float in 0..1), sides whole patches.

        Maps are `[b, c, h/patch, w/patch]`, not normalised. Raises ShapeError for other sizes.
        """
        offered(want, self.offers, self.name)
        self._check_size(images)
        grid = (images.shape[-2] // self.patch, images.shape[-1] // self.patch)
        pixels = normalised(images, self.std, self.network.patch_embed.proj.weight)
        found: dict[str, Tensor] = {}
        sequence = self._rotary_blocks(pixels) if self.rotary else self._blocks(pixels, grid, want, found)
        if "tokens_prenorm" in want:
            found["tokens_prenorm"] = self._to_map(sequence, grid)
        if "tokens" in want or "cls" in want:
            normed = self.network.norm(sequence)
            found["tokens"] = self._to_map(normed, grid)
            found["cls"] = normed[:, 0]
        return {wish: found[wish] for wish in want}

    def _check_size(self, images: Tensor) -> None:
        height, width = images.shape[-2:]
        if height % self.patch or width % self.patch:
            near = [max(1, round(side / self.patch)) * self.patch for side in (height, width)]
            raise ShapeError(
                f"encoder '{self.name}' needs sides that are multiples of {self.patch}, got {height}x{width} "
                f"(height x width); nearest is {near[0]}x{near[1]}"
            )

    def _to_map(self, sequence: Tensor, grid: tuple[int, int]) -> Tensor:
        patches = sequence[:, self.prefix :].transpose(1, 2)
        return patches.reshape(*patches.shape[:2], *grid)

    # ------------------------------------------------------------------------------ learnt positions

    def _blocks(
        self, pixels: Tensor, grid: tuple[int, int], want: tuple[str, ...], found: dict[str, Tensor]
    ) -> Tensor:
        net = self.network
        patches = net.patch_embed.norm(net.patch_embed.proj(pixels).flatten(2).transpose(1, 2))
        prefix = [t.expand(len(patches), -1, -1) for t in (net.cls_token, net.reg_token) if t is not None]
        positions = self._positions(grid)
        if net.no_embed_class:
            sequence = torch.cat([*prefix, patches + positions], dim=1)
        else:
            sequence = torch.cat([*prefix, patches], dim=1) + positions
        sequence = net.norm_pre(sequence)
        for block in net.blocks[:-1]:
            sequence = block(sequence)
        last = net.blocks[-1]
        if set(want) - {"tokens", "tokens_prenorm", "cls"}:
            return self._last_block(last, sequence, grid, want, found)
        return last(sequence)  # type: ignore[no-any-return]

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

    def _last_block(
        self,
        block: Any,
        sequence: Tensor,
        grid: tuple[int, int],
        want: tuple[str, ...],
        found: dict[str, Tensor],
    ) -> Tensor:
        """The block's own output, with what is wanted of its attention on the way."""
        attention = block.attn
        qkv = attention.qkv(block.norm1(sequence)).unflatten(2, (3, attention.num_heads, -1))
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4)  # each [b, heads, prefix + n, d]
        queries, keys = attention.q_norm(queries), attention.k_norm(keys)
        for wish, of_heads in (("queries", queries), ("keys", keys), ("values", values)):
            if wish in want:
                found[wish] = self._to_map(of_heads.transpose(1, 2).flatten(2), grid)
        if "cls_attention" in want:
            rows = _softmax_rows(queries[:, :, :1], keys)
            found["cls_attention"] = rows[:, :, 0, self.prefix :].reshape(*rows.shape[:2], *grid)
        if "attention" in want:
            found["attention"] = self._mean_attention(queries, keys)
        mixed = scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2)
        sequence = sequence + block.ls1(attention.proj(attention.norm(mixed)))
        return sequence + block.ls2(block.mlp(block.norm2(sequence)))  # type: ignore[no-any-return]

    def _mean_attention(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Mean over heads, a few rows of one head at a time."""
        own, heads = queries[:, :, self.prefix :], queries.shape[1]
        mean = queries.new_zeros((len(own), own.shape[2], own.shape[2]), dtype=torch.float32)
        for head in range(heads):
            for start in range(0, own.shape[2], ROWS):
                rows = _softmax_rows(own[:, head, start : start + ROWS], keys[:, head])
                mean[:, start : start + ROWS] += rows[..., self.prefix :] / heads
        return mean

    # ------------------------------------------------------------------------------ rotary positions

    def _rotary_blocks(self, pixels: Tensor) -> Tensor:
        net = self.network
        patches = net.patch_embed(pixels)
        sequence, rotation = net._pos_embed(patches)
        sequence = net.norm_pre(sequence)
        for block in net.blocks:
            sequence = block(sequence, rope=rotation)
        return sequence  # type: ignore[no-any-return]


def _softmax_rows(queries: Tensor, keys: Tensor) -> Tensor:
    """Rows that sum to 1 over all keys, float32."""
    scores = queries.float() @ keys.float().transpose(-1, -2) / math.sqrt(queries.shape[-1])
    return scores.softmax(dim=-1)


def build_vit(architecture: str, **changes: Any) -> nn.Module:
    """A timm ViT without classifier that takes any input size; `changes` are timm's arguments."""
    return timm.create_model(architecture, pretrained=False, num_classes=0, dynamic_img_size=True, **changes)

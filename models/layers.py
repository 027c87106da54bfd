"""Transformer parts that VGGT's modules share, under its public parameter names."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Mlp(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, dim: int, hidden: int, out: int | None = None):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, out or dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A learnt gain per channel."""

    def __init__(self, dim: int, init: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


def rotary_tables(positions: Tensor, head_dim: int, base: float = 100.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines of 2-D rotary embeddings (Su et al. 2021, an axis each half).

    Args:
        positions: [P, 2] whole (y, x) positions.

    Returns:
        two [P, head_dim] tables: the first half of the channels turns with y, the second with x.
    """
    quarter = head_dim // 4
    exponent = torch.arange(quarter, device=positions.device, dtype=torch.float32) / quarter
    frequency = 1 / base**exponent
    angle = positions.float()[..., None] * frequency  # [P, 2, quarter]
    angle = torch.cat([angle, angle], dim=-1).flatten(-2)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Apply `rotary_tables` to [..., P, head_dim]."""
    cos, sin = (t.to(x.dtype) for t in tables)
    a, b = x.unflatten(-1, (2, 2, -1)).unbind(-2)
    turned = torch.stack([-b, a], dim=-2).flatten(-3)
    return x * cos + turned * sin


class Attention(nn.Module):
    """Self-attention with optional LayerNorm and rotary embedding on queries and keys."""

    def __init__(self, dim: int, heads: int, qk_norm: bool = False):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.q_norm = nn.LayerNorm(dim // heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(dim // heads) if qk_norm else nn.Identity()

    def forward(self, x: Tensor, tables: tuple[Tensor, Tensor] | None = None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if tables is not None:
            q, k = rotate(q, tables), rotate(k, tables)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).flatten(-2))


class Block(nn.Module):
    """Pre-norm attention and MLP, each with a LayerScale."""

    def __init__(
        self, dim: int, heads: int, *, scale: float, qk_norm: bool = False, eps: float = 1e-5
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, heads, qk_norm)
        self.ls1 = LayerScale(dim, scale)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, 4 * dim)
        self.ls2 = LayerScale(dim, scale)

    def forward(self, x: Tensor, tables: tuple[Tensor, Tensor] | None = None) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x), tables))
        return x + self.ls2(self.mlp(self.norm2(x)))

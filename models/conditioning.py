"""What the generator attends to: anchor views and text, as tokens of one width."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AnchorEncoder(nn.Module):
    """A small convolutional encoder, one vector a frame and view, trained with the generator.

    It stands where the full-size recipes have CLIP.

    Args:
        dim: width of the vectors. size: the (H, W) that frames are resized to first.
    """

    def __init__(self, dim: int, size: tuple[int, int] = (64, 112)):
        super().__init__()
        self.size = tuple(size)
        widths = [3, 32, 64, 128, dim]
        self.stages = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for width in widths[1:])

    def forward(self, frames: Tensor) -> Tensor:
        """[N, 3, H, W] in [0, 1] -> [N, dim]."""
        x = F.interpolate(frames, self.size, mode="bilinear", antialias=True) * 2 - 1
        for convolution, norm in zip(self.stages, self.norms, strict=True):
            x = F.silu(norm(convolution(x)))
        return x.mean((2, 3))


class ByteTextEncoder(nn.Module):
    """Text as its UTF-8 bytes: an embedding, positions and one transformer layer.

    It stands where the full-size recipes have UMT5, and needs no tokenizer file. Byte values are
    shifted by one; 0 pads.
    """

    def __init__(self, dim: int, length: int = 64, heads: int = 4):
        super().__init__()
        self.length = length
        self.embedding = nn.Embedding(257, dim, padding_idx=0)
        self.positions = nn.Parameter(torch.randn(1, length, dim) * 0.02)
        self.layer = nn.TransformerEncoderLayer(
            dim, heads, 2 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )

    def tokenize(self, texts: list[str]) -> Tensor:
        """[B, length] long; what does not fit is cut off."""
        rows = torch.zeros(len(texts), self.length, dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            data = text.encode()[: self.length]
            row[: len(data)] = torch.tensor(list(data), dtype=torch.long) + 1
        return rows

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, length] from `tokenize` -> [B, length, dim], zeros at the padding."""
        empty = tokens == 0
        # A wholly empty text would have nothing to attend to; its first position stays open.
        mask = empty.clone()
        mask[:, 0] = False
        x = self.layer(self.embedding(tokens) + self.positions, src_key_padding_mask=mask)
        return x * (~empty)[..., None].to(x.dtype)


class ContextBuilder(nn.Module):
    """Anchor features and text -> the tokens that the video DiT cross-attends to.

    The paper's conditioning: features + temporal + view embeddings, then text.

    Args:
        feature_dim: width of the anchor features; dim: width of the tokens (the DiT's text_dim).
        frames, views: how many positions are learnt.
    """

    def __init__(self, feature_dim: int, dim: int, *, frames: int, views: int):
        super().__init__()
        self.project = nn.Linear(feature_dim, dim)
        self.temporal = nn.Embedding(frames, dim)
        self.view = nn.Embedding(views, dim)
        for table in (self.temporal, self.view):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, features: Tensor | None, text: Tensor) -> Tensor:
        """Features [B, T, V, C] (None: CFG's negative branch), text [B, L, dim] -> [B, N, dim]."""
        if features is None:
            return text
        _, T, V, _ = features.shape
        if self.temporal.num_embeddings < T or self.view.num_embeddings < V:
            raise ValueError(
                f"{T} frames of {V} views do not fit the {self.temporal.num_embeddings} frames and "
                f"{self.view.num_embeddings} views that this generator has embeddings for"
            )
        x = self.project(features)
        x = x + self.temporal.weight[:T, None] + self.view.weight[None, :V]
        return torch.cat([x.flatten(1, 2), text], dim=1)

"""The context of the full-size video DiT: anchor features ("ext tokens") beside the prompt."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ContextTokens(nn.Module, ABC):
    """What both forms share: how many tokens fit, and the positions that are learnt.

    The context always has `limit` tokens, zeros where nothing is left to say: that is what Wan was
    trained on, and it lets both branches of classifier-free guidance run as one batch.

    Args:
        frames, views: how many positions are learnt. position_dim: width of their embeddings.
        limit: tokens of a context. text_dim: width of a token.
    """

    def __init__(self, *, frames: int, views: int, position_dim: int, limit: int, text_dim: int):
        super().__init__()
        self.limit = limit
        self.text_dim = text_dim
        self.temporal_embed = nn.Embedding(frames, position_dim)
        self.view_embed = nn.Embedding(views, position_dim)

    def check(self, frames: int, views: int) -> None:
        """ValueError where T frames of V views have no embeddings or do not fit the context."""
        most_views, most_frames = self.view_embed.num_embeddings, self.temporal_embed.num_embeddings
        if views > most_views:
            raise ValueError(
                f"found {views} anchor views; the generator has embeddings for {most_views}: pass "
                f"{most_views} at most, or give it more with `change_views` and train them"
            )
        if frames > most_frames:
            raise ValueError(
                f"found {frames} frames; the generator has embeddings for {most_frames}: cut the "
                "episode into shorter clips"
            )
        if frames * views > self.limit:
            raise ValueError(
                f"{frames} frames of {views} views are {frames * views} tokens and the context "
                f"holds {self.limit}: {self.limit // views} frames fit"
            )

    def forward(self, text: Tensor, ext: Tensor | None = None) -> Tensor:
        """The tokens that the transformer cross-attends to.

        Args:
            text: [B, L, text_dim] of an encoded prompt. What ext tokens leave no room for is cut
                off at its end; prompts are padded with zeros there.
            ext: [B, V, T, E] features of V anchor views at T frames, or None: the negative branch.

        Returns:
            [B, limit, text_dim].

        Raises:
            ValueError: more frames, views or tokens than fit, or a wrong width.
        """
        if text.ndim != 3 or text.shape[2] != self.text_dim:
            raise ValueError(
                f"text must be [B, L, {self.text_dim}]; found {list(text.shape)}: encode the "
                "prompt with the text encoder of the recipe"
            )
        if text.shape[1] > self.limit:
            raise ValueError(
                f"found {text.shape[1]} text tokens; the context holds {self.limit}: encode the "
                f"prompt with max_length={self.limit}"
            )
        dtype = self.temporal_embed.weight.dtype
        text = text.to(dtype)
        if ext is None:
            context = self.join(text, None)
        else:
            width = self.feature_dim
            if ext.ndim != 4 or ext.shape[3] != width or len(ext) != len(text):
                raise ValueError(
                    f"anchor features must be [{len(text)}, V, T, {width}]; found "
                    f"{list(ext.shape)}: make them with the image encoder of the recipe"
                )
            self.check(ext.shape[2], ext.shape[1])
            room = self.limit - ext.shape[1] * ext.shape[2]
            context = self.join(text[:, :room], self.embed(ext.to(dtype)).flatten(1, 2))
        return F.pad(context, (0, 0, 0, self.limit - context.shape[1]))

    def positions(self, ext: Tensor) -> Tensor:
        """[V, T, position_dim]: where and when each of the features was seen."""
        V, T = ext.shape[1:3]
        return self.view_embed.weight[:V, None] + self.temporal_embed.weight[None, :T]

    @property
    @abstractmethod
    def feature_dim(self) -> int:
        """Width of the anchor features."""

    @abstractmethod
    def embed(self, ext: Tensor) -> Tensor:
        """[B, V, T, E] -> [B, V, T, text_dim]."""

    @abstractmethod
    def join(self, text: Tensor, ext: Tensor | None) -> Tensor:
        """Text [B, L, text_dim] and ext tokens [B, V * T, text_dim] -> all of them, in order."""


class OfficialTokens(ContextTokens):
    """As released: positions are added to the features, then a two-layer projection; text first.

    Args:
        feature_dim: width of the anchor features (1280). hidden: of the projection (2048).
    """

    def __init__(self, feature_dim: int, hidden: int, *, dropout: float = 0.1, **sizes: int):
        super().__init__(position_dim=feature_dim, **sizes)
        self.ext_proj = nn.Sequential(
            nn.Linear(feature_dim, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, self.text_dim),
        )

    @property
    def feature_dim(self) -> int:
        return self.temporal_embed.embedding_dim

    def embed(self, ext: Tensor) -> Tensor:
        return self.ext_proj(ext + self.positions(ext))

    def join(self, text: Tensor, ext: Tensor | None) -> Tensor:
        return text if ext is None else torch.cat([text, ext], dim=1)


class PaperTokens(ContextTokens):
    """As in the paper: positions are added to projected features, then text with its own positions.

    The text projection W_t of the paper is the transformer's own text embedding.

    Args:
        feature_dim: width of the anchor features (512).
    """

    def __init__(self, feature_dim: int, *, limit: int, text_dim: int, **sizes: int):
        super().__init__(position_dim=text_dim, limit=limit, text_dim=text_dim, **sizes)
        self.ext_proj = nn.Linear(feature_dim, text_dim)
        self.text_embed = nn.Embedding(limit, text_dim)
        for table in (self.temporal_embed, self.view_embed):
            nn.init.normal_(table.weight, std=0.02)
        # Zero at first, so that training starts from prompts as Wan knows them.
        nn.init.zeros_(self.text_embed.weight)

    @property
    def feature_dim(self) -> int:
        return self.ext_proj.in_features

    def embed(self, ext: Tensor) -> Tensor:
        return self.ext_proj(ext) + self.positions(ext)

    def join(self, text: Tensor, ext: Tensor | None) -> Tensor:
        text = text + self.text_embed.weight[: text.shape[1]]
        return text if ext is None else torch.cat([ext, text], dim=1)

"""The wrist head: the pose of a hand camera that no view shows, from the anchors' tokens.

In two forms: as the paper describes it, and as its authors released it (where the two differ).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .camera import POSE, PoseRefiner
from .geometry import exact
from .layers import Mlp


def run(layer: nn.Module, *inputs: Tensor, recompute: bool) -> Tensor:
    """`layer(*inputs)`; with `recompute` nothing of its inside is kept for the way back."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(layer, *inputs, use_reentrant=False)
    return layer(*inputs)


class WristHead(nn.Module):
    """The paper's wrist head (its section 3.2): learnt wrist queries and a transformer decoder.

    Args:
        token_dim: channels of the aggregated tokens (2C).
        dim, depth, heads: of the decoder (1024, 3, 8 in the paper). queries: learnt wrist queries.

    Attributes:
        recompute: gradient checkpointing of the layers.
    """

    recompute = False

    def __init__(
        self, token_dim: int, *, dim: int = 1024, depth: int = 3, heads: int = 8, queries: int = 4
    ):
        super().__init__()
        self.norm = nn.LayerNorm(token_dim)
        self.memory = nn.Linear(token_dim, dim)
        self.wrist_queries = nn.Parameter(torch.randn(1, queries, dim) * 0.02)
        layer = nn.TransformerDecoderLayer(
            dim, heads, 4 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, depth, norm=nn.LayerNorm(dim))
        self.pose = nn.Linear(dim * queries, POSE, bias=False)
        nn.init.normal_(self.pose.weight, std=1e-2)
        # Start half a metre in front of the first anchor, looking along with it, 60 degrees wide.
        self.start = nn.Parameter(torch.tensor([0, 0, 0.5, 0, 0, 0, 1, 0.6, 1.0]))

    def forward(self, tokens: Tensor) -> Tensor:
        """Aggregated tokens [B, S, P, 2C] -> [1, B, 9] absT_quaR_FoV in anchor 0, at once."""
        memory = self.memory(self.norm(tokens)).flatten(1, 2)
        x = self.wrist_queries.expand(len(tokens), -1, -1)
        for layer in self.decoder.layers:
            x = run(layer, x, memory, recompute=self.recompute)
        if self.decoder.norm is not None:
            x = self.decoder.norm(x)
        # The sum over all queries is kept whole: in bfloat16 it is good to a few millimetres.
        with exact():
            moved = self.pose(x.flatten(1).to(self.pose.weight.dtype))
        # So many inputs move the pose by decimetres in one optimizer step; a tenth keeps it calm.
        raw = self.start + 0.1 * moved.float()
        rotation = F.normalize(raw[:, 3:7], dim=-1)
        return torch.cat([raw[:, :3], rotation, F.relu(raw[:, 7:])], dim=-1)[None]


class AggregationLayer(nn.Module):
    """Post-norm self-attention and MLP (Vaswani et al. 2017)."""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)
        self.norm1 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)
        self.norm2 = nn.LayerNorm(dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.drop(self.attention(x, x, x, need_weights=False)[0]))
        hidden = self.drop(F.gelu(self.mlp.fc1(x)))
        return self.norm2(x + self.drop(self.mlp.fc2(hidden)))


class ReleasedWristHead(PoseRefiner):
    """The wrist head as released: a query encoded with all tokens, then the camera head's steps.

    Args:
        token_dim: channels of the aggregated tokens (2C).
        layers, heads, dropout: of the encoder over the query and the tokens.
        trunk_depth, trunk_heads, iterations: see `PoseRefiner`.

    Attributes:
        recompute: gradient checkpointing of the layers over all tokens.
    """

    recompute = False

    def __init__(
        self,
        token_dim: int,
        *,
        layers: int = 3,
        heads: int = 8,
        dropout: float = 0.1,
        trunk_depth: int = 4,
        trunk_heads: int = 16,
        iterations: int = 4,
    ):
        super().__init__(token_dim, depth=trunk_depth, heads=trunk_heads, iterations=iterations)
        self.token_query = nn.Parameter(torch.randn(1, 1, token_dim) * 1e-6)
        self.token_aggregation_layers = nn.ModuleList(
            AggregationLayer(token_dim, heads, dropout) for _ in range(layers)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Aggregated tokens [B, S, P, 2C] -> [iterations, B, 9] absT_quaR_FoV in anchor 0."""
        x = torch.cat([self.token_query.expand(len(tokens), -1, -1), tokens.flatten(1, 2)], dim=1)
        for layer in self.token_aggregation_layers:
            x = run(layer, x, recompute=self.recompute)
        return self.refine(x[:, :1])[:, :, 0]


WRIST_HEADS = {"paper": WristHead, "official": ReleasedWristHead}

"""The wrist head: the pose of a hand camera that no view shows, from the anchors' tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .camera import POSE


class WristHead(nn.Module):
    """The paper's wrist head (its section 3.2): learnt wrist queries and a transformer decoder.

    Args:
        token_dim: channels of the aggregated tokens (2C).
        dim, depth, heads: of the decoder (1024, 3, 8 in the paper). queries: learnt wrist queries.
    """

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
        """Aggregated tokens [B, S, P, 2C] -> wrist pose [B, 9], absT_quaR_FoV in anchor 0."""
        memory = self.memory(self.norm(tokens)).flatten(1, 2)
        x = self.decoder(self.wrist_queries.expand(len(tokens), -1, -1), memory)
        # So many inputs move the pose by decimetres in one optimizer step; a tenth keeps it calm.
        raw = self.start + 0.1 * self.pose(x.flatten(1)).float()
        rotation = F.normalize(raw[:, 3:7], dim=-1)
        return torch.cat([raw[:, :3], rotation, F.relu(raw[:, 7:])], dim=-1)

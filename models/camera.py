"""VGGT's camera head: every view's pose, refined over a few iterations from its camera token."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .geometry import exact
from .layers import Block, Mlp

POSE = 9  # absT_quaR_FoV: translation 3, quaternion x y z w, field of view high and wide


class PoseRefiner(nn.Module):
    """The iterations that VGGT's camera head and the released wrist head share.

    Args:
        dim: channels of the tokens. depth, heads: of the trunk. iterations: refinements.
    """

    def __init__(self, dim: int, *, depth: int = 4, heads: int = 16, iterations: int = 4):
        super().__init__()
        self.iterations = iterations
        self.empty_pose_tokens = nn.Parameter(torch.zeros(1, 1, POSE))
        self.trunk = nn.Sequential(*(Block(dim, heads, scale=0.01) for _ in range(depth)))
        self.token_norm = nn.LayerNorm(dim)
        self.trunk_norm = nn.LayerNorm(dim)
        self.embed_pose = nn.Linear(POSE, dim)
        self.poseLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 3 * dim))
        self.pose_branch = Mlp(dim, dim // 2, POSE)

    def refine(self, tokens: Tensor) -> Tensor:
        """Tokens [B, S, C] -> encodings of every iteration [iterations, B, S, 9].

        In the precision of the weights, autocast or not: in bfloat16 half a metre is known to
        2 mm, and four steps add up.
        """
        with exact():
            return self._refine(tokens.to(self.embed_pose.weight.dtype))

    def _refine(self, tokens: Tensor) -> Tensor:
        tokens = self.token_norm(tokens)
        B, S, _ = tokens.shape
        encoding, outputs = None, []
        for _ in range(self.iterations):
            # Each step learns a correction alone: no gradient through the step before.
            known = self.empty_pose_tokens.expand(B, S, -1) if encoding is None else encoding
            if encoding is not None:
                known = known.detach()
            shift, scale, gate = self.poseLN_modulation(self.embed_pose(known)).chunk(3, dim=-1)
            plain = F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6)
            x = gate * (plain * (1 + scale) + shift) + tokens
            delta = self.pose_branch(self.trunk_norm(self.trunk(x)))
            encoding = delta if encoding is None else encoding + delta
            outputs.append(torch.cat([encoding[..., :7], F.relu(encoding[..., 7:])], dim=-1))
        return torch.stack(outputs)


class CameraHead(PoseRefiner):
    """Poses of all views, relative to the first, from the last layer's camera tokens."""

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, S, P, C] -> [iterations, B, S, 9]."""
        return self.refine(tokens[:, :, 0])

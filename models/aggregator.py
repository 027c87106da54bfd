"""VGGT's aggregator: a DINOv2 patch encoder, then attention within and across the views in turn.

Structure and parameter names are those of the public VGGT-1B checkpoint.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Block, rotary_tables

PATCH = 14
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class PatchProjection(nn.Module):
    """A strided convolution that makes one token of every 14 x 14 patch."""

    def __init__(self, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, PATCH, PATCH)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class DinoEncoder(nn.Module):
    """DINOv2 with registers; gives the normalised patch tokens alone.

    Args:
        dim, depth, heads: the ViT's size. registers: register tokens.
        grid: side of the square grid that the position embedding was made for (37 at 518 px).
    """

    def __init__(self, dim: int, depth: int, heads: int, *, registers: int = 4, grid: int = 37):
        super().__init__()
        self.grid, self.special = grid, 1 + registers
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid * grid, dim))
        self.register_tokens = nn.Parameter(torch.zeros(1, registers, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, dim))  # of pre-training; kept for its key
        self.mask_token.requires_grad_(False)
        self.patch_embed = PatchProjection(dim)
        self.blocks = nn.ModuleList(Block(dim, heads, scale=1.0, eps=1e-6) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-2)
        nn.init.normal_(self.register_tokens, std=1e-2)

    def _positions(self, rows: int, columns: int) -> Tensor:
        """[1, 1 + rows * columns, C]: the embedding resized to another grid."""
        if rows == columns == self.grid:
            return self.pos_embed
        first, patches = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        square = patches.unflatten(1, (self.grid, self.grid)).permute(0, 3, 1, 2).float()
        resized = F.interpolate(
            square, size=(rows, columns), mode="bicubic", antialias=True, align_corners=False
        )
        return torch.cat([first, resized.flatten(2).transpose(1, 2).to(first.dtype)], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] normalised images -> [N, H/14 * W/14, C] patch tokens."""
        rows, columns = images.shape[-2] // PATCH, images.shape[-1] // PATCH
        x = self.patch_embed(images)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        x = x + self._positions(rows, columns)
        registers = self.register_tokens.expand(len(x), -1, -1)
        x = torch.cat([x[:, :1], registers, x[:, 1:]], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x[:, self.special :])


LARGE = 8 << 20  # bytes between two layers that caches do not hold


class Aggregator(nn.Module):
    """Alternating attention over the views of one timestep.

    Args:
        dim, depth, heads: size of the alternating blocks. encoder_depth, encoder_heads: of DINOv2.
        ray_channels: channels of an optional per-pixel input of calibrated rays (see
            `geometry.calibrated_rays`), added to the patch tokens; 0 builds the public network.
    """

    special = 5  # one camera and four register tokens a view
    _mean: Tensor
    _std: Tensor

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        *,
        encoder_depth: int,
        encoder_heads: int,
        grid: int = 37,
        ray_channels: int = 0,
    ):
        super().__init__()
        self.patch_embed = DinoEncoder(dim, encoder_depth, encoder_heads, grid=grid)
        self.camera_token = nn.Parameter(torch.randn(1, 2, 1, dim) * 1e-2)
        self.register_token = nn.Parameter(torch.randn(1, 2, self.special - 1, dim) * 1e-2)
        scale = 0.01
        self.frame_blocks = nn.ModuleList(
            Block(dim, heads, scale=scale, qk_norm=True) for _ in range(depth)
        )
        self.global_blocks = nn.ModuleList(
            Block(dim, heads, scale=scale, qk_norm=True) for _ in range(depth)
        )
        self.head_dim = dim // heads
        self.ray_embed = nn.Conv2d(ray_channels, dim, PATCH, PATCH) if ray_channels else None
        self.register_buffer("_mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def _tables(self, rows: int, columns: int, views: int, device: torch.device):
        """Rotary tables for one view and for all views together; special tokens sit at 0."""
        each = (torch.arange(n, device=device) for n in (rows, columns))
        y, x = torch.meshgrid(*each, indexing="ij")
        patches = torch.stack([y, x], dim=-1).flatten(0, 1) + 1
        positions = torch.cat([patches.new_zeros(self.special, 2), patches])
        cos, sin = rotary_tables(positions, self.head_dim)
        return (cos, sin), (cos.repeat(views, 1), sin.repeat(views, 1))

    def forward(
        self, images: Tensor, keep: tuple[int, ...], rays: Tensor | None = None
    ) -> dict[int, Tensor]:
        """Images [B, S, 3, H, W] in [0, 1], H and W multiples of 14 -> tokens by layer.

        Args:
            keep: the layers to give back; the others are not held in memory.
            rays: [B, S, ray_channels, H, W], or None.

        Returns:
            {layer: [B, S, 5 + H/14 * W/14, 2C]}, frame and global attention side by side.
        """
        B, _, _, H, W = images.shape
        if H % PATCH or W % PATCH:
            raise ValueError(f"VGGT takes sizes that are multiples of {PATCH}; found {H}x{W}")
        if not self._one_by_one(images):
            return self._tokens(images, keep, rays)
        kept: dict[int, Tensor] = {}
        for b in range(B):
            part = slice(b, b + 1)
            found = self._tokens(images[part], keep, None if rays is None else rays[part])
            for layer, tokens in found.items():
                if b == 0:
                    kept[layer] = tokens.new_empty(B, *tokens.shape[1:])
                kept[layer][part] = tokens
        return kept

    def _one_by_one(self, images: Tensor) -> bool:
        """Whether a batch is better run a timestep at a time: where a CPU's caches are too small.

        Timesteps do not see each other, and what lies between layers of many large ones goes
        through main memory: 8 of 2 views of 294x518 took VGGT-1B a tenth longer each.
        """
        B, S, _, H, W = images.shape
        widest = 4 * self.camera_token.shape[-1] * images.element_size()  # of a token, in an MLP
        timestep = S * (H // PATCH) * (W // PATCH) * widest
        alone = B > 1 and images.device.type == "cpu" and not torch.is_grad_enabled()
        return alone and timestep > LARGE

    def _tokens(
        self, images: Tensor, keep: tuple[int, ...], rays: Tensor | None
    ) -> dict[int, Tensor]:
        B, S, _, H, W = images.shape
        patches = self.patch_embed(((images - self._mean) / self._std).flatten(0, 1))
        if rays is not None:
            if self.ray_embed is None:
                raise ValueError("this VGGT was built without an input for calibrated rays")
            patches = patches + self.ray_embed(rays.flatten(0, 1)).flatten(2).transpose(1, 2)
        first = [0] + [1] * (S - 1)
        special = torch.cat([self.camera_token, self.register_token], dim=2)[:, first]
        x = torch.cat([special.expand(B, -1, -1, -1).flatten(0, 1).to(patches), patches], dim=1)
        P = x.shape[1]
        frame_tables, global_tables = self._tables(H // PATCH, W // PATCH, S, x.device)
        kept: dict[int, Tensor] = {}
        for i, (frame, across) in enumerate(
            zip(self.frame_blocks, self.global_blocks, strict=True)
        ):
            within = frame(x, frame_tables)
            x = across(within.reshape(B, S * P, -1), global_tables).reshape(B * S, P, -1)
            if i in keep:
                kept[i] = torch.cat([within, x], dim=-1).unflatten(0, (B, S))
        return kept

"""VGGT's track head: where pixels of the first view are in the others, found by iterated search.

The tracker is of CoTracker's kind (Karaev et al. 2023): a point's place and feature are refined
from the correlation of its feature with every view around its present place. Structure and
parameter names are those of the public VGGT-1B checkpoint, spelling included.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dpt import DPTHead
from .geometry import exact
from .layers import Mlp

EXTENT = 518.0  # the side of the public network's training images; flows are also given over it
SIMILARITIES = 2**27  # held at a time (half a gigabyte): a full-size map has 67,081 for every point


class SelfBlock(nn.Module):
    """Self-attention and MLP; the shortcut carries the normalised input, as it was trained."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x)
        x = x + self.attn(x, x, x)[0]
        return x + self.mlp(self.norm2(x))


class CrossBlock(nn.Module):
    """`SelfBlock` that attends to other tokens."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.norm_context = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.cross_attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x, context = self.norm1(x), self.norm_context(context)
        x = x + self.cross_attn(x, context, context)[0]
        return x + self.mlp(self.norm2(x))


class UpdateTransformer(nn.Module):
    """Tokens of all points in all views -> corrections.

    Attention runs along the views of a point, then across the points of a view by way of a few
    virtual tracks, so that its cost grows linearly with the points.
    """

    def __init__(
        self, inputs: int, dim: int, outputs: int, *, depth: int, heads: int, virtual: int
    ):
        super().__init__()
        self.virtual = virtual
        self.virual_tracks = nn.Parameter(torch.randn(1, virtual, 1, dim))
        self.input_norm = nn.LayerNorm(inputs)
        self.input_transform = nn.Linear(inputs, dim)
        self.output_norm = nn.LayerNorm(dim)
        self.flow_head = nn.Linear(dim, outputs)
        self.time_blocks = nn.ModuleList(SelfBlock(dim, heads) for _ in range(depth))
        self.space_virtual_blocks = nn.ModuleList(SelfBlock(dim, heads) for _ in range(depth))
        self.space_point2virtual_blocks = nn.ModuleList(
            CrossBlock(dim, heads) for _ in range(depth)
        )
        self.space_virtual2point_blocks = nn.ModuleList(
            CrossBlock(dim, heads) for _ in range(depth)
        )
        nn.init.trunc_normal_(self.flow_head.weight, std=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, S, inputs] -> [B, N, S, outputs]."""
        start = self.input_transform(self.input_norm(x))
        B, N, S, _ = start.shape
        x = torch.cat([start, self.virual_tracks.expand(B, -1, S, -1)], dim=1)
        for time, virtual, to_virtual, to_points in zip(
            self.time_blocks,
            self.space_virtual_blocks,
            self.space_virtual2point_blocks,
            self.space_point2virtual_blocks,
            strict=True,
        ):
            x = time(x.flatten(0, 1)).unflatten(0, (B, -1))
            x = x.transpose(1, 2).flatten(0, 1)  # [B * S, N + virtual, C]
            points, tracks = x[:, :N], x[:, N:]
            tracks = virtual(to_virtual(tracks, points))
            x = torch.cat([to_points(points, tracks), tracks], dim=1)
            x = x.unflatten(0, (B, S)).transpose(1, 2)
        return self.flow_head(self.output_norm(x[:, :N] + start))


def sample(maps: Tensor, places: Tensor, padding: str) -> Tensor:
    """Maps [N, C, H, W] read bilinearly at pixels (x, y) [N, h, w, 2] -> [N, C, h, w].

    Args:
        padding: what lies outside, "zeros" or "border".
    """
    # Times 2 / (side - 1), not twice over it: `flow_embedding` makes radians of the last bits.
    scale = places.new_tensor([2 / max(side - 1, 1) for side in (maps.shape[-1], maps.shape[-2])])
    grid = (places * scale - 1).to(maps.dtype)
    return F.grid_sample(maps, grid, "bilinear", padding, align_corners=True)


def correlation_window(radius: int, device: torch.device) -> Tensor:
    """[2r + 1, 2r + 1, 2] offsets (x, y), x along the first axis: so the weights learnt it."""
    steps = torch.arange(-radius, radius + 1, device=device, dtype=torch.float32)
    return torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1)


def correlate(pyramid: list[Tensor], features: Tensor, places: Tensor, radius: int) -> Tensor:
    """Similarity of points' features with the maps around their places, at every level.

    Args:
        pyramid: maps [B, S, C, H, W], each level half of the one before.
        features: [B, S, N, C]. places: [B, S, N, 2] pixels (x, y) of the first level.

    Returns:
        [B, S, N, levels * (2 * radius + 1)^2].
    """
    B, S, N, C = features.shape
    window = correlation_window(radius, places.device)
    largest = pyramid[0].shape[-2] * pyramid[0].shape[-1]
    most = max(1, SIMILARITIES // (B * S * largest))
    if most < N:  # points do not see each other here, so that parts give the same
        parts = zip(features.split(most, 2), places.split(most, 2), strict=True)
        return torch.cat([correlate(pyramid, *part, radius) for part in parts], dim=2)
    found = []
    for level, maps in enumerate(pyramid):
        similar = features @ maps.flatten(3) / math.sqrt(C)  # [B, S, N, H * W]
        similar = similar.reshape(B * S * N, 1, *maps.shape[-2:])
        centres = places.reshape(B * S * N, 1, 1, 2) / 2**level
        found.append(sample(similar, centres + window, "zeros").reshape(B, S, N, -1))
    return torch.cat(found, dim=-1)


def flow_embedding(flow: Tensor, channels: int) -> Tensor:
    """Flows [..., 2] -> [..., 2 * channels]: sines and cosines in turn, of x and then of y.

    The frequencies rise in equal steps to 1000 rad a pixel, as the public network was trained.
    """
    frequency = torch.arange(0, channels, 2, device=flow.device, dtype=flow.dtype)
    angle = flow[..., None] * (frequency * (1000.0 / channels))
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-3)


def place_embedding(places: Tensor, size: tuple[int, int], channels: int) -> Tensor:
    """Embedding [B, N, channels] of pixels (x, y) [B, N, 2] on a grid of `size` (H, W).

    Sines and cosines of x, then of y; between whole pixels the linear mix of the neighbours,
    outside the grid the border's.
    """
    quarter = channels // 4
    exponent = torch.arange(quarter, device=places.device, dtype=torch.float64) / quarter
    frequency = 1 / 10000.0**exponent

    def waves(length: int) -> Tensor:
        angle = torch.arange(length, device=places.device)[:, None] * frequency
        return torch.cat([angle.sin(), angle.cos()], dim=-1).to(places.dtype)

    height, width = size
    of_x = waves(width)[None].expand(height, -1, -1)
    of_y = waves(height)[:, None].expand(-1, width, -1)
    table = torch.cat([of_x, of_y], dim=-1).permute(2, 0, 1)
    table = table.expand(len(places), -1, -1, -1)
    return sample(table, places[:, :, None], "border")[..., 0].mT


class Tracker(nn.Module):
    """Finds points of the first map in all maps.

    Args:
        features: channels of the maps. hidden, depth, heads, virtual: of `UpdateTransformer`.
        levels, radius: of the correlation pyramid. iterations: refinements.
    """

    def __init__(
        self,
        features: int,
        *,
        hidden: int,
        depth: int,
        heads: int,
        virtual: int,
        levels: int,
        radius: int,
        iterations: int,
    ):
        super().__init__()
        self.levels, self.radius, self.iterations = levels, radius, iterations
        self.channels = 3 * features + 4
        self.query_ref_token = nn.Parameter(torch.randn(1, 2, self.channels))
        self.corr_mlp = Mlp(levels * (2 * radius + 1) ** 2, hidden, features)
        self.updateformer = UpdateTransformer(
            self.channels, hidden, features + 2, depth=depth, heads=heads, virtual=virtual
        )
        self.fmap_norm = nn.LayerNorm(features)
        self.ffeat_norm = nn.GroupNorm(1, features)
        self.ffeat_updater = nn.Sequential(nn.Linear(features, features), nn.GELU())
        self.vis_predictor = nn.Sequential(nn.Linear(features, 1))
        self.conf_predictor = nn.Sequential(nn.Linear(features, 1))

    def forward(self, maps: Tensor, queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps [B, S, C, H, W], queries [B, N, 2] in pixels (x, y) of the first map.

        Returns:
            places [iterations, B, S, N, 2] in pixels of the maps (the first map's stay the
            queries), visibility and confidence [B, S, N] in (0, 1).
        """
        B, S, C, H, W = maps.shape
        maps = self.fmap_norm(maps.movedim(2, -1)).movedim(-1, 2)
        pyramid = [maps]
        for _ in range(self.levels - 1):
            # A map of one row or column cannot be halved; it then has nothing more to say.
            if min(pyramid[-1].shape[-2:]) < 2:
                raise ValueError(
                    f"tracking with {self.levels} levels needs maps of at least "
                    f"{2 ** (self.levels - 1)} pixels a side; found {H}x{W}: give larger images"
                )
            pyramid.append(F.avg_pool2d(pyramid[-1].flatten(0, 1), 2).unflatten(0, (B, S)))
        dtype = maps.dtype
        first = sample(maps[:, 0], queries[:, :, None], "border")[..., 0]  # [B, C, N]
        features = first.mT[:, :, None].expand(B, -1, S, -1)  # tokens are [B, N, S, C]
        places = queries[:, :, None].expand(-1, -1, S, -1)
        embedded = place_embedding(queries, (H, W), self.channels)[:, :, None].to(dtype)
        reference = self.query_ref_token[:, [0] + [1] * (S - 1)]
        history = []
        for _ in range(self.iterations):
            # Each step learns a correction alone: no gradient through the step before.
            places = places.detach()
            similar = correlate(
                pyramid, features.transpose(1, 2), places.transpose(1, 2), self.radius
            )
            flow = places - places[:, :, :1]
            moved = [flow_embedding(flow, C // 2), flow / EXTENT, flow / EXTENT]
            similar = self.corr_mlp(similar.transpose(1, 2).flatten(0, 1)).unflatten(0, (B, -1))
            x = torch.cat([*(part.to(dtype) for part in moved), similar, features], dim=-1)
            delta = self.updateformer(x + embedded + reference)
            change = self.ffeat_updater(self.ffeat_norm(delta[..., 2:].reshape(-1, C)))
            features = features + change.view(B, -1, S, C)
            places = places + delta[..., :2].to(places.dtype)
            places = torch.cat([queries[:, :, None], places[:, :, 1:]], dim=2)
            history.append(places.transpose(1, 2))
        flat = features.transpose(1, 2).reshape(-1, C)
        visible, sure = (
            head(flat).float().sigmoid().view(B, S, -1)
            for head in (self.vis_predictor, self.conf_predictor)
        )
        return torch.stack(history), visible, sure


class TrackHead(nn.Module):
    """Dense features at half the image's size, and the tracker on them.

    Args:
        dim: channels of the tokens (2C). layers, widths: see `DPTHead`.
        features: channels of the dense features; the rest as of `Tracker`.
    """

    down = 2

    def __init__(
        self,
        dim: int,
        layers: tuple[int, ...],
        *,
        widths: tuple[int, ...] = (256, 512, 1024, 1024),
        features: int = 128,
        hidden: int = 384,
        depth: int = 6,
        heads: int = 8,
        virtual: int = 64,
        levels: int = 7,
        radius: int = 4,
        iterations: int = 4,
    ):
        super().__init__()
        self.feature_extractor = DPTHead(
            dim, layers, outputs=None, features=features, widths=widths, down=self.down, uv=False
        )
        self.tracker = Tracker(
            features,
            hidden=hidden,
            depth=depth,
            heads=heads,
            virtual=virtual,
            levels=levels,
            radius=radius,
            iterations=iterations,
        )

    def forward(
        self, tokens: dict[int, Tensor], size: tuple[int, int], special: int, queries: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """{layer: [B, S, P, dim]} of images of `size` (H, W); queries [B, N, 2] pixels (x, y).

        Returns:
            tracks [iterations, B, S, N, 2] in pixels of the images, visibility and confidence
            [B, S, N] in (0, 1).
        """
        B, S = next(iter(tokens.values())).shape[:2]
        if queries.ndim != 3 or len(queries) != B or queries.shape[-1] != 2:
            raise ValueError(
                f"query points are [B, N, 2] pixels (x, y) of the first view with B = {B}; "
                f"found {list(queries.shape)}"
            )
        maps = self.feature_extractor.features(tokens, size, special).unflatten(0, (B, S))
        # Pixels need all their digits, and the embedding of flows turns fast: no autocast here.
        with exact():
            maps = maps.to(self.tracker.query_ref_token.dtype)
            tracks, visible, sure = self.tracker(maps, queries.float() / self.down)
        return tracks * self.down, visible, sure

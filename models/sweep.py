"""Plane sweep: what every anchor shows along each wrist pixel's ray, at a few assumed surfaces.

A condition map commits to one depth a pixel, and where that is off by a centimetre the picture is
smeared. A sweep commits to none: it looks up the anchors' colours at several depths and says at
each whether the anchor's own depth lies before or behind it, so that the generator can choose
(Collins, "A space-sweep approach to true multi-image matching", 1996, and multi-view stereo since).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import camera_rays, project

# Metres above the robot's base: horizontal planes, on which tables and the tops of things lie.
HEIGHTS = (0.0, 0.025, 0.05, 0.09, 0.16)
# Metres before the hand camera: planes parallel to its picture, for what the hand holds.
DISTANCES = (0.13, 0.18)
PLANES = len(HEIGHTS) + len(DISTANCES)
CHANNELS = 4  # red, green, blue, signed distance
NEAR, FAR = 0.03, 2.0  # metres along the optical axis that a surface is looked for in
SLACK = 0.05  # metres at which the signed distance is 1


@dataclass
class SweptViews:
    """The anchors of a clip and where its cameras are, in one world whose z points up.

    Attributes:
        colors: [B, T, V, 3, h, w] in [0, 1]. K: [B, T, V, 3, 3] at (h, w); pose: [B, T, V, 4, 4].
        depth: [B, T, V, h', w'] metres, of the same views at any size.
        wrist_K: [B, T, 3, 3] at the wrist size; wrist_pose: [B, T, 4, 4] world-to-camera.
    """

    colors: Tensor
    K: Tensor
    pose: Tensor
    depth: Tensor
    wrist_K: Tensor
    wrist_pose: Tensor

    def to(self, device: torch.device | str) -> SweptViews:
        """The same on another device."""
        return SweptViews(**{name: value.to(device) for name, value in vars(self).items()})


def surfaces(wrist_K: Tensor, wrist_pose: Tensor, size: tuple[int, int]) -> Tensor:
    """Points where wrist rays meet the assumed surfaces: [N, PLANES, H, W, 3] in the world.

    Args:
        wrist_K: [N, 3, 3] at `size` (H, W); wrist_pose: [N, 4, 4] world-to-camera.

    A ray that misses a horizontal plane between `NEAR` and `FAR` is looked up at `FAR`.
    """
    rays = camera_rays(wrist_K, size)  # [N, H, W, 3], z = 1
    turn = wrist_pose[:, :3, :3]
    directions = torch.einsum("nji,nhwj->nhwi", turn, rays)
    centre = -torch.einsum("nji,nj->ni", turn, wrist_pose[:, :3, 3])
    heights = torch.tensor(HEIGHTS, device=rays.device)
    falls = directions[:, None, ..., 2]  # of z a metre along the optical axis
    z = (heights - centre[:, 2:])[:, :, None, None] / torch.where(
        falls.abs() < 1e-6, torch.full_like(falls, 1e-6), falls
    )
    z = torch.where((z > NEAR) & (z < FAR), z, torch.full_like(z, FAR))
    flat = torch.tensor(DISTANCES, device=rays.device)[None, :, None, None]
    z = torch.cat([z, flat.expand(len(z), -1, *size)], dim=1)
    return centre[:, None, None, None] + z[..., None] * directions[:, None]


@torch.no_grad()
def sweep(views: SweptViews, size: tuple[int, int]) -> Tensor:
    """[B, T, V, PLANES, CHANNELS, H, W]: colours in [-1, 1] and signed distances in [-1, 1].

    The signed distance is how far the anchor's surface lies behind the assumed one, in the
    anchor's depth and over `SLACK` (as a truncated signed distance, Curless and Levoy 1996): 0 on
    the surface, 1 in free space, -1 hidden. What an anchor does not see is grey and hidden.
    """
    B, T, V = views.colors.shape[:3]
    points = surfaces(views.wrist_K.flatten(0, 1), views.wrist_pose.flatten(0, 1), size)
    N = B * T
    points = points.flatten(1, 3)
    h, w = views.colors.shape[-2:]
    out = torch.empty(N, V, PLANES, CHANNELS, *size)
    out = out.to(views.colors.device)
    for v in range(V):
        pixels, z = project(
            points, views.K[:, :, v].flatten(0, 1), views.pose[:, :, v].flatten(0, 1)
        )
        grid = torch.stack([(pixels[..., 0] + 0.5) / w, (pixels[..., 1] + 0.5) / h], -1) * 2 - 1
        seen = ((grid.abs() < 1).all(-1) & (z > NEAR)).view(N, PLANES, *size)
        grid = grid.clamp(-2, 2).view(N, PLANES * size[0], size[1], 2)
        colors = F.grid_sample(
            views.colors[:, :, v].flatten(0, 1) * 2 - 1, grid, align_corners=False
        ).view(N, 3, PLANES, *size)
        depth = F.grid_sample(
            views.depth[:, :, v].flatten(0, 1)[:, None], grid, mode="nearest", align_corners=False
        ).view(N, PLANES, *size)
        signed = ((depth - z.view_as(depth)) / SLACK).clamp(-1, 1)
        out[:, v, :, :3] = (colors * seen[:, None]).transpose(1, 2)
        out[:, v, :, 3] = torch.where(seen & (depth > 0), signed, -torch.ones_like(signed))
    return out.unflatten(0, (B, T))

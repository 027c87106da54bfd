"""Plane sweep: what every anchor shows along each wrist pixel's ray, at a few assumed surfaces.

A condition map commits to one depth a pixel, and where that is off by a centimetre the picture is
smeared. A sweep commits to none: it looks up the anchors' colours at several depths and says at
each whether the anchor's own depth lies before or behind it, so that the generator can choose
(Collins, "A space-sweep approach to true multi-image matching", 1996, and multi-view stereo since).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import camera_rays, exact, project

# Metres above the robot's base: horizontal planes, on which tables and the tops of things lie.
HEIGHTS = (0.0, 0.015, 0.03, 0.05, 0.075, 0.11, 0.16)
# Metres before the hand camera: planes parallel to its picture, for what the hand holds.
DISTANCES = (0.11, 0.14, 0.18)
PLANES = len(HEIGHTS) + len(DISTANCES)
CHANNELS = 4  # red, green, blue, signed distance
WAVES = (0.16, 0.08, 0.04)  # metres: wavelengths that places on the tool's plane are told in
TOOL = 3 + 4 * len(WAVES)  # channels of `tool_planes`
NEAR, FAR = 0.03, 2.0  # metres along the optical axis that a surface is looked for in
SLACK = 0.05  # metres at which the signed distance is 1


Record = TypeVar("Record")


def moved(record: Record, device: torch.device | str) -> Record:
    """A dataclass of tensors (or of what has `to`, or None) on another device."""
    values: dict[str, Any] = vars(record)
    return type(record)(**{k: v if v is None else v.to(device) for k, v in values.items()})


@dataclass
class SweptViews:
    """The anchors of a clip and where its cameras are, in one world whose z points up.

    Attributes:
        colors: [B, T, V, 3, h, w] in [0, 1]. K: [B, T, V, 3, 3] at (h, w); pose: [B, T, V, 4, 4].
        depth: [B, T, V, h', w'] metres, of the same views at any size.
        wrist_K: [B, T, 3, 3] at the wrist size; wrist_pose: [B, T, 4, 4] world-to-camera.
        tool: [B, T, 4, 4] end effector in the world, its z ahead; None where it is not known.
    """

    colors: Tensor
    K: Tensor
    pose: Tensor
    depth: Tensor
    wrist_K: Tensor
    wrist_pose: Tensor
    tool: Tensor | None = None

    def to(self, device: torch.device | str) -> SweptViews:
        """The same on another device."""
        return moved(self, device)


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


@exact()
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
    out = torch.empty(N, V, PLANES, CHANNELS, *size, device=views.colors.device)
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


@exact()
@torch.no_grad()
def tool_planes(wrist_K: Tensor, wrist_pose: Tensor, tool: Tensor, size: tuple[int, int]) -> Tensor:
    """Where wrist rays meet the plane through the tool that faces the camera: [N, TOOL, H, W].

    The hand and what it holds keep their places on that plane however exactly the camera is
    mounted, so that their outlines can be learnt by place. Channels: along the tool (its z) and
    across it, metres over 0.1 and cut at 3; 1 where the ray meets the plane ahead; then sines and
    cosines of both at `WAVES` (Fourier features, Tancik et al. 2020), without which convolutions
    would take long to draw an edge from a ramp.

    Args:
        wrist_K: [N, 3, 3] at `size` (H, W); wrist_pose: [N, 4, 4] world-to-camera.
        tool: [N, 4, 4] end effector in the world.
    """
    turn = wrist_pose[:, :3, :3]
    directions = torch.einsum("nji,nhwj->nhwi", turn, camera_rays(wrist_K, size))
    centre = -torch.einsum("nji,nj->ni", turn, wrist_pose[:, :3, 3]) - tool[:, :3, 3]
    axis = tool[:, :3, 2]
    aside = centre - (centre * axis).sum(-1, keepdim=True) * axis
    distance = aside.norm(dim=-1).clamp_min(1e-6)
    normal = aside / distance[:, None]
    across = torch.linalg.cross(axis, normal)
    approach = -torch.einsum("nhwi,ni->nhw", directions, normal)
    met = approach > 1e-3
    z = distance[:, None, None] / approach.clamp_min(1e-3)
    places = []
    for way in (axis, across):
        start = (centre * way).sum(-1)[:, None, None]
        along = torch.einsum("nhwi,ni->nhw", directions, way)
        places.append((start + z * along).clamp(-0.3, 0.3) * met)
    waves = [f(2 * torch.pi / wave * place) for wave in WAVES for place in places
             for f in (torch.sin, torch.cos)]  # fmt: skip
    return torch.stack([10 * places[0], 10 * places[1], met.float(), *waves], dim=1)

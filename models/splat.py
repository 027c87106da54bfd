"""Condition maps: a coloured point cloud seen from a camera, by a z-buffered splat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .geometry import project

# How the released WristWorld draws its condition maps; the paper names no settings of its own.
RELEASED: dict[str, Any] = {"radius": 2, "near": 0.01, "truncate": True, "outside": False}


@dataclass
class ConditionMap:
    """A splatted picture.

    Attributes:
        color: [B, H, W, 3], the colours' dtype; holes are 0.
        depth: [B, H, W] float z in metres, 0 in holes.
        covered: [B, H, W] bool.
    """

    color: Tensor
    depth: Tensor
    covered: Tensor


def disc_offsets(radius: int) -> list[tuple[int, int]]:
    """(dx, dy) of the pixels with |dx| + |dy| <= radius: 1, 5 or 13 of them for radius 0, 1, 2."""
    span = range(-radius, radius + 1)
    return [(dx, dy) for dy in span for dx in span if abs(dx) + abs(dy) <= radius]


def _keys(depth: Tensor, index: Tensor) -> Tensor:
    """int64 that order by depth (positive), then by index: one minimum serves both."""
    # Positive floats order as their bits do.
    return (depth.float().contiguous().view(torch.int32).long() << 32) | index


def _depth_and_index(keys: Tensor) -> tuple[Tensor, Tensor]:
    """What `_keys` was made of."""
    return (keys >> 32).to(torch.int32).view(torch.float32), keys & 0xFFFFFFFF


def splat(
    points: Tensor,
    colors: Tensor,
    valid: Tensor,
    K: Tensor,
    pose: Tensor,
    size: tuple[int, int],
    *,
    radius: int = 1,
    near: float = 0.01,
    layer: float = 0.0,
    truncate: bool = False,
    outside: bool = True,
) -> ConditionMap:
    """Draw every valid point as a disc; the nearest to the camera wins a pixel.

    Args:
        points: [B, N, 3] world points; colors: [B, N, 3]; valid: [B, N] bool.
        K: [B, 3, 3] at `size` (H, W); pose: [B, 4, 4] world-to-camera.
        radius: of the disc in pixels (see `disc_offsets`); near: least z in metres.
        layer: relative depth that the outer pixels of a disc lie behind its centre, so that a
            surface's own samples win over their neighbours' blur.
        truncate: centre a disc on the pixel that the projection's whole part names, in place of
            the pixel whose centre is nearest.
        outside: draw what reaches into the image of discs whose centres are outside it.

    Ties go to the lower point index, so the picture does not depend on the order of execution
    (of one centre's points the nearest is drawn, even where `layer` rounds two depths to one).
    """
    B = len(points)
    H, W = size
    pixels, z = project(points, K, pose)
    # Truncation after a shift of half a pixel: the pixel whose centre is nearest.
    x, y = torch.floor(pixels + (0.0 if truncate else 0.5)).unbind(-1)
    reach = radius if outside else 0
    seen = valid & (z > near) & (x >= -reach) & (x < W + reach) & (y >= -reach) & (y < H + reach)
    batch, index = seen.nonzero(as_tuple=True)
    x, y, z = x[batch, index].long(), y[batch, index].long(), z[batch, index]
    # Discs are alike, so of those with one centre the nearest hides the others wherever it lies:
    # each point is entered once, at its centre, and the picture grown by the disc afterwards.
    h, w = H + 2 * radius, W + 2 * radius  # centres may lie outside by the radius
    far = torch.iinfo(torch.int64).max
    centres = torch.full((B * h * w,), far, dtype=torch.int64, device=points.device)
    cell = (batch * h + (y + radius)) * w + (x + radius)
    centres.scatter_reduce_(0, cell, _keys(z, index), reduce="amin")
    centres = centres.view(B, h, w)
    rings = [centres]
    for ring in range(1, radius + 1):
        if layer:
            depth, index = _depth_and_index(centres)
            pushed = _keys(depth * (1 + layer * ring), index)
            rings.append(torch.where(centres == far, centres, pushed))
        else:
            rings.append(centres)
    buffer = torch.full((B, H, W), far, dtype=torch.int64, device=points.device)
    for dx, dy in disc_offsets(radius):
        top, left = radius - dy, radius - dx
        ring = rings[abs(dx) + abs(dy)]
        torch.minimum(buffer, ring[:, top : top + H, left : left + W], out=buffer)
    covered = buffer != far
    nearest, winner = _depth_and_index(buffer)
    winner = torch.where(covered, winner, 0).view(B, H * W)
    color = colors.gather(1, winner[..., None].expand(-1, -1, 3)).view(B, H, W, 3)
    color = color * covered[..., None].to(color.dtype)
    depth = torch.where(covered, nearest, torch.zeros_like(nearest))
    return ConditionMap(color, depth, covered)


def splat_reference(
    points: Tensor,
    colors: Tensor,
    valid: Tensor,
    K: Tensor,
    pose: Tensor,
    size: tuple[int, int],
    *,
    radius: int = 1,
    near: float = 0.01,
    layer: float = 0.0,
    truncate: bool = False,
    outside: bool = True,
) -> ConditionMap:
    """`splat`, one point and one pixel at a time: slow, plain, and what the tests compare with."""
    B, N, _ = points.shape
    H, W = size
    color = torch.zeros(B, H, W, 3, dtype=colors.dtype)
    nearest = torch.full((B, H, W), float("inf"))
    pixels, z = project(points, K, pose)
    for b in range(B):
        for n in range(N):
            depth = float(z[b, n])
            if not valid[b, n] or depth <= near:
                continue
            x, y = (int(v) for v in torch.floor(pixels[b, n] + (0.0 if truncate else 0.5)))
            if not outside and not (0 <= x < W and 0 <= y < H):
                continue
            for dx, dy in disc_offsets(radius):
                px, py = x + dx, y + dy
                if not (0 <= px < W and 0 <= py < H):
                    continue
                pushed = float(z[b, n] * (1 + layer * (abs(dx) + abs(dy))))
                if pushed < nearest[b, py, px]:
                    nearest[b, py, px] = pushed
                    color[b, py, px] = colors[b, n]
    covered = torch.isfinite(nearest)
    return ConditionMap(color, torch.where(covered, nearest, 0.0), covered)

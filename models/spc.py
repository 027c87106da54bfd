"""The spatial projection consistency loss (WristWorld, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .geometry import transform


@dataclass
class SPC:
    """The loss and what went into it; all are scalars.

    Attributes:
        loss: lambda_u * reprojection + lambda_depth * behind.
        reprojection: mean squared pixel error of the points in front, over (H^2 + W^2).
        behind: mean of -z in metres over the points behind.
        front_share: share of the counted points that are in front.
    """

    loss: Tensor
    reprojection: Tensor
    behind: Tensor
    front_share: Tensor


def spc_loss(
    points: Tensor,
    pixels: Tensor,
    valid: Tensor,
    K: Tensor,
    pose: Tensor,
    size: tuple[int, int],
    *,
    lambda_u: float = 1.0,
    lambda_depth: float = 1.0,
    near: float = 1e-2,
) -> SPC:
    """Pull points in front of the wrist camera to their pixels, and points behind it to the front.

    L_u is the mean squared distance between projections and matched pixels over the points in
    front, L_depth the mean of -z over the points behind, separate means as in the paper. L_u
    is divided by H^2 + W^2 so that its size does not depend on the resolution.

    Args:
        points: [B, M, 3] lifted from the anchor point cloud, in the world of `pose`, metres.
        pixels: [B, M, 2] the matched wrist pixels (x, y).
        valid: [B, M] bool, which correspondences count.
        K: [B, 3, 3] of the wrist camera at `size` (H, W); pose: [B, 4, 4] predicted world-to-
            camera.
        near: points closer than this in front are projected as if at `near` metres, which bounds
            the gradient of 1/z at the plane z = 0.
    """
    points, pixels, K, pose = points.float(), pixels.float(), K.float(), pose.float()
    # A point that is not counted may be anything; set to zero it cannot leak a NaN through 0 * inf.
    points = torch.where(valid[..., None], points, torch.zeros_like(points))
    camera = transform(pose, points)
    z = camera[..., 2]
    front = (valid & (z > 0)).to(z.dtype)
    back = (valid & (z <= 0)).to(z.dtype)
    safe = z.clamp_min(near)[..., None]
    focal = torch.stack([K[:, 0, 0], K[:, 1, 1]], dim=-1)[:, None]
    projected = camera[..., :2] / safe * focal + K[:, None, :2, 2]
    squared = (projected - pixels).square().sum(-1) / (size[0] ** 2 + size[1] ** 2)
    squared = torch.where(front > 0, squared, torch.zeros_like(squared))
    count_front, count_back = front.sum(), back.sum()
    reprojection = squared.sum() / count_front.clamp_min(1)
    behind = (-z * back).sum() / count_back.clamp_min(1)
    total = (count_front + count_back).clamp_min(1)
    return SPC(
        lambda_u * reprojection + lambda_depth * behind, reprojection, behind, count_front / total
    )

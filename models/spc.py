"""The spatial projection consistency loss (WristWorld, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import exact, transform

FORMS = ("scaled", "paper", "official")


@dataclass
class SPC:
    """The loss and what went into it; all are scalars.

    Attributes:
        loss: lambda_u * reprojection + lambda_depth * behind.
        reprojection: the error of the points in front, in the form's units.
        behind: -z in metres of the points behind.
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
    form: str = "scaled",
    lambda_u: float = 1.0,
    lambda_depth: float = 1.0,
    near: float = 1e-2,
) -> SPC:
    """Pull points in front of the wrist camera to their pixels, and points behind it to the front.

    With u, v the projection and the matched pixel of a point and z its depth, the forms are

    - "paper": L_u is the mean of MSE(u, v), in square pixels, over the points in front, L_depth the
      mean of -z over the points behind;
    - "scaled": the same two means, with |u - v|^2 / (H^2 + W^2) for the MSE, so that the balance
      of the two does not depend on the resolution;
    - "official" (as released): 30 MSE(u, v) / (H^2 + W^2) in front and relu(-z) behind, summed and
      divided by the number of all points, so that the points in the minority weigh little.

    A point on the plane z = 0 counts as behind. Computed in float32 at least, autocast or not.

    Args:
        points: [B, M, 3] lifted from the anchor point cloud, in the world of `pose`, metres.
        pixels: [B, M, 2] the matched wrist pixels (x, y).
        valid: [B, M] bool, which correspondences count.
        K: [B, 3, 3] of the wrist camera at `size` (H, W); pose: [B, 4, 4] predicted world-to-
            camera.
        near: points closer than this in front are projected as if at `near` metres, which bounds
            the gradient of 1/z at the plane z = 0.

    Raises ValueError for an unknown form. Where no correspondence counts the loss is 0 and so is
    its gradient.
    """
    if form not in FORMS:
        raise ValueError(f"the SPC loss has the forms {', '.join(FORMS)}; found {form}")
    with exact():
        full = torch.promote_types(torch.promote_types(points.dtype, pose.dtype), torch.float32)
        points, pixels, K, pose = (x.to(full) for x in (points, pixels, K, pose))
        # A correspondence that is not counted may be anything; set to zero it cannot leak a NaN
        # through 0 * inf, neither forward nor backward.
        points = torch.where(valid[..., None], points, torch.zeros_like(points))
        pixels = torch.where(valid[..., None], pixels, torch.zeros_like(pixels))
        K = torch.where(valid.any(1)[:, None, None], K, torch.zeros_like(K))
        camera = transform(pose, points)
        z = camera[..., 2]
        front, back = valid & (z > 0), valid & (z <= 0)
        safe = z.clamp_min(near)[..., None]
        focal = torch.stack([K[:, 0, 0], K[:, 1, 1]], dim=-1)[:, None]
        projected = camera[..., :2] / safe * focal + K[:, None, :2, 2]
        squared = (projected - pixels).square()
        diagonal = size[0] ** 2 + size[1] ** 2
        if form == "paper":
            error = squared.mean(-1)
        elif form == "scaled":
            error = squared.sum(-1) / diagonal
        else:
            error = 30 * squared.mean(-1) / diagonal
        depth = F.relu(-z) if form == "official" else -z
        zero = torch.zeros_like(z)
        error, depth = torch.where(front, error, zero).sum(), torch.where(back, depth, zero).sum()
        count_front, count_back = front.sum(), back.sum()
        total = (count_front + count_back).clamp_min(1)
        if form == "official":
            reprojection, behind = error / total, depth / total
        else:
            reprojection = error / count_front.clamp_min(1)
            behind = depth / count_back.clamp_min(1)
        loss = lambda_u * reprojection + lambda_depth * behind
        return SPC(loss, reprojection, behind, count_front / total)

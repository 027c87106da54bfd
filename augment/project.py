"""Condition maps: the anchors' coloured point cloud seen from the wrist camera."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from ..models.geometry import rescale_intrinsics, unproject
from ..models.splat import splat
from ..readers.episode import View
from .recipe import Recipe

NEAREST = 0.05  # metres at which `nearness` is 1


@dataclass
class Conditions:
    """The condition maps of an episode at the wrist size.

    Attributes:
        color: [T, H, W, 3] uint8, holes black. filled: the same with holes filled.
        covered: [T, H, W] bool. nearness: [T, H, W] float32 in [0, 1], 0.05 m over depth (filled).
    """

    color: np.ndarray
    filled: np.ndarray
    covered: np.ndarray
    nearness: np.ndarray

    @property
    def coverage(self) -> np.ndarray:
        """[T] float32, the share of each frame that is covered."""
        return self.covered.mean((1, 2), dtype=np.float32)


def smooth_surface(depth: Tensor, edge: float) -> Tensor:
    """[..., H, W] depth -> bool, False where a neighbour's depth differs by more than `edge` of it.

    Depth networks interpolate across silhouettes; points there float between the surfaces.
    """
    padded = F.pad(depth.flatten(0, -3)[:, None], (1, 1, 1, 1), mode="replicate")
    high = F.max_pool2d(padded, 3, stride=1)[:, 0].view_as(depth)
    low = -F.max_pool2d(-padded, 3, stride=1)[:, 0].view_as(depth)
    return (high - low) < edge * depth


def fill_holes(
    color: np.ndarray, depth: np.ndarray, covered: np.ndarray, *, empty: int = 128
) -> tuple[np.ndarray, np.ndarray]:
    """Give every hole the colour and depth of the nearest covered pixel of its frame.

    Args:
        color: [T, H, W, 3]; depth: [T, H, W]; covered: [T, H, W] bool.
        empty: the grey level of a frame with nothing covered; its depth is 0.

    Returns:
        filled colour and depth.
    """
    color, depth = color.copy(), depth.copy()
    for t in range(len(color)):
        if covered[t].all():
            continue
        if not covered[t].any():
            color[t], depth[t] = empty, 0
            continue
        rows, columns = np.asarray(
            distance_transform_edt(~covered[t], return_distances=False, return_indices=True)
        )
        color[t], depth[t] = color[t][rows, columns], depth[t][rows, columns]
    return color, depth


def lift(
    view: View, depth: Tensor, confidence: Tensor, K: Tensor, pose: Tensor, recipe: Recipe, t: slice
) -> tuple[Tensor, Tensor, Tensor]:
    """One anchor's pixels as points: at the view's own resolution, depth upsampled to it.

    Args:
        depth, confidence: [n, h, w] for the timesteps `t`. K: [3, 3] at (h, w); pose: [4, 4].

    Returns:
        points [n, H * W, 3], colours [n, H * W, 3] uint8, usable [n, H * W].
    """
    size = view.size
    usable = confidence >= recipe.min_confidence
    if recipe.edge:
        usable = usable & smooth_surface(depth, recipe.edge)
    network_size = (depth.shape[-2], depth.shape[-1])
    if size != network_size:
        # Corners stay corners (as `rescale_intrinsics` has it); usable only between usable samples.
        fine = F.interpolate(depth[:, None], size, mode="bilinear", align_corners=False)[:, 0]
        kept = F.interpolate(usable[:, None].float(), size, mode="bilinear", align_corners=False)
        depth, usable = fine, kept[:, 0] > 0.5
    K = rescale_intrinsics(K, network_size, size)
    n = len(depth)
    points = unproject(depth, K.expand(n, -1, -1), pose.expand(n, -1, -1))
    colors = torch.as_tensor(np.ascontiguousarray(view.frames[t]))
    return points.flatten(1, 2), colors.flatten(1, 2), usable.flatten(1)


def condition_maps(
    anchors: list[View],
    depth: Tensor,
    confidence: Tensor,
    K: Tensor,
    pose: Tensor,
    wrist_K: Tensor,
    wrist_pose: Tensor,
    recipe: Recipe,
    *,
    batch: int = 4,
) -> Conditions:
    """Splat all anchors into the wrist view.

    Args:
        depth, confidence: [T, S, h, w]; K: [S, 3, 3] at (h, w); pose: [S, 4, 4].
        wrist_K: [3, 3] at the recipe's wrist size; wrist_pose: [T, 4, 4].
        batch: timesteps splatted at a time.
    """
    H, W = recipe.wrist_size
    scale = recipe.supersample
    large = (H * scale, W * scale)
    large_K = rescale_intrinsics(wrist_K, (H, W), large)
    colors, depths, covers = [], [], []
    for start in range(0, len(depth), batch):
        t = slice(start, min(len(depth), start + batch))
        parts = [
            lift(view, depth[t, s], confidence[t, s], K[s], pose[s], recipe, t)
            for s, view in enumerate(anchors)
        ]
        points, color, usable = (torch.cat(values, dim=1) for values in zip(*parts, strict=True))
        n = len(points)
        seen = splat(
            points,
            color,
            usable,
            large_K.expand(n, -1, -1),
            wrist_pose[t],
            large,
            radius=recipe.radius,
            layer=recipe.layer,
        )
        colors.append(seen.color)
        depths.append(seen.depth)
        covers.append(seen.covered)
    color, z, covered = (torch.cat(values) for values in (colors, depths, covers))
    if scale > 1:
        color, z, covered = _average(color, z, covered, scale)
    color, z, covered = color.numpy(), z.numpy(), covered.numpy()
    filled, z = fill_holes(color, z, covered)
    with np.errstate(divide="ignore"):
        nearness = np.where(z > 0, np.minimum(NEAREST / z, 1.0), 0.0).astype(np.float32)
    return Conditions(color, filled, covered, nearness)


def _average(color: Tensor, z: Tensor, covered: Tensor, scale: int):
    """Mean over scale x scale cells of what is covered in them."""
    weight = covered.float()[:, None]
    share = F.avg_pool2d(weight, scale)
    safe = share.clamp_min(1e-6)
    mean = F.avg_pool2d(color.permute(0, 3, 1, 2).float() * weight, scale) / safe
    depth = F.avg_pool2d(z[:, None] * weight, scale) / safe
    seen = share[:, 0] > 0
    color = (mean.permute(0, 2, 3, 1) + 0.5).to(torch.uint8) * seen[..., None]
    return color, depth[:, 0] * seen, seen


def scaled_wrist_K(
    K: np.ndarray | None,
    K_size: tuple[int, int] | None,
    fov: Tensor | None,
    recipe: Recipe,
) -> Tensor:
    """[3, 3] intrinsics of the wrist camera at the recipe's wrist size.

    From calibration where there is one (K at K_size), else from the predicted field of view [2]
    (high, wide; radians) if it is between 30 and 130 degrees, else from the recipe.
    """
    H, W = recipe.wrist_size
    if K is not None and K_size is not None:
        return rescale_intrinsics(torch.as_tensor(K).float(), K_size, (H, W))
    wide = float(np.deg2rad(recipe.wrist_hfov))
    if fov is not None and np.deg2rad(30) < float(fov[1]) < np.deg2rad(130):
        wide = float(fov[1])
    focal = W / 2 / np.tan(wide / 2)
    return torch.tensor([[focal, 0, (W - 1) / 2], [0, focal, (H - 1) / 2], [0, 0, 1]])

"""Condition maps: the anchors' coloured point cloud seen from the wrist camera."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from ..models.geometry import decode_pose, rescale_intrinsics, unproject
from ..models.splat import splat
from ..readers.episode import View
from .fuse import Background, background_colors
from .recipe import Recipe
from .reconstruct import resize_frames

NEAREST = 0.05  # metres at which `nearness` is 1
BEHIND = 0.02  # share of its distance by which what is remembered lies behind what is seen


@dataclass
class Cameras:
    """Where everything was when condition maps were made, in the robot's base, metres.

    Attributes:
        depth: [T, S, h, w] of the anchors; K: [S, 3, 3] at (h, w); pose: [S, 4, 4].
        wrist_K: [T, 3, 3] at the wrist size; wrist_pose: [T, 4, 4].
        tool: [T, 4, 4] end effector in the base, or None where the data do not say.
    """

    depth: Tensor
    K: Tensor
    pose: Tensor
    wrist_K: Tensor
    wrist_pose: Tensor
    tool: Tensor | None = None


@dataclass
class Conditions:
    """The condition maps of an episode at the wrist size.

    Attributes:
        color: [T, H, W, 3] uint8, holes black. covered: [T, H, W] bool.
        depth: [T, H, W] float32, the z of what is covered, 0 elsewhere.
        cameras: what they were made with, where the anchors are calibrated; else None.
        filled: the colours with holes filled. nearness: [T, H, W] float32 in [0, 1], 0.05 m over
            depth (filled).
    """

    color: np.ndarray
    covered: np.ndarray
    depth: np.ndarray
    cameras: Cameras | None = None

    @property
    def coverage(self) -> np.ndarray:
        """[T] float32, the share of each frame that is covered."""
        return self.covered.mean((1, 2), dtype=np.float32)

    @cached_property
    def _whole(self) -> tuple[np.ndarray, np.ndarray]:
        return fill_holes(self.color, self.depth, self.covered)

    @property
    def filled(self) -> np.ndarray:
        return self._whole[0]

    @cached_property
    def nearness(self) -> np.ndarray:
        z = self._whole[1]
        with np.errstate(divide="ignore"):
            return np.where(z > 0, np.minimum(NEAREST / z, 1.0), 0.0).astype(np.float32)


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


def confidence_of_surest(confidence: Tensor, share: float) -> float:
    """The least confidence of the most confident `share` of the points of an episode."""
    values = confidence.flatten()
    values = values[:: max(1, len(values) // 2**20)]  # a million tells the quantile well enough
    return float(np.quantile(values.numpy(), 1 - share))


def lift(
    view: View,
    depth: Tensor,
    confidence: Tensor,
    K: Tensor,
    pose: Tensor,
    recipe: Recipe,
    t: slice,
    points: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One anchor's pixels as points, at the larger of the view's own size and the network's.

    Args:
        depth, confidence: [n, h, w] for the timesteps `t`. K: [3, 3] or [n, 3, 3] at (h, w); pose:
            [4, 4] or [n, 4, 4]. points: [n, h, w, 3] in the world, in place of the depth's.

    Returns:
        points [n, H * W, 3], colours [n, H * W, 3] uint8, usable [n, H * W].
    """
    network_size = (depth.shape[-2], depth.shape[-1])
    large = view.size[0] * view.size[1] > network_size[0] * network_size[1]
    size = view.size if large else network_size
    usable = confidence >= recipe.min_confidence
    if recipe.edge:
        usable = usable & smooth_surface(depth, recipe.edge)
    if size != network_size:
        # Corners stay corners (as `rescale_intrinsics` has it); usable only between usable samples.
        kept = F.interpolate(usable[:, None].float(), size, mode="bilinear", align_corners=False)
        usable = kept[:, 0] > 0.5
        if points is None:
            depth = F.interpolate(depth[:, None], size, mode="bilinear", align_corners=False)[:, 0]
        else:
            fine = points.permute(0, 3, 1, 2)
            fine = F.interpolate(fine, size, mode="bilinear", align_corners=False)
            points = fine.permute(0, 2, 3, 1)
    n = len(depth)
    if points is None:
        K = rescale_intrinsics(K, network_size, size)
        points = unproject(depth, K.expand(n, -1, -1), pose.expand(n, -1, -1))
    colors = torch.as_tensor(np.ascontiguousarray(view.frames[t]))
    if size != view.size:
        shown = resize_frames(colors, size).permute(0, 2, 3, 1)
        colors = (shown * 255).round().clamp(0, 255).to(torch.uint8)
    return points.flatten(1, 2), colors.flatten(1, 2), usable.flatten(1)


def lift_hidden(
    view: View,
    background: Background,
    s: int,
    K: Tensor,
    pose: Tensor,
    recipe: Recipe,
) -> tuple[Tensor, Tensor, Tensor]:
    """What moving things hid from anchor `s`, as points, at the size that `lift` has.

    Args:
        K: [3, 3] at the network's size; pose: [4, 4].

    Returns:
        points [N, 3], colours [N, 3] uint8, and which pixel of the network's size [N] each is of.
    """
    depth = background.depth[s]
    network_size = (depth.shape[-2], depth.shape[-1])
    large = view.size[0] * view.size[1] > network_size[0] * network_size[1]
    size = view.size if large else network_size
    there = background.shown[:, s].any(0) & (depth > 0)
    if recipe.edge:
        there &= smooth_surface(depth[None], recipe.edge)[0]
    cell = torch.arange(depth.numel()).view(1, 1, *network_size).float()
    # Depth of hidden surfaces is known in patches: between them there is nothing to blend.
    cell = F.interpolate(cell, size, mode="nearest-exact").long().flatten()
    fine = depth.flatten()[cell].view(size)
    points = unproject(fine, rescale_intrinsics(K, network_size, size), pose).flatten(0, 1)
    kept = there.flatten()[cell]
    colors = background_colors(view, background, s, size).flatten(0, 1)
    return points[kept], colors[kept], cell[kept]


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
    points: Tensor | None = None,
    background: Background | None = None,
    batch: int = 4,
    device: torch.device | str = "cpu",
) -> Conditions:
    """Splat all anchors into the wrist view.

    Args:
        depth, confidence: [T, S, h, w]; K: [S, 3, 3] at (h, w); pose: [S, 4, 4]; both also with a
            first axis of T.
        wrist_K: [3, 3] or [T, 3, 3] at the recipe's wrist size; wrist_pose: [T, 4, 4].
        points: [T, S, h, w, 3] in the world, in place of the depth's.
        background: what moving things hid, drawn a little behind what is seen now.
        batch: timesteps splatted at a time. device: where.
    """
    H, W = recipe.wrist_size
    T, scale = len(depth), recipe.supersample
    large = (H * scale, W * scale)
    large_K = rescale_intrinsics(wrist_K, (H, W), large).expand(T, -1, -1)
    K = K.expand(T, *K.shape[-3:])
    pose = pose.expand(T, *pose.shape[-3:])
    hidden = []
    if background is not None:
        for s, view in enumerate(anchors):
            hidden.append(lift_hidden(view, background, s, K[0, s], pose[0, s], recipe))
    colors, depths, covers = [], [], []
    for start in range(0, T, batch):
        t = slice(start, min(T, start + batch))
        parts = []
        for s, view in enumerate(anchors):
            own = None if points is None else points[t, s]
            parts.append(
                lift(view, depth[t, s], confidence[t, s], K[t, s], pose[t, s], recipe, t, own)
            )
        for s, (place, shade, cell) in enumerate(hidden):
            assert background is not None
            n = t.stop - t.start
            shown = background.shown[t, s].flatten(1)[:, cell]
            place = _behind(place, wrist_pose[t])
            parts.append((place, shade.expand(n, -1, -1), shown))
        cloud, color, usable = (torch.cat(v, dim=1).to(device) for v in zip(*parts, strict=True))
        seen = splat(
            cloud,
            color,
            usable,
            large_K[t].to(device),
            wrist_pose[t].to(device),
            large,
            radius=recipe.radius,
            layer=recipe.layer,
            near=recipe.near,
            truncate=recipe.truncate,
            outside=recipe.outside,
        )
        colors.append(seen.color.cpu())
        depths.append(seen.depth.cpu())
        covers.append(seen.covered.cpu())
    color, z, covered = (torch.cat(values) for values in (colors, depths, covers))
    if scale > 1:
        color, z, covered = _average(color, z, covered, scale)
    return Conditions(color.numpy(), covered.numpy(), z.numpy())


def _behind(points: Tensor, pose: Tensor) -> Tensor:
    """[n, N, 3] points [N, 3] moved away from cameras [n, 4, 4] along their rays, by `BEHIND`."""
    centre = torch.linalg.inv(pose)[:, None, :3, 3]
    return centre + (points - centre) * (1 + BEHIND)


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
    (high, wide; radians) if its width is between 30 and 130 degrees, else from the recipe. Pixels
    are square, but for the official form, which takes both fields of view as they are. Fields of
    view [T, 2], one a frame, give [T, 3, 3].
    """
    H, W = recipe.wrist_size
    if K is not None and K_size is not None:
        return rescale_intrinsics(torch.as_tensor(K).float(), K_size, (H, W))
    wide = torch.tensor(float(np.deg2rad(recipe.wrist_hfov)))
    if fov is not None:
        sane = (fov[..., 1] > np.deg2rad(30)) & (fov[..., 1] < np.deg2rad(130))
        if recipe.form == "official" and sane.all():
            encoding = F.pad(fov.float(), (7, 0)) + torch.tensor([0.0] * 6 + [1] + [0] * 2)
            return decode_pose(encoding, (H, W))[1]
        wide = torch.where(sane, fov[..., 1].float(), wide)
    out = torch.zeros(*wide.shape, 3, 3)
    out[..., 0, 0] = out[..., 1, 1] = W / 2 / torch.tan(wide / 2)
    out[..., 0, 2], out[..., 1, 2], out[..., 2, 2] = (W - 1) / 2, (H - 1) / 2, 1
    return out

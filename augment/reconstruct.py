"""Stage 1 on an episode: anchor views -> depth of every anchor pixel, cameras, the wrist's pose."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.aggregator import PATCH
from ..models.geometry import calibrated_rays, decode_pose, rescale_intrinsics, tool_axis
from ..models.vggt import VGGT
from ..readers.episode import Episode, View
from .recipe import Recipe


@dataclass
class Reconstruction:
    """Geometry of an episode, at the size (h, w) that the network saw.

    Attributes:
        depth, confidence: [T, S, h, w], metres (up to scale without calibration).
        K: [S, 3, 3] at (h, w); pose: [S, 4, 4] world-to-camera, one for the whole episode.
        wrist_pose: [T, 4, 4] world-to-camera; wrist_fov: [2] (high, wide) in radians.
        notes: what was chosen for pose and geometry, and why.
        calibrated: whether cameras came with the data (the depth is then the calibrated head's).
    """

    depth: Tensor
    confidence: Tensor
    K: Tensor
    pose: Tensor
    wrist_pose: Tensor
    wrist_fov: Tensor
    notes: dict[str, str] = field(default_factory=dict)
    calibrated: bool = True


def network_size(height: int, width: int, pixels: int) -> tuple[int, int]:
    """The (h, w), multiples of 14, nearest in shape to a view and in area to `pixels`."""
    aspect = width / height
    rows = max(1, round((pixels / aspect) ** 0.5 / PATCH))
    columns = max(1, round(rows * aspect))
    return rows * PATCH, columns * PATCH


def resize_frames(frames: np.ndarray | Tensor, size: tuple[int, int]) -> Tensor:
    """[T, H, W, 3] uint8 -> [T, 3, h, w] float in [0, 1], antialiased."""
    x = torch.as_tensor(frames).permute(0, 3, 1, 2).float() / 255
    if x.shape[-2:] == tuple(size):
        return x
    return F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)


def is_calibrated(view: View) -> bool:
    """Whether a view has intrinsics and a static pose."""
    return view.K is not None and view.pose is not None and np.ndim(view.pose) == 2


def mean_pose(encodings: Tensor) -> Tensor:
    """[T, ..., 9] pose encodings of one static camera -> [..., 9]: the median, unit quaternion."""
    # Quaternions q and -q are one rotation; bring all to the half-space of the first.
    sign = torch.sign((encodings[..., 3:7] * encodings[:1, ..., 3:7]).sum(-1, keepdim=True))
    aligned = torch.cat([encodings[..., :3], encodings[..., 3:7] * sign, encodings[..., 7:]], -1)
    middle = aligned.median(dim=0).values
    return torch.cat([middle[..., :3], F.normalize(middle[..., 3:7], dim=-1), middle[..., 7:]], -1)


@torch.no_grad()
def reconstruct(
    network: VGGT, episode: Episode, recipe: Recipe, *, pose: str = "auto", batch: int = 8
) -> Reconstruction:
    """Run the network over an episode.

    Args:
        pose: `measured` (kinematics and hand-eye calibration), `head` (the wrist head) or `auto`
            (measured where the episode has it).
        batch: timesteps a pass.

    Anchors are taken as static: predicted cameras are one median over the episode, not a pose a
    frame, so that the scene's scale does not jitter.
    """
    anchors = episode.anchors
    size = network_size(*anchors[0].size, recipe.pixels)
    device = next(network.parameters()).device
    images = torch.stack([resize_frames(view.frames, size) for view in anchors], dim=1)
    calibrated = all(is_calibrated(view) for view in anchors)
    notes: dict[str, str] = {}
    T = len(images)
    K = view_pose = tool = None
    if calibrated:
        K = torch.stack(
            [
                rescale_intrinsics(torch.as_tensor(view.K).float(), view.size, size)
                for view in anchors
            ]
        )
        view_pose = torch.stack([torch.as_tensor(view.pose).float() for view in anchors])
        if episode.eef_pose is not None:
            tool = tool_axis(torch.as_tensor(episode.eef_pose).float())
        notes["geometry"] = "depth from the anchors with the dataset's cameras"
    else:
        notes["geometry"] = "depth and cameras from the anchors alone (no calibration in the data)"
    depths, confidences, cameras, wrists = [], [], [], []
    for start in range(0, T, batch):
        part = slice(start, min(T, start + batch))
        x = images[part].to(device)
        rays = priors = None
        if K is not None and view_pose is not None and network.config.ray_channels:
            n = len(x)
            rays, priors = calibrated_rays(
                K.expand(n, -1, -1, -1).to(device),
                view_pose.expand(n, -1, -1, -1).to(device),
                size,
                None if tool is None else tool[part].to(device),
            )
        out = network(x, rays, priors)
        depths.append(out.depth)
        confidences.append(out.depth_confidence)
        cameras.append(out.cameras[-1])
        wrists.append(out.wrist)
    depth, confidence = torch.cat(depths).float().cpu(), torch.cat(confidences).float().cpu()
    wrist = torch.cat(wrists).float().cpu()
    if K is None or view_pose is None:
        view_pose, K = decode_pose(mean_pose(torch.cat(cameras).float().cpu()), size)
        # The first anchor is the world; the network only learns that it is nearly so.
        view_pose = view_pose @ torch.linalg.inv(view_pose[:1])
    head_pose, _ = decode_pose(wrist, size)
    wrist_pose = head_pose @ view_pose[:1]
    wrist_fov = wrist[:, 7:9].median(dim=0).values
    measured = episode.measured_wrist_pose() if calibrated else None
    if pose == "measured" and measured is None:
        lacks = "camera calibration" if not calibrated else "end-effector poses or a wrist mount"
        raise ValueError(
            f"the data have no {lacks} to measure the wrist pose from; use --pose head"
        )
    if pose in ("auto", "measured") and measured is not None:
        wrist_pose = torch.as_tensor(measured).float()
        notes["pose"] = "measured: end-effector poses and the camera's mount on the hand"
    else:
        why = "asked for" if pose == "head" else "the data have no calibrated hand camera"
        notes["pose"] = f"head: the wrist head's prediction ({why})"
    return Reconstruction(depth, confidence, K, view_pose, wrist_pose, wrist_fov, notes, calibrated)

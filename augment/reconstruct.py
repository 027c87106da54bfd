"""Stage 1 on an episode: anchor views -> depth of every anchor pixel, cameras, the wrist's pose."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.aggregator import PATCH
from ..models.geometry import calibrated_rays, decode_pose, rescale_intrinsics, tool_axis
from ..models.vggt import VGGT
from ..readers.episode import Episode, View
from ..readers.frames import Frames as StoredFrames
from .choices import Known, choose_depth, choose_pose
from .mounts import rigid_wrist_pose
from .recipe import Recipe
from .static_cameras import Frames, mean_pose, metric_scale, settle

if TYPE_CHECKING:
    from .fuse import Background


@dataclass
class Reconstruction:
    """Geometry of an episode, at the size (h, w) that the network saw.

    Attributes:
        depth, confidence: [T, S, h, w], metres (up to scale without calibration).
        K: [S, 3, 3] at (h, w); pose: [S, 4, 4] world-to-camera, one for the whole episode. Where
            the recipe estimates them frame by frame both have a first axis of T.
        wrist_pose: [T, 4, 4] world-to-camera; wrist_fov: [2] (high, wide) in radians, or [T, 2].
        notes: what was chosen for pose and geometry, and why.
        calibrated: whether cameras came with the data (lengths are then in metres).
        points: [T, S, h, w, 3] in the world, where the recipe takes them from the point head (the
            confidence is then theirs); None where they follow from the depth.
        background: what moving things hid from the anchors, where the depth was fused over time.
        head_pose: [T, 4, 4] as `wrist_pose`, what the wrist head predicted, used or not.
        pose_source: what `wrist_pose` is from: "head", "measured" or "rigid".
    """

    depth: Tensor
    confidence: Tensor
    K: Tensor
    pose: Tensor
    wrist_pose: Tensor
    wrist_fov: Tensor
    notes: dict[str, str] = field(default_factory=dict)
    calibrated: bool = True
    points: Tensor | None = None
    background: Background | None = None
    head_pose: Tensor | None = None
    pose_source: str = "head"


def network_size(height: int, width: int, recipe: Recipe) -> tuple[int, int]:
    """The (h, w), multiples of 14, that views of a size are resized to (see `Recipe.resize`)."""
    if recipe.resize == "square":
        side = max(1, round(recipe.side / PATCH)) * PATCH
        return side, side
    aspect = width / height
    if recipe.resize == "width":
        columns = max(1, round(recipe.side / PATCH))
        rows = max(1, round(columns / aspect))
    else:
        rows = max(1, round((recipe.pixels / aspect) ** 0.5 / PATCH))
        columns = max(1, round(rows * aspect))
    return rows * PATCH, columns * PATCH


def resize_frames(frames: np.ndarray | StoredFrames | Tensor, size: tuple[int, int]) -> Tensor:
    """[T, H, W, 3] uint8 -> [T, 3, h, w] float in [0, 1], antialiased."""
    whole = frames if isinstance(frames, Tensor) else torch.as_tensor(np.asarray(frames))
    x = whole.permute(0, 3, 1, 2).float() / 255
    if x.shape[-2:] == tuple(size):
        return x
    return F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)


def is_calibrated(view: View) -> bool:
    """Whether a view has intrinsics and a static pose."""
    return view.K is not None and view.pose is not None and np.ndim(view.pose) == 2


@dataclass
class Calibration:
    """The anchors' cameras as the data have them: K [S, 3, 3] at (h, w), pose [S, 4, 4]."""

    K: Tensor
    pose: Tensor


def read_calibration(anchors: list[View], size: tuple[int, int]) -> Calibration | None:
    """The cameras at the network's size, or None where one of them is not calibrated."""
    if not all(is_calibrated(view) for view in anchors):
        return None
    K = [rescale_intrinsics(torch.as_tensor(v.K).float(), v.size, size) for v in anchors]
    pose = [torch.as_tensor(v.pose).float() for v in anchors]
    return Calibration(torch.stack(K), torch.stack(pose))


@torch.no_grad()
def reconstruct(
    network: VGGT,
    episode: Episode,
    recipe: Recipe,
    *,
    pose: str = "auto",
    geometry: str = "auto",
    mount: np.ndarray | None = None,
    batch: int = 8,
) -> Reconstruction:
    """Run the network over an episode.

    Args:
        pose: `measured` (kinematics and hand-eye calibration), `head` (the wrist head), `rigid`
            (kinematics, the mount, and where nothing is calibrated the head's poses to place the
            robot by) or `auto` (`choices.choose_pose`).
        geometry: `recorded` (the depth that the dataset has of every anchor), `predicted` (the
            network's) or `auto` (recorded where the episode has it and its anchors are calibrated).
        mount: [4, 4] end effector <- camera for `rigid`, in place of the dataset's.
        batch: timesteps a pass.

    Raises:
        ValueError: a measured or rigid pose or recorded depth was asked for, and the episode
            has none.
    """
    anchors = episode.anchors
    size = network_size(*anchors[0].size, recipe)
    known = read_calibration(anchors, size)
    frames = run_network(network, episode, recipe, size, known, batch)
    if known is not None and network.config.ray_channels:
        found = Reconstruction(
            frames.depth, frames.confidence, known.K, known.pose, *_wrist(frames, size, recipe)
        )
        found.notes["geometry"] = "depth from the anchors with the dataset's cameras"
    else:
        found = _from_anchors_alone(frames, size, recipe, known)
    has = Known(
        known is not None,
        episode.eef_pose is not None,
        episode.wrist_mount is not None,
        mount is not None,
        all(view.depth is not None for view in anchors),
    )
    depth = choose_depth(has)
    if geometry == "recorded" or (geometry == "auto" and depth.name == "recorded"):
        metres = recorded_depth(episode, size)
        if metres is None or known is None:
            lacks = "depth of every anchor" if known is not None else "calibrated anchors"
            raise ValueError(f"the data have no {lacks}; use --geometry predicted")
        _take_depth(found, metres, known)
    if geometry == "auto":
        found.notes["geometry"] += f" ({depth.name}: {depth.why})"
    found.wrist_pose = found.head_pose = found.wrist_pose @ found.pose[..., 0, :, :]
    measured = episode.measured_wrist_pose() if found.calibrated else None
    if pose == "measured" and measured is None:
        if not found.calibrated:
            lacks = "metric scale" if known is not None else "camera calibration"
        else:
            lacks = "end-effector poses or a wrist mount"
        raise ValueError(
            f"the data have no {lacks} to measure the wrist pose from; use --pose head"
        )
    chosen = choose_pose(replace(has, calibrated=found.calibrated))
    pose = chosen.name if pose == "auto" else pose
    if pose == "measured" and measured is not None:
        found.wrist_pose = torch.as_tensor(measured).float()
        found.pose_source = "measured"
        found.notes["pose"] = "measured: end-effector poses and the camera's mount on the hand"
        return found
    why = "asked for" if chosen.name != "head" else chosen.why
    if chosen.better:
        why += f"; {chosen.better}"
    if pose == "rigid":
        predicted = found.wrist_pose.double().numpy()
        rigid, why = rigid_wrist_pose(episode, predicted, mount, found.calibrated)
        if rigid is not None:
            found.wrist_pose = torch.as_tensor(rigid).float()
            found.notes["pose"], found.pose_source = why, "rigid"
            return found
    found.notes["pose"] = f"head: the wrist head's prediction ({why})"
    return found


def recorded_depth(episode: Episode, size: tuple[int, int]) -> Tensor | None:
    """[T, S, h, w] metres as the dataset has them (0 = unknown), or None if an anchor lacks it.

    Taken at the nearest pixel: a mean over an edge would lie where nothing is.
    """
    out = []
    for view in episode.anchors:
        if view.depth is None:
            return None
        depth = torch.as_tensor(np.asarray(view.depth)).float()
        out.append(F.interpolate(depth[:, None], size, mode="nearest-exact")[:, 0])
    return torch.stack(out, dim=1)


def _take_depth(found: Reconstruction, depth: Tensor, known: Calibration) -> None:
    """Put recorded depth and cameras in the place of what the network found.

    The wrist's poses, still relative to the first anchor, get the scale that the depths tell where
    the cameras told none.
    """
    if not found.calibrated:
        both = (depth > 0) & (found.depth > 0)
        if both.any():
            found.wrist_pose[:, :3, 3] *= (depth[both] / found.depth[both]).median()
    if found.wrist_fov.ndim == 2:  # estimated frame by frame
        found.wrist_fov = found.wrist_fov.median(dim=0).values
    found.depth, found.points, found.calibrated = depth, None, True
    found.K, found.pose = known.K, known.pose
    # Known or unknown, nothing between: every threshold lies below the one and above the other.
    found.confidence = torch.where(depth > 0, torch.inf, -torch.inf)
    found.notes["geometry"] = "depth and cameras of the dataset"


def run_network(
    network: VGGT,
    episode: Episode,
    recipe: Recipe,
    size: tuple[int, int],
    known: Calibration | None,
    batch: int,
) -> Frames:
    """What the network says of every timestep, on the CPU in float32.

    Args:
        known: given to networks that take calibrated rays.
    """
    device = next(network.parameters()).device
    rayed = known if network.config.ray_channels else None
    tool = None
    if rayed is not None and episode.eef_pose is not None:
        tool = tool_axis(torch.as_tensor(episode.eef_pose).float())
    heads = ["camera", "wrist", "point" if recipe.geometry == "points" else "depth"]
    half = recipe.precision == "bfloat16" and device.type == "cuda"
    parts: list[Frames] = []
    for start in range(0, episode.length, batch):
        part = slice(start, min(episode.length, start + batch))
        resized = [resize_frames(view.frames[part], size) for view in episode.anchors]
        x = torch.stack(resized, dim=1).to(device)
        rays = priors = None
        if rayed is not None:
            n = len(x)
            rays, priors = calibrated_rays(
                rayed.K.expand(n, -1, -1, -1).to(device),
                rayed.pose.expand(n, -1, -1, -1).to(device),
                size,
                None if tool is None else tool[part].to(device),
            )
        # Geometry needs the digits that bfloat16 has not: the heads run in full.
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            tokens = network.aggregate(x, rays)
        tokens = {layer: value.float() for layer, value in tokens.items()}
        out = network.read(tokens, x, rays, priors, heads=heads)
        assert out.cameras is not None and out.wrist is not None
        if recipe.geometry == "points":
            assert out.points is not None and out.points_confidence is not None
            depth, confidence = out.points[..., 2], out.points_confidence
        else:
            assert out.depth is not None and out.depth_confidence is not None
            depth, confidence = out.depth, out.depth_confidence
        points = out.points if recipe.geometry == "points" else None
        parts.append(
            Frames(
                out.cameras[-1].float().cpu(),
                out.wrist.float().cpu(),
                depth.float().cpu(),
                confidence.float().cpu(),
                None if points is None else points.float().cpu(),
            )
        )

    def joined(values: list[Tensor | None]) -> Tensor | None:
        there = [value for value in values if value is not None]
        return torch.cat(there) if there else None

    values = [joined([getattr(part, name) for part in parts]) for name in Frames.__annotations__]
    return Frames(*values)  # type: ignore[arg-type]


def _wrist(frames: Frames, size: tuple[int, int], recipe: Recipe) -> tuple[Tensor, Tensor]:
    """The wrist head's poses relative to the first anchor [T, 4, 4], and its field of view."""
    pose, _ = decode_pose(frames.wrist, size)
    fov = frames.wrist[:, 7:9]
    return pose, fov.median(dim=0).values if recipe.static else fov


def _from_anchors_alone(
    frames: Frames, size: tuple[int, int], recipe: Recipe, known: Calibration | None
) -> Reconstruction:
    """Cameras as the network predicts them, or the data's with the network's depth scaled to them.

    Poses of the wrist are left relative to the first anchor.
    """
    if recipe.static:
        frames = settle(frames)
    pose, K = decode_pose(frames.cameras, size)
    # The first anchor is the world; the network only learns that it is nearly so.
    pose = pose @ torch.linalg.inv(pose[:, :1])
    still, _ = decode_pose(mean_pose(frames.cameras), size)
    metres = metric_scale(still, known.pose) if known is not None else None
    if known is not None and metres is not None:
        frames = frames.scaled(torch.tensor(metres))
        K, pose = known.K, known.pose
        said = "depth from the anchors, scaled to the dataset's cameras by their distances"
    else:
        said = "depth and cameras from the anchors alone (no calibration in the data)"
        if known is not None:
            said = "depth and cameras from the anchors alone (one camera gives no scale)"
        if recipe.static:
            K, pose = K[0], pose[0]
    points = frames.points
    if points is not None and metres is not None:
        to_world = torch.linalg.inv(pose[0])
        points = points @ to_world[:3, :3].mT + to_world[:3, 3]
    return Reconstruction(
        frames.depth,
        frames.confidence,
        K,
        pose,
        *_wrist(frames, size, recipe),
        {"geometry": said},
        metres is not None,
        points,
    )

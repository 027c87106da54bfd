"""What a made frame tells about itself, without the truth: a few numbers a frame.

`confidence` turns them into the SSIM that is to be expected. All are taken at one number of pixels
(`PIXELS`), whatever size frames and anchors have, and none grows with the length of an episode or
with how often a second it was recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from ..models.geometry import rescale_intrinsics
from ..models.splat import splat
from ..readers.episode import View
from ..readers.frames import Frames
from .assess import LUMA, SSIM_SIGMA, pose_error
from .confidence import FEATURES
from .project import Conditions, lift
from .recipe import Recipe
from .reconstruct import Reconstruction, resize_frames

PIXELS = 72 * 128  # of a picture when it is looked at here, its shape kept
BATCH = 8  # timesteps projected at a time
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2  # of SSIM (Wang et al. 2004)
NEAR = 0.15  # metres; what is nearer fills the view and is known worst
APART = 0.1  # relative difference of depth from which two anchors contradict each other


def looking_size(height: int, width: int) -> tuple[int, int]:
    """(h, w) of about `PIXELS` pixels in the shape of height x width."""
    scale = (PIXELS / (height * width)) ** 0.5
    return max(16, round(height * scale)), max(16, round(width * scale))


def frame_features(
    anchors: Sequence[View],
    found: Reconstruction,
    maps: Conditions,
    frames: np.ndarray,
    K: np.ndarray,
    recipe: Recipe,
) -> dict[str, np.ndarray]:
    """`confidence.FEATURES` -> [T] float64; NaN where one cannot be told (one anchor, one step).

    Args:
        anchors: the views that were projected. maps: what they were projected to.
        frames: [T, H, W, 3] uint8, what was made of it. K: the wrist intrinsics at H x W.
        recipe: with which points are projected.
    """
    T, size = len(frames), looking_size(*frames.shape[1:3])
    grey, known = _grey(frames, size), _grey(maps.filled, size)
    covered = torch.as_tensor(maps.covered)[:, None].float()
    seen = F.interpolate(covered, size, mode="bilinear", antialias=True)[:, 0].numpy() > 0.5
    out = {name: np.full(T, np.nan) for name in FEATURES}
    out["coverage"] = maps.coverage.astype(np.float64)
    smooth, known_smooth = np.empty_like(grey), np.empty_like(known)
    for t in range(T):
        mean, variance = _windows(grey[t])
        map_mean, map_variance = _windows(known[t])
        both = gaussian_filter(grey[t] * known[t], SSIM_SIGMA) - mean * map_mean
        structure = (2 * both + C2) / (variance + map_variance + C2)
        out["flat_frame"][t] = (C2 / (C2 + variance)).mean()
        out["flat_map"][t] = (C2 / (C2 + map_variance)).mean()
        out["map_apart"][t] = np.log1p(np.abs(mean - map_mean).mean())
        if seen[t].any():
            out["reprojection"][t] = structure[seen[t]].mean()
        smooth[t], known_smooth[t] = mean, map_mean
    z = np.where(maps.covered, maps.depth, np.inf)
    if found.calibrated:  # else lengths are in nobody's units
        out["near"] = (z < NEAR).mean((1, 2))
    change, own = _changes(smooth - known_smooth), _changes(known_smooth)
    out["unexplained"] = np.log((change + 0.5) / (own + 0.5))
    out |= _agreement(anchors, found, K, size, frames.shape[1:3], recipe)
    rests = found.pose_source == "head" or (found.pose_source == "rigid" and not found.calibrated)
    out["from_head"], out["uncalibrated"] = np.full((2, T), [[rests], [not found.calibrated]])
    if found.head_pose is not None:
        head = found.head_pose.double().numpy()
        if not rests:
            turn, _ = pose_error(head, found.wrist_pose.double().numpy())
            out["head_turn"] = np.log1p(turn)
        out["head_rough"] = np.full(T, _roughness(head))
    return {name: np.asarray(values, np.float64) for name, values in out.items()}


def picture_statistics(anchors: Sequence[View]) -> np.ndarray:
    """[T, S, 17] `confidence.PICTURE` of every anchor picture, at `PIXELS` pixels.

    They tell pictures of another kind (other scenes, light, lenses, real for rendered ones), not
    what is in them. Grey and colours are in [0, 1]; spreads and edges are logarithms.
    """
    return np.stack([_statistics(view.frames) for view in anchors], axis=1)


def _statistics(frames: np.ndarray | Frames) -> np.ndarray:
    size = looking_size(*frames.shape[1:3])
    rows = []
    for step in range(len(frames)):
        frame = np.asarray(frames[step : step + 1])  # one at a time: an hour's are many
        x = resize_frames(frame, size)[0].permute(1, 2, 0).numpy().astype(np.float64)
        grey = x @ LUMA
        red, blue = x[..., 0] - x[..., 1], x[..., 2] - (x[..., 0] + x[..., 1]) / 2
        row = []
        for plane in (grey, red, blue):
            row += [plane.mean(), np.log(plane.std() + 0.01)]
        row.append((x.max(-1) - x.min(-1)).mean())
        fine = grey
        for _ in range(3):
            row += [np.log(np.abs(np.diff(fine, axis=axis)).mean() + 0.003) for axis in (1, 0)]
            h, w = fine.shape[0] // 2, fine.shape[1] // 2
            fine = fine[: 2 * h, : 2 * w].reshape(h, 2, w, 2).mean((1, 3))
        _, variance = _windows(grey * 255)
        row.append((C2 / (C2 + variance)).mean())
        row += [np.percentile(grey, 5), np.percentile(grey, 95)]
        third = len(grey) // 3
        row.append(grey[:third].mean() - grey[third:].mean())
        rows.append(row)
    return np.array(rows)


def _grey(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[T, h, w] float64 luma in 0..255."""
    planes = [resize_frames(frame[None], size)[0].numpy() for frame in frames]
    return np.stack([np.einsum("c,chw->hw", LUMA * 255, plane) for plane in planes])


def _windows(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance [h, w] in SSIM's windows."""
    mean = gaussian_filter(grey, SSIM_SIGMA)
    return mean, np.maximum(gaussian_filter(grey * grey, SSIM_SIGMA) - mean * mean, 0.0)


def _changes(pictures: np.ndarray) -> np.ndarray:
    """[T] the mean change of [T, h, w] to the frames before and after; NaN for one frame."""
    if len(pictures) < 2:
        return np.full(len(pictures), np.nan)
    steps = np.array([np.abs(b - a).mean() for a, b in pairwise(pictures)])
    return (np.r_[steps[:1], steps] + np.r_[steps, steps[-1:]]) / 2


def _roughness(pose: np.ndarray) -> float:
    """How far a path [T, 4, 4] of world-to-camera poses is from going straight on; NaN if short."""
    if len(pose) < 3:
        return float("nan")
    centres = np.linalg.inv(pose)[:, :3, 3]
    step = np.linalg.norm(np.diff(centres, axis=0), axis=1).mean()
    return float(np.linalg.norm(np.diff(centres, 2, axis=0), axis=1).mean() / (step + 0.01))


def _agreement(
    anchors: Sequence[View],
    found: Reconstruction,
    K: np.ndarray,
    size: tuple[int, int],
    made: tuple[int, int],
    recipe: Recipe,
) -> dict[str, np.ndarray]:
    """What the anchors, each projected into the wrist view alone, say of one another."""
    T, S = found.depth.shape[:2]
    wrist_K = rescale_intrinsics(torch.as_tensor(K).float(), made, size).expand(T, 3, 3)
    camera_K, pose = found.K.expand(T, S, 3, 3), found.pose.expand(T, S, 4, 4)
    out = {
        name: np.full(T, np.nan)
        for name in ("both", "depth_confidence", "depth_apart", "colour_apart")
    }
    weights = torch.as_tensor(LUMA).float()
    for start in range(0, T, BATCH):
        t = slice(start, min(T, start + BATCH))
        alone = []
        for s, view in enumerate(anchors):
            points, colours, usable = lift(
                view,
                found.depth[t, s],
                found.confidence[t, s],
                camera_K[t, s],
                pose[t, s],
                recipe,
                t,
                None if found.points is None else found.points[t, s],
            )
            sure = _at_points(found.confidence[t, s], points.shape[1], view)
            grey = colours.float() @ weights
            planes = torch.stack([grey, sure, torch.zeros_like(grey)], dim=-1)
            drawn = splat(
                points,
                planes,
                usable,
                wrist_K[t],
                found.wrist_pose[t],
                size,
                radius=1,
                layer=recipe.layer,
                near=recipe.near,
            )
            alone.append((drawn.color.numpy(), drawn.depth.numpy(), drawn.covered.numpy()))
        for name, values in _compared(alone).items():
            out[name][t] = values
    return out


def _at_points(confidence: torch.Tensor, points: int, view: View) -> torch.Tensor:
    """[n, points] the log confidence of the points that `lift` makes of a view."""
    logs = confidence.clamp_min(1e-6).log()  # recorded depth has infinities
    if logs[0].numel() != points:
        size = view.size
        logs = F.interpolate(logs[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    return logs.flatten(1)


def _compared(alone: Sequence[tuple[np.ndarray, ...]]) -> dict[str, np.ndarray]:
    """Features of some timesteps from each anchor's (grey and confidence, depth, covered)."""
    count = sum(covered for _, _, covered in alone)
    sure = sum(np.where(covered, planes[..., 1], 0.0) for planes, _, covered in alone)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.sum(sure, axis=(1, 2), dtype=np.float64) / np.sum(count, axis=(1, 2))
        out = {"depth_confidence": np.where(np.isfinite(mean), mean, np.nan)}
        if len(alone) < 2:
            return out
        shared = apart = colour = np.zeros(len(mean))
        for (a, za, seen_a), (b, zb, seen_b) in combinations(alone, 2):
            both = seen_a & seen_b
            ratio = np.abs(za - zb) > APART * np.minimum(za, zb)
            shared = shared + both.sum((1, 2))
            apart = apart + (both & ratio).sum((1, 2))
            gap = np.where(both, np.abs(a[..., 0] - b[..., 0]), 0.0)
            colour = colour + gap.sum((1, 2), dtype=np.float64)
        out["both"] = (np.asarray(count) >= 2).mean((1, 2))
        out["depth_apart"] = apart / shared
        out["colour_apart"] = np.log1p(colour / shared)
    return out

"""Static anchors fused over the episode: steadier depth of what stands still, and what it hid.

The cameras do not move, so a pixel sees one ray all the time. A sweep forward and one backward
through time keep, for every pixel, the surface that it last saw at rest and what now stands before
it. What both sweeps see at one depth and in one colour is one surface: its predicted depth is the
mean over all times that it was seen (recorded depth is left as it is: what is thinner than the
tolerance would be averaged with what it stands on). What stood behind something at a time is added
as a second layer, if it was there before and after; a surface that was seen on one side of that
time alone may since have been moved, and is added only if nothing of the robot came near it and no
other anchor looks through the place where it was.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.geometry import camera_rays, project, tool_axis
from ..readers.episode import Episode, View
from .recipe import Recipe
from .reconstruct import Reconstruction, resize_frames

DEPTH_ALIKE = 0.03  # share by which depths of one surface may differ
COLOR_ALIKE = 24 / 255  # of the worst channel: JPEG noise and soft shadows stay below
SEEN_THROUGH = 0.05  # share of the depth by which another anchor must look past a point
REACH = 0.12  # metres from the tool's axis within which the robot may have moved something
_BYTES = 256 << 20  # that the sweeps of one strip of pixels may take
_PER_SAMPLE = 120  # bytes a pixel and timestep


@dataclass
class Background:
    """What moving things hid: one surface behind each anchor pixel, and when to add it.

    Attributes:
        depth: [S, h, w] metres, 0 where there is none. shown: [T, S, h, w] bool.
        source: [S, h, w] the timestep whose picture shows it.
    """

    depth: Tensor
    shown: Tensor
    source: Tensor


@dataclass
class _Sweep:
    """What one sweep saw, [T, N] each: of the surface in sight its mean depth and weight; of the
    one behind it the depth, colour [T, N, 3], weight (0: none), the time it was last seen, and how
    near the tool has come to it since.
    """

    depth: Tensor
    weight: Tensor
    behind: Tensor
    color: Tensor
    held: Tensor
    last: Tensor
    near: Tensor


def fuse_static(episode: Episode, found: Reconstruction, recipe: Recipe) -> None:
    """Fuse a reconstruction's depth over the episode, in place, and say so in its notes.

    Raises:
        ValueError: cameras were estimated frame by frame, or points come from the point head.
    """
    if found.pose.ndim == 4 or found.points is not None:
        lacks = "static cameras" if found.pose.ndim == 4 else "depth of every anchor"
        raise ValueError(
            f"recipe {recipe.name} gives no {lacks} to fuse over time; use --geometry auto"
        )
    found.depth, found.background = fuse(
        episode,
        found.depth,
        found.confidence,
        found.K,
        found.pose,
        min_confidence=recipe.min_confidence,
        in_base=found.calibrated,
    )
    share = 100 * float(found.background.shown.float().mean())
    found.notes["geometry"] += (
        f", fused over time: {share:.1f}% of anchor pixels show what was hidden behind them too"
    )


def fuse(
    episode: Episode,
    depth: Tensor,
    confidence: Tensor,
    K: Tensor,
    pose: Tensor,
    *,
    min_confidence: float,
    in_base: bool,
) -> tuple[Tensor, Background]:
    """(depth with the static surfaces averaged over time, what was hidden).

    Args:
        depth, confidence: [T, S, h, w]; depths of 0 and of less confidence are not looked at.
        K: [S, 3, 3] at (h, w); pose: [S, 4, 4] world-to-camera. The anchors stand still.
        in_base: the world is the robot base in metres, so the tool's way tells what it may have
            moved; where it is unknown, only what was seen before and after is added.
    """
    T, S, h, w = depth.shape
    tool = None
    if in_base and episode.eef_pose is not None:
        tool = tool_axis(torch.as_tensor(episode.eef_pose).float())
    fused = depth.clone()
    background = Background(
        torch.zeros(S, h, w),
        torch.zeros(T, S, h, w, dtype=torch.bool),
        torch.zeros(S, h, w, dtype=torch.long),
    )
    rows = max(1, _BYTES // (T * w * _PER_SAMPLE))
    for s in range(S):
        measured = bool(torch.isinf(confidence[:, s]).all())  # as `reconstruct` marks it
        usable = (confidence[:, s] >= min_confidence) & (depth[:, s] > 0)
        weight = torch.where(torch.isinf(confidence[:, s]), 1.0, confidence[:, s].clamp_min(1e-3))
        weight = weight * usable
        color = _small(episode.anchors[s], (h, w))
        to_world = torch.linalg.inv(pose[s])
        rays = camera_rays(K[s], (h, w)) @ to_world[:3, :3].mT
        one_sided = torch.zeros(T, h, w, dtype=torch.bool)
        for top in range(0, h, rows):
            part = slice(top, top + rows)
            strip = _strip(
                depth[:, s, part].flatten(1),
                color[:, part].flatten(1, 2),
                weight[:, part].flatten(1),
                to_world[:3, 3],
                rays[part].flatten(0, 1),
                tool,
            )
            mean, behind, shown, source, alone = strip
            if not measured:
                fused[:, s, part] = mean.view(T, -1, w)
            background.depth[s, part] = behind.view(-1, w)
            background.shown[:, s, part] = shown.view(T, -1, w)
            background.source[s, part] = source.view(-1, w)
            one_sided[:, part] = alone.view(T, -1, w)
        known = (confidence >= min_confidence) & (depth > 0)
        _carve(background, s, one_sided, depth, known, K, pose)
    return fused, background


def _small(view: View, size: tuple[int, int]) -> Tensor:
    """[T, h, w, 3] uint8, a few frames at a time."""
    parts = []
    for start in range(0, len(view.frames), 16):
        shown = resize_frames(view.frames[start : start + 16], size)
        parts.append((shown * 255).round().to(torch.uint8).permute(0, 2, 3, 1))
    return torch.cat(parts)


def _strip(depth, color, weight, origin, rays, tool):
    """Fuse N pixels of one anchor.

    Args:
        depth, weight: [T, N]; color: [T, N, 3] uint8; origin: [3]; rays: [N, 3] world directions
            with a depth of 1; tool: [T, 2, 3] or None.

    Returns:
        (mean depth [T, N], hidden depth [N] or 0, shown [T, N], source [N], and of what is shown
        what was seen on one side of its time alone [T, N]).
    """
    T, N = depth.shape
    ahead = _sweep(depth, color, weight, origin, rays, tool, range(T))
    back = _sweep(depth, color, weight, origin, rays, tool, range(T - 1, -1, -1))
    # Each counts the present time.
    total = ahead.weight + back.weight - weight
    sums = ahead.weight * ahead.depth + back.weight * back.depth - weight * depth
    mean = torch.where((weight > 0) & (total > 0), sums / total.clamp_min(1e-9), depth)

    both = (ahead.held > 0) & (back.held > 0)
    agree = both & _alike(ahead.behind, back.behind, ahead.color, back.color)
    first, second = (ahead.held > 0) & ~both, (back.held > 0) & ~both
    one = (first & (ahead.near > REACH)) | (second & (back.near > REACH))
    held = torch.where(agree, ahead.held + back.held, torch.where(first, ahead.held, back.held))
    held = held * (agree | one)
    behind = torch.where(second, back.behind, ahead.behind)
    shade = torch.where(second[..., None], back.color, ahead.color)
    last = torch.where(second, back.last, ahead.last)
    # One surface a pixel: that with the most to say for it.
    best = held.max(dim=0).indices[None]
    depth_of, shade_of = behind.gather(0, best), shade.gather(0, best[..., None].expand(1, N, 3))
    there = held.gather(0, best)[0] > 0
    shown = (held > 0) & _alike(behind, depth_of, shade, shade_of)
    return mean, depth_of[0] * there, shown, last.gather(0, best)[0], shown & one


def _alike(a: Tensor, b: Tensor, ca: Tensor, cb: Tensor) -> Tensor:
    """Whether two surfaces are one, by depth and colour (0 to 1)."""
    near = (a - b).abs() < DEPTH_ALIKE * torch.minimum(a, b)
    return near & ((ca - cb).abs().amax(-1) < COLOR_ALIKE)


def _sweep(depth, color, weight, origin, rays, tool, times) -> _Sweep:
    """Go through the times, keeping each pixel's surface at rest and what stands before it."""
    T, N = depth.shape
    out = _Sweep(
        depth.clone(), weight.clone(), torch.zeros(T, N), torch.zeros(T, N, 3),
        torch.zeros(T, N), torch.zeros(T, N, dtype=torch.long), torch.zeros(T, N),
    )  # fmt: skip
    rest = _Surface(N)  # farthest of what was seen
    front = _Surface(N)  # before it
    last, near = torch.zeros(N, dtype=torch.long), torch.full((N,), torch.inf)
    for t in times:
        z, c, m = depth[t], color[t].float() / 255, weight[t]
        seen = m > 0
        if tool is not None:
            near = torch.minimum(near, _from_segment(origin + rest.depth[:, None] * rays, tool[t]))
        same = seen & rest.like(z, c)
        same_front = seen & ~same & front.like(z, c)
        other = seen & ~same & ~same_front
        before = other & (rest.weight > 0) & (z < rest.depth * (1 - DEPTH_ALIKE))
        new = other & ~before  # what was at rest is gone, or has another look
        rest.add(same, z, c, m)
        rest.put(new, z, c, m)
        front.add(same_front, z, c, m)
        front.put(before, z, c, m)
        front.weight[same | new] = 0
        at_rest = same | new
        last[at_rest] = t
        near[at_rest] = torch.inf if tool is not None else 0.0
        hidden = (same_front | before) & (rest.weight > 0)
        out.depth[t] = torch.where(at_rest, rest.depth, torch.where(hidden, front.depth, z))
        out.weight[t] = torch.where(at_rest, rest.weight, torch.where(hidden, front.weight, m))
        out.behind[t], out.color[t] = rest.depth, rest.color
        out.held[t] = rest.weight * hidden
        out.last[t] = last
        out.near[t] = near if tool is not None else 0.0
    return out


class _Surface:
    """The surface of each of N pixels: mean depth, mean colour and weight (0: none)."""

    def __init__(self, N: int):
        self.depth, self.color, self.weight = torch.zeros(N), torch.zeros(N, 3), torch.zeros(N)

    def like(self, z: Tensor, c: Tensor) -> Tensor:
        return (self.weight > 0) & _alike(self.depth, z, self.color, c)

    def add(self, where: Tensor, z: Tensor, c: Tensor, m: Tensor) -> None:
        share = torch.where(where, m / (self.weight + m).clamp_min(1e-9), 0.0)
        self.depth = self.depth + share * (z - self.depth)
        self.color = self.color + share[:, None] * (c - self.color)
        self.weight = self.weight + m * where

    def put(self, where: Tensor, z: Tensor, c: Tensor, m: Tensor) -> None:
        self.depth = torch.where(where, z, self.depth)
        self.color = torch.where(where[:, None], c, self.color)
        self.weight = torch.where(where, m, self.weight)


def _from_segment(points: Tensor, ends: Tensor) -> Tensor:
    """Distance [N] of points [N, 3] from the segment between two ends [2, 3]."""
    along = ends[1] - ends[0]
    share = ((points - ends[0]) @ along / (along @ along).clamp_min(1e-9)).clamp(0, 1)
    return (points - ends[0] - share[:, None] * along).norm(dim=-1)


def _carve(background, s, one_sided, depth, known, K, pose) -> None:
    """Hide what was seen on one side alone where another anchor looks past it at that time."""
    T, S, h, w = depth.shape
    to_world = torch.linalg.inv(pose[s])
    points = camera_rays(K[s], (h, w)) * background.depth[s, ..., None]
    points = (points @ to_world[:3, :3].mT + to_world[:3, 3]).flatten(0, 1)
    for other in range(S):
        if other == s:
            continue
        pixel, z = project(points, K[other], pose[other])
        x, y = pixel.round().long().unbind(-1)
        inside = (z > 0) & (x >= 0) & (x < w) & (y >= 0) & (y < h)
        cell = y.clamp(0, h - 1) * w + x.clamp(0, w - 1)
        for t in range(T):
            there = known[t, other].flatten()[cell] & inside
            past = there & (depth[t, other].flatten()[cell] > z * (1 + SEEN_THROUGH))
            background.shown[t, s] &= ~(past.view(h, w) & one_sided[t])


def background_colors(view: View, background: Background, s: int, size: tuple[int, int]) -> Tensor:
    """[H, W, 3] uint8: the picture of what an anchor's moving things hid, black where nothing.

    Args:
        s: the anchor's number. size: (H, W), the view's own or larger.
    """
    source = background.source[s]
    known = background.depth[s] > 0
    scale = lambda x: F.interpolate(x[None, None].float(), size, mode="nearest-exact")[0, 0]
    at, there = scale(source).long(), scale(known) > 0
    out = torch.zeros(*size, 3, dtype=torch.uint8)
    for t in torch.unique(at[there]).tolist():
        shown = torch.as_tensor(np.ascontiguousarray(view.frames[t]))
        if view.size != size:
            shown = (resize_frames(shown[None], size)[0] * 255).round().to(torch.uint8)
            shown = shown.permute(1, 2, 0)
        here = there & (at == t)
        out[here] = shown[here]
    return out

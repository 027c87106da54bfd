"""One episode, one scene: cameras that do not move, and one scale over all timesteps.

A network that sees each timestep alone gives every one a scale and cameras of its own; the point
cloud then breathes from frame to frame, and so would the wrist view.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SAMPLES = 4096  # pixels a timestep that the scale is estimated from


@dataclass
class Frames:
    """What the network said of each timestep on its own.

    Attributes:
        cameras: [T, S, 9] pose encodings of the anchors; wrist: [T, 9] of the hand camera, both
            relative to the first anchor.
        depth, confidence: [T, S, h, w]. points: [T, S, h, w, 3] in the first anchor's frame, or
            None.
    """

    cameras: Tensor
    wrist: Tensor
    depth: Tensor
    confidence: Tensor
    points: Tensor | None = None

    def scaled(self, factor: Tensor) -> Frames:
        """The same scenes, every length of timestep t times factor [T] (or a scalar)."""
        factor = torch.as_tensor(factor).expand(len(self.depth))

        def stretch(encoding: Tensor) -> Tensor:
            by = factor.view(-1, *[1] * (encoding.ndim - 1))
            return torch.cat([encoding[..., :3] * by, encoding[..., 3:]], dim=-1)

        by = factor[:, None, None, None]
        return Frames(
            stretch(self.cameras),
            stretch(self.wrist),
            self.depth * by,
            self.confidence,
            None if self.points is None else self.points * by[..., None],
        )


def frame_scales(distance: Tensor, confidence: Tensor, *, rounds: int = 5) -> Tensor:
    """The scale of every timestep against the episode's, from what stands still in static views.

    Log distances are modelled as scale of the step plus distance of the pixel; both are medians,
    taken in turn, so that what moves (the arm, what it carries) has no say. Pixels surer than their
    timestep's median count.

    Args:
        distance: [T, S, h, w] of each pixel's point, positive. confidence: the same shape.
        rounds: of the two medians.

    Returns:
        [T] factors whose logarithms have a mean of zero.
    """
    T = len(distance)
    if T == 1:
        return distance.new_ones(1)
    logs, sure = distance.flatten(1).clamp_min(1e-6).log(), confidence.flatten(1)
    stride = max(1, logs.shape[1] // SAMPLES)
    logs, sure = logs[:, ::stride], sure[:, ::stride]
    counted = sure > sure.median(dim=1, keepdim=True).values
    counted |= ~counted.any(dim=1, keepdim=True)  # all are equally sure
    logs = torch.where(counted, logs, torch.nan)
    scale = logs.nanmedian(dim=1).values
    for _ in range(rounds):
        pixel = (logs - scale[:, None]).nanmedian(dim=0).values
        scale = (logs - pixel).nanmedian(dim=1).values
    return (scale - scale.mean()).exp()


def mean_pose(encodings: Tensor) -> Tensor:
    """[T, ..., 9] pose encodings of one static camera -> [..., 9]: the median, unit quaternion."""
    # Quaternions q and -q are one rotation; bring all to the half-space of the first.
    sign = torch.sign((encodings[..., 3:7] * encodings[:1, ..., 3:7]).sum(-1, keepdim=True))
    aligned = torch.cat([encodings[..., :3], encodings[..., 3:7] * sign, encodings[..., 7:]], -1)
    middle = aligned.median(dim=0).values
    return torch.cat([middle[..., :3], F.normalize(middle[..., 3:7], dim=-1), middle[..., 7:]], -1)


def settle(frames: Frames) -> Frames:
    """All timesteps at the episode's scale, with one encoding a camera [T, S, 9] (repeated)."""
    distance = frames.depth if frames.points is None else frames.points.norm(dim=-1)
    common = frames.scaled(1 / frame_scales(distance, frames.confidence))
    common.cameras = mean_pose(common.cameras).expand_as(common.cameras)
    return common


def metric_scale(predicted: Tensor, measured: Tensor) -> float | None:
    """Metres per predicted unit, from the distances between cameras.

    Args:
        predicted, measured: [S, 4, 4] world-to-camera of the same cameras.

    Returns:
        the ratio of the root mean squares of all cameras' distances from their mean; None where
        there is one camera, or all stand at one place.
    """

    def spread(pose: Tensor) -> float:
        centres = -(pose[:, :3, :3].mT @ pose[:, :3, 3:])[..., 0]
        return float((centres - centres.mean(0)).square().sum(-1).mean().sqrt())

    if len(predicted) < 2 or min(spread(predicted), spread(measured)) < 1e-6:
        return None
    return spread(measured) / spread(predicted)

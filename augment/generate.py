"""Stage 2 on an episode: condition maps, anchors and language -> the wrist video."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ..models.generator import Condition, WristGenerator, sample
from ..models.geometry import rescale_intrinsics
from ..models.sweep import SweptViews
from ..readers.episode import Episode
from .project import Cameras, Conditions
from .recipe import Recipe
from .reconstruct import resize_frames

ANCHOR_SIZE = (180, 320)  # anchors as the generator is given them


def gripper_plane(episode: Episode) -> Tensor:
    """[T] how far closed the gripper is, in [-1, 1]; 0 where the episode does not say."""
    if episode.gripper is None:
        return torch.zeros(episode.length)
    closed = torch.as_tensor(np.asarray(episode.gripper, np.float32)).reshape(episode.length)
    return (2 * closed - 1).clamp(-1, 1).nan_to_num(0.0)


def swept_views(colors: Tensor, cameras: Cameras | None, t: np.ndarray) -> SweptViews | None:
    """The anchors with their cameras at the timesteps `t` [n], a batch of one; None without.

    Args:
        colors: [n, V, 3, h, w] in [0, 1], the first V anchors at those timesteps.
    """
    if cameras is None:
        return None
    n, V = colors.shape[:2]
    depth = cameras.depth[t][:, :V].float()
    size = (colors.shape[-2], colors.shape[-1])
    K = rescale_intrinsics(cameras.K[:V], (depth.shape[-2], depth.shape[-1]), size)
    return SweptViews(
        colors=colors[None],
        K=K.expand(1, n, -1, -1, -1),
        pose=cameras.pose[:V].expand(1, n, -1, -1, -1),
        depth=depth[None],
        wrist_K=cameras.wrist_K[t][None],
        wrist_pose=cameras.wrist_pose[t][None].float(),
        tool=None if cameras.tool is None else cameras.tool[t][None],
    )


def to_condition(
    generator: WristGenerator, maps: Conditions, episode: Episode, t: np.ndarray
) -> Condition:
    """The generator's input for the timesteps `t` [n] of an episode, a batch of one."""

    def plane(values: np.ndarray) -> Tensor:
        return torch.as_tensor(values[t]).float()[None, :, None]

    filled = torch.as_tensor(maps.filled[t]).permute(0, 3, 1, 2)[None].float() / 127.5 - 1
    views = episode.anchors[: generator.config.views]
    frames = torch.stack([resize_frames(v.frames[t], ANCHOR_SIZE) for v in views], dim=1)
    return Condition(
        filled=filled,
        covered=plane(maps.covered),
        nearness=plane(maps.nearness),
        anchors=frames[None],
        text=generator.text.tokenize([episode.language]),
        gripper=gripper_plane(episode)[None, t],
        views=swept_views(frames, maps.cameras, t),
    )


def clip_windows(length: int, clip: int, overlap: int) -> list[np.ndarray]:
    """Timesteps of each clip: `clip` long, `overlap` shared with the clip before.

    An episode shorter than a clip is padded by repeating its last step; the last clip of a longer
    one is moved back to end where the episode ends.
    """
    if length <= clip:
        return [np.minimum(np.arange(clip), length - 1)]
    starts = [*range(0, length - clip, clip - overlap), length - clip]
    return [np.arange(start, start + clip) for start in starts]


def blend_weights(clip: int, overlap: int) -> np.ndarray:
    """[clip] weights that rise over the overlap, so that two clips cross-fade."""
    ramp = np.minimum(np.arange(1, clip + 1), np.arange(clip, 0, -1)) / (overlap + 1)
    return np.minimum(ramp, 1.0).astype(np.float32)


def clip_joins(length: int, clip: int, overlap: int) -> np.ndarray:
    """[length - 1] bool: whether frames t and t + 1 are of different clips, or mixed of two.

    Where clips cross-fade that is every step of the fade, and the ones into it and out of it.
    """
    fade = blend_weights(clip, overlap)
    made: list[dict[int, float]] = [{} for _ in range(length)]
    for number, window in enumerate(clip_windows(length, clip, overlap)):
        for t, weight in list(zip(window.tolist(), fade.tolist(), strict=True))[:length]:
            made[t][number] = weight
    shares = []
    for clips in made:
        total = sum(clips.values())
        shares.append({number: weight / total for number, weight in clips.items()})
    pairs = pairwise(shares)
    return np.array([a.keys() != b.keys() or len(a) > 1 for a, b in pairs], dtype=bool)


class ClipGenerator:
    """Stage 2 of nano: the video DiT that works on pixels."""

    def __init__(self, network: WristGenerator):
        self.network = network

    def generate(
        self, maps: Conditions, episode: Episode, recipe: Recipe, seed: int, progress=None
    ) -> np.ndarray:
        """The wrist video [T, H, W, 3] uint8; see `generate`."""
        return generate(self.network, maps, episode, recipe, seed, progress)


def generate(
    generator: WristGenerator,
    maps: Conditions,
    episode: Episode,
    recipe: Recipe,
    seed: int,
    progress=None,
) -> np.ndarray:
    """The wrist video [T, H, W, 3] uint8.

    Every timestep has its own noise, a function of `seed` and the step alone, so overlapping clips
    start from the same noise and agree where they meet.

    Args:
        progress: called with the number of timesteps that each clip finished.
    """
    device = next(generator.parameters()).device
    T, (H, W) = len(maps.filled), recipe.wrist_size
    noise = torch.stack(
        [
            torch.randn(3, H, W, generator=torch.Generator().manual_seed((seed + t) % 2**63))
            for t in range(T)
        ]
    )
    total = torch.zeros(T, 3, H, W)
    weight = torch.zeros(T, 1, 1, 1)
    ramp = torch.as_tensor(blend_weights(recipe.clip, recipe.overlap))
    for window in clip_windows(T, recipe.clip, recipe.overlap):
        condition = to_condition(generator, maps, episode, window).to(device)
        clip = sample(
            generator,
            condition,
            recipe.noise * noise[window][None].to(device),
            steps=recipe.steps,
            guidance=recipe.guidance,
            shift=recipe.shift,
        )[0].cpu()
        fresh = len(np.unique(window))
        total[window[:fresh]] += clip[:fresh] * ramp[:fresh, None, None, None]
        weight[window[:fresh]] += ramp[:fresh, None, None, None]
        if progress is not None:
            progress(fresh)
    video = (total / weight + 1) * 127.5
    return video.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()

"""Stage 2 of the full-size recipes on an episode: condition maps, anchors, words -> wrist video."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..models.encoders import ImageEncoder, PromptEncoder, VideoAutoencoder
from ..models.flow import Window, sample_windows
from ..models.video_dit import TEMPORAL, VideoDiT
from ..readers.episode import Episode
from ..readers.errors import SourceError
from .generate import blend_weights, clip_windows
from .project import Conditions
from .recipe import Recipe


@dataclass
class VideoGenerator:
    """The networks of stage 2, on one device."""

    dit: VideoDiT
    autoencoder: VideoAutoencoder
    prompts: PromptEncoder
    images: ImageEncoder

    @torch.no_grad()
    def generate(
        self,
        maps: Conditions,
        episode: Episode,
        recipe: Recipe,
        seed: int,
        progress: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """The wrist video [T, H, W, 3] uint8.

        The condition video is encoded, and the wrist video decoded, in one piece; between them
        clips of the recipe's length are drawn together (see `flow.sample_windows`), so a long
        episode has no seam. A short one is padded with its last frame and cut back.

        Args:
            seed: of the noise. progress: called with the number of timesteps that became finished.

        Raises:
            SourceError: more anchor views than the generator has embeddings for.
            ValueError: a size that the networks would crop.
        """
        T, V = len(maps.color), len(episode.anchors)
        most = self.dit.config.views
        if most < V:
            raise SourceError(
                f"has {V} anchor views and the generator embeddings for {most}",
                record=episode.record.index,
                todo=f"name {most} with --anchor-keys, or train it for more",
            )
        check_clip(self.dit, recipe)
        device = self.dit.dit.patch_embedding.weight.device
        frames = np.minimum(np.arange(padded_length(T, recipe.clip)), T - 1)
        video = to_video(maps.color[frames])
        condition = self.autoencoder.encode(video.to(device)).float()
        noise = torch.randn(
            condition.shape, generator=torch.Generator().manual_seed(seed % 2**63)
        ).to(device)
        text = self.prompts([recipe.prompt or episode.language]).to(device)
        seen = torch.stack(
            [self.images(np.asarray(view.frames)) for view in episode.anchors]
        )  # [V, T, E]
        windows = []
        ramp = None
        latents = latent_windows(len(frames), recipe)
        if len(latents) > 1:
            clip, overlap = latent_sizes(recipe)
            ramp = torch.as_tensor(blend_weights(clip, overlap)).to(device)
        for part in latents:
            first = part.start * TEMPORAL
            steps = frames[first : first + recipe.clip]
            ext = seen[:, torch.as_tensor(steps)][None].to(device)
            windows.append(Window(part, self.dit.encode_context(text, ext), ramp))
        negative = None
        if recipe.guidance != 1.0:
            negative = self.dit.encode_context(self.prompts([recipe.negative]).to(device))
        reported = 0

        def report(step: int) -> None:
            nonlocal reported
            finished = T * step // recipe.steps
            if progress is not None and finished > reported:
                progress(finished - reported)
            reported = finished

        drawn = sample_windows(
            self.dit,
            recipe.noise * noise,
            condition,
            windows,
            negative,
            steps=recipe.steps,
            guidance=recipe.guidance,
            shift=recipe.shift,
            progress=report,
        )
        return to_frames(self.autoencoder.decode(drawn))[:T]


def check_clip(dit: VideoDiT, recipe: Recipe) -> None:
    """ValueError for a clip length or a size that autoencoder or patches would crop in silence."""
    dit.check_clip(recipe.clip, *recipe.wrist_size, views=1)


def padded_length(length: int, clip: int) -> int:
    """Frames of the padded video: a clip at least, and 4n + 1."""
    blocks = -(-(max(length, clip) - 1) // TEMPORAL)
    return blocks * TEMPORAL + 1


def latent_sizes(recipe: Recipe) -> tuple[int, int]:
    """(latent frames of a clip, those it shares with the clip before)."""
    clip = (recipe.clip - 1) // TEMPORAL + 1
    return clip, max(1, min(clip - 1, round(recipe.overlap / TEMPORAL)))


def latent_windows(frames: int, recipe: Recipe) -> list[slice]:
    """The clips of a padded video of `frames` frames, as slices of its latents."""
    clip, overlap = latent_sizes(recipe)
    length = (frames - 1) // TEMPORAL + 1
    if length <= clip:
        return [slice(0, length)]
    return [slice(int(w[0]), int(w[-1]) + 1) for w in clip_windows(length, clip, overlap)]


def to_video(frames: np.ndarray) -> Tensor:
    """[T, H, W, 3] uint8 -> [1, 3, T, H, W] in [-1, 1]."""
    return torch.as_tensor(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1


def to_frames(video: Tensor) -> np.ndarray:
    """[1, 3, T, H, W] in [-1, 1] -> [T, H, W, 3] uint8."""
    pixels = (video[0].float().cpu() + 1) * 127.5
    return pixels.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0).numpy()

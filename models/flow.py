"""Latents drawn from the video DiT: flow matching, Euler steps, classifier-free guidance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .libraries import FlowMatchEulerDiscreteScheduler
from .video_dit import VideoDiT


def make_schedule(steps: int, shift: float) -> FlowMatchEulerDiscreteScheduler:
    """A scheduler with `sigmas` [steps + 1], the last one 0, and `timesteps` [steps] = 1000 sigma.

    Noise levels fall evenly from 1 and are then shifted towards noise:
    shift * s / (1 + (shift - 1) * s).

    Raises:
        ValueError: no step, or a shift that is not positive.
    """
    if steps < 1 or shift <= 0:
        raise ValueError(f"found {steps} steps and a shift of {shift}: both must be above 0")
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 0, steps + 1)[:-1].tolist())
    return scheduler


def predict(
    network: VideoDiT,
    latents: Tensor,
    timestep: Tensor,
    condition: Tensor,
    positive: Tensor,
    negative: Tensor | None,
    *,
    batched: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """The velocities of one step: with the positive context, and with the negative one.

    Both branches see the condition latents.

    Args:
        latents, condition: [B, 16, F, h, w]. timestep: scalar in [0, 1000].
        positive, negative: contexts [B, N, text_dim]; without a negative one its velocity is None.
        batched: both branches in one pass of twice the batch; else one after the other, which
            takes less memory and is what diffusers' caches need to tell them apart.
    """
    B = len(latents)
    if negative is None:
        return network(latents, timestep.expand(B), condition, positive), None
    if batched:
        both = network(
            torch.cat([latents, latents]),
            timestep.expand(2 * B),
            torch.cat([condition, condition]),
            torch.cat([positive, negative]),
        )
        yes, no = both.chunk(2)
        return yes, no
    with network.dit.cache_context("cond"):
        yes = network(latents, timestep.expand(B), condition, positive)
    with network.dit.cache_context("uncond"):
        no = network(latents, timestep.expand(B), condition, negative)
    return yes, no


@torch.no_grad()
def sample_latents(
    network: VideoDiT,
    noise: Tensor,
    condition: Tensor,
    positive: Tensor,
    negative: Tensor | None,
    *,
    steps: int = 50,
    guidance: float = 5.0,
    shift: float = 5.0,
    batched: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Draw the latents of a clip; the defaults are the released settings.

    Args:
        noise: [B, 16, F, h, w] standard normal. condition: same shape, of the map.
        positive, negative: contexts of `VideoDiT.encode_context`; the negative one, without anchor
            features, is left out where it is None or guidance is 1.
        guidance: how far past the negative prediction to go. batched: as for `predict`.
        progress: called with the number of steps that are done.

    Returns:
        [B, 16, F, h, w] float32.
    """
    whole = Window(slice(0, noise.shape[2]), positive)
    return sample_windows(
        network,
        noise,
        condition,
        [whole],
        negative,
        steps=steps,
        guidance=guidance,
        shift=shift,
        batched=batched,
        progress=progress,
    )


@dataclass(frozen=True)
class Window:
    """A clip of a longer video: its latent frames, its context, and its say in each of them.

    Attributes:
        frames: of the video's latents. positive: context [B, N, text_dim].
        weight: [frames], positive; all the same where it is None.
    """

    frames: slice
    positive: Tensor
    weight: Tensor | None = None


@torch.no_grad()
def sample_windows(
    network: VideoDiT,
    noise: Tensor,
    condition: Tensor,
    windows: Sequence[Window],
    negative: Tensor | None,
    *,
    steps: int = 50,
    guidance: float = 5.0,
    shift: float = 5.0,
    batched: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Draw the latents of a video of any length, in windows that the network can take.

    All windows are drawn together: in every step their velocities are averaged where they overlap
    (MultiDiffusion, Bar-Tal et al. 2023, along time), so neighbours agree from the first step on
    and leave no seam.

    Args:
        noise, condition: [B, 16, F, h, w] of the whole video.
        windows: they cover all of its frames; the rest as for `sample_latents`.

    Raises:
        ValueError: frames that no window covers.
    """
    scheduler: Any = make_schedule(steps, shift)
    if guidance == 1.0:
        negative = None
    frames = noise.shape[2]
    ones = torch.ones(frames, device=noise.device)
    shares = [ones[w.frames] if w.weight is None else w.weight.to(ones) for w in windows]
    total = torch.zeros(frames, device=noise.device)
    for window, share in zip(windows, shares, strict=True):
        total[window.frames] += share
    if not (total > 0).all():
        raise ValueError("the windows leave out some of the video's frames")
    x = noise.float()
    for i, timestep in enumerate(scheduler.timesteps):
        velocity = torch.zeros_like(x)
        for window, share in zip(windows, shares, strict=True):
            part = window.frames
            yes, no = predict(
                network,
                x[:, :, part],
                timestep.to(x.device),
                condition[:, :, part],
                window.positive,
                negative,
                batched=batched,
            )
            wanted = yes.float()
            if no is not None:
                wanted = no.float() + guidance * (wanted - no.float())
            velocity[:, :, part] += wanted * (share / total[part])[:, None, None]
        x = scheduler.step(velocity, timestep, x, return_dict=False)[0]
        if progress is not None:
            progress(i + 1)
    return x

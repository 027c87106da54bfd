"""The wrist-view video DiT: diffusers' Wan transformer, its input widened by the condition map."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .conditioning import AnchorEncoder, ByteTextEncoder, ContextBuilder
from .flow import make_schedule
from .libraries import WanTransformer3DModel

MOUNT = 4  # channels of the learnt picture of what is bolted to the camera


@dataclass(frozen=True)
class GeneratorConfig:
    """Sizes of a generator that works on lossless space-to-depth latents.

    Attributes:
        layers, heads, head_dim, ffn_dim: of the transformer. text_dim: width of its context.
        block: pixels a side that one latent holds. text_length: bytes of text.
        frames: longest clip; views: most anchor views. detail: channels of the
            full-size convolutions. mount: (H, W) of the learnt picture of what is bolted to the
            camera; clips of other sizes see it resized.
    """

    layers: int = 6
    heads: int = 4
    head_dim: int = 64
    ffn_dim: int = 768
    text_dim: int = 128
    block: int = 4
    text_length: int = 64
    frames: int = 16
    views: int = 4
    detail: int = 24
    mount: tuple[int, int] = (72, 128)

    def to_dict(self) -> dict:
        """Plain values, for a weights file's header."""
        return asdict(self)


@dataclass
class Condition:
    """What the generator is given about a clip.

    Attributes:
        filled: [B, T, 3, H, W] in [-1, 1], the condition map with its holes filled.
        covered: [B, T, 1, H, W] 1 where the map saw something. nearness: [B, T, 1, H, W] in [0, 1].
        anchors: [B, T, V, 3, h, w] in [0, 1]. text: [B, L] bytes of `ByteTextEncoder.tokenize`.
        gripper: [B, T] how far closed, in [-1, 1]; 0 where the data do not say.
    """

    filled: Tensor
    covered: Tensor
    nearness: Tensor
    anchors: Tensor
    text: Tensor
    gripper: Tensor


class Detail(nn.Module):
    """Convolutions at full and half size, so that the transformer's patches leave no checkerboard.

    Args:
        channels: of the input. width: channels at full size; twice as many at half size.
    """

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.coarse = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(2 * width, width, 3, padding=1),
        )
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, 3, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] -> [N, 3, H, W], zero before training."""
        x = F.silu(self.first(x))
        coarse = F.interpolate(self.coarse(x), x.shape[-2:], mode="bilinear", align_corners=False)
        return self.last(F.silu(self.second(x + coarse)))


class WristGenerator(nn.Module):
    """Predicts the clean wrist clip from a noisy one, the condition map, anchor views and text.

    The network's output is a residual over the filled condition map, zero before training: an
    untrained generator returns the map.
    """

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = c = config
        pixels = c.block**2
        planes = 3 + 1 + 1 + 1 + MOUNT  # filled, covered, nearness, gripper, mount
        self.dit = WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=c.heads,
            attention_head_dim=c.head_dim,
            in_channels=pixels * (3 + planes),
            out_channels=pixels * 3,
            text_dim=c.text_dim,
            freq_dim=128,
            ffn_dim=c.ffn_dim,
            num_layers=c.layers,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
            rope_max_seq_len=256,
        )
        self.text = ByteTextEncoder(c.text_dim, c.text_length)
        self.anchor = AnchorEncoder(256)
        self.context = ContextBuilder(256, c.text_dim, frames=c.frames, views=c.views)
        # The transformer's positions are relative, but the gripper is bolted to the camera and
        # stays at one place in the picture: here every pixel learns what is usual there.
        self.mount = nn.Parameter(torch.zeros(1, MOUNT, *c.mount))
        self.detail = Detail(3 + planes, c.detail)
        nn.init.zeros_(self.dit.proj_out.weight)
        nn.init.zeros_(self.dit.proj_out.bias)

    def check_size(self, frames: int, height: int, width: int) -> None:
        """Raise ValueError for a clip that the network would crop in silence or cannot place."""
        step = 2 * self.config.block
        if height % step or width % step:
            raise ValueError(f"the generator makes sizes that are multiples of {step}; "
                             f"found {height}x{width}")  # fmt: skip
        if frames > self.config.frames:
            raise ValueError(f"clips have {self.config.frames} frames at most; found {frames}")

    def encode_context(
        self, condition: Condition, keep: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Context tokens with anchors and text, and the negative ones (no anchors, no text).

        Args:
            keep: [B] bool; where False the conditional context is blanked too (training for CFG).
        """
        B, T, V = condition.anchors.shape[:3]
        features = self.anchor(condition.anchors.flatten(0, 2)).unflatten(0, (B, T, V))
        text = self.text(condition.text)
        positive = self.context(features, text)
        if keep is not None:
            positive = positive * keep[:, None, None].to(positive.dtype)
        return positive, torch.zeros_like(positive)

    def forward(
        self, noisy: Tensor, sigma: Tensor, condition: Condition, context: Tensor
    ) -> Tensor:
        """Noisy clip [B, T, 3, H, W], noise level sigma [B] in [0, 1] -> clean clip, same shape."""
        B, T, _, H, W = noisy.shape
        self.check_size(T, H, W)
        known = self._planes(condition)
        # Pure noise says nothing of the clip. Shut out, it cannot leak into what is drawn first,
        # which a network this small would take many more steps to learn.
        share = (1 - sigma).view(B, 1, 1, 1, 1).to(noisy.dtype)
        pixels = torch.cat([share * noisy, known], dim=2)
        latents = F.pixel_unshuffle(pixels.flatten(0, 1), self.config.block)
        latents = latents.unflatten(0, (B, T)).transpose(1, 2)
        residual = self.dit(
            hidden_states=latents,
            timestep=sigma * 1000,
            encoder_hidden_states=context,
            return_dict=False,
        )[0]
        residual = F.pixel_shuffle(residual.transpose(1, 2).flatten(0, 1), self.config.block)
        clean = condition.filled + residual.unflatten(0, (B, T)).to(condition.filled.dtype)
        seen = torch.cat([clean, known], dim=2)
        return clean + self.detail(seen.flatten(0, 1)).unflatten(0, (B, T)).to(clean.dtype)

    def _planes(self, condition: Condition) -> Tensor:
        """[B, T, planes, H, W]: everything that is known of each pixel."""
        B, T, _, H, W = condition.filled.shape
        mount = self.mount
        if mount.shape[-2:] != (H, W):
            mount = F.interpolate(mount, (H, W), mode="bilinear", align_corners=False)
        return torch.cat(
            [
                condition.filled,
                condition.covered * 2 - 1,
                condition.nearness * 2 - 1,
                condition.gripper[:, :, None, None, None].expand(B, T, 1, H, W),
                mount.expand(B, T, -1, -1, -1).to(condition.filled.dtype),
            ],
            dim=2,
        )


@torch.no_grad()
def sample(
    generator: WristGenerator,
    condition: Condition,
    noise: Tensor,
    *,
    steps: int,
    guidance: float,
    shift: float = 1.0,
) -> Tensor:
    """Draw a clip by flow matching (Lipman et al. 2023) with Euler steps.

    Args:
        noise: [B, T, 3, H, W] standard normal. steps: network passes (times two with guidance).
        guidance: CFG scale; 1 leaves the negative branch out. shift: of the noise schedule.

    Returns:
        [B, T, 3, H, W] in [-1, 1].
    """
    scheduler: Any = make_schedule(steps, shift)
    positive, negative = generator.encode_context(condition)
    guided = guidance != 1.0
    if guided:
        both = Condition(**{k: torch.cat([v, v]) for k, v in vars(condition).items()})
    x = noise
    for i, timestep in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[i].to(x)
        if guided:
            level = sigma.expand(2 * len(x))
            context = torch.cat([positive, negative])
            yes, no = generator(torch.cat([x, x]), level, both, context).chunk(2)
            clean = no + guidance * (yes - no)
        else:
            clean = generator(x, sigma.expand(len(x)), condition, positive)
        velocity = (x - clean) / sigma
        x = scheduler.step(velocity, timestep, x, return_dict=False)[0]
    return x.clamp(-1, 1)

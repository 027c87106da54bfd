"""The full-size video DiT: Wan 2.1 1.3B, its input widened by condition latents and anchor tokens.

Latents are the video autoencoder's: 4 pixel frames in one (the first has its own), 8 pixels a side.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from .libraries import WanTransformer3DModel
from .video_context import ContextTokens, OfficialTokens, PaperTokens

TEMPORAL, SPATIAL = 4, 8  # pixel frames and pixels a side in one latent


@dataclass(frozen=True)
class VideoDiTConfig:
    """Sizes of the video DiT; the defaults are the released ones, around Wan 2.1 1.3B.

    Attributes:
        form: "official" (as released) or "paper": how anchor features enter the context.
        layers, heads, head_dim, ffn_dim, freq_dim, patch: of the transformer.
        text_dim: width of the context's tokens; context_tokens: how many it has.
        latent_channels: of the video; condition_channels: of the condition map's latents.
        ext_dim: width of the anchor features; ext_hidden: of the official projection.
        frames, views: how many temporal and view embeddings are learnt. dropout: of the projection.
    """

    form: str = "official"
    layers: int = 30
    heads: int = 12
    head_dim: int = 128
    ffn_dim: int = 8960
    freq_dim: int = 256
    patch: tuple[int, int, int] = (1, 2, 2)
    text_dim: int = 4096
    context_tokens: int = 512
    latent_channels: int = 16
    condition_channels: int = 16
    ext_dim: int = 1280
    ext_hidden: int = 2048
    frames: int = 200
    views: int = 2
    dropout: float = 0.1

    def __post_init__(self):
        if self.form not in ("official", "paper"):
            raise ValueError(f"the form of a video DiT is official or paper; found {self.form!r}")

    @property
    def channels(self) -> int:
        """Channels that the patch embedding takes in."""
        return self.latent_channels + self.condition_channels

    def to_dict(self) -> dict:
        """Plain values, for a weights file's header."""
        return asdict(self)


OFFICIAL = VideoDiTConfig()
PAPER = VideoDiTConfig(form="paper", ext_dim=512)


def latent_shape(
    config: VideoDiTConfig, frames: int, height: int, width: int
) -> tuple[int, int, int, int]:
    """(C, F, h, w) of the latents of a clip of pixels.

    Raises:
        ValueError: a clip that the autoencoder or the patches would crop in silence.
    """
    if frames < 1 or (frames - 1) % TEMPORAL:
        less = max(1, (frames - 1) // TEMPORAL * TEMPORAL + 1)
        fit = f"{less} or {less + TEMPORAL}" if frames > 0 else "1"
        raise ValueError(f"clips have 4n + 1 frames; found {frames}: pad or cut to {fit}")
    sides = []
    for name, size, patch in zip(
        ("height", "width"), (height, width), config.patch[1:], strict=True
    ):
        step = SPATIAL * patch
        if size < step or size % step:
            less = size // step * step
            fit = f"{less} or {less + step}" if less else f"{step}"
            raise ValueError(
                f"found a {name} of {size} pixels; it must be a multiple of {step}: resize to {fit}"
            )
        sides.append(size // SPATIAL)
    return config.latent_channels, (frames - 1) // TEMPORAL + 1, *sides


def context_tokens(config: VideoDiTConfig) -> ContextTokens:
    """What makes the context of a network of these sizes, with fresh weights."""
    sizes = {
        "frames": config.frames,
        "views": config.views,
        "limit": config.context_tokens,
        "text_dim": config.text_dim,
    }
    if config.form == "official":
        hidden, dropout = config.ext_hidden, config.dropout
        return OfficialTokens(config.ext_dim, hidden, dropout=dropout, **sizes)
    return PaperTokens(config.ext_dim, **sizes)


class VideoDiT(nn.Module):
    """Predicts the velocity of noisy wrist latents, given condition latents and a context.

    Attributes:
        dit: diffusers' transformer; its caches, attention backends, checkpointing and compilation
            are switched on there.
        tokens: what makes the context.
    """

    def __init__(self, config: VideoDiTConfig = OFFICIAL):
        super().__init__()
        self.config = c = config
        self.dit = WanTransformer3DModel(
            patch_size=c.patch,
            num_attention_heads=c.heads,
            attention_head_dim=c.head_dim,
            in_channels=c.channels,
            out_channels=c.latent_channels,
            text_dim=c.text_dim,
            freq_dim=c.freq_dim,
            ffn_dim=c.ffn_dim,
            num_layers=c.layers,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
            eps=1e-6,
        )
        self.tokens = context_tokens(c)

    def check_clip(self, frames: int, height: int, width: int, views: int) -> None:
        """ValueError for a clip of pixels that would be cropped in silence or does not fit."""
        latent_shape(self.config, frames, height, width)
        self.tokens.check(frames, views)

    def encode_context(self, text: Tensor, ext: Tensor | None = None) -> Tensor:
        """Text [B, L, text_dim], features [B, V, T, E] -> context [B, context_tokens, text_dim].

        The negative branch of guidance has its own text and no features. ValueError where they do
        not fit.
        """
        return self.tokens(text, ext)

    def forward(
        self, latents: Tensor, timestep: Tensor, condition: Tensor, context: Tensor
    ) -> Tensor:
        """One pass of the transformer.

        Args:
            latents: [B, 16, F, h, w], noisy. timestep: [B] in [0, 1000], 1000 is pure noise.
            condition: [B, 16, F, h, w], latents of the condition map.
            context: [B, N, text_dim] from `encode_context`.

        Returns:
            [B, 16, F, h, w]: noise minus clean latents.

        Raises:
            ValueError: shapes that do not belong together, or that patches would crop.
        """
        B, _, F, h, w = latents.shape
        c = self.config
        for name, x, channels in (
            ("latents", latents, c.latent_channels),
            ("condition latents", condition, c.condition_channels),
        ):
            if list(x.shape) != [B, channels, F, h, w]:
                raise ValueError(
                    f"{name} must be {[B, channels, F, h, w]}; found {list(x.shape)}: encode the "
                    "clip and its condition map with the same autoencoder at the same size"
                )
        for size, patch, name in zip(
            (F, h, w), c.patch, ("frames", "rows", "columns"), strict=True
        ):
            if size % patch:
                raise ValueError(
                    f"found {size} latent {name}; they must be a multiple of {patch}: resize the "
                    f"clip so that its sides are multiples of {SPATIAL * c.patch[1]} pixels"
                )
        dtype = self.dit.patch_embedding.weight.dtype
        return self.dit(
            hidden_states=torch.cat([latents, condition], dim=1).to(dtype),
            timestep=timestep,
            encoder_hidden_states=context.to(dtype),
            return_dict=False,
        )[0]


def to_precision(network: VideoDiT, dtype: torch.dtype) -> VideoDiT:
    """Cast in place, but for the modules that Wan keeps in float32 (`.to(dtype)` has no mercy)."""
    kept = set(WanTransformer3DModel._keep_in_fp32_modules or ())
    for name, parameter in network.named_parameters():
        if not kept.intersection(name.split(".")):
            parameter.data = parameter.data.to(dtype)
    return network


def widen_patch_embedding(
    dit: WanTransformer3DModel,
    channels: int,
    *,
    std: float = 0.0,
    generator: torch.Generator | None = None,
) -> None:
    """Let a transformer take in more channels; what it says of the old ones stays the same.

    Args:
        channels: how many it takes afterwards. std: of the new weights; 0 (the paper) leaves the
            output unchanged, the released code draws them with 0.02. generator: of those.

    Raises:
        ValueError: fewer channels than there are.
    """
    old = dit.patch_embedding
    if channels < old.in_channels:
        raise ValueError(f"cannot narrow a patch embedding of {old.in_channels} to {channels}")
    with torch.device(old.weight.device):
        new = nn.Conv3d(
            channels,
            old.out_channels,
            kernel_size=old.kernel_size,  # type: ignore[arg-type]
            stride=old.stride,  # type: ignore[arg-type]
        ).to(old.weight.dtype)
    with torch.no_grad():
        new.weight.copy_(widen_weight(old.weight, channels, std=std, generator=generator))
        new.bias.copy_(old.bias)  # type: ignore[union-attr]
    dit.patch_embedding = new
    dit.register_to_config(in_channels=channels)


def widen_weight(
    weight: Tensor, channels: int, *, std: float = 0.0, generator: torch.Generator | None = None
) -> Tensor:
    """A patch embedding's weight [C, old, t, y, x] -> [C, channels, t, y, x], new ones behind."""
    C, old, *window = weight.shape
    # Drawn on the CPU, so that the same seed gives the same weights anywhere.
    extra = torch.zeros(C, channels - old, *window)
    if std:
        extra.normal_(0, std, generator=generator)
    return torch.cat([weight, extra.to(weight)], dim=1)


def change_views(network: VideoDiT, views: int, generator: torch.Generator | None = None) -> None:
    """Give the network embeddings for another number of anchor views, in place.

    All weights stay but the view embeddings, which start anew: the paper's step from two views
    (DROID) to three (Franka).

    Args:
        generator: (CPU) of the new embeddings; the same seed gives the same ones.
    """
    if views < 1:
        raise ValueError(f"found {views} views; at least one is needed")
    old = network.tokens.view_embed
    fresh = torch.empty(views, old.embedding_dim).normal_(
        0, 1.0 if network.config.form == "official" else 0.02, generator=generator
    )
    network.tokens.view_embed = nn.Embedding.from_pretrained(
        fresh.to(old.weight), freeze=not old.weight.requires_grad
    )
    network.config = replace(network.config, views=views)

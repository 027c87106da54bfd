"""Dense prediction heads (Ranftl et al. 2021) in VGGT's form: depth or points, with confidence."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .aggregator import PATCH
from .geometry import exact


def uv_embedding(
    height: int, width: int, channels: int, aspect: float, device: torch.device | str = "cpu"
) -> Tensor:
    """[channels, H, W] sines and cosines of a pixel grid whose half diagonal is 1."""
    diagonal = (aspect**2 + 1) ** 0.5
    span_x, span_y = aspect / diagonal, 1 / diagonal

    def centres(span: float, number: int) -> Tensor:
        end = span * (number - 1) / number
        return torch.linspace(-end, end, number, device=device)

    x, y = centres(span_x, width), centres(span_y, height)
    quarter = channels // 4
    frequency = 100.0 ** -(torch.arange(quarter, dtype=torch.float64, device=device) / quarter)

    def waves(values: Tensor) -> Tensor:
        angle = values.double()[:, None] * frequency
        return torch.cat([angle.sin(), angle.cos()], dim=-1).float()

    ex = waves(x)[None].expand(height, -1, -1)
    ey = waves(y)[:, None].expand(-1, width, -1)
    return torch.cat([ex, ey], dim=-1).permute(2, 0, 1)


class ResidualUnit(nn.Module):
    """Two convolutions; the shortcut carries the rectified input, as in the public weights."""

    def __init__(self, features: int):
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        return self.conv2(F.relu(self.conv1(x))) + x


class Fusion(nn.Module):
    """Add a finer map to a coarser one and resize the sum."""

    def __init__(self, features: int, *, deepest: bool = False):
        super().__init__()
        self.out_conv = nn.Conv2d(features, features, 1)
        if not deepest:
            self.resConfUnit1 = ResidualUnit(features)
        self.resConfUnit2 = ResidualUnit(features)

    def forward(self, x: Tensor, finer: Tensor | None, size: tuple[int, int]) -> Tensor:
        if finer is not None:
            x = x + self.resConfUnit1(finer)
        x = self.resConfUnit2(x)
        x = F.interpolate(x, size=size, mode="bilinear", align_corners=True)
        return self.out_conv(x)


class Scratch(nn.Module):
    """The convolutions behind the projections, grouped as the public keys group them."""

    def __init__(self, widths: tuple[int, ...], features: int, outputs: int | None):
        super().__init__()
        for i, width in enumerate(widths, start=1):
            setattr(self, f"layer{i}_rn", nn.Conv2d(width, features, 3, padding=1, bias=False))
            setattr(self, f"refinenet{i}", Fusion(features, deepest=i == len(widths)))
        if outputs is None:
            self.output_conv1 = nn.Conv2d(features, features, 3, padding=1)
        else:
            self.output_conv1 = nn.Conv2d(features, features // 2, 3, padding=1)
            self.output_conv2 = nn.Sequential(
                nn.Conv2d(features // 2, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, outputs, 1)
            )


def _normed(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Convolution, group norm, SiLU: without norms a U this deep hardly sees its input at first."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1),
        nn.GroupNorm(8, outputs),
        nn.SiLU(),
    )


class DetailBranch(nn.Module):
    """A convolutional U beside the tokens: sees pixels, gives the map its silhouettes.

    Not part of the public networks. Tokens of 14 x 14 pixels learn edges slowly; convolutions over
    the picture learn them in a few hundred steps.

    Args:
        channels: of the full-size input. features: of the map that it refines. widths: channels
            at full, half, quarter, eighth and sixteenth size.
    """

    def __init__(
        self, channels: int, features: int, widths: tuple[int, ...] = (16, 32, 64, 96, 128)
    ):
        super().__init__()
        self.first = _normed(channels, widths[0])
        self.down = nn.ModuleList(
            nn.Sequential(_normed(a, b, stride=2), _normed(b, b)) for a, b in pairwise(widths)
        )
        self.coarse = nn.ModuleList(nn.Conv2d(features, width, 1) for width in widths[2:])
        self.mix = nn.ModuleList(_normed(width, width) for width in widths[2:])
        self.up = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairwise(widths))
        self.join = nn.ModuleList(_normed(width, width) for width in widths[:-1])
        self.out = nn.Conv2d(widths[0], features, 3, padding=1)

    def forward(self, pixels: Tensor, x: Tensor) -> Tensor:
        """Pixels [N, channels, H, W], the map so far [N, features, H, W] -> what to add to it."""

        def resize(y: Tensor, like: Tensor) -> Tensor:
            return F.interpolate(y, like.shape[-2:], mode="bilinear", align_corners=False)

        levels = [self.first(pixels)]
        for step in self.down:
            levels.append(step(levels[-1]))
        small = F.avg_pool2d(x, 4, ceil_mode=True)
        for i, (coarse, mix) in enumerate(zip(self.coarse, self.mix, strict=True), start=2):
            level = levels[i] + resize(coarse(small), levels[i])
            levels[i] = level + mix(level)
        y = levels.pop()
        for up, join in zip(reversed(self.up), reversed(self.join), strict=True):
            finer = levels.pop()
            y = finer + join(finer + resize(up(y), finer))
        return self.out(y)


LARGE = 16 << 20  # values of a map at full size


class DPTHead(nn.Module):
    """Four layers of tokens -> a map at the image's size.

    Args:
        dim: channels of the tokens (2C). layers: which four of the aggregator's layers are read.
        outputs: channels of the last convolution (value and confidence), or None for features.
        features, widths: sizes of the convolutions. down: output size is the image's over this.
        uv: add the pixel grid's embedding (the track head's features go without).
        skip: channels of an input at full size that joins before the last convolutions, so that
            silhouettes come out sharp from few tokens; 0 builds the public head.
    """

    def __init__(
        self,
        dim: int,
        layers: tuple[int, ...],
        *,
        outputs: int | None,
        features: int = 256,
        widths: tuple[int, ...] = (256, 512, 1024, 1024),
        down: int = 1,
        uv: bool = True,
        skip: int = 0,
    ):
        super().__init__()
        self.layers, self.down, self.uv = tuple(layers), down, uv
        self.norm = nn.LayerNorm(dim)
        self.projects = nn.ModuleList(nn.Conv2d(dim, width, 1) for width in widths)
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(widths[0], widths[0], 4, 4),
                nn.ConvTranspose2d(widths[1], widths[1], 2, 2),
                nn.Identity(),
                nn.Conv2d(widths[3], widths[3], 3, stride=2, padding=1),
            ]
        )
        self.scratch = Scratch(widths, features, outputs)
        self.detail = DetailBranch(skip, features // 2) if skip else None

    def _with_uv(self, x: Tensor, aspect: float) -> Tensor:
        if not self.uv:
            return x
        channels, height, width = x.shape[1:]
        return x + 0.1 * uv_embedding(height, width, channels, aspect, x.device).to(x)

    def features(self, tokens: dict[int, Tensor], size: tuple[int, int], special: int) -> Tensor:
        """{layer: [B, S, P, dim]} -> [B * S, features or features / 2, H / down, W / down]."""
        rows, columns = size[0] // PATCH, size[1] // PATCH
        aspect = size[1] / size[0]
        maps = []
        for layer, project, resize in zip(
            self.layers, self.projects, self.resize_layers, strict=True
        ):
            x = self.norm(tokens[layer][:, :, special:].flatten(0, 1))
            x = x.transpose(1, 2).unflatten(2, (rows, columns))
            maps.append(resize(self._with_uv(project(x), aspect)))
        s: Any = self.scratch  # its modules are attributes by name
        maps = [getattr(s, f"layer{i}_rn")(x) for i, x in enumerate(maps, start=1)]

        def shape(x: Tensor) -> tuple[int, int]:
            return x.shape[-2], x.shape[-1]

        x = s.refinenet4(maps[3], None, shape(maps[2]))
        x = s.refinenet3(x, maps[2], shape(maps[1]))
        x = s.refinenet2(x, maps[1], shape(maps[0]))
        double = (2 * maps[0].shape[-2], 2 * maps[0].shape[-1])
        x = s.output_conv1(s.refinenet1(x, maps[0], double))
        target = (rows * PATCH // self.down, columns * PATCH // self.down)
        x = F.interpolate(x, size=target, mode="bilinear", align_corners=True)
        return self._with_uv(x, aspect)

    def forward(
        self,
        tokens: dict[int, Tensor],
        size: tuple[int, int],
        special: int,
        skip: Tensor | None = None,
    ) -> Tensor:
        """Raw values [B, S, H / down, W / down, outputs]; activations are the caller's.

        Args:
            skip: [B, S, skip, H, W], for heads that were built with it.
        """
        some = next(iter(tokens.values()))
        B, S = some.shape[:2]
        values = S * size[0] * size[1] * self.scratch.output_conv1.out_channels
        alone = B > 1 and some.device.type == "cpu" and not torch.is_grad_enabled()
        if alone and values > LARGE:
            # No slower than all at once, in a fraction of the memory.
            found = []
            for b in range(B):
                part = slice(b, b + 1)
                layers = {layer: value[part] for layer, value in tokens.items()}
                found.append(self(layers, size, special, None if skip is None else skip[part]))
            return torch.cat(found)
        x = self.features(tokens, size, special)
        if self.detail is not None and skip is not None:
            x = x + self.detail(skip.flatten(0, 1), x)
        with exact():  # the logarithm of a depth, which bfloat16 knows to a few millimetres
            last: Any = self.scratch.output_conv2
            x = last(x.to(last[0].weight.dtype))
        return x.permute(0, 2, 3, 1).unflatten(0, (-1, S))


def depth_activation(raw: Tensor, priors: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Raw [B, S, H, W, 2] -> depth exp(x) [B, S, H, W] and confidence 1 + exp(c), the same shape.

    With `priors` [B, S, 2, H, W], the depths in metres that calibration gives (the table plane's
    and the tool's), raw has a third channel, which weighs the two; the value is then the logarithm
    of the ratio to their weighted geometric mean.
    """
    value = raw[..., 0].float()
    if priors is not None:
        table, tool = priors.log().unbind(2)
        value = value + table + torch.sigmoid(raw[..., 2].float()) * (tool - table)
    return torch.exp(value), 1 + torch.exp(raw[..., 1].float().clamp_max(10))


def point_activation(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Raw [..., 4] -> points sign(x) expm1|x| [..., 3] and confidence 1 + exp(c) [...]."""
    x = raw[..., :3].float()
    return torch.sign(x) * torch.expm1(x.abs()), 1 + torch.exp(raw[..., 3].float())

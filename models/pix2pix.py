"""Pix2Pix (Isola et al., arXiv 1611.07004): a U-Net that makes a picture of others, and its judge.

Made as their appendix says, narrower: 4x4 convolutions of stride 2 down to one or two pixels a side
and up again, skips between layers of one size, leaky ReLUs of 0.2 on the way down and ReLUs on the
way up, and a judge of patches of 70x70 pixels. Here the normalisation is of each sample, which is
what theirs comes to for the single pictures that they generate from, and which depends on no other
sample of a batch. Dropout is of training alone: the same input gives the same picture.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

_WIDEST = 6  # times `width`; theirs is 8 of 64
_LEVELS = 6  # at most; 128x224 is then 2x3
_DROPPED = 3  # innermost layers on the way up that have dropout


@dataclass(frozen=True)
class Pix2PixConfig:
    """Sizes of a Pix2Pix.

    Attributes:
        size: (height, width) of its pictures, 16 or more. views: pictures that it is given.
        width: channels after its first layer. dropout: of the innermost layers, in training.
    """

    size: tuple[int, int] = (128, 224)
    views: int = 2
    width: int = 32
    dropout: float = 0.5

    def to_dict(self) -> dict:
        """Plain values, for a weights file's header."""
        return asdict(self)

    @property
    def widths(self) -> list[int]:
        """Channels after each layer on the way down."""
        levels = min(_LEVELS, int(math.log2(min(self.size))))
        return [self.width * min(2**level, _WIDEST) for level in range(levels)]


class Down(nn.Module):
    """Half the size: leaky ReLU, convolution, normalisation; the first and innermost have less."""

    def __init__(self, given: int, out: int, *, active: bool, normed: bool):
        super().__init__()
        self.active = active
        self.conv = nn.Conv2d(given, out, 4, stride=2, padding=1, bias=not normed)
        self.norm = nn.InstanceNorm2d(out, affine=True) if normed else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(F.leaky_relu(x, 0.2) if self.active else x))


class Up(nn.Module):
    """Twice the size: ReLU, transposed convolution, normalisation and dropout."""

    def __init__(self, given: int, out: int, *, normed: bool, dropout: float):
        super().__init__()
        self.conv = nn.ConvTranspose2d(given, out, 4, stride=2, padding=1, bias=not normed)
        self.norm = nn.InstanceNorm2d(out, affine=True) if normed else nn.Identity()
        self.drop = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """`size`: (height, width) of the result; an odd one is reached by repeating the edge."""
        x = self.drop(self.norm(self.conv(F.relu(x))))
        more = (0, size[1] - x.shape[-1], 0, size[0] - x.shape[-2])
        return F.pad(x, more, mode="replicate") if any(more) else x


class Pix2PixGenerator(nn.Module):
    """Anchor views -> the wrist view of the same moment."""

    def __init__(self, config: Pix2PixConfig):
        super().__init__()
        self.config = config
        widths = config.widths
        given = [3 * config.views, *widths[:-1]]
        last = len(widths) - 1
        self.down = nn.ModuleList(
            Down(a, b, active=level > 0, normed=0 < level < last)
            for level, (a, b) in enumerate(zip(given, widths, strict=True))
        )
        # Every layer but the innermost is also given the skip, which is as wide as its own input.
        self.up = nn.ModuleList(
            Up(
                widths[level] * (1 if level == last else 2),
                widths[level - 1] if level else 3,
                normed=level > 0,
                dropout=config.dropout if level > max(0, last - _DROPPED) else 0.0,
            )
            for level in reversed(range(len(widths)))
        )
        self.apply(_initialise)

    def forward(self, anchors: Tensor) -> Tensor:
        """[B, V, 3, H, W] in [-1, 1], `config.views` of `config.size` -> [B, 3, H, W] likewise."""
        skips = [anchors.flatten(1, 2)]
        for layer in self.down:
            skips.append(layer(skips[-1]))
        x = skips.pop()
        for number, layer in enumerate(self.up):
            if number:
                x = torch.cat([x, skips.pop()], dim=1)
            x = layer(x, skips[-1].shape[-2:])
        return torch.tanh(x)


class Pix2PixJudge(nn.Module):
    """How real each patch of 70x70 pixels looks, given the anchor views (their PatchGAN)."""

    def __init__(self, config: Pix2PixConfig):
        super().__init__()
        widths = [config.width * factor for factor in (1, 2, 4, 8)]
        layers: list[nn.Module] = [nn.Conv2d(3 * config.views + 3, widths[0], 4, 2, 1)]
        # The last two layers keep the size; where a picture is small, so does the third.
        strides = (2, 2 if min(config.size) >= 64 else 1, 1)
        for given, out, stride in zip(widths, widths[1:], strides, strict=False):
            layers += [
                nn.LeakyReLU(0.2),
                nn.Conv2d(given, out, 4, stride, 1, bias=False),
                nn.InstanceNorm2d(out, affine=True),
            ]
        layers += [nn.LeakyReLU(0.2), nn.Conv2d(widths[-1], 1, 4, 1, 1)]
        self.layers = nn.Sequential(*layers)
        self.apply(_initialise)

    def forward(self, anchors: Tensor, picture: Tensor) -> Tensor:
        """Logits [B, 1, h, w] of [B, V, 3, H, W] and [B, 3, H, W]: positive looks real."""
        return self.layers(torch.cat([anchors.flatten(1, 2), picture], dim=1))


class Pix2Pix(nn.Module):
    """Generator and judge, which learn in one step and each from its own loss alone."""

    def __init__(self, config: Pix2PixConfig):
        super().__init__()
        self.generator = Pix2PixGenerator(config)
        self.judge = Pix2PixJudge(config)

    def losses(self, anchors: Tensor, truth: Tensor, absolute: float = 100.0) -> dict[str, Tensor]:
        """The sum to minimise, and its parts.

        The generator's loss sees the judge's parameters as constants, and the judge's loss sees the
        made picture as one, so the gradient of the sum is each network's own: both step at once,
        from where both were before (theirs step in turn).

        Args:
            anchors: [B, V, 3, H, W] in [-1, 1]. truth: [B, 3, H, W], the recorded wrist view.
            absolute: weight of the absolute error beside the judge's word (lambda, theirs 100).
        """
        made = self.generator(anchors)
        frozen = {name: value.detach() for name, value in self.judge.state_dict().items()}
        fooled = _cross_entropy(functional_call(self.judge, frozen, (anchors, made)), real=True)
        # Half, as in the paper: the judge is to learn slower than the generator.
        judged = (
            _cross_entropy(self.judge(anchors, truth), real=True)
            + _cross_entropy(self.judge(anchors, made.detach()), real=False)
        ) / 2
        error = (made.float() - truth).abs().mean()
        squared = (made.detach().float() - truth).square().mean()
        return {
            "loss": absolute * error + fooled + judged,
            "l1": error.detach(),
            "adversarial": fooled.detach(),
            "judge": judged.detach(),
            "psnr": -10 * torch.log10(squared / 4),
        }


def _cross_entropy(logits: Tensor, *, real: bool) -> Tensor:
    logits = logits.float()
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))


def _initialise(module: nn.Module) -> None:
    """Weights from N(0, 0.02), gains from N(1, 0.02), as the paper starts."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.InstanceNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)

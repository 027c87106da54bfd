"""Small files in the place of the metrics' public weights: an AlexNet at random, a tiny I3D."""

import torch
from torch import nn

# The convolutions of torchvision's AlexNet: place, channels in and out, side.
ALEXNET = [(0, 3, 64, 11), (3, 64, 192, 5), (6, 192, 384, 3), (8, 384, 256, 3), (10, 256, 256, 3)]


def alexnet(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights under torchvision's names, with a classifier that LPIPS has no use for."""
    random = torch.Generator().manual_seed(seed)
    state = {"classifier.6.bias": torch.zeros(1000)}
    for place, fed, made, side in ALEXNET:
        scale = (2 / (fed * side**2)) ** 0.5
        weight = torch.randn(made, fed, side, side, generator=random) * scale
        state[f"features.{place}.weight"] = weight
        state[f"features.{place}.bias"] = torch.randn(made, generator=random) * 0.1
    return state


class TinyI3D(nn.Module):
    """Called as StyleGAN-V's I3D is: mean colours over 400 features, and what it was told."""

    def __init__(self, features: int = 400):
        super().__init__()
        self.out = nn.Linear(3, features)

    def forward(
        self,
        x: torch.Tensor,
        rescale: bool = True,
        resize: bool = True,
        return_features: bool = False,
    ):
        assert not rescale and not resize and return_features
        assert x.size(2) >= 10 and x.size(3) == 224 and x.size(4) == 224
        return self.out(x.mean([2, 3, 4]))

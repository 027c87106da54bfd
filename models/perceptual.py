"""The networks of LPIPS and FVD, opened from files that users bring: pictures in, numbers out.

LPIPS: Zhang et al. 2018; its linear heads come with the package `lpips`, the backbone that they sit
on does not. FVD: Unterthiner et al. 2018, with the I3D that StyleGAN-V published as TorchScript.
Neither file is fetched and nothing is put in its place.
"""

from __future__ import annotations

import math
import pickle
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .checkpoints import mismatch
from .errors import WeightsError

LPIPS_WEIGHTS = (
    "a backbone of torchvision: https://download.pytorch.org/models/alexnet-owt-7be5be79.pth "
    "(AlexNet, the usual choice), vgg16-397923af.pth or squeezenet1_1-b8a52dc0.pth"
)
FVD_WEIGHTS = (
    "the I3D of StyleGAN-V: i3d_torchscript.pt, https://www.dropbox.com/s/ge9e5ujwgetktms/"
    "i3d_torchscript.pt"
)
LEAST_FRAMES = 10  # that I3D can take
FEATURES = 400
# What torch and safetensors raise for bytes that are no weights; its unpickler trips over anything.
_UNREADABLE = (
    SafetensorError,
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
)
_SIDE = 224  # pixels, of the pictures that I3D was trained on
# Least height and width: the last pooling of each backbone must be left with a pixel.
_BACKBONES = {"alex": 31, "vgg": 16, "squeeze": 17}


class LPIPS(nn.Module):
    """LPIPS 0.1 on one of its backbones.

    Attributes:
        backbone: `alex`, `vgg` or `squeeze`, told by the file.
        least: the least height and width of pictures, in pixels.
    """

    def __init__(self, backbone: str, state: dict[str, Tensor], path: Path):
        super().__init__()
        from .libraries import declare_torchvision_operators

        declare_torchvision_operators()
        import lpips

        self.backbone, self.least = backbone, _BACKBONES[backbone]
        # A random backbone is built first; the caller's random numbers must not know of it.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torchvision's, of lpips' old arguments
            self.network = lpips.LPIPS(net=backbone, pnet_rand=True, verbose=False)
        trunk = self.network.net.state_dict()
        # slice2.3.weight is torchvision's features.3.weight: lpips only cuts the list up.
        theirs = {name: f"features.{name.partition('.')[2]}" for name in trunk}
        wrong = mismatch(
            {theirs[name]: value.shape for name, value in trunk.items()},
            {name: value.shape for name, value in state.items() if name in theirs.values()},
        )
        if wrong:
            raise WeightsError(f"{path}: is no {backbone} backbone ({wrong}); give {LPIPS_WEIGHTS}")
        self.network.net.load_state_dict({name: state[theirs[name]].float() for name in trunk})
        self.eval()

    @torch.no_grad()
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """[N] distances of pictures [N, 3, H, W] in [-1, 1], 0 for equal ones."""
        return self.network(a, b).flatten()


def open_lpips(path: Path) -> LPIPS:
    """LPIPS on the backbone in a file of torchvision's (.pth, or the same as .safetensors).

    Raises:
        WeightsError: the file holds no AlexNet, VGG-16 or SqueezeNet 1.1.
    """
    todo = f"give --lpips-weights {LPIPS_WEIGHTS}"
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        said = str(error).split("\n")[0]
        raise WeightsError(f"{path}: cannot be read as weights ({said}); {todo}") from None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(f"{path}: holds no named tensors; {todo}")
    first = state.get("features.0.weight")
    if first is not None and tuple(first.shape) == (64, 3, 11, 11):
        backbone = "alex"
    elif "features.3.squeeze.weight" in state:
        backbone = "squeeze"
    elif first is not None and tuple(first.shape) == (64, 3, 3, 3):
        backbone = "vgg"
    else:
        raise WeightsError(f"{path}: is no backbone that LPIPS has heads for; {todo}")
    return LPIPS(backbone, state, path)


class VideoFeatures:
    """I3D's 400 logits of clips, from a TorchScript file."""

    def __init__(self, script: torch.jit.ScriptModule, device: str):
        self.script, self.device = script, device

    @torch.no_grad()
    def __call__(self, clips: Tensor) -> Tensor:
        """[N, 400] features of clips [N, T, H, W, 3] uint8, T >= 10.

        The shorter side is brought to 224 pixels (bilinear) and the middle cut out, values to
        [-1, 1]: what StyleGAN-V does ahead of the network when it is told not to do so itself.
        """
        n, steps, height, width, _ = clips.shape
        if steps < LEAST_FRAMES:
            raise ValueError(f"clips of {steps} frames; I3D takes {LEAST_FRAMES} or more")
        x = clips.to(self.device).flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1
        by = _SIDE / min(height, width)
        size = max(_SIDE, math.ceil(height * by)), max(_SIDE, math.ceil(width * by))
        x = F.interpolate(x, size, mode="bilinear", align_corners=False)
        top, left = (size[0] - _SIDE) // 2, (size[1] - _SIDE) // 2
        x = x[:, :, top : top + _SIDE, left : left + _SIDE]
        x = x.unflatten(0, (n, steps)).transpose(1, 2)
        out = self.script(x.contiguous(), rescale=False, resize=False, return_features=True)
        return out.float().cpu()


def open_video_features(path: Path, device: str = "cpu") -> VideoFeatures:
    """The I3D in a TorchScript file. The file is a program: take it from its authors.

    Raises:
        WeightsError: it is no TorchScript, or does not answer as StyleGAN-V's I3D does.
    """
    todo = f"give --fvd-weights {FVD_WEIGHTS}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the file is what it is
            script = torch.jit.load(path, map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        said = str(error).split("\n")[0]
        raise WeightsError(f"{path}: is no TorchScript ({said}); {todo}") from None
    network = VideoFeatures(script, device)
    try:
        out = network(torch.zeros(1, LEAST_FRAMES, _SIDE, _SIDE, 3, dtype=torch.uint8))
    except RuntimeError as error:
        said = str(error).strip().split("\n")[-1]
        raise WeightsError(f"{path}: cannot be called as I3D is ({said}); {todo}") from None
    if out.shape != (1, FEATURES):
        raise WeightsError(
            f"{path}: gives {list(out.shape)} for a clip instead of [1, {FEATURES}]; {todo}"
        )
    return network

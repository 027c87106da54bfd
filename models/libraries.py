"""The one door to diffusers, transformers and open_clip: import them from here, or after this.

All three import torchvision where it is installed, and open_clip needs it. A torchvision that was
built for another torch (the registry has the CUDA build beside torch's CPU build) cannot load its
operators, and then fails on the mere name of one of them. The names are all that is used here, so
they are declared where torchvision itself could not.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_declared: list[torch.library.Library] = []  # a declaration ends with the object that holds it


def declare_torchvision_operators() -> bool:
    """Declare `torchvision::nms` and `qnms` where torchvision is installed and cannot load its own.

    Returns:
        whether they had to be declared.
    """
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None or _declared:
        return bool(_declared)
    try:
        torch.ops.load_library(Path(found.origin).parent / "_C.so")
        if hasattr(torch.ops.torchvision, "nms"):
            return False
    except OSError:  # a library that it is linked with is not on this machine
        pass
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(name + _SCHEMA)
    _declared.append(library)
    return True


declare_torchvision_operators()

from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan  # noqa: E402
from diffusers.models.transformers.transformer_wan import (  # noqa: E402
    WanRotaryPosEmbed,
    WanTransformer3DModel,
)
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (  # noqa: E402
    FlowMatchEulerDiscreteScheduler,
)

__all__ = [
    "AutoencoderKLWan",
    "FlowMatchEulerDiscreteScheduler",
    "WanRotaryPosEmbed",
    "WanTransformer3DModel",
]

"""VGGT from public files: facebook/VGGT-1B's, and the one that WristWorld's authors released.

Both use the names that `VGGT` has. All names and shapes are checked before the first tensor is
read; heads that a network was built without are left in the file.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torch

from .checkpoints import mismatch
from .errors import WeightsError
from .public_config import vggt_config
from .state_file import StateFile, open_state, take_over
from .vggt import HEADS, VGGT, VGGTConfig

__all__ = ["check_vggt", "load_vggt", "open_vggt", "vggt_config"]


def load_vggt(path: Path, network: VGGT, *, absent: Collection[str] = ()) -> None:
    """Load a public VGGT, strictly.

    A network on the meta device takes the file's tensors over, without a copy where the types are
    the same.

    Args:
        path: safetensors, or a file of `torch.save` that holds tensors alone.
        absent: heads of the network that the file need not have; they stay as they are.

    Raises:
        WeightsError: not such a file, or a key that is missing, unexpected or of another shape
            than the network's; the text lists them.
        ValueError: `absent` names a head that the network does not have.
    """
    with open_state(path) as file:
        names = _names(file, network, absent)
        take_over(network, {name: file.tensor(name) for name in names})


def check_vggt(path: Path, network: VGGT, *, absent: Collection[str] = ()) -> None:
    """Refuse what `load_vggt` would, from the file's header alone.

    Args:
        network: one on the meta device will do.
    """
    with open_state(path) as file:
        _names(file, network, absent)


def open_vggt(
    path: Path,
    config: VGGTConfig,
    *,
    absent: Collection[str] = (),
    dtype: torch.dtype = torch.float32,
) -> VGGT:
    """The network of a public file, in evaluation mode, without drawing weights first.

    Args:
        config: see `vggt_config`.
        absent: heads that the file need not have; what it lacks of them is initialised as usual,
            from torch's generator.
        dtype: of all parameters.

    Raises:
        WeightsError, ValueError: as `load_vggt`.
    """
    # Without blocks only what no file has is left: computed buffers, and the absent heads.
    rest = VGGT(
        replace(config, depth=0, encoder_depth=0, ray_channels=0, heads_built=tuple(absent))
    ).to(dtype)
    with torch.device("meta"):
        network = VGGT(config)
    network.to(dtype)
    for name, buffer in rest.named_buffers():
        owner, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(owner), leaf, buffer)
    for head in absent:
        setattr(network, f"{head}_head", getattr(rest, f"{head}_head"))
    load_vggt(path, network, absent=absent)
    return network.eval()


def _names(file: StateFile, network: VGGT, absent: Collection[str]) -> list[str]:
    """The entries to load, or the WeightsError that says what is wrong with them."""
    built = network.config.heads_built
    odd = sorted(set(absent) - set(built))
    if odd:
        raise ValueError(f"this VGGT was built without its {', '.join(odd)} head")
    unused = tuple(f"{head}_head." for head in HEADS if head not in built)
    found = {k: v for k, v in file.shapes.items() if not k.startswith(unused)} if unused else (
        file.shapes
    )  # fmt: skip
    lacking = tuple(
        prefix
        for prefix in (f"{head}_head." for head in absent)
        if not any(name.startswith(prefix) for name in found)
    )
    wanted = {
        name: list(value.shape)
        for name, value in network.state_dict().items()
        if not (lacking and name.startswith(lacking))
    }
    listed = mismatch(wanted, found, most=20)
    if listed:
        raise WeightsError(
            f"{file.path}: not the weights of this VGGT ({listed}); fetch the file that the recipe "
            "names, or choose the recipe that this one belongs to"
        )
    return list(wanted)

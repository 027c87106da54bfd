"""Weights of the video DiT under the names that are public: the release's, and Wan 2.1's own.

Released: `denoising_model.<original Wan name>`, `ext_proj.*`, `temporal_embed.weight`,
`view_embed.weight` and a marker named `sign`. All is checked before the first tensor is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .checkpoints import mismatch
from .errors import WeightsError
from .libraries import WanRotaryPosEmbed
from .state_file import open_state, take_over
from .video_dit import (
    OFFICIAL,
    VideoDiT,
    VideoDiTConfig,
    context_tokens,
    to_precision,
    widen_weight,
)

Shapes = Mapping[str, Sequence[int]]

MARKER = "sign"  # one number that says "released"; it is no weight
RELEASED_DIT = "denoising_model."
NEW_CHANNELS_STD = {"official": 0.02, "paper": 0.0}

# diffusers' names of modules -> Wan's; those that are not here are the same in both.
WAN_PARTS = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "proj_out": "head.head",
}
WAN_BLOCK_PARTS = {
    "attn1": "self_attn",
    "attn2": "cross_attn",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "o",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "norm2": "norm3",
    "scale_shift_table": "modulation",
}


def wan_name(name: str) -> str:
    """A parameter of diffusers' Wan transformer -> its name in Wan's own files."""
    if name == "scale_shift_table":
        return "head.modulation"
    if name.startswith("blocks."):
        _, index, rest = name.split(".", 2)
        for part, public in WAN_BLOCK_PARTS.items():
            rest = f".{rest}.".replace(f".{part}.", f".{public}.")[1:-1]
        return f"blocks.{index}.{rest}"
    stem, _, leaf = name.rpartition(".")
    return f"{WAN_PARTS.get(stem, stem)}.{leaf}"


def released_name(name: str) -> str:
    """A parameter of `VideoDiT` in its official form -> its name in the released file."""
    part, rest = name.split(".", 1)
    return RELEASED_DIT + wan_name(rest) if part == "dit" else rest


def released_shapes(network: VideoDiT) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a released file for a network of these sizes, without the marker."""
    return {released_name(k): tuple(v.shape) for k, v in network.state_dict().items()}


def load_released(path: Path, network: VideoDiT) -> None:
    """Load a file of the release, strictly.

    A network on the meta device takes the file's tensors over, without a copy.

    Raises:
        WeightsError: not a safetensors file, or a key that is missing, unexpected or of another
            shape than the network's; the text lists them.
        ValueError: a network in the paper's form, which the release does not have.
    """
    if network.config.form != "official":
        raise ValueError("released weights fit the official form only; this network is the paper's")
    _load(
        path, network, {k: released_name(k) for k in network.state_dict()}, optional={MARKER: [1]}
    )


def open_released(
    path: Path, config: VideoDiTConfig = OFFICIAL, *, dtype: torch.dtype = torch.float32
) -> VideoDiT:
    """The network of a released file, in evaluation mode, without drawing weights first.

    Raises:
        WeightsError: as `load_released`.
    """
    with torch.device("meta"):
        network = VideoDiT(config)
    to_precision(network, dtype)
    load_released(path, network)
    _restore_rotary(network)
    return network.eval()


def load_wan(path: Path, network: VideoDiT, *, generator: torch.Generator | None = None) -> None:
    """Start a network from Wan 2.1's text-to-video weights; what takes in anchors stays as it is.

    The patch embedding of the file is widened by channels that are zero (paper) or drawn with a
    standard deviation of 0.02 (official).

    Args:
        path: one safetensors file with Wan's own names or diffusers'.
        generator: (CPU) of the new channels.

    Raises:
        WeightsError: as `load_released`.
    """
    patch = "patch_embedding.weight"
    own = [k.removeprefix("dit.") for k in network.state_dict() if k.startswith("dit.")]
    with open_state(path) as file:
        found = set(file.shapes)
    same = {f"dit.{k}": k for k in own}
    names = same if "proj_out.weight" in found else {k: wan_name(v) for k, v in same.items()}
    shapes = {names[k]: list(v.shape) for k, v in network.state_dict().items() if k in names}
    shapes[patch][1] = network.config.latent_channels

    def widen(name: str, value: Tensor) -> Tensor:
        if name != patch:
            return value
        std = NEW_CHANNELS_STD[network.config.form]
        return widen_weight(value, network.config.channels, std=std, generator=generator)

    _load(path, network, names, shapes=shapes, change=widen)


def open_wan(
    path: Path, config: VideoDiTConfig, *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> VideoDiT:
    """The network that training starts from, in evaluation mode, without drawing Wan's weights.

    Args:
        config: its sizes and form. seed: of the weights that no file has.

    Raises:
        WeightsError: as `load_released`.
    """
    with torch.device("meta"):
        network = VideoDiT(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network.tokens = context_tokens(config)
    to_precision(network, dtype)
    load_wan(path, network, generator=torch.Generator().manual_seed(seed))
    _restore_rotary(network)
    return network.eval()


def _restore_rotary(network: VideoDiT) -> None:
    """Rotary angles are computed, not loaded."""
    longest = network.dit.config["rope_max_seq_len"]
    network.dit.rope = WanRotaryPosEmbed(network.config.head_dim, network.config.patch, longest)


def _load(
    path: Path,
    network: VideoDiT,
    names: Mapping[str, str],
    *,
    shapes: Shapes | None = None,
    optional: Shapes | None = None,
    change: Callable[[str, Tensor], Tensor] = lambda name, value: value,
) -> None:
    """Fill the parameters in `names` (own -> file's), all or nothing.

    Args:
        shapes: what the file must have, where that is not what the network has.
        optional: what the file may have beside. change: (file's name, tensor) -> what is kept.
    """
    own = network.state_dict()
    wanted = {names[k]: list(own[k].shape) for k in names} | dict(shapes or {})
    with open_state(path) as file:
        beside = {k: v for k, v in (optional or {}).items() if k in file.shapes}
        _check(path, wanted | beside, file.shapes)
        take_over(network, {k: change(v, file.tensor(v)) for k, v in names.items()})


def _check(path: Path, wanted: Shapes, found: Shapes) -> None:
    """WeightsError that lists what is missing, unexpected or of another shape."""
    listed = mismatch(wanted, found, most=20)
    if listed:
        raise WeightsError(
            f"{path}: not the weights of this network ({listed}); fetch the file that the recipe "
            "names, or choose the recipe that this one belongs to"
        )

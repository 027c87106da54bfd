"""What training adds to the video DiT: LoRA or full weights, in one file, on and off a network.

With LoRA (Hu et al. 2021) the transformer's weights stay as they are; its patch embedding and what
makes the context, which Wan does not have, are trained as a whole and lie in the same file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from torch import Tensor

from .checkpoints import mismatch, read_config, write_tensors
from .errors import WeightsError
from .libraries import WanTransformer3DModel
from .video_dit import VideoDiT, VideoDiTConfig, change_views

MODES = ("lora", "full")
RANK, ALPHA = 4, 4.0  # the paper's
# q, k, v, o and ffn of both attentions, as diffusers names them.
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")
_WHOLE = ("dit.patch_embedding.", "tokens.")  # always trained as a whole
_VIEWS = "tokens.view_embed.weight"
_ADAPTER = "default"


@dataclass(frozen=True)
class Generation:
    """What a generation file says of itself.

    Attributes:
        mode: "lora" or "full". rank, alpha: of the LoRA; 0 for full weights.
        sizes: of the network. base: {name: SHA-256} of the weights that a LoRA belongs to.
    """

    mode: str
    sizes: VideoDiTConfig
    rank: int = 0
    alpha: float = 0.0
    base: dict[str, str] = field(default_factory=dict)


def add_lora(
    network: VideoDiT, rank: int = RANK, alpha: float = ALPHA, *, seed: int = 0
) -> VideoDiT:
    """Give a network's transformer LoRA layers, in place; at first they change nothing.

    Args:
        rank: of the added matrices, which are float32. alpha: they are scaled by alpha / rank.
        seed: of the matrices that do not start at zero.

    Raises:
        ValueError: it has some, or a rank below 1.
    """
    if _lora_layers(network):
        raise ValueError("this network has LoRA layers; merge them, or go on with them")
    if rank < 1 or alpha <= 0:
        raise ValueError(f"found a rank of {rank} and an alpha of {alpha}: both must be above 0")
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(TARGETS))  # type: ignore
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, network.dit, adapter_name=_ADAPTER)
    for layer in _lora_layers(network).values():
        for part in (layer.lora_A, layer.lora_B):
            part.to(torch.float32)
    return network


def prepare_training(
    network: VideoDiT,
    mode: str,
    *,
    rank: int = RANK,
    alpha: float = ALPHA,
    seed: int = 0,
    checkpointing: bool = False,
) -> VideoDiT:
    """Say which parameters are trained, all of which become float32, in place.

    Args:
        mode: "lora" (with the patch embedding and what makes the context) or "full".
        rank, alpha, seed: of the LoRA layers, where the network has none yet.
        checkpointing: compute activations again in the backward pass; takes far less memory.
    """
    if mode not in MODES:
        raise ValueError(f"training is {' or '.join(MODES)}; found {mode!r}")
    layers = _lora_layers(network)
    if mode == "full" and layers:
        merge_lora(network)
    if mode == "lora" and not layers:
        add_lora(network, rank, alpha, seed=seed)
    for name, parameter in network.named_parameters():
        trained = mode == "full" or name.startswith(_WHOLE) or _is_lora(name)
        if trained:
            parameter.data = parameter.data.float()
        parameter.requires_grad_(trained)
    if checkpointing:
        network.dit.enable_gradient_checkpointing()
    return network


def cast_frozen(network: VideoDiT, dtype: torch.dtype) -> VideoDiT:
    """Keep what is not trained in another precision, in place, but for what Wan keeps in float32.

    Under autocast that saves memory and the casts; what is trained keeps all of its digits.
    """
    kept = set(WanTransformer3DModel._keep_in_fp32_modules or ())
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad and not kept.intersection(name.split(".")):
            parameter.data = parameter.data.to(dtype)
    return network


def trained_state(network: VideoDiT) -> dict[str, Tensor]:
    """{name in a generation file: value} of the parameters that are trained."""
    return {
        _file_name(name): parameter.detach()
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
    }


def file_names(network: VideoDiT, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of values under the network's own names, those that are trained, under a file's names."""
    return {
        _file_name(name): values[name]
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
    }


def merge_lora(network: VideoDiT) -> VideoDiT:
    """Add the LoRA into the weights and take its layers away, in place.

    Do so before a network is cast to half precision: what LoRA adds is mostly below its rounding.
    """
    for name, layer in _lora_layers(network).items():
        layer.merge()
        owner, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(owner), leaf, layer.get_base_layer())
    vars(network.dit).pop("peft_config", None)  # peft's note that there are layers
    return network


def save_generation(
    path: Path,
    network: VideoDiT,
    *,
    base: Mapping[str, str] | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a trained network's LoRA (or, without one, all its weights) and what it is.

    Args:
        base: {name: SHA-256} of the weights that it was trained from.
        state: values in place of the network's (named as by `trained_state`), such as averages.

    Raises:
        ValueError: a state of other names or shapes.
    """
    layers = _lora_layers(network)
    own = {
        _file_name(name): parameter.detach()
        for name, parameter in network.named_parameters()
        if not layers or name.startswith(_WHOLE) or _is_lora(name)
    }
    if state is not None:
        wrong = mismatch(_shapes(own), _shapes(state))
        if wrong:
            raise ValueError(f"not the trained state of this network ({wrong})")
        own = dict(state)
    config: dict[str, Any] = {
        "mode": "lora" if layers else "full",
        "sizes": network.config.to_dict(),
        "base": dict(sorted((base or {}).items())),
    }
    if layers:
        layer = next(iter(layers.values()))
        config["rank"] = layer.r[_ADAPTER]
        config["alpha"] = float(layer.lora_alpha[_ADAPTER])
    write_tensors(path, own, config)


def read_generation(path: Path) -> Generation:
    """What a generation file says of itself.

    Raises:
        WeightsError: no such file, or not one of the full-size networks'.
    """
    config: dict[str, Any] = read_config(path)
    try:
        sizes: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in config["sizes"].items()
        }
        rest: dict[str, Any] = config | {"sizes": VideoDiTConfig(**sizes)}
        found = Generation(**rest)
        if found.mode not in MODES or (found.mode == "lora" and found.rank < 1):
            raise ValueError(f"mode {found.mode!r}, rank {found.rank}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(
            f"{path}: holds no weights of a full-size generator ({error}); name the folder that "
            "`wristaugment train generation` wrote for this recipe with --weights"
        ) from None
    return found


def load_generation(
    path: Path,
    network: VideoDiT,
    *,
    views: int | None = None,
    seed: int = 0,
    merge: bool = False,
    base: Mapping[str, str] | None = None,
) -> Generation:
    """Put a generation file onto a network that holds the base weights, in place.

    The network gets the file's number of views, whatever it had.

    Args:
        views: change to this many afterwards: all weights are kept but the view embeddings, which
            start anew where the number differs (the paper's step from two views to three).
        seed: of those.
        merge: add LoRA into the weights (see `merge_lora`); else its layers stay, to be trained
            on, in the file's precision.
        base: {name: SHA-256} of the weights that the network holds; those that the file's LoRA was
            trained from must be among them.

    Raises:
        WeightsError: another network's file, other names or shapes (lists them), or a LoRA of
            other base weights. The network is unchanged then.
    """
    found = read_generation(path)
    other = {
        k: (v, network.config.to_dict()[k])
        for k, v in found.sizes.to_dict().items()
        if k not in ("views", "dropout") and v != network.config.to_dict()[k]
    }
    if other:
        listed = ", ".join(f"{k} {a} instead of {b}" for k, (a, b) in other.items())
        raise WeightsError(
            f"{path}: belongs to a generator of other sizes ({listed}); choose the recipe that it "
            "was trained for"
        )
    if base is not None and found.mode == "lora":
        changed = sorted(k for k, v in found.base.items() if base.get(k) != v)
        if changed:
            raise WeightsError(
                f"{path}: its LoRA was trained on other weights than these "
                f"({', '.join(changed)}); give the weights it was trained on, or train it again"
            )
    if _lora_layers(network):
        raise ValueError("this network has LoRA layers; merge them before others are put on")
    with safe_open(path, framework="pt") as file:
        shapes = {k: list(file.get_slice(k).get_shape()) for k in file.keys()}  # noqa: SIM118
    wrong = mismatch(expected_shapes(network, found), shapes)
    if wrong:
        raise WeightsError(f"{path}: not the weights of this network ({wrong}); train them again")
    if found.sizes.views != network.config.views:
        change_views(network, found.sizes.views)
    if found.mode == "lora":
        add_lora(network, found.rank, found.alpha)
    own = {_file_name(name): parameter for name, parameter in network.named_parameters()}
    with safe_open(path, framework="pt") as file, torch.no_grad():
        for name in shapes:
            value = file.get_tensor(name)
            if merge or found.mode == "full":
                own[name].copy_(value)
            else:  # training goes on with all of its digits, whatever the base is kept in
                own[name].data = value.to(own[name].device)
    if merge:
        merge_lora(network)
    if views is not None and views != network.config.views:
        change_views(network, views, torch.Generator().manual_seed(seed))
    return found


def expected_shapes(network: VideoDiT, found: Generation) -> dict[str, Sequence[int]]:
    """{name: shape} that a file must have to fit a network that has no LoRA layers."""
    shapes: dict[str, Sequence[int]] = {}
    for name, parameter in network.named_parameters():
        owner = name.removesuffix(".weight")
        if found.mode == "full" or name.startswith(_WHOLE):
            shapes[name] = list(parameter.shape)
        elif owner != name and owner.endswith(tuple(f".{target}" for target in TARGETS)):
            wide, narrow = parameter.shape
            shapes[f"{owner}.lora_A.weight"] = [found.rank, narrow]
            shapes[f"{owner}.lora_B.weight"] = [wide, found.rank]
    shapes[_VIEWS] = [found.sizes.views, shapes[_VIEWS][1]]
    return shapes


def _lora_layers(network: VideoDiT) -> dict[str, Any]:
    return {k: m for k, m in network.named_modules() if isinstance(m, LoraLayer)}


def _is_lora(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def _file_name(name: str) -> str:
    """A parameter of a network with LoRA layers -> its name in a file."""
    return name.replace(f".{_ADAPTER}.", ".").replace(".base_layer.", ".")


def _shapes(state: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {k: list(v.shape) for k, v in state.items()}

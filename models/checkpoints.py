"""Weights on disk: safetensors with their configuration in the header, checked before use."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .errors import WeightsError


def save_weights(
    path: Path,
    network: nn.Module,
    config: dict,
    *,
    dtype: torch.dtype = torch.float16,
    training: Mapping | None = None,
) -> None:
    """Write a network's state and its configuration; floats are stored as `dtype`.

    Args:
        training: how it was trained, for `read_training`.
    """
    state = {
        name: value.detach().to(dtype if value.is_floating_point() else value.dtype).contiguous()
        for name, value in network.state_dict().items()
    }
    write_tensors(path, state, config, training)


def write_tensors(
    path: Path, state: Mapping[str, Tensor], config: Mapping, training: Mapping | None = None
) -> None:
    """Write named tensors with their configuration in the header; the file is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.staged")
    kept = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    headers = {"config": config, **({} if training is None else {"training": training})}
    metadata = {name: json.dumps(value, sort_keys=True) for name, value in headers.items()}
    save_file(kept, staged, metadata=metadata)
    with open(staged, "rb") as file:
        os.fsync(file.fileno())
    os.replace(staged, path)


def read_training(path: Path) -> dict:
    """How a weights file was trained, as it was written; {} where it does not say."""
    return json.loads(_metadata(path).get("training", "{}"))


def read_config(path: Path) -> dict:
    """The configuration in a weights file's header."""
    metadata = _metadata(path)
    if "config" not in metadata:
        raise WeightsError(
            f"{path}: has no configuration in its header; it was not written by "
            "`wristaugment train`"
        )
    return json.loads(metadata["config"])


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except FileNotFoundError:
        raise WeightsError(
            f"{path}: no such weights file; name a folder that has it with --weights, or make it "
            "with `wristaugment train`"
        ) from None
    except SafetensorError as error:
        raise WeightsError(
            f"{path}: not a readable safetensors file ({error}); fetch or train it again"
        ) from None


def mismatch(
    wanted: Mapping[str, Sequence[int]], found: Mapping[str, Sequence[int]], most: int = 5
) -> str:
    """What of a file's {name: shape} is missing, unexpected or of another shape; "" if nothing.

    Args:
        most: names that are listed of each; the rest are counted.
    """
    wrong = {
        "missing": sorted(wanted.keys() - found.keys()),
        "unexpected": sorted(found.keys() - wanted.keys()),
        "of another shape": [
            f"{k} {list(found[k])} instead of {list(wanted[k])}"
            for k in sorted(wanted.keys() & found.keys())
            if list(wanted[k]) != list(found[k])
        ],
    }
    return "; ".join(
        f"{len(names)} {what}: {', '.join(names[:most])}"
        + (f" and {len(names) - most} more" if names[most:] else "")
        for what, names in wrong.items()
        if names
    )


def load_weights(path: Path, network: nn.Module) -> None:
    """Load strictly: every key and shape must be the network's; WeightsError lists what is not."""
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        state = {name: file.get_tensor(name) for name in names}
    own = network.state_dict()
    wrong = mismatch(
        {k: list(v.shape) for k, v in own.items()}, {k: list(v.shape) for k, v in state.items()}
    )
    if wrong:
        raise WeightsError(
            f"{path}: not the weights of this network ({wrong}); train them again with this "
            "version, or leave --weights out"
        )
    network.load_state_dict({k: v.to(own[k].dtype) for k, v in state.items()})

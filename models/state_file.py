"""Weights files as names, shapes and tensors: safetensors, or torch's own without any code.

Opening one reads its header alone; a tensor is read (or mapped into memory) when it is asked for.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .errors import WeightsError

STATE_KEYS = ("model", "state_dict")  # where training loops put the state dict
_PARALLEL = "module."  # what a network wrapped for several GPUs puts before its names


@dataclass(frozen=True)
class StateFile:
    """What a weights file holds.

    Attributes:
        shapes: {name: shape}. tensor: reads one by its name, on the CPU.
        metadata: the header's own, all of it text; {} where the format has none.
    """

    path: Path
    shapes: dict[str, list[int]]
    tensor: Callable[[str], Tensor]
    metadata: dict[str, str] = field(default_factory=dict)

    def parameters(self) -> int:
        """How many numbers it holds."""
        total = 0
        for shape in self.shapes.values():
            count = 1
            for size in shape:
                count *= size
            total += count
        return total


@contextmanager
def open_state(path: Path) -> Iterator[StateFile]:
    """Open a weights file: `.safetensors`, anything else as `torch.save` writes it.

    A file of torch's may hold the state dict itself or have it under "model" or "state_dict", its
    names with or without "module." before them.

    Raises:
        WeightsError: not there, not readable, cut off, or holding code.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        yield _torch_state(path)
        return
    try:
        file = safe_open(path, framework="pt")
    except FileNotFoundError:
        raise _absent(path) from None
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path}: not a readable safetensors file ({error}); fetch it again"
        ) from None
    with file:
        # A safetensors file is no mapping, whatever its `keys` look like.
        shapes = {k: list(file.get_slice(k).get_shape()) for k in file.keys()}  # noqa: SIM118
        yield StateFile(path, shapes, file.get_tensor, file.metadata() or {})


def _absent(path: Path) -> WeightsError:
    return WeightsError(f"{path}: no such weights file; fetch it or name another")


def _torch_state(path: Path) -> StateFile:
    """A file of `torch.save`, its tensors mapped where the format allows it."""
    try:
        with open(path, "rb") as file:
            start = file.read(2)
        mapped = zipfile.is_zipfile(path)
        if not mapped and start[:1] != b"\x80":
            what = "is cut off" if start == b"PK" else "is not a file of torch.save"
            raise WeightsError(f"{path}: {what}; fetch it again")
        with warnings.catch_warnings():  # what is odd about a file ends in one line, or in none
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except FileNotFoundError:
        raise _absent(path) from None
    except pickle.UnpicklingError:
        raise WeightsError(
            f"{path}: holds more than tensors, and reading it could run code; take only weights "
            "from it where you trust it, and save them as safetensors"
        ) from None
    except (RuntimeError, EOFError, OSError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path}: not a readable weights file ({reason}); fetch it again") from (
            None
        )
    state = _state_dict(path, content)
    shapes = {name: list(value.shape) for name, value in state.items()}
    return StateFile(path, shapes, lambda name: state[name])


def _state_dict(path: Path, content: Any) -> dict[str, Tensor]:
    """The {name: tensor} in what a file holds."""
    for key in STATE_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{path}: holds no state dict; fetch the file that the recipe names")
    odd = sorted(str(k) for k, v in content.items() if not isinstance(v, Tensor))
    if odd:
        raise WeightsError(
            f"{path}: holds {len(odd)} entries that are no tensors ({', '.join(odd[:5])}); fetch "
            "the file that the recipe names"
        )
    if all(name.startswith(_PARALLEL) for name in content):
        return {name.removeprefix(_PARALLEL): value for name, value in content.items()}
    return dict(content)


@torch.no_grad()
def take_over(network: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Fill parameters of a network; those on the meta device become the tensors themselves.

    A tensor that already has its parameter's type is taken over without a copy.
    """
    for name, value in values.items():
        owner, _, leaf = name.rpartition(".")
        module = network.get_submodule(owner)
        own = getattr(module, leaf)
        if own.is_meta:
            fitting = value.to(own.dtype)
            setattr(module, leaf, nn.Parameter(fitting, requires_grad=own.requires_grad))
        else:
            own.copy_(value)

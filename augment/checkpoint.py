"""What a training run keeps to go on from: checkpoints that are absent or whole, and the average.

Only what is trained is kept: a frozen backbone of a billion parameters is the user's own file, and
a copy of it in every checkpoint and in the average would cost gigabytes and say nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..readers.errors import SourceError
from ..writers.atomic import publish, staged_name


def trained_state(network: nn.Module) -> dict[str, Tensor]:
    """What of the network's state training changes, by name: views, not copies.

    All of it where nothing is frozen; else the parameters that learn, and the buffers of modules
    that have such.
    """
    state = network.state_dict()
    if all(p.requires_grad for p in network.parameters()):
        return state
    names = {name for name, p in network.named_parameters() if p.requires_grad}
    for prefix, module in network.named_modules():
        if any(p.requires_grad for p in module.parameters(recurse=False)):
            names |= {
                f"{prefix}.{name}".lstrip(".") for name, _ in module.named_buffers(recurse=False)
            }
    return {name: value for name, value in state.items() if name in names}


def load_trained(network: nn.Module, values: dict[str, Tensor]) -> None:
    """Put `values` (as `trained_state` names them) into the network.

    Raises:
        ValueError: they are of a network with other names or shapes.
    """
    own = trained_state(network)
    wrong = sorted(own.keys() ^ values.keys())
    wrong += [k for k in sorted(own.keys() & values.keys()) if own[k].shape != values[k].shape]
    if wrong:
        raise ValueError(f"{len(wrong)} tensors differ in name or shape: {', '.join(wrong[:5])}")
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value)


class WeightAverage:
    """Exponential moving average of what is trained, with a short memory at the start.

    Attributes:
        values: the average by name, floats as float32 (a sum of small steps is lost in bfloat16);
            with `decay` 0 no average is kept, and these are the network's own tensors.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.decay = decay
        self._own = self.values = trained_state(network)
        if decay:
            self.values = {
                k: v.detach().clone() if not v.is_floating_point() else v.detach().float().clone()
                for k, v in self.values.items()
            }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the network's weights after a step in."""
        if not self.decay:
            return
        floats = [name for name, value in self._own.items() if value.is_floating_point()]
        average = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))
        average([self.values[k] for k in floats], [self._own[k].float() for k in floats], step)
        for name in self._own.keys() - set(floats):
            self.values[name].copy_(self._own[name])

    @contextmanager
    def applied(self, network: nn.Module) -> Iterator[None]:
        """The network with the averaged weights, and with its own again afterwards."""
        if not self.decay:
            yield
            return
        own = {k: v.detach().clone() for k, v in trained_state(network).items()}
        load_trained(network, self.values)
        try:
            yield
        finally:
            load_trained(network, own)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint: staged, brought to the disk, renamed.

    Raises:
        OSError: the disk is full, or the folder may not be written.
    """
    staged = staged_name(path)
    with open(staged, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    publish(staged, path)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The checkpoint, on the CPU, or None where there is none; no code in it is run.

    Raises:
        SourceError: the file is no checkpoint.
    """
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        raise SourceError(
            f"not a readable checkpoint ({str(error).strip().splitlines()[0]})",
            file=path,
            todo="remove it to train from the start",
        ) from None
    lacks = {"schedule", "step", "network", "optimizer"} - set(state)
    if lacks:
        raise SourceError(
            f"has no {', '.join(sorted(lacks))}", file=path, todo="remove it to start again"
        )
    return state

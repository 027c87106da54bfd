"""How parity fixtures' weights follow from their names, and how figures are compared."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode


def rule_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Float32 weights of `shape` for a state-dict entry: a function of its name and shape alone."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    x = rng.standard_normal(shape, dtype=np.float32)
    if len(shape) >= 2:
        x /= np.sqrt(np.prod(shape[1:]), dtype=np.float32)
        return x
    return 1 + np.float32(0.1) * x if name.endswith((".weight", ".gamma")) else np.float32(0.1) * x


class Undrawn(TorchFunctionMode):
    """Within it modules are built without drawing their initial weights, which would take minutes.

    Buffers that a module computes are as ever; every parameter must then be filled.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.Tensor.uniform_, torch.Tensor.normal_):
            return args[0]
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def fill_by_rule(network: nn.Module, prefix: str = "") -> None:
    """Set every entry of a network's state, one at a time, so that one tensor is held twice.

    Args:
        prefix: what the fixture's names have before the network's own.
    """
    for name, value in network.state_dict().items():
        value.copy_(torch.from_numpy(rule_weight(prefix + name, tuple(value.shape))))


def relative_error(found: torch.Tensor | np.ndarray, truth: np.ndarray) -> float:
    """Norm of the difference over the truth's norm; ValueError where the shapes differ."""
    found, truth = np.asarray(found, np.float64), np.asarray(truth, np.float64)
    if found.shape != truth.shape:
        raise ValueError(f"figures of shape {found.shape} against {truth.shape}")
    return float(np.linalg.norm(found - truth) / max(np.linalg.norm(truth), 1e-30))

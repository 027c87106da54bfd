"""Data parallel training: what ranks tell each other. One process alone tells itself.

Gradients are summed by hand and not by DistributedDataParallel: the stages call more of a network
than its `forward`, and leave parts out from step to step, which that wrapper does not see.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def rank() -> int:
    """This process's place among those that train together; 0 alone writes."""
    return dist.get_rank() if _together() else 0


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _together() else 1


def barrier() -> None:
    """Wait for all ranks."""
    if world() > 1:
        dist.barrier()


def gather(value: Any) -> list[Any]:
    """A small picklable value of every rank, in their order, on every rank."""
    if world() == 1:
        return [value]
    found: list[Any] = [None] * world()
    dist.all_gather_object(found, value)
    return found


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Give every rank rank 0's values, in place."""
    if world() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), 0)


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on any rank."""
    if world() == 1:
        return flag
    told = torch.tensor(float(flag), device=device)
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return bool(told)


def sum_gradients(parameters: list[nn.Parameter]) -> None:
    """Add up every parameter's gradient over the ranks, in place.

    A parameter that no rank used keeps no gradient, so that the optimizer leaves it as it is; one
    that some rank used counts as zero on the others.
    """
    if world() == 1 or not parameters:
        return
    device = parameters[0].device
    used = torch.tensor([float(p.grad is not None) for p in parameters], device=device)
    dist.all_reduce(used, dist.ReduceOp.MAX)
    pending = []
    for parameter, anyone in zip(parameters, used.tolist(), strict=True):
        if anyone:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            pending.append(dist.all_reduce(parameter.grad, async_op=True))
    for work in pending:
        work.wait()


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()

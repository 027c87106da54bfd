"""Data parallel training: what ranks tell each other. One process alone tells itself.

Gradients are summed by hand and not by DistributedDataParallel: the stages call more of a network
than its `forward`, and leave parts out from step to step, which that wrapper does not see.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist

# Its functions have the world's process group as a default, taken when it is first imported. An
# optimizer imports it: after the group was made, that keeps the group and its threads beyond
# destroy_process_group, and a thread that is left when Python ends may abort the process.
import torch.distributed.nn
from torch import Tensor, nn

_BUCKET = 16 * 2**20  # elements


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
        for bucket in _buckets([tensor.detach() for tensor in tensors]):
            flat = torch.cat([tensor.flatten() for tensor in bucket])
            dist.broadcast(flat, 0)
            _spread(flat, bucket)


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
    gradients = []
    for parameter, anyone in zip(parameters, used.tolist(), strict=True):
        if anyone:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        dist.all_reduce(flat)
        _spread(flat, bucket)


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in groups of one kind and about `_BUCKET` elements: a call each is slow."""
    kinds: dict[tuple, list[Tensor]] = {}
    for tensor in tensors:
        kind = kinds.setdefault((tensor.dtype, tensor.device), [])
        kind.append(tensor)
        if sum(t.numel() for t in kind) >= _BUCKET:
            yield kinds.pop((tensor.dtype, tensor.device))
    yield from kinds.values()


def _spread(flat: Tensor, into: list[Tensor]) -> None:
    for part, tensor in zip(flat.split([t.numel() for t in into]), into, strict=True):
        tensor.copy_(part.view_as(tensor))


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()

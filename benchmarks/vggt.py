"""VGGT-1B's forward against the floor of its own matrix products, its memory, and batching.

    python benchmarks/vggt.py [--json [FILE]] [--views 2] [--size 294x518] [--timesteps 8]

The floor is measured in the same run: one forward is watched, and every matrix product (linear
layers, and convolutions as the product that they are, without gathering the windows) and every
scaled_dot_product_attention of it is then done bare, in the same order, with the same weights.
Forward and floor take turns, and the best of each counts, since other work on the machine can only
make one slower; a batch is compared with the mean of as many single timesteps. Weights are random;
sizes are the public ones. Exit status 1 if the forward takes more than 1.2 times the floor, the
process more than 7.5 GB, or a timestep in a batch of eight as long as one alone.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from wristaugment.models.aggregator import PATCH
from wristaugment.models.allocator import keep_freed_memory
from wristaugment.models.vggt import VGGT, VGGTConfig

RATIO, GIGABYTES = 1.2, 7.5
ROWS = 1 << 14  # of a convolution's product at a time: whole, its gathered input would fill memory


@dataclass
class Floor:
    """The bare calls of one forward.

    Attributes:
        calls: what does one each. counts: how many of which kind. flops: of all, 2 a
            multiplication and addition.
    """

    calls: list[Callable[[], object]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    flops: int = 0

    def add(self, kind: str, flops: int, call: Callable[[], object]) -> None:
        self.calls.append(call)
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.flops += flops

    def __call__(self) -> None:
        for call in self.calls:
            call()


class Watch(TorchDispatchMode):
    """Within it every matrix product and attention is entered in `floor`.

    Args:
        network: whose weights the bare calls share; other operands are drawn, one for a shape.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.floor = Floor()
        self.weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
        self.drawn: dict[tuple, Tensor] = {}

    def _like(self, x: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
        if shape is None and x.untyped_storage().data_ptr() in self.weights:
            return x
        key = (shape or tuple(x.shape), x.dtype, x.device)
        if key not in self.drawn:
            self.drawn[key] = torch.randn(key[0], dtype=x.dtype, device=x.device)
        return self.drawn[key]

    def _product(self, kind: str, a: Tensor, b: Tensor) -> None:
        flops = 2 * a.numel() * b.shape[-1]
        a, b = self._like(a), self._like(b)
        self.floor.add(kind, flops, lambda: torch.matmul(a, b))

    def _convolution(self, x: Tensor, weight: Tensor, transposed: bool, y: Tensor) -> None:
        if transposed:  # [cin, cout, ...]: every pixel makes a window
            rows, matrix = x.numel() // x.shape[1], weight.flatten(1)
        else:  # [cout, cin, ...]: every pixel is made of one
            rows, matrix = y.numel() // y.shape[1], weight.flatten(1).t()
        flops = 2 * rows * matrix.numel()
        blocks = [min(ROWS, rows - start) for start in range(0, rows, ROWS)]
        inputs = [self._like(x, (block, matrix.shape[0])) for block in blocks]
        self.floor.add("convolution", flops, lambda: [a @ matrix for a in inputs])

    def _attention(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        flops = 2 * q.shape[:-1].numel() * k.shape[-2] * (q.shape[-1] + v.shape[-1])
        q, k, v = self._like(q), self._like(k), self._like(v)
        self.floor.add("attention", flops, lambda: F.scaled_dot_product_attention(q, k, v))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name == "addmm":
            self._product("linear", args[1], args[2])
        elif name in ("mm", "bmm"):
            self._product("linear" if name == "mm" else "batched product", args[0], args[1])
        elif name == "convolution":
            self._convolution(args[0], args[1], args[6], out)
        elif name.startswith("_scaled_dot_product"):
            self._attention(*args[:3])
        return out


@contextmanager
def unfused_attention():
    """nn.MultiheadAttention by its parts, which a watch can see."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@torch.no_grad()
def floor_of(network: nn.Module, forward: Callable[[], object]) -> Floor:
    """The bare calls of a forward of `network`."""
    watch = Watch(network)
    with unfused_attention(), watch:
        forward()
    return watch.floor


def seconds(call: Callable[[], object]) -> tuple[float, float]:
    """Wall time of a call, and the CPU time of all threads in it."""
    start, busy = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start, time.process_time() - busy


def peak_gigabytes() -> float:
    """The most memory that this process has held, in 1e9 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


@torch.no_grad()
def measure(
    config: VGGTConfig, views: int, size: tuple[int, int], timesteps: int, turns: int
) -> dict:
    """Seconds of forward and floor, the process's peak, and seconds a timestep in a batch.

    Args:
        timesteps: in the batch that is compared with one alone; 0 leaves it out.
        turns: how often each is measured.
    """
    network = VGGT(config).eval()
    images = torch.rand(1, views, 3, *size)

    def forward() -> object:
        return network(images)

    forward()
    forward_peak = peak_gigabytes()
    floor = floor_of(network, forward)
    times: dict[str, list[float]] = {"forward": [], "floor": []}
    cpu: dict[str, list[float]] = {"forward": [], "floor": []}
    for _ in range(turns):
        for name, call in (("forward", forward), ("floor", floor)):
            wall, busy = seconds(call)
            times[name].append(wall)
            cpu[name].append(busy)
    best = {name: min(values) for name, values in times.items()}
    found = {
        "parameters": sum(p.numel() for p in network.parameters()),
        "heads": list(config.heads_built),
        "views": views,
        "size": list(size),
        "threads": torch.get_num_threads(),
        "seconds": times,
        "cpu_seconds": cpu,
        "forward_seconds": best["forward"],
        "floor_seconds": best["floor"],
        "floor_calls": floor.counts,
        "floor_tflop": floor.flops / 1e12,
        "ratio": best["forward"] / best["floor"],
        "ratio_limit": RATIO,
        "peak_gigabytes": forward_peak,
        "peak_limit": GIGABYTES,
    }
    del floor
    if timesteps:
        batch = torch.rand(timesteps, views, 3, *size)
        # One after the other, as many alone as are in the batch, half before it and half after:
        # what else the machine does meanwhile then slows both alike.
        alone = [seconds(forward) for _ in range(timesteps // 2)]
        batched = seconds(lambda: network(batch))
        alone += [seconds(forward) for _ in range(timesteps - timesteps // 2)]
        wall, busy = (
            {"batch": batched[i], "alone": sum(clock[i] for clock in alone) / timesteps}
            for i in (0, 1)
        )
        found["batch"] = {
            "timesteps": timesteps,
            "seconds_per_timestep": wall["batch"] / timesteps,
            "seconds_per_timestep_alone": wall["alone"],
            "cpu_seconds_per_timestep": busy["batch"] / timesteps,
            "cpu_seconds_per_timestep_alone": busy["alone"],
            "peak_gigabytes": peak_gigabytes(),
        }
    return found


def within(found: dict) -> bool:
    """Whether the figures keep their bounds."""
    batch = found.get("batch")
    return (
        found["ratio"] <= RATIO
        and found["peak_gigabytes"] < GIGABYTES
        and (batch is None or batch["seconds_per_timestep"] < batch["seconds_per_timestep_alone"])
    )


def table(found: dict) -> list[str]:
    """The figures for people."""
    height, width = found["size"]
    calls = ", ".join(f"{count} {kind}" for kind, count in found["floor_calls"].items())
    out = [
        f"{found['parameters']:,} parameters in fp32, heads {', '.join(found['heads'])}; "
        f"{found['views']} views of {height}x{width}, {found['threads']} threads",
        f"forward   {found['forward_seconds']:8.2f} s",
        f"floor     {found['floor_seconds']:8.2f} s  ({found['floor_tflop']:.2f} TFLOP: {calls})",
        f"ratio     {found['ratio']:8.3f}    (at most {RATIO})",
        f"peak      {found['peak_gigabytes']:8.2f} GB (under {GIGABYTES})",
    ]
    if "batch" in found:
        batch = found["batch"]
        out.append(
            f"timestep  {batch['seconds_per_timestep']:8.2f} s  of {batch['timesteps']} batched, "
            f"{batch['seconds_per_timestep_alone']:.2f} s alone (CPU time "
            f"{batch['cpu_seconds_per_timestep']:.2f} and "
            f"{batch['cpu_seconds_per_timestep_alone']:.2f} s); "
            f"peak {batch['peak_gigabytes']:.2f} GB"
        )
    return out


def main(arguments: list[str] | None = None, config: VGGTConfig | None = None) -> int:
    """Measure and print; 1 if a bound is passed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--size", default="294x518", help="HxW, multiples of 14")
    parser.add_argument("--timesteps", type=int, default=8, help="of the batch; 0 leaves it out")
    parser.add_argument("--turns", type=int, default=2, help="how often each is measured")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="- = stdout")
    args = parser.parse_args(arguments)
    try:
        height, width = map(int, args.size.split("x"))
    except ValueError:
        parser.error(f"--size is HxW; found {args.size}")
    if height % PATCH or width % PATCH or min(height, width, args.views, args.turns) < 1:
        parser.error(f"--size takes multiples of {PATCH}, --views and --turns at least 1")
    keep_freed_memory()
    config = config or VGGTConfig()
    found = measure(config, args.views, (height, width), args.timesteps, args.turns)
    print("\n".join(table(found)), file=sys.stderr if args.json == "-" else sys.stdout)
    if args.json:
        text = json.dumps(found, indent=2) + "\n"
        sys.stdout.write(text) if args.json == "-" else Path(args.json).write_text(text)
    return 0 if within(found) else 1


if __name__ == "__main__":
    sys.exit(main())

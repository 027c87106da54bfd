"""The loop that both stages are trained with: AdamW, warm-up and cosine, checkpoints, resume."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..readers.errors import SourceError


@dataclass(frozen=True)
class Schedule:
    """How long and how hard to train.

    Attributes:
        steps: optimizer steps in all; batch: samples a step.
        rate: peak learning rate; warmup: steps to reach it; then a cosine to `floor` times it.
        decay: AdamW's weight decay. clip: largest gradient norm of each of the network's parts.
        average: decay of the exponential moving average of the weights, which is what ships.
        seed: of everything random. save: steps between checkpoints. bf16: autocast.
    """

    steps: int
    batch: int
    rate: float
    warmup: int = 50
    floor: float = 0.02
    decay: float = 0.05
    clip: float = 1.0
    average: float = 0.99
    seed: int = 0
    save: int = 100
    bf16: bool = True

    def rate_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.rate * (self.floor + (1 - self.floor) * (1 + math.cos(math.pi * done)) / 2)


def step_generator(seed: int, step: int) -> torch.Generator:
    """Random numbers of one step, a function of the step alone: a resumed run draws the same."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


class WeightAverage:
    """Exponential moving average of a network's parameters, with a short memory at the start."""

    def __init__(self, network: nn.Module, decay: float):
        self.decay = decay
        self.values = {k: v.detach().clone() for k, v in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Take one step's weights in."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                self.values[name].lerp_(value, 1 - decay)
            else:
                self.values[name].copy_(value)


def train(
    network: nn.Module,
    losses: Callable[[int, torch.Generator], dict[str, Tensor]],
    schedule: Schedule,
    folder: Path,
    *,
    device: str = "cpu",
) -> WeightAverage:
    """Train until `schedule.steps`, from the last checkpoint in `folder` if there is one.

    Args:
        losses: (step, random numbers) -> named scalars; `loss` is the one that is minimised.
        folder: gets `checkpoint.pt`, and a line of `log.jsonl` every 10 steps.

    Returns:
        the averaged weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "checkpoint.pt"
    optimizer = torch.optim.AdamW(
        [p for p in network.parameters() if p.requires_grad],
        lr=schedule.rate,
        weight_decay=schedule.decay,
        betas=(0.9, 0.95),
    )
    average = WeightAverage(network, schedule.average)
    first = 0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        if saved["schedule"] != asdict(schedule):
            changed = {
                k: (saved["schedule"].get(k), v)
                for k, v in asdict(schedule).items()
                if saved["schedule"].get(k) != v
            }
            raise SourceError(
                f"was trained with other settings {changed}",
                file=path,
                todo="use those settings to go on, or another --out",
            )
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        average.values = saved["average"]
        first = saved["step"]
    network.train()
    bar = tqdm(range(first, schedule.steps), initial=first, total=schedule.steps, disable=None)
    started, recent = time.monotonic(), []
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate_at(step)
        with torch.autocast(device, torch.bfloat16, enabled=schedule.bf16):
            values = losses(step, step_generator(schedule.seed, step))
        optimizer.zero_grad(set_to_none=True)
        values["loss"].backward()
        # Each part on its own: a wild gradient in one head must not silence the others.
        norms = [nn.utils.clip_grad_norm_(part.parameters(), schedule.clip)
                 for part in (list(network.children()) or [network])]  # fmt: skip
        if all(torch.isfinite(norm) for norm in norms):
            optimizer.step()
            average.update(network, step)
        recent.append({k: float(v.detach()) for k, v in values.items()})
        if (step + 1) % 10 == 0 or step + 1 == schedule.steps:
            line = {k: sum(r[k] for r in recent if k in r) / max(1, sum(k in r for r in recent))
                    for k in sorted({k for r in recent for k in r})}  # fmt: skip
            recent = []
            bar.set_postfix({k: f"{v:.3g}" for k, v in line.items()})
            elapsed = round(time.monotonic() - started, 1)
            with open(folder / "log.jsonl", "a") as log:
                log.write(json.dumps({"step": step + 1, "seconds": elapsed, **line}) + "\n")
        if (step + 1) % schedule.save == 0 or step + 1 == schedule.steps:
            state = {
                "schedule": asdict(schedule),
                "step": step + 1,
                "network": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": average.values,
            }
            staged = path.with_suffix(".partial")
            torch.save(state, staged)
            os.replace(staged, path)
    network.eval()
    return average

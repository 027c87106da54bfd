"""The loop that every stage is trained with: AdamW, micro-batches, ranks, checkpoints, resume.

What a step draws is a function of (seed, step, stream) alone. A stream is one micro-batch: rank r
of those that accumulate A of them has the streams r * A ... r * A + A - 1. So a resumed run draws
what the run before it would have, and two ranks see the samples that one rank sees which
accumulates twice as many.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..models.checkpoints import read_training
from ..readers.errors import SourceError
from . import parallel
from .checkpoint import (
    WeightAverage,
    load_checkpoint,
    load_trained,
    save_checkpoint,
    trained_state,
)
from .corpus import Arrays
from .journal import Journal
from .schedule import Schedule

__all__ = ["Schedule", "Stopped", "WeightAverage", "describe", "step_generator", "stop_when",
           "train"]  # fmt: skip

CHECKPOINT = "checkpoint.pt"
_stop: Callable[[], bool] = lambda: False


class Stopped(Exception):
    """Training was asked to stop, and has a checkpoint of all it did: `step` of `steps` steps."""

    def __init__(self, step: int, steps: int):
        super().__init__(f"step {step} of {steps}")
        self.step, self.steps = step, steps


def describe(
    schedule: Schedule,
    arrays: Arrays,
    *,
    source: str,
    frames: int = 1,
    initial: Path | None = None,
) -> dict[str, Any]:
    """How weights were made, in plain values for their header (`checkpoints.save_weights`).

    Args:
        arrays: what was learnt from, with `anchors` or `images` [n, (clip,) views, ...].
        source: the corpus in words. frames: timesteps of a row of the arrays, and of a sample.
        initial: the weights it started from, whose own training is told too.

    Returns:
        steps, batch (timesteps a step, of all ranks), frames and episodes of the corpus, views and
        source; episodes only where their number is known.
    """
    views = arrays["anchors"].shape[2] if "anchors" in arrays.values else arrays["images"].shape[1]
    said = {
        "steps": schedule.steps,
        "batch": schedule.batch * schedule.accumulate * parallel.world() * frames,
        "frames": len(arrays) * frames,
        "views": views,
        "source": source,
    }
    if arrays.episodes is not None:
        said["episodes"] = arrays.episodes
    if initial is not None:
        said["initial"] = read_training(initial)
    return said


def stop_when(asked: Callable[[], bool]) -> None:
    """Have every training of this process stop after the step in which `asked()` is true.

    It is of the process and not of a call since what asks, a signal, is. One rank is enough.
    """
    global _stop
    _stop = asked


def step_generator(seed: int, step: int, stream: int = 0) -> torch.Generator:
    """Random numbers of one micro-batch, a function of (seed, step, stream) alone."""
    if stream == 0:  # as the packaged weights were trained
        return torch.Generator().manual_seed(seed * 1_000_003 + step)
    return torch.Generator().manual_seed(_mixed(seed, step, stream, 0))


def _mixed(*values: int) -> int:
    return int(np.random.SeedSequence(values).generate_state(1, np.uint32)[0])


def train(
    network: nn.Module,
    losses: Callable[[int, torch.Generator], dict[str, Tensor]],
    schedule: Schedule,
    folder: Path,
    *,
    device: str | torch.device = "cpu",
    validate: Callable[[], dict[str, float]] | None = None,
    images: Callable[[], dict[str, np.ndarray]] | None = None,
    factors: Mapping[str, float] | None = None,
) -> WeightAverage:
    """Train until `schedule.steps`, from the last checkpoint in `folder` if there is one.

    Where torch.distributed is initialised, all ranks call it with the same arguments and a folder
    that all of them see; each draws samples of its own, gradients are averaged, rank 0 writes.
    Dropout and all else that draws from torch's global generators is seeded for each micro-batch.

    Args:
        network: on `device`. What needs no gradient is neither trained, averaged nor kept in
            checkpoints, and modules of nothing else are put into evaluation mode.
        losses: (step, random numbers) -> named scalars of one micro-batch; `loss` is the one that
            is minimised. It is called `schedule.accumulate` times a step.
        folder: gets `checkpoint.pt`, a line of `log.jsonl` every `schedule.log` steps, and
            `tensorboard/`.
        validate: -> figures, called every `schedule.validate_every` steps on every rank with the
            averaged weights in the network, which is in evaluation mode; the figures are averaged
            over the ranks.
        images: -> pictures [H, W, 3] uint8 by name, called after `validate` on rank 0.
        factors: beginning of a parameter's name -> what its rate is multiplied by.

    Returns:
        the averaged weights.

    Raises:
        SourceError: the checkpoint is of other settings, another network, or not readable.
        Stopped: see `stop_when`; there is a checkpoint.
    """
    where = torch.device(device)
    own, count = schedule.accumulate, schedule.accumulate * parallel.world()
    streams = range(parallel.rank() * own, (parallel.rank() + 1) * own)
    leader = parallel.rank() == 0
    if schedule.checkpointing and hasattr(network, "enable_gradient_checkpointing"):
        network.enable_gradient_checkpointing()  # type: ignore[operator]
    optimizer = _optimizer(network, schedule, factors or {})
    average = WeightAverage(network, schedule.average)
    first, recent = _resume(folder / CHECKPOINT, network, optimizer, average, schedule, count)
    parallel.broadcast(trained_state(network).values())
    learning = [p for p in network.parameters() if p.requires_grad]
    parts = _parts(network, schedule.clip)
    journal = None
    if leader and first < schedule.steps:
        folder.mkdir(parents=True, exist_ok=True)
        journal = Journal(folder, first)
    _training_mode(network)
    bar = tqdm(
        range(first, schedule.steps),
        initial=first,
        total=schedule.steps,
        disable=None if leader else True,
    )
    started = time.monotonic()
    try:
        for step in bar:
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate_at(step) * group.get("factor", 1.0)
            optimizer.zero_grad(set_to_none=True)
            for stream in streams:
                torch.manual_seed(_mixed(schedule.seed, step, stream, 1))
                with torch.autocast(where.type, torch.bfloat16, enabled=schedule.bf16):
                    values = losses(step, step_generator(schedule.seed, step, stream))
                (values["loss"] / count if count > 1 else values["loss"]).backward()
                recent.append([step, stream, {k: v.detach() for k, v in values.items()}])
            parallel.sum_gradients(learning)
            norms = [nn.utils.clip_grad_norm_(part, most) for part, most in parts]
            if all(torch.isfinite(norm) for norm in norms):
                optimizer.step()
                average.update(step)
            elif leader:
                bar.write(f"step {step + 1}: gradients are not finite; it is left out")
            done, last = step + 1, step + 1 == schedule.steps
            if done % schedule.log == 0 or last:
                line, recent = _means(_gathered(recent)), []
                if journal is not None:
                    bar.set_postfix({k: f"{v:.3g}" for k, v in line.items()})
                    elapsed = round(time.monotonic() - started, 1)
                    journal.train(done, elapsed, schedule.rate_at(step), line)
            every = schedule.validate_every
            if validate is not None and every and (done % every == 0 or last):
                _validate(network, average, validate, images, journal, done)
            stopping = not last and parallel.any_rank(_stop(), where)
            if done % schedule.save == 0 or last or stopping:
                recent = _gathered(recent)
                if journal is not None:
                    journal.flush()
                    state = {
                        "schedule": asdict(schedule),
                        "step": done,
                        "streams": count,
                        "network": trained_state(network),
                        "optimizer": optimizer.state_dict(),
                        "average": average.values if schedule.average else {},
                        "recent": recent,
                    }
                    save_checkpoint(folder / CHECKPOINT, state)
                else:
                    recent = []  # rank 0 has them now
            if stopping:
                raise Stopped(done, schedule.steps)
    finally:
        bar.close()
        if journal is not None:
            journal.close()
    network.eval()
    return average


def _optimizer(
    network: nn.Module, schedule: Schedule, factors: Mapping[str, float]
) -> torch.optim.Optimizer:
    """AdamW over what learns, a group for each factor on the rate."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            fitting = [f for start, f in factors.items() if name.startswith(start)]
            groups.setdefault(fitting[0] if fitting else 1.0, []).append(parameter)
    if not groups:
        raise ValueError("every parameter of the network is frozen: there is nothing to train")
    return torch.optim.AdamW(
        [{"params": found, "factor": factor} for factor, found in sorted(groups.items())],
        lr=schedule.rate,
        weight_decay=schedule.decay,
        betas=schedule.betas,
        fused=True,  # a small network's step would else be hundreds of launches
    )


def _parts(network: nn.Module, clip: float) -> list[tuple[list[nn.Parameter], float]]:
    """(what learns, its largest norm) of each of the network's parts.

    Each part on its own: a wild gradient in one head must not silence the others. Parameters of the
    network itself, where it has parts, are looked at (a step that is not finite is left out) and
    not clipped.
    """
    children = list(network.children())
    parts = [(list(part.parameters()), clip) for part in children or [network]]
    if children:
        parts.append((list(network.parameters(recurse=False)), math.inf))
    learning = [([p for p in found if p.requires_grad], most) for found, most in parts]
    return [(found, most) for found, most in learning if found]


def _resume(
    path: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage,
    schedule: Schedule,
    streams: int,
) -> tuple[int, list]:
    """Load the checkpoint at `path`; (steps done, the figures not yet in a line)."""
    saved = load_checkpoint(path)
    steps = parallel.gather(None if saved is None else saved["step"])
    if len(set(steps)) > 1:
        raise SourceError(
            f"the ranks find checkpoints of different steps {steps}",
            file=path,
            todo="give an --out on a file system that all machines see",
        )
    if saved is None:
        return 0, []
    changed: dict[str, Any] = schedule.differences(saved["schedule"])
    before = saved.get("streams", 1)
    if before != streams:
        changed["workers x accumulate"] = (before, streams)
    if changed:
        raise SourceError(
            f"was trained with other settings {changed}",
            file=path,
            todo="use those settings to go on, or another --out",
        )
    try:
        load_trained(network, saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
    except ValueError as error:
        raise SourceError(
            f"is of another network ({error})", file=path, todo="give another --out"
        ) from None
    if schedule.average:
        average.values = {k: saved["average"][k].to(v.device) for k, v in average.values.items()}
    return saved["step"], saved.get("recent", []) if parallel.rank() == 0 else []


def _training_mode(network: nn.Module) -> None:
    """Training mode, but for modules that are frozen as a whole: their dropout must not draw."""
    network.train()
    for module in network.modules():
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            module.eval()


def _gathered(recent: list) -> list:
    """Every rank's figures [step, stream, {name: number}], in the order of one rank alone."""
    plain = [[step, stream, {k: float(v) for k, v in values.items()}]
             for step, stream, values in recent]  # fmt: skip
    return sorted((entry for part in parallel.gather(plain) for entry in part), key=lambda e: e[:2])


def _means(recent: list) -> dict[str, float]:
    """The mean of each figure over the micro-batches that have it."""
    rows = [values for _, _, values in recent]
    return {k: sum(r[k] for r in rows if k in r) / sum(k in r for r in rows)
            for k in sorted({k for r in rows for k in r})}  # fmt: skip


@torch.no_grad()
def _validate(
    network: nn.Module,
    average: WeightAverage,
    validate: Callable[[], dict[str, float]],
    images: Callable[[], dict[str, np.ndarray]] | None,
    journal: Journal | None,
    step: int,
) -> None:
    network.eval()
    with average.applied(network):
        figures = _means([[0, 0, part] for part in parallel.gather(validate())])
        if journal is not None:
            journal.validation(step, figures, images() if images is not None else {})
    _training_mode(network)

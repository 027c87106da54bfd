"""How long and how hard to train, and what each recipe trains with. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from ..readers.errors import SourceError

# What changes neither a number nor a draw: a run may be resumed with other values of it. (Sums of
# micro-batches are the same for any `accumulate` as long as ranks x accumulate are.)
_FREE = frozenset({"accumulate", "save", "log", "validate_every", "checkpointing"})


@dataclass(frozen=True)
class Schedule:
    """How long and how hard to train.

    Attributes:
        steps: optimizer steps in all; batch: samples of one micro-batch.
        rate: peak learning rate; warmup: steps to reach it; then a cosine to `floor` times it.
        decay: AdamW's weight decay. clip: largest gradient norm of each of the network's parts.
        average: decay of the exponential moving average of the weights, which is what ships; 0
            keeps none and ships the last weights.
        seed: of everything random. save: steps between checkpoints. bf16: autocast.
        accumulate: micro-batches of a step on each rank: N ranks see N * accumulate * batch
            samples a step. betas: AdamW's.
        checkpointing: activations are computed again on the way back, to save memory.
        validate_every: steps between validations; 0 for none. log: steps between log lines.
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
    accumulate: int = 1
    betas: tuple[float, float] = (0.9, 0.95)
    checkpointing: bool = False
    validate_every: int = 0
    log: int = 10

    def rate_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.rate * (self.floor + (1 - self.floor) * (1 + math.cos(math.pi * done)) / 2)

    def binding(self) -> dict[str, Any]:
        """What decides the numbers: it must be the same when a run is resumed."""
        return {k: v for k, v in asdict(self).items() if k not in _FREE}

    def differences(self, saved: dict[str, Any]) -> dict[str, tuple]:
        """{name: (saved, own)} of the binding settings; those not saved had their default."""
        before = Schedule(**{"steps": 0, "batch": 0, "rate": 0.0, **saved}).binding()
        return {k: (before[k], v) for k, v in self.binding().items() if before[k] != v}


@dataclass(frozen=True)
class Defaults:
    """What a recipe's stage is trained with, and where each figure is from.

    Attributes:
        warmup: steps, or below 1 a share of all of them. lowest: what the cosine ends at, as a
            rate; None: `Schedule.floor` of the peak.
        others: further settings of `Schedule`. tuning: "lora", "full", or "" where there is no
            choice. source: where the figures are from, for --help.
    """

    steps: int
    batch: int
    rate: float
    accumulate: int = 1
    warmup: float = 50
    lowest: float | None = None
    others: tuple[tuple[str, Any], ...] = ()
    tuning: str = ""
    source: str = ""

    def schedule(self, **given: Any) -> Schedule:
        """The schedule with what the user gave (None = not given) in place of the defaults."""
        own = {"steps": self.steps, "batch": self.batch, "rate": self.rate}
        own |= {"accumulate": self.accumulate, **dict(self.others)}
        values = own | {k: v for k, v in given.items() if v is not None}
        warmup = self.warmup if self.warmup >= 1 else round(self.warmup * values["steps"])
        values.setdefault("warmup", int(warmup))
        if self.lowest is not None:
            values.setdefault("floor", self.lowest / values["rate"])
        return Schedule(**values)

    def __str__(self) -> str:
        own = self.schedule()
        ends = self.lowest if self.lowest is not None else own.floor * own.rate
        return (
            f"{own.steps} steps, batch {own.batch}, accumulate {own.accumulate}, "
            f"rate {own.rate:g} after {own.warmup} steps, cosine to {ends:g}, "
            f"weight decay {own.decay:g}, clip {own.clip:g}, {'bf16' if own.bf16 else 'fp32'}"
        )


# WristWorld (arXiv 2510.07313), Tables 7 and 8, gives optimizer, rate, batch, accumulation and
# LoRA, and hours instead of steps: 12 h on 8 A800 are some 30,000 steps of stage 1 and 24 h some
# 5,000 of stage 2. It is silent on betas and on stage 2's decay (AdamW's own are taken), and on
# warm-up and clipping, where the released settings (5% and 1.0) hold for both. The released ones
# are silent on rate, batch and steps, where the paper's hold.
_BIG: dict[str, Any] = {"average": 0.0, "betas": (0.9, 0.999), "save": 250, "clip": 1.0}
_STAGE1 = tuple({**_BIG, "decay": 0.05, "validate_every": 1000}.items())
_STAGE2 = tuple({**_BIG, "decay": 0.01, "validate_every": 500, "checkpointing": True}.items())
_PAPER = "arXiv 2510.07313, table {}; steps from its hours, warm-up and clip as released"
_OFFICIAL = "the released settings; rate, batch and steps as in the paper"

# Adam as in Isola et al. 2017 (rate 2e-4, beta 0.5, no decay, nothing clipped); they train for
# epochs. 2,000 steps of 4 are a quarter of an hour on two CPU cores at 96x176.
_PIX2PIX = tuple({"average": 0.0, "betas": (0.5, 0.999), "decay": 0.0, "clip": 1e6}.items())

_NANO: dict[str, Any] = {"warmup": 100, "others": (("average", 0.998),)}

DEFAULTS: dict[tuple[str, str], Defaults] = {
    ("nano", "reconstruction"): Defaults(
        2400,
        80,
        8e-4,
        **_NANO,
        source="what the packaged weights had on a GPU; on two CPU cores give --steps 2300 "
        "--batch 12 and an hour and a half",
    ),
    ("nano", "wrist"): Defaults(800, 12, 8e-4, source="enough for the head to settle"),
    ("nano", "generation"): Defaults(
        4800,
        16,
        1e-3,
        **_NANO,
        source="what the packaged weights had on a GPU; on two CPU cores give --steps 2700 "
        "--batch 2 and an hour",
    ),
    ("nano-no-map", "generation"): Defaults(
        400, 2, 8e-4, source="a baseline: ten minutes on two CPU cores"
    ),
    ("pix2pix", "generation"): Defaults(
        2000,
        4,
        2e-4,
        warmup=0.0,
        lowest=0.0,
        others=_PIX2PIX,
        source="arXiv 1611.07004, section 3.3; steps for a quarter of an hour on two CPU cores",
    ),
    ("paper", "reconstruction"): Defaults(
        30_000, 4, 2e-5, 3, warmup=0.05, lowest=0.0, others=_STAGE1, source=_PAPER.format(7)
    ),
    ("paper", "generation"): Defaults(
        5_000,
        4,
        1e-5,
        warmup=0.05,
        lowest=0.0,
        others=_STAGE2,
        tuning="lora",
        source=_PAPER.format(8),
    ),
    ("official", "reconstruction"): Defaults(
        30_000, 4, 2e-5, 3, warmup=0.05, lowest=1e-8, others=_STAGE1, source=_OFFICIAL
    ),
    ("official", "generation"): Defaults(
        5_000, 4, 1e-5, warmup=0.05, lowest=1e-8, others=_STAGE2, tuning="full", source=_OFFICIAL
    ),
}


def defaults_of(recipe: str, stage: str) -> Defaults:
    """What the stage is trained with; SourceError where the recipe is not trained."""
    if (recipe, stage) not in DEFAULTS:
        recipe = recipe.partition("-no-")[0]  # ablations are trained as what they lack a part of
    if (recipe, stage) not in DEFAULTS:
        known = sorted({name for name, _ in DEFAULTS})
        raise SourceError(
            f"recipe {recipe!r} has no {stage} to train",
            key="--recipe",
            todo=f"choose from {', '.join(known)}",
        )
    return DEFAULTS[recipe, stage]

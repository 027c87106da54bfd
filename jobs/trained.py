"""Recipes that `evaluate` trains itself, where they are not trained yet: baselines that learn.

They learn from the episodes that `nearest` looks in, never from one that is scored, and lie in a
folder that follows from all that decides them (data, keys, size, schedule): the next evaluation on
the same data finds them. A recipe takes part by having a row in `augment.recipe.DIRECT`, in
`augment.schedule.DEFAULTS` and in `jobs.baseline_stages.BASELINE_STAGES`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..readers.errors import SourceError
from ..writers.atomic import write_atomic
from . import interrupt
from .mirror import pinned

STAGE = "generation"


@dataclass(frozen=True)
class Trained:
    """A trained recipe.

    Attributes:
        weights: the folder that has its weights file.
        training: how it was trained, as of `augment.direct.how_trained`.
    """

    weights: Path
    training: dict[str, Any]


def trains_itself(recipe) -> bool:
    """Whether `evaluate` trains the recipe where it is not trained yet."""
    from .baseline_stages import BASELINE_STAGES

    return (recipe.generator, STAGE) in BASELINE_STAGES


def compared_size(ways) -> tuple[int, int] | None:
    """(height, width) of the frames of the first recipe with geometry, which the ways share.

    None where no way has to do with one.
    """
    from ..augment.recipe import get_recipe

    recipes = [get_recipe(way.recipe) for way in ways]
    return next((recipe.wrist_size for recipe in recipes if recipe.reconstructs), None)


def train_missing(args: argparse.Namespace, pairs, ways, device: str, say) -> dict[str, Trained]:
    """By name: the recipes among `ways` that learn, trained now where they are not yet.

    Args:
        args: of `evaluate`. pairs: what is scored. say: prints a line.

    Raises:
        SourceError: nothing to train on, another training in the folder, too small a number.
        Interrupted: a stop was asked for; the same command goes on.
    """
    from ..augment.recipe import get_recipe

    names = dict.fromkeys(way.recipe for way in ways if way.kind == "recipe")
    found = {}
    for name in names:
        recipe = get_recipe(name)
        if not trains_itself(recipe):
            continue
        size = compared_size(ways)
        made = recipe if size is None else replace(recipe, wrist_size=size)
        found[name] = _found(args, made) or _train(args, pairs, made, device, say)
    return found


def _found(args: argparse.Namespace, recipe) -> Trained | None:
    """What --weights has of the recipe; None where it has nothing."""
    from ..augment.weights import find_below, requirements

    if args.weights is None:
        return None
    root = Path(args.weights).expanduser()
    parts = [find_below(root, need) for need in requirements(recipe)]
    if any(part is None or missing for part, missing in parts):
        return None
    return Trained(root, _training(recipe, root))


def _training(recipe, root: Path) -> dict[str, Any]:
    from ..augment.direct import how_trained
    from ..augment.weights import check

    return how_trained(check(recipe, root)[STAGE].path)


def _train(args: argparse.Namespace, pairs, recipe, device: str, say) -> Trained:
    """Train the recipe, or find that it is; it goes on where it was stopped."""
    from .stages import get_stage
    from .train import PLAN, alone, same_job, train_here, training_plan

    job = _job(args, pairs, recipe, device)
    stage = get_stage(recipe, STAGE)
    stage.check(job)
    plan = training_plan(job, 0)
    if args.baselines is None:
        from ..augment.weights_hashes import cache_folder

        mark = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:16]
        job = replace(job, out=cache_folder() / "baselines" / f"{recipe.name}-{mark}")
    text = same_job(job, plan)
    with interrupt.armed(), alone(job.folder):
        file = job.out / job.file
        known = job.folder / PLAN
        if not (file.exists() and known.exists() and known.read_bytes() == text):
            say(f"training {recipe.name} for {job.schedule.steps} steps in {job.out}")
            write_atomic(known, text)
            stage.prepare(job, interrupt.check)
            interrupt.check()
            outcome = train_here(stage, job)
            if "stopped" in outcome:
                done, steps = outcome["stopped"]
                say(f"{recipe.name}: stopped at step {done} of {steps}")
                raise interrupt.Interrupted(interrupt.asked())
            shutil.rmtree(job.out / "cache", ignore_errors=True)  # gigabytes that none will read
    return Trained(job.out, _training(recipe, job.out))


def _job(args: argparse.Namespace, pairs, recipe, device: str):
    """The training: what it learns from and for how long."""
    from ..augment.pairs import training_pairs
    from ..augment.schedule import defaults_of
    from .plan import split_values
    from .stages import TrainJob

    for option, value in (
        ("--train-episodes", args.train_episodes),
        ("--baseline-steps", args.baseline_steps),
    ):
        if value is not None and value < 1:
            raise SourceError(f"{value}", key=option, todo="give 1 or more")
    training, _ = training_pairs(pairs, split_values(args.train_split), args.train_episodes)
    splits = tuple(split.name for split in training.splits)
    data_dir, data_key = pinned(args.data_dir)
    keys = split_values(args.anchor_keys)
    return TrainJob(
        stage=STAGE,
        recipe=recipe,
        dataset=args.dataset,
        data_dir=data_dir,
        data_key=data_key,
        splits=splits,
        out=Path(args.baselines or ".").expanduser().absolute(),
        schedule=defaults_of(recipe.name, STAGE).schedule(
            steps=args.baseline_steps, seed=args.seed
        ),
        episodes=args.train_episodes,
        device=device,
        anchor_keys=tuple(keys) if keys else None,
        wrist=pairs.against,
        skip=_scored(pairs, splits),
    )


def _scored(pairs, splits: tuple[str, ...]) -> tuple[tuple[str, int], ...]:
    """(split, how many of its first records are scored) of the splits that are trained on."""
    left, found = pairs.total, []
    for split in pairs.splits:
        count = min(split.records, left)
        left -= count
        if split.name in splits and count:
            found.append((split.name, count))
    return tuple(found)

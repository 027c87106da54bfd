"""`wristaugment train`: a stage of a recipe, on a corpus with depth, calibration and a wrist."""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

from ..readers.errors import SourceError
from .output import COMPLETE, speaker, write_json

_EPILOG = """\
the whole of nano, from nothing:
  wristaugment simulate --episodes 1300 --steps 8 --depth --split train --out runs/nano/corpus
  wristaugment train reconstruction --dataset droid --data-dir runs/nano/corpus --out runs/nano
  wristaugment train generation --dataset droid --data-dir runs/nano/corpus --episodes 800 \\
    --out runs/nano

Training goes on from its last checkpoint when the same command is given again. --out receives
reconstruction.safetensors, generation.safetensors and mean_wrist.png: a folder for `run --weights`.
"""
# Steps, batch and peak rate of nano's stages; every other setting is augment.training.Schedule's.
DEFAULTS = {"reconstruction": (2300, 12, 8e-4), "generation": (1150, 4, 8e-4)}


def add_parser(subparsers) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "train",
        help="train a stage of a recipe on a corpus",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", choices=("reconstruction", "generation"))
    parser.add_argument("--recipe", default="nano", help="sizes to train (default nano)")
    parser.add_argument("--dataset", required=True, help="profile, as in `run`")
    parser.add_argument("--data-dir", required=True, type=Path, help="the corpus")
    parser.add_argument("--split", nargs="+", default=["train"], help="default: train")
    parser.add_argument("--episodes", type=int, help="train on the first N only (default: all)")
    parser.add_argument("--validation", default="val", help="split to report on (default val)")
    parser.add_argument("--out", required=True, type=Path, help="weights, checkpoints, cache")
    parser.add_argument("--init", type=Path, help="a weights file of the stage to start from")
    parser.add_argument("--steps", type=int, help="optimizer steps (default: nano's)")
    parser.add_argument("--batch", type=int, help="timesteps or clips a step (default: nano's)")
    parser.add_argument("--rate", type=float, help="peak learning rate (default: nano's)")
    parser.add_argument("--save", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")
    parser.add_argument("--json", metavar="FILE", help="what was reached, as JSON (- = stdout)")


def run(args: argparse.Namespace) -> int:
    """Train, then measure on the validation split and print what was reached."""
    from ..augment.recipe import get_recipe
    from ..augment.training import Schedule
    from ..readers import open_dataset

    say = speaker(args.json)
    recipe = get_recipe(args.recipe)
    if recipe.generator == "constant":
        raise SourceError("has nothing to train", key="--recipe", todo="train nano")
    dataset = open_dataset(args.data_dir, args.dataset)
    if dataset.profile.wrist is None:
        raise SourceError(
            "has no recorded wrist view to learn from",
            file=dataset.folder,
            todo="train on a corpus that has one (`wristaugment simulate --depth` writes one)",
        )
    names = [split.name for split in dataset.splits]
    for split in args.split:
        if split not in names:
            raise SourceError(
                "no such split", file=dataset.folder, key=split, todo=f"there are: {names}"
            )
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    steps, batch, rate = DEFAULTS[args.stage]
    schedule = Schedule(
        steps=args.steps or steps,
        batch=args.batch or batch,
        rate=args.rate or rate,
        save=args.save,
        seed=args.seed,
    )
    validation = args.validation if args.validation in names else None
    stage = _reconstruction if args.stage == "reconstruction" else _generation
    path, figures = stage(args, dataset, recipe, schedule, validation)
    say(f"weights: {path} ({path.stat().st_size / 1e6:.1f} MB)")
    for name, value in figures.items():
        say(f"  {name}: {value:.4g}")
    if not figures:
        say(f"  no split {args.validation!r} to measure on")
    write_json(args.json, {"weights": str(path), "steps": schedule.steps, "validation": figures})
    return COMPLETE


def _arrays(args, dataset, splits: list[str], name: str, rows, identity: dict, clip: int = 1):
    """The training arrays of some splits, from the cache below --out where they are there."""
    from ..augment.corpus import build_arrays, count_steps, training_episodes

    key = dataset.profile.wrist.key
    episodes, longest = count_steps(dataset, splits)
    limit = args.episodes if splits == args.split else None
    if limit is not None:
        episodes = min(episodes, limit)
    source = {
        "shards": [
            [split.name, shard.path.name, shard.path.stat().st_size]
            for split in dataset.splits
            if split.name in splits
            for shard in split.shards
        ]
    }
    return build_arrays(
        args.out / "cache" / f"{name}-{'-'.join(splits)}",
        islice(training_episodes(dataset, splits, key, depth=name == "frames"), limit),
        rows,
        episodes * max(1, longest // clip),
        source | identity | ({} if limit is None else {"episodes": limit}),
        say_total=episodes,
    )


def _reconstruction(args, dataset, recipe, schedule, validation):
    from ..augment.train_reconstruction import frame_rows, train_reconstruction, validate

    def arrays(splits):
        rows = lambda episode: frame_rows(episode, recipe)
        return _arrays(args, dataset, splits, "frames", rows, {"pixels": recipe.pixels})

    path = train_reconstruction(arrays(args.split), schedule, args.out, initial=args.init)
    return path, validate(path, arrays([validation])) if validation else {}


def _generation(args, dataset, recipe, schedule, validation):
    from ..augment.pipeline import Augmenter
    from ..augment.recipe import RECONSTRUCTION, get_recipe
    from ..augment.train_generation import clip_rows, train_generation, validate

    if not (args.out / RECONSTRUCTION).exists():
        raise SourceError(
            "stage 2 learns from what stage 1 makes of the corpus, and that is not trained",
            file=args.out / RECONSTRUCTION,
            todo="run `wristaugment train reconstruction` with the same --out first",
        )
    augmenter = Augmenter(get_recipe("projection"), weights=args.out)
    identity = {
        "reconstruction": augmenter.fingerprint[RECONSTRUCTION],
        "recipe": augmenter.recipe.to_dict(),
        "seed": args.seed,
    }

    def arrays(splits):
        rows = lambda episode: clip_rows(episode, augmenter, args.seed)
        return _arrays(args, dataset, splits, "clips", rows, identity, clip=recipe.clip)

    path = train_generation(arrays(args.split), schedule, args.out, initial=args.init)
    return path, validate(path, arrays([validation]), args.seed) if validation else {}

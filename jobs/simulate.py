"""`wristaugment simulate`: a corpus with known cameras, depth and a true wrist view, in RLDS."""

from __future__ import annotations

import argparse
from pathlib import Path

_EPILOG = """\
examples:
  wristaugment simulate --episodes 20 --out /tmp/sim
  wristaugment simulate --episodes 1000 --out /data/sim --split all --depth --workers 8

The dataset is OUT/droid_101/1.0.1, in DROID's schema; `wristaugment run --dataset droid_101
--data-dir OUT` takes it. An interrupted call goes on when it is given again; further splits can be
added to the same OUT. Needs the extra `sim`, the robot's meshes, and EGL or OSMesa:

  pip install wristaugment[sim]
  pip install --no-deps gym-hil==0.1.14
"""
_SPLITS = {"train": 0.8, "val": 0.1, "test": 0.1}
_PER_SHARD = 64


def add_parser(subparsers) -> None:
    """Register the command line of `simulate`."""
    parser = subparsers.add_parser(
        "simulate",
        help="make a simulated corpus with a true wrist view",
        description="Simulate a Franka Panda at a table and write an RLDS dataset in DROID's "
        "schema with two side views, the true wrist view, calibration and, where asked, depth.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--episodes", type=_positive, required=True, metavar="N", help="how many, in all splits")
    add("--out", required=True, metavar="DIR", help="the TFDS root to write to")
    add("--split", default="train", metavar="NAME",
        help="train, val, test or another name; all = 80%% train, 10%% val, 10%% test")  # fmt: skip
    add("--steps", type=_positive, default=24, metavar="T", help="steps an episode (24)")
    add("--seed", type=_natural, default=0, metavar="S", help="another seed, other episodes (0)")
    add("--depth", action="store_true", help="write the depth of all three views")
    add("--workers", type=_positive, default=1, metavar="W", help="processes that render (1)")
    add("--shards", type=_positive, metavar="K", help=f"files a split (episodes / {_PER_SHARD})")
    add("--json", metavar="FILE", help="write what was made as JSON (- = stdout)")


def run(args: argparse.Namespace) -> int:
    """Simulate; returns the exit code."""
    import sys

    from ..simulation.corpus import write_corpus
    from .interrupt import armed
    from .output import COMPLETE, speaker, write_json

    plans = make_plans(args)
    with armed():
        folder = write_corpus(
            Path(args.out), plans, workers=args.workers, progress=sys.stderr.isatty()
        )
    say = speaker(args.json)
    for plan in plans:
        say(f"{plan.split}: {plan.episodes} episodes of {plan.steps} steps in {plan.shards} shards")
    say(f"written to {folder}")
    splits = {plan.split: plan.lengths() for plan in plans}
    write_json(args.json, {"folder": str(folder), "steps": args.steps, "splits": splits})
    return COMPLETE


def make_plans(args: argparse.Namespace) -> list:
    """The plans of the splits that the options ask for.

    Raises:
        SourceError: fewer episodes than shards, or than splits.
    """
    from ..readers.errors import SourceError
    from ..simulation.corpus import Plan

    shares = {args.split: args.episodes}
    if args.split == "all":
        shares = {name: int(share * args.episodes) for name, share in _SPLITS.items()}
        shares["train"] += args.episodes - sum(shares.values())
    if not args.split.replace("_", "").isalnum():
        raise SourceError("not a split name", key="--split", todo="letters, digits and _ only")
    plans = []
    for split, episodes in shares.items():
        shards = args.shards or -(-episodes // _PER_SHARD)
        if episodes < max(shards, 1):
            raise SourceError(
                f"{episodes} episodes for split {split!r}", key="--episodes",
                todo="ask for more episodes, or fewer --shards",
            )  # fmt: skip
        plans.append(Plan(split, episodes, shards, args.steps, args.seed, args.depth))
    return plans


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative")
    return value

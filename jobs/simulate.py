"""`wristaugment simulate`: a corpus with known cameras, depth and a true wrist view, any format."""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
from pathlib import Path
from typing import Any

from ..simulation import MOST_VIEWS, VIEWS

_EPILOG = """\
examples:
  wristaugment simulate --episodes 20 --out /tmp/sim
  wristaugment simulate --episodes 1000 --out /data/sim --split all --depth --workers 8
  wristaugment simulate --episodes 1000 --out /data/three --views 3
  wristaugment simulate --episodes 20 --out /tmp/calvin --format calvin
  wristaugment simulate --from /tmp/sim --out /tmp/lerobot --format lerobot-v3.0 --wrist

As rlds the dataset is OUT/droid_101/1.0.1, in DROID's schema, with the true wrist view;
`wristaugment run --data-dir OUT` takes it. An interrupted call goes on when it is given again;
further splits can be added to the same OUT. --views 3 adds a camera in front of the robot that
looks back at it (exterior_image_3_left, and its depth and calibration), --views 1 leaves the second
one out (`--anchor-keys exterior_image_1_left` then reads it, since DROID has two); the episodes,
and the other cameras' pictures, stay the same. Other formats are made of such a corpus, simulated
first or given with --from; they hold the true wrist view only with --wrist. Simulating needs the
extra `sim`, the robot's meshes, and EGL or OSMesa (--from needs none of it):

  pip install wristaugment[sim]
  pip install --no-deps gym-hil==0.1.14
"""
_SPLITS = {"train": 0.8, "val": 0.1, "test": 0.1}
_PER_SHARD = 64
_CORPUS, _STAGED = ".simulated", ".making"  # below OUT, until another format is made of it
# --format -> (module in writers/ that makes it, what `create` is given)
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "rlds": ("", {}),
    "calvin": ("calvin_create", {}),
    "robomimic": ("robomimic_create", {}),
    "libero": ("libero_create", {}),
    "aloha": ("aloha_create", {}),
    "droid-raw": ("droid_raw_create", {}),
    "zarr": ("replay_buffer_create", {}),
    "zarr-v3": ("replay_buffer_create", {"zarr_format": 3}),
    "zarr-zip": ("replay_buffer_create", {"zipped": True}),
    "lerobot-v2.1": ("lerobot_create", {"version": "v2.1"}),
    "lerobot-v3.0": ("lerobot_create", {"version": "v3.0"}),
}


def add_parser(subparsers) -> None:
    """Register the command line of `simulate`."""
    parser = subparsers.add_parser(
        "simulate",
        help="make a simulated corpus with a true wrist view",
        description="Simulate a Franka Panda at a table and write a dataset with side views, "
        "calibration, the true wrist view and, where asked, depth.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--episodes", type=_positive, metavar="N", help="how many, in all splits")
    add("--out", required=True, metavar="DIR", help="the folder to write to")
    add("--format", choices=FORMATS, default="rlds", help="of the dataset (rlds)", metavar="F")
    add("--from", dest="source", metavar="DIR",
        help="convert this simulated RLDS corpus and simulate nothing")  # fmt: skip
    add("--wrist", action="store_true",
        help="store the true wrist view too (rlds always has it)")  # fmt: skip
    add("--split", default="train", metavar="NAME",
        help="train, val, test or another name; all = 80%% train, 10%% val, 10%% test")  # fmt: skip
    add("--steps", type=_positive, default=24, metavar="T", help="steps an episode (24)")
    add("--seed", type=_natural, default=0, metavar="S", help="another seed, other episodes (0)")
    add("--views", type=int, choices=range(1, MOST_VIEWS + 1), default=VIEWS, metavar="N",
        help=f"side cameras, 1 to {MOST_VIEWS}; 1 and 3 as rlds only ({VIEWS})")  # fmt: skip
    add("--depth", action="store_true", help="write the depth of all views")
    add("--workers", type=_positive, default=1, metavar="W", help="processes that render (1)")
    add("--shards", type=_positive, metavar="K", help=f"files a split (episodes / {_PER_SHARD})")
    add("--json", metavar="FILE", help="write what was made as JSON (- = stdout)")


def run(args: argparse.Namespace) -> int:
    """Simulate; returns the exit code."""
    from ..readers.errors import SourceError
    from .interrupt import armed
    from .mirror import localise
    from .output import COMPLETE, speaker, write_json

    out, say = Path(args.out), speaker(args.json)
    if args.source and args.format == "rlds":
        raise SourceError("is what it would be made of", key="--from", todo="name another --format")
    if not args.source and not args.episodes:
        raise SourceError("is not given", key="--episodes", todo="say how many to simulate")
    if args.views != VIEWS and (args.source or args.format != "rlds"):
        raise SourceError(
            f"{args.views}: the other formats are made of corpora with {VIEWS} side views",
            key="--views",
            todo="leave it out, or make rlds",
        )
    if args.format != "rlds":
        _free(out)
    with armed():
        report: dict[str, Any] = {}
        corpus = localise(args.source) if args.source else None
        if corpus is None:
            corpus, report = _simulated(args, out if args.format == "rlds" else out / _CORPUS, say)
        folder = corpus
        if args.format != "rlds":
            folder = convert(corpus, out, args.format, wrist=args.wrist)
            shutil.rmtree(out / _CORPUS, ignore_errors=True)
    say(f"written to {folder}")
    write_json(args.json, {"folder": str(folder), "format": args.format, **report})
    return COMPLETE


def _simulated(args: argparse.Namespace, out: Path, say) -> tuple[Path, dict[str, Any]]:
    """(the RLDS corpus in `out`, what it is made of)."""
    import sys

    from ..simulation.corpus import write_corpus

    plans = make_plans(args)
    folder = write_corpus(out, plans, workers=args.workers, progress=sys.stderr.isatty())
    for plan in plans:
        say(f"{plan.split}: {plan.episodes} episodes of {plan.steps} steps in {plan.shards} shards")
    splits = {plan.split: plan.lengths() for plan in plans}
    return folder, {"steps": args.steps, "splits": splits}


def convert(corpus: Path, out: Path, name: str, *, wrist: bool = False) -> Path:
    """A dataset of another format from a simulated RLDS corpus; absent or whole.

    Args:
        corpus: what `simulate` made as rlds.
        out: the folder that the dataset is put into.
        name: one of FORMATS.
        wrist: store the true wrist view too.

    Returns:
        What one gives as --data-dir.

    Raises:
        SourceError: `corpus` is no such corpus, or the dataset is there already.
    """
    from ..readers.errors import SourceError
    from ..writers.recorded import recorded_splits

    module, options = FORMATS[name]
    splits = recorded_splits(corpus)
    maker = importlib.import_module(f"..writers.{module}", __package__)
    staged = out / _STAGED
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    made = maker.create(staged, splits, wrist=wrist, **options)
    relative = made.relative_to(staged)
    for path in sorted(staged.iterdir()):
        if (out / path.name).exists():
            shutil.rmtree(staged)
            raise SourceError("is there already", file=out / path.name, todo="use a new --out")
    for path in sorted(staged.iterdir()):
        os.rename(path, out / path.name)
    staged.rmdir()
    return out / relative


def _free(out: Path) -> None:
    """SourceError where `out` holds something that is not an interrupted call's."""
    from ..readers.errors import SourceError

    found = {path.name for path in out.iterdir()} - {_CORPUS, _STAGED} if out.is_dir() else set()
    if found:
        raise SourceError(
            f"is not empty (it has {sorted(found)[0]!r})",
            file=out,
            key="--out",
            todo="use a new or empty --out",
        )


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
        plans.append(Plan(split, episodes, shards, args.steps, args.seed, args.depth, args.views))
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

"""`wristaugment cache`: what stage 2 of a full-size recipe is trained on, made once a corpus."""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..readers.errors import SourceError
from .interrupt import armed, check
from .mirror import localise
from .output import COMPLETE, QUARANTINED, speaker, write_json

_EPILOG = """\
examples:
  latents, image features and prompts of a corpus with a recorded wrist view:
    wristaugment cache --recipe paper --dataset droid --data-dir /data --out /data/droid-latents
  with four GPUs, each in a process of its own:
    for k in 1 2 3 4; do
      CUDA_VISIBLE_DEVICES=$((k - 1)) wristaugment cache --recipe paper --dataset droid \\
        --data-dir /data --out /data/droid-latents --part $k/4 &
    done; wait
  for other sizes, a cache of its own:
    wristaugment cache --recipe official --dataset droid --data-dir /data --out latents-49 \\
      --wrist-size 320x576 --set clip=49

Stage 1 is needed before: its condition maps are what stage 2 learns from. --out is a zarr store; a
record is in it whole or not at all, and the same command goes on where it was. A store that was
made with other weights, settings or data is refused. `wristaugment train generation` reads it.

exit codes: 0 complete; 2 refused (nothing was written); 3 complete, with records that could not be
made (listed); 4 no space or no permission; 75 interrupted, run it again
"""
# What of a recipe's weights is read: everything but the video DiT.
PARTS = ("vggt", "reconstruction", "vae", "prompt", "tokenizer", "image")


def add_parser(subparsers) -> None:
    """Register the command line of `cache`."""
    parser = subparsers.add_parser(
        "cache",
        help="pre-compute what stage 2 of paper or official is trained on",
        description="Encode the recorded wrist views of a corpus, the condition maps that stage 1 "
        "makes for them, the anchor views and the prompts, once, for training.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = parser.add_argument_group("source")
    source.add_argument("--dataset", help="its profile or name, as for `run`")
    source.add_argument(
        "--data-dir",
        required=True,
        metavar="DIR",
        help="the dataset, as for `run`",
    )
    source.add_argument(
        "--against",
        metavar="KEY",
        help="the recorded wrist view to learn from (default: the profile's)",
    )
    source.add_argument(
        "--anchor-keys",
        nargs="+",
        metavar="KEY",
        help="third-person cameras (default: the profile's)",
    )
    source.add_argument("--split", nargs="+", metavar="S", help="only these splits (default: all)")
    source.add_argument(
        "--episodes", type=int, metavar="N", help="only the first N episodes (default: all)"
    )
    source.add_argument(
        "--part", metavar="K/N", help="only every N-th episode from the K-th on, as in 1/4"
    )
    result = parser.add_argument_group("result")
    result.add_argument("--out", required=True, type=Path, help="the zarr store")
    result.add_argument("--json", metavar="FILE", help="write the summary as JSON (- = stdout)")
    how = parser.add_argument_group("how")
    how.add_argument("--recipe", default="paper", help="paper or official (default: %(default)s)")
    how.add_argument(
        "--set", nargs="+", metavar="NAME=VALUE", help="settings of the recipe, as in clip=49"
    )
    how.add_argument(
        "--wrist-size", metavar="HxW", help="size of the wrist view (default: the recipe's own)"
    )
    how.add_argument("--weights", type=Path, metavar="DIR", help="folder of weights")
    how.add_argument(
        "--pose",
        choices=("auto", "measured", "head"),
        default="auto",
        help="wrist pose of the condition maps, as for `run` (default: %(default)s)",
    )
    how.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")


def run(args: argparse.Namespace) -> int:
    """Make what the store lacks; returns the exit code.

    Raises:
        SourceError, WeightsError: refused; nothing was written.
    """
    from ..augment.cache import check_sizes, fill, source_episodes
    from ..augment.latents import LatentStore, find_store, store_identity
    from ..augment.weights import check as check_weights
    from ..augment.weights import fingerprint, notices
    from .cluster import device_here
    from .progress import Progress

    say = speaker(args.json)
    recipe = _recipe(args)
    check_sizes(recipe)
    part = _part(args.part)
    dataset, wrist_key, splits = _source(args)
    located = check_weights(recipe, args.weights, parts=PARTS)
    device = device_here(args.device)
    identity = store_identity(
        recipe,
        fingerprint(recipe, located=located),
        {
            "name": dataset.name,
            "version": dataset.version,
            "info": dataset.identity(),
            "wrist": wrist_key,
            "anchors": [camera.key for camera in dataset.profile.anchors],
            "pose": args.pose,
        },
    )
    total = sum(split.records for split in dataset.splits if split.name in splits)
    total = min(total, args.episodes) if args.episodes is not None else total
    total = len(range(part[0], total, part[1]))
    for line in notices(recipe):
        say(f"licence: {line}")
    find_store(args.out, identity)
    with armed():
        encoders = open_encoders(recipe, args.weights, located, device, args.pose)
        store = LatentStore.create(args.out, identity)
        progress = Progress(total, 0)

        def shown(filled) -> None:
            progress.update(filled.made + filled.found + len(filled.left_out))
            check()

        try:
            episodes = source_episodes(
                dataset, splits, wrist_key, limit=args.episodes, part=part, have=store.has
            )
            filled = fill(store, episodes, encoders, recipe, progress=shown)
        finally:
            progress.close()
    say(f"cache: {args.out}: {filled.made} records made, {filled.found} were there")
    for record, why in list(filled.left_out.items())[:20]:
        say(f"left out {record}: {why}")
    if len(filled.left_out) > 20:
        say(f"  and {len(filled.left_out) - 20} more (--json lists them all)")
    summary = {"made": filled.made, "found": filled.found, "left_out": filled.left_out}
    write_json(args.json, {"cache": str(args.out), **summary})
    return QUARANTINED if filled.left_out else COMPLETE


def open_encoders(recipe, weights: Path | None, located, device: str, pose: str):
    """The frozen networks of a recipe: stage 1 up to its condition maps, and stage 2's encoders."""
    from ..augment.cache import Encoders
    from ..augment.pipeline import Augmenter
    from ..augment.video_networks import open_encoders as open_parts

    first = Augmenter(recipe, device=device, weights=weights, generator=False)
    autoencoder, prompts, images = open_parts(recipe, located, device)

    def conditions(episode):
        maps, _ = first.project(episode, first.reconstruct(episode, pose))
        return maps.color

    return Encoders(autoencoder, prompts, images, conditions)


def _recipe(args: argparse.Namespace):
    from ..augment.recipe import change_recipe, get_recipe
    from .plan import parse_size

    recipe = change_recipe(get_recipe(args.recipe), args.set or ())
    if recipe.generator != "video-dit":
        raise SourceError(
            f"recipe {recipe.name!r} is trained without a cache of latents",
            key="--recipe",
            todo="choose paper or official (`wristaugment train` makes nano's own)",
        )
    if args.wrist_size:
        recipe = replace(recipe, wrist_size=parse_size(args.wrist_size))
    return recipe


def _source(args: argparse.Namespace) -> tuple[Any, str, list[str]]:
    """The dataset, the key of its recorded wrist view, and the splits to read."""
    from ..augment.pairs import picture_key, require_recorded, require_splits
    from ..readers import open_dataset
    from .plan import split_values

    anchor_keys = split_values(args.anchor_keys)
    dataset = open_dataset(localise(args.data_dir), args.dataset, anchor_keys=anchor_keys)
    if args.against is not None:
        key = picture_key(dataset, args.against, "--against")
    elif dataset.profile.wrist is not None:
        key = dataset.profile.wrist.key
    else:
        raise SourceError(
            "has no recorded wrist view to learn from",
            file=dataset.folder,
            todo="name one with --against, or use a corpus that has one",
        )
    require_recorded(dataset, key)
    if args.episodes is not None and args.episodes < 1:
        raise SourceError(f"{args.episodes} episodes", key="--episodes", todo="give 1 or more")
    splits = split_values(args.split) or [split.name for split in dataset.splits]
    require_splits(dataset, splits)
    return dataset, key, splits


def _part(text: str | None) -> tuple[int, int]:
    """(first, step) of "K/N", K from 1 to N."""
    if text is None:
        return 0, 1
    found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise SourceError(
            f"{text!r} is no part K/N with K from 1 to N", key="--part", todo="give it as in 1/4"
        )
    return int(found[1]) - 1, int(found[2])

"""`wristaugment train confidence`: fits what tells how good each frame of a run is."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

from ..readers.errors import SourceError
from . import interrupt
from .output import COMPLETE, speaker, write_json

if TYPE_CHECKING:
    from ..readers.episode import Episode

TEST = "test"  # the split that results are reported on
# What the other stages of `train` take and this one does not: attribute -> option.
_OTHERS = {
    "cache": "--cache", "init": "--init", "weights": "--weights", "tuning": "--lora", "steps":
    "--steps", "batch": "--batch", "accumulate": "--accumulate", "rate": "--rate", "warmup":
    "--warmup", "precision": "--precision", "save": "--save", "validate_every": "--validate-every",
    "log_every": "--log-every", "losses": "--loss", "workers": "--workers", "address": "--address",
}  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Fit, print what was reached on episodes left out of the fit, and write confidence.json.

    Raises:
        SourceError, WeightsError: refused; nothing was written.
    """
    from ..augment.pipeline import Augmenter
    from ..augment.recipe import change_recipe, get_recipe
    from ..augment.train_confidence import fit_confidence, save
    from ..augment.weights import check
    from .progress import Progress
    from .work import after_loading, before_loading

    for name, option in _OTHERS.items():
        if getattr(args, name) is not None:
            raise SourceError(
                "the fit of the confidence has no such choice", key=option, todo="leave it out"
            )
    say = speaker(args.json)
    recipe = change_recipe(get_recipe(args.recipe), args.set or ())
    if recipe.generator not in ("wrist-dit", "video-dit"):
        raise SourceError(
            f"recipe {recipe.name!r} generates nothing", key="--recipe", todo="choose nano, say"
        )
    out = args.out.expanduser().absolute()
    dataset, split = _corpus(args)
    if dataset.profile.wrist is None:
        raise SourceError(
            "has no recorded wrist view to compare with", file=dataset.folder,
            todo="fit on a corpus that has one",
        )  # fmt: skip
    check(recipe, out)
    before_loading("cpu")
    augmenter = Augmenter(recipe, weights=out)
    after_loading("cpu")
    records = sum(shard.records for shard in split.shards)
    total = min(records, args.episodes or records)
    progress = Progress(total, 0)
    with interrupt.armed():
        try:
            found, figures = fit_confidence(
                augmenter,
                lambda: islice(_episodes(dataset, split), total),
                f"{dataset.name} {dataset.version}, split {split.name}, {total} episodes",
                seed=args.seed,
                progress=progress.update,
            )
        except interrupt.Interrupted:
            say("interrupted; nothing was written")
            return interrupt.EXIT_CODE
        finally:
            progress.close()
        path = save(found, out)
    say(f"confidence: {path}; frames below an expected SSIM of {found.threshold:g} are no use")
    for name, value in figures.items():
        say(f"  {name}: {value:.3g}")
    write_json(
        args.json,
        {"confidence": str(path), "threshold": found.threshold, "validation": figures},
    )
    return COMPLETE


def _corpus(args: argparse.Namespace):
    """(the dataset, the split to fit on); SourceError where it is not there or must not be used."""
    from ..readers import open_dataset
    from .mirror import localise
    from .plan import split_values

    if args.episodes is not None and args.episodes < 1:
        raise SourceError(f"{args.episodes} is too small", key="--episodes", todo="give 40, say")
    keys = split_values(args.anchor_keys)
    dataset = open_dataset(localise(args.data_dir), args.dataset, anchor_keys=keys)
    names = [split.name for split in dataset.splits]
    name = args.validation or "val"
    if name == TEST:
        raise SourceError(
            "is the split that results are reported on",
            file=dataset.folder,
            key=name,
            todo="fit on another, with --validation",
        )
    if name not in names:
        raise SourceError(
            "no such split", file=dataset.folder, key=name,
            todo=f"name one with --validation; there are: {names}",
        )  # fmt: skip
    return dataset, next(split for split in dataset.splits if split.name == name)


def _episodes(dataset, split) -> Iterator[Episode]:
    """The split's episodes with their recorded wrist view; what cannot be read raises."""
    from ..augment.corpus import training_episodes

    for episode in training_episodes(dataset, [split.name], dataset.profile.wrist.key, depth=False):
        interrupt.check()
        yield episode

"""`wristaugment mount`: solve once for the place of a robot's hand camera on its hand."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ..readers.errors import SourceError

_EPILOG = """\
examples:
  solve with 200 episodes, then use the mount for the whole dataset:
    wristaugment mount --dataset my_set --data-dir /data --episodes 200 --out mount.json
    wristaugment run --dataset my_set --data-dir /data --out out --pose rigid --mount mount.json
  how good it is where the hand camera is calibrated, which the solver does not look at; and from
  RGB alone:
    wristaugment mount --dataset droid --data-dir /data --episodes 50 --out mount.json
    wristaugment mount --dataset droid --data-dir /data --episodes 50 --out mount.json --blind

It needs end-effector poses. Where the anchors are calibrated, the wrist head's errors average out
over episodes; where they are not, the head must be good enough to follow the hand. What the motions
do not tell is said, with exit code 2, and no file is written.

exit codes: 0 complete; 2 refused, or the motions do not tell the mount; 3 complete, with episodes
left out (listed); 4 no space or no permission; 75 interrupted
"""


def add_parser(subparsers) -> None:
    """Register the command line of `mount`."""
    parser = subparsers.add_parser(
        "mount",
        help="solve for the hand camera's mount on the hand",
        description="Solve for the one transform from hand to hand camera that fits the wrist "
        "head's poses of many episodes, and write it to a file for --pose rigid.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = parser.add_argument_group("source")
    source.add_argument("--dataset", help="its profile or name, as for `run`")
    source.add_argument(
        "--data-dir", required=True, metavar="DIR", help="the dataset, as for `run`"
    )
    source.add_argument(
        "--anchor-keys",
        nargs="+",
        metavar="KEY",
        help="third-person cameras (default: the profile's)",
    )
    source.add_argument("--split", nargs="+", metavar="S", help="only these splits (default: all)")
    source.add_argument(
        "--episodes",
        type=int,
        default=100,
        metavar="N",
        help="the first N episodes (default: %(default)s)",
    )
    how = parser.add_argument_group("how")
    how.add_argument("--recipe", default="nano", help="whose wrist head (default: %(default)s)")
    how.add_argument("--weights", metavar="DIR", help="weights of your own for the recipe")
    how.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    how.add_argument(
        "--blind",
        action="store_true",
        help="predict from RGB alone, as if the anchors were not calibrated",
    )
    how.add_argument(
        "--start",
        action="store_true",
        help="start from the dataset's own (noisy) calibration of the hand camera too; else it is "
        "not looked at, and what was found is compared with it",
    )
    result = parser.add_argument_group("result")
    result.add_argument("--out", required=True, metavar="FILE", help="JSON file for the mount")
    result.add_argument("--json", metavar="FILE", help="write all figures as JSON (- = stdout)")


def run(args: argparse.Namespace) -> int:
    """Solves and reports; returns the exit code.

    Raises:
        SourceError: refused, or the motions do not tell the mount.
    """
    from ..augment.mounts import Collected, write_mount
    from ..augment.pipeline import Augmenter
    from ..augment.recipe import get_recipe
    from ..augment.rigid_mount import Untold
    from ..readers import open_dataset
    from .cluster import device_here
    from .interrupt import armed, check
    from .mirror import localise
    from .output import COMPLETE, QUARANTINED, speaker, write_json
    from .plan import split_values
    from .progress import Progress

    if args.episodes < 1:
        raise SourceError(f"{args.episodes} episodes", key="--episodes", todo="give 1 or more")
    recipe = get_recipe(args.recipe)
    if not recipe.reconstructs:
        raise SourceError(
            f"recipe {recipe.name} has no wrist head", key="--recipe", todo="nano has"
        )
    keys = split_values(args.anchor_keys)
    dataset = open_dataset(localise(args.data_dir), args.dataset, anchor_keys=keys)
    if dataset.profile.eef is None:
        raise SourceError(
            "the dataset has no end-effector poses",
            file=dataset.folder,
            todo="a mount cannot be found; use --pose head",
        )
    splits = split_values(args.split) or [split.name for split in dataset.splits]
    total = sum(split.records for split in dataset.splits if split.name in splits)
    say = speaker(args.json)
    weights = Path(args.weights).expanduser() if args.weights else None
    augmenter = Augmenter(recipe, device=device_here(args.device), weights=weights, generator=False)
    collected, left_out = Collected(), []
    with armed():
        progress = Progress(min(total, args.episodes), 0)
        try:
            for done, raw in enumerate(_records(dataset, splits, args.episodes)):
                check()
                try:
                    if raw.error is not None:
                        raise raw.error
                    episode = dataset.episode(raw, depth=not args.blind)
                    collected.add(augmenter, _blind(episode) if args.blind else episode, episode)
                except SourceError as error:
                    left_out.append({"record": str(raw.record), "reason": str(error)})
                progress.update(done + 1)
        finally:
            progress.close()
    for left in left_out[:20]:
        say(f"left out {left['record']}: {left['reason']}")
    if not collected.tracks:
        raise SourceError(
            f"not one of {len(left_out)} episodes could be used",
            file=dataset.folder,
            todo="see the reasons, or name other episodes with --split",
        )
    try:
        fit = collected.solve(start=args.start)
    except Untold as error:
        raise SourceError(
            f"{len(collected.tracks)} episodes: {error}", file=dataset.folder, key="--episodes"
        ) from None
    about = {
        "dataset": dataset.name,
        "version": dataset.version,
        "splits": splits,
        "recipe": recipe.name,
        "weights": augmenter.fingerprint,
        "blind": args.blind,
        "started_from_calibration": args.start,
        **collected.figures(fit),
    }
    write_mount(Path(args.out).expanduser(), fit.mount, about)
    for line in _said(about):
        say(line)
    say(f"mount: {args.out}; use it with --pose rigid --mount {args.out}")
    write_json(args.json, {**about, "mount": fit.mount.tolist(), "left_out": left_out})
    return QUARANTINED if left_out else COMPLETE


def _records(dataset, splits: list[str], limit: int) -> Iterator:
    """The first records of the splits."""
    left = limit
    for split in dataset.splits:
        for shard in split.shards if split.name in splits else ():
            for raw in dataset.records(shard):
                if left == 0:
                    return
                left -= 1
                yield raw


def _blind(episode):
    """The same episode, its anchors not calibrated."""
    return replace(
        episode, anchors=[replace(view, K=None, pose=None, depth=None) for view in episode.anchors]
    )


def _said(about: dict) -> Iterator[str]:
    """What was found, in lines for people."""
    yield (
        f"{about['told']} of {about['episodes']} episodes tell the mount, to "
        f"{about['rotation_error_deg']:.1f} degrees and {about['offset_error_cm']:.1f} cm "
        "(standard errors, worst direction)"
    )
    left = about["residual"]
    yield (
        f"the wrist head is {left['rotation_deg']:.1f} degrees and {left['translation_cm']:.1f} cm "
        f"off the rigid pose (medians); {100 * left['inliers']:.0f}% of frames are inliers"
    )
    if "against_calibration" in about:
        both = about["against_calibration"]
        head, rigid = both["head"], both["rigid"]
        yield (
            f"against the dataset's own calibration ({both['episodes']} episodes, medians): the "
            f"head {head['rotation_deg']:.1f} degrees, {head['translation_cm']:.1f} cm; rigid "
            f"{rigid['rotation_deg']:.1f} degrees, {rigid['translation_cm']:.1f} cm"
        )

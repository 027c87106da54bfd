"""`wristaugment evaluate`: how close generated wrist views are to recorded ones, with a page."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from ..augment.choices import GEOMETRIES, POSES
from ..readers.errors import SourceError

_RECIPES = "nano,projection,mean,anchor"
_TRAIN_EPISODES = 2000
_EPILOG = """\
a way is a recipe (nano, ...) or a baseline: projection (the condition map, holes filled with the
nearest pixel), projection-holes (holes black), mean (the mean wrist picture of the training set),
anchor (the first anchor view, resized), nearest (the wrist picture of the training frame whose
anchor views look most alike), pix2pix (Isola et al. 2017, from the anchor views alone, frame by
frame, with no geometry). name:pose runs it with that wrist pose, as in nano:head; nano+perframe
makes every frame as a clip of its own; nano+rgb is given the pictures and the text alone, as if the
dataset had no calibration, no end-effector poses and no depth.

pix2pix and nano-no-map (nano's generator without the projection) learn: where --weights does not
have them, they are trained first, on the episodes that `nearest` looks in and never on one that is
scored. Stopped, the same command goes on; trained, the next evaluation on the same data finds them.
nano-no-clip, nano-no-spc and nano-no-sweep lack other parts; `wristaugment train` makes them.

svd, wan-i2v and cosmos-predict2 are public video models that continue the first recorded wrist
frame (and are told the episode's language), clip after clip; `wristaugment weights NAME` says which
files they want below --weights. They are given more than any other way: that frame of theirs is
left out of their scores.

examples:
  nano against the plain ways, with a page to look at:
    wristaugment evaluate --dataset droid --data-dir /data --split val --episodes 50 \\
        --against observation/wrist_image_left --page compare.html
  with the measured wrist pose, and with the wrist head's own:
    wristaugment evaluate --dataset droid --data-dir /data --against wrist_image_left \\
        --recipes nano projection --pose measured head
  an augmented copy that `wristaugment run` has made:
    wristaugment evaluate --dataset droid --data-dir /data --against wrist_image_left --copy OUT

  against the paper's Pix2Pix, which is trained by this command (a quarter of an hour on two cores):
    wristaugment evaluate --dataset droid --data-dir /data --split test \\
        --against wrist_image_left --recipes nano,pix2pix --json figures.json

LPIPS and FVD with weights of your own; without them both read "no weights":
    wristaugment evaluate --dataset droid --data-dir /data --against wrist_image_left \\
        --lpips-weights alexnet-owt-7be5be79.pth --fvd-weights i3d_torchscript.pt

Pictures are compared at the generated size; the recorded view is brought to it by area average.

exit codes: 0 complete; 2 refused; 3 complete, with episodes left out (listed); 4 no space or no
permission; 75 interrupted
"""


def add_parser(subparsers) -> None:
    """Register the command line of `evaluate`."""
    parser = subparsers.add_parser(
        "evaluate",
        help="compare generated wrist views with recorded ones",
        description="Run ways of making a wrist view, or read an augmented copy, and compare them "
        "with the recorded wrist view of the same episodes: PSNR, SSIM, LPIPS, FVD, flicker, "
        "sharpness, pose and depth error, coverage and time, with intervals over episodes.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = parser.add_argument_group("source")
    source.add_argument("--dataset", help="its profile or name, as for `run`")
    source.add_argument(
        "--data-dir", required=True, metavar="DIR", help="the dataset, as for `run`"
    )
    source.add_argument(
        "--against",
        required=True,
        metavar="KEY",
        help="the recorded wrist view, as in observation/wrist_image_left",
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
    what = parser.add_argument_group("what to score")
    what.add_argument(
        "--recipes",
        nargs="+",
        metavar="WAY",
        help=f"default: {_RECIPES}, or none beside --copy",
    )
    what.add_argument(
        "--pose",
        nargs="+",
        choices=POSES,
        default=["auto"],
        help="wrist pose of ways that do not name one; several run each way with each "
        "(default: auto)",
    )
    what.add_argument("--mount", metavar="FILE", help="of the pose rigid, as for `run`")
    what.add_argument("--copy", metavar="OUT", help="score this augmented copy of the dataset")
    what.add_argument(
        "--wrist-key",
        default="wrist_rgb",
        metavar="K",
        help="the copy's generated stream (default: %(default)s)",
    )
    what.add_argument(
        "--geometry",
        choices=GEOMETRIES,
        default="predicted",
        help="depth of the anchors, as for `run` (default: %(default)s)",
    )
    what.add_argument(
        "--train-split",
        nargs="+",
        metavar="S",
        help="where `nearest` looks and pix2pix learns (default: train; without one, the splits "
        "that are not scored, or else the other episodes)",
    )
    what.add_argument(
        "--train-episodes",
        type=int,
        default=_TRAIN_EPISODES,
        metavar="N",
        help="in the first N of them (default: %(default)s)",
    )
    what.add_argument(
        "--baselines",
        metavar="DIR",
        help="where what learns is trained (default: below ~/.cache/wristaugment/baselines, a "
        "folder for each corpus, size and schedule)",
    )
    what.add_argument(
        "--baseline-steps",
        type=int,
        metavar="N",
        help="steps that it is trained for (default: as `wristaugment train --help` lists)",
    )
    what.add_argument("--weights", metavar="DIR", help="weights of your own for the recipes")
    what.add_argument(
        "--lpips-weights",
        metavar="FILE",
        help="torchvision's AlexNet, VGG-16 or SqueezeNet 1.1, for LPIPS",
    )
    what.add_argument(
        "--fvd-weights", metavar="FILE", help="StyleGAN-V's i3d_torchscript.pt, for FVD"
    )
    what.add_argument("--seed", type=int, default=0, metavar="S", help="default: %(default)s")
    what.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    result = parser.add_argument_group("result")
    result.add_argument("--page", metavar="FILE.html", help="write a page of side-by-side videos")
    result.add_argument(
        "--page-episodes",
        type=int,
        default=12,
        metavar="N",
        help="show the first N scored episodes on it (default: %(default)s)",
    )
    result.add_argument(
        "--picture",
        metavar="FILE.png",
        help="write one picture: a row an episode, from the anchors to the recorded view",
    )
    result.add_argument(
        "--picture-episodes",
        type=int,
        default=4,
        metavar="N",
        help="show the first N scored episodes in it (default: %(default)s)",
    )
    result.add_argument("--json", metavar="FILE", help="write all figures as JSON (- = stdout)")


def run(args: argparse.Namespace) -> int:
    """Scores and reports; returns the exit code.

    Raises:
        SourceError: refused, or not one episode could be scored.
    """
    from ..augment.evaluate import given_frames
    from ..augment.pairs import open_pairs
    from ..augment.picture import check_name, sheet_row, write_sheet
    from ..augment.scores import GENERAL, METRICS, format_table, unknown
    from .mirror import localise
    from .output import COMPLETE, QUARANTINED, speaker, write_json
    from .plan import split_values
    from .progress import Progress

    pairs = open_pairs(
        localise(args.data_dir),
        args.dataset,
        against=args.against,
        anchor_keys=split_values(args.anchor_keys),
        splits=split_values(args.split),
        limit=args.episodes,
        copy=args.copy and localise(args.copy),
        wrist_key=args.wrist_key,
        depth=True,
    )
    if args.picture:
        check_name(Path(args.picture))
        if args.picture_episodes < 1:
            raise SourceError(
                f"{args.picture_episodes}", key="--picture-episodes", todo="give 1 or more"
            )
    say = speaker(args.json)
    scorer, missing, fingerprints, looked_in, trained = _scorer(args, pairs, say)
    for why in missing.items():
        say("{}: {}".format(*why))
    fingerprints |= scorer.load()
    for line in looked_in:
        say(f"nearest: {line}")
    for line in _told(trained, scorer):
        say(line)
    rows, sheet = [], []
    progress = Progress(pairs.total, 0)
    try:
        for done, (episode, copied) in enumerate(released(pairs)):
            if episode is not None:
                with pairs.leaving_out(episode.record):
                    result = scorer(episode, copied)
                    if args.page and len(rows) < args.page_episodes:
                        rows.append(_page_row(result, scorer.ways))
                    if args.picture and len(sheet) < args.picture_episodes:
                        sheet.append(sheet_row(result))
            progress.update(done + 1)
    finally:
        progress.close()
    if not scorer.scored:
        raise _nothing(pairs)
    summary = scorer.summary(missing)
    report = {
        "dataset": pairs.dataset.name,
        "version": pairs.dataset.version,
        "against": pairs.against,
        "splits": [split.name for split in pairs.splits],
        "seed": args.seed,
        "geometry": args.geometry,
        "metrics": {**{key: metric.what for key, metric in METRICS.items()}, **GENERAL},
        "no_weights": missing,
        "nearest": looked_in,
        "given_frames": {way.name: given for way in scorer.ways if (given := given_frames(way))},
        "trained": {name: found.training for name, found in trained.items()},
        "weights": fingerprints,
        "ways": {way.name: {"recipe": way.recipe, "pose": way.pose} for way in scorer.ways},
        "frames": sum(len(scores[scorer.names[0]].psnr) for _, scores in scorer.scored),
        "invalid_frames": {
            name: sum(scores[name].invalid for _, scores in scorer.scored) for name in scorer.names
        },
        "recipes": summary,
        "episodes": [
            {"record": str(record), "recipes": {n: s.as_dict() for n, s in scores.items()}}
            for record, scores in scorer.scored
        ],
        "left_out": pairs.left_out,
    }
    for left in pairs.left_out[:20]:
        say(f"left out {left['record']}: {left['reason']}")
    say(f"{len(scorer.scored)} episodes, {report['frames']} frames of {pairs.against}")
    say(format_table(summary, shutil.get_terminal_size((100, 24)).columns))
    if lacking := unknown(summary):
        say(f"not known here: {', '.join(lacking)}")
    if args.page:
        size = _write_page(
            Path(args.page), rows, report, scorer, args.copy, pairs.wrist_key, trained
        )
        say(f"page: {args.page} ({size / 1e6:.1f} MB)")
    if args.picture:
        size = write_sheet(Path(args.picture), sheet)
        say(f"picture: {args.picture} ({size / 1e6:.1f} MB)")
    write_json(args.json, report)
    return QUARANTINED if pairs.left_out else COMPLETE


def released(pairs):
    """The pairs; of files that lie elsewhere only those of the shard that is read are kept."""
    from .mirror import release_all

    shard = None
    for episode, copied in pairs:
        if episode is not None and shard != (episode.record.split, episode.record.shard):
            shard = episode.record.split, episode.record.shard
            release_all(_shard_files(pairs, episode.record))
        yield episode, copied


def _shard_files(pairs, record) -> list[Path]:
    """The files that a record's shard is read from, in the source and in the copy."""
    files = []
    for dataset in (pairs.dataset, pairs.copy):
        shards = [s for d in (dataset,) if d for split in d.splits for s in split.shards]
        here = (s for s in shards if (s.split, s.index) == (record.split, record.shard))
        files += [path for shard in here for path in dataset.shard_files(shard)]
    return files


def _told(trained, scorer) -> list[str]:
    """How every recipe that learns was trained, and what others were given."""
    from ..augment.direct import in_words
    from ..augment.evaluate import given_frames

    lines = [f"{name}: {in_words(found.training)}" for name, found in trained.items()]
    return lines + [
        f"{way.name}: is given the first recorded wrist frame, which is left out of its scores"
        for way in scorer.ways
        if given_frames(way)
    ]


def _scorer(args: argparse.Namespace, pairs, say):
    """(scorer, metric -> why it has no weights, fingerprints of those it has, what nearest saw,
    what was trained)."""
    from ..augment.baselines import parse_ways, run_recipe
    from ..augment.evaluate import Scorer
    from ..augment.mounts import read_mount
    from ..augment.perceptual import open_perceptual
    from ..augment.recipe import get_recipe, weights_folder
    from .cluster import device_here
    from .plan import split_values
    from .trained import compared_size, train_missing

    names = split_values(args.recipes) or ([] if args.copy else split_values([_RECIPES]))
    ways = parse_ways(names, poses=args.pose) if names else []
    weights = Path(args.weights) if args.weights else None
    mount = read_mount(Path(args.mount).expanduser()) if args.mount else None
    networks = args.lpips_weights or args.fvd_weights or any(way.runs_recipe for way in ways)
    device = device_here(args.device) if networks else "cpu"
    lpips, fvd = (path and Path(path) for path in (args.lpips_weights, args.fvd_weights))
    perceptual = open_perceptual(lpips or None, fvd or None, device)
    looked_in: list[str] = []
    trained = train_missing(args, pairs, ways, device, say)
    shared = compared_size(ways)

    def size_of(recipe: str) -> tuple[int, int]:
        own = get_recipe(recipe)
        return own.wrist_size if own.reconstructs or shared is None else shared

    def augmenter(runs: str):
        from ..augment.direct import DirectAugmenter
        from ..augment.pipeline import Augmenter, make_augmenter

        recipe = run_recipe(runs)
        found = trained[recipe.name].weights if recipe.name in trained else weights
        made = make_augmenter(recipe, device=device, weights=found, mount=mount)
        if isinstance(made, DirectAugmenter):
            made.size = size_of(recipe.name)
        if isinstance(made, Augmenter):
            made.keep_depth = True
        return made

    scorer = Scorer(
        ways,
        augmenter,
        wrist_size=size_of,
        weights=lambda recipe: weights_folder(get_recipe(recipe), weights),
        seed=args.seed,
        with_copy=args.copy is not None,
        geometry=args.geometry,
        neighbours=lambda size: _neighbours(args, pairs, size, looked_in),
        lpips=perceptual.lpips,
        features=perceptual.features,
    )
    return scorer, perceptual.missing, dict(perceptual.fingerprint), looked_in, trained


def _neighbours(args: argparse.Namespace, pairs, size: tuple[int, int], said: list[str]):
    """The training frames that `nearest` looks in; adds what they are to `said`."""
    from ..augment.nearest import Neighbours
    from ..augment.pairs import training_pairs
    from .plan import split_values
    from .progress import Progress

    if args.train_episodes < 1:
        raise SourceError(f"{args.train_episodes}", key="--train-episodes", todo="give 1 or more")
    training, words = training_pairs(pairs, split_values(args.train_split), args.train_episodes)
    found = Neighbours(size)
    progress = Progress(training.total, 0)
    try:
        for done, (episode, _) in enumerate(released(training)):
            if episode is not None and episode.anchors:
                found.add(episode)
            progress.update(done + 1)
    finally:
        progress.close()
    words += f"; {found.frames} frames of {found.episodes} episodes"
    if training.left_out:
        words += f", {len(training.left_out)} could not be read"
    said.append(words)
    return found


def _page_row(result, ways):
    from ..augment.pages import evaluation_row
    from ..augment.report import thin

    return thin(evaluation_row(result, ways))


def _write_page(
    path: Path, rows, report: dict, scorer, copy: str | None, wrist_key: str, trained
) -> int:
    from .. import __version__
    from ..augment.pages import READING, evaluation_tables
    from ..augment.report import write_page

    recipes = {way.recipe: report["weights"].get(way.recipe, {}) for way in scorer.ways}
    made = []
    for recipe, files in recipes.items():
        weights = ", ".join(f"{file} sha256 {digest[:12]}" for file, digest in files.items())
        made.append(f"recipe {recipe}" + (f" ({weights})" if weights else ""))
    provenance = []
    if made:
        provenance.append(
            "Synthetic frames: machine-generated by "
            f"{' and '.join(made)} of wristaugment {__version__}, seed {scorer.seed}. "
            "They are not recordings; only the views marked recorded are."
        )
    if copy is not None:
        provenance.append(
            f"Synthetic frames of the way 'copy' are read from the key {wrist_key} of an augmented "
            "copy of this dataset, after JPEG compression. They are not recordings."
        )
    episodes = len(scorer.scored)
    lead = [
        f"{report['dataset']} {report['version']}, split {', '.join(report['splits'])}: generated "
        f"wrist views against the recorded {report['against']}."
    ]
    if len(rows) < episodes:
        lead.append(f"Figures are over {episodes} episodes; the first {len(rows)} are shown.")
    lead += [f"nearest: {words}." for words in report["nearest"]]
    lead += [f"{words}." for words in _told(trained, scorer)]
    lead += [f"{metric.upper()}: {why}." for metric, why in report["no_weights"].items()]
    if report["left_out"]:
        lead.append(f"{len(report['left_out'])} episodes had to be left out.")
    return write_page(
        path,
        f"Wrist views of {report['dataset']}",
        rows,
        evaluation_tables(report["recipes"], episodes, report["frames"]),
        lead=lead,
        provenance=provenance,
        notes=READING,
    )


def _nothing(pairs) -> SourceError:
    first = pairs.left_out[0] if pairs.left_out else {"record": "-", "reason": "there are none"}
    return SourceError(
        f"not one of {pairs.total} episodes could be scored; the first, {first['record']}: "
        f"{first['reason']}",
        key=pairs.against,
        todo="see the reason, or name other episodes with --split",
    )

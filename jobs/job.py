"""A job as the command line asks for it, checked: everything that can be refused is refused here.

Nothing in this module writes below --out.
"""

from __future__ import annotations

import argparse
import contextlib
import math
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from .. import __version__
from ..augment.recipe import Recipe, change_recipe, get_recipe
from ..augment.weights import Located, check, check_records, fingerprint
from ..readers.dataset import Dataset, Shard
from ..readers.errors import SourceError
from ..writers.copy import DatasetCopy
from ..writers.formats import usual_size
from .cluster import Cluster, local_gpus
from .events import EventLog
from .expected import confidence_of, least_ssim
from .ledger import Ledger
from .mirror import pinned, release_all
from .plan import make_plan, parse_size, source_fingerprint, split_values
from .pool import Task
from .remote import is_url
from .work import Work, recorded_wrist


@dataclass
class Job:
    """All that `run` needs.

    Attributes:
        dataset, copy: the source, and the writer of its copy (which has written nothing).
        tasks: the shards to make, in the order of the source.
        cluster: the cluster at --address; None until one is started on this machine.
        events: the log of what happens.
        confidence: what the expected SSIM of frames is told from, or why it is not known.
    """

    dataset: Dataset
    copy: DatasetCopy
    recipe: Recipe
    work: Work
    plan: dict
    ledger: Ledger
    tasks: list[Task]
    shards: dict[tuple[str, int], Shard]
    cluster: Cluster | None = None
    events: EventLog = field(default_factory=lambda: EventLog.open(None))
    confidence: str = ""

    @property
    def folder(self) -> str:
        """Where the copy's files lie: a path or a URL."""
        place = self.plan["place"]
        return self.ledger.store.where("" if place == "." else place)

    def start_cluster(self, asked: int | None, pending: int) -> Cluster:
        """The cluster to work on, started on this machine unless --address named one."""
        if self.cluster is None:
            on_gpus = self.work.device == "cuda"
            gpus = local_gpus() if on_gpus else 0
            least = min(asked or 0, pending) if not on_gpus else gpus
            self.cluster = Cluster(gpus=gpus, least_cpus=least)
        return self.cluster

    def actors(self, cluster: Cluster, asked: int | None, pending: int, share: float = 1.0) -> int:
        """How many actors to hold: as asked, else one per GPU or core; never more than shards.

        Args:
            share: of a GPU that an actor takes.
        """
        slots = cluster.slots(self.work.device, share)
        if slots < 1:
            raise SourceError(
                f"the cluster has no {'GPU' if self.work.device == 'cuda' else 'CPU'}",
                key="--device",
                todo="choose another --device or cluster",
            )
        return max(1, min(asked or slots, slots, pending))


def prepare(args: argparse.Namespace, stack: contextlib.ExitStack) -> Job:
    """Check the command line against source, recipe and --out.

    Args:
        stack: what closes a cluster that had to be asked for its devices.

    Raises:
        SourceError: anything is wrong; nothing has been written.
    """
    for name, least in (("episodes", 1), ("num_actors", 1), ("seed", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise SourceError(
                f"{value} is too small", key=_option(name), todo=f"give {least} or more"
            )
    for name in ("record_timeout", "lease", "gpus_per_actor"):
        value = getattr(args, name)
        if not 0 < value < math.inf:
            raise SourceError(f"{value} is no positive number", key=_option(name), todo="give one")
    recipe = change_recipe(get_recipe(args.recipe), args.set or ())
    anchor_keys = split_values(args.anchor_keys)
    splits = split_values(args.split)
    work = Work(
        data_dir=_place(args.data_dir),
        dataset=args.dataset,
        anchor_keys=tuple(anchor_keys) if anchor_keys else None,
        out=_place(args.out),
        splits=tuple(splits) if splits else None,
        limit=args.episodes,
        recipe=args.recipe,
        settings=tuple(args.set or ()),
        weights=str(Path(args.weights).expanduser().absolute()) if args.weights else None,
        device="cpu",
        wrist_key=args.wrist_key,
        size=recipe.wrist_size,
        made=recipe.wrist_size,
        pose=args.pose,
        geometry=args.geometry,
        seed=args.seed,
        replace=args.replace,
        description=description(__version__, recipe.name),
        mount=_mount(args),
    )
    work = replace(work, data_key=pinned(args.data_dir)[1])
    dataset = work.open_source()
    if recipe.guided:
        recorded_wrist(dataset, recipe)
    size, made = _sizes(args, recipe, dataset)
    work = replace(work, size=size, made=made)
    _apart(dataset.folder, work)
    if args.pose == "measured" or (args.pose == "rigid" and work.mount is None):
        _calibrated(dataset, args.pose)
    copy = work.open_copy(dataset)
    # Headers first: hashing gigabytes can wait for what is cheap to refuse.
    given = Path(work.weights) if work.weights else None
    located = check(recipe, given, hashes=False)
    views = len(dataset.profile.anchors)
    _fitting(located, made, views)
    device, cluster = _device(args, recipe, stack)
    if device == "cuda" and cluster is None:  # actors elsewhere look at their own GPU
        from ..augment.weights_memory import refuse_small_gpu

        refuse_small_gpu(recipe, located, made, views)
    check_records(located)
    weights = fingerprint(recipe, located=located)
    about = confidence_of(recipe, located, given, weights)
    weights |= about.weights
    work = replace(work, device=device, min_ssim=least_ssim(args.min_ssim, about))
    shards = {(shard.split, shard.index): shard for shard in copy.shards}
    plan = make_plan(
        dataset,
        source=source_fingerprint(dataset, copy.shards),
        splits=[split.name for split in copy.splits if splits is None or split.name in splits],
        shards=len(copy.shards),
        limit=args.episodes,
        recipe=recipe,
        weights=weights,
        device=device,
        wrist_key=copy.wrist_key,
        wrist_size=size,
        made_size=made,
        pose=args.pose,
        geometry=args.geometry,
        mount=work.mount,
        min_ssim=work.min_ssim,
        seed=args.seed,
        replace=args.replace,
    )
    ledger = Ledger(work.out if is_url(work.out) else Path(work.out))
    ledger.check(plan)
    release_all(below=dataset.folder / "meta")  # opening some formats fetches a whole file
    return Job(
        dataset=dataset,
        copy=copy,
        recipe=recipe,
        work=work,
        plan=plan,
        ledger=ledger,
        tasks=[Task(split, index, shard.records) for (split, index), shard in shards.items()],
        shards=shards,
        cluster=cluster,
        confidence=about.text,
    )


def _sizes(args, recipe: Recipe, dataset: Dataset) -> tuple[tuple[int, int], tuple[int, int]]:
    """((height, width) that is written, that the recipe makes).

    Where the user names none, readers of the format may expect a size that is not what a recipe
    can make, or has been trained for: a video model keeps its own, and nano makes no more pixels
    than twice its own. What a recipe makes in multiples of some pixels, it makes at the next such
    size.
    """
    own = recipe.wrist_size
    size = parse_size(args.wrist_size) if args.wrist_size else usual_size(dataset) or own
    if recipe.generator == "video-dit" or recipe.guided:
        return size, size if args.wrist_size else own
    if recipe.generator == "constant":
        return size, size
    share = 1.0
    if not args.wrist_size:
        share = min(1.0, (2 * own[0] * own[1] / (size[0] * size[1])) ** 0.5)
    step = recipe.multiple
    return size, (_up(size[0] * share, step), _up(size[1] * share, step))


def _up(side: float, step: int) -> int:
    return max(1, math.ceil(round(side, 3) / step)) * step


def description(version: str, recipe: str) -> str:
    """What a copy's metadata says of the new stream."""
    return (
        f"Synthetic wrist view: generated by wristaugment {version}, recipe {recipe}, "
        "not recorded; see wrist_valid."
    )


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _place(text: str) -> str:
    """A path made absolute; a URL as it is."""
    return text.rstrip("/") if is_url(text) else str(Path(text).expanduser().absolute())


def _apart(folder: Path, work: Work) -> None:
    """Refuse an --out that would put the copy into the source or around it."""
    if is_url(work.out) or is_url(work.data_dir):
        source, out = PurePosixPath(work.data_dir), PurePosixPath(work.out)
    else:
        source, out = folder.resolve(), Path(work.out).resolve()
    if source.is_relative_to(out) or out.is_relative_to(source):
        raise SourceError(
            f"overlaps the source {source}",
            file=out,
            key="--out",
            todo="use one apart from it",
        )


def _mount(args) -> tuple[tuple[float, ...], ...] | None:
    """The matrix of --mount, which the plan and the actors get, not its file's name."""
    if args.mount is None:
        return None
    if args.pose != "rigid":
        raise SourceError(
            f"is not used with --pose {args.pose}", key="--mount", todo="give --pose rigid"
        )
    from ..augment.mounts import read_mount

    return tuple(tuple(row) for row in read_mount(Path(args.mount).expanduser()).tolist())


def _calibrated(dataset, pose: str) -> None:
    profile = dataset.profile
    if profile.eef is None or profile.wrist is None or profile.wrist.extrinsics is None:
        raise SourceError(
            "the dataset has no calibrated wrist pose (end-effector pose and wrist extrinsics)",
            file=dataset.folder,
            key="--pose",
            todo="use --pose auto or --pose head"
            + (" or give --mount (`wristaugment mount` solves for it)" if pose == "rigid" else ""),
        )


def _fitting(located: Located, size: tuple[int, int], views: int) -> None:
    """Refuse sizes and numbers of anchors that the recipe's video DiT would crop or not know."""
    recipe = located.recipe
    if recipe.generator != "video-dit":
        return
    from ..augment.weights_shapes import generation_config
    from ..models.video_dit import latent_shape

    config = generation_config(recipe, located)
    try:
        latent_shape(config, recipe.clip, *size)
    except ValueError as error:
        raise SourceError(
            f"{error}", key="--wrist-size", todo="give sides of that size, as in 480x640"
        ) from None
    most = min(config.views, config.context_tokens // recipe.clip)
    if views > most:
        raise SourceError(
            f"{views} anchor views; the generator of these weights knows {most}",
            key="--anchor-keys",
            todo=f"name {most} of them, or train the generator with {views} views",
        )


def _device(args, recipe: Recipe, stack) -> tuple[str, Cluster | None]:
    """("cpu" or "cuda", the cluster at --address or None)."""
    cluster = None
    if args.address and not args.dry_run:
        cluster = stack.enter_context(Cluster(args.address))
    if recipe.generator == "constant":
        return "cpu", cluster  # nothing to compute
    if args.device == "cpu":
        return "cpu", cluster
    gpus = cluster.slots("cuda") if cluster else local_gpus()
    if args.device == "cuda" and not gpus:
        raise SourceError(
            "no GPU is here that torch can use", key="--device", todo="use --device cpu"
        )
    return ("cuda" if gpus else "cpu"), cluster

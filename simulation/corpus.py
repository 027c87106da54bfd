"""The simulated corpus: episodes from many processes, written in order as an RLDS dataset.

What is in the folder follows from the plan alone (seed, split, number, steps, depth, views): an
episode's random numbers come from its own seed, and the parent writes episodes in order, so that
the number of workers and any interruption leave no trace. A shard that is there is whole, and is
kept. Other versions of MuJoCo, Mesa or Pillow may shade and compress a little differently.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import signal
from collections.abc import Generator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from ..readers.errors import SourceError
from ..writers.atomic import write_atomic
from . import VIEWS
from .render import choose_backend

PLAN = "simulate.json"
DESCRIPTION = (
    "Simulated: a Franka Panda with a Robotiq 2F-85 picks, places and pushes objects on a table, "
    "in MuJoCo. In the schema of DROID 1.0.1; every image is rendered, and wrist_image_left is the "
    "true view of the simulated hand camera."
)


@dataclass(frozen=True)
class Plan:
    """One split of a corpus: how many episodes in how many shards, and what each is made of.

    `views` side cameras (1 to 3) see every episode; the episodes are the same for any number.
    """

    split: str
    episodes: int
    shards: int
    steps: int
    seed: int
    depth: bool
    views: int = VIEWS

    def to_dict(self) -> dict:
        """Plain values; the usual number of views goes unsaid, as in corpora older than it."""
        values = asdict(self)
        if self.views == VIEWS:
            del values["views"]
        return values

    def lengths(self) -> list[int]:
        """How many episodes each shard holds, as even as can be."""
        ends = [self.episodes * (i + 1) // self.shards for i in range(self.shards)]
        return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def write_corpus(out: Path, plans: list[Plan], *, workers: int = 1, progress: bool = True) -> Path:
    """Simulate the splits of `plans` into `out/droid_101/1.0.1`; returns that folder.

    Splits that are already there, from an earlier call, stay. An interrupted call goes on with the
    first shard that is missing.

    Raises:
        SourceError: the folder holds another plan for one of the splits, or nothing can be
            rendered on this system.
    """
    choose_backend()
    from ..writers.rlds_create import RldsCreate
    from .schema import NAME, VERSION, droid_features

    features = droid_features(plans[0].depth, plans[0].views)
    writer = RldsCreate(out, NAME, VERSION, features, description=DESCRIPTION)
    known = _agree(writer.folder, plans)
    writer.folder.mkdir(parents=True, exist_ok=True)
    tree = {"splits": {split: plan.to_dict() for split, plan in known.items()}}
    text = json.dumps(tree, indent=2, sort_keys=True)
    write_atomic(writer.folder / PLAN, (text + "\n").encode())

    for plan in plans:
        _write_split(writer, plan, workers, progress)
    complete = {
        split: plan.lengths()
        for split, plan in known.items()
        if all(writer.shard_path(split, i, plan.shards).is_file() for i in range(plan.shards))
    }
    writer.finish(complete)
    return writer.folder


def _agree(folder: Path, plans: list[Plan]) -> dict[str, Plan]:
    """The plans of all splits in `folder`, the new ones among them."""
    path = folder / PLAN
    known: dict[str, Plan] = {}
    if path.is_file():
        found = json.loads(path.read_text())["splits"]
        known = {split: Plan(**fields) for split, fields in found.items()}
    elif folder.is_dir() and any(folder.iterdir()):
        raise SourceError(
            "holds files of another origin", file=folder, todo="give an empty or a new --out"
        )
    for plan in plans:
        other = known.get(plan.split, plan)
        differ = [k for k, v in asdict(plan).items() if asdict(other)[k] != v]
        if differ:
            was = ", ".join(f"{key} {getattr(other, key)}" for key in differ)
            raise SourceError(
                f"split {plan.split!r} was begun with {was}", file=path,
                todo="give the same options again, or another --out",
            )  # fmt: skip
        known[plan.split] = plan
    if len({plan.depth for plan in known.values()}) > 1:
        raise SourceError(
            "the splits of one dataset have all depth, or none", file=path,
            todo="give --depth as the first time, or another --out",
        )  # fmt: skip
    if len(numbers := {plan.views for plan in known.values()}) > 1:
        raise SourceError(
            f"the splits of one dataset have as many views; found {sorted(numbers)}", file=path,
            todo="give --views as the first time, or another --out",
        )  # fmt: skip
    return known


def _write_split(writer, plan: Plan, workers: int, progress: bool) -> None:
    lengths = plan.lengths()
    paths = [writer.shard_path(plan.split, i, plan.shards) for i in range(plan.shards)]
    wanted, first = [], 0
    for path, length in zip(paths, lengths, strict=True):
        if not path.is_file():
            wanted += range(first, first + length)
        first += length
    if not wanted:
        return
    # Closing stops the workers, also when this is interrupted.
    with contextlib.closing(_payloads(plan, wanted, workers, progress)) as payloads:
        for path, length in zip(paths, lengths, strict=True):
            if not path.is_file():
                writer.write_shard(path, itertools.islice(payloads, length))


def _payloads(
    plan: Plan, indices: list[int], workers: int, progress: bool
) -> Generator[bytes, None, None]:
    from tqdm import tqdm

    make = partial(make_payload, plan)
    with tqdm(total=len(indices), desc=plan.split, unit="episode", disable=not progress) as bar:
        if workers <= 1:
            for index in indices:
                yield make(index)
                bar.update()
            return
        # Fork would carry an OpenGL context, and threads, into the children.
        context = multiprocessing.get_context("spawn")
        with context.Pool(min(workers, len(indices)), initializer=_leave_signals) as pool:
            for payload in pool.imap(make, indices):
                yield payload
                bar.update()


def _leave_signals() -> None:
    # Ctrl-C reaches every process of a terminal; the parent alone answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


_RENDERER = None


def make_payload(plan: Plan, index: int) -> bytes:
    """Episode `index` of `plan` as a serialized Example. One renderer a process is kept for all."""
    global _RENDERER
    choose_backend()
    from ..writers.rlds_create import encode_example
    from .episode import Request, simulate
    from .render import Renderer
    from .scene import HEIGHT, WIDTH
    from .schema import droid_features

    if _RENDERER is None:
        _RENDERER = Renderer(HEIGHT, WIDTH)
    request = Request(plan.seed, plan.split, index, plan.steps, plan.depth, plan.views)
    return encode_example(droid_features(plan.depth, plan.views), simulate(request, _RENDERER))

"""Training of the recipes without geometry, which are there to be compared with.

Their corpus is every dataset with a recorded wrist view: no calibration, no depth, no stage 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from ..augment.recipe import BLIND
from ..readers.episode import Episode
from ..readers.errors import SourceError
from .mirror import release_all
from .stages import Stage, TrainJob, corpus_in_words, train_on_clips

if TYPE_CHECKING:
    from ..augment.corpus import Arrays

MOST_VIEWS = 4


def training_episodes(
    job: TrainJob, splits: tuple[str, ...], check: Callable[[], None] = lambda: None
) -> Iterator[Episode]:
    """The readable episodes of the splits with their recorded wrist view, but for `job.skip`."""
    from ..augment.pairs import Pairs

    dataset = job.open_source()
    skip = dict(job.skip)
    for split in dataset.splits:
        if split.name not in splits:
            continue
        shard = None
        pairs = Pairs(dataset, job.wrist_key(dataset), [split], None)
        for number, (episode, _) in enumerate(pairs):
            check()
            if episode is None or not episode.anchors or number < skip.get(split.name, 0):
                continue
            if episode.record.shard != shard:  # of files that lie elsewhere, one shard is kept
                shard = episode.record.shard
                release_all(dataset.shard_files(split.shards[shard]))
            yield episode


def count_episodes(job: TrainJob, splits: tuple[str, ...]) -> int:
    """How many episodes there are to train on; SourceError for none."""
    dataset = job.open_source()
    skip = dict(job.skip)
    chosen = [split for split in dataset.splits if split.name in splits]
    count = sum(max(0, split.records - skip.get(split.name, 0)) for split in chosen)
    if count == 0:
        raise SourceError(
            f"recipe {job.recipe.name!r} has no episode to learn from: all of split "
            f"{', '.join(splits)} are scored",
            file=dataset.folder,
            key="--train-split",
            todo="name another split to train on, or score fewer with --split or --episodes",
        )
    limit = job.episodes if splits == job.splits else None
    return count if limit is None else min(count, limit)


def _pictures(
    job: TrainJob, splits: tuple[str, ...], check: Callable[[], None] = lambda: None
) -> Arrays:
    """The frames of some splits, from the cache below `job.out` where they are there."""
    from ..augment.corpus import build_arrays
    from ..augment.train_pix2pix import frames_an_episode, picture_rows, training_size

    dataset = job.open_source()
    episodes = count_episodes(job, splits)
    most, size = frames_an_episode(episodes), training_size(job.recipe.wrist_size)
    views = max(1, min(MOST_VIEWS, len(dataset.profile.anchors)))
    identity = _identity(job, dataset, splits) | {
        "of each": most,
        "size": list(size),
        "views": views,
        "episodes": episodes,
    }
    return build_arrays(
        job.out / "cache" / f"pictures-{'-'.join(splits)}",
        islice(training_episodes(job, splits, check), episodes),
        lambda episode: picture_rows(episode, size, views, most),
        episodes * most,
        identity,
        say_total=episodes,
    )


def _check(job: TrainJob, load: Callable[[Path], object]) -> None:
    """Refuse a corpus with nothing to learn from, and weights to start from that `load` refuses."""
    for splits in job.parts:
        count_episodes(job, splits)
    if job.initial is not None:
        load(job.initial)


def _check_pix2pix(job: TrainJob) -> None:
    from ..augment.direct import load_pix2pix

    _check(job, load_pix2pix)


def _prepare_pix2pix(job: TrainJob, check: Callable[[], None]) -> None:
    for splits in job.parts:
        _pictures(job, splits, check)


def _train_pix2pix(job: TrainJob) -> tuple[Path, dict[str, float]]:
    from ..augment import parallel
    from ..augment.train_pix2pix import train_pix2pix, validate

    held = _pictures(job, (job.validation,)) if job.validation else None
    path = train_pix2pix(
        _pictures(job, job.splits),
        job.schedule,
        job.out,
        source=corpus_in_words(job),
        device=job.device,
        initial=job.initial,
        validation=held,
    )
    if held is None or parallel.rank() > 0:
        return path, {}
    return path, validate(path, held)


def _clips(
    job: TrainJob, splits: tuple[str, ...], check: Callable[[], None] = lambda: None
) -> Arrays:
    """The clips of some splits, as nano's generator without the projection is given them."""
    from ..augment.corpus import build_arrays
    from ..augment.train_generation import plain_rows

    dataset = job.open_source()
    episodes = count_episodes(job, splits)
    identity = _identity(job, dataset, splits) | {"recipe": job.recipe.to_dict()}
    return build_arrays(
        job.out / "cache" / f"plain-{'-'.join(splits)}",
        islice(training_episodes(job, splits, check), episodes),
        lambda episode: plain_rows(episode, job.recipe),
        episodes,
        identity | {"episodes": episodes},
        say_total=episodes,
    )


def _check_blind(job: TrainJob) -> None:
    from ..augment.pipeline import load_generator

    _check(job, load_generator)


def _prepare_blind(job: TrainJob, check: Callable[[], None]) -> None:
    for splits in job.parts:
        _clips(job, splits, check)


def _train_blind(job: TrainJob) -> tuple[Path, dict[str, float]]:
    return train_on_clips(job, lambda splits: _clips(job, splits))


def _identity(job: TrainJob, dataset, splits: tuple[str, ...]) -> dict:
    """What pictures depend on: files, keys, what is left out."""
    return {
        "shards": [
            [split.name, len(split.shards), split.records]
            for split in dataset.splits
            if split.name in splits
        ],
        "keys": [job.wrist_key(dataset), *(camera.key for camera in dataset.profile.anchors)],
        "skip": [list(entry) for entry in job.skip],
    }


BASELINE_STAGES: dict[tuple[str, str], Stage] = {
    (BLIND, "generation"): Stage(_check_blind, _prepare_blind, _train_blind, gpus=True),
    ("pix2pix", "generation"): Stage(_check_pix2pix, _prepare_pix2pix, _train_pix2pix, gpus=True),
}

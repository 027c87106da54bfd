"""The stages that `wristaugment train` knows: who prepares and who trains what.

A stage is looked up by the recipe's generator and the stage's name in `STAGES`. To add one, give
its functions and say which options it takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from ..augment.recipe import RECONSTRUCTION, Recipe, get_recipe
from ..augment.schedule import Schedule
from ..readers.errors import SourceError
from ..readers.files import file_sha256
from .mirror import localise

if TYPE_CHECKING:
    from ..augment.corpus import Arrays


@dataclass(frozen=True)
class TrainJob:
    """What a stage must know of a training. Small and picklable; paths are absolute.

    Attributes:
        stage: "reconstruction", "wrist" or "generation". data_dir, data_key: as in
            `mirror.localise`; dataset: as in `open_dataset`.
        splits: to train on; episodes: only the first so many of them.
        validation: split to measure on, or None.
        out: receives the weights file of the stage. folder: below it, for `train`.
        initial: weights file of the stage to start from, as --init. weights: root of the public
            weights, as --weights. cache: store of pre-computed features, as --cache.
        tuning: "lora", "full", or "" where the stage has no choice. losses: settings of the
            stage's losses, as --loss.
        device: "cpu", "cuda", or "cuda:1" for a rank that has the second GPU.
        anchor_keys, wrist: cameras in place of the profile's. skip: (split, how many of its first
            records are not to be learnt from, since they will be scored).
    """

    stage: str
    recipe: Recipe
    dataset: str | None
    data_dir: Path | str
    splits: tuple[str, ...]
    out: Path
    schedule: Schedule
    episodes: int | None = None
    validation: str | None = None
    initial: Path | None = None
    weights: Path | None = None
    cache: Path | None = None
    tuning: str = ""
    losses: tuple[str, ...] = ()
    device: str = "cpu"
    threads: int | None = None
    data_key: str | None = None
    anchor_keys: tuple[str, ...] | None = None
    wrist: str | None = None
    skip: tuple[tuple[str, int], ...] = ()

    @property
    def parts(self) -> list[tuple[str, ...]]:
        """The splits to train on, and those to measure on where there are any."""
        return [self.splits, *([(self.validation,)] if self.validation else [])]

    @property
    def folder(self) -> Path:
        """Where checkpoints and logs go; a recipe to compare with may share `out` with others."""
        return self.out / Path(self.file).stem

    @property
    def file(self) -> str:
        """The name of the weights file that is written below `out`."""
        return self.recipe.file("generation" if self.stage == "generation" else "reconstruction")

    def wrist_key(self, dataset) -> str:
        """The recorded wrist view of the corpus; SourceError where it has none."""
        if self.wrist is not None:
            return self.wrist
        if dataset.profile.wrist is None:
            raise SourceError(
                "has no recorded wrist view to learn from",
                file=dataset.folder,
                todo="train on a corpus that has one (`wristaugment simulate --depth` writes one)",
            )
        return dataset.profile.wrist.key

    def open_source(self):
        """The dataset, opened by path."""
        from ..readers import open_dataset

        path = localise(self.data_dir, key=self.data_key)
        return open_dataset(path, self.dataset, anchor_keys=self.anchor_keys)


@dataclass(frozen=True)
class Stage:
    """How one stage of one kind of recipe is trained.

    Attributes:
        check: called first, in the command's own process: refuses what is wrong (SourceError,
            WeightsError), and writes nothing.
        prepare: called next, once and there too: fills caches below `job.out`. It calls its second
            argument often, which raises where the user has asked for a stop.
        train: called on every rank, with torch.distributed initialised where there are several;
            runs `augment.training.train` with `job.schedule` in `job.folder` on `job.device`;
            returns the weights file and the figures reached (rank 0's are reported).
        gpus: whether it uses GPUs. options: which of "weights", "cache", "tuning" and "losses" it
            takes.
    """

    check: Callable[[TrainJob], None]
    prepare: Callable[[TrainJob, Callable[[], None]], None]
    train: Callable[[TrainJob], tuple[Path, dict[str, float]]]
    gpus: bool = False
    options: frozenset[str] = frozenset()


def get_stage(recipe: Recipe, stage: str) -> Stage:
    """The stage of a recipe; SourceError where it is not trained."""
    from .baseline_stages import BASELINE_STAGES
    from .video_stages import VIDEO_STAGES

    every = STAGES | VIDEO_STAGES | BASELINE_STAGES
    found = every.get((recipe.generator, stage))
    if found is None:
        known = sorted({kind for kind, name in every if name == stage})
        raise SourceError(
            f"there is no training of {stage} for recipe {recipe.name!r} ({recipe.generator})",
            key="--recipe",
            todo=f"choose a recipe whose generator is {' or '.join(known)}",
        )
    return found


def corpus_in_words(job: TrainJob) -> str:
    """What a training learns from, for the header of its weights."""
    dataset = job.open_source()
    said = f"{dataset.name} {dataset.version}, split {', '.join(job.splits)}"
    if job.anchor_keys:
        said += f", seen by {', '.join(camera.key for camera in dataset.profile.anchors)}"
    return said + (", without the episodes that were to be scored" if job.skip else "")


# -- nano ------------------------------------------------------------------------------------------


def _nothing() -> None:
    """Nobody to ask for a stop."""


def _arrays(job, splits, name, rows, identity, clip=1, check=_nothing):
    """The training arrays of some splits, from the cache below --out where they are there."""
    from ..augment.corpus import build_arrays, count_steps, training_episodes

    dataset = job.open_source()
    episodes, longest = count_steps(dataset, splits)
    limit = job.episodes if splits == job.splits else None
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

    if job.anchor_keys:  # only then, so that what was made before they could be given is found
        identity = identity | {"anchors": [camera.key for camera in dataset.profile.anchors]}

    def checked(episode):
        check()
        return rows(episode)

    key = job.wrist_key(dataset)
    return build_arrays(
        job.out / "cache" / f"{name}-{'-'.join(splits)}",
        islice(training_episodes(dataset, list(splits), key, depth=name == "frames"), limit),
        checked,
        episodes * max(1, longest // clip),
        source | identity | ({} if limit is None else {"episodes": limit}),
        say_total=episodes,
    )


def _frames(job: TrainJob, splits: tuple[str, ...], check=_nothing):
    from ..augment.train_reconstruction import frame_rows

    rows = lambda episode: frame_rows(episode, job.recipe)
    return _arrays(job, splits, "frames", rows, {"pixels": job.recipe.pixels}, check=check)


def _clips(job: TrainJob, splits: tuple[str, ...], check=_nothing):
    from ..augment.train_generation import clip_rows

    recipe = get_recipe("projection")
    identity = {
        "reconstruction": file_sha256(job.out / RECONSTRUCTION),
        "recipe": recipe.to_dict(),
        "seed": job.schedule.seed,
        "layout": 3,  # of the rows: 2 has the cameras, 3 the tool
    }
    augmenter = None

    def rows(episode):
        nonlocal augmenter
        if augmenter is None:  # a cache that is there needs none
            from ..augment.pipeline import Augmenter
            from .cluster import device_here

            augmenter = Augmenter(recipe, device=device_here("auto"), weights=job.out)
        return clip_rows(episode, augmenter, job.schedule.seed)

    return _arrays(job, splits, "clips", rows, identity, clip=job.recipe.clip, check=check)


def _check_reconstruction(job: TrainJob) -> None:
    from ..augment.corpus import require_calibration, training_episodes
    from ..augment.train_reconstruction import NANO
    from ..models.checkpoints import load_weights
    from ..models.vggt import VGGT

    if job.initial is not None:
        load_weights(job.initial, VGGT(NANO))
    dataset = job.open_source()
    for splits in job.parts:
        key = job.wrist_key(dataset)
        for episode in islice(training_episodes(dataset, list(splits), key, depth=True), 1):
            require_calibration(episode)


def _prepare_reconstruction(job: TrainJob, check: Callable[[], None]) -> None:
    for splits in job.parts:
        _frames(job, splits, check)


def _check_wrist(job: TrainJob) -> None:
    if job.initial is None:
        raise SourceError(
            "a wrist head alone learns on the features of a trained stage 1",
            key="--init",
            todo="name its reconstruction.safetensors",
        )
    if job.initial == job.out / job.file:
        raise SourceError(
            "would be overwritten", file=job.initial, key="--out", todo="give another folder"
        )
    _check_reconstruction(job)


def _check_generation(job: TrainJob) -> None:
    if not (job.out / RECONSTRUCTION).exists():
        raise SourceError(
            "stage 2 learns from what stage 1 makes of the corpus, and that is not trained",
            file=job.out / RECONSTRUCTION,
            todo="run `wristaugment train reconstruction` with the same --out first",
        )
    from ..augment.pipeline import load_reconstruction

    load_reconstruction(job.out / RECONSTRUCTION)
    if job.initial is not None:
        from ..models.checkpoints import load_weights
        from ..models.generator import WristGenerator

        load_weights(job.initial, WristGenerator(generator_of(job)))


def generator_of(job: TrainJob):
    """Sizes of nano's generator, less what the recipe is trained without."""
    from ..models.generator import PARTS, GeneratorConfig

    return GeneratorConfig(without=tuple(part for part in job.recipe.without if part in PARTS))


def _prepare_generation(job: TrainJob, check: Callable[[], None]) -> None:
    for splits in job.parts:
        _clips(job, splits, check)


def _train_reconstruction(job: TrainJob) -> tuple[Path, dict[str, float]]:
    from ..augment import parallel
    from ..augment.train_reconstruction import train_reconstruction, validate

    held = _frames(job, (job.validation,)) if job.validation else None
    path = train_reconstruction(
        _frames(job, job.splits),
        job.schedule,
        job.out,
        spc_weight=0.0 if "spc" in job.recipe.without else 1.0,
        initial=job.initial,
        only_wrist=job.stage == "wrist",
        validation=held,
        file=job.file,
        source=corpus_in_words(job),
        device=job.device,
    )
    if held is None or parallel.rank() > 0:
        return path, {}
    return path, validate(path, held)


def _train_generation(job: TrainJob) -> tuple[Path, dict[str, float]]:
    return train_on_clips(job, lambda splits: _clips(job, splits))


def train_on_clips(
    job: TrainJob, clips: Callable[[tuple[str, ...]], Arrays]
) -> tuple[Path, dict[str, float]]:
    """Train nano's generator on what `clips` gives of splits, as `Stage.train`."""
    from ..augment import parallel
    from ..augment.train_generation import train_generation, validate

    held = clips((job.validation,)) if job.validation else None
    path = train_generation(
        clips(job.splits),
        job.schedule,
        job.out,
        config=generator_of(job),
        initial=job.initial,
        validation=held,
        file=job.file,
        source=corpus_in_words(job),
        device=job.device,
    )
    if held is None or parallel.rank() > 0:
        return path, {}
    return path, validate(path, held, job.schedule.seed)


# (the recipe's generator, the stage) -> how it is trained.
STAGES: dict[tuple[str, str], Stage] = {
    ("wrist-dit", "reconstruction"): Stage(
        _check_reconstruction, _prepare_reconstruction, _train_reconstruction, gpus=True
    ),
    ("wrist-dit", "wrist"): Stage(
        _check_wrist, _prepare_reconstruction, _train_reconstruction, gpus=True
    ),
    ("wrist-dit", "generation"): Stage(
        _check_generation, _prepare_generation, _train_generation, gpus=True
    ),
}

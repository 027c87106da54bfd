"""Training of the full-size recipes' stages, as `wristaugment train` runs them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ..readers.errors import SourceError
from .remote import clean
from .stages import Stage, TrainJob

EVERY = 10  # timesteps between the rows that stage 1 learns from: neighbours are alike


def wrist_settings(job: TrainJob):
    """The losses of stage 1: the form's, changed by --loss; SourceError for what is wrong."""
    from ..augment.wrist_losses import SETTINGS

    settings = SETTINGS[job.recipe.form]
    plain = {f.name: getattr(settings, f.name) for f in fields(settings) if f.name != "matching"}
    matching = {f.name: getattr(settings.matching, f.name) for f in fields(settings.matching)}
    changed: dict[str, Any] = {}
    matched: dict[str, Any] = {}
    for setting in job.losses:
        name, _, text = setting.partition("=")
        old = plain.get(name, matching.get(name))
        try:
            if old is None or isinstance(old, tuple):
                raise KeyError(name)
            if isinstance(old, bool):
                value: Any = {"true": True, "false": False}[text.lower()]
            else:
                value = type(old)(text)
            (changed if name in plain else matched)[name] = value
        except (KeyError, ValueError):
            known = [k for k, v in {**plain, **matching}.items() if not isinstance(v, tuple)]
            raise SourceError(
                f"{setting!r} is no setting of the losses",
                key="--loss",
                todo=f"write NAME=VALUE with one of {', '.join(known)}",
            ) from None
    try:
        return replace(settings, **changed, matching=replace(settings.matching, **matched))
    except ValueError as error:
        raise SourceError(str(error), key="--loss", todo="choose one of them") from None


# -- stage 1 ---------------------------------------------------------------------------------------


def _heads(job: TrainJob) -> tuple[str, ...]:
    """The heads of VGGT that the losses read."""
    settings = wrist_settings(job)
    # The camera head also tells the scale that is compared with measured poses.
    return tuple(sorted({"camera", "track", "wrist", *settings.matching.heads}))


def _check_wrist(job: TrainJob) -> None:
    from ..augment.weights import check, notices
    from ..augment.weights_shapes import meta
    from ..models.errors import WeightsError
    from ..models.public_vggt import check_vggt, vggt_config
    from ..models.vggt import VGGT

    wrist_settings(job)
    for line in notices(job.recipe):
        print(f"licence: {line}", file=sys.stderr)
    located = check(job.recipe, job.weights, parts=("vggt",))
    path = located["vggt"].path
    config = vggt_config(path, heads_built=_heads(job), wrist_kind=job.recipe.form)
    network: Any = meta(lambda: VGGT(config))
    check_vggt(path, network, absent=_absent(job))
    if job.initial is not None and not job.initial.is_file():
        raise WeightsError(f"{job.initial}: no such file; give another --init")


def _absent(job: TrainJob) -> tuple[str, ...]:
    """Heads that the base's file lacks: the paper's wrist head is new."""
    return ("wrist",) if job.recipe.form == "paper" else ()


def _rows(job: TrainJob, splits: tuple[str, ...], check: Callable[[], None] = lambda: None):
    """Stage 1's training arrays of some splits, from the cache below --out where they are."""
    from ..augment.corpus import build_arrays, count_steps, training_episodes
    from ..augment.train_wrist import wrist_rows

    dataset = job.open_source()
    views = len(dataset.profile.anchors)
    episodes, longest = count_steps(dataset, list(splits))
    limit = job.episodes if splits == job.splits else None
    episodes = min(episodes, limit) if limit is not None else episodes
    shards = [s for split in dataset.splits if split.name in splits for s in split.shards]
    identity = {
        "shards": [[s.split, s.path.name, s.path.stat().st_size] for s in shards],
        "recipe": {k: v for k, v in job.recipe.to_dict().items() if k in ("resize", "side")},
        "every": EVERY,
        "views": views,
        "episodes": limit,
        **({"anchors": list(job.anchor_keys)} if job.anchor_keys else {}),
    }

    def usable():
        """Episodes that have all the anchors; a black one now and then is part of real corpora."""
        read = training_episodes(dataset, list(splits), job.wrist_key(dataset), depth=False)
        for episode in islice(read, limit):
            check()
            if len(episode.anchors) == views and episode.wrist is not None:
                yield episode

    return build_arrays(
        job.out / "cache" / f"wrist-{'-'.join(splits)}",
        usable(),
        lambda episode: wrist_rows(episode, job.recipe, views=views, every=EVERY),
        episodes * max(1, -(-longest // EVERY)),
        identity,
        say_total=episodes,
    )


def _prepare_wrist(job: TrainJob, check: Callable[[], None]) -> None:
    for splits in job.parts:
        _rows(job, splits, check)


def _train_wrist(job: TrainJob) -> tuple[Path, dict[str, float]]:
    from ..augment import parallel
    from ..augment.train_wrist import load_wrist, train_wrist, validate_wrist
    from ..augment.weights import locate
    from ..augment.weights_hashes import remembered_sha256
    from ..models.public_vggt import open_vggt, vggt_config

    path = locate(job.recipe, job.weights, parts=("vggt",))["vggt"].path
    config = vggt_config(path, heads_built=_heads(job), wrist_kind=job.recipe.form)
    base = open_vggt(path, config, absent=_absent(job)).to(job.device)
    held = _rows(job, (job.validation,)) if job.validation else None
    settings = wrist_settings(job)
    leader = parallel.rank() == 0
    written = train_wrist(
        _rows(job, job.splits),
        base,
        job.schedule,
        job.out,
        form=job.recipe.form,
        settings=settings,
        base_sha256=remembered_sha256(path),
        initial=job.initial,
        validation=held,
        say=lambda text: print(text, file=sys.stderr) if leader else None,
    )
    parallel.barrier()
    if held is None or not leader:
        return written, {}
    load_wrist(written, base)
    return written, validate_wrist(base, held, settings, bf16=job.schedule.bf16)


# -- stage 2 ---------------------------------------------------------------------------------------


def _store(job: TrainJob):
    """The store of pre-computed latents; SourceError where there is none."""
    from ..augment.latents import LatentStore

    if job.cache is None:
        named = f"--dataset {job.dataset} " if job.dataset else ""
        raise SourceError(
            "stage 2 of this recipe learns from pre-computed latents",
            key="--cache",
            todo=f"make them with `wristaugment cache --recipe {job.recipe.name} {named}"
            f"--data-dir {clean(str(job.data_dir))} --weights DIR --out STORE`, then give --cache "
            "STORE",
        )
    return LatentStore.open(job.cache)


def _check_video(job: TrainJob) -> None:
    from ..augment.latents import check_origin
    from ..augment.recipe import RECONSTRUCTION
    from ..augment.train_video import check_training, training_records
    from ..augment.weights import check, notices
    from ..models.lora import read_generation
    from ..models.public_config import video_config
    from ..readers.files import file_sha256

    store = _store(job)
    if job.anchor_keys:
        raise SourceError(
            "the store that is learnt from has the anchor views that it was made with",
            key="--anchor-keys",
            todo="give them to `wristaugment cache`, and leave them out here",
        )
    located = check(job.recipe, job.weights, parts=("dit",))
    for line in notices(job.recipe):
        print(f"licence: {line}", file=sys.stderr)
    dataset, own = job.open_source(), job.out / RECONSTRUCTION
    check_origin(
        store,
        job.recipe,
        {RECONSTRUCTION: file_sha256(own)} if own.is_file() else {},
        {
            "name": dataset.name,
            "version": dataset.version,
            "info": dataset.identity(),
            "wrist": job.wrist_key(dataset),
        },
    )
    names = training_records(store, job.splits, limit=job.episodes)
    config = video_config(located["dit"].path, job.recipe.form)
    if job.initial is not None:
        config = read_generation(job.initial).sizes
    most = max((len(store.views(name)) for name in names), default=1)
    check_training(store, replace(config, views=max(config.views, most)), names)


def _prepare_video(job: TrainJob, check: Callable[[], None]) -> None:
    """Nothing: the store is made by `wristaugment cache`."""


def _train_video(job: TrainJob) -> tuple[Path, dict[str, float]]:

    from ..augment.train_video import train_video
    from ..augment.video_networks import open_base
    from ..augment.weights import fingerprint, locate

    store = _store(job)
    located = locate(job.recipe, job.weights, parts=("dit",))
    base = open_base(job.recipe, located)
    path = train_video(
        store,
        base,
        job.schedule,
        job.out,
        mode=job.tuning,
        shift=job.recipe.shift,
        splits=job.splits,
        limit=job.episodes,
        validation=(job.validation,) if job.validation else (),
        initial=job.initial,
        fingerprint=fingerprint(job.recipe, located=located),
        decode=_decoder(job),
        device=job.device,
    )
    return path, _last_validation(job.folder / "log.jsonl")


def _decoder(job: TrainJob):
    """The autoencoder, for pictures in the log; None where its weights are not here."""
    from ..augment.weights import locate
    from ..models.encoders import VideoAutoencoder

    try:
        located = locate(job.recipe, job.weights, parts=("vae",))
    except SourceError:
        return None
    return VideoAutoencoder.open(located["vae"].folder, device=job.device).decode


def _last_validation(log: Path) -> dict[str, float]:
    """The figures of the last validation that training logged."""
    found: dict[str, float] = {}
    for line in log.read_text().splitlines() if log.exists() else ():
        found = json.loads(line).get("validation", found)
    return found


VIDEO_STAGES: dict[tuple[str, str], Stage] = {
    ("video-dit", "reconstruction"): Stage(
        _check_wrist,
        _prepare_wrist,
        _train_wrist,
        gpus=True,
        options=frozenset({"weights", "losses"}),
    ),
    ("video-dit", "generation"): Stage(
        _check_video,
        _prepare_video,
        _train_video,
        gpus=True,
        options=frozenset({"weights", "cache", "tuning"}),
    ),
}

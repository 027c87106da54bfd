"""`wristaugment train`: a stage of a recipe, on a corpus with a recorded wrist view."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from ..augment.schedule import DEFAULTS, defaults_of
from ..readers.errors import SourceError
from ..writers.atomic import write_atomic
from . import interrupt
from .mirror import pinned
from .output import COMPLETE, speaker, write_json

_EPILOG = """\
the whole of nano, from nothing:
  wristaugment simulate --episodes 1300 --steps 8 --depth --split train --out runs/nano/corpus
  wristaugment train reconstruction --dataset droid --data-dir runs/nano/corpus --out runs/nano
  wristaugment train generation --dataset droid --data-dir runs/nano/corpus --episodes 800 \\
    --out runs/nano

  wristaugment train confidence --dataset droid --data-dir runs/nano/corpus --episodes 40 \\
    --out runs/nano

The last, on the validation split (--validation, never `test`), fits confidence.json: how close to
the truth (SSIM) a frame is to be expected, told from the frame, the condition map, the cameras and
the anchor pictures alone. `run` writes it as `wrist_confidence`. It is for these weights alone: fit
it again after any training.

Training goes on from its last checkpoint when the same command is given again, whatever stopped it;
--workers may change if workers x accumulate stays. --out receives reconstruction.safetensors,
generation.safetensors and (nano) mean_wrist.png: a folder for `run --weights`; and for each stage a
folder with checkpoint.pt, log.jsonl and tensorboard/.

What a view or more episodes are worth: train with --anchor-keys exterior_image_1_left (one view, or
three of a corpus from `simulate --views 3`), or with --episodes N, each into an --out of its own,
and score them with `evaluate --weights OUT` and the same --anchor-keys; other ones there show what
the weights do with more or fewer views than they were trained on. nano's weights say in their
header, and this command says, how many steps, episodes and views made them.

A step sees workers x accumulate x batch samples. Defaults:
"""
PLAN = "plan.json"


def _defaults() -> str:
    lines = []
    for (recipe, stage), values in DEFAULTS.items():
        tuning = f", {values.tuning}" if values.tuning else ""
        lines += [f"  {recipe} {stage}: {values}{tuning}", f"    ({values.source})"]
    return "\n".join(lines) + "\n"


def add_parser(subparsers) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "train",
        help="train a stage of a recipe on a corpus",
        description=__doc__,
        epilog=_EPILOG + _defaults(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "stage",
        choices=("reconstruction", "wrist", "generation", "confidence"),
        help="wrist: a new wrist head on the features of --init, all else as it is (nano)",
    )
    parser.add_argument("--recipe", default="nano", help="what to train (default nano)")
    parser.add_argument(
        "--set",
        nargs="+",
        metavar="NAME=VALUE",
        help="settings of the recipe, as in side=392 (stage 1 of paper and official)",
    )
    source = parser.add_argument_group("corpus")
    source.add_argument("--dataset", help="its profile or name, as in `run`")
    source.add_argument("--data-dir", required=True, help="the corpus: a folder, or a URL of one")
    source.add_argument(
        "--anchor-keys",
        nargs="+",
        metavar="KEY",
        help="learn from these third-person cameras, in this order, as in exterior_image_1_left "
        "(default: the profile's); `run` and `evaluate` take the same option",
    )
    source.add_argument("--split", nargs="+", default=["train"], help="default: train")
    source.add_argument(
        "--episodes", type=int, metavar="N", help="train on the first N only (default: all)"
    )
    source.add_argument(
        "--validation", metavar="S", help="split to measure on (default: val where there is one)"
    )
    source.add_argument(
        "--cache", type=Path, metavar="STORE", help="features computed by `wristaugment cache`"
    )
    result = parser.add_argument_group("weights")
    result.add_argument("--out", required=True, type=Path, help="weights, checkpoints, logs")
    result.add_argument("--init", type=Path, help="a weights file of the stage to start from")
    result.add_argument(
        "--weights", type=Path, metavar="DIR", help="the public weights that the recipe builds on"
    )
    tuning = result.add_mutually_exclusive_group()
    tuning.add_argument(
        "--lora", dest="tuning", action="store_const", const="lora", help="train adapters"
    )
    tuning.add_argument(
        "--full", dest="tuning", action="store_const", const="full", help="train all weights"
    )
    how = parser.add_argument_group("schedule (default: the recipe's, below)")
    how.add_argument("--steps", type=int, help="optimizer steps")
    how.add_argument("--batch", type=int, help="timesteps or clips of a micro-batch")
    how.add_argument("--accumulate", type=int, help="micro-batches of a step on each worker")
    how.add_argument("--rate", type=float, help="peak learning rate")
    how.add_argument("--warmup", type=int, metavar="STEPS", help="steps to reach it")
    how.add_argument("--precision", choices=("bf16", "fp32"), help="of the networks")
    how.add_argument("--save", type=int, metavar="STEPS", help="steps between checkpoints")
    how.add_argument(
        "--validate-every", type=int, metavar="STEPS", help="steps between validations (0: none)"
    )
    how.add_argument("--log-every", type=int, metavar="STEPS", help="steps between log lines")
    how.add_argument("--seed", type=int, default=0, help="default: 0")
    how.add_argument(
        "--loss",
        dest="losses",
        nargs="+",
        metavar="NAME=VALUE",
        help="settings of stage 1's losses (paper, official), as in spc_form=paper lambda_u=1 "
        "translation=0.5",
    )
    where = parser.add_argument_group("machines")
    where.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="train on N ranks with Ray Train, a GPU each where the recipe uses them (default: one "
        "for each local GPU; for one or none, this process)",
    )
    where.add_argument(
        "--address", metavar="ADDR", help="Ray cluster to use (default: one on this machine)"
    )
    where.add_argument("--threads", type=int, help="CPU threads of a rank (default: all cores)")
    parser.add_argument("--json", metavar="FILE", help="what was reached, as JSON (- = stdout)")


def run(args: argparse.Namespace) -> int:
    """Train, then measure on the validation split and print what was reached.

    Raises:
        SourceError, WeightsError: refused.
    """
    from ..augment.direct import in_words
    from .stages import corpus_in_words, get_stage

    if args.stage == "confidence":
        from .fit_confidence import run as fit

        return fit(args)
    say = speaker(args.json)
    job, workers = plan_job(args)
    stage = get_stage(job.recipe, job.stage)
    stage.check(job)
    plan = same_job(job, training_plan(job, workers))
    with interrupt.armed(), alone(job.folder):
        write_atomic(job.folder / PLAN, plan)
        stage.prepare(job, interrupt.check)
        interrupt.check()
        outcome = _ray(args, job, workers, say) if workers else train_here(stage, job)
    if "stopped" in outcome:
        done, steps = outcome["stopped"]
        say(f"interrupted at step {done} of {steps}; run the same command to go on")
        return interrupt.EXIT_CODE
    path, figures = Path(outcome["weights"]), outcome["figures"]
    training = _how_trained(path)
    say(f"weights: {path} ({path.stat().st_size / 1e6:.1f} MB)")
    unsaid = f"trained for {job.schedule.steps} steps: {corpus_in_words(job)}"
    say(f"  {in_words(training) if training else unsaid}")
    for name, value in figures.items():
        say(f"  {name}: {value:.4g}")
    if not figures:
        say("  no split to measure on")
    write_json(
        args.json,
        {
            "weights": str(path),
            "steps": job.schedule.steps,
            "training": training,
            "validation": figures,
        },
    )
    return COMPLETE


def _how_trained(path: Path) -> dict:
    """What the header of the weights says of their training; {} of a stage that writes none."""
    from ..models.checkpoints import read_training
    from ..models.errors import WeightsError

    try:
        return read_training(path)
    except WeightsError:  # a stage that was plugged in may write another kind of file
        return {}


def plan_job(args: argparse.Namespace):
    """(the job, how many Ray workers: 0 = none) of a command line; writes nothing.

    Raises:
        SourceError: anything that can be told without opening an episode is wrong.
    """
    from ..augment.recipe import change_recipe, get_recipe
    from .cluster import answers, local_gpus
    from .plan import split_values
    from .stages import TrainJob, get_stage

    _numbers(args)
    recipe = change_recipe(get_recipe(args.recipe), args.set or ())
    stage = get_stage(recipe, args.stage)
    defaults = defaults_of(recipe.name, args.stage)
    for name, option in (
        ("weights", "--weights"),
        ("cache", "--cache"),
        ("tuning", "--lora"),
        ("losses", "--loss"),
    ):
        if getattr(args, name) is not None and name not in stage.options:
            raise SourceError(
                f"recipe {recipe.name!r} has no such choice in its {args.stage}",
                key="--full" if args.tuning == "full" and name == "tuning" else option,
                todo="leave it out",
            )
    for option, path in (("--init", args.init), ("--cache", args.cache)):
        if path is not None and not path.exists():
            raise SourceError("is not there", file=path, key=option, todo="give one that is")
    schedule = defaults.schedule(
        steps=args.steps,
        batch=args.batch,
        rate=args.rate,
        accumulate=args.accumulate,
        warmup=args.warmup,
        bf16=None if args.precision is None else args.precision == "bf16",
        save=args.save,
        validate_every=args.validate_every,
        log=args.log_every,
        seed=args.seed,
    )
    if args.address:
        if args.workers is None:
            raise SourceError(
                "a cluster is named, and not how much of it to use",
                key="--address",
                todo="give --workers, too",
            )
        answers(args.address)
    gpus = local_gpus() if stage.gpus else 0
    if gpus and not args.address and (args.workers or 0) > gpus:
        raise SourceError(
            f"this machine has {gpus} GPUs for {args.workers} workers",
            key="--workers",
            todo=f"give at most {gpus}, or a cluster with --address",
        )
    keys = split_values(args.anchor_keys)
    data_dir, data_key = pinned(args.data_dir)
    job = TrainJob(
        stage=args.stage,
        recipe=recipe,
        dataset=args.dataset,
        data_dir=data_dir,
        data_key=data_key,
        splits=tuple(args.split),
        out=args.out.expanduser().absolute(),
        schedule=schedule,
        episodes=args.episodes,
        initial=args.init and args.init.expanduser().absolute(),
        weights=args.weights and args.weights.expanduser().absolute(),
        cache=args.cache and args.cache.expanduser().absolute(),
        tuning=args.tuning or defaults.tuning,
        losses=tuple(args.losses or ()),
        device="cuda" if gpus or (stage.gpus and args.address) else "cpu",
        threads=args.threads,
        anchor_keys=tuple(keys) if keys else None,
    )
    workers = args.workers or max(1, gpus)
    job = replace(job, validation=_validation(args, job))
    return job, workers if workers > 1 or args.address else 0


def _numbers(args: argparse.Namespace) -> None:
    """SourceError for a number that makes no sense."""
    positive = ("steps", "batch", "accumulate", "save", "log_every", "workers", "threads",
                "episodes")  # fmt: skip
    least = dict.fromkeys(positive, 1) | {"warmup": 0, "validate_every": 0, "seed": 0}
    for name, smallest in least.items():
        value = getattr(args, name)
        if value is not None and value < smallest:
            option = "--" + name.replace("_", "-")
            raise SourceError(f"{value} is too small", key=option, todo=f"give {smallest} or more")
    if args.rate is not None and not 0 < args.rate < 1:
        raise SourceError(f"{args.rate} is no learning rate", key="--rate", todo="give 1e-5, say")


def _validation(args: argparse.Namespace, job) -> str | None:
    """The split to measure on; SourceError where the corpus has not what was asked of it."""
    dataset = job.open_source()
    job.wrist_key(dataset)
    names = [split.name for split in dataset.splits]
    for split in [*args.split, *([args.validation] if args.validation else [])]:
        if split not in names:
            raise SourceError(
                "no such split", file=dataset.folder, key=split, todo=f"there are: {names}"
            )
    found = args.validation or ("val" if "val" in names else None)
    if found is None and args.validate_every:
        raise SourceError(
            "has no split to measure on",
            file=dataset.folder,
            key="--validate-every",
            todo=f"name one with --validation; there are: {names}",
        )
    return found


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the stage's folder; SourceError where another training does."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise SourceError(
            "another training is writing here", file=folder, todo="wait for it, or stop it"
        ) from None
    finally:
        os.close(handle)


def training_plan(job, workers: int) -> dict:
    """What the training is of, in plain values.

    What changes no number (who accumulates, how often to save) is left out.
    """
    from .plan import source_fingerprint

    dataset = job.open_source()
    shards = [s for split in dataset.splits if split.name in job.splits for s in split.shards]
    plan = {
        "recipe": job.recipe.to_dict(),
        "source": source_fingerprint(dataset, shards)["shards"],
        "splits": list(job.splits),
        "episodes": job.episodes,
        "tuning": job.tuning,
        "losses": list(job.losses),
        "initial": job.initial is not None,
        "schedule": {k: v for k, v in asdict(job.schedule).items()
                     if k in job.schedule.binding()},
        "workers x accumulate": max(1, workers) * job.schedule.accumulate,
    }  # fmt: skip
    # Only where they are given, so that trainings from before they could be go on.
    for name in ("anchor_keys", "wrist", "skip"):
        if getattr(job, name):
            plan[name] = getattr(job, name)
    return json.loads(json.dumps(plan))


def same_job(job, plan: dict) -> bytes:
    """The plan as JSON; SourceError where the checkpoint there is of another training."""
    from ..augment.training import CHECKPOINT
    from .plan import differences

    path = job.folder / PLAN
    if (job.folder / CHECKPOINT).exists() and path.exists():
        different = differences(json.loads(path.read_text()), plan)
        if different:
            raise SourceError(
                f"holds another training: {'; '.join(different[:3])}",
                file=job.folder,
                todo="give the same options to go on, or another folder",
            )
    return (json.dumps(plan, indent=2, sort_keys=True) + "\n").encode()


def train_here(stage, job) -> dict:
    """Train in this process."""
    import torch

    from ..augment.training import Stopped, stop_when
    from ..models.allocator import keep_freed_memory

    if job.threads:
        torch.set_num_threads(job.threads)
    keep_freed_memory()
    stop_when(lambda: bool(interrupt.asked()))
    try:
        path, figures = stage.train(job)
    except Stopped as stopped:
        return {"stopped": [stopped.step, stopped.steps]}
    finally:
        stop_when(lambda: False)
    return {"weights": str(path), "figures": figures}


def _ray(args: argparse.Namespace, job, workers: int, say) -> dict:
    """Train on `workers` ranks of a Ray cluster."""
    from .cluster import local_gpus
    from .distribute import cluster_for, train_on

    gpus = 0 if job.device == "cpu" else (local_gpus() if not args.address else workers)
    with cluster_for(workers, gpus, args.address) as cluster:
        interrupt.check()
        say(f"{workers} workers on {'GPUs' if gpus else 'CPUs'}")
        return train_on(cluster, job, workers, say)

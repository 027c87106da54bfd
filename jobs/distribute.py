"""Training on many ranks: Ray Train starts the workers, which run a stage as one process would.

The workers write below --out themselves; all that comes back through Ray is how it ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..models.allocator import keep_freed_memory
from ..models.errors import WeightsError
from ..readers.errors import SourceError
from ..writers.atomic import write_atomic
from . import interrupt
from .cluster import Cluster
from .failures import is_disk
from .output import DiskError, JobError
from .stages import TrainJob, get_stage

_STOP, _OUTCOME, _RAY = "stop", "outcome.json", "ray"
_POLL = 0.1  # seconds
# Read as Ray starts; what the user has set stays. A worker is the job and no helper: at Ray's own
# niceness of 15 whatever else the machine does would stop it. Ray Train gives workers a minute to
# start, which a busy machine's disk does not keep; and every helper is a process that loads for
# seconds.
_SETTINGS = {
    "RAY_worker_niceness": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}


@contextlib.contextmanager
def cluster_for(workers: int, gpus: int, address: str | None) -> Iterator[Cluster]:
    """A cluster that has room for the workers.

    Args:
        gpus: of this machine that the workers use; 0: they use none.

    Raises:
        SourceError: it has too few GPUs, or CPUs.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    with Cluster(address, gpus=gpus, least_cpus=workers) as cluster:
        interrupt.arm()  # ray.init has put its own handler in place
        kind = "cuda" if gpus else "cpu"
        slots = cluster.slots(kind)
        if slots < workers:
            raise SourceError(
                f"the cluster has {slots} {'GPUs' if gpus else 'CPUs'} for {workers} workers",
                key="--workers",
                todo=f"give at most {slots}, or another --address",
            )
        yield cluster


def train_on(cluster: Cluster, job: TrainJob, workers: int, say: Callable[[str], None]) -> dict:
    """Run the job's stage on `workers` ranks of the cluster, from its last checkpoint.

    Args:
        say: prints a line for the user: a line of the log each.

    Returns:
        {"weights": path, "figures": {name: number}}, or {"stopped": [step, steps]} where the user
        asked for a stop.

    Raises:
        SourceError, WeightsError: as the stage.
        JobError: a worker died, or failed otherwise.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    job.folder.mkdir(parents=True, exist_ok=True)
    _clear(job)
    cuda = job.device != "cpu"
    trainer = TorchTrainer(
        run_rank,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if cuda else "gloo"),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=cuda),
        run_config=RunConfig(
            name=_RAY,
            storage_path=str(job.folder),  # which every machine of the cluster must see anyway
            failure_config=FailureConfig(max_failures=0),
        ),
    )
    wrong: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            wrong.append(error)

    # Not in the main thread: there `fit` would answer Ctrl-C by ending the workers at once.
    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    log, told = _new_lines(job.folder / "log.jsonl"), False
    while thread.is_alive():
        thread.join(_POLL)
        for line in next(log):
            say(line)
        if interrupt.asked() and not told:
            say("stopping after this step")
            (job.folder / _STOP).touch()
            told = True
    try:
        if wrong:
            raise _in_words(wrong[0]) from wrong[0]
        return json.loads((job.folder / _OUTCOME).read_text())
    finally:
        _clear(job)


def run_rank(config: dict[str, Any]) -> None:
    """What each of Ray Train's workers does: `config["job"]`, on its own GPU where it has one."""
    import torch

    from ..augment import parallel
    from ..augment.training import Stopped, stop_when

    job: TrainJob = config["job"]
    if job.device != "cpu":
        from ray.train.torch import get_device

        device = get_device()
        assert isinstance(device, torch.device)
        torch.cuda.set_device(device)
        job = replace(job, device=str(device))
    else:
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(job.threads or max(1, cores // parallel.world()))
        keep_freed_memory()
    stop_when((job.folder / _STOP).exists)
    try:
        path, figures = get_stage(job.recipe, job.stage).train(job)
        outcome: dict[str, Any] = {"weights": str(path), "figures": figures}
    except Stopped as stopped:
        outcome = {"stopped": [stopped.step, stopped.steps]}
    if parallel.rank() == 0:
        write_atomic(job.folder / _OUTCOME, json.dumps(outcome).encode())


def _clear(job: TrainJob) -> None:
    """Remove what a run leaves that only another process of it reads."""
    for name in (_STOP, _OUTCOME):
        (job.folder / name).unlink(missing_ok=True)
    shutil.rmtree(job.folder / _RAY, ignore_errors=True)


def _new_lines(path: Path) -> Iterator[list[str]]:
    """What came to the log since the last call, in words; what was there before is not told."""
    told = path.stat().st_size if path.exists() else 0
    while True:
        size = path.stat().st_size if path.exists() else 0
        told = min(told, size)  # the workers cut it back to their checkpoint
        lines = []
        if size > told:
            with open(path, "rb") as file:
                file.seek(told)
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            told += len(whole)
            for line in whole.splitlines():
                with contextlib.suppress(ValueError, KeyError):
                    values = json.loads(line)
                    figures = values.get("validation") or {"loss": values["loss"]}
                    text = ", ".join(f"{k} {v:.4g}" for k, v in figures.items() if v is not None)
                    kind = " validation:" if "validation" in values else ""
                    lines.append(f"step {values['step']}:{kind} {text}")
        yield lines


def _in_words(error: BaseException) -> BaseException:
    """What is raised for what Ray Train raised: the worker's own error where it is the user's."""
    failures = getattr(error, "worker_failures", {})
    # Ray wraps a worker's exception to keep its traceback.
    found = [getattr(failures[rank], "_base_exc", failures[rank]) for rank in sorted(failures)]
    for inner in found:
        if isinstance(inner, (SourceError, WeightsError)):
            return inner
        if is_disk(inner):
            return DiskError(str(inner))
    said = str((found or [error])[0]).strip().splitlines() or [type(error).__name__]
    kind = f"{type(found[0]).__name__}: " if found else ""
    return JobError(
        f"a worker failed ({kind}{said[-1]}); run the same command to go on from the last "
        "checkpoint"
    )

"""The Ray side of a job: a cluster, actors that make shards, and what happens when one dies."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..readers.errors import SourceError
from .actor import Outcome, ShardActor, Work
from .interrupt import check
from .ledger import Ledger
from .output import JobError

ATTEMPTS = 3  # how often a shard is given to an actor that then dies or fails
_LOCAL_STORE = 100 * 2**20  # bytes; names and small results are all that goes through it
_POLL = 0.5  # seconds
_PATIENCE = 60.0  # seconds without any actor before the user is told that the cluster is busy


@dataclass(frozen=True)
class Task:
    """One shard to make: its split, its index, and the episodes expected of it."""

    split: str
    index: int
    episodes: int


def local_gpus() -> int:
    """How many GPUs torch can use on this machine, without loading torch where there are none."""
    if not glob.glob("/dev/nvidia[0-9]*") and not os.path.exists("/dev/dxg"):
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def device_here(asked: str) -> str:
    """ "cpu" or "cuda" for a command that works in its own process, from its --device.

    Raises:
        SourceError: a GPU was asked for and there is none.
    """
    if asked != "cpu" and local_gpus():
        return "cuda"
    if asked == "cuda":
        raise SourceError("no GPU is found", key="--device", todo="use --device cpu")
    return "cpu"


class Cluster:
    """A Ray cluster: one of the machine's own, or the one at an address. Use as a context manager.

    Args:
        address: as --address; None starts one on this machine.
        gpus: GPUs of this machine to offer to it (only where address is None).
        least_cpus: offer at least so many CPU slots, so that actors may outnumber the cores.
    """

    def __init__(self, address: str | None = None, *, gpus: int = 0, least_cpus: int = 0):
        # Read when ray is imported: no calls home, and no word on settings of Ray's future.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        if address:
            answers(address)
        import ray

        self.ray = ray
        quiet = {"logging_level": "ERROR", "log_to_driver": False}
        if address:
            try:
                ray.init(address=address, **quiet)
            except (ConnectionError, RuntimeError, ValueError, OSError) as error:
                raise _unreachable(address, str(error).strip().splitlines()[0]) from error
        else:
            self._start(gpus, least_cpus, quiet)

    def _start(self, gpus: int, least_cpus: int, quiet: dict) -> None:
        """Start a cluster on this machine; again if it does not come up, as on a busy machine."""
        cores = len(os.sched_getaffinity(0))
        for left in reversed(range(ATTEMPTS)):
            try:
                self.ray.init(
                    address="local",  # whatever RAY_ADDRESS says
                    include_dashboard=False,
                    num_cpus=least_cpus if least_cpus > cores else None,
                    num_gpus=gpus,
                    object_store_memory=_LOCAL_STORE,
                    **quiet,
                )
                return
            except Exception as error:
                self.ray.shutdown()
                check()
                if not left:
                    reason = str(error).strip().splitlines()[0]
                    raise JobError(
                        f"Ray did not start on this machine: {reason}; see its logs in /tmp/ray, "
                        "then run the same command"
                    ) from error

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_) -> None:
        self.ray.shutdown()

    def slots(self, device: str) -> int:
        """How many actors the whole cluster has room for: its GPUs, or its CPUs for "cpu"."""
        return int(self.ray.cluster_resources().get("GPU" if device == "cuda" else "CPU", 0))


def answers(address: str) -> None:
    """Raise SourceError if nothing listens at host:port; Ray itself would try for ten minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return  # "auto" and the like
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, str(error)) from error


def _unreachable(address: str, reason: str) -> SourceError:
    return SourceError(
        f"cannot reach a Ray cluster at {address}: {reason}",
        key="--address",
        todo="start one with `ray start --head` (where it asks for a token, set "
        "RAY_AUTH_MODE=token), or leave --address out",
    )


@dataclass
class _Attempt:
    """A shard at an actor.

    Attributes:
        at: the record that it was seen at last (-1: at none), and since when, by our own clock.
    """

    task: Task
    staged: Path
    counter: Path
    at: int = -1
    since: float = field(default_factory=time.monotonic)

    def look(self) -> None:
        """See which record it is at."""
        try:
            found = int(Path(f"{self.counter}.at").read_bytes() or b"-1")
        except (OSError, ValueError):
            return
        if found != self.at:
            self.at, self.since = found, time.monotonic()


@dataclass
class ActorPool:
    """Gives shards to actors and hands back what they made.

    Attributes:
        count: actors to hold at most.
        say: prints a line for the user.
        patience: seconds that a record may take; its actor is killed then.
    """

    cluster: Cluster
    work: Work
    count: int
    ledger: Ledger
    say: Callable[[str], None]
    patience: float = float("inf")
    _given_up: dict[Task, dict[int, str]] = field(default_factory=dict)
    _suspects: dict[tuple[Task, int], int] = field(default_factory=dict)

    def run(
        self, tasks: Sequence[Task], tick: Callable[[], None]
    ) -> Iterator[tuple[Task, Outcome, Path]]:
        """Make every task; yields (task, its outcome, its staged folder) in the order of finishing.

        Outcomes of kind "failed" are tried again in a new process, as are shards whose actor died
        or took too long over a record. A record at which that happens `ATTEMPTS` times is given up;
        what was finished before it is kept, so that no attempt but the first gets past others.

        Args:
            tick: called about twice a second.

        Raises:
            JobError: a shard failed `ATTEMPTS` times.
        """
        from ray.exceptions import RayError

        ray = self.cluster.ray
        waiting = deque(tasks)
        tries: dict[Task, int] = {}
        flying: dict[Any, tuple[Any, _Attempt | None]] = {}  # ref -> actor, None = starting
        since, told, seen = time.monotonic(), False, False
        try:
            while waiting or any(attempt for _, attempt in flying.values()):
                working = sum(attempt is not None for _, attempt in flying.values())
                while len(flying) < min(self.count, working + len(waiting)):
                    actor = self._start()
                    flying[actor.about.remote()] = (actor, None)
                ready, _ = ray.wait(list(flying), num_returns=1, timeout=_POLL)
                tick()
                self._watch(ray, flying)
                if not seen and not told and time.monotonic() - since > _PATIENCE:
                    self.say(f"still waiting for the first of {self.count} actors to start")
                    told = True
                for ref in ready:
                    actor, attempt = flying.pop(ref)
                    try:
                        value = ray.get(ref)
                    except RayError as error:
                        self._died(attempt, error, tries, waiting)
                        continue
                    seen = True
                    if attempt is not None and value.kind == "failed":
                        ray.kill(
                            actor
                        )  # a process in an unknown state (a broken CUDA context, ...)
                        print(value.trace, file=sys.stderr, end="")
                        self._again(attempt, value.text, tries, waiting)
                        continue
                    if waiting:  # before the yield: the actor works on while its shard is published
                        following = self._attempt(waiting.popleft())
                        flying[self._send(actor, following)] = (actor, following)
                    if attempt is not None:
                        yield attempt.task, value, attempt.staged
        finally:
            for actor, _ in flying.values():
                with contextlib.suppress(Exception):
                    ray.kill(actor)

    def _watch(self, ray, flying) -> None:
        """Kill actors that have been at one record for too long."""
        for actor, attempt in flying.values():
            if attempt is None:
                continue
            attempt.look()
            if attempt.at >= 0 and time.monotonic() - attempt.since > self.patience:
                name = self.ledger.shard_name(attempt.task.split, attempt.task.index)
                self.say(f"shard {name}: record {attempt.at} takes too long; its actor is killed")
                ray.kill(actor)
                attempt.since = float("inf")  # once; ray.wait gives the shard back

    def _start(self):
        remote = self.cluster.ray.remote(ShardActor)
        gpus = 1 if self.work.device == "cuda" else 0
        return remote.options(num_cpus=1, num_gpus=gpus, max_restarts=0).remote(self.work)

    def _send(self, actor, attempt: _Attempt):
        task = attempt.task
        return actor.make_shard.remote(
            task.split,
            task.index,
            str(attempt.staged),
            str(attempt.counter),
            str(self.ledger.streams(task.split, task.index)),
            self._given_up.get(task),
        )

    def _attempt(self, task: Task) -> _Attempt:
        staged = self.ledger.stage(self.ledger.shard_name(task.split, task.index))
        return _Attempt(task, staged, staged.with_name(staged.name + ".count"))

    def _died(self, attempt: _Attempt | None, error: Exception, tries, waiting) -> None:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if attempt is not None:
            late = attempt.since == float("inf")
            if not late:
                attempt.look()
            if attempt.at >= 0:
                self._suspect(attempt, late, reason, waiting)
                return
            self._again(attempt, f"its actor died ({reason})", tries, waiting)
            return
        # It died before it was given anything: count that too, or a broken machine spins forever.
        starts = tries[None] = tries.get(None, 0) + 1
        if starts >= ATTEMPTS:
            raise JobError(f"actors die as they start: {reason}")

    def _suspect(self, attempt: _Attempt, late: bool, reason: str, waiting) -> None:
        """Note that an actor died at a record, and give the record up if it is not the first."""
        task, record = attempt.task, attempt.at
        deaths = self._suspects[task, record] = self._suspects.get((task, record), 0) + 1
        self._remove(attempt)
        name = self.ledger.shard_name(task.split, task.index)
        what = (
            f"takes longer than {self.patience:g} s" if late else "ends the process that makes it"
        )
        if deaths >= ATTEMPTS:
            # No word on how the process died: the same record must give the same ledger.
            self._given_up.setdefault(task, {})[record] = f"{what}, {ATTEMPTS} times"
            self.say(f"shard {name}: record {record} {what}; it is given up ({reason})")
        else:
            self.say(
                f"shard {name}: record {record} {what} ({reason}); trying again "
                f"({deaths + 1} of {ATTEMPTS})"
            )
        waiting.appendleft(task)

    def _remove(self, attempt: _Attempt) -> None:
        shutil.rmtree(attempt.staged, ignore_errors=True)
        attempt.counter.unlink(missing_ok=True)
        Path(f"{attempt.counter}.at").unlink(missing_ok=True)

    def _again(self, attempt: _Attempt, text: str, tries, waiting) -> None:
        self._remove(attempt)
        task = attempt.task
        tries[task] = tries.get(task, 0) + 1
        name = self.ledger.shard_name(task.split, task.index)
        if tries[task] >= ATTEMPTS:
            raise JobError(
                f"shard {name} failed {ATTEMPTS} times, last: {text}; what is done is kept: "
                "run the same command to go on from here"
            )
        self.say(f"shard {name}: {text}; trying again ({tries[task] + 1} of {ATTEMPTS})")
        waiting.appendleft(task)

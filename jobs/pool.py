"""The Ray side of a job: actors that make shards, and what happens when one dies or hangs.

What follows from which failure is written down in `failures`; the counting is in `suspicion`.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import board
from .actor import Outcome, ShardActor
from .board import WRITING, Said
from .cluster import Cluster
from .events import EventLog
from .failures import ATTEMPTS, HITS, IDLE, IDLE_SECONDS
from .ledger import Ledger
from .output import JobError
from .storage import FolderStorage
from .suspicion import Suspicion
from .work import Work

_POLL = 0.5  # seconds
_REMOTE_POLL = 3.0  # seconds between two looks at a board in an object store
_PATIENCE = 60.0  # seconds without any actor before the user is told that the cluster is busy
_ROOM = 30.0  # seconds between two looks at how large the cluster is
_LOADING = 3600.0  # seconds until the first record is begun
_GONE = 5.0  # seconds for an actor that was killed to be seen dead; then it counts as dead


@dataclass(frozen=True)
class Task:
    """One shard to make: its split, its index, and the episodes expected of it."""

    split: str
    index: int
    episodes: int


@dataclass
class _Attempt:
    """A shard, or one record of it, at an actor.

    Attributes:
        record: the one that is tried alone, or None where the shard is made.
        said: what stood on its board last; since: when each (step, record) was first seen there;
            moved: when it last showed life. All by our own clock.
        killed: why it was killed, "late" or "silent", and when; "" while it was not. slow: the
            records that were late.
    """

    task: Task
    staged: str
    record: int | None = None
    said: Said = field(default_factory=Said)
    since: dict[tuple[str, int], float] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    moved: float = field(default_factory=time.monotonic)
    looked: float = 0.0
    killed: str = ""
    slow: list[int] = field(default_factory=list)
    killed_at: float = 0.0

    def look(self, store) -> None:
        """See what it says of itself now."""
        now = self.looked = time.monotonic()
        said = board.look(store, self.staged)
        if said is None or said == self.said:
            return
        self.said, self.moved = said, now
        self.since = {place: self.since.get(place, now) for place in said.at}

    def late(self, patience: float) -> list[int]:
        """The records that it has been reading or making for longer than that.

        What is being written has been made: a disk that takes its time is not the record's doing.
        """
        now = time.monotonic()
        return [
            record
            for (step, record), since in self.since.items()
            if step != WRITING and now - since > patience
        ]

    def stuck(self) -> bool:
        """Whether it has not come to its first record for far too long."""
        return not (self.said.at or self.said.made) and time.monotonic() - self.began > _LOADING


@dataclass
class ActorPool:
    """Gives shards to actors and hands back what they made.

    Attributes:
        count: actors to hold at most.
        say: prints a line for the user.
        patience: seconds that a record may take; its actor is killed then.
        lease: seconds that an actor may show no life; its shard is given to another then.
        share: of a GPU that an actor takes.
        again: shards may have been published before; see ShardActor.make_shard.
        room: says anew how many actors may be held, since nodes come and go; None: `count`, always.
        made: episodes that shards not yet published have, as far as their actors said. kept: those
            of all shards so far that an earlier run had made.
    """

    cluster: Cluster
    work: Work
    count: int
    ledger: Ledger
    say: Callable[[str], None]
    patience: float = float("inf")
    lease: float = float("inf")
    share: float = 1.0
    again: bool = False
    room: Callable[[], int] | None = None
    events: EventLog = field(default_factory=lambda: EventLog.open(None))
    made: int = 0
    kept: int = 0
    _kept_before: int = 0
    _suspicion: Suspicion = field(default_factory=Suspicion)
    _started: int = 0
    _idle: int = 0  # actors that died since something was made last, at _moved
    _moved: float = field(default_factory=time.monotonic)
    _batch: int | None = None

    def run(
        self, tasks: Sequence[Task], tick: Callable[[], None]
    ) -> Iterator[tuple[Task, Outcome, str]]:
        """Make every task; yields (task, its outcome, its staged folder) in the order of finishing.

        Outcomes of kind "failed" are tried again in a new process, as are shards whose actor died
        or took too long. Records that such an actor was at are tried alone first; see `failures`.

        Args:
            tick: called about twice a second.

        Raises:
            JobError: a shard failed `ATTEMPTS` times, or actors die without end.
        """
        from ray.exceptions import RayError

        ray = self.cluster.ray
        waiting = deque(tasks)
        tries: dict[Task, int] = {}
        flying: dict[Any, tuple[Any, _Attempt | None]] = {}  # ref -> actor, None = starting
        since, told, seen = time.monotonic(), False, False
        asked = since
        self._moved = time.monotonic()
        try:
            while waiting or any(attempt for _, attempt in flying.values()):
                if self.room is not None and time.monotonic() - asked > _ROOM:
                    self.count, asked = max(1, self.room()), time.monotonic()
                working = sum(attempt is not None for _, attempt in flying.values())
                while len(flying) < min(self.count, working + len(waiting)):
                    actor = self._start()
                    flying[actor.about.remote()] = (actor, None)
                ready, _ = ray.wait(list(flying), num_returns=1, timeout=_POLL)
                for ref in self._watch(ray, flying):
                    if ref not in ready:
                        ready.append(ref)
                tick()
                self.cluster.check()
                if not (ready or seen or told) and time.monotonic() - since > _PATIENCE:
                    self.say(f"still waiting for the first of {self.count} actors to start")
                    told = True
                for ref in ready:
                    actor, attempt = flying.pop(ref)
                    try:
                        if attempt is not None and attempt.killed:
                            raise RayError(f"it was killed ({attempt.killed})")
                        value = ray.get(ref)
                    except RayError as error:
                        self._died(attempt, error, waiting)
                        continue
                    seen = True
                    if attempt is not None and value.kind in ("failed", "lost"):
                        # A process in an unknown state (a broken CUDA context, ...).
                        ray.kill(actor)
                        print(value.trace, file=sys.stderr, end="")
                        self._again(attempt, value.text, tries, waiting)
                        continue
                    if attempt is not None and attempt.record is not None:
                        self._tried(attempt, value, waiting)
                        if value.kind in ("tried", "harm"):
                            attempt = None
                    if waiting:  # before the yield: the actor works on while its shard is published
                        following = self._attempt(waiting.popleft())
                        flying[self._send(actor, following)] = (actor, following)
                    if attempt is not None:
                        self._progress(value)
                        self._kept_before += attempt.said.kept
                        if text := value.facts.get("takeover"):
                            self.say(f"shard {self._name(attempt.task)}: {text}")
                        self._suspicion.forget(attempt.task)
                        yield attempt.task, value, attempt.staged
        finally:
            for actor, _ in flying.values():
                with contextlib.suppress(Exception):
                    ray.kill(actor)

    # -- what is under way -----------------------------------------------------------------------

    def _watch(self, ray, flying) -> list:
        """Look at every attempt; kill what hangs. Returns the refs that count as dead by now."""
        now, dead = time.monotonic(), []
        pause = 0.0 if isinstance(self.ledger.store, FolderStorage) else _REMOTE_POLL
        self.made, self.kept = 0, self._kept_before
        for ref, (actor, attempt) in flying.items():
            if attempt is None:
                continue
            if attempt.killed:
                # A process that is stopped, or on a machine that is gone, may never be seen to die.
                if now - attempt.killed_at > _GONE:
                    dead.append(ref)
                continue
            before = attempt.said.made
            if now - attempt.looked >= pause:
                attempt.look(self.ledger.store)
            if attempt.said.made > before:
                self._progressed()
            self.made += attempt.said.made
            self.kept += attempt.said.kept
            attempt.slow = attempt.late(self.patience)
            if attempt.slow:
                self._kill(ray, actor, attempt, "late")
            elif now - attempt.moved > self.lease or attempt.stuck():
                self._kill(ray, actor, attempt, "silent")
        return dead

    def _kill(self, ray, actor, attempt: _Attempt, why: str) -> None:
        name = self._name(attempt.task)
        if why == "late":
            at = ", ".join(map(str, attempt.slow))
            self.say(f"shard {name}: record {at} takes too long; its actor is killed")
        else:
            self.say(f"shard {name}: its actor shows no life; it is killed and another takes over")
        attempt.killed, attempt.killed_at = why, time.monotonic()
        # First, so that nothing it does from here on can be taken for work that is wanted.
        self.ledger.store.remove(f"{attempt.staged}.grant")
        with contextlib.suppress(Exception):
            ray.kill(actor)

    def _start(self):
        self._started += 1
        self.events.write("actor_started", actor=self._started)
        remote = self.cluster.ray.remote(ShardActor)
        gpus = self.share if self.work.device == "cuda" else 0
        return remote.options(num_cpus=1, num_gpus=gpus, max_restarts=0).remote(self.work)

    def _attempt(self, task: Task) -> _Attempt:
        record = self._suspicion.next_suspect(task)
        return _Attempt(task, self.ledger.grant(task.split, task.index), record)

    def _send(self, actor, attempt: _Attempt):
        task, streams = attempt.task, self.ledger.streams(attempt.task.split, attempt.task.index)
        if attempt.record is not None:
            return actor.try_record.remote(
                task.split, task.index, attempt.record, attempt.staged, streams
            )
        self.events.write("shard_started", shard=self._name(task))
        given_up = self._suspicion.given_up(task)
        return actor.make_shard.remote(
            task.split, task.index, attempt.staged, streams, given_up, self.again
        )

    def _name(self, task: Task) -> str:
        return self.ledger.shard_name(task.split, task.index)

    def _progressed(self) -> None:
        self._idle, self._moved = 0, time.monotonic()

    def _progress(self, value: Outcome) -> None:
        self._progressed()
        batch = value.facts.get("batch")
        if batch is not None and batch != self._batch:
            self._batch = batch
            self.say(f"a GPU's memory was too small: batches of {batch} timesteps from here on")
            self.events.write("batch_halved", batch=batch)

    # -- what went wrong -------------------------------------------------------------------------

    def _died(self, attempt: _Attempt | None, error: Exception, waiting) -> None:
        """An actor died, or was killed: see which records it was at, and give the shard back."""
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        self._idle += 1
        self.events.write("actor_died", reason=reason)
        if attempt is not None:
            if not attempt.killed:
                attempt.look(self.ledger.store)
            if attempt.record is not None:
                self._harm_or_bad_luck(attempt, reason)
            else:
                self._suspect(attempt, reason)
            self.ledger.revoke(attempt.staged)
            waiting.appendleft(attempt.task)
        broken = "in its creation task" in str(error)  # raised by our own code, and will be again
        if broken and self._idle >= ATTEMPTS:
            raise JobError(f"actors cannot start: {error}")
        if self._idle >= IDLE and time.monotonic() - self._moved > IDLE_SECONDS:
            raise JobError(
                f"{IDLE} actors died one after the other and not one episode was made, last: "
                f"{reason}; what is done is kept: run the same command to go on from here"
            )

    def _suspect(self, attempt: _Attempt, reason: str) -> None:
        """Of an actor that made a shard."""
        task, records = attempt.task, attempt.said.records
        fault = ""
        crashed = bool(self.ledger.store.size(f"{attempt.staged}.fault"))
        if attempt.killed == "late":
            records, fault = attempt.slow, f"takes longer than {self.patience:g} s"
        elif crashed and len(records) == 1:
            fault = "ends the process that makes it"
        name = self._name(task)
        if not records:
            self.say(f"shard {name}: its actor died ({reason}); making it again")
        self.events.write("retried", shard=name, reason=reason, records=records)
        for record in records:
            if self._suspicion.note(task, record) >= IDLE:
                raise JobError(
                    f"shard {name}: {IDLE} actors died at record {record}, which does no harm when "
                    f"it is made alone, last: {reason}; what is done is kept"
                )
            if self.ledger.kept(task.split, task.index, record):
                continue  # it was being written, and has been made
            if fault:
                self._suspicion.suspect(task, record)
                self._blame(task, record, fault, reason)
            elif crashed or self._suspicion.times(task, record) >= HITS:
                self._suspicion.suspect(task, record)
                self.say(
                    f"shard {name}: its actor died at record {record} ({reason}), which is tried "
                    "alone"
                )
                self.events.write("suspect", shard=name, record=record)
            else:  # most deaths are nobody's doing, and a trial costs a process its loading
                self.say(f"shard {name}: its actor died at record {record} ({reason}); again")

    def _harm_or_bad_luck(self, attempt: _Attempt, reason: str) -> None:
        """Of an actor whose child made a suspect: only its being late is the record's doing."""
        assert attempt.record is not None
        if attempt.killed == "late":
            fault = f"takes longer than {self.patience:g} s"
            self._blame(attempt.task, attempt.record, fault, reason)
        else:
            self._suspicion.postpone(attempt.task)

    def _tried(self, attempt: _Attempt, value: Outcome, waiting) -> None:
        """A suspect was tried alone, and its actor lives."""
        assert attempt.record is not None
        if value.kind == "tried":
            self._progressed()
            self._suspicion.acquit(attempt.task, attempt.record)
        elif value.kind == "harm":
            self._progressed()  # it was the record's doing, which is known by one more time now
            fault = "ends the process that makes it"
            self._blame(attempt.task, attempt.record, fault, value.text)
        else:
            return  # the driver's matter: disk, refused
        self.ledger.revoke(attempt.staged)
        waiting.appendleft(attempt.task)

    def _blame(self, task: Task, record: int, fault: str, reason: str) -> None:
        name = self._name(task)
        count = self._suspicion.blame(task, record, fault)
        if count >= ATTEMPTS:
            self.say(f"shard {name}: record {record} {fault}; it is given up ({reason})")
            self.events.write("given_up", shard=name, record=record, reason=fault)
        else:
            self.say(
                f"shard {name}: record {record} {fault}; trying it alone ({count + 1} of "
                f"{ATTEMPTS})"
            )
            self.events.write("suspect", shard=name, record=record, reason=fault, blamed=count)

    def _again(self, attempt: _Attempt, text: str, tries: dict[Task, int], waiting) -> None:
        """A shard failed without its actor's death."""
        self.ledger.revoke(attempt.staged)
        task = attempt.task
        tries[task] = tries.get(task, 0) + 1
        name = self._name(task)
        if tries[task] >= ATTEMPTS:
            raise JobError(
                f"shard {name} failed {ATTEMPTS} times, last: {text}; what is done is kept: "
                "run the same command to go on from here"
            )
        self.say(f"shard {name}: {text}; trying again ({tries[task] + 1} of {ATTEMPTS})")
        self.events.write("retried", shard=name, reason=text, attempt=tries[task] + 1)
        waiting.appendleft(task)

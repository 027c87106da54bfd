"""The job with faults built in: what the scenarios start in the place of `wristaugment`.

    python -P job.py FAULTS run --data-dir ...

FAULTS is JSON; everything in it may be left out:

    sleep     seconds that each episode takes; the model sleeps instead of computing
    jitter    up to so many seconds more, drawn anew each time
    gather    an episode goes on once so many processes are in the log (or after a minute)
    at        {"SHARD/RECORD": "segfault", "abort", "sleep" or "busy"}: what happens there. "busy"
              is a call in C that never returns and holds the GIL
    log       a file that gets a line "SECONDS PID SHARD/RECORD" as an episode begins, by the
              machine's monotonic clock
    ray       false: shards are made in this process, as an actor would, without the seconds that a
              cluster takes to start
    file_limit  bytes that a file may have (RLIMIT_FSIZE)
"""

from __future__ import annotations

import json
import resource
import sys
from types import SimpleNamespace

from wristaugment.jobs import cli
from wristaugment.jobs import job as jobs
from wristaugment.jobs.actor import ShardActor
from wristaugment.jobs.output import DiskError
from wristaugment.jobs.work import Work

FAULTS: dict = json.loads(sys.argv[1])


class Model:
    """The plain recipe's grey frames, with what FAULTS asks for before each episode."""

    # A name of its own: what the plain recipe makes is not worth keeping, and is not kept.
    recipe = SimpleNamespace(generator="chaos")

    def __init__(self, inner, faults: dict):
        self.inner, self.faults = inner, faults

    def __call__(self, episode, **how):
        import os
        import random
        import time

        faults, place = self.faults, f"{episode.record.shard}/{episode.record.index}"
        if log := faults.get("log"):
            with open(log, "ab", buffering=0) as file:  # appended in one piece
                file.write(f"{time.monotonic():.6f} {os.getpid()} {place}\n".encode())
            gather(log, faults.get("gather", 0))
        harm = faults.get("at", {}).get(place)
        if harm == "segfault":
            import ctypes

            ctypes.string_at(0)
        elif harm == "abort":
            os.abort()
        elif harm == "sleep":
            time.sleep(100_000)
        elif harm == "busy":
            import re

            re.match("(a+)+$", "a" * 200 + "b")  # 2^200 ways to go
        pause = faults.get("sleep", 0.0) + random.random() * faults.get("jitter", 0.0)
        if pause:
            time.sleep(pause)
        return self.inner(episode, **how)


def gather(log: str, count: int) -> None:
    """Wait until the log names `count` processes, a minute at the most."""
    import time
    from pathlib import Path

    until = time.monotonic() + 60
    while time.monotonic() < until:
        if len({line.split()[1] for line in Path(log).read_text().splitlines()}) >= count:
            return
        time.sleep(0.05)


class ChaosWork(Work):
    """Work whose model is `Model`. Of this program's __main__, so that it travels by value."""

    def open_augmenter(self):
        return Model(super().open_augmenter(), FAULTS)


def made_here(job, args, pending, resumed, say):
    """What `jobs.run` has actors do, done in this process: same actor object, same ledger."""
    actor = ShardActor(job.work)
    for task in pending:
        staged = job.ledger.grant(task.split, task.index)
        streams = job.ledger.streams(task.split, task.index)
        outcome = actor.make_shard(task.split, task.index, staged, streams)
        if outcome.kind == "disk":
            raise DiskError(outcome.text)
        assert outcome.kind == "done", outcome
        job.ledger.publish(task.split, task.index, staged, job.plan["place"], outcome.entry)
        yield task, outcome.entry


if __name__ == "__main__":
    jobs.Work = ChaosWork
    if not FAULTS.get("ray", True):
        from wristaugment.jobs import run

        run._made = made_here
    if limit := FAULTS.get("file_limit"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.exit(cli.main(sys.argv[2:]))

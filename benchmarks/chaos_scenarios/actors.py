"""Harm to actors: killed every few seconds, killed at one record, a node gone, segfaults, order."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from .kills import bad, figures, note
from .kit import (
    Expected,
    Lab,
    Run,
    Stuck,
    actors,
    alive,
    begun,
    below,
    manifest,
    parent,
    published,
    title,
    tree,
    tree_sha256,
    wait_for,
)
from .source import episodes_of, name

_CLUSTER = Path(__file__).with_name("cluster.py")
LOCAL_ONLY = {"RAY_AUTH_MODE": "disabled"}  # a cluster of this machine alone asks for no token


def killed_every_few_seconds(lab: Lab) -> dict:
    """One of two actors is killed every few seconds until the job is done.

    A few are one to two times what an actor takes to start here, so that on a busy machine, too,
    actors do get to work between kills.
    """
    rng = random.Random(2)
    expected = Expected.of(lab, lab.source(8, 15))
    totals: Counter[str] = Counter()
    pauses = [_kill_all_the_time(lab, expected, rng, totals) for _ in range(1 if lab.quick else 4)]
    return {
        "ok": not bad(totals) and not totals["quarantined"] and totals["kills"] >= 5,
        "kills": totals["kills"],
        "seconds_between_them": pauses,
        "quarantined": totals["quarantined"],
        **figures(totals),
        "tree_sha256": tree_sha256(expected.whole),
    }


def _kill_all_the_time(lab: Lab, expected: Expected, rng, totals: Counter[str]) -> float:
    """Kill actors of one job until it has ended; returns the mean seconds between kills."""
    out, log = lab.place("out"), lab.place("log")
    faults = {"sleep": 0.25, "log": str(log)}
    run = lab.job(expected.source.args(out, "--num-actors", "2"), faults)
    wait_for(lambda: actors(run.process.pid), "an actor", run=run)
    start = time.monotonic()
    wait_for(lambda: begun(log), "a first episode", run=run)
    pause = max(1.0, time.monotonic() - start)
    began, before = time.monotonic(), totals["kills"]
    while not run.ended:
        _wait(run, pause * rng.uniform(1, 2))
        if found := actors(run.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(rng.choice(found), signal.SIGKILL)
                totals["kills"] += 1
    finished(run, out, expected, totals)
    return round((time.monotonic() - began) / max(1, totals["kills"] - before), 1)


def killed_at_one_record(lab: Lab) -> dict:
    """By bad luck the actor is killed five times just when it is at one and the same record."""
    expected = Expected.of(lab, lab.source(3, 5))
    totals: Counter[str] = Counter()
    hit_again(lab, expected, "1/2", 5, totals)
    return {
        "ok": not bad(totals) and not totals["quarantined"] and totals["kills"] == 5,
        "kills_at_the_record": totals["kills"],
        "quarantined": totals["quarantined"],
        **figures(totals),
    }


def hit_again(lab: Lab, expected: Expected, place: str, times: int, totals: Counter[str]) -> None:
    """Kill whichever actor is at the record `place`, so many times in one job."""
    out, log = lab.place("out"), lab.place("log")
    args = expected.source.args(out, "--num-actors", "2")
    run = lab.job(args, {"sleep": 0.6, "log": str(log)})
    killed: set[int] = set()
    while not run.ended and len(killed) < times:
        for row in begun(log):
            # Where a process of its own tries the record, it is that one's actor that is hit.
            pid = _actor_of(row.pid) if row.place == place and alive(row.pid) else 0
            if pid and pid not in killed:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.add(pid)
        time.sleep(0.01)
    totals["kills"] += len(killed)
    finished(run, out, expected, totals)


def _actor_of(pid: int) -> int:
    """The actor that a process is, or works for; 0 where it has none."""
    while pid > 1:
        if title(pid).startswith("ray::ShardActor"):
            return pid
        pid = parent(pid)
    return 0


def node_removed(lab: Lab) -> dict:
    """A cluster of two nodes loses one, with two of the job's three actors, in the middle."""
    expected = Expected.of(lab, lab.source(12, 5))
    totals: Counter[str] = Counter()
    turns = 1 if lab.quick else 3
    seconds = [_lose_a_node(lab, expected, turn + 1, totals) for turn in range(turns)]
    return {
        "ok": not bad(totals) and not totals["quarantined"] and totals["lost actors"] == 2 * turns,
        "nodes_removed": turns,
        "actors_lost_with_them": totals["lost actors"],
        "seconds_from_there_to_the_end": seconds,
        "quarantined": totals["quarantined"],
        **figures(totals),
    }


def _lose_a_node(lab: Lab, expected: Expected, shards: int, totals: Counter[str]) -> float:
    """Remove a node once so many shards are there; returns the seconds from then to the end."""
    with two_nodes(lab, 1, 2) as (cluster, address, other):
        out, log = lab.place("out"), lab.place("log")
        args = expected.source.args(out, "--num-actors", "3", "--address", address)
        run = lab.job(args, {"sleep": 0.2, "log": str(log)}, env=LOCAL_ONLY)
        there = lambda: [p for p in _pids(log) if set(ancestors(p)) & set(other)]
        wait_for(lambda: len(there()) == 2, "two actors on the other node", run=run)
        wait_for(lambda: published(out) >= shards, "a shard", run=run)
        totals["lost actors"] += len(there())
        gone = time.monotonic()
        assert cluster.process.stdin is not None
        cluster.process.stdin.write(b"remove\n")
        cluster.process.stdin.flush()
        wait_for(lambda: "removed" in cluster.text(), "the node's removal", run=cluster)
        finished(run, out, expected, totals)
        return round(time.monotonic() - gone, 1)


def _pids(log: Path) -> set[int]:
    return {row.pid for row in begun(log) if alive(row.pid)}


def ancestors(pid: int) -> list[int]:
    """The processes above one, the nearest first."""
    found = []
    while (pid := parent(pid)) > 1:
        found.append(pid)
    return found


@contextlib.contextmanager
def two_nodes(lab: Lab, head: int, other: int):
    """A cluster of two nodes with so many CPUs; yields (it, its address, the other's processes)."""
    line = [sys.executable, "-P", str(_CLUSTER), str(head), str(other)]
    cluster = lab.start(line, **LOCAL_ONLY)
    try:
        wait_for(lambda: '"address"' in cluster.text(), "a cluster", run=cluster)
        lines = cluster.text().splitlines()
        found = json.loads(next(line for line in lines if line.startswith('{"address"')))
        yield cluster, found["address"], found["other"]
    finally:
        family = below(cluster.process.pid)
        cluster.kill()
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def segfault(lab: Lab) -> dict:
    """One record of a thousand ends the process that makes it, by a real segmentation fault."""
    source = lab.source(10, 100, steps=2)
    out, log = lab.place("out"), lab.place("log")
    args = source.args(out, "--num-actors", "2")
    run = lab.done(args, {"at": {"4/37": "segfault"}, "log": str(log)}, code=3)
    listed = manifest(out)["bad"]
    there, valid = episodes_of(out)
    expected = source.names
    wrong = set(expected) - valid
    times = Counter(row.place for row in begun(log))
    more = sum(count - 1 for place, count in times.items() if place != "4/37")
    return {
        "ok": there == expected and wrong == {name(4, 37)} and len(listed) == 1,
        "records": len(there),
        "quarantined": len(listed),
        "good": len(valid),
        "what_is_said": listed[0]["found"] if listed else run.tail(),
        "times_it_was_tried": times["4/37"],
        "others_made_again": more,
    }


def any_number_and_order(lab: Lab) -> dict:
    """One actor against eight that finish in another order each time."""
    expected = Expected.of(lab, lab.source(16, 4))
    totals: Counter[str] = Counter()
    orders = {in_any_order(lab, expected, 8, totals) for _ in range(1 if lab.quick else 8)}
    return {
        "ok": not bad(totals) and totals["most actors"] == 8 and len(orders) == totals["trees"],
        "trees": totals["trees"],
        "different_orders": len(orders),
        "actors_that_worked": totals["most actors"],
        **figures(totals),
        "tree_sha256": tree_sha256(expected.whole),
    }


def in_any_order(lab: Lab, expected: Expected, count: int, totals: Counter[str]) -> tuple[str, ...]:
    """A job with so many actors, whose episodes take as long as chance has it; their order.

    None goes on with its first episode before all have one: on a busy machine the last to start
    would find the work of the others done.
    """
    out, log = lab.place("out"), lab.place("log")
    args = expected.source.args(out, "--num-actors", str(count))
    run = lab.job(args, {"jitter": 0.4, "log": str(log), "gather": count})
    finished(run, out, expected, totals)
    rows = begun(log)
    totals["most actors"] = max(totals["most actors"], len({row.pid for row in rows}))
    return tuple(row.place for row in rows)


def finished(run: Run, out: Path, expected: Expected, totals: Counter[str]) -> None:
    """Wait for the end of a job that must have made everything, and note what it left.

    Raises:
        Stuck: it ended with another exit code than 0 or 3, or not at all.
    """
    code = run.wait()
    if code == 3:
        totals["quarantined"] += len(manifest(out)["bad"])
        totals["unequal trees"] += tree(out) != expected.whole
    elif code:
        raise Stuck(f"exit code {code}: {run.tail()}")
    else:
        note(expected, out, totals)


def _wait(run: Run, seconds: float) -> None:
    with contextlib.suppress(Exception):
        run.process.wait(seconds)

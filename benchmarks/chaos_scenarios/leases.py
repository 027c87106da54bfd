"""Two that believe a shard or an --out is theirs: a stopped actor comes back; two drivers."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from pathlib import Path

from .actors import LOCAL_ONLY, ancestors, finished, two_nodes
from .kills import bad, figures, note
from .kit import (
    Begun,
    Expected,
    Lab,
    Run,
    Stuck,
    alive,
    begun,
    below,
    published,
    tree_sha256,
    wait_for,
)

_LEASE = 4.0  # seconds
_AFTERWARDS = 8.0  # seconds that a process which was let go on has to do harm


def stopped_actor(lab: Lab) -> dict:
    """An actor is stopped for longer than its lease; another makes its shard; it goes on.

    First the actor alone, which the job then finds and ends. Then a whole node: whatever would end
    its actors is stopped too, so that they come back to life and find their shards made by others:
    while the job still runs, and after its end.
    """
    expected = Expected.of(lab, lab.source(6 if lab.quick else 8, 5))
    totals: Counter[str] = Counter()
    one_actor(lab, expected, totals)
    for after in (False,) if lab.quick else (False, True, False, True):
        _whole_node(lab, expected, totals, after=after)
    return {
        "ok": not bad(totals) and not totals["quarantined"] and not totals["published late"],
        "actors_stopped": totals["stopped"],
        "alive_when_they_were_let_go_on": totals["came back"],
        "files_that_they_touched": totals["published late"],
        "quarantined": totals["quarantined"],
        **figures(totals),
        "tree_sha256": tree_sha256(expected.whole),
    }


def one_actor(lab: Lab, expected: Expected, totals: Counter[str]) -> None:
    """Stop one of two actors past its lease, until its shard is made by another."""
    out, log = lab.place("out"), lab.place("log")
    args = expected.source.args(out, "--num-actors", "2", "--lease", f"{_LEASE:g}")
    run = lab.job(args, {"sleep": 0.5, "log": str(log)})
    wait_for(lambda: published(out) and begun(log), "a first shard", run=run)
    victim = begun(log)[-1]
    stop([victim.pid], totals)
    # Another that finds all its episodes kept makes none, and so does not show in the log.
    wait_for(lambda: run.ended or _recorded(out, victim), "its shard, made by another", run=run)
    _go_on([victim.pid], out, totals, seconds=0.0)
    finished(run, out, expected, totals)


def _whole_node(lab: Lab, expected: Expected, totals: Counter[str], *, after: bool) -> None:
    out, log = lab.place("out"), lab.place("log")
    with two_nodes(lab, 2, 1) as (_, address, other):
        more = ("--num-actors", "3", "--address", address, "--lease", f"{_LEASE:g}")
        run = lab.job(
            expected.source.args(out, *more), {"sleep": 0.5, "log": str(log)}, env=LOCAL_ONLY
        )
        there = lambda: [
            row for row in begun(log) if alive(row.pid) and set(ancestors(row.pid)) & set(other)
        ]
        wait_for(there, "an actor on the other node", run=run)
        victim = there()[-1]
        family = sorted({*other, *(child for pid in other for child in below(pid))})
        stop(family, totals, counting=[victim.pid])
        wait_for(lambda: _another(log, victim), "another actor at its shard", run=run)
        wait_for(lambda: _recorded(out, victim), "its shard", run=run)
        if after:
            finished(run, out, expected, totals)
        _go_on(family, out, totals, seconds=_AFTERWARDS if after else 0.0, counting=[victim.pid])
        if not after:
            finished(run, out, expected, totals)
            time.sleep(_AFTERWARDS)
        note(expected, out, totals)  # again, after all that they could do


def stop(pids: list[int], totals: Counter[str], counting: list[int] | None = None) -> None:
    """SIGSTOP processes; `counting` are those of them that are actors (default: all)."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    totals["stopped"] += len(pids if counting is None else counting)


def _go_on(pids, out: Path, totals, *, seconds: float, counting=None) -> None:
    """SIGCONT processes; what is published must stay the very same files."""
    before = _published_files(out)
    totals["came back"] += sum(alive(pid) for pid in counting or pids)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    time.sleep(seconds or 2.0)
    now = _published_files(out)
    totals["published late"] += sum(now.get(path) != mark for path, mark in before.items())


def _published_files(out: Path) -> dict[Path, tuple[int, int]]:
    """The shards that are in their place: which file it is and when it was written."""
    found = {}
    for path in [*out.glob("chaos/1.0.0/*tfrecord*"), *out.glob(".wristaugment/shards/*")]:
        with contextlib.suppress(FileNotFoundError):
            found[path] = (path.stat().st_ino, path.stat().st_mtime_ns)
    return found


def _another(log: Path, victim: Begun) -> bool:
    """Whether another process than the victim's has begun an episode of its shard since."""
    shard = victim.place.split("/")[0]
    return any(
        row.place.split("/")[0] == shard and row.pid != victim.pid and row.time > victim.time
        for row in begun(log)
    )


def _recorded(out: Path, victim: Begun) -> bool:
    shard = int(victim.place.split("/")[0])
    return (out / ".wristaugment" / "shards" / f"train-{shard:05d}.json").exists()


def two_drivers(lab: Lab) -> dict:
    """Two drivers on one --out: the second while the first works, and both at the same instant."""
    expected = Expected.of(lab, lab.source(6, 5))
    totals: Counter[str] = Counter()
    said = Counter()
    for at_once in (True,) if lab.quick else (False, *[True] * 8):
        out = lab.place("out")
        args = expected.source.args(out, "--num-actors", "2")
        # Long enough that the second is there before the first has ended.
        first = lab.job(args, {"sleep": 0.4})
        if not at_once:
            wait_for(lambda n=out: published(n), "a first shard", run=first)
        second = lab.job(args, {"sleep": 0.4})
        codes = sorted((first.wait(), second.wait()))
        if codes != [0, 2]:
            raise Stuck(f"exit codes {codes}: {first.tail()}; {second.tail()}")
        loser: Run = first if first.process.returncode == 2 else second
        said["another run is writing here" in loser.text()] += 1
        if not at_once and loser is first:
            raise Stuck("the first driver was refused")
        note(expected, out, totals)
    return {
        "ok": not bad(totals) and not said[False],
        "pairs_of_drivers": totals["trees"],
        "refused_with_exit_code_2": said[True],
        **figures(totals),
    }

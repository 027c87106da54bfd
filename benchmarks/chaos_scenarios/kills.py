"""kill -9 of the driver: at every point of the commit path, and at random times."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from pathlib import Path

from wristaugment.jobs.ledger import CRASH_POINTS

from .kit import Expected, Lab, Run, Stuck, complete, published, staged, tree_sha256, wait_for

SHARDS, EPISODES = 8, 5
_EACH_SHARD = ("staged", "renamed", "recorded")  # points that every shard passes


def at_points(lab: Lab) -> dict:
    """The driver dies at every named point, and at those of each shard; the job is run again.

    With Ray the driver dies alone and the job is run again at once, so that its actors live on for
    a moment beside those of the new driver; the short form takes three of the points. Without Ray
    every shard's passing of a point counts.
    """
    expected = Expected.of(lab, lab.source(SHARDS, EPISODES))
    totals: Counter[str] = Counter()
    late = []

    def kill(point: str, *, ray: bool) -> None:
        out = lab.place("out")
        args = expected.source.args(out, "--num-actors", "2")
        run = lab.job(args, {"ray": ray}, crash=point)
        code = run.wait()
        if code != -signal.SIGKILL:
            raise Stuck(f"exit code {code} and no crash at {point}: {run.tail()}")
        if complete(out) and not staged_left(out):
            late.append(point)
        lab.done(args, {"ray": ray})
        totals["with Ray" if ray else "without Ray"] += 1
        note(expected, out, totals)

    real = CRASH_POINTS[1::4] if lab.quick else CRASH_POINTS
    for point in real:
        kill(point, ray=True)
    shards = (2, SHARDS) if lab.quick else range(2, SHARDS + 1)
    passing = [f"{point}:{n}" for n in shards for point in _EACH_SHARD if point in CRASH_POINTS]
    for point in [*CRASH_POINTS, *passing]:
        kill(point, ray=False)
    return {
        "ok": not bad(totals) and not late,
        "points": list(CRASH_POINTS),
        "points_with_ray": list(real),
        "kills": totals["with Ray"] + totals["without Ray"],
        "kills_with_ray": totals["with Ray"],
        "kills_without_ray": totals["without Ray"],
        "too_late_to_show_anything": late,
        **figures(totals),
        "tree_sha256": tree_sha256(expected.whole),
    }


def staged_left(out: Path) -> bool:
    """Whether a killed driver has left its staging folder."""
    return (out / ".wristaugment" / "staging").exists()


def at_random(lab: Lab) -> dict:
    """The driver dies at random times, as often as it takes; every tree that comes of it counts.

    With Ray it is the plain command line. In turns its whole process group is killed (as the OOM
    killer of a container and preemption do) and the driver alone, its actors left to find out.
    """
    rng = random.Random(5)
    with_ray, without = (3, 10) if lab.quick else (80, 120)
    source = lab.source(SHARDS, EPISODES)
    expected = Expected.of(lab, source)
    totals: Counter[str] = Counter()
    phases: Counter[str] = Counter()
    for ray, kills in ((True, with_ray), (False, without)):
        _kill_often(lab, expected, rng, kills, ray, totals, phases)
    return {
        "ok": not bad(totals) and totals["with Ray"] + totals["without Ray"] == with_ray + without,
        "kills": totals["with Ray"] + totals["without Ray"],
        "kills_with_ray": totals["with Ray"],
        "of_the_group": totals["group"],
        "of_the_driver_alone": totals["alone"],
        "kills_without_ray": totals["without Ray"],
        "killed_while": dict(phases),
        "trees": totals["trees"],
        **figures(totals),
        "tree_sha256": tree_sha256(expected.whole),
    }


def _kill_often(lab, expected: Expected, rng, kills: int, ray: bool, totals, phases) -> None:
    """Kill jobs until `kills` have died; each tree is driven to its end and compared."""
    # Long enough that kills fall between shards and into them, short enough for many.
    faults = {"ray": ray, "sleep": 0.03 if ray else 0.01}
    out, left = lab.place("out"), kills
    lengths = _lengths(lab, expected, faults)
    while left:
        args = expected.source.args(out, "--num-actors", "2")
        run = lab.job(args, faults)
        _pause(run, out, rng, lengths)
        if run.ended:
            code = run.process.returncode
            if code:
                raise Stuck(f"exit code {code} in place of a kill: {run.tail()}")
            note(expected, out, totals)
            out = lab.place("out")
            continue
        phases[_phase(out)] += 1
        group = not ray or left % 2 == 0
        run.kill(group=group)
        left -= 1
        totals["with Ray" if ray else "without Ray"] += 1
        if ray:
            totals["group" if group else "alone"] += 1
    lab.done(expected.source.args(out, "--num-actors", "2"), faults)
    note(expected, out, totals)


def _lengths(lab: Lab, expected: Expected, faults: dict) -> tuple[float, float]:
    """(seconds until a job is at its first shard, seconds from there to its end)."""
    out = lab.place("out")
    began = time.monotonic()
    run = lab.job(expected.source.args(out, "--num-actors", "2"), faults)
    wait_for(lambda: staged(out), "the first shard", run=run)
    working = time.monotonic()
    if run.wait():
        raise Stuck(f"exit code {run.process.returncode}: {run.tail()}")
    return working - began, time.monotonic() - working


def _pause(run: Run, out: Path, rng: random.Random, lengths: tuple[float, float]) -> None:
    """Wait for a random time: one in four kills falls into the start, the others behind it."""
    start, work = lengths
    if rng.random() < 0.25:
        _wait(run, rng.uniform(0, start))
        return
    until = time.monotonic() + 10 * start + 60
    while not (staged(out) or run.ended or time.monotonic() > until):
        time.sleep(0.002)
    # What is left of the work: the shards that are not recorded, and the end of the job.
    left = 1 - published(out) / SHARDS
    _wait(run, rng.uniform(0, work * (0.3 + 0.7 * left)))


def _wait(run: Run, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and not run.ended:
        time.sleep(0.002)


def _phase(out: Path) -> str:
    """What the driver of `out` is at, as far as the files tell."""
    if complete(out):
        return "it leaves"
    if published(out) == SHARDS:
        return "it finishes"
    if staged(out):
        return "it works"
    return "it starts"


def note(expected: Expected, out: Path, totals: Counter[str]) -> None:
    """Add what is wrong with a finished copy to `totals`."""
    totals["trees"] += 1
    found = expected.look(out)
    totals.update(found)
    totals["unequal trees"] += any(found.values())


def bad(totals: Counter[str]) -> bool:
    """Whether anything was wrong with any tree."""
    return bool(totals["unequal trees"])


def figures(totals: Counter[str]) -> dict[str, int]:
    """What `note` has found, for the report."""
    names = ("lost", "duplicate", "invalid", "leftovers", "differing")
    return {name: totals[name] for name in names} | {"unequal_trees": totals["unequal trees"]}

"""Ten thousand tiny episodes: memory that stays, a rate that doubles with two actors, overhead."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from .kit import Lab, Run, Stuck, rss
from .source import Source, episodes_of

_SHARDS, _EPISODES = 50, 200
_SLEEP = 0.008  # seconds an episode, in the place of a model
_GROWTH, _SPEEDUP, _OVERHEAD = 0.05, 1.8, 0.005  # the bounds; the last in seconds an episode
_THOUSAND, _TURNS = 1000, 3
_EVERY = 0.2  # seconds between two looks at the memory


@dataclass
class Timed:
    """One job as it was watched.

    Attributes:
        seconds: of the whole command.
        starts: when episodes began, in order.
        memory: process -> [(episodes begun until then, bytes)]; the driver is process 0.
    """

    seconds: float = 0.0
    starts: list[float] = field(default_factory=list)
    memory: dict[int, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))

    def steady(self) -> float:
        """Seconds an episode from the first tenth of the episodes to the last."""
        edge = len(self.starts) // 10
        first, last = edge, len(self.starts) - 1 - edge
        return (self.starts[last] - self.starts[first]) / (last - first)

    def whole(self) -> float:
        """Seconds an episode of the whole command, all that starts and ends it included."""
        return self.seconds / len(self.starts)

    def growth(self) -> dict[str, list[float]]:
        """{"driver", "actors": by what share each one's memory grew}.

        Medians while the first thousand and the last thousand episodes were made; the first
        hundred, in which libraries still load, are left out.
        """
        found: dict[str, list[float]] = {"driver": [], "actors": []}
        for pid, rows in self.memory.items():
            early = [size for count, size in rows if 100 < count <= _THOUSAND]
            late = [size for count, size in rows if count > len(self.starts) - _THOUSAND]
            if early and late:
                share = statistics.median(late) / statistics.median(early) - 1
                found["actors" if pid else "driver"].append(round(share, 4))
        return found


def ten_thousand(lab: Lab) -> dict:
    """The same tiny episodes with one actor and with two; one actor makes fewer in the short form.

    The rates leave out the first and the last tenth of the episodes, and with them the start of
    Ray and of the actors, which the figures "with the start" hold. The overhead is what an episode
    of one actor takes less the sleep: all reading, encoding, keeping and publishing. Other work on
    the machine can only make a job slower: where a bound is missed, both are timed again, up to
    three times, and the best of each counts.
    """
    source = lab.source(_SHARDS, _EPISODES, steps=2)
    ones: list[Timed] = []
    twos: list[Timed] = []
    grown: dict[str, list[float]] = {"driver": [], "actors": []}
    speedup = overhead = 0.0
    for _ in range(_TURNS):
        ones.append(_timed(lab, source, 1, 2000 if lab.quick else None))
        twos.append(_timed(lab, source, 2, None))
        for kind, shares in twos[-1].growth().items():
            grown[kind] += shares
        one, two = (min(turns, key=Timed.steady) for turns in (ones, twos))
        speedup, overhead = one.steady() / two.steady(), one.steady() - _SLEEP
        if speedup >= _SPEEDUP and overhead < _OVERHEAD:
            break
    shares = [*grown["driver"], *grown["actors"]]
    return {
        "ok": len(shares) == 3 * len(twos)
        and max(shares) < _GROWTH
        and speedup >= _SPEEDUP
        and overhead < _OVERHEAD,
        "episodes_with_two_actors": len(two.starts),
        "episodes_with_one_actor": len(one.starts),
        "turns": len(twos),
        "memory_growth_of_the_driver": grown["driver"],
        "memory_growth_of_the_actors": grown["actors"],
        "megabytes": {
            "driver" if pid == 0 else f"actor {n}": rows[-1][1] // 2**20
            for n, (pid, rows) in enumerate(two.memory.items())
        },
        "speedup_of_two_actors": round(speedup, 2),
        "speedup_with_the_start": round(one.whole() / two.whole(), 2),
        "overhead_milliseconds": round(1e3 * overhead, 2),
        "sleep_milliseconds": 1e3 * _SLEEP,
        "episodes_a_second": {
            "1 actor": round(1 / one.steady(), 1),
            "2 actors": round(1 / two.steady(), 1),
        },
        "episodes_a_second_with_the_start": {
            "1 actor": round(1 / one.whole(), 1),
            "2 actors": round(1 / two.whole(), 1),
        },
    }


def _timed(lab: Lab, source: Source, actors: int, episodes: int | None) -> Timed:
    """Run a job and watch it."""
    out, log, found = lab.place("out"), lab.place("log"), Timed()
    limit = ["--episodes", str(episodes)] if episodes else []
    began = time.monotonic()
    run = lab.job(
        source.args(out, "--num-actors", str(actors), *limit), {"sleep": _SLEEP, "log": str(log)}
    )
    _watch(run, log, found)
    found.seconds = time.monotonic() - began
    if run.process.returncode:
        raise Stuck(f"exit code {run.process.returncode}: {run.tail()}")
    made, _ = episodes_of(out)
    if len(found.starts) != len(made):
        raise Stuck(f"{len(found.starts)} episodes were begun, {len(made)} made: {run.tail()}")
    return found


def _watch(run: Run, log: Path, found: Timed) -> None:
    """Follow a job's log and its processes' memory until it ends."""
    pids: set[int] = set()
    rest = b""
    position = 0
    ended = False
    while not ended:
        ended = run.ended
        if log.exists():
            with open(log, "rb") as file:
                file.seek(position)
                data = file.read()
            position += len(data)
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                when, pid, _ = line.split()
                found.starts.append(float(when))
                pids.add(int(pid))
        count = len(found.starts)
        for key, pid in [(0, run.process.pid), *((pid, pid) for pid in sorted(pids))]:
            if count and (size := rss(pid)):
                found.memory[key].append((count, size))
        if not ended:
            time.sleep(_EVERY)
    found.starts.sort()

"""Records that hang: asleep, and busy in C with the GIL held, which no Python can interrupt."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

from .kit import Lab, Stuck, alive, begun, manifest
from .source import episodes_of, name

_TIMEOUT, _PATIENCE = 4.0, 10.0  # seconds: --record-timeout, and how much later the kill may come
_AT = {"0/1": "sleep", "1/2": "busy"}


def hung_records(lab: Lab) -> dict:
    """Two records of eighteen hang each time; the others are made."""
    source = lab.source(3, 6)
    out, log = lab.place("out"), lab.place("log")
    args = source.args(out, "--num-actors", "2", "--record-timeout", f"{_TIMEOUT:g}")
    run = lab.job(args, {"at": _AT, "log": str(log)})
    ends: dict[tuple[float, int, str], float] = {}
    until = time.monotonic() + 6 * (_TIMEOUT + _PATIENCE) + 120
    while not run.ended and time.monotonic() < until:
        _note_ends(log, ends)
        time.sleep(0.05)
    _note_ends(log, ends)
    if run.wait(1.0) != 3:
        raise Stuck(f"exit code {run.process.returncode}, not 3: {run.tail()}")
    took: dict[str, list[float]] = {place: [] for place in _AT}
    for (when, _, place), end in ends.items():
        took[place].append(round(end - when, 1))
    listed = manifest(out)["bad"]
    there, valid = episodes_of(out)
    wrong = set(source.names) - valid
    tries = Counter(row.place for row in begun(log))
    others = sum(count - 1 for place, count in tries.items() if place not in _AT)
    slowest = max((seconds for rows in took.values() for seconds in rows), default=0.0)
    return {
        "ok": there == source.names
        and wrong == {name(*map(int, place.split("/"))) for place in _AT}
        and len(listed) == len(_AT)
        and all(len(rows) >= 2 for rows in took.values())
        and slowest <= _TIMEOUT + _PATIENCE,
        "timeout_seconds": _TIMEOUT,
        "seconds_until_killed": {_AT[place]: rows for place, rows in took.items()},
        "slowest_kill_after_the_timeout": round(slowest - _TIMEOUT, 1),
        "quarantined": len(listed),
        "good": len(valid),
        "others_made_again": others,
        "what_is_said": [row["found"] for row in listed],
    }


def _note_ends(log: Path, ends: dict[tuple[float, int, str], float]) -> None:
    """Note when the processes that hung at a record were gone."""
    for row in begun(log):
        key = (row.time, row.pid, row.place)
        if row.place in _AT and key not in ends and not alive(row.pid):
            ends[key] = time.monotonic()

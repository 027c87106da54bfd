"""What jobs survive: kills, hangs, full disks and damage, done to real jobs with a cheap model.

    python benchmarks/chaos.py [--quick] [--only NAME ...] [--json FILE]

Each scenario does harm to jobs on tiny datasets, has them run again where that is the promise, and
compares what is left with what a job leaves to which nothing happens: every path and byte below
--out. Without --quick a scenario does it as often as its promise says, in an hour or so; with it
less often, in some ten minutes on two cores. Full disks need root, for a tmpfs; what goes through
S3 needs the extra `test`.

One line a scenario goes to stderr as it ends, and the table of figures at the end; --json writes
{scenario: {"ok": true, false or null, "seconds": ..., figures}}. Null is a scenario whose means
this machine lacks, and "skipped" says which.

Exit code 0: every scenario is ok. 1: one is not. 2: usage. 3: none has failed, but some could not
be tried here.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from chaos_scenarios import actors, borrowed, disks, hangs, kills, leases, pace, remote
from chaos_scenarios.kit import Lab, Skipped

SCENARIOS: dict[str, Callable[[Lab], dict]] = {
    "driver-killed-at-points": kills.at_points,
    "driver-killed-at-random": kills.at_random,
    "actors-killed": actors.killed_every_few_seconds,
    "killed-at-one-record": actors.killed_at_one_record,
    "node-removed": actors.node_removed,
    "segfault": actors.segfault,
    "any-number-and-order": actors.any_number_and_order,
    "stopped-actor": leases.stopped_actor,
    "two-drivers": leases.two_drivers,
    "disk-full": disks.disk_full,
    "file-limit": disks.file_limit,
    "hung-records": hangs.hung_records,
    "damage": borrowed.damage,
    "million": borrowed.million,
    "ten-thousand": pace.ten_thousand,
    "through-s3": remote.through_s3,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the scenarios; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="each harm less often")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=SCENARIOS, default=SCENARIOS,
        help=f"of {', '.join(SCENARIOS)}")  # fmt: skip
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON (- = stdout)")
    args = parser.parse_args(argv)
    report = {}
    for name in SCENARIOS:
        if name in args.only:
            report[name] = attempt(name, args.quick)
            print(line(name, report[name]), file=sys.stderr, flush=True)
            save(args.json, report)  # what is known already, should the next one be interrupted
    for text in table(report):
        print(text, file=sys.stderr)
    if args.json == "-":
        print(json.dumps(report, indent=2))
    return exit_code(report)


def attempt(name: str, quick: bool) -> dict:
    """One scenario in a temporary folder of its own; whatever goes wrong in it is a result."""
    began = time.monotonic()
    try:
        with Lab(quick) as lab:
            found = SCENARIOS[name](lab)
    except Skipped as reason:
        found = {"ok": None, "skipped": str(reason)}
    except Exception as error:
        traceback.print_exc()
        found = {"ok": False, "error": f"{type(error).__name__}: {error}"}
    return {**found, "seconds": round(time.monotonic() - began, 1)}


def exit_code(report: dict[str, dict]) -> int:
    """0 where all is ok, 1 where something is not, 3 where something could not be tried."""
    states = [found["ok"] for found in report.values()]
    if not all(state is not False for state in states):
        return 1
    return 0 if all(states) else 3


def save(target: str | None, report: dict) -> None:
    """Write the figures where --json says, unless that is stdout."""
    if target is not None and target != "-":
        Path(target).write_text(json.dumps(report, indent=2) + "\n")


def line(name: str, found: dict) -> str:
    """A scenario in one line."""
    state = {True: "ok", False: "NOT OK", None: "skipped"}[found["ok"]]
    why = found.get("skipped") or found.get("error") or ""
    return f"{name:<28}{state:<9}{found['seconds']:>7.1f} s  {why}".rstrip()


def table(report: dict[str, dict]) -> list[str]:
    """Every figure of every scenario, a line each."""
    lines = []
    for name, found in report.items():
        lines += ["", line(name, found)]
        for key, value in found.items():
            if key not in ("ok", "seconds", "skipped", "error"):
                text = ", ".join(f"{k} {v}" for k, v in value.items()) \
                    if isinstance(value, dict) else value  # fmt: skip
                lines.append(f"    {key.replace('_', ' '):<36}{text}")
    return lines


if __name__ == "__main__":
    # So that what was started is swept up, too, when this is asked to end.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(main())

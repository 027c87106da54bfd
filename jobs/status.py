"""`wristaugment status OUT`: how far a job is, also while it runs. No Ray, no torch, no source."""

from __future__ import annotations

import argparse
from pathlib import Path

_EPILOG = """\
example:
  wristaugment status /data/droid-wrist

exit codes: 0 the job is complete or can go on; 2 there is no job; 3 complete, with bad records
"""


def add_parser(subparsers) -> None:
    """Register the command line of `status`."""
    parser = subparsers.add_parser(
        "status",
        help="say how far a job is",
        description="Say how far the job in OUT is; also while it runs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", metavar="OUT", help="the --out of `wristaugment run`")
    parser.add_argument("--json", metavar="FILE", help="write it as JSON (- = stdout)")


def run(args: argparse.Namespace) -> int:
    """Print the state of a job; returns the exit code."""
    from .output import COMPLETE, QUARANTINED, bad_lines, speaker, write_json

    say = speaker(args.json)
    state = look(args.out)
    write_json(args.json, state)
    say(
        f"{state['dataset']} {state['version']}, recipe {state['recipe']}: "
        f"{state['shards_done']} of {state['shards']} shards, "
        f"{state['episodes_done']} episodes done"
        + (f", {state['episodes_under_way']} under way" if state["running"] else "")
    )
    if state["bad"]:
        say(f"{len(state['bad'])} bad records:")
        for line in bad_lines(state["bad"]):
            say(line)
    say(state["todo"])
    return QUARANTINED if state["complete"] and state["bad"] else COMPLETE


def look(out: Path | str) -> dict:
    """The state of the job in `out`, as plain values.

    Raises:
        SourceError: there is no job.
    """
    from ..readers.errors import SourceError
    from .ledger import Ledger
    from .storage import FOLDER

    ledger = Ledger(out)
    plan = ledger.plan()
    if plan is None:
        raise SourceError("holds no job", file=out, todo="give the --out of `wristaugment run`")
    if not _is_plan(plan):
        raise SourceError(
            "is not a plan",
            file=ledger.store.where(f"{FOLDER}/plan.json"),
            todo="restore it, or use a new --out",
        )
    entries = ledger.entries()
    place = plan["place"]
    folder = ledger.store.where("" if place == "." else place)
    total = plan["shards"]
    whole = ledger.in_place(entries, place)
    done = [entry for name, entry in entries.items() if whole[name]]
    lost = len(entries) - len(done)
    running = ledger.running()
    complete = ledger.complete() and len(done) == total
    if running:
        todo = "it is running now"
    elif complete:
        todo = f"complete: {folder}"
    elif lost:
        todo = f"{lost} finished shards were lost; run the same command to make them again"
    else:
        todo = "not complete; run the same command to go on"
    return {
        "dataset": plan["dataset"],
        "version": plan["version"],
        "recipe": plan["recipe"]["name"],
        "folder": str(folder),
        "shards": total,
        "shards_done": len(done),
        "episodes_done": sum(entry["result"]["records"] for entry in done),
        "episodes_under_way": ledger.episodes_under_way() if running else 0,
        "bad": [item for entry in done for item in entry["result"]["bad"]],
        "running": running,
        "complete": complete,
        "todo": todo,
    }


def _is_plan(plan: object) -> bool:
    """Whether JSON says what `status` needs of a plan; its file may be damaged."""
    if not isinstance(plan, dict) or not isinstance(plan.get("recipe"), dict):
        return False
    texts = (
        plan.get("dataset"),
        plan.get("version"),
        plan.get("place"),
        plan["recipe"].get("name"),
    )
    return all(isinstance(text, str) for text in texts) and isinstance(plan.get("shards"), int)

"""`wristaugment verify OUT --source DIR`: is every old byte intact, and every new frame good?

Both trees are streamed side by side, a record or a piece of one at a time. Nothing is taken on
trust but the ledger's word on which records could not be augmented.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .output import COMPLETE, QUARANTINED, speaker, write_json

_SHOWN = 30  # problems printed; the JSON has them all


def add_parser(subparsers) -> None:
    """Add the `verify` command."""
    parser = subparsers.add_parser(
        "verify",
        help="compare a copy with its source, byte for byte, and decode every new frame",
        description="Exit code 0: the copy is whole. 3: problems were found. 2: not comparable.",
    )
    parser.add_argument("out", metavar="OUT", help="what `run` wrote: a folder or a URL")
    parser.add_argument("--source", required=True, metavar="DIR", help="its --data-dir")
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON (- = stdout)")


def run(args: argparse.Namespace) -> int:
    """Compare, print the findings, and return the exit code.

    Raises:
        SourceError: OUT or the source is no dataset, or they do not belong together.
    """
    from .mirror import localise

    report = verify(localise(args.out), localise(args.source), bar=sys.stderr.isatty())
    say = speaker(args.json)
    problems = report["problems"]
    for problem in problems[:_SHOWN]:
        say(problem_line(problem))
    if len(problems) > _SHOWN:
        say(f"and {len(problems) - _SHOWN} more")
    say(
        f"{report['records']} records compared, {report['frames']} new frames decoded "
        f"({report['valid_frames']} marked as valid), {report['left_out']} records left out and "
        f"{report['placeholders']} with black frames, all as the ledger says"
        if not problems
        else f"{len(problems)} problems in {report['records']} records compared"
    )
    if not problems:
        say(f"whole: every byte of the source is in {report['copy']}")
    write_json(args.json, report)
    return QUARANTINED if problems else COMPLETE


def problem_line(problem: dict) -> str:
    """A problem in one line: file, record, key, what, and what to do."""
    where = [problem["file"]]
    if problem["record"] is not None:
        where.append(f"record {problem['record']}")
    if problem["key"] is not None:
        where.append(f"key {problem['key']!r}")
    return f"{', '.join(where)}: {problem['found']}; {problem['todo']}"


def verify(out: Path, source: Path, *, bar: bool = False) -> dict:
    """Compare a copy with its source.

    Args:
        out: the root of the copy (an RLDS copy's own folder will do too).
        source: what was given as --data-dir.
        bar: show a progress bar on stderr.

    Returns:
        {"copy", "source", "wrist_key", "records", "frames", "valid_frames", "left_out",
        "placeholders", "problems": [{"file", "record", "key", "found", "todo"}]}

    Raises:
        SourceError: they cannot be compared at all.
    """
    from ..readers.files import present_all
    from .ledger import FOLDER, Ledger

    present_all((Path(out) / FOLDER).rglob("*.json"))
    plan = Ledger(Path(out)).plan()
    if plan is None or plan.get("format", "rlds") == "rlds":
        from .verify_rlds import Comparison
    else:
        from .verify_copy import Comparison
    return Comparison(Path(out), Path(source), bar).report()

"""`wristaugment verify OUT [--source DIR]`: is every byte as it was written, and as in the source?

Every file's SHA-256 is compared with what the job recorded of it. With the source, both trees are
also streamed side by side, a record or a piece of one at a time, and nothing is taken on trust but
the ledger's word on which records could not be augmented.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from .findings import Findings
from .output import COMPLETE, QUARANTINED, speaker, write_json
from .progress import size

_SHOWN = 30  # problems printed; the JSON has them all
_EPILOG = """\
examples:
  is anything damaged, missing or too many? Reads the copy alone, as fast as the disk gives it:
    wristaugment verify /data/droid-wrist
  and is every byte of the source in it, and every new frame good?
    wristaugment verify /data/droid-wrist --source /data

OUT and --source may be URLs, as in s3://bucket/droid-wrist; files are fetched one by one into
$WRISTAUGMENT_SCRATCH and removed from it again.

exit codes: 0 the copy is whole; 3 problems were found; 2 it cannot be checked
"""


def add_parser(subparsers) -> None:
    """Add the `verify` command."""
    parser = subparsers.add_parser(
        "verify",
        help="find any damage in a copy; with --source, compare every old byte and new frame",
        description="Compare the SHA-256 of every file with what the job recorded. With --source, "
        "also compare the copy with its source, byte for byte, and decode every new frame.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", metavar="OUT", help="what `run` wrote: a folder or a URL")
    parser.add_argument("--source", metavar="DIR", help="its --data-dir")
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON (- = stdout)")


def run(args: argparse.Namespace) -> int:
    """Compare, print the findings, and return the exit code.

    Raises:
        SourceError: OUT or the source is no dataset, or they do not belong together.
    """
    from .mirror import localise

    report = verify(
        localise(args.out), localise(args.source) if args.source else None, bar=sys.stderr.isatty()
    )
    say = speaker(args.json)
    problems = report["problems"]
    for problem in problems[:_SHOWN]:
        say(problem_line(problem))
    if len(problems) > _SHOWN:
        say(f"and {len(problems) - _SHOWN} more")
    for line in _summary(report, args.source is not None):
        say(line)
    write_json(args.json, report)
    return QUARANTINED if problems else COMPLETE


def _summary(report: dict, compared: bool) -> list[str]:
    files = f"{report['files']} files ({size(report['bytes'])}) hashed"
    if report["problems"]:
        also = f" and {report['records']} records compared" if compared else ""
        return [f"{len(report['problems'])} problems in {files}{also}"]
    if not compared:
        return [f"whole: {files}, all as they were written in {report['copy']}"]
    return [
        f"{files}; {report['records']} records compared, {report['frames']} new frames decoded "
        f"({report['valid_frames']} marked as valid), {report['left_out']} records left out and "
        f"{report['placeholders']} with black frames, all as the ledger says",
        f"whole: every byte of the source is in {report['copy']}",
    ]


def problem_line(problem: dict) -> str:
    """A problem in one line: file, record, key, what, and what to do."""
    where = [problem["file"]]
    if problem["record"] is not None:
        where.append(f"record {problem['record']}")
    if problem["key"] is not None:
        where.append(f"key {problem['key']!r}")
    return f"{', '.join(where)}: {problem['found']}; {problem['todo']}"


def verify(out: Path, source: Path | None = None, *, bar: bool = False) -> dict:
    """Check a copy against its own checksums and, where a source is given, against that.

    Args:
        out: the root of the copy (an RLDS copy's own folder will do too, with its source).
        source: what was given as --data-dir.
        bar: show a progress bar on stderr.

    Returns:
        {"copy", "source", "wrist_key", "files", "bytes" (both of what was hashed), "records",
        "frames", "valid_frames", "left_out", "placeholders",
        "problems": [{"file", "record", "key", "found", "todo"}]}

    Raises:
        SourceError: they cannot be compared at all.
    """
    from ..readers.errors import SourceError
    from ..readers.files import present_all
    from .checksums import PLAN, Checksums, check
    from .storage import FOLDER

    out = Path(out)
    present_all((out / FOLDER).rglob("*"))
    found: Checksums | None = None
    if (out / FOLDER).is_dir():
        found = check(out, bar=bar)
    elif source is None:
        raise SourceError(
            f"holds no {FOLDER} with the checksums of a copy",
            file=out,
            todo="give the --out of `wristaugment run`, or --source to compare it with",
        )
    report: dict[str, Any] = {"copy": str(out), "source": None, "wrist_key": None}
    report |= Findings(bar).counts | {"problems": []}
    if source is not None and (found is None or PLAN not in found.damaged):
        report |= _compared(out, source, bar, found)
    elif source is not None:
        missing = Findings(bar)
        todo = "restore plan.json, or use a new --out"
        missing.problem(out, "was not compared with the source, which its plan names", todo=todo)
        report["problems"] = missing.problems
    # What the comparison says of a file tells more than that its hash is another one.
    named = {problem["file"] for problem in report["problems"]}
    own = [problem for problem in found.problems if problem["file"] not in named] if found else []
    report["problems"] = own + report["problems"]
    return report | {"files": found.files if found else 0, "bytes": found.bytes if found else 0}


def _compared(out: Path, source: Path, bar: bool, found) -> dict:
    """What the format's comparison reports.

    Args:
        found: the Checksums of `out`; None where it has no ledger.

    Raises:
        SourceError: as `verify`, of a copy that is as it was written.
    """
    from .ledger import Ledger

    problems = found.problems if found else []
    damaged = found.damaged if found else set()
    try:
        plan = Ledger(out).plan()
        if plan is None or plan.get("format", "rlds") == "rlds":
            from .verify_rlds import Comparison
        else:
            from .verify_copy import Comparison
        return Comparison(out, source, bar, damaged).report()
    except Exception as error:
        # Bytes that are not what was written can lead a reader anywhere, and they have been named.
        # In a copy without damage it is our own fault, or the command line's.
        if not problems:
            raise
        rest = Findings(bar)
        found_text = (
            f"was not compared with the source to the end ({type(error).__name__}: {error})"
        )
        rest.problem(out, found_text, todo="mend what is named above, then verify again")
        return {"problems": rest.problems}

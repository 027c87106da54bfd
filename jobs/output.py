"""What commands say: lines for people, JSON for programs, and the exit codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ..writers.atomic import write_atomic
from .mirror import shown

COMPLETE, INTERNAL, REFUSED, QUARANTINED, DISK = 0, 1, 2, 3, 4


class JobError(Exception):
    """The job cannot go on; running it again may. One line for the user; exit code 1."""


class DiskError(OSError):
    """No space or no permission, met by an actor and already in words; exit code 4."""


def speaker(json_target: str | None) -> Callable[[str], None]:
    """Prints lines for people: on stdout, or on stderr where stdout carries the JSON."""
    stream = sys.stderr if json_target == "-" else sys.stdout
    return lambda text: print(shown(text), file=stream, flush=True)


def write_json(target: str | None, value: object) -> None:
    """Write `value` where --json says: a file, or stdout for "-"; nothing where it is None."""
    if target is None:
        return
    text = shown(json.dumps(value, indent=2, ensure_ascii=False)) + "\n"
    if target == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    write_atomic(Path(target), text.encode())  # a reader never sees half of it


def bad_lines(bad: Sequence[dict], limit: int = 20) -> list[str]:
    """One indented line per bad record: where it is, why, and what to do."""
    lines = []
    for item in bad[:limit]:
        where = f"{item['file'] or 'somewhere'}, record {item['record']}"
        where += f", key {item['key']!r}" if item["key"] else ""
        text = f"  {where}: {item['found']} ({item['what']})"
        lines.append(f"{text}; {item['todo']}" if item["todo"] else text)
    if len(bad) > limit:
        lines.append(f"  and {len(bad) - limit} more, all in the manifest")
    return lines

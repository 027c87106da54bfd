"""What weights files are known to hold: records beside them, and hashes that need no second look.

`weights.json` in a root says of every file that was fetched what it was. A file of gigabytes is
hashed once; the user's cache remembers it for as long as the file is not touched.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from ..models.errors import WeightsError
from ..readers.files import file_sha256
from ..writers.atomic import write_atomic

RECORDS = "weights.json"
WORTH_REMEMBERING = 32 * 2**20  # bytes; smaller files are hashed in no time


def cache_folder() -> Path:
    """Where this program keeps what it can make or fetch again."""
    base = os.environ.get("XDG_CACHE_HOME")
    # As its specification says, a relative path there is none.
    root = Path(base) if base and os.path.isabs(base) else Path.home() / ".cache"
    return root / "wristaugment"


def read_records(root: Path) -> dict[str, dict[str, Any]]:
    """{place below the root: {"sha256", "bytes", "source", "revision"}}; {} without records.

    Raises:
        WeightsError: a weights.json that cannot be read.
    """
    path = root / RECORDS
    try:
        found = json.loads(path.read_text())
        valid = isinstance(found, dict) and all(
            isinstance(record, dict)
            and isinstance(record.get("sha256"), str)
            and isinstance(record.get("bytes"), int)
            for record in found.values()
        )
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: not readable as JSON ({error}); remove it") from None
    if not valid:
        raise WeightsError(f"{path}: not a record of weights as it is written here; remove it")
    return found


def write_record(root: Path, place: str, record: dict[str, Any]) -> None:
    """Add the record of one file; OSError where the root may not be written."""
    records = read_records(root) | {place: record}
    text = json.dumps(dict(sorted(records.items())), indent=2) + "\n"
    write_atomic(root / RECORDS, text.encode())


def check_hash(path: Path, record: dict[str, Any]) -> None:
    """WeightsError where a file is not what its record says."""
    size = path.stat().st_size
    if size != record["bytes"]:
        wrong = f"has {size} bytes where {record['bytes']} were fetched"
    elif remembered_sha256(path) != record["sha256"]:
        wrong = "has changed since it was fetched (another SHA-256)"
    else:
        return
    raise WeightsError(
        f"{path}: {wrong}; fetch it again with `wristaugment weights RECIPE --download` or --from, "
        f"or take it out of {RECORDS} if the change was yours"
    )


def remembered_sha256(path: Path) -> str:
    """The SHA-256 of a file, from memory where it has not been touched since it was hashed."""
    mark = _mark(path)
    if mark[0] < WORTH_REMEMBERING:
        return file_sha256(path)
    entry = _remembered().get(str(path.resolve()))
    if isinstance(entry, list) and entry[:-1] == mark:
        return entry[-1]
    digest = file_sha256(path)
    if _mark(path) == mark:
        remember(path, digest)
    return digest


def remember(path: Path, digest: str) -> None:
    """Keep the SHA-256 of a file as it is now, where it is worth it and the cache can be written.

    Another process may write it at the same time; what is lost then is hashed again.
    """
    mark = _mark(path)
    if mark[0] < WORTH_REMEMBERING:
        return
    known = _remembered() | {str(path.resolve()): [*mark, digest]}
    with contextlib.suppress(OSError):
        write_atomic(_memory(), json.dumps(known).encode())


def _mark(path: Path) -> list[int]:
    """What changes with a file: the change time and the inode tell one that was put in its place
    and brought its own times along."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _memory() -> Path:
    return cache_folder() / "hashes.json"


def _remembered() -> dict[str, Any]:
    try:
        found = json.loads(_memory().read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

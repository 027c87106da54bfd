"""What happened in a job: a log of JSON lines, for people days later and for programs.

One event a line, UTF-8, as in

    {"time": "2026-03-01T09:12:44.103Z", "event": "retried", "job": "5be1a2c09d11",
     "host": "gpu-07", "pid": 4711, "shard": "train-00003", "reason": "its actor died", ...}

`time` is UTC; `job` tells plans apart (`plan_id`), so that one file may hold several. Events, and
what stands in them beside that:

    started        version, episodes, shards, done (shards before), device
    actor_started  actor (its number)
    actor_died     reason
    shard_started  shard
    progress       episodes, total, per_second, seconds_left (null: not known); every 30 s
    shard_published  shard, records, bad, bytes
    retried        shard, reason, and the attempt, or the records that an actor died at
    suspect        shard, record: it is tried alone; blamed, reason: where it was to blame
    given_up       shard, record, reason
    batch_halved   batch: the GPU had no memory for the one before
    interrupted    signal
    disk           reason
    failed         reason: the job ends, exit code 1
    finished       exit_code, and the totals of the summary

The log serves the job and never the other way round: a line that cannot be written (a full disk) is
left out, and the next that can be says how many were, as `lost`. A line is one write to a file that
is opened for appending, so that several processes of one machine may share a file; what a power
cut leaves of a line ends before the next begins, and `read` skips it.

Below --out nothing may depend on time or host, so the log lies beside it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from ..readers.errors import SourceError

NONE = "none"  # --events none
_SUFFIX = ".events.jsonl"


def plan_id(plan: dict) -> str:
    """Twelve hex digits that tell a plan from others."""
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:12]


def events_path(
    asked: str | None, out: str, part: tuple[int, int] | None = None, source: Path | None = None
) -> Path | None:
    """Where the log of a job lies; None for none.

    Args:
        asked: as --events; None for the usual place: beside a local `out`, and in the current
            folder where `out` is a URL.
        out: as --out.
        part: (i, n) of --shard. Each part has a log of its own in the usual place, since the
            machines of an array cannot append to one file on NFS without losing lines.
        source: the dataset's folder, which the log must not lie in either.

    Raises:
        SourceError: it is a URL, a folder, or lies below `out` or the source.
    """
    if asked == NONE:
        return None
    if asked is None:
        name = f".{part[0]}-of-{part[1]}" if part else ""
        if "://" in out:
            return Path.cwd() / f"{out.rstrip('/').rpartition('/')[2]}{name}{_SUFFIX}"
        place = Path(out).expanduser().absolute()
        return place.with_name(f"{place.name}{name}{_SUFFIX}")
    if "://" in asked:
        raise SourceError(
            f"{asked!r} is a URL, and lines cannot be appended to an object",
            key="--events",
            todo="name a local file, or none",
        )
    path = Path(asked).expanduser().absolute()
    if path.is_dir():
        raise SourceError("is a folder", file=path, key="--events", todo="name a file in it")
    above = [] if "://" in out else [Path(out).expanduser()]
    for folder in above + ([source] if source else []):
        if path.resolve().is_relative_to(folder.resolve()):
            raise SourceError(
                f"lies in {folder}, where nothing may depend on time or host",
                file=path,
                key="--events",
                todo="name a file elsewhere, or none",
            )
    return path


class EventLog:
    """The log of one process; see the module. Use it as a context, or close it.

    Attributes:
        problem: why the last line was not written; "" where it was. Nothing is raised.
        lost: lines not written since the last one that was.
    """

    def __init__(
        self,
        handle: int | None,
        common: dict,
        *,
        torn: bool = False,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ):
        self._handle, self._common, self._torn, self._now = handle, common, torn, now
        self._lock = threading.Lock()
        self.problem, self.lost = "", 0

    @classmethod
    def open(cls, path: Path | None, **common: object) -> EventLog:
        """Open a log for appending; one that takes all and keeps nothing where `path` is None.

        A file that cannot be opened makes such a log too, and `problem` says why.

        Args:
            common: facts that every line has, as in job="5be1a2c09d11".
        """
        if path is None:
            return cls(None, {})
        common = {**common, "host": socket.gethostname(), "pid": os.getpid()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            handle = os.open(path, flags, 0o644)
        except OSError as error:
            log = cls(None, {})
            log.problem = f"{path}: {error.strerror}; there is no log of events"
            return log
        return cls(handle, common, torn=_ends_torn(handle))

    def write(self, event: str, **facts: object) -> None:
        """Append a line now. Values are plain ones; of others, what `str` makes of them."""
        if self._handle is None:
            return
        with self._lock:
            time = self._now().isoformat(timespec="milliseconds").replace("+00:00", "Z")
            line = {"time": time, "event": event, **self._common, **facts}
            if self.lost:
                line["lost"] = self.lost
            text = json.dumps(_finite(line), ensure_ascii=False, default=str) + "\n"
            # Half a line of ours or of a killed process: a new line must not be glued to it.
            data = ("\n" if self._torn else "").encode() + text.encode(errors="replace")
            try:
                written = os.write(self._handle, data)
            except OSError as error:
                written, self.problem = 0, error.strerror or str(error)
            if written == len(data):
                self.problem, self.lost, self._torn = "", 0, False
                return
            self.problem = self.problem or "no room for the whole line"
            self._torn = self._torn or written > 0
            self.lost += 1

    def close(self) -> None:
        """Close the file; what is written afterwards is dropped."""
        with self._lock:
            handle, self._handle = self._handle, None
            if handle is not None:
                with contextlib.suppress(OSError):  # some network disks tell of no space here
                    os.close(handle)

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def read(path: Path) -> Iterator[dict]:
    """The events of a log, oldest first; lines that are cut off are skipped.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            with contextlib.suppress(ValueError):
                value = json.loads(line)
                if isinstance(value, dict) and "event" in value:
                    yield value


def _ends_torn(handle: int) -> bool:
    try:
        size = os.fstat(handle).st_size
        return size > 0 and os.pread(handle, 1, size - 1) != b"\n"
    except OSError:
        return False  # a pipe, a terminal


def _finite(value):
    """`value` with None for what JSON has no word for."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value

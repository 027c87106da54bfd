"""Whose fault a failure is, and what follows from it. This page is the rule; the rest obeys it.

The record's fault:
- Its data, or the recipe on it, raise an error twice: black frames, listed, exit 3.
- It ends or holds up (--record-timeout) the process that makes it, ATTEMPTS times: given up, which
  is the same.
- `wristaugment retry` tries such records again, and takes the others over; see `takeover`.
The job's fault:
- An actor raises outside of a record, or has no memory for the smallest batch: its shard goes to a
  new actor, ATTEMPTS times; then exit 1.
- An actor dies, shows no life (--lease), or goes with its node: its shard goes to another, for as
  long as anything is made. IDLE deaths, and IDLE_SECONDS, with nothing made: exit 1.
The machine's fault:
- No space, no rights, a broken disk: the job stops, exit 4, and the same command goes on.

A process that dies says nothing of why, and most are killed from outside. Records that an actor
was at when it crashed, or when one died for the HITS-th time, are suspects, and each is tried
alone: a child process makes that one record, and its parent, which touches no data, tells how it
ended. A child that dies while its parent lives was ended by its record; a parent that dies was
ended by something else, and nothing is counted against the record. So no number of kills, nodes
that are taken away, or neighbours that do harm loses an innocent record, and one that does harm is
blamed ATTEMPTS times at the most.
"""

from __future__ import annotations

import errno
import signal

ATTEMPTS = 3  # blames after which a record is given up, and failures after which a shard is
HITS = 3  # deaths at a record without a trace of a crash, after which it is suspected
# Deaths of actors in a row, and seconds, without one episode made, after which a job is given up.
IDLE, IDLE_SECONDS = 20, 300.0
# What another attempt or another record cannot help with: the disk or the rights.
DISK_ERRNOS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG, errno.EIO}
)


def is_disk(error: BaseException) -> bool:
    """Whether an error is the machine's fault: its disk's, or the rights on it."""
    return isinstance(error, OSError) and error.errno in DISK_ERRNOS


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory, a GPU's or the machine's, was too small for what was tried."""
    # By name: torch's own class is there only where torch is loaded.
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def how_it_ended(code: int) -> str:
    """The end of a process in words, from its return code (negative: of a signal)."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"

"""Stopping on request: signals are noted, and acted on where it is safe.

An exception raised by a signal handler inside Ray's compiled code comes out as a SystemError, so
the handler only takes note. The second signal does what signals do: it ends the process, which
harms a job no more than any kill does.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

# SIGUSR1 is what SLURM sends ahead of a time limit (--signal=USR1@60).
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
EXIT_CODE = 75  # EX_TEMPFAIL: running it again goes on
_asked: list[str] = []


class Interrupted(BaseException):
    """The user or the machine asked the job to stop. No `except Exception` may swallow it."""


def asked() -> str:
    """The name of the signal that asked for a stop since `armed` began, or ""."""
    return _asked[0] if _asked else ""


def check() -> None:
    """Raise Interrupted if a stop was asked for since `armed` began."""
    if _asked:
        raise Interrupted(_asked[0])


def arm() -> None:
    """Take note of the signals; again after `ray.init`, which sets a handler of its own."""
    if not _asked:
        for kind in SIGNALS:
            signal.signal(kind, _note)


@contextlib.contextmanager
def armed() -> Iterator[None]:
    """`arm`, and put the handlers back afterwards."""
    before = {kind: signal.getsignal(kind) for kind in SIGNALS}
    _asked.clear()
    arm()
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
        _asked.clear()


def _note(number, _frame) -> None:
    _asked.append(signal.Signals(number).name)
    for kind in SIGNALS:
        signal.signal(kind, signal.SIG_DFL)

"""Stopping on request: signals are noted, and acted on where it is safe.

An exception raised by a signal handler inside Ray's compiled code comes out as a SystemError, so
the handler only takes note. The second signal does what signals do: it ends the process, which
harms a job no more than any kill does. So may the time: who is asked to stop often has half a
minute, and a Ray cluster that is gone does not answer for longer.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

# SIGUSR1 is what SLURM sends ahead of a time limit (--signal=USR1@60).
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
EXIT_CODE = 75  # EX_TEMPFAIL: running it again goes on
_grace: float | None = None
_asked: list[str] = []
_last: threading.Timer | None = None


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
def armed(grace: float | None = None) -> Iterator[None]:
    """`arm`, and put the handlers back afterwards.

    Args:
        grace: seconds from a signal to the end of the process, whatever still hangs then.
    """
    global _grace
    _grace = grace
    before = {kind: signal.getsignal(kind) for kind in SIGNALS}
    _asked.clear()
    arm()
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
        _asked.clear()
        if _last is not None:
            _last.cancel()


def _note(number, _frame) -> None:
    _asked.append(signal.Signals(number).name)
    global _last
    if _grace is not None:
        _last = threading.Timer(_grace, os._exit, (EXIT_CODE,))
        _last.daemon = True
        _last.start()
    for kind in SIGNALS:
        signal.signal(kind, signal.SIG_DFL)

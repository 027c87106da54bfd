"""Who of a machine's processes uses which file of a mirror: bytes of one file, locked.

Every name has two bytes of its own, far out in a file that stays empty: one is locked by all that
use the file, together, the other by the one that fetches it. The system frees the locks of
whatever ends, in whatever way.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from ..readers.errors import SourceError

_FETCHING = 1 << 62  # where the second bytes begin
_THREADS = 64
_MOST = 8192  # names that are held; the system looks through all of them for each one more
_POLL = 0.02  # seconds


class Locks:
    """The locks of one lock file; `Locks.of` gives the one that a process has of it.

    Attributes:
        held: the names that this process uses, the longest first.
    """

    def __init__(self, path: Path):
        self._path = path
        # Never closed: that would free every lock of this process, whichever handle took it.
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.fresh()

    @staticmethod
    def of(path: Path) -> Locks:
        """The locks of a file; the same object each time, see `__init__`."""
        with _guard:
            if path not in _known:
                _known[path] = Locks(path)
            return _known[path]

    def fresh(self) -> None:
        """Forget what is held; a forked child holds none of its parent's locks."""
        self.held: dict[str, None] = {}
        self._threads = [threading.Lock() for _ in range(_THREADS)]
        self._crowded = threading.Lock()

    @staticmethod
    def code(name: str) -> int:
        """A number below 2 ** 62 that stands for a name."""
        digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 2

    def threads(self, name: str) -> threading.Lock:
        """What keeps the threads of this process apart where they want the same file."""
        return self._threads[self.code(name) % _THREADS]

    @contextlib.contextmanager
    def holding(self, name: str) -> Iterator[None]:
        """Use a file from here on; where the body fails it is not used."""
        self._wait(fcntl.LOCK_SH, self.code(name))
        try:
            yield
        except BaseException:
            self._free(self.code(name))
            raise
        self.held[name] = None
        if len(self.held) > _MOST:
            self._let_go()

    @contextlib.contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Be the only one that fetches a file."""
        place = _FETCHING + self.code(name)
        self._wait(fcntl.LOCK_EX, place)
        try:
            yield
        finally:
            self._free(place)

    def last(self, name: str) -> bool:
        """Use a file no more. True: nobody else does, nor can before `drop` is called."""
        self.held.pop(name, None)
        place = self.code(name)
        if self._try(fcntl.LOCK_EX, place):
            return True
        self._free(place)
        return False

    def drop(self, name: str) -> None:
        """Free the lock that `last` gave."""
        self._free(self.code(name))

    def _let_go(self) -> None:
        """Hold fewer names: those that were asked for last."""
        with self._crowded:
            for name in list(self.held)[: max(0, len(self.held) - _MOST // 2)]:
                if self.held.pop(name, 0) is None:
                    self._free(self.code(name))

    def _wait(self, kind: int, place: int) -> None:
        # Asked again and again, and not waited for in the system: that looks for deadlocks of
        # processes, and takes the threads of two processes that wait crosswise for one.
        while not self._try(kind, place):
            time.sleep(_POLL)

    def _try(self, kind: int, place: int) -> bool:
        try:
            fcntl.lockf(self._handle, kind | fcntl.LOCK_NB, 1, place)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise SourceError(
                f"knows no locks of files ({error.strerror})",
                file=self._path.parent,
                todo="name a folder of a local disk with $WRISTAUGMENT_SCRATCH",
            ) from None
        return True

    def _free(self, place: int) -> None:
        fcntl.lockf(self._handle, fcntl.LOCK_UN, 1, place)


_guard = threading.Lock()
_known: dict[Path, Locks] = {}


def _after_fork() -> None:
    global _guard
    _guard = threading.Lock()
    for locks in _known.values():
        locks.fresh()


os.register_at_fork(after_in_child=_after_fork)

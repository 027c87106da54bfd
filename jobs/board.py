"""What an attempt at a shard says of itself while it works, and how it learns that it is lost.

The driver grants an attempt by a file `<staged>.grant` and takes the grant back by removing it. The
actor writes `<staged>.board`: how often it has shown life, how many episodes it has made, and which
records it is at. What stands there when a process dies says which records may have been the cause.
Both lie in staging, so that any machine can read them and nothing of them is left.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from dataclasses import dataclass

from .storage import FolderStorage, Storage

BEAT = 1.0  # seconds between two signs of life
_REMOTE_BEAT = 5.0
_WIDTH = 256  # bytes of a board in a file: it is written over in place
READING, MAKING, WRITING = "reading", "making", "writing"


class Lost(Exception):
    """The attempt was taken away from this actor; what it makes is not wanted any more."""


@dataclass(frozen=True)
class Said:
    """What stands on a board.

    Attributes:
        beats: signs of life so far. made: episodes made; kept: those of them that an earlier
            attempt had made.
        at: step of the work ("reading", "making", "writing") -> the record that is there.
    """

    beats: int = 0
    made: int = 0
    kept: int = 0
    at: tuple[tuple[str, int], ...] = ()

    @property
    def records(self) -> list[int]:
        """The records that are at some step, in order."""
        return sorted({record for _, record in self.at})


def grant(store: Storage, staged: str) -> None:
    """Grant an attempt (the driver's part)."""
    store.note(f"{staged}.grant", b"")


def revoke(store: Storage, staged: str) -> None:
    """Take an attempt back, with all that it left in staging."""
    store.remove(f"{staged}.grant")
    for name in (f"{staged}.board", f"{staged}.fault"):
        store.remove(name)
    store.remove_folder(staged)


def look(store: Storage, staged: str) -> Said | None:
    """What an attempt says of itself; None where it has said nothing yet."""
    try:
        found = json.loads(store.read(f"{staged}.board"))
        return Said(
            found["beats"], found["made"], found["kept"], tuple(sorted(found["at"].items()))
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


class Board:
    """The actor's side of it. Use as a context; a thread shows life meanwhile.

    Args:
        staged: the name of the attempt's folder in staging.
    """

    def __init__(self, store: Storage, staged: str):
        self.store, self.staged = store, staged
        self.name = f"{staged}.board"
        self.lost = False
        self._beats = self._made = self._kept = 0
        self._at: dict[str, int] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._handle: int | None = None
        self._thread = threading.Thread(target=self._live, daemon=True)

    def __enter__(self) -> Board:
        self._look()
        if isinstance(self.store, FolderStorage):
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
            self._handle = os.open(self.store.path(self.name), flags, 0o644)
        self._put()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if self._handle is not None:
            os.close(self._handle)
        # A grant that is gone takes the board with it, also where it was put in between.
        with contextlib.suppress(OSError):
            if self.lost or self.store.size(f"{self.staged}.grant") is None:
                self.store.remove(self.name)

    def check(self) -> None:
        """Nothing, while the attempt is granted.

        Raises:
            Lost: it is not any more.
        """
        if self.lost:
            raise Lost(self.staged)

    def look(self) -> None:
        """As `check`, asking anew."""
        self._look()
        self.check()

    def at(self, step: str, record: int | None) -> None:
        """Say that a step of the work has begun on a record, or (None) that it is at none.

        Raises:
            Lost: as `check`.
        """
        self.check()
        with self._lock:
            if record is None:
                self._at.pop(step, None)
            else:
                self._at[step] = record
            # What is at none can be told later; in an object store every word is a request.
            if record is not None or self._handle is not None:
                self._put()

    def made(self, *, kept: bool = False) -> None:
        """Say that one more episode is made, or was kept from an earlier attempt."""
        with self._lock:
            self._made += 1
            self._kept += kept
            if self._handle is not None:
                self._put()

    def _live(self) -> None:
        beat = BEAT if self._handle is not None else _REMOTE_BEAT
        while not self._ended.wait(beat):
            with contextlib.suppress(OSError):  # the next beat will do
                self._look()
                if self.lost:
                    return
                with self._lock:
                    self._beats += 1
                    self._put()

    def _look(self) -> None:
        if self.store.size(f"{self.staged}.grant") is None:
            self.lost = True

    def _put(self) -> None:
        said = {"beats": self._beats, "made": self._made, "kept": self._kept, "at": self._at}
        data = json.dumps(said).encode().ljust(_WIDTH)
        if self._handle is None:
            self.store.note(self.name, data)
        else:
            # Progress is not worth a shard: a full disk is met, and told, by what must be written.
            with contextlib.suppress(OSError):
                os.pwrite(self._handle, data, 0)

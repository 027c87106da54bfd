"""Who may write to an OUT: one driver, or the drivers of an array's parts, a part each.

On a file system the right is a lock (flock) that the kernel takes back when its holder dies. It is
also a token in the locked file: a machine that lost touch with its file server may have lost the
lock without a word, so the token is read again before anything is published.

An object store has no locks. There a holder puts `leases/<name>.<number>`, which only one can
create, and puts it again every few seconds. Who finds it unchanged for long enough, or knows that
its process is dead, creates the next number: the highest number holds the lease. A holder that was
held up finds a higher number than its own before it publishes, and stops.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from ..readers.errors import SourceError
from .output import JobError
from .storage import FOLDER, FolderStorage, ObjectStorage, Storage

RUN = "lock"
_LEASES = f"{FOLDER}/leases"
PATIENCE = 2.0  # seconds; `status` holds a lock for an instant while it looks
BEAT = 10.0  # seconds between two signs of life in an object store
DEAD = 60.0  # seconds without a sign of life after which a lease may be taken over


class Lease:
    """A right that is held; `check` it before publishing.

    Attributes:
        token: tells this holder from every other.
    """

    def __init__(self, token: str, place: str):
        self.token, self.place = token, place

    def check(self) -> None:
        """Nothing, while the right is still held.

        Raises:
            JobError: another driver has taken over.
        """

    def _lost(self) -> JobError:
        return JobError(
            f"{self.place}: another driver has taken over while this one was held up; this one "
            "publishes nothing more"
        )


@contextlib.contextmanager
def hold(
    store: Storage, name: str = RUN, *, shared: bool = False, patience: float | None = None
) -> Iterator[Lease]:
    """Hold the right `name` of an OUT for as long as the context lasts.

    Args:
        name: RUN for the whole of it, "<i>-of-<n>" for a part, "finish".
        shared: together with others who ask for it shared. They hold a right of their own beside
            it, so that this one has no token.
        patience: seconds to wait for another holder to leave.

    Raises:
        SourceError: another holds it.
    """
    patience = PATIENCE if patience is None else patience
    if isinstance(store, FolderStorage):
        with _locked(store, _file(name), shared, patience) as lease:
            yield lease
    else:
        assert isinstance(store, ObjectStorage)
        with _leased(store, name, shared, patience) as lease:
            yield lease


def is_held(store: Storage) -> bool:
    """Whether any driver is at work, as far as that can be told."""
    if isinstance(store, FolderStorage):
        try:
            handle = os.open(store.path(_file(RUN)), os.O_RDONLY)
        except OSError:
            return False
        try:
            # Exclusive, since the drivers of an array share it.
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            os.close(handle)
    assert isinstance(store, ObjectStorage)
    return any(
        not _is_dead(text) and store.age(f"{_LEASES}/{name}.{number:06d}") < 2 * DEAD
        for (name, number), text in _leases(store).items()
    )


def _file(name: str) -> str:
    """The file of a lock; those of parts are gone when the job is complete."""
    return f"{FOLDER}/lock" if name == RUN else f"{FOLDER}/staging/{name}.lock"


def _taken(place: str) -> SourceError:
    return SourceError(
        "another run is writing here",
        file=place,
        key="--out",
        todo="wait for it (see `wristaugment status`) or use a new --out",
    )


# -- a file system -------------------------------------------------------------------------------


def is_token(data: bytes) -> bool:
    """Whether a lock holds what a driver that was killed leaves in it."""
    return len(data) == 16 and not set(data) - set(b"0123456789abcdef")


class _FileLease(Lease):
    def __init__(self, place: str, path: Path, handle: int):
        super().__init__(secrets.token_hex(8), place)
        self.path = path
        os.ftruncate(handle, 0)
        os.pwrite(handle, self.token.encode(), 0)

    def check(self) -> None:
        try:
            held = self.path.read_bytes() == self.token.encode()
        except FileNotFoundError:
            held = False
        if not held:
            raise self._lost()


@contextlib.contextmanager
def _locked(store: FolderStorage, name: str, shared: bool, patience: float) -> Iterator[Lease]:
    path = store.path(name)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        until = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(handle, kind | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise _taken(store.place) from None
                time.sleep(0.05)
        if shared:
            os.ftruncate(handle, 0)  # what a driver that was killed left in it
            yield Lease("", store.place)
        else:
            lease = _FileLease(store.place, path, handle)
            try:
                yield lease
            finally:
                with contextlib.suppress(OSError, JobError):
                    lease.check()
                    os.ftruncate(handle, 0)  # the file stays, and is the same for every job
    finally:
        os.close(handle)


# -- an object store -----------------------------------------------------------------------------


class _ObjectLease(Lease):
    def __init__(self, store: ObjectStorage, name: str, number: int):
        super().__init__(secrets.token_hex(8), store.place)
        self.store, self.name, self.number = store, name, number
        self.beats = 0
        self.key = f"{_LEASES}/{name}.{number:06d}"
        self._ended = threading.Event()

    def body(self) -> bytes:
        """What is put: who holds it, and how often it was put."""
        self.beats += 1
        return json.dumps({"token": self.token, "beats": self.beats, **_myself()}).encode()

    def check(self) -> None:
        numbers = [number for name, number in _numbers(self.store) if name == self.name]
        if max(numbers, default=0) != self.number:
            raise self._lost()

    def start(self) -> None:
        """Show signs of life from now on."""
        threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            # What goes wrong here is met, and told, by those who check and publish.
            with contextlib.suppress(Exception):
                self.check()
                self.store.note(self.key, self.body())

    def end(self) -> None:
        """Give it back."""
        self._ended.set()
        self.store.remove(self.key)


@contextlib.contextmanager
def _leased(store: ObjectStorage, name: str, shared: bool, patience: float) -> Iterator[Lease]:
    # So that the tree is that of a file system, whose lock is an empty file.
    if name == RUN and store.size(_file(RUN)) is None:
        store.note(_file(RUN), b"")
    if shared:  # the parts' own leases are what counts; the whole run's must not be held
        _wait_until_free(store, RUN, patience)
        yield Lease("", store.place)
        return
    lease = _acquired(store, name, patience)
    lease.start()
    try:
        if name == RUN:  # the whole run: no part of an array may be at work
            for other in {other for other, _ in _numbers(store)} - {name}:
                _wait_until_free(store, other, patience)
        elif "-of-" in name:
            _wait_until_free(store, RUN, patience)
        yield lease
    finally:
        lease.end()


def _acquired(store: ObjectStorage, name: str, patience: float) -> _ObjectLease:
    while True:
        _wait_until_free(store, name, patience)
        numbers = [number for other, number in _numbers(store) if other == name]
        lease = _ObjectLease(store, name, max(numbers, default=0) + 1)
        if store.create(lease.key, lease.body()):
            for number in numbers:
                store.remove(f"{_LEASES}/{name}.{number:06d}")
            return lease


def _wait_until_free(store: ObjectStorage, name: str, patience: float) -> None:
    """Return once nobody holds `name`; SourceError as soon as its holder is seen to be alive."""
    since, last = time.monotonic(), b""
    until, told = since + patience, False
    while True:
        held = {n: text for (o, n), text in _leases(store).items() if o == name}
        text = held[max(held)] if held else b""
        if not held or _is_dead(text):
            return
        now = time.monotonic()
        if text != last:
            alive = last != b"" or _is_alive_here(text)
            if alive and now >= until:
                raise _taken(store.place)
            since, last = now, text
        elif now >= until and _is_alive_here(text):
            raise _taken(store.place)
        if now - since >= DEAD:
            return
        if not told and now - since > 3.0:
            told = True
            print(
                f"{store.place}: another run holds it, or was killed on another machine; waiting "
                f"for up to {DEAD:g} s to see whether it shows life",
                file=sys.stderr,
                flush=True,
            )
        time.sleep(0.5)


def _numbers(store: ObjectStorage) -> list[tuple[str, int]]:
    found = []
    for key in store.files(_LEASES):
        name, _, number = key.rpartition(".")
        if number.isdecimal():
            found.append((name, int(number)))
    return found


def _leases(store: ObjectStorage) -> dict[tuple[str, int], bytes]:
    found = {}
    for name, number in _numbers(store):
        with contextlib.suppress(FileNotFoundError):
            found[name, number] = store.read(f"{_LEASES}/{name}.{number:06d}")
    return found


def _myself() -> dict:
    return {"host": socket.gethostname(), "boot": _boot(), "pid": os.getpid(), "born": _born()}


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _born(pid: int | None = None) -> str:
    """When a process started, in ticks since the machine did; "" where there is none."""
    try:
        return Path(f"/proc/{pid or os.getpid()}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _here(text: bytes) -> dict | None:
    """Who holds a lease, if it is a process of this machine, since it was started."""
    try:
        holder = json.loads(text)
        same = (holder["host"], holder["boot"]) == (socket.gethostname(), _boot())
        return holder if same and holder["boot"] and holder["born"] else None
    except (ValueError, KeyError, TypeError):
        return None


def _is_dead(text: bytes) -> bool:
    """Whether the holder is known to be dead: a process of this machine that is no more."""
    holder = _here(text)
    return holder is not None and _born(int(holder["pid"])) != holder["born"]


def _is_alive_here(text: bytes) -> bool:
    holder = _here(text)
    return holder is not None and _born(int(holder["pid"])) == holder["born"]

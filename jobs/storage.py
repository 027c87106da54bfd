"""Where a job's OUT lies: a folder of a file system, or a prefix of an object store (by fsspec).

A name is a path below OUT with "/" between its parts. Both kinds keep one promise: a file under its
final name is whole. A folder does it by fsync and rename; an object store has no rename, but every
put and every copy inside the store is whole or not there, and what counts is what the ledger's
record, put last, names.
"""

from __future__ import annotations

import abc
import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from ..readers.errors import SourceError
from ..writers.atomic import fsync_dir, publish, write_synced
from .remote import Remote, is_url

FOLDER = ".wristaugment"  # below OUT: the ledger
_AT_ONCE = 16  # requests to an object store at a time


def open_storage(out: Path | str) -> Storage:
    """The storage of an --out: a path, or a URL that fsspec knows (s3://, gs://, ...)."""
    return ObjectStorage(str(out)) if is_url(out) else FolderStorage(Path(out))


class Storage(abc.ABC):
    """The files of one OUT.

    Attributes:
        place: what messages call it, the path or the URL.
        folder: the path where it is a folder of a file system, else None.
    """

    place: str
    folder: Path | None = None

    def where(self, name: str) -> str:
        """What messages call a file or folder of it."""
        return f"{self.place}/{name}" if name else self.place

    @abc.abstractmethod
    def read(self, name: str) -> bytes:
        """The bytes of a file; FileNotFoundError where there is none."""

    @abc.abstractmethod
    def write(self, name: str, data: bytes, staged: str) -> None:
        """Write a file whole or not at all, on the disk when this returns.

        Args:
            staged: a name in staging that nobody else has; where a folder is written to first.
        """

    @abc.abstractmethod
    def writing(self, staged: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """A file in staging to write to; it is there, and on the disk, when the context ends."""

    @abc.abstractmethod
    def move(self, staged: str, name: str) -> None:
        """Put a file that was written to staging in its place."""

    @abc.abstractmethod
    def note(self, name: str, data: bytes) -> None:
        """Write a small file that need not survive a power cut; its folder must be there.

        Raises:
            FileNotFoundError: the folder is not there (an object store has none to miss).
        """

    @abc.abstractmethod
    def create(self, name: str, data: bytes) -> bool:
        """Write a small file unless there is one of that name; whether it was written."""

    @abc.abstractmethod
    def size(self, name: str) -> int | None:
        """The bytes of a file, or of all files of a folder ("name/"); None without any."""

    @abc.abstractmethod
    def files(self, folder: str) -> dict[str, int]:
        """{path below the folder: bytes} of every file in it and below."""

    @abc.abstractmethod
    def children(self, folder: str) -> set[str]:
        """The names of the files and folders right in a folder ("": OUT itself)."""

    @abc.abstractmethod
    def make_folder(self, name: str) -> None:
        """mkdir -p, made durable. Object stores have no folders."""

    @abc.abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

    @abc.abstractmethod
    def remove_folder(self, name: str) -> None:
        """Remove a folder and all in it, as far as that goes."""

    @abc.abstractmethod
    def publish(self, staged: str, names: Iterable[str], place: str, aside: str) -> None:
        """Put staged files and folders in their places, over what is there.

        Args:
            staged: the folder that they lie in. names: below it; a folder's ends in "/".
            place: the folder that they belong in, under the same names.
            aside: a name in staging nobody has, for what is replaced.
        """

    @abc.abstractmethod
    def settle(self, folder: str) -> None:
        """Make the names right in a folder survive a power cut."""


class FolderStorage(Storage):
    """OUT as a folder of a file system, perhaps one that many machines share."""

    folder: Path

    def __init__(self, root: Path):
        self.folder = root
        self.place = str(root)

    def path(self, name: str) -> Path:
        """Where a name lies."""
        return self.folder / name if name else self.folder

    def read(self, name: str) -> bytes:
        return self.path(name).read_bytes()

    def write(self, name: str, data: bytes, staged: str) -> None:
        write_synced(self.path(staged), data)
        publish(self.path(staged), self.path(name))

    @contextlib.contextmanager
    def writing(self, staged: str) -> Iterator[BinaryIO]:
        with open(self.path(staged), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())

    def move(self, staged: str, name: str) -> None:
        publish(self.path(staged), self.path(name))

    def note(self, name: str, data: bytes) -> None:
        with open(self.path(name), "wb", buffering=0) as file:
            file.write(data)

    def create(self, name: str, data: bytes) -> bool:
        try:
            with open(self.path(name), "xb", buffering=0) as file:
                file.write(data)
        except FileExistsError:
            return False
        return True

    def size(self, name: str) -> int | None:
        path = self.path(name)
        if path.is_dir():
            return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        try:
            return path.stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def files(self, folder: str) -> dict[str, int]:
        found: dict[str, int] = {}
        waiting = [("", self.path(folder))]
        while waiting:
            below, path = waiting.pop()
            with (
                contextlib.suppress(FileNotFoundError, NotADirectoryError),
                os.scandir(path) as rows,
            ):
                for row in rows:
                    if row.is_dir(follow_symlinks=False):
                        waiting.append((f"{below}{row.name}/", Path(row.path)))
                    else:
                        with contextlib.suppress(FileNotFoundError):
                            found[f"{below}{row.name}"] = row.stat().st_size
        return found

    def children(self, folder: str) -> set[str]:
        try:
            return {entry.name for entry in self.path(folder).iterdir()}
        except FileNotFoundError:
            return set()

    def make_folder(self, name: str) -> None:
        _make_folder(self.path(name))

    def remove(self, name: str) -> None:
        self.path(name).unlink(missing_ok=True)

    def remove_folder(self, name: str) -> None:
        path = self.path(name)
        for _ in range(20):  # an orphaned actor may add a file between the listing and the rmdir
            shutil.rmtree(path, ignore_errors=True)
            if not path.exists():
                return
            time.sleep(0.05)

    def publish(self, staged: str, names: Iterable[str], place: str, aside: str) -> None:
        old, new = self.path(staged), self.path(place)
        names = list(names)
        folders = dict.fromkeys((new / name).parent for name in names)
        for folder in folders:
            _make_folder(folder)
        for count, name in enumerate(names):
            if name.endswith("/") and (new / name).is_dir():  # a full folder is in a rename's way
                os.replace(new / name, self.path(f"{aside}-{count}"))
            publish(old / name, new / name, sync_dir=False)
        for folder in folders:
            fsync_dir(folder)

    def settle(self, folder: str) -> None:
        fsync_dir(self.path(folder))


def _make_folder(folder: Path) -> None:
    """mkdir -p, with each new name made durable in its parent."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    fsync_dir(folder.parent)


class ObjectStorage(Storage):
    """OUT as a prefix of an object store.

    Args:
        url: as in "s3://bucket/droid-wrist". Addresses and keys of the store are what the store's
            own package reads from its environment.

    Raises:
        SourceError: it is no usable URL, or the store's package is not installed.
    """

    def __init__(self, url: str):
        self.remote = Remote(url)
        self.place = self.remote.url

    @property
    def fs(self) -> Any:
        """The fsspec file system."""
        return self.remote.fs

    def key(self, name: str) -> str:
        """The full key of a name."""
        return self.remote.path_of(name.rstrip("/"))

    def read(self, name: str) -> bytes:
        return self._asked(self.fs.cat_file, self.key(name))

    def write(self, name: str, data: bytes, staged: str) -> None:
        self.note(name, data)

    @contextlib.contextmanager
    def writing(self, staged: str) -> Iterator[BinaryIO]:
        with tempfile.NamedTemporaryFile() as file:
            yield file  # type: ignore[misc] # a wrapper of a BinaryIO
            file.flush()
            self.put(Path(file.name), staged)

    def move(self, staged: str, name: str) -> None:
        self._copy(staged, name)

    def note(self, name: str, data: bytes) -> None:
        self._sent(self.fs.pipe_file, self.key(name), data)

    def create(self, name: str, data: bytes) -> bool:
        try:
            self._sent(self.fs.pipe_file, self.key(name), data, mode="create")
        except FileExistsError:
            return False
        return True

    def size(self, name: str) -> int | None:
        if name.endswith("/"):
            found = self.files(name)
            return sum(found.values()) if found else None
        try:
            info = self._asked(self.fs.info, self.key(name))
        except FileNotFoundError:
            return None
        return info["size"] if info["type"] == "file" else None

    def files(self, folder: str) -> dict[str, int]:
        key = self.key(folder)
        try:
            rows = self._asked(self.fs.find, key, detail=True)
        except FileNotFoundError:
            return {}
        return {
            name[len(key) + 1 :]: row["size"] or 0
            for name, row in rows.items()
            if name.startswith(f"{key}/") and not name.endswith("/")
        }

    def children(self, folder: str) -> set[str]:
        key = self.key(folder)
        try:
            rows = self._asked(self.fs.ls, key, detail=False)
        except FileNotFoundError:
            return set()
        found = {row.rstrip("/")[len(key) + 1 :] for row in rows if row.startswith(f"{key}/")}
        return found - {""}

    def make_folder(self, name: str) -> None:
        pass

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._asked(self.fs.rm_file, self.key(name))

    def remove_folder(self, name: str) -> None:
        self._each(self.remove, [f"{name}/{below}" for below in self.files(name)])

    def publish(self, staged: str, names: Iterable[str], place: str, aside: str) -> None:
        below = f"{place}/" if place not in ("", ".") else ""
        pairs: list[tuple[str, str]] = []
        stale: list[str] = []
        for name in names:
            if not name.endswith("/"):
                pairs.append((f"{staged}/{name}", f"{below}{name}"))
                continue
            inside = self.files(f"{staged}/{name}")
            pairs += [(f"{staged}/{name}{file}", f"{below}{name}{file}") for file in inside]
            stale += [f"{below}{name}{f}" for f in self.files(f"{below}{name}") if f not in inside]
        self._each(self.remove, stale)
        self._each(lambda pair: self._copy(*pair), pairs)

    def _copy(self, old: str, new: str) -> None:
        self._asked(self.fs.cp_file, self.key(old), self.key(new))

    def age(self, name: str) -> float:
        """Seconds since a file was put, by this machine's clock; infinity where there is none."""
        try:
            put = self._asked(self.fs.modified, self.key(name))
        except FileNotFoundError:
            return float("inf")
        return (datetime.now(UTC) - put.astimezone(UTC)).total_seconds()

    def put(self, path: Path, name: str) -> None:
        """Send a file of this machine."""
        self._sent(self.fs.put_file, str(path), self.key(name))

    def put_folder(self, folder: Path, name: str) -> None:
        """Send every file below a folder of this machine, under the same paths."""
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        self._each(
            lambda path: self.put(path, f"{name}/{path.relative_to(folder).as_posix()}"), files
        )

    def settle(self, folder: str) -> None:
        pass

    def _each(self, call: Callable[[Any], object], items: list) -> None:
        if len(items) < 2:
            for item in items:
                call(item)
            return
        with ThreadPoolExecutor(min(_AT_ONCE, len(items))) as pool:
            for _ in pool.map(call, items):
                pass

    def _sent(self, call: Callable, *args: Any, **how: Any) -> None:
        try:
            self._asked(call, *args, **how)
        except FileNotFoundError as error:
            raise SourceError(
                f"cannot be written to ({error})",
                file=self.place,
                key="--out",
                todo="make the bucket, or name another",
            ) from error

    def _asked(self, call: Callable, *args: Any, **how: Any) -> Any:
        try:
            return call(*args, **how)
        except (FileNotFoundError, FileExistsError):
            raise
        except Exception as error:
            raise self.remote.error(error, "used") from error

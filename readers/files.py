"""Opening what lies in a dataset's folder, which may be anything: a pipe, a device, a huge file.

A folder may also stand for one that lies elsewhere (in an object store, say): its files have their
names and sizes, and their content comes when it is asked for. Whoever opens a file of a dataset by
its path calls `present` before; for ordinary files that costs nothing. How content comes is for
those who `register` such folders; readers know no network.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

from .errors import RemoteError, SourceError

_BLOCK = 1 << 16  # bytes of a file elsewhere that are read at a time
_KEPT = 256  # such blocks in memory
_NO_NAME = re.compile(r"[/\\\x00-\x1f]")
_TEXT = 1 << 26  # bytes; metadata of a hundred thousand shards is a megabyte
_Place = TypeVar("_Place", bound=str | Path)


class Provider(Protocol):
    """What brings the content of the files below a folder. All raise RemoteError, SourceError."""

    def fetch(self, path: str) -> None:
        """Have the content of a file be there; nothing where there is no such file."""

    def fetch_all(self, paths: Sequence[str]) -> None:
        """As `fetch`, of several at a time."""

    def is_away(self, path: str) -> bool:
        """Whether a file's content would have to be fetched."""
        ...

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """Some of a file's bytes, fewer at its end; nothing is stored."""
        ...


_PROVIDERS: dict[str, Provider] = {}


def register(root: Path, provider: Provider) -> None:
    """Have `provider` bring the content of what lies at and below `root` (absolute, resolved)."""
    _PROVIDERS[str(root)] = provider


def provider_of(path: Path | str) -> Provider | None:
    """Who brings a file's content; None for ordinary files."""
    text = os.fspath(path)
    for root, provider in _PROVIDERS.items():
        if text.startswith(root) and (len(text) == len(root) or text[len(root)] == os.sep):
            return provider
    return None


def present(path: _Place) -> _Place:
    """`path`, whose content is there from here on; to be called before a file is opened.

    Raises:
        RemoteError: it lies elsewhere and cannot be brought here now, or there is no room for it.
        SourceError: it is not what it was when it was listed.
    """
    if _PROVIDERS and (provider := provider_of(path)) is not None:
        provider.fetch(os.fspath(path))
    return path


def present_all(paths: Iterable[Path | str]) -> None:
    """As `present`, of many small files at a time; ordinary paths are not even asked for."""
    if not _PROVIDERS:
        return
    wanted: dict[int, tuple[Provider, list[str]]] = {}
    for path in paths:
        if (provider := provider_of(path)) is not None:
            wanted.setdefault(id(provider), (provider, []))[1].append(os.fspath(path))
    for provider, texts in wanted.values():
        provider.fetch_all(texts)


def read_range(path: Path | str, start: int, length: int) -> bytes:
    """Bytes [start, start + length) of a file, fewer where it ends before.

    Of a file that lies elsewhere no more than these are brought here.

    Raises:
        OSError: it cannot be opened.
        RemoteError, SourceError: as `present`.
    """
    if _PROVIDERS and (provider := provider_of(path)) is not None:
        return provider.read_range(os.fspath(path), start, length)
    with open(path, "rb", buffering=0) as file:
        return read_at(file.fileno(), start, length)


def read_at(handle: int, start: int, length: int) -> bytes:
    """Bytes [start, start + length) of an open file, fewer where it ends before."""
    parts, at = [], start
    length = min(length, os.fstat(handle).st_size - start)  # memory is asked for what is asked for
    while length > 0 and (part := os.pread(handle, length, at)):
        parts.append(part)
        at, length = at + len(part), length - len(part)
    return b"".join(parts)


def open_regular(path: Path) -> BinaryIO:
    """A regular file (or a link to one), to read; a pipe or a device would never end.

    Raises:
        OSError: it cannot be opened.
        SourceError: it is no regular file.
    """
    # Without O_NONBLOCK the open alone would wait for a pipe's writer.
    handle = os.open(present(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise SourceError("is no regular file", file=path, todo="restore it from the source")
    return open(handle, "rb")


def read_text(path: Path) -> str:
    """What a metadata file says.

    Raises:
        SourceError: it is missing, no regular file, too large for metadata, or not UTF-8.
    """
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size > _TEXT:
                raise SourceError(
                    f"is more than {_TEXT} bytes long, too much for metadata",
                    file=path,
                    todo="restore it from the source",
                )
            return file.read().decode("utf-8")
    except RemoteError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise SourceError(
            f"cannot be read ({reason})", file=path, todo="restore it from the source"
        ) from None


def walk_files(folder: str) -> Iterator[str]:
    """Every file below a folder, links to files too but not into folders, in the order of sorted
    Paths; as text, since a million Paths take seconds to make and sort.

    Raises:
        OSError: a folder may not be read.
    """
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False):
                yield from walk_files(entry.path)
            elif os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file():
                yield entry.path


def file_sha256(path: Path) -> str:
    """The SHA-256 of a whole file, in hex."""
    with open(present(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Ranged(io.RawIOBase):
    """A file that lies elsewhere, of which no more is brought here than is read, in blocks.

    Args:
        path: it. provider: who reads it.

    Attributes:
        failed: what the provider raised last; libraries that are given such a file may hide it.
    """

    def __init__(self, path: Path | str, provider: Provider):
        self._path, self._provider = os.fspath(path), provider
        self._size, self._at = os.stat(path).st_size, 0
        self._blocks: dict[int, bytes] = {}
        self.failed: Exception | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer) -> int:
        view, done = memoryview(buffer).cast("B"), 0
        # All that is asked for: HDF5 takes no less for the end of the file.
        while done < len(view) and self._at < self._size:
            number, start = divmod(self._at, _BLOCK)
            part = self._block(number)[start : start + len(view) - done]
            view[done : done + len(part)] = part
            done, self._at = done + len(part), self._at + len(part)
        return done

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            try:
                data = self._provider.read_range(self._path, number * _BLOCK, _BLOCK)
            except Exception as error:
                self.failed = error
                raise
            while len(self._blocks) >= _KEPT:
                self._blocks.pop(next(iter(self._blocks)))
            self._blocks[number] = data
        return self._blocks[number]


def is_away(path: Path | str) -> bool:
    """Whether a file lies elsewhere and is not here yet."""
    provider = provider_of(path) if _PROVIDERS else None
    return provider is not None and provider.is_away(os.fspath(path))


def ranged(path: Path | str) -> Ranged | None:
    """A file of which only a little will be read, if it is away; None where it can be opened."""
    provider = provider_of(path)
    return Ranged(path, provider) if provider and provider.is_away(os.fspath(path)) else None


def is_plain_name(name: object) -> bool:
    """Whether `name` is the name of one file or folder, and no path that leads elsewhere."""
    if not isinstance(name, str) or name in ("", ".", "..") or len(name.encode()) > 255:
        return False
    return _NO_NAME.search(name) is None

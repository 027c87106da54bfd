"""The files of a zarr store, in a folder or in a zip, by key, and nothing that lies outside of it.

Keys are those of zarr: names below the store's root joined with `/`. Only reading is done here;
what a key's bytes mean is told in readers/zarr_array.
"""

from __future__ import annotations

import abc
import os
import re
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath

from .errors import SourceError
from .files import present, present_all

LARGEST_PIECE = 1 << 30  # bytes of one chunk; Blosc itself ends at twice that
LARGEST_METADATA = 64 << 20  # bytes of one metadata file: consolidated ones grow with the arrays
METADATA = (".zarray", ".zattrs", ".zgroup", ".zmetadata", "zarr.json")
_CHUNK = re.compile(r"(c[/.])?\d+([/.]\d+)*")
_HEADER = 30  # bytes of a member's own header in a zip, before its name
_ENCRYPTED = 0x1


class Store(abc.ABC):
    """Keys and their bytes.

    Attributes:
        path: the folder or the zip; messages name it.
    """

    path: Path

    @abc.abstractmethod
    def walk(self, under: str = "") -> Iterator[str]:
        """Every key that begins with `under` (a folder's name and "/", or nothing), sorted.

        Raises:
            SourceError: something that is no plain file of the store lies there.
        """

    @abc.abstractmethod
    def size(self, key: str) -> int | None:
        """How many bytes a key holds, or None where there is no such key."""

    @abc.abstractmethod
    def _read(self, key: str) -> bytes: ...

    @cached_property
    def counts(self) -> Counter[str]:
        """How many chunks there are of each `<group>/<array>`."""
        found: Counter[str] = Counter()
        for key in self.walk():
            parts = key.split("/", 2)
            if len(parts) == 3 and _CHUNK.fullmatch(parts[2]):
                found[f"{parts[0]}/{parts[1]}"] += 1
        return found

    def prepare(self, keys: Iterable[str]) -> None:
        """Say that these keys will be read soon, so that what lies elsewhere comes at once."""
        return None

    @abc.abstractmethod
    def children(self, folder: str) -> list[str]:
        """The names right below a folder of the store, sorted; none where there is no such."""

    def has(self, key: str) -> bool:
        """Whether there is such a key."""
        return self.size(key) is not None

    def read(self, key: str, limit: int = LARGEST_PIECE) -> bytes | None:
        """The bytes of a key, or None where there is no such key.

        Raises:
            SourceError: there are more than `limit` bytes, or they are damaged.
        """
        size = self.size(key)
        if size is None:
            return None
        if size > limit:
            raise SourceError(
                f"{size} bytes, where at most {limit} are read",
                file=self.path,
                key=key,
                todo="check where this store comes from",
            )
        return self._read(key)


class FolderStore(Store):
    """A store in a folder (zarr's DirectoryStore, NestedDirectoryStore and LocalStore)."""

    def __init__(self, path: Path):
        self.path = path

    def walk(self, under: str = "") -> Iterator[str]:
        if (self.path / under).is_dir():
            yield from self._below(str(self.path / under), under.strip("/"))

    def _below(self, folder: str, prefix: str) -> Iterator[str]:
        with os.scandir(folder) as entries:
            # Names alone are kept, and links are told apart here: a folder may hold a million.
            found = sorted((entry.name, _kind(entry)) for entry in entries)
        for name, kind in found:
            key = f"{prefix}/{name}" if prefix else name
            if kind == "folder":
                yield from self._below(f"{folder}/{name}", key)
            elif kind == "file":
                yield key
            else:
                raise SourceError(
                    f"there is a {kind} in the store; only plain files are read",
                    file=self.path,
                    key=key,
                    todo="copy the store with its contents (cp -rL) from where it is trusted",
                )

    def size(self, key: str) -> int | None:
        try:
            found = os.lstat(self.path / key)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def prepare(self, keys: Iterable[str]) -> None:
        present_all(f"{self.path}/{key}" for key in keys)

    def _read(self, key: str) -> bytes:
        return present(self.path / key).read_bytes()

    def children(self, folder: str) -> list[str]:
        below = self.path / folder
        return sorted(os.listdir(below)) if below.is_dir() and not below.is_symlink() else []


class ZipStore(Store):
    """A store in a zip (zarr's ZipStore); where a name comes twice, the last one counts.

    Raises:
        SourceError: it is no whole zip, or has members that no zarr store has.
    """

    def __init__(self, path: Path):
        self.path = present(path)
        try:
            self.zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
            raise SourceError(
                f"no whole zip ({error})", file=path, todo="fetch the file again"
            ) from None
        self._check()

    def _check(self) -> None:
        infos = sorted(self.zip.infolist(), key=lambda info: info.header_offset)
        ends = [info.header_offset for info in infos[1:]] + [self.zip.start_dir]
        for info, end in zip(infos, ends, strict=True):
            parts = PurePosixPath(info.filename).parts
            wrong = None
            if info.filename.startswith(("/", "\\")) or ".." in parts or "\\" in info.filename:
                wrong = "a member's name leaves the store"
            elif info.flag_bits & _ENCRYPTED:
                wrong = "a member is encrypted"
            elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                wrong = "a member is neither stored nor deflated"
            elif end - info.header_offset < _HEADER + info.compress_size:
                wrong = "members overlap, or lie outside of the file"
            if wrong:
                raise SourceError(
                    wrong,
                    file=self.path,
                    key=info.filename,
                    todo="this is no zip that zarr wrote; check where it comes from",
                )

    def walk(self, under: str = "") -> Iterator[str]:
        for name in sorted(self.zip.NameToInfo):
            if name.startswith(under) and not name.endswith("/"):
                yield name

    def size(self, key: str) -> int | None:
        info = self.zip.NameToInfo.get(key)
        return None if info is None else info.file_size

    def _read(self, key: str) -> bytes:
        try:
            return self.zip.read(key)
        except (zipfile.BadZipFile, EOFError, zlib.error) as error:
            raise SourceError(
                f"the zip's member is damaged ({error})",
                file=self.path,
                key=key,
                todo="fetch the file again",
            ) from None

    def children(self, folder: str) -> list[str]:
        start = folder.rstrip("/") + "/"
        names = (name for name in self.zip.NameToInfo if name.startswith(start))
        return sorted({name[len(start) :].split("/", 1)[0] for name in names} - {""})


def open_store(path: Path) -> Store:
    """The store in a folder or a zip.

    Raises:
        SourceError: it is no whole zip, or has members that no zarr store has.
    """
    return FolderStore(path) if path.is_dir() else ZipStore(path)


def _kind(entry: os.DirEntry) -> str:
    if entry.is_symlink():
        return "symbolic link"
    if entry.is_dir():
        return "folder"
    return "file" if entry.is_file() else "device or pipe"

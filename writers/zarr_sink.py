"""Where the files of a new zarr store go: a folder, or a zip.

A zip takes the members of another as they lie there, headers and compressed bytes alike, in the
longest runs there are: nothing is unpacked, and a store of gigabytes costs what copying it costs.
"""

from __future__ import annotations

import contextlib
import copy
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import google_crc32c

from ..readers.files import present
from .atomic import copy_bytes
from .copy import file_crc

_DATE = (1980, 1, 1, 0, 0, 0)  # the first that zip knows: the same bytes whenever it is written
_MODE = 0o644 << 16
_BUFFER = 1 << 20


class ZipSink:
    """Writes a zip; use it as a context, at whose end the list of members is written.

    Args:
        path: the new file.
    """

    def __init__(self, path: Path):
        self._file = open(path, "wb+")  # noqa: SIM115 (closed in __exit__)
        self._zip = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED, allowZip64=True)

    def __enter__(self) -> ZipSink:
        return self

    def __exit__(self, kind, *rest) -> None:
        try:
            with contextlib.nullcontext() if kind is None else contextlib.suppress(Exception):
                self._zip.close()
            self._file.flush()
            os.fsync(self._file.fileno())
        finally:
            self._file.close()

    def write(self, key: str, data: bytes) -> None:
        """Add a member, stored as it is."""
        info = zipfile.ZipInfo(key, _DATE)
        info.external_attr = _MODE
        self._zip.writestr(info, data)

    def take(self, old: zipfile.ZipFile, keep: Callable[[str], bool]) -> None:
        """Copy members of another zip, in their order there; call it before `write`.

        Args:
            old: a zip file whose members do not overlap.
            keep: which names.
        """
        assert old.filename is not None
        with open(present(old.filename), "rb") as file:
            infos = sorted(old.infolist(), key=lambda info: info.header_offset)
            ends = [info.header_offset for info in infos[1:]] + [old.start_dir]
            run: tuple[int, int] | None = None  # of bytes that are kept
            if infos and keep(infos[0].filename):
                run = (0, infos[0].header_offset)  # what stands before the first member
            kept: dict[int, int] = {}  # where the header of each lies now
            there = 0
            for info, end in zip(infos, ends, strict=True):
                if keep(info.filename):
                    start = run[0] if run else info.header_offset
                    kept[info.header_offset] = there + info.header_offset - start
                    run = (start, end)
                elif run:
                    there += self._copy(file, *run)
                    run = None
            if run:
                there += self._copy(file, *run)
            # The list keeps its own order, which need not be that of the bytes. zipfile has no
            # call that takes over a member as it is; these are the fields that `close` writes from.
            for info in old.infolist():
                if info.header_offset in kept:
                    moved = kept[info.header_offset]
                    mine = info if moved == info.header_offset else copy.copy(info)
                    mine.header_offset = moved
                    self._zip.filelist.append(mine)
                    self._zip.NameToInfo[mine.filename] = mine
            self._zip.start_dir = there
            self._zip._didModify = True  # type: ignore[attr-defined]

    def _copy(self, file, start: int, end: int) -> int:
        """Append bytes [start, end) of a file; returns how many."""
        self._file.flush()
        left, offset = end - start, start
        try:
            while left and (
                count := os.copy_file_range(file.fileno(), self._file.fileno(), left, offset)
            ):
                left, offset = left - count, offset + count
        except OSError:
            if left != end - start:
                raise
            file.seek(start)
            while left and (chunk := file.read(min(left, _BUFFER))):
                self._file.write(chunk)
                left -= len(chunk)
            self._file.flush()
        self._file.seek(0, os.SEEK_END)
        if left:
            raise OSError(f"{file.name} ended early")
        return end - start


class FolderSink:
    """Writes keys as files below a folder; whoever stages them brings them to the disk.

    Attributes:
        known: key -> [bytes, crc32c] of all that was written; `sync_files` brings it to the disk.
    """

    def __init__(self, path: Path):
        self.path = path
        self.known: dict[str, list] = {}
        self._last = ""
        os.makedirs(path, exist_ok=True)

    def __enter__(self) -> FolderSink:
        return self

    def __exit__(self, *error) -> None:
        pass

    def write(self, key: str, data: bytes) -> None:
        """Write one file."""
        with open(self._place(key), "wb", buffering=0) as file:
            file.write(data)
        self.known[key] = [len(data), google_crc32c.value(data)]

    def take(self, source: Path, key: str) -> None:
        """Copy one file of a folder store."""
        with open(present(f"{source}/{key}"), "rb", buffering=0) as old:
            if os.fstat(old.fileno()).st_size <= _BUFFER:
                # In one piece each way: most files of a store are small.
                self.write(key, old.read())
            else:
                place = Path(self._place(key))
                with open(place, "wb") as new:
                    copy_bytes(old, new)
                self.known[key] = [place.stat().st_size, file_crc(place)]

    def _place(self, key: str) -> str:
        folder = key.rpartition("/")[0]
        if folder != self._last:
            # Zarr 3 gives every frame folders of its own; most of the way to them is there.
            try:
                os.mkdir(f"{self.path}/{folder}")
            except FileExistsError:
                pass
            except FileNotFoundError:
                os.makedirs(f"{self.path}/{folder}")
            self._last = folder
        return f"{self.path}/{key}"

"""Opening what lies in a dataset's folder, which may be anything: a pipe, a device, a huge file."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import SourceError

_NO_NAME = re.compile(r"[/\\\x00-\x1f]")
_TEXT = 1 << 26  # bytes; metadata of a hundred thousand shards is a megabyte


def open_regular(path: Path) -> BinaryIO:
    """A regular file (or a link to one), to read; a pipe or a device would never end.

    Raises:
        OSError: it cannot be opened.
        SourceError: it is no regular file.
    """
    # Without O_NONBLOCK the open alone would wait for a pipe's writer.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
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
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_plain_name(name: object) -> bool:
    """Whether `name` is the name of one file or folder, and no path that leads elsewhere."""
    if not isinstance(name, str) or name in ("", ".", "..") or len(name.encode()) > 255:
        return False
    return _NO_NAME.search(name) is None

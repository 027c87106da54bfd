"""Files that are either absent or whole: staged beside their place, fsynced, renamed."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

_COPY_BUFFER = 1 << 20


def staged_name(path: Path) -> Path:
    """Where `path` is written before it is renamed; fixed, so that a second try overwrites it."""
    return path.with_name(f".{path.name}.staged")


def fsync_dir(folder: Path) -> None:
    """Make the names in `folder` (its creations, renames and removals) survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems do not know fsync of a folder; they order renames themselves.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def publish(staged: Path, path: Path, *, sync_dir: bool = True) -> None:
    """Rename a written and fsynced file to its place, replacing what is there."""
    os.replace(staged, path)
    if sync_dir:
        fsync_dir(path.parent)


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and bring its bytes to the disk; the way to stage what `publish` renames."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_atomic(path: Path, data: bytes, *, sync_dir: bool = True) -> None:
    """Write a file so that a reader sees the old one or the whole new one, never a part.

    Args:
        sync_dir: False where the caller calls `fsync_dir` once after several files.

    Raises:
        OSError: the disk is full, or the folder may not be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = staged_name(path)
    write_synced(staged, data)
    publish(staged, path, sync_dir=sync_dir)


def copy_atomic(source: Path, path: Path, *, sync_dir: bool = True) -> None:
    """Copy a file's bytes (not its mode or times) so that the copy is absent or whole.

    Args:
        sync_dir: False where the caller calls `fsync_dir` once after several files.

    Raises:
        OSError: the source cannot be read, or the target not be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = staged_name(path)
    with open(source, "rb") as old, open(staged, "wb") as new:
        shutil.copyfileobj(old, new, _COPY_BUFFER)
        new.flush()
        os.fsync(new.fileno())
    publish(staged, path, sync_dir=sync_dir)

"""Files that are either absent or whole: staged beside their place, fsynced, renamed."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from ..readers.files import present

_COPY_BUFFER = 1 << 20
_KERNEL_COPY = 1 << 30
_LIBC = ctypes.CDLL(None, use_errno=True)
_LOCAL = frozenset(("ext3", "ext4", "xfs", "f2fs", "btrfs", "tmpfs"))
_MANY, _AT_ONCE = 16, 16


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


def sync_files(folder: Path, names: Sequence[str]) -> None:
    """Bring the bytes of many files below `folder` to the disk.

    Thousands of small files would be thousands of flushes one after another. On a file system of
    this machine's own they are brought there in one call (which waits for what others write to it,
    too); elsewhere, and on kernels that keep a failure in this call to themselves, several files
    are flushed at a time.

    Raises:
        OSError: the disk is full or broken.
    """
    if len(names) > _MANY and _syncs_whole(folder):
        _sync_file_system(folder)
    elif len(names) > 1:
        with ThreadPoolExecutor(min(len(names), _AT_ONCE)) as pool:
            for _ in pool.map(lambda name: _fsync(folder / name), names):
                pass
    else:
        for name in names:
            _fsync(folder / name)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _syncs_whole(folder: Path) -> bool:
    """Whether `syncfs` of the folder's file system reaches the disk, and tells if it does not."""
    if not hasattr(_LIBC, "syncfs") or _kernel() < (5, 8):
        return False
    number = os.stat(folder).st_dev
    wanted = f"{os.major(number)}:{os.minor(number)}"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as table:
            for line in table:
                place, _, kind = line.partition(" - ")
                if place.split()[2] == wanted:
                    return kind.split()[0] in _LOCAL
    except (OSError, IndexError):
        pass
    return False


def _sync_file_system(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if _LIBC.syncfs(handle):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(folder))
    finally:
        os.close(handle)


def _kernel() -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


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


def copy_bytes(old: BinaryIO, new: BinaryIO) -> None:
    """Copy what follows in `old` to `new`, inside the kernel where it can.

    File systems with shared extents (btrfs, XFS, NFS 4.2) then copy without moving a byte.
    """
    new.flush()
    try:
        while os.copy_file_range(old.fileno(), new.fileno(), _KERNEL_COPY):
            pass
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            raise
        # Not between these two file systems; it says so before it has copied anything.
        shutil.copyfileobj(old, new, _COPY_BUFFER)


def copy_atomic(source: Path, path: Path, *, sync_dir: bool = True, keep: bool = False) -> bool:
    """Copy a file's bytes and times (not its mode) so that the copy is absent or whole.

    Args:
        sync_dir: False where the caller calls `fsync_dir` once after several files.
        keep: leave a copy of the same size and time of change as it is, as rsync does; terabytes
            of videos are not copied again because a finished job is run again.

    Returns:
        Whether it was copied; False where it was kept.

    Raises:
        OSError: the source cannot be read, or the target not be written.
    """
    times = os.stat(source)
    if keep and path.exists():
        found = path.stat()
        if (found.st_size, found.st_mtime_ns) == (times.st_size, times.st_mtime_ns):
            return False
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = staged_name(path)
    with open(present(source), "rb") as old, open(staged, "wb") as new:
        copy_bytes(old, new)
        new.flush()
        os.fsync(new.fileno())
    os.utime(staged, ns=(times.st_atime_ns, times.st_mtime_ns))
    publish(staged, path, sync_dir=sync_dir)
    return True

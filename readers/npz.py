"""Small .npz archives, read without trusting them: a zip's directory, and the .npy arrays in it.

Thousands of these lie in one folder (CALVIN has one a frame), so a key is read with three calls to
the disk: the end of the file, where the directory is, and the key's own bytes. Nothing is allocated
because a header says so, nothing is unpickled, and nothing is ever extracted to the disk. What
numpy's own writer never makes (encryption, zip64 directories, names with folders in them, entries
that overlap, two entries of a name) is refused.
"""

from __future__ import annotations

import io
import math
import os
import stat
import struct
import tokenize
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from .errors import SourceError
from .files import present

MAX_FILE = 1 << 27  # bytes of an archive that is read at all; a frame's has a few 100 kB
MAX_ARRAY = 1 << 26  # bytes of an array, unpacked
SUFFIX = ".npy"
STORED, DEFLATED = 0, 8
ENTRY = struct.Struct("<4s6H3I5H2I")  # of the central directory
LOCAL = struct.Struct("<4s5H3I2H")  # in front of a member's bytes
END = struct.Struct("<4s4H2IH")  # of the central directory
ENTRY_MAGIC, LOCAL_MAGIC, END_MAGIC = b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"
_ZIP64, _ZIP64_16 = 0xFFFFFFFF, 0xFFFF
_ENCRYPTED = 0x0001 | 0x0040 | 0x2000
_SIZES_FOLLOW = 0x0008  # sizes and crc stand behind the data, and zeros in the local header
_TAIL = 4096  # holds the directory of a frame of some 40 arrays
_MAX_MEMBERS = 1024
_MAX_RATIO = 1040  # deflate packs no more than 1032 bytes into one
_MAX_HEADER = 10_000  # numpy's own limit for a .npy header
_TODO = "fetch this file again"


@dataclass(frozen=True)
class Member:
    """An entry of the archive.

    Attributes:
        name: as it is stored, with its ".npy".
        start: where its local header begins.
        method: 0 stored, 8 deflated. crc, size: of what is in it; packed: its bytes in the file.
        flags: the zip's. at: where its entry begins in the directory, and entry: its length there.
        name_length: of `name` in bytes.
    """

    name: str
    start: int
    method: int
    crc: int
    packed: int
    size: int
    flags: int
    at: int
    entry: int
    name_length: int

    @property
    def key(self) -> str:
        """As numpy.load calls it."""
        return self.name.removesuffix(SUFFIX)

    @property
    def is_array(self) -> bool:
        """Whether numpy.load takes it for an array, and not for plain bytes."""
        return self.name.endswith(SUFFIX)


@dataclass(frozen=True)
class Directory:
    """The end of an archive.

    Attributes:
        members: in the directory's order.
        start: where the directory begins, which is where the last member ends.
        raw: its bytes, without the end record. comment: of the archive.
    """

    members: tuple[Member, ...]
    start: int
    raw: bytes
    comment: bytes = b""

    def find(self, key: str) -> Member | None:
        """The member of an array's key, or None."""
        name = key + SUFFIX
        return next((member for member in self.members if member.name == name), None)

    def places(self) -> list[tuple[Member, int]]:
        """(member, where what follows it begins), as they lie in the file."""
        members = sorted(self.members, key=lambda member: member.start)
        ends = [*(member.start for member in members[1:]), self.start]
        return list(zip(members, ends, strict=True))


class Npz:
    """An archive that is open for reading; a context manager.

    Args:
        path: the file.
        soon: all of it will be read soon; the disk is told to fetch it.

    Attributes:
        directory: what its end says.

    Raises:
        SourceError: there is no such file, or it is no archive that is understood.
    """

    def __init__(self, path: Path | str, *, soon: bool = False):
        self.path = path
        self._handle = open_regular(path)
        try:
            self.size = os.fstat(self._handle).st_size
            if self.size > MAX_FILE:
                raise self.error(f"is {self.size} bytes long, which no frame is")
            if soon:
                os.posix_fadvise(self._handle, 0, 0, os.POSIX_FADV_WILLNEED)
            self._base = max(0, self.size - _TAIL)
            self._data = self._pread(self._base, self.size - self._base)
            self.directory = self._directory()
        except BaseException:
            os.close(self._handle)
            raise

    def __enter__(self) -> Npz:
        return self

    def __exit__(self, *_) -> None:
        os.close(self._handle)

    def error(self, found: str, key: str | None = None) -> SourceError:
        """A SourceError that names the file."""
        return SourceError(found, file=self.path, key=key, todo=_TODO)

    def read(self, start: int, length: int) -> bytes:
        """Some of the file's bytes.

        Raises:
            SourceError: the file ends before.
        """
        if start >= self._base:
            data = self._data[start - self._base : start - self._base + length]
        else:
            data = self._pread(start, length)
        if len(data) != length:
            raise self.error("the file ends early")
        return data

    def keys(self) -> list[str]:
        """The keys of its arrays, in the directory's order."""
        return [m.key for m in self.directory.members if m.is_array]

    def array(self, key: str) -> np.ndarray:
        """An array of it; read-only.

        Raises:
            SourceError: there is none of this key, or it is damaged, too large, or of objects.
        """
        member = self._find(key)
        if member.size > MAX_ARRAY:
            raise self.error(f"declares {member.size} bytes, which no array of a frame has", key)
        data = packed = self.read(self._body(member), member.packed)
        if member.method == DEFLATED:
            data, whole = self._inflated(packed, member.size + 1, key)
            if not whole or len(data) != member.size:
                raise self.error("is not as long as it declares", key)
        if zlib.crc32(data) != member.crc:
            raise self.error("its checksum does not fit its bytes", key)
        try:
            return parse_npy(data)
        except ValueError as error:
            raise self.error(str(error), key) from None

    def header(self, key: str) -> tuple[tuple[int, ...], np.dtype]:
        """(shape, dtype) that an array declares, found without unpacking all of it.

        Raises:
            SourceError: as `array`.
        """
        member = self._find(key)
        data = self.read(self._body(member), min(member.packed, 4096))
        if member.method == DEFLATED:
            data, _ = self._inflated(data, 4096, key)
        try:
            shape, _, dtype, length = npy_header(data)
        except ValueError as error:
            raise self.error(str(error), key) from None
        size = math.prod(shape) * dtype.itemsize + length
        if not dtype.hasobject and (size != member.size or size > MAX_ARRAY):
            found = f"declares an array of {shape} {dtype} in {member.size} bytes"
            raise self.error(found, key)
        return shape, dtype

    def check(self) -> Directory:
        """Hold every member's local header against the directory, without unpacking anything.

        Returns:
            The directory, of members that neither overlap nor lie outside of the file.

        Raises:
            SourceError: something does not fit; it names the member.
        """
        for member, end in self.directory.places():
            if self._body(member) + member.packed > end:
                raise self.error("overlaps what follows in the file", member.key)
        return self.directory

    def _find(self, key: str) -> Member:
        member = self.directory.find(key)
        if member is None:
            raise self.error(f"the frame lacks this key; it has {', '.join(self.keys())}", key)
        return member

    def _body(self, member: Member) -> int:
        """Where a member's own bytes begin, once its local header has been checked."""
        raw = self.read(member.start, LOCAL.size + member.name_length)
        magic, _, flags, method, _, _, crc, packed, size, name, extra = LOCAL.unpack_from(raw)
        same = (magic, flags, method) == (LOCAL_MAGIC, member.flags, member.method)
        same = same and name == member.name_length
        if not same or _decoded(raw[LOCAL.size :], flags) != member.name:
            raise self.error("is not where the archive's directory says", member.key)
        if not flags & _SIZES_FOLLOW:
            sizes = (packed, size)
            # numpy reserves room for 64-bit sizes in every local header and seldom needs it.
            if crc != member.crc or sizes not in ((member.packed, member.size), (_ZIP64, _ZIP64)):
                raise self.error("declares one size or checksum here and one there", member.key)
        return member.start + LOCAL.size + name + extra

    def _inflated(self, packed: bytes, limit: int, key: str) -> tuple[bytes, bool]:
        """(no more than `limit` unpacked bytes, whether that is the end)."""
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            return inflate.decompress(packed, limit), inflate.eof
        except zlib.error:
            raise self.error("cannot be unpacked", key) from None

    def _directory(self) -> Directory:
        end = self._end_record()
        _, disk, first_disk, here, count, length, start, comment = END.unpack(
            self._data[end : end + END.size]
        )
        place = self._base + end
        if _ZIP64 in (length, start) or _ZIP64_16 in (disk, first_disk, here, count):
            raise self.error("is a zip64 archive, which numpy does not make of a frame")
        if disk or first_disk or here != count or count > _MAX_MEMBERS:
            raise self.error("is an archive of several parts, or of too many")
        if start + length != place:
            raise self.error("the archive's directory is not where its end says")
        raw = self.read(start, length)
        tail = self._data[end + END.size : end + END.size + comment]
        return Directory(self._members(raw, count, start), start, raw, tail)

    def _end_record(self) -> int:
        """Where in `_data` the end record begins."""
        at = len(self._data) - END.size
        if at >= 0 and self._data[at:].startswith(END_MAGIC) and self._data[-2:] == b"\0\0":
            return at
        at = self._data.rfind(END_MAGIC)
        if 0 <= at <= len(self._data) - END.size:
            comment = int.from_bytes(self._data[at + END.size - 2 : at + END.size], "little")
            if at + END.size + comment == len(self._data):
                return at
        raise self.error("is no whole archive; it has no directory at its end")

    def _members(self, raw: bytes, count: int, start: int) -> tuple[Member, ...]:
        found: list[Member] = []
        at = 0
        for _ in range(count):
            if len(raw) - at < ENTRY.size:
                raise self.error("the archive's directory ends early")
            (
                magic, _, _, flags, method, _, _, crc, packed, size, name, extra, comment, _, _, _,
                offset,
            ) = ENTRY.unpack_from(raw, at)  # fmt: skip
            entry = ENTRY.size + name + extra + comment
            if magic != ENTRY_MAGIC or len(raw) - at < entry:
                raise self.error("the archive's directory is damaged")
            text = _decoded(raw[at + ENTRY.size : at + ENTRY.size + name], flags)
            member = Member(text, offset, method, crc, packed, size, flags, at, entry, name)
            self._checked(member, start)
            found.append(member)
            at += entry
        if at != len(raw):
            raise self.error("the archive's directory is damaged")
        names = {member.name for member in found}
        if len(names) < len(found):
            twice = next(m for i, m in enumerate(found) if m.name in {n.name for n in found[:i]})
            raise self.error("is in the archive twice", twice.key)
        return tuple(found)

    def _checked(self, member: Member, start: int) -> None:
        if not _plain(member.name):
            raise self.error("is no plain name, as an array of a frame has", member.key)
        if member.flags & _ENCRYPTED:
            raise self.error("is encrypted", member.key)
        if member.method not in (STORED, DEFLATED):
            raise self.error(f"is compressed by method {member.method}", member.key)
        if _ZIP64 in (member.packed, member.size, member.start):
            raise self.error("has zip64 sizes, which no array of a frame needs", member.key)
        if member.start + LOCAL.size + member.packed > start:
            raise self.error("overlaps what follows in the file", member.key)
        stored = member.method == STORED and member.size != member.packed
        if stored or member.size > _MAX_RATIO * (member.packed + 1):
            found = f"declares {member.size} bytes in {member.packed}, which is impossible"
            raise self.error(found, member.key)

    def _pread(self, start: int, length: int) -> bytes:
        return os.pread(self._handle, length, start)


def open_regular(path: Path | str) -> int:
    """A handle on a regular file; what is a pipe, a device or a folder is refused.

    Raises:
        SourceError: there is none, or it may not be read.
    """
    present(path)
    try:
        # Opening a pipe would wait for its writer for ever.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        found = f"cannot be opened ({error.strerror})"
        raise SourceError(found, file=path, todo=_TODO) from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise SourceError("is no regular file", file=path, todo=_TODO)
    return handle


def read_regular(path: Path | str, limit: int) -> bytes:
    """A whole small file.

    Raises:
        SourceError: there is none, it may not be read, or it is longer than `limit` bytes.
    """
    with open(open_regular(path), "rb") as file:
        if (size := os.fstat(file.fileno()).st_size) > limit:
            found = f"is {size} bytes long, where no more than {limit} are expected"
            raise SourceError(found, file=path, todo="check the source")
        return file.read(limit + 1)


def npy_header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """(shape, whether in Fortran's order, dtype, the header's length) of a .npy file's bytes.

    Raises:
        ValueError: it is no such file, or none of numbers.
    """
    if data[:6] != b"\x93NUMPY" or len(data) < 10 or data[6] not in (1, 2):
        raise ValueError("is no .npy array")
    wide = data[6] == 2
    length = int.from_bytes(data[8 : 12 if wide else 10], "little") + (12 if wide else 10)
    if length > min(len(data), _MAX_HEADER):
        raise ValueError("is no .npy array; its header is cut off")
    return *_parsed_header(bytes(data[:length])), length


def parse_npy(data: bytes) -> np.ndarray:
    """The array in a .npy file's bytes, as a read-only view of them.

    Raises:
        ValueError: it is no such file, holds objects, or declares another size than it has.
    """
    shape, fortran, dtype, length = npy_header(data)
    if dtype.hasobject:
        raise ValueError("holds pickled objects, which are not read")
    want, have = math.prod(shape) * dtype.itemsize, len(data) - length
    if want != have or any(size < 0 for size in shape):
        raise ValueError(f"declares an array of {shape} {dtype} ({want} bytes) in {have} bytes")
    flat = np.frombuffer(data, dtype, math.prod(shape), length)
    return flat.reshape(shape, order="F" if fortran else "C")


@lru_cache(maxsize=256)
def _parsed_header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    """numpy's own reading of a header; the frames of a dataset have a dozen different ones."""
    file = io.BytesIO(data)
    read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    try:
        version = np.lib.format.read_magic(file)
        return read[version[0]](file, max_header_size=_MAX_HEADER)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError):
        raise ValueError("is no .npy array; its header cannot be understood") from None


@lru_cache(maxsize=1024)
def _plain(name: str) -> bool:
    """Whether a name is that of a file alone."""
    return bool(name) and name not in (".", "..") and not any(c in name for c in "/\\\0:")


@lru_cache(maxsize=1024)
def _decoded(name: bytes, flags: int) -> str:
    return name.decode("utf-8" if flags & 0x800 else "cp437", "replace")

"""The TFRecord frame: length, crc of the length, payload, crc of the payload; one record at a time.

A reader must survive what disks do. A flipped byte in a payload spoils that record alone, since
the next one is found by length. A flipped byte in a length, or a file that ends early, makes the
rest of the file unreachable, since nothing marks where a record begins.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import google_crc32c

from .errors import RemoteError, SourceError
from .files import open_regular

HEADER, FOOTER = 12, 4
OVERHEAD = HEADER + FOOTER
_MASK_DELTA = 0xA282EAD8


@dataclass(frozen=True)
class Frame:
    """One place in a TFRecord file: the payload that is there, or the reason why there is none.

    Attributes:
        index: the record's place in the file, from 0.
        payload: the record's bytes, or None where they cannot be trusted.
        crc: the plain (unmasked) crc32c of `payload`; 0 where there is none.
        error: what is wrong, or None.
        last: True if nothing after this place can be reached.
    """

    index: int
    payload: bytes | None
    crc: int = 0
    error: SourceError | None = None
    last: bool = False


def mask(crc: int) -> int:
    """A plain crc32c as TFRecord stores it: rotated by 15 bits, plus a constant."""
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def extend_crc(crc: int, data: bytes) -> int:
    """The plain crc32c of what `crc` was the crc32c of, followed by `data`."""
    return google_crc32c.extend(crc, data)


def header(length: int) -> bytes:
    """The 12 bytes that stand before a payload of `length` bytes."""
    packed = struct.pack("<Q", length)
    return packed + struct.pack("<I", mask(google_crc32c.value(packed)))


def footer(crc: int) -> bytes:
    """The 4 bytes that stand after a payload whose plain crc32c is `crc`."""
    return struct.pack("<I", mask(crc))


def frame(payload: bytes) -> bytes:
    """`payload` as one whole TFRecord record: header, payload, footer."""
    return header(len(payload)) + payload + footer(google_crc32c.value(payload))


def read_frames(path: Path) -> Iterator[Frame]:
    """Walk a TFRecord file, one payload in memory at a time, and check both crcs of every record.

    Nothing is raised for damage: a record whose payload does not match its crc comes as a Frame
    with an error and the walk goes on; a spoiled length or an early end comes as a Frame with an
    error and `last` set, and ends the walk. No more is read than the file holds, whatever length
    it declares.

    Raises:
        SourceError: the file cannot be opened, or is a pipe or a device.
    """
    try:
        file = open_regular(path)
    except RemoteError:
        raise
    except OSError as error:
        raise SourceError(
            f"cannot be opened ({error.strerror})",
            file=path,
            todo="restore the shard or fix its permissions",
        ) from None
    with file:
        size = os.fstat(file.fileno()).st_size
        index = position = 0
        while position < size:
            head = file.read(HEADER)
            if len(head) < HEADER:
                yield _end(path, index, f"the file ends inside a record's length ({size} bytes)")
                return
            if footer(google_crc32c.value(head[:8])) != head[8:]:
                yield _end(path, index, f"the length at byte {position} does not match its crc")
                return
            (length,) = struct.unpack("<Q", head[:8])
            if length > size - position - OVERHEAD:
                left = max(0, size - position - HEADER)
                yield _end(
                    path, index, f"the record declares {length} bytes, the file has {left} left"
                )
                return
            payload, tail = file.read(length), file.read(FOOTER)
            if len(payload) < length or len(tail) < FOOTER:
                yield _end(path, index, "the file became shorter while it was read")
                return
            crc = google_crc32c.value(payload)
            if footer(crc) == tail:
                yield Frame(index, payload, crc)
            else:
                yield Frame(
                    index,
                    None,
                    error=SourceError(
                        "the payload does not match its crc (a flipped byte)",
                        file=path,
                        record=index,
                        todo="fetch this shard again",
                    ),
                )
            payload = b""  # let go of it before the next one is read
            position += OVERHEAD + length
            index += 1


def _end(path: Path, index: int, found: str) -> Frame:
    error = SourceError(found, file=path, record=index, todo="fetch this shard again")
    return Frame(index, None, error=error, last=True)

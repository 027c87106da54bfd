"""array_record files: the same frames as readers/tfrecord gives, through the format's own library.

A file is a row of hashed chunks, each with one record (or a group of them), and an index at its
end. A flipped byte in a chunk spoils what is in it; without the index nothing can be reached.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c

from .errors import RemoteError, SourceError
from .files import open_regular, present
from .tfrecord import Frame

KIND = "array_record"
# A protobuf message holds at most 2 GiB, so no Example is longer, and no chunk that holds one.
LIMIT = 1 << 31
_BLOCK, _BLOCK_HEADER = 1 << 16, 24  # a header stands at every multiple of the block size
_USABLE = _BLOCK - _BLOCK_HEADER
_CHUNK = struct.Struct("<5Q")  # hash, size, hash of the data, kind | records << 8, size unpacked
_KINDS = b"smprt"  # signature, metadata, padding, records, records by column
# One record at a time, nothing read ahead: a chunk may be as large as an episode.
_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


def library() -> Any:
    """The array_record package's module.

    Raises:
        SourceError: it is not installed (there are packages of it for Linux and macOS).
    """
    try:
        from array_record.python import array_record_module  # type: ignore[attr-defined]
    except ImportError:
        raise SourceError(
            "array_record files need the package array_record",
            todo="pip install array_record, or convert the dataset to tfrecord with "
            "tensorflow-datasets' convert_format",
        ) from None
    return array_record_module


def read_frames(path: Path) -> Iterator[Frame]:
    """Walk an array_record file, one payload in memory at a time; its hashes are checked.

    Nothing is raised for damage: a record that does not match its hash comes as a Frame with an
    error and the walk goes on; a file whose index is gone comes as one Frame with `last` set.

    Raises:
        SourceError: the file cannot be opened, or array_record is not installed.
    """
    module = library()
    try:
        if found := _refusal(path):
            yield _end(path, found)
            return
        reader = module.ArrayRecordReader(os.fspath(path), _OPTIONS)
    except RemoteError:
        raise
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or reason_of(error)
        raise SourceError(
            f"cannot be opened ({reason})",
            file=path,
            todo="restore the shard or fix its permissions",
        ) from None
    try:
        if not reader.ok():
            found = f"cannot be read as an array_record file ({_why(reader)})"
            yield _end(path, found)
            return
        for index in range(reader.num_records()):
            try:
                (payload,) = reader.read([index])
            except (RuntimeError, ValueError, IndexError) as error:
                found = f"the record cannot be read ({reason_of(error)})"
                yield Frame(index, None, error=_error(path, found, index))
                continue
            yield Frame(index, payload, google_crc32c.value(payload))
            payload = b""  # let go of it before the next one is read
    finally:
        _close(reader)


def writer_options(path: Path) -> str:
    """The options that a file was written with, as its writer noted them; "" where unknown."""
    reader = library().ArrayRecordReader(os.fspath(present(path)), _OPTIONS)
    try:
        return reader.writer_options_string() if reader.ok() else ""
    finally:
        _close(reader)


def reason_of(error: Exception) -> str:
    """The first clause of the library's message: without numbers of hashes, places and paths."""
    text = str(error).split(";")[0].split(" (computed")[0].split(" reading ")[0]
    return text.removeprefix("Corrupted Riegeli/records file: ").strip() or type(error).__name__


def _refusal(path: Path) -> str | None:
    """Why a file is not handed to the library, which takes at its word whatever a chunk declares.

    Raises:
        OSError: it cannot be opened.
        SourceError: it is no regular file.
    """
    with open_regular(path) as file:
        whole = os.fstat(file.fileno()).st_size
        for records, size in _declared(file, whole):
            if size > LIMIT:
                return f"a chunk declares {size} bytes, more than a record can hold"
            if records > whole:
                return f"a chunk declares {records} records in a file of {whole} bytes"
    return None


def _declared(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    """(number of records, bytes when unpacked) of every chunk that a header is found of."""
    position = 0
    while position < size:
        head = _without_block_headers(file, position, _CHUNK.size)
        _, length, _, kind, unpacked = _CHUNK.unpack(head) if head else (0, 0, 0, 0, 0)
        if kind & 0xFF in _KINDS and length <= size:
            yield kind >> 8, unpacked
            total = _CHUNK.size + length
            crossed = (total + (position + _USABLE - 1) % _BLOCK) // _USABLE
            end = position + total + crossed * _BLOCK_HEADER
            position = max(end, position + (kind >> 8))
            continue
        # No header is here: the next block's own header tells where the next chunk begins.
        block = (position // _BLOCK + 1) * _BLOCK
        file.seek(block + 16)
        ahead = file.read(8)
        if len(ahead) < 8:
            return
        position = block + max(1, min(struct.unpack("<Q", ahead)[0], size))


def _without_block_headers(file: BinaryIO, position: int, count: int) -> bytes | None:
    """`count` bytes from a place on, less the block headers between them; None at the end."""
    out = b""
    while len(out) < count:
        if position % _BLOCK < _BLOCK_HEADER:
            position += _BLOCK_HEADER - position % _BLOCK
        file.seek(position)
        part = file.read(min(count - len(out), _BLOCK - position % _BLOCK))
        if not part:
            return None
        out, position = out + part, position + len(part)
    return out


def _why(reader: Any) -> str:
    try:
        reader.close()
    except RuntimeError as error:  # closing is what tells the reason
        return reason_of(error)
    return "it is damaged"


def _close(reader: Any) -> None:
    with contextlib.suppress(RuntimeError):  # it says again what a frame has said already
        reader.close()


def _error(path: Path, found: str, index: int) -> SourceError:
    return SourceError(found, file=path, record=index, todo="fetch this shard again")


def _end(path: Path, found: str) -> Frame:
    return Frame(0, None, error=_error(path, found, 0), last=True)

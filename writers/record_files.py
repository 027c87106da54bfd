"""Where the records of a copy's shard go: TFRecord and array_record files, one record at a time."""

from __future__ import annotations

import abc
import contextlib
import errno
import hashlib
import os
import re
from pathlib import Path

from ..readers import array_record_file
from ..readers.array_record_file import library, reason_of, writer_options
from ..readers.errors import SourceError
from ..readers.tfrecord import extend_crc, footer, header

_BUFFER = 1 << 18  # small records are written several at a time
_USUAL = "group_size:1"  # as tensorflow-datasets writes them; readers by step need it so
# What is taken over from a source's options: numbers that are large ask for memory.
_TAKEN = re.compile(
    r"group_size:[1-9]\d{0,3}|transpose:(?:true|false)|pad_to_block_boundary:(?:true|false)"
    r"|uncompressed|zstd(?::-?\d{1,2})?|brotli(?::\d{1,2})?|snappy|window_log:(?:1\d|2[0-4])"
)


class RecordSink(abc.ABC):
    """A new shard file; use it as a context, which closes and fsyncs it.

    Attributes:
        path: the file.
        records: how many were added. num_bytes: the sum of their payloads.
    """

    def __init__(self, path: Path):
        self.path = path
        self.records = self.num_bytes = 0
        self._digest = hashlib.sha256()

    @property
    def added_sha256(self) -> str:
        """Of what was added to the old records: each record's length, new bytes and crc.

        The crc covers the old bytes, which are compared with the source where a copy is verified;
        hashing them too would cost more than reading and writing them.
        """
        return self._digest.hexdigest()

    def add(self, payload: bytes, crc: int, extra: bytes) -> None:
        """Add one record: an old payload with its plain crc32c, and new bytes behind it.

        Raises:
            OSError: the disk is full.
        """
        length = len(payload) + len(extra)
        head, tail = header(length), footer(extend_crc(crc, extra))
        self._add(head, payload, extra, tail)
        self._digest.update(head + extra + tail)
        self.records += 1
        self.num_bytes += length

    def __enter__(self) -> RecordSink:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._close(kind is None)

    @abc.abstractmethod
    def _add(self, head: bytes, payload: bytes, extra: bytes, tail: bytes) -> None: ...

    @abc.abstractmethod
    def _close(self, whole: bool) -> None: ...


class TfRecordSink(RecordSink):
    """A TFRecord file; the old payload is written as it is, and its crc is carried on."""

    def __init__(self, path: Path):
        super().__init__(path)
        self._file = open(path, "wb", buffering=_BUFFER)  # noqa: SIM115 - closed by _close

    def _add(self, head: bytes, payload: bytes, extra: bytes, tail: bytes) -> None:
        self._file.writelines((head, payload, extra, tail))

    def _close(self, whole: bool) -> None:
        with self._file as file:
            if whole:
                file.flush()
                os.fsync(file.fileno())


class ArrayRecordSink(RecordSink):
    """An array_record file, grouped and compressed as another one is.

    Args:
        like: the file whose options are taken over; None takes tensorflow-datasets' own.
    """

    def __init__(self, path: Path, like: Path | None = None):
        super().__init__(path)
        self._writer = _tried(
            path, lambda: library().ArrayRecordWriter(os.fspath(path), _options(like))
        )

    def _add(self, head: bytes, payload: bytes, extra: bytes, tail: bytes) -> None:
        _tried(self.path, lambda: self._writer.write(payload + extra))

    def _close(self, whole: bool) -> None:
        if not whole:
            with contextlib.suppress(RuntimeError):  # another error is on its way
                self._writer.close()
            return
        _tried(self.path, self._writer.close)
        handle = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def open_sink(path: Path, file_format: str, like: Path | None = None) -> RecordSink:
    """A sink for a shard of `file_format` ("tfrecord", "array_record"); see ArrayRecordSink."""
    if file_format == array_record_file.KIND:
        return ArrayRecordSink(path, like)
    return TfRecordSink(path)


def _options(like: Path | None) -> str:
    """The writer options of another file, or the usual ones where they are none or unusual."""
    if like is None:
        return _USUAL
    try:
        found = [option for option in writer_options(like).split(",") if _TAKEN.fullmatch(option)]
    except (SourceError, RuntimeError):
        return _USUAL
    return ",".join(found) if any(o.startswith("group_size:") for o in found) else _USUAL


def _tried(path: Path, call):
    """What `call` gives; the library's errors as the OSError that they stand for."""
    try:
        return call()
    except RuntimeError as error:
        reason = reason_of(error)
        code = next((c for c in errno.errorcode if os.strerror(c) in reason), errno.EIO)
        raise OSError(code, reason, os.fspath(path)) from None

"""A serialized tf.train.Example, looked at without parsing what is not asked for.

An episode of DROID is 15 MB in one Example, nearly all of it images. The index below walks the
lengths of the wire format only (about thirty entries), so that one number list of an episode costs
microseconds, and the writer knows where each entry begins and ends.

    Example { features = 1: Features { feature = 1: map entry { key = 1, value = 2: Feature } } }
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from tensorflow_datasets.proto import tf_feature_pb2

_Feature: Any = tf_feature_pb2.Feature  # type: ignore  (protobuf makes it at run time)

_UNPACKED = 1 << 28  # bytes that one key of a record may unpack to
_LEN = 2  # the wire type of strings, bytes and messages
_FIELD_1, _FIELD_2 = 1 << 3 | _LEN, 2 << 3 | _LEN


class Entry(NamedTuple):
    """Where one map entry lies in the payload: all of it (with its tag), and its value."""

    key: str
    start: int
    end: int
    value: tuple[int, int]


class Packing(NamedTuple):
    """How a tensor's numbers lie in one byte string per step (tfds: encoding "bytes" or "zlib").

    Attributes:
        dtype: as in "float32"; little endian, as everything that tfds writes.
        size: how many numbers a value holds; None where it differs from value to value.
        zlib: whether the bytes are compressed.
    """

    dtype: str
    size: int | None
    zlib: bool


class ExampleIndex:
    """The keys of a serialized Example and where their values are.

    Args:
        payload: the bytes of one record.

    Raises:
        ValueError: the bytes are not an Example.
    """

    def __init__(self, payload: bytes):
        self.payload = payload
        self.groups: list[tuple[int, int, int, list[Entry]]] = []  # start, body, end, entries
        self._values: dict[str, tuple[int, int]] = {}
        for tag, start, body, end in _fields(payload, 0, len(payload)):
            if tag != _FIELD_1:
                continue
            entries = [
                _entry(payload, *place)
                for inner, *place in _fields(payload, body, end)
                if inner == _FIELD_1
            ]
            self.groups.append((start, body, end, entries))
            # As everywhere in protobuf's maps, the last of two equal keys counts.
            self._values.update((entry.key, entry.value) for entry in entries)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def keys(self) -> list[str]:
        """The feature names that are in this record, in the order of their first appearance."""
        return list(self._values)

    def value(self, key: str) -> bytes:
        """The serialized value of `key`.

        Raises:
            KeyError: the record has no such key.
        """
        start, end = self._values[key]
        return self.payload[start:end]

    def feature(self, key: str) -> Any:
        """The parsed value of `key`.

        Raises:
            KeyError: the record has no such key.
            ValueError: its value is not a Feature.
        """
        value = self.value(key)
        try:
            return _Feature.FromString(value)
        except Exception as error:  # protobuf's DecodeError has moved between its versions
            raise ValueError(f"the value of {key!r} is not a tf.train.Feature") from error

    def count(self, key: str) -> int:
        """How many values `key` holds (for a per-step scalar or an image: the number of steps)."""
        feature = self.feature(key)
        kind = feature.WhichOneof("kind")
        return len(getattr(feature, kind).value) if kind else 0

    def blobs(self, key: str) -> list[bytes]:
        """The byte strings under `key`."""
        return list(self.feature(key).bytes_list.value)

    def numbers(self, key: str, packing: Packing | None = None) -> np.ndarray:
        """The numbers under `key`.

        Args:
            packing: how they are packed, where they are no plain list of numbers.

        Returns:
            [N] float32, [N] int64 where they are stored as integers, [N] of the packed dtype.

        Raises:
            KeyError: the record has no such key.
            ValueError: the value is not a Feature, or its byte strings are not as packed.
        """
        feature = self.feature(key)
        kind = feature.WhichOneof("kind")
        if kind == "bytes_list" and packing is not None:
            return _unpacked(feature.bytes_list.value, packing)
        if kind == "int64_list":
            return np.array(feature.int64_list.value, np.int64)
        return np.array(feature.float_list.value, np.float32)

    def texts(self, key: str) -> Iterator[str]:
        """The texts under `key`; whole numbers are taken for the characters of one, up to a 0."""
        feature = self.feature(key)
        if feature.WhichOneof("kind") == "int64_list":
            codes = list(feature.int64_list.value)
            end = codes.index(0) if 0 in codes else len(codes)
            yield "".join(chr(code) for code in codes[:end] if 0 < code < 0xD800)
        for blob in feature.bytes_list.value:
            yield blob.decode("utf-8", "replace")


def _unpacked(blobs: Sequence[bytes], packing: Packing) -> np.ndarray:
    """[N] numbers of packed values, one after the other; no bomb is unpacked."""
    try:
        dtype = np.dtype(packing.dtype).newbyteorder("<")
    except TypeError:
        raise ValueError(f"holds numbers of a kind that cannot be read ({packing.dtype})") from None
    size = None if packing.size is None else packing.size * dtype.itemsize
    if size is not None and size * max(1, len(blobs)) > _UNPACKED:
        raise ValueError(f"{len(blobs)} values of {size} declared bytes are too many to unpack")
    parts, left = [], _UNPACKED
    for step, blob in enumerate(blobs):
        if packing.zlib:
            blob = _inflated(blob, left if size is None else size, step)
        if len(blob) % dtype.itemsize or (size is not None and len(blob) != size):
            due = f"{size}" if size is not None else f"a multiple of {dtype.itemsize}"
            raise ValueError(f"step {step} holds {len(blob)} bytes, not {due}")
        parts.append(blob)
        left -= len(blob)
    return np.frombuffer(b"".join(parts), dtype)


def _inflated(blob: bytes, limit: int, step: int) -> bytes:
    """At most `limit` bytes of zlib data."""
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(blob, limit + 1)
    except zlib.error as error:
        raise ValueError(f"step {step} is no zlib data ({error})") from None
    if len(data) > limit:
        raise ValueError(f"step {step} unpacks to more than the {limit} bytes that it may hold")
    if not inflater.eof:
        raise ValueError(f"step {step} is no zlib data (it breaks off)")
    return data


def varint(number: int) -> bytes:
    """`number` (0 or more) in protobuf's base-128 spelling."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _read_varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    number = shift = 0
    while at < end and shift < 64:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
    raise ValueError(f"not a tf.train.Example: a number breaks off at byte {at}")


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(tag, start, body, end) of every field between two places of `data`."""
    while at < end:
        start = at
        tag = data[at]
        if tag < 0x80:  # nearly always
            at += 1
        else:
            tag, at = _read_varint(data, at, end)
        kind = tag & 7
        if kind == _LEN:
            length, at = _read_varint(data, at, end)
            body, at = at, at + length
        elif kind == 0:
            body, at = at, _read_varint(data, at, end)[1]
        elif kind in (1, 5):
            body, at = at, at + (8 if kind == 1 else 4)
        else:
            raise ValueError(f"not a tf.train.Example: wire type {kind} at byte {start}")
        if at > end:
            raise ValueError(f"not a tf.train.Example: a field breaks off at byte {start}")
        yield tag, start, body, at


def _entry(data: bytes, start: int, body: int, end: int) -> Entry:
    # As every writer spells it: a short key, then the value to the end. Three times as quick.
    if end - body > 2 and data[body] == _FIELD_1 and data[body + 1] < 0x80:
        at = body + 2 + data[body + 1]
        if at < end and data[at] == _FIELD_2:
            length, first = _read_varint(data, at + 1, end)
            if first + length == end:
                return Entry(data[body + 2 : at].decode("utf-8"), start, end, (first, end))
    key, value = "", (end, end)
    for tag, _, at, stop in _fields(data, body, end):
        if tag == _FIELD_1:
            key = data[at:stop].decode("utf-8")
        elif tag == _FIELD_2:
            value = (at, stop)
    return Entry(key, start, end, value)

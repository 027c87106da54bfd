"""New features in a serialized tf.train.Example, without decoding or moving what is there.

Protobuf merges concatenated messages of one type, so an Example that holds only the new entries,
written after the old one, makes an Example that holds both: the old record stays an exact prefix.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from PIL import Image

from ..readers.example import ExampleIndex, varint
from ..readers.frames import Frames, JpegFrames

# Tags of length-delimited fields: Example.features, Features.feature, a map entry's key, the value
# lists are all field 1; a map entry's value is field 2. In Feature, byte strings are field 1,
# floats field 2, integers field 3.
_FIELD_1, _FIELD_2 = b"\x0a", b"\x12"
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = b"\x0a", b"\x12", b"\x1a"


def addition(
    blobs: dict[str, Sequence[bytes]],
    integers: dict[str, Sequence[int]],
    floats: Mapping[str, Sequence[float] | np.ndarray] | None = None,
) -> bytes:
    """The bytes to append to a serialized Example so that it also has these keys.

    Spelled out here, not by protobuf, which would copy every picture three times.

    Args:
        blobs: key -> byte strings (pictures).
        integers: key -> whole numbers, 0 or more (bools are 0 and 1).
        floats: key -> numbers, stored in 32 bits.
    """
    entries = []
    for key, values in blobs.items():
        chunks = []
        for value in values:
            chunks += [_FIELD_1, varint(len(value)), value]
        entries.append(_entry(key, _BYTES_LIST, chunks))
    for key, numbers in integers.items():
        packed = b"".join(varint(int(number)) for number in numbers)
        chunks = [_FIELD_1, varint(len(packed)), packed]
        entries.append(_entry(key, _INT64_LIST, chunks))
    for key, numbers in (floats or {}).items():
        packed = np.asarray(numbers, "<f4").tobytes()
        chunks = [_FIELD_1, varint(len(packed)), packed]
        entries.append(_entry(key, _FLOAT_LIST, chunks))
    features = [part for entry in entries for part in _message(_FIELD_1, entry)]
    return b"".join(_message(_FIELD_1, features))


def _entry(key: str, kind: bytes, chunks: list[bytes]) -> list[bytes]:
    """A map entry: the key, and a Feature that holds one list."""
    name = key.encode()
    feature = _message(kind, chunks)
    return [_FIELD_1, varint(len(name)), name, *_message(_FIELD_2, feature)]


def _message(tag: bytes, chunks: list[bytes]) -> list[bytes]:
    """An embedded message in parts: its tag, its length, what is in it."""
    return [tag, varint(sum(map(len, chunks))), *chunks]


def without(index: ExampleIndex, keys: Collection[str]) -> bytes:
    """The serialized Example without the entries of `keys`; all other bytes, in their order."""
    payload = index.payload
    if not any(key in index for key in keys):
        return payload
    out, position = [], 0
    for start, body, end, entries in index.groups:
        out.append(payload[position:start])
        kept, at = [], body
        for entry in entries:
            if entry.key in keys:
                kept.append(payload[at : entry.start])
                at = entry.end
        kept.append(payload[at:end])
        size = sum(map(len, kept))
        if size or not entries:  # an earlier addition, emptied, leaves nothing behind
            out += [_FIELD_1, varint(size), *kept]
        position = end
    out.append(payload[position:])
    return b"".join(out)


def encode_jpeg(frame: np.ndarray, quality: int) -> bytes:
    """A JPEG of one picture.

    Args:
        frame: [H, W, 3] uint8 RGB.
        quality: Pillow's, 1 to 100.
    """
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def encode_stream(frames: np.ndarray | Frames, quality: int) -> list[bytes]:
    """JPEGs of [T, H, W, 3] uint8 pictures; one that is as the last is not encoded again.

    Those of JpegFrames are taken as they are.
    """
    if isinstance(frames, JpegFrames):
        return list(frames.blobs)
    out: list[bytes] = []
    for step in range(len(frames)):
        frame = frames[step]
        same = step > 0 and np.array_equal(frame, frames[step - 1])
        out.append(out[-1] if same else encode_jpeg(frame, quality))
    return out

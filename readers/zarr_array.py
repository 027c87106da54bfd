"""One array of a zarr store: its metadata, checked before anything is decoded, and its chunks.

Decoding is zarr's and numcodecs' own. What is checked here first: that sizes are sane, that no
codec runs code, that a chunk does not unpack to more than it is declared to.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import struct
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import zarr
from numcodecs import registry  # type: ignore[attr-defined]
from zarr.abc.store import Store as ZarrStore
from zarr.abc.store import SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype

from .errors import SourceError
from .zarr_store import LARGEST_METADATA, LARGEST_PIECE, Store

V2, V3 = 2, 3
IMAGE_CODEC = "imagecodecs_"
_HARMFUL = re.compile(r"(^|\.)(pickle|dill|cloudpickle)$")
_TEXTS = re.compile(r"^(vlen-|json2$|msgpack2$)")
_FETCH = "fetch this file again; the episode is left without a wrist view"
_SLACK = 1 << 16  # bytes that a codec's headers may add to a chunk that does not compress


@dataclass(frozen=True)
class ArrayMeta:
    """What a store says of one array.

    Attributes:
        name: its key in the store, as in "data/img".
        zarr_format: 2 or 3.
        tree, text: its .zarray or zarr.json, parsed and as it is spelled.
        shape, chunks: of the array and of what one chunk file holds.
        dtype: of its numbers; None where they are no plain numbers (texts, objects).
        codecs: the names of all its filters and compressors.
        attributes: its user attributes.
    """

    name: str
    zarr_format: int
    tree: dict[str, Any]
    text: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype | None
    codecs: tuple[str, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def file(self) -> str:
        """The name of its metadata file."""
        return ".zarray" if self.zarr_format == V2 else "zarr.json"

    @property
    def grid(self) -> tuple[int, ...]:
        """How many chunks there are along each axis."""
        return tuple(-(-size // chunk) for size, chunk in zip(self.shape, self.chunks, strict=True))

    @property
    def count(self) -> int:
        """How many chunks there are."""
        return math.prod(self.grid)

    def chunk(self, *index: int) -> str:
        """The key of a chunk below the array's own."""
        if self.zarr_format == V2:
            return (self.tree.get("dimension_separator") or ".").join(map(str, index))
        encoding = self.tree["chunk_key_encoding"]
        usual = "." if encoding["name"] == "v2" else "/"
        separator = encoding.get("configuration", {}).get("separator", usual)
        numbers = list(map(str, index))
        return separator.join(numbers if encoding["name"] == "v2" else ["c", *numbers])

    def row(self, row: int) -> Iterator[tuple[int, ...]]:
        """The indices of the chunks that hold one row of chunks along the first axis."""
        return itertools.product((row,), *(range(count) for count in self.grid[1:]))

    def rows(self, start: int, stop: int) -> range:
        """The rows of chunks that hold the steps from `start` to before `stop`."""
        return range(start // self.chunks[0], -(-stop // self.chunks[0]))


def find_array(store: Store, name: str) -> ArrayMeta | None:
    """The metadata of an array, or None where there is no array of this name.

    Raises:
        SourceError: the metadata is damaged, declares what cannot be, or names a harmful codec.
    """
    for file, zarr_format in ((".zarray", V2), ("zarr.json", V3)):
        data = store.read(f"{name}/{file}", LARGEST_METADATA)
        if data is None:
            continue
        try:
            text = data.decode()
            tree = json.loads(text)
            if zarr_format == V3 and tree["node_type"] != "array":
                return None
            meta = _parsed(name, zarr_format, tree, text)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise _wrong(store, name, f"{file} is no metadata of an array ({error!r})") from None
        if zarr_format == V2:
            meta.attributes.update(_attributes(store, name))
        _check(store, meta)
        return meta
    return None


class Array:
    """The numbers of an array, read a row of chunks at a time.

    Args:
        store: where it lies.
        meta: what `find_array` found.
    """

    def __init__(self, store: Store, meta: ArrayMeta):
        self.store, self.meta = store, meta
        self._kept: tuple[int, np.ndarray] | None = None

    @cached_property
    def _zarr(self) -> zarr.Array:
        meta = self.meta
        if meta.dtype is None:
            raise _wrong(self.store, meta.name, "holds no plain numbers")
        need_codecs(self.store, meta)
        try:
            return zarr.open_array(_OneArray(self.store, meta), mode="r")
        except Exception as error:
            raise _wrong(
                self.store, meta.name, f"zarr cannot open it ({type(error).__name__}: {error})"
            ) from None

    def read(self, steps: np.ndarray) -> np.ndarray:
        """[N, ...] the values at increasing steps; a row of chunks is kept for the next call.

        Raises:
            SourceError: a chunk is missing or damaged; it is named.
        """
        steps = np.asarray(steps)
        out = np.empty((len(steps), *self.meta.shape[1:]), self.meta.dtype)
        rows = steps // self.meta.chunks[0]
        self.store.prepare(
            f"{self.meta.name}/{self.meta.chunk(*index)}"
            for row in dict.fromkeys(rows.tolist())
            for index in self.meta.row(row)
        )
        for row in dict.fromkeys(rows.tolist()):
            mine = rows == row
            out[mine] = self._row(row)[steps[mine] - row * self.meta.chunks[0]]
        return out

    def _row(self, row: int) -> np.ndarray:
        if self._kept is None or self._kept[0] != row:
            start = row * self.meta.chunks[0]
            stop = min(start + self.meta.chunks[0], self.meta.shape[0])
            try:
                found = np.asarray(self._zarr[start:stop])
            except SourceError:
                raise
            except Exception as error:
                raise self._damaged(row, error) from None
            self._kept = row, found
        return self._kept[1]

    def _damaged(self, row: int, error: Exception) -> SourceError:
        """Which chunk of a row it is that cannot be read."""
        if isinstance(error, OSError) and error.errno is not None:
            raise error  # the disk's, not the data's
        for index in self.meta.row(row):
            where = tuple(
                slice(i * chunk, min((i + 1) * chunk, size))
                for i, chunk, size in zip(index, self.meta.chunks, self.meta.shape, strict=True)
            )
            try:
                self._zarr[where]
            except Exception as found:
                return _wrong(
                    self.store,
                    self.meta.name,
                    f"chunk {self.meta.chunk(*index)} cannot be decoded "
                    f"({type(found).__name__}: {found})",
                    _FETCH,
                )
        return _wrong(self.store, self.meta.name, f"cannot be read ({error})")


class _OneArray(ZarrStore):
    """One array of a Store, as zarr sees it; chunks are looked at before they are decoded."""

    supports_writes = supports_deletes = supports_listing = False  # type: ignore[assignment]

    def __init__(self, store: Store, meta: ArrayMeta):
        super().__init__(read_only=True)
        self._source, self._meta = store, meta
        self._limit = math.prod(meta.chunks) * (meta.dtype.itemsize if meta.dtype else 1)

    def __eq__(self, other: object) -> bool:
        return self is other

    async def get(self, key, prototype=None, byte_range=None):
        if key == self._meta.file:
            data = self._meta.text.encode()
        elif key.rsplit("/", 1)[-1].startswith(".z") or key == "zarr.json":
            return None
        else:
            data = self._source.read(f"{self._meta.name}/{key}", 2 * self._limit + _SLACK)
            if data is None:
                return None
            if found := _header_lies(self._meta.codecs, data, self._limit):
                raise _wrong(self._source, self._meta.name, f"chunk {key} {found}", _FETCH)
        buffer = (prototype or default_buffer_prototype()).buffer.from_bytes(data)
        if byte_range is None:
            return buffer
        size = len(buffer)
        if isinstance(byte_range, SuffixByteRequest):
            return buffer[max(0, size - byte_range.suffix) :]
        start = getattr(byte_range, "start", getattr(byte_range, "offset", 0))
        return buffer[start : getattr(byte_range, "end", size)]

    async def get_partial_values(self, prototype, key_ranges):
        return [await self.get(key, prototype, wanted) for key, wanted in key_ranges]

    async def exists(self, key: str) -> bool:
        return key == self._meta.file or self._source.has(f"{self._meta.name}/{key}")

    async def set(self, key, value):
        raise NotImplementedError("a source is only read")

    async def delete(self, key: str) -> None:
        raise NotImplementedError("a source is only read")

    async def list(self) -> AsyncIterator[str]:
        yield self._meta.file

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        return self.list()

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        return self.list()


def need_codecs(store: Store, meta: ArrayMeta) -> None:
    """Make sure that every codec of an array is at hand.

    Raises:
        SourceError: one is not, with what to install.
    """
    if any(name.startswith(IMAGE_CODEC) for name in meta.codecs):
        try:
            from imagecodecs.numcodecs import register_codecs
        except ImportError:
            raise _wrong(
                store,
                meta.name,
                f"is stored as {', '.join(meta.codecs)}",
                "install its codec: pip install imagecodecs",
            ) from None
        register_codecs(verbose=False)
    if meta.zarr_format == V2:
        for name in meta.codecs:
            if name not in registry.codec_registry and not _entry_point(name):
                raise _wrong(
                    store,
                    meta.name,
                    f"is stored with the codec {name!r}, which nothing installed here knows",
                    "install the package that brings this numcodecs codec",
                )


def consolidated(tree: dict) -> dict | None:
    """The entries of consolidated metadata in a .zmetadata or zarr.json, or None without."""
    if "zarr_consolidated_format" in tree:
        return tree["metadata"]
    return (tree.get("consolidated_metadata") or {}).get("metadata")


def without_consolidated(tree: dict) -> dict:
    """A .zmetadata or zarr.json less the entries of its consolidated metadata."""
    if "zarr_consolidated_format" in tree:
        return {**tree, "metadata": {}}
    inner = tree.get("consolidated_metadata")
    return {**tree, "consolidated_metadata": {**inner, "metadata": {}}} if inner else tree


def _entry_point(name: str) -> bool:
    return name in registry.entries


def _parsed(name: str, zarr_format: int, tree: dict, text: str) -> ArrayMeta:
    if tree["zarr_format"] != zarr_format:
        raise ValueError(f"zarr_format {tree['zarr_format']}")
    if zarr_format == V2:
        chunks, declared = tree["chunks"], tree["dtype"]
        codecs = [*(tree.get("filters") or ()), tree.get("compressor")]
        names = tuple(codec["id"] for codec in codecs if codec)
        dtype = np.dtype(declared) if isinstance(declared, str) else None
        separator = tree.get("dimension_separator", ".")
    else:
        if tree["chunk_grid"]["name"] != "regular":
            raise ValueError(f"chunk grid {tree['chunk_grid']['name']}")
        chunks = tree["chunk_grid"]["configuration"]["chunk_shape"]
        names = tuple(_codec_names(tree["codecs"]))
        kind = tree["data_type"]
        dtype = np.dtype(kind) if isinstance(kind, str) and kind != "string" else None
        encoding = tree["chunk_key_encoding"]
        if encoding["name"] not in ("default", "v2"):
            raise ValueError(f"chunk key encoding {encoding['name']}")
        separator = encoding.get("configuration", {}).get("separator", ".")
    if separator not in (".", "/"):
        raise ValueError(f"separator {separator!r}")
    shape = tree["shape"]
    if len(shape) != len(chunks) or not all(type(n) is int for n in (*shape, *chunks)):
        raise ValueError(f"shape {shape} with chunks {chunks}")
    if any(n < 0 for n in shape) or any(n < 1 for n in chunks):
        raise ValueError(f"shape {shape} with chunks {chunks}")
    plain = dtype if dtype is not None and dtype.kind in "biuf" else None
    attributes = dict(tree.get("attributes") or {}) if zarr_format == V3 else {}
    return ArrayMeta(
        name, zarr_format, tree, text, tuple(shape), tuple(chunks), plain, names, attributes
    )


def _codec_names(codecs: list) -> Iterator[str]:
    for codec in codecs:
        yield codec["name"]
        inner = codec.get("configuration") or {}
        for part in ("codecs", "index_codecs"):
            yield from _codec_names(inner.get(part) or [])


def _attributes(store: Store, name: str) -> dict:
    data = store.read(f"{name}/.zattrs", LARGEST_METADATA)
    try:
        found = json.loads(data) if data else {}
    except (ValueError, RecursionError):
        raise _wrong(store, name, ".zattrs is no JSON") from None
    return found if isinstance(found, dict) else {}


def _check(store: Store, meta: ArrayMeta) -> None:
    if harmful := [name for name in meta.codecs if _HARMFUL.search(name)]:
        raise _wrong(
            store,
            meta.name,
            f"is stored with the codec {harmful[0]!r}, which can run code when it is read",
            "such a store is refused; have it written without pickled objects",
        )
    declared = meta.tree.get("dtype")
    if declared in ("|O", "O") and not any(_TEXTS.search(name) for name in meta.codecs):
        raise _wrong(
            store,
            meta.name,
            "holds Python objects",
            "such a store is refused; have it written without objects",
        )
    size = math.prod(meta.chunks) * (meta.dtype.itemsize if meta.dtype else 1)
    if size > LARGEST_PIECE:
        raise _wrong(
            store,
            meta.name,
            f"declares chunks of {size} bytes; at most {LARGEST_PIECE} are read at once",
            "have it written in smaller chunks",
        )


def _header_lies(codecs: tuple[str, ...], data: bytes, limit: int) -> str | None:
    """What is wrong with the sizes that a compressed chunk begins with, where it tells them.

    Decoders trust them: Blosc reads past the end of a chunk that was cut short, and others
    allocate whatever is asked for.
    """
    last, size = codecs[-1] if codecs else "", None
    if last == "blosc":
        if len(data) < 16:
            return f"has {len(data)} bytes, fewer than its header"
        size, length = struct.unpack("<4xI4xI", data[:16])
        if length != len(data):
            return f"has {len(data)} bytes, and its header says {length}"
    elif last == "lz4" and len(data) >= 4:
        size = int.from_bytes(data[:4], "little")
    elif last == "zstd" and len(data) >= 18 and data[:4] == b"\x28\xb5\x2f\xfd":
        single, width = data[4] & 0x20, (0, 2, 4, 8)[data[4] >> 6]
        width = 1 if single and not width else width
        start = 5 + (not single) + (0, 1, 2, 4)[data[4] & 3]
        size = int.from_bytes(data[start : start + width], "little") + 256 * (width == 2)
    if size is not None and size > limit:
        return f"says that it unpacks to {size} bytes, not {limit}"
    return None


def _wrong(store: Store, name: str, found: str, todo: str = "check the store") -> SourceError:
    return SourceError(found, file=store.path, key=name, todo=todo)

"""A new array of a zarr store, in the spelling and with the compressor of one that is there."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numcodecs
import numpy as np
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from ..readers.features import dump_like
from ..readers.zarr_array import IMAGE_CODEC, V2, ArrayMeta

# What diffusion_policy compresses with if nothing else is said, and what zarr 3 does.
BLOSC = {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 0, "blocksize": 0}
_ZSTD = {"name": "zstd", "configuration": {"level": 0, "checksum": False}}
_SHUFFLES = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}
_BLOCK = 16 << 20  # bytes that are encoded at once


@dataclass
class NewArray:
    """An array that is written from its first step to its last.

    Attributes:
        name: its key in the store, as in "data/wrist_rgb".
        zarr_format: 2 or 3.
        shape, chunks, dtype: of plain numbers; only the first axis is in several chunks.
        attributes: its user attributes.
        like: an array whose compressor, separators and style of JSON it takes; None: the usual.
    """

    name: str
    zarr_format: int
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype
    attributes: dict[str, Any] = field(default_factory=dict)
    like: ArrayMeta | None = None

    @cached_property
    def tree(self) -> dict[str, Any]:
        """Its .zarray or zarr.json."""
        old = copy.deepcopy(self.like.tree) if self.like else {}
        if self.zarr_format == V2:
            return {
                **old,
                "chunks": list(self.chunks),
                "compressor": self._compressor(old.get("compressor", BLOSC)),
                "dtype": self.dtype.str,
                "fill_value": False if self.dtype == bool else 0,
                "filters": None,
                "order": "C",
                "shape": list(self.shape),
                "zarr_format": 2,
            }
        for name in ("dimension_names", "storage_transformers"):
            old.pop(name, None)
        usual = {"name": "default", "configuration": {"separator": "/"}}
        if self.like is not None:
            # One file a frame: with "/", zarr's habit, each would get four folders of its own.
            old["chunk_key_encoding"] = {"name": "default", "configuration": {"separator": "."}}
        return {
            "shape": [],
            "data_type": "",
            "chunk_grid": {},
            "chunk_key_encoding": usual,
            **old,
            **{
                "shape": list(self.shape),
                "data_type": self.dtype.name,
                "chunk_grid": {
                    "name": "regular",
                    "configuration": {"chunk_shape": list(self.chunks)},
                },
                "fill_value": False if self.dtype == bool else 0,
                "codecs": self._codecs(old.get("codecs")),
                "attributes": self.attributes,
                "zarr_format": 3,
                "node_type": "array",
            },
        }

    def metadata(self) -> dict[str, bytes]:
        """Its metadata files: key -> what is in it."""
        if self.zarr_format == V2:
            attributes = json.dumps(self.attributes, indent=4, sort_keys=True)
            return {
                f"{self.name}/.zarray": self._text().encode(),
                f"{self.name}/.zattrs": attributes.encode(),
            }
        return {f"{self.name}/zarr.json": self._text().encode()}

    def entries(self) -> dict[str, Any]:
        """What consolidated metadata at the store's root says of it."""
        if self.zarr_format == V2:
            return {f"{self.name}/.zarray": self.tree, f"{self.name}/.zattrs": self.attributes}
        return {self.name: self.tree}

    def encode(self, start: int, values: np.ndarray) -> Iterator[tuple[str, bytes]]:
        """The chunks of some steps, in order.

        Args:
            start: the first step; the first of a chunk.
            values: up to the last of a chunk, or of the array. A few megabytes are looked at at a
                time.

        Yields:
            (key in the store, bytes)
        """
        rows = self.chunks[0]
        each = max(1, _BLOCK // max(1, self.dtype.itemsize * int(np.prod(self.chunks)))) * rows
        for first in range(0, len(values), each):
            block = np.asarray(values[first : first + each], self.dtype)
            begin = start + first
            codecs = self._numcodecs
            if codecs is None:
                self._zarr[begin : begin + len(block)] = block
            for row in range(begin // rows, -(-(begin + len(block)) // rows)):
                index = (row, *(0 for _ in self.chunks[1:]))
                key = self._meta.chunk(*index)
                if codecs is None:
                    data = self._pieces.pop(key).to_bytes()
                else:
                    data = self._filled(block[row * rows - begin : (row + 1) * rows - begin])
                    for codec in codecs:
                        data = codec.encode(data)
                yield f"{self.name}/{key}", bytes(data)

    def _filled(self, values: np.ndarray) -> np.ndarray:
        """The values of a chunk; what lies behind the array's end is zero."""
        if len(values) == self.chunks[0]:
            return np.ascontiguousarray(values)
        whole = np.zeros(self.chunks, self.dtype)
        whole[: len(values)] = values
        return whole

    @cached_property
    def _numcodecs(self) -> list | None:
        """The compressors, to be called one after the other, or None where zarr must do it.

        A chunk by its compressor costs a twentieth of what it costs through zarr.
        """
        if self.zarr_format == V2:
            compressor = self.tree["compressor"]
            return [] if compressor is None else [numcodecs.get_codec(compressor)]
        found = []
        for codec in self.tree["codecs"][1:]:
            options = codec.get("configuration", {})
            if codec["name"] == "blosc":
                options = {key: options[key] for key in ("cname", "clevel", "shuffle", "blocksize")}
                options["shuffle"] = _SHUFFLES[options["shuffle"]]
            elif codec["name"] not in ("gzip", "zstd"):
                return None
            found.append(numcodecs.get_codec({"id": codec["name"], **options}))
        return found

    def _text(self) -> str:
        if self.like is not None:
            return dump_like(self.like.text, self.like.tree, self.tree)
        if self.zarr_format == V2:
            return json.dumps(self.tree, indent=4, sort_keys=True)
        return json.dumps(self.tree, indent=2)

    @cached_property
    def _meta(self) -> ArrayMeta:
        return ArrayMeta(
            self.name, self.zarr_format, self.tree, "", self.shape, self.chunks, self.dtype
        )

    @cached_property
    def _pieces(self) -> dict:
        return {}

    @cached_property
    def _zarr(self) -> zarr.Array:
        buffer = default_buffer_prototype().buffer
        self._pieces[self._meta.file] = buffer.from_bytes(self._text().encode())
        # Black frames are written too: zarr 2 does so, and a chunk that is not there is a damage.
        array = zarr.open_array(MemoryStore(self._pieces), mode="r+")
        return array.with_config({"write_empty_chunks": True})

    def _compressor(self, old: dict | None) -> dict | None:
        # The codecs of pictures hold nothing else.
        pictures = old is not None and old["id"].startswith(IMAGE_CODEC)
        return dict(BLOSC) if pictures and len(self.shape) != 4 else old

    def _codecs(self, old: list[dict] | None) -> list[dict]:
        """An array's own bytes, then whatever compresses them in `old` (within its shards)."""
        tail = [_ZSTD]
        for position, codec in enumerate(old or ()):
            if codec["name"] == "sharding_indexed":
                return self._codecs(codec["configuration"]["codecs"])
            if codec["name"] == "bytes" and old:
                tail = old[position + 1 :]
        first = {"name": "bytes"}
        if self.dtype.itemsize > 1:
            first["configuration"] = {"endian": "little"}  # type: ignore[assignment]
        tail = copy.deepcopy(tail)
        for codec in tail:
            if "typesize" in codec.get("configuration", {}):
                codec["configuration"]["typesize"] = self.dtype.itemsize
        return [first, *tail]

"""New datasets in a copied HDF5 file, beside what is there and stored as that is."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np

from ..readers.files import present
from ..readers.hdf5 import address, phil
from ..readers.hdf5_dataset import SYNTHETIC
from .atomic import copy_bytes

_BLOCK = 8 << 20
_MARGIN = 1 << 20
_DEFLATE, _SHUFFLE, _FLETCHER = 1, 2, 3
_FIRST_PLUGIN = 256  # filters below are HDF5's own; of these, others need settings of their own
# These and, of the registered plugins, bzip2, LZF, Blosc, LZ4, bitshuffle and Zstandard.
_LOSSLESS = frozenset((_DEFLATE, _SHUFFLE, _FLETCHER, 307, 32000, 32001, 32004, 32008, 32015))
_V2 = b"OHDR"
_TIMES, _PHASES = 0x20, 0x10


class Extension:
    """The copy of a file while it is added to.

    Attributes:
        file: it, open.
    """

    def __init__(self, file: h5py.File):
        self.file = file
        self.changed: set[int] = set()

    def add(
        self,
        group: h5py.Group,
        name: str,
        shape: tuple[int, ...],
        dtype: np.typing.DTypeLike,
        *,
        description: str,
        like: h5py.Dataset | None = None,
        chunk: tuple[int, ...] | None = None,
    ) -> h5py.Dataset:
        """A new, empty dataset that says that it is synthetic.

        Args:
            description: what it is.
            like: its sibling: where that has chunks the new one has too, with the same filters;
                where it is contiguous (or None) the new one is.
            chunk: of the new one.
        """
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_obj_track_times(False)  # equal runs give equal bytes
        plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)  # every byte is written
        if like is not None and like.chunks is not None and chunk is not None and 0 not in shape:
            plist.set_chunk(chunk)
            _same_filters(like.id.get_create_plist(), plist)
        space = h5py.h5s.create_simple(shape)
        kind = h5py.h5t.py_create(np.dtype(dtype), logical=True)
        self._note(group)
        dataset = h5py.Dataset(h5py.h5d.create(group.id, name.encode(), kind, space, plist))
        dataset.attrs[SYNTHETIC] = True
        dataset.attrs["description"] = description
        return dataset

    def remove(self, group: h5py.Group, name: str) -> None:
        """Take a name out of a group."""
        self._note(group)
        del group[name]

    def replace(self, group: h5py.Group, name: str, values: np.ndarray) -> None:
        """Put an array in the place of a dataset; its type, filters and attributes stay."""
        old = group[name]
        assert isinstance(old, h5py.Dataset)
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_obj_track_times(False)
        if old.chunks is not None:
            pairs = zip(old.chunks, values.shape, strict=True)
            plist.set_chunk(tuple(min(chunk, size) for chunk, size in pairs))
            _same_filters(old.id.get_create_plist(), plist)
        kind, space = old.id.get_type(), h5py.h5s.create_simple(values.shape)
        new = h5py.Dataset(h5py.h5d.create(group.id, None, kind, space, plist))
        for key in old.attrs:
            attribute = old.attrs.get_id(key)
            new.attrs.create(key, old.attrs[key], attribute.shape, attribute.dtype)
        new[...] = values
        self.remove(group, name)
        group[name] = new

    def _note(self, group: h5py.Group) -> None:
        self.changed.add(address(group))


@contextlib.contextmanager
def extended(source: Path, path: Path, room: int) -> Iterator[Extension]:
    """A byte-equal copy of a file, open for additions.

    Groups in HDF5's newer spelling note when they were changed last. Two runs would differ in
    that, so the groups that an Extension changes get back the times that they have in the source.

    Args:
        source: the file to copy. path: where the copy goes.
        room: bytes that will be added, at most.

    Raises:
        OSError: the disk is full, or `path` may not be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(present(source), "rb") as old, open(path, "wb") as new:
        copy_bytes(old, new)
        new.flush()
        # HDF5 crashes the process where the disk is full; so the disk is asked first. What is not
        # used is given back when HDF5 closes the file.
        try:
            os.posix_fallocate(new.fileno(), os.fstat(new.fileno()).st_size, room + _MARGIN)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
    with h5py.File(path, "r+", locking=False) as file:
        base = file.userblock_size
        extension = Extension(file)
        yield extension
    _restore_times(source, path, sorted(base + place for place in extension.changed))


def write_frames(
    frames: np.ndarray | Sequence[np.ndarray],
    dataset: h5py.Dataset,
    following: h5py.Dataset | None = None,
    *,
    flip: bool = False,
) -> None:
    """Write pictures (or any rows), a few megabytes at a time.

    Args:
        frames: [T, ...].
        dataset: gets them.
        following: gets at t what `dataset` has at t + 1, and at the end the last once more.
        flip: store the last row of each picture first.
    """
    T = len(frames)
    if not T:
        return
    row = max(1, int(np.prod(dataset.shape[1:], dtype=np.int64)) * dataset.dtype.itemsize)
    rows = max(1, _BLOCK // row)
    level, corner = _deflated(dataset), (0,) * (dataset.ndim - 1)
    pixels = packed = b""
    block = np.asarray(frames[:0])
    for start in range(0, T, rows):
        block = np.asarray(frames[start : start + rows])
        block = np.ascontiguousarray(block[:, ::-1] if flip else block)
        if level is None:
            dataset[start : start + len(block)] = block
            skip = 1 if start == 0 else 0
            if following is not None and len(block) > skip:
                following[start - 1 + skip : start - 1 + len(block)] = block[skip:]
            continue
        for step, frame in enumerate(block, start):
            # Compressed once for both places, and not again for a picture that stands still.
            if (new := frame.tobytes()) != pixels:
                pixels, packed = new, zlib.compress(new, level)
            _put_chunk(dataset, (step, *corner), packed)
            if following is not None and step:
                _put_chunk(following, (step - 1, *corner), packed)
    if following is not None and level is None:
        following[T - 1] = block[-1]
    elif following is not None:
        _put_chunk(following, (T - 1, *corner), packed)


def _put_chunk(dataset: h5py.Dataset, corner: tuple[int, ...], packed: bytes) -> None:
    """Write a chunk that is compressed already."""
    # h5py takes its lock in every call but those for whole chunks, and HDF5 breaks the process's
    # memory where another thread (which decodes the next record) is in it meanwhile.
    with phil:
        dataset.id.write_direct_chunk(corner, packed)


def _deflated(dataset: h5py.Dataset) -> int | None:
    """The level of a dataset that is chunked by frames of bytes and has gzip alone, else None."""
    plist = dataset.id.get_create_plist()
    if dataset.chunks != (1, *dataset.shape[1:]) or dataset.dtype.itemsize != 1:
        return None
    filters = [plist.get_filter(index) for index in range(plist.get_nfilters())]
    codes = [code for code, *_ in filters if code != _SHUFFLE]  # which does nothing to bytes
    return int(filters[-1][2][0]) if codes == [_DEFLATE] and filters[-1][0] == _DEFLATE else None


def lossless(dataset: h5py.Dataset) -> bool:
    """Whether the filters of a dataset give back what was put in."""
    plist = dataset.id.get_create_plist()
    return all(plist.get_filter(i)[0] in _LOSSLESS for i in range(plist.get_nfilters()))


def _same_filters(old: h5py.h5p.PropDCID, new: h5py.h5p.PropDCID) -> None:
    for index in range(old.get_nfilters()):
        code, flags, values, _ = old.get_filter(index)
        if code in (_DEFLATE, _SHUFFLE, _FLETCHER) or (
            code >= _FIRST_PLUGIN and h5py.h5z.filter_avail(code)
        ):
            new.set_filter(code, flags, tuple(values))


def _restore_times(source: Path, path: Path, addresses: Sequence[int]) -> None:
    """Give object headers of HDF5's second spelling the times that they have in the source."""
    with open(present(source), "rb") as old, open(path, "r+b") as new:
        for place in addresses:
            old.seek(place)
            head = old.read(22)
            if head[:4] != _V2 or not head[5] & _TIMES:
                continue  # the first spelling has no times in its header
            new.seek(place)
            now = bytearray(new.read(22 + 4 + 8))
            flags = now[5]
            at = 22 + (4 if flags & _PHASES else 0)
            width = 1 << (flags & 3)
            size = int.from_bytes(now[at : at + width], "little")
            new.seek(place)
            header = bytearray(new.read(at + width + size))
            stored = new.read(4)
            if header[:4] != _V2 or struct.pack("<I", lookup3(bytes(header))) != stored:
                raise ValueError(f"{path}: no object header where one was, at {place}")
            header[6:22] = head[6:22]
            new.seek(place)
            new.write(header + struct.pack("<I", lookup3(bytes(header))))


def lookup3(data: bytes) -> int:
    """Bob Jenkins' hash (lookup3, hashlittle, 2006), HDF5's checksum of its own structures."""
    mask = 0xFFFFFFFF

    def turn(x: int, k: int) -> int:
        return ((x << k) | (x >> (32 - k))) & mask

    a = b = c = (0xDEADBEEF + len(data)) & mask
    if not data:
        return c
    at = 0
    while len(data) - at > 12:
        x, y, z = struct.unpack_from("<III", data, at)
        a, b, c = (a + x) & mask, (b + y) & mask, (c + z) & mask
        for k in (4, 6, 8, 16, 19, 4):
            # One step of the mixing; the three words change places after each.
            a = ((a - c) & mask) ^ turn(c, k)
            c = (c + b) & mask
            a, b, c = b, c, a
        at += 12
    x, y, z = struct.unpack("<III", data[at:].ljust(12, b"\0"))
    a, b, c = (a + x) & mask, (b + y) & mask, (c + z) & mask
    for k in (14, 11, 25, 16, 4, 14, 24):
        c = ((c ^ b) - turn(b, k)) & mask
        a, b, c = b, c, a
    # Seven steps moved the words on by one.
    return b


def put(group: h5py.Group, name: str, values: np.ndarray, **storage) -> None:
    """A new dataset of an array in a file that is made, without the time of day in it."""
    group.create_dataset(name, data=values, track_times=False, **storage)


def sync(path: Path) -> None:
    """Bring a closed file's bytes to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""New arrays at the end of an .npz archive, whose old bytes stay as they are and where they are.

A zip's directory stands behind its members, so the members (with their local headers) are kept as
one block, the new ones are written behind it, and a directory of the old entries and the new ones
ends the file. Only where a member is taken out do those behind it move.

New members are stored, not deflated: zlib and its faster relatives pack the same bytes differently,
so that deflated ones would depend on the host; and packing would take longer than all the rest.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Collection, Sequence

import numpy as np

from ..readers.npz import (
    END,
    END_MAGIC,
    ENTRY,
    ENTRY_MAGIC,
    LOCAL,
    LOCAL_MAGIC,
    STORED,
    SUFFIX,
    Directory,
)

_VERSION, _UNIX = 20, 3 << 8
_DATE = 0x21  # 1 January 1980, the first that a zip can tell, as numpy writes it
_MODE = 0o600 << 16
_OFFSET = 42  # of a member's place in its directory entry


class NewArray:
    """Makes the members of one key, frame after frame.

    Args:
        key: as numpy.load shall call it; ASCII.
        shape, dtype: of every array.
    """

    def __init__(self, key: str, shape: Sequence[int], dtype: np.typing.DTypeLike):
        self.key, self.shape, self.dtype = key, tuple(shape), np.dtype(dtype)
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header,
            {
                "descr": np.lib.format.dtype_to_descr(self.dtype),
                "fortran_order": False,
                "shape": self.shape,
            },
        )
        self._head = header.getvalue()
        self._crc = zlib.crc32(self._head)
        self._name = (key + SUFFIX).encode("ascii")

    def member(self, array: np.ndarray, offset: int) -> tuple[bytes, bytes]:
        """(local header and contents, directory entry) of a member that begins at `offset`.

        Raises:
            ValueError: the array is of another shape or dtype.
        """
        if array.shape != self.shape or array.dtype != self.dtype:
            raise ValueError(f"{self.key}: {array.shape} {array.dtype}, not {self.shape}")
        data = array.tobytes()
        crc, size = zlib.crc32(data, self._crc), len(self._head) + len(data)
        name = len(self._name)
        common = (_VERSION, 0, STORED, 0, _DATE, crc, size, size, name, 0)
        local = LOCAL.pack(LOCAL_MAGIC, *common)
        made = _VERSION | _UNIX
        entry = ENTRY.pack(ENTRY_MAGIC, made, *common, 0, 0, 0, _MODE, offset)
        return b"".join((local, self._name, self._head, data)), entry + self._name


def appended(
    body: bytes,
    directory: Directory,
    arrays: Sequence[tuple[NewArray, np.ndarray]],
    drop: Collection[str] = (),
) -> list[bytes]:
    """An archive with new arrays, in pieces that are to be written one after another.

    Args:
        body: the old archive's bytes before its directory.
        directory: the old archive's, checked (`Npz.check`).
        arrays: what is added, in this order; their keys are not in the archive, or in `drop`.
        drop: keys of arrays that are taken out.
    """
    gone = {member.at for member in directory.members if member.is_array and member.key in drop}
    if gone:
        pieces, entries, offset = _without(body, directory, gone)
    else:
        pieces = [body]
        entries, offset = [directory.raw], directory.start
    for maker, array in arrays:
        member, entry = maker.member(array, offset)
        pieces.append(member)
        entries.append(entry)
        offset += len(member)
    table = b"".join(entries)
    count = len(directory.members) - len(gone) + len(arrays)
    comment = directory.comment
    end = END.pack(END_MAGIC, 0, 0, count, count, len(table), offset, len(comment))
    return [*pieces, table, end, comment] if comment else [*pieces, table, end]


def _without(
    body: bytes, directory: Directory, gone: Collection[int]
) -> tuple[list[bytes], list[bytes], int]:
    """(the members that stay, their directory entries with new places, where they end)."""
    places, moved = directory.places(), {}
    offset = places[0][0].start
    pieces = [body[:offset]]
    for member, end in places:
        if member.at in gone:
            continue
        moved[member.at] = offset
        pieces.append(body[member.start : end])
        offset += end - member.start
    entries = []
    for member in directory.members:
        if member.at in moved:
            entry = directory.raw[member.at : member.at + member.entry]
            place = moved[member.at].to_bytes(4, "little")
            entries.append(entry[:_OFFSET] + place + entry[_OFFSET + 4 :])
    return pieces, entries, offset

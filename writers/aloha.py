"""The augmented copy of ACT's and ALOHA's files: observations/images/<key>, raw or as JPEGs."""

from __future__ import annotations

import tempfile
from pathlib import Path

import h5py
import numpy as np

from ..readers.aloha import COMPRESS, LENGTHS, AlohaDataset, padded
from ..readers.episode import WristStream
from ..readers.hdf5 import dataset_at, unsound
from .hdf5 import Extension, write_frames
from .hdf5_copy import Hdf5Copy
from .splice import encode_jpeg

_SPOOL = 64 << 20


class Copy(Hdf5Copy):
    """Writes the augmented copy."""

    like_siblings = True
    gives_back = False  # a file is one episode: there are no good ones beside a bad one
    dataset: AlohaDataset

    def look_back(self, group: h5py.Group) -> int | None:
        """The row of `compress_len` that tells of a stream that is replaced; -1 if none does.

        Its rows are in the order of the cameras as they were recorded, which is not told: the
        row is known by its numbers.
        """
        old, table = dataset_at(group, self.stream_key), dataset_at(group, LENGTHS)
        if old is None:
            return None
        if table is None or not padded(old) or unsound(old):
            return -1
        lengths = [len(old[step].tobytes().rstrip(b"\0")) for step in range(len(old))]
        rows = () if unsound(table) or table.ndim != 2 else table[()]
        fits = (n for n, row in enumerate(rows) if np.array_equal(row, lengths))
        return next(fits, -1)

    def write_stream(
        self, extension: Extension, group: h5py.Group, stream: WristStream, replaced: int | None
    ) -> None:
        (images,) = self.stream_groups(group)
        like = self.like(group)
        compressed = padded(like) if like is not None else bool(group.attrs.get(COMPRESS, False))
        if compressed:
            lengths = self._write_jpegs(extension, images, stream, like)
            self._tell_lengths(extension, group, lengths, replaced)
            return
        shape = stream.frames.shape
        dataset = extension.add(
            images, self.wrist_key, shape, np.uint8,
            description=self.description, like=like, chunk=(1, *shape[1:]),
        )  # fmt: skip
        write_frames(stream.frames, dataset)

    def _write_jpegs(
        self,
        extension: Extension,
        images: h5py.Group,
        stream: WristStream,
        like: h5py.Dataset | None,
    ) -> list[int]:
        """Add the pictures as JPEGs, padded with zeros to the longest; returns their lengths."""
        folder = str(Path(extension.file.filename).parent)
        lengths: list[int] = []
        # The longest JPEG decides the width, so all are made before the first is written.
        with tempfile.SpooledTemporaryFile(_SPOOL, dir=folder) as spool:
            last: tuple[bytes, bytes] = (b"", b"")
            for frame in stream.frames:
                pixels = np.ascontiguousarray(frame[:, :, ::-1])  # as OpenCV takes RGB for BGR
                if (same := pixels.tobytes()) != last[0]:
                    last = same, encode_jpeg(pixels, self.quality)
                lengths.append(spool.write(last[1]))
            spool.seek(0)
            width = max(lengths, default=0)
            dataset = extension.add(
                images, self.wrist_key, (len(lengths), width), np.uint8,
                description=self.description, like=like, chunk=(1, width),
            )  # fmt: skip
            for step, length in enumerate(lengths):
                row = np.zeros(width, np.uint8)
                row[:length] = np.frombuffer(spool.read(length), np.uint8)
                dataset[step] = row
        return lengths

    def _tell_lengths(
        self, extension: Extension, group: h5py.Group, lengths: list[int], replaced: int | None
    ) -> None:
        """Tell the lengths in `compress_len`, which has a row for every camera.

        The new row is the last. Loaders walk its rows beside the cameras in the order of their
        names, so there must be as many; none uses the values, since a decoder stops by itself.
        """
        table = dataset_at(group, LENGTHS)
        if table is None or unsound(table) or table.ndim != 2:
            return
        rows = table[()]
        if rows.shape[1] != len(lengths):
            return
        if replaced is None:
            rows = np.vstack([rows, np.asarray(lengths, rows.dtype)[None]])
        elif replaced >= 0:
            rows[replaced] = lengths
        else:
            return
        extension.replace(group, LENGTHS, rows)

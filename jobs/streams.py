"""Finished episodes of unfinished shards: OUT/.wristaugment/streams/<shard>/<record>.npz.

An actor that dies takes the records it was at with it, and no others: whoever makes the shard again
finds the rest here. A file is whole or not believed (its archive has checksums), so that no flush
to the disk is waited for. The driver makes a shard's folder before it grants an attempt and removes
it once the shard is published; an actor makes none, so that what comes late finds no place.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..readers.episode import WristStream
from .storage import FolderStorage, ObjectStorage, Storage

_ARRAYS = ("frames", "valid", "coverage")
_CONFIDENCE = "confidence"  # there where the recipe tells it


def stream_name(folder: str, index: int) -> str:
    """The file of one episode in a shard's folder."""
    return f"{folder}/{index:06d}.npz"


class StreamStore:
    """The finished episodes of one shard.

    Args:
        store: of OUT. folder: below it, where they lie.
        granted: tells whether they are still wanted; asked around a put to an object store, which
            has no folder that could be missing.
    """

    def __init__(self, store: Storage, folder: str, granted: Callable[[], bool] = lambda: True):
        self.store, self.folder, self.granted = store, folder, granted
        self._there = store.files(folder)

    def has(self, index: int) -> bool:
        """Whether an episode was there, whole or not, when this was opened."""
        return stream_name("", index)[1:] in self._there

    def load(self, index: int) -> tuple[WristStream, dict] | None:
        """A finished episode and what is said of its quality; None where there is none whole."""
        try:
            with np.load(self._opened(index), allow_pickle=False) as file:
                names = [*_ARRAYS, *([_CONFIDENCE] if _CONFIDENCE in file else [])]
                arrays = {name: file[name] for name in names}
                said = json.loads(str(file["said"]))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        return WristStream(**arrays), said

    def _opened(self, index: int) -> Path | BinaryIO:
        name = self._name(index)
        if isinstance(self.store, FolderStorage):
            return self.store.path(name)
        return io.BytesIO(self.store.read(name))

    def keep(self, index: int, stream: WristStream, said: dict) -> None:
        """Keep a finished episode. A disk that is full is the shard's problem, not this one's."""
        with contextlib.suppress(OSError):
            if isinstance(self.store, FolderStorage):
                path = self.store.path(self._name(index))
                part = path.with_suffix(f".{os.getpid()}")
                try:
                    with open(part, "wb") as file:
                        _save(file, stream, said)
                    os.replace(part, path)
                finally:
                    part.unlink(missing_ok=True)
                return
            assert isinstance(self.store, ObjectStorage)
            with tempfile.NamedTemporaryFile(suffix=".npz") as file:
                _save(file, stream, said)
                file.flush()
                if self.granted():
                    self.store.put(Path(file.name), self._name(index))
                    if not self.granted():
                        self.store.remove(self._name(index))

    def _name(self, index: int) -> str:
        return stream_name(self.folder, index)


def _save(file, stream: WristStream, said: dict) -> None:
    arrays = {name: getattr(stream, name) for name in _ARRAYS}
    if stream.confidence is not None:
        arrays[_CONFIDENCE] = stream.confidence
    np.savez(file, allow_pickle=False, said=np.array(json.dumps(said)), **arrays)

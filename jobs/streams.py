"""Finished episodes of unfinished shards: OUT/.wristaugment/streams/<shard>/<record>.npz.

An actor that dies takes the record it was at with it, and no other: whoever makes the shard again
finds the rest here. A file is whole or not believed (its archive has checksums), so that no flush
to the disk is waited for. The driver removes a shard's folder once the shard is published.
"""

from __future__ import annotations

import contextlib
import json
import os
import zipfile
from pathlib import Path

import numpy as np

from ..readers.episode import WristStream

_ARRAYS = ("frames", "valid", "coverage")


class StreamStore:
    """The finished episodes of one shard.

    Args:
        folder: where they lie; made when the first is kept.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    def load(self, index: int) -> tuple[WristStream, dict] | None:
        """A finished episode and what is said of its quality; None where there is none whole."""
        try:
            with np.load(self._path(index), allow_pickle=False) as file:
                arrays = {name: file[name] for name in _ARRAYS}
                said = json.loads(str(file["said"]))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        return WristStream(**arrays), said

    def keep(self, index: int, stream: WristStream, said: dict) -> None:
        """Keep a finished episode. A disk that is full is the shard's problem, not this one's."""
        path = self._path(index)
        part = path.with_suffix(f".{os.getpid()}")
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                with open(part, "wb") as file:
                    arrays = {name: getattr(stream, name) for name in _ARRAYS}
                    np.savez(file, allow_pickle=False, said=np.array(json.dumps(said)), **arrays)
                os.replace(part, path)
            finally:
                part.unlink(missing_ok=True)

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:06d}.npz"

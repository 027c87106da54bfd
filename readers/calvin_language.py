"""CALVIN's language annotations: which sentence belongs to which frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import SourceError
from .npz import read_regular
from .restricted_pickle import Array, Refused, load_npy_object

# Where calvin_agent looks, in its order.
PLACES = ("lang_annotations/auto_lang_ann.npy", "auto_lang_ann.npy")
_MAX_FILE = 1 << 28  # the largest has 18,000 sentences and 27 MB of embeddings


@dataclass(frozen=True)
class Annotations:
    """The sentences of a split.

    Attributes:
        texts: [N] sentences. ranges: [N, 2] int64, the first and the last frame of each.
    """

    texts: Sequence[str] = ()
    ranges: np.ndarray | None = None

    def of(self, start: int, stop: int) -> str:
        """The sentence that shares most frames with `start` to `stop` - 1; "" where none does."""
        if self.ranges is None or not len(self.ranges):
            return ""
        shared = np.minimum(self.ranges[:, 1] + 1, stop) - np.maximum(self.ranges[:, 0], start)
        best = int(np.argmax(shared))
        return self.texts[best].strip() if shared[best] > 0 else ""


def read_annotations(folder: Path) -> tuple[Annotations, SourceError | None]:
    """The annotations of a split's folder, and why there are none where a file is there."""
    path = next((path for place in PLACES if (path := folder / place).exists()), None)
    if path is None:
        return Annotations(), None
    try:
        return _parsed(load_npy_object(read_regular(path, _MAX_FILE))), None
    except SourceError as error:
        found = error.found
    except Refused as error:
        found = str(error)
    todo = "the dataset is read without language; fetch this file again from where you trust it"
    return Annotations(), SourceError(found, file=path, todo=todo)


def _parsed(tree: object) -> Annotations:
    language = tree.get("language") if isinstance(tree, dict) else None
    info = tree.get("info") if isinstance(tree, dict) else None
    texts = _rows(language.get("ann") if isinstance(language, dict) else None)
    pairs = _rows(info.get("indx") if isinstance(info, dict) else None)
    if texts is None or pairs is None or len(texts) != len(pairs):
        raise Refused("holds no sentences (language/ann) with their frames (info/indx)")
    flat = []
    for pair in pairs:
        both = _rows(pair)
        if both is None or len(both) != 2 or not all(_whole(number) for number in both):
            raise Refused("holds ranges of frames (info/indx) that are no pairs of whole numbers")
        flat.append(both)
    if not all(isinstance(text, str) for text in texts):
        raise Refused("holds sentences (language/ann) that are no text")
    ranges = np.asarray(flat, np.int64).reshape(-1, 2)
    return Annotations([str(text) for text in texts], ranges)


def _rows(value: object) -> list | None:
    value = value.value() if isinstance(value, Array) else value
    if isinstance(value, np.ndarray):
        return value.tolist() if value.ndim else None
    return list(value) if isinstance(value, list | tuple) else None


def _whole(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and abs(number) < 2**62

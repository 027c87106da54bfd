"""Bytes on disk -> Episode. Knows formats; knows no torch, no Ray, no TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def open_dataset(data_dir: Path | str, dataset: str, *, anchor_keys: Sequence[str] | None = None):
    """Open a dataset of any format that is known; today that is RLDS.

    Args:
        data_dir: where it lies: a TFDS root, a dataset folder or a version folder.
        dataset: a profile's name or alias, or the dataset's own name together with `anchor_keys`.
        anchor_keys: the keys of the third-person cameras, where no profile knows them.

    Returns:
        A readers.rlds.RldsDataset.

    Raises:
        SourceError: it is not there, is another one, is damaged, or its cameras are unknown.
    """
    from .rlds import open_rlds  # here, so that the Episode type alone is quick to import

    return open_rlds(data_dir, dataset, anchor_keys=anchor_keys)

"""Bytes on disk -> Episode. Knows formats; knows no torch, no Ray, no TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def open_dataset(
    data_dir: Path | str,
    dataset: str | None = None,
    *,
    anchor_keys: Sequence[str] | None = None,
    plain: bool = False,
):
    """Open a dataset of any format; see readers.formats.open_dataset."""
    from . import formats  # here, so that the Episode type alone is quick to import

    return formats.open_dataset(data_dir, dataset, anchor_keys=anchor_keys, plain=plain)

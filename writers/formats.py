"""The writer of a dataset's own format."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from ..readers.dataset import Dataset
from .copy import DatasetCopy


def usual_size(dataset: Dataset) -> tuple[int, int] | None:
    """(height, width) that readers of the dataset's format expect; None: any will do."""
    return _writer(dataset).usual_size(dataset)


def open_copy(dataset: Dataset, out: Path, **options: Any) -> DatasetCopy:
    """The copy of `dataset` below `out`, in its format; opening it writes nothing.

    Args:
        options: as of DatasetCopy.

    Raises:
        SourceError: as DatasetCopy.
    """
    return _writer(dataset)(dataset, out, **options)


def _writer(dataset: Dataset) -> type[DatasetCopy]:
    return importlib.import_module(f".{dataset.format}", __package__).Copy

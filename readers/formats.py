"""The formats that are known: one row each. The row's name is also that of its modules.

readers/<name>.py has `recognise` and `open_source` (see readers/dataset), writers/<name>.py has
`Copy` (see writers/copy), and writers/<name>_create.py has `create`, which makes a new dataset.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from .dataset import Dataset
from .errors import SourceError


@dataclass(frozen=True)
class Format:
    """A row of the table.

    Attributes:
        name: of its modules.
        title: what people call it, and how it is recognised.
        example: of a --data-dir.
    """

    name: str
    title: str
    example: str

    def reader(self) -> ModuleType:
        """readers/<name>; loaded when it is needed, since some load large libraries."""
        return importlib.import_module(f".{self.name}", __package__)


# Asked in this order; what is told by a file of its own name comes first.
FORMATS = (
    Format("rlds", "RLDS / TFDS (features.json, dataset_info.json): DROID, Open-X", "droid/1.0.1"),
    Format(
        "droid_raw",
        "raw DROID (trajectory.h5, metadata_*.json, recordings/MP4 in a folder an episode)",
        "droid_raw/1.0.1",
    ),
    Format(
        "replay_buffer",
        "zarr ReplayBuffer, a folder or a zip (data/, meta/episode_ends): diffusion_policy, UMI",
        "dataset.zarr.zip",
    ),
    Format("calvin", "CALVIN (training/, validation/ with ep_start_end_ids.npy)", "task_D_D"),
    Format("robomimic", "robomimic and LIBERO (HDF5 with data/demo_0/obs)", "can/ph/image.hdf5"),
    Format("aloha", "ACT / ALOHA (HDF5 with observations/images)", "aloha_mobile_wipe_wine"),
    Format("lerobot", "LeRobot 2.0, 2.1 and 3.0 (meta/info.json)", "lerobot/droid_100"),
)


def recognise(path: Path) -> Format | None:
    """The first format that says that `path` is one of its datasets, or None."""
    return next((row for row in FORMATS if row.reader().recognise(path)), None)


def open_dataset(
    data_dir: Path | str,
    dataset: str | None = None,
    *,
    anchor_keys: Sequence[str] | None = None,
    plain: bool = False,
) -> Dataset:
    """Open a dataset of any format that is known.

    Args:
        data_dir: the folder or file it lies in; the format is told by what is there.
        dataset: a profile's name or alias, or the dataset's own name; None takes what is found.
        anchor_keys: the keys of the third-person cameras, where no profile knows them.
        plain: open it even if no profile knows its cameras; there are no anchors then.

    Raises:
        SourceError: it is not there, is another one, is damaged, or its cameras are unknown.
    """
    path = Path(data_dir).expanduser()
    if not path.exists():
        raise SourceError("there is no such folder or file", file=path, todo="check --data-dir")
    found = recognise(path)
    if found is None:
        known = "; ".join(f"{row.title}, as in {row.example}" for row in FORMATS)
        raise SourceError(
            "holds no dataset of a known format",
            file=path,
            todo=f"give the dataset's own folder or file. Known: {known}",
        )
    return found.reader().open_source(path, dataset, anchor_keys=anchor_keys, plain=plain)

"""A new zarr ReplayBuffer from recorded episodes, as diffusion_policy makes of robomimic's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from ..readers.replay_buffer import DATA, ENDS, META
from ..readers.zarr_array import V2
from .recorded import ANCHORS, WRIST, Recorded, RecordedSplit
from .zarr_array import NewArray
from .zarr_sink import FolderSink, ZipSink

NAME = "replay_buffer.zarr"
CAMERAS = {ANCHORS[0]: "agentview_image", ANCHORS[1]: "sideview_image"}
WRIST_CAMERA = "robot0_eye_in_hand_image"
_OPEN = 0.04  # metres between a Panda's finger and the middle


def create(
    out: Path,
    splits: Mapping[str, RecordedSplit],
    *,
    zarr_format: int = V2,
    zipped: bool = False,
    wrist: bool = False,
) -> Path:
    """Write a new ReplayBuffer of all episodes of all splits, one after the other.

    Args:
        out: the folder that it goes into.
        splits: the episodes.
        zarr_format: 2 (what diffusion_policy and UMI read) or 3.
        zipped: write replay_buffer.zarr.zip, and no folder.
        wrist: add the recorded wrist view.

    Returns:
        The store.
    """
    path = Path(out) / (f"{NAME}.zip" if zipped else NAME)
    path.parent.mkdir(parents=True, exist_ok=True)
    episodes = [episode.steps for split in splits.values() for episode in split]
    first = next(iter(next(iter(splits.values()))))
    sample = _episode(first, wrist)
    length = sum(episodes)
    with ZipSink(path) if zipped else FolderSink(path) as sink:
        for key, data in _groups(zarr_format):
            sink.write(key, data)
        ends = np.cumsum(episodes).astype(np.int64)
        arrays = [NewArray(ENDS, zarr_format, ends.shape, ends.shape, ends.dtype)]
        for key, values in sample.items():
            pictures = values.ndim == 4
            chunks = (1 if pictures else max(1, length), *values.shape[1:])
            shape = (length, *values.shape[1:])
            arrays.append(NewArray(f"{DATA}/{key}", zarr_format, shape, chunks, values.dtype))
        for array in arrays:
            for key, data in array.metadata().items():
                # Real stores have no .zattrs where there are no attributes.
                if not key.endswith(".zattrs"):
                    sink.write(key, data)
        for key, data in arrays[0].encode(0, ends):
            sink.write(key, data)
        tables: dict[str, list[np.ndarray]] = {}
        start = 0
        for split in splits.values():
            for episode in split:
                found = _episode(episode, wrist)
                for array in arrays[1:]:
                    short = array.name.removeprefix(f"{DATA}/")
                    if len(array.shape) != 4:
                        tables.setdefault(short, []).append(found[short])
                        continue
                    for key, data in array.encode(start, found[short]):
                        sink.write(key, data)
                start += episode.steps
        for array in arrays[1:]:
            if len(array.shape) != 4:
                values = np.concatenate(tables[array.name.removeprefix(f"{DATA}/")])
                for key, data in array.encode(0, values):
                    sink.write(key, data)
    return path


def _groups(zarr_format: int) -> Iterator[tuple[str, bytes]]:
    for folder in ("", f"{DATA}/", f"{META}/"):
        if zarr_format == V2:
            yield f"{folder}.zgroup", json.dumps({"zarr_format": 2}, indent=4).encode()
        else:
            tree = {"attributes": {}, "zarr_format": 3, "node_type": "group"}
            yield f"{folder}zarr.json", json.dumps(tree, indent=2).encode()


def _episode(episode: Recorded, wrist: bool) -> dict[str, np.ndarray]:
    """An episode's arrays by their keys, time first, in the order of their names."""
    cameras = {**CAMERAS, **({WRIST: WRIST_CAMERA} if wrist else {})}
    found: dict[str, np.ndarray] = {
        key: np.asarray(episode.views[name].frames) for name, key in cameras.items()
    }
    quat = Rotation.from_matrix(episode.eef[:, :3, :3]).as_quat()  # xyzw, as robosuite's
    fingers = _OPEN * (1 - np.asarray(episode.gripper))[:, None] * np.array([1.0, -1.0])
    numbers = {
        "action": episode.action,
        "robot0_eef_pos": episode.eef[:, :3, 3],
        "robot0_eef_quat": quat,
        "robot0_gripper_qpos": fingers,
        "robot0_joint_pos": episode.joints,
    }
    found.update({key: np.asarray(values, np.float32) for key, values in numbers.items()})
    return dict(sorted(found.items()))

"""New raw DROID episodes from recorded ones: trajectory.h5, metadata_*.json, MP4s."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
from scipy.spatial.transform import Rotation

from ..readers.droid_folder import TRAJECTORY, VIDEOS
from .recorded import ANCHORS, WRIST, Recorded, RecordedSplit
from .video import VideoWriter

NAME, LAB = "droid_raw", "SIM"
# ext1, ext2 and wrist; 0 is a hand camera and 1 a varied one, as DROID's own code says.
SERIALS = {ANCHORS[0]: "22008760", ANCHORS[1]: "24400334", WRIST: "18026681"}
_ROLES = {ANCHORS[0]: "ext1", ANCHORS[1]: "ext2", WRIST: "wrist"}
_FPS = 60  # the cameras' rate, with which DROID marks its videos, though steps are at 15 Hz
_DATE = "2024-01-01"


def create(out: Path, splits: Mapping[str, RecordedSplit], *, wrist: bool = False) -> Path:
    """Write new episodes, all of them as successes.

    Args:
        out: the folder that droid_raw goes into.
        splits: the episodes.
        wrist: record the wrist view too.

    Returns:
        The dataset's folder.
    """
    root, number = Path(out) / NAME, 0
    for split in splits.values():
        for episode in split:
            folder = root / LAB / "success" / _DATE / f"episode_{number:06d}"
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder, episode, number, wrist)
            number += 1
    return root


def _write(folder: Path, episode: Recorded, number: int, wrist: bool) -> None:
    cameras = [*ANCHORS, WRIST] if wrist else list(ANCHORS)
    for name in cameras:
        view = episode.views[name]
        path = folder / VIDEOS / f"{SERIALS[name]}.mp4"
        with VideoWriter(path, view.size, _FPS) as video:
            for frame in view.frames:
                video.add(np.asarray(frame))
    in_base = {name: _in_base(episode, name) for name in SERIALS}
    _trajectory(folder / TRAJECTORY, episode, in_base)
    uuid = f"{LAB}+{number:08x}+{_DATE}-00h-00m-{number % 60:02d}s"
    below = folder.relative_to(folder.parents[2])
    tree: dict[str, object] = {
        "uuid": uuid,
        "lab": LAB,
        "date": _DATE,
        "success": True,
        "current_task": episode.language[0],
        "trajectory_length": episode.steps,
        "hdf5_path": f"{below}/{TRAJECTORY}",
    }
    for name, role in _ROLES.items():
        tree[f"{role}_cam_serial"] = SERIALS[name]
        tree[f"{role}_cam_extrinsics"] = in_base[name][0].tolist()
        if name in cameras:
            tree[f"{role}_mp4_path"] = f"{below}/{VIDEOS}/{SERIALS[name]}.mp4"
    (folder / f"metadata_{uuid}.json").write_text(json.dumps(tree), encoding="utf-8")


def _in_base(episode: Recorded, name: str) -> np.ndarray:
    """[T, 6] a camera's pose in the base, xyz and euler angles."""
    pose = episode.views[name].pose
    assert pose is not None
    return _six(np.linalg.inv(np.broadcast_to(pose, (episode.steps, 4, 4))))


def _six(poses: np.ndarray) -> np.ndarray:
    turns = Rotation.from_matrix(poses[:, :3, :3]).as_euler("xyz")
    return np.concatenate([poses[:, :3, 3], turns], axis=1)


def _trajectory(path: Path, episode: Recorded, in_base: dict[str, np.ndarray]) -> None:
    T = episode.steps
    milliseconds = (np.arange(T) * 1000 // episode.hz).astype(np.int64)
    tables: dict[str, np.ndarray] = {
        "action/cartesian_velocity": episode.action[:, :6],
        "action/gripper_position": episode.action[:, 6],
        "observation/robot_state/cartesian_position": _six(episode.eef),
        "observation/robot_state/gripper_position": episode.gripper,
        "observation/robot_state/joint_positions": episode.joints,
        "observation/timestamp/skip_action": np.zeros(T, bool),
        "observation/timestamp/control/step_start": milliseconds,
    }
    for name, serial in SERIALS.items():
        K = episode.views[name].K
        kind = 0 if name == WRIST else 1
        tables[f"observation/camera_type/{serial}"] = np.full(T, kind, np.int64)
        tables[f"observation/camera_extrinsics/{serial}_left"] = in_base[name]
        if K is not None:
            known = np.broadcast_to(K, (T, 3, 3))
            tables[f"observation/camera_intrinsics/{serial}_left"] = known
    with h5py.File(path, "w") as file:
        file.attrs["success"], file.attrs["current_task"] = True, episode.language[0]
        for key, values in tables.items():
            file.create_dataset(key, data=np.ascontiguousarray(values), track_times=False)

"""A new robomimic file from recorded episodes: one file, a demo an episode, splits as masks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
from scipy.spatial.transform import Rotation

from ..readers.episode import View
from .atomic import fsync_dir, publish, staged_name
from .hdf5 import put, sync
from .recorded import ANCHORS, WRIST, Recorded, RecordedSplit

CAMERAS = {ANCHORS[0]: "agentview", ANCHORS[1]: "sideview"}
HAND = "robot0_eye_in_hand"
FINGERS = 0.04  # metres that one of the Panda's fingers opens
_MASKS = {"val": "valid"}


def create(
    out: Path,
    splits: Mapping[str, RecordedSplit],
    *,
    wrist: bool = False,
    next_obs: bool = True,
    compression: str | None = None,
) -> Path:
    """Write `out`/image.hdf5; equal episodes give equal bytes.

    Args:
        out: the folder.
        splits: the episodes; each split becomes a mask (val is called valid, as robomimic does).
        wrist: store the recorded wrist view too, as obs/robot0_eye_in_hand_image.
        next_obs: store what is seen after each action too.
        compression: of the observations, as in "gzip".

    Returns:
        The file.
    """
    path = Path(out) / "image.hdf5"
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = staged_name(path)
    with h5py.File(staged, "w") as file:
        data = file.create_group("data")
        masks: dict[str, list[str]] = {}
        total = number = 0
        for split, episodes in splits.items():
            for episode in episodes:
                name = f"demo_{number}"
                _demo(data.create_group(name), episode, wrist, next_obs, compression)
                masks.setdefault(_MASKS.get(split, split), []).append(name)
                total, number = total + episode.steps, number + 1
        data.attrs["total"] = total
        data.attrs["env_args"] = json.dumps(_environment(wrist), indent=4)
        for name, demos in masks.items():
            put(file, f"mask/{name}", np.array(demos, dtype="S"))
    sync(staged)
    publish(staged, path)
    fsync_dir(path.parent)
    return path


def camera_info(view: View, effector: np.ndarray | None = None) -> dict:
    """K and extrinsics of a camera as robomimic tells them.

    Args:
        view: with K, and a pose (of its first step, where it moves).
        effector: [4, 4] world <- end effector of a hand camera; what robomimic then tells is
            (world <- camera) . inverse(world <- effector).
    """
    assert view.K is not None and view.pose is not None
    pose = np.linalg.inv(view.pose if view.pose.ndim == 2 else view.pose[0])
    pose = pose if effector is None else pose @ np.linalg.inv(effector)
    return {"intrinsics": view.K.tolist(), "extrinsics": pose.tolist()}


def fingers(gripper: np.ndarray) -> np.ndarray:
    """[T, 2] the places of the Panda's two fingers, from [T] with 1 = closed."""
    opening = FINGERS * (1.0 - np.clip(gripper, 0.0, 1.0))
    return np.stack([opening, -opening], axis=1)


def _demo(group: h5py.Group, episode: Recorded, wrist: bool, next_obs: bool, compression) -> None:
    T = episode.steps
    put(group, "actions", np.clip(episode.action, -1.0, 1.0))
    put(group, "states", np.hstack([episode.joints, fingers(episode.gripper)]))
    put(group, "rewards", np.eye(1, T, T - 1)[0])
    put(group, "dones", np.eye(1, T, T - 1, dtype=np.int64)[0])
    names = {**CAMERAS, **({WRIST: HAND} if wrist else {})}
    observed = {f"{name}_image": episode.views[view].frames for view, name in names.items()}
    observed |= {
        "robot0_eef_pos": episode.eef[:, :3, 3],
        "robot0_eef_quat": Rotation.from_matrix(episode.eef[:, :3, :3]).as_quat(),
        "robot0_gripper_qpos": fingers(episode.gripper),
        "robot0_joint_pos": episode.joints,
    }
    for part in ("obs", "next_obs") if next_obs else ("obs",):
        for key, values in observed.items():
            values = np.asarray(values)
            values = np.concatenate([values[1:], values[-1:]]) if part == "next_obs" else values
            put(group, f"{part}/{key}", values, compression=compression)
    info = {name: camera_info(episode.views[view]) for view, name in CAMERAS.items()}
    if wrist:
        info[HAND] = camera_info(episode.views[WRIST], episode.eef[0])
    group.attrs["num_samples"] = T
    group.attrs["ep_meta"] = json.dumps({"lang": episode.language[0]})
    group.attrs["camera_info"] = json.dumps(info, indent=4)


def _environment(wrist: bool) -> dict:
    cameras = [*CAMERAS.values(), *([HAND] if wrist else [])]
    return {
        "env_name": "WristaugmentTabletop",
        "type": 1,
        "env_version": "1.4.1",
        "env_kwargs": {"robots": ["Panda"], "camera_names": cameras, "control_freq": 15},
    }

"""A new LIBERO suite from recorded episodes: a file for every instruction, pictures upside down."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
from scipy.spatial.transform import Rotation

from ..readers.robomimic import CONVENTION
from .atomic import fsync_dir, publish, staged_name
from .hdf5 import put, sync
from .recorded import ANCHORS, WRIST, Recorded, RecordedSplit
from .robomimic_create import fingers

SUITE = "libero_simulated"


def create(out: Path, splits: Mapping[str, RecordedSplit], *, wrist: bool = False) -> Path:
    """Write `out`/libero_simulated/<instruction>_demo.hdf5; equal episodes give equal bytes.

    LIBERO knows one third-person camera and no splits, so the second camera is left out and all
    episodes go in.

    Args:
        out: where the suite's folder goes.
        splits: the episodes.
        wrist: store the recorded wrist view too, as obs/eye_in_hand_rgb.

    Returns:
        The suite's folder.
    """
    folder = Path(out) / SUITE
    folder.mkdir(parents=True, exist_ok=True)
    counts: dict[Path, list[int]] = {}
    for episodes in splits.values():
        for episode in episodes:
            path = folder / f"{_name(episode.language[0])}_demo.hdf5"
            lengths = counts.setdefault(path, [])
            # One file at a time: episodes of an instruction need not lie together.
            with h5py.File(staged_name(path), "a" if lengths else "w") as file:
                data = file.require_group("data")
                if not lengths:
                    _head(data, episode, path)
                _demo(data.create_group(f"demo_{len(lengths)}"), episode, wrist)
            lengths.append(episode.steps)
    for path, lengths in counts.items():
        staged = staged_name(path)
        with h5py.File(staged, "a") as file:
            file["data"].attrs["num_demos"] = len(lengths)
            file["data"].attrs["total"] = sum(lengths)
        sync(staged)
        publish(staged, path)
    fsync_dir(folder)
    return folder


def _name(instruction: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", instruction.lower()).strip("_") or "task"


def _head(data: h5py.Group, episode: Recorded, path: Path) -> None:
    problem = {
        "problem_name": "libero_tabletop_manipulation",
        "domain_name": "robosuite",
        "language_instruction": episode.language[0],
    }
    env = "Libero_Tabletop_Manipulation"
    bddl = f"{SUITE}/{path.name.removesuffix('_demo.hdf5')}.bddl"
    data.attrs["env_name"] = env
    data.attrs["problem_info"] = json.dumps(problem)
    data.attrs[CONVENTION] = "opengl"
    data.attrs["bddl_file_name"] = bddl
    data.attrs["bddl_file_content"] = (
        f"(define (problem {env})\n  (:language {problem['language_instruction']})\n)\n"
    )
    kwargs = {"robots": ["Panda"], "camera_names": ["robot0_eye_in_hand", "agentview"]}
    arguments = {"type": 1, "env_name": env, "problem_name": problem["problem_name"]}
    data.attrs["env_args"] = json.dumps(arguments | {"bddl_file": bddl, "env_kwargs": kwargs})


def _demo(group: h5py.Group, episode: Recorded, wrist: bool) -> None:
    T = episode.steps
    turn = Rotation.from_matrix(episode.eef[:, :3, :3]).as_rotvec()
    place = episode.eef[:, :3, 3]
    obs = group.create_group("obs")
    put(obs, "gripper_states", fingers(episode.gripper))
    put(obs, "joint_states", episode.joints)
    put(obs, "ee_states", np.hstack([place, turn]))
    put(obs, "ee_pos", place)
    put(obs, "ee_ori", turn)
    put(obs, "agentview_rgb", np.asarray(episode.views[ANCHORS[0]].frames)[:, ::-1])
    if wrist:
        put(obs, "eye_in_hand_rgb", np.asarray(episode.views[WRIST].frames)[:, ::-1])
    states = np.hstack([episode.joints, fingers(episode.gripper)])
    quaternion = Rotation.from_matrix(episode.eef[:, :3, :3]).as_quat()
    last = np.eye(1, T, T - 1, dtype=np.uint8)[0]
    put(group, "actions", np.clip(episode.action, -1.0, 1.0))
    put(group, "states", states)
    put(group, "robot_states", np.hstack([fingers(episode.gripper), place, quaternion]))
    put(group, "rewards", last)
    put(group, "dones", last)
    group.attrs["num_samples"] = T
    group.attrs["init_state"] = states[0]

"""A new CALVIN dataset from recorded episodes: the files and keys of the real ones.

CALVIN has one static camera in a fixed place, and simulated corpora have another one in every
episode. So each episode gets a world in which its first third-person camera stands where CALVIN's
does, and its pictures are cut to one field of view; all poses are told in that world. The tool
centre point is where the hand camera's known mount puts it, so that the pose that readers compute
from `robot_obs` is exactly that of the hand camera that recorded (or would have recorded).
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import yaml
from PIL import Image
from scipy.spatial.transform import Rotation

from ..readers.calvin_cameras import (
    CONFIG,
    LOOK_AT,
    LOOK_FROM,
    STATIC_FAR,
    TCP_FROM_CAMERA,
    UP,
    look_at_pose,
)
from ..readers.calvin_folder import RANGES, USUAL_SPLITS
from ..readers.episode import View
from ..readers.errors import SourceError
from .atomic import write_atomic
from .recorded import ANCHORS, WRIST, Recorded, RecordedSplit

NAME = "calvin_simulated"
STATIC_SIZE, GRIPPER_SIZE = 200, 84
# As wide as every simulated camera can give a square picture of (their heights show 33.3 and 48.2
# degrees at least).
STATIC_FOV, GRIPPER_FOV = 33.0, 48.0
_SCENE = "calvin_scene_simulated"
_NEAR, _OPEN_WIDTH = 0.01, 0.08
_REL_POSITION, _REL_ROTATION = 50.0, 20.0  # calvin_env's scaling of relative actions
_EMBEDDING = 384  # numbers, as the sentence embeddings that CALVIN ships
_SPLITS = {"train": USUAL_SPLITS[0], "val": USUAL_SPLITS[1], "test": USUAL_SPLITS[1]}


def create(out: Path, splits: Mapping[str, RecordedSplit], *, wrist: bool = False) -> Path:
    """Write a dataset; equal episodes give equal bytes.

    `scene_obs` is zeros (these scenes have no drawer or switch), and the sentences' embeddings are
    directions drawn from their hashes: no language model is at hand here.

    Args:
        out: the folder that the dataset's own folder is made in.
        splits: "train" and "val" become training and validation; others keep their names.
        wrist: store the recorded hand camera as rgb_gripper and depth_gripper.

    Returns:
        The dataset's folder, for --data-dir.

    Raises:
        SourceError: a camera shows less than the field of view that all are cut to.
        OSError: the disk is full, or `out` may not be written.
    """
    folder = Path(out) / NAME
    taken: set[str] = set()
    for name, split in splits.items():
        usual = _SPLITS.get(name, name)
        own = name if usual in taken else usual
        taken.add(own)
        _split(folder / own, split, wrist)
    return folder


def _split(folder: Path, split: RecordedSplit, wrist: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lengths: list[int] = []
    sentences: list[str] = []
    states = []
    number = 0
    for recorded in split:
        rows = _rows(recorded)
        pictures = _pictures(recorded, wrist)
        for step in range(recorded.steps):
            frame = {key: values[step] for key, values in (rows | pictures).items()}
            # numpy dates every member 1 January 1980, so that the bytes follow from the arrays.
            with open(folder / f"episode_{number:07d}.npz", "wb") as file:
                np.savez_compressed(file, **frame)
            number += 1
        lengths.append(recorded.steps)
        sentences.append(recorded.language[0])
        states.append(rows)
    ends = np.cumsum(lengths, dtype=np.int64) - 1
    ranges = np.stack([ends - np.asarray(lengths, np.int64) + 1, ends], axis=1)
    _save(folder / "ep_lens.npy", np.asarray(lengths, np.int64))
    _save(folder / RANGES, ranges)
    _save(folder / "scene_info.npy", _object({_SCENE: [0, number - 1]}))
    (folder / "lang_annotations").mkdir(exist_ok=True)
    _save(folder / "lang_annotations" / "auto_lang_ann.npy", _language(sentences, ranges))
    write_atomic(folder / CONFIG, _yaml(_config()))
    write_atomic(folder / "statistics.yaml", _yaml(_statistics(states)))


def _rows(recorded: Recorded) -> dict[str, np.ndarray]:
    """The numbers of an episode, each [T, ...] float64."""
    hand, camera = recorded.views[WRIST], recorded.views[ANCHORS[0]]
    assert hand.pose is not None and camera.pose is not None
    T = recorded.steps
    # world <- base: the camera's place in CALVIN's world, from its place in the robot's base.
    base = np.linalg.inv(look_at_pose(LOOK_FROM, LOOK_AT, UP)) @ camera.pose
    hands = np.broadcast_to(np.linalg.inv(hand.pose), (T, 4, 4))
    tcp = base @ hands @ np.linalg.inv(TCP_FROM_CAMERA)
    turns = Rotation.from_matrix(tcp[:, :3, :3])
    place, euler = tcp[:, :3, 3], turns.as_euler("xyz")
    closing = np.where(np.append(recorded.gripper[1:], recorded.gripper[-1:]) > 0.5, -1.0, 1.0)
    following = np.minimum(np.arange(T) + 1, T - 1)  # an action is where the robot is next
    turned = euler[following] - euler
    turned = (turned + math.pi) % (2 * math.pi) - math.pi
    relative = np.concatenate(
        [
            np.clip((place[following] - place) * _REL_POSITION, -1, 1),
            np.clip(turned * _REL_ROTATION, -1, 1),
            closing[:, None],
        ],
        axis=1,
    )
    now = np.append(closing[:1], closing[:-1])
    width = _OPEN_WIDTH * (1 - recorded.gripper)
    return {
        "actions": np.column_stack([place[following], euler[following], closing]),
        "rel_actions": relative,
        "robot_obs": np.column_stack([place, euler, width, recorded.joints, now]),
        "scene_obs": np.zeros((T, 24)),
    }


def _pictures(recorded: Recorded, wrist: bool) -> dict[str, np.ndarray]:
    static = _cut(recorded, ANCHORS[0], STATIC_FOV, STATIC_SIZE)
    cameras = [("static", *static)]
    if wrist:
        cameras.append(("gripper", *_cut(recorded, WRIST, GRIPPER_FOV, GRIPPER_SIZE)))
    found = {f"rgb_{name}": frames for name, frames, _ in cameras}
    return found | {f"depth_{name}": depth for name, _, depth in cameras if depth is not None}


def _cut(
    recorded: Recorded, name: str, fov: float, size: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """([T, S, S, 3] uint8, [T, S, S] float32 metres or None) of a field of view of a camera."""
    view: View = recorded.views[name]
    assert view.K is not None
    height, width = view.size
    half = np.array([view.K[0, 0], view.K[1, 1]]) * math.tan(math.radians(fov) / 2)
    # Pixel centres are at whole numbers, and Pillow counts from the picture's corner.
    centre = view.K[:2, 2] + 0.5
    low, high = centre - half, centre + half
    if min(low) < -0.01 or high[0] > width + 0.01 or high[1] > height + 0.01:
        raise SourceError(
            f"a camera of {width}x{height} pixels and a focal length of {view.K[1, 1]:.1f} shows "
            f"less than the {fov} degrees that all are cut to",
            record=recorded.index,
            key=name,
            todo="record with a wider camera",
        )
    box = (max(low[0], 0), max(low[1], 0), min(high[0], width), min(high[1], height))
    frames = np.stack(
        [
            np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.BILINEAR, box))
            for frame in view.frames
        ]
    )
    if view.depth is None:
        return frames, None
    x, y = (low[:, None] + (np.arange(size) + 0.5) * (2 * half[:, None] / size)).astype(int)
    depth = view.depth[:, np.clip(y, 0, height - 1)[:, None], np.clip(x, 0, width - 1)[None]]
    # A depth buffer shows the far plane where there is nothing.
    return frames, np.where(depth > 0, depth, STATIC_FAR).astype(np.float32)


def _language(sentences: list[str], ranges: np.ndarray) -> np.ndarray:
    tasks = ["_".join(sentence.split()[:2]) for sentence in sentences]
    embeddings = np.stack([_embedding(sentence) for sentence in sentences])[:, None]
    pairs = [(int(start), int(end)) for start, end in ranges]
    return _object(
        {
            "language": {"ann": sentences, "task": tasks, "emb": embeddings},
            "info": {"episodes": [], "indx": pairs},
        }
    )


def _embedding(sentence: str) -> np.ndarray:
    """[384] float32 of length 1: a direction of the sentence's own, without any meaning."""
    seed = int.from_bytes(hashlib.sha256(sentence.encode()).digest()[:8], "little")
    direction = np.random.default_rng(seed).standard_normal(_EMBEDDING)
    return (direction / np.linalg.norm(direction)).astype(np.float32)


def _object(value: dict) -> np.ndarray:
    """A dict as numpy.save takes it. Equal strings in it are pickled by identity; copy none."""
    found = np.empty((), object)
    found[()] = value
    return found


def _config() -> dict:
    """What calvin_env's renderer writes of its cameras."""
    common = {"aspect": 1, "nearval": _NEAR}
    return {
        "cameras": {
            "static": {
                "_target_": "calvin_env.camera.static_camera.StaticCamera",
                "name": "static",
                "fov": STATIC_FOV,
                **common,
                "farval": STATIC_FAR,
                "width": STATIC_SIZE,
                "height": STATIC_SIZE,
                "look_at": list(LOOK_AT),
                "look_from": list(LOOK_FROM),
                "up_vector": list(UP),
            },
            "gripper": {
                "_target_": "calvin_env.camera.gripper_camera.GripperCamera",
                "name": "gripper",
                "fov": GRIPPER_FOV,
                **common,
                "farval": 2,
                "width": GRIPPER_SIZE,
                "height": GRIPPER_SIZE,
            },
        }
    }


def _statistics(states: list[dict[str, np.ndarray]]) -> dict:
    """What calvin_agent's transforms read: means and deviations, and the actions' bounds."""
    whole = {key: np.concatenate([rows[key] for rows in states]) for key in states[0]}
    found: dict[str, object] = {
        key: [
            {
                "_target_": "calvin_agent.utils.transforms.NormalizeVector",
                "mean": whole[key].mean(axis=0).tolist(),
                "std": whole[key].std(axis=0).tolist(),
            }
        ]
        for key in ("robot_obs", "scene_obs")
    }
    found["act_min_bound"] = whole["actions"].min(axis=0).tolist()
    found["act_max_bound"] = whole["actions"].max(axis=0).tolist()
    return found


def _save(path: Path, array: np.ndarray) -> None:
    with open(path, "wb") as file:
        np.save(file, array, allow_pickle=True)
        file.flush()
        os.fsync(file.fileno())


def _yaml(tree: dict) -> bytes:
    return yaml.safe_dump(tree, sort_keys=False).encode()

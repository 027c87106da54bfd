"""robomimic's HDF5 files, and LIBERO's, which are of the same layout: `data/demo_<n>/obs/<key>`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from scipy.spatial.transform import Rotation

from .dataset import RawRecord
from .episode import Episode
from .errors import RemoteError, SourceError
from .hdf5 import dataset_at, glance, group_at, item, links, named, natural, opened
from .hdf5_dataset import Hdf5Dataset
from .mujoco_model import Model, pinhole, read_model
from .profiles import Camera, Numbers, Profile

OBS, NEXT = "obs", "next_obs"
DATA = "data"
CONVENTION = "macros_image_convention"
_FINGERS = 0.04  # metres that one of the Panda's two fingers opens
_JSON = 1 << 20
# robosuite's end effector: the axes of this body, the place of this site of the gripper.
_HAND, _TIP = "robot0_right_hand", re.compile(r"gripper0_(right_)?grip_site")
_EYE = "robot0_eye_in_hand"  # the hand camera, which a model has though no picture is stored
_Told = dict[str, tuple[np.ndarray | None, ...]]
_APART, _TURNED = 0.005, 0.5  # metres and degrees by which two tellings of a camera may differ


@dataclass(frozen=True)
class _Flavour:
    """What a profile says beside the names of its cameras.

    Attributes:
        rotation: the end effector's orientation.
        quaternion: whether it is one (xyzw), or else an axis times an angle.
        upside_down: how pictures are stored where the file does not say.
    """

    rotation: Numbers
    quaternion: bool
    upside_down: bool


_CAMERAS = (
    "agentview", "frontview", "sideview", "birdview", "robot0_agentview_left",
    "robot0_agentview_right", "robot0_agentview_center", "shouldercamera0", "shouldercamera1",
    "front", "side",
)  # fmt: skip
ROBOMIMIC = Profile(
    "robomimic",
    aliases=("robosuite", "mimicgen", "robocasa"),
    anchors=tuple(Camera(f"{OBS}/{name}_image") for name in _CAMERAS),
    wrist=Camera(f"{OBS}/robot0_eye_in_hand_image"),
    eef=Numbers(f"{OBS}/robot0_eef_pos", 0, 3),
    gripper=Numbers(f"{OBS}/robot0_gripper_qpos", 0, 2),
    language=("ep_meta",),
)
LIBERO = Profile(
    "libero",
    aliases=(
        "libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90", "libero_100",
    ),
    anchors=(Camera(f"{OBS}/agentview_rgb"),),
    wrist=Camera(f"{OBS}/eye_in_hand_rgb"),
    eef=Numbers(f"{OBS}/ee_pos", 0, 3),
    gripper=Numbers(f"{OBS}/gripper_states", 0, 2),
    language=("problem_info",),
)  # fmt: skip
# robomimic turns what robosuite renders before it stores it; LIBERO does not.
_FLAVOURS = {
    "robomimic": _Flavour(
        Numbers(f"{OBS}/robot0_eef_quat", 0, 4), quaternion=True, upside_down=False
    ),
    "libero": _Flavour(Numbers(f"{OBS}/ee_ori", 0, 3), quaternion=False, upside_down=True),
}


class RobomimicDataset(Hdf5Dataset):
    """A file, or a folder of files, of robomimic's layout; a record is a demo."""

    format = "robomimic"
    pictures = OBS
    flag_group = OBS
    profiles = (ROBOMIMIC, LIBERO)

    def groups(self, file: h5py.File) -> list[str] | None:
        data = _data(file)
        if data is None:
            return None
        return [f"{DATA}/{name}" for name in sorted(links(data), key=natural)]

    def own_profile(self) -> Profile:
        return LIBERO if self._libero() else ROBOMIMIC

    def timed(self, group: h5py.Group) -> Iterator[tuple[str, h5py.Dataset]]:
        for part in ("actions", "rewards", "dones"):
            if (found := dataset_at(group, part)) is not None:
                yield part, found
        for part in (OBS, NEXT):
            if part == NEXT and item(group, part) is None:
                continue
            below = group_at(group, part)
            if below is None:
                raise ValueError(f"has no group {part!r}")
            for name in links(below):
                if (found := dataset_at(below, name)) is not None:
                    yield f"{part}/{name}", found

    def declared_steps(self, group: h5py.Group) -> int | None:
        found = group.attrs.get("num_samples")
        return None if found is None else int(np.asarray(found).reshape(-1)[0])

    def upside_down(self, file: h5py.File) -> bool:
        said = _text(_data(file), CONVENTION)
        if said in ("opengl", "opencv"):
            return said == "opengl"
        return self._flavour.upside_down

    def episode(self, raw: RawRecord, *, wrist: str | None = None, depth: bool = False) -> Episode:
        # <camera>_depth is not given: some files hold robosuite's normalised z-buffer, others
        # metres, and none says which.
        length = self.steps(raw)
        anchors, dropped, hand = self.views(raw, wrist)
        cameras = self._camera_info(raw)
        model = self._model(raw, cameras)
        for view in anchors:
            name = _camera(view.key)
            view.K, view.pose = cameras.get(name, (None, None))
            if model is not None and name in model.cameras:
                fov = model.cameras[name].fov
                view.K = pinhole(fov, view.size) if view.K is None else view.K
                view.pose = model.static_pose(name) if view.pose is None else view.pose
        K, size, mount = None, None, None
        own = self.profile.wrist
        if own and (known := cameras.get(_camera(own.key))):
            # The pose that camera_info gives a hand camera is multiplied in the wrong order where
            # it is written (camera . inverse(effector)), so it is no mount and is left alone.
            K = known[0]
            stored = next(s for s in self.streams() if s.key == own.key).shape
            size = (int(stored[0] or 0), int(stored[1] or 0))
        name = _camera(own.key) if own else _EYE
        if model is not None and name in model.cameras:
            mount = model.mount(name, _HAND, _TIP)
            if K is None and (views := [view for view in (hand, *anchors) if view is not None]):
                size = views[0].size
                K = pinhole(model.cameras[name].fov, size)
        if own and hand is not None and hand.key == own.key:
            hand.K = K
        return Episode(
            raw.record,
            anchors,
            language=self._language(raw),
            eef_pose=self._eef(raw, length),
            gripper=self._gripper(raw),
            wrist_mount=mount,
            wrist_K=K,
            wrist_size=size,
            wrist=hand,
            dropped=dropped,
        )

    @property
    def _flavour(self) -> _Flavour:
        return _FLAVOURS[self.profile.name]

    def _libero(self) -> bool:
        """Whether the first readable file is one of LIBERO's."""
        for shard in self.splits[0].shards:
            try:
                with opened(shard.path) as file, named(file=shard.path):
                    data = _data(file)
                    if data is not None:
                        return any(name in data.attrs for name in (CONVENTION, "problem_info"))
            except SourceError:
                continue
        return False

    def _eef(self, raw: RawRecord, length: int) -> np.ndarray | None:
        place = self.rows(raw, self.profile.eef)
        turn = self.rows(raw, self._flavour.rotation)
        if place is None or turn is None:
            return None
        if self._flavour.quaternion:
            if (np.abs(np.linalg.norm(turn, axis=1) - 1) > 0.01).any():
                return None
            rotation = Rotation.from_quat(turn)  # xyzw, as robosuite's
        else:
            rotation = Rotation.from_rotvec(turn)
        pose = np.tile(np.eye(4), (length, 1, 1))
        pose[:, :3, :3], pose[:, :3, 3] = rotation.as_matrix(), place
        return pose

    def _gripper(self, raw: RawRecord) -> np.ndarray | None:
        fingers = self.rows(raw, self.profile.gripper)
        if fingers is None or np.abs(fingers).max() > 1.25 * _FINGERS:
            return None  # of another hand than the Panda's
        return 1.0 - np.clip(np.abs(fingers).sum(1) / (2 * _FINGERS), 0.0, 1.0)

    def _language(self, raw: RawRecord) -> str:
        path = self.file_of(raw.record)
        with opened(path) as file, named(file=path, record=raw.record.index):
            meta = _json(self.group_of(file, raw), "ep_meta")
            problem, env = _json(_data(file), "problem_info"), _json(_data(file), "env_args")
        for found in (meta.get("lang"), problem.get("language_instruction"), env.get("env_lang")):
            words = " ".join(map(str, found)) if isinstance(found, list) else found
            if isinstance(words, str) and words.strip():
                return words.strip()
        return ""

    def _model(self, raw: RawRecord, told: _Told) -> Model | None:
        """The simulated world that a demo keeps, unless it is not the one that was pictured.

        Args:
            told: what camera_info says, which was read from the world that was pictured.
        """
        path = self.file_of(raw.record)
        with opened(path) as file, named(file=path, record=raw.record.index):
            model = read_model(_text(self.group_of(file, raw), "model_file"))
        if model is None:
            return None
        for name, (_, pose) in told.items():
            own = model.static_pose(name)
            if own is None or pose is None:
                continue
            between = own @ np.linalg.inv(pose)
            turned = np.degrees(Rotation.from_matrix(between[:3, :3]).magnitude())
            if turned > _TURNED or np.linalg.norm(between[:3, 3]) > _APART:
                return None
        return model

    def _camera_info(self, raw: RawRecord) -> _Told:
        """Camera -> (K, world-to-camera pose) of what the demo tells of its cameras."""
        path = self.file_of(raw.record)
        with opened(path) as file, named(file=path, record=raw.record.index):
            told = _json(self.group_of(file, raw), "camera_info")
        found = {}
        for name, info in told.items():
            if not isinstance(info, dict):
                continue
            K = _matrix(info.get("intrinsics"), 3)
            in_world = _matrix(info.get("extrinsics"), 4)
            turn = None if in_world is None else in_world[:3, :3]
            if turn is not None and not np.allclose(turn @ turn.T, np.eye(3), atol=1e-3):
                in_world = None
            if K is not None and (K[0, 0] <= 0 or K[1, 1] <= 0):
                K = None
            found[name] = (K, None if in_world is None else np.linalg.inv(in_world))
        return found


def recognise(path: Path) -> bool:
    """Whether a file, or one of the first files of a folder, is of robomimic's layout."""
    for file in glance(path):
        try:
            with opened(file, glance=True) as opened_file, named(file=file):
                if _data(opened_file) is not None:
                    return True
        except RemoteError:
            raise
        except (SourceError, OSError):
            if path.is_file():
                return True  # so that opening it says what is wrong with it
    return False


def open_source(
    path: Path,
    dataset: str | None = None,
    *,
    anchor_keys: Sequence[str] | None = None,
    plain: bool = False,
) -> RobomimicDataset:
    """Open a file, or a folder of files, of robomimic's or LIBERO's.

    Args:
        path: the file or folder.
        dataset: a profile's name or alias, or the dataset's own name.
        anchor_keys: the third-person cameras, where others are wanted than the profile's.
        plain: open it even if no third-person camera is known.

    Raises:
        SourceError: no file is of this layout, one leads out of the folder, or the cameras are
            unknown.
    """
    return RobomimicDataset(Path(path), dataset, anchor_keys=anchor_keys, plain=plain)


def _data(file: h5py.File) -> h5py.Group | None:
    """The group of the demos, or None where a file is of another layout."""
    try:
        found = group_at(file, DATA)
        if found is None:
            return None
        first = next((name for name in links(found) if name.startswith("demo")), None)
    except ValueError:
        return None
    return found if first is not None else None


def _camera(key: str) -> str:
    """`agentview` from obs/agentview_image or obs/agentview_rgb; LIBERO's own spelling undone."""
    name = key.removeprefix(f"{OBS}/").removesuffix("_image").removesuffix("_rgb")
    return _EYE if name == "eye_in_hand" else name


def _text(thing, name: str) -> str:
    """An attribute that is a string, else "". Opaque values are not looked at."""
    if thing is None or name not in thing.attrs:
        return ""
    value = thing.attrs[name]
    value = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return value if isinstance(value, str) else ""


def _json(thing, name: str) -> dict:
    """An attribute that is a JSON object, else {}."""
    text = _text(thing, name)
    try:
        found = json.loads(text) if 0 < len(text) <= _JSON else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _matrix(value, size: int) -> np.ndarray | None:
    try:
        found = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return None
    return found if found.shape == (size, size) and np.isfinite(found).all() else None

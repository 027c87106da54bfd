"""Which feature of a LeRobot dataset is what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .errors import SourceError
from .lerobot_meta import Feature, Meta
from .profiles import Camera, Numbers, Profile

IMAGES = "observation.images."
_STATE = "observation.state"

PROFILES = (
    # lerobot's own port of DROID; poses are xyz and extrinsic "xyz" Euler angles, as in RLDS.
    Profile(
        "droid",
        aliases=("droid_1.0.1", "droid_100"),
        anchors=(
            Camera(f"{IMAGES}exterior_1_left", "camera_extrinsics.exterior_1_left"),
            Camera(f"{IMAGES}exterior_2_left", "camera_extrinsics.exterior_2_left"),
        ),
        wrist=Camera(f"{IMAGES}wrist_left", "camera_extrinsics.wrist_left"),
        eef=Numbers(f"{_STATE}.cartesian_position", 0, 6),
        gripper=Numbers(f"{_STATE}.gripper_position"),
        language=("task",),
    ),
)
# What a stream's name says of it. Anything else is taken for a third-person camera.
WRIST_WORDS = ("wrist", "hand", "gripper", "eye_in", "palm")
NO_CAMERA_WORDS = ("depth", "disparity", "tactile", "touch", "thermal", "mask", "segm", "flow")
# A pose is only taken for one where its numbers are named like this, with any common prefix.
_POSE = ("x", "y", "z", "roll", "pitch", "yaw")


def resolve(
    meta: Meta, name: str, dataset: str | None, anchor_keys: Sequence[str] | None, plain: bool
) -> Profile:
    """The profile of a dataset; every key in it exists.

    Args:
        name: the folder's. dataset: what the user says it is, or None.
        anchor_keys: the third-person cameras, where the user names them.
        plain: an unknown dataset gets a profile without cameras.

    Raises:
        SourceError: `dataset` fits nothing, a key does not exist, or no camera is known.
    """
    pictures = [f for f in meta.features.values() if f.is_picture]
    listed = ", ".join(f.key for f in pictures) or "none at all"
    profile = _known(meta, name, dataset)
    if plain:
        return Profile(profile.name)
    if anchor_keys:
        rows = {camera.key: camera for camera in profile.anchors}
        keys = []
        for given in anchor_keys:
            key = find_picture(meta, given)
            if key is None:
                raise SourceError(
                    f"there is no such camera; the dataset's image keys are: {listed}",
                    file=meta.path,
                    key=given,
                    todo="name others with --anchor-keys",
                )
            keys.append(key)
        cameras = tuple(rows.get(key, Camera(key)) for key in dict.fromkeys(keys))
        profile = replace(profile, anchors=cameras)
        if profile.wrist and profile.wrist.key in keys:
            profile = replace(profile, wrist=None)
    for camera in profile.anchors:
        if find_picture(meta, camera.key) is None:
            raise SourceError(
                f"there is no such camera, which the profile {profile.name!r} expects; the "
                f"dataset's image keys are: {listed}",
                file=meta.path,
                key=camera.key,
                todo="choose another --dataset, or name the cameras with --anchor-keys",
            )
    if not profile.anchors:
        raise SourceError(
            f"no third-person camera can be told by its name; the image keys are: {listed}",
            file=meta.path,
            todo="say which are third-person views with --anchor-keys",
        )
    return _checked(meta, profile)


def find_picture(meta: Meta, name: str) -> str | None:
    """The key of a stream from its full or short name, or None."""
    for key in (name, IMAGES + name):
        if key in meta.features and meta.features[key].is_picture:
            return key
    return None


def is_depth(feature: Feature) -> bool:
    """Whether a stream is depth, or something else that is no picture."""
    declared = feature.info.get("video.is_depth_map") or feature.info.get("is_depth_map")
    return bool(declared) or feature.size[2] != 3 or _any(feature.key, NO_CAMERA_WORDS)


def _known(meta: Meta, name: str, dataset: str | None) -> Profile:
    """The named profile, the one whose cameras are all there, or what the names tell."""
    for profile in PROFILES:
        if dataset is not None and dataset in profile.names:
            return profile
    if dataset is not None and dataset != name:
        known = ", ".join(known for profile in PROFILES for known in profile.names)
        raise SourceError(
            f"the folder holds {name!r}, not {dataset!r}",
            file=meta.folder,
            todo=f"say --dataset {name} or leave it out (profiles: {known})",
        )
    for profile in PROFILES:
        if all(find_picture(meta, camera.key) for camera in profile.anchors):
            return profile
    cameras = [f for f in meta.features.values() if f.is_picture and not is_depth(f)]
    hands = [f.key for f in cameras if _any(f.key, WRIST_WORDS)]
    return Profile(
        name,
        anchors=tuple(Camera(f.key) for f in cameras if f.key not in hands),
        wrist=Camera(hands[0]) if len(hands) == 1 else None,
        eef=_named_pose(meta),
        language=("task",),
    )


def _checked(meta: Meta, profile: Profile) -> Profile:
    """`profile` without the optional keys that the dataset lacks."""
    keep = lambda key: key if key in meta.features else None
    camera = lambda row: replace(row, extrinsics=keep(row.extrinsics))
    numbers = lambda row: row if row and _wide(meta, row) else None
    wrist = profile.wrist
    if wrist and wrist.key not in meta.features and wrist.extrinsics not in meta.features:
        wrist = None
    return replace(
        profile,
        anchors=tuple(camera(row) for row in profile.anchors),
        wrist=camera(wrist) if wrist else None,
        eef=numbers(profile.eef),
        gripper=numbers(profile.gripper),
    )


def _wide(meta: Meta, numbers: Numbers) -> bool:
    feature = meta.features.get(numbers.key)
    if feature is None or feature.is_picture or len(feature.shape) != 1:
        return False
    return feature.shape[0] >= numbers.start + numbers.count


def _named_pose(meta: Meta) -> Numbers | None:
    """Six numbers of the state that are named x, y, z, roll, pitch and yaw."""
    for key in sorted((k for k in meta.features if k.startswith(_STATE)), key=len):
        names = [name.lower() for name in meta.features[key].names]
        for start in range(len(names) - len(_POSE) + 1):
            six = names[start : start + len(_POSE)]
            prefix = six[0][: -len(_POSE[0])]
            if six == [prefix + name for name in _POSE] and prefix[-1:] in ("", "_", ".", "/"):
                return Numbers(key, start, len(_POSE))
    return None


def _any(key: str, words: Sequence[str]) -> bool:
    short = key.removeprefix(IMAGES).lower()
    return any(word in short for word in words)

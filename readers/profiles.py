"""Which key of which dataset is what: one table row a dataset, nothing else to teach a new one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .errors import SourceError
from .features import Features, Leaf
from .openx_profiles import EXTERNAL, OPENX
from .roles import LANGUAGE, Camera, Numbers, Profile

PROFILES = (
    Profile(
        "droid",
        aliases=("r2d2_faceblur", "droid_101", "droid_100"),
        # DROID has two side cameras; a simulated corpus in its schema may have a third one.
        anchors=(
            Camera(
                "observation/exterior_image_1_left",
                "episode_metadata/extrinsics_exterior_cam_1",
                "episode_metadata/intrinsics_exterior_cam_1",
                "observation/exterior_depth_1_left",
            ),
            Camera(
                "observation/exterior_image_2_left",
                "episode_metadata/extrinsics_exterior_cam_2",
                "episode_metadata/intrinsics_exterior_cam_2",
                "observation/exterior_depth_2_left",
            ),
            Camera(
                "observation/exterior_image_3_left",
                "episode_metadata/extrinsics_exterior_cam_3",
                "episode_metadata/intrinsics_exterior_cam_3",
                "observation/exterior_depth_3_left",
                optional=True,
            ),
        ),
        wrist=Camera(
            "observation/wrist_image_left",
            "episode_metadata/extrinsics_wrist_cam",
            "episode_metadata/intrinsics_wrist_cam",
            "observation/wrist_depth_left",
        ),
        eef=Numbers("observation/cartesian_position", 0, 6),
        gripper=Numbers("observation/gripper_position"),
        language=("language_instruction", "language_instruction_2", "language_instruction_3"),
    ),
    Profile(
        "bridge_dataset",
        aliases=("bridge_orig", "bridge", "bridge_oxe"),
        # Open X-Embodiment's own copy has one camera, `image`.
        anchors=(
            *(Camera(f"observation/image_{index}", optional=True) for index in range(4)),
            Camera("observation/image", optional=True),
        ),
        eef=Numbers("observation/state", 0, 6),
        gripper=Numbers("observation/state", 6, inverted=True),
        language=LANGUAGE,
    ),
    *OPENX,
)


def find_profile(name: str) -> Profile | None:
    """The profile that answers to `name`, or None."""
    return next((profile for profile in PROFILES if name in profile.names), None)


def known() -> str:
    """The known profiles, each by a short name that it answers to, for messages."""
    return ", ".join(profile.name.removesuffix(EXTERNAL) for profile in PROFILES)


def resolve(
    dataset: str, features: Features, anchor_keys: Sequence[str] | None, folder: Path
) -> Profile:
    """The profile of `dataset` with every key checked against what the dataset holds.

    Optional keys (calibration, depth, proprioception, language, wrist) that the dataset lacks
    become None; anchors that it lacks are an error, but for the optional ones. `anchor_keys`
    override the profile's.

    Raises:
        SourceError: an anchor key does not exist or is no picture, or no anchor key is known.
    """
    profile = find_profile(dataset)
    found = ", ".join(leaf.key for leaf in features.pictures()) or "none at all"
    if profile is None:
        if not anchor_keys:
            raise SourceError(
                f"no profile knows {dataset!r}, so its cameras must be named; "
                f"its image keys are: {found}",
                file=folder,
                todo=f"say which are third-person views with --anchor-keys (profiles: {known()})",
            )
        profile = Profile(dataset, language=LANGUAGE, wrist=_guess_wrist(features, anchor_keys))
    if anchor_keys:
        rows = {camera.key: replace(camera, optional=False) for camera in profile.anchors}
        keys = [_picture(features, name, found).key for name in anchor_keys]
        profile = replace(
            profile, anchors=tuple(rows.get(key, Camera(key)) for key in dict.fromkeys(keys))
        )
    anchors = [_checked(camera, features) for camera in profile.anchors]
    if here := [c for c in anchors if not c.optional or features.find(c.key)]:
        anchors = here
    for camera in anchors:
        _picture(features, camera.key, found)
    wrist = profile.wrist
    if wrist and not features.find(wrist.key) and not _any(wrist, features):
        wrist = None
    return replace(
        profile,
        anchors=tuple(anchors),
        wrist=_checked(wrist, features) if wrist else None,
        eef=_numbers(profile.eef, features),
        gripper=_numbers(profile.gripper, features),
        language=tuple(key for key in profile.language if features.find(key)),
    )


def _picture(features: Features, name: str, found: str) -> Leaf:
    leaf = features.find(name)
    if leaf is None or not leaf.is_picture:
        what = "there is no such key" if leaf is None else "this is no stream of RGB pictures"
        raise SourceError(
            f"{what}; the dataset's image keys are: {found}",
            file=features.path,
            key=name,
            todo="name others with --anchor-keys",
        )
    return leaf


def _checked(camera: Camera, features: Features) -> Camera:
    """`camera` without the optional keys that the dataset lacks."""
    keep = lambda key: key if key and features.find(key) else None
    return replace(
        camera,
        extrinsics=keep(camera.extrinsics),
        intrinsics=keep(camera.intrinsics),
        depth=keep(camera.depth),
    )


def _any(camera: Camera, features: Features) -> bool:
    """True if the dataset has a calibration of `camera` (even where its pictures are missing)."""
    return any(features.find(key) for key in (camera.extrinsics, camera.intrinsics) if key)


def _numbers(numbers: Numbers | None, features: Features) -> Numbers | None:
    """`numbers` if the dataset has them all."""
    leaf = features.find(numbers.key) if numbers else None
    if numbers is None or leaf is None or leaf.nested or not leaf.per_step:
        return None
    if leaf.shape_is_stored or (
        leaf.size is not None and leaf.size < numbers.start + numbers.count
    ):
        return None
    if numbers.rotation is not None and _numbers(numbers.rotation, features) is None:
        return None
    return numbers


def _guess_wrist(features: Features, anchor_keys: Sequence[str]) -> Camera | None:
    """A stream whose name says that it is a hand camera's."""
    taken = {leaf.key for name in anchor_keys if (leaf := features.find(name))}
    for leaf in features.pictures():
        name = leaf.path[-1].lower()
        if leaf.key not in taken and any(word in name for word in ("wrist", "hand", "gripper")):
            return Camera(leaf.key)
    return None

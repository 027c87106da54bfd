"""Open X-Embodiment: which camera is third-person, which is the hand's, and what the state holds.

One row a dataset, its keys under `observation/`. The keys are those of the datasets' own feature
trees; anchors are third-person cameras, the main one first. A camera on a moving base, a tactile
one, and a second copy of the hand's pictures are no anchors. An end effector is listed where the
dataset documents its layout, with its orientation where the convention is documented too (else as
"position"); a gripper where its range and direction are.
"""

from __future__ import annotations

from .poses import ENCODINGS
from .roles import LANGUAGE, Camera, Numbers, Profile

EXTERNAL = "_converted_externally_to_rlds"
_PANDA = 0.08  # metres between the fingers of an open Franka hand


def _key(name: str) -> str:
    return name.removeprefix("steps/") if name.startswith("steps/") else f"observation/{name}"


def _pose(name: str, encoding: str, start: int = 0) -> Numbers:
    return Numbers(_key(name), start, ENCODINGS[encoding], encoding=encoding)


def _pose_in_two(position: str, rotation: str, encoding: str) -> Numbers:
    """A pose whose orientation lies under a key of its own."""
    behind = Numbers(_key(rotation), 0, ENCODINGS[encoding] - 3)
    return Numbers(_key(position), 0, 3, encoding=encoding, rotation=behind)


def _closed(name: str, at: int = 0) -> Numbers:
    """A gripper with 0 = open, 1 = closed."""
    return Numbers(_key(name), at)


def _width(name: str, at: int = 0, most: float = _PANDA) -> Numbers:
    """A gripper given as the metres between its fingers."""
    return Numbers(_key(name), at, inverted=True, highest=most)


def _row(
    name: str,
    anchors: str = "",
    wrist: str = "",
    eef: Numbers | None = None,
    gripper: Numbers | None = None,
    also: str = "",
    language: tuple[str, ...] = LANGUAGE,
) -> Profile:
    """A profile; `anchors` and `also` (other names) are lists with spaces between."""
    short = name.removesuffix(EXTERNAL)
    names = dict.fromkeys((short, short.removesuffix("_dataset"), *also.split()))
    return Profile(
        name,
        tuple(alias for alias in names if alias != name),
        tuple(Camera(_key(key)) for key in anchors.split()),
        Camera(_key(wrist)) if wrist else None,
        eef,
        gripper,
        language,
    )


_MANISKILL = Profile(
    "maniskill_dataset_converted_externally_to_rlds",
    ("maniskill_dataset", "maniskill"),
    (Camera("observation/image", depth="observation/depth", depth_unit=2.0**-10),),
    Camera("observation/wrist_image", depth="observation/wrist_depth", depth_unit=2.0**-10),
    _pose("tcp_pose", "quat_wxyz"),
    _width("state", 7, 0.04),  # one finger's way
    LANGUAGE,
)

OPENX = (
    _row(
        "fractal20220817_data",
        "image",
        eef=_pose("base_pose_tool_reached", "quat_xyzw"),
        gripper=_closed("gripper_closed"),
        also="fractal rt_1",
    ),
    _row(
        "kuka",
        "image",
        eef=_pose("clip_function_input/base_pose_tool_reached", "quat_xyzw"),
        gripper=_closed("gripper_closed"),
    ),
    _row(
        "taco_play",
        "rgb_static",
        "rgb_gripper",
        _pose("robot_obs", "position"),
        _width("robot_obs", 6),
    ),
    _row("jaco_play", "image", "image_wrist", _pose("end_effector_cartesian_pos", "position")),
    _row("berkeley_cable_routing", "image top_image", "wrist45_image"),
    _row("roboturk", "front_rgb"),
    _row("nyu_door_opening_surprising_effectiveness", "", "image", also="nyu_door_opening"),
    _row(
        "viola",
        "agentview_rgb",
        "eye_in_hand_rgb",
        _pose("ee_states", "matrix"),
        _width("gripper_states"),
    ),
    _row(
        "berkeley_autolab_ur5",
        "image",
        "hand_image",
        _pose("robot_state", "quat_xyzw", 6),
        _closed("robot_state", 13),
    ),
    _row("toto", "image"),
    _row("language_table", "rgb", language=("observation/instruction",)),
    _row("columbia_cairlab_pusht_real", "image", "wrist_image", also="pusht_real"),
    _row(
        "stanford_kuka_multimodal_dataset" + EXTERNAL,
        "image",
        eef=_pose("ee_position", "position"),
    ),
    _row(
        "nyu_rot_dataset" + EXTERNAL,
        "image",
        eef=_pose("state", "euler_xyz"),
        gripper=_closed("state", 6),
    ),
    _row("stanford_hydra_dataset" + EXTERNAL, "image", "wrist_image", _pose("state", "position")),
    _row("austin_buds_dataset" + EXTERNAL, "image", "wrist_image", _pose("state", "matrix", 8)),
    _row(
        "nyu_franka_play_dataset" + EXTERNAL,
        "image image_additional_view",
        eef=_pose("state", "euler_xyz", 7),
    ),
    _MANISKILL,
    _row("furniture_bench_dataset" + EXTERNAL, "image", "wrist_image", _pose("state", "position")),
    _row("cmu_franka_exploration_dataset" + EXTERNAL, "highres_image"),
    _row("ucsd_kitchen_dataset" + EXTERNAL, "image"),
    _row("ucsd_pick_and_place_dataset" + EXTERNAL, "image", eef=_pose("state", "position")),
    _row(
        "austin_sailor_dataset" + EXTERNAL,
        "image",
        "wrist_image",
        _pose("state_ee", "matrix"),
        _width("state_gripper", most=0.077),
    ),
    _row(
        "austin_sirius_dataset" + EXTERNAL,
        "image",
        "wrist_image",
        _pose("state_ee", "matrix"),
        _width("state_gripper", most=0.077),
    ),
    _row(
        "bc_z",
        "image",
        eef=_pose_in_two("present/xyz", "present/axis_angle", "rotvec"),
        gripper=_closed("present/sensed_close"),
    ),
    _row("utokyo_pr2_opening_fridge" + EXTERNAL, "image", eef=_pose("state", "euler_xyz")),
    _row("utokyo_pr2_tabletop_manipulation" + EXTERNAL, "image", eef=_pose("state", "euler_xyz")),
    _row(
        "utokyo_xarm_pick_and_place" + EXTERNAL,
        "image image2",
        "hand_image",
        _pose("end_effector_pose", "position"),
    ),
    _row("utokyo_xarm_bimanual" + EXTERNAL, "image", eef=_pose("pose_r", "position")),
    _row("robo_net", "image image1", also="robonet"),
    _row(
        "berkeley_mvp" + EXTERNAL, "", "hand_image", _pose("pose", "position"), _closed("gripper")
    ),
    _row("berkeley_rpt" + EXTERNAL, "", "hand_image", None, _closed("gripper")),
    _row("kaist_nonprehensile" + EXTERNAL, "image", eef=_pose("state", "quat_xyzw", 14)),
    _row("stanford_mask_vit" + EXTERNAL, "image"),
    _row("tokyo_u_lsmo" + EXTERNAL, "image", eef=_pose("state", "position")),
    _row("dlr_sara_pour" + EXTERNAL, "image", eef=_pose("state", "euler_zxy")),
    _row("dlr_sara_grid_clamp" + EXTERNAL, "image", eef=_pose("state", "euler_zxy")),
    _row("dlr_edan_shared_control" + EXTERNAL, "image", eef=_pose("state", "euler_zxy")),
    _row(
        "asu_table_top" + EXTERNAL,
        "image",
        eef=_pose("steps/ground_truth_states/EE", "euler_xyz"),
    ),
    _row(
        "stanford_robocook" + EXTERNAL,
        "image_1 image_2 image_3 image_4",
        eef=_pose("state", "position"),
    ),
    _row("imperialcollege_sawyer_wrist_cam", "", "wrist_image"),  # `image` is the same picture
    _row("iamlab_cmu_pickup_insert" + EXTERNAL, "image", "wrist_image"),
    _row("uiuc_d3field", "image_1 image_2 image_3 image_4", eef=_pose("state", "matrix")),
    _row("utaustin_mutex", "image", "wrist_image", _pose("state", "matrix", 8)),
    _row(
        "berkeley_fanuc_manipulation",
        "image",
        "wrist_image",
        _pose("end_effector_state", "position"),
    ),
    _row("cmu_playing_with_food", "image", "finger_vision_1"),
    _row("cmu_play_fusion", "image"),
    _row("cmu_stretch", "image"),
    _row("gnm_dataset", also="berkeley_gnm_recon berkeley_gnm_cory_hall berkeley_gnm_sac_son"),
    _row("aloha_static_dataset", "cam_high cam_low", "cam_right_wrist"),
    _row("aloha_dagger_dataset", "cam_high cam_low", "cam_right_wrist"),
    _row("aloha_mobile_dataset", "cam_high", "cam_right_wrist", also="aloha_mobile"),
    _row(
        "fmb_dataset", "image_side_1 image_side_2", "image_wrist_1", _pose("eef_pose", "position")
    ),
    _row("dobbe", "", "wrist_image"),
    _row("roboset", "image_left image_right", "image_wrist", also="robo_set"),
    _row("rh20t", "image_front image_side_right", "image_wrist"),
    _row("mujoco_manip", "image"),
)

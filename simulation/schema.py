"""DROID 1.0.1's feature tree, with the cameras' calibration and, where asked, depth.

DROID has two side cameras; a third one's keys go on counting (`exterior_image_3_left`).
"""

from __future__ import annotations

import numpy as np
import tensorflow_datasets as tfds

from . import VIEWS
from .scene import HEIGHT, WIDTH, seen_cameras

NAME, VERSION = "droid_101", "1.0.1"
IMAGES = {
    "wrist": "wrist_image_left",
    "exterior_1": "exterior_image_1_left",
    "exterior_2": "exterior_image_2_left",
    "exterior_3": "exterior_image_3_left",
}
DEPTHS = {
    "wrist": "wrist_depth_left",
    "exterior_1": "exterior_depth_1_left",
    "exterior_2": "exterior_depth_2_left",
    "exterior_3": "exterior_depth_3_left",
}
CALIBRATION = {
    "wrist": "wrist_cam",
    "exterior_1": "exterior_cam_1",
    "exterior_2": "exterior_cam_2",
    "exterior_3": "exterior_cam_3",
}


def droid_features(depth: bool, views: int = VIEWS) -> tfds.features.FeaturesDict:
    """The features of one episode with `views` side cameras (1 to 3).

    Floats of DROID's own are float64 there, so they are here.

    Depth images are uint16 millimetres, 0 where nothing is; extrinsics are the camera's pose in the
    robot's base, metres and extrinsic "xyz" Euler angles (the hand camera's at the first step);
    intrinsics are fx, fy, cx, cy in pixels of the stored images.
    """
    f = tfds.features
    cameras = seen_cameras(views)

    def vector(size: int, dtype: type[np.generic] = np.float64):
        return f.Tensor(shape=(size,), dtype=dtype)

    observation: dict[str, object] = {
        "gripper_position": vector(1),
        "cartesian_position": vector(6),
        "joint_position": vector(7),
    }
    for key in (IMAGES[camera] for camera in cameras):
        observation[key] = f.Image(shape=(HEIGHT, WIDTH, 3), dtype=np.uint8, encoding_format="jpeg")
    for key in (DEPTHS[camera] for camera in cameras) if depth else ():
        observation[key] = f.Image(shape=(HEIGHT, WIDTH, 1), dtype=np.uint16, encoding_format="png")
    steps = {
        "is_first": f.Scalar(dtype=np.bool_),
        "is_last": f.Scalar(dtype=np.bool_),
        "is_terminal": f.Scalar(dtype=np.bool_),
        "language_instruction": f.Text(),
        "language_instruction_2": f.Text(),
        "language_instruction_3": f.Text(),
        "observation": observation,
        "action_dict": {
            "gripper_position": vector(1),
            "gripper_velocity": vector(1),
            "cartesian_position": vector(6),
            "cartesian_velocity": vector(6),
            "joint_position": vector(7),
            "joint_velocity": vector(7),
        },
        "action": vector(7),
        "discount": f.Scalar(dtype=np.float32),
        "reward": f.Scalar(dtype=np.float32),
    }
    words = ("recording_folderpath", "file_path", "building", "collector_id", "date", "scene_id")
    metadata: dict[str, object] = {key: f.Text() for key in (*words, "task_category")}
    for key in (CALIBRATION[camera] for camera in cameras):
        metadata[f"extrinsics_{key}"] = vector(6, np.float32)
        metadata[f"intrinsics_{key}"] = vector(4, np.float32)
    return f.FeaturesDict({"steps": f.Dataset(steps), "episode_metadata": metadata})

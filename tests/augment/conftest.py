"""What tests of both stages share: a network small enough to train, and cameras that look."""

from __future__ import annotations

import numpy as np
import pytest
from wristaugment.models.vggt import VGGTConfig


@pytest.fixture(scope="session")
def small_vggt() -> VGGTConfig:
    """A VGGT with all heads that runs in milliseconds."""
    return VGGTConfig(
        dim=32,
        depth=4,
        heads=1,
        encoder_depth=1,
        encoder_heads=1,
        grid=4,
        layers=(0, 1, 2, 3),
        dpt_features=8,
        dpt_widths=(8, 8, 8, 8),
        camera_depth=1,
        camera_heads=2,
        heads_built=("camera", "depth", "wrist"),
        ray_channels=9,
        wrist={"dim": 32, "depth": 1, "heads": 2, "queries": 2},
    )


@pytest.fixture(scope="session")
def looking():
    """(eye, at, up) -> [4, 4] world-to-camera pose, OpenCV axes."""

    def pose_of(eye, at, up=(0, 0, 1)) -> np.ndarray:
        z = np.subtract(at, eye) / np.linalg.norm(np.subtract(at, eye))
        x = np.cross(z, up) / np.linalg.norm(np.cross(z, up))
        pose = np.eye(4)
        pose[:3, :3] = np.stack([x, np.cross(z, x), z])
        pose[:3, 3] = -pose[:3, :3] @ np.asarray(eye)
        return pose

    return pose_of

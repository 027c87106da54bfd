"""What tests of both stages share: a network small enough to train, and cameras that look."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from wristaugment.augment.corpus import Arrays
from wristaugment.augment.recipe import RECIPES
from wristaugment.augment.train_wrist import wrist_rows
from wristaugment.models.vggt import VGGTConfig
from wristaugment.readers.episode import Episode, Record, View


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


@pytest.fixture(scope="session")
def wrist_episode(looking):
    """Makes episodes of two anchors and a hand camera, 30x40, of random blocks of colour."""

    def make(steps: int = 4, calibrated: bool = True, views: int = 2) -> Episode:
        rng = np.random.default_rng(0)

        def frames():
            coarse = rng.integers(0, 255, (steps, 3, 4, 3), dtype=np.uint8)
            return coarse.repeat(10, 1).repeat(10, 2)

        K = np.array([[36.0, 0, 19.5], [0, 36, 14.5], [0, 0, 1]])
        anchors = []
        for i in range(views):
            pose = looking([0.4, 0.7 - 1.4 * i, 0.6], [0.5, 0, 0])
            known = (K, pose) if calibrated else (None, None)
            anchors.append(View(f"observation/image_{i}", frames(), *known))
        wrist = View("observation/wrist", frames(), K if calibrated else None)
        eef = np.tile(np.eye(4), (steps, 1, 1))
        eef[:, :3, 3] = [0.5, 0, 0.4]
        above = looking([0.5, 0, 0.4], [0.52, 0, 0], up=(1, 0, 0))
        mount = np.linalg.inv(eef[0]) @ np.linalg.inv(above) if calibrated else None
        return Episode(Record("train", 0, 7), anchors, wrist=wrist, eef_pose=eef, wrist_mount=mount)

    return make


@pytest.fixture(scope="session")
def rows(wrist_episode) -> Arrays:
    """`wrist_rows` of four timesteps, with pictures of 56 x 56."""
    return Arrays(wrist_rows(wrist_episode(), replace(RECIPES["paper"], side=56)))

"""The released condition map: a point cloud drawn under a pose encoding, compared by its pixels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from weights_rule import relative_error
from wristaugment.models.geometry import decode_pose
from wristaugment.models.splat import RELEASED, splat


def reads(meta: dict, arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether this module compares such a fixture."""
    return {"points", "colors", "pose_enc", "image"} <= arrays.keys()


def bound(name: str) -> float:
    """The share of pixels that may differ, and the largest relative error of the matrices."""
    return 0.005 if name == "image" else 1e-3


def draw(meta: dict, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The picture [H, W, 3] with the released settings, and the matrices of the pose."""
    size = (meta["H"], meta["W"])
    points, colors, encoding = (
        torch.from_numpy(np.array(arrays[name]))[None] for name in ("points", "colors", "pose_enc")
    )
    pose, K = decode_pose(encoding, size)
    valid = torch.ones(points.shape[:2], dtype=torch.bool)
    seen = splat(points, colors, valid, K, pose, size, **{**RELEASED, "radius": meta["radius"]})
    return {
        "image": seen.color[0].numpy(),
        "extrinsics": pose[0, :3].numpy(),
        "intrinsics": K[0].numpy(),
    }


def errors(meta: dict, arrays: Mapping[str, np.ndarray]) -> dict[str, float]:
    """{"image": the share of pixels that differ, the others: relative error}."""
    found = draw(meta, arrays)
    out = {
        name: relative_error(found[name], arrays[name])
        for name in ("extrinsics", "intrinsics")
        if name in arrays
    }
    return {**out, "image": float((found["image"] != arrays["image"]).any(axis=-1).mean())}

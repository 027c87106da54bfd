"""Pinhole cameras as tensors: pose encodings, rays, lifting and projecting.

Poses are world-to-camera 4x4 with OpenCV axes; pixels have their centres at whole numbers, so a map
of width W spans [-0.5, W - 0.5].
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor


@contextmanager
def exact() -> Iterator[None]:
    """Compute in the precision of the inputs, autocast or not; a context and a decorator.

    In bfloat16 a metre is known to 4 mm, and points are projected up to a pixel of an anchor off.
    """
    with ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def quaternion_to_matrix(q: Tensor) -> Tensor:
    """[..., 4] quaternions in x, y, z, w order (any length but zero) -> [..., 3, 3] rotations."""
    x, y, z, w = F.normalize(q, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
        2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
        2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def matrix_to_quaternion(R: Tensor) -> Tensor:
    """[..., 3, 3] rotations -> [..., 4] unit quaternions x, y, z, w with w >= 0.

    Of the four ways to divide (Shepperd 1978) the one with the largest divisor is taken, so that no
    rotation is ill-conditioned.
    """
    m = R.flatten(-2)
    m00, m01, m02, m10, m11, m12, m20, m21, m22 = m.unbind(-1)
    candidates = torch.stack(
        [
            torch.stack([1 + m00 - m11 - m22, m01 + m10, m02 + m20, m21 - m12], -1),
            torch.stack([m01 + m10, 1 - m00 + m11 - m22, m12 + m21, m02 - m20], -1),
            torch.stack([m02 + m20, m12 + m21, 1 - m00 - m11 + m22, m10 - m01], -1),
            torch.stack([m21 - m12, m02 - m20, m10 - m01, 1 + m00 + m11 + m22], -1),
        ],
        -2,
    )  # [..., 4 ways, 4]
    best = torch.diagonal(candidates, dim1=-2, dim2=-1).argmax(-1)
    q = torch.take_along_dim(candidates, best[..., None, None], dim=-2).squeeze(-2)
    q = F.normalize(q, dim=-1)
    return torch.where(q[..., 3:] < 0, -q, q)


def encode_pose(pose: Tensor, K: Tensor, size: tuple[int, int]) -> Tensor:
    """Poses [..., 4, 4] and intrinsics [..., 3, 3] at size (H, W) -> [..., 9] absT_quaR_FoV.

    The encoding of VGGT's camera head: translation 3, quaternion x y z w, vertical and horizontal
    field of view in radians.
    """
    height, width = size
    fov_h = 2 * torch.atan(height / 2 / K[..., 1, 1])
    fov_w = 2 * torch.atan(width / 2 / K[..., 0, 0])
    fov = torch.stack([fov_h, fov_w], -1)
    return torch.cat([pose[..., :3, 3], matrix_to_quaternion(pose[..., :3, :3]), fov], -1)


def decode_pose(encoding: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """[..., 9] absT_quaR_FoV -> poses [..., 4, 4] and intrinsics [..., 3, 3], centre W/2, H/2."""
    height, width = size
    pose = torch.zeros(*encoding.shape[:-1], 4, 4, dtype=encoding.dtype, device=encoding.device)
    pose[..., :3, :3] = quaternion_to_matrix(encoding[..., 3:7])
    pose[..., :3, 3] = encoding[..., :3]
    pose[..., 3, 3] = 1
    K = torch.zeros(*encoding.shape[:-1], 3, 3, dtype=encoding.dtype, device=encoding.device)
    # A field of view of zero (the head's relu may give it) would be an infinite focal length.
    fov = encoding[..., 7:9].clamp(0.05, 3.0)
    K[..., 1, 1] = height / 2 / torch.tan(fov[..., 0] / 2)
    K[..., 0, 0] = width / 2 / torch.tan(fov[..., 1] / 2)
    K[..., 0, 2], K[..., 1, 2] = width / 2, height / 2
    K[..., 2, 2] = 1
    return pose, K


def rescale_intrinsics(K: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Intrinsics [..., 3, 3] of an image of size `old` (H, W) after resizing it to `new`."""
    sy, sx = new[0] / old[0], new[1] / old[1]
    scaled = K.clone()
    scaled[..., 0, 0] *= sx
    scaled[..., 1, 1] *= sy
    # Pixel centres at whole numbers: the image's corner is at -0.5, and corners stay corners.
    scaled[..., 0, 2] = (K[..., 0, 2] + 0.5) * sx - 0.5
    scaled[..., 1, 2] = (K[..., 1, 2] + 0.5) * sy - 0.5
    return scaled


def pixel_grid(height: int, width: int, *, device: torch.device | str = "cpu") -> Tensor:
    """[H, W, 3] homogeneous pixel coordinates (x, y, 1)."""
    y, x = torch.meshgrid(
        torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
    )
    return torch.stack([x, y, torch.ones_like(x)], -1).float()


def camera_rays(K: Tensor, size: tuple[int, int]) -> Tensor:
    """[..., 3, 3] intrinsics -> [..., H, W, 3] ray directions in the camera frame with z = 1."""
    grid = pixel_grid(*size, device=K.device)
    return torch.einsum("...ij,hwj->...hwi", torch.linalg.inv(K), grid)


def unproject(depth: Tensor, K: Tensor, pose: Tensor) -> Tensor:
    """Depth [..., H, W], K [..., 3, 3], world-to-camera [..., 4, 4] -> points [..., H, W, 3]."""
    points = camera_rays(K, (depth.shape[-2], depth.shape[-1])) * depth[..., None]
    R, t = pose[..., :3, :3], pose[..., :3, 3]
    return torch.einsum("...ji,...hwj->...hwi", R, points - t[..., None, None, :])


def transform(pose: Tensor, points: Tensor) -> Tensor:
    """Points [..., N, 3] into the frame of world-to-camera poses [..., 4, 4]."""
    return points @ pose[..., :3, :3].transpose(-1, -2) + pose[..., None, :3, 3]


def project(points: Tensor, K: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
    """Points [..., N, 3] -> pixels [..., N, 2] and depths z [..., N] in the camera.

    Behind the camera (z <= 0) the pixel has no meaning; it is computed with |z| held above 1e-6.
    """
    camera = transform(pose, points)
    z = camera[..., 2]
    safe = torch.where(z.abs() < 1e-6, torch.full_like(z, 1e-6), z)
    pixels = camera[..., :2] / safe[..., None]
    scale = torch.stack([K[..., 0, 0], K[..., 1, 1]], -1)[..., None, :]
    return pixels * scale + K[..., None, :2, 2], z


def rotation_angle(A: Tensor, B: Tensor) -> Tensor:
    """Angle in degrees between rotations [..., 3, 3]."""
    trace = torch.einsum("...ij,...ij->...", A, B)
    return torch.rad2deg(torch.acos(((trace - 1) / 2).clamp(-1, 1)))


@exact()
def calibrated_rays(
    K: Tensor, pose: Tensor, size: tuple[int, int], tool: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What a calibrated pixel knows before any network looks: its ray, the table and the tool.

    Args:
        K: [B, S, 3, 3] at `size`; pose: [B, S, 4, 4] base-to-camera, metres.
        tool: [B, 2, 3] the flange and a point ahead of the gripper in the base frame (see
            `tool_axis`), or None (the tool is then as far off as can be said).

    Returns:
        rays [B, S, 9, H, W]: origin 3, unit direction 3, inverse z-depth of the table plane z = 0,
        distance to the tool's axis (1 m at most), inverse z-depth where the ray is closest to it;
        and priors [B, S, 2, H, W]: the z-depths in metres of the plane, clipped to [0.2, 3], and
        of the tool, clipped to [0.1, 3].
    """
    R, t = pose[..., :3, :3], pose[..., :3, 3]
    local = camera_rays(K, size)  # [B, S, H, W, 3], z = 1
    direction = torch.einsum("bsji,bshwj->bshwi", R, local)
    origin = -torch.einsum("bsji,bsj->bsi", R, t)
    down = (-direction[..., 2]).clamp_min(1e-3)
    table = (origin[..., None, None, 2] / down).clamp(0.2, 3.0)
    length = local.square().sum(-1).sqrt()
    unit = direction / length[..., None]
    start = origin[..., None, None, :]
    if tool is None:
        near, distance = table, torch.ones_like(table)
    else:
        # Closest points of a line and a segment (Ericson 2005, section 5.1.9).
        a, axis = (x[:, None, None, None] for x in (tool[:, 0], tool[:, 1] - tool[:, 0]))
        from_a = start - a
        b, d = (unit * axis).sum(-1), (unit * from_a).sum(-1)
        c, e = (axis * axis).sum(-1), (axis * from_a).sum(-1)
        share = ((e - b * d) / (c - b * b).clamp_min(1e-6)).clamp(0, 1)
        along = share * b - d
        gap = from_a + along[..., None] * unit - share[..., None] * axis
        distance = gap.square().sum(-1).sqrt().clamp_max(1.0)
        near = (along / length).clamp(0.1, 3.0)
    rays = torch.cat(
        [start.expand_as(unit), unit, *(x[..., None] for x in (1 / table, distance, 1 / near))], -1
    )
    return rays.permute(0, 1, 4, 2, 3), torch.stack([table, near], dim=2)


def tool_axis(eef_pose: Tensor, reach: float = 0.2) -> Tensor:
    """End-effector poses [..., 4, 4] (in the base) -> [..., 2, 3]: origin, `reach` metres ahead.

    Ahead is the frame's z, as of the Panda's flange, which DROID's `cartesian_position` is.
    """
    start = eef_pose[..., :3, 3]
    return torch.stack([start, start + reach * eef_pose[..., :3, 2]], dim=-2)

"""What the wrist head of the full-size recipes learns from: SPC, and L1 terms where data are known.

VGGT's world has a scale of its own. SPC needs no other. L1 terms on translations compare with
measured ones, which are brought to the network's scale first: by the spread of the anchors, as
predicted over as measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..models.correspond import Correspondences, Matching
from ..models.geometry import decode_pose, encode_pose, transform
from ..models.spc import spc_loss

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class WristSettings:
    """Losses and what they are computed from.

    Attributes:
        spc: weight of the SPC loss, which is taken on the last iteration alone. spc_form,
            lambda_u, lambda_depth, near: see `models.spc.spc_loss`.
        translation, rotation, fov: weights of the wrist's L1 terms: translation in the network's
            units, quaternion, fields of view in radians.
        camera: weight of the anchors' camera L1; more than 0 trains the camera head too, where two
            anchors or more are calibrated. camera_rate: that head's peak learning rate.
        gamma: iteration i of n weighs gamma^(n - 1 - i) in the L1 terms.
        centred: the principal point of the wrist is taken to be the image's centre.
        metric: the base network's world is in metres, so that no scale is looked for.
        matching: how correspondences are made.
    """

    spc: float = 1.0
    spc_form: str = "scaled"
    lambda_u: float = 1.0
    lambda_depth: float = 1.0
    near: float = 0.01
    translation: float = 0.0
    rotation: float = 0.0
    fov: float = 0.0
    camera: float = 0.0
    camera_rate: float = 5e-6
    gamma: float = 0.6
    centred: bool = False
    metric: bool = False
    matching: Matching = field(default_factory=Matching)


# The paper writes MSE in square pixels with a free lambda_u, and its appendix "normalized
# reprojection error": the form `scaled` is both, with lambda_u = 2 / (H^2 + W^2) in the first.
SETTINGS = {
    "paper": WristSettings(),
    "official": WristSettings(spc_form="official", fov=10.0, camera=5.0, centred=True),
}


def centres(pose: Tensor) -> Tensor:
    """World-to-camera [..., 4, 4] -> camera centres [..., 3]."""
    return -(pose[..., :3, :3].mT @ pose[..., :3, 3:])[..., 0]


def known_anchors(batch: Batch) -> Tensor:
    """[B] bool: every anchor's K and pose are measured."""
    return batch["K"].isfinite().flatten(1).all(1) & batch["pose"].isfinite().flatten(1).all(1)


def network_scale(cameras: Tensor | None, pose: Tensor, metric: bool = False) -> Tensor:
    """The network's units of length a metre, [B]; not a number where that cannot be known.

    The root mean square distance of the other anchors from the first, as predicted over as
    measured.

    Args:
        cameras: [B, S, 9] predicted encodings, or None. pose: [B, S, 4, 4] measured, NaN where
            they are not.
        metric: the network's unit is the metre.
    """
    if metric:
        return torch.ones(len(pose), device=pose.device)
    unknown = torch.full((len(pose),), torch.nan, device=pose.device)
    if cameras is None or pose.shape[1] < 2:
        return unknown
    predicted, _ = decode_pose(cameras.detach().float(), (1, 1))

    def spread(pose: Tensor) -> Tensor:
        eyes = centres(pose)
        return (eyes[:, 1:] - eyes[:, :1]).square().sum((1, 2)).sqrt()

    measured = spread(pose)
    # Anchors within a centimetre of each other tell nothing of the scale.
    return torch.where(measured > 0.01, spread(predicted) / measured, unknown)


def relative(pose: Tensor, first: Tensor, scale: Tensor) -> Tensor:
    """Measured poses [B, ..., 4, 4] as the network says them: in the frame of the first anchor
    [B, 4, 4], in its units [B] (a NaN scale gives NaN translations and whole rotations)."""
    between = (1,) * (pose.ndim - 3)
    found = pose @ torch.linalg.inv(first).view(len(first), *between, 4, 4)
    found[..., :3, 3] = found[..., :3, 3] * scale.view(len(first), *between, 1)
    return found


def measured_cameras(batch: Batch, cameras: Tensor, scale: Tensor, size: tuple[int, int]):
    """K [B, S, 3, 3] and poses [B, S, 4, 4] in the network's units: measured ones where they and
    the scale are known, else the predicted ones of [B, S, 9]."""
    pose, K = decode_pose(cameras.float(), size)
    known = known_anchors(batch)
    if batch["pose"].shape[1] > 1:
        known &= scale.isfinite()
    where = known[:, None, None, None]
    measured = relative(_filled(batch["pose"]), _filled(batch["pose"][:, 0]), scale.nan_to_num(1))
    return torch.where(where, batch["K"], K), torch.where(where, measured, pose)


def _filled(pose: Tensor) -> Tensor:
    """Poses with the identity where they are not known."""
    eye = torch.eye(4, device=pose.device).expand_as(pose)
    return torch.where(pose.isfinite().all(-1, keepdim=True).all(-2, keepdim=True), pose, eye)


def wrist_intrinsics(batch: Batch, size: tuple[int, int], settings: WristSettings) -> Tensor:
    """[B, 3, 3] of the hand camera at the network's size."""
    K = batch["wrist_K"].clone()
    if settings.centred:
        K[:, 0, 2], K[:, 1, 2] = size[1] / 2, size[0] / 2
    return K


def encoding_errors(found: Tensor, target: Tensor) -> dict[str, Tensor]:
    """L1 errors of pose encodings [..., 9]: translation [..., 3], rotation [..., 4], fov [..., 2].

    A quaternion and its negative are one rotation: the nearer of the two counts.
    """
    q, goal = found[..., 3:7], target[..., 3:7]
    sign = torch.where((q.detach() * goal).sum(-1, keepdim=True) < 0, -1.0, 1.0)
    return {
        "translation": (found[..., :3] - target[..., :3]).abs(),
        "rotation": (q - sign * goal).abs(),
        "fov": (found[..., 7:9] - target[..., 7:9]).abs(),
    }


def masked_mean(value: Tensor, mask: Tensor) -> Tensor:
    """Mean of [B, ...] over the samples in `mask` [B]; 0 where there is none."""
    value = value.flatten(1).mean(1)
    return torch.where(mask, value, torch.zeros_like(value)).sum() / mask.sum().clamp_min(1)


def wrist_losses(
    encodings: Tensor,
    cameras: Tensor | None,
    batch: Batch,
    found: Correspondences,
    scale: Tensor,
    size: tuple[int, int],
    settings: WristSettings,
) -> dict[str, Tensor]:
    """Named scalars; `loss` is the weighted sum that is minimised.

    Args:
        encodings: [iterations, B, 9] of the wrist head. cameras: [iterations, B, S, 9] where the
            camera head is trained.
        batch: `wrist_K` [B, 3, 3], `K`, `pose` of the anchors and `wrist_pose` [B, 4, 4], the last
            three NaN where they are not known; an L1 term is over the samples where they are.
        scale: [B], see `network_scale`.
    """
    with torch.autocast(encodings.device.type, enabled=False):
        encodings = encodings.float()
        K = wrist_intrinsics(batch, size, settings)
        pose, _ = decode_pose(encodings[-1], size)
        spc = spc_loss(
            found.points,
            found.pixels,
            found.valid,
            K,
            pose,
            size,
            form=settings.spc_form,
            lambda_u=settings.lambda_u,
            lambda_depth=settings.lambda_depth,
            near=settings.near,
        )
        values = {
            "spc": spc.loss,
            "reprojection": spc.reprojection,
            "behind": spc.behind,
            "front_share": spc.front_share,
            "matched": found.valid.float().mean(),
        }
        loss = settings.spc * spc.loss
        anchored = batch["pose"][:, 0].isfinite().flatten(1).all(1)
        seen = anchored & batch["wrist_pose"].isfinite().flatten(1).all(1)
        masks = {
            "translation": seen & scale.isfinite(),
            "rotation": seen,
            "fov": torch.ones_like(seen),
        }
        first = _filled(batch["pose"][:, 0])
        # A masked target must be a number: on the way back 0 * NaN is NaN.
        goal = relative(_filled(batch["wrist_pose"]), first, scale.nan_to_num(1))
        goal = encode_pose(goal, K, size)
        for i, encoding in enumerate(encodings):
            weight = settings.gamma ** (len(encodings) - 1 - i)
            for name, error in encoding_errors(encoding, goal).items():
                if getattr(settings, name) > 0:
                    part = weight * masked_mean(error, masks[name])
                    values[f"wrist_{name}"] = values.get(f"wrist_{name}", 0) + part
                    loss = loss + getattr(settings, name) * part
        if cameras is not None:
            known = known_anchors(batch) & scale.isfinite()
            where = known[:, None, None, None]
            target = relative(_filled(batch["pose"]), first, scale.nan_to_num(1))
            eye = torch.eye(3, device=K.device)
            goal = encode_pose(target, torch.where(where, batch["K"], eye), size)
            for i, encoding in enumerate(cameras.float()):
                errors = torch.cat([*encoding_errors(encoding, goal).values()], dim=-1)
                part = settings.gamma ** (len(cameras) - 1 - i) * masked_mean(errors, known)
                values["camera"] = values.get("camera", 0) + part
                loss = loss + settings.camera * part
        return {"loss": loss, **values}


def pixel_errors(found: Correspondences, K: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
    """Distances in pixels of the correspondences in front from their wrist pixels, one list for
    all samples, and the share of those that count that is in front."""
    seen = transform(pose, found.points)
    front = found.valid & (seen[..., 2] > 0)
    focal = torch.stack([K[:, 0, 0], K[:, 1, 1]], -1)[:, None]
    places = seen[..., :2] / seen[..., 2:].clamp_min(1e-6) * focal + K[:, None, :2, 2]
    share = front.sum() / found.valid.sum().clamp_min(1)
    return (places - found.pixels).norm(dim=-1)[front], share

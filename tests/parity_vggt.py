"""VGGT's figures: builds the network that a fixture's meta asks for and compares every output."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from weights_rule import Undrawn, fill_by_rule, relative_error
from wristaugment.models.vggt import VGGT, Geometry, VGGTConfig

ENCODERS = {  # depth and heads of the DINOv2 models, by the public names
    "dinov2_vits14_reg": (12, 6),
    "dinov2_vitb14_reg": (12, 12),
    "dinov2_vitl14_reg": (24, 16),
}
HEAD_OF = {
    "pose_enc": "camera",
    "depth": "depth",
    "world_points": "point",
    "track": "track",
    "wrist_pose_enc": "wrist",
}


def reads(meta: dict, arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether this module compares such a fixture."""
    return "patch_embed" in meta.get("config", {})


def bound(name: str) -> float:
    """The largest relative error at which an output agrees."""
    return 1e-3


def config_of(meta: dict, outputs: Mapping[str, np.ndarray]) -> VGGTConfig:
    """The configuration of the fixture's network, with the heads whose outputs it holds."""
    sizes = dict(meta["config"])
    encoder = sizes.pop("patch_embed")
    if encoder not in ENCODERS:
        raise ValueError(f"no encoder {encoder}; known are {', '.join(ENCODERS)}")
    config = VGGTConfig(
        dim=sizes.pop("embed_dim"),
        depth=sizes.pop("depth"),
        heads=sizes.pop("heads"),
        encoder_depth=ENCODERS[encoder][0],
        encoder_heads=ENCODERS[encoder][1],
        layers=tuple(sizes.pop("layers")),
        heads_built=tuple(head for name, head in HEAD_OF.items() if name in outputs),
        wrist_kind="official",
    )
    if sizes:
        raise ValueError(f"the fixture's configuration has {', '.join(sizes)}, which is not known")
    return config


def images_of(meta: dict) -> torch.Tensor:
    """[B, S, 3, H, W]: coarse random patches under fine noise."""
    B, S, H, W = (meta[k] for k in "BSHW")
    rng = np.random.default_rng(meta["seed"])
    coarse = rng.random((B, S, 3, H // 14, W // 14), dtype=np.float32)
    coarse = coarse.repeat(14, axis=-1).repeat(14, axis=-2)
    noise = rng.random((B, S, 3, H, W), dtype=np.float32)
    return torch.from_numpy(np.float32(0.8) * coarse + np.float32(0.2) * noise)


def queries_of(meta: dict) -> torch.Tensor:
    """[B, N, 2] pixels (x, y) of the first view."""
    rng = np.random.default_rng(meta["seed"] + 1)
    places = rng.random((meta["B"], meta["num_queries"], 2), dtype=np.float32)
    return torch.from_numpy(places * np.array([meta["W"] - 1, meta["H"] - 1], np.float32))


def thinned(tokens: torch.Tensor) -> torch.Tensor:
    """The share of the aggregated tokens that fixtures keep."""
    P, C = tokens.shape[2:]
    return tokens[:, :, :: max(1, P // 16), :: max(1, C // 32)]


def named(geometry: Geometry, step: int) -> dict[str, torch.Tensor]:
    """The outputs of one pass under the public names, dense ones every `step` pixels."""
    found: dict[str, torch.Tensor | None] = {
        "pose_enc": geometry.cameras,
        "track": geometry.tracks,
        "vis": geometry.visibility,
        "track_conf": geometry.tracks_confidence,
    }
    if geometry.depth is not None and geometry.depth_confidence is not None:
        found["depth"] = geometry.depth[:, :, ::step, ::step, None]
        found["depth_conf"] = geometry.depth_confidence[:, :, ::step, ::step]
    if geometry.points is not None and geometry.points_confidence is not None:
        found["world_points"] = geometry.points[:, :, ::step, ::step]
        found["world_points_conf"] = geometry.points_confidence[:, :, ::step, ::step]
    if geometry.wrist_iterations is not None:
        found["wrist_pose_enc"] = geometry.wrist_iterations[:, :, None]
    return {name: value for name, value in found.items() if value is not None}


@torch.no_grad()
def errors(meta: dict, arrays: Mapping[str, np.ndarray]) -> dict[str, float]:
    """{output: relative error}, for every output in the fixture."""
    outputs = {name: value for name, value in arrays.items() if name != "meta"}
    with Undrawn():
        network = VGGT(config_of(meta, outputs)).eval()
    fill_by_rule(network)
    tokens: dict[int, torch.Tensor] = {}
    hook = network.aggregator.register_forward_hook(lambda _m, _i, kept: tokens.update(kept))
    images = images_of(meta)
    geometry = network(images, query_points=queries_of(meta) if "track" in outputs else None)
    hook.remove()
    found = named(geometry, meta["stride"])
    layers = {int(name.split("_")[1]) for name in outputs if name.startswith("tokens_")}
    if layers - tokens.keys():
        tokens = network.aggregator(images, tuple(layers))
    found |= {f"tokens_{i}": thinned(tokens[i]) for i in layers}
    unknown = sorted(outputs.keys() - found.keys())
    if unknown:
        raise ValueError(f"the network gives no {', '.join(unknown)}")
    return {name: relative_error(found[name], truth) for name, truth in outputs.items()}

"""VGGT against figures of the public implementation, on weights that follow from their names."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from wristaugment.models.dpt import depth_activation
from wristaugment.models.geometry import calibrated_rays
from wristaugment.models.vggt import VGGT, VGGTConfig

FIXTURE = Path(__file__).parent.parent / "fixtures" / "vggt_small.npz"


def parity_weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The rule that the fixture's weights were made by."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    x = rng.standard_normal(shape, dtype=np.float32)
    if len(shape) >= 2:
        return torch.as_tensor(x / np.sqrt(np.prod(shape[1:]), dtype=np.float32))
    return torch.as_tensor(1 + 0.1 * x if name.endswith((".weight", ".gamma")) else 0.1 * x)


@pytest.fixture(scope="module")
def figures():
    return np.load(FIXTURE)


@pytest.fixture(scope="module")
def outputs(figures):
    meta = json.loads(str(figures["meta"]))
    sizes = meta["config"]
    network = VGGT(
        VGGTConfig(
            dim=sizes["embed_dim"],
            depth=sizes["depth"],
            heads=sizes["heads"],
            encoder_depth=12,
            encoder_heads=6,
            layers=tuple(sizes["layers"]),
        )
    ).eval()
    weights = {k: parity_weight(k, tuple(v.shape)) for k, v in network.state_dict().items()}
    network.load_state_dict(weights)
    B, S, H, W = (meta[k] for k in "BSHW")
    rng = np.random.default_rng(meta["seed"])
    coarse = rng.random((B, S, 3, H // 14, W // 14), dtype=np.float32)
    coarse = coarse.repeat(14, axis=-1).repeat(14, axis=-2)
    images = torch.as_tensor(0.8 * coarse + 0.2 * rng.random((B, S, 3, H, W), dtype=np.float32))
    with torch.no_grad():
        tokens = network.aggregator(images, tuple(range(sizes["depth"])))
        geometry = network(images)
    step = meta["stride"]
    found = {
        "pose_enc": geometry.cameras,
        "depth": geometry.depth[:, :, ::step, ::step, None],
        "depth_conf": geometry.depth_confidence[:, :, ::step, ::step],
        "world_points": geometry.points[:, :, ::step, ::step],
        "world_points_conf": geometry.points_confidence[:, :, ::step, ::step],
    }
    for i, x in tokens.items():
        P, C = x.shape[2:]
        found[f"tokens_{i}"] = x[:, :, :: max(1, P // 16), :: max(1, C // 32)]
    return found


@pytest.mark.parametrize(
    "name",
    [
        "tokens_0",
        "tokens_3",
        "pose_enc",
        "depth",
        "depth_conf",
        "world_points",
        "world_points_conf",
    ],
)
def test_agrees_with_the_public_network(outputs, figures, name):
    truth = figures[name].astype(np.float64)
    error = np.linalg.norm(outputs[name].numpy() - truth) / np.linalg.norm(truth)
    assert error < 1e-4


def tiny(**more) -> VGGT:
    torch.manual_seed(0)
    sizes = {"dim": 64, "depth": 2, "heads": 1, "encoder_depth": 1, "encoder_heads": 1, "grid": 4}
    heads = {"layers": (0, 0, 1, 1), "dpt_features": 16, "dpt_widths": (16, 16, 16, 16)}
    return VGGT(VGGTConfig(**sizes, **heads, camera_depth=1, camera_heads=2, **more)).eval()


def test_views_of_one_timestep_see_each_other_and_timesteps_do_not():
    network = tiny()
    images = torch.rand(2, 2, 3, 28, 42)
    changed = images.clone()
    changed[1, 1] = 0
    with torch.no_grad():
        before, after = network(images), network(changed)
    torch.testing.assert_close(before.depth[0], after.depth[0])
    assert (before.depth[1, 0] - after.depth[1, 0]).abs().max() > 1e-6


def test_a_size_that_is_no_multiple_of_the_patch_is_refused():
    with pytest.raises(ValueError, match="multiples of 14; found 30x42"):
        tiny()(torch.rand(1, 1, 3, 30, 42))


def test_rays_need_a_network_that_takes_them():
    with pytest.raises(ValueError, match="calibrated rays"):
        tiny()(torch.rand(1, 1, 3, 28, 28), torch.rand(1, 1, 9, 28, 28))


def test_an_untrained_depth_head_gives_the_prior():
    network = tiny(heads_built=("depth", "wrist", "camera"), ray_channels=9, wrist={"dim": 64})
    network.prepare_from_scratch()
    K = torch.tensor([[30.0, 0, 14], [0, 30, 14], [0, 0, 1]]).expand(1, 1, 3, 3)
    down = torch.diag(torch.tensor([1.0, -1, -1, 1]))
    down[2, 3] = 1.5  # 1.5 m above the table, looking straight down
    rays, priors = calibrated_rays(K, down.expand(1, 1, 4, 4), (28, 28))
    torch.testing.assert_close(priors, torch.full_like(priors, 1.5))
    with torch.no_grad():
        depth = network(torch.rand(1, 1, 3, 28, 28), rays, priors).depth
    assert ((depth - 1.5).abs() / 1.5).max() < 0.3


def test_depth_weighs_the_table_against_the_tool():
    priors = torch.tensor([2.0, 0.5]).view(1, 1, 2, 1, 1)
    for weight, expected in ((-20.0, 2.0), (0.0, 1.0), (20.0, 0.5)):
        depth, _ = depth_activation(torch.tensor([0.0, 0, weight]).view(1, 1, 1, 1, 3), priors)
        assert abs(depth.item() - expected) < 1e-4

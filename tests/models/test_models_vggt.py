"""VGGT's own behaviour; `test_models_parity.py` compares it with the public implementation."""

import pytest
import torch
from wristaugment.models.dpt import depth_activation
from wristaugment.models.geometry import calibrated_rays
from wristaugment.models.vggt import VGGT, VGGTConfig


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


def test_only_the_heads_that_are_asked_for_run():
    network = tiny(heads_built=("camera", "depth", "wrist"), wrist={"dim": 64})
    with torch.no_grad():
        found = network(torch.rand(1, 2, 3, 28, 28), heads=("wrist",))
    assert found.wrist.shape == (1, 9)
    assert found.cameras is None and found.depth is None and found.points is None


def test_a_head_that_was_not_built_is_refused():
    network = tiny(heads_built=("camera",))
    images = torch.rand(1, 1, 3, 28, 28)
    with pytest.raises(ValueError, match="without its depth head"):
        network(images, heads=("depth",))
    with pytest.raises(ValueError, match="without its track head"):
        network(images, query_points=torch.zeros(1, 1, 2))
    with pytest.raises(ValueError, match="has no head lidar"):
        tiny(heads_built=("lidar",))
    with pytest.raises(ValueError, match="paper or official; found best"):
        tiny(wrist_kind="best")


@pytest.mark.parametrize("views", [1, 2, 3])
@pytest.mark.parametrize("kind", ["paper", "official"])
def test_both_wrist_heads_give_one_pose_a_timestep(kind, views):
    size = {"dim": 64, "depth": 1} if kind == "paper" else {"layers": 1, "trunk_depth": 1}
    network = tiny(heads_built=("wrist",), wrist_kind=kind, wrist=size)
    with torch.no_grad():
        found = network(torch.rand(2, views, 3, 28, 42))
    iterations = 1 if kind == "paper" else 4
    assert found.wrist_iterations.shape == (iterations, 2, 9)
    assert torch.equal(found.wrist, found.wrist_iterations[-1])


def test_the_released_wrist_head_drops_in_training_alone():
    network = tiny(heads_built=("wrist",), wrist_kind="official", wrist={"layers": 1})
    images = torch.rand(1, 2, 3, 28, 28)
    with torch.no_grad():
        assert torch.equal(network(images).wrist, network(images).wrist)
        network.train()
        assert not torch.equal(network(images).wrist, network(images).wrist)

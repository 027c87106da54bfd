"""The fast splat against the plain one, and what a picture must look like."""

import pytest
import torch
from wristaugment.models.splat import disc_offsets, splat, splat_reference

SIZE = (24, 32)
K = torch.tensor([[30.0, 0, 15.5], [0, 30, 11.5], [0, 0, 1]])


def cloud(seed: int, batch: int = 2, n: int = 150):
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(batch, n, 3, generator=generator) * 2 - 1
    points[..., 2] = points[..., 2] * 1.5 + 0.8  # some behind, some very near
    colors = torch.randint(1, 256, (batch, n, 3), generator=generator, dtype=torch.uint8)
    valid = torch.rand(batch, n, generator=generator) > 0.2
    pose = torch.eye(4).repeat(batch, 1, 1)
    pose[:, :3, 3] = torch.rand(batch, 3, generator=generator) * 0.2
    return points, colors, valid, K.expand(batch, 3, 3), pose


@pytest.mark.parametrize("radius", [0, 1, 2])
@pytest.mark.parametrize("layer", [0.0, 0.02])
@pytest.mark.parametrize("released", [False, True])
def test_agrees_with_the_reference(radius, layer, released):
    inputs = cloud(radius)
    settings = {"radius": radius, "layer": layer, "truncate": released, "outside": not released}
    fast = splat(*inputs, SIZE, **settings)
    plain = splat_reference(*inputs, SIZE, **settings)
    assert plain.covered.any() and not plain.covered.all()
    assert torch.equal(fast.covered, plain.covered)
    assert torch.equal(fast.color, plain.color)
    torch.testing.assert_close(fast.depth, plain.depth)


def test_the_nearer_point_hides_the_farther_whatever_the_order():
    points = torch.tensor([[[0.0, 0, 2], [0, 0, 1]]])
    colors = torch.tensor([[[9, 9, 9], [200, 0, 0]]], dtype=torch.uint8)
    valid = torch.ones(1, 2, dtype=torch.bool)
    for order in ([0, 1], [1, 0]):
        seen = splat(points[:, order], colors[:, order], valid, K[None], torch.eye(4)[None], SIZE)
        assert seen.color[0, 12, 16].tolist() == [200, 0, 0]
        assert seen.depth[0, 12, 16] == 1


def test_no_point_is_an_empty_picture():
    points, colors, valid, intrinsics, pose = cloud(0)
    seen = splat(points, colors, torch.zeros_like(valid), intrinsics, pose, SIZE)
    assert not seen.covered.any() and not seen.color.any()


def test_disc_sizes():
    assert [len(disc_offsets(r)) for r in (0, 1, 2)] == [1, 5, 13]


def test_a_disc_is_centred_on_the_nearest_pixel_or_on_the_whole_part():
    points = torch.tensor([[[0.01, 0.01, 1.0]]])  # projects to (15.8, 11.8)
    inputs = (points, torch.full((1, 1, 3), 9, dtype=torch.uint8), torch.ones(1, 1).bool())
    for truncate, place in ((False, [12, 16]), (True, [11, 15])):
        seen = splat(*inputs, K[None], torch.eye(4)[None], SIZE, radius=0, truncate=truncate)
        assert seen.covered[0].nonzero().tolist() == [place]


def test_a_disc_whose_centre_is_outside_reaches_in_unless_told_not_to():
    points = torch.tensor([[[-0.55, 0.0, 1.0]]])  # projects to (-1, 11.5)
    inputs = (points, torch.full((1, 1, 3), 9, dtype=torch.uint8), torch.ones(1, 1).bool())
    camera = (K[None], torch.eye(4)[None], SIZE)
    assert splat(*inputs, *camera, radius=2).covered.any()
    assert not splat(*inputs, *camera, radius=2, outside=False).covered.any()

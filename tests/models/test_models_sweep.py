"""The plane sweep: where wrist rays meet the assumed surfaces, and what the anchors show there."""

import pytest
import torch
from wristaugment.models.geometry import camera_rays, project
from wristaugment.models.sweep import (
    DISTANCES,
    HEIGHTS,
    PLANES,
    SLACK,
    TOOL,
    WAVES,
    SweptViews,
    surfaces,
    sweep,
    tool_planes,
)

SIZE = (24, 32)
K = torch.tensor([[20.0, 0, 15.5], [0, 20, 11.5], [0, 0, 1]])


def looking_down(height: float, x: float = 0.0) -> torch.Tensor:
    """World-to-camera of a camera above (x, 0), its picture's x along the world's."""
    pose = torch.diag(torch.tensor([1.0, -1, -1, 1]))
    pose[0, 3], pose[2, 3] = -x, height
    return pose


def table(texture, size, K, pose, height=0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """What a camera sees of a horizontal plane with a colour at every (x, y): picture and depth."""
    rays = camera_rays(K, size)
    turn = pose[:3, :3].T
    centre = -turn @ pose[:3, 3]
    way = rays @ turn.T
    z = (height - centre[2]) / way[..., 2]
    points = centre + z[..., None] * way
    return texture(points).permute(2, 0, 1), z


def checks(points: torch.Tensor) -> torch.Tensor:
    """A smooth pattern, so that bilinear sampling is nearly right."""
    x, y = points[..., 0], points[..., 1]
    waves = [torch.sin(6 * x), torch.cos(5 * y), torch.sin(4 * (x + y))]
    return 0.5 + 0.4 * torch.stack(waves, -1)


def views(hand: torch.Tensor, height: float = 0.0) -> SweptViews:
    anchor_K = torch.tensor([[150.0, 0, 79.5], [0, 150, 44.5], [0, 0, 1]])
    poses = [looking_down(1.2, x) for x in (-0.1, 0.15)]
    seen = [table(checks, (90, 160), anchor_K, pose, height) for pose in poses]
    return SweptViews(
        colors=torch.stack([color for color, _ in seen])[None, None],
        K=anchor_K.expand(1, 1, 2, 3, 3),
        pose=torch.stack(poses)[None, None],
        depth=torch.stack([z for _, z in seen])[None, None],
        wrist_K=K.expand(1, 1, 3, 3),
        wrist_pose=hand.expand(1, 1, 4, 4),
    )


@pytest.mark.parametrize("plane", [0, 1, 2])
def test_on_the_right_plane_every_anchor_shows_what_the_hand_sees(plane):
    hand = looking_down(0.5)
    found = sweep(views(hand, HEIGHTS[plane]), SIZE)
    assert found.shape == (1, 1, 2, PLANES, 4, *SIZE)
    truth, _ = table(checks, SIZE, K, hand, HEIGHTS[plane])
    for view in range(2):
        error = (found[0, 0, view, :, :3] - (2 * truth - 1)).abs().mean((1, 2, 3))
        assert error[: len(HEIGHTS)].argmin() == plane and error[plane] < 0.01
        signed = found[0, 0, view, : len(HEIGHTS), 3].mean((1, 2))
        assert signed[plane].abs() < 0.01
        # What is assumed above the surface is free, what is assumed below it hidden.
        # Seen from above, by as much as the heights differ.
        apart = (torch.tensor(HEIGHTS) - HEIGHTS[plane]) / SLACK
        torch.testing.assert_close(signed, apart.clamp(-1, 1), atol=0.01, rtol=0)


def test_points_lie_on_their_surfaces_and_on_their_rays():
    turn = torch.tensor([[0.9, 0.1, -0.4], [-0.3, -0.5, -0.8], [-0.3, 0.85, -0.4]])
    turn = torch.linalg.qr(turn).Q
    turn = turn * torch.linalg.det(turn).sign()
    hand = torch.eye(4)
    hand[:3, :3], hand[:3, 3] = turn, torch.tensor([0.1, 0.2, 0.4])
    points = surfaces(K[None], hand[None], SIZE)[0]
    pixels, z = project(points.flatten(1, 2), K.expand(PLANES, 3, 3), hand.expand(PLANES, 4, 4))
    ys, xs = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    grid = torch.stack([xs, ys], -1).float().flatten(0, 1).expand_as(pixels)
    torch.testing.assert_close(pixels, grid, atol=1e-3, rtol=0)
    for plane, height in enumerate(HEIGHTS):
        met = z[plane] < 1.99
        assert (points.flatten(1, 2)[plane, met, 2] - height).abs().max() < 1e-4
    for plane, distance in enumerate(DISTANCES, len(HEIGHTS)):
        assert (z[plane] - distance).abs().max() < 1e-5


def test_what_no_anchor_sees_is_grey_and_hidden():
    away = looking_down(0.5)
    away[0, 3] = -30.0  # 30 m aside
    found = sweep(views(away), SIZE)
    assert not found[..., :3, :, :].any()
    assert (found[..., 3, :, :] == -1).all()


def test_unknown_depth_is_hidden_and_keeps_its_colour():
    seen = views(looking_down(0.5))
    seen.depth[:] = 0
    found = sweep(seen, SIZE)
    assert (found[..., 3, :, :] == -1).all() and found[..., :3, :, :].any()


def beside_the_tool(degrees: float, aside: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(end effector in the world, world-to-camera): a tool that points down and, `aside` metres
    beside it, a camera that looks down too, tilted towards it."""
    tool = torch.diag(torch.tensor([1.0, -1, -1, 1]))
    tool[:3, 3] = torch.tensor([0.4, 0.1, 0.5])
    tilt = torch.deg2rad(torch.tensor(degrees))
    hand = torch.eye(4)  # end effector <- camera
    c, s = torch.cos(tilt), torch.sin(tilt)
    hand[:3, :3] = torch.stack([torch.stack([c, 0 * c, s]), torch.tensor([0.0, 1, 0]),
                                torch.stack([-s, 0 * c, c])])  # fmt: skip
    hand[0, 3] = -aside
    return tool, torch.linalg.inv(tool @ hand)


def places(planes: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """[M, 2] metres along and across the tool at pixels [M, 2], between the nearest ones."""
    size = torch.tensor([planes.shape[-1], planes.shape[-2]])
    grid = (pixels + 0.5) / size * 2 - 1
    found = torch.nn.functional.grid_sample(planes[None, :2], grid[None, None], align_corners=False)
    return found[0, :, 0].T / 10


@pytest.mark.parametrize("aside", [0.06, 0.09])
def test_a_fingertip_has_its_place_on_the_tool_s_plane_however_the_camera_is_mounted(aside):
    camera = torch.tensor([[60.0, 0, 31.5], [0, 60, 23.5], [0, 0, 1]])
    tool, hand = beside_the_tool(25, aside)
    wanted = torch.tensor([[0.17, 0.0], [0.2, 0.04], [0.2, -0.04], [0.25, 0.02]])
    # The tool's x faces away from the camera, so across it is along y.
    points = torch.stack([torch.zeros(4), wanted[:, 1], wanted[:, 0]], -1)
    world = points @ tool[:3, :3].T + tool[:3, 3]
    pixels, z = project(world, camera, hand)
    assert (z > 0.05).all()
    planes = tool_planes(camera[None], hand[None], tool[None], (48, 64))[0]
    assert planes.shape == (TOOL, 48, 64)
    found = places(planes, pixels)
    assert (found[:, 0] - wanted[:, 0]).abs().max() < 0.002
    sign = torch.sign(found[1, 1])
    assert (sign * found[:, 1] - wanted[:, 1]).abs().max() < 0.002


def test_the_waves_are_of_the_places():
    tool, hand = beside_the_tool(25, 0.08)
    planes = tool_planes(K[None], hand[None], tool[None], SIZE)[0]
    along, across = planes[0] / 10, planes[1] / 10
    for number, wave in enumerate(WAVES):
        for offset, place in ((0, along), (2, across)):
            at = 3 + 4 * number + offset
            angle = 2 * torch.pi * place / wave
            torch.testing.assert_close(planes[at], torch.sin(angle), atol=1e-4, rtol=0)
            torch.testing.assert_close(planes[at + 1], torch.cos(angle), atol=1e-4, rtol=0)
    away = tool_planes(K[None], beside_the_tool(-100, 0.08)[1][None], tool[None], SIZE)[0]
    assert not away[:3, -1].any()  # rays that leave the tool behind meet nothing

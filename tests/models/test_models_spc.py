"""The SPC loss where it is easy to be wrong."""

import pytest
import torch
from wristaugment.models.geometry import project
from wristaugment.models.spc import FORMS, spc_loss

SIZE = (60, 80)
K = torch.tensor([[70.0, 0, 40], [0, 70, 30], [0, 0, 1]])[None]


def scene(seed: int = 0, n: int = 40):
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(1, n, 3, generator=generator) - 0.5
    points[..., 2] += 1.5
    pixels, _ = project(points, K, torch.eye(4)[None])
    return points, pixels, torch.ones(1, n, dtype=torch.bool)


def shifted(z: float = 0.0, x: float = 0.0) -> torch.Tensor:
    pose = torch.eye(4)[None].clone()
    pose[0, 0, 3], pose[0, 2, 3] = x, z
    return pose


def test_the_true_pose_costs_nothing():
    found = spc_loss(*scene(), K, shifted(), SIZE)
    assert found.loss < 1e-8 and found.front_share == 1


def test_matches_the_formula():
    points, pixels, valid = scene()
    pose = shifted(z=-1.4, x=0.02)  # some points in front, some behind
    z = points[0, :, 2] - 1.4
    uv = (points[0, :, :2] + torch.tensor([0.02, 0])) / z.clamp_min(0.01)[:, None]
    uv = uv * 70 + torch.tensor([40.0, 30])
    front = z > 0
    expected_u = (uv - pixels[0]).square().sum(-1)[front].mean() / (60**2 + 80**2)
    expected_depth = (-z[~front]).mean()
    found = spc_loss(points, pixels, valid, K, pose, SIZE, lambda_u=2, lambda_depth=3)
    torch.testing.assert_close(found.reprojection, expected_u)
    torch.testing.assert_close(found.behind, expected_depth)
    torch.testing.assert_close(found.loss, 2 * expected_u + 3 * expected_depth)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("z", [-5.0, 0.0])
def test_none_in_front_or_none_behind_is_finite_and_has_a_gradient(form, z):
    pose = shifted(z=z, x=0.1).requires_grad_()
    found = spc_loss(*scene(), K, pose, SIZE, form=form)
    found.loss.backward()
    assert torch.isfinite(found.loss) and torch.isfinite(pose.grad).all()
    assert pose.grad.abs().max() > 0
    assert found.front_share == (0.0 if z < 0 else 1.0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("z", [0.0, 1e-30, 1e-4])
def test_points_on_the_plane_of_the_camera_are_finite(form, z):
    points, pixels, valid = scene()
    points[..., 2] = z
    pose = shifted().requires_grad_()
    found = spc_loss(points, pixels, valid, K, pose, SIZE, form=form)
    found.loss.backward()
    assert torch.isfinite(found.loss) and torch.isfinite(pose.grad).all()
    assert found.front_share == (1.0 if z else 0.0)


@pytest.mark.parametrize("form", FORMS)
def test_masked_correspondences_have_no_say(form):
    points, pixels, valid = scene()
    wild = points.clone()
    wild[0, 5] = torch.tensor([float("inf"), 0.0, 1e-30])
    wild[0, 6, 2] = -50
    pixels[0, 6] = float("nan")  # as a tracker may give where it sees nothing
    valid[0, 5:7] = False
    pose = shifted(x=0.05).requires_grad_()
    found = spc_loss(wild, pixels, valid, K, pose, SIZE, form=form)
    found.loss.backward()
    assert torch.isfinite(pose.grad).all()
    keep = [i for i in range(points.shape[1]) if i not in (5, 6)]
    expected = spc_loss(points[:, keep], pixels[:, keep], valid[:, keep], K, pose, SIZE, form=form)
    torch.testing.assert_close(found.loss, expected.loss)
    pose.grad = None
    none = spc_loss(points, pixels, torch.zeros_like(valid), K, pose, SIZE, form=form)
    none.loss.backward()
    assert none.loss == 0 and not pose.grad.any()


def in_double(*values):
    return [v.double() if v.is_floating_point() else v for v in values]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("z", [0.0, -1.45, -5.0])
def test_gradient_agrees_with_finite_differences(form, z):
    points, pixels, valid, intrinsics = in_double(*scene(n=10), K)
    pose = shifted(z=z, x=0.03).double()
    depth = points[..., 2] + z
    assert (depth.abs() > 1e-3).all()  # on the plane itself the loss has a step
    valid[0, 3] = False

    def loss(pose, points):
        return spc_loss(
            points, pixels, valid, intrinsics, pose, SIZE, form=form, lambda_u=2, lambda_depth=3
        ).loss

    inputs = (pose.requires_grad_(), points.requires_grad_())
    assert loss(*inputs).dtype == torch.float64
    assert torch.autograd.gradcheck(loss, inputs)


def plainly(points, pixels, valid, pose, form):
    """(L_u, L_depth), one point at a time."""
    front, back, diagonal = [], [], SIZE[0] ** 2 + SIZE[1] ** 2
    for point, pixel, counts in zip(points[0], pixels[0], valid[0], strict=True):
        if not counts:
            continue
        x, y, z = (pose[0, :3, :3] @ point + pose[0, :3, 3]).tolist()
        if z <= 0:
            back.append(-z)
            continue
        z = max(z, 0.01)
        du = 70 * x / z + 40 - float(pixel[0])
        dv = 70 * y / z + 30 - float(pixel[1])
        mse = (du * du + dv * dv) / 2
        scale = {"paper": 1, "scaled": 2 / diagonal, "official": 30 / diagonal}
        front.append(mse * scale[form])
    if form == "official":
        both = max(1, len(front) + len(back))
        return sum(front) / both, sum(back) / both
    return sum(front) / max(1, len(front)), sum(back) / max(1, len(back))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("z", [0.0, -1.4, -5.0])
def test_every_form_agrees_with_a_plain_loop(form, z):
    points, pixels, valid = in_double(*scene(3))
    valid[0, ::5] = False
    pose = shifted(z=z, x=0.02).double()
    found = spc_loss(points, pixels, valid, K, pose, SIZE, form=form, lambda_u=2, lambda_depth=3)
    u, depth = plainly(points, pixels, valid, pose, form)
    assert found.reprojection.item() == pytest.approx(u, rel=1e-6)
    assert found.behind.item() == pytest.approx(depth, rel=1e-6)
    assert found.loss.item() == pytest.approx(2 * u + 3 * depth, rel=1e-6)


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="scaled, paper, official; found l1"):
        spc_loss(*scene(), K, shifted(), SIZE, form="l1")


@pytest.mark.parametrize("form", FORMS)
def test_autocast_changes_nothing(form):
    inputs = (*scene(), K)
    poses = [shifted(z=-1.4, x=0.02).requires_grad_() for _ in range(2)]
    plain = spc_loss(*inputs, poses[0], SIZE, form=form).loss
    plain.backward()
    with torch.autocast("cpu", torch.bfloat16):
        found = spc_loss(*inputs, poses[1], SIZE, form=form).loss
    found.backward()
    assert found.dtype == torch.float32
    assert torch.equal(found, plain) and torch.equal(poses[0].grad, poses[1].grad)


def test_half_precision_inputs_are_computed_in_full():
    points, pixels, valid = scene()
    half = spc_loss(points.bfloat16(), pixels, valid, K, shifted(x=0.02).bfloat16(), SIZE)
    rounded = points.bfloat16().float(), pixels, valid, K, shifted(x=0.02).bfloat16().float()
    assert half.loss.dtype == torch.float32
    assert torch.equal(half.loss, spc_loss(*rounded, SIZE).loss)


@pytest.mark.parametrize("form", FORMS)
def test_samples_of_a_batch_have_their_own_camera(form):
    cameras = torch.tensor(
        [[[70.0, 0, 40], [0, 70, 30], [0, 0, 1]], [[50.0, 0, 31], [0, 90, 37], [0, 0, 1]]]
    )
    points = torch.cat([scene(1)[0], scene(2)[0]])
    truth = torch.cat([shifted(z=0.2), shifted(x=-0.3)])
    pixels, z = project(points, cameras, truth)
    valid = torch.ones(2, 40, dtype=torch.bool)
    assert (z > 0).all()
    assert spc_loss(points, pixels, valid, cameras, truth, SIZE, form=form).loss < 1e-5
    swapped = spc_loss(points, pixels, valid, cameras.flip(0), truth, SIZE, form=form)
    assert swapped.loss > 1e-3
    # The means are over the points of all samples, however they are spread.
    pose = torch.cat([shifted(z=-1.4), shifted(x=0.1)])
    valid[0, ::3] = False
    found = spc_loss(points, pixels, valid, cameras, pose, SIZE, form=form)
    parts = [
        spc_loss(points[i:j], pixels[i:j], valid[i:j], cameras[i:j], pose[i:j], SIZE, form=form)
        for i, j in ((0, 1), (1, 2))
    ]
    counts = [valid[i].sum() for i in range(2)]
    front = [n * part.front_share for n, part in zip(counts, parts, strict=True)]
    weights = counts if form == "official" else front
    expected = sum(n * part.reprojection for n, part in zip(weights, parts, strict=True))
    torch.testing.assert_close(found.reprojection, expected / sum(weights))


@pytest.mark.parametrize("form", FORMS)
def test_a_sample_that_nothing_is_known_of_has_no_say(form):
    points, pixels, valid = (x.repeat(2, *[1] * (x.ndim - 1)) for x in scene())
    cameras = K.repeat(2, 1, 1)
    points[1] = pixels[1] = cameras[1] = float("nan")
    valid[1] = False
    pose = shifted(z=-1.4, x=0.05).repeat(2, 1, 1).requires_grad_()
    found = spc_loss(points, pixels, valid, cameras, pose, SIZE, form=form)
    found.loss.backward()
    alone = spc_loss(*scene(), K, pose[:1], SIZE, form=form)
    torch.testing.assert_close(found.loss, alone.loss)
    assert pose.grad.isfinite().all() and pose.grad[0].any() and not pose.grad[1].any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("z", [-1.4, -5.0, -1.0])
def test_a_small_step_down_the_gradient_lowers_the_loss(form, z):
    inputs, pose = (*scene(), K), shifted(z=z, x=0.1).requires_grad_()
    before = spc_loss(*inputs, pose, SIZE, form=form)
    (gradient,) = torch.autograd.grad(before.loss, pose)
    step = pose.detach() - 1e-4 * gradient / gradient.norm()
    after = spc_loss(*inputs, step, SIZE, form=form)
    assert after.loss < before.loss
    if before.front_share == 0:  # all behind: towards the front, which is where z grows
        assert gradient[0, 2, 3] < 0 and after.behind < before.behind


@pytest.mark.parametrize("form", FORMS)
def test_gradient_agrees_with_finite_differences_closer_than_near(form):
    points, pixels, valid, intrinsics = in_double(*scene(n=6), K)
    points[..., 2] = torch.tensor([0.002, 0.004, 0.006, 0.008, -0.002, 0.5], dtype=torch.float64)
    pose = shifted(x=0.03).double().requires_grad_()

    def loss(pose):
        return spc_loss(points, pixels, valid, intrinsics, pose, SIZE, form=form).loss

    assert torch.autograd.gradcheck(loss, (pose,), eps=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_no_square_overflows_in_half_precision(dtype):
    points, pixels, valid = scene()
    large = K * torch.tensor([20.0, 20, 1])[:, None]  # errors of 500 pixels, squares of 250,000
    poses = [shifted(x=0.4).requires_grad_() for _ in range(2)]
    with torch.autocast("cpu", dtype):
        found = spc_loss(points.to(dtype), pixels, valid, large, poses[0], SIZE, form="paper")
    found.loss.backward()
    assert found.loss.dtype == torch.float32 and found.loss > 65504
    rounded = points.to(dtype).float()
    expected = spc_loss(rounded, pixels, valid, large, poses[1], SIZE, form="paper")
    expected.loss.backward()
    assert torch.equal(found.loss, expected.loss)
    assert torch.equal(poses[0].grad, poses[1].grad) and poses[0].grad.isfinite().all()

"""Correspondences: which tracks count, what is read where they lead, and the whole chain."""

from dataclasses import replace

import pytest
import torch
from wristaugment.models.correspond import (
    Matches,
    Matching,
    anchor_points,
    correspond,
    kept_tracks,
    lift,
    query_grid,
    read_heads,
    track_wrist,
)
from wristaugment.models.geometry import decode_pose, encode_pose, project, transform, unproject
from wristaugment.models.spc import spc_loss
from wristaugment.models.vggt import VGGT, Geometry, VGGTConfig

SIZE = (56, 70)
CONFIG = VGGTConfig(
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
    heads_built=("camera", "depth", "point", "track", "wrist"),
    wrist={"dim": 32, "depth": 1, "heads": 2, "queries": 2},
    track={
        "features": 8, "hidden": 16, "depth": 1, "heads": 2, "virtual": 4, "levels": 3,
        "radius": 1, "iterations": 2,
    },
)  # fmt: skip


@pytest.fixture(scope="module")
def network() -> VGGT:
    torch.manual_seed(0)
    return VGGT(CONFIG).eval()


def test_queries_are_the_centres_of_equal_cells():
    grid = query_grid((4, 6), (2, 3))
    assert grid.tolist() == [[0.5, 0.5], [2.5, 0.5], [4.5, 0.5], [0.5, 2.5], [2.5, 2.5], [4.5, 2.5]]
    # As many cells as pixels are the pixels; and the grid is centred on the image.
    assert query_grid((2, 2), (2, 2)).tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]]
    centre = query_grid((294, 518), (32, 32)).mean(0)
    torch.testing.assert_close(centre, torch.tensor([258.5, 146.5]))


def test_a_track_counts_where_both_views_are_sure_and_it_is_inside():
    places = torch.tensor(
        [[0.0, 0], [69, 55], [-0.01, 3], [69.2, 3], [3, 55.5], [float("nan"), 3], [5, 5], [5, 5]]
    ).expand(1, 2, -1, -1)
    visibility, confidence = torch.full((1, 3, 8), 0.9), torch.full((1, 3, 8), 0.9)
    visibility[0, 0, 6] = 0.5  # the wrist's own; above, not from
    confidence[0, 2, 7] = 0.1  # of the second anchor alone
    kept = kept_tracks(places, visibility, confidence, SIZE, Matching())
    assert kept[0, 0].tolist() == [True, True, False, False, False, False, False, True]
    assert kept[0, 1].tolist() == [True, True, False, False, False, False, False, False]
    loose = Matching(visibility=0.4, confidence=0.05)
    assert kept_tracks(places, visibility, confidence, SIZE, loose)[0, 1, 6:].all()


def plain(plane, x, y):
    """Bilinear inside the map."""
    x0, y0 = min(int(x), plane.shape[1] - 2), min(int(y), plane.shape[0] - 2)
    a, b = x - x0, y - y0
    top = plane[y0, x0] * (1 - a) + plane[y0, x0 + 1] * a
    return top * (1 - b) + (plane[y0 + 1, x0] * (1 - a) + plane[y0 + 1, x0 + 1] * a) * b


def tracked(places, kept=None, sureness=None) -> Matches:
    B, S, N = places.shape[:3]
    pixels = torch.arange(2 * N).view(1, N, 2).float().expand(B, -1, -1)
    kept = torch.ones(B, S, N, dtype=torch.bool) if kept is None else kept
    return Matches(pixels, places, kept, torch.ones(B, S, N) if sureness is None else sureness)


def test_lifting_is_bilinear_up_to_the_border():
    torch.manual_seed(1)
    points = torch.randn(2, 2, 5, 7, 3)
    places = torch.rand(2, 2, 6, 2) * torch.tensor([6.0, 4])
    places[0, 0, 0], places[0, 0, 1] = torch.tensor([6.0, 4]), torch.tensor([0.0, 0])
    found = lift(points, tracked(places))
    assert found.points.shape == (2, 12, 3) and found.valid.all()
    for b in range(2):
        for s in range(2):
            for n in range(6):
                expected = plain(points[b, s], *places[b, s, n].tolist())
                torch.testing.assert_close(
                    found.points[b, 6 * s + n], expected, rtol=1e-4, atol=1e-5
                )
                assert torch.equal(found.pixels[b, 6 * s + n], torch.tensor([2.0 * n, 2 * n + 1]))
    half = lift(points.bfloat16(), tracked(places))
    torch.testing.assert_close(half.points, lift(points.bfloat16().float(), tracked(places)).points)


def test_what_is_not_kept_or_no_number_does_not_count():
    points = torch.ones(1, 1, 5, 7, 3)
    points[0, 0, 2, 3, 1] = float("inf")
    places = torch.tensor([[[[0.0, 0], [3, 2], [float("nan"), 1], [900, 900]]]])
    kept = torch.tensor([[[True, True, False, False]]])
    found = lift(points, tracked(places, kept))
    assert found.valid.tolist() == [[True, False, False, False]]
    assert found.points[0, 2:].isfinite().all()


def test_the_surest_anchor_that_sees_a_query_lifts_it():
    points = torch.stack([torch.full((5, 7, 3), float(s)) for s in range(3)])[None]
    kept = torch.tensor([[[1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]]], dtype=torch.bool)
    sureness = torch.tensor([[[0.5, 0.9, 0.9, 0.9], [0.4, 0.8, 0.1, 0.9], [0.7, 1.0, 1.0, 0.9]]])
    found = lift(points, tracked(torch.ones(1, 3, 4, 2), kept, sureness), "surest")
    assert found.valid.tolist() == [[True, True, True, False]]
    assert found.points[0, :3, 0].tolist() == [2, 0, 1]
    assert found.pixels[0, :, 0].tolist() == [0, 2, 4, 6]


def cameras():
    """Two anchors at size SIZE that see the plane z = 2 of the first: K, poses, depths."""
    K = torch.tensor([[60.0, 0, 35], [0, 60, 28], [0, 0, 1]]).expand(1, 2, 3, 3)
    angle = torch.tensor(0.3)
    pose = torch.eye(4).repeat(1, 2, 1, 1)
    pose[0, 1, 0, 0] = pose[0, 1, 2, 2] = angle.cos()
    pose[0, 1, 0, 2], pose[0, 1, 2, 0] = angle.sin(), -angle.sin()
    pose[0, 1, :3, 3] = torch.tensor([0.1, 0.05, 0.2])
    rays = unproject(torch.ones(1, 2, *SIZE), K, torch.eye(4).expand(1, 2, 4, 4))
    R, t = pose[..., :3, :3], pose[..., :3, 3]
    along = torch.einsum("bsj,bshwj->bshw", R[..., 2], rays)  # z of the ray in the first's frame
    start = -torch.einsum("bsj,bsj->bs", R[..., 2], t)
    return K, pose, (2 - start[..., None, None]) / along


@pytest.mark.parametrize("known", [False, True])
def test_depth_is_unprojected_into_the_first_anchor(known):
    K, pose, depth = cameras()
    world = torch.eye(4)
    world[:3, 3] = torch.tensor([3.0, -1, 2])
    encoding = encode_pose(pose, K, SIZE)[None]
    if known:  # whatever the head says
        encoding = torch.zeros_like(encoding) + torch.tensor([1.0, 0, 0, 0, 0, 0, 1, 1, 1])
    matching = Matching(lift="depth", known_cameras=known)
    assert matching.heads == ("depth", "camera")
    geometry = Geometry(cameras=encoding, depth=depth)
    found = anchor_points(geometry, SIZE, matching, K, pose @ world)  # any world frame will do
    assert found.shape == (1, 2, *SIZE, 3)
    torch.testing.assert_close(found[..., 2], torch.full((1, 2, *SIZE), 2.0), rtol=0, atol=1e-4)
    # Both anchors see one place where they see one point.
    seen, _ = project(found[0, 0].flatten(0, 1), K[0, 1], pose[0, 1])
    x, y = seen[1234].tolist()
    torch.testing.assert_close(
        plain(found[0, 1], x, y), found[0, 0].flatten(0, 1)[1234], rtol=0, atol=1e-3
    )


def test_true_tracks_lead_the_spc_loss_to_the_true_pose():
    K, pose, depth = cameras()
    points = anchor_points(
        Geometry(cameras=encode_pose(pose, K, SIZE)[None], depth=depth), SIZE,
        Matching(lift="depth"),
    )  # fmt: skip
    truth = torch.tensor([[0.1, -0.05, -0.4, 0.05, 0.1, 0.02, 1, 0.86, 1.06]])
    wrist, wrist_K = decode_pose(truth, SIZE)
    # What the wrist sees: points of the first anchor's map, and where both anchors have them.
    picked = points[:, 0, 4:52:6, 4:66:6].flatten(1, 2)
    pixels, _ = project(picked, wrist_K, wrist)
    places = torch.stack([project(picked, K[:, s], pose[:, s])[0] for s in range(2)], dim=1)
    ones = torch.ones(1, 3, picked.shape[1])
    kept = kept_tracks(places, ones, ones, SIZE, Matching())
    assert kept[0, 1].float().mean() > 0.5 and kept[0, 0].all()
    found = lift(points, Matches(pixels, places, kept, ones[:, 1:]))

    def loss(encoding):
        got, _ = decode_pose(encoding, SIZE)
        return spc_loss(found.points, found.pixels, found.valid, wrist_K, got, SIZE).loss

    assert loss(truth) < 1e-6
    encoding = (truth + torch.tensor([0.2, 0.1, -0.2, 0, 0, 0.1, 0, 0, 0])).requires_grad_()
    optimizer = torch.optim.LBFGS([encoding], max_iter=200, line_search_fn="strong_wolfe")

    def evaluate():
        optimizer.zero_grad()
        value = 1e4 * loss(encoding)
        value.backward()
        return value

    optimizer.step(evaluate)
    reached, _ = decode_pose(encoding.detach(), SIZE)
    torch.testing.assert_close(reached, wrist, rtol=0, atol=0.02)
    assert (transform(reached, picked) - transform(wrist, picked)).abs().max() < 0.03


@pytest.mark.parametrize("how", [{}, {"lift": "depth"}, {"choose": "surest"}])
def test_the_whole_chain(network, how):
    torch.manual_seed(2)
    wrist, anchors = torch.rand(2, 3, *SIZE), torch.rand(2, 2, 3, *SIZE)
    matching = Matching(grid=(3, 4), visibility=0.0, confidence=0.0, **how)
    found = correspond(network, wrist, anchors, matching)
    M = 12 if how.get("choose") == "surest" else 24
    assert found.points.shape == (2, M, 3) and found.pixels.shape == (2, M, 2)
    assert found.valid.shape == (2, M) and found.valid.any()
    assert found.points.isfinite().all() and not found.points.requires_grad
    assert torch.equal(found.pixels[0, :12], query_grid(SIZE, (3, 4)))
    # The point map is of a pass that has not seen the wrist picture.
    geometry = network(anchors, heads=matching.heads)
    again = correspond(network, wrist, anchors, matching, geometry=geometry)
    assert torch.equal(again.points, found.points)
    other = correspond(network, 1 - wrist, anchors, matching, geometry=geometry)
    assert not torch.equal(other.points, found.points)
    none = correspond(network, wrist, anchors, replace(matching, confidence=1.0))
    assert not none.valid.any()


def test_tracks_are_computed_in_full_under_autocast(network):
    torch.manual_seed(3)
    wrist, anchors = torch.rand(1, 3, *SIZE), torch.rand(1, 1, 3, *SIZE)
    with torch.autocast("cpu", torch.bfloat16):
        found = track_wrist(network, wrist, anchors, Matching(grid=(2, 2)))
    assert found.places.dtype == torch.float32 and found.places.isfinite().all()
    whole = track_wrist(network, wrist, anchors, Matching(grid=(2, 2)))
    assert (found.places - whole.places).abs().max() < 2


def test_heads_are_read_in_full_under_autocast(network):
    torch.manual_seed(3)
    anchors = torch.rand(1, 2, 3, *SIZE)
    tokens, heads = network.aggregate(anchors), ("camera", "depth", "point")
    whole = read_heads(network, anchors, tokens, heads)
    with torch.autocast("cpu", torch.bfloat16):
        found = read_heads(network, anchors, tokens, heads)
        half = {layer: value.bfloat16() for layer, value in tokens.items()}
        rounded = read_heads(network, anchors, half, heads)
    for name in ("cameras", "depth", "points"):
        assert torch.equal(getattr(found, name), getattr(whole, name))
        assert getattr(rounded, name).dtype == torch.float32


def test_images_of_two_sizes_and_absent_heads_are_refused(network):
    with pytest.raises(ValueError, match="56x70 and 42x70"):
        correspond(network, torch.rand(1, 3, *SIZE), torch.rand(1, 2, 3, 42, 70))
    bare = VGGT(replace(CONFIG, heads_built=("camera", "wrist")))
    with pytest.raises(ValueError, match="without its track head"):
        correspond(bare, torch.rand(1, 3, *SIZE), torch.rand(1, 2, 3, *SIZE))
    with pytest.raises(ValueError, match="choose is all or surest; found best"):
        Matching(choose="best")

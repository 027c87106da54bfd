"""The shapes: closed surfaces with the right volume, and a simplification that keeps them."""

import numpy as np
import pytest
from wristaugment.simulation.meshes import Mesh, box, cluster, merge, revolve, tube
from wristaugment.simulation.textures import surface, wrap


def volume(mesh: Mesh) -> float:
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    return float(np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6)


def open_edges(mesh: Mesh) -> int:
    """Edges that are not shared by two triangles which turn the same way round."""
    edges = np.concatenate([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]])
    there = {tuple(edge) for edge in edges.tolist()}
    return sum((b, a) not in there for a, b in there)


def test_revolved_cylinder_is_closed_and_has_its_volume():
    mesh = revolve(np.array([(0, 0), (0.03, 0), (0.03, 0.1), (0, 0.1)]), sides=96)
    assert open_edges(mesh) == 0
    assert volume(mesh) == pytest.approx(np.pi * 0.03**2 * 0.1, rel=2e-3)


def test_revolved_vessel_is_hollow():
    solid = np.pi * 0.03**2 * 0.1
    profile = [(0, 0), (0.03, 0), (0.03, 0.1), (0.026, 0.1), (0.026, 0.006), (0, 0.006)]
    mesh = revolve(np.array(profile), sides=96)
    assert open_edges(mesh) == 0
    hollow = np.pi * 0.026**2 * 0.094
    assert volume(mesh) == pytest.approx(solid - hollow, rel=5e-3)


def test_box_has_its_volume_and_place():
    mesh = box(np.array([0.2, 0.1, 0.04]), np.array([1.0, 2.0, 3.0]))
    assert volume(mesh) == pytest.approx(0.2 * 0.1 * 0.04)
    assert np.allclose(mesh.vertices.mean(0), [1, 2, 3])


def test_tube_shows_its_outside():
    turn = np.linspace(-np.pi / 2, np.pi / 2, 9)
    path = np.c_[0.03 * np.cos(turn), np.zeros(9), 0.03 * np.sin(turn)]
    assert volume(tube(path, 0.004)) > 0


def test_merge_keeps_all_triangles_apart():
    one = box(np.ones(3), np.zeros(3))
    both = merge([one, box(np.ones(3), np.array([5.0, 0, 0]))])
    assert len(both.faces) == 2 * len(one.faces)
    assert volume(both) == pytest.approx(2.0)


def test_clustering_has_far_fewer_triangles_and_nearly_the_same_shape():
    angles = np.linspace(0, np.pi, 200)
    ball = revolve(np.c_[0.05 * np.sin(angles), -0.05 * np.cos(angles)].round(9), sides=300)
    small = cluster(ball, 0.005)
    assert len(small.faces) < len(ball.faces) / 20
    assert volume(small) == pytest.approx(volume(ball), rel=0.03)
    assert small.faces.max() == len(small.vertices) - 1
    radii = np.linalg.norm(small.vertices, axis=1)
    assert np.all(abs(radii - 0.05) < 0.0025)


def test_clustering_drops_triangles_that_have_become_one():
    quad = box(np.array([0.001, 0.001, 0.001]), np.full(3, 0.5))
    assert len(cluster(quad, 1.0).faces) == 0


@pytest.mark.parametrize("make", [surface, wrap])
def test_textures_follow_from_their_seed_and_keep_to_their_colour(make):
    colour = np.array([0.8, 0.2, 0.1])
    for seed in range(12):
        picture = make(np.random.default_rng(seed), colour)
        assert picture.dtype == np.uint8 and picture.shape[2] == 3
        assert np.array_equal(picture, make(np.random.default_rng(seed), colour))
        red, green, blue = picture.reshape(-1, 3).mean(0)
        assert red > green and red > blue

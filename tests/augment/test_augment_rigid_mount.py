"""The mount of a hand camera, found from synthetic motions whose mount is known."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from wristaugment.augment import rigid_mount
from wristaugment.augment.assess import pose_error
from wristaugment.augment.rigid_mount import (
    SAME,
    Similarity,
    Track,
    Untold,
    locate,
    rigid_pose,
    solve,
)

MOUNT = np.eye(4)
MOUNT[:3, :3] = Rotation.from_euler("xyz", [20, -10, 135], degrees=True).as_matrix()
MOUNT[:3, 3] = [0.06, -0.05, 0.03]


def motion(rng, steps=40, turn=(25, 25, 40), shift=(0.15, 0.2, 0.1), axis=None):
    """[T, 4, 4] a hand that looks down, turning by `turn` degrees and moving by `shift` metres."""
    waves = np.sin(np.linspace(0, 2 * np.pi, steps)[:, None] * rng.uniform(0.5, 1.5, 6)
                   + rng.uniform(0, 6, 6))  # fmt: skip
    eef = np.tile(np.eye(4), (steps, 1, 1))
    if axis is None:
        turned = Rotation.from_euler("xyz", waves[:, :3] * turn, degrees=True)
    else:
        turned = Rotation.from_rotvec(np.radians(waves[:, :1] * 40) * axis)
    eef[:, :3, :3] = (Rotation.from_euler("x", 180, degrees=True) * turned).as_matrix()
    eef[:, :3, 3] = [0.5, 0, 0.3] + waves[:, 3:] * shift
    return eef


def world(rng):
    return Similarity(
        float(np.exp(rng.uniform(-1, 1))), Rotation.from_quat(rng.normal(size=4)).as_matrix(),
        rng.normal(size=3),
    )  # fmt: skip


def seen(rng, eef, of, degrees=0.0, metres=0.0, outliers=0.0):
    """Predicted poses: the true ones, disturbed frame by frame, some of them quite wrong."""
    pose = rigid_pose(eef, MOUNT, of)
    n = len(pose)
    wrong = rng.uniform(size=n) < outliers
    angle = np.where(wrong, 60, degrees / 3**0.5)[:, None] * rng.normal(size=(n, 3))
    length = np.where(wrong, 0.5, metres / 3**0.5)[:, None] * rng.normal(size=(n, 3))
    inverse = np.linalg.inv(pose)
    inverse[:, :3, 3] += of.scale * length
    inverse[:, :3, :3] @= Rotation.from_rotvec(np.radians(angle)).as_matrix()
    return np.linalg.inv(inverse)


def difference(found, true=MOUNT):
    degrees, centimetres = pose_error(np.linalg.inv(found)[None], np.linalg.inv(true)[None])
    return float(degrees[0]), float(centimetres[0])


def many(rng, count=8, base=False, **noise):
    worlds = [SAME if base else world(rng) for _ in range(count)]
    motions = [motion(rng) for _ in worlds]
    both = zip(motions, worlds, strict=True)
    return [Track(e, seen(rng, e, w, **noise), base) for e, w in both], worlds


@pytest.mark.parametrize("count", [1, 5])
def test_exact_motions_give_the_exact_mount_and_worlds(count):
    tracks, worlds = many(np.random.default_rng(count), count)
    fit = solve(tracks)
    degrees, centimetres = difference(fit.mount)
    assert degrees < 1e-3 and centimetres < 1e-3
    for found, true in zip(fit.worlds, worlds, strict=True):
        assert found is not None
        assert found.scale == pytest.approx(true.scale, rel=1e-4)
        np.testing.assert_allclose(found.rotation, true.rotation, atol=1e-4)
        np.testing.assert_allclose(found.translation, true.translation, atol=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_noise_and_outliers_leave_less_than_a_degree_and_a_centimetre(seed):
    rng = np.random.default_rng(seed)
    tracks, worlds = many(rng, 10, degrees=6, metres=0.02, outliers=0.2)
    fit = solve(tracks)
    degrees, centimetres = difference(fit.mount)
    assert degrees < 1.0 and centimetres < 1.0
    # The standard errors are what the errors are, give or take.
    assert degrees < 3.5 * fit.rotation_error and centimetres < 350 * fit.offset_error
    assert fit.rotation_error < 1.0 and fit.offset_error < 0.01
    own, rigid = [], []
    for track, found, true in zip(tracks, fit.worlds, worlds, strict=True):
        truth = rigid_pose(track.eef, MOUNT, true)
        assert found is not None
        own.append(pose_error(track.camera, truth)[0])
        rigid.append(pose_error(rigid_pose(track.eef, fit.mount, found), truth)[0])
    assert np.median(np.concatenate(rigid)) < np.median(np.concatenate(own)) / 2
    kept = np.concatenate(fit.inliers)
    assert 0.7 < kept.mean() < 0.9  # four fifths are no outliers


def test_known_worlds_tell_the_mount_without_any_motion():
    rng = np.random.default_rng(0)
    still = [np.repeat(motion(rng)[:1], 20, axis=0) for _ in range(30)]
    tracks = [Track(e, seen(rng, e, SAME, 10, 0.03, 0.1), True) for e in still]
    fit = solve(tracks)
    degrees, centimetres = difference(fit.mount)
    assert degrees < 1.5 and centimetres < 0.5
    assert all(found is SAME for found in fit.worlds)


def test_standard_errors_are_right_where_an_episode_is_wrong_throughout(monkeypatch):
    """A network's errors are alike within an episode; many frames must not make them look small."""
    monkeypatch.setattr(rigid_mount, "MAX_ROTATION", 180.0)
    errors, said = [], []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        tracks = []
        for _ in range(6):
            eef = motion(rng, turn=(1, 1, 1))
            wrong = np.eye(4)
            wrong[:3, :3] = Rotation.from_rotvec(np.radians(rng.normal(size=3) * 20)).as_matrix()
            tracks.append(Track(eef, wrong @ seen(rng, eef, SAME, 1, 0.01), True))
        fit = solve(tracks)
        errors.append(difference(fit.mount)[0])
        said.append(fit.rotation_error)
    one_axis = np.sqrt(np.square(errors).mean() / 3)
    assert 0.6 < one_axis / np.mean(said) < 1.6
    assert one_axis > 5  # six voices with 20 degrees each; 240 would be at 1.3


def test_a_start_is_only_a_start():
    rng = np.random.default_rng(1)
    tracks, _ = many(rng, 4, degrees=1, metres=0.005)
    off = MOUNT.copy()
    off[:3, 3] += 0.1
    off[:3, :3] @= Rotation.from_euler("y", 15, degrees=True).as_matrix()
    np.testing.assert_allclose(solve(tracks, start=off).mount, solve(tracks).mount, atol=1e-3)


@pytest.mark.parametrize(
    ("motions", "said"),
    [
        ({"turn": (0, 0, 0), "shift": (0, 0, 0)}, "stands still"),
        ({"turn": (0, 0, 0)}, "its place along"),
        ({"axis": np.array([0.0, 0, 1])}, "its place along \\[0.00, 0.00, 1.00\\]"),
        ({"turn": (0, 0, 0), "shift": (0, 0, 0.2)}, "its rotation about .*its place along"),
    ],
    ids=["still", "no turn", "one axis", "one line"],
)
@pytest.mark.parametrize("noise", [0, 1])
def test_what_a_motion_does_not_tell_is_said(motions, said, noise):
    rng = np.random.default_rng(7)
    tracks = []
    for _ in range(6):
        eef = motion(rng, **motions)
        tracks.append(Track(eef, seen(rng, eef, world(rng), 2.0 * noise, 0.005 * noise)))
    with pytest.raises(Untold, match=said):
        solve(tracks)


def test_an_episode_that_stands_still_gets_no_world_and_has_no_say():
    rng = np.random.default_rng(5)
    tracks, _ = many(rng, 4, degrees=2, metres=0.005)
    still = np.repeat(tracks[0].eef[:1], 40, axis=0)
    tracks.insert(1, Track(still, seen(rng, still, world(rng), 2, 0.005)))
    fit = solve(tracks)
    assert [found is None for found in fit.worlds] == [False, True, False, False, False]
    assert len(fit.rotation[1]) == 0
    degrees, centimetres = difference(fit.mount)
    assert degrees < 1 and centimetres < 1


def test_predictions_that_do_not_follow_the_hand_are_refused():
    rng = np.random.default_rng(6)
    tracks, _ = many(rng, 6)
    drifting = []
    for track in tracks:
        other = motion(rng, turn=(3, 3, 3), shift=(0.01, 0.01, 0.01))
        drifting.append(Track(track.eef, seen(rng, other, SAME, 2, 0.02)))
    with pytest.raises(Untold):
        solve(drifting)


def test_a_known_mount_places_one_episode():
    rng = np.random.default_rng(2)
    of = world(rng)
    eef = motion(rng, steps=200)
    camera = seen(rng, eef, of, 5, 0.02, 0.2)
    camera[17] = np.nan
    fit = locate(Track(eef, camera), MOUNT)
    assert fit.worlds[0] is not None
    degrees, centimetres = pose_error(
        rigid_pose(eef, MOUNT, fit.worlds[0]), rigid_pose(eef, MOUNT, of)
    )
    assert np.median(degrees) < 1 and np.median(centimetres / of.scale) < 1
    assert not fit.inliers[0][17]
    with pytest.raises(Untold, match="stands still"):
        locate(Track(eef[:1].repeat(9, axis=0), camera[:9]), MOUNT)

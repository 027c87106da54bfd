"""The metrics against scikit-image, against hand-made cases, and their edges."""

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.spatial.transform import Rotation
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from wristaugment.augment import assess


@pytest.fixture
def pair():
    """Two [3, 40, 56, 3] uint8 streams: smooth pictures, and the same with noise and a shift."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:40, :56]
    tint = np.array([1.0, 0.5, -0.7])
    waves = [np.sin(x / 5 + t)[..., None] + np.cos(y / 4 + t)[..., None] * tint for t in range(3)]
    truth = np.stack([(127 + 50 * w).clip(0, 255) for w in waves]).astype(np.uint8)
    made = np.roll(truth, 1, axis=2).astype(int) + rng.integers(-20, 20, truth.shape)
    return made.clip(0, 255).astype(np.uint8), truth


def test_psnr_agrees_with_scikit_image(pair):
    made, truth = pair
    expected = [
        peak_signal_noise_ratio(b, a, data_range=255) for a, b in zip(made, truth, strict=True)
    ]
    np.testing.assert_allclose(assess.psnr(made, truth), expected, rtol=1e-12)


def test_psnr_of_equal_frames_is_capped_and_others_are_not(pair):
    made, truth = pair
    made = made.copy()
    made[1] = truth[1]
    values = assess.psnr(made, truth)
    assert values[1] == assess.PSNR_CAP
    assert values[0] < 40 and values[2] < 40


def test_ssim_agrees_with_scikit_image(pair):
    made, truth = pair
    expected = [
        structural_similarity(
            b,
            a,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=255,
            channel_axis=-1,
        )
        for a, b in zip(made, truth, strict=True)
    ]
    values = assess.ssim(made, truth)
    np.testing.assert_allclose(values, expected, atol=1e-9)
    assert values.min() > 0.1 and values.max() < 0.95  # the case is neither trivial nor empty


@pytest.mark.parametrize("metric", [assess.psnr, assess.ssim])
def test_frames_that_do_not_fit_are_refused(metric, pair):
    made, truth = pair
    with pytest.raises(ValueError, match="cannot be compared"):
        metric(made[:2], truth)
    with pytest.raises(ValueError, match="uint8"):
        metric(made.astype(np.float32), truth.astype(np.float32))


def test_ssim_refuses_frames_smaller_than_its_window(pair):
    made, truth = pair
    with pytest.raises(ValueError, match="window"):
        assess.ssim(made[:, :10], truth[:, :10])


def test_shrinking_averages_area():
    frames = np.zeros((1, 4, 6, 3), np.uint8)
    frames[0, :2, :3] = 100
    frames[0, 2:, 3:] = [0, 40, 80]
    small = assess.resize_frames(frames, (2, 2))
    assert small.shape == (1, 2, 2, 3) and small.dtype == np.uint8
    assert small[0, 0, 0].tolist() == [100, 100, 100]
    assert small[0, 1, 1].tolist() == [0, 40, 80]
    assert assess.resize_frames(frames, (1, 1))[0, 0, 0].tolist() == [25, 35, 45]


def test_resizing_to_the_same_size_changes_nothing(pair):
    assert assess.resize_frames(pair[0], (40, 56)) is pair[0]


def test_growing_interpolates_between_pixels():
    frames = np.zeros((1, 1, 2, 3), np.uint8)
    frames[0, 0, 1] = 200
    grown = assess.resize_frames(frames, (2, 8))[0, 0, :, 0].astype(int)
    assert (np.diff(grown) >= 0).all() and len(set(grown)) > 2


def test_sharpness_tells_blur_from_noise(pair):
    _, truth = pair
    rng = np.random.default_rng(0)
    noisy = (truth.astype(int) + rng.integers(-15, 15, truth.shape)).clip(0, 255).astype(np.uint8)
    blurred = assess.resize_frames(assess.resize_frames(truth, (10, 14)), (40, 56))
    assert assess.sharpness_ratio(truth, truth) == 1
    assert assess.sharpness_ratio(blurred, truth) < 0.7
    assert assess.sharpness_ratio(noisy, truth) > 1.5
    assert np.isnan(assess.sharpness_ratio(truth, np.full_like(truth, 9)))


def _poses(rotation: Rotation, centre: np.ndarray) -> np.ndarray:
    pose = np.tile(np.eye(4), (len(centre), 1, 1))
    pose[:, :3, :3] = rotation.as_matrix()
    pose[:, :3, 3] = -np.einsum("tij,tj->ti", pose[:, :3, :3], centre)
    return pose


@pytest.mark.parametrize("degrees", [0.0, 1e-4, 5.0, 179.0, 180.0])
def test_pose_error_gives_the_turn_and_shift_that_were_made(degrees):
    rng = np.random.default_rng(1)
    rotation = Rotation.random(4, random_state=2)
    centre = rng.normal(size=(4, 3))
    axis = np.array([2.0, -1.0, 2.0]) / 3
    turned = Rotation.from_rotvec(np.radians(degrees) * axis) * rotation
    shift = np.array([0.03, 0.0, -0.04])
    rotation_error, translation_error = assess.pose_error(
        _poses(turned, centre + shift), _poses(rotation, centre)
    )
    np.testing.assert_allclose(rotation_error, degrees, atol=1e-6)
    np.testing.assert_allclose(translation_error, 5.0, atol=1e-9)


def test_bootstrap_is_reproducible_and_covers_the_mean():
    values = np.random.default_rng(5).normal(20, 3, 40)
    first, again = (assess.bootstrap(values, seed=1) for _ in range(2))
    assert first == again
    assert first != assess.bootstrap(values, seed=2)
    assert first.mean == pytest.approx(values.mean())
    # The normal interval is a fair check at this size.
    half = 1.96 * values.std() / np.sqrt(40)
    assert first.low == pytest.approx(values.mean() - half, abs=0.15)
    assert first.high == pytest.approx(values.mean() + half, abs=0.15)


def test_bootstrap_of_one_or_no_episode():
    assert assess.bootstrap([7.5]).as_dict() == {"mean": 7.5, "low": 7.5, "high": 7.5}
    assert np.isnan(assess.bootstrap([float("nan")]).mean)
    assert assess.bootstrap([3.0, float("nan")]).mean == 3.0


def test_a_seam_is_flicker_where_clips_meet_over_flicker_within_them():
    truth = np.full((9, 4, 4, 3), 100, np.uint8)
    made = truth.copy()
    made[::2] += 2  # every difference is off by 2
    made[4:] += 4  # and that from 3 to 4 by 6
    joins = np.arange(8) == 3
    assert assess.seam(made, truth, joins) == pytest.approx(36 / 4)
    assert assess.seam(made, truth, ~joins) == pytest.approx(4 / 36)
    for none in (np.zeros(8, bool), np.ones(8, bool)):
        assert np.isnan(assess.seam(made, truth, none))
    assert np.isnan(assess.seam(truth, truth, joins))  # nothing flickers: no share of it
    with pytest.raises(ValueError, match="7 joins of 8"):
        assess.seam(made, truth, joins[:7])


def test_flicker_is_the_error_of_what_changes():
    rng = np.random.default_rng(4)
    truth = rng.integers(40, 200, (5, 12, 12, 3), dtype=np.uint8)
    assert assess.flicker(truth, truth) == 0
    assert assess.flicker(truth + np.uint8(9), truth) == 0  # another colour, no flicker
    jumps = truth.copy()
    jumps[1::2] += 6
    assert assess.flicker(jumps, truth) == 36
    assert np.isnan(assess.flicker(truth[:1], truth[:1]))


def test_depth_error_knows_no_scale_and_leaves_the_unknown_out():
    known = np.array([[1.0, 2.0, 4.0, 0.0]])
    assert assess.depth_error(known * 3, known) == pytest.approx(0)
    found = np.array([[1.0, 2.0, 5.0, 7.0]])
    assert assess.depth_error(found, known) == pytest.approx(0.25 / 3)
    assert np.isnan(assess.depth_error(found, np.zeros((1, 4))))


def test_frechet_distance_of_gaussians_is_the_closed_form():
    rng = np.random.default_rng(6)
    samples, features = 4000, 6
    # Samples whitened and coloured anew have exactly the moments that the closed form is of.
    draws = [rng.normal(size=(samples, features)) for _ in range(2)]
    white = []
    for x in draws:
        x = x - x.mean(axis=0)
        root = np.linalg.cholesky(np.linalg.inv(np.cov(x, rowvar=False)))
        white.append(x @ root)
    a = white[0] * np.arange(1, 7) + 1
    b = white[1] * np.arange(2, 8) - 1
    expected = features * 2**2 + np.sum((np.arange(1, 7) - np.arange(2, 8)) ** 2)
    assert assess.frechet_distance(a, b) == pytest.approx(expected)
    # Correlated ones, against the matrix root that the definition has.
    mix = rng.normal(size=(2, features, features))
    a, b = a @ mix[0], b @ mix[1]
    s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(s + t - 2 * sqrtm(s @ t).real)
    assert assess.frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_with_fewer_samples_than_features():
    x = np.random.default_rng(7).normal(size=(5, 400))
    assert assess.frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert assess.frechet_distance(x, x + 0.5) == pytest.approx(100)
    with pytest.raises(ValueError, match="no Frechet distance"):
        assess.frechet_distance(x[:1], x)


def test_the_scale_is_aligned_about_the_anchor():
    rng = np.random.default_rng(8)
    rotation, centre = Rotation.random(6, random_state=9), rng.normal(size=(6, 3))
    measured = _poses(rotation, centre)
    scaled, scale = assess.scaled_about_anchor(_poses(rotation, centre / 2.5), measured)
    assert scale == pytest.approx(2.5)
    np.testing.assert_allclose(assess.pose_error(scaled, measured), 0, atol=1e-6)


def test_a_path_is_brought_into_the_measured_world():
    rng = np.random.default_rng(10)
    rotation, centre = Rotation.random(6, random_state=11), rng.normal(size=(6, 3))
    measured = _poses(rotation, centre)
    turn = Rotation.from_rotvec([0.4, -1.0, 0.3])  # other world <- base
    other = _poses(rotation * turn.inv(), 0.3 * turn.apply(centre) + [5, -1, 2])
    aligned, scale = assess.aligned_to(other, measured)
    assert scale == pytest.approx(1 / 0.3)
    np.testing.assert_allclose(assess.pose_error(aligned, measured), 0, atol=1e-5)
    # A turn of single frames is left as an error, not aligned away.
    wrong = other.copy()
    wrong[2, :3, :3] = Rotation.from_rotvec([0, 0, 0.5]).as_matrix() @ wrong[2, :3, :3]
    turned, _ = assess.pose_error(assess.aligned_to(wrong, measured)[0], measured)
    assert turned.argmax() == 2 and turned[2] > 20
    assert np.isnan(assess.aligned_to(other[:1], measured[:1])[1])

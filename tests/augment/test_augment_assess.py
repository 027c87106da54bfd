"""The metrics against scikit-image, against hand-made cases, and their edges."""

import numpy as np
import pytest
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

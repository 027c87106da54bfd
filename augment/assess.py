"""How close a generated view is to the recorded one: pictures, motion, poses, depth, intervals.

All picture metrics are of uint8 RGB at the generated size; the recorded view is brought to it by
`resize_frames` (area average), never the other way round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, laplace
from scipy.spatial.transform import Rotation

from ..readers.frames import Frames

PSNR_CAP = (
    100.0  # dB given to a frame that is equal to the truth, where the true figure is infinite
)
STILL = 1e-6  # metres: camera centres that stay within this tell no scale
SSIM_SIGMA = 1.5  # the Gaussian window of Wang et al. 2004
SSIM_RADIUS = 5  # 11 x 11 pixels
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


@dataclass(frozen=True)
class Interval:
    """A mean over episodes with the ends of its confidence interval."""

    mean: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return {"mean": self.mean, "low": self.low, "high": self.high}


def resize_frames(frames: np.ndarray | Frames, size: tuple[int, int]) -> np.ndarray:
    """[T, H, W, 3] uint8 at `size` (height, width), the whole picture, aspect not kept.

    Shrinking averages the area under each pixel (Pillow's BOX with antialiasing, also at ratios
    that are not whole numbers); where an axis grows, bicubic, since BOX would only repeat pixels.
    """
    height, width = size
    if frames.shape[1:3] == (height, width):
        return np.asarray(frames)
    grows = height > frames.shape[1] or width > frames.shape[2]
    how = Image.Resampling.BICUBIC if grows else Image.Resampling.BOX
    return np.stack([np.asarray(Image.fromarray(f).resize((width, height), how)) for f in frames])


def psnr(made: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """[T] peak signal-to-noise ratio in dB of [T, H, W, 3] uint8 frames, at most `PSNR_CAP`.

    Raises:
        ValueError: the two differ in shape or are not uint8.
    """
    _same_kind(made, truth)
    error = np.stack(
        [
            np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
            for a, b in zip(made, truth, strict=True)
        ]
    )
    with np.errstate(divide="ignore"):
        return np.minimum(10.0 * np.log10(255.0**2 / error), PSNR_CAP)


def ssim(made: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """[T] structural similarity of [T, H, W, 3] uint8 frames, the mean over the three channels.

    Gaussian window of sigma 1.5 over 11 pixels, population covariance, data range 255, the mean
    over pixels whose window lies inside the frame: what scikit-image gives
    with `gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255`.

    Raises:
        ValueError: the two differ in shape, are not uint8, or are smaller than the window.
    """
    _same_kind(made, truth)
    if min(made.shape[1:3]) < 2 * SSIM_RADIUS + 1:
        raise ValueError(f"frames of {made.shape[1:3]} are smaller than the 11 x 11 SSIM window")
    return np.array([_ssim_frame(a, b) for a, b in zip(made, truth, strict=True)])


def sharpness_ratio(made: np.ndarray, truth: np.ndarray) -> float:
    """How sharp the made frames are: variance of their Laplacian over that of the truth.

    1 is as sharp as the truth, below 1 blurrier (PSNR rewards blur, so this stands beside it),
    above 1 noisier or with edges that the truth has not. NaN where the truth has no detail at all.
    Medians over frames of [T, H, W, 3] uint8.
    """
    _same_kind(made, truth)
    detail = np.median([_detail(frame) for frame in truth])
    return float(np.median([_detail(frame) for frame in made]) / detail) if detail else float("nan")


def flicker(made: np.ndarray, truth: np.ndarray) -> float:
    """Mean squared error of the frame differences, in squared 8-bit levels; NaN for one frame."""
    steps = flicker_steps(made, truth)
    return float(np.mean(steps)) if len(steps) else float("nan")


def seam(made: np.ndarray, truth: np.ndarray, joins: np.ndarray) -> float:
    """Flicker where clips meet over flicker within them: 1 is no seam. NaN where one is missing.

    Args:
        joins: [T - 1] bool, True where frames t and t + 1 come from different clips.
    """
    steps = flicker_steps(made, truth)
    if len(joins) != len(steps):
        raise ValueError(f"{len(joins)} joins of {len(steps)} frame differences")
    within = float(np.mean(steps[~joins])) if not joins.all() else 0.0
    return float(np.mean(steps[joins])) / within if joins.any() and within else float("nan")


def flicker_steps(made: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """[T - 1] mean squared error of each frame difference, in squared 8-bit levels.

    mean((made[t+1] - made[t]) - (truth[t+1] - truth[t]))^2 over [T, H, W, 3] uint8: what moves as
    the truth moves costs nothing, what jumps from frame to frame does, whatever its mean colour.
    """
    _same_kind(made, truth)
    before = made[0].astype(np.int32) - truth[0]
    squares = []
    for a, b in zip(made[1:], truth[1:], strict=True):
        now = a.astype(np.int32) - b
        squares.append(np.mean((now - before) ** 2))
        before = now
    return np.array(squares)


def depth_error(depth: np.ndarray, known: np.ndarray) -> float:
    """Mean of |depth - known| / known where both are positive, the scale aligned; NaN without any.

    The scale is the median of known / depth over the whole episode (Eigen et al. 2014 align so, and
    name the measure absolute relative error). Any two arrays of one shape, in metres.
    """
    both = (known > 0) & (depth > 0) & np.isfinite(known) & np.isfinite(depth)
    if not both.any():
        return float("nan")
    found, truth = depth[both].astype(np.float64), known[both].astype(np.float64)
    found *= np.median(truth / found)
    return float(np.mean(np.abs(found - truth) / truth))


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Frechet distance of Gaussians fitted to two sets of features, [N, D] and [M, D]; N, M >= 2.

    |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), Dowson and Landau 1982. With S = X'X of the
    centred features, the trace of the root is the sum of the singular values of X_a X_b', which is
    exact where there are fewer samples than features and S has no full rank.
    """
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"no Frechet distance of features of shapes {a.shape} and {b.shape}")
    roots = []
    for x in (a, b):
        root = (x - x.mean(axis=0)) / np.sqrt(len(x) - 1)
        # X'X is all that counts of X, and a triangle of D rows has the same.
        roots.append(np.linalg.qr(root, mode="r") if len(root) > root.shape[1] else root)
    cross = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    spread = sum(np.sum(root**2) for root in roots)
    between = np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2)
    return float(max(0.0, between + spread - 2 * cross))


def pose_error(pose: np.ndarray, measured: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rotation in degrees [T], distance of the camera centres in centimetres [T]).

    Args:
        pose, measured: [T, 4, 4] world-to-camera in the same world, metres.
    """
    turn = pose[:, :3, :3] @ np.swapaxes(measured[:, :3, :3], 1, 2)
    # atan2 of both parts, since arccos alone loses small angles to rounding.
    skew = np.stack(
        [
            turn[:, 2, 1] - turn[:, 1, 2],
            turn[:, 0, 2] - turn[:, 2, 0],
            turn[:, 1, 0] - turn[:, 0, 1],
        ]
    )
    sine, cosine = np.linalg.norm(skew, axis=0) / 2, (np.trace(turn, axis1=1, axis2=2) - 1) / 2
    centres = [np.linalg.inv(p)[:, :3, 3] for p in (pose, measured)]
    return np.degrees(np.arctan2(sine, cosine)), 100 * np.linalg.norm(
        centres[0] - centres[1], axis=1
    )


def scaled_about_anchor(pose: np.ndarray, measured: np.ndarray) -> tuple[np.ndarray, float]:
    """(poses with the measured scale, the factor), both given in the frame of one anchor camera.

    The factor is Horn's symmetric one (1987): the root of the mean squared distance of the measured
    camera centres from the anchor over that of the others. NaN where they do not leave the anchor.

    Args:
        pose, measured: [T, 4, 4] anchor-to-camera.
    """
    ours, theirs = (np.linalg.inv(p)[:, :3, 3] for p in (pose, measured))
    scale = _ratio(ours, theirs)
    scaled = pose.copy()
    scaled[:, :3, 3] *= scale
    return scaled, scale


def aligned_to(pose: np.ndarray, measured: np.ndarray) -> tuple[np.ndarray, float]:
    """(poses brought into the world of the measured ones by one similarity, its scale).

    For a stream whose world nothing ties to the robot base. The rotation is the chordal mean of
    what turns one world into the other (scipy's `Rotation.mean`), scale and shift are those of the
    camera centres (Horn 1987). NaN where the camera does not move, and the scale has no meaning.

    Args:
        pose: [T, 4, 4] world-to-camera. measured: [T, 4, 4] base-to-camera.
    """
    turns = np.swapaxes(measured[:, :3, :3], 1, 2) @ pose[:, :3, :3]
    turn = Rotation.from_matrix(turns).mean().as_matrix()  # base <- world
    ours, theirs = (np.linalg.inv(p)[:, :3, 3] for p in (pose, measured))
    ours = ours @ turn.T
    scale = _ratio(ours - ours.mean(axis=0), theirs - theirs.mean(axis=0))
    centre = theirs.mean(axis=0) + scale * (ours - ours.mean(axis=0))
    aligned = pose.copy()
    aligned[:, :3, :3] = pose[:, :3, :3] @ turn.T
    aligned[:, :3, 3] = -np.einsum("tij,tj->ti", aligned[:, :3, :3], centre)
    return aligned, scale


def _ratio(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The scale that gives vectors [T, 3] the mean squared length of others; NaN for points."""
    own, other = np.mean(np.sum(ours**2, axis=1)), np.mean(np.sum(theirs**2, axis=1))
    return float(np.sqrt(other / own)) if min(own, other) > STILL**2 else float("nan")


def bootstrap(
    values: Sequence[float] | np.ndarray, *, seed: int = 0, draws: int = 10_000, level: float = 0.95
) -> Interval:
    """Mean over episodes with a percentile bootstrap interval over episodes.

    The draws depend on the seed and the number of values alone, so the intervals of two ways over
    the same episodes resample the same episodes. NaN values (an episode where the quantity does not
    exist) are left out; with none left, all three are NaN.
    """
    kept = np.asarray([v for v in values if np.isfinite(v)], dtype=np.float64)
    if not len(kept):
        return Interval(float("nan"), float("nan"), float("nan"))
    picks = np.random.default_rng(seed).integers(0, len(kept), size=(draws, len(kept)))
    means = kept[picks].mean(axis=1)
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return Interval(float(kept.mean()), float(low), float(high))


def _same_kind(made: np.ndarray, truth: np.ndarray) -> None:
    if made.shape != truth.shape or made.ndim != 4 or made.shape[-1] != 3:
        raise ValueError(f"frames of shape {made.shape} cannot be compared with {truth.shape}")
    if made.dtype != np.uint8 or truth.dtype != np.uint8:
        raise ValueError(f"frames must be uint8, not {made.dtype} and {truth.dtype}")


def _ssim_frame(a: np.ndarray, b: np.ndarray) -> float:
    """SSIM of two [H, W, 3] uint8 frames."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    mean_x, mean_y = _window(x), _window(y)
    var_x = _window(x * x) - mean_x**2
    var_y = _window(y * y) - mean_y**2
    cov = _window(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similar = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
    similar /= (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    inside = slice(SSIM_RADIUS, -SSIM_RADIUS)
    return float(similar[inside, inside].mean())


def _window(picture: np.ndarray) -> np.ndarray:
    return gaussian_filter(
        picture, (SSIM_SIGMA, SSIM_SIGMA, 0), radius=(SSIM_RADIUS, SSIM_RADIUS, 0)
    )


def _detail(frame: np.ndarray) -> float:
    """Variance of the Laplacian of the luma of an [H, W, 3] uint8 frame."""
    return float(laplace(frame.astype(np.float64) @ LUMA, mode="nearest").var())

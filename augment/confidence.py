"""Confidence: the SSIM that is to be expected of a made frame, told without the truth.

A ridge regression on `frame_features`, fitted by `wristaugment train confidence` where the truth is
known, and kept as confidence.json beside the weights it was fitted for. It holds for pictures like
those it saw: the further an episode's anchor pictures are from them (Mahalanobis 1936), the less it
is believed, down to `Confidence.floor`, which is what a frame reaches against a picture of another
episode. An episode's confidence is the mean of its frames'. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..readers.episode import WristStream
from ..readers.errors import SourceError

FILE = "confidence.json"
CLIP = 3.0  # standard deviations that a feature can be away from its mean and count for more
RIDGE = 24.0  # rows that a weight of nothing counts as
SHRINK = 0.1  # of the covariance of picture statistics, towards none
SURE = 95.0  # percentile of held-out episodes' distances up to which one is surely of the kind
# What `frame_features` tells of a frame, and of pictures.
FEATURES = {
    "coverage": "share of the frame that the condition map covers",
    "both": "share of the frame that two anchors see",
    "depth_confidence": "mean log confidence of the depth of the points that are seen",
    "depth_apart": "share of what two anchors see where their depths differ by a tenth",
    "colour_apart": "log(1 + mean difference in grey levels) of what two anchors see",
    "reprojection": "contrast and structure term of SSIM of frame and covered condition map",
    "map_apart": "log(1 + mean difference in grey levels) of the smoothed frame and condition map",
    "flat_frame": "mean of C2 / (C2 + variance) over SSIM's windows of the frame: 1 is flat",
    "flat_map": "the same of the filled condition map",
    "near": "share of the frame that is nearer than 15 cm",
    "unexplained": "log of how much frame less map changes to the next frames, over the map's own",
    "head_turn": "log(1 + degrees) between the pose that was used and the wrist head's",
    "head_rough": "second differences of the wrist head's path over its steps, and 1 cm",
    "from_head": "1 where the pose rests on the wrist head's prediction",
    "uncalibrated": "1 where the cameras are not the dataset's",
}
FLAGS = ("from_head", "uncalibrated")
PICTURE = (
    *("grey mean", "grey spread", "red-green mean", "red-green spread"),
    *("blue-yellow mean", "blue-yellow spread", "saturation"),
    *("edges x1", "edges y1", "edges x2", "edges y2", "edges x4", "edges y4"),
    *("flatness", "dark", "bright", "top less rest"),
)
LEAST = 1e-4  # expected of a frame that was made; 0 says that it could not be
PLAIN = tuple(name for name in FEATURES if name not in FLAGS)
_FORMAT = 1


@dataclass
class Domain:
    """What pictures the fit saw.

    Attributes:
        mean, spread: [D] of `PICTURE`. inverse: [D, D] of their correlations.
        edge: distance up to which a picture is one of that kind; at `far` it is none of it.
    """

    mean: np.ndarray
    spread: np.ndarray
    inverse: np.ndarray
    edge: float = 0.0
    far: float = 0.0

    def distance(self, statistics: np.ndarray) -> np.ndarray:
        """[T] Mahalanobis distance over sqrt(D), root mean square over views, of [T, S, D]."""
        z = (statistics - self.mean) / self.spread
        squares = np.einsum("tsi,ij,tsj->ts", z, self.inverse, z) / len(self.mean)
        return np.sqrt(np.maximum(squares, 0.0).mean(axis=1))

    def trust(self, distance: np.ndarray) -> np.ndarray:
        """[T] 1 up to `edge`, 0 from `far` on, straight between."""
        return np.clip((self.far - distance) / max(self.far - self.edge, 1e-9), 0.0, 1.0)


@dataclass
class Regression:
    """Frame features -> expected SSIM, in scenes of the kind that it was fitted on.

    Attributes:
        mean, spread: of each of `PLAIN`. weight: of each, in its standard deviations; head_weight:
            what comes to that where the pose is from the wrist head. flags: of each of `FLAGS`.
        offset: the SSIM of a frame whose features are the means, with a measured pose.
    """

    mean: dict[str, float]
    spread: dict[str, float]
    weight: dict[str, float]
    head_weight: dict[str, float]
    flags: dict[str, float]
    offset: float

    def __call__(self, features: Mapping[str, np.ndarray]) -> np.ndarray:
        """[T] the expected SSIM for the `FEATURES` of frames, each [T]."""
        total = np.full(len(features[FLAGS[0]]), self.offset)
        for name in PLAIN:
            z = standard(features[name], self.mean[name], self.spread[name])
            total += z * (self.weight[name] + self.head_weight[name] * features["from_head"])
        for name in FLAGS:
            total += self.flags[name] * features[name]
        return np.clip(total, 0.0, 1.0)


@dataclass
class Confidence:
    """Frame features and picture statistics -> expected SSIM.

    Attributes:
        recipe, weights: what it was fitted for: a recipe's name, {file: SHA-256}.
        domain, floor: see above. threshold: the default of --min-ssim.
        about: what it was fitted on, how well, and what threshold and floor are, for people.
    """

    recipe: str
    weights: dict[str, str]
    regression: Regression
    domain: Domain
    floor: float
    threshold: float
    about: dict[str, Any] = field(default_factory=dict)

    def __call__(
        self, features: Mapping[str, np.ndarray], statistics: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(expected SSIM [T] float32 to four digits, trust in the domain [T] in [0, 1]).

        Args:
            features: of `frame_features`. statistics: [T, S, D] of `picture_statistics`.
        """
        expected = self.regression(features)
        trust = self.domain.trust(self.domain.distance(statistics))
        # What is worse than the floor already is not raised to it.
        expected = np.where(
            expected > self.floor, self.floor + trust * (expected - self.floor), expected
        )
        return np.round(expected, 4).astype(np.float32), trust

    def save(self, path: Path) -> None:
        """Write it as JSON that people can read."""
        from ..writers.atomic import write_atomic

        said = _rounded({"format": _FORMAT, "what": (__doc__ or "").split("\n")[0], **asdict(self)})
        said["domain"]["statistics"] = list(PICTURE)
        said["features"] = FEATURES
        # A row of numbers on a line of its own.
        rows = said["domain"].pop("inverse")
        text = json.dumps(said, indent=1)
        lines = ",\n   ".join(json.dumps(row) for row in rows)
        text = text.replace('"domain": {\n', f'"domain": {{\n  "inverse": [\n   {lines}],\n')
        write_atomic(path, (text + "\n").encode())


def load_confidence(
    folder: Path | None, recipe: str, weights: Mapping[str, str]
) -> tuple[Confidence | None, str]:
    """The confidence of some weights, or None, and a line about it.

    Args:
        folder: of the weights. weights: {file: SHA-256} of those in use.

    Raises:
        SourceError: the file is damaged.
    """
    fit = "`wristaugment train confidence` fits one"
    path = None if folder is None else Path(folder) / FILE
    if path is None or not path.is_file():
        return None, f"unknown: the weights have no {FILE} ({fit})"
    try:
        said = json.loads(path.read_text())
        if said.pop("format") != _FORMAT:
            raise ValueError("another format")
        domain = said.pop("domain")
        if list(domain.pop("statistics")) != list(PICTURE) or set(said.pop("features")) != set(
            FEATURES
        ):
            raise ValueError("other features than this version knows")
        said.pop("what")
        arrays = {name: np.array(domain.pop(name)) for name in ("mean", "spread", "inverse")}
        regression = Regression(**said.pop("regression"))
        regression({name: np.zeros(1) for name in FEATURES})
        found = Confidence(regression=regression, domain=Domain(**arrays, **domain), **said)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(
            f"cannot be read ({type(error).__name__}: {error})",
            file=path,
            todo="fit it again with `wristaugment train confidence`, or remove it",
        ) from None
    if found.recipe != recipe:
        return None, f"unknown: {FILE} was fitted for recipe {found.recipe} ({fit})"
    if dict(found.weights) != dict(weights):
        return None, f"unknown: {FILE} was fitted for other weights ({fit})"
    return found, f"expected SSIM, fitted on {found.about.get('fitted_on', 'unknown data')}"


def mark_unmade(confidence: np.ndarray, made: np.ndarray) -> np.ndarray:
    """Confidences [T] with 0 for the frames that could not be made, and for them alone."""
    return np.where(made, np.maximum(confidence, LEAST), 0).astype(np.float32)


def apply_threshold(stream: WristStream, least: float | None) -> None:
    """Mark frames not valid whose expected SSIM is below `least`; their pixels stay."""
    if least is None or stream.confidence is None:
        return
    # NaN is of a frame of which nothing is known.
    with np.errstate(invalid="ignore"):
        stream.valid = np.asarray(stream.valid, bool) & ~(stream.confidence < np.float32(least))


def best_half(confidence: np.ndarray, psnr: np.ndarray) -> float:
    """dB by which the mean PSNR of the more confident half of frames [N] is above that of all.

    Of equal confidences the earlier come first; NaN with fewer than two frames.
    """
    if len(psnr) < 2:
        return float("nan")
    order = np.argsort(-np.asarray(confidence, np.float64), kind="stable")
    return float(np.mean(psnr[order[: len(order) // 2]]) - np.mean(psnr))


def standard(values: np.ndarray, mean: float, spread: float) -> np.ndarray:
    """Standard deviations from the mean, at most `CLIP` of them; 0 for what cannot be told."""
    z = np.clip((np.asarray(values, np.float64) - mean) / max(spread, 1e-6), -CLIP, CLIP)
    return np.where(np.isfinite(z), z, 0.0)


def fit_regression(
    features: Mapping[str, np.ndarray], ssim: np.ndarray, count: np.ndarray
) -> Regression:
    """Ridge regression of SSIM [N] on features [N], each row counted `count` [N] times.

    Hoerl and Kennard 1970; the penalty is on weights of standardised features.
    """
    from_head = features["from_head"]
    count = count / count.mean()
    mean, spread, columns = {}, {}, []
    for name in PLAIN:
        known = np.isfinite(features[name])
        w = count * known
        values = np.where(known, features[name], 0.0)
        mean[name] = float((w * values).sum() / max(w.sum(), 1e-9))
        spread[name] = float(
            np.sqrt((w * (values - mean[name]) ** 2).sum() / max(w.sum(), 1e-9)) + 1e-6
        )
        columns.append(standard(features[name], mean[name], spread[name]))
    columns += [column * from_head for column in columns]
    columns += [np.asarray(features[name], np.float64) for name in FLAGS]
    X = np.stack(columns, axis=1)
    centre = np.average(X, axis=0, weights=count)
    level = float(np.average(ssim, weights=count))
    A = X - centre
    gram = (A * count[:, None]).T @ A + RIDGE * np.eye(A.shape[1])
    found = np.linalg.solve(gram, (A * count[:, None]).T @ (ssim - level))
    n = len(PLAIN)
    return Regression(
        mean,
        spread,
        dict(zip(PLAIN, found[:n].tolist(), strict=True)),
        dict(zip(PLAIN, found[n : 2 * n].tolist(), strict=True)),
        dict(zip(FLAGS, found[2 * n :].tolist(), strict=True)),
        level - float(centre @ found),
    )


def fit_domain(episodes: list[np.ndarray], folds: int = 10) -> Domain:
    """The domain of episodes' picture statistics, each [T, S, D].

    `edge` is the 95th percentile of the mean distances of episodes that were left out (every tenth
    in turn); `far` lies behind it by half of what it lies behind their median.
    """
    folds = min(folds, len(episodes))
    held = []
    for fold in range(folds):
        others = [e for i, e in enumerate(episodes) if i % folds != fold]
        if others:
            part = _moments(others)
            held += [part.distance(e).mean() for e in episodes[fold::folds]]
    found = _moments(episodes)
    distances = held or [found.distance(e).mean() for e in episodes]
    found.edge = float(np.percentile(distances, SURE))
    found.far = found.edge + (found.edge - float(np.median(distances))) / 2
    return found


def _moments(episodes: list[np.ndarray]) -> Domain:
    rows = np.concatenate([e.reshape(-1, e.shape[-1]) for e in episodes])
    mean, spread = rows.mean(axis=0), rows.std(axis=0) + 1e-3
    z = (rows - mean) / spread
    correlation = (1 - SHRINK) * (z.T @ z / len(z)) + SHRINK * np.eye(z.shape[1])
    return Domain(mean, spread, np.linalg.inv(correlation))


def _rounded(value: Any) -> Any:
    """The same with numbers of six significant digits, as JSON can hold it."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    if isinstance(value, np.ndarray):
        return _rounded(value.tolist())
    return float(f"{value:.6g}") if isinstance(value, float) else value

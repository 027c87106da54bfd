"""LPIPS and FVD's features for the scorer, where users brought their weights; else why not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ..models.errors import WeightsError
from ..models.perceptual import (
    FVD_WEIGHTS,
    LPIPS_WEIGHTS,
    open_lpips,
    open_video_features,
)
from ..readers.files import file_sha256

_BATCH = 16  # pictures a pass


@dataclass
class Perceptual:
    """What can be measured.

    Attributes:
        lpips: made and recorded frames [T, h, w, 3] uint8 -> [T]; None without its weights.
        features: clips [N, T, h, w, 3] uint8 -> [N, 400]; None without its weights.
        missing: of those that are None, by metric: what is not there and where to get it.
        fingerprint: metric -> file name -> SHA-256.
    """

    lpips: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    features: Callable[[np.ndarray], np.ndarray] | None = None
    missing: dict[str, str] = field(default_factory=dict)
    fingerprint: dict[str, dict[str, str]] = field(default_factory=dict)


def open_perceptual(lpips: Path | None, fvd: Path | None, device: str) -> Perceptual:
    """Opens the files that are there.

    Args:
        lpips, fvd: files as `open_lpips` and `open_video_features` take them, or None.

    Raises:
        WeightsError: a file is there and is not what it should be.
    """
    found = Perceptual()
    wanted = {"lpips": (lpips, LPIPS_WEIGHTS), "fvd": (fvd, FVD_WEIGHTS)}
    for metric, (path, where) in wanted.items():
        if path is not None and path.is_file():
            found.fingerprint[metric] = {path.name: file_sha256(path)}
            continue
        lacks = "none given" if path is None else f"there is no file {path.name}"
        found.missing[metric] = f"no weights ({lacks}); --{metric}-weights FILE takes {where}"
    if lpips is not None and "lpips" not in found.missing:
        network = open_lpips(lpips).to(device)

        def distances(made: np.ndarray, truth: np.ndarray) -> np.ndarray:
            if min(made.shape[1:3]) < network.least:
                raise WeightsError(
                    f"LPIPS on {network.backbone} takes pictures of {network.least} pixels or more "
                    f"a side, not {made.shape[1]}x{made.shape[2]}; leave --lpips-weights out"
                )
            out = []
            for i in range(0, len(made), _BATCH):
                a, b = (_signed(x[i : i + _BATCH], device) for x in (made, truth))
                out.append(network(a, b).cpu().numpy())
            return np.concatenate(out).astype(np.float64)

        found.lpips = distances
    if fvd is not None and "fvd" not in found.missing:
        i3d = open_video_features(fvd, device)
        found.features = lambda clips: i3d(torch.tensor(clips)).numpy().astype(np.float64)
    return found


def _signed(frames: np.ndarray, device: str) -> torch.Tensor:
    """[N, h, w, 3] uint8 -> [N, 3, h, w] float in [-1, 1]."""
    x = torch.tensor(np.asarray(frames), device=device)
    return x.permute(0, 3, 1, 2).float() / 127.5 - 1

"""Training of the baseline Pix2Pix: anchor views and the recorded wrist view, frame by frame."""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..models.checkpoints import load_weights, save_weights
from ..models.pix2pix import Pix2Pix, Pix2PixConfig, Pix2PixGenerator
from ..readers.episode import Episode, View
from . import assess, parallel
from .checkpoint import load_trained
from .corpus import Arrays
from .direct import load_pix2pix, to_frames, to_input, view_planes
from .recipe import PIX2PIX
from .training import Schedule, train

MOST_FRAMES = 12_000  # that are kept on disk to train on: a few gigabytes
MOST_PIXELS = 256 * 256  # of its pictures, the paper's size; larger frames are made by resizing
MULTIPLE = 16  # of the sides of its pictures


def training_size(size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) to train at for frames of `size`: their shape, at most `MOST_PIXELS`."""
    share = min(1.0, math.sqrt(MOST_PIXELS / math.prod(size)))
    height, width = (max(1, round(side * share / MULTIPLE)) * MULTIPLE for side in size)
    return height, width


def frames_an_episode(episodes: int) -> int:
    """How many frames of each of so many episodes are trained on: `MOST_FRAMES` in all."""
    return max(1, math.ceil(MOST_FRAMES / max(1, episodes)))


def picture_rows(
    episode: Episode, size: tuple[int, int], views: int, most: int
) -> dict[str, np.ndarray]:
    """One row a frame: anchors [n, views, h, w, 3] and wrist [n, h, w, 3], uint8; record [n, 3].

    Args:
        most: frames that are taken of a longer episode, evenly spaced.
    """
    assert episode.wrist is not None
    steps = np.unique(np.linspace(0, episode.length - 1, min(most, episode.length)).round())
    steps = steps.astype(int)
    anchors = [View(view.key, np.asarray(view.frames[steps])) for view in episode.anchors]
    record = episode.record
    place = [zlib.crc32(record.split.encode()), record.shard, record.index]
    return {
        "record": np.tile(np.array(place, np.int64), (len(steps), 1)),
        "anchors": view_planes(anchors, views, size),
        "wrist": assess.resize_frames(np.asarray(episode.wrist.frames[steps]), size),
    }


def train_pix2pix(
    arrays: Arrays,
    schedule: Schedule,
    folder: Path,
    *,
    source: str,
    device: str = "cpu",
    initial: Path | None = None,
    validation: Arrays | None = None,
) -> Path:
    """Train Pix2Pix and write its generator to `pix2pix.safetensors` in `folder`.

    Args:
        arrays: of `picture_rows`, whose size and number of views become the network's.
        source: the corpus in words, for the file's header (see `direct.how_trained`).
        initial: weights of a generator to start from.
        validation: what `schedule.validate_every` measures on.
    """
    torch.manual_seed(schedule.seed)
    views, height, width = arrays["anchors"].shape[1:4]
    config = Pix2PixConfig(size=(height, width), views=views)
    network = Pix2Pix(config)
    if initial is not None:
        load_weights(initial, network.generator)
    network.to(device)

    def losses(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        index = torch.randint(len(arrays), (schedule.batch,), generator=generator).numpy()
        return network.losses(*take(arrays, np.sort(index), device))

    average = train(
        network,
        losses,
        schedule,
        folder / "pix2pix",
        device=device,
        validate=None if validation is None else lambda: measure(network.generator, validation),
        images=None if validation is None else lambda: picture(network.generator, validation),
    )
    load_trained(network, average.values)
    path = folder / PIX2PIX
    if parallel.rank() == 0:
        batch = schedule.batch * schedule.accumulate * parallel.world()
        said = {
            "steps": schedule.steps,
            "batch": batch,
            "frames": len(arrays),
            "episodes": len(np.unique(arrays["record"], axis=0)),
            "source": source,
        }
        save_weights(path, network.generator, config.to_dict(), training=said)
    return path


def take(arrays: Arrays, index: np.ndarray, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Rows `index` as the network takes them: anchors [B, V, 3, h, w] and wrist [B, 3, h, w]."""
    anchors, wrist = (to_input(np.asarray(arrays[k][index]), device) for k in ("anchors", "wrist"))
    return anchors, wrist


def validate(path: Path, arrays: Arrays) -> dict[str, float]:
    """`measure` of a weights file."""
    return measure(load_pix2pix(path), arrays)


@torch.no_grad()
def measure(network: Pix2PixGenerator, arrays: Arrays, batch: int = 16) -> dict[str, float]:
    """Mean PSNR in dB and SSIM over the frames, as `evaluate` has them."""
    device = str(next(network.parameters()).device)
    found: dict[str, list[np.ndarray]] = {"psnr": [], "ssim": []}
    for start in range(0, len(arrays), batch):
        index = np.arange(start, min(len(arrays), start + batch))
        made = to_frames(network(take(arrays, index, device)[0]))
        truth = np.asarray(arrays["wrist"][index])
        found["psnr"].append(assess.psnr(made, truth))
        found["ssim"].append(assess.ssim(made, truth))
    return {name: float(np.concatenate(values).mean()) for name, values in found.items()}


@torch.no_grad()
def picture(network: Pix2PixGenerator, arrays: Arrays, frames: int = 4) -> dict[str, np.ndarray]:
    """Some frames: anchors, what is made of them and the truth, in rows."""
    device = str(next(network.parameters()).device)
    index = np.unique(np.linspace(0, len(arrays) - 1, frames).round().astype(int))
    made = to_frames(network(take(arrays, index, device)[0]))
    rows = [
        np.concatenate([*arrays["anchors"][i], shown, arrays["wrist"][i]], axis=1)
        for i, shown in zip(index, made, strict=True)
    ]
    return {"anchors_made_truth": np.concatenate(rows)}

"""Recipes without stage 1: anchor views to wrist view, with no geometry and no pose in between.

`DirectAugmenter` takes the place of `pipeline.Augmenter` for them. A kind of generator that needs
no reconstruction is a row in `OPENERS` here and in `recipe.DIRECT`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ..models.checkpoints import load_weights, read_config, read_training
from ..models.generator import WristGenerator
from ..models.pix2pix import Pix2PixConfig, Pix2PixGenerator
from ..models.public_config import fitting
from ..readers.episode import Episode, View, WristStream
from ..readers.errors import SourceError
from .assess import resize_frames
from .first_frame import open_generator
from .generate import generate
from .project import Conditions
from .recipe import BLIND, GUIDED, Recipe
from .weights import Located, fingerprint, locate


class DirectGenerator(Protocol):
    """What makes wrist frames from an episode alone.

    Attributes:
        batch: timesteps that go through the network at once.
        notes: what people and manifests must know of what it makes.
    """

    batch: int
    notes: dict[str, str]

    def generate(
        self,
        episode: Episode,
        recipe: Recipe,
        seed: int,
        progress: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """[T, h, w, 3] uint8 at a size of its own; `progress` is told of timesteps."""
        ...


class DirectAugmenter:
    """Makes wrist streams by a generator that needs no geometry; takes the calls of `Augmenter`.

    Args:
        recipe, device, weights: as of `Augmenter`.

    Attributes:
        size: (height, width) that frames are brought to; the recipe's wrist size.

    Raises WeightsError or SourceError for weights that are missing or do not fit.
    """

    def __init__(self, recipe: Recipe, *, device: str = "cpu", weights: Path | None = None):
        self.recipe = recipe
        self.size = recipe.wrist_size
        located = locate(recipe, weights)
        self.fingerprint = fingerprint(recipe, located=located)
        self.generator: DirectGenerator = OPENERS[recipe.generator](located, device)

    @property
    def batch(self) -> int:
        """Timesteps that go through the network at once."""
        return self.generator.batch

    @batch.setter
    def batch(self, value: int) -> None:
        self.generator.batch = value

    @torch.no_grad()
    def __call__(
        self,
        episode: Episode,
        *,
        seed: int,
        pose: str = "auto",
        geometry: str = "auto",
        progress=None,
    ) -> WristStream:
        """The wrist stream of an episode, every frame valid: nothing is known that says otherwise.

        `pose` and `geometry` have no say, and of coverage there is none: nothing is projected.

        Raises:
            SourceError: the episode has no anchor view.
        """
        if not episode.anchors:
            raise SourceError(
                "no anchor view carries a picture",
                record=episode.record.index,
                todo="name other cameras with --anchor-keys",
            )
        start = time.perf_counter()
        made = self.generator.generate(episode, self.recipe, seed, progress)
        frames = resize_frames(made, self.size)
        notes = {"pose": "none", "geometry": "none", "generator": self.recipe.about}
        notes |= self.generator.notes
        return WristStream(
            frames=frames,
            valid=np.ones(len(frames), bool),
            coverage=np.zeros(len(frames), np.float32),
            notes=notes,
            seconds={"generate": time.perf_counter() - start},
        )


def view_planes(views: list[View], most: int, size: tuple[int, int]) -> np.ndarray:
    """[T, most, h, w, 3] uint8: the first `most` views at `size`; grey where there are fewer."""
    shown = [resize_frames(view.frames, size) for view in views[:most]]
    blank = np.full_like(shown[0], 128)
    return np.stack(shown + [blank] * (most - len(shown)), axis=1)


class Pix2PixFrames:
    """Pix2Pix on an episode, frame by frame."""

    def __init__(self, network: Pix2PixGenerator, device: str = "cpu"):
        self.network = network.eval().to(device)
        self.device = device
        self.batch = 16
        self.notes: dict[str, str] = {}

    def generate(
        self,
        episode: Episode,
        recipe: Recipe,
        seed: int,
        progress: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """[T, h, w, 3] uint8 at the network's size; see `DirectGenerator`. No seed has a say."""
        config = self.network.config
        frames = np.empty((episode.length, *config.size, 3), np.uint8)
        for start in range(0, episode.length, self.batch):
            part = slice(start, min(start + self.batch, episode.length))
            views = [View(v.key, np.asarray(v.frames[part])) for v in episode.anchors]
            planes = view_planes(views, config.views, config.size)
            frames[part] = to_frames(self.network(to_input(planes, self.device)))
            if progress is not None:
                progress(part.stop - part.start)
        return frames


def to_input(pictures: np.ndarray, device: str = "cpu") -> torch.Tensor:
    """[..., h, w, 3] uint8 -> [..., 3, h, w] in [-1, 1]."""
    return torch.as_tensor(pictures).to(device).movedim(-1, -3).float() / 127.5 - 1


def to_frames(pictures: torch.Tensor) -> np.ndarray:
    """[N, 3, h, w] in [-1, 1] -> [N, h, w, 3] uint8."""
    levels = ((pictures.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return levels.movedim(-3, -1).cpu().numpy()


def load_pix2pix(path: Path) -> Pix2PixGenerator:
    """The generator that a weights file describes, in evaluation mode; WeightsError if none."""
    network = Pix2PixGenerator(pix2pix_config(path))
    load_weights(path, network)
    return network.eval()


def pix2pix_config(path: Path) -> Pix2PixConfig:
    """The sizes in a weights file's header; WeightsError where they are another network's."""
    return fitting(Pix2PixConfig, path, read_config(path))


def how_trained(path: Path) -> dict[str, Any]:
    """How the weights in a file were trained (see `in_words`); {} where its header does not say."""
    return read_training(path)


def in_words(training: Mapping[str, Any]) -> str:
    """`how_trained` as a sentence without an end."""
    if not training:
        return "its file does not say how it was trained"
    counted = f"{training['episodes']} episodes" if "episodes" in training else "some episodes"
    said = "{steps} steps of {batch} on {frames} frames of {of}".format(**training, of=counted)
    if "views" in training:
        said += f" seen by {training['views']} views"
    if "initial" in training:
        before = in_words(training["initial"]) if training["initial"] else "others that say nothing"
        said += f", from weights ({before})"
    return f"trained for {said}: {training['source']}"


class BlindClips:
    """nano's video DiT trained without the projection: it sees anchors, gripper and text alone."""

    def __init__(self, network: WristGenerator):
        self.network = network
        self.batch = 8
        self.notes: dict[str, str] = {}

    def generate(
        self,
        episode: Episode,
        recipe: Recipe,
        seed: int,
        progress: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """[T, h, w, 3] uint8 at the recipe's wrist size; see `DirectGenerator`."""
        size = (episode.length, *recipe.wrist_size)
        nothing = Conditions(
            np.zeros((*size, 3), np.uint8), np.zeros(size, bool), np.zeros(size, np.float32)
        )
        return generate(self.network, nothing, episode, recipe, seed, progress)


def _open_blind(located: Located, device: str) -> DirectGenerator:
    from .pipeline import load_generator

    return BlindClips(load_generator(located["generation"].path).to(device))


def _open_pix2pix(located: Located, device: str) -> DirectGenerator:
    return Pix2PixFrames(load_pix2pix(located["generation"].path), device)


# A recipe's generator -> what opens it, of `recipe.DIRECT` all but `constant`.
OPENERS: dict[str, Callable[[Located, str], DirectGenerator]] = {
    "pix2pix": _open_pix2pix,
    BLIND: _open_blind,
    **dict.fromkeys(GUIDED, open_generator),
}

"""One episode through both stages: reconstruct, project, generate."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ..models.checkpoints import load_weights, read_config
from ..models.errors import WeightsError
from ..models.generator import GeneratorConfig, WristGenerator
from ..models.vggt import VGGT, VGGTConfig
from ..readers.episode import Episode, WristStream
from ..readers.errors import SourceError
from .choices import split_geometry
from .confidence import Confidence, load_confidence, mark_unmade
from .frame_features import frame_features, picture_statistics
from .fuse import fuse_static
from .generate import ClipGenerator, clip_joins
from .project import Cameras, Conditions, condition_maps, confidence_of_surest, scaled_wrist_K
from .recipe import Recipe, get_recipe
from .reconstruct import Reconstruction, reconstruct
from .weights import fingerprint, locate, own_folder


def _fitting(kind, path: Path) -> Any:
    """The configuration `kind` of a weights file; WeightsError where it is another network's."""
    config = {k: tuple(v) if isinstance(v, list) else v for k, v in read_config(path).items()}
    try:
        return kind(**config)
    except (TypeError, ValueError) as error:
        raise WeightsError(
            f"{path}: holds the weights of another network ({error}); give --weights the folder "
            "that `wristaugment train` wrote"
        ) from None


def load_reconstruction(path: Path) -> VGGT:
    """The VGGT that a weights file describes, in evaluation mode."""
    config = _fitting(VGGTConfig, path)
    lacking = {"camera", "depth", "wrist"} - set(config.heads_built)
    if lacking:
        raise WeightsError(
            f"{path}: has no {' and no '.join(sorted(lacking))} head, which a wrist view needs; "
            "train it with `wristaugment train reconstruction`"
        )
    network = VGGT(config)
    load_weights(path, network)
    return network.eval()


def load_generator(path: Path) -> WristGenerator:
    """The generator that a weights file describes, in evaluation mode."""
    network = WristGenerator(_fitting(GeneratorConfig, path))
    load_weights(path, network)
    return network.eval()


class Generator(Protocol):
    """Stage 2 of a recipe."""

    def generate(
        self,
        maps: Conditions,
        episode: Episode,
        recipe: Recipe,
        seed: int,
        progress: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """The wrist video [T, H, W, 3] uint8; `progress` is told of timesteps as they finish."""
        ...


class Augmenter:
    """Holds a recipe's networks and makes wrist streams with them.

    Args:
        recipe: a name or a Recipe. device: where the networks run. weights: a folder to take them
            from in place of the recipe's own. generator: whether stage 2 is opened too.
        mount: [4, 4] end effector <- camera, for the pose `rigid`.

    Raises WeightsError for weights that are missing or do not fit.
    """

    def __init__(
        self,
        recipe: str | Recipe = "nano",
        *,
        device: str = "cpu",
        weights: Path | None = None,
        generator: bool = True,
        mount: np.ndarray | None = None,
    ):
        self.recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
        self.device = device
        self.keep_depth = False  # whether streams carry the anchors' depth, to be measured
        self.mount = mount
        self.batch = 8  # timesteps a pass of stage 1; whoever runs out of memory makes it smaller
        parts = None if generator else ("vggt", "reconstruction")
        located = locate(self.recipe, weights, parts=parts)
        self.fingerprint = fingerprint(self.recipe, located=located)
        self.confidence: Confidence | None = None
        self.about_confidence = ""
        if generator:
            self.confidence, self.about_confidence = load_confidence(
                own_folder(located, weights), self.recipe.name, self.fingerprint
            )
        self.generator: Generator | None = None
        self.wrist_fov: torch.Tensor | None = None
        if self.recipe.generator == "video-dit":
            from .video_networks import open_generator, open_reconstruction

            self.reconstruction, said = open_reconstruction(self.recipe, located, device)
            if self.recipe.form == "paper" and "wrist_fov" in said:
                # The paper's head learns a pose alone; the camera is the training corpus's.
                self.wrist_fov = torch.tensor(said["wrist_fov"])
            if generator:
                self.generator = open_generator(self.recipe, located, device)
            return
        self.reconstruction = load_reconstruction(located["reconstruction"].path).to(device)
        if "generation" in located:
            network = load_generator(located["generation"].path).to(device)
            self.generator = ClipGenerator(network)

    def reconstruct(
        self, episode: Episode, pose: str = "auto", geometry: str = "auto"
    ) -> Reconstruction:
        """Stage 1 alone; SourceError where the episode cannot be reconstructed.

        Args:
            pose: one of `choices.POSES`. geometry: one of `choices.GEOMETRIES`.
        """
        whose, fused = split_geometry(geometry)
        if not episode.anchors:
            listed = "; ".join(f"{key}: {why}" for key, why in episode.dropped.items())
            raise SourceError(
                f"no anchor view carries a picture ({listed or 'none was read'})",
                record=episode.record.index,
                todo="name other cameras with --anchor-keys",
            )
        try:
            found = reconstruct(
                self.reconstruction,
                episode,
                self.recipe,
                pose=pose,
                geometry=whose,
                mount=self.mount,
                batch=self.batch,
            )
            if fused:
                fuse_static(episode, found, self.recipe)
        except ValueError as error:
            raise SourceError(str(error), record=episode.record.index) from error
        if self.wrist_fov is not None:
            found.wrist_fov = self.wrist_fov
        return found

    def project(self, episode: Episode, geometry: Reconstruction) -> tuple[Conditions, np.ndarray]:
        """Condition maps, and the wrist intrinsics [3, 3] (or [T, 3, 3]) they were made with."""
        K = scaled_wrist_K(episode.wrist_K, episode.wrist_size, geometry.wrist_fov, self.recipe)
        recipe = self.recipe
        if not geometry.calibrated and recipe.surest < 1:
            surer = confidence_of_surest(geometry.confidence, recipe.surest)
            recipe = replace(recipe, min_confidence=max(recipe.min_confidence, surer))
        maps = condition_maps(
            episode.anchors,
            geometry.depth,
            geometry.confidence,
            geometry.K,
            geometry.pose,
            K,
            geometry.wrist_pose,
            recipe,
            points=geometry.points,
            background=geometry.background,
            device=self.device,
        )
        if geometry.calibrated:
            T = len(geometry.depth)
            maps.cameras = Cameras(
                geometry.depth,
                geometry.K,
                geometry.pose,
                K.expand(T, -1, -1),
                geometry.wrist_pose,
                None if episode.eef_pose is None else torch.as_tensor(episode.eef_pose).float(),
            )
        return maps, K.numpy()

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
        """The wrist stream of an episode.

        Args:
            seed: of the sampler's noise. pose, geometry: as in `reconstruct`.
            progress: called with the number of timesteps finished, as they finish.
        """
        seconds: dict[str, float] = {}

        @contextmanager
        def clock(stage: str):
            start = time.perf_counter()
            yield
            seconds[stage] = time.perf_counter() - start

        with clock("reconstruct"):
            found = self.reconstruct(episode, pose, geometry)
        with clock("project"):
            maps, K = self.project(episode, found)
        if self.generator is None:
            frames = maps.filled.copy()
        else:
            with clock("generate"):
                frames = self.generator.generate(maps, episode, self.recipe, seed, progress)
        depth = None
        if self.keep_depth:
            # The third number of the point head's points is depth for the first anchor alone.
            views = None if found.points is None else 1
            depth = found.depth[:, :views].float().cpu().numpy()
        joins = None
        if self.generator is not None:
            joins = clip_joins(len(frames), self.recipe.clip, self.recipe.overlap)
        valid = maps.coverage >= self.recipe.min_coverage
        notes, confidence = dict(found.notes), None
        if self.confidence is None:
            notes["confidence"] = self.about_confidence
        else:
            with clock("confidence"):
                confidence, notes["confidence"] = self._confidence(episode, found, maps, frames, K)
            confidence = mark_unmade(confidence, valid)
        frames[~valid] = 0
        return WristStream(
            frames=frames,
            valid=valid,
            coverage=maps.coverage,
            condition=maps.color,
            holes=~maps.covered,
            pose=found.wrist_pose.numpy(),
            K=K,
            anchor_pose=found.pose[..., 0, :, :].numpy(),
            depth=depth,
            joins=joins,
            notes=notes,
            seconds=seconds,
            confidence=confidence,
        )

    def _confidence(
        self,
        episode: Episode,
        found: Reconstruction,
        maps: Conditions,
        frames: np.ndarray,
        K: np.ndarray,
    ) -> tuple[np.ndarray, str]:
        """([T] float32 expected SSIM, a line about it)."""
        assert self.confidence is not None
        features = frame_features(episode.anchors, found, maps, frames, K, self.recipe)
        expected, trust = self.confidence(features, picture_statistics(episode.anchors))
        said = f"{self.about_confidence}: {expected.mean(dtype=np.float64):.2f} on average"
        if (share := float(trust.mean())) < 1:
            said += (
                f"; the anchor pictures are unlike those it was fitted on (trusted to {share:.0%})"
            )
        return expected, said


def make_augmenter(
    recipe: str | Recipe,
    *,
    device: str = "cpu",
    weights: Path | None = None,
    wrist_size: tuple[int, int] | None = None,
    mount: np.ndarray | None = None,
):
    """What makes wrist streams for a recipe: `Augmenter`, `DirectAugmenter` or `ConstantAugmenter`.

    Args:
        wrist_size: (height, width) in place of the recipe's own.
        mount: [4, 4] end effector <- camera, for the pose `rigid`.
    """
    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    if wrist_size is not None:
        recipe = replace(recipe, wrist_size=(wrist_size[0], wrist_size[1]))
    if recipe.generator == "constant":
        from .constant import ConstantAugmenter

        return ConstantAugmenter(recipe)
    if not recipe.reconstructs:
        from .direct import DirectAugmenter

        return DirectAugmenter(recipe, device=device, weights=weights)
    return Augmenter(recipe, device=device, weights=weights, mount=mount)

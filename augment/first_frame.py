"""Recipes that continue the first recorded wrist frame: the paper's first-frame-guided models.

They are given more than any other recipe, a recorded picture of the very episode, and need data
that have one: they are there to be compared with. The first frame is not scored.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..models.first_frame import KINDS, FirstFrameVideo, Unguarded, open_first_frame
from ..readers.episode import Episode
from ..readers.errors import SourceError
from .recipe import Recipe
from .weights import Located

GUARDRAIL = "WRISTAUGMENT_COSMOS_GUARDRAIL"
GUARD_PACKAGE = "cosmos_guardrail"


class FirstFrameGenerator:
    """Continues the recorded first wrist frame, clip after clip; see `direct.DirectGenerator`."""

    def __init__(self, video: FirstFrameVideo, recipe: Recipe):
        self.video = video
        self.batch = 1
        self.notes = {"given": "the first frame is the recorded one, as the model gives it back"}
        if isinstance(getattr(video.pipeline, "safety_checker", None), Unguarded):
            self.notes["guardrail"] = f"none, by {GUARDRAIL}=off"
        if any(side % video.multiple for side in recipe.wrist_size):
            raise SourceError(
                f"recipe {recipe.name!r} makes frames whose sides are multiples of "
                f"{video.multiple}, not {recipe.wrist_size[0]}x{recipe.wrist_size[1]}",
                key="--wrist-size",
                todo="give such a size, or leave it out",
            )

    def generate(
        self,
        episode: Episode,
        recipe: Recipe,
        seed: int,
        progress: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """[T, h, w, 3] uint8; the first is the recorded frame as the model gives it back.

        Clips of `recipe.clip` frames, each continuing the last frame of the one before; the last
        makes no more frames than are needed and the model's step allows.

        Raises:
            SourceError: there is no recorded first frame, or nothing after it.
        """
        picture = episode.first_wrist
        if picture is None:
            raise SourceError(
                f"recipe {recipe.name!r} continues a recorded wrist frame, and there is none",
                record=episode.record.index,
                todo="use it on data with a recorded wrist view, or another recipe",
            )
        total = episode.length
        if total < 2:
            raise SourceError(
                "the episode has one step, so that nothing comes after its first frame",
                record=episode.record.index,
                todo="leave it out",
            )
        clips: list[np.ndarray] = []
        done = 1
        while done < total:
            wanted = min(recipe.clip, total - done + 1)
            made = self.video(
                picture,
                frames=self.video.frames_for(wanted),
                size=recipe.wrist_size,
                text=recipe.prompt or episode.language,
                negative=recipe.negative,
                steps=recipe.steps,
                guidance=recipe.guidance,
                seed=(seed + done) % 2**63,
            )[:wanted]
            clips.append(made[1:] if clips else made)
            picture = made[-1]
            done += wanted - 1
            if progress is not None:
                progress(len(clips[-1]))
        return np.concatenate(clips)


def open_generator(located: Located, device: str) -> FirstFrameGenerator:
    """The generator of a recipe of `models.first_frame.KINDS`.

    Raises:
        WeightsError, SourceError: weights that do not fit; a guardrail that is lacking.
    """
    from .video_networks import precision_of

    recipe = located.recipe
    parts = KINDS[recipe.generator].parts
    video = open_first_frame(
        recipe.generator,
        {part: located[part].folder for part in parts},
        device=device,
        half=precision_of(recipe, device) != torch.float32,
        guard=_guard() if recipe.generator == "cosmos-predict2" else None,
    )
    return FirstFrameGenerator(video, recipe)


def _guard() -> Any:
    """Cosmos' guardrail where its package is installed; nothing where the user says so."""
    if os.environ.get(GUARDRAIL) == "off":
        return Unguarded()
    if importlib.util.find_spec(GUARD_PACKAGE) is None:
        raise SourceError(
            f"the licence of Cosmos-Predict2 wants its guardrail, and {GUARD_PACKAGE} is not "
            "installed",
            key=GUARDRAIL,
            todo=f"pip install {GUARD_PACKAGE}, or set {GUARDRAIL}=off if the licence lets you "
            "(you have a guardrail of your own)",
        )
    return None  # the pipeline opens it itself

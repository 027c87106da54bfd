"""The ways of making a wrist view that `evaluate` can name: recipes, and what they must beat.

Baselines use what a recipe made on the way (its condition map) or next to nothing (the mean picture
of its training set, the anchor view itself), so that a recipe's figures can be read against them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..readers.episode import Episode, WristStream
from ..readers.errors import SourceError
from .assess import resize_frames
from .choices import POSES
from .nearest import Neighbours
from .project import fill_holes
from .recipe import RECIPES, Recipe, change_recipe, get_recipe

PROJECTED = ("projection", "projection-holes")  # need a recipe's condition map, hence a pose
BASELINES = {
    "projection": "the condition map, holes filled with the nearest pixel that was seen",
    "projection-holes": "the condition map as it is, holes black",
    "mean": "the mean wrist picture of the recipe's training set, the same for every frame",
    "anchor": "the first anchor view, resized",
    "nearest": "the wrist picture of the training frame whose anchor views look most alike",
}
# What a recipe can be run with beside its own settings, as in nano+perframe: each frame made alone,
# or from pictures alone (`from_pictures`).
RGB = "rgb"
VARIANTS: dict[str, tuple[str, ...]] = {"perframe": ("clip=1", "overlap=0"), RGB: ()}
MEAN_PICTURE = "mean_wrist.png"


@dataclass(frozen=True)
class Way:
    """One named way of making a wrist view.

    Attributes:
        name: as the user spelled it, the name in tables and JSON.
        kind: a key of `BASELINES`, or "recipe".
        recipe: the recipe that is run, or whose condition map or mean picture is taken.
        pose: which wrist pose the recipe is to use; None where no pose is involved.
        variant: a key of `VARIANTS` that the recipe is run with, or "".
    """

    name: str
    kind: str
    recipe: str
    pose: str | None
    variant: str = ""

    @property
    def runs(self) -> str:
        """What is run, as `run_recipe` takes it: the recipe's name, with `+variant` if there is."""
        return f"{self.recipe}+{self.variant}" if self.variant else self.recipe

    @property
    def runs_recipe(self) -> bool:
        """Whether a recipe has to be run on the episode."""
        return self.kind == "recipe" or self.pose is not None


def parse_ways(
    names: Sequence[str],
    *,
    recipes: Mapping[str, Recipe] = RECIPES,
    poses: Sequence[str] = ("auto",),
) -> list[Way]:
    """The ways named by `--recipes`, each as `name[+variant][:pose]`, in the order given.

    A variant (`VARIANTS`) is of a recipe alone. A name without a pose stands for one way per entry
    of `poses`; with a single entry it keeps its plain name. Baselines take their condition map and
    mean picture from the first recipe named that has weights. `projection` names a recipe as well
    as a baseline; beside another recipe it is that recipe's condition map, at no further cost.

    Raises:
        SourceError: a name or pose that is not known, a pose where none is involved, nothing named.
    """
    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise SourceError("no way is named", key="--recipes", todo=_choices(recipes))
    named = [name.partition(":")[0].partition("+")[0] for name in names]
    learnt = [n for n in named if n in recipes and n not in BASELINES and recipes[n].reconstructs]
    plain = next((n for n in PROJECTED if n in recipes), None)
    # With no full recipe named, the recipe that stops at the projection is the cheapest source.
    base = learnt[0] if learnt else (plain or next(iter(recipes)))
    ways: list[Way] = []
    for spelled, name in zip(names, named, strict=True):
        whole, colon, pose = spelled.partition(":")
        variant = whole.partition("+")[2]
        if name not in recipes and name not in BASELINES:
            raise SourceError(f"unknown way {name!r}", key="--recipes", todo=_choices(recipes))
        own = name in recipes and name not in BASELINES
        posed = recipes[name].reconstructs if own else name in PROJECTED
        if colon and not posed:
            raise SourceError(
                f"{name!r} involves no pose", key="--recipes", todo=f"name it without {colon}{pose}"
            )
        if colon and pose not in POSES:
            raise SourceError(
                f"unknown pose {pose!r}", key="--recipes", todo=f"use one of {', '.join(POSES)}"
            )
        if "+" in whole and not (own and variant in VARIANTS):
            raise SourceError(
                f"{name!r} has no variant {variant!r}",
                key="--recipes",
                todo=f"recipes have {', '.join(VARIANTS)}, as in nano+perframe",
            )
        kind, recipe = ("recipe", name) if own else (name, base)
        if not posed:
            ways.append(Way(name, kind, recipe, None))
        elif colon or len(poses) == 1:
            ways.append(Way(spelled, kind, recipe, pose or poses[0], variant))
        else:
            ways += [Way(f"{whole}:{p}", kind, recipe, p, variant) for p in poses]
    return list({way.name: way for way in ways}.values())


def run_recipe(runs: str) -> Recipe:
    """The recipe that `Way.runs` names, its variant's settings made."""
    name, _, variant = runs.partition("+")
    recipe = get_recipe(name)
    return change_recipe(recipe, VARIANTS[variant]) if variant else recipe


def from_pictures(episode: Episode) -> Episode:
    """The episode as a dataset without calibration, poses and depth would have it: RGB and text."""
    anchors = [replace(view, K=None, pose=None, depth=None) for view in episode.anchors]
    return replace(episode, anchors=anchors, eef_pose=None, wrist_mount=None, wrist_K=None)


def make_frames(
    way: Way,
    episode: Episode,
    stream: WristStream | None,
    size: tuple[int, int],
    weights: Path | None = None,
    neighbours: Neighbours | None = None,
) -> np.ndarray:
    """[T, h, w, 3] uint8: the wrist view of an episode, made the given way.

    Args:
        stream: what the way's recipe made with the way's pose; None where it runs no recipe.
        size: (height, width) for the ways that run no recipe.
        weights: the folder of the recipe's weights, for the mean picture.
        neighbours: the training frames that `nearest` looks in.

    Raises:
        SourceError: the recipe's stream carries no condition map, no mean picture is shipped, or
            no training episode has the same anchor views.
    """
    if way.kind == "anchor":
        return resize_frames(episode.anchors[0].frames, size)
    if way.kind == "mean":
        picture = mean_wrist(weights, size)
        return np.broadcast_to(picture, (episode.length, *picture.shape))
    if way.kind == "nearest":
        if neighbours is None:
            raise ValueError("'nearest' needs training frames to look in")
        return resize_frames(neighbours.find(episode), size)
    if stream is None:
        raise ValueError(f"{way.name!r} needs the stream of recipe {way.recipe!r}")
    if way.kind == "recipe":
        return stream.frames
    if stream.condition is None:
        raise SourceError(
            f"recipe {way.recipe!r} makes no condition map",
            key="--recipes",
            todo=f"leave {way.name!r} out",
        )
    if way.kind == "projection-holes":
        return stream.condition
    covered = ~holes_of(stream)
    # A frame that saw nothing stays black: a baseline invents nothing.
    return fill_holes(stream.condition, np.zeros(covered.shape), covered, empty=0)[0]


def holes_of(stream: WristStream) -> np.ndarray:
    """[T, H, W] bool, True where the condition map saw nothing; where not recorded, is black."""
    if stream.holes is not None:
        return np.asarray(stream.holes, dtype=bool)
    assert stream.condition is not None
    return np.asarray(stream.condition.max(axis=-1) == 0)


def mean_wrist(weights: Path | None, size: tuple[int, int]) -> np.ndarray:
    """[h, w, 3] uint8: the mean wrist picture of a training set, at (height, width).

    Args:
        weights: the folder of a recipe's weights, in which the picture ships as `MEAN_PICTURE`.

    Raises:
        SourceError: it is not there or is no picture.
    """
    todo = "leave 'mean' out, or give --weights a folder that has it"
    if weights is None:
        raise SourceError("the recipe learnt from nothing, so there is no mean picture", todo=todo)
    file = weights / MEAN_PICTURE
    try:
        with Image.open(file) as picture:
            frames = np.asarray(picture.convert("RGB"))[None]
    except FileNotFoundError:
        raise SourceError("there is no mean wrist picture", file=file, todo=todo) from None
    except UnidentifiedImageError:
        raise SourceError("this is no picture", file=file, todo=todo) from None
    return resize_frames(frames, size)[0]


def _choices(recipes: Mapping[str, Recipe]) -> str:
    known = ", ".join(dict.fromkeys([*recipes, *BASELINES]))
    return f"use any of {known}, with :pose where one is involved"

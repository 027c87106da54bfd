"""Recipes: named choices of geometry, pose, generator, sampler and weights. Imports no torch."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path

from ..readers.errors import SourceError

RECONSTRUCTION = "reconstruction.safetensors"
GENERATION = "generation.safetensors"
WEIGHTS = Path(__file__).resolve().parent.parent / "models" / "weights"


@dataclass(frozen=True)
class Recipe:
    """How a wrist stream is made.

    Attributes:
        name: as users say it. about: one line for people.
        generator: `wrist-dit` (the video DiT), `projection` (the bare condition map, holes filled)
            or `constant` (a plain picture, to try data paths without a model).
        weights: folder under the package's weights, or None where nothing is learnt.
        wrist_size: (height, width) of the frames that are made.
        pixels: area that anchor views are resized to for the reconstruction, in pixels.
        radius: of the splat's disc. layer: see `models.splat.splat`.
        supersample: the condition map is splatted at this many times the wrist size.
        min_confidence: points of lower depth confidence are not splatted (1 is the least there is:
            the gripper and what it holds are never sure, and a map without them tells the generator
            nothing of them). Without calibration the surer half is. edge: nor are those where
            depth jumps by more than this share between neighbours.
        wrist_hfov: horizontal field of view in degrees where neither data nor head gives one.
        steps, guidance, shift: of the sampler (see `models.generator.sample`).
        noise: scale of the noise that sampling starts from. nano takes one step, which shuts pure
            noise out and gives its mean picture: the seed has no say.
        clip, overlap: frames made at a time, and shared with the clip before.
        min_coverage: frames whose condition map saw less than this share are marked invalid.
    """

    name: str
    about: str
    generator: str
    weights: str | None
    wrist_size: tuple[int, int] = (72, 128)
    pixels: int = 112 * 196
    radius: int = 2
    layer: float = 0.01
    supersample: int = 2
    min_confidence: float = 1.0
    edge: float = 0.05
    wrist_hfov: float = 80.0
    steps: int = 1
    guidance: float = 1.0
    noise: float = 0.0
    shift: float = 1.0
    clip: int = 8
    overlap: int = 2
    min_coverage: float = 0.05

    def to_dict(self) -> dict:
        """Plain values, for plans and manifests."""
        values = asdict(self)
        values["wrist_size"] = list(self.wrist_size)
        return values


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "nano",
            "small VGGT and video DiT trained on the simulated Panda; runs on a CPU",
            "wrist-dit",
            "nano",
        ),
        Recipe(
            "projection",
            "nano's condition map with its holes filled; no generator",
            "projection",
            "nano",
        ),
        Recipe(
            "constant",
            "a plain picture in place of a model, to try a dataset's way through the job",
            "constant",
            None,
        ),
    )
}


def get_recipe(name: str) -> Recipe:
    """The recipe of that name; SourceError with the known names where there is none."""
    if name not in RECIPES:
        raise SourceError(
            f"unknown recipe {name!r}", key="--recipe", todo=f"choose from {', '.join(RECIPES)}"
        )
    return RECIPES[name]


def weights_folder(recipe: Recipe, override: Path | None = None) -> Path | None:
    """Where the recipe's weights lie: `override` if given, else inside the package."""
    if recipe.weights is None:
        return None
    return Path(override) if override is not None else WEIGHTS / recipe.weights


def weight_files(recipe: Recipe, weights: Path | None = None) -> list[Path]:
    """The files a recipe loads."""
    folder = weights_folder(recipe, weights)
    if folder is None:
        return []
    names = [RECONSTRUCTION] + ([GENERATION] if recipe.generator == "wrist-dit" else [])
    return [folder / name for name in names]


def file_sha256(path: Path) -> str:
    """The SHA-256 of a whole file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

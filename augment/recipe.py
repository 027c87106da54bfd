"""Recipes: named choices of geometry, pose, generator, sampler and weights. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..readers.errors import SourceError

RECONSTRUCTION = "reconstruction.safetensors"
GENERATION = "generation.safetensors"
PIX2PIX = "pix2pix.safetensors"
# Generators that need no stage 1: no pose, no depth, no condition map is made for them.
# Public video models that continue the first recorded wrist frame.
GUIDED = frozenset({"svd", "wan-i2v", "cosmos-predict2"})
BLIND = "wrist-dit-blind"  # nano's generator without the projection
DIRECT = frozenset({"constant", "pix2pix", BLIND}) | GUIDED
# What users may set of a recipe; the rest says which networks it has.
SETTINGS = (
    "steps",
    "guidance",
    "shift",
    "noise",
    "clip",
    "overlap",
    "prompt",
    "negative",
    "resize",
    "pixels",
    "side",
    "geometry",
    "static",
    "radius",
    "supersample",
    "min_confidence",
    "surest",
    "edge",
    "min_coverage",
    "wrist_hfov",
    "precision",
)
CHOICES = {
    "resize": ("area", "square", "width"),
    "geometry": ("depth", "points"),
    "precision": ("float32", "bfloat16"),
}
LEAST = {"steps": 1, "clip": 1, "supersample": 1, "pixels": 196, "side": 14, "shift": 0.01}
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
WEIGHTS = Path(__file__).resolve().parent.parent / "models" / "weights"


@dataclass(frozen=True)
class Recipe:
    """How a wrist stream is made.

    Attributes:
        name: as users say it. about: one line for people.
        generator: `wrist-dit` (nano's, on pixels), `video-dit` (Wan 2.1, on latents), `projection`
            (the bare condition map, holes filled), `pix2pix` (from the anchor views alone, frame by
            frame), one of `GUIDED` (a public video model that continues the first recorded wrist
            frame) or `constant` (a plain picture, to try data paths without a model).
        weights: folder under the package's weights, or None where none are packaged.
        form: "paper" or "official", which form of the full-size networks; "" for nano's.
        wrist_size: (height, width) of the frames that are made.
        multiple: sides that are made are multiples of it (nano's patches); other sizes are resized.
        resize: how anchor views are resized for the reconstruction: `area` (an area of `pixels`,
            their shape kept), `square` (`side` x `side`) or `width` (`side` wide, shape kept).
        geometry: where points come from, `depth` (depth head and cameras) or `points` (point head).
        static: anchors do not move, so their cameras and the scale are estimated once an episode;
            False estimates them frame by frame.
        radius: of the splat's disc. layer, near, truncate, outside: see `models.splat.splat`.
        supersample: the condition map is splatted at this many times the wrist size.
        min_confidence: points of lower depth confidence are not splatted (1 is the least there is:
            the gripper and what it holds are never sure, and a map without them tells the generator
            nothing of them). surest: where the cameras are not the data's, only this share of an
            episode's points is, the most confident. edge: nor are points where depth jumps by more
            than this share between neighbours (0 keeps them).
        wrist_hfov: horizontal field of view in degrees where neither data nor head gives one.
        steps, guidance, shift: of the sampler (see `models.generator.sample`).
        noise: scale of the noise that sampling starts from. nano takes one step, which shuts pure
            noise out and gives its mean picture: the seed has no say.
        clip, overlap: frames made at a time, and shared with the clip before.
        prompt: what the generator is told in place of the episode's language; "" tells it that.
        negative: what guidance leads away from.
        precision: of the networks on a GPU, `bfloat16` or `float32`; on a CPU always the latter.
        min_coverage: frames whose condition map saw less than this share are marked invalid.
        without: what nano was trained without, for ablations: "spc" (stage 1's projection loss) or
            any of `models.generator.PARTS`. Weights of such a recipe have files of their own.
    """

    name: str
    about: str
    generator: str
    weights: str | None
    form: str = ""
    wrist_size: tuple[int, int] = (96, 176)
    multiple: int = 16
    resize: str = "area"
    pixels: int = 140 * 252
    side: int = 518
    geometry: str = "depth"
    static: bool = True
    radius: int = 2
    layer: float = 0.01
    near: float = 0.01
    truncate: bool = False
    outside: bool = True
    supersample: int = 2
    min_confidence: float = 1.0
    surest: float = 0.5
    edge: float = 0.05
    wrist_hfov: float = 80.0
    steps: int = 1
    guidance: float = 1.0
    noise: float = 0.0
    shift: float = 1.0
    clip: int = 8
    overlap: int = 2
    prompt: str = ""
    negative: str = ""
    precision: str = "float32"
    min_coverage: float = 0.05
    without: tuple[str, ...] = ()

    def file(self, stage: str) -> str:
        """The name of the weights that training a stage writes, as in generation.safetensors."""
        if self.generator == "pix2pix":
            return PIX2PIX
        lacking = [part for part in self.without if (part == "spc") == (stage == "reconstruction")]
        return "-no-".join([stage, *lacking]) + ".safetensors"

    @property
    def reconstructs(self) -> bool:
        """Whether stage 1 is run, so that there are a pose, depth and a condition map."""
        return self.generator not in DIRECT

    @property
    def guided(self) -> bool:
        """Whether it is given the first recorded wrist frame."""
        return self.generator in GUIDED

    def to_dict(self) -> dict:
        """Plain values, for plans and manifests."""
        values = asdict(self)
        values["wrist_size"] = list(self.wrist_size)
        values["without"] = list(self.without)
        return values


_VIDEO: dict[str, Any] = {
    "steps": 50,
    "guidance": 5.0,
    "shift": 5.0,
    "noise": 1.0,
    "clip": 81,
    "overlap": 16,
    "negative": "low quality, distorted, ugly, bad anatomy",
    "precision": "bfloat16",
}

# What nano can be trained without: the rows of WristWorld's ablation (its table 4; its row of the
# video model alone is "map" too), and the sweep, which is not the paper's.
ABLATIONS = {
    "map": "the projection (condition map and sweep)",
    "clip": "the anchors' tokens (where the full-size recipes have CLIP)",
    "spc": "the spatial projection consistency loss",
    "sweep": "the sweep",
}

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
            multiple=1,
        ),
        *(
            Recipe(
                f"nano-no-{part}",
                f"nano trained without {what}, for comparison; no weights are packaged",
                BLIND if part == "map" else "wrist-dit",
                None,
                without=(part,),
            )
            for part, what in ABLATIONS.items()
        ),
        Recipe(
            "paper",
            "WristWorld as in its paper: VGGT-1B and Wan 2.1 1.3B, wrist head and LoRA of your own",
            "video-dit",
            None,
            form="paper",
            wrist_size=(480, 640),
            resize="square",
            supersample=1,
            layer=0.0,
            surest=0.8,
            **_VIDEO,
        ),
        Recipe(
            "official",
            "WristWorld as its authors released it, with their weights",
            "video-dit",
            None,
            form="official",
            wrist_size=(480, 832),
            resize="width",
            geometry="points",
            supersample=1,
            layer=0.0,
            truncate=True,
            outside=False,
            surest=1.0,
            edge=0.0,
            prompt="robotic manipulation scene",
            **_VIDEO,
        ),
        Recipe(
            "pix2pix",
            "Pix2Pix (Isola et al. 2017) from the anchor views, frame by frame: no geometry",
            "pix2pix",
            None,
            wrist_size=(128, 224),
            multiple=1,
        ),
        Recipe(
            "svd",
            "Stable Video Diffusion XT, continuing the first recorded wrist frame",
            "svd",
            None,
            wrist_size=(576, 1024),
            multiple=64,
            steps=25,
            guidance=3.0,
            clip=25,
            precision="bfloat16",
        ),
        Recipe(
            "wan-i2v",
            "Wan 2.1 image-to-video 14B, continuing the first recorded wrist frame",
            "wan-i2v",
            None,
            wrist_size=(480, 832),
            multiple=16,
            steps=50,
            guidance=5.0,
            clip=81,
            negative=_VIDEO["negative"],
            precision="bfloat16",
        ),
        Recipe(
            "cosmos-predict2",
            "Cosmos-Predict2 2B video-to-world, continuing the first recorded wrist frame",
            "cosmos-predict2",
            None,
            wrist_size=(704, 1280),
            multiple=16,
            steps=35,
            guidance=7.0,
            clip=93,
            negative=_VIDEO["negative"],
            precision="bfloat16",
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


def change_recipe(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """The recipe with some of its fields set, each as "name=value".

    Raises:
        SourceError: a field that does not exist or is not for users, or a value of another type.
    """
    changed: dict[str, Any] = {}
    for setting in settings:
        name, _, text = setting.partition("=")
        name = name.strip()
        if name not in SETTINGS:
            raise SourceError(
                f"no recipe setting {name!r}", key="--set", todo=f"set one of {', '.join(SETTINGS)}"
            )
        old, known = getattr(recipe, name), CHOICES.get(name)
        try:
            value = changed[name] = _parse(text.strip(), type(old))
            if (known and value not in known) or (name in LEAST and value < LEAST[name]):
                raise ValueError
        except ValueError:
            what = " or ".join(known) if known else _KINDS[type(old)]
            what += f" from {LEAST[name]}" if name in LEAST else ""
            raise SourceError(
                f"{setting!r}: {name} is {what}",
                key="--set",
                todo=f"write it as {name}={str(old).lower() if old != '' else 'TEXT'}",
            ) from None
    return replace(recipe, **changed)


def _parse(text: str, kind: type) -> Any:
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    value = kind(text)
    if kind in (int, float) and not 0 <= value < float("inf"):
        raise ValueError(text)
    return value


def weights_folder(recipe: Recipe, override: Path | None = None) -> Path | None:
    """Where what was trained for a recipe lies: `override`, else the package, or None."""
    if override is not None and recipe.generator != "constant":
        return Path(override)
    return None if recipe.weights is None else WEIGHTS / recipe.weights

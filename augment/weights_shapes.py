"""Whether a weights file is the one that a part needs: names and shapes, from headers alone.

The networks that files are compared with are built on torch's meta device, so nothing is read or
allocated but headers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..models.checkpoints import mismatch, read_config
from ..models.errors import WeightsError
from ..models.generator import GeneratorConfig, WristGenerator
from ..models.public_config import fitting, video_config
from ..models.public_vggt import check_vggt, vggt_config
from ..models.released import MARKER, released_shapes, wan_name
from ..models.state_file import open_state
from ..models.vggt import VGGT, VGGTConfig
from ..models.video_dit import VideoDiT, VideoDiTConfig
from .recipe import Recipe
from .weights import INDEX, Located, Part


def check_part(located: Located, part: Part) -> None:
    """Refuse a part whose files do not hold the network that the recipe runs.

    Raises:
        WeightsError: one line: what is missing, unexpected or of another shape, whose weights they
            look like, and what to do.
    """
    name = part.need.part
    recipe = located.recipe
    if recipe.generator == "pix2pix":
        _check_pix2pix(recipe, part)
        return
    if recipe.guided:
        _check_first_frame(recipe, part)
        return
    if recipe.form == "":
        _check_nano(recipe, part)
        return
    if name == "tokenizer":
        read_json(part.path)
        return
    checks: dict[str, Callable[[Recipe, Part], None]] = {
        "vggt": _check_vggt,
        "dit": _check_dit,
        "vae": _check_vae,
        "prompt": _check_prompt,
        "image": _check_image,
    }
    if name == "reconstruction":
        vggt = None
        if "vggt" in located:
            path = located["vggt"].path
            vggt = vggt_config(path, heads_built=("wrist",), wrist_kind=recipe.form)
        _check_reconstruction(recipe, part, vggt)
    elif name == "generation":
        base = video_config(located["dit"].path, recipe.form) if "dit" in located else None
        _check_generation(recipe, part, base)
    else:
        checks[name](recipe, part)


def heads_of(recipe: Recipe) -> tuple[str, ...]:
    """The heads of VGGT that a full-size recipe runs."""
    return ("camera", "depth" if recipe.geometry == "depth" else "point", "wrist")


def meta(build: Callable[[], nn.Module]) -> nn.Module:
    """A network without memory: its names and shapes alone."""
    with torch.device("meta"):
        return build()


def shapes_of(network: nn.Module) -> dict[str, list[int]]:
    """{name: shape} of a network's state."""
    return {name: list(value.shape) for name, value in network.state_dict().items()}


def recognise(shapes: Mapping[str, Sequence[int]], config: Mapping[str, Any]) -> str:
    """Whose weights a file seems to hold, in words; "" where nothing tells.

    Args:
        shapes: its entries. config: of its header; {} where it has none.
    """
    names = list(shapes)
    has = lambda start: any(name.startswith(start) for name in names)
    if "block" in config or "text_length" in config:
        return "nano's generation; use --recipe nano"
    if config.get("ray_channels"):
        return "nano's reconstruction; use --recipe nano"
    sizes = config.get("sizes")
    form = config.get("wrist_kind") or (sizes.get("form") if isinstance(sizes, dict) else None)
    if form:
        return f"{form}'s, by its header; use --recipe {form}"
    if has("denoising_model."):
        return "the released video DiT of recipe official (VideoModel/video_dit_lora.safetensors)"
    if has("wrist_head.token_query"):
        return "the released VGGT of recipe official (VGGT/checkpoint.pt)"
    if has("aggregator."):
        return "facebook/VGGT-1B's, of recipe paper"
    if has("patch_embedding.") or has("condition_embedder."):
        return "Wan 2.1's video DiT, of recipe paper"
    if has("visual."):
        return "open_clip's, of recipe paper"
    if has("vision_model."):
        return "a CLIP vision model of transformers, of recipe official"
    return ""


def _refuse(path: Path, wrong: str, recipe: Recipe, shapes: Mapping, config: Any = None) -> None:
    """WeightsError for what `mismatch` found, with whose weights they are where that says more."""
    whose = recognise(shapes, config or {})
    looks = f"; it looks like {whose}" if whose and f"recipe {recipe.name}" not in whose else ""
    raise WeightsError(
        f"{path}: not the weights of this part ({wrong}){looks}; fetch the file that the recipe "
        "names, or choose the recipe that this one belongs to"
    )


def _compare(
    recipe: Recipe,
    path: Path,
    wanted: Mapping[str, Sequence[int]],
    found: Mapping[str, Sequence[int]],
    config: Any = None,
) -> None:
    wrong = mismatch(wanted, found)
    if wrong:
        _refuse(path, wrong, recipe, found, config)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; WeightsError where there is none."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: not readable as JSON ({error}); fetch it again") from None
    if not isinstance(found, dict):
        raise WeightsError(f"{path}: holds no object; fetch it again")
    return found


def _built(path: Path, build: Callable[[], Any]) -> nn.Module:
    """A library's network from the configuration at `path`, on the meta device."""
    try:
        return meta(build)
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(
            f"{path}: its configuration makes no network of this part ({reason}); fetch it again"
        ) from None


def _check_vggt(recipe: Recipe, part: Part) -> None:
    config = vggt_config(part.path, heads_built=heads_of(recipe), wrist_kind=recipe.form)
    network = meta(lambda: VGGT(config))
    assert isinstance(network, VGGT)
    with open_state(part.path) as file:
        whose = recognise(file.shapes, {})
    try:
        check_vggt(part.path, network, absent=("wrist",) if recipe.form == "paper" else ())
    except WeightsError as error:
        if not whose or f"recipe {recipe.name}" in whose:
            raise
        raise WeightsError(f"{error}; it looks like {whose}") from None


def _check_dit(recipe: Recipe, part: Part) -> None:
    config = video_config(part.path, recipe.form)
    network = meta(lambda: VideoDiT(config))
    assert isinstance(network, VideoDiT)
    with open_state(part.path) as file:
        if recipe.form == "official":
            beside = {MARKER: [1]} if MARKER in file.shapes else {}
            _compare(recipe, part.path, released_shapes(network) | beside, file.shapes)
            return
        own = {k.removeprefix("dit."): v for k, v in shapes_of(network).items() if "dit." in k[:4]}
        own["patch_embedding.weight"][1] = config.latent_channels
        if "proj_out.weight" not in file.shapes:
            own = {wan_name(name): shape for name, shape in own.items()}
        _compare(recipe, part.path, own, file.shapes)


def _state(part: Part) -> dict[str, list[int]]:
    """{name: shape} of a part's file, or of all its shards.

    Raises:
        WeightsError: a shard that is damaged, or that lacks what the index says of it.
    """
    if not part.path.name.endswith(INDEX):
        with open_state(part.path) as file:
            return file.shapes
    listed: dict[str, str] = read_json(part.path)["weight_map"]
    shapes: dict[str, list[int]] = {}
    with ExitStack() as stack:
        for path in part.weights():
            shard = stack.enter_context(open_state(path))
            promised = {name for name, where in listed.items() if where == path.name}
            if promised != shard.shapes.keys():
                odd = sorted(promised ^ shard.shapes.keys())
                raise WeightsError(
                    f"{path}: does not hold what {part.path.name} says of it ({len(odd)} entries, "
                    f"{odd[0]} first); fetch both again"
                )
            shapes |= shard.shapes
    return shapes


def _check_vae(recipe: Recipe, part: Part) -> None:
    from ..models.libraries import AutoencoderKLWan

    config = part.folder / "config.json"
    network = _built(config, lambda: AutoencoderKLWan.from_config(read_json(config)))
    _compare(recipe, part.path, shapes_of(network), _state(part))


def _check_prompt(recipe: Recipe, part: Part) -> None:
    from ..models import libraries  # noqa: F401  (the door; see there)

    from transformers import UMT5Config, UMT5EncoderModel  # isort: skip

    config = part.folder / "config.json"
    network = _built(config, lambda: UMT5EncoderModel(UMT5Config.from_dict(read_json(config))))
    wanted, found = shapes_of(network), dict(_state(part))
    # The embedding goes by two names; a file has one or both.
    twins = ("shared.weight", "encoder.embed_tokens.weight")
    if any(name in found for name in twins):
        for name in twins:
            found.setdefault(name, wanted[name])
    _compare(recipe, part.path, wanted, found)


def _check_image(recipe: Recipe, part: Part) -> None:
    from ..models import libraries  # noqa: F401  (the door; see there)

    found = _state(part)
    if recipe.form == "paper":
        import open_clip

        config = part.folder / "open_clip_config.json"
        sizes = read_json(config).get("model_cfg", {})
        network = _built(config, lambda: open_clip.CLIP(**sizes))
        wanted = shapes_of(network)
    else:
        from transformers import CLIPVisionConfig, CLIPVisionModel

        config = part.folder / "config.json"
        network = _built(
            config, lambda: CLIPVisionModel(CLIPVisionConfig.from_dict(read_json(config)))
        )
        # Files have had, and lost, a prefix and a buffer that is computed.
        bare = lambda shapes: {
            name.removeprefix("vision_model."): shape
            for name, shape in shapes.items()
            if not name.endswith("position_ids")
        }
        wanted, found = bare(shapes_of(network)), bare(found)
    _compare(recipe, part.path, wanted, found)


def _check_nano(recipe: Recipe, part: Part) -> None:
    """nano's own files: the whole network, its sizes in the header."""
    kind, build = (
        (VGGTConfig, VGGT) if part.need.part == "reconstruction" else
        (GeneratorConfig, WristGenerator)
    )  # fmt: skip
    header = read_config(part.path)
    with open_state(part.path) as file:
        whose = recognise(file.shapes, header)
        try:
            config = fitting(kind, part.path, header)
        except WeightsError as error:
            looks = f"; it looks like {whose}" if whose else ""
            raise WeightsError(f"{error}{looks}") from None
        heads = {"camera", "depth", "wrist"}
        lacking = heads - set(getattr(config, "heads_built", heads))
        if lacking:
            raise WeightsError(
                f"{part.path}: has no {' and no '.join(sorted(lacking))} head, which a wrist view "
                "needs; train it with `wristaugment train reconstruction`"
            )
        _compare(recipe, part.path, shapes_of(meta(lambda: build(config))), file.shapes, header)


def _check_pix2pix(recipe: Recipe, part: Part) -> None:
    """Pix2Pix's generator, its sizes in the header."""
    from ..models.pix2pix import Pix2PixGenerator
    from .direct import pix2pix_config

    config = pix2pix_config(part.path)
    with open_state(part.path) as file:
        wanted = shapes_of(meta(lambda: Pix2PixGenerator(config)))
        _compare(recipe, part.path, wanted, file.shapes, read_config(part.path))


def _check_first_frame(recipe: Recipe, part: Part) -> None:
    """A part of a diffusers pipeline; transformers' networks are compared when they are opened."""
    from ..models import libraries  # noqa: F401  (the door; see there)
    from ..models.first_frame import KINDS

    import diffusers  # isort: skip

    library, name = KINDS[recipe.generator].parts[part.need.part]
    if not part.weights():
        read_json(part.path)
        return
    config = part.folder / "config.json"
    values, found = read_json(config), _state(part)
    if library == "diffusers":
        network = _built(config, lambda: getattr(diffusers, name).from_config(values))
        _compare(recipe, part.path, shapes_of(network), found)


def _own(recipe: Recipe, part: Part, form: str | None) -> None:
    """WeightsError for a file of `wristaugment train` that was made for another recipe's form."""
    if form == recipe.form:
        return
    header = read_config(part.path)
    with open_state(part.path) as file:
        whose = recognise(file.shapes, header)
    raise WeightsError(
        f"{part.path}: was not trained for recipe {recipe.name}"
        + (f" but looks like {whose}" if whose else "")
        + f"; give --weights the folder that `wristaugment train --recipe {recipe.name}` wrote"
    )


def _check_reconstruction(recipe: Recipe, part: Part, base: VGGTConfig | None) -> None:
    """Heads of one's own training: the wrist head, and others that were trained with it."""
    header = read_config(part.path)
    _own(recipe, part, header.get("wrist_kind") if "trained" in header else None)
    base = base or VGGTConfig()
    sizes = {"wrist": header["wrist"], "wrist_kind": recipe.form, "dim": header.get("dim")}
    if sizes["dim"] != base.dim:
        raise WeightsError(
            f"{part.path}: was trained on a VGGT of dim {sizes['dim']}; the one here has "
            f"{base.dim}; give both of one training"
        )
    config = replace(base, heads_built=("camera", "wrist"), **sizes)
    heads = tuple(f"{name}_head." for name in header["trained"])
    wanted = shapes_of(meta(lambda: VGGT(config)))
    with open_state(part.path) as file:
        trained = {k: v for k, v in wanted.items() if k.startswith(heads)}
        _compare(recipe, part.path, trained, file.shapes)


def generation_config(recipe: Recipe, located: Located) -> VideoDiTConfig:
    """The sizes of the video DiT that a recipe will run: of one's own file, else of the public one.

    Raises:
        WeightsError: they cannot be read.
    """
    if "generation" in located:
        from ..models.lora import read_generation

        return read_generation(located["generation"].path).sizes
    return video_config(located["dit"].path, recipe.form)


def _check_generation(recipe: Recipe, part: Part, base: VideoDiTConfig | None) -> None:
    """A tuned video DiT: all of it, or LoRA factors with the new layers, on the public one."""
    from ..models.lora import expected_shapes, read_generation

    header = read_config(part.path)
    sizes = header.get("sizes")
    _own(recipe, part, sizes.get("form") if isinstance(sizes, dict) else None)
    found = read_generation(part.path)
    if base is not None:
        for name in ("layers", "heads", "head_dim", "ffn_dim", "text_dim", "latent_channels"):
            if getattr(found.sizes, name) != getattr(base, name):
                raise WeightsError(
                    f"{part.path}: was trained on a video DiT with {name} "
                    f"{getattr(found.sizes, name)}; the one here has {getattr(base, name)}; give "
                    "both of one training"
                )
    network: Any = meta(lambda: VideoDiT(found.sizes))
    wanted = expected_shapes(network, found)
    with open_state(part.path) as file:
        _compare(recipe, part.path, {k: list(v) for k, v in wanted.items()}, file.shapes)

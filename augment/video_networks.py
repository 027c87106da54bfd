"""The networks of the full-size recipes, opened from their public files and what was trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..models.checkpoints import read_config
from ..models.encoders import ImageEncoder, PromptEncoder, VideoAutoencoder
from ..models.lora import load_generation
from ..models.public_config import video_config
from ..models.public_vggt import open_vggt, vggt_config
from ..models.released import open_released, open_wan
from ..models.vggt import VGGT
from ..models.video_dit import VideoDiT, to_precision
from .recipe import Recipe
from .train_wrist import load_wrist
from .video import VideoGenerator
from .weights import Located
from .weights_hashes import cache_folder, remembered_sha256


def precision_of(recipe: Recipe, device: str) -> torch.dtype:
    """What the frozen networks and the video DiT are kept in."""
    half = recipe.precision == "bfloat16" and torch.device(device).type == "cuda"
    return torch.bfloat16 if half else torch.float32


def open_reconstruction(
    recipe: Recipe, located: Located, device: str = "cpu"
) -> tuple[VGGT, dict[str, Any]]:
    """Stage 1: VGGT with the heads that the recipe reads, in evaluation mode.

    Returns:
        the network, and what the file of a wrist head trained here says of itself ({} without one).

    Raises:
        WeightsError: files that do not fit.
    """
    heads = ("camera", "point" if recipe.geometry == "points" else "depth", "wrist")
    path = located["vggt"].path
    config = vggt_config(path, heads_built=heads, wrist_kind=recipe.form)
    absent = ("wrist",) if recipe.form == "paper" else ()
    if "reconstruction" not in located:
        return open_vggt(path, config, absent=absent).to(device), {}
    own = located["reconstruction"].path
    said = read_config(own)
    config = replace(config, wrist=said.get("wrist", config.wrist))
    network = open_vggt(path, config, absent=absent)
    load_wrist(own, network, base_sha256=remembered_sha256(path))
    return network.to(device).eval(), said


def open_base(recipe: Recipe, located: Located, *, dtype: torch.dtype = torch.float32) -> VideoDiT:
    """The video DiT that training starts from: Wan 2.1 widened, or the released one."""
    path = located["dit"].path
    config = video_config(path, recipe.form)
    if recipe.form == "official":
        return open_released(path, config, dtype=dtype)
    return open_wan(path, config, dtype=dtype)


def open_generator(
    recipe: Recipe, located: Located, device: str = "cpu", *, cache: Path | None = None
) -> VideoGenerator:
    """Stage 2, in evaluation mode.

    Args:
        cache: folder for embeddings of prompts; default, one in the user's cache.

    Raises:
        WeightsError: files that do not fit.
    """
    dtype = precision_of(recipe, device)
    if "generation" in located:
        # LoRA is merged in full precision: what it adds is mostly below the rounding of half.
        dit = open_base(recipe, located)
        files = located["dit"].files
        base = {place: remembered_sha256(path) for place, path in files.items()}
        load_generation(located["generation"].path, dit, merge=True, base=base)
        to_precision(dit, dtype)
    else:
        dit = open_base(recipe, located, dtype=dtype)
    return VideoGenerator(
        dit.to(device).eval().requires_grad_(False),
        *open_encoders(recipe, located, device, cache=cache),
    )


def open_encoders(
    recipe: Recipe, located: Located, device: str = "cpu", *, cache: Path | None = None
) -> tuple[VideoAutoencoder, PromptEncoder, ImageEncoder]:
    """The frozen encoders around the video DiT.

    Args:
        cache: as of `open_generator`.
    """
    dtype = precision_of(recipe, device)
    names = "".join(
        remembered_sha256(path)
        for part in ("prompt", "tokenizer")
        for path in located[part].files.values()
    )
    prompts = PromptEncoder.open(
        located["prompt"].folder.parent,
        dtype,
        device,
        cache=cache or cache_folder() / "prompts",
        fingerprint=names,
    )
    return (
        # The autoencoder decides every pixel and is small: full precision.
        VideoAutoencoder.open(located["vae"].folder, torch.float32, device),
        prompts,
        ImageEncoder.open(recipe.form, located["image"].folder, dtype, device),
    )

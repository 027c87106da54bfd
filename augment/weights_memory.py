"""How much GPU memory a recipe takes, and the refusal of a card that has less.

An estimate from the sizes of the networks, on the safe side of what a run takes at its peak: all
weights at once, and the activations of the hungriest step.
"""

from __future__ import annotations

import math

from ..models.aggregator import PATCH
from ..models.generator import GeneratorConfig
from ..models.public_config import fitting, vggt_config
from ..models.state_file import open_state
from ..models.sweep import CHANNELS, PLANES
from ..models.vggt import VGGTConfig
from ..models.video_dit import TEMPORAL, latent_shape
from ..readers.errors import SourceError
from .recipe import Recipe
from .weights import Located
from .weights_shapes import generation_config, heads_of, read_json

RESERVE = 2**30  # bytes: CUDA's own context and kernels, and what the allocator leaves unused
BATCH = 8  # timesteps in one pass of stage 1
GIB = 2**30


def bytes_each(recipe: Recipe) -> int:
    """Bytes of a number at the recipe's precision on a GPU."""
    return 2 if recipe.precision == "bfloat16" else 4


def weights_bytes(located: Located) -> int:
    """Bytes of all weights of a recipe on a GPU, at its precision.

    LoRA factors and heads of one's own count beside what they are put on.
    """
    total = 0
    for name in located:
        if name == "tokenizer":
            continue
        for path in located[name].weights():
            with open_state(path) as file:
                total += file.parameters()
    return total * bytes_each(located.recipe)


def activation_bytes(located: Located, size: tuple[int, int], views: int = 2) -> int:
    """Bytes of the hungriest step on one clip.

    With e bytes a number:
    - stage 1, B timesteps of V views, N tokens of C channels a view, H x W pixels, D channels:
      BVN (12 C + 2 * 4 C + 8 C) e for the tokens, an MLP and the four kept layers, or
      2 BVHWD e for the last convolutions of a dense head, whichever is more;
    - the video DiT with both branches of guidance, N tokens, width C, MLP M: 2N (10 C + 2 M) e;
    - the video autoencoder's decoder: 4 frames in a step, 2 b channels, 4 tensors: 32 b H W e,
      and the clip itself in float32.

    Args:
        size: (height, width) of the wrist frames. views: anchor views.
    """
    recipe = located.recipe
    each = bytes_each(recipe)
    if recipe.guided:
        # A clip in float32, and the autoencoder's decoder as below, its usual 96 channels wide.
        return (3 * recipe.clip * 4 + 32 * 96 * 4) * math.prod(recipe.wrist_size)
    if not recipe.reconstructs:
        # Frames of 16 timesteps, inputs and all layers of a U-Net: some 64 numbers a pixel.
        return 16 * 64 * math.prod(size) * 4
    steps = [_stage_one(located, each, views)]
    if recipe.generator == "video-dit":
        config = generation_config(recipe, located)
        _, F, h, w = latent_shape(config, recipe.clip, *size)
        tokens = F * h * w // math.prod(config.patch)
        width = config.heads * config.head_dim
        steps.append(2 * tokens * (10 * width + 2 * config.ffn_dim) * each)
        base = read_json(located["vae"].folder / "config.json").get("base_dim", 96)
        clip = 3 * recipe.clip * size[0] * size[1] * 4
        steps.append(TEMPORAL * 2 * base * 4 * size[0] * size[1] * each + clip)
    elif recipe.generator == "wrist-dit":
        from ..models.checkpoints import read_config

        path = located["generation"].path
        config = fitting(GeneratorConfig, path, read_config(path))
        tokens = recipe.clip * math.prod(size) // config.block**2
        width = config.heads * config.head_dim
        # What it convolves, and what it sweeps of every anchor.
        wide = config.detail + views * PLANES * CHANNELS
        full = recipe.clip * math.prod(size) * wide
        steps.append((2 * tokens * (10 * width + 2 * config.ffn_dim) + full) * each)
    return max(steps)


def _stage_one(located: Located, each: int, views: int) -> int:
    """Bytes that VGGT takes beside its weights."""
    recipe = located.recipe
    if "vggt" in located:
        path = located["vggt"].path
        config = vggt_config(path, heads_built=heads_of(recipe), wrist_kind=recipe.form)
    else:
        from ..models.checkpoints import read_config

        path = located["reconstruction"].path
        config = fitting(VGGTConfig, path, read_config(path))
    # A square is the most that any way of resizing asks for.
    pixels = recipe.pixels if recipe.resize == "area" else recipe.side**2
    tokens = pixels // PATCH**2 + 5
    body = tokens * (12 + 8 + 8) * config.dim
    dense = 2 * pixels * config.dpt_features
    return BATCH * views * max(body, dense) * each


def memory_needed(recipe: Recipe, located: Located, size: tuple[int, int], views: int = 2) -> int:
    """Bytes of GPU memory that a recipe takes: weights, activations of a clip, and a reserve.

    Args:
        located: its weights (headers are read). size: (height, width) of the wrist frames.
        views: anchor views.
    """
    if not located.parts:
        return 0
    return weights_bytes(located) + activation_bytes(located, size, views) + RESERVE


def refuse_small_gpu(
    recipe: Recipe,
    located: Located,
    size: tuple[int, int],
    views: int = 2,
    device: int | None = None,
) -> None:
    """Refuse a GPU whose whole memory is less than the recipe takes.

    Args:
        device: its index; None looks at all of this process, any of which may get work.

    Raises:
        SourceError: how much is needed, what is there, and what to do.
    """
    import torch

    devices = range(torch.cuda.device_count()) if device is None else [device]
    needed = memory_needed(recipe, located, size, views)
    for index in devices:
        card = torch.cuda.get_device_properties(index)
        if card.total_memory < needed:
            raise SourceError(
                f"recipe {recipe.name!r} at {size[0]}x{size[1]} takes about {needed / GIB:.1f} GiB "
                f"of GPU memory; {card.name} has {card.total_memory / GIB:.1f} GiB",
                key="--device",
                todo="use a larger GPU, a smaller --wrist-size, --device cpu, or hide this GPU "
                "with CUDA_VISIBLE_DEVICES",
            )

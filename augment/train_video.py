"""Training of the full-size recipes' stage 2: the video DiT learns on latents that are kept.

Flow matching (Lipman et al. 2023; Wan's technical report, arXiv 2503.20314): from clean latents x0
and noise e, x_s = (1 - s) x0 + s e, and the network learns e - x0. Levels s are drawn evenly and
shifted towards noise as sampling does, shift * s / (1 + (shift - 1) * s): the network learns most
where most of the sampler's steps are. WristWorld names no other way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.flow import sample_latents
from ..models.lora import (
    ALPHA,
    MODES,
    RANK,
    cast_frozen,
    file_names,
    load_generation,
    prepare_training,
    read_generation,
    save_generation,
)
from ..models.video_dit import VideoDiT, VideoDiTConfig, change_views
from ..readers.errors import SourceError
from . import parallel
from .checkpoint import load_trained
from .latents import LatentStore, Window, split_of
from .recipe import GENERATION
from .training import Schedule, train
from .video import to_frames

VALIDATION_LEVELS = (0.2, 0.5, 0.8, 0.95)  # noise levels of the validation loss
VALIDATION_WINDOWS = 16  # at most, of different records
PICTURES, PICTURE_STEPS = 2, 10


@dataclass
class Clips:
    """A batch of training clips, on one device.

    Attributes:
        clean, condition: latents [B, 16, f, h, w].
        context: [B, 512, D] what the network attends to.
    """

    clean: Tensor
    condition: Tensor
    context: Tensor


def make_clips(
    network: VideoDiT,
    windows: Sequence[Window],
    kept: Sequence[bool],
    negative: Tensor,
    device: str | torch.device,
) -> Clips:
    """Windows as the network's input.

    Args:
        kept: which keep their words and anchor features; the others get what guidance leads away
            from, as the sampler's second branch does. All keep their condition latents.
        negative: [512, D], the embedding of that.
    """
    contexts = []
    for window, keep in zip(windows, kept, strict=True):
        text = (window.text if keep else negative).to(device)
        ext = window.features[None].to(device) if keep else None
        contexts.append(network.encode_context(text[None], ext))
    return Clips(
        torch.stack([w.wrist for w in windows]).to(device),
        torch.stack([w.condition for w in windows]).to(device),
        torch.cat(contexts),
    )


def flow_loss(network: VideoDiT, clips: Clips, noise: Tensor, level: Tensor) -> Tensor:
    """[B] mean squared error of the velocity.

    Args:
        noise: [B, 16, f, h, w] standard normal. level: [B] in (0, 1], 1 is pure noise.
    """
    s = level[:, None, None, None, None]
    noisy = (1 - s) * clips.clean + s * noise
    found = network(noisy, 1000 * level, clips.condition, clips.context)
    return F.mse_loss(found.float(), noise - clips.clean, reduction="none").mean((1, 2, 3, 4))


def shifted(level: Tensor, shift: float) -> Tensor:
    """Levels moved towards noise, as `flow.make_schedule` moves them."""
    return shift * level / (1 + (shift - 1) * level)


def training_records(
    store: LatentStore,
    splits: Sequence[str] | None = None,
    validation: Sequence[str] = (),
    limit: int | None = None,
) -> list[str]:
    """The records of a store that `train_video` trains on; see there."""
    found = store.records(splits)
    if splits is None:
        found = [name for name in found if split_of(name) not in validation]
    return found[:limit]


def check_training(store: LatentStore, config: VideoDiTConfig, records: Sequence[str]) -> None:
    """SourceError for a store that a network of these sizes cannot be trained on."""
    todo = "make a cache with this recipe (`wristaugment cache`)"
    if not records:
        raise SourceError(
            "the cache holds no record of the split to train on", file=store.path, todo=todo
        )
    most = max(len(store.views(name)) for name in records)
    if most > config.views:
        raise SourceError(
            f"its records have up to {most} anchor views; the generator is trained for "
            f"{config.views}",
            file=store.path,
            todo=f"train it for {most}",
        )
    window = store.window(records[0])
    for what, found, wanted in (
        ("form", store.identity["recipe"]["form"], config.form),
        ("latent channels", window.wrist.shape[0], config.latent_channels),
        ("condition channels", window.condition.shape[0], config.condition_channels),
        ("width of image features", window.features.shape[2], config.ext_dim),
        ("width of prompts", window.text.shape[1], config.text_dim),
    ):
        if found != wanted:
            raise SourceError(
                f"its {what} is {found}; the generator's is {wanted}", file=store.path, todo=todo
            )
    if window.text.shape[0] > config.context_tokens:
        raise SourceError(
            f"prompts have {window.text.shape[0]} tokens; the generator's context holds "
            f"{config.context_tokens}",
            file=store.path,
            todo=todo,
        )
    todo = "make a cache of shorter clips (--set clip=...)"
    if store.clip > config.frames or store.clip * most > config.context_tokens:
        raise SourceError(
            f"clips of {store.clip} frames and {most} views; the generator has embeddings for "
            f"{config.frames} frames and a context of {config.context_tokens} tokens",
            file=store.path,
            todo=todo,
        )


def train_video(
    store: LatentStore,
    base: VideoDiT,
    schedule: Schedule,
    folder: Path,
    *,
    mode: str = "lora",
    rank: int = RANK,
    alpha: float = ALPHA,
    shift: float = 5.0,
    drop: float = 0.1,
    views: int | None = None,
    splits: Sequence[str] | None = None,
    limit: int | None = None,
    validation: Sequence[str] = (),
    initial: Path | None = None,
    fingerprint: Mapping[str, str] | None = None,
    decode: Callable[[Tensor], Tensor] | None = None,
    device: str | torch.device = "cpu",
    frozen: torch.dtype | None = None,
) -> Path:
    """Train stage 2 and write `generation.safetensors` into `folder`.

    Every step draws records, windows, noise and levels from (seed, step) alone, so that a resumed
    run goes on as if it had never stopped.

    Args:
        store: of the corpus. base: the network to start from, in float32; it is trained in place.
        mode: "lora" (the paper) or "full". rank, alpha: of the LoRA.
        shift: of the noise levels. drop: share of clips that learn the negative branch.
        views: anchor views to train for (default: as many as the records have, if the base or
            `initial` knows of fewer). Where that is another number view embeddings start anew, and
            nothing else does.
        splits: that are trained on (default: all but `validation`); limit: only the first records
            of them. validation: splits on which a loss is reported.
        initial: a generation file to go on from.
        fingerprint: {name: SHA-256} of the files that `base` was read from.
        decode: latents [1, 16, F, h, w] -> video [1, 3, T, H, W], for pictures in the log.
        device: where to train.
        frozen: what is not trained is kept in this (default, where the schedule has bf16: bfloat16
            on a GPU, and as it is on a CPU).

    Raises:
        SourceError: a store that does not fit, or settings that make no sense; a checkpoint of
            other settings.
        WeightsError: an `initial` of another network.

    Returns:
        the file; `base` then holds the same weights.
    """
    if mode not in MODES:
        raise SourceError(f"found {mode!r}", key="tuning", todo=f"choose from {', '.join(MODES)}")
    if not 0 <= drop < 1:
        raise SourceError(
            f"a share of {drop} dropped prompts", key="drop", todo="give 0 to below 1"
        )
    if initial is not None and mode == "lora" and read_generation(initial).mode == "full":
        raise SourceError(
            "holds whole weights: a LoRA on them would fit nothing that others can fetch",
            file=initial,
            todo="train them on with --full",
        )
    records = training_records(store, splits, validation, limit)
    network = base
    if views is None:
        known = network.config if initial is None else read_generation(initial).sizes
        views = max([known.views, *(len(store.views(name)) for name in records)])
    if initial is not None:
        load_generation(initial, network, views=views, seed=schedule.seed, base=fingerprint)
    elif views != network.config.views:
        change_views(network, views, torch.Generator().manual_seed(schedule.seed))
    check_training(store, network.config, records)
    prepare_training(
        network,
        mode,
        rank=rank,
        alpha=alpha,
        seed=schedule.seed,
        checkpointing=schedule.checkpointing,
    )
    if not schedule.bf16:
        network.float()
    elif frozen is not None or torch.device(device).type == "cuda":
        cast_frozen(network, frozen or torch.bfloat16)
    network.to(device)
    negative = store.text(store.identity["recipe"]["negative"])

    def losses(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        windows = [_draw(store, records, generator) for _ in range(schedule.batch)]
        kept = (torch.rand(schedule.batch, generator=generator) >= drop).tolist()
        level = shifted(1 - torch.rand(schedule.batch, generator=generator), shift)
        noise = torch.randn(schedule.batch, *windows[0].wrist.shape, generator=generator)
        clips = make_clips(network, windows, kept, negative, device)
        loss = flow_loss(network, clips, noise.to(device), level.to(device))
        return {"loss": loss.mean()}

    held = held_records(store, validation)
    average = train(
        network,
        losses,
        schedule,
        folder / "generation",
        device=device,
        validate=(lambda: validation_loss(store, network, held, schedule, device))
        if held
        else None,
        images=lambda: _pictures(store, network, held, schedule, device, decode),
    )
    load_trained(network, average.values)
    path = folder / GENERATION
    if parallel.rank() == 0:
        state = file_names(network, average.values)
        save_generation(path, network, base=fingerprint, state=state)
    parallel.barrier()
    return path


def _draw(store: LatentStore, records: Sequence[str], generator: torch.Generator) -> Window:
    """A window of a record, each drawn evenly."""
    name = records[int(torch.randint(len(records), (), generator=generator))]
    return store.window(name, int(torch.randint(store.starts(name), (), generator=generator)))


def held_records(store: LatentStore, validation: Sequence[str]) -> list[str]:
    """The records that a validation looks at."""
    return store.records(validation)[:VALIDATION_WINDOWS] if validation else []


@torch.no_grad()
def validation_loss(
    store: LatentStore,
    network: VideoDiT,
    records: Sequence[str],
    schedule: Schedule,
    device: str | torch.device = "cpu",
) -> dict[str, float]:
    """The loss on the first window of some records, by level, with the same noise every time."""
    generator = torch.Generator().manual_seed(schedule.seed)
    figures: dict[str, list[float]] = {}
    for name in records:
        window = store.window(name)
        noise = torch.randn(1, *window.wrist.shape, generator=generator).to(device)
        with autocast(device, schedule):
            clips = make_clips(network, [window], [True], window.text, device)
            for level in VALIDATION_LEVELS:
                loss = flow_loss(network, clips, noise, torch.tensor([level], device=device))
                figures.setdefault(f"loss at {level:g}", []).append(float(loss))
    means = {name: float(np.mean(values)) for name, values in figures.items()}
    return {"loss": float(np.mean(list(means.values()))), **means} if means else {}


def autocast(device: str | torch.device, schedule: Schedule) -> torch.autocast:
    """The precision that a schedule trains in."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=schedule.bf16)


@torch.no_grad()
def _pictures(
    store: LatentStore,
    network: VideoDiT,
    records: Sequence[str],
    schedule: Schedule,
    device: str | torch.device,
    decode: Callable[[Tensor], Tensor] | None,
) -> dict[str, np.ndarray]:
    """The middle frame of some clips: condition map, what the network makes of it, the truth."""
    if decode is None:
        return {}
    generator = torch.Generator().manual_seed(schedule.seed)
    made = {}
    for name in records[:PICTURES]:
        window = store.window(name)
        noise = torch.randn(1, *window.wrist.shape, generator=generator).to(device)
        with autocast(device, schedule):
            clips = make_clips(network, [window], [True], window.text, device)
            drawn = sample_latents(
                network, noise, clips.condition, clips.context, None, steps=PICTURE_STEPS
            )
        strips = [
            to_frames(decode(latents))[store.clip // 2]
            for latents in (clips.condition, drawn, clips.clean)
        ]
        made[name] = np.concatenate(strips, axis=1)
    return made

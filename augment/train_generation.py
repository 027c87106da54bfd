"""Training of stage 2: the video DiT learns to finish condition maps that stage 1 made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.spatial.transform import Rotation
from torch import Tensor

from ..models.checkpoints import load_weights, save_weights
from ..models.generator import Condition, GeneratorConfig, WristGenerator, sample
from ..models.geometry import exact
from ..models.sweep import SweptViews
from ..readers.episode import Episode
from ..readers.errors import SourceError
from . import assess, parallel
from .checkpoint import load_trained
from .corpus import Arrays, Held
from .generate import ANCHOR_SIZE, gripper_plane, swept_views
from .pipeline import Augmenter, load_generator
from .recipe import GENERATION, Recipe
from .reconstruct import resize_frames
from .training import Schedule, describe, train

MEAN_IMAGE = "mean_wrist.png"


def disturb(poses: Tensor, rng: np.random.Generator, degrees: float, metres: float) -> Tensor:
    """World-to-camera poses [T, 4, 4], all moved by one random rotation and shift of the camera."""
    error = np.eye(4, dtype=np.float32)
    error[:3, :3] = Rotation.from_rotvec(np.deg2rad(rng.normal(0, degrees, 3))).as_matrix()
    error[:3, 3] = rng.normal(0, metres, 3)
    return torch.as_tensor(error) @ poses


def clip_rows(episode: Episode, augmenter: Augmenter, seed: int) -> dict[str, np.ndarray]:
    """One row a clip: `plain_rows`, condition maps from predicted depth, and all cameras.

    A sixth of the episodes is projected with a disturbed pose (about 1 degree and 5 mm), since no
    calibration is exact; which, and how, follows from `seed` and the record. (More of them would
    have the generator blur what a good calibration has in place.)

    Raises:
        SourceError: the episode has no calibrated cameras.
    """
    recipe = augmenter.recipe
    rng = np.random.default_rng([seed, episode.record.shard, episode.record.index])
    # Recorded depth, where there is some, is better than what the generator will be given.
    geometry = augmenter.reconstruct(episode, geometry="predicted")
    if rng.random() < 1 / 6:
        poses = disturb(geometry.wrist_pose, rng, degrees=0.6, metres=0.003)
        geometry = replace(geometry, wrist_pose=poses)
    maps, _ = augmenter.project(episode, geometry)
    blank = torch.zeros(episode.length, len(episode.anchors), 3, *ANCHOR_SIZE)
    swept = swept_views(blank, maps.cameras, np.arange(episode.length))
    if swept is None:
        raise SourceError(
            "has no calibrated cameras, which a generator learns to look along",
            record=episode.record.index,
            todo="train on a corpus that has them (`wristaugment simulate` writes one)",
        )
    steps = {
        "filled": maps.filled,
        "covered": maps.covered,
        "nearness": (maps.nearness * 255).round().astype(np.uint8),
        "swept_depth": swept.depth[0].numpy().astype(np.float16),
    }
    if swept.tool is None:
        raise SourceError(
            "has no end-effector poses, by which a generator learns where the hand is",
            record=episode.record.index,
            todo="train on a corpus that has them (`wristaugment simulate` writes one)",
        )
    for name in ("K", "pose", "wrist_K", "wrist_pose", "tool"):
        steps[f"swept_{name}"] = getattr(swept, name)[0].numpy()
    return plain_rows(episode, recipe) | _in_clips(steps, recipe.clip)


def plain_rows(episode: Episode, recipe: Recipe) -> dict[str, np.ndarray]:
    """One row a clip of what needs no geometry: the true wrist, anchors, gripper, text."""
    wrist = episode.wrist
    assert wrist is not None
    anchors = torch.stack([resize_frames(v.frames, ANCHOR_SIZE) for v in episode.anchors], dim=1)
    text = np.zeros((1, 64), np.uint8)
    data = episode.language.encode()[:64]
    text[0, : len(data)] = list(data)
    steps = {
        "wrist": assess.resize_frames(wrist.frames, recipe.wrist_size),
        "anchors": (anchors * 255).round().to(torch.uint8).numpy(),
        "gripper": gripper_plane(episode).numpy(),
    }
    rows = _in_clips(steps, recipe.clip)
    return rows | {"text": np.repeat(text, len(rows["wrist"]), 0)}


def _in_clips(steps: dict[str, np.ndarray], clip: int) -> dict[str, np.ndarray]:
    """[T, ...] -> [clips, clip, ...]; what is left at the end is left out."""
    clips = len(next(iter(steps.values()))) // clip
    return {k: v[: clips * clip].reshape(clips, clip, *v.shape[1:]) for k, v in steps.items()}


def take_clips(
    clips: Held, index: np.ndarray, views: list[int], part: slice = slice(None)
) -> tuple[Condition, Tensor]:
    """Clips `index` as the generator's input and the true clips [B, T, 3, H, W] in [-1, 1].

    Args:
        clips: of `clip_rows`; of `plain_rows`, they have no condition map and no cameras.
        views: which anchors, in which order. part: which frames.
    """

    def rows(name: str) -> Tensor:
        return clips.rows(name, index, part)

    def picture(name: str) -> Tensor:
        return rows(name).permute(0, 1, 4, 2, 3).float() / 127.5 - 1

    text, truth = clips.rows("text", index).long(), picture("wrist")
    anchors = rows("anchors")[:, :, views].float() / 255
    nothing = torch.zeros_like(truth)
    condition = Condition(
        filled=nothing,
        covered=nothing[:, :, :1],
        nearness=nothing[:, :, :1],
        anchors=anchors,
        text=torch.where(text > 0, text + 1, text),
        gripper=rows("gripper").float(),
    )
    if "filled" not in clips.names:
        return condition, truth
    condition = replace(
        condition,
        filled=picture("filled"),
        covered=rows("covered").float()[:, :, None],
        nearness=rows("nearness").float()[:, :, None] / 255,
        views=SweptViews(
            colors=anchors,
            K=rows("swept_K")[:, :, views],
            pose=rows("swept_pose")[:, :, views],
            depth=rows("swept_depth")[:, :, views].float(),
            wrist_K=rows("swept_wrist_K"),
            wrist_pose=rows("swept_wrist_pose"),
            tool=rows("swept_tool"),
        ),
    )
    return condition, truth


def jitter_clip(condition: Condition, truth: Tensor, generator: torch.Generator):
    """One random gain a channel and clip on everything that shows the scene."""
    B = len(truth)
    gain = (0.85 + 0.3 * torch.rand(B, 1, 3, 1, 1, generator=generator)).to(truth.device)

    def shade(x: Tensor) -> Tensor:
        return ((x + 1) * gain - 1).clamp(-1, 1)

    anchors = (condition.anchors * gain[:, None]).clamp(0, 1)
    views = condition.views and replace(condition.views, colors=anchors)
    changed = replace(condition, filled=shade(condition.filled), anchors=anchors, views=views)
    return changed, shade(truth)


@exact()
def similarity(made: Tensor, truth: Tensor) -> Tensor:
    """Mean SSIM (Wang et al. 2004) of [N, 3, H, W] in [-1, 1], windowed as `assess.ssim` is."""
    steps = torch.arange(-5, 6, device=made.device)
    bell = torch.exp(-steps.square() / (2 * 1.5**2))
    bell = bell / bell.sum()

    def blur(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, bell.view(1, 1, 1, -1)), bell.view(1, 1, -1, 1))

    a, b = (x.flatten(0, 1)[:, None] + 1 for x in (made, truth))  # its means count from black
    mean_a, mean_b = blur(a), blur(b)
    spread = blur(a * a) - mean_a**2 + blur(b * b) - mean_b**2
    both = blur(a * b) - mean_a * mean_b
    c1, c2 = (2 * 0.01) ** 2, (2 * 0.03) ** 2
    level = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return (level * (2 * both + c2) / (spread + c2)).mean()


def train_generation(
    arrays: Arrays,
    schedule: Schedule,
    folder: Path,
    *,
    config: GeneratorConfig | None = None,
    one_step: float = 0.85,
    drop: float = 0.1,
    unswept: float = 0.15,
    fewer: float = 0.0,
    lengths: tuple[int, ...] = (2, 4, 8),
    initial: Path | None = None,
    validation: Arrays | None = None,
    file: str = GENERATION,
    source: str = "",
    device: str = "cpu",
) -> Path:
    """Train stage 2 and write its weights, and the mean wrist picture, into `folder`.

    The first `one_step` share of the steps sees pure noise alone, which makes it a regression from
    the condition; then noise levels are drawn over (0, 1]. (A flow that starts from a regression
    was found to need fewer sampling steps than one from scratch.)

    Args:
        drop: share of clips without anchor and text tokens, for classifier-free guidance.
        unswept: share of the steps that are given the condition map alone.
        fewer: share of the steps that are shown some of the anchors only, at least one and not all,
            drawn anew, so that the network meets an episode with fewer anchors than it learnt on.
            The condition map stays that of all of them.
        lengths: frames of a step's clips, drawn from these. A batch has more of the short ones, so
            that every step has as many frames: those of one clip are alike, and attention over a
            long one costs more than over many short ones.
        initial: weights to start from. validation: what `schedule.validate_every` measures on.
        file: the weights' name; what a training needs to go on lies in a folder of the same name.
        source: what is trained on, in words, for the weights' header; without it they say nothing.
        device: "cpu" or "cuda".
    """
    torch.manual_seed(schedule.seed)
    config = config or GeneratorConfig()
    network = WristGenerator(config)
    if initial is not None:
        load_weights(initial, network)
    network.to(device)
    whole, views = arrays["anchors"].shape[1:3]
    clips = arrays.held(device)
    held = None if validation is None else validation.held("cpu")

    def losses(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        drawn = int(torch.randint(len(lengths), (), generator=generator))
        frames = min(lengths[drawn], whole)
        batch = schedule.batch * whole // frames
        index = torch.randint(len(arrays), (batch,), generator=generator).numpy()
        order = torch.randperm(views, generator=generator).tolist()
        # Nothing is drawn where nothing is asked for: trainings stay what they were.
        if fewer and views > 1 and float(torch.rand((), generator=generator)) < fewer:
            order = order[: int(torch.randint(1, views, (), generator=generator))]
        start = int(torch.randint(whole - frames + 1, (), generator=generator))
        part = slice(start, start + frames)
        condition, truth = take_clips(clips, np.sort(index), order, part)
        said = torch.rand(batch, 1, generator=generator) >= drop
        condition = replace(condition, gripper=condition.gripper * said.to(truth.device))
        condition, truth = jitter_clip(condition, truth, generator)
        B = len(truth)
        sigma = torch.ones(B)
        if step >= one_step * schedule.steps:
            level = torch.rand(B, generator=generator).clamp_min(0.05)
            sigma = torch.where(torch.rand(B, generator=generator) < 0.7, sigma, level)
        # Noise is drawn where it is used: a core would take longer over it than a GPU over a step.
        drawing = torch.Generator(truth.device)
        drawing.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        noise = torch.randn(truth.shape, generator=drawing, device=truth.device)
        sigma = sigma.to(truth.device)
        level = sigma[:, None, None, None, None]
        noisy = (1 - level) * truth + level * noise
        keep = (torch.rand(B, generator=generator) >= drop).to(truth.device)
        context, _ = network.encode_context(condition, keep)
        # Without calibrated cameras there is nothing to sweep: the map alone must do then.
        blind = float(torch.rand((), generator=generator)) < unswept
        looked = None if blind else network.look(condition)
        clean = network(noisy, sigma, condition, context, looked).float()
        # A little of the gradient's error keeps edges that a squared error alone would blur.
        squared = (clean - truth).square().mean()
        absolute = (clean - truth).abs().mean()
        dx = (clean.diff(dim=-1) - truth.diff(dim=-1)).abs().mean()
        dy = (clean.diff(dim=-2) - truth.diff(dim=-2)).abs().mean()
        # So does structural similarity, which a mean over what may be there has little of (Zhao et
        # al. 2017, "Loss functions for image restoration with neural networks").
        unlike = 1 - similarity(clean.flatten(0, 1), truth.flatten(0, 1))
        loss = squared + 0.2 * absolute + 0.2 * (dx + dy) + 0.1 * unlike
        # And an error that stays where it is flickers less than one that comes and goes.
        if frames > 1:
            loss = loss + 0.2 * (clean.diff(dim=1) - truth.diff(dim=1)).abs().mean()
        base = F.mse_loss(condition.filled, truth)
        return {
            "loss": loss,
            "psnr": -10 * torch.log10(squared.detach() / 4),
            "psnr_map": -10 * torch.log10(base / 4),
        }

    average = train(
        network,
        losses,
        schedule,
        folder / Path(file).stem,
        device=device,
        validate=None if held is None else lambda: measure(network, held, schedule.seed),
        images=None if held is None else lambda: picture(network, held, schedule.seed),
    )
    load_trained(network, average.values)
    path = folder / file
    if parallel.rank() > 0:
        return path
    training = None
    if source:
        training = describe(schedule, arrays, source=source, frames=whole, initial=initial)
        training |= {"fewer": fewer} if fewer else {}
    save_weights(path, network, config.to_dict(), training=training)
    mean = np.zeros(arrays["wrist"].shape[2:], np.float64)
    for row in range(len(arrays)):
        mean += arrays["wrist"][row].mean(axis=0)
    Image.fromarray((mean / len(arrays)).round().astype(np.uint8)).save(folder / MEAN_IMAGE)
    return path


def validate(path: Path, arrays: Arrays, seed: int, batch: int = 4) -> dict[str, float]:
    """`measure` of a weights file."""
    return measure(load_generator(path), arrays.held("cpu"), seed, batch)


@torch.no_grad()
def picture(network: WristGenerator, clips: Held, seed: int) -> dict[str, np.ndarray]:
    """The first clip's condition maps, what is made of them, and the truth, in rows."""
    condition, truth, made = _sampled(network, clips, np.arange(1), seed, steps=1)
    tiled = torch.cat(
        [torch.cat(list(row[0]), dim=2) for row in (condition.filled, made, truth)], 1
    )
    tiled = (tiled.clamp(-1, 1) + 1) * 127.5
    return {"map_made_truth": tiled.round().to(torch.uint8).permute(1, 2, 0).numpy()}


def _sampled(
    network: WristGenerator, clips: Held, index: np.ndarray, seed: int, steps: int
) -> tuple[Condition, Tensor, Tensor]:
    """Clips `index`, the truth, and what is made of them from noise of `seed`, in main memory."""
    condition, truth = take_clips(clips, index, list(range(clips.shape("anchors")[2])))
    generator = torch.Generator().manual_seed(seed + int(index[0]))
    noise = torch.randn(truth.shape, generator=generator)
    device = next(network.parameters()).device
    given = condition.to(device)
    made = sample(network, given, noise.to(device), steps=steps, guidance=1.0)
    return condition, truth, made.cpu()


@torch.no_grad()
def measure(
    network: WristGenerator, clips: Held, seed: int, batch: int = 4, number: int = 20
) -> dict[str, float]:
    """Mean PSNR in dB over the first `number` clips, by sampling steps, and of the map alone."""
    found: dict[str, list[Tensor]] = {}

    def note(name: str, clip: Tensor, truth: Tensor) -> None:
        error = (clip - truth).square().mean((2, 3, 4)) / 4
        found.setdefault(name, []).append((-10 * torch.log10(error)).flatten())

    end = min(len(clips), number)
    for start in range(0, end, batch):
        index = np.arange(start, min(end, start + batch))
        for steps in (1, 3):
            condition, truth, made = _sampled(network, clips, index, seed, steps)
            note(f"psnr_steps{steps}", made, truth)
        note("psnr_map", condition.filled, truth)
    return {name: float(torch.cat(values).mean()) for name, values in sorted(found.items())}

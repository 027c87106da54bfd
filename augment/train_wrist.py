"""Training of the wrist head of the recipes `paper` and `official`, on a frozen VGGT.

Needs pictures of the anchors and of the hand camera, and no depth; what is calibrated is used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from ..models.checkpoints import mismatch, read_config, save_weights
from ..models.correspond import correspond, read_heads
from ..models.errors import WeightsError
from ..models.geometry import decode_pose, exact, project, rescale_intrinsics, rotation_angle
from ..models.vggt import VGGT
from ..models.wrist import WRIST_HEADS
from ..readers.episode import Episode
from ..readers.errors import SourceError
from . import parallel
from .corpus import Arrays
from .recipe import RECONSTRUCTION, Recipe
from .reconstruct import network_size, resize_frames
from .training import Schedule, train
from .wrist_losses import (
    SETTINGS,
    Batch,
    WristSettings,
    centres,
    known_anchors,
    measured_cameras,
    network_scale,
    pixel_errors,
    relative,
    wrist_intrinsics,
    wrist_losses,
)


def _resized(frames: np.ndarray, size: tuple[int, int], part: int = 32) -> np.ndarray:
    """[T, H, W, 3] uint8 -> [T, 3, h, w] uint8, some frames at a time (floats are large)."""
    found = [
        (resize_frames(frames[i : i + part], size) * 255).round().to(torch.uint8).numpy()
        for i in range(0, len(frames), part)
    ]
    return np.concatenate(found)


def _wrist_K(episode: Episode, size: tuple[int, int], hfov: float) -> tuple[np.ndarray, bool]:
    """Intrinsics of the hand camera at `size`, and whether they are the data's."""
    wrist = episode.wrist
    assert wrist is not None
    K, of = (wrist.K, wrist.size) if wrist.K is not None else (episode.wrist_K, episode.wrist_size)
    if K is not None and of is not None:
        return rescale_intrinsics(torch.as_tensor(K).float(), of, size).numpy(), True
    H, W = wrist.size
    focal = W / 2 / np.tan(np.radians(hfov) / 2)
    K = np.array([[focal, 0, (W - 1) / 2], [0, focal, (H - 1) / 2], [0, 0, 1]], np.float32)
    return rescale_intrinsics(torch.as_tensor(K), wrist.size, size).numpy(), False


def wrist_rows(
    episode: Episode, recipe: Recipe, *, views: int | None = None, every: int = 1
) -> dict[str, np.ndarray]:
    """One row a timestep (or every few) of all that a training step needs.

    Args:
        views: anchors to use, the first ones; every row of a corpus must have as many (default:
            all of the episode's).
        every: timesteps between rows; full-size rows are 2.4 MB each.

    Returns:
        images [T, S, 3, h, w] and wrist [T, 3, h, w] uint8; wrist_K [T, 3, 3] at (h, w), where the
        data have none from `recipe.wrist_hfov`, and wrist_K_known [T]; K [T, S, 3, 3], pose
        [T, S, 4, 4] and wrist_pose [T, 4, 4], NaN where they are not known.

    Raises:
        SourceError: no recorded wrist view, or fewer anchors than `views`.
    """
    record = episode.record.index
    views = views or len(episode.anchors)
    if episode.wrist is None:
        raise SourceError(
            "has no recorded wrist view to learn from",
            record=record,
            todo="train on a corpus that has one",
        )
    if len(episode.anchors) < views:
        raise SourceError(
            f"has {len(episode.anchors)} usable anchor views, and {views} are trained on",
            record=record,
            todo="leave the episode out, or train on fewer views",
        )
    anchors = episode.anchors[:views]
    size = network_size(*anchors[0].size, recipe)
    steps = np.arange(0, episode.length, every)
    T = len(steps)
    K = np.full((T, views, 3, 3), np.nan, np.float32)
    pose = np.full((T, views, 4, 4), np.nan, np.float32)
    for s, view in enumerate(anchors):
        if view.K is not None:
            K[:, s] = rescale_intrinsics(torch.as_tensor(view.K).float(), view.size, size)
        if view.pose is not None:
            pose[:, s] = np.broadcast_to(view.pose, (episode.length, 4, 4))[steps]
    wrist_pose = np.full((T, 4, 4), np.nan, np.float32)
    measured = episode.measured_wrist_pose()
    if measured is not None:
        wrist_pose[:] = measured[steps]
    wrist_K, known = _wrist_K(episode, size, recipe.wrist_hfov)
    return {
        "images": np.stack([_resized(view.frames[steps], size) for view in anchors], axis=1),
        "wrist": _resized(episode.wrist.frames[steps], size),
        "wrist_K": np.repeat(wrist_K[None], T, 0),
        "wrist_K_known": np.full(T, known),
        "K": K,
        "pose": pose,
        "wrist_pose": wrist_pose,
    }


def wrist_batch(arrays: Arrays, index: np.ndarray, device: torch.device | str = "cpu") -> Batch:
    """Rows `index` of `wrist_rows` as float tensors, pictures in [0, 1]."""
    batch = {
        name: torch.as_tensor(np.ascontiguousarray(arrays[name][index])).to(device).float()
        for name in arrays.values
    }
    return batch | {name: batch[name] / 255 for name in ("images", "wrist")}


class WristTraining(nn.Module):
    """What is trained, and no more: the wrist head, and the camera head where it is.

    The heads are the base's own; its state_dict has their names in the base.
    """

    def __init__(self, base: VGGT, camera: bool):
        super().__init__()
        assert base.wrist_head is not None
        self.wrist_head = base.wrist_head
        if camera:
            self.camera_head = base.camera_head
        self.requires_grad_(True)

    def enable_gradient_checkpointing(self) -> None:
        """Compute the wrist head's layers again on the way back; the camera head has few tokens."""
        self.wrist_head.recompute = True

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Last layer's tokens [B, S, P, 2C] -> wrist [iterations, B, 9] and, where it is trained,
        cameras [iterations, B, S, 9]."""
        head = getattr(self, "camera_head", None)
        return self.wrist_head(tokens), None if head is None else head(tokens)


@torch.no_grad()
def observe(base: VGGT, batch: Batch, settings: WristSettings):
    """All that the frozen parts give.

    Returns:
        the last layer's tokens of the anchors, the correspondences, and the scale [B] (see
        `network_scale`).
    """
    dtype = next(base.aggregator.parameters()).dtype
    anchors, wrist = batch["images"].to(dtype), batch["wrist"].to(dtype)
    size = (anchors.shape[-2], anchors.shape[-1])
    heads = set(settings.matching.heads)
    if base.camera_head is not None:
        heads.add("camera")
    tokens = base.aggregate(anchors)
    geometry = read_heads(base, anchors, tokens, sorted(heads))
    cameras = None if geometry.cameras is None else geometry.cameras[-1]
    with exact():
        scale = network_scale(cameras, batch["pose"], settings.metric)
        K = pose = None
        if settings.matching.known_cameras and cameras is not None:
            K, pose = measured_cameras(batch, cameras, scale, size)
    found = correspond(base, wrist, anchors, settings.matching, K=K, pose=pose, geometry=geometry)
    return tokens[base.last], found, scale


def _settle(
    arrays: Arrays, base: VGGT, form: str, settings: WristSettings, say: Callable[[str], object]
) -> WristSettings:
    """The settings as they can be kept on these data; ValueError for a base that cannot."""
    if base.config.wrist_kind != form or base.wrist_head is None:
        found = base.config.wrist_kind if base.wrist_head is not None else "none"
        raise ValueError(f"a base with the {form} wrist head is trained; this one's is {found}")
    needed = {"track", *settings.matching.heads} | ({"camera"} if settings.camera > 0 else set())
    missing = sorted(needed - set(base.config.heads_built))
    if missing:
        raise ValueError(f"training the wrist head needs the {', '.join(missing)} head as well")
    poses = np.isfinite(arrays["pose"]).all((1, 2, 3)) & np.isfinite(arrays["K"]).all((1, 2, 3))
    share, views = float(poses.mean()), arrays["pose"].shape[1]
    if not arrays["wrist_K_known"].all():
        say(
            "the data have no intrinsics of the hand camera on "
            f"{1 - arrays['wrist_K_known'].mean():.0%} of the rows: the recipe's field of view is "
            "taken for them"
        )
    if settings.camera > 0 and (share == 0 or (views < 2 and not settings.metric)):
        why = "are not calibrated" if share == 0 else "are one view, which has no scale"
        say(f"the anchors {why}: the camera head stays as it is")
        settings = replace(settings, camera=0.0)
    lacking = [
        name
        for name in ("translation", "rotation")
        if getattr(settings, name) > 0
        and (share == 0 or not np.isfinite(arrays["wrist_pose"]).all((1, 2)).any())
    ]
    if lacking:
        say(f"no wrist pose is measured: the L1 term on {' and '.join(lacking)} is left out")
        settings = replace(settings, **dict.fromkeys(lacking, 0.0))
    scaled = settings.metric or (views > 1 and base.camera_head is not None)
    if settings.translation > 0 and not scaled:
        say(
            "the scale of the network's world cannot be told without two anchors and the camera "
            "head: the L1 term on translation is left out"
        )
        settings = replace(settings, translation=0.0)
    return settings


def train_wrist(
    arrays: Arrays,
    base: VGGT,
    schedule: Schedule,
    folder: Path,
    *,
    form: str,
    settings: WristSettings | None = None,
    base_sha256: str = "",
    initial: Path | None = None,
    new_head: bool | None = None,
    validation: Arrays | None = None,
    say: Callable[[str], object] = lambda text: None,
) -> Path:
    """Train the wrist head and write `reconstruction.safetensors` into `folder`.

    Args:
        arrays: of `wrist_rows`.
        base: with its weights, on its device; its heads are trained in place (in float32), all else
            is frozen. Its aggregator may be in half precision, the other heads should not.
        form: "paper" or "official", which must be the base's `wrist_kind`.
        settings: default: those of the form (`SETTINGS`).
        base_sha256: of the file that the base was loaded from, for the header.
        initial: a file of an earlier training to start from.
        new_head: start from a new wrist head rather than the base's (default: in the paper's form,
            which no public file has).
        validation: rows that `validate_wrist` reports on as training goes.
        say: gets a line for every term that the data cannot feed.

    Raises:
        ValueError: an unknown form, a wrist head of another form, heads that were not built.
        WeightsError: `initial` is not of this network.
    """
    if form not in SETTINGS:
        raise ValueError(f"the wrist head is trained as {' or '.join(SETTINGS)}; found {form}")
    settings = _settle(arrays, base, form, settings or SETTINGS[form], say)
    device = next(base.parameters()).device
    base.eval().requires_grad_(False)
    torch.manual_seed(schedule.seed)
    if initial is not None:
        load_wrist(initial, base, base_sha256=base_sha256)
    elif form == "paper" if new_head is None else new_head:
        head = WRIST_HEADS[form](2 * base.config.dim, **base.config.wrist)
        base.wrist_head = head.to(device)
    module = WristTraining(base, settings.camera > 0)
    module.float()  # optimizer steps are smaller than what bfloat16 weights can tell apart
    size = (arrays["images"].shape[-2], arrays["images"].shape[-1])

    def losses(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        index = torch.randint(len(arrays), (schedule.batch,), generator=generator).numpy()
        batch = wrist_batch(arrays, np.sort(index), device)
        tokens, found, scale = observe(base, batch, settings)
        # Dropout draws from the global generator; this makes it a function of the step.
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        encodings, cameras = module(tokens.float())
        return wrist_losses(encodings, cameras, batch, found, scale, size, settings)

    more: dict[str, Any] = {}
    if validation is not None:
        more["validate"] = lambda: validate_wrist(base, validation, settings, bf16=schedule.bf16)
        more["images"] = lambda: show_matches(base, validation, settings)
    if settings.camera > 0:
        more["factors"] = {"camera_head.": settings.camera_rate / schedule.rate}
    average = train(module, losses, schedule, folder / "reconstruction", device=device.type, **more)
    module.load_state_dict(average.values)
    path = folder / RECONSTRUCTION
    if parallel.rank() == 0:
        header = _header(base, module, arrays, form, settings, base_sha256)
        save_weights(path, module, header, dtype=torch.float32)
    return path


def _header(
    base: VGGT,
    module: WristTraining,
    arrays: Arrays,
    form: str,
    settings: WristSettings,
    base_sha256: str,
) -> dict:
    """What is written beside the weights. The field of view is the hand camera's in the corpus,
    (high, wide) in radians: in the paper's form the head itself does not learn it."""
    H, W = arrays["images"].shape[-2:]
    K = np.asarray(arrays["wrist_K"], np.float64)
    fov = [2 * np.arctan(side / 2 / np.median(K[:, i, i])) for side, i in ((H, 1), (W, 0))]
    return {
        "form": form,
        "trained": sorted(name.removesuffix("_head") for name, _ in module.named_children()),
        "wrist_kind": base.config.wrist_kind,
        "wrist": base.config.wrist,
        "dim": base.config.dim,
        "base_sha256": base_sha256,
        "size": [int(H), int(W)],
        "views": int(arrays["images"].shape[1]),
        "wrist_fov": [round(float(x), 6) for x in fov],
        "settings": asdict(settings),
    }


def load_wrist(path: Path, network: VGGT, *, base_sha256: str = "") -> dict:
    """Load what `train_wrist` wrote into a network that holds the base's weights, strictly.

    A trained camera head is left out where the network has not built one.

    Args:
        base_sha256: of the network's file; where given, it must be the one that was trained on.

    Returns:
        the file's header.

    Raises:
        WeightsError: no such file, not one of `train_wrist`, another wrist head or base, or keys
            and shapes that are not the network's.
    """
    config = read_config(path)

    def refuse(found: str, todo: str = "train it again, or name another --weights"):
        return WeightsError(f"{path}: {found}; {todo}")

    if not {"wrist_kind", "wrist", "trained", "base_sha256"} <= config.keys():
        raise refuse("is not a trained wrist head of the recipes paper and official")
    if network.wrist_head is None:
        raise ValueError("this VGGT was built without its wrist head; name it in heads_built")
    own = network.config
    if config["wrist_kind"] != own.wrist_kind:
        raise refuse(
            f"has a wrist head of the form {config['wrist_kind']}, and the recipe's is "
            f"{own.wrist_kind}"
        )
    trained_on = config["base_sha256"]
    if base_sha256 and trained_on and base_sha256 != trained_on:
        raise refuse(
            f"was trained on a VGGT with sha256 {trained_on[:12]}, and this one's is "
            f"{base_sha256[:12]}"
        )
    heads = {
        f"{name}_head": head
        for name in config["trained"]
        if (head := getattr(network, f"{name}_head", None)) is not None
    }
    left = tuple(f"{name}_head." for name in config["trained"] if f"{name}_head" not in heads)
    with safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if not name.startswith(left)]  # noqa: SIM118
        state = {name: file.get_tensor(name) for name in names}
    wanted = {
        f"{part}.{name}": list(value.shape)
        for part, head in heads.items()
        for name, value in head.state_dict().items()
    }
    wrong = mismatch(wanted, {name: list(value.shape) for name, value in state.items()})
    if wrong:
        raise refuse(f"not the weights of this wrist head ({wrong})")
    for part, head in heads.items():
        values = {
            name: state[f"{part}.{name}"].to(value.dtype)
            for name, value in head.state_dict().items()
        }
        head.load_state_dict(values, assign=any(p.is_meta for p in head.parameters()))
    return config


@torch.no_grad()
def validate_wrist(
    base: VGGT,
    arrays: Arrays,
    settings: WristSettings,
    *,
    batch: int = 4,
    most: int = 256,
    bf16: bool = False,
) -> dict[str, float]:
    """What the wrist head reaches on rows that it has not seen; medians, and means of shares.

    - reprojection_px: distance of correspondences (found by tracking) in front from their pixels;
      front_share of them, and matched, the share of queries and anchors that gave one;
    - where the wrist pose is measured wrist_deg, and, where the scale can be known too, wrist_cm:
      the centre's error in centimetres, the prediction divided by `network_scale`;
    - wrist_fov_deg: of the horizontal field of view.

    Args:
        most: rows that are looked at, evenly spread. bf16: autocast.
    """
    assert base.wrist_head is not None
    size = (arrays["images"].shape[-2], arrays["images"].shape[-1])
    device = next(base.parameters()).device
    rows = np.unique(np.linspace(0, len(arrays) - 1, min(most, len(arrays))).round().astype(int))
    modes = [(module, module.training) for module in base.modules()]
    base.eval()
    found: dict[str, list[Tensor]] = {}

    def note(name: str, value: Tensor) -> None:
        found.setdefault(name, []).append(value.detach().flatten().float().cpu())

    for start in range(0, len(rows), batch):
        b = wrist_batch(arrays, rows[start : start + batch], device)
        dtype = next(base.wrist_head.parameters()).dtype
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            tokens, matches, scale = observe(base, b, settings)
            encoding = base.wrist_head(tokens.to(dtype))[-1].float()
        pose, K_head = decode_pose(encoding, size)
        K = wrist_intrinsics(b, size, settings)
        errors, front = pixel_errors(matches, K, pose)
        note("reprojection_px", errors)
        note("front_share", front)
        note("matched", matches.valid.float().mean())
        half = [torch.atan(size[1] / 2 / k[:, 0, 0]) for k in (K, K_head)]
        note("wrist_fov_deg", torch.rad2deg(2 * (half[0] - half[1]).abs()))
        known = known_anchors(b) & b["wrist_pose"].isfinite().flatten(1).all(1)
        if not known.any():
            continue
        truth = relative(b["wrist_pose"][known], b["pose"][known, 0], torch.ones_like(scale[known]))
        note("wrist_deg", rotation_angle(pose[known, :3, :3], truth[:, :3, :3]))
        off = centres(pose[known]) / scale[known, None] - centres(truth)
        note("wrist_cm", 100 * off.norm(dim=-1)[scale[known].isfinite()])
    for module, mode in modes:
        module.training = mode
    joined = {name: torch.cat(values) for name, values in sorted(found.items())}
    return {
        name: float(value.mean() if name in ("front_share", "matched") else value.median())
        for name, value in joined.items()
        if len(value)
    }


@torch.no_grad()
def show_matches(
    base: VGGT, arrays: Arrays, settings: WristSettings, *, row: int = 0, bf16: bool = False
) -> dict[str, np.ndarray]:
    """The wrist picture of a row with its correspondences: green where the tracks say that points
    are, red where the predicted pose puts them; [H, W, 3] uint8 by name, for logs."""
    assert base.wrist_head is not None
    device = next(base.parameters()).device
    b = wrist_batch(arrays, np.array([row]), device)
    H, W = b["wrist"].shape[-2:]
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        tokens, found, _ = observe(base, b, settings)
        encoding = base.wrist_head(tokens.to(next(base.wrist_head.parameters()).dtype))[-1].float()
    pose, _ = decode_pose(encoding, (H, W))
    places, z = project(found.points, wrist_intrinsics(b, (H, W), settings), pose)
    picture = (b["wrist"][0].permute(1, 2, 0) * 255).round().to(torch.uint8).cpu().numpy()
    counts = found.valid[0]
    marks = (((0, 255, 0), found.pixels[0], counts), ((255, 0, 0), places[0], counts & (z[0] > 0)))
    reach = max(0, W // 256)
    for color, where, shown in marks:
        for x, y in where[shown].clamp(-1e6, 1e6).round().long().tolist():
            if 0 <= x < W and 0 <= y < H:
                picture[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1] = (
                    color
                )
    return {"wrist_matches": picture}

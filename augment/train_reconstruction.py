"""Training of stage 1 on a corpus with depth and calibration: depth, cameras, the wrist by SPC."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.checkpoints import load_weights, save_weights
from ..models.geometry import (
    calibrated_rays,
    decode_pose,
    encode_pose,
    exact,
    project,
    rescale_intrinsics,
    rotation_angle,
    tool_axis,
    transform,
    unproject,
)
from ..models.spc import spc_loss
from ..models.vggt import VGGT, Geometry, VGGTConfig
from ..models.wrist import WRIST_HEADS
from ..readers.episode import Episode, View
from . import parallel
from .checkpoint import load_trained
from .corpus import Arrays, Held, require_calibration
from .recipe import RECONSTRUCTION, Recipe
from .reconstruct import network_size, resize_frames
from .training import Schedule, describe, train

NANO = VGGTConfig(
    dim=192,
    depth=4,
    heads=3,
    encoder_depth=2,
    encoder_heads=3,
    grid=14,
    layers=(0, 1, 2, 3),
    dpt_features=32,
    dpt_widths=(32, 64, 96, 96),
    camera_depth=2,
    camera_heads=6,
    heads_built=("camera", "depth", "wrist"),
    ray_channels=9,
    wrist={"dim": 192, "depth": 3, "heads": 8, "queries": 4},
)
WRIST_GRID = (18, 32)  # wrist pixels that correspondences are made of


def nearest_resize(depth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[T, H, W] -> [T, h, w] by the nearest pixel centre: depths must not be mixed."""
    H, W = depth.shape[1:]
    rows = ((np.arange(size[0]) + 0.5) * H / size[0]).astype(int)
    columns = ((np.arange(size[1]) + 0.5) * W / size[1]).astype(int)
    return depth[:, rows[:, None], columns[None]]


def frame_rows(episode: Episode, recipe: Recipe) -> dict[str, np.ndarray]:
    """One row a timestep of everything that a training step needs."""
    require_calibration(episode)
    size = network_size(*episode.anchors[0].size, recipe)
    wrist = episode.wrist
    assert wrist is not None and wrist.depth is not None and wrist.K is not None
    assert episode.eef_pose is not None
    T = len(wrist.frames)

    def scaled_K(view: View, to: tuple[int, int]) -> np.ndarray:
        K = torch.as_tensor(view.K).float()
        return rescale_intrinsics(K, view.size, to).numpy()

    images = [
        (resize_frames(v.frames, size) * 255).round().to(torch.uint8).numpy()
        for v in episode.anchors
    ]
    stack = [nearest_resize(v.depth, size) for v in episode.anchors if v.depth is not None]
    calibration = {
        "K": np.stack([scaled_K(v, size) for v in episode.anchors]),
        "pose": np.stack([np.asarray(v.pose, np.float32) for v in episode.anchors]),
        "wrist_K": scaled_K(wrist, WRIST_GRID),
    }
    rows = {name: np.repeat(value[None].astype(np.float32), T, 0)
            for name, value in calibration.items()}  # fmt: skip
    measured = episode.measured_wrist_pose()
    assert measured is not None
    return rows | {
        "images": np.stack(images, axis=1),
        "depth": np.stack(stack, axis=1).astype(np.float16),
        "wrist_depth": nearest_resize(wrist.depth, WRIST_GRID).astype(np.float16),
        "wrist_pose": measured.astype(np.float32),
        "tool": tool_axis(torch.as_tensor(episode.eef_pose).float()).numpy(),
    }


def take_batch(
    frames: Held, index: np.ndarray, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """Rows `index` as float tensors; with a generator, the views of each in a random order."""
    batch = {}
    views = frames.shape("images")[1]
    order = torch.arange(views).expand(len(index), views)
    if generator is not None:
        order = torch.rand(len(index), views, generator=generator).argsort(dim=1)
    order, row = (x.to(frames.device) for x in (order, torch.arange(len(index))[:, None]))
    for name in frames.names:
        value = frames.rows(name, index)
        if name in ("images", "depth", "K", "pose"):
            value = value[row, order]
        batch[name] = value.float()
    batch["images"] /= 255
    return batch


def jitter_colors(images: Tensor, generator: torch.Generator) -> Tensor:
    """A random gain a channel, offset and contrast, the same for all views of a timestep."""
    B = len(images)

    def draw(*shape: int, low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(*shape, generator=generator)).to(images.device)

    gain = draw(B, 1, 3, 1, 1, low=0.85, high=1.15) * draw(B, 1, 1, 1, 1, low=0.8, high=1.2)
    return (images * gain + draw(B, 1, 1, 1, 1, low=-0.08, high=0.08)).clamp(0, 1)


def correspondences(batch: dict[str, Tensor], depth: Tensor, confidence_from: float = 0.015):
    """Wrist pixels and the anchor points they see, through the corpus's true depth.

    A wrist pixel is matched with an anchor pixel where both see one surface point (their depths
    agree within `confidence_from` metres); the point is then lifted from the *predicted* depth.

    Args:
        depth: [B, S, h, w] predicted, metres.

    Returns:
        points [B, M, 3] in the first anchor's frame, pixels [B, M, 2], valid [B, M].
    """
    B, S, h, w = depth.shape
    z = batch["wrist_depth"]
    truth = unproject(z, batch["wrist_K"], batch["wrist_pose"]).flatten(1, 2)  # base frame
    M = truth.shape[1]
    rows, columns = (torch.arange(n, device=z.device) for n in WRIST_GRID)
    ys, xs = torch.meshgrid(rows, columns, indexing="ij")
    pixels = torch.stack([xs, ys], -1).flatten(0, 1).float().expand(B, M, 2)
    points = z.new_zeros(B, M, 3)
    valid = torch.zeros(B, M, dtype=torch.bool, device=z.device)
    for s in range(S):
        uv, seen_z = project(truth, batch["K"][:, s], batch["pose"][:, s])
        grid = torch.stack([(uv[..., 0] + 0.5) / w, (uv[..., 1] + 0.5) / h], -1) * 2 - 1
        grid = grid.clamp(-4, 4)[:, :, None]

        def look(image: Tensor, mode: str, grid: Tensor = grid) -> Tensor:
            return F.grid_sample(image[:, None], grid, mode=mode, align_corners=False)[:, 0, :, 0]

        true_z = look(batch["depth"][:, s], "nearest")
        inside = (grid.abs() < 1).all(-1)[:, :, 0] & (seen_z > 0.1) & (z.flatten(1) > 0)
        match = inside & ((true_z - seen_z).abs() < confidence_from) & ~valid
        guess = look(depth[:, s], "bilinear")
        ray = torch.cat([uv, torch.ones_like(uv[..., :1])], -1)
        local = torch.einsum("bij,bmj->bmi", torch.linalg.inv(batch["K"][:, s]), ray)
        local = local * guess[..., None]
        # Camera s -> base -> first anchor.
        to_first = batch["pose"][:, 0] @ torch.linalg.inv(batch["pose"][:, s])
        points = torch.where(match[..., None], transform(to_first, local), points)
        valid |= match
    return points, pixels, valid


def relevance(batch: dict[str, Tensor], raised: float = 4.0) -> Tensor:
    """[B, S, h, w] how much a depth error of each anchor pixel shows in the wrist view.

    A point's error moves its picture by f / distance to the hand camera; what lies behind that
    camera or beyond a metre it hardly sees. Without it the walls, where depth is a guess and half
    a metre wrong, outweigh the table and the gripper together.

    Args:
        raised: factor on what stands out of the table, which has few of the pixels: an object that
            is taken for a picture on the table is drawn in another place.
    """
    points = unproject(batch["depth"], batch["K"], batch["pose"])
    seen = transform(batch["wrist_pose"], points.flatten(1, 3)).view_as(points)
    distance = seen.square().sum(-1).sqrt()
    weight = (0.25 / distance.clamp_min(1e-3)).clamp_max(2.0)
    weight = torch.where(points[..., 2] > 0.01, raised * weight, weight)
    return torch.where((seen[..., 2] < 0) | (distance > 1.0), 0.05, weight)


def bound_gradient(x: Tensor, norm: float) -> Tensor:
    """`x`, whose gradient is cut to `norm` per sample on the way back.

    The projection's gradient grows as 1/z, and one point close to the camera plane would otherwise
    outshout every other loss of the step.
    """
    if x.requires_grad:
        x.register_hook(lambda g: g * (norm / g.flatten(1).norm(dim=1).clamp_min(norm)).view(-1, 1))
    return x


def stage_losses(
    out: Geometry,
    batch: dict[str, Tensor],
    *,
    with_rays: bool,
    spc_weight: float,
) -> dict[str, Tensor]:
    """Every loss of stage 1; `loss` is their weighted sum."""
    assert out.depth is not None and out.depth_confidence is not None
    assert out.cameras is not None and out.wrist is not None
    known = (batch["depth"] > 0.05) & (batch["depth"] < 4)
    signed = out.depth.clamp_min(1e-3).log() - batch["depth"].clamp_min(1e-3).log()
    error = signed.abs()
    # From the table plane most pixels start nearly right and the arm far off; an absolute error
    # pulls both alike, and the noise of the many drowns the few for hundreds of steps.
    cost = (2 * error.square() + 0.4 * error)[known]
    confidence = out.depth_confidence[known]
    weights = relevance(batch) * known
    weight = weights[known]
    # Confidence learns how large the error is (Kendall & Gal 2017), and leaves the depth alone: as
    # a weight on the depth's own loss it would give up on the arm, which is hard at first.
    depth_loss = (weight * cost).sum() / weight.sum()
    # VGGT's own depth loss has the gradient of the error too: flat stays flat, edges stay edges.
    for dim in (-1, -2):
        both = torch.minimum(*(weights.narrow(dim, i, weights.shape[dim] - 1) for i in (0, 1)))
        depth_loss = depth_loss + 0.2 * (both * signed.diff(dim=dim).abs()).sum() / weight.sum()
    depth_loss = depth_loss + 0.3 * (confidence * cost.detach() - 0.05 * confidence.log()).mean()
    depth_error = (weight * error[known]).sum() / weight.sum()

    size = (batch["depth"].shape[-2], batch["depth"].shape[-1])
    first = batch["pose"][:, :1]
    relative = batch["pose"] @ torch.linalg.inv(first)
    target = encode_pose(relative, batch["K"], size)
    camera_loss = target.new_zeros(())
    for i, encoding in enumerate(out.cameras):
        weight = 0.6 ** (len(out.cameras) - 1 - i)
        camera_loss = camera_loss + weight * (encoding.float() - target).abs().mean()

    wrist = out.wrist
    wrist_pose, _ = decode_pose(wrist, size)
    wrist_true = batch["wrist_pose"] @ torch.linalg.inv(first[:, 0])
    wrist_target = encode_pose(wrist_true, batch["wrist_K"], WRIST_GRID)
    wrist_loss = (
        (wrist[:, :3] - wrist_target[:, :3]).abs().mean()
        + (wrist_pose[:, :3, :3] - wrist_true[:, :3, :3]).abs().mean()
        + 0.3 * (wrist[:, 7:] - wrist_target[:, 7:]).abs().mean()
    )
    points, pixels, valid = correspondences(batch, out.depth.detach())
    projecting, _ = decode_pose(bound_gradient(wrist * 1.0, 0.05 / len(wrist)), size)
    spc = spc_loss(points, pixels, valid, batch["wrist_K"], projecting, WRIST_GRID)
    loss = 3 * depth_loss + wrist_loss + spc_weight * spc.loss
    if not with_rays:
        loss = loss + camera_loss
    else:
        loss = loss + 0.2 * camera_loss
    kind = "rays" if with_rays else "rgb"
    degrees = rotation_angle(wrist_pose[:, :3, :3], wrist_true[:, :3, :3]).median()
    centre = -(wrist_pose[:, :3, :3].mT @ wrist_pose[:, :3, 3:])
    true_centre = -(wrist_true[:, :3, :3].mT @ wrist_true[:, :3, 3:])
    return {
        "loss": loss,
        f"depth_{kind}": depth_error.detach(),
        f"camera_{kind}": camera_loss.detach(),
        f"wrist_deg_{kind}": degrees.detach(),
        f"wrist_cm_{kind}": 100 * (centre - true_centre).norm(dim=1).median().detach(),
        f"spc_{kind}": spc.reprojection.detach(),
    }


def train_reconstruction(
    arrays: Arrays,
    schedule: Schedule,
    folder: Path,
    *,
    config: VGGTConfig = NANO,
    rays_share: float = 0.8,
    spc_weight: float = 1.0,
    initial: Path | None = None,
    only_wrist: bool = False,
    validation: Arrays | None = None,
    file: str = RECONSTRUCTION,
    source: str = "",
    device: str = "cpu",
) -> Path:
    """Train stage 1 and write its weights into `folder`.

    Args:
        rays_share: share of the steps that are given calibrated rays; the others see RGB alone.
        initial: weights to start from. validation: what `schedule.validate_every` measures on.
        only_wrist: a new wrist head is trained on the features of `initial`, all else stays.
        file: the weights' name; what a training needs to go on lies in a folder of the same name.
        source: what is trained on, in words, for the weights' header; without it they say nothing.
        device: "cpu" or "cuda".
    """
    torch.manual_seed(schedule.seed)
    network = VGGT(config)
    network.prepare_from_scratch()
    if initial is not None:
        load_weights(initial, network)
    if only_wrist:
        network.requires_grad_(False)
        network.wrist_head = WRIST_HEADS[config.wrist_kind](2 * config.dim, **config.wrist)
    network.to(device)
    frames = arrays.held(device)
    held = None if validation is None else validation.held(device)
    size = (arrays["images"].shape[-2], arrays["images"].shape[-1])

    def losses(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        index = torch.randint(len(arrays), (schedule.batch,), generator=generator).numpy()
        batch = take_batch(frames, np.sort(index), generator)
        images = jitter_colors(batch["images"], generator)
        with_rays = bool(torch.rand((), generator=generator) < rays_share)
        rays = priors = None
        if with_rays:
            rays, priors = calibrated_rays(batch["K"], batch["pose"], size, batch["tool"])
        out = network(images, rays, priors)
        # Projections mean little until the pose is roughly right: SPC comes in at a fifth of it.
        ramp = min(1.0, max(0.0, 5 * step / schedule.steps - 1))
        with exact():
            return stage_losses(out, batch, with_rays=with_rays, spc_weight=ramp * spc_weight)

    average = train(
        network,
        losses,
        schedule,
        folder / Path(file).stem,
        device=device,
        validate=None if held is None else lambda: measure(network, held),
        images=None if held is None else lambda: picture(network, held),
    )
    load_trained(network, average.values)
    path = folder / file
    if parallel.rank() == 0:
        training = describe(schedule, arrays, source=source, initial=initial) if source else None
        save_weights(path, network, asdict(config), training=training)
    return path


def validate(path: Path, arrays: Arrays, batch: int = 16) -> dict[str, float]:
    """`measure` of a weights file."""
    from .pipeline import load_reconstruction

    return measure(load_reconstruction(path), arrays.held("cpu"), batch)


@torch.no_grad()
def picture(network: VGGT, frames: Held) -> dict[str, np.ndarray]:
    """The first timestep's views, their true depth and the depth from calibrated rays, in rows."""
    b = take_batch(frames, np.arange(1))
    size = (b["images"].shape[-2], b["images"].shape[-1])
    out = network(b["images"], *calibrated_rays(b["K"], b["pose"], size, b["tool"]))
    assert out.depth is not None
    far = float(b["depth"].max())
    rows = [b["images"][0].permute(0, 2, 3, 1)]
    rows += [(z[0] / far).clamp(0, 1)[..., None].expand(-1, -1, -1, 3)
             for z in (b["depth"], out.depth)]  # fmt: skip
    tiled = torch.cat([torch.cat(list(row), dim=1) for row in rows])
    return {"views_truth_made": (tiled * 255).round().to(torch.uint8).cpu().numpy()}


@torch.no_grad()
def measure(network: VGGT, frames: Held, batch: int = 16) -> dict[str, float]:
    """What the network reaches on unseen scenes, given calibrated rays and given RGB alone.

    Medians: relative depth error, the other cameras' and the wrist's error in degrees and cm; of
    arrays with one view there is no other camera, and no figure for it.
    """
    height, width = frames.shape("images")[-2:]
    size = (height, width)
    found: dict[str, list[Tensor]] = {}

    def note(name: str, value: Tensor) -> None:
        found.setdefault(name, []).append(value.flatten())

    def centre(pose: Tensor) -> Tensor:
        return -(pose[..., :3, :3].mT @ pose[..., :3, 3:])[..., 0]

    for start in range(0, len(frames), batch):
        index = np.arange(start, min(len(frames), start + batch))
        b = take_batch(frames, index)
        inputs = calibrated_rays(b["K"], b["pose"], size, b["tool"])
        truth = b["pose"] @ torch.linalg.inv(b["pose"][:, :1])
        wrist_true = b["wrist_pose"] @ torch.linalg.inv(b["pose"][:, 0])
        for kind, (rays, priors) in {"rays": inputs, "rgb": (None, None)}.items():
            out = network(b["images"], rays, priors)
            assert out.depth is not None and out.cameras is not None and out.wrist is not None
            known = (b["depth"] > 0.05) & (b["depth"] < 4)
            error = (out.depth - b["depth"]).abs()[known]
            note(f"depth_cm_{kind}", 100 * error[::37])
            note(f"depth_relative_{kind}", (error / b["depth"][known])[::37])
            poses, _ = decode_pose(out.cameras[-1].float(), size)
            wrist, _ = decode_pose(out.wrist.float(), size)
            others = [("camera", poses[:, 1:], truth[:, 1:])] if poses.shape[1] > 1 else []
            for name, a, t in (*others, ("wrist", wrist, wrist_true)):
                note(f"{name}_deg_{kind}", rotation_angle(a[..., :3, :3], t[..., :3, :3]))
                note(f"{name}_cm_{kind}", 100 * (centre(a) - centre(t)).norm(dim=-1))
    return {name: float(torch.cat(values).median()) for name, values in sorted(found.items())}

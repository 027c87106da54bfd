"""Dense correspondences of wrist pixels and points of the anchors' cloud, for the SPC loss.

VGGT's track head follows a grid of wrist pixels into the anchor views; where it sees them, the
anchors' point map is read. That map comes from a pass without the wrist picture, as it will when
there is none.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from .geometry import decode_pose, exact, pixel_grid, unproject
from .track import sample
from .vggt import VGGT, Geometry

CHOICES = ("all", "surest")
LIFTS = ("points", "depth")


@dataclass(frozen=True)
class Matching:
    """How correspondences are made.

    Attributes:
        grid: rows and columns of the query points on the wrist image.
        visibility, confidence: a track counts where both are above this, in its anchor view and
            in the wrist view itself.
        choose: a query that several anchors see counts once for each (`all`), or once, by the
            anchor whose visibility times confidence is largest (`surest`).
        lift: the anchors' points are the point head's (`points`), or the depth head's depth
            unprojected (`depth`).
        known_cameras: unproject with the measured cameras where there are any, not the predicted.
    """

    grid: tuple[int, int] = (32, 32)
    visibility: float = 0.5
    confidence: float = 0.2
    choose: str = "all"
    lift: str = "points"
    known_cameras: bool = False

    def __post_init__(self):
        for name, value, allowed in (
            ("choose", self.choose, CHOICES),
            ("lift", self.lift, LIFTS),
        ):
            if value not in allowed:
                raise ValueError(f"{name} is {' or '.join(allowed)}; found {value}")

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads of the pass over the anchors."""
        return ("point",) if self.lift == "points" else ("depth", "camera")


@dataclass
class Matches:
    """Where the query points are in the anchors.

    Attributes:
        pixels: [B, N, 2] the queries (x, y) on the wrist image.
        places: [B, S, N, 2] the tracked pixels (x, y) of each anchor.
        kept: [B, S, N] bool. sureness: [B, S, N] visibility times confidence in the anchor.
    """

    pixels: Tensor
    places: Tensor
    kept: Tensor
    sureness: Tensor


@dataclass
class Correspondences:
    """What `spc.spc_loss` takes: points [B, M, 3] in the first anchor's frame, the wrist pixels
    [B, M, 2] that show them, and which of them count, [B, M] bool. M is N, or S * N anchor by
    anchor."""

    points: Tensor
    pixels: Tensor
    valid: Tensor


def query_grid(
    size: tuple[int, int], grid: tuple[int, int], device: torch.device | str = "cpu"
) -> Tensor:
    """The centres of `grid` (rows, columns) equal cells of an image of `size` (H, W).

    Returns:
        [rows * columns, 2] pixels (x, y), row by row; pixel centres are at whole numbers.
    """
    cells = pixel_grid(*grid, device=device)[..., :2].flatten(0, 1)
    cell = cells.new_tensor([size[1] / grid[1], size[0] / grid[0]])
    return (cells + 0.5) * cell - 0.5


def kept_tracks(
    places: Tensor,
    visibility: Tensor,
    confidence: Tensor,
    size: tuple[int, int],
    matching: Matching,
) -> Tensor:
    """Which tracks count: seen and sure in both views, and inside the anchor's image.

    Inside means between the centres of the outermost pixels, so that all that is read there is of
    the image.

    Args:
        places: [B, S, N, 2] pixels in the anchors. visibility, confidence: [B, 1 + S, N], the
            wrist's first. size: (H, W) of the anchors.

    Returns:
        [B, S, N] bool; False where a value is not a number.
    """
    sure = (visibility > matching.visibility) & (confidence > matching.confidence)
    last = places.new_tensor([size[1] - 1, size[0] - 1])
    inside = ((places >= 0) & (places <= last)).all(-1)
    return sure[:, :1] & sure[:, 1:] & inside


def read_heads(
    network: VGGT,
    images: Tensor,
    tokens: dict[int, Tensor],
    heads: Collection[str],
    query_points: Tensor | None = None,
) -> Geometry:
    """Run some heads in the precision of their weights, autocast or not.

    Depths and points are exponentials, and tracks pixels: bfloat16 has too few digits for them. So
    a network whose aggregator is in half precision should keep its heads in float32.
    """
    parts = [part for name in heads if (part := getattr(network, f"{name}_head")) is not None]
    dtype = next(parts[0].parameters()).dtype if parts else images.dtype
    with exact():
        whole = {layer: value.to(dtype) for layer, value in tokens.items()}
        return network.read(whole, images, query_points=query_points, heads=heads)


@torch.no_grad()
def track_wrist(network: VGGT, wrist: Tensor, anchors: Tensor, matching: Matching) -> Matches:
    """Follow a grid of wrist pixels into the anchors, in a pass over [wrist, ext1, .., extS].

    Args:
        wrist: [B, 3, H, W]; anchors: [B, S, 3, H, W], both in [0, 1].
    """
    size = (wrist.shape[-2], wrist.shape[-1])
    if tuple(anchors.shape[-2:]) != size:
        raise ValueError(
            f"wrist and anchor images are tracked at one size; found {size[0]}x{size[1]} and "
            f"{anchors.shape[-2]}x{anchors.shape[-1]}"
        )
    images = torch.cat([wrist[:, None], anchors], dim=1)
    queries = query_grid(size, matching.grid, wrist.device).expand(len(wrist), -1, -1)
    found = read_heads(network, images, network.aggregate(images), ("track",), queries)
    assert found.tracks is not None
    assert found.visibility is not None and found.tracks_confidence is not None
    places = found.tracks[-1, :, 1:].float()
    visibility, confidence = found.visibility, found.tracks_confidence
    kept = kept_tracks(places, visibility, confidence, size, matching)
    return Matches(queries, places, kept, (visibility * confidence)[:, 1:])


def anchor_points(
    geometry: Geometry,
    size: tuple[int, int],
    matching: Matching,
    K: Tensor | None = None,
    pose: Tensor | None = None,
) -> Tensor:
    """The anchors' point map [B, S, H, W, 3] in the first anchor's frame.

    Args:
        geometry: of a pass over the anchors with `matching.heads`.
        K, pose: [B, S, 3, 3] at `size` and [B, S, 4, 4] known cameras, which replace the predicted
            ones in `depth` where `known_cameras` says so. Their unit of length must be the
            network's; any world frame will do.
    """
    if matching.lift == "points":
        assert geometry.points is not None
        return geometry.points
    assert geometry.depth is not None and geometry.cameras is not None
    with exact():
        cameras = decode_pose(geometry.cameras[-1].float(), size)
        if matching.known_cameras and K is not None and pose is not None:
            cameras = pose.float(), K.float()
        # The first anchor is the world; a predicted first camera is only nearly there.
        relative = cameras[0] @ torch.linalg.inv(cameras[0][:, :1])
        return unproject(geometry.depth.float(), cameras[1], relative)


def lift(points: Tensor, matches: Matches, choose: str = "all") -> Correspondences:
    """Read the point map at the tracked pixels, bilinearly.

    Args:
        points: [B, S, H, W, 3] of the anchors, in one frame.
        choose: see `Matching`.
    """
    kept = matches.kept
    B, S = kept.shape[:2]
    # Where a track is not kept its place may be anything, and is read nowhere in particular.
    places = torch.where(kept[..., None], matches.places, 0.0).float()
    with exact():
        maps = points.float().movedim(-1, 2).flatten(0, 1)
        read = sample(maps, places.flatten(0, 1)[:, :, None], "border")
    read = read[..., 0].mT.unflatten(0, (B, S))  # [B, S, N, 3]
    valid = kept & read.isfinite().all(-1)
    pixels = matches.pixels[:, None].expand(-1, S, -1, -1)
    if choose == "surest":
        best = torch.where(valid, matches.sureness, -1.0).argmax(1, keepdim=True)  # [B, 1, N]
        read = torch.take_along_dim(read, best[..., None], dim=1)
        valid, pixels = torch.take_along_dim(valid, best, dim=1), pixels[:, :1]
    return Correspondences(read.flatten(1, 2), pixels.flatten(1, 2), valid.flatten(1, 2))


@torch.no_grad()
def correspond(
    network: VGGT,
    wrist: Tensor,
    anchors: Tensor,
    matching: Matching | None = None,
    *,
    K: Tensor | None = None,
    pose: Tensor | None = None,
    geometry: Geometry | None = None,
) -> Correspondences:
    """Wrist pixels and the points of the anchors' cloud that they show.

    Args:
        network: with its track head, and the heads in `matching.heads`.
        wrist: [B, 3, H, W]; anchors: [B, S, 3, H, W], both in [0, 1].
        K, pose: see `anchor_points`.
        geometry: of a pass over the anchors, where there has been one.

    Raises ValueError for a head that was not built and for images of two sizes.
    """
    matching = matching or Matching()
    matches = track_wrist(network, wrist, anchors, matching)
    if geometry is None:
        geometry = read_heads(network, anchors, network.aggregate(anchors), matching.heads)
    size = (anchors.shape[-2], anchors.shape[-1])
    return lift(anchor_points(geometry, size, matching, K, pose), matches, matching.choose)

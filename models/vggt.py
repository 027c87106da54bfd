"""VGGT with a wrist head: anchor images of a timestep -> cameras, depth, points, the wrist's pose.

One class at every size; `VGGTConfig()` is the public VGGT-1B.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .aggregator import Aggregator
from .camera import CameraHead
from .dpt import DPTHead, depth_activation, point_activation
from .layers import LayerScale
from .track import TrackHead
from .wrist import WRIST_HEADS

HEADS = ("camera", "depth", "point", "track", "wrist")


@dataclass(frozen=True)
class VGGTConfig:
    """Sizes; the defaults are those of facebook/VGGT-1B.

    Attributes:
        heads_built: which of camera, depth, point, track, wrist exist.
        ray_channels: see `Aggregator`; 0 for the public networks.
        wrist_kind: the wrist head's form, "paper" or "official" (as released).
        wrist: keyword arguments of that head. track: keyword arguments of `TrackHead`.
    """

    dim: int = 1024
    depth: int = 24
    heads: int = 16
    encoder_depth: int = 24
    encoder_heads: int = 16
    grid: int = 37
    layers: tuple[int, ...] = (4, 11, 17, 23)
    dpt_features: int = 256
    dpt_widths: tuple[int, ...] = (256, 512, 1024, 1024)
    camera_depth: int = 4
    camera_heads: int = 16
    heads_built: tuple[str, ...] = ("camera", "depth", "point")
    ray_channels: int = 0
    wrist: dict = field(default_factory=dict)
    wrist_kind: str = "paper"
    track: dict = field(default_factory=dict)

    def __post_init__(self):
        unknown = sorted(set(self.heads_built) - set(HEADS))
        if unknown:
            raise ValueError(f"VGGT has no head {', '.join(unknown)}; it has {', '.join(HEADS)}")
        if self.wrist_kind not in WRIST_HEADS:
            raise ValueError(
                f"the wrist head comes as {' or '.join(WRIST_HEADS)}; found {self.wrist_kind}"
            )


@dataclass
class Geometry:
    """What one pass gives; heads that were not built or not asked for are None.

    Attributes:
        cameras: [iterations, B, S, 9] absT_quaR_FoV relative to the first view.
        wrist: [B, 9] absT_quaR_FoV of the hand camera relative to the first view.
        wrist_iterations: [iterations, B, 9], for training; the last is `wrist`.
        depth, depth_confidence: [B, S, H, W], metres where the network was trained in metres.
        points: [B, S, H, W, 3] in the first view's frame; points_confidence: [B, S, H, W].
        tracks: [iterations, B, S, N, 2] pixels (x, y) of the query points in every view.
        visibility, tracks_confidence: [B, S, N] in (0, 1).
    """

    cameras: Tensor | None = None
    wrist: Tensor | None = None
    wrist_iterations: Tensor | None = None
    depth: Tensor | None = None
    depth_confidence: Tensor | None = None
    points: Tensor | None = None
    points_confidence: Tensor | None = None
    tracks: Tensor | None = None
    visibility: Tensor | None = None
    tracks_confidence: Tensor | None = None


class VGGT(nn.Module):
    """Aggregator and the heads that the configuration names."""

    def __init__(self, config: VGGTConfig):
        super().__init__()
        self.config = c = config
        self.aggregator = Aggregator(
            c.dim,
            c.depth,
            c.heads,
            encoder_depth=c.encoder_depth,
            encoder_heads=c.encoder_heads,
            grid=c.grid,
            ray_channels=c.ray_channels,
        )
        wide = 2 * c.dim
        dense = {"features": c.dpt_features, "widths": c.dpt_widths}
        built = set(c.heads_built)
        self.camera_head = self.depth_head = self.point_head = self.wrist_head = None
        self.calibrated_depth_head = self.track_head = None
        if "camera" in built:
            self.camera_head = CameraHead(wide, depth=c.camera_depth, heads=c.camera_heads)
        if "depth" in built:
            self.depth_head = DPTHead(wide, c.layers, outputs=2, **dense)
            if c.ray_channels:
                # With rays the target is another, the ratio to what is known: a head of its
                # own, since one that serves both learns neither. It also sees pixels and rays.
                self.calibrated_depth_head = DPTHead(
                    wide, c.layers, outputs=3, skip=3 + c.ray_channels, **dense
                )
        if "point" in built:
            self.point_head = DPTHead(wide, c.layers, outputs=4, **dense)
        if "wrist" in built:
            self.wrist_head = WRIST_HEADS[c.wrist_kind](wide, **c.wrist)
        if "track" in built:
            self.track_head = TrackHead(wide, c.layers, **{"widths": c.dpt_widths, **c.track})

    def _wants(self, heads: Collection[str] | None, queries: Tensor | None) -> Collection[str]:
        """The heads that run; ValueError for one that was not built."""
        built = self.config.heads_built
        wanted = [h for h in built if h != "track" or queries is not None]
        if heads is not None:
            wanted = list(heads)
        elif queries is not None and "track" not in built:
            wanted = [*wanted, "track"]
        missing = sorted(set(wanted) - set(built))
        if missing:
            raise ValueError(
                f"this VGGT was built without its {', '.join(missing)} head; name it in heads_built"
            )
        if "track" in wanted and queries is None:
            raise ValueError(
                "the track head needs query points, [B, N, 2] pixels of the first view"
            )
        return wanted

    def forward(
        self,
        images: Tensor,
        rays: Tensor | None = None,
        priors: Tensor | None = None,
        *,
        query_points: Tensor | None = None,
        heads: Collection[str] | None = None,
    ) -> Geometry:
        """Images [B, S, 3, H, W] in [0, 1]; rays and priors as of `geometry.calibrated_rays`.

        B counts timesteps (they do not see each other), S the views of one.

        Args:
            query_points: [B, N, 2] pixels (x, y) of the first view to be tracked into all views.
            heads: names of those that run; by default all that were built (track where there are
                query points).
        """
        self._wants(heads, query_points)
        tokens = self.aggregate(images, rays)
        return self.read(tokens, images, rays, priors, query_points=query_points, heads=heads)

    @property
    def last(self) -> int:
        """The layer whose tokens the camera and wrist heads read."""
        return self.config.depth - 1

    def aggregate(self, images: Tensor, rays: Tensor | None = None) -> dict[int, Tensor]:
        """Images [B, S, 3, H, W] -> the tokens [B, S, P, 2C] of the layers that heads read."""
        return self.aggregator(images, tuple(sorted({*self.config.layers, self.last})), rays)

    def read(
        self,
        tokens: dict[int, Tensor],
        images: Tensor,
        rays: Tensor | None = None,
        priors: Tensor | None = None,
        *,
        query_points: Tensor | None = None,
        heads: Collection[str] | None = None,
    ) -> Geometry:
        """What the heads say of the tokens of `aggregate`; arguments as of `forward`."""
        wanted = self._wants(heads, query_points)
        size = (images.shape[-2], images.shape[-1])
        last = self.last
        special = self.aggregator.special
        out = Geometry()
        if self.camera_head is not None and "camera" in wanted:
            out.cameras = self.camera_head(tokens[last])
        if self.wrist_head is not None and "wrist" in wanted:
            # As in the paper the wrist head learns on features that it does not change.
            iterations = self.wrist_head(tokens[last].detach())
            out.wrist_iterations, out.wrist = iterations, iterations[-1]
        if "depth" not in wanted:
            pass
        elif rays is not None and self.calibrated_depth_head is not None:
            pixels = torch.cat([4 * images - 2, rays], dim=2)  # colours as wide as the rays
            raw = self.calibrated_depth_head(tokens, size, special, pixels)
            out.depth, out.depth_confidence = depth_activation(raw, priors)
        elif self.depth_head is not None:
            raw = self.depth_head(tokens, size, special)
            out.depth, out.depth_confidence = depth_activation(raw)
        if self.point_head is not None and "point" in wanted:
            raw = self.point_head(tokens, size, special)
            out.points, out.points_confidence = point_activation(raw)
        if self.track_head is not None and query_points is not None and "track" in wanted:
            found = self.track_head(tokens, size, special, query_points)
            out.tracks, out.visibility, out.tracks_confidence = found
        return out

    @torch.no_grad()
    def prepare_from_scratch(self) -> None:
        """Make an untrained network trainable from nothing in few steps.

        The public gains of 0.01 suit a network that starts from a pre-trained encoder; here every
        block has a say from the start. The depth head begins at its prior (or at 1 m).
        """
        for module in self.modules():
            if isinstance(module, LayerScale):
                nn.init.constant_(module.gamma, 0.3)
        for head in (self.depth_head, self.calibrated_depth_head):
            if head is not None:
                scratch: Any = head.scratch  # its modules are attributes by name
                last = scratch.output_conv2[-1]
                nn.init.zeros_(last.bias)
                last.weight.mul_(0.3)
                if len(last.bias) == 3:
                    last.bias[2] = -3.0  # the table, until the tool is recognised

"""The wrist-view video DiT: diffusers' Wan transformer, its input widened by the condition map."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .conditioning import AnchorEncoder, ByteTextEncoder, ContextBuilder
from .flow import make_schedule
from .geometry import rescale_intrinsics
from .libraries import WanTransformer3DModel
from .sweep import CHANNELS, PLANES, TOOL, SweptViews, moved, sweep, tool_planes

MOUNT = 4  # channels of the learnt picture of what is bolted to the camera
COARSE = 12  # channels that the transformer gives the convolutions, a value for 4 x 4 pixels
PARTS = ("map", "clip", "text", "sweep")  # what a generator can be built without


@dataclass(frozen=True)
class GeneratorConfig:
    """Sizes of a generator that works on pixels.

    Attributes:
        layers, heads, head_dim, ffn_dim: of the transformer. text_dim: width of its context.
        block: pixels a side that one latent holds. text_length: bytes of text.
        frames: longest clip; views: most anchor views. detail: channels of the largest
            convolutions. swept: channels of what they keep of each swept anchor. mount: (H, W) of
            the learnt picture of what is bolted to the camera, which is resized to half a clip's.
        without: which of `PARTS` it does not look at, for ablations: "map" (the whole projection:
            condition map, sweep and tool), "clip" (the anchors' tokens), "text" or "sweep" (sweep
            and tool).
    """

    layers: int = 4
    heads: int = 4
    head_dim: int = 64
    ffn_dim: int = 768
    text_dim: int = 128
    block: int = 8
    text_length: int = 64
    frames: int = 16
    views: int = 4
    detail: int = 72
    swept: int = 24
    mount: tuple[int, int] = (48, 88)
    without: tuple[str, ...] = ()

    def __post_init__(self):
        unknown = sorted(set(self.without) - set(PARTS))
        if unknown:
            raise ValueError(
                f"a generator cannot be built without {', '.join(unknown)}; only without any of "
                f"{', '.join(PARTS)}"
            )

    def to_dict(self) -> dict:
        """Plain values, for a weights file's header."""
        return asdict(self)


@dataclass
class Condition:
    """What the generator is given about a clip.

    Attributes:
        filled: [B, T, 3, H, W] in [-1, 1], the condition map with its holes filled.
        covered: [B, T, 1, H, W] 1 where the map saw something. nearness: [B, T, 1, H, W] in [0, 1].
        anchors: [B, T, V, 3, h, w] in [0, 1]. text: [B, L] bytes of `ByteTextEncoder.tokenize`.
        gripper: [B, T] how far closed, in [-1, 1]; 0 where the data do not say.
        views: the anchors with their cameras, to be swept; None where these are not known.
    """

    filled: Tensor
    covered: Tensor
    nearness: Tensor
    anchors: Tensor
    text: Tensor
    gripper: Tensor
    views: SweptViews | None = None

    def to(self, device: torch.device | str) -> Condition:
        """The same on another device."""
        return moved(self, device)

    def twice(self) -> Condition:
        """Every clip of the batch two times, without cameras."""
        values: dict[str, Any] = dict(vars(self), views=None)
        doubled: dict[str, Any] = {
            k: v if v is None else torch.cat([v, v]) for k, v in values.items()
        }
        return Condition(**doubled)


class Looked(NamedTuple):
    """What a clip's cameras say: of `sweep` and, at half the size, of `tool_planes`.

    swept: [B, T, V, PLANES, CHANNELS, H, W]; tool: [B, T, TOOL, H / 2, W / 2], 0 where the data do
    not say where the tool is.
    """

    swept: Tensor
    tool: Tensor

    def twice(self) -> Looked:
        """Every clip of the batch two times."""
        return Looked(*(torch.cat([part, part]) for part in self))


class Neighbours(nn.Module):
    """Adds what the frame before and the frame after say, at each place; nothing before training.

    A clip's ends see themselves as their neighbours, so that a frame alone can be made too.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.mix = nn.Conv2d(3 * channels, channels, 1)
        nn.init.zeros_(self.mix.weight)
        nn.init.zeros_(self.mix.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """[B * frames, C, H, W] -> the same shape."""
        clips = x.unflatten(0, (-1, frames))
        before = torch.cat([clips[:, :1], clips[:, :-1]], dim=1).flatten(0, 1)
        after = torch.cat([clips[:, 1:], clips[:, -1:]], dim=1).flatten(0, 1)
        return x + self.mix(torch.cat([before, x, after], dim=1))


class Detail(nn.Module):
    """Convolutions that choose, for every pixel, among colours that were seen, and add to them.

    A pixel gets a weighted mean of the colours that the condition map and the swept anchors offer
    for it (view synthesis by blending, as in IBRNet, Wang et al. 2021), which keeps print and edges
    that no small network would draw, and a residual. They work on 2 x 2 pixels at a time, and on
    halves, quarters and eighths of that (a U-Net, Ronneberger et al. 2015).

    Args:
        planes: channels known of a full-size pixel; others: channels known of 2 x 2 pixels.
        width: of the largest convolutions. swept: channels kept of each anchor; 0: no sweep.
    """

    def __init__(self, planes: int, others: int, width: int, swept: int):
        super().__init__()
        self.swept = swept
        known = 4 * planes + others
        half, quarter, eighth = width * 4 // 3, 2 * width, width * 8 // 3
        self.look = self.choose = None
        if swept:
            self.look = nn.Sequential(
                nn.Conv2d(4 * PLANES * CHANNELS + known, 2 * swept, 1),
                nn.SiLU(),
                nn.Conv2d(2 * swept, swept, 3, padding=1),
                nn.SiLU(),
            )
            self.choose = nn.Conv2d(width + swept, 4 * PLANES, 1)
        self.first = nn.Conv2d(known + 2 * swept, width, 3, padding=1)
        self.halve = nn.Conv2d(width, half, 3, stride=2, padding=1)
        self.middle = Mixed(half)
        self.quarter = nn.Conv2d(half, quarter, 3, stride=2, padding=1)
        self.low = Mixed(quarter)
        self.eighth = nn.Conv2d(quarter, eighth, 3, stride=2, padding=1)
        self.lowest = nn.ModuleList([Mixed(eighth), Mixed(eighth)])
        self.back_quarter = nn.Conv2d(eighth + quarter, quarter, 3, padding=1)
        self.low_again = Mixed(quarter)
        self.back_half = nn.Conv2d(quarter + half, half, 3, padding=1)
        self.middle_again = Mixed(half)
        self.back = nn.Conv2d(half + width, width, 3, padding=1)
        self.finish = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, 4 * 4, 3, padding=1)
        for layer in (self.last, self.choose):
            if layer is not None:
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(
        self, planes: Tensor, others: Tensor, base: Tensor, swept: Tensor | None, frames: int
    ) -> Tensor:
        """The clean picture [N, 3, H, W]; an untrained one is `base`, or nearly so.

        Args:
            planes: [N, planes, H, W]; others: [N, others, H / 2, W / 2].
            base: [N, 3, H, W], the condition map.
            swept: [N, V, PLANES, CHANNELS, H, W], or None where there is nothing to choose from.
            frames: of a clip; N is a multiple of it.
        """
        known = torch.cat([F.pixel_unshuffle(planes, 2), others], dim=1)
        looked = None
        pooled = known.new_zeros(len(known), 2 * self.swept, *known.shape[-2:])
        if self.look is not None and swept is not None:
            V = swept.shape[1]
            packed = F.pixel_unshuffle(swept.flatten(2, 3).to(known.dtype).flatten(0, 1), 2)
            each = torch.cat([packed, known.repeat_interleave(V, dim=0)], dim=1)
            looked = self.look(each).unflatten(0, (-1, V))
            pooled = torch.cat([looked.mean(dim=1), looked.amax(dim=1)], dim=1)
        full = F.silu(self.first(torch.cat([known, pooled.to(known.dtype)], dim=1)))
        half = self.middle(F.silu(self.halve(full)), frames)
        quarter = self.low(F.silu(self.quarter(half)), frames)
        low = F.silu(self.eighth(quarter))
        for block in self.lowest:
            low = block(low, frames)
        quarter = F.silu(self.back_quarter(torch.cat([_larger(low, quarter), quarter], dim=1)))
        quarter = self.low_again(quarter, frames)
        half = F.silu(self.back_half(torch.cat([_larger(quarter, half), half], dim=1)))
        half = self.middle_again(half, frames)
        full = F.silu(self.back(torch.cat([_larger(half, full), full], dim=1)))
        full = full + F.silu(self.finish(full))
        said = F.pixel_shuffle(self.last(full), 2)
        picture = base
        if looked is not None and self.choose is not None and swept is not None:
            V = looked.shape[1]
            both = torch.cat([full.repeat_interleave(V, dim=0), looked.flatten(0, 1)], dim=1)
            logits = F.pixel_shuffle(self.choose(both), 2).unflatten(0, (-1, V)).flatten(1, 2)
            weights = torch.cat([said[:, 3:] + STAY, logits], dim=1).float().softmax(dim=1)
            picture = weights[:, :1] * base
            for v in range(V):
                part = weights[:, 1 + v * PLANES : 1 + (v + 1) * PLANES, None]
                picture = picture + (part * swept[:, v, :, :3]).sum(dim=1)
        return picture + said[:, :3]


STAY = 4.0  # the condition map's logit before training: it has 3/4 of the weight of two anchors


class Mixed(nn.Module):
    """A convolution beside the picture's way, and what the frames before and after say."""

    def __init__(self, channels: int):
        super().__init__()
        self.space = nn.Conv2d(channels, channels, 3, padding=1)
        self.time = Neighbours(channels)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """[B * frames, C, H, W] -> the same shape."""
        return self.time(x + F.silu(self.space(x)), frames)


def _larger(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)


class WristGenerator(nn.Module):
    """Predicts the clean wrist clip from a noisy one, the condition map, anchor views and text.

    The output is chosen from the filled condition map and the swept anchors, plus a residual that
    is zero before training: an untrained generator returns the map, or nearly so.
    """

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = c = config
        pixels = c.block**2
        planes = 3 + 3 + 1 + 1  # noisy, filled, covered, nearness
        others = 1 + MOUNT + TOOL  # gripper, mount, tool
        self.dit = WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=c.heads,
            attention_head_dim=c.head_dim,
            in_channels=pixels * planes + others * pixels // 4,
            out_channels=COARSE * pixels // 16,
            text_dim=c.text_dim,
            freq_dim=128,
            ffn_dim=c.ffn_dim,
            num_layers=c.layers,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
            rope_max_seq_len=256,
        )
        self.text = ByteTextEncoder(c.text_dim, c.text_length)
        self.anchor = AnchorEncoder(256)
        self.context = ContextBuilder(256, c.text_dim, frames=c.frames, views=c.views)
        # The transformer's positions are relative, but the gripper is bolted to the camera and
        # stays at one place in the picture: here every pixel learns what is usual there.
        self.mount = nn.Parameter(torch.zeros(1, MOUNT, *c.mount))
        self.sweeps = not {"map", "sweep"} & set(c.without)
        self.detail = Detail(planes, others + COARSE, c.detail, c.swept if self.sweeps else 0)

    def check_size(self, frames: int, height: int, width: int) -> None:
        """Raise ValueError for a clip that the network would crop in silence or cannot place."""
        step = 2 * self.config.block
        if height % step or width % step:
            raise ValueError(f"the generator makes sizes that are multiples of {step}; "
                             f"found {height}x{width}")  # fmt: skip
        if frames > self.config.frames:
            raise ValueError(f"clips have {self.config.frames} frames at most; found {frames}")

    def encode_context(
        self, condition: Condition, keep: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Context tokens with anchors and text, and the negative ones (no anchors, no text).

        Args:
            keep: [B] bool; where False the conditional context is blanked too (training for CFG).
        """
        B, T, V = condition.anchors.shape[:3]
        text = self.text(condition.text)
        if "text" in self.config.without:
            text = torch.zeros_like(text)
        features = None
        if "clip" not in self.config.without:
            features = self.anchor(condition.anchors.flatten(0, 2)).unflatten(0, (B, T, V))
        positive = self.context(features, text)
        if keep is not None:
            positive = positive * keep[:, None, None].to(positive.dtype)
        return positive, torch.zeros_like(positive)

    def look(self, condition: Condition) -> Looked | None:
        """What the cameras say of a clip's pixels; None where they are not known.

        It depends on the condition alone, so that several sampling steps can share it.
        """
        views = condition.views
        if not self.sweeps or views is None:
            return None
        H, W = condition.filled.shape[-2:]
        half = (H // 2, W // 2)
        if views.tool is None:
            tool = condition.filled.new_zeros(*condition.filled.shape[:2], TOOL, *half)
        else:
            K, pose = (x.flatten(0, 1) for x in (views.wrist_K, views.wrist_pose))
            K = rescale_intrinsics(K, (H, W), half)
            tool = tool_planes(K, pose, views.tool.flatten(0, 1), half)
            tool = tool.unflatten(0, views.tool.shape[:2])
        return Looked(sweep(views, (H, W)), tool)

    def forward(
        self,
        noisy: Tensor,
        sigma: Tensor,
        condition: Condition,
        context: Tensor,
        looked: Looked | None = None,
    ) -> Tensor:
        """Noisy clip [B, T, 3, H, W], noise level sigma [B] in [0, 1] -> clean clip, same shape.

        Args:
            looked: of `look`; without it nothing is offered beside the condition map.
        """
        B, T, _, H, W = noisy.shape
        self.check_size(T, H, W)
        # Pure noise says nothing of the clip. Shut out, it cannot leak into what is drawn first,
        # which a network this small would take many more steps to learn.
        share = (1 - sigma).view(B, 1, 1, 1, 1).to(noisy.dtype)
        seen = torch.cat(
            [condition.filled, condition.covered * 2 - 1, condition.nearness * 2 - 1], dim=2
        )
        if "map" in self.config.without:
            seen = torch.zeros_like(seen)
        planes = torch.cat([share * noisy, seen], dim=2).flatten(0, 1)
        mount = _larger(self.mount, planes[:, :, ::2, ::2]).expand(B * T, -1, -1, -1)
        closed = condition.gripper.flatten()[:, None, None, None].expand_as(mount[:, :1])
        tool = mount.new_zeros(B * T, TOOL, *mount.shape[-2:])
        if looked is not None:
            tool = looked.tool.flatten(0, 1)
        others = torch.cat([closed, mount, tool], dim=1).to(planes.dtype)
        block = self.config.block
        latents = torch.cat(
            [F.pixel_unshuffle(planes, block), F.pixel_unshuffle(others, block // 2)], dim=1
        )
        coarse = self.dit(
            hidden_states=latents.unflatten(0, (B, T)).transpose(1, 2),
            timestep=sigma * 1000,
            encoder_hidden_states=context,
            return_dict=False,
        )[0]
        coarse = F.pixel_shuffle(coarse.transpose(1, 2).flatten(0, 1), block // 4)
        others = torch.cat([others, _larger(coarse.to(planes.dtype), others)], dim=1)
        offered = None if looked is None else looked.swept.flatten(0, 1)
        base = planes[:, 3:6]
        return self.detail(planes, others, base, offered, T).unflatten(0, (B, T))


@torch.no_grad()
def sample(
    generator: WristGenerator,
    condition: Condition,
    noise: Tensor,
    *,
    steps: int,
    guidance: float,
    shift: float = 1.0,
) -> Tensor:
    """Draw a clip by flow matching (Lipman et al. 2023) with Euler steps.

    Args:
        noise: [B, T, 3, H, W] standard normal. steps: network passes (times two with guidance).
        guidance: CFG scale; 1 leaves the negative branch out. shift: of the noise schedule.

    Returns:
        [B, T, 3, H, W] in [-1, 1].
    """
    scheduler: Any = make_schedule(steps, shift)
    positive, negative = generator.encode_context(condition)
    guided = guidance != 1.0
    looked = generator.look(condition)
    both = condition.twice() if guided else condition
    double = looked.twice() if looked is not None and guided else None
    x = noise
    for i, timestep in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[i].to(x)
        if guided:
            level = sigma.expand(2 * len(x))
            context = torch.cat([positive, negative])
            yes, no = generator(torch.cat([x, x]), level, both, context, double).chunk(2)
            clean = no + guidance * (yes - no)
        else:
            clean = generator(x, sigma.expand(len(x)), condition, positive, looked)
        velocity = (x - clean) / sigma
        x = scheduler.step(velocity, timestep, x, return_dict=False)[0]
    return x.clamp(-1, 1)

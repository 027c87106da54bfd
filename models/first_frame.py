"""Public video models that continue a picture, through diffusers' pipelines, from local folders.

Stable Video Diffusion (arXiv 2311.15127), Wan 2.1 image-to-video (arXiv 2503.20314) and
Cosmos-Predict2 video-to-world, each as its diffusers pipeline runs it. Every part is opened by a
class that is named here, from safetensors alone and strictly: what a folder's model_index.json
would have loaded in its place has no say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .encoders import open_pretrained, unreadable
from .errors import WeightsError

_SCHEDULERS = (
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "UniPCMultistepScheduler",
)


@dataclass(frozen=True)
class Kind:
    """One pipeline.

    Attributes:
        pipeline: name of its class in diffusers.
        parts: its argument -> the library and class that it is opened with.
        every: it makes 1 + a multiple of so many frames.
        text: whether it is told what happens.
        half: what networks are kept in at half precision, but for `exact`: those stay in float32,
            as the pipelines' documentation has them. (SVD's raises its autoencoder itself, and from
            float16 alone.)
    """

    pipeline: str
    parts: Mapping[str, tuple[str, str]]
    every: int
    text: bool
    half: torch.dtype = torch.bfloat16
    exact: tuple[str, ...] = ("vae", "image_encoder")


_TEXT = {"tokenizer": ("transformers", "AutoTokenizer"), "scheduler": ("diffusers", "")}
KINDS: dict[str, Kind] = {
    "svd": Kind(
        "StableVideoDiffusionPipeline",
        {
            "unet": ("diffusers", "UNetSpatioTemporalConditionModel"),
            "vae": ("diffusers", "AutoencoderKLTemporalDecoder"),
            "image_encoder": ("transformers", "CLIPVisionModelWithProjection"),
            "feature_extractor": ("transformers", "CLIPImageProcessor"),
            "scheduler": ("diffusers", ""),
        },
        every=1,
        text=False,
        half=torch.float16,
        exact=(),
    ),
    "wan-i2v": Kind(
        "WanImageToVideoPipeline",
        {
            "transformer": ("diffusers", "WanTransformer3DModel"),
            "vae": ("diffusers", "AutoencoderKLWan"),
            "text_encoder": ("transformers", "UMT5EncoderModel"),
            "image_encoder": ("transformers", "CLIPVisionModel"),
            "image_processor": ("transformers", "CLIPImageProcessor"),
            **_TEXT,
        },
        every=4,
        text=True,
    ),
    "cosmos-predict2": Kind(
        "Cosmos2VideoToWorldPipeline",
        {
            "transformer": ("diffusers", "CosmosTransformer3DModel"),
            "vae": ("diffusers", "AutoencoderKLWan"),
            "text_encoder": ("transformers", "T5EncoderModel"),
            **_TEXT,
        },
        every=4,
        text=True,
    ),
}


class Unguarded:
    """Stands where Cosmos2's pipeline wants its guardrail, and finds nothing unsafe.

    The package cosmos_guardrail is that guardrail; who runs the model without is told so by
    `augment.first_frame`.
    """

    def to(self, device: Any) -> Unguarded:
        """There is nothing to move."""
        return self

    def check_text_safety(self, prompt: str) -> bool:
        """Always true."""
        return True

    def check_video_safety(self, video: np.ndarray) -> np.ndarray:
        """The video as it is."""
        return video


class FirstFrameVideo:
    """A pipeline that continues a picture."""

    def __init__(self, name: str, pipeline: Any):
        self.kind = KINDS[name]
        self.pipeline = pipeline
        pipeline.set_progress_bar_config(disable=True)

    @property
    def multiple(self) -> int:
        """What both sides of a picture must be a multiple of."""
        if self.kind.pipeline.startswith("Stable"):
            # The autoencoder's step, and once more for each level of the U-Net but the last.
            return 8 * 2 ** (len(self.pipeline.unet.config.block_out_channels) - 1)
        patch = self.pipeline.transformer.config.patch_size
        return self.pipeline.vae.config.scale_factor_spatial * max(patch[1:])

    def frames_for(self, frames: int) -> int:
        """The least number that can be made, of `frames` or more, the first frame among them."""
        return 1 + max(1, -(-(frames - 1) // self.kind.every)) * self.kind.every

    @torch.no_grad()
    def __call__(
        self,
        picture: np.ndarray,
        *,
        frames: int,
        size: tuple[int, int],
        text: str = "",
        negative: str = "",
        steps: int,
        guidance: float,
        seed: int,
    ) -> np.ndarray:
        """[frames, h, w, 3] uint8: the picture as the model gives it back, and what comes after.

        Args:
            picture: [H, W, 3] uint8. frames: as of `frames_for`. size: (height, width).
            text, negative: what happens, and what guidance leads away from; not for svd.
            guidance: scale of classifier-free guidance (for svd, of the last frame).

        Raises:
            ValueError: a number of frames or a size that the model would change in silence, or
                frames that are not finite.
        """
        if frames != self.frames_for(frames):
            raise ValueError(f"{frames} frames, where 1 + a multiple of {self.kind.every} is made")
        if any(side % self.multiple for side in size):
            raise ValueError(f"sides must be multiples of {self.multiple}; found {size}")
        height, width = size
        given = Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC)
        told = {}
        if self.kind.text:
            told = {"prompt": text, "negative_prompt": negative, "guidance_scale": guidance}
        else:
            told = {"max_guidance_scale": guidance, "decode_chunk_size": 8}
        made = self.pipeline(
            image=given,
            height=height,
            width=width,
            num_frames=frames,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
            **told,
        ).frames[0]
        made = np.asarray(made)
        if not np.isfinite(made).all():
            raise ValueError("the model made frames that are not finite")
        return (made * 255).round().clip(0, 255).astype(np.uint8)


def open_first_frame(
    name: str,
    folders: Mapping[str, Path],
    *,
    device: str = "cpu",
    half: bool = False,
    guard: Any = None,
) -> FirstFrameVideo:
    """A pipeline of `KINDS` from the folders of its parts.

    Args:
        folders: one for each part, as diffusers saves it.
        half: whether networks are kept in half precision, as their `Kind` says.
        guard: Cosmos' safety checker.

    Raises:
        WeightsError: a folder that lacks files, holds another network's, or none in safetensors.
    """
    from . import libraries  # noqa: F401  the door; see there

    import diffusers  # isort: skip
    import transformers  # isort: skip

    libraries_by_name = {"diffusers": diffusers, "transformers": transformers}
    kind, parts = KINDS[name], {}
    for part, (library, cls) in kind.parts.items():
        folder = Path(folders[part])
        if part == "scheduler":
            cls = _scheduler(folder)
        opens = getattr(libraries_by_name[library], cls)
        if part in ("scheduler", "tokenizer", "feature_extractor", "image_processor"):
            parts[part] = _plain(opens, folder)
            continue
        kept = kind.half if half and part not in kind.exact else torch.float32
        named = {"torch_dtype": kept} if library == "diffusers" else {"dtype": kept}
        network = open_pretrained(opens, folder, **named)
        parts[part] = network.to(device).eval().requires_grad_(False)
    if name == "cosmos-predict2":
        parts["safety_checker"] = guard
    return FirstFrameVideo(name, getattr(diffusers, kind.pipeline)(**parts))


def _plain(opens: Any, folder: Path) -> Any:
    """A part without tensors."""
    try:
        return opens.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise unreadable(folder, error) from None


def _scheduler(folder: Path) -> str:
    """The class of a scheduler that a folder names; WeightsError where it is not a known one."""
    path = folder / "scheduler_config.json"
    try:
        name = json.loads(path.read_text()).get("_class_name")
    except (OSError, ValueError, AttributeError) as error:
        raise unreadable(folder, error) from None
    if name not in _SCHEDULERS:
        raise WeightsError(
            f"{path}: names the scheduler {name!r}; give one of {', '.join(_SCHEDULERS)}"
        )
    return name

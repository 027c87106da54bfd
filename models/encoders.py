"""The frozen encoders around the video DiT: videos <-> latents, prompts and frames -> tokens.

Networks are read from folders in the form that their publishers use (diffusers, transformers,
open_clip), from safetensors files alone, and strictly: what does not fit is an error. The libraries
are imported when a folder is opened.
"""

from __future__ import annotations

import contextlib
import hashlib
import html
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from .checkpoints import mismatch
from .errors import WeightsError

PROMPT_TOKENS = 512  # what Wan was trained with
_FRAMES_AT_ONCE = 64
_CONFIG = "config.json"
_MISFITS = {
    "missing_keys": "missing",
    "unexpected_keys": "unexpected",
    "mismatched_keys": "of another shape",
}
_REFUSALS = (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError)


class VideoAutoencoder:
    """Wan 2.1's video autoencoder, its latents normalised as the transformer was trained on them.

    Attributes:
        network: diffusers' autoencoder, which decodes and encodes a few frames at a time.
        spatial, temporal: pixels a side and frames in one latent (8 and 4).
    """

    def __init__(self, network: nn.Module):
        self.network: Any = network.eval().requires_grad_(False)
        config = self.network.config
        self.spatial: int = config.scale_factor_spatial
        self.temporal: int = config.scale_factor_temporal
        self.channels: int = config.z_dim
        self.dtype: torch.dtype = self.network.dtype
        shape = (1, -1, 1, 1, 1)
        self._mean = torch.tensor(config.latents_mean).reshape(shape)
        self._std = torch.tensor(config.latents_std).reshape(shape)

    @classmethod
    def open(
        cls,
        folder: Path,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        *,
        tiled: bool = False,
    ) -> VideoAutoencoder:
        """The autoencoder of a folder with `config.json` and its safetensors weights.

        Args:
            tiled: work on overlapping tiles of a frame, and on one clip of a batch at a time, which
                takes less memory; results differ a little where tiles meet.

        Raises:
            WeightsError: a folder that lacks files, or holds another network's.
        """
        from .libraries import AutoencoderKLWan

        network = open_pretrained(AutoencoderKLWan, Path(folder), torch_dtype=dtype)
        if tiled:
            network.enable_tiling()
            network.enable_slicing()
        return cls(network.to(device))

    def check(self, frames: int, height: int, width: int) -> None:
        """ValueError for a clip that the autoencoder would crop in silence."""
        if frames < 1 or (frames - 1) % self.temporal:
            less = max(1, (frames - 1) // self.temporal * self.temporal + 1)
            fit = f"{less} or {less + self.temporal}" if frames > 0 else "1"
            raise ValueError(
                f"clips have {self.temporal}n + 1 frames; found {frames}: pad or cut to {fit}"
            )
        for name, size in (("height", height), ("width", width)):
            if size < self.spatial or size % self.spatial:
                less = size // self.spatial * self.spatial
                fit = f"{less} or {less + self.spatial}" if less else f"{self.spatial}"
                raise ValueError(
                    f"found a {name} of {size} pixels; it must be a multiple of {self.spatial}: "
                    f"resize to {fit}"
                )

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """The most likely latents of clips.

        Args:
            video: [B, 3, T, H, W] in [-1, 1], T = 4n + 1, H and W multiples of 8.

        Returns:
            [B, 16, n + 1, H / 8, W / 8] float32, less the published means, over the published
            deviations.

        Raises:
            ValueError: another shape.
        """
        if video.ndim != 5 or video.shape[1] != 3:
            raise ValueError(f"a video must be [B, 3, T, H, W]; found {list(video.shape)}")
        self.check(*video.shape[2:])
        device = self.network.device
        found = self.network.encode(video.to(device, self.dtype)).latent_dist.mode()
        return (found.float() - self._mean.to(device)) / self._std.to(device)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents [B, 16, F, h, w] -> clips [B, 3, 4F - 3, 8h, 8w] float32 in [-1, 1].

        Raises:
            ValueError: another shape.
        """
        if latents.ndim != 5 or latents.shape[1] != self.channels:
            raise ValueError(
                f"latents must be [B, {self.channels}, F, h, w]; found {list(latents.shape)}"
            )
        device = self.network.device
        raw = latents.to(device).float() * self._std.to(device) + self._mean.to(device)
        return self.network.decode(raw.to(self.dtype)).sample.float()


class PromptEncoder:
    """Wan's text encoder (UMT5) and its tokenizer; every distinct prompt is encoded once.

    The network, the largest of all, is read when a prompt is met that no cache knows. A prompt is
    encoded by itself and without padding, so that its embeddings depend on nothing beside it.

    Attributes:
        encoded: how many prompts the network was run on.
    """

    def __init__(
        self,
        load: Callable[[], tuple[Any, nn.Module]],
        identity: Sequence[str] = (),
        cache: Path | None = None,
        device: str | torch.device = "cpu",
    ):
        self._load = load
        self._identity = identity
        self._cache = cache
        self._device = torch.device(device)
        self._parts: tuple[Any, Any] | None = None
        self._known: dict[str, Tensor] = {}
        self.encoded = 0

    @classmethod
    def open(
        cls,
        folder: Path,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        *,
        cache: Path | None = None,
        fingerprint: str | None = None,
    ) -> PromptEncoder:
        """The encoder of a folder with `text_encoder/` and `tokenizer/`.

        Args:
            cache: folder in which embeddings are kept; one that cannot be written is not used.
            fingerprint: what names these weights and this tokenizer in the cache; without it the
                SHA-256 of all their files is taken.

        Raises:
            WeightsError: a folder that lacks files (now), or holds others (at the first prompt).
        """
        encoder, tokenizer = Path(folder) / "text_encoder", Path(folder) / "tokenizer"
        _require(encoder)
        if not (tokenizer / "tokenizer_config.json").is_file():
            raise WeightsError(
                f"{tokenizer / 'tokenizer_config.json'}: no such file; fetch the whole folder "
                "with `wristaugment weights --download`, or name another with --weights"
            )

        def load() -> tuple[Any, nn.Module]:
            from . import libraries  # noqa: F401  must come before transformers

            from transformers import AutoTokenizer, UMT5EncoderModel  # isort: skip

            network = open_pretrained(UMT5EncoderModel, encoder, dtype=dtype)
            try:
                tokens = AutoTokenizer.from_pretrained(
                    tokenizer, local_files_only=True, trust_remote_code=False
                )
            except _REFUSALS as error:
                raise unreadable(tokenizer, error) from None
            return tokens, network.to(device).eval().requires_grad_(False)

        identity: list[str] = []
        if cache is not None:
            # What a GPU rounds is not what a CPU rounds.
            kind = torch.device(device).type
            identity = [fingerprint or _folders_sha256(encoder, tokenizer), str(dtype), kind]
        return cls(load, identity, cache, device)

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> [N, 512, D] on the encoder's device, zeros behind each one's tokens."""
        rows = []
        for prompt in prompts:
            text = clean_prompt(prompt)
            if text not in self._known:
                found = self._read(text)
                if found is None:
                    found = self._encode(text)
                    self._write(text, found)
                self._known[text] = found
            row = self._known[text]
            rows.append(F.pad(row, (0, 0, 0, PROMPT_TOKENS - len(row))))
        if not rows:
            raise ValueError("found no prompt; pass one at least (it may be empty)")
        return torch.stack(rows).to(self._device)

    def close(self) -> None:
        """Let go of the network's memory; it is read again when a new prompt comes."""
        self._parts = None

    @torch.no_grad()
    def _encode(self, text: str) -> Tensor:
        """[n, D] on the CPU, of the prompt's n tokens (512 at most, the end mark among them)."""
        if self._parts is None:
            self._parts = self._load()
        tokenizer, network = self._parts
        ids = tokenizer([text], truncation=True, max_length=PROMPT_TOKENS, return_tensors="pt")
        self.encoded += 1
        given = {k: ids[k].to(network.device) for k in ("input_ids", "attention_mask")}
        return network(**given).last_hidden_state[0].cpu()

    def _path(self, text: str) -> Path | None:
        if self._cache is None:
            return None
        key = json.dumps([*self._identity, text]).encode()
        return self._cache / f"{hashlib.sha256(key).hexdigest()}.safetensors"

    def _read(self, text: str) -> Tensor | None:
        path = self._path(text)
        if path is None or not path.is_file():
            return None
        try:
            return load_file(path)["embedding"]
        except (OSError, SafetensorError, KeyError):
            return None  # damaged: it is made and written again

    def _write(self, text: str, embedding: Tensor) -> None:
        path = self._path(text)
        if path is None:
            return
        # Others may write the same file at this moment, so the staged one's name is its own.
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, staged = tempfile.mkstemp(dir=path.parent, prefix=".prompt-")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(save({"embedding": embedding.contiguous()}))
                os.replace(staged, path)
            except OSError:
                os.unlink(staged)


class ImageEncoder:
    """CLIP features of frames, in the paper's form or the released one.

    Attributes:
        width: of the features, E.
    """

    def __init__(
        self, network: nn.Module, prepare: Callable[[Tensor], Tensor], read, width: int, device
    ):
        self.network = network.to(device).eval().requires_grad_(False)
        self.width = width
        self._prepare, self._read = prepare, read
        self._device = torch.device(device)

    @classmethod
    def open(
        cls,
        form: str,
        folder: Path,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> ImageEncoder:
        """The encoder of a folder.

        Args:
            form: "paper": open_clip's image features (not normalised) with the pre-processing that
                its configuration names; "official": the class token before the last layer of a
                transformers CLIP, frames squeezed to its square as Wan's image-to-video does.
            folder: "paper": `open_clip_config.json` and `open_clip_model.safetensors`; "official":
                `config.json` and `model.safetensors`.

        Raises:
            WeightsError: a folder that lacks files, or holds another network's.
        """
        if form == "paper":
            return cls(*_open_open_clip(Path(folder), dtype), device)
        if form == "official":
            return cls(*_open_clip_vision(Path(folder), dtype), device)
        raise ValueError(f"the form of an image encoder is official or paper; found {form!r}")

    @torch.no_grad()
    def __call__(self, frames: Tensor | np.ndarray) -> Tensor:
        """Frames [N, H, W, 3] uint8 RGB -> features [N, E] float32 on the encoder's device."""
        given = torch.as_tensor(frames)
        if given.ndim != 4 or given.shape[3] != 3 or given.dtype != torch.uint8:
            raise ValueError(
                f"frames must be [N, H, W, 3] uint8; found {list(given.shape)} {given.dtype}"
            )
        parts = [
            self._read(self.network, self._prepare(part).to(self._device))
            for part in given.split(_FRAMES_AT_ONCE)
        ]
        return torch.cat(parts).float()


def clean_prompt(prompt: str) -> str:
    """A prompt as Wan's pipeline hands it to the tokenizer: mended, unescaped, single spaces."""
    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return " ".join(text.split())


def _open_open_clip(folder: Path, dtype: torch.dtype):
    """(image tower, preparation, reading, width) of an open_clip folder."""
    from . import libraries  # noqa: F401  must come before open_clip

    import open_clip  # isort: skip
    from open_clip.transform import PreprocessCfg, image_transform_v2  # isort: skip
    from PIL import Image

    config, weights = folder / "open_clip_config.json", folder / "open_clip_model.safetensors"
    for path in (config, weights):
        if not path.is_file():
            raise _missing(path)
    # The library's names for "in this precision, but for what must stay in float32".
    precision = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    try:
        with _quietly():
            model = open_clip.create_model(
                f"local-dir:{folder}", precision=precision[dtype], load_weights=False
            )
        with safe_open(weights, framework="pt") as file:
            found = {k: list(file.get_slice(k).get_shape()) for k in file.keys()}  # noqa: SIM118
        own = {k: list(v.shape) for k, v in model.state_dict().items()}
        wrong = mismatch(own, found)
        if not wrong:
            model.load_state_dict(load_file(weights))
    except _REFUSALS as error:
        raise unreadable(folder, error) from None
    if wrong:
        raise _unfit(weights, wrong)
    tower: Any = model.visual
    transform: Any = image_transform_v2(PreprocessCfg(**tower.preprocess_cfg), is_train=False)

    def prepare(frames: Tensor) -> Tensor:
        pictures = [transform(Image.fromarray(f)) for f in frames.cpu().numpy()]
        return torch.stack(pictures).to(tower.conv1.weight.dtype)

    return tower, prepare, lambda network, images: network(images), int(tower.output_dim)


def _open_clip_vision(folder: Path, dtype: torch.dtype):
    """(network, preparation, reading, width) of a transformers CLIP folder."""
    from . import libraries  # noqa: F401  must come before transformers

    from transformers import CLIPVisionModel  # isort: skip
    from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD  # isort: skip

    network = open_pretrained(CLIPVisionModel, folder, dtype=dtype)
    side = network.config.image_size
    mean, std = (torch.tensor(x).reshape(3, 1, 1) for x in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))

    def prepare(frames: Tensor) -> Tensor:
        images = frames.to(network.device).permute(0, 3, 1, 2).float() / 255
        # As released: without anti-aliasing, and values may pass 0 and 1.
        images = F.interpolate(images, size=(side, side), mode="bicubic", align_corners=False)
        return ((images - mean.to(images.device)) / std.to(images.device)).to(dtype)

    def read(network, images: Tensor) -> Tensor:
        return network(images, output_hidden_states=True).hidden_states[-2][:, 0]

    return network, prepare, read, int(network.config.hidden_size)


def open_pretrained(kind: Any, folder: Path, **dtype: torch.dtype) -> Any:
    """A diffusers or transformers network of a folder, strictly, from safetensors alone."""
    _require(folder)
    # transformers lists what has another shape when it may go on without it; diffusers says it.
    lenient = {} if "torch_dtype" in dtype else {"ignore_mismatched_sizes": True}
    try:
        with _quietly():
            network, info = kind.from_pretrained(
                str(folder),
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **dtype,
                **lenient,
            )
    except _REFUSALS as error:
        raise unreadable(folder, error) from None
    wrong = "; ".join(
        f"{len(info[key])} {what}: {', '.join(sorted(map(str, info[key]))[:5])}"
        for key, what in _MISFITS.items()
        if info[key]
    )
    if wrong:
        raise _unfit(folder, wrong)
    return network


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without bars and warnings of the libraries: what is wrong is told in one line instead."""
    from transformers.utils import logging as bars

    shown, level = bars.is_progress_bar_enabled(), logging.root.manager.disable
    bars.disable_progress_bar()
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)
        if shown:
            bars.enable_progress_bar()


def _require(folder: Path) -> None:
    """WeightsError where a folder lacks its configuration or safetensors weights."""
    if not (folder / _CONFIG).is_file():
        raise _missing(folder / _CONFIG)
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if indices:
        try:
            named = set(json.loads(indices[0].read_text())["weight_map"].values())
        except (ValueError, KeyError, AttributeError) as error:
            raise unreadable(indices[0], error) from None
        for name in sorted(named):
            if not (folder / name).is_file():
                raise _missing(folder / name)
    elif not list(folder.glob("*.safetensors")):
        raise WeightsError(
            f"{folder}: has no safetensors file; fetch the safetensors weights with `wristaugment "
            "weights --download` (other formats can run code and are not read)"
        )


def _folders_sha256(*folders: Path) -> str:
    """One SHA-256 over the names and bytes of the files in some folders."""
    total = hashlib.sha256()
    for folder in folders:
        for path in sorted(p for p in folder.iterdir() if p.is_file()):
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            total.update(f"{folder.name}/{path.name} {digest}\n".encode())
    return total.hexdigest()


def _missing(path: Path) -> WeightsError:
    return WeightsError(
        f"{path}: no such file; fetch it with `wristaugment weights --download`, or name the "
        "folder that has it with --weights"
    )


def _unfit(path: Path, wrong: str) -> WeightsError:
    return WeightsError(
        f"{path}: not the weights of the network beside them ({wrong}); fetch the folder again"
    )


def unreadable(path: Path, error: Exception) -> WeightsError:
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return WeightsError(f"{path}: cannot be read ({reason}); fetch the folder again")

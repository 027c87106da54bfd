"""A weights root of reduced width, in the layout and names of the public one, for tests.

`make_weights(root, "paper")` writes every file that the recipe reads, with a `config.json` beside
those whose public sizes are fixed. Values are random, and the same every time.
"""

from __future__ import annotations

import wristaugment.models.libraries  # noqa: F401  the others can be loaded after it alone

# isort: split
import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)
from wristaugment.models.libraries import AutoencoderKLWan
from wristaugment.models.lora import prepare_training, save_generation
from wristaugment.models.released import released_name, wan_name
from wristaugment.models.vggt import VGGT, VGGTConfig
from wristaugment.models.video_dit import VideoDiT, VideoDiTConfig

TEXT, EXT = 20, {"paper": 24, "official": 32}  # widths of prompt and image features
PAPER_WRIST = {"dim": 32, "depth": 1, "heads": 2, "queries": 2}
OFFICIAL_WRIST = {"layers": 1, "heads": 4, "trunk_depth": 1, "trunk_heads": 4, "iterations": 2}
VGGT_SIZES = {
    "dim": 32,
    "depth": 4,
    "heads": 2,
    "encoder_depth": 1,
    "encoder_heads": 2,
    "grid": 5,
    "layers": (0, 1, 2, 3),
    "dpt_features": 16,
    "dpt_widths": (8, 16, 16, 16),
    "camera_depth": 1,
    "camera_heads": 4,
    "track": {"features": 16, "hidden": 16, "depth": 1, "heads": 2, "virtual": 2, "levels": 2,
              "radius": 1, "iterations": 2},
}  # fmt: skip
DIT_SIZES = {
    "layers": 2,
    "heads": 2,
    "head_dim": 24,
    "ffn_dim": 64,
    "text_dim": TEXT,
    "context_tokens": 512,
    "ext_hidden": 14,
    "frames": 200,
    "views": 2,
}

VGGT_PAPER = "facebook/VGGT-1B/model.safetensors"
VGGT_OFFICIAL = "XuWuLingYu/WristWorld/VGGT/checkpoint.pt"
DIT_PAPER = "Wan-AI/Wan2.1-T2V-1.3B/diffusion_pytorch_model.safetensors"
DIT_OFFICIAL = "XuWuLingYu/WristWorld/VideoModel/video_dit_lora.safetensors"
WAN = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
CLIP_PAPER = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
CLIP_OFFICIAL = "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers/image_encoder"


def dit_config(form: str, **changes) -> VideoDiTConfig:
    """The sizes of the small video DiT in a form."""
    return VideoDiTConfig(**({"form": form, "ext_dim": EXT[form]} | DIT_SIZES | changes))


def vggt_config(form: str) -> VGGTConfig:
    """The sizes of the small VGGT with all the heads that a recipe may want."""
    return VGGTConfig(
        **VGGT_SIZES,
        heads_built=("camera", "depth", "point", "track", "wrist"),
        wrist_kind=form,
        wrist=PAPER_WRIST if form == "paper" else OFFICIAL_WRIST,
    )


def make_weights(root: Path, recipe: str) -> Path:
    """Write all that `paper` or `official` reads below a root; returns the root."""
    if recipe not in EXT:
        raise ValueError(f"there are small weights of {', '.join(EXT)}; found {recipe}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        make_autoencoder(root / WAN / "vae")
        make_text_encoder(root / WAN)
        if recipe == "paper":
            _paper(root)
        else:
            _official(root)
    return root


def make_autoencoder(folder: Path) -> Path:
    """A small video autoencoder as diffusers saves it."""
    AutoencoderKLWan(base_dim=8, z_dim=16, num_res_blocks=1).save_pretrained(folder)
    return folder


def make_text_encoder(folder: Path) -> Path:
    """`text_encoder/` and `tokenizer/`: a small UMT5 that reads characters."""
    config = UMT5Config(
        vocab_size=128, d_model=TEXT, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.0
    )
    UMT5EncoderModel(config).save_pretrained(folder / "text_encoder")
    marks = ["<pad>", "</s>", "<unk>"]
    vocabulary = [*marks, *(chr(c) for c in range(32, 127))]
    tokens = Tokenizer(Unigram([(token, -1.0) for token in vocabulary], unk_id=2))
    tokens.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = dict(zip(("pad_token", "eos_token", "unk_token"), marks, strict=True))
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokens, **names)
    wrapped.save_pretrained(folder / "tokenizer")
    return folder


def make_clip(form: str, folder: Path) -> Path:
    """The image encoder of a form: open_clip's folder, or transformers'."""
    folder.mkdir(parents=True, exist_ok=True)
    if form == "official":
        config = CLIPVisionConfig(
            hidden_size=EXT[form],
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=32,
            patch_size=8,
        )
        CLIPVisionModel(config).save_pretrained(folder)
        return folder
    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 32, "width": 32, "heads": 4, "layers": 1}
    model = {"embed_dim": EXT[form], "vision_cfg": vision, "text_cfg": text}
    look = {
        "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711],
    }
    network = open_clip.CLIP(**model)
    save_file(network.state_dict(), folder / "open_clip_model.safetensors")
    written = {"model_cfg": model, "preprocess_cfg": look}
    (folder / "open_clip_config.json").write_text(json.dumps(written))
    return folder


def small_vggt(form: str) -> VGGT:
    """A VGGT whose cameras are sane: some field of view, and nearly no rotation."""
    network = VGGT(vggt_config(form)).eval()
    for head in (network.camera_head, network.wrist_head):
        if hasattr(head, "pose_branch"):
            steps = OFFICIAL_WRIST["iterations"] if head is network.wrist_head else 4
            last: nn.Linear = head.pose_branch.fc2
            nn.init.normal_(last.weight, std=1e-3)
            start = torch.tensor([0, 0, 0.2, 0, 0, 0, 1, 0.8, 1.0])
            last.bias.data.copy_(start / steps)
    return network


def _write_config(folder: Path, config: dict) -> None:
    (folder / "config.json").write_text(json.dumps(config))


def _paper(root: Path) -> None:
    """VGGT's and Wan's public files, CLIP, and what training both stages would leave."""
    make_clip("paper", root / CLIP_PAPER)
    vggt = small_vggt("paper")
    path = root / VGGT_PAPER
    path.parent.mkdir(parents=True, exist_ok=True)
    state = vggt.state_dict()
    public = {k: v for k, v in state.items() if not k.startswith("wrist_head.")}
    save_file(public, path)
    _write_config(path.parent, VGGT_SIZES | {"wrist": PAPER_WRIST})
    wrist = {k: v for k, v in state.items() if k.startswith("wrist_head.")}
    config = {
        "form": "paper",
        "trained": ["wrist"],
        "wrist_kind": "paper",
        "wrist": PAPER_WRIST,
        "dim": VGGT_SIZES["dim"],
        "base_sha256": "",
        "wrist_fov": [0.9, 1.1],
    }
    metadata = {"config": json.dumps(config)}
    save_file(wrist, root / "reconstruction.safetensors", metadata=metadata)
    network = VideoDiT(dit_config("paper"))
    path = root / DIT_PAPER
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(wan_state(network), path)
    _write_config(path.parent, dit_config("paper").to_dict())
    prepare_training(network, "lora")
    save_generation(root / "generation.safetensors", network)


def _official(root: Path) -> None:
    """The released files and their image encoder."""
    make_clip("official", root / CLIP_OFFICIAL)
    path = root / VGGT_OFFICIAL
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": small_vggt("official").state_dict()}, path)
    _write_config(path.parent, VGGT_SIZES | {"wrist": OFFICIAL_WRIST, "wrist_kind": "official"})
    network = VideoDiT(dit_config("official"))
    path = root / DIT_OFFICIAL
    path.parent.mkdir(parents=True, exist_ok=True)
    released = {released_name(k): v for k, v in network.state_dict().items()}
    save_file(released | {"sign": torch.ones(1)}, path)
    _write_config(path.parent, dit_config("official").to_dict())


def wan_state(network: VideoDiT) -> dict[str, torch.Tensor]:
    """A network's transformer under Wan's own names, before its input was widened."""
    state = {}
    for name, value in network.dit.state_dict().items():
        if name == "patch_embedding.weight":
            value = value[:, : network.config.latent_channels].contiguous()
        state[wan_name(name)] = value
    return state

"""Weights of the full-size recipes at reduced width, laid out as the public files are."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from wristaugment.augment.recipe import get_recipe
from wristaugment.augment.weights import requirements
from wristaugment.models.libraries import AutoencoderKLWan
from wristaugment.models.lora import prepare_training, save_generation
from wristaugment.models.released import MARKER, released_name, wan_name
from wristaugment.models.vggt import VGGT, VGGTConfig
from wristaugment.models.video_dit import VideoDiT, VideoDiTConfig

VGGT_SIZES = {
    "dim": 32,
    "depth": 4,
    "heads": 1,
    "encoder_depth": 1,
    "encoder_heads": 1,
    "grid": 4,
    "layers": [0, 1, 2, 3],
    "dpt_features": 8,
    "dpt_widths": [8, 8, 8, 8],
    "camera_depth": 1,
    "camera_heads": 2,
}
WRIST = {
    "paper": {"dim": 32, "depth": 1, "heads": 2, "queries": 2},
    "official": {"layers": 1, "heads": 2, "trunk_depth": 1, "trunk_heads": 2},
}
DIT_SIZES = {
    "layers": 2,
    "heads": 2,
    "head_dim": 24,
    "ffn_dim": 64,
    "text_dim": 20,
    "context_tokens": 512,
    "ext_hidden": 14,
    "frames": 90,
}
EXT = {"paper": 16, "official": 24}


def vggt_config(form: str, *heads: str) -> VGGTConfig:
    sizes = {k: tuple(v) if isinstance(v, list) else v for k, v in VGGT_SIZES.items()}
    return VGGTConfig(**sizes, heads_built=heads, wrist_kind=form, wrist=WRIST[form])


def dit_config(form: str, **more) -> VideoDiTConfig:
    return VideoDiTConfig(**{"form": form, "ext_dim": EXT[form], **DIT_SIZES, **more})


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def state(network, rename=lambda name: name) -> dict:
    return {rename(name): value.clone() for name, value in network.state_dict().items()}


def write(path: Path, values: dict, **metadata: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(values, path, metadata=metadata)
    else:
        torch.save({"model": values}, path)
    return path


def write_vggt(root: Path, form: str) -> Path:
    """VGGT as recipe `form` wants it: the hub's without a wrist head, or the released one."""
    torch.manual_seed(1)
    if form == "paper":
        path, heads = root / "facebook/VGGT-1B/model.safetensors", ("camera", "depth", "point")
    else:
        path, heads = (
            root / "XuWuLingYu/WristWorld/VGGT/checkpoint.pt",
            ("camera", "depth", "point", "wrist"),
        )
    write(path, state(VGGT(vggt_config(form, *heads))))
    write_json(path.parent / "config.json", {**VGGT_SIZES, "wrist": WRIST[form]})
    return path


def write_dit(root: Path, form: str) -> Path:
    """Wan's own file, or the released one."""
    torch.manual_seed(2)
    network = VideoDiT(dit_config(form))
    if form == "official":
        path = root / "XuWuLingYu/WristWorld/VideoModel/video_dit_lora.safetensors"
        write(path, state(network, released_name) | {MARKER: torch.zeros(1)})
    else:
        path = root / "Wan-AI/Wan2.1-T2V-1.3B/diffusion_pytorch_model.safetensors"
        values = state(network.dit, wan_name)
        values["patch_embedding.weight"] = values["patch_embedding.weight"][:, :16].clone()
        write(path, values)
    write_json(path.parent / "config.json", {**DIT_SIZES, "ext_dim": EXT[form]})
    return path


def write_shared(root: Path) -> Path:
    """Autoencoder, prompt encoder (in shards) and tokenizer."""
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(3)
    folder = root / "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
    AutoencoderKLWan(base_dim=4, num_res_blocks=1).save_pretrained(folder / "vae")
    sizes = {"d_model": 20, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2}
    prompts = UMT5EncoderModel(UMT5Config(**sizes, vocab_size=40))
    prompts.save_pretrained(folder / "text_encoder", max_shard_size="4KB")
    assert (folder / "text_encoder/model.safetensors.index.json").exists()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        write_json(folder / "tokenizer" / name, {})
    return folder


def write_image(root: Path, form: str) -> Path:
    """The image encoder of a form."""
    torch.manual_seed(4)
    if form == "official":
        from transformers import CLIPVisionConfig, CLIPVisionModel

        folder = root / "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers/image_encoder"
        sizes = {"hidden_size": EXT[form], "intermediate_size": 32, "num_attention_heads": 2}
        more = {"num_hidden_layers": 2, "image_size": 28, "patch_size": 14}
        CLIPVisionModel(CLIPVisionConfig(**sizes, **more)).save_pretrained(folder)
        return folder / "model.safetensors"
    import open_clip

    folder = root / "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
    vision = {"layers": 1, "width": 32, "head_width": 16, "patch_size": 14, "image_size": 28}
    text = {"layers": 1, "width": 16, "heads": 2, "context_length": 8, "vocab_size": 50}
    sizes = {"embed_dim": EXT[form], "vision_cfg": vision, "text_cfg": text}
    network = open_clip.CLIP(**sizes)
    write_json(folder / "open_clip_config.json", {"model_cfg": sizes})
    return write(folder / "open_clip_model.safetensors", state(network))


def write_reconstruction(root: Path, form: str = "paper") -> Path:
    """The wrist head as training leaves it."""
    torch.manual_seed(5)
    config = vggt_config(form, "camera", "depth", "wrist")
    values = {k: v for k, v in state(VGGT(config)).items() if k.startswith("wrist_head.")}
    header = {
        "form": form,
        "trained": ["wrist"],
        "wrist_kind": form,
        "wrist": WRIST[form],
        "dim": config.dim,
        "base_sha256": "",
        "wrist_fov": [0.9, 1.1],
    }
    return write(root / "reconstruction.safetensors", values, config=json.dumps(header))


def write_generation(root: Path, form: str = "paper", *, whole: bool = False, **more) -> Path:
    """A tuned video DiT: LoRA factors and the new layers, or all of it."""
    torch.manual_seed(6)
    network, path = VideoDiT(dit_config(form, **more)), root / "generation.safetensors"
    save_generation(path, prepare_training(network, "full" if whole else "lora"))
    return path


def write_all(root: Path, form: str) -> Path:
    """Everything that a recipe must have."""
    write_vggt(root, form)
    write_dit(root, form)
    write_shared(root)
    write_image(root, form)
    if form == "paper":
        write_reconstruction(root)
        write_generation(root)
    return root


def main_file(root: Path, recipe: str, part: str) -> Path:
    """Where the weights of a part lie."""
    need = next(n for n in requirements(get_recipe(recipe)) if n.part == part)
    return root / need.place(need.main)

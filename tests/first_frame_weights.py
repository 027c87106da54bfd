"""Tiny random pipelines of the first-frame-guided models, saved as diffusers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from wristaugment.models import libraries  # noqa: F401  (the door to diffusers)

REPOSITORIES = {
    "svd": "stabilityai/stable-video-diffusion-img2vid-xt",
    "wan-i2v": "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",
    "cosmos-predict2": "nvidia/Cosmos-Predict2-2B-Video2World",
}
TEXT = 16  # width of the tiny text encoders
WORDS = ["<pad>", "</s>", "<unk>", "put", "the", "cube", "on", "0", "1"]


def write_pipeline(root: Path, name: str) -> Path:
    """The folder of a pipeline below a root of weights."""
    torch.manual_seed(5)
    folder = root / REPOSITORIES[name]
    {"svd": _svd, "wan-i2v": _wan, "cosmos-predict2": _cosmos}[name](folder)
    return folder


def _svd(folder: Path) -> None:
    from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import (
        AutoencoderKLTemporalDecoder,
    )
    from diffusers.models.unets.unet_spatio_temporal_condition import (
        UNetSpatioTemporalConditionModel,
    )
    from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
    from transformers import CLIPVisionModelWithProjection

    UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=24,
        num_attention_heads=(2, 4),
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=3 * 8,
        num_frames=4,
    ).save_pretrained(folder / "unet")
    levels: dict[str, Any] = {  # the library's annotations know one level alone
        "block_out_channels": (32,) * 4,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
    }
    AutoencoderKLTemporalDecoder(**levels).save_pretrained(folder / "vae")
    vision = _vision(width=32, projection=24, side=224)  # what its pipeline resizes to
    CLIPVisionModelWithProjection(vision).save_pretrained(folder / "image_encoder")
    _pictures(folder / "feature_extractor")
    EulerDiscreteScheduler(
        prediction_type="v_prediction",
        timestep_type="continuous",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
    ).save_pretrained(folder / "scheduler")


def _wan(folder: Path) -> None:
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
    from transformers import CLIPVisionModel, UMT5Config, UMT5EncoderModel

    WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16 + 4 + 16,  # noise, which frames are given, and those frames
        out_channels=16,
        text_dim=TEXT,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        image_dim=32,
    ).save_pretrained(folder / "transformer")
    _video_autoencoder(folder / "vae")
    UMT5EncoderModel(_text(UMT5Config)).save_pretrained(folder / "text_encoder")
    CLIPVisionModel(_vision(width=32)).save_pretrained(folder / "image_encoder")
    _pictures(folder / "image_processor")
    _words(folder / "tokenizer")
    UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    ).save_pretrained(folder / "scheduler")


def _cosmos(folder: Path) -> None:
    from diffusers.models.transformers.transformer_cosmos import CosmosTransformer3DModel
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
        FlowMatchEulerDiscreteScheduler,
    )
    from transformers import T5Config, T5EncoderModel

    CosmosTransformer3DModel(
        in_channels=16 + 1,
        out_channels=16,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        mlp_ratio=2,
        text_embed_dim=TEXT,
        adaln_lora_dim=4,
        max_size=(4, 32, 32),
        extra_pos_embed_type=None,
    ).save_pretrained(folder / "transformer")
    _video_autoencoder(folder / "vae")
    T5EncoderModel(_text(T5Config)).save_pretrained(folder / "text_encoder")
    _words(folder / "tokenizer")
    FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True).save_pretrained(folder / "scheduler")


def _video_autoencoder(folder: Path) -> None:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    AutoencoderKLWan(
        base_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    ).save_pretrained(folder)


def _vision(width: int, projection: int = 16, side: int = 28):
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=32,
        projection_dim=projection,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=side,
        patch_size=side // 2,
    )


def _text(kind):
    sizes = {"d_model": TEXT, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    return kind(**sizes, vocab_size=len(WORDS))


def _pictures(folder: Path) -> None:
    from transformers import CLIPImageProcessor

    size = {"shortest_edge": 28}
    CLIPImageProcessor(size=size, crop_size={"height": 28, "width": 28}).save_pretrained(folder)


def _words(folder: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)

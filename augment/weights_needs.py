"""What a need of weights is, and those of the pipelines that continue a first frame."""

from __future__ import annotations

from dataclasses import dataclass

APACHE = "Apache-2.0"
I2V = "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"
SVD_NOTICE = (
    "stabilityai/stable-video-diffusion-img2vid-xt is licensed for non-commercial use alone; "
    "accept its terms on the hub"
)
COSMOS_NOTICE = (
    "the NVIDIA Open Model License of Cosmos-Predict2 ends for who runs it without a guardrail of "
    "like effect: install cosmos_guardrail, or set WRISTAUGMENT_COSMOS_GUARDRAIL=off where you "
    "have one of your own"
)


@dataclass(frozen=True)
class Need:
    """Files of one repository that a recipe needs for one part.

    Attributes:
        part: the part of the pipeline that loads them.
        repository: on the hub; "" for what is trained here or packaged.
        main: the weights, by their path in the repository; they may come in shards with an
            index. For a tokenizer, its vocabulary.
        bytes: about how many; `--download` learns the exact number from the hub.
        licence: of the weights. why: what they are for.
        other_names: of `main`, in the same repository.
        beside: files that must be there too. extras: files that are taken along where they are.
        optional: the recipe works without.
        notice: what a user must know before using them; "" for nothing.
    """

    part: str
    repository: str
    main: str
    bytes: int
    licence: str
    why: str
    other_names: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    optional: bool = False
    notice: str = ""

    def place(self, name: str) -> str:
        """Where a file of the repository lies below a root."""
        return f"{self.repository}/{name}" if self.repository else name


def _public(
    repository: str, licence: str, notice: str, *parts: tuple[str, int, str]
) -> tuple[Need, ...]:
    """The parts of a diffusers pipeline: (folder, bytes or 0 for one without tensors, why)."""
    needs = []
    for part, size, why in parts:
        names = (f"{part}/config.json",)
        if part == "tokenizer":
            main, names = f"{part}/tokenizer.json", (f"{part}/tokenizer_config.json",)
        elif part == "scheduler":
            main, names = f"{part}/scheduler_config.json", ()
        elif not size:
            main, names = f"{part}/preprocessor_config.json", ()
        else:
            main = "model" if part.endswith("_encoder") else "diffusion_pytorch_model"
            main = f"{part}/{main}.safetensors"
        extras = ("special_tokens_map.json", "spiece.model") if part == "tokenizer" else ()
        needs.append(
            Need(
                part,
                repository,
                main,
                size or 1_000,
                licence,
                why,
                beside=names,
                extras=tuple(f"{part}/{name}" for name in extras),
                notice=notice,
            )
        )
    return tuple(needs)


_SCHEDULER = ("scheduler", 0, "sampler's settings")
FIRST_FRAME: dict[str, tuple[Need, ...]] = {
    "svd": _public(
        "stabilityai/stable-video-diffusion-img2vid-xt",
        "stable-video-diffusion-nc-community (non-commercial)",
        SVD_NOTICE,
        ("unet", 6_100_000_000, "video U-Net"),
        ("vae", 391_000_000, "video autoencoder"),
        ("image_encoder", 2_530_000_000, "features of the first frame (CLIP ViT-H/14)"),
        ("feature_extractor", 0, "how frames are prepared for it"),
        _SCHEDULER,
    ),
    "wan-i2v": _public(
        I2V,
        APACHE,
        "",
        ("transformer", 65_600_000_000, "video DiT (Wan 2.1 14B)"),
        ("vae", 507_600_000, "video autoencoder"),
        ("text_encoder", 22_720_000_000, "prompt encoder (UMT5-XXL)"),
        ("tokenizer", 21_500_000, "tokenizer of the prompt encoder"),
        ("image_encoder", 1_260_000_000, "features of the first frame (CLIP ViT-H/14)"),
        ("image_processor", 0, "how frames are prepared for it"),
        _SCHEDULER,
    ),
    "cosmos-predict2": _public(
        "nvidia/Cosmos-Predict2-2B-Video2World",
        "NVIDIA Open Model License",
        COSMOS_NOTICE,
        ("transformer", 3_910_000_000, "video DiT (Cosmos-Predict2 2B)"),
        ("vae", 508_000_000, "video autoencoder"),
        ("text_encoder", 9_530_000_000, "prompt encoder (T5-11B)"),
        ("tokenizer", 2_400_000, "tokenizer of the prompt encoder"),
        _SCHEDULER,
    ),
}

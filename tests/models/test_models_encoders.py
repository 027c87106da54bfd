"""The frozen encoders: what they make, what they refuse, and what they are not asked twice."""

import json
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import small_weights
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, CLIPVisionModel, UMT5EncoderModel
from wristaugment.models import encoders
from wristaugment.models.encoders import ImageEncoder, PromptEncoder, VideoAutoencoder, clean_prompt
from wristaugment.models.errors import WeightsError


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    small_weights.make_autoencoder(root / "vae")
    small_weights.make_text_encoder(root)
    for form in ("paper", "official"):
        small_weights.make_clip(form, root / form)
    return root


@pytest.fixture(scope="module")
def autoencoder(root) -> VideoAutoencoder:
    return VideoAutoencoder.open(root / "vae")


@pytest.fixture
def copy(root, tmp_path) -> Path:
    """A copy of all folders, to be damaged."""
    return shutil.copytree(root, tmp_path / "copy")


def frames(count: int = 3, height: int = 40, width: int = 60) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def test_latents_are_the_posterior_s_mode_normalised(root, autoencoder):
    video = torch.rand(2, 3, 5, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = autoencoder.encode(video)
    assert latents.shape == (2, 16, 2, 2, 3)
    plain = AutoencoderKLWan.from_pretrained(root / "vae").eval()
    with torch.no_grad():
        posterior = plain.encode(video).latent_dist
    for channel in (0, 7, 15):
        mean, std = plain.config.latents_mean[channel], plain.config.latents_std[channel]
        wanted = (posterior.mean[:, channel] - mean) / std
        assert torch.allclose(latents[:, channel], wanted, atol=1e-6)
    with torch.no_grad():
        wanted = plain.decode(posterior.mean).sample
    decoded = autoencoder.decode(latents)
    assert decoded.shape == video.shape
    assert torch.allclose(decoded, wanted, atol=1e-5)
    assert decoded.abs().max() <= 1


@pytest.mark.parametrize(
    ("shape", "found"),
    [
        ((1, 3, 4, 16, 16), "found 4: pad or cut to 1 or 5"),
        ((1, 3, 0, 16, 16), "found 0: pad or cut to 1"),
        ((1, 3, 5, 20, 16), "height of 20 pixels; it must be a multiple of 8: resize to 16 or 24"),
        ((1, 3, 5, 16, 4), "width of 4 pixels; it must be a multiple of 8: resize to 8"),
        ((1, 5, 3, 16, 16), r"must be \[B, 3, T, H, W\]"),
    ],
)
def test_a_clip_that_would_be_cropped_is_refused(autoencoder, shape, found):
    with pytest.raises(ValueError, match=found):
        autoencoder.encode(torch.zeros(shape))


def test_latents_of_other_channels_are_refused(autoencoder):
    with pytest.raises(ValueError, match=r"must be \[B, 16, F, h, w\]"):
        autoencoder.decode(torch.zeros(1, 4, 2, 2, 2))


def test_tiles_agree_with_the_whole_away_from_their_seams(root, autoencoder):
    tiled = VideoAutoencoder.open(root / "vae", tiled=True)
    video = torch.zeros(2, 3, 1, 16, 264)  # wider than a tile
    video[1] = 0.5
    whole, parts = autoencoder.encode(video), tiled.encode(video)
    assert parts.shape == whole.shape
    assert torch.allclose(parts[..., 4:20], whole[..., 4:20], atol=1e-4)


@pytest.mark.parametrize("kind", ["vae", "prompts", "paper", "official"])
def test_bfloat16_comes_close_to_float32(root, kind):
    def answer(dtype: torch.dtype) -> torch.Tensor:
        if kind == "vae":
            video = torch.linspace(-1, 1, 5 * 16 * 16).reshape(1, 1, 5, 16, 16)
            return VideoAutoencoder.open(root / "vae", dtype).encode(video.expand(1, 3, 5, 16, 16))
        if kind == "prompts":
            return PromptEncoder.open(root, dtype)(["put the cup down"]).float()
        return ImageEncoder.open(kind, root / kind, dtype)(frames())

    exact, rough = answer(torch.float32), answer(torch.bfloat16)
    assert not torch.equal(exact, rough)
    assert (exact - rough).norm() / exact.norm() < 0.05


def test_prompts_are_encoded_as_wan_s_pipeline_does(root):
    prompts = ["put the  cup\ndown ", "", "salt &amp; pepper", "x" * 600]
    found = PromptEncoder.open(root)(prompts)
    pipeline = WanPipeline(
        tokenizer=AutoTokenizer.from_pretrained(root / "tokenizer"),
        text_encoder=UMT5EncoderModel.from_pretrained(root / "text_encoder").eval(),
        vae=AutoencoderKLWan.from_pretrained(root / "vae"),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        transformer=None,
    )
    with torch.no_grad():
        wanted, _ = pipeline.encode_prompt(
            prompts, do_classifier_free_guidance=False, max_sequence_length=512
        )
    assert found.shape == (4, 512, small_weights.TEXT)
    assert torch.allclose(found, wanted, atol=1e-5)
    lengths = (found != 0).any(-1).sum(1).tolist()
    assert lengths == [len("put the cup down") + 1, 1, len("salt & pepper") + 1, 512]


def test_a_prompt_is_encoded_once_and_by_itself(root):
    encoder = PromptEncoder.open(root)
    both = encoder(["open the drawer", "a", "open  the drawer"])
    assert encoder.encoded == 2
    assert torch.equal(both[0], both[2])
    alone = PromptEncoder.open(root)(["open the drawer"])
    assert torch.equal(alone[0], both[0])
    with pytest.raises(ValueError, match="found no prompt"):
        encoder([])


def test_prompts_are_kept_on_disk_and_the_network_then_stays_there(root, copy, tmp_path):
    cache = tmp_path / "cache"
    first = PromptEncoder.open(copy, cache=cache)
    wanted = first(["open the drawer"])
    again = PromptEncoder.open(copy, cache=cache)
    again._load = None  # type: ignore[assignment]  # nothing may be read but the cache
    assert torch.equal(again(["open the drawer"]), wanted)
    assert again.encoded == 0
    assert PromptEncoder.open(copy, torch.bfloat16, cache=cache)(["open the drawer"]).dtype == (
        torch.bfloat16
    )
    assert len(list(cache.iterdir())) == 2
    weights = copy / "text_encoder" / "model.safetensors"
    changed = {k: v + 0.1 for k, v in load_file(weights).items()}
    save_file(changed, weights, metadata={"format": "pt"})
    other = PromptEncoder.open(copy, cache=cache)
    assert not torch.equal(other(["open the drawer"]), wanted)
    assert other.encoded == 1


def test_a_damaged_entry_is_made_again_and_a_cache_that_cannot_be_written_is_left(root, tmp_path):
    cache = tmp_path / "cache"
    wanted = PromptEncoder.open(root, cache=cache, fingerprint="f")(["a b"])
    (entry,) = cache.iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(whole[:20])
    assert torch.equal(PromptEncoder.open(root, cache=cache, fingerprint="f")(["a b"]), wanted)
    assert entry.read_bytes() == whole
    (tmp_path / "file").write_text("")
    blocked = PromptEncoder.open(root, cache=tmp_path / "file" / "cache", fingerprint="f")
    assert torch.equal(blocked(["a b"]), wanted)


def test_the_network_can_be_let_go_of(root):
    encoder = PromptEncoder.open(root)
    wanted = encoder(["a", "b"])
    encoder.close()
    assert torch.equal(encoder(["a", "b"]), wanted)
    assert encoder.encoded == 2
    assert encoder(["c"]).shape == (1, 512, small_weights.TEXT)


def test_prompts_are_cleaned_as_wan_s_pipeline_does():
    assert clean_prompt(" a &amp;lt; b\n\tc ") == "a < b c"


def test_the_paper_s_features_are_open_clip_s(root):
    encoder = ImageEncoder.open("paper", root / "paper")
    model, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{root / 'paper'}")
    pictures = torch.stack([prepare(Image.fromarray(x)) for x in frames()])
    with torch.no_grad():
        wanted = model.eval().encode_image(pictures)
    found = encoder(frames())
    assert found.shape == (3, encoder.width) == (3, small_weights.EXT["paper"])
    assert torch.allclose(found, wanted, atol=1e-5)


def test_the_released_features_are_the_class_token_before_the_last_layer(root):
    encoder = ImageEncoder.open("official", root / "official")
    found = encoder(torch.as_tensor(frames(1)).expand(2, -1, -1, -1))
    assert found.shape == (2, encoder.width) == (2, small_weights.EXT["official"])
    network = CLIPVisionModel.from_pretrained(root / "official").eval()
    images = torch.as_tensor(frames(1)).permute(0, 3, 1, 2) / 255
    images = torch.nn.functional.interpolate(images, (32, 32), mode="bicubic")
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).reshape(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).reshape(3, 1, 1)
    seen = []
    layers = network.encoder.layers if hasattr(network, "encoder") else (
        network.vision_model.encoder.layers
    )  # fmt: skip
    layers[-1].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.no_grad():
        network((images - mean) / std)
    assert torch.allclose(found[:1], seen[0][:, 0], atol=1e-5)
    assert torch.allclose(found[0], found[1], atol=1e-6)


def test_many_frames_are_as_each_by_itself(root, monkeypatch):
    encoder = ImageEncoder.open("official", root / "official")
    whole = encoder(frames(5))
    monkeypatch.setattr(encoders, "_FRAMES_AT_ONCE", 2)
    assert torch.allclose(encoder(frames(5)), whole, atol=1e-6)
    with pytest.raises(ValueError, match=r"must be \[N, H, W, 3\] uint8"):
        encoder(frames().astype(np.float32))
    with pytest.raises(ValueError, match="official or paper"):
        ImageEncoder.open("nano", root / "official")


def open_all(root: Path, kind: str):
    if kind == "vae":
        return VideoAutoencoder.open(root / "vae")
    if kind in ("paper", "official"):
        return ImageEncoder.open(kind, root / kind)
    return PromptEncoder.open(root)(["a"])


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        ("vae", "vae/config.json"),
        ("prompts", "text_encoder/config.json"),
        ("prompts", "tokenizer/tokenizer_config.json"),
        ("paper", "paper/open_clip_config.json"),
        ("paper", "paper/open_clip_model.safetensors"),
        ("official", "official/config.json"),
    ],
)
def test_a_file_that_is_missing_is_named_at_once(copy, kind, file):
    (copy / file).unlink()
    with pytest.raises(WeightsError, match=f"{file}: no such file; fetch"):
        open_all(copy, kind)


def test_weights_that_could_run_code_are_not_read(copy):
    for folder, name in (("vae", "diffusion_pytorch_model"), ("text_encoder", "pytorch_model")):
        for path in (copy / folder).glob("*.safetensors"):
            torch.save(load_file(path), path.parent / f"{name}.bin")
            path.unlink()
    for kind in ("vae", "prompts"):
        with pytest.raises(WeightsError, match="has no safetensors file"):
            open_all(copy, kind)


def test_a_shard_that_an_index_names_must_be_there(copy):
    folder = copy / "text_encoder"
    names = list(load_file(folder / "model.safetensors"))
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00002.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match=r"of-00002\.safetensors: no such"):
        open_all(copy, "prompts")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    assert open_all(copy, "prompts").shape == (1, 512, small_weights.TEXT)


WEIGHTS = {
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "prompts": "text_encoder/model.safetensors",
    "paper": "paper/open_clip_model.safetensors",
    "official": "official/model.safetensors",
}


@pytest.mark.parametrize("kind", list(WEIGHTS))
@pytest.mark.parametrize("damage", ["missing", "unexpected", "shape", "cut"])
def test_weights_of_another_network_are_one_line(copy, kind, damage, capfd):
    path = copy / WEIGHTS[kind]
    state = load_file(path)
    name = next(k for k, v in state.items() if v.ndim == 2 and "norm" not in k)  if (
        kind != "vae") else next(iter(state))  # fmt: skip
    if damage == "missing":
        del state[name]
    if damage == "unexpected":
        name = "another.weight"
        state[name] = torch.zeros(1)
    if damage == "shape":
        state[name] = torch.zeros(1, 2)
    save_file(state, path, metadata={"format": "pt"})
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    capfd.readouterr()
    with pytest.raises(WeightsError, match="fetch the folder again") as caught:
        open_all(copy, kind)
    assert "\n" not in str(caught.value)
    if damage != "cut":
        assert name in str(caught.value)
    assert capfd.readouterr().err == ""


def test_names_with_and_without_the_old_prefix_are_read(copy):
    wanted = ImageEncoder.open("official", copy / "official")(frames())
    path = copy / WEIGHTS["official"]
    state = {
        f"vision_model.{k.removeprefix('vision_model.')}": v for k, v in load_file(path).items()
    }
    save_file(state, path, metadata={"format": "pt"})
    assert torch.equal(ImageEncoder.open("official", copy / "official")(frames()), wanted)

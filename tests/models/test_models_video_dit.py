"""The full-size video DiT: sizes, context, widening, public weights and sampling."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import parity_generator
import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.hooks import FirstBlockCacheConfig
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from parity_generator import build
from safetensors.torch import load_file, save_file
from wristaugment.models.errors import WeightsError
from wristaugment.models.flow import make_schedule, sample_latents
from wristaugment.models.released import (
    load_released,
    load_wan,
    open_released,
    released_name,
    released_shapes,
    wan_name,
)
from wristaugment.models.video_dit import (
    OFFICIAL,
    PAPER,
    VideoDiT,
    VideoDiTConfig,
    change_views,
    latent_shape,
    to_precision,
    widen_patch_embedding,
)

FIXTURE = Path(__file__).parent.parent / "fixtures" / "generator_small.npz"
SMALL = {
    "layers": 2,
    "heads": 2,
    "head_dim": 24,
    "ffn_dim": 64,
    "text_dim": 20,
    "context_tokens": 16,
    "ext_dim": 12,
    "ext_hidden": 14,
    "frames": 9,
}


def small(form: str = "official", **changes) -> VideoDiT:
    torch.manual_seed(0)
    return VideoDiT(VideoDiTConfig(**({"form": form} | SMALL | changes))).eval()


@pytest.fixture(params=["official", "paper"])
def network(request) -> VideoDiT:
    return small(request.param)


def test_full_size_has_the_parameters_of_wan_and_of_the_wider_input():
    with torch.device("meta"):
        network = VideoDiT(OFFICIAL)
        paper = VideoDiT(PAPER)
    assert sum(p.numel() for p in network.dit.parameters()) == 1_419_095_104
    assert sum(p.numel() for p in paper.dit.parameters()) == 1_419_095_104
    assert network.tokens.ext_proj[3].weight.shape == (4096, 2048)
    assert paper.tokens.ext_proj.weight.shape == (4096, 512)


def test_widening_with_zeros_changes_nothing_and_adds_the_channels():
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 24, "ffn_dim": 64, "num_layers": 1}
    dit = WanTransformer3DModel(in_channels=16, out_channels=16, text_dim=20, **sizes).eval()
    x, condition = torch.randn(2, 1, 16, 2, 4, 6)
    rest = {"timestep": torch.tensor([500.0]), "encoder_hidden_states": torch.randn(1, 5, 20)}
    with torch.no_grad():
        before = dit(x, **rest).sample
        widen_patch_embedding(dit, 32)
        after = dit(torch.cat([x, condition], 1), **rest).sample
    assert torch.equal(before, after)
    assert dit.config.in_channels == 32
    old = dit.patch_embedding.weight.detach().clone()
    dit.patch_embedding.weight.data = old[:, :16]
    dit.patch_embedding.in_channels = 16
    widen_patch_embedding(dit, 32, std=0.02, generator=torch.Generator().manual_seed(1))
    new = dit.patch_embedding.weight
    assert torch.equal(new[:, :16], old[:, :16])
    assert new[:, 16:].std().item() == pytest.approx(0.02, rel=0.1)
    with pytest.raises(ValueError, match="cannot narrow"):
        widen_patch_embedding(dit, 16)


def test_released_context_is_text_then_projected_features_with_positions():
    network = small()
    text, ext = torch.randn(2, 16, 20), torch.randn(2, 2, 5, 12)
    context = network.encode_context(text, ext)
    assert context.shape == (2, 16, 20)
    assert torch.equal(context[:, :6], text[:, :6])
    tokens = network.tokens
    v, t = 1, 3
    feature = ext[:, v, t] + tokens.temporal_embed.weight[t] + tokens.view_embed.weight[v]
    torch.testing.assert_close(context[:, 6 + v * 5 + t], tokens.ext_proj(feature))
    assert torch.equal(network.encode_context(text), text)


def test_paper_context_is_projected_features_with_positions_then_text_with_its_own():
    network = small("paper")
    tokens = network.tokens
    torch.nn.init.normal_(tokens.text_embed.weight)
    text, ext = torch.randn(2, 4, 20), torch.randn(2, 2, 5, 12)
    context = network.encode_context(text, ext)
    v, t = 1, 3
    wanted = tokens.ext_proj(ext[:, v, t])
    wanted = wanted + tokens.temporal_embed.weight[t] + tokens.view_embed.weight[v]
    torch.testing.assert_close(context[:, v * 5 + t], wanted)
    assert torch.equal(context[:, 10:14], text + tokens.text_embed.weight[:4])
    assert context[:, 14:].abs().max() == 0
    assert torch.equal(network.encode_context(text)[:, :4], context[:, 10:14])


@pytest.mark.parametrize("views", [1, 2])
def test_a_short_prompt_gives_what_the_padded_one_gives(views):
    network = small()
    text, ext = torch.randn(1, 3, 20), torch.randn(1, views, 5, 12)
    padded = torch.cat([text, torch.zeros(1, 13, 20)], 1)
    x, condition = torch.randn(2, 1, 16, 2, 4, 4)
    with torch.no_grad():
        a, b = (
            network(x, torch.tensor([700.0]), condition, network.encode_context(t, ext))
            for t in (text, padded)
        )
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_condition_and_features_reach_the_output(network):
    text, ext = torch.randn(1, 4, 20), torch.randn(1, 2, 5, 12)
    x, condition, other = torch.randn(3, 1, 16, 2, 4, 4)
    step = torch.tensor([500.0])
    with torch.no_grad():
        context = network.encode_context(text, ext)
        out = network(x, step, condition, context)
        assert out.shape == x.shape
        assert (network(x, step, other, context) - out).abs().max() > 1e-4
        assert (network(x, step, condition, network.encode_context(text)) - out).abs().max() > 1e-6


def test_more_views_keep_all_weights_but_the_view_embeddings(network):
    before = {k: v.clone() for k, v in network.state_dict().items()}
    change_views(network, 3, torch.Generator().manual_seed(5))
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert {k for k in before if not torch.equal(before[k], after[k])} == {
        "tokens.view_embed.weight"
    }
    assert after["tokens.view_embed.weight"].shape[0] == network.config.views == 3
    assert network.tokens.view_embed.weight.requires_grad
    network.encode_context(torch.randn(1, 4, 20), torch.randn(1, 3, 5, 12))
    first = after["tokens.view_embed.weight"].clone()
    change_views(network, 3, torch.Generator().manual_seed(5))
    assert torch.equal(network.tokens.view_embed.weight, first)


def test_bfloat16_keeps_what_wan_keeps_in_float32(network):
    to_precision(network, torch.bfloat16)
    state = network.state_dict()
    assert state["dit.blocks.0.attn1.to_q.weight"].dtype == torch.bfloat16
    assert state["tokens.view_embed.weight"].dtype == torch.bfloat16
    for name in (
        "dit.scale_shift_table",
        "dit.blocks.0.norm2.weight",
        "dit.condition_embedder.time_embedder.linear_1.weight",
    ):
        assert state[name].dtype == torch.float32
    context = network.encode_context(torch.randn(1, 4, 20), torch.randn(1, 2, 5, 12))
    x, condition = torch.randn(2, 1, 16, 2, 4, 4)
    with torch.no_grad():
        assert network(x, torch.tensor([500.0]), condition, context).isfinite().all()


def test_a_form_that_is_none_is_refused():
    with pytest.raises(ValueError, match="official or paper; found 'other'"):
        VideoDiTConfig(form="other")


def test_sizes_that_fit_have_latents():
    assert latent_shape(OFFICIAL, 81, 480, 832) == (16, 21, 60, 104)
    assert latent_shape(OFFICIAL, 1, 16, 16) == (16, 1, 2, 2)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        ((80, 480, 640), r"4n \+ 1 frames; found 80: pad or cut to 77 or 81"),
        ((0, 480, 640), r"found 0: pad or cut to 1$"),
        ((81, 60, 96), "a height of 60 pixels; it must be a multiple of 16: resize to 48 or 64"),
        ((81, 64, 90), "a width of 90 pixels; it must be a multiple of 16: resize to 80 or 96"),
        ((81, 8, 96), "a height of 8 pixels.*resize to 16$"),
    ],
)
def test_sizes_that_would_be_cropped_are_refused(size, text):
    with pytest.raises(ValueError, match=text):
        latent_shape(OFFICIAL, *size)


@pytest.mark.parametrize(
    ("views", "frames", "text"),
    [
        (3, 5, "found 3 anchor views; the generator has embeddings for 2: pass 2 at most"),
        (1, 13, "found 13 frames; the generator has embeddings for 9"),
        (2, 9, "9 frames of 2 views are 18 tokens and the context holds 16: 8 frames fit"),
    ],
)
def test_what_does_not_fit_the_context_is_refused(network, views, frames, text):
    with pytest.raises(ValueError, match=text):
        network.check_clip(frames, 64, 64, views)
    with pytest.raises(ValueError, match=text):
        network.encode_context(torch.zeros(1, 4, 20), torch.zeros(1, views, frames, 12))


def test_tokens_of_another_size_are_refused(network):
    with pytest.raises(ValueError, match="found 17 text tokens; the context holds 16"):
        network.encode_context(torch.zeros(1, 17, 20))
    with pytest.raises(ValueError, match=r"text must be \[B, L, 20\]; found \[1, 4, 24\]"):
        network.encode_context(torch.zeros(1, 4, 24))
    with pytest.raises(ValueError, match=r"features must be \[1, V, T, 12\]; found \[1, 2, 5, 8\]"):
        network.encode_context(torch.zeros(1, 4, 20), torch.zeros(1, 2, 5, 8))


def test_latents_of_another_shape_are_refused(network):
    step, context = torch.tensor([500.0]), torch.zeros(1, 16, 20)
    x = torch.zeros(1, 16, 2, 4, 4)
    with pytest.raises(ValueError, match=r"condition latents must be .* found \[1, 16, 1, 4, 4\]"):
        network(x, step, x[:, :, :1], context)
    with pytest.raises(ValueError, match="found 5 latent columns; they must be a multiple of 2"):
        network(torch.zeros(1, 16, 2, 4, 5), step, torch.zeros(1, 16, 2, 4, 5), context)


def test_the_configuration_survives_a_header():
    config = replace(PAPER, views=3)
    assert VideoDiTConfig(**config.to_dict()) == config


@pytest.fixture(scope="module")
def figures() -> dict:
    with np.load(FIXTURE) as file:
        return dict(file)


@pytest.mark.parametrize("batched", [True, False])
def test_every_output_of_the_release_is_met(figures, batched):
    meta = json.loads(str(figures["meta"]))
    errors = parity_generator.errors(meta, figures, batched=batched)
    assert errors.keys() == figures.keys() - {"meta"}
    assert max(errors.values()) < 1e-4, errors


def test_the_comparison_sees_another_guidance_and_refuses_another_run(figures):
    meta = json.loads(str(figures["meta"]))
    latents = {"latents": figures["latents"]}
    assert parity_generator.errors(meta | {"guidance": 4.9}, latents)["latents"] > 1e-3
    with pytest.raises(ValueError, match="its meta is of another run"):
        parity_generator.errors(meta | {"steps": 1, "V": 3, "F": 2, "T": 5}, latents)


def test_names_are_those_that_the_converter_of_diffusers_knows():
    with torch.device("meta"):
        own = VideoDiT(VideoDiTConfig(**SMALL)).dit.state_dict()
    public = {wan_name(k): k for k in own}
    assert len(public) == len(own)
    assert convert_wan_transformer_to_diffusers(dict(public)) == {k: k for k in own}


@pytest.fixture
def release(tmp_path) -> Path:
    """A file under the released names, of a small network that is unlike `small()`."""
    network = small()
    torch.manual_seed(1)
    state = {released_name(k): torch.randn_like(v) for k, v in network.state_dict().items()}
    path = tmp_path / "video_dit_lora.safetensors"
    save_file(state | {"sign": torch.zeros(1)}, path)
    return path


def test_a_released_file_loads_with_its_marker_and_without(release):
    state = load_file(release)
    network = small()
    load_released(release, network)
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[released_name(name)])
    state.pop("sign")
    save_file({k: 2 * v for k, v in state.items()}, release)
    load_released(release, network)
    assert torch.equal(network.tokens.ext_proj[0].bias, 2 * state["ext_proj.0.bias"])


def test_opening_a_released_file_gives_the_network_that_loading_gives(release):
    loaded = small()
    load_released(release, loaded)
    opened = open_released(release, loaded.config)
    x, condition = torch.randn(2, 1, 16, 2, 4, 4)
    text, ext = torch.randn(1, 4, 20), torch.randn(1, 2, 5, 12)
    with torch.no_grad():
        a, b = (
            n(x, torch.tensor([500.0]), condition, n.encode_context(text, ext))
            for n in (loaded, opened)
        )
    assert torch.equal(a, b)
    assert not any(p.is_meta for p in opened.parameters())
    half = open_released(release, loaded.config, dtype=torch.bfloat16)
    assert half.dit.proj_out.weight.dtype == torch.bfloat16
    assert half.dit.scale_shift_table.dtype == torch.float32


def test_every_wrong_key_is_listed_and_nothing_is_loaded(release):
    state = load_file(release)
    state["denoising_model.blocks.9.ffn.0.bias"] = state.pop("denoising_model.blocks.1.ffn.0.bias")
    state["view_embed.weight"] = torch.zeros(3, 12)
    save_file(state, release)
    network = small()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(WeightsError) as error:
        load_released(release, network)
    for text in (
        "1 missing: denoising_model.blocks.1.ffn.0.bias",
        "1 unexpected: denoising_model.blocks.9.ffn.0.bias",
        "1 of another shape: view_embed.weight [3, 12] instead of [2, 12]",
    ):
        assert text in str(error.value)
    assert "\n" not in str(error.value)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_what_is_no_released_file_is_refused(release, tmp_path):
    with pytest.raises(WeightsError, match="no such weights file"):
        load_released(tmp_path / "absent.safetensors", small())
    release.write_bytes(release.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        load_released(release, small())
    with pytest.raises(ValueError, match="official form only"):
        load_released(release, small("paper"))


@pytest.mark.parametrize("naming", [wan_name, str])
def test_wan_weights_start_a_network_under_either_naming(network, naming, tmp_path):
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    base = {k: torch.randn_like(v) for k, v in network.dit.state_dict().items()}
    base["patch_embedding.weight"] = base["patch_embedding.weight"][:, :16].contiguous()
    save_file({naming(k): v for k, v in base.items()}, path)
    anchors = {k: v.clone() for k, v in network.tokens.state_dict().items()}
    load_wan(path, network, generator=torch.Generator().manual_seed(3))
    state = network.dit.state_dict()
    patch = state.pop("patch_embedding.weight")
    assert torch.equal(patch[:, :16], base.pop("patch_embedding.weight"))
    std = 0.02 if network.config.form == "official" else 0.0
    assert patch[:, 16:].std().item() == pytest.approx(std, rel=0.1)
    assert all(torch.equal(state[k], base[k]) for k in base)
    assert all(torch.equal(v, anchors[k]) for k, v in network.tokens.state_dict().items())
    base.pop("proj_out.bias")
    save_file({naming(k): v for k, v in base.items()}, path)
    with pytest.raises(WeightsError, match=r"2 missing: (head.head|patch_embedding)"):
        load_wan(path, small())


def test_released_shapes_are_those_of_the_file(figures):
    shapes = released_shapes(build(json.loads(str(figures["meta"]))))
    assert shapes["denoising_model.patch_embedding.weight"] == (256, 32, 1, 2, 2)
    assert shapes["denoising_model.blocks.2.norm3.weight"] == (256,)
    assert shapes["denoising_model.head.modulation"] == (1, 2, 256)
    assert shapes["ext_proj.3.weight"] == (64, 96)
    assert shapes["temporal_embed.weight"] == (200, 48)


def test_noise_levels_are_shifted_and_end_at_zero():
    schedule = make_schedule(50, 5.0)
    s = torch.linspace(1, 0, 51)
    torch.testing.assert_close(schedule.sigmas, 5 * s / (1 + 4 * s))
    torch.testing.assert_close(schedule.timesteps, 1000 * schedule.sigmas[:-1])
    with pytest.raises(ValueError, match="found 0 steps"):
        make_schedule(0, 5.0)


def clip(network: VideoDiT, **settings) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    noise, condition = torch.randn(2, 1, 16, 2, 4, 4, generator=generator)
    text, negative = torch.randn(2, 1, 4, 20, generator=generator)
    ext = torch.randn(1, 2, 5, 12, generator=generator)
    positive = network.encode_context(text, ext)
    return sample_latents(
        network, noise, condition, positive, network.encode_context(negative), **settings
    )


def test_guidance_of_one_leaves_the_negative_branch_out(network):
    calls, done = [], []
    network.dit.register_forward_pre_hook(
        lambda _, args, given: calls.append(len(given["hidden_states"])), with_kwargs=True
    )
    clip(network, steps=2, guidance=1.0, progress=done.append)
    assert (calls, done) == ([1, 1], [1, 2])
    calls.clear()
    clip(network, steps=2, guidance=3.0)
    assert calls == [2, 2]
    calls.clear()
    clip(network, steps=2, guidance=3.0, batched=False)
    assert calls == [1, 1, 1, 1]


def test_two_passes_keep_a_cache_apart(network):
    plain = clip(network, steps=3, batched=False)
    network.dit.enable_cache(FirstBlockCacheConfig(threshold=1e-9))
    torch.testing.assert_close(clip(network, steps=3, batched=False), plain)

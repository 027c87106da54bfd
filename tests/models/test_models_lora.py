"""What is trained of the video DiT: which parameters, in which file, and back on a network."""

import json
from dataclasses import replace

import pytest
import small_weights
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from wristaugment.models.errors import WeightsError
from wristaugment.models.lora import (
    add_lora,
    file_names,
    load_generation,
    merge_lora,
    prepare_training,
    read_generation,
    save_generation,
    trained_state,
)
from wristaugment.models.video_dit import PAPER, VideoDiT, to_precision

FRAMES = 5
SMALL = {"context_tokens": 16, "frames": 9, "dropout": 0.0}


def small(form: str = "paper", **changes) -> VideoDiT:
    torch.manual_seed(0)
    return VideoDiT(small_weights.dit_config(form, **(SMALL | changes))).eval()


def answer(network: VideoDiT, views: int = 2) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    x, condition = torch.randn(2, 1, 16, 2, 4, 4, generator=draw)
    text = torch.randn(1, 6, small_weights.TEXT, generator=draw)
    ext = torch.randn(1, views, FRAMES, network.config.ext_dim, generator=draw)
    context = network.encode_context(text, ext)
    return network(x, torch.tensor([300.0]), condition, context).float()


def trained(network: VideoDiT, mode: str = "lora", seed: int = 5, **settings) -> VideoDiT:
    """Some other values in all that is trained."""
    prepare_training(network, mode, **settings)
    draw = torch.Generator().manual_seed(seed)
    for value in trained_state(network).values():
        value.add_(0.1 * torch.randn(value.shape, generator=draw))
    return network


def test_lora_changes_nothing_at_first_and_its_start_follows_from_the_seed():
    network = small()
    before = answer(network)
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
    add_lora(network, rank=3, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(answer(network), before)
    same, other = add_lora(small(), rank=3, seed=1), add_lora(small(), rank=3, seed=2)
    name = "blocks.0.attn1.to_q.lora_A.default.weight"
    start = network.dit.get_parameter(name)
    assert start.shape == (3, 48)
    assert torch.equal(start, same.dit.get_parameter(name))
    assert not torch.equal(start, other.dit.get_parameter(name))
    with pytest.raises(ValueError, match="has LoRA layers"):
        add_lora(network)
    with pytest.raises(ValueError, match="rank of 0"):
        add_lora(small(), rank=0)


@pytest.mark.parametrize("mode", ["lora", "full"])
@pytest.mark.parametrize("form", ["paper", "official"])
def test_one_step_changes_what_is_trained_and_nothing_else(form, mode):
    network = prepare_training(small(form), mode, checkpointing=True)
    before = {k: v.detach().clone() for k, v in network.named_parameters()}
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(2):  # LoRA's first matrix has a gradient once its second is not zero
        answer(network.train()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    changed = {k for k, v in network.named_parameters() if not torch.equal(v, before[k])}
    whole = {k for k in before if k.startswith(("dit.patch_embedding.", "tokens."))}
    lora = {k for k in before if "lora_" in k}
    assert whole <= changed
    if mode == "lora":
        assert changed == whole | lora
        # q, k, v, o of two attentions and two of the MLP, two matrices each, in two blocks
        assert len(lora) == 2 * (2 * 4 + 2) * 2
    else:
        assert changed == set(before)


@pytest.mark.parametrize("mode", ["lora", "full"])
@pytest.mark.parametrize("form", ["paper", "official"])
def test_what_was_trained_comes_back_exactly(form, mode, tmp_path):
    network = trained(small(form), mode, rank=3, alpha=6.0)
    path = tmp_path / "generation.safetensors"
    save_generation(path, network, base={"base": "abc"})
    restored = small(form)
    if mode == "full":
        for parameter in restored.parameters():
            parameter.data.zero_()
    found = load_generation(path, restored, base={"base": "abc", "other": "x"})
    assert (found.mode, found.sizes) == (mode, network.config)
    assert (found.rank, found.alpha) == ((3, 6.0) if mode == "lora" else (0, 0.0))
    own, other = dict(network.named_parameters()), dict(restored.named_parameters())
    assert own.keys() == other.keys()
    assert all(torch.equal(own[k], other[k]) for k in own)
    with torch.no_grad():
        assert torch.equal(answer(restored), answer(network))


def test_the_file_holds_the_patch_embedding_and_the_new_embeddings(tmp_path):
    network = trained(small())
    path = tmp_path / "generation.safetensors"
    save_generation(path, network)
    state = load_file(path)
    assert torch.equal(state["dit.patch_embedding.weight"], network.dit.patch_embedding.weight)
    assert "dit.patch_embedding.bias" in state
    assert {k for k in state if k.startswith("tokens.")} == {
        f"tokens.{k}" for k in network.tokens.state_dict()
    }
    assert "dit.blocks.1.ffn.net.2.lora_B.weight" in state
    assert not [k for k in state if "base_layer" in k or k == "dit.blocks.0.attn1.to_q.weight"]
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["config"])
    assert (config["mode"], config["rank"], config["alpha"]) == ("lora", 4, 4.0)
    assert config["sizes"] == json.loads(json.dumps(network.config.to_dict()))


def test_merged_lora_says_the_same_without_its_layers(tmp_path):
    network = trained(small())
    save_generation(tmp_path / "g.safetensors", network)
    merged = small()
    plain = set(merged.state_dict())
    with torch.no_grad():
        before = answer(merged)
        load_generation(tmp_path / "g.safetensors", merged, merge=True)
        wanted, found = answer(network), answer(merged)
    assert set(merged.state_dict()) == plain
    assert (found - wanted).norm() / wanted.norm() < 1e-5
    assert (before - wanted).norm() / wanted.norm() > 1e-2
    to_precision(merged, torch.bfloat16)
    with torch.no_grad():
        assert (answer(merged) - wanted).norm() / wanted.norm() < 0.05


def test_lora_of_the_full_size_is_five_million_numbers():
    with torch.device("meta"):
        network = prepare_training(VideoDiT(PAPER), "lora")
    sizes = {k: v.numel() for k, v in trained_state(network).items()}
    # In each of 30 blocks q, k, v and o of two attentions, and the MLP's two layers.
    block = 4 * (8 * (1536 + 1536) + 2 * (1536 + 8960))
    assert sum(v for k, v in sizes.items() if "lora" in k) == 30 * block == 5_468_160
    assert sizes["dit.patch_embedding.weight"] == 1536 * 32 * 4


def test_lora_is_trained_in_float32_over_weights_in_bfloat16(tmp_path):
    network = prepare_training(to_precision(small(), torch.bfloat16), "lora")
    kinds = {k: v.dtype for k, v in network.named_parameters()}
    assert {v for k, v in kinds.items() if network.get_parameter(k).requires_grad} == {
        torch.float32
    }
    assert kinds["dit.blocks.0.attn1.to_q.base_layer.weight"] == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        answer(network.train()).square().mean().backward()
    gradient = network.dit.get_parameter("blocks.0.attn1.to_q.lora_B.default.weight").grad
    assert gradient is not None
    assert gradient.abs().max() > 0
    save_generation(tmp_path / "g.safetensors", trained(network))
    again = to_precision(small(), torch.bfloat16)
    load_generation(tmp_path / "g.safetensors", again)
    state = trained_state(prepare_training(again, "lora"))
    assert all(torch.equal(v, state[k]) for k, v in trained_state(network).items())


def test_another_number_of_views_keeps_all_but_their_embeddings(tmp_path):
    network = trained(small())
    save_generation(tmp_path / "g.safetensors", network)
    wide = small()
    load_generation(tmp_path / "g.safetensors", wide, views=3, seed=1)
    assert wide.config == replace(network.config, views=3)
    own, other = dict(network.named_parameters()), dict(wide.named_parameters())
    assert [k for k in own if own[k].shape != other[k].shape] == ["tokens.view_embed.weight"]
    assert all(torch.equal(own[k], other[k]) for k in own if k != "tokens.view_embed.weight")
    fresh = wide.tokens.view_embed.weight
    assert fresh.shape[0] == 3
    assert not torch.equal(fresh[:2], network.tokens.view_embed.weight)
    twin = small()
    load_generation(tmp_path / "g.safetensors", twin, views=3, seed=1)
    assert torch.equal(twin.tokens.view_embed.weight, fresh)
    with torch.no_grad():
        assert answer(wide, views=3).isfinite().all()
    # Trained on, kept and put on a base that knows of two views: it has three.
    save_generation(tmp_path / "three.safetensors", trained(wide))
    third = small()
    load_generation(tmp_path / "three.safetensors", third, merge=True)
    assert third.config.views == 3
    assert torch.equal(third.tokens.view_embed.weight, wide.tokens.view_embed.weight)


def test_training_goes_on_from_a_file_with_the_same_layers(tmp_path):
    network = trained(small(), rank=3)
    save_generation(tmp_path / "g.safetensors", network)
    again = small()
    load_generation(tmp_path / "g.safetensors", again)
    prepare_training(again, "lora", rank=7)
    assert {k: v.shape for k, v in trained_state(again).items()} == {
        k: v.shape for k, v in trained_state(network).items()
    }
    with torch.no_grad():
        wanted = answer(again)
        prepare_training(again, "full")
        assert torch.allclose(answer(again), wanted, atol=1e-5)
    assert not [k for k in again.state_dict() if "lora" in k]
    assert trained_state(again).keys() == dict(small().named_parameters()).keys()


def test_the_state_of_training_is_what_is_trained():
    network = prepare_training(small(), "lora")
    state = trained_state(network)
    own = dict(network.named_parameters())
    assert sum(v.numel() for v in state.values()) == sum(
        p.numel() for p in own.values() if p.requires_grad
    )
    renamed = file_names(network, {k: v + 1 for k, v in own.items()})
    assert renamed.keys() == state.keys()
    assert all(torch.equal(renamed[k], v + 1) for k, v in state.items())


def test_averages_are_saved_in_place_of_the_networks_values(tmp_path):
    network = prepare_training(small(), "lora")
    state = {k: v + 1 for k, v in trained_state(network).items()}
    save_generation(tmp_path / "g.safetensors", network, state=state)
    found = load_file(tmp_path / "g.safetensors")
    assert all(torch.equal(v, found[k]) for k, v in state.items())
    state["tokens.more"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"1 unexpected: tokens\.more"):
        save_generation(tmp_path / "g.safetensors", network, state=state)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"ffn_dim": 32}, "ffn_dim 64 instead of 32"),
        ({"form": "official"}, "form paper instead of official"),
        ({"ext_dim": 12}, "ext_dim 24 instead of 12"),
    ],
)
def test_weights_of_other_sizes_are_refused(change, found, tmp_path):
    save_generation(tmp_path / "g.safetensors", trained(small()))
    with pytest.raises(WeightsError, match=found):
        load_generation(tmp_path / "g.safetensors", small(**change))


def test_a_lora_of_other_base_weights_is_refused_and_full_weights_need_none(tmp_path):
    save_generation(tmp_path / "g.safetensors", trained(small()), base={"wan": "a"})
    network = small()
    with pytest.raises(WeightsError, match=r"trained on other weights than these \(wan\)"):
        load_generation(tmp_path / "g.safetensors", network, base={"wan": "b"})
    assert set(network.state_dict()) == set(small().state_dict())
    load_generation(tmp_path / "g.safetensors", network, base={"wan": "a"})
    save_generation(tmp_path / "full.safetensors", trained(small(), "full"), base={"wan": "a"})
    load_generation(tmp_path / "full.safetensors", small(), base={"wan": "b"})


def test_damaged_files_are_refused_before_the_network_is_touched(tmp_path):
    path = tmp_path / "g.safetensors"
    save_generation(path, trained(small()))
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    state = load_file(path)
    lora = "dit.blocks.0.attn1.to_q.lora_A.weight"
    network = small()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    for damage, found in (
        ({lora: None}, rf"1 missing: {lora}"),
        ({"more": torch.zeros(1)}, "1 unexpected: more"),
        ({lora: torch.zeros(2, 48)}, r"1 of another shape: .*\[2, 48\] instead of \[4, 48\]"),
    ):
        damaged = {k: v for k, v in (state | damage).items() if v is not None}
        save_file(damaged, path, metadata=metadata)
        with pytest.raises(WeightsError, match=found):
            load_generation(path, network)
        after = network.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(v, before[k]) for k, v in after.items())
    for config in ("{}", '{"mode": "lora", "sizes": {}}', '{"mode": "other", "sizes": {}}'):
        save_file(state, path, metadata={"config": config})
        with pytest.raises(WeightsError, match="no weights of a full-size generator"):
            read_generation(path)
    with pytest.raises(WeightsError, match="no such weights file"):
        read_generation(tmp_path / "none.safetensors")


def test_modes_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="lora or full"):
        prepare_training(small(), "half")


def test_a_second_lora_is_put_on_after_the_first_is_merged(tmp_path):
    network = trained(small())
    save_generation(tmp_path / "g.safetensors", network)
    with pytest.raises(ValueError, match="merge them before"):
        load_generation(tmp_path / "g.safetensors", network)
    load_generation(tmp_path / "g.safetensors", merge_lora(network))

"""VGGT from files as they are public: strict, without code, and without drawing weights first."""

import json
import os
import pickle

import pytest
import torch
from full_size_weights import VGGT_SIZES, WRIST, vggt_config
from safetensors.torch import save_file
from wristaugment.models.errors import WeightsError
from wristaugment.models.public_config import vggt_config as read_config
from wristaugment.models.public_config import video_config
from wristaugment.models.public_vggt import load_vggt, open_vggt
from wristaugment.models.state_file import take_over
from wristaugment.models.vggt import VGGT, VGGTConfig
from wristaugment.models.video_dit import PAPER

HEADS = ("camera", "depth", "point")


@pytest.fixture
def network() -> VGGT:
    torch.manual_seed(0)
    return VGGT(vggt_config("official", *HEADS, "wrist")).eval()


def saved(path, network, change=lambda state: state):
    state = change({name: value.clone() for name, value in network.state_dict().items()})
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def one_line(caught) -> str:
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("name", ["model.safetensors", "checkpoint.pt"])
def test_a_file_opens_to_the_same_figures(network, tmp_path, name):
    path = saved(tmp_path / name, network)
    opened = open_vggt(path, network.config)
    images = torch.rand(1, 2, 3, 28, 42)
    with torch.no_grad():
        before, after = network(images), opened(images)
    # Not to the last bit: weights that lie in the file are aligned otherwise.
    torch.testing.assert_close(before.wrist, after.wrist)
    torch.testing.assert_close(before.depth, after.depth)
    for name, value in network.state_dict().items():
        assert torch.equal(value, opened.state_dict()[name])
    assert not opened.training
    assert not opened.aggregator.patch_embed.mask_token.requires_grad
    assert opened.wrist_head.token_query.requires_grad
    assert not any(value.is_meta for value in [*opened.parameters(), *opened.buffers()])


@pytest.mark.parametrize("key", ["model", "state_dict"])
def test_a_training_loops_file_opens_too(network, tmp_path, key):
    wrap = lambda state: {key: {f"module.{k}": v for k, v in state.items()}, "epoch": 3}
    opened = open_vggt(saved(tmp_path / "checkpoint.pt", network, wrap), network.config)
    for name, value in opened.state_dict().items():
        assert torch.equal(value, network.state_dict()[name])


def test_the_precision_is_chosen_when_opening(network, tmp_path):
    path = saved(tmp_path / "model.safetensors", network)
    opened = open_vggt(path, network.config, dtype=torch.bfloat16)
    values = [*opened.parameters(), *opened.buffers()]
    assert {value.dtype for value in values} == {torch.bfloat16}
    assert {value.dtype for value in network.parameters()} == {torch.float32}


def test_a_network_on_the_meta_device_takes_tensors_over_without_a_copy():
    with torch.device("meta"):
        network = torch.nn.Linear(3, 2)
    values = {"weight": torch.randn(2, 3), "bias": torch.randn(2)}
    take_over(network, values)
    assert network.weight.data_ptr() == values["weight"].data_ptr()
    there = torch.nn.Linear(3, 2)
    weight = there.weight
    take_over(there, values)
    assert there.weight is weight and torch.equal(weight, values["weight"])


def test_heads_that_are_not_built_stay_in_the_file(network, tmp_path):
    path = saved(tmp_path / "model.safetensors", network)
    opened = open_vggt(path, vggt_config("official", "camera"))
    assert opened.depth_head is None
    assert torch.equal(opened.camera_head.empty_pose_tokens, network.camera_head.empty_pose_tokens)


def test_a_head_that_the_file_need_not_have_starts_as_new(tmp_path):
    torch.manual_seed(0)
    public = VGGT(vggt_config("paper", *HEADS))
    path = saved(tmp_path / "model.safetensors", public)
    config = vggt_config("paper", *HEADS, "wrist")
    with pytest.raises(WeightsError, match=r"missing: wrist_head\."):
        open_vggt(path, config)
    torch.manual_seed(7)
    opened = open_vggt(path, config, absent=("wrist",))
    torch.manual_seed(7)
    again = open_vggt(path, config, absent=("wrist",))
    torch.manual_seed(8)
    other = open_vggt(path, config, absent=("wrist",))
    queries = [n.wrist_head.wrist_queries for n in (opened, again, other)]
    assert torch.equal(queries[0], queries[1]) and not torch.equal(queries[0], queries[2])
    with torch.no_grad():
        found = opened(torch.rand(1, 2, 3, 28, 28))
    assert found.wrist.isfinite().all()
    torch.testing.assert_close(found.wrist[0, 2], torch.tensor(0.5), atol=0.1, rtol=0)
    # It is taken where the file has it after all.
    whole = VGGT(config)
    there = open_vggt(saved(tmp_path / "whole.safetensors", whole), config, absent=("wrist",))
    assert torch.equal(there.wrist_head.wrist_queries, whole.wrist_head.wrist_queries)
    with pytest.raises(ValueError, match="built without its track head"):
        open_vggt(path, config, absent=("track",))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("camera_head.token_norm.bias"), "1 missing: camera_head.token_norm.bias"),
        (lambda s: s.update(extra=torch.zeros(2)), "1 unexpected: extra"),
        (
            lambda s: s.update({"aggregator.camera_token": torch.zeros(1, 2, 1, 16)}),
            "aggregator.camera_token [1, 2, 1, 16] instead of [1, 2, 1, 32]",
        ),
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors", "checkpoint.pt"])
def test_what_does_not_fit_is_listed_and_nothing_is_loaded(network, tmp_path, name, change, said):
    def spoil(state):
        change(state)
        return state

    path = saved(tmp_path / name, network, spoil)
    torch.manual_seed(9)
    other = VGGT(network.config)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_vggt(path, other)
    assert said in one_line(caught) and str(path) in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


class Harm:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("how", ["torch", "plain"])
def test_a_file_that_holds_code_is_refused_and_the_code_does_not_run(network, tmp_path, how):
    path, trace = tmp_path / "checkpoint.pt", tmp_path / "trace"
    content = {"model": network.state_dict(), "hook": Harm(f"touch {trace}")}
    if how == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content["hook"]))
    with pytest.raises(WeightsError) as caught:
        load_vggt(path, network)
    assert "could run code" in one_line(caught)
    assert not trace.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "checkpoint.pt"])
def test_what_is_no_whole_file_is_refused_in_one_line(network, tmp_path, name):
    path = tmp_path / name
    with pytest.raises(WeightsError) as caught:
        load_vggt(path, network)
    assert "no such weights file" in one_line(caught)
    saved(path, network)
    data = path.read_bytes()
    for content in (data[:-1000], data[:1], b"", b"<html>not found</html>"):
        path.write_bytes(content)
        with pytest.raises(WeightsError) as caught:
            load_vggt(path, network)
        assert "fetch it again" in one_line(caught)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(WeightsError, match="holds no state dict"):
        load_vggt(tmp_path / "list.pt", network)
    torch.save({"epoch": 3}, tmp_path / "odd.pt")
    with pytest.raises(WeightsError, match="no tensors \\(epoch\\)"):
        load_vggt(tmp_path / "odd.pt", network)


def test_sizes_are_the_public_ones_or_those_beside_the_file(tmp_path):
    path = tmp_path / "model.safetensors"
    chosen = {"heads_built": ("camera", "wrist"), "wrist_kind": "official"}
    assert read_config(path, **chosen) == VGGTConfig(**chosen)
    beside = tmp_path / "config.json"
    # As the hub has it beside facebook/VGGT-1B.
    beside.write_text(json.dumps({"embed_dim": 1024, "img_size": 518, "patch_size": 14}))
    assert read_config(path, **chosen) == VGGTConfig(**chosen)
    beside.write_text(json.dumps({**VGGT_SIZES, "wrist": WRIST["official"]}))
    assert read_config(path, **chosen) == vggt_config("official", "camera", "wrist")
    beside.write_text(json.dumps({"hidden_size": 3}))
    with pytest.raises(WeightsError, match=r"config.json.*\(hidden_size\)"):
        read_config(path, **chosen)
    beside.write_text("{")
    with pytest.raises(WeightsError, match="not readable as JSON"):
        read_config(path, **chosen)


def test_wans_own_configuration_is_understood(tmp_path):
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    assert video_config(path, "paper") == PAPER
    # As the hub has it beside Wan-AI/Wan2.1-T2V-1.3B.
    sizes = {"dim": 1536, "ffn_dim": 8960, "freq_dim": 256, "in_dim": 16, "num_heads": 12}
    more = {"num_layers": 30, "out_dim": 16, "text_len": 512, "eps": 1e-6, "model_type": "t2v"}
    beside = tmp_path / "config.json"
    beside.write_text(json.dumps({"_class_name": "WanModel", **sizes, **more}))
    assert video_config(path, "paper") == PAPER
    beside.write_text(json.dumps({"_class_name": "WanModel", **sizes, **more, "num_layers": 2}))
    assert video_config(path, "paper").layers == 2
    beside.write_text(json.dumps({"layers": 2, "views": 3}))
    assert (video_config(path, "paper").layers, video_config(path, "paper").views) == (2, 3)

"""LPIPS and I3D from files that the tests write: the numbers of their weights, or refused."""

import pytest
import torch
from metric_weights import ALEXNET, TinyI3D, alexnet
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from wristaugment.models.errors import WeightsError
from wristaugment.models.perceptual import open_lpips, open_video_features


@pytest.fixture
def pictures():
    random = torch.Generator().manual_seed(5)
    return (torch.rand(2, 3, 3, 40, 48, generator=random) * 2 - 1).unbind(0)


def written_out(state, heads, a, b):
    """LPIPS 0.1 as its paper has it, equation 1."""
    shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    x = (torch.cat([a, b]) - shift) / scale
    total = torch.zeros(len(a))
    for layer, (place, _, _, side) in enumerate(ALEXNET):
        if layer in (1, 2):
            x = F.max_pool2d(x, 3, 2)
        stride, pad = (4, 2) if layer == 0 else (1, side // 2)
        weight, bias = (state[f"features.{place}.{n}"] for n in ("weight", "bias"))
        x = F.conv2d(x, weight, bias, stride, pad).relu()
        unit = x / (x.norm(dim=1, keepdim=True) + 1e-10)
        ours, theirs = unit.chunk(2)
        weighed = heads[f"lin{layer}.model.1.weight"] * (ours - theirs) ** 2
        total += weighed.sum(1).mean((1, 2))
    return total


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_lpips_is_the_formula_on_the_files_own_weights(tmp_path, pictures, suffix):
    file = tmp_path / f"alexnet.{suffix}"
    state = alexnet()
    torch.save(state, file) if suffix == "pth" else save_file(state, file)
    before = torch.get_rng_state()
    network = open_lpips(file)
    assert torch.equal(torch.get_rng_state(), before)  # nobody else's random numbers change
    assert (network.backbone, network.least) == ("alex", 31)
    heads = network.network.state_dict()
    assert all((heads[f"lin{i}.model.1.weight"] >= 0).all() for i in range(5))  # the trained ones
    a, b = pictures
    expected = written_out(state, heads, a, b)
    assert expected.min() > 1e-3
    torch.testing.assert_close(network(a, b), expected)
    assert not network(a, a).any()
    torch.save(alexnet(seed=1), tmp_path / "other.pth")
    assert not torch.allclose(open_lpips(tmp_path / "other.pth")(a, b), expected)


def test_the_least_picture_is_told_right(tmp_path):
    torch.save(alexnet(), tmp_path / "a.pth")
    network = open_lpips(tmp_path / "a.pth")
    assert network(torch.zeros(1, 3, 31, 31), torch.zeros(1, 3, 31, 31)).shape == (1,)
    with pytest.raises(RuntimeError):
        network(torch.zeros(1, 3, 30, 30), torch.zeros(1, 3, 30, 30))


def test_files_that_hold_no_backbone_are_refused(tmp_path):
    def refused(name) -> str:
        with pytest.raises(WeightsError) as caught:
            open_lpips(tmp_path / name)
        assert name in str(caught.value) and "alexnet-owt" in str(caught.value)
        return str(caught.value)

    (tmp_path / "noise.pth").write_bytes(b"this is no archive" * 9)
    assert "cannot be read" in refused("noise.pth")
    (tmp_path / "noise.safetensors").write_bytes(b"\x00" * 64)
    assert "cannot be read" in refused("noise.safetensors")
    torch.save({"lin0.model.1.weight": torch.zeros(1, 64, 1, 1)}, tmp_path / "heads.pth")
    assert "no backbone" in refused("heads.pth")
    lacking = alexnet()
    del lacking["features.8.bias"]
    lacking["features.10.weight"] = torch.zeros(2, 2)
    torch.save(lacking, tmp_path / "lacking.pth")
    said = refused("lacking.pth")
    assert "1 missing: features.8.bias" in said and "features.10.weight [2, 2]" in said
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    assert "no named tensors" in refused("list.pth")


@pytest.fixture
def i3d(tmp_path):
    torch.manual_seed(3)
    network = TinyI3D()
    torch.jit.script(network).save(str(tmp_path / "i3d.pt"))
    return network, tmp_path / "i3d.pt"


def test_clips_reach_i3d_as_stylegan_v_gives_them(i3d):
    network, file = i3d
    features = open_video_features(file)
    clips = torch.zeros(2, 10, 48, 64, 3, dtype=torch.uint8)
    clips[1] = 255
    expected = network.out(torch.tensor([[-1.0] * 3, [1.0] * 3]))
    torch.testing.assert_close(features(clips), expected)
    # Only the middle is seen: the shorter side is whole, the ends of the longer are cut off.
    clips[1, :, :, :7] = 0
    clips[1, :, :, -7:] = 0
    torch.testing.assert_close(features(clips), expected)
    with pytest.raises(ValueError, match="10 or more"):
        features(clips[:, :9])


def test_files_that_are_not_i3d_are_refused(tmp_path, i3d):
    (tmp_path / "noise.pt").write_bytes(b"no script")
    torch.jit.script(TinyI3D(7)).save(str(tmp_path / "seven.pt"))
    torch.jit.script(nn.Linear(3, 400)).save(str(tmp_path / "linear.pt"))
    for name, said in {
        "noise.pt": "no TorchScript",
        "seven.pt": r"\[1, 7\]",
        "linear.pt": "cannot be called",
    }.items():
        with pytest.raises(WeightsError, match=said) as caught:
            open_video_features(tmp_path / name)
        assert "StyleGAN-V" in str(caught.value)

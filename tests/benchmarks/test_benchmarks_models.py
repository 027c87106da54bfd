"""The benchmarks of the models at small sizes: what they count and that they run."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from wristaugment.models.vggt import HEADS, VGGT, VGGTConfig
from wristaugment.models.video_dit import VideoDiTConfig

FOLDER = Path(__file__).parents[2] / "benchmarks"
CPU = torch.device("cpu")
TINY = VGGTConfig(
    dim=64, depth=4, heads=2, encoder_depth=2, encoder_heads=2, layers=(0, 1, 2, 3),
    dpt_features=16, dpt_widths=(8, 16, 16, 16), camera_depth=1, camera_heads=2,
)  # fmt: skip
SMALL_VAE = {"base_dim": 8, "z_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}


def load(name: str):
    """A benchmark as a module."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def vggt():
    return load("vggt")


@pytest.fixture(scope="module")
def splat():
    return load("splat")


@pytest.fixture(scope="module")
def gpu():
    return load("gpu")


@torch.no_grad()
def test_the_floor_is_all_the_arithmetic_of_a_forward(vggt):
    network = VGGT(TINY).eval().requires_grad_(False)
    images = torch.rand(2, 2, 3, 28, 42)
    floor = vggt.floor_of(network, lambda: network(images))
    with FlopCounterMode(display=False) as counter:
        network(images)
    # The counter leaves out the CPU's attention: 4 N L^2 C of every block.
    within, across, pose = (4 * n * length**2 * c for n, length, c in
                            ((4, 11, 64), (2, 22, 64), (2, 2, 128)))  # fmt: skip
    attention = (TINY.encoder_depth + TINY.depth) * within + TINY.depth * across + 4 * pose
    assert floor.flops == counter.get_total_flops() + attention
    assert floor.counts["attention"] == TINY.encoder_depth + 2 * TINY.depth + 4
    with FlopCounterMode(display=False) as replayed:
        floor()
    assert replayed.get_total_flops() == counter.get_total_flops()


@torch.no_grad()
def test_the_floor_sees_attention_that_is_usually_fused(vggt):
    wrist = {"dim": 32, "depth": 1, "heads": 2, "queries": 2}
    track = {"features": 16, "hidden": 32, "depth": 1, "heads": 2, "virtual": 4, "levels": 3}
    network = VGGT(
        VGGTConfig(**{**vars(TINY), "heads_built": HEADS, "wrist": wrist, "track": track})
    ).eval()
    images, queries = torch.rand(1, 2, 3, 56, 56), torch.full((1, 3, 2), 20.0)
    floor = vggt.floor_of(network, lambda: network(images, query_points=queries))
    plain = vggt.floor_of(network, lambda: network(images, heads=("camera", "depth", "point")))
    assert floor.counts["attention"] > plain.counts["attention"]
    assert torch.backends.mha.get_fastpath_enabled()


def test_vggt_prints_its_figures(vggt, capsys):
    arguments = ["--size", "28x42", "--timesteps", "3", "--turns", "1", "--json"]
    status = vggt.main(arguments, TINY)
    out, table = capsys.readouterr()
    found = json.loads(out)
    assert found["ratio"] == pytest.approx(found["forward_seconds"] / found["floor_seconds"])
    assert found["ratio"] > 1 and found["peak_gigabytes"] > 0.05
    assert found["batch"]["timesteps"] == 3 and "ratio" in table and "batched" in table
    assert status == (0 if vggt.within(found) else 1)
    assert not vggt.within({**found, "ratio": 1.3})
    assert not vggt.within({**found, "ratio": 1.1, "peak_gigabytes": 8.0})


@pytest.mark.parametrize("size", ["294", "300x518"])
def test_a_wrong_size_is_refused_before_any_work(vggt, capsys, size):
    with pytest.raises(SystemExit) as stopped:
        vggt.main(["--size", size])
    assert stopped.value.code == 2 and "--size" in capsys.readouterr().err


def test_the_splat_draws_what_the_loop_draws_and_faster(splat):
    found = splat.measure(2, 60, 80, (96, 128), turns=2)
    assert found["points"] == 9600 and found["covered"] > 0.3
    assert all(share >= 0.995 for share in found["agreement"].values())
    assert found["ratio"] > 1


def test_the_loop_draws_the_nearest_last_and_no_disc_from_outside(splat):
    K, pose = torch.tensor([[[8.0, 0, 8], [0, 8, 8], [0, 0, 1]]]), torch.eye(4)[None]
    points = torch.tensor([[[0, 0, 1.0], [0, 0, 2], [0.99, 0, 1], [1.01, 0, 1], [0, 0, -1]]])
    colors = torch.arange(1, 16, dtype=torch.uint8).view(1, 5, 3)
    image = splat.numpy_loop(*splat.far_to_near(points, colors, K, pose, (16, 16)), (16, 16))
    assert image[8, 8].tolist() == [1, 2, 3] and image[8, 10].tolist() == [1, 2, 3]
    assert image[9, 10].tolist() == [0, 0, 0]  # a diamond, not a square
    assert image[8, 15].tolist() == [7, 8, 9]


def test_gpu_figures_of_small_networks(gpu):
    sizes = [(32, 48), (32, 32)]
    config = VideoDiTConfig(
        layers=1, heads=2, head_dim=24, ffn_dim=32, text_dim=16, context_tokens=16, ext_dim=12,
        ext_hidden=8, frames=9,
    )  # fmt: skip
    dit = gpu.measure_dit(config, sizes, 5, CPU, torch.bfloat16)
    assert dit[0]["step_tflop"] > dit[1]["step_tflop"] > 0
    assert dit[0]["steps_seconds"] == gpu.STEPS * dit[0]["step_seconds"]
    whole = gpu.measure_dit(config, sizes[1:], 5, CPU, torch.bfloat16, full=True)
    assert whole[0]["steps_measured"] == gpu.STEPS
    coding = gpu.measure_autoencoder(SMALL_VAE, sizes, 5, CPU, torch.bfloat16)
    rows = gpu.measure_vggt(TINY, 2, (28, 42), [1, 2], CPU, torch.bfloat16)
    assert [row["timesteps"] for row in rows] == [1, 2]
    rate = gpu.matrix_rate(CPU, torch.bfloat16, side=64)
    found = gpu.clips(sizes, 5, coding, dit, rate)
    assert found[0]["seconds_per_clip"] > dit[0]["steps_seconds"]
    text = "\n".join(
        gpu.table({"device": "none", "matrix_tflops": rate, "clips": found, "vggt": rows})
    )
    assert "48x32, 5 frames" in text and "1 step measured, times 50" in text


def test_gpu_says_where_there_is_none(gpu, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--json"]) == 0
    out, text = capsys.readouterr()
    assert json.loads(out) == {"device": None} and "no CUDA GPU" in text
    assert gpu.main(["--frames", "80"]) == 2
    assert "4n + 1" in capsys.readouterr().err


def test_the_splat_runs_as_a_script():
    arguments = ["--points", "2x60x80", "--size", "96x128", "--turns", "1", "--json", "-"]
    done = subprocess.run(
        [sys.executable, FOLDER / "splat.py", *arguments], capture_output=True, text=True
    )
    found = json.loads(done.stdout)
    assert done.returncode == (0 if found["ratio"] >= 4 else 1) and "ratio" in done.stderr

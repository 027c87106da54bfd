"""The first-frame-guided pipelines, tiny and random: what they make and what they refuse."""

import json
import shutil

import numpy as np
import pytest
import torch
from first_frame_weights import write_pipeline
from safetensors.torch import load_file, save_file
from wristaugment.models.errors import WeightsError
from wristaugment.models.first_frame import KINDS, Unguarded, open_first_frame

SIZE = (32, 48)
PICTURE = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("weights")
    return {name: write_pipeline(root, name) for name in KINDS}


def opened(folder, name, **more):
    return open_first_frame(
        name, {part: folder / part for part in KINDS[name].parts}, guard=Unguarded(), **more
    )


def made(video, frames, seed=1, text="put the cube", picture=PICTURE):
    return video(picture, frames=frames, size=SIZE, text=text, steps=2, guidance=3.0, seed=seed)


@pytest.mark.parametrize("name", KINDS)
def test_a_picture_is_continued_by_the_seed_and_the_text(folders, name):
    video = opened(folders[name], name)
    frames = video.frames_for(4)
    assert frames == {"svd": 4, "wan-i2v": 5, "cosmos-predict2": 5}[name]
    first = made(video, frames)
    assert first.shape == (frames, *SIZE, 3) and first.dtype == np.uint8 and first.std() > 0
    assert np.array_equal(made(video, frames), first)
    assert not np.array_equal(made(video, frames, seed=2), first)
    assert not np.array_equal(made(video, frames, picture=255 - PICTURE), first)
    # SVD is told nothing.
    assert np.array_equal(made(video, frames, text="on the 1"), first) == (name == "svd")


@pytest.mark.parametrize("name", KINDS)
def test_half_precision_makes_nearly_the_same(folders, name):
    whole, half = (opened(folders[name], name, half=half) for half in (False, True))
    part = half.pipeline.unet if name == "svd" else half.pipeline.transformer
    assert part.dtype == KINDS[name].half
    a, b = made(whole, 5), made(half, 5)
    assert np.abs(a.astype(int) - b).mean() < 8


@pytest.mark.parametrize("name", KINDS)
def test_what_a_pipeline_would_change_in_silence_is_refused(folders, name):
    video = opened(folders[name], name)
    assert video.multiple == 16
    with pytest.raises(ValueError, match="multiples of 16"):
        video(PICTURE, frames=5, size=(32, 40), steps=1, guidance=1.0, seed=0)
    if name != "svd":
        with pytest.raises(ValueError, match="4 frames"):
            made(video, 4)


@pytest.mark.parametrize("name", KINDS)
def test_weights_are_opened_strictly_and_run_no_code(folders, name, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(folders[name], folder)
    network = folder / ("unet" if name == "svd" else "transformer")
    path = network / "diffusion_pytorch_model.safetensors"
    values = load_file(path)
    some = sorted(values)[0]
    save_file({k: v for k, v in values.items() if k != some}, path, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=some):
        opened(folder, name)
    save_file({**values, "more": torch.ones(1)}, path, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="more"):
        opened(folder, name)
    path.unlink()
    torch.save(values, network / "diffusion_pytorch_model.bin")
    with pytest.raises(WeightsError, match="no safetensors"):
        opened(folder, name)
    shutil.copytree(folders[name], folder, dirs_exist_ok=True)
    scheduler = folder / "scheduler" / "scheduler_config.json"
    values = json.loads(scheduler.read_text())
    scheduler.write_text(json.dumps(values | {"_class_name": "Evil"}))
    with pytest.raises(WeightsError, match="'Evil'"):
        opened(folder, name)

"""ACT's and ALOHA's HDF5: what the reader gives, raw or compressed, and what it refuses."""

from __future__ import annotations

import io
import shutil

import h5py
import numpy as np
import pytest
from hdf5_files import corpus, records
from PIL import Image
from wristaugment.readers import aloha
from wristaugment.readers.errors import SourceError
from wristaugment.writers import aloha_create


@pytest.fixture(scope="module")
def episodes():
    return [episode for split in corpus().values() for episode in split]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("aloha")
    return {
        "raw": aloha_create.create(root / "raw", corpus(), wrist=True),
        "jpeg": aloha_create.create(root / "jpeg", corpus(), wrist=True, compress=True),
    }


@pytest.fixture
def folder(sources, tmp_path):
    return shutil.copytree(sources["jpeg"], tmp_path / "own")


@pytest.mark.parametrize("kind", ["raw", "jpeg"])
def test_an_episode_has_all_that_was_recorded(sources, kind, episodes):
    dataset = aloha.open_source(sources[kind])
    assert dataset.name == "aloha_simulated" and str(dataset.place) == "aloha_simulated"
    keys = ["cam_high", "cam_low"]
    assert [c.key.rsplit("/")[-1] for c in dataset.profile.anchors] == keys
    assert dataset.profile.wrist.key == "observations/images/cam_right_wrist"
    assert {s.encoding for s in dataset.streams()} == {kind}
    assert {s.shape for s in dataset.streams()} == {(90, 160, 3)}
    for raw, real in zip(records(dataset), episodes, strict=True):
        episode = dataset.episode(raw, wrist="cam_right_wrist")
        assert dataset.steps(raw) == episode.length == real.steps
        assert episode.eef_pose is None and episode.gripper is None and episode.language == ""
        views = {"exterior_1": episode.anchors[0], "exterior_2": episode.anchors[1]}
        views["wrist"] = episode.wrist
        for name, view in views.items():
            error = np.abs(view.frames[:].astype(int) - real.views[name].frames)
            assert error.max() == 0 if kind == "raw" else error.mean() < 3


def test_the_order_is_that_of_the_numbers(sources, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    first = sorted(sources["raw"].iterdir())[0]
    for number in (10, 9, 2, 0):
        shutil.copy(first, folder / f"episode_{number}.hdf5")
    found = [shard.path.name for shard in aloha.open_source(folder).splits[0].shards]
    assert found == [f"episode_{number}.hdf5" for number in (0, 2, 9, 10)]


def test_colours_are_those_that_opencv_decodes(folder):
    # Red on the left, blue on the right, encoded as OpenCV does: an RGB array taken for BGR.
    rgb = np.zeros((90, 160, 3), np.uint8)
    rgb[:, :80, 0] = rgb[:, 80:, 2] = 200
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(rgb[:, :, ::-1])).save(buffer, "JPEG", quality=95)
    blob = np.frombuffer(buffer.getvalue(), np.uint8)
    with h5py.File(folder / "episode_0.hdf5", "r+") as file:
        camera = file["observations/images/cam_high"]
        row = np.zeros(camera.shape[1], np.uint8)
        row[: len(blob)] = blob
        camera[0] = row
    dataset = aloha.open_source(folder)
    seen = dataset.frames(records(dataset)[0], "cam_high")[0].astype(int)
    assert np.abs(seen[:, 10:70] - (200, 0, 0)).max() < 6
    assert np.abs(seen[:, 90:150] - (0, 0, 200)).max() < 6


def test_damage_is_named(folder):
    broken = folder / "episode_1.hdf5"
    broken.write_bytes(broken.read_bytes()[:3000])
    with h5py.File(folder / "episode_2.hdf5", "r+") as file:
        camera = file["observations/images/cam_low"]
        row = camera[4]
        row[: len(row) // 2] = 0
        camera[4] = row
        action = file["action"][:6]
        del file["action"]
        file["action"] = action
    with h5py.File(folder / "episode_3.hdf5", "r+") as file:
        file["observations/images/cam_low"][5] = 0
    dataset = aloha.open_source(folder)
    found = records(dataset)
    assert found[0].error is None
    assert "truncated" in str(found[1].error) and "episode_1.hdf5" in str(found[1].error)
    assert "action" in str(found[2].error) and found[2].length == 8
    with pytest.raises(SourceError) as caught:
        dataset.episode(found[3]).anchors[1].frames[:]
    text = str(caught.value)
    assert "episode_3.hdf5" in text and "cam_low" in text and "picture" in text


def test_a_picture_that_claims_any_number_of_pixels_is_not_made(folder):
    header = io.BytesIO()
    Image.new("L", (16, 16)).save(header, "JPEG")
    data = bytearray(header.getvalue())
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = b"\xff\x00\xff\x00"  # 65280 x 65280
    for path in folder.iterdir():
        with h5py.File(path, "r+") as file:
            camera = file["observations/images/cam_low"]
            row = np.zeros(camera.shape[1], np.uint8)
            row[: len(data)] = np.frombuffer(bytes(data), np.uint8)
            camera[0] = row
    dataset = aloha.open_source(folder)
    assert "observations/images/cam_low" not in {s.key for s in dataset.streams()}
    with pytest.raises(SourceError, match="cam_low"):
        dataset.frames(records(dataset)[0], "cam_low")


def test_a_link_that_leads_out_is_refused(folder):
    with h5py.File(folder / "episode_3.hdf5", "r+") as file:
        file["observations/images/cam_x"] = h5py.ExternalLink("/etc/passwd", "/x")
    with pytest.raises(SourceError, match=r"episode_3\.hdf5.*cam_x.*/etc/passwd.*not followed"):
        aloha.open_source(folder)

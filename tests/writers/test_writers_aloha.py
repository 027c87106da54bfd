"""ACT's and ALOHA's HDF5: the copy keeps all and adds a camera that their loaders read."""

from __future__ import annotations

import hashlib
import io
import shutil

import h5py
import numpy as np
import pytest
from hdf5_files import (
    SAID,
    SIZE,
    all_bytes,
    assert_kept,
    copy_of,
    corpus,
    made_frames,
    maker,
    peer,
    records,
    target,
    write,
)
from PIL import Image
from wristaugment.readers import aloha
from wristaugment.readers.errors import SourceError
from wristaugment.writers import aloha_create
from wristaugment.writers.copy import LEFT_OUT, PLACEHOLDER


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("aloha")
    return {
        "raw": aloha_create.create(root / "raw", corpus()),
        "jpeg": aloha_create.create(root / "jpeg", corpus(), compress=True),
    }


def load(path, cameras, decode) -> dict:
    """An episode as ACT's loaders read it: by path, `compress_len` beside the sorted cameras."""
    with h5py.File(path, "r") as root:
        assert isinstance(bool(root.attrs["sim"]), bool)
        found = {"qpos": root["/observations/qpos"][()], "action": root["/action"][()]}
        names = list(root["/observations/images"].keys())
        lengths = root["/compress_len"][()] if root.attrs.get("compress", False) else None
        for number, name in enumerate(names):
            rows = root[f"/observations/images/{name}"][()]
            if lengths is not None:
                assert all(lengths[number, step] >= 0 for step in range(len(rows)))
                rows = np.stack([decode(row) for row in rows])
            if name in cameras:
                found[name] = rows
    # As EpisodicDataset does: one batch of all cameras at a step, with the channels in front.
    batch = np.stack([found[name][0] for name in cameras]).transpose(0, 3, 1, 2) / 255.0
    assert batch.shape[:2] == (len(cameras), 3)
    return found


def bgr(row: np.ndarray) -> np.ndarray:
    """The pixels of a JPEG in the order blue, green, red: what cv2.imdecode(row, 1) gives."""
    with Image.open(io.BytesIO(row.tobytes())) as image:
        return np.asarray(image.convert("RGB"))[:, :, ::-1]


@pytest.mark.parametrize("kind", ["raw", "jpeg"])
def test_the_copy_has_all_and_the_new_camera(sources, kind, tmp_path):
    source = aloha.open_source(sources[kind])
    copy = copy_of(source, tmp_path / "a", wrist_key="cam_wrist")
    assert copy.stream_key == "observations/images/cam_wrist"
    results = write(copy)
    assert all(result.bad == [] for result in results) and len(results) == 4
    copied = aloha.open_source(target(source, copy))
    more = {key.split("[")[0] for key in assert_kept(source, copied)}
    added = {f"observations/{k}" for k in ("images/cam_wrist", "wrist_valid", "wrist_confidence")}
    assert more - {"compress_len"} == added and ("compress_len" in more) == (kind == "jpeg")
    for raw in records(copied):
        frames = made_frames(100 * raw.record.shard, 8)
        error = np.abs(copied.frames(raw, "cam_wrist")[:].astype(int) - frames)
        assert error.max() == 0 if kind == "raw" else error.mean() < 3
        assert copied.flags(raw, "wrist_valid").tolist() == [True, False, *[True] * 6]
        path = copied.file_of(raw.record)
        with h5py.File(path) as file:
            fresh = file["observations/images/cam_wrist"]
            assert fresh.attrs["synthetic"] and fresh.attrs["description"] == SAID
            assert fresh.chunks == (1, *SIZE, 3) if kind == "raw" else (1, fresh.shape[1])
            if kind == "jpeg":
                lengths = file["compress_len"]
                assert lengths.shape == (3, 8) and lengths.dtype == np.float32
                assert fresh.shape == (8, int(lengths[2].max()))
                for step in range(8):
                    row, length = fresh[step], int(lengths[2, step])
                    assert row[length - 2 : length].tolist() == [0xFF, 0xD9]
                    assert not row[length:].any()
        same = load(path, ["cam_wrist"], bgr)["cam_wrist"]
        assert np.abs(same.astype(int) - frames).mean() < 3
    assert copied.profile.wrist is None  # what is made up is no recorded hand camera


@pytest.mark.parametrize("kind", ["raw", "jpeg"])
def test_acts_way_of_reading_sees_the_same_colours_in_all_cameras(sources, kind, tmp_path):
    source = aloha.open_source(sources[kind])

    def same(raw):
        stream = maker(source)(raw)
        whole = source.episode(raw).anchors[0].frames[:]
        stream.frames = np.ascontiguousarray(whole[:, :: 90 // 30, :: 160 // 40])
        return stream

    write(copy := copy_of(source, tmp_path / "a", size=(30, 40)), same)
    for path in sorted(target(source, copy).iterdir()):
        read = load(path, ["wrist_rgb"], bgr)
        anchor = load(path, ["cam_high"], bgr)["cam_high"][:, ::3, ::4]
        assert np.abs(read["wrist_rgb"].astype(int) - anchor).mean() < 6


@pytest.mark.parametrize("kind", ["raw", "jpeg"])
def test_a_loader_with_opencv_reads_the_copy(sources, kind, tmp_path):
    source = aloha.open_source(sources[kind])
    write(copy := copy_of(source, tmp_path / "a"))
    cameras = ["cam_high", "wrist_rgb"]
    read = peer("aloha", target(source, copy), *cameras)
    assert [episode["steps"] for episode in read] == [8] * 4
    copied = aloha.open_source(target(source, copy))
    for raw, episode in zip(records(copied), read, strict=True):
        assert episode["batch"] == "ragged"  # the two cameras are of two sizes here
        for camera in cameras:
            pixels = copied.frames(raw, camera)[:]
            found = episode["cameras"][camera]
            assert found["shape"] == list(pixels.shape) and found["dtype"] == "uint8"
            # Decoders differ in their last bits; raw pixels do not.
            means = pixels.reshape(-1, 3).mean(0)
            assert np.abs(np.array(found["means"]) - means).max() < 0.5
            if kind == "raw":
                assert found["sha256"] == hashlib.sha256(pixels.tobytes()).hexdigest()


def test_equal_runs_give_equal_bytes_and_replace_takes_the_row(sources, tmp_path):
    source = aloha.open_source(sources["jpeg"])
    write(first := copy_of(source, tmp_path / "a"))
    write(again := copy_of(source, tmp_path / "b"))
    assert all_bytes(first.folder) == all_bytes(again.folder)
    augmented = aloha.open_source(target(source, first))
    with pytest.raises(SourceError, match="--replace"):
        copy_of(augmented, tmp_path / "c")
    write(third := copy_of(augmented, tmp_path / "c", replace=True, quality=60))
    copied = aloha.open_source(target(source, third))
    assert_kept(source, copied)
    for path in sorted(third.folder.iterdir()):
        with h5py.File(path) as file, h5py.File(first.folder / path.name) as old:
            table, before = file["compress_len"][()], old["compress_len"][()]
            assert table.shape == (3, 8) and np.array_equal(table[:2], before[:2])
            assert (table[2] < before[2]).all()
            assert file["observations/images/wrist_rgb"].shape[1] == table[2].max()


def test_damage_is_named_and_the_rest_is_done(sources, tmp_path):
    folder = shutil.copytree(sources["raw"], tmp_path / "own")
    broken = folder / "episode_1.hdf5"
    broken.write_bytes(broken.read_bytes()[:-100])
    with h5py.File(folder / "episode_2.hdf5", "r+") as file:
        qpos = file["observations/qpos"][:3]
        del file["observations/qpos"]
        file["observations/qpos"] = qpos
    source = aloha.open_source(folder)
    results = write(copy := copy_of(source, tmp_path / "a"))
    assert [[bad["what"] for bad in result.bad] for result in results] == [
        [], [LEFT_OUT], [PLACEHOLDER], [],
    ]  # fmt: skip
    assert results[1].bad[0]["file"] == "episode_1.hdf5"
    assert results[2].bad[0]["key"] == "observations/qpos"
    assert {path.name for path in copy.folder.iterdir()} == {
        f"episode_{number}.hdf5" for number in (0, 2, 3)
    }
    with h5py.File(copy.folder / "episode_2.hdf5") as file:
        assert file["observations/images/wrist_rgb"].shape == (8, *SIZE, 3)
        assert not file["observations/wrist_valid"][()].any()


def test_a_limit_leaves_episodes_out(sources, tmp_path):
    source = aloha.open_source(sources["raw"])
    write(copy := copy_of(source, tmp_path / "a", limit=3))
    assert len(all_bytes(copy.folder)) == 3

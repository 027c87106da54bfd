"""Zarr ReplayBuffers as zarr writes them: what is read, what is named, and what is refused."""

import json
import os
import re
import shutil
import struct
import sys
import zipfile

import numpy as np
import pytest
import zarr
from replay_stores import ENDS, arrays, copy_store, make_store, pictures, stream, zip_store
from scipy.spatial.transform import Rotation
from wristaugment.readers.errors import SourceError
from wristaugment.readers.frames import Frames
from wristaugment.readers.replay_buffer import open_source, recognise


def records(dataset):
    return list(dataset.records(dataset.splits[0].shards[0]))


def edit(path, **changes):
    """Change the fields of a JSON file."""
    tree = json.loads(path.read_text())
    path.write_text(json.dumps({**tree, **changes}))


def one_error(path, **options):
    """The message with which a store is refused: one line that names the store."""
    with pytest.raises(SourceError) as found:
        open_source(path, **options)
    text = str(found.value)
    assert str(path) in text and "\n" not in text
    return text


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_episodes_are_cut_at_their_ends(tmp_path, zarr_format, zipped):
    data = arrays(side_image=pictures(seed=3), robot0_eye_in_hand_image=pictures(seed=4))
    path = make_store(tmp_path / "task.zarr", data, zarr_format=zarr_format, chunk=2)
    path = zip_store(path) if zipped else path
    assert recognise(path)
    dataset = open_source(path)
    assert (dataset.name, dataset.profile.name) == ("task", "robomimic_replay")
    assert [c.key for c in dataset.profile.anchors] == ["data/agentview_image", "data/side_image"]
    start = 0
    for raw, stop in zip(records(dataset), ENDS, strict=True):
        assert dataset.steps(raw) == stop - start
        episode = dataset.episode(raw, wrist="robot0_eye_in_hand_image")
        first, second = episode.anchors
        assert isinstance(first.frames, Frames)
        assert (first.frames[:] == data["agentview_image"][start:stop]).all()
        assert (second.frames[-1] == data["side_image"][stop - 1]).all()
        assert (episode.wrist.frames[:] == data["robot0_eye_in_hand_image"][start:stop]).all()
        want = Rotation.from_quat(data["robot0_eef_quat"][start:stop]).as_matrix()
        np.testing.assert_allclose(episode.eef_pose[:, :3, :3], want, atol=1e-6)
        np.testing.assert_allclose(
            episode.eef_pose[:, :3, 3], data["robot0_eef_pos"][start:stop], atol=1e-6
        )
        np.testing.assert_allclose(episode.gripper, 0.5, atol=1e-6)
        assert (dataset.frames(raw, "side_image")[:] == data["side_image"][start:stop]).all()
        assert dataset.flags(raw, "wrist_valid") is None
        start = stop
    assert {s.key: s.shape for s in dataset.streams()}["data/side_image"] == (12, 14, 3)
    there = [path] if zipped else sorted(p for p in path.rglob("*") if p.is_file())
    assert sorted(dataset.files()) == there


def test_float_pictures_channels_first_and_depth(tmp_path):
    shown = pictures()
    data = {
        "img": shown.astype(np.float32),
        "first": np.ascontiguousarray(np.moveaxis(shown, 3, 1)),
        "unit": shown.astype(np.float32) / 255,
        "depth": np.linspace(0, 2, shown[..., 0].size, dtype=np.float32).reshape(shown.shape[:3]),
        "keypoint": np.zeros((ENDS[-1], 9, 2), np.float32),
    }
    dataset = open_source(make_store(tmp_path / "pusht.zarr", data))
    raw = records(dataset)[1]
    views = dataset.episode(raw).anchors
    assert [view.key for view in views] == ["data/first", "data/img", "data/unit"]
    for view in views:
        assert view.frames.dtype == np.uint8 and (view.frames[:] == shown[3:5]).all()
    stored = dataset.frames(raw, "img")
    assert stored.dtype == np.float32 and (stored[:] == shown[3:5]).all()
    depth = {stream.key: stream for stream in dataset.streams()}["data/depth"]
    assert depth.depth and (dataset.frames(raw, "depth")[:] == data["depth"][3:5]).all()
    assert dataset.episode(raw).eef_pose is None and dataset.profile.name == "replay_buffer"


def test_real_robot_poses_are_rotation_vectors(tmp_path):
    pose = np.random.default_rng(0).normal(size=(ENDS[-1], 6))
    data = {"camera_1": pictures(), "robot_eef_pose": pose}
    dataset = open_source(make_store(tmp_path / "real.zarr", data))
    found = dataset.episode(records(dataset)[2]).eef_pose
    want = Rotation.from_rotvec(pose[5:, 3:]).as_matrix()
    np.testing.assert_allclose(found[:, :3, :3], want, atol=1e-9)


def test_umi_records_with_the_hand_camera_itself(tmp_path):
    turn = np.random.default_rng(0).normal(size=(ENDS[-1], 3)).astype(np.float32)
    data = {
        "camera0_rgb": pictures(),
        "robot0_eef_pos": turn,
        "robot0_eef_rot_axis_angle": turn,
        "robot0_gripper_width": np.full((ENDS[-1], 1), 0.08, np.float32),
    }
    path = make_store(tmp_path / "dataset.zarr", data)
    text = one_error(path)
    assert "hand cameras alone (data/camera0_rgb)" in text and "UMI records with the hand" in text
    plain = open_source(path, plain=True)
    assert plain.profile.wrist.key == "data/camera0_rgb" and plain.profile.anchors == ()
    more = make_store(tmp_path / "more.zarr", {**data, "camera1_rgb": pictures(seed=1)})
    dataset = open_source(more, anchor_keys=["camera1_rgb"])
    episode = dataset.episode(records(dataset)[0], wrist="camera0_rgb")
    assert (episode.wrist.frames[:] == data["camera0_rgb"][:3]).all()
    want = Rotation.from_rotvec(turn[:3]).as_matrix()
    np.testing.assert_allclose(episode.eef_pose[:, :3, :3], want, atol=1e-6)
    np.testing.assert_allclose(episode.gripper, 0, atol=1e-6)


def test_umi_pictures_are_jpegxl(tmp_path):
    codecs = pytest.importorskip("imagecodecs.numcodecs")
    codecs.register_codecs(verbose=False)
    path = make_store(tmp_path / "a.zarr", {"action": np.zeros((9, 2), np.float32)})
    root = zarr.open_group(path, mode="a")
    array = root["data"].create_array(
        "camera0_rgb", shape=(9, 12, 14, 3), chunks=(1, 12, 14, 3), dtype="u1",
        compressors=[codecs.Jpegxl(lossless=True, numthreads=1)],
    )  # fmt: skip
    array[:] = pictures()
    path = zip_store(path)
    dataset = open_source(path, anchor_keys=["camera0_rgb"])
    view = dataset.episode(records(dataset)[1]).anchors[0]
    assert (view.frames[:] == pictures()[3:5]).all()
    out, result = copy_store(path, tmp_path / "out", dataset=dataset)
    copied = open_source(out, plain=True)
    assert (
        json.loads(copied.arrays["data/wrist_rgb"].text)["compressor"]
        == (json.loads(dataset.arrays["data/camera0_rgb"].text)["compressor"])
    )
    assert copied.arrays["data/wrist_valid"].codecs == ("blosc",)  # no codec of pictures
    first = copied.frames(records(copied)[0], "wrist_rgb")[:]
    assert first.shape == (3, 16, 20, 3) and first.any() and result.bad == []


def test_a_codec_that_is_not_installed_is_named(tmp_path, monkeypatch):
    path = make_store(tmp_path / "a.zarr")
    meta = path / "data/agentview_image/.zarray"
    edit(meta, compressor={"id": "imagecodecs_jpegxl", "level": 99})
    dataset = open_source(path)  # `inspect` can say what is there
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    monkeypatch.setitem(sys.modules, "imagecodecs.numcodecs", None)
    with pytest.raises(SourceError, match=r"imagecodecs_jpegxl; install.*pip install imagecodecs"):
        dataset.episode(records(dataset)[0])
    with pytest.raises(SourceError, match="pip install imagecodecs"):
        copy_store(path, tmp_path / "out", dataset=dataset)
    edit(meta, compressor={"id": "nobody_knows"})
    dataset = open_source(path)
    with pytest.raises(SourceError, match="'nobody_knows', which nothing installed here knows"):
        dataset.episode(records(dataset)[0])


def test_names_of_profiles_and_keys(tmp_path):
    path = make_store(tmp_path / "mine.zarr")
    assert open_source(path, "mine").profile.name == "robomimic_replay"
    assert open_source(path, "diffusion_policy").profile.eef is None
    text = one_error(path, dataset="droid")
    assert "'mine', not 'droid'" in text and "umi" in text
    assert "data/agentview_image" in one_error(path, anchor_keys=["nothing"])
    assert "no stream of pictures" in one_error(path, anchor_keys=["robot0_eef_pos"])
    bare = make_store(tmp_path / "bare.zarr", {"action": np.zeros((9, 2), np.float32)})
    assert "holds no pictures" in one_error(bare)
    assert open_source(bare, plain=True).streams() == []


def test_placeholder_cameras_are_dropped(tmp_path):
    black = np.zeros_like(pictures())
    path = make_store(tmp_path / "a.zarr", arrays(black=black))
    dataset = open_source(path)
    assert dataset.episode(records(dataset)[0]).dropped == {"data/black": "black from start to end"}
    # zarr 3 leaves out chunks of nothing but the fill value: no damage.
    path = make_store(tmp_path / "b.zarr", arrays(black=black), zarr_format=3, config=None)
    assert not (path / "data/black/c").exists()
    dataset = open_source(path)
    assert [raw.error for raw in records(dataset)] == [None] * 3
    assert "data/black" in dataset.episode(records(dataset)[0]).dropped


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_missing_chunk_is_named_with_its_record(tmp_path, zarr_format):
    path = make_store(tmp_path / "a.zarr", zarr_format=zarr_format)
    chunk = "4.0.0.0" if zarr_format == 2 else "c/4/0/0/0"
    (path / "data/agentview_image" / chunk).unlink()
    (path / "data/agentview_image/notes.txt").write_text("not a chunk")
    found = records(open_source(path))
    assert [raw.error is None for raw in found] == [True, False, True]
    text = str(found[1].error)
    assert str(path) in text and "record 1" in text and "'data/agentview_image'" in text
    assert f"chunk {chunk} is missing" in text
    assert found[1].missing == 1


def test_a_damaged_chunk_is_named_with_its_record(tmp_path):
    path = make_store(tmp_path / "a.zarr")
    chunk = path / "data/agentview_image/4.0.0.0"
    whole = chunk.read_bytes()
    dataset = open_source(path)
    raws = records(dataset)
    size = struct.unpack("<I", whole[4:8])[0]
    bombs = [whole[:4] + struct.pack("<I", 1 << 30) + whole[8:]]
    for damage in (whole[: len(whole) // 2], b"", b"\x00" * 40, b"\xff" + whole[1:], *bombs):
        chunk.write_bytes(damage)
        with pytest.raises(SourceError) as found:
            dataset.episode(raws[1])
        text = str(found.value)
        assert "record 1" in text and "chunk 4.0.0.0" in text and "'data/agentview_image'" in text
        assert "\n" not in text
    assert f"unpacks to {1 << 30} bytes, not {size}" in text
    assert len(dataset.episode(raws[0]).anchors[0].frames[:]) == 3  # the rest is read


def test_every_flipped_byte_of_a_zip_member_is_found(tmp_path):
    path = zip_store(make_store(tmp_path / "a.zarr"))
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("data/agentview_image/4.0.0.0")
    data = bytearray(path.read_bytes())
    data[info.header_offset + 30 + len(info.filename) + info.file_size - 3] ^= 1
    path.write_bytes(data)
    dataset = open_source(path)
    raws = records(dataset)
    dataset.episode(raws[0])
    with pytest.raises(SourceError, match=r"record 1.*agentview_image.*CRC"):
        dataset.episode(raws[1])
    out, result = copy_store(path, tmp_path / "out", lambda raw: dataset.episode(raw) and made(raw))
    assert [(row["record"], row["what"]) for row in result.bad] == [(1, "placeholder")]
    assert recognise(out)


def made(raw):
    return stream(raw.stop - raw.start, raw.record.index)


@pytest.mark.parametrize(
    ("ends", "found"),
    [
        ((3, 3, 9), "record 1.*not behind"),
        ((5, 3, 9), "record 1.*not behind"),
        ((3, 5, 12), "holds 9 steps, but meta/episode_ends says that there are 12"),
        ((3, 5), "holds 9 steps, but meta/episode_ends says that there are 5"),
        ((-3, 5, 9), "record 0.*not behind"),
    ],
)
def test_ends_that_cannot_be_are_refused(tmp_path, ends, found):
    assert re.search(found, one_error(make_store(tmp_path / "a.zarr", ends=ends)))


def test_one_short_array_is_named(tmp_path):
    path = make_store(tmp_path / "a.zarr", arrays(action=np.zeros((8, 2), np.float32)))
    assert "'data/action': holds 8 steps" in one_error(path)


def test_missing_pieces_are_named(tmp_path):
    path = make_store(tmp_path / "a.zarr")
    (path / "meta/episode_ends/0").unlink()
    assert "chunk 0 is missing" in one_error(path)
    shutil.rmtree(path / "meta/episode_ends")
    assert recognise(path) and "'meta/episode_ends': there is no such array" in one_error(path)
    other = make_store(tmp_path / "b.zarr")
    for text in ("{", "[]", "{}", '{"zarr_format": 2}', "\xff", '{"a":' * 5000, "null"):
        (other / "data/agentview_image/.zarray").write_text(text, "latin-1")
        assert "agentview_image" in one_error(other)


def test_truncated_zips_are_named(tmp_path):
    path = zip_store(make_store(tmp_path / "a.zarr"))
    whole = path.read_bytes()
    for size in (len(whole) // 2, len(whole) - 10, 30):
        path.write_bytes(whole[:size])
        assert recognise(path) and "no whole zip" in one_error(path)


def test_terabytes_that_are_declared_are_refused_before_anything_is_allocated(tmp_path):
    path = make_store(tmp_path / "a.zarr")
    meta = path / "data/agentview_image/.zarray"
    huge = 10**12
    shape, chunks = [9, 12, 14, 3], [1, 12, 14, 3]
    for changes, found in (
        ({"shape": [huge, 12, 14, 3]}, "holds 1000000000000 steps"),
        ({"shape": [9, 10**6, 10**6, 3], "chunks": [9, 10**6, 10**6, 3]}, "chunks of"),
        ({"shape": [9, 10**6, 10**6, 3]}, "declares .* chunks, but 9"),
        ({"shape": [9, -1, 14, 3]}, "shape"),
        ({"chunks": [0, 12, 14, 3]}, "shape"),
        ({"shape": [9.0, 12, 14, 3]}, "shape"),
    ):
        edit(meta, **{"shape": shape, "chunks": chunks, **changes})
        with pytest.raises(SourceError, match=found):
            open_source(path)
    # All of it, in a few small files.
    path = make_store(tmp_path / "b.zarr", ends=(huge,))
    for folder in (path / "data").iterdir():
        if (folder / ".zarray").exists():
            tree = json.loads((folder / ".zarray").read_text())
            edit(folder / ".zarray", shape=[huge, *tree["shape"][1:]])
    assert "declares 1000000000000 chunks, but 9 are there" in one_error(path)


@pytest.mark.parametrize("place", ["filters", "compressor"])
def test_pickles_are_refused_and_never_loaded(tmp_path, place):
    path = make_store(tmp_path / "a.zarr", arrays(action=np.zeros((9, 2), np.float32)))
    meta = path / "data/action/.zarray"
    codec = {"id": "pickle", "protocol": 5}
    edit(meta, dtype="|O", **{place: [codec] if place == "filters" else codec})
    flag = tmp_path / "ran"
    (path / "data/action/0.0").write_bytes(b"cposix\nsystem\n(S'touch %b'\ntR." % bytes(flag))
    assert "'pickle', which can run code" in one_error(path)
    edit(meta, dtype="|O", filters=None, compressor=None)
    assert "holds Python objects" in one_error(path)
    assert not flag.exists()


def test_links_and_pipes_are_refused(tmp_path):
    outside = tmp_path / "outside"
    outside.write_bytes(b"secret")
    path = make_store(tmp_path / "a.zarr")
    chunk = path / "data/agentview_image/4.0.0.0"
    chunk.unlink()
    chunk.symlink_to(outside)
    assert "symbolic link" in one_error(path) and "4.0.0.0" in one_error(path)
    chunk.unlink()
    os.mkfifo(chunk)
    assert "device or pipe" in one_error(path)
    path = make_store(tmp_path / "b.zarr")
    shutil.move(path / "meta/episode_ends", tmp_path / "ends")
    (path / "meta/episode_ends").symlink_to(tmp_path / "ends")
    assert "symbolic link" in one_error(path)


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "data/../../evil", "..\\evil"])
def test_zips_with_names_that_leave_the_store_are_refused(tmp_path, name):
    path = zip_store(make_store(tmp_path / "a.zarr"))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"x")
    assert "leaves the store" in one_error(path)


def test_zip_bombs_are_refused(tmp_path):
    path = zip_store(make_store(tmp_path / "a.zarr"))
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        a, b = archive.infolist()[3:5]
    # Two names for the same bytes.
    entry = whole.index(b"PK\x01\x02", whole.rindex(b.filename.encode()) - 60)
    lies = bytearray(whole)
    lies[entry + 42 : entry + 46] = struct.pack("<I", a.header_offset)
    path.write_bytes(lies)
    assert "overlap" in one_error(path)
    path.write_bytes(whole)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("data/agentview_image/4.0.0.0", bytes(1 << 24))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("meta/episode_ends/0", bytes(1 << 24))
    assert "bytes, where at most" in one_error(path)


def test_whatever_else_lies_there_is_not_recognised(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.zip").write_text("PK, but no zip")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a", b"b")
    zarr.open_group(tmp_path / "group.zarr", mode="w")
    (tmp_path / "a.zarr.zip").write_text("no zip")
    os.mkfifo(tmp_path / "pipe.zip")
    for path in (*tmp_path.iterdir(), tmp_path / "nothing"):
        assert recognise(path) is False

"""CALVIN: runs of frames as records, cameras, poses and language, and what is refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import calvin_kit as kit
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from wristaugment.readers import calvin_folder
from wristaugment.readers.calvin import open_source, recognise
from wristaugment.readers.calvin_cameras import TCP_FROM_CAMERA
from wristaugment.readers.errors import SourceError


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Do not write to it."""
    return kit.build(tmp_path_factory.mktemp("calvin"), gripper=True)


@pytest.fixture
def private(source, tmp_path) -> Path:
    folder = tmp_path / "task_T"
    shutil.copytree(source, folder)
    return folder


def test_it_is_recognised_by_what_lies_there(source, tmp_path):
    assert recognise(source) and recognise(source / "training")
    assert not recognise(source / "training" / "lang_annotations")
    assert not recognise(source / "training" / "episode_0000005.npz")
    assert not recognise(tmp_path / "nothing") and not recognise(tmp_path)
    assert not recognise(Path("a\0b"))


def test_records_are_ranges_and_what_lies_between_them(source):
    dataset = open_source(source)
    assert (dataset.name, dataset.place, dataset.version) == ("task_T", Path("task_T"), "")
    assert [split.name for split in dataset.splits] == ["training", "validation"]
    found = [(raw.record.split, raw.start, raw.stop) for raw in kit.raws(dataset)]
    assert found == [
        ("training", 5, 25),
        ("training", 30, 32),
        ("training", 40, 50),
        ("validation", 100, 106),
    ]
    assert [dataset.steps(raw) for raw in kit.raws(dataset)] == [20, 2, 10, 6]
    alone = open_source(source / "training")
    assert [split.name for split in alone.splits] == ["training"] and alone.name == "training"


def test_long_ranges_are_cut_and_grouped(source, monkeypatch):
    monkeypatch.setattr(calvin_folder, "RECORD_FRAMES", 8)
    monkeypatch.setattr(calvin_folder, "SHARD_FRAMES", 16)
    dataset = open_source(source)
    runs = [(raw.start, raw.stop) for raw in kit.raws(dataset) if raw.record.split == "training"]
    assert runs == [(5, 11), (11, 18), (18, 25), (30, 32), (40, 45), (45, 50)]
    training = dataset.splits[0]
    assert [shard.records for shard in training.shards] == [2, 3, 1]
    numbers = [int(p.stem[8:]) for shard in training.shards for p in dataset.shard_files(shard)]
    assert numbers == kit.NUMBERS["training"]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_an_episode_has_views_poses_depth_and_words(tmp_path, dtype):
    dataset = open_source(kit.build(tmp_path, dtype=dtype), "calvin")
    raw = kit.raws(dataset)[0]
    episode = dataset.episode(raw, depth=True)
    view = episode.anchors[0]
    want = np.stack([kit.frame(n)["rgb_static"] for n in raw.numbers])
    assert view.key == "rgb_static" and np.array_equal(view.frames[:], want)
    assert np.array_equal(view.frames[-1], want[-1])
    assert np.array_equal(view.frames[3:9:2, 2], want[3:9:2, 2])
    # CALVIN's published camera: 10 degrees, from look_from to look_at.
    assert view.K is not None and view.pose is not None and view.depth is not None
    assert view.K[0, 0] == pytest.approx(1143.005 * kit.STATIC[0] / 200, rel=1e-6)
    target = view.pose @ [-0.026242351159453392, -0.0302329882979393, 0.3920000493526459, 1]
    assert target[:2] == pytest.approx([0, 0], abs=1e-12) and target[2] > 3
    up = view.pose[:3, :3] @ [0, 0, 1]
    assert up[1] < -0.5  # the world's up points up in the picture
    depth = np.stack([kit.frame(n)["depth_static"] for n in raw.numbers])
    assert (view.depth[:, 0] == 0).all() and np.array_equal(view.depth[:, 1:], depth[:, 1:])
    robot = kit.frame(int(raw.numbers[4]), dtype)["robot_obs"].astype(float)
    assert episode.eef_pose is not None and episode.gripper is not None
    a, b, c = robot[3:6]
    turn = {
        "x": [[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]],
        "y": [[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]],
        "z": [[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]],
    }
    tcp = np.eye(4)
    tcp[:3, :3] = np.array(turn["z"]) @ np.array(turn["y"]) @ np.array(turn["x"])
    tcp[:3, 3] = robot[:3]
    assert episode.eef_pose[4] == pytest.approx(tcp, abs=1e-9)
    assert episode.measured_wrist_pose()[4] == pytest.approx(np.linalg.inv(tcp @ TCP_FROM_CAMERA))
    assert episode.gripper == pytest.approx(np.full(20, 0.5))
    assert episode.wrist_size == (84, 84)
    assert episode.wrist_K[0, 0] == pytest.approx(54.735, abs=1e-3)
    assert episode.language == "open the drawer 0"
    assert dataset.episode(kit.raws(dataset)[1]).language == ""


def test_the_mount_is_that_of_the_robots_description():
    """The camera's joint has rpy 1.3, 0, -1.57; it looks along its y, and its z points down."""
    joint = Rotation.from_euler("xyz", [1.3, 0, -1.57]).as_matrix()
    axes = np.stack([-joint[:, 0], joint[:, 2], joint[:, 1]], axis=1)
    assert TCP_FROM_CAMERA[:3, :3] == pytest.approx(axes, abs=1e-6)
    assert TCP_FROM_CAMERA[:3, 3] == pytest.approx([-0.1, 0, -0.14])


def test_the_recorded_hand_camera(source):
    dataset = open_source(source)
    raw = kit.raws(dataset)[2]
    episode = dataset.episode(raw, wrist="rgb_gripper")
    assert episode.wrist is not None and episode.wrist.frames.shape == (10, 84, 84, 3)
    assert episode.wrist.pose.shape == (10, 4, 4)
    with pytest.raises(SourceError, match=r"no such key.*rgb_static, rgb_gripper"):
        dataset.episode(raw, wrist="rgb_tactile")
    keys = {stream.key: stream.depth for stream in dataset.streams()}
    assert keys == {"rgb_static": False, "depth_static": True, "rgb_gripper": False}
    assert dataset.frames(raw, "depth_static").shape == (10, 20, 20)
    assert dataset.flags(raw, "wrist_valid") is None


def test_cameras_from_the_configuration(private):
    hydra = private / "training" / ".hydra"
    hydra.mkdir()
    (hydra / "merged_config.yaml").write_text(
        "env: !!python/object/apply:os.system ['touch pwned']\n"
        "cameras:\n  static: {fov: 60, look_from: [0, -2, 1], look_at: [0, 0, 1], "
        "up_vector: [0, 0, 1], farval: 5}\n  gripper: {fov: 90}\n"
    )
    dataset = open_source(private)
    view = dataset.episode(kit.raws(dataset)[0]).anchors[0]
    assert view.K[1, 1] == pytest.approx(10 / np.tan(np.pi / 6))
    assert view.pose == pytest.approx(
        np.array([[1, 0, 0, 0], [0, 0, -1, 1], [0, 1, 0, 2], [0, 0, 0, 1.0]])
    )
    assert dataset.episode(kit.raws(dataset)[0]).wrist_K[0, 0] == pytest.approx(42)
    assert dataset.notes() == [] and not Path("pwned").exists()


@pytest.mark.parametrize(
    "text",
    [
        "cameras: {static: {fov: 10, look_from: [0, 0, 0], look_at: [0, 0, 0], up_vector: [0]}}",
        "cameras: {static: {fov: 400, look_from: [1, 1, 1], look_at: [0, 0, 0], up_vector: "
        "[0, 0, 1]}}",
        "[" * 5000,
        "a: &a [x]\n" + "\n".join(f"k{i}: &b{i} {{<<: [*a, *a]}}" for i in range(20)),
        "x" * 300_000,
    ],
)
def test_a_damaged_configuration_leaves_the_camera_unknown(private, text):
    hydra = private / "training" / ".hydra"
    hydra.mkdir()
    (hydra / "merged_config.yaml").write_text(text)
    dataset = open_source(private)
    view = dataset.episode(kit.raws(dataset)[0]).anchors[0]
    assert view.pose is None and view.K is None
    note = "\n".join(dataset.notes())
    assert "merged_config.yaml" in note and "unknown" in note and len(dataset.notes()) == 1


def test_names_and_camera_keys(source, private):
    assert open_source(source, "task_T").profile.name == "calvin"
    with pytest.raises(SourceError, match="'droid' is none; say --dataset calvin or task_T"):
        open_source(source, "droid")
    chosen = open_source(source, anchor_keys=["rgb_gripper"])
    assert [camera.key for camera in chosen.profile.anchors] == ["rgb_gripper"]
    assert chosen.profile.wrist is None
    for key in ("rgb_nowhere", "robot_obs", "depth_static"):
        with pytest.raises(SourceError, match="image keys are: rgb_static, rgb_gripper"):
            open_source(source, anchor_keys=[key])
    for split in ("training", "validation"):
        for path in (private / split).glob("episode_*.npz"):
            np.savez_compressed(path, robot_obs=np.zeros(15))
    with pytest.raises(SourceError, match=r"no such key.*none at all"):
        open_source(private)
    assert open_source(private, plain=True).profile.anchors == ()


def test_a_black_camera_is_dropped(private):
    for path in (private / "training").glob("episode_*.npz"):
        arrays = dict(np.load(path)) | {"rgb_static": np.zeros((20, 20, 3), np.uint8)}
        np.savez_compressed(path, **arrays)
    dataset = open_source(private, anchor_keys=["rgb_static", "rgb_gripper"])
    episode = dataset.episode(kit.raws(dataset)[0])
    assert [view.key for view in episode.anchors] == ["rgb_gripper"]
    assert episode.dropped == {"rgb_static": "black from start to end"}


def test_missing_and_damaged_frames_are_named(private):
    training = private / "training"
    (training / "episode_0000007.npz").unlink()
    (training / "episode_0000009.npz").unlink()
    cut = training / "episode_0000044.npz"
    cut.write_bytes(cut.read_bytes()[:-100])
    (training / "episode_0000031.npz").write_bytes(b"")
    dataset = open_source(private)
    raws = kit.raws(dataset)
    assert raws[0].error is not None and raws[0].missing == 1 and len(raws[0].numbers) == 18
    message = str(raws[0].error)
    assert "episode_0000007.npz, record 0" in message and "2 of the 20 frames 5 to 24" in message
    with pytest.raises(SourceError, match=r"0000031\.npz, record 1: is no whole archive"):
        dataset.episode(raws[1])
    with pytest.raises(SourceError, match=r"0000044\.npz, record 2: is no whole archive"):
        dataset.episode(raws[2])
    assert dataset.episode(raws[3]).length == 6


def test_a_flipped_byte_is_named_with_its_key(private):
    path = private / "training" / "episode_0000006.npz"
    data = bytearray(path.read_bytes())
    at = data.index(b"rgb_static.npy") + 400
    data[at] ^= 0x10
    path.write_bytes(bytes(data))
    dataset = open_source(private)
    raw = kit.raws(dataset)[0]
    frames = dataset.episode(raw).anchors[0].frames  # of which only some have been looked at
    with pytest.raises(SourceError, match=r"0000006\.npz, record 0, key 'rgb_static': "):
        frames[:]


def test_a_check_finds_what_nobody_reads(private):
    path = private / "training" / "episode_0000048.npz"
    data = bytearray(path.read_bytes())
    data[data.index(b"scene_obs.npy") + 150] ^= 1
    path.write_bytes(bytes(data))
    dataset = open_source(private)
    found = [dataset.check(raw) for raw in kit.raws(dataset)]
    assert [error is None for error in found] == [True, True, False, True]
    assert "0000048.npz, record 2, key 'scene_obs'" in str(found[2])
    (private / "training" / "episode_0000010.npz").unlink()
    dataset = open_source(private)
    assert "missing" in str(dataset.check(kit.raws(dataset)[0]))


def test_a_frame_of_another_shape_is_named(private):
    path = private / "validation" / "episode_0000103.npz"
    arrays = dict(np.load(path))
    np.savez_compressed(path, **(arrays | {"robot_obs": np.zeros(16)}))
    dataset = open_source(private)
    with pytest.raises(SourceError, match=r"key 'robot_obs': is \(16,\) float64, not \(15,\)"):
        dataset.episode(kit.raws(dataset)[-1])
    del arrays["robot_obs"]
    np.savez_compressed(path, **arrays)
    with pytest.raises(SourceError, match="key 'robot_obs': the frame lacks this key"):
        dataset.episode(kit.raws(dataset)[-1])


def _npy(text: str, data: bytes = b"") -> bytes:
    header = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


@pytest.mark.parametrize(
    ("ranges", "found"),
    [
        (np.array([[0, 10**12]]), "declares 1000000000001 frames"),
        (np.array([[-5, 4]]), "none"),
        (np.array([[9, 3]]), "ends before it begins, 9 to 3"),
        (np.array([[0, 9], [5, 20]]), "overlap, 0 to 9"),
        (np.array([[0, 2**63]], np.uint64), "none"),
        (np.array([0, 9]), "not pairs"),
        (np.array([[0.0, 9.0]]), "not pairs"),
        (_npy("{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000, 2), }"), "bytes"),
        (_npy("{'descr': '|O', 'fortran_order': False, 'shape': (1, 2), }", b"cos\nsystem"), "obj"),
        (_npy("{'descr': " + "(" * 90), "header"),
        (b"nothing", "no .npy"),
    ],
)
def test_impossible_ranges_are_refused(private, ranges, found):
    path = private / "training" / "ep_start_end_ids.npy"
    if isinstance(ranges, bytes):
        path.write_bytes(ranges)
    else:
        np.save(path, ranges)
    with pytest.raises(SourceError, match=f"ep_start_end_ids.npy.*{found}"):
        open_source(private)


def test_what_is_not_there_is_named(private, tmp_path):
    (private / "training" / "ep_start_end_ids.npy").unlink()
    with pytest.raises(SourceError, match=r"ep_start_end_ids\.npy: cannot be opened"):
        open_source(private)
    empty = tmp_path / "empty" / "training"
    empty.mkdir(parents=True)
    np.save(empty / "ep_start_end_ids.npy", np.array([[0, 5]]))
    with pytest.raises(SourceError, match="holds no frames"):
        open_source(empty.parent)


def test_odd_files_among_the_frames(private):
    training = private / "training"
    np.savez(training / "other.npz", a=1)
    (training / "episode_12.npz").write_bytes(b"too few digits for a frame")
    (training / "episode_0000099.npz").mkdir()
    os.mkfifo(training / "pipe")
    dataset = open_source(private)
    assert [raw.start for raw in kit.raws(dataset)] == [5, 30, 40, 100]
    assert all(raw.error is None for raw in kit.raws(dataset))
    others = {path.relative_to(private).as_posix() for path in dataset.other_files()}
    assert "training/other.npz" in others and "notes.txt" in others
    assert "training/pipe" not in others
    assert not any("episode_0000" in name for name in others)
    frames = {path for shard in dataset.splits[0].shards for path in dataset.shard_files(shard)}
    assert set(dataset.files()) == frames | set(dataset.other_files()) | set(
        dataset.shard_files(dataset.splits[1].shards[0])
    )


@pytest.mark.parametrize(("side", "found"), [(4320, "no frames of CALVIN's"), (4800, "declares")])
def test_few_bytes_that_unpack_to_very_many_take_no_memory(private, side, found):
    path = private / "training" / "episode_0000005.npz"
    arrays = dict(np.load(path)) | {"rgb_static": np.zeros((side, side, 3), np.uint8)}
    np.savez_compressed(path, **arrays)
    dataset = open_source(private / "training", plain=True)
    with pytest.raises(SourceError, match=f"rgb_static.*{found}"):
        dataset.frames(kit.raws(dataset)[0], "rgb_static")[:]

"""Raw DROID: cameras by serial, poses, splits; damaged, missing and malicious pieces are named."""

import json
import os

import h5py
import numpy as np
import pytest
from raw_episodes import STEPS, make_dataset, make_episode, pictures, records, write_video
from scipy.spatial.transform import Rotation
from wristaugment.readers.droid_raw import open_source, recognise
from wristaugment.readers.errors import SourceError
from wristaugment.readers.frames import Frames


def first(root, **options):
    """(dataset, its first record) of one episode in a folder of its own."""
    dataset = open_source(root, **options)
    return dataset, records(dataset)[0]


def named(raw, *words):
    """The one line of a record's error, which must hold some words."""
    text = str(raw.error)
    assert "record 0" in text and "\n" not in text
    assert all(word in text for word in words), text
    return text


def edit(folder, **changes):
    path = next(folder.glob("metadata_*.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return path


def test_an_episode_is_read(tmp_path):
    root = make_dataset(tmp_path / "droid_raw" / "1.0.1")
    assert recognise(root) and recognise(root / "LAB/success/2023-07-07/ep0")
    dataset = open_source(root)
    assert (dataset.name, dataset.version, str(dataset.place)) == (
        "droid_raw", "1.0.1", "droid_raw/1.0.1",
    )  # fmt: skip
    assert [(s.name, s.records) for s in dataset.splits] == [("success", 2), ("failure", 1)]
    assert [s.key for s in dataset.streams()] == [f"recordings/MP4/{n * 111}" for n in (1, 2, 3)]
    raw = records(dataset)[0]
    assert dataset.steps(raw) == STEPS
    episode = dataset.episode(raw, wrist="wrist")
    assert [view.key for view in episode.anchors] == ["recordings/MP4/111", "recordings/MP4/222"]
    assert episode.language == "put it there" and episode.length == STEPS
    for number, view in enumerate((*episode.anchors, episode.wrist)):
        assert isinstance(view.frames, Frames) and view.frames.shape == (STEPS, 48, 64, 3)
        off = np.abs(view.frames[:].astype(int) - pictures(seed=number))
        assert off.mean() < 3
        assert view.K[0, 0] == 50
    want = np.eye(4)
    want[:3, :3] = Rotation.from_euler("xyz", [0, 1, 2]).as_matrix()
    want[:3, 3] = 0.1, 0.2, 0.3
    np.testing.assert_allclose(episode.anchors[0].pose, np.linalg.inv(want), atol=1e-12)
    with h5py.File(root / "LAB/success/2023-07-07/ep0/trajectory.h5") as file:
        eef = file["observation/robot_state/cartesian_position"][:]
        hand = file["observation/camera_extrinsics/333_left"][:]
    np.testing.assert_allclose(episode.eef_pose[:, :3, 3], eef[:, :3])
    at = episode.eef_pose[0] @ episode.wrist_mount
    np.testing.assert_allclose(at[:3, 3], hand[0, :3], atol=1e-12)
    np.testing.assert_allclose(episode.gripper, np.linspace(0, 1, STEPS))
    assert episode.wrist_size == (48, 64) and episode.wrist_K[0, 2] == 32
    assert dataset.flags(raw, "wrist_valid") is None
    assert dataset.frames(raw, "ext2")[[0]].shape == (1, 48, 64, 3)


def test_laboratories_have_cameras_of_their_own(tmp_path):
    make_episode(tmp_path / "d/A/success/x/ep0")
    other = {"ext1": "777", "ext2": "888", "wrist": "999"}
    make_episode(tmp_path / "d/B/success/x/ep0", serials=other)
    dataset = open_source(tmp_path / "d")
    one, two = (dataset.episode(raw, wrist="recordings/MP4/333") for raw in records(dataset))
    assert [v.key[-3:] for v in (*one.anchors, one.wrist)] == ["111", "222", "333"]
    assert [v.key[-3:] for v in (*two.anchors, two.wrist)] == ["777", "888", "999"]
    chosen = open_source(tmp_path / "d", anchor_keys=["ext2", "recordings/MP4/777"])
    assert [camera.key[-3:] for camera in chosen.profile.anchors] == ["222", "777"]
    keys = [[v.key[-3:] for v in chosen.episode(raw).anchors] for raw in records(chosen)]
    assert keys == [["222"], ["888", "777"]]
    with pytest.raises(SourceError, match=r"'nobody'.*111, 222, 333"):
        open_source(tmp_path / "d", anchor_keys=["nobody"])


def test_names(tmp_path):
    make_episode(tmp_path / "mine/ep0")
    for name in (None, "mine", "droid", "droid_raw"):
        assert open_source(tmp_path / "mine", name).splits[0].name == "train"
    with pytest.raises(SourceError, match="'mine', not 'bridge'"):
        open_source(tmp_path / "mine", "bridge")


def test_black_cameras_are_dropped(tmp_path):
    videos = {"111": np.zeros_like(pictures()), "222": pictures(), "333": pictures()}
    make_episode(tmp_path / "d/ep0", videos=videos)
    dataset, raw = first(tmp_path / "d")
    episode = dataset.episode(raw)
    assert [view.key for view in episode.anchors] == ["recordings/MP4/222"]
    assert "black" in episode.dropped["recordings/MP4/111"]


def test_short_cut_and_missing_videos_are_named(tmp_path):
    videos = {"111": pictures(STEPS - 1), "222": pictures()}
    folder = make_episode(tmp_path / "d/ep0", videos=videos)
    dataset, raw = first(tmp_path / "d")
    path = folder / "recordings/MP4/111.mp4"
    with pytest.raises(SourceError, match=r"111.mp4, record 0.*MP4/111.*5 frames for 6 steps"):
        dataset.episode(raw)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    dataset, raw = first(tmp_path / "d")
    with pytest.raises(SourceError, match=r"111.mp4, record 0, key 'recordings/MP4/111'"):
        dataset.episode(raw)
    path.unlink()
    named(first(tmp_path / "d")[1], "111.mp4", "'recordings/MP4/111'", "no such video")
    write_video(path, pictures(STEPS + 1))  # one frame more than steps: the first ones count
    dataset, raw = first(tmp_path / "d")
    assert dataset.episode(raw).anchors[0].frames.shape[0] == STEPS


def test_damaged_metadata_and_trajectories_are_named(tmp_path):
    folder = make_episode(tmp_path / "d/ep0")
    make_episode(tmp_path / "d/ep1")
    path = next(folder.glob("metadata_*.json"))
    whole = path.read_bytes()
    for text in (b"", b"{", b"[]", b"\xff\xfe", b'{"ext1_cam_serial": {}}'):
        path.write_bytes(text)
        dataset, raw = first(tmp_path / "d")
        named(raw, path.name)
        assert dataset.steps(raw) == STEPS and records(dataset)[1].error is None
    path.write_bytes(whole)
    table = folder / "trajectory.h5"
    data = table.read_bytes()
    table.write_bytes(data[: len(data) // 2])
    dataset, raw = first(tmp_path / "d")
    named(raw, "trajectory.h5", "HDF5")
    assert dataset.steps(raw) == STEPS  # as the metadata says, and the videos confirm
    for wrong in (10**12, 0, -1, None, "6"):
        edit(folder, trajectory_length=wrong)
        dataset, raw = first(tmp_path / "d")
        with pytest.raises(SourceError, match="HDF5"):
            dataset.steps(raw)
    table.unlink()
    named(first(tmp_path / "d")[1], "trajectory.h5")
    path.unlink()
    assert [s.records for s in open_source(tmp_path / "d").splits] == [1]


@pytest.mark.parametrize("serial", ["../../../secret", "/etc/passwd", "a/b", ".."])
def test_serials_that_lead_elsewhere_are_refused(tmp_path, serial):
    folder = make_episode(tmp_path / "d/ep0")
    edit(folder, ext1_cam_serial=serial)
    raw = records(open_source(tmp_path / "d", plain=True))[0]
    named(raw, "is no serial number")


def test_links_out_of_the_dataset_are_refused(tmp_path):
    secret = tmp_path / "secret.mp4"
    write_video(secret, pictures())
    folder = make_episode(tmp_path / "d/ep0")
    video = folder / "recordings/MP4/111.mp4"
    video.unlink()
    video.symlink_to(secret)
    dataset, raw = first(tmp_path / "d")
    named(raw, "111.mp4", "link to something outside")
    with pytest.raises(SourceError, match="outside"):
        dataset.steps(raw)
    os.symlink(tmp_path, tmp_path / "d" / "more")
    with pytest.raises(SourceError, match=r"more: is a link"):
        open_source(tmp_path / "d")


def test_hdf5_that_points_elsewhere_or_declares_terabytes_is_refused(tmp_path):
    folder = make_episode(tmp_path / "d/ep0")
    key = "observation/robot_state/cartesian_position"
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["x"] = np.zeros((STEPS, 6))
    with h5py.File(folder / "trajectory.h5", "a") as file:
        del file[key]
        file[key] = h5py.ExternalLink(str(other), "x")
    named(first(tmp_path / "d")[1], key, "another file")
    with h5py.File(folder / "trajectory.h5", "a") as file:
        del file[key]
        file.create_dataset(key, (10**12, 6), "f8", chunks=(1000, 6))
    named(first(tmp_path / "d")[1], key, "declares")


def test_whatever_else_lies_there_is_not_recognised(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "half").mkdir()
    (tmp_path / "half/trajectory.h5").write_text("x")
    for path in (*tmp_path.iterdir(), tmp_path / "nothing"):
        assert recognise(path) is False
    with pytest.raises(SourceError, match="holds no episode"):
        open_source(tmp_path / "half")

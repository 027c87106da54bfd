"""robomimic's and LIBERO's HDF5: what the reader gives, and what it refuses."""

from __future__ import annotations

import json
import pickle
import shutil

import h5py
import numpy as np
import pytest
from hdf5_files import corpus, records
from scipy.spatial.transform import Rotation
from wristaugment.readers import aloha, robomimic
from wristaugment.readers.errors import SourceError
from wristaugment.writers import aloha_create, libero_create, robomimic_create


@pytest.fixture(scope="module")
def episodes():
    return [episode for split in corpus().values() for episode in split]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return robomimic_create.create(tmp_path_factory.mktemp("rm"), corpus(), wrist=True)


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    return libero_create.create(tmp_path_factory.mktemp("libero"), corpus(), wrist=True)


@pytest.fixture
def path(source, tmp_path):
    """A private copy of the robomimic file, in a folder of its own."""
    (tmp_path / "own").mkdir()
    return shutil.copy(source, tmp_path / "own" / "image.hdf5")


def opened(path, **choices):
    return robomimic.open_source(path, **choices)


def test_an_episode_has_all_that_was_recorded(source, episodes):
    dataset = opened(source)
    assert dataset.profile.name == "robomimic" and str(dataset.place) == "."
    found = records(dataset)
    assert [raw.group for raw in found] == [f"data/demo_{n}" for n in range(4)]
    for raw, real in zip(found, episodes, strict=True):
        episode = dataset.episode(raw, wrist="robot0_eye_in_hand_image")
        assert dataset.steps(raw) == real.steps == episode.length
        for view, name in zip(episode.anchors, ("exterior_1", "exterior_2"), strict=True):
            assert np.array_equal(view.frames[:], real.views[name].frames)
            assert np.allclose(view.K, real.views[name].K)
            assert np.allclose(view.pose, real.views[name].pose)
        assert np.array_equal(episode.wrist.frames[:], real.views["wrist"].frames)
        assert np.allclose(episode.wrist_K, real.views["wrist"].K)
        assert episode.wrist_size == (90, 160)
        # robomimic tells the hand camera's pose in a way that is no mount: none is given.
        assert episode.wrist_mount is None
        assert np.allclose(episode.eef_pose, real.eef, atol=1e-6)
        assert np.allclose(episode.gripper, np.clip(real.gripper, 0, 1), atol=1e-6)
        assert episode.language == real.language[0]


def model_of(real, *, moved: float = 0.0) -> str:
    """A robosuite-like MJCF in which the cameras lie where an episode's cameras are."""

    def place(pose, fov) -> str:
        turn = Rotation.from_matrix(pose[:3, :3] * [1, -1, -1]).as_quat(scalar_first=True)
        numbers = [" ".join(f"{x:.12g}" for x in values) for values in (pose[:3, 3], turn)]
        return f'pos="{numbers[0]}" quat="{numbers[1]}" fovy="{fov:.12g}"'

    def fov(view) -> float:
        return float(np.degrees(2 * np.arctan(view.size[0] / 2 / view.K[1, 1])))

    cameras = ""
    for view, name in (("exterior_1", "agentview"), ("exterior_2", "sideview")):
        pose = np.linalg.inv(real.views[view].pose)
        pose[0, 3] += moved
        cameras += f'<camera name="{name}" mode="fixed" {place(pose, fov(real.views[view]))}/>'
    hand = real.eef[0].copy()
    # The grip site is 97 mm before the hand's body, whose axes are the end effector's.
    in_hand = np.linalg.inv(hand) @ np.linalg.inv(real.views["wrist"].pose[0])
    in_hand[2, 3] += 0.097
    eye = place(in_hand, fov(real.views["wrist"]))
    return f"""<mujoco><compiler angle="radian"/><worldbody>{cameras}
      <body name="robot0_base" pos="-0.56 0 0.912"><body name="robot0_link7" euler="0.1 0.2 0.3">
        <joint name="robot0_joint7" axis="0 0 1"/><geom type="sphere" size="0.01"/>
        <body name="robot0_right_hand" pos="0 0 0.1065" quat="0.924 0 0 -0.383">
          <camera name="robot0_eye_in_hand" mode="fixed" {eye}/>
          <body name="gripper0_right_gripper" pos="0 0 0" quat="0.707107 0 0 -0.707107">
            <body name="gripper0_eef" pos="0 0 0.097"><site name="gripper0_grip_site"/></body>
            <body name="gripper0_leftfinger"><joint type="slide"/><geom type="sphere" size="0.01"/>
            </body></body></body></body></body></worldbody></mujoco>"""


@pytest.mark.parametrize("told", [True, False], ids=["camera_info", "model-alone"])
def test_a_demos_model_tells_where_the_cameras_are(path, episodes, told):
    with h5py.File(path, "r+") as file:
        for demo, real in zip(file["data"].values(), episodes, strict=True):
            demo.attrs["model_file"] = model_of(real)
            if not told:
                del demo.attrs["camera_info"], demo["obs/robot0_eye_in_hand_image"]
    dataset = opened(path)
    for raw, real in zip(records(dataset), episodes, strict=True):
        episode = dataset.episode(raw)
        truth = np.linalg.inv(real.views["wrist"].pose[0])
        assert episode.wrist_mount is not None
        assert np.allclose(episode.wrist_mount, np.linalg.inv(real.eef[0]) @ truth, atol=1e-6)
        assert np.allclose(episode.measured_wrist_pose()[0], real.views["wrist"].pose[0], atol=1e-6)
        assert np.allclose(episode.wrist_K, real.views["wrist"].K, atol=1e-6)
        for view, name in zip(episode.anchors, ("exterior_1", "exterior_2"), strict=True):
            assert np.allclose(view.K, real.views[name].K, atol=1e-6)
            assert np.allclose(view.pose, real.views[name].pose, atol=1e-6)


def test_a_model_of_another_scene_or_none_is_not_believed(path, episodes):
    other = model_of(episodes[0], moved=0.02)
    loose = model_of(episodes[0]).replace('name="gripper0_grip_site"', 'name="elsewhere"')
    bad = ["", "<mujoco>", "<!DOCTYPE x [<!ENTITY a 'b'>]>" + loose, loose.replace("fovy", "focal")]
    for text in (other, loose, *bad):
        with h5py.File(path, "r+") as file:
            file["data/demo_0"].attrs["model_file"] = text
        dataset = opened(path)
        episode = dataset.episode(records(dataset)[0])
        assert episode.wrist_mount is None
        assert np.allclose(episode.anchors[0].pose, episodes[0].views["exterior_1"].pose)


def test_frames_are_read_when_they_are_asked_for(source):
    dataset = opened(source)
    raw = records(dataset)[0]
    frames = dataset.frames(raw, "agentview_image")
    with h5py.File(source) as file:
        stored = file["data/demo_0/obs/agentview_image"][()]
    assert frames.shape == stored.shape and np.array_equal(frames[:], stored)
    assert np.array_equal(frames[[5, 1, 1]], stored[[5, 1, 1]])
    assert np.array_equal(frames[2], stored[2])


def test_libero_is_turned_upright_and_given_as_stored(suite, episodes):
    assert robomimic.recognise(suite)
    dataset = opened(suite)
    assert dataset.profile.name == "libero" and dataset.name == suite.name
    by_words = {episode.language[0]: episode for episode in episodes}
    assert sum(shard.records for shard in dataset.splits[0].shards) == 4
    for raw in records(dataset):
        episode = dataset.episode(raw, wrist="obs/eye_in_hand_rgb")
        real = by_words[episode.language]
        upright = np.asarray(real.views["exterior_1"].frames)
        assert np.array_equal(episode.anchors[0].frames[:], upright)
        assert np.array_equal(episode.wrist.frames[3], real.views["wrist"].frames[3])
        assert np.array_equal(dataset.frames(raw, "agentview_rgb")[:], upright[:, ::-1])
        assert np.allclose(episode.eef_pose, real.eef, atol=1e-6)


def test_a_file_that_says_opencv_is_upright(suite, tmp_path):
    folder = shutil.copytree(suite, tmp_path / "suite")
    for file in folder.iterdir():
        with h5py.File(file, "r+") as f:
            f["data"].attrs["macros_image_convention"] = "opencv"
    dataset = opened(folder)
    raw = records(dataset)[0]
    stored = dataset.frames(raw, "agentview_rgb")[:]
    assert np.array_equal(dataset.episode(raw).anchors[0].frames[:], stored)


def test_black_and_unknown_cameras(path):
    with h5py.File(path, "r+") as file:
        for demo in file["data"].values():
            demo["obs/sideview_image"][...] = np.zeros((8, 90, 160, 3), np.uint8)
    episode = (dataset := opened(path)).episode(records(dataset)[0])
    assert [view.key for view in episode.anchors] == ["obs/agentview_image"]
    assert "black" in episode.dropped["obs/sideview_image"]
    with h5py.File(path, "r+") as file:
        for demo in file["data"].values():
            demo["obs"].move("agentview_image", "overhead")
            del demo["obs/sideview_image"]
    with pytest.raises(SourceError, match=r"obs/overhead.*--anchor-keys"):
        opened(path)
    assert opened(path, plain=True).profile.anchors == ()
    chosen = opened(path, anchor_keys=["overhead"])
    assert [camera.key for camera in chosen.profile.anchors] == ["obs/overhead"]
    with pytest.raises(SourceError, match="no such image key"):
        opened(path, anchor_keys=["nothing"])
    with pytest.raises(SourceError, match=r"no 'bridge'.*libero"):
        opened(path, dataset="bridge")


def test_recognise_is_safe_anywhere(path, tmp_path, suite):
    made = aloha_create.create(tmp_path / "a", corpus())
    assert robomimic.recognise(path) and robomimic.recognise(path.parent)
    assert not robomimic.recognise(made) and aloha.recognise(made)
    assert not aloha.recognise(suite)
    for other in (tmp_path / "nothing", tmp_path / "text.txt"):
        assert not robomimic.recognise(other) and not aloha.recognise(other)
    (tmp_path / "droid").mkdir()
    with h5py.File(tmp_path / "droid" / "trajectory.h5", "w") as file:
        file["observation/robot_state/cartesian_position"] = np.zeros((3, 6))
        file["action/cartesian_position"] = np.zeros((3, 6))
    assert not robomimic.recognise(tmp_path / "droid")
    assert not aloha.recognise(tmp_path / "droid")


def test_a_truncated_file_is_one_lost_record(suite, tmp_path):
    folder = shutil.copytree(suite, tmp_path / "suite")
    broken = sorted(folder.iterdir())[1]
    broken.write_bytes(broken.read_bytes()[:5000])
    dataset = opened(folder)
    assert len(dataset.splits[0].shards) == 4
    bad = [raw for raw in records(dataset) if raw.error is not None]
    assert len(bad) == 1 and bad[0].missing == 1 and not bad[0].reached
    assert broken.name in str(bad[0].error) and "truncated" in str(bad[0].error)
    with pytest.raises(SourceError, match="truncated"):
        opened(broken)
    assert robomimic.recognise(broken)


def test_lengths_that_disagree_are_the_records_error(path):
    with h5py.File(path, "r+") as file:
        short = file["data/demo_1/obs/robot0_eef_pos"][:-1]
        del file["data/demo_1/obs/robot0_eef_pos"]
        file["data/demo_1/obs/robot0_eef_pos"] = short
        file["data/demo_2"].attrs["num_samples"] = 11
        del file["data/demo_3/obs"]
    found = records(opened(path))
    assert found[0].error is None
    assert "holds 7 rows for 8 steps" in str(found[1].error)
    assert found[1].error.key == "obs/robot0_eef_pos" and found[1].error.record == 1
    assert "declares 11 steps and holds 8" in str(found[2].error)
    assert "no group 'obs'" in str(found[3].error)
    assert [raw.length for raw in found] == [8, 8, 8, 8]


def test_terabytes_that_are_only_declared_are_never_believed(path):
    with h5py.File(path, "r+") as file:
        obs = file["data/demo_1/obs"]
        del obs["agentview_image"]
        obs.create_dataset(
            "agentview_image", (10**9, 84, 84, 3), "u1", chunks=(1, 84, 84, 3), compression="gzip"
        )
        big = file["data/demo_2"]
        del big["actions"]
        big.create_dataset("actions", (10**12, 7), "f8")
        big.attrs["num_samples"] = 10**12
        del file["data/demo_3/obs/agentview_image"]
        wide = (8, 200000, 20000, 3)
        file["data/demo_3/obs"].create_dataset(
            "agentview_image", wide, "u1", chunks=(1, 100000, 10000, 3), compression="gzip"
        )
    dataset = opened(path)
    found = records(dataset)
    assert "declares 1000000000 chunks of data and holds 0" in str(found[1].error)
    assert found[1].length == found[2].length == found[3].length == 8
    assert "declares 56000000000000 bytes and holds 0" in str(found[2].error)
    assert "chunks of 3000000000 bytes" in str(found[3].error)
    for raw in found:  # and comparing allocates nothing either
        assert sum(1 for _ in dataset.content(raw)) > 10


def test_links_that_lead_out_are_refused(path, tmp_path):
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["x"] = np.arange(3)
    with h5py.File(path, "r+") as file:
        file["data/demo_2/obs/more"] = h5py.ExternalLink("../secret.h5", "/x")
    with pytest.raises(SourceError) as caught:
        opened(path)
    text = str(caught.value)
    assert path.name in text and "data/demo_2/obs/more" in text and "../secret.h5" in text
    assert "\n" not in text and "not followed" in text


def test_data_in_other_files_is_not_read(path, tmp_path):
    outside = tmp_path / "outside.raw"
    outside.write_bytes(bytes(range(256)) * 1000)
    with h5py.File(path, "r+") as file:
        obs = file["data/demo_1/obs"]
        del obs["agentview_image"]
        obs.create_dataset(
            "agentview_image", (8, 90, 160, 3), "u1", external=[(str(outside), 0, 8 * 43200)]
        )
        layout = h5py.VirtualLayout((8, 90, 160, 3), "u1")
        layout[:] = h5py.VirtualSource(str(tmp_path / "v.h5"), "x", (8, 90, 160, 3))
        del file["data/demo_2/obs/agentview_image"]
        file["data/demo_2/obs"].create_virtual_dataset("agentview_image", layout)
    dataset = opened(path)
    found = records(dataset)
    assert "outside.raw" in str(found[1].error) and "v.h5" in str(found[2].error)
    assert found[1].error.key == "obs/agentview_image"
    with pytest.raises(SourceError, match="not followed"):
        dataset.frames(dataclass_without_error(found[1]), "agentview_image")
    assert sum(1 for _ in dataset.content(found[1])) > 10


def dataclass_without_error(raw):
    import dataclasses

    return dataclasses.replace(raw, error=None)


def test_loops_pickles_and_odd_attributes_do_no_harm(path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was loaded",))

    with h5py.File(path, "r+") as file:
        demo = file["data/demo_0"]
        demo["obs/loop"] = demo  # a group in itself
        file["again"] = file["data"]
        demo["obs/round"] = h5py.SoftLink("/data/demo_0/obs/round")
        demo.attrs["ep_meta"] = np.void(pickle.dumps(Trap()))
        demo.attrs["camera_info"] = "[" * 100_000
        file["data/demo_1"].attrs["ep_meta"] = json.dumps({"lang": ["pick", "up"]})
    dataset = opened(path)
    found = records(dataset)
    # A name that leads in circles is the record's error; the others are as they were.
    assert "round in circles" in str(found[0].error)
    assert dataset.episode(found[1]).language == "pick up"
    assert len(list(dataset.content(found[0]))) < 100
    assert len(list(dataset.shared_content(dataset.splits[0].shards[0]))) < 100
    with h5py.File(path, "r+") as file:
        del file["data/demo_0/obs/round"]
    dataset = opened(path)
    episode = dataset.episode(records(dataset)[0])
    assert episode.language == "" and episode.anchors[0].K is None


def test_a_flipped_byte_is_named_when_it_is_read(tmp_path):
    path = robomimic_create.create(tmp_path, corpus(), compression="gzip")
    with h5py.File(path) as file:
        chunks = file["data/demo_2/obs/agentview_image"].id
        info = chunks.get_chunk_info(0)
    data = bytearray(path.read_bytes())
    data[info.byte_offset + info.size // 2] ^= 0x10
    path.write_bytes(data)
    dataset = opened(path)
    found = records(dataset)
    with pytest.raises(SourceError) as caught:
        for view in dataset.episode(found[2]).anchors:
            view.frames[:]
    error = caught.value
    assert error.record == 2 and error.key == "obs/agentview_image"
    assert error.file == str(path) and "cannot be read" in str(error)
    assert dataset.episode(found[1]).anchors[0].frames[:].any()

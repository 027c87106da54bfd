"""Reading RLDS against tensorflow-datasets' own decoding, and everything that can be wrong."""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation
from wristaugment.readers import open_dataset
from wristaugment.readers.episode import Record
from wristaugment.readers.errors import SourceError
from wristaugment.readers.example import ExampleIndex
from wristaugment.readers.rlds import pose_matrix
from wristaugment.readers.tfrecord import frame, read_frames

FIRST, SECOND = "observation/exterior_image_1_left", "observation/exterior_image_2_left"


def rewrite(path, change):
    """Replace each record's Example by `change(index, example)` (None leaves it out)."""
    from tensorflow_datasets.proto import tf_example_pb2

    out = []
    for place in list(read_frames(path)):
        example = tf_example_pb2.Example.FromString(place.payload)
        change(place.index, example.features.feature)
        out.append(frame(example.SerializeToString()))
    path.write_bytes(b"".join(out))


def shards_of(dataset, split="train"):
    return next(s for s in dataset.splits if s.name == split).shards


def all_raw(dataset, split="train"):
    return [raw for shard in shards_of(dataset, split) for raw in dataset.records(shard)]


def test_episodes_are_as_tfds_decodes_them(droid_source, decode):
    dataset = open_dataset(droid_source, "droid")
    expected = decode(droid_source)
    for split in ("train", "val"):
        raws = all_raw(dataset, split)
        assert len(raws) == len(expected[split])
        for raw, row in zip(raws, expected[split], strict=True):
            steps = row["steps"]
            episode = dataset.episode(raw, wrist="observation/wrist_image_left")
            assert dataset.steps(raw) == episode.length == len(steps)
            for view in (*episode.anchors, episode.wrist):
                name = view.key.removeprefix("observation/")
                want = np.stack([step["observation"][name] for step in steps])
                assert view.frames.shape == want.shape and view.frames.dtype == np.uint8
                assert np.abs(view.frames.astype(int) - want).mean() < 2  # two JPEG decoders
            assert episode.language == steps[0]["language_instruction_2"].decode()
            grip = [step["observation"]["gripper_position"][0] for step in steps]
            np.testing.assert_allclose(episode.gripper, grip)


def test_records_know_their_place(droid_source):
    dataset = open_dataset(droid_source, "droid")
    places = [raw.record for raw in all_raw(dataset)]
    assert places == [Record("train", *at) for at in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1))]


def test_poses_follow_droids_encoding(droid_source, decode):
    dataset = open_dataset(droid_source, "droid")
    raw, row = all_raw(dataset)[0], decode(droid_source)["train"][0]
    episode = dataset.episode(raw, wrist="wrist_image_left")
    eef = np.stack([step["observation"]["cartesian_position"] for step in row["steps"]])
    np.testing.assert_allclose(episode.eef_pose[:, :3, 3], eef[:, :3], atol=1e-6)
    np.testing.assert_allclose(
        Rotation.from_matrix(episode.eef_pose[:, :3, :3]).as_euler("xyz"), eef[:, 3:], atol=1e-5
    )
    metadata = row["episode_metadata"]
    in_base = pose_matrix(metadata["extrinsics_exterior_cam_1"][None])[0]
    view = episode.anchors[0]
    np.testing.assert_allclose(view.pose @ in_base, np.eye(4), atol=1e-6)
    # The camera's own centre is at the origin of its own axes.
    centre = np.append(metadata["extrinsics_exterior_cam_1"][:3], 1)
    np.testing.assert_allclose((view.pose @ centre)[:3], 0, atol=1e-6)
    np.testing.assert_allclose(view.K, [[30, 0, 16], [0, 31, 12], [0, 0, 1]])
    assert episode.anchors[1].pose is None  # its extrinsics are zeros: unknown
    # The mount is rigid: the hand camera's pose at step 0 is the stored one.
    wrist = pose_matrix(metadata["extrinsics_wrist_cam"][None])[0]
    np.testing.assert_allclose(episode.eef_pose[0] @ episode.wrist_mount, wrist, atol=1e-6)
    np.testing.assert_allclose(episode.wrist.pose, episode.measured_wrist_pose())
    assert episode.wrist_size == (24, 32) and episode.wrist_K[0, 0] == 30


def test_euler_angles_are_extrinsic_xyz():
    roll, pitch, yaw = 0.3, -0.7, 1.9
    x, y, z = (Rotation.from_rotvec(axis) for axis in np.diag((roll, pitch, yaw)))
    got = pose_matrix(np.array([[1.0, 2, 3, roll, pitch, yaw]]))[0]
    np.testing.assert_allclose(got[:3, :3], (z * y * x).as_matrix(), atol=1e-12)
    np.testing.assert_allclose(got[:3, 3], (1, 2, 3))


def test_constant_cameras_are_dropped_with_a_reason(droid_source):
    dataset = open_dataset(droid_source, "droid")
    raws = all_raw(dataset)
    assert [view.key for view in dataset.episode(raws[0]).anchors] == [FIRST, SECOND]
    episode = dataset.episode(raws[1])
    assert [view.key for view in episode.anchors] == [FIRST]
    assert episode.dropped == {SECOND: "black from start to end"}


def test_a_camera_of_one_colour_or_of_empty_strings_is_dropped(droid_folder):
    buffer = io.BytesIO()
    Image.new("RGB", (32, 24), (90, 140, 30)).save(buffer, "JPEG")

    def change(index, feature):
        for key, blob in ((FIRST, buffer.getvalue()), (SECOND, b"")):
            values = feature[f"steps/{key}"].bytes_list.value
            values[:] = [blob] * len(values)

    rewrite(shards_of(open_dataset(droid_folder, "droid"))[0].path, change)
    dataset = open_dataset(droid_folder, "droid")
    episode = dataset.episode(all_raw(dataset)[0])
    assert episode.anchors == []
    assert "one colour" in episode.dropped[FIRST] and "empty" in episode.dropped[SECOND]


def test_a_still_camera_is_no_constant_camera(droid_folder):
    def change(index, feature):
        values = feature[f"steps/{FIRST}"].bytes_list.value
        values[:] = [values[0]] * len(values)

    path = shards_of(open_dataset(droid_folder, "droid"))[0].path
    rewrite(path, change)
    dataset = open_dataset(droid_folder, "droid")
    frames = dataset.episode(all_raw(dataset)[0]).anchors[0].frames
    assert len(frames) == 4 and (frames == frames[0]).all() and np.ptp(frames) > 10


def test_depth_is_in_metres_and_only_where_asked(tmp_path, rlds_maker, decode):
    tfds = pytest.importorskip("tensorflow_datasets")
    build, features, episode = rlds_maker
    folder = build(
        tmp_path,
        "droid",
        "1.0.1",
        features(tfds, depth=True),
        {"train": [episode(0, 3, depth=True)]},
        1,
    )
    dataset = open_dataset(folder, "droid")
    raw = all_raw(dataset)[0]
    assert dataset.episode(raw).anchors[0].depth is None
    first, second = dataset.episode(raw, depth=True).anchors
    want = np.stack(
        [s["observation"]["exterior_depth_1_left"] for s in decode(folder)["train"][0]["steps"]]
    )[..., 0]
    assert first.depth.dtype == np.float32 and first.depth.shape == (3, 24, 32)
    np.testing.assert_allclose(first.depth, want / 1000.0, atol=1e-6)
    assert second.depth is None


@pytest.mark.parametrize("where", ["root", "dataset", "version"])
def test_a_root_a_dataset_and_a_version_folder_mean_the_same(droid_folder, where):
    path = {"root": droid_folder.parents[1], "dataset": droid_folder.parent}.get(
        where, droid_folder
    )
    dataset = open_dataset(path, "droid")
    assert (dataset.name, dataset.version) == ("droid_101", "1.0.1")
    assert dataset.folder == droid_folder
    assert [(s.name, [f.records for f in s.shards]) for s in dataset.splits] == [
        ("train", [3, 2]),
        ("val", [2]),
    ]
    assert str(dataset.place) == "droid_101/1.0.1"


def test_the_newest_version_counts_and_the_folder_keeps_its_name(droid_folder):
    root = droid_folder.parents[1]
    shutil.copytree(droid_folder.parent, root / "droid")
    shutil.rmtree(droid_folder.parent)
    old = root / "droid" / "1.0.0"
    shutil.copytree(root / "droid" / "1.0.1", old)
    dataset = open_dataset(root, "droid")
    assert dataset.folder == root / "droid" / "1.0.1"
    assert str(dataset.place) == "droid/1.0.1"  # training code asks for `droid`


def test_datasets_pickle_for_other_processes(droid_source):
    dataset = pickle.loads(pickle.dumps(open_dataset(droid_source, "droid")))
    assert len(all_raw(dataset)) == 5


def test_an_unknown_folder_and_another_dataset_are_refused(droid_folder, tmp_path):
    with pytest.raises(SourceError, match="no such folder"):
        open_dataset(tmp_path / "none", "droid")
    with pytest.raises(
        SourceError, match=r"holds 'droid_101' 1\.0\.1, not 'bridge_dataset'.*droid"
    ):
        open_dataset(droid_folder, "bridge_dataset")
    with pytest.raises(SourceError, match=r"droid_101.*not 'kuka'.*bridge_dataset"):
        open_dataset(droid_folder.parents[1], "kuka")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"no dataset of a known format.*RLDS"):
        open_dataset(tmp_path / "empty", "droid")


def test_an_unprofiled_dataset_needs_anchor_keys(droid_folder):
    info = droid_folder / "dataset_info.json"
    info.write_text(info.read_text().replace("droid_101", "my_set"))
    for path in droid_folder.glob("droid_101-*"):
        path.rename(path.with_name(path.name.replace("droid_101", "my_set")))
    with pytest.raises(SourceError, match="--anchor-keys") as caught:
        open_dataset(droid_folder, "my_set")
    assert FIRST in str(caught.value) and "droid" in str(caught.value)
    for spelling in (FIRST, f"steps/{FIRST}", FIRST.removeprefix("observation/")):
        dataset = open_dataset(droid_folder, "my_set", anchor_keys=[spelling])
        assert [camera.key for camera in dataset.profile.anchors] == [FIRST]
    episode = dataset.episode(all_raw(dataset)[0])
    assert [view.key for view in episode.anchors] == [FIRST]
    assert dataset.profile.wrist.key == "observation/wrist_image_left"


def test_anchor_keys_choose_among_a_profiles_cameras(droid_source):
    dataset = open_dataset(droid_source, "droid", anchor_keys=["exterior_image_2_left"])
    assert [view.key for view in dataset.episode(all_raw(dataset)[0]).anchors] == [SECOND]


def test_a_missing_camera_key_lists_those_there_are(droid_source, droid_folder):
    with pytest.raises(SourceError) as caught:
        open_dataset(droid_source, "droid", anchor_keys=["image_7"])
    text = str(caught.value)
    assert "features.json" in text and "'image_7'" in text and FIRST in text
    with pytest.raises(SourceError, match="no stream of RGB pictures"):
        open_dataset(droid_source, "droid", anchor_keys=["reward"])
    path = droid_folder / "features.json"
    path.write_text(path.read_text().replace("exterior_image_2_left", "side"))
    with pytest.raises(SourceError, match=r"exterior_image_2_left.*observation/side"):
        open_dataset(droid_folder, "droid")
    dataset = open_dataset(droid_source, "droid")
    with pytest.raises(SourceError, match=r"'hand'.*no such wrist"):
        dataset.episode(all_raw(dataset)[0], wrist="hand")


def test_a_flipped_byte_spoils_one_record_and_the_rest_is_read(droid_folder):
    dataset = open_dataset(droid_folder, "droid")
    shard = shards_of(dataset)[0]
    data = bytearray(shard.path.read_bytes())
    data[len(data) // 2] ^= 1
    shard.path.write_bytes(bytes(data))
    raws = list(dataset.records(shard))
    assert len(raws) == 3
    bad = [raw for raw in raws if raw.payload is None]
    assert len(bad) == 1 and bad[0].missing == 1
    error = bad[0].error
    assert (error.file, error.record) == (str(shard.path), bad[0].record.index) and error.todo
    with pytest.raises(SourceError, match="crc"):
        dataset.episode(bad[0])
    assert all(dataset.episode(raw).length for raw in raws if raw.payload)


def test_a_truncated_shard_says_how_many_records_are_missing(droid_folder):
    dataset = open_dataset(droid_folder, "droid")
    shard = shards_of(dataset)[0]
    sizes = [len(place.payload) + 16 for place in read_frames(shard.path)]
    with open(shard.path, "r+b") as file:
        file.truncate(sizes[0] + 40)
    raws = list(dataset.records(shard))
    assert [raw.payload is None for raw in raws] == [False, True]
    assert raws[1].missing == 2 and "2 of the 3 declared records" in str(raws[1].error)
    with open(shard.path, "r+b") as file:
        file.truncate(sizes[0])  # between two records: every crc is right
    raws = list(dataset.records(shard))
    assert raws[1].missing == 2 and "the file ends early" in str(raws[1].error)


def test_a_missing_or_empty_shard_is_one_error(droid_folder):
    dataset = open_dataset(droid_folder, "droid")
    shard = shards_of(dataset)[0]
    shard.path.write_bytes(b"")
    (raw,) = dataset.records(shard)
    assert raw.missing == 3 and raw.error.record == 0
    shard.path.unlink()
    (raw,) = dataset.records(shard)
    assert raw.missing == 3 and "cannot be opened" in str(raw.error)


def test_records_beyond_the_declared_are_not_passed_on(droid_folder):
    dataset = open_dataset(droid_folder, "droid")
    shard = shards_of(dataset)[1]
    with open(shard.path, "ab") as file:
        file.write(frame(b"more"))
    raws = list(dataset.records(shard))
    assert [raw.missing for raw in raws] == [0, 0, 0]
    assert raws[-1].payload is None and "2 records" in str(raws[-1].error)


def drop_key(index, feature):
    del feature[f"steps/{FIRST}"]


def drop_picture(index, feature):
    del feature[f"steps/{FIRST}"].bytes_list.value[-1]


def spoil_picture(index, feature):
    values = feature[f"steps/{FIRST}"].bytes_list.value
    values[1] = values[1][: len(values[1]) // 2]


def no_picture(index, feature):
    feature[f"steps/{FIRST}"].bytes_list.value[1] = b"RIFF....WEBP"


def other_size(index, feature):
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (1, 200, 3)).save(buffer, "PNG")
    feature[f"steps/{FIRST}"].bytes_list.value[2] = buffer.getvalue()


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (drop_key, "lacks this key"),
        (drop_picture, "holds 3 pictures for 4 steps"),
        (spoil_picture, "step 1: the picture cannot be decoded"),
        (no_picture, "step 1: the picture cannot be decoded (neither JPEG nor PNG)"),
        (other_size, "step 2 is 30x40, not 24x32"),
    ],
)
def test_bad_pictures_name_file_record_key_and_step(droid_folder, change, found):
    dataset = open_dataset(droid_folder, "droid")
    shard = shards_of(dataset)[0]
    rewrite(shard.path, change)
    raw = next(iter(dataset.records(shard)))
    with pytest.raises(SourceError) as caught:
        dataset.episode(raw)
    error = caught.value
    assert error.file == str(shard.path) and error.record == 0
    assert error.key.endswith(FIRST) and found in str(error) and error.todo


def test_a_record_that_is_no_example_is_an_error(droid_folder):
    dataset = open_dataset(droid_folder, "droid")
    shard = shards_of(dataset)[0]
    shard.path.write_bytes(b"".join(frame(data) for data in (b"\x0a\xff\x01", b"\x07hello", b"")))
    for raw, found in zip(
        dataset.records(shard), ("breaks off", "wire type", "lacks"), strict=True
    ):
        with pytest.raises(SourceError, match=found):
            dataset.episode(raw)


def test_numbers_that_are_not_finite_mean_unknown(droid_folder):
    def change(index, feature):
        feature["episode_metadata/extrinsics_exterior_cam_1"].float_list.value[3] = float("nan")
        feature["steps/observation/cartesian_position"].float_list.value[0] = float("inf")

    dataset = open_dataset(droid_folder, "droid")
    rewrite(shards_of(dataset)[0].path, change)
    episode = dataset.episode(all_raw(dataset)[0])
    assert episode.anchors[0].pose is None and episode.eef_pose is None
    assert episode.wrist_mount is None and episode.anchors[0].K is not None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{", "is not a dataset_info"),
        ("[]", "is not a dataset_info"),
        ('{"name": "droid_101", "version": "1.0.1", "splits": []}', "declares no records"),
        (
            '{"name": "droid_101", "version": "1.0.1", "fileFormat": "parquet"}',
            "its records are parquet files",
        ),
    ],
)
def test_a_damaged_dataset_info_is_named(droid_folder, text, found):
    (droid_folder / "dataset_info.json").write_text(text)
    with pytest.raises(SourceError, match=found) as caught:
        open_dataset(droid_folder, "droid")
    assert caught.value.file.endswith("dataset_info.json")


def test_only_what_is_asked_for_is_parsed(droid_source, monkeypatch):
    parsed = []
    original = ExampleIndex.feature
    monkeypatch.setattr(
        ExampleIndex, "feature", lambda self, key: parsed.append(key) or original(self, key)
    )
    dataset = open_dataset(droid_source, "droid")
    raw = all_raw(dataset)[0]
    dataset.steps(raw)
    assert parsed == ["steps/is_first"]
    dataset.episode(raw)
    assert not {"steps/action", "steps/observation/wrist_image_left"} & set(parsed)


def test_reading_loads_neither_tensorflow_nor_torch(droid_source):
    code = (
        "import sys\n"
        "from wristaugment.readers import open_dataset\n"
        f"d = open_dataset({str(droid_source)!r}, 'droid')\n"
        "[d.episode(r) for s in d.splits for f in s.shards for r in d.records(f)]\n"
        "print([m for m in ('tensorflow', 'torch', 'ray') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.strip() == "[]"


def test_bridge_states_become_poses_and_closing_grippers(tmp_path, rlds_maker):
    tfds = pytest.importorskip("tensorflow_datasets")
    build, _, _ = rlds_maker
    image = lambda: tfds.features.Image(shape=(8, 8, 3), encoding_format="jpeg")
    state = tfds.features.Tensor(shape=(7,), dtype=np.float32)
    observation = {f"image_{i}": image() for i in range(4)} | {"state": state}
    features = tfds.features.FeaturesDict(
        {
            "steps": tfds.features.Dataset(
                {
                    "is_first": np.bool_,
                    "language_instruction": tfds.features.Text(),
                    "observation": observation,
                }
            )
        }
    )
    rng = np.random.default_rng(0)
    picture = lambda: rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
    steps = [
        {
            "is_first": i == 0,
            "language_instruction": "put it there",
            "observation": {f"image_{k}": picture() for k in range(3)}
            | {
                "image_3": np.zeros((8, 8, 3), np.uint8),
                "state": np.array([0.1, 0.2, 0.3, 0, 0, 0.5, 1 - i / 2], np.float32),
            },
        }
        for i in range(3)
    ]
    folder = build(tmp_path, "bridge_dataset", "1.0.0", features, {"train": [{"steps": steps}]}, 1)
    dataset = open_dataset(folder, "bridge_dataset")
    episode = dataset.episode(all_raw(dataset)[0])
    assert [view.key for view in episode.anchors] == [f"observation/image_{i}" for i in range(3)]
    assert list(episode.dropped) == ["observation/image_3"]
    np.testing.assert_allclose(episode.gripper, [0, 0.5, 1])  # stored as 1 = open
    np.testing.assert_allclose(episode.eef_pose[0, :3, 3], (0.1, 0.2, 0.3), atol=1e-6)
    assert episode.wrist_mount is None and episode.anchors[0].K is None
    assert json.loads(dataset.info.text)["name"] == "bridge_dataset"

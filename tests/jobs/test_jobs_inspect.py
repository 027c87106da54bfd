"""`inspect`: what it finds, in words and as JSON."""

import argparse
import json
from pathlib import Path

import pytest
from wristaugment.jobs import inspect as command
from wristaugment.readers.errors import SourceError
from wristaugment.readers.tfrecord import read_frames


def call(*words):
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    return command.run(parser.parse_args(["inspect", *map(str, words)]))


@pytest.fixture
def findings(tmp_path, capsys):
    def run(*words):
        assert call(*words, "--json", tmp_path / "found.json") == 0
        return json.loads((tmp_path / "found.json").read_text()), capsys.readouterr().out

    return run


def test_a_droid_dataset(droid_source, findings):
    report, text = findings(droid_source.parents[1])
    assert (report["name"], report["version"], report["profile"]) == ("droid_101", "1.0.1", "droid")
    assert report["splits"]["train"] == {"shards": 2, "episodes": 5, "missing_shards": []}
    assert report["steps"] == [4, 6, 3]
    cameras = {camera["key"]: camera for camera in report["cameras"]}
    assert len(cameras) == 3
    wrist = cameras["observation/wrist_image_left"]
    assert (wrist["role"], wrist["height"], wrist["width"]) == ("wrist", 24, 32)
    assert all(camera["picture"] and camera["encoding"] == "jpeg" for camera in cameras.values())
    assert report["anchors"] == [f"observation/exterior_image_{i}_left" for i in (1, 2)]
    assert report["calibration"] == {
        "observation/exterior_image_1_left": {"extrinsics": True, "intrinsics": True},
        "observation/exterior_image_2_left": {"extrinsics": False, "intrinsics": True},
        "observation/wrist_image_left": {"extrinsics": True, "intrinsics": True},
    }
    assert report["proprioception"]["eef"] == "observation/cartesian_position"
    # One anchor is not calibrated, and then `run` takes the wrist head's pose.
    assert report["pose"] == "head" and report["ready"] and report["missing"] == []
    assert report["geometry"] == "predicted"
    assert "pose head: the anchors are not calibrated" in text
    assert any("--pose rigid" in line for line in report["better"])
    assert "5 episodes" in text and "24x32x3 jpeg" in text
    assert "would make observation/wrist_rgb" in text


def test_a_sample_calibrated_throughout_promises_the_measured_pose(findings):
    sample = Path(__file__).parents[2] / "sample"
    report, text = findings(sample)
    assert report["pose"] == "measured" and report["geometry"] == "predicted"
    assert report["better"] == [] and "geometry predicted: not every anchor has depth" in text


def blacken(folder, key):
    """Make one camera of every episode black."""
    import io

    from PIL import Image
    from tensorflow_datasets.proto import tf_example_pb2
    from wristaugment.readers.tfrecord import frame

    buffer = io.BytesIO()
    Image.new("RGB", (32, 24)).save(buffer, "JPEG")
    for path in folder.glob("*.tfrecord*"):
        out = []
        for place in list(read_frames(path)):
            example = tf_example_pb2.Example.FromString(place.payload)
            values = example.features.feature[f"steps/{key}"].bytes_list.value
            values[:] = [buffer.getvalue()] * len(values)
            out.append(frame(example.SerializeToString()))
        path.write_bytes(b"".join(out))


def test_a_black_camera_is_no_anchor(droid_folder, findings):
    blacken(droid_folder, "observation/exterior_image_1_left")
    report, text = findings(droid_folder)
    assert report["anchors"] == ["observation/exterior_image_2_left"]
    assert "black from start to end" in text
    assert report["pose"] == "head"  # the one camera left has no known pose
    blacken(droid_folder, "observation/exterior_image_2_left")
    report, text = findings(droid_folder)
    assert not report["ready"] and "an anchor that carries a picture" in text
    assert "cannot be made yet" in text


def test_an_unknown_dataset_lists_candidates(droid_folder, findings):
    info = droid_folder / "dataset_info.json"
    info.write_text(info.read_text().replace("droid_101", "my_set"))
    for path in droid_folder.glob("droid_101-*"):
        path.rename(path.with_name(path.name.replace("droid_101", "my_set")))
    folder = droid_folder.rename(droid_folder.parents[1] / "1.0.1")
    report, text = findings(folder)
    assert report["profile"] is None and not report["ready"]
    assert "--anchor-keys" in text and "observation/exterior_image_2_left" in text
    assert {camera["role"] for camera in report["cameras"]} == {"candidate"}
    report, _ = findings(folder, "--anchor-keys", "exterior_image_1_left,exterior_image_2_left")
    assert report["ready"] and len(report["anchors"]) == 2
    assert report["wrist"] == "observation/wrist_image_left"
    report, _ = findings(folder, "--dataset", "my_set")
    assert not report["ready"]


def test_damage_and_missing_shards_are_listed(droid_folder, findings):
    first, second = sorted(droid_folder.glob("*train*"))
    data = bytearray(first.read_bytes())
    data[50] ^= 1
    first.write_bytes(bytes(data))
    second.unlink()
    report, text = findings(droid_folder)
    assert report["splits"]["train"]["missing_shards"] == [second.name]
    assert report["looked_into"] == 3
    assert any("record 0" in line and "crc" in line for line in report["damage"])
    assert "missing: 1 files of train" in text and not report["ready"]


def test_no_dataset_is_an_error(tmp_path):
    with pytest.raises(SourceError, match="no dataset of a known format"):
        call(tmp_path)
    with pytest.raises(SourceError, match="no such folder"):
        call(tmp_path / "none")


def test_json_on_the_terminal_is_only_json(droid_source, capsys):
    assert call(droid_source, "--json", "-") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["name"] == "droid_101"
    assert "cameras:" in captured.err

"""The augmented copy as training code reads it: tfds, dlimp's way, octo's way, tf.io alone.

dlimp and octo open a builder of the folder, leave `steps` undecoded, and handle the pictures as
strings; octo takes an empty string for a camera that is not there.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from copying import write_copy
from wristaugment.readers import open_dataset
from wristaugment.readers.episode import WristStream
from wristaugment.readers.errors import SourceError
from wristaugment.writers.rlds import RldsCopy

SIZE = (12, 16)
KEY, VALID = "wrist_rgb", "wrist_valid"


@pytest.fixture(scope="module")
def tf():
    module = pytest.importorskip("tensorflow")
    module.config.set_visible_devices([], "GPU")
    return module


@pytest.fixture(scope="module")
def tfds(tf):
    return pytest.importorskip("tensorflow_datasets")


def value(raw, step: int) -> int:
    return 30 + 40 * raw.record.index + 8 * step


@pytest.fixture(scope="module")
def copied(droid_source, tmp_path_factory, tfds):
    """A copy of `droid_source`; its first record could not be made, one step of the others too."""
    dataset = open_dataset(droid_source, "droid")
    out = tmp_path_factory.mktemp("copied")
    copy = RldsCopy(dataset, out, size=SIZE, description="synthetic")

    def make(raw):
        if raw.record.index == 0:
            return SourceError("no camera carries a picture")
        steps = dataset.steps(raw)
        frames = np.stack(
            [np.full((*SIZE, 3), value(raw, step), np.uint8) for step in range(steps)]
        )
        valid = np.ones(steps, bool)
        frames[1], valid[1] = 0, False
        return WristStream(frames, valid, np.ones(steps, np.float32))

    write_copy(copy, make)
    return copy.folder


def expected(index: int, step: int) -> int:
    """The colour of a step of the index-th record of its shard, 0 where it is not valid."""
    return 0 if index == 0 or step == 1 else 30 + 40 * index + 8 * step


def trajectories(tfds, tf, folder, split="train"):
    """Episodes with their steps stacked and nothing decoded, as dlimp's from_rlds opens them."""
    builder = tfds.builder_from_directory(builder_dir=str(folder))
    rows = builder.as_dataset(
        split=split,
        shuffle_files=False,
        decoders={"steps": tfds.decode.SkipDecoding()},
        read_config=tfds.ReadConfig(skip_prefetch=True, interleave_cycle_length=1),
    )

    def flat(number, episode):
        steps = episode.pop("steps")
        length = tf.shape(tf.nest.flatten(steps)[0])[0]
        about = tf.nest.map_structure(lambda entry: tf.repeat(entry, length), episode)
        return {**steps, "traj_metadata": about, "_index": tf.repeat(number, length)}

    return rows.enumerate().map(flat)


def test_dlimp_style_trajectories_hold_the_new_stream(tf, tfds, copied, droid_source):
    got = list(trajectories(tfds, tf, copied))
    want = list(trajectories(tfds, tf, droid_source))
    assert len(got) == len(want) == 5
    for number, (row, old) in enumerate(zip(got, want, strict=True)):
        index = number % 3
        pictures = row["observation"].pop(KEY)
        valid = row["observation"].pop(VALID)
        assert row["observation"].pop("wrist_confidence").dtype == tf.float32
        length = len(old["is_first"])
        assert pictures.dtype == tf.string and pictures.shape == (length,)
        for step, blob in enumerate(pictures.numpy()):
            frame = tf.io.decode_image(blob, expand_animations=False).numpy()
            assert frame.shape == (*SIZE, 3) and frame.dtype == np.uint8
            assert abs(float(frame.mean()) - expected(index, step)) <= 2
            assert bool(valid[step]) is (expected(index, step) > 0)
        # Everything else is what it was, the other pictures to the byte.
        tf.nest.assert_same_structure(row, old)
        for a, b in zip(tf.nest.flatten(row), tf.nest.flatten(old), strict=True):
            assert a.dtype == b.dtype and bool(tf.reduce_all(a == b))


def test_octo_style_frames_need_no_padding(tf, tfds, copied):
    """Decoded frame by frame inside tf.data; "" would mean that there is no camera."""

    def decode(step):
        blob = step["observation"][KEY]
        picture = tf.cond(
            tf.strings.length(blob) == 0,
            lambda: tf.zeros((*SIZE, 3), tf.uint8),
            lambda: tf.io.decode_image(blob, channels=3, expand_animations=False),
        )
        picture = tf.ensure_shape(picture, (None, None, 3))
        small = tf.image.resize(picture, (8, 8), method="lanczos3", antialias=True)
        small = tf.cast(tf.clip_by_value(tf.round(small), 0, 255), tf.uint8)
        return {"image": small, "there": tf.strings.length(blob) > 0, "step": step["_frame"]}

    def frames(trajectory):
        length = tf.shape(trajectory["is_first"])[0]
        chosen = {
            "observation": {KEY: trajectory["observation"][KEY]},
            "_frame": tf.range(length),
        }
        return tf.data.Dataset.from_tensor_slices(chosen).map(decode).batch(64)

    batches = list(trajectories(tfds, tf, copied).flat_map(frames))
    assert [len(batch["step"]) for batch in batches] == [4, 6, 3, 5, 4]
    for number, batch in enumerate(batches):
        assert bool(tf.reduce_all(batch["there"]))
        for step, picture in enumerate(batch["image"].numpy()):
            assert abs(float(picture.mean()) - expected(number % 3, step)) <= 3


def test_a_parser_that_knows_only_the_features_reads_a_record(tf, tfds, copied):
    """tf.io.parse_single_example with a spec of one's own, as loaders without tfds do."""
    spec = {
        f"steps/observation/{KEY}": tf.io.FixedLenSequenceFeature(
            (), tf.string, allow_missing=True
        ),
        f"steps/observation/{VALID}": tf.io.FixedLenSequenceFeature(
            (), tf.int64, allow_missing=True
        ),
        "steps/observation/wrist_confidence": tf.io.FixedLenSequenceFeature(
            (), tf.float32, allow_missing=True
        ),
        "steps/observation/cartesian_position": tf.io.FixedLenSequenceFeature(
            (6,), tf.float32, allow_missing=True
        ),
        "steps/is_first": tf.io.FixedLenSequenceFeature((), tf.int64, allow_missing=True),
    }
    paths = sorted(str(path) for path in copied.glob("*-train.tfrecord*"))
    lengths = []
    for serialized in tf.data.TFRecordDataset(paths):
        parsed = tf.io.parse_single_example(serialized, spec)
        sizes = {len(values) for values in parsed.values()}
        assert len(sizes) == 1, "one value a step"
        lengths += sizes
        assert all(
            blob.startswith(b"\xff\xd8") for blob in parsed[f"steps/observation/{KEY}"].numpy()
        )
    assert lengths == [4, 6, 3, 5, 4]


def test_slices_and_shuffles_of_tfds_work_on_the_copy(tf, tfds, copied):
    """What a trainer's configuration does: split slices, shuffled files, a named data_dir."""
    loaded = tfds.load("droid_101", data_dir=str(copied.parent.parent), split="train[:60%]")
    assert len(list(loaded)) == 3
    builder = tfds.builder("droid_101", data_dir=str(copied.parent.parent))
    observation = builder.info.features["steps"].feature["observation"]
    assert observation[KEY].shape == (*SIZE, 3) and observation[KEY].np_dtype == np.uint8
    assert builder.info.splits["train"].num_examples == 5
    shuffled = builder.as_dataset(split="train", shuffle_files=True)
    rows = [row["episode_metadata"]["file_path"].numpy() for row in shuffled]
    assert sorted(rows) == [f"/data/success/{n}.h5".encode() for n in range(5)]
    described = json.loads((copied / "features.json").read_text())
    assert "synthetic" in json.dumps(described)


def test_the_rlds_package_reads_the_copy(copied, droid_source):
    """Its own transformations, in an environment of its own (tests/peers/rlds018.txt)."""
    root = Path(__file__).parents[2]
    own = root / ".venv-rlds018" / "bin" / "python"
    python = Path(os.environ.get("WRISTAUGMENT_PEER_RLDS018") or own)
    if not python.exists():
        pytest.skip(f"no environment with rlds 0.1.8 (tests/peers/rlds018.txt) at {own.parents[1]}")

    def read(folder, key):
        script = [str(python), "tests/peers/rlds018.py", str(folder), "train", key]
        quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
        quiet.pop("PYTHONPATH", None)
        run = subprocess.run(script, cwd=root, env=quiet, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr[-2000:]
        return json.loads(run.stdout.splitlines()[-1])

    got = read(copied, KEY)
    assert got["firsts"] == [1] * 5
    for number, row in enumerate(got["episodes"]):
        due = [expected(number % 3, step) for step in range(row["steps"])]
        assert row["shape"] == [len(due), *SIZE, 3] and row["dtype"] == "uint8"
        assert row["pairs"] == [[2, *SIZE, 3]]
        np.testing.assert_allclose(row["means"], due, atol=2)
        assert row["valid"] == [colour > 0 for colour in due]
    # Everything else that was observed, the other cameras too, is the source's.
    kept = [row["others"] for row in got["episodes"]]
    assert len(set(kept)) == 5
    assert kept == [row["others"] for row in read(droid_source, "")["episodes"]]

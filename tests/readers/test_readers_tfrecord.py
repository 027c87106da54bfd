"""TFRecord frames against TensorFlow's own writer, and damage of every kind."""

import struct
import tracemalloc

import pytest
from wristaugment.readers.errors import SourceError
from wristaugment.readers.tfrecord import OVERHEAD, frame, header, read_frames

PAYLOADS = [b"first" * 50, b"", b"third" * 80]


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "a.tfrecord"
    path.write_bytes(b"".join(map(frame, PAYLOADS)))
    return path


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(bytes(data))


def test_frames_are_those_of_tensorflow(tmp_path, shard):
    tf = pytest.importorskip("tensorflow")
    with tf.io.TFRecordWriter(str(tmp_path / "b.tfrecord")) as writer:
        for payload in PAYLOADS:
            writer.write(payload)
    assert (tmp_path / "b.tfrecord").read_bytes() == shard.read_bytes()
    assert [f.payload for f in read_frames(tmp_path / "b.tfrecord")] == PAYLOADS


def test_a_flipped_payload_byte_spoils_one_record(shard):
    flip(shard, 12 + 17)
    frames = list(read_frames(shard))
    assert [f.payload for f in frames] == [None, *PAYLOADS[1:]]
    error = frames[0].error
    assert (error.file, error.record) == (str(shard), 0)
    assert "crc" in str(error) and error.todo
    assert not frames[0].last


def test_a_flipped_length_ends_the_walk(shard):
    flip(shard, OVERHEAD + len(PAYLOADS[0]) + 2)  # in the length of record 1
    frames = list(read_frames(shard))
    assert [f.payload for f in frames] == [PAYLOADS[0], None]
    assert frames[1].last and frames[1].error.record == 1


@pytest.mark.parametrize("cut", [1, 5, 100, 402, 410])
def test_a_file_that_ends_early_ends_the_walk(shard, cut):
    shard.write_bytes(shard.read_bytes()[:-cut])
    frames = list(read_frames(shard))
    assert [f.payload for f in frames] == [*PAYLOADS[:2], None]
    assert frames[-1].last and "byte" in str(frames[-1].error)


def test_a_length_of_terabytes_allocates_nothing(tmp_path):
    path = tmp_path / "a.tfrecord"
    path.write_bytes(header(1 << 42) + b"x" * 1000)
    tracemalloc.start()
    frames = list(read_frames(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert frames[0].last and str(1 << 42) in str(frames[0].error)
    assert peak < 4 << 20


def test_the_largest_length_is_no_overflow(tmp_path):
    path = tmp_path / "a.tfrecord"
    path.write_bytes(header((1 << 64) - 1) + struct.pack("<I", 0))
    assert next(read_frames(path)).last


def test_a_file_that_cannot_be_opened_says_so(tmp_path):
    with pytest.raises(SourceError, match=r"none\.tfrecord: cannot be opened"):
        next(read_frames(tmp_path / "none.tfrecord"))


def test_an_empty_file_has_no_records(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    assert list(read_frames(tmp_path / "a")) == []

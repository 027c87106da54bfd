"""array_record shards: read as TFRecord ones are, damage named, and nothing believed blindly."""

import os

import pytest
from wristaugment.readers.array_record_file import LIMIT, read_frames, writer_options
from wristaugment.readers.errors import SourceError

array_record = pytest.importorskip("array_record.python.array_record_module")
RECORDS = [
    os.urandom(1) * 50 + bytes([n]) * (2000 + 9000 * n) + os.urandom(3000) for n in range(12)
]


def write(path, records=RECORDS, options="group_size:1"):
    writer = array_record.ArrayRecordWriter(str(path), options)
    for record in records:
        writer.write(record)
    writer.close()
    return path


@pytest.mark.parametrize("options", ["group_size:1", "group_size:5,uncompressed", "group_size:4"])
def test_records_come_in_order(tmp_path, options):
    path = write(tmp_path / "a", options=options)
    frames = list(read_frames(path))
    assert [frame.payload for frame in frames] == RECORDS
    assert [frame.index for frame in frames] == list(range(len(RECORDS)))
    assert not any(frame.error or frame.last for frame in frames)
    assert writer_options(path).startswith(options.split(",")[0])


def test_a_flipped_byte_spoils_one_record(tmp_path):
    path = write(tmp_path / "a")
    data = bytearray(path.read_bytes())
    data[data.index(RECORDS[4][-3000:]) + 100] ^= 1
    path.write_bytes(data)
    frames = list(read_frames(path))
    assert [frame.index for frame in frames if frame.payload is None] == [4]
    assert [f.payload for f in frames if f.payload] == RECORDS[:4] + RECORDS[5:]
    text = str(frames[4].error)
    assert text == (
        f"{path}, record 4: the record cannot be read (chunk data hash mismatch); "
        "fetch this shard again"
    )


@pytest.mark.parametrize("keep", [0, 1000, 70_000, -1])
def test_a_file_that_ends_early_is_named(tmp_path, keep):
    path = write(tmp_path / "a")
    path.write_bytes(path.read_bytes()[:keep])
    (frame,) = read_frames(path)
    assert frame.last and frame.payload is None
    assert "cannot be read as an array_record file" in str(frame.error)
    assert str(tmp_path) not in frame.error.found  # what is found must not depend on the place


def test_what_is_no_file_is_refused_at_once(tmp_path):
    with pytest.raises(SourceError, match="cannot be opened"):
        list(read_frames(tmp_path / "none"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match="is no regular file"):
        list(read_frames(tmp_path / "pipe"))


def test_a_chunk_that_declares_terabytes_is_refused(tmp_path):
    path = write(tmp_path / "a", [bytes(1 << 20)])
    data = bytearray(path.read_bytes())
    place = data.index((1 << 20).to_bytes(8, "little"))  # the first chunk's size when unpacked
    data[place : place + 8] = (5 << 40).to_bytes(8, "little")
    path.write_bytes(data)
    (frame,) = read_frames(path)
    assert frame.last and f"declares {5 << 40} bytes, more than" in frame.error.found
    data[place : place + 8] = (LIMIT + 1).to_bytes(8, "little")
    path.write_bytes(data)
    assert next(read_frames(path)).last
    data[place - 7 : place] = (1 << 50).to_bytes(7, "little")  # its number of records
    data[place : place + 8] = (1 << 20).to_bytes(8, "little")
    path.write_bytes(data)
    assert f"declares {1 << 50} records" in next(read_frames(path)).error.found


def test_chunks_behind_a_damaged_header_are_still_looked_at(tmp_path):
    path = write(tmp_path / "a", [*RECORDS, os.urandom(1 << 17), bytes(1 << 20)])
    data = bytearray(path.read_bytes())
    data[64:104] = bytes(40)  # the first record's header is gone
    place = data.index((1 << 20).to_bytes(8, "little"))
    data[place : place + 8] = (5 << 40).to_bytes(8, "little")
    path.write_bytes(data)
    (frame,) = read_frames(path)
    assert f"declares {5 << 40} bytes" in frame.error.found

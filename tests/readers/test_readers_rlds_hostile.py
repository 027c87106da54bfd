"""RLDS datasets made to do harm: each is one clear refusal, or harmless."""

import io
import json
import os
import struct
import zlib

import pytest
from copying import write_copy
from PIL import Image
from wristaugment.readers import open_dataset
from wristaugment.readers.errors import SourceError
from wristaugment.readers.example import ExampleIndex, varint
from wristaugment.readers.features import Features
from wristaugment.readers.tfds_folder import read_info
from wristaugment.readers.tfrecord import frame, read_frames
from wristaugment.writers.rlds import RldsCopy
from wristaugment.writers.splice import addition

CAMERA = "steps/observation/exterior_image_1_left"


def edit(folder, change) -> None:
    path = folder / "dataset_info.json"
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def first_shard(folder):
    return min(folder.glob("*-train.tfrecord*"))


def first_raw(folder):
    dataset = open_dataset(folder, "droid")
    return dataset, next(iter(dataset.records(dataset.splits[0].shards[0])))


@pytest.mark.parametrize(
    "template",
    [
        "../{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "/etc/passwd",
        "sub/{SHARD_X_OF_Y}",
        "..",
        "{SHARD_X_OF_Y}\0",
        7,
        "features.json",
        "one-name-for-all",
    ],
)
def test_shard_names_that_lead_elsewhere_are_refused(droid_folder, template):
    edit(droid_folder, lambda tree: tree["splits"][0].update(filepathTemplate=template))
    with pytest.raises(SourceError, match=r"key 'filepathTemplate'|cannot be opened") as caught:
        dataset = open_dataset(droid_folder, "droid")
        # A number is no template: it names files that are not there.
        raise next(iter(dataset.records(dataset.splits[0].shards[0]))).error
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["name", "version", "configName"])
@pytest.mark.parametrize("value", ["../../up", "/root", "a/b", "..", "x" * 300])
def test_a_copy_cannot_be_led_out_of_its_folder(droid_folder, key, value):
    edit(droid_folder, lambda tree: tree.update({key: value}))
    with pytest.raises(SourceError, match=f"key '{key}': .* is not the name of a file or folder"):
        read_info(droid_folder)


def test_a_split_of_a_path_is_refused(droid_folder):
    edit(droid_folder, lambda tree: tree["splits"][0].update(name="../train"))
    with pytest.raises(SourceError, match=r"key 'splits': '\.\./train' is not the name"):
        read_info(droid_folder)


@pytest.mark.parametrize("lengths", [["1" + "0" * 15, "2"], ["-3", "2"], ["9" * 400, "1"]])
def test_absurd_numbers_of_records_are_refused(droid_folder, lengths):
    edit(droid_folder, lambda tree: tree["splits"][0].update(shardLengths=lengths))
    with pytest.raises(SourceError, match="key 'shardLengths': declares shards of"):
        open_dataset(droid_folder, "droid")


def test_a_large_number_of_declared_records_costs_nothing(droid_folder):
    edit(droid_folder, lambda tree: tree["splits"][0].update(shardLengths=[str(10**11), "2"]))
    dataset = open_dataset(droid_folder, "droid")
    raws = list(dataset.records(dataset.splits[0].shards[0]))
    assert len(raws) == 4 and raws[-1].missing == 10**11 - 3


def test_a_record_that_declares_terabytes_is_named(droid_folder):
    path = first_shard(droid_folder)
    payload = next(read_frames(path)).payload
    lie = b"\x0a" + varint(5 << 40) + payload[10:200]  # Features of 5 TiB
    entry = b"\x0a" + varint(40) + b"\x0a" + varint(7 << 40) + b"x" * 38  # a key of 7 TiB
    long = b"\x0a" + b"\xff" * 12  # a length that never ends
    for payload in (lie, entry, long):
        path.write_bytes(frame(payload))
        dataset, raw = first_raw(droid_folder)
        with pytest.raises(SourceError, match=r"record 0: not a tf\.train\.Example"):
            dataset.steps(raw)
    head = struct.pack("<Q", 5 << 40)
    path.write_bytes(frame(b"x").replace(struct.pack("<Q", 1), head))
    assert next(read_frames(path)).last


def test_a_value_of_a_key_that_declares_terabytes_is_named(droid_folder):
    path = first_shard(droid_folder)
    payload = next(read_frames(path)).payload
    key = CAMERA.encode()
    value = b"\x0a" + varint(3 << 40) + b"xx"  # a bytes_list of 3 TiB
    body = b"\x0a" + varint(len(key)) + key + b"\x12" + varint(len(value)) + value
    features = b"\x0a" + varint(len(body)) + body
    path.write_bytes(frame(payload + b"\x0a" + varint(len(features)) + features))
    dataset, raw = first_raw(droid_folder)
    with pytest.raises(SourceError, match=rf"key '{CAMERA}': .*not a tf\.train\.Feature"):
        dataset.episode(raw)


def png_of(width: int, height: int) -> bytes:
    """A PNG that declares a size; its pixels are missing."""
    chunk = lambda kind, data: (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    )
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize("size", [(50_000, 50_000), (12_000, 12_000)])
def test_a_picture_that_declares_gigabytes_is_not_unpacked(droid_folder, size):
    path = first_shard(droid_folder)
    payload = next(read_frames(path)).payload
    steps = ExampleIndex(payload).count(CAMERA)
    path.write_bytes(frame(payload + addition({CAMERA: [png_of(*size)] * steps}, {})))
    dataset, raw = first_raw(droid_folder)
    with pytest.raises(SourceError, match=r"step 0( is 12000x12000, not 24x32|: the picture)"):
        dataset.episode(raw)


def test_a_declared_shape_of_terabytes_is_not_allocated(droid_folder):
    path = droid_folder / "features.json"
    path.write_text(path.read_text().replace('"24"', '"24000000"').replace('"32"', '"32000000"'))
    dataset, raw = first_raw(droid_folder)
    with pytest.raises(SourceError, match="step 0 is 24x32, not 24000000x32000000"):
        dataset.episode(raw)


def test_pictures_that_do_not_fit_into_memory_are_an_error(droid_folder, monkeypatch):
    import wristaugment.readers.pictures as pictures

    def full(*args):
        raise MemoryError

    dataset, raw = first_raw(droid_folder)
    monkeypatch.setattr(pictures.np, "empty", full)
    with pytest.raises(SourceError, match="4 pictures of 24x32 do not fit into memory"):
        dataset.episode(raw)


def test_other_kinds_of_pictures_are_refused(droid_folder):
    buffer = io.BytesIO()
    Image.new("RGB", (32, 24)).save(buffer, "TIFF")
    path = first_shard(droid_folder)
    payload = next(read_frames(path)).payload
    path.write_bytes(frame(payload + addition({CAMERA: [buffer.getvalue()] * 4}, {})))
    dataset, raw = first_raw(droid_folder)
    with pytest.raises(SourceError, match="neither JPEG nor PNG"):
        dataset.episode(raw)


@pytest.mark.parametrize("name", ["features.json", "dataset_info.json"])
def test_metadata_that_never_ends_is_refused(droid_folder, name):
    path = droid_folder / name
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(SourceError, match=rf"{name}.*(is no regular file)|(no dataset)"):
        open_dataset(droid_folder, "droid")
    path.unlink()
    path.write_text("[" * 200_000)
    with pytest.raises(SourceError, match=r"is not JSON|is not a dataset_info"):
        open_dataset(droid_folder, "droid")
    with open(path, "wb") as file:
        file.truncate(1 << 40)  # a terabyte of nothing, which takes no room
    with pytest.raises(SourceError, match="too much for metadata"):
        open_dataset(droid_folder, "droid")


def test_a_bottomless_feature_tree_is_refused(tmp_path):
    depth = 3000
    name = '{"pythonClassName": "x.FeaturesDict", "featuresDict": {"features": {"steps": '
    (tmp_path / "features.json").write_text(name * depth + "{}" + "}}}" * depth)
    with pytest.raises(SourceError, match=r"is not JSON|is not a feature tree"):
        Features(tmp_path / "features.json")


def test_a_pipe_in_a_shards_place_is_named(droid_folder):
    path = first_shard(droid_folder)
    path.unlink()
    os.mkfifo(path)
    _, raw = first_raw(droid_folder)
    assert "is no regular file" in str(raw.error) and raw.missing == 3


def test_linked_shards_are_read_and_copied_as_files(droid_folder, tmp_path, decode):
    """A hub's cache keeps every file as a link to a blob."""
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(p for p in droid_folder.rglob("*") if p.is_file())):
        path.rename(blobs / str(number))
        path.symlink_to(blobs / str(number))
    before = {path: path.read_bytes() for path in blobs.iterdir()}
    dataset = open_dataset(droid_folder, "droid")
    copy = RldsCopy(dataset, tmp_path / "out", size=(8, 8), description="synthetic")
    gone = SourceError("nothing here")
    write_copy(copy, lambda raw: gone)
    assert not any(path.is_symlink() for path in copy.folder.rglob("*"))
    assert {path: path.read_bytes() for path in blobs.iterdir()} == before
    assert [len(rows) for rows in decode(copy.folder).values()] == [5, 2]


def test_a_link_to_itself_is_named(droid_folder):
    path = first_shard(droid_folder)
    path.unlink()
    path.symlink_to(path)
    _, raw = first_raw(droid_folder)
    assert "cannot be opened" in str(raw.error) and raw.missing == 3

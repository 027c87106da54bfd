"""Copies of zarr ReplayBuffers: every old byte, one new camera, read by zarr 2.16 and zarr 3."""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import zarr
from replay_stores import (
    ENDS,
    SIZE,
    arrays,
    copy_store,
    make_store,
    noise,
    pictures,
    stream,
    tree,
    zip_store,
)
from wristaugment.readers.episode import WristStream
from wristaugment.readers.errors import SourceError
from wristaugment.readers.replay_buffer import open_source
from wristaugment.writers.copy import file_crc, folder_entry
from wristaugment.writers.recorded import recorded_splits
from wristaugment.writers.replay_buffer import Copy
from wristaugment.writers.replay_buffer_create import create

CORPUS = Path("tests/fixtures/corpus/droid_101/1.0.1")
KINDS = ("folder-2", "zip-2", "folder-3", "zip-3")
TOKEN = r'"[^"]*"|[][{}:]|[^][{}:,"\s]+'
NEW = {"data/wrist_rgb", "data/wrist_valid", "data/wrist_confidence"}


def source_of(kind, folder, **options):
    shape, zarr_format = kind.split("-")
    path = make_store(folder / "a.zarr", zarr_format=int(zarr_format), **options)
    return zip_store(path) if shape == "zip" else path


def whole_stream():
    """The frames and the flags that `noise` gives, of all episodes."""
    lengths = np.diff(ENDS, prepend=0)
    made = [stream(steps, index) for index, steps in enumerate(lengths)]
    return np.concatenate([m.frames for m in made]), np.concatenate([m.valid for m in made])


def zarr3(path):
    store = zarr.storage.ZipStore(path, mode="r") if path.is_file() else path
    return zarr.open_group(store, mode="r")


def contents(dataset, new=()):
    """All content of a store; what is `new` must be there and is taken out."""
    shard = dataset.splits[0].shards[0]
    found = [item for raw in dataset.records(shard) for item in dataset.content(raw)]
    assert set(new) <= {key for key, _ in found}
    shared = [(k, v) for k, v in dataset.shared_content(shard) if not any(n in k for n in new)]
    return [item for item in found if item[0] not in new], shared


@pytest.mark.parametrize("consolidate", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_copy_holds_the_source_and_the_new_stream(tmp_path, kind, consolidate):
    source = source_of(kind, tmp_path, consolidate=consolidate)
    before = tree(source)
    out, result = copy_store(source, tmp_path / "out")
    after = tree(out)
    consolidated = {".zmetadata", "zarr.json"} & set(before) if consolidate else set()
    assert {k: v for k, v in before.items() if after[k] != v}.keys() == consolidated
    added = after.keys() - before.keys()
    assert all(key.startswith(tuple(f"{name}/" for name in NEW)) for key in added)
    assert tree(source) == before and result.bad == []

    frames, valid = whole_stream()
    root = zarr3(out)
    assert root.metadata.zarr_format == int(kind[-1])
    assert (root["data/wrist_rgb"][:] == frames).all()
    assert (root["data/wrist_valid"][:] == valid).all()
    assert root["data/wrist_rgb"].chunks == (1, *SIZE, 3)
    assert root["data/wrist_rgb"].attrs["description"] == "synthetic, for tests"
    new = {key.removeprefix("data/") for key in NEW}
    assert set(root["data"].array_keys()) == {*arrays(), *new}
    old = root["data/agentview_image"]
    assert root["data/wrist_rgb"].compressors == old.compressors

    a, b = open_source(source), open_source(out)
    assert contents(a) == contents(b, NEW)
    assert a.profile == b.profile  # the new camera is no anchor, nor a recorded hand camera
    for index, raw in enumerate(b.records(b.splits[0].shards[0])):
        made = stream(b.steps(raw), index)
        assert (b.frames(raw, "data/wrist_rgb")[:] == made.frames).all()
        assert (b.flags(raw, "wrist_valid") == made.valid).all()
        told = b.flags(raw, "wrist_confidence")
        assert told.dtype == np.float32
        assert np.array_equal(told, made.confidence, equal_nan=True)


@pytest.mark.parametrize("kind", KINDS)
def test_same_bytes_again_whatever_the_time_and_the_path(tmp_path, kind, monkeypatch):
    source = source_of(kind, tmp_path, consolidate=True)
    out, result = copy_store(source, tmp_path / "out")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = Path(shutil.move(source, elsewhere))
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    again, second = copy_store(moved, elsewhere / "out2")
    assert tree(out) == tree(again)
    assert dataclasses.asdict(result) == dataclasses.asdict(second)
    if source.suffix == ".zip":
        assert out.read_bytes() == again.read_bytes()
    json.dumps(dataclasses.asdict(result))


@pytest.mark.parametrize("kind", KINDS[:2])
def test_an_interrupted_write_is_repeated(tmp_path, kind):
    source = source_of(kind, tmp_path)
    whole, _ = copy_store(source, tmp_path / "whole")
    dataset = open_source(source)

    def stops(raw):
        if raw.record.index == 1:
            raise OSError(28, "No space left on device")
        return stream(dataset.steps(raw), raw.record.index)

    with pytest.raises(OSError, match="No space"):
        copy_store(source, tmp_path / "out", stops)
    again, _ = copy_store(source, tmp_path / "out")
    assert tree(again) == tree(whole)


def test_the_ledger_entry_of_a_folder_tells_every_change(tmp_path):
    source = source_of("folder-2", tmp_path)
    out, result = copy_store(source, tmp_path / "out")
    assert len(result.files) <= 12 and "data/wrist_rgb/" in result.files
    assert result.bytes == sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    for name, (size, crc) in result.files.items():
        place = out / name
        found = (
            folder_entry(place) if name.endswith("/") else [place.stat().st_size, file_crc(place)]
        )
        assert found == [size, crc], name
    folder = out / "data/wrist_rgb"
    kept = folder_entry(folder)
    (folder / "0.0.0.0").rename(folder / "9.0.0.0")
    assert folder_entry(folder) != kept and folder_entry(folder)[0] == kept[0]


def test_consolidated_metadata_keeps_every_word_in_its_order(tmp_path):
    for kind, name in (("folder-2", ".zmetadata"), ("folder-3", "zarr.json")):
        folder = tmp_path / kind
        folder.mkdir()
        source = source_of(kind, folder, consolidate=True)
        out, _ = copy_store(source, folder / "out")
        old, new = (re.findall(TOKEN, (p / name).read_text()) for p in (source, out))
        rest = iter(new)
        assert [token for token in old if token not in rest] == []  # all there, in that order
        assert len(new) > len(old)
        root = zarr.open_consolidated(out, zarr_format=int(kind[-1]))
        assert (root["data/wrist_rgb"][:] == whole_stream()[0]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_collisions_are_refused_and_replace_replaces_in_the_copy_alone(tmp_path, kind):
    real = {"wrist_rgb": pictures(seed=7), "wrist_valid": np.zeros(ENDS[-1], bool)}
    source = source_of(kind, tmp_path, data=arrays(**real), consolidate=True)
    before = tree(source)
    with pytest.raises(SourceError, match="a stream of this name already"):
        copy_store(source, tmp_path / "out")
    with pytest.raises(SourceError, match=r"wrist_valid.*an array of this name already"):
        copy_store(source, tmp_path / "out", wrist_key="other")
    with pytest.raises(SourceError, match="no stream of pictures"):
        copy_store(source, tmp_path / "out", wrist_key="robot0_eef_pos", replace=True)
    assert not list((tmp_path / "out").rglob("*.zarr*"))
    out, _ = copy_store(source, tmp_path / "out", replace=True)
    assert tree(source) == before
    assert (zarr3(out)["data/wrist_rgb"][:] == whole_stream()[0]).all()
    after = tree(out)
    gone = before.keys() - after.keys()
    assert all(key.startswith(tuple(f"{name}/" for name in NEW)) for key in gone)
    same = [key for key in before if "wrist" not in key and key not in (".zmetadata", "zarr.json")]
    assert all(after[key] == before[key] for key in same) and len(same) > 10
    if out.is_file():  # the old pictures are not left in the file either
        with zipfile.ZipFile(out) as archive:
            names = archive.namelist()
            assert archive.testzip() is None and len(names) == len(set(names))
        old = before[f"data/wrist_rgb/{'c/0/0/0/0' if kind[-1] == '3' else '0.0.0.0'}"]
        assert old not in out.read_bytes()


@pytest.mark.parametrize(
    "name", ["", "a/b", "../x", ".zarray", "wrist_valid", "data/", "zarr.json"]
)
def test_unusable_names_are_refused(tmp_path, name):
    source = source_of("folder-2", tmp_path)
    with pytest.raises(SourceError, match="cannot be the name"):
        copy_store(source, tmp_path / "out", wrist_key=name)


def test_a_copy_over_its_source_is_refused(tmp_path):
    folder = source_of("folder-2", tmp_path)
    archive = zip_store(folder)
    for source in (folder, archive):
        options = {"size": SIZE, "description": ""}
        with pytest.raises(SourceError, match="copy would lie"):
            Copy(open_source(source), tmp_path, **options)


def test_members_of_a_zip_keep_their_bytes_order_and_dates(tmp_path):
    folder = source_of("folder-2", tmp_path, consolidate=True)
    source = zip_store(folder, zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(source, "a") as archive:  # zarr 2 rewrites a key by adding it again
        archive.comment = b"a comment"
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("data/.zattrs", '{"note": "second"}')
    out, _ = copy_store(source, tmp_path / "out")
    with zipfile.ZipFile(source) as a, zipfile.ZipFile(out) as b:
        old = [i for i in a.infolist() if i.filename != ".zmetadata"]
        new = b.infolist()[: len(old)]
        fields = ("filename", "date_time", "CRC", "compress_size", "compress_type", "external_attr")
        for x, y in zip(old, new, strict=True):
            assert all(getattr(x, f) == getattr(y, f) for f in fields)
        assert b.testzip() is None
    assert json.loads(tree(out)["data/.zattrs"]) == {"note": "second"}


def test_a_float_camera_in_large_chunks_is_followed_by_a_uint8_stream(tmp_path):
    data = {"img": pictures().astype(np.float32), "action": np.ones((ENDS[-1], 2), np.float32)}
    source = make_store(tmp_path / "pusht.zarr", data, chunk=4)
    out, _ = copy_store(source, tmp_path / "out")
    new = zarr3(out)["data/wrist_rgb"]
    assert new.dtype == np.uint8 and (new[:] == whole_stream()[0]).all()


def test_v3_shards_and_transposes_are_not_taken_over(tmp_path):
    source = make_store(tmp_path / "s.zarr", {"img": pictures(12)}, (5, 12), 3)
    root = zarr.open_group(source, mode="a")
    options = {"shards": (4, 12, 14, 3), "compressors": [zarr.codecs.BloscCodec()]}
    root["data"].create_array("sharded", data=pictures(12), chunks=(1, 12, 14, 3), **options)
    dataset = open_source(source, anchor_keys=["sharded"])
    make = lambda raw: stream(dataset.steps(raw), raw.record.index)
    out, _ = copy_store(source, tmp_path / "out", make, dataset)
    new = zarr3(out)["data/wrist_rgb"]
    assert new.shards is None and type(new.compressors[0]).__name__ == "BloscCodec"
    assert (new[:5] == stream(5, 0).frames).all()


def test_what_is_not_wanted_or_not_made_is_black_and_marked(tmp_path):
    source = source_of("folder-2", tmp_path)
    dataset = open_source(source)
    (source / "data/agentview_image/4.0.0.0").unlink()
    dataset = open_source(source)

    def make(raw):
        if raw.record.index == 0:
            return SourceError("not today", file=source, record=0, todo="try again")
        return stream(dataset.steps(raw), raw.record.index)

    out, result = copy_store(source, tmp_path / "out", make, dataset)
    assert [(row["record"], row["what"], row["key"]) for row in result.bad] == [
        (0, "placeholder", None),
        (1, "placeholder", "data/agentview_image"),
    ]
    assert "chunk 4.0.0.0 is missing" in result.bad[1]["found"]
    root = zarr3(out)
    assert not root["data/wrist_rgb"][:5].any() and not root["data/wrist_valid"][:5].any()
    assert (root["data/wrist_rgb"][5:] == stream(4, 2).frames).all()
    chunks = [p for p in (out / "data/wrist_rgb").iterdir() if not p.name.startswith(".")]
    assert len(chunks) == ENDS[-1]  # the black ones too
    limited, result = copy_store(source, tmp_path / "out2", dataset=dataset, limit=1)
    assert result.bad == []
    assert (zarr3(limited)["data/wrist_rgb"][:3] == stream(3, 0).frames).all()
    assert not zarr3(limited)["data/wrist_valid"][3:].any()
    assert zarr3(limited)["data/wrist_valid"].shape == (ENDS[-1],)


def test_a_stream_of_the_wrong_length_is_an_error(tmp_path):
    source = source_of("zip-2", tmp_path)
    with pytest.raises(ValueError, match="is due"):
        copy_store(source, tmp_path / "out", lambda raw: stream(1, 0))


def test_memory_does_not_grow_with_the_store(tmp_path):
    import tracemalloc

    peaks = []
    for steps in (40, 400):
        source = make_store(tmp_path / f"{steps}.zarr", {"img": pictures(steps, 64, 64)}, (steps,))
        dataset = open_source(source)
        frames = np.broadcast_to(np.uint8(9), (steps, 128, 128, 3))
        made = WristStream(frames, np.ones(steps, bool), np.ones(steps, np.float32))
        tracemalloc.start()
        copy_store(
            source, tmp_path / f"out{steps}", lambda raw, m=made: m, dataset, size=(128, 128)
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 24e6  # ten times the frames are 17 MB more; a block is 16


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("zipped", [False, True])
def test_created_stores_hold_the_recorded_episodes(tmp_path, zarr_format, zipped):
    splits = recorded_splits(CORPUS)
    made = [
        create(tmp_path / name, splits, zarr_format=zarr_format, zipped=zipped, wrist=True)
        for name in "ab"
    ]
    assert tree(made[0]) == tree(made[1])
    if zipped:
        assert made[0].read_bytes() == made[1].read_bytes()
    dataset = open_source(made[0])
    assert dataset.zarr_format == zarr_format and dataset.name == "replay_buffer"
    recorded = [episode for split in splits.values() for episode in split]
    raws = list(dataset.records(dataset.splits[0].shards[0]))
    assert len(raws) == len(recorded)
    for raw, want in zip(raws, recorded, strict=True):
        assert want.steps == dataset.steps(raw)
        got = dataset.episode(raw, wrist="robot0_eye_in_hand_image")
        for view, name in zip(got.anchors, ("exterior_1", "exterior_2"), strict=True):
            assert (view.frames[:] == want.views[name].frames).all()
        assert (got.wrist.frames[:] == want.views["wrist"].frames).all()
        np.testing.assert_allclose(got.eef_pose, want.eef, atol=1e-5)
        np.testing.assert_allclose(got.gripper, want.gripper, atol=1e-6)
    plain = open_source(create(tmp_path / "c", splits, zarr_format=zarr_format))
    assert plain.profile.wrist is None and len(plain.profile.anchors) == 2


def peer():
    """The interpreter of the environment with zarr 2.16."""
    path = os.environ.get("WRISTAUGMENT_PEER_ZARR2")
    path = Path(path) if path else Path(__file__).parents[2] / ".venv-zarr2/bin/python"
    if not path.exists():
        pytest.skip("no environment with zarr 2.16: see tests/peers/zarr2.txt")
    return path


def test_zarr_2_16_reads_the_copies_as_diffusion_policy_does(tmp_path):
    python = peer()
    paths = []
    for kind in ("folder-2", "zip-2"):
        folder = tmp_path / kind
        folder.mkdir()
        source = source_of(kind, folder, consolidate=True)
        paths.append(copy_store(source, folder / "out")[0])
    made = create(tmp_path / "made", recorded_splits(CORPUS), zipped=True)
    dataset = open_source(made)
    paths.append(copy_store(made, tmp_path / "out", noise(dataset), dataset)[0])
    script = Path(__file__).parents[1] / "peers/zarr2.py"
    run = subprocess.run([python, script, *paths], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    for path, found in zip(paths, json.loads(run.stdout), strict=True):
        assert found["zarr"].startswith("2.16")
        root = zarr3(path)
        assert found["data"].keys() == set(root["data"].array_keys())
        assert found["consolidated"] in (False, sorted(found["data"]))
        for key, row in found["data"].items():
            values = np.ascontiguousarray(root["data"][key][:])
            assert row["sha256"] == hashlib.sha256(values.tobytes()).hexdigest(), key
            assert row["dtype"] == str(values.dtype) and tuple(row["shape"]) == values.shape
        assert found["data"]["wrist_rgb"]["attributes"]["synthetic"] is True

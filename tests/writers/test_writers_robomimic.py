"""robomimic's and LIBERO's HDF5: the copy keeps all, adds one stream, and its loaders read it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import shutil
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from hdf5_files import (
    SAID,
    SIZE,
    all_bytes,
    assert_kept,
    copy_of,
    corpus,
    made_frames,
    maker,
    peer,
    records,
    target,
    write,
)
from wristaugment.readers import robomimic
from wristaugment.readers.errors import SourceError
from wristaugment.writers import libero_create, robomimic_create
from wristaugment.writers.copy import LEFT_OUT, PLACEHOLDER
from wristaugment.writers.hdf5 import lookup3


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    return {
        "robomimic": robomimic_create.create(root / "rm", corpus()),
        "gzip": robomimic_create.create(root / "z", corpus(), compression="gzip", wrist=True),
        "libero": libero_create.create(root, corpus(), wrist=True),
    }


@pytest.fixture
def path(sources, tmp_path):
    (tmp_path / "own").mkdir()
    return Path(shutil.copy(sources["robomimic"], tmp_path / "own" / "image.hdf5"))


@pytest.mark.parametrize("name", ["robomimic", "gzip", "libero"])
def test_the_copy_has_all_and_the_new_stream(sources, name, tmp_path):
    source = robomimic.open_source(sources[name])
    copy = copy_of(source, tmp_path / "a", wrist_key="obs/wrist_rgb")
    results = write(copy)
    assert [result.bad for result in results] == [[]] * len(results)
    assert copy.wrist_key == "wrist_rgb" and copy.stream_key == "obs/wrist_rgb"
    copied = robomimic.open_source(target(source, copy), plain=True)
    assert copied.name == source.name
    more = assert_kept(source, copied)
    parts = {"obs"} if name == "libero" else {"obs", "next_obs"}
    named = {key.split("[")[0].split("/", 2)[2] for key in more}
    keys = ("wrist_rgb", "wrist_valid", "wrist_confidence")
    assert named == {f"{part}/{key}" for part in parts for key in keys}
    for raw, new in zip(records(source), records(copied), strict=True):
        frames = made_frames(100 * raw.record.shard + raw.record.index, 8)
        flags = [True, False, *[True] * 6]
        upright = copied.episode(new, wrist="wrist_rgb").wrist.frames
        assert np.array_equal(upright[:], frames)
        stored = frames[:, ::-1] if name == "libero" else frames
        assert np.array_equal(copied.frames(new, copy.stream_key)[:], stored)
        assert copied.flags(new, "wrist_valid").tolist() == flags
        with h5py.File(copied.file_of(new.record)) as file:
            demo = file[new.group]
            fresh, like = demo["obs/wrist_rgb"], demo[source.profile.anchors[0].key]
            assert fresh.attrs["synthetic"] and fresh.attrs["description"] == SAID
            assert fresh.dtype == np.uint8 and fresh.compression == like.compression
            assert fresh.compression_opts == like.compression_opts
            assert (fresh.chunks is None) == (like.chunks is None)
            if name == "gzip":
                assert fresh.chunks == (1, *SIZE, 3)
            if name != "libero":
                after = demo["next_obs/wrist_rgb"][()]
                assert np.array_equal(after[:-1], frames[1:])
                assert np.array_equal(after[-1], frames[-1])
                assert demo["next_obs/wrist_valid"][()].tolist() == [False, *[True] * 7]
                now, later = (demo[f"{k}/wrist_confidence"][()] for k in ("obs", "next_obs"))
                assert now.dtype == np.float32 and np.isnan(now).tolist() == [not f for f in flags]
                assert np.array_equal(later, [*now[1:], now[-1]], equal_nan=True)
    # What has been added is not taken for a recorded hand camera.
    assert copied.profile.wrist == source.profile.wrist


def odd_file(path: Path, kind: str) -> Path:
    """A file in the newer spelling, or with all that HDF5 knows in it."""
    choices = {"latest": {"libver": "latest"}, "odd": {"track_order": True, "userblock_size": 1024}}
    with h5py.File(path, "w", **choices[kind]) as file:
        file.attrs["z"], file.attrs["a"] = 1, np.array(["x", "é"], dtype=h5py.string_dtype())
        data = file.create_group("data")
        for name in ("demo_1", "demo_0", "demo_10"):
            demo = data.create_group(name)
            demo.attrs["num_samples"] = 4
            demo["actions"] = np.zeros((4, 7))
            obs = demo.create_group("obs")
            images = np.random.default_rng(0).integers(0, 255, (4, 20, 20, 3), np.uint8)
            obs.create_dataset(
                "agentview_image", data=images, chunks=(2, 20, 10, 3), maxshape=(None, 20, 20, 3),
                compression="lzf", shuffle=True, fletcher32=True, fillvalue=7,
            )  # fmt: skip
            obs["soft"] = h5py.SoftLink("agentview_image")
            obs["hard"] = obs["agentview_image"]
            obs["nowhere"] = h5py.SoftLink("/not/here")
        data["demo_1"].attrs["reference"] = data["demo_0"].ref
        file["mask/train"] = np.array([b"demo_0", b"demo_1"])
        file["words"] = np.array(["one", "two"], dtype=h5py.string_dtype())
        file["kind"] = np.dtype([("a", "f4"), ("b", "S3")])
        file["empty"] = h5py.Empty("f4")
        file["beside"] = h5py.ExternalLink("beside.h5", "/x")
    with path.open("r+b") as raw:
        if kind == "odd":
            raw.write(b"in the user block")
    return path


@pytest.mark.parametrize("kind", ["latest", "odd"])
def test_odd_files_are_kept_whole_and_copies_do_not_know_the_time(kind, tmp_path):
    (tmp_path / "own").mkdir()
    path = odd_file(tmp_path / "own" / "odd.h5", kind)
    source = robomimic.open_source(path)
    assert [raw.group for raw in records(source)] == [f"data/demo_{n}" for n in (0, 1, 10)]
    results = write(first := copy_of(source, tmp_path / "a"))
    assert results[0].bad == []
    copied = robomimic.open_source(target(source, first), plain=True)
    assert_kept(source, copied)
    if kind == "odd":
        assert target(source, first).read_bytes()[:1024] == path.read_bytes()[:1024]
    with h5py.File(target(source, first)) as file:
        assert list(file["data"]) == list(h5py.File(path)["data"])
        fresh = file["data/demo_10/obs/wrist_rgb"]
        assert fresh.compression == "lzf" and fresh.shuffle and fresh.fletcher32
        assert file["data/demo_1/obs"].get("soft", getlink=True).path == "agentview_image"
        assert file[file["data/demo_1"].attrs["reference"]].name == "/data/demo_0"
    time.sleep(1.1)  # HDF5 notes seconds
    results = write(second := copy_of(source, tmp_path / "b"))
    assert all_bytes(first.folder) == all_bytes(second.folder)


def test_lookup3_is_the_checksum_that_hdf5_writes(tmp_path):
    # The vectors of Bob Jenkins' own test program.
    assert lookup3(b"") == 0xDEADBEEF
    assert lookup3(b"Four score and seven years ago") == 0x17770551
    path = odd_file(tmp_path / "x.h5", "latest")
    data = path.read_bytes()  # the superblock of version 2 or 3 ends in its own checksum
    assert lookup3(data[:44]) == int.from_bytes(data[44:48], "little")


def test_equal_runs_give_equal_bytes_and_a_broken_run_is_done_again(sources, tmp_path):
    source = robomimic.open_source(sources["libero"])
    write(first := copy_of(source, tmp_path / "a"))

    class Stopped(Exception):
        pass

    def stop(raw):
        raise Stopped

    again = copy_of(source, tmp_path / "b")
    with pytest.raises(Stopped):
        write(again, stop)
    shutil.rmtree(again.folder)
    write(again)
    assert all_bytes(first.folder) == all_bytes(again.folder)
    moved = robomimic.open_source(shutil.copytree(source.folder, tmp_path / "x" / source.name))
    write(third := copy_of(moved, tmp_path / "c"))
    assert all_bytes(first.folder) == all_bytes(third.folder)


def test_names_and_collisions(sources, tmp_path):
    source = robomimic.open_source(sources["robomimic"])
    for key in ("agentview_image", "obs/robot0_eef_pos"):
        with pytest.raises(SourceError, match="--replace"):
            copy_of(source, tmp_path / "a", wrist_key=key)
    for key in ("", "a/b", "wrist_valid", " x", ".."):
        with pytest.raises(SourceError, match="cannot be the name"):
            copy_of(source, tmp_path / "a", wrist_key=key)
    with pytest.raises(SourceError, match="would lie in"):
        copy_of(source, source.folder.parent)
    assert copy_of(source, tmp_path, wrist_key="observation/hand").stream_key == "obs/hand"


def test_a_second_augmentation_needs_replace(sources, tmp_path):
    source = robomimic.open_source(sources["robomimic"])
    write(first := copy_of(source, tmp_path / "a"))
    augmented = robomimic.open_source(target(source, first))
    with pytest.raises(SourceError, match="wrist_rgb"):
        copy_of(augmented, tmp_path / "b")
    with pytest.raises(SourceError, match="wrist_valid"):
        copy_of(augmented, tmp_path / "b", wrist_key="other")
    before = all_bytes(first.folder)
    write(second := copy_of(augmented, tmp_path / "b", replace=True), brighter(augmented))
    write(third := copy_of(augmented, tmp_path / "c", replace=True), brighter(augmented))
    assert second.replaces and before == all_bytes(first.folder)
    assert all_bytes(second.folder) == all_bytes(third.folder)
    copied = robomimic.open_source(target(source, second), plain=True)
    assert_kept(source, copied)
    for raw in records(copied):
        frames = 255 - made_frames(raw.record.index, 8)
        assert np.array_equal(copied.frames(raw, "wrist_rgb")[:], frames)


def brighter(dataset):
    def make(raw):
        stream = maker(dataset)(raw)
        stream.frames = 255 - stream.frames
        return stream

    return make


def test_a_recorded_stream_is_replaced_in_the_copy_alone(sources, tmp_path):
    source = robomimic.open_source(sources["gzip"])
    key = "robot0_eye_in_hand_image"
    before = source.folder.read_bytes()
    copy = copy_of(source, tmp_path / "a", wrist_key=key, replace=True)
    write(copy)
    assert source.folder.read_bytes() == before
    copied = robomimic.open_source(target(source, copy))
    for raw in records(copied):
        assert np.array_equal(copied.frames(raw, key)[:], made_frames(raw.record.index, 8))


def test_a_limit_leaves_files_out_and_darkens_the_rest(sources, tmp_path):
    source = robomimic.open_source(sources["robomimic"])
    asked = []

    def make(raw):
        asked.append(raw.record.index)
        return maker(source)(raw)

    write(copy := copy_of(source, tmp_path / "a", limit=2), make)
    copied = robomimic.open_source(target(source, copy), plain=True)
    assert_kept(source, copied)
    assert asked == [0, 1]
    for raw in records(copied):
        wanted = raw.record.index < 2
        assert copied.flags(raw, "wrist_valid")[0] == wanted
        assert bool(copied.frames(raw, "wrist_rgb")[:].any()) == wanted
    suite = robomimic.open_source(sources["libero"])
    write(copy := copy_of(suite, tmp_path / "b", limit=2))
    assert len(all_bytes(copy.folder)) == 2


def test_damage_is_named_and_the_rest_is_done(path, tmp_path):
    with h5py.File(path, "r+") as file:
        short = file["data/demo_1/obs/agentview_image"][:5]
        del file["data/demo_1/obs/agentview_image"]
        file["data/demo_1/obs/agentview_image"] = short
        del file["data/demo_2/obs"]
        demo = file["data/demo_3"]
        images = demo["obs/agentview_image"][()]
        del demo["obs/agentview_image"]
        demo["obs"].create_dataset("agentview_image", data=images, chunks=True, fletcher32=True)
        info = demo["obs/agentview_image"].id.get_chunk_info(0)
    data = bytearray(path.read_bytes())
    data[info.byte_offset + 1000] ^= 1
    path.write_bytes(data)
    source = robomimic.open_source(path)
    (result,) = write(copy := copy_of(source, tmp_path / "a"))
    assert [(bad["record"], bad["what"]) for bad in result.bad] == [
        (1, PLACEHOLDER), (2, LEFT_OUT), (3, PLACEHOLDER),
    ]  # fmt: skip
    assert (
        result.bad[0]["key"] == "obs/agentview_image" and "5 rows for 8" in result.bad[0]["found"]
    )
    assert result.bad[2]["key"] == "obs/agentview_image"
    assert {bad["file"] for bad in result.bad} == {"image.hdf5"}
    copied = robomimic.open_source(target(source, copy), plain=True)
    assert_kept(source, copied)
    with h5py.File(target(source, copy)) as file:
        for index, good in ((0, True), (1, False), (3, False)):
            obs = file[f"data/demo_{index}/obs"]
            assert obs["wrist_rgb"].shape == (8, *SIZE, 3)
            assert obs["wrist_rgb"][()].any() == good and obs["wrist_valid"][0] == good
        assert "obs" not in file["data/demo_2"]


def test_a_file_that_cannot_be_opened_is_left_out(sources, tmp_path):
    folder = shutil.copytree(sources["libero"], tmp_path / "suite")
    broken = sorted(folder.iterdir())[2]
    broken.write_bytes(broken.read_bytes()[:-7])
    (folder / "notes.txt").write_text("kept")
    source = robomimic.open_source(folder)
    results = write(copy := copy_of(source, tmp_path / "a"))
    (bad,) = results[2].bad
    assert bad["what"] == LEFT_OUT and bad["file"] == broken.name and "truncated" in bad["found"]
    found = all_bytes(copy.folder)
    assert set(found) == {p.name for p in folder.iterdir()} - {broken.name}
    assert found["notes.txt"] == b"kept"


def test_a_demo_in_another_file_is_left_as_it_is(path, tmp_path):
    other = path.with_name("part.bin")
    shutil.copy(path, other)
    with h5py.File(path, "r+") as file:
        del file["data/demo_1"]
        file["data/demo_1"] = h5py.ExternalLink("part.bin", "/data/demo_1")
    source = robomimic.open_source(path.parent)
    (result,) = write(copy := copy_of(source, tmp_path / "a"))
    (bad,) = result.bad
    assert bad["what"] == LEFT_OUT and bad["record"] == 1 and "part.bin" in bad["found"]
    found = all_bytes(copy.folder)
    assert found["part.bin"] == other.read_bytes()


def test_a_stream_of_another_length_is_refused(sources, tmp_path):
    source = robomimic.open_source(sources["robomimic"])

    def short(raw):
        stream = maker(source)(raw)
        stream.frames = stream.frames[1:]
        return stream

    with pytest.raises(ValueError, match="where"):
        write(copy_of(source, tmp_path / "a"), short)


def test_robomimics_own_loader_reads_the_copy(sources, tmp_path):
    for name, key in (("gzip", "agentview_image"), ("libero", "agentview_rgb")):
        source = robomimic.open_source(sources[name])
        write(copy := copy_of(source, tmp_path / name))
        where = target(source, copy)
        file = where if where.is_file() else sorted(where.iterdir())[0]
        parts = ("obs",) if name == "libero" else ("obs", "next_obs")
        read = peer("robomimic", file, key, "wrist_rgb", *(["--next-obs"] * (len(parts) - 1)))
        count = len(
            [raw for raw in records(source) if source.file_of(raw.record).name == file.name]
        )
        assert read["demos"] == count and read["sequences"] == 8 * count
        with h5py.File(file) as stored:
            demos = [stored[f"data/demo_{n}"] for n in range(count)]
            for part in parts:
                for stream in (key, "wrist_rgb"):
                    pixels = np.concatenate([demo[f"{part}/{stream}"][()] for demo in demos])
                    found = read[part][stream]
                    assert found["shape"] == list(pixels.shape) and found["dtype"] == "uint8"
                    assert found["sha256"] == hashlib.sha256(pixels.tobytes()).hexdigest()
        if len(parts) > 1:
            assert read["masks"] == {"train": 3, "valid": 1}


def test_flipped_bits_anywhere_are_survived(sources, tmp_path):
    small = odd_file(tmp_path / "small.h5", "latest")
    with h5py.File(small, "r+") as file:
        del file["beside"]
    data = small.read_bytes()
    rng = np.random.default_rng(0)
    outcomes = set()
    for number in range(25):
        folder = tmp_path / f"{number}"
        (folder / "set").mkdir(parents=True)
        flipped = bytearray(data)
        flipped[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        (folder / "set" / "a.h5").write_bytes(flipped)
        (folder / "set" / "b.h5").write_bytes(data)
        source = robomimic.open_source(folder / "set")  # the sound file is there, so it opens
        results = write(copy := copy_of(source, folder / "out"))
        assert results[-1].bad == [] and (copy.folder / "b.h5").exists()
        outcomes |= {bad["what"] for bad in results[0].bad} or {"none"}
        for raw in records(source):
            if raw.error is None:
                with contextlib.suppress(SourceError):
                    list(source.content(raw))
    assert outcomes == {"none", LEFT_OUT, PLACEHOLDER}


def test_a_full_disk_is_an_error_and_no_crash(sources, tmp_path):
    program = f"""
import resource, signal, sys
sys.path[:0] = {[str(Path(__file__).parents[1])]!r}
from pathlib import Path
from hdf5_files import copy_of, write
from wristaugment.readers import robomimic
source = robomimic.open_source(Path({str(sources["robomimic"])!r}))
limit = source.folder.stat().st_size + 1000
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    write(copy_of(source, Path({str(tmp_path / "out")!r})))
except OSError as error:
    print("errno", error.errno)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == f"errno {errno.EFBIG}", done.stderr

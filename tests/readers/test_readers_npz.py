"""Archives and pickles that are damaged, odd or malicious: refused in one clear line, no harm."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from wristaugment.readers.calvin_language import read_annotations
from wristaugment.readers.errors import SourceError
from wristaugment.readers.npz import Npz, parse_npy
from wristaugment.readers.restricted_pickle import Refused, load_npy_object, loads

ARRAYS = {
    "a": np.arange(6.0).reshape(2, 3),
    "picture": np.arange(1200, dtype=np.uint8).reshape(20, 20, 3),
    "flag": np.bool_(True),
    "turned": np.asfortranarray(np.arange(12).reshape(3, 4)),
}


@pytest.fixture(params=[np.savez, np.savez_compressed])
def path(request, tmp_path) -> Path:
    request.param(tmp_path / "x.npz", **ARRAYS)
    return tmp_path / "x.npz"


def test_arrays_are_those_of_numpy(path):
    with Npz(path) as archive, np.load(path) as same:
        assert archive.keys() == list(same.files) == list(ARRAYS)
        archive.check()
        for key in archive.keys():  # noqa: SIM118
            found = archive.array(key)
            assert found.dtype == same[key].dtype and np.array_equal(found, same[key])
            assert archive.header(key) == (same[key].shape, same[key].dtype)
        with pytest.raises(SourceError, match="lacks this key; it has a, picture"):
            archive.array("b")


def test_any_flipped_byte_is_found(path):
    data = path.read_bytes()
    for at in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[at] ^= 0x41
        path.write_bytes(bytes(damaged))
        try:
            with Npz(path) as archive:
                archive.check()
                found = {key: archive.array(key) for key in ARRAYS}
        except SourceError as error:
            assert str(path) in str(error)
            continue
        # Dates, modes and the like may differ; what is read may not.
        assert all(np.array_equal(found[key], ARRAYS[key]) for key in ARRAYS), at


def test_any_early_end_is_found(path):
    data = path.read_bytes()
    for length in range(0, len(data), 13):
        path.write_bytes(data[:length])
        with pytest.raises(SourceError, match="whole archive"), Npz(path):
            pass


def _zip(path: Path, names, *, method=zipfile.ZIP_STORED, data=b"x") -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name in names:
            file.writestr(zipfile.ZipInfo(name), data, method)
    return path


def _entry(data: bytes, field: int, value: bytes) -> bytes:
    """`data` with some bytes of its first directory entry replaced."""
    at = data.index(b"PK\x01\x02") + field
    return data[:at] + value + data[at + len(value) :]


@pytest.mark.parametrize(
    "name", ["../up.npy", "/etc/passwd.npy", "a\\b.npy", "dir/", "..", "c:x.npy"]
)
def test_names_with_folders_are_refused(tmp_path, name):
    path = _zip(tmp_path / "x.npz", ["plain.npy"])
    data = path.read_bytes()
    raw = name.encode()
    path.write_bytes(
        _zip(tmp_path / "y.npz", ["p" * len(raw)]).read_bytes().replace(b"p" * len(raw), raw)
    )
    with pytest.raises(SourceError, match="no plain name"), Npz(path):
        pass
    assert data and sorted(p.name for p in tmp_path.iterdir()) == ["x.npz", "y.npz"]


@pytest.mark.parametrize(
    ("field", "value", "found"),
    [
        (8, b"\x01\x00", "encrypted"),
        (10, b"\x0c\x00", "method 12"),
        (20, b"\xff\xff\xff\xff", "zip64"),
        (24, struct.pack("<I", 0xFFFF0000), "impossible"),
        (20, struct.pack("<I", 100), "overlaps"),
        (42, struct.pack("<I", 5_000_000), "overlaps"),
    ],
)
def test_impossible_entries_are_refused(tmp_path, field, value, found):
    path = _zip(tmp_path / "x.npz", ["a.npy"], data=b"0123456789")
    path.write_bytes(_entry(path.read_bytes(), field, value))
    with pytest.raises(SourceError, match=found), Npz(path) as archive:
        archive.check()


def test_members_that_share_bytes_are_refused(tmp_path):
    path = _zip(tmp_path / "x.npz", ["a.npy", "b.npy"], data=bytes(100))
    data = path.read_bytes()
    second = data.rindex(b"PK\x01\x02")
    path.write_bytes(data[: second + 42] + bytes(4) + data[second + 46 :])
    with pytest.raises(SourceError, match="overlaps what follows"), Npz(path) as archive:
        archive.check()
    twice = _zip(tmp_path / "y.npz", ["a.npy", "b.npy"])
    twice.write_bytes(twice.read_bytes().replace(b"b.npy", b"a.npy"))
    with pytest.raises(SourceError, match="key 'a': is in the archive twice"), Npz(twice):
        pass


def test_a_zip64_archive_and_a_stranger_are_refused(tmp_path):
    path = _zip(tmp_path / "x.npz", ["a.npy"])
    data = path.read_bytes()
    path.write_bytes(data[:-12] + b"\xff\xff" + data[-10:])
    with pytest.raises(SourceError), Npz(path):
        pass
    path.write_bytes(b"junk in front" + data)
    with pytest.raises(SourceError, match="not where its end says"), Npz(path):
        pass
    with pytest.raises(SourceError, match="no regular file"), Npz("/dev/zero"):
        pass


def test_what_is_no_array_is_carried_and_not_read(tmp_path):
    path = _zip(tmp_path / "x.npz", ["readme.txt", "a.npy"], data=b"words")
    with Npz(path) as archive:
        archive.check()
        assert archive.keys() == ["a"]
        with pytest.raises(SourceError, match=r"key 'a': is no .npy array"):
            archive.array("a")


def test_declared_sizes_take_no_memory(tmp_path):
    def npy(text: str) -> bytes:
        return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()

    huge = npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000, 8), }\n")
    with pytest.raises(ValueError, match="declares an array"):
        parse_npy(huge)
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = _zip(tmp_path / "x.npz", ["a.npy"], method=method, data=huge)
        with Npz(path) as archive, pytest.raises(SourceError, match="declares an array"):
            archive.header("a")
    bomb = _zip(tmp_path / "b.npz", ["a.npy"], method=zipfile.ZIP_DEFLATED, data=bytes(100_000_000))
    tracemalloc.start()
    with Npz(bomb) as archive, pytest.raises(SourceError, match="which no array of a frame has"):
        archive.array("a")
    assert tracemalloc.get_traced_memory()[1] < 4_000_000
    tracemalloc.stop()


def _saved(value) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(value, dtype=object), allow_pickle=True)
    return file.getvalue()


PLAIN = {
    "language": {"ann": ["open it", "close it"], "emb": np.zeros((2, 1, 3), np.float32)},
    "info": {"indx": [(np.int64(3), np.int64(9)), (10, 20)], "episodes": []},
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("old", [False, True])
def test_plain_data_and_arrays_are_read(protocol, old):
    data = pickle.dumps(np.array(PLAIN, dtype=object), protocol)
    if old:  # as numpy 1 names its own modules
        data = _renamed(data)
    header = _saved(0)[:128]
    if protocol == 2 and old:
        return  # bytes of that protocol need a codec, which is refused
    if protocol == 2:
        with pytest.raises(Refused, match=r"asks for _codecs.encode"):
            load_npy_object(header + data)
        return
    found = load_npy_object(header + data)
    assert found["language"]["ann"] == ["open it", "close it"]
    assert found["info"]["indx"] == [(3, 9), (10, 20)]
    embedding = found["language"]["emb"]
    embedding = embedding if isinstance(embedding, np.ndarray) else embedding.value()
    assert embedding.shape == (2, 1, 3) and embedding.dtype == np.float32


def _renamed(data: bytes) -> bytes:
    for module in (b"numpy._core.multiarray", b"numpy._core.numeric"):
        short = module.replace(b"_core", b"core")
        for size in (struct.pack("<B", len(module)), struct.pack("<I", len(module))):
            data = data.replace(size + module, struct.pack("<B", len(short)) + short)
        data = data.replace(b"c" + module + b"\n", b"c" + short + b"\n")
    if data[2:3] == b"\x95":  # frames tell their lengths
        start = 11
        data = data[:3] + struct.pack("<Q", len(data) - start) + data[start:]
    return data


class _Runs:
    def __init__(self, function, *arguments):
        self._call = (function, arguments)

    def __reduce__(self):
        return self._call


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    marker = tmp_path / "pwned"
    for function, arguments in ((os.system, (f"touch {marker}",)), (eval, ("1",)), (bytes, (9,))):
        with pytest.raises(Refused, match="asks for "):
            load_npy_object(_saved(_Runs(function, *arguments)))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"\x80\x04K\x01r\xff\xff\xff\x7f.", "memo of 2147483647"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"(ios\nsystem\n.", "INST"),
        (b"Px\n.", "PERSID"),
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x0f", "damaged"),
        (b"\x80\x04", "damaged"),
        (b"", "damaged"),
        (b"cnumpy\ndtype\n(S'V9'\ntR.", "unknown kind"),
        (b"cnumpy\nndarray\n(I1000000000\ntR.", "damaged"),
        (b"cnumpy.core.multiarray\n_reconstruct\n(I1\ntR.", "not numpy's"),
        (b"cnumpy.core.multiarray\n_reconstruct\n}S'__defaults__'\nI1\nsb.", "change a function"),
        (b"c__builtin__\ngetattr\n.", "asks for"),
    ],
)
def test_odd_pickles_are_refused(data, found):
    with pytest.raises(Refused, match=found):
        loads(data)


def test_an_array_that_declares_more_than_it_holds_is_refused():
    data = pickle.dumps(np.arange(3), 4)
    at = data.index(b"K\x03\x85")
    wide = data[:at] + b"J\xff\xff\xff\x7f\x85" + data[at + 3 :]
    wide = wide[:3] + struct.pack("<Q", len(wide) - 11) + wide[11:]
    with pytest.raises(Refused, match="declares an array of"):
        loads(wide).value()


def test_language_is_that_of_the_most_frames(tmp_path):
    folder = tmp_path / "lang_annotations"
    folder.mkdir()
    (folder / "auto_lang_ann.npy").write_bytes(_saved(PLAIN))
    annotations, error = read_annotations(tmp_path)
    assert error is None
    assert annotations.of(0, 5) == "open it" and annotations.of(8, 30) == "close it"
    assert annotations.of(8, 12) == "open it"  # 2 frames each: the first one
    assert annotations.of(21, 30) == "" == annotations.of(0, 3)


@pytest.mark.parametrize(
    "data",
    [
        _saved(_Runs(eval, "1")),
        _saved({"language": 3}),
        _saved({"language": {"ann": ["x"]}, "info": {"indx": [(1, 2), (3, 4)]}}),
        _saved({"language": {"ann": ["x"]}, "info": {"indx": [("a", 2)]}}),
        _saved({"language": {"ann": [5]}, "info": {"indx": [(1, 2)]}}),
        _saved({"language": {"ann": ["x"]}, "info": {"indx": [(1, 2**70)]}}),
        b"\x93NUMPY",
        b"",
    ],
)
def test_refused_language_is_one_line(tmp_path, data):
    (tmp_path / "auto_lang_ann.npy").write_bytes(data)
    annotations, error = read_annotations(tmp_path)
    assert annotations.of(0, 10) == ""
    assert "auto_lang_ann.npy" in str(error) and "read without language" in str(error)
    assert "\n" not in str(error)

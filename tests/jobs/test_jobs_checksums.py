"""What `verify` says of a copy without its source, and what `status` makes of a damaged ledger."""

import json
import os
import random
import shutil

import pytest
from damage import random_damage
from wristaugment.jobs import cli
from wristaugment.jobs.checksums import folder_sha256, known, read, spelled, staged_sha256
from wristaugment.jobs.ledger_read import in_batches, in_place, read_entries
from wristaugment.jobs.storage import FolderStorage


@pytest.fixture(scope="module")
def finished(lab, small, tmp_path_factory):
    """The --out of a finished job; not to be changed."""
    out = tmp_path_factory.mktemp("finished") / "out"
    done = lab.without_ray(small.args(out))
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def out(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "out")


def verify(out, capsys, *more):
    code = cli.main(["verify", str(out), *more])
    said = capsys.readouterr()
    return code, said.out + said.err


def test_a_whole_copy_is_whole_wherever_it_lies(out, capsys):
    code, said = verify(out, capsys)
    assert code == 0 and "whole" in said


def test_a_job_that_is_not_complete_is_said_to_be_and_its_shards_are_checked(
    lab, small, tmp_path, capsys
):
    out = tmp_path / "out"
    lab.without_ray(small.args(out), crash="recorded:2")
    code, said = verify(out, capsys)
    assert code == 3 and "the job is not complete" in said and said.count("\n") == 2, said
    shard = sorted(out.rglob("*tfrecord*"))[0]
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    code, said = verify(out, capsys)
    assert code == 3 and f"{shard}: is not what was written" in said


def test_without_a_ledger_there_is_nothing_to_check(tmp_path, capsys):
    code, said = verify(tmp_path, capsys)
    assert code == 2 and len(said.splitlines()) == 1 and "--source" in said
    code, said = verify(tmp_path / "none", capsys)
    assert code == 2 and len(said.splitlines()) == 1


def test_what_is_no_file_is_not_waited_for(out, capsys):
    path = out / "droid" / "1.0.0" / "features.json"
    path.unlink()
    os.mkfifo(path)
    code, said = verify(out, capsys)
    assert code == 3 and "is no regular file" in said
    path.unlink()
    path.symlink_to("features.json")  # to itself
    code, said = verify(out, capsys)
    assert code == 3 and "is no regular file" in said


def test_damage_that_a_finished_job_keeps_is_not_taken_for_right(lab, small, tmp_path, capsys):
    """A copied file that has its size and time, and another byte, keeps its first SHA-256."""
    source = shutil.copytree(small.root, tmp_path / "data")
    (source / "droid" / "1.0.0" / "notes.txt").write_text("as it was")
    own = type(small)(source, source / "droid" / "1.0.0")
    out = tmp_path / "out"
    assert lab.without_ray(own.args(out)).returncode == 0
    notes = out / "droid" / "1.0.0" / "notes.txt"
    before = notes.stat()
    notes.write_text("as it waS")
    os.utime(notes, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert lab.without_ray(own.args(out)).returncode == 0
    code, said = verify(out, capsys)
    assert code == 3 and "notes.txt: is not what was written" in said
    notes.unlink()  # as it says
    assert lab.without_ray(own.args(out)).returncode == 0
    assert verify(out, capsys)[0] == 0


def test_every_byte_of_the_checksums_counts():
    text = spelled({"a/b": "0" * 64, "c": "f" * 64}, "a")
    data = text.encode()
    found = read(data)
    assert found is not None and found["folder"] == "a"
    for place in range(len(data)):
        for bit in range(8):
            changed = data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :]
            assert read(changed) is None, changed
        assert read(data[:place]) is None
    assert read(data + b"\n") is None


def test_known_are_the_files_of_the_copy_s_folder(out):
    found = known(FolderStorage(out), "droid/1.0.0")
    assert set(found) == {"dataset_info.json", "features.json"}
    assert known(FolderStorage(out / "none"), ".") == {}
    (out / ".wristaugment" / "checksums.json").write_text("{}")
    assert known(FolderStorage(out), "droid/1.0.0") == {}


def test_a_folder_has_one_hash_of_its_files_names_sizes_and_bytes(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "0.0").write_bytes(b"x")
    (tmp_path / "a" / "1").write_bytes(b"")
    first = staged_sha256(tmp_path, ["a/", "a/1"])
    assert set(first) == {"a/", "a/1"}
    (tmp_path / "a" / "1").rename(tmp_path / "a" / "2")
    assert staged_sha256(tmp_path, ["a/"])["a/"] != first["a/"]
    assert folder_sha256({}) != folder_sha256({"x": (0, "")})


def test_status_of_a_damaged_ledger_is_a_line_and_no_traceback(out, capsys):
    rng = random.Random(3)
    for _ in range(60):
        damage = random_damage(rng, out / ".wristaugment")
        code = cli.main(["status", str(out)])
        said = capsys.readouterr()
        damage.undo()
        assert code in (0, 2, 3) and "Traceback" not in said.err, f"{damage}: {said}"
    (out / ".wristaugment" / "plan.json").write_text("[]")
    assert cli.main(["status", str(out)]) == 2
    record = out / ".wristaugment" / "shards" / "train-00001.json"
    record.write_text(json.dumps({"result": {}}))
    assert set(read_entries(record.parent)) == {"train-00000", "train-00002", "train-00003"}


def test_records_are_held_against_the_files(out):
    entries = read_entries(out / ".wristaugment" / "shards")
    folder = out / "droid" / "1.0.0"
    assert set(in_place(entries, folder).values()) == {True}
    lost, cut = sorted(folder.glob("*tfrecord*"))[1:3]
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:-1])
    found = in_place(entries, folder)
    assert [found[name] for name in sorted(found)] == [True, False, False, True]
    assert read_entries(out / "none") == {}


def test_batches_keep_the_order_and_the_first_error():
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        assert list(in_batches(pool, lambda n: n * n, range(1000))) == [n * n for n in range(1000)]
        with pytest.raises(ZeroDivisionError):
            list(in_batches(pool, lambda n: 1 // (n - 77), range(100)))

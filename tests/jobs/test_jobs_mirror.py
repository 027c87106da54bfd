"""Datasets in an object store, read through a mirror: the same content, and no more than needed."""

import importlib
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
import time

import h5py
import numpy as np
import pytest
from copying import write_copy
from format_kinds import KINDS, SIZE
from wristaugment.jobs import cli, mirror, remote
from wristaugment.jobs.mirror import Mirror, localise, mirror_of
from wristaugment.jobs.plan import edge_sha256, source_fingerprint
from wristaugment.readers import open_dataset
from wristaugment.readers.episode import WristStream
from wristaugment.readers.errors import RemoteError, SourceError
from wristaugment.readers.files import present, read_range
from wristaugment.writers.formats import open_copy


@pytest.fixture
def bucket(s3, tmp_path):
    """A bucket of the test's own; its URL."""
    return s3.url(f"b{os.getpid()}-{tmp_path.name.replace('_', '-').lower()}"[:60].rstrip("-"))


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """A scratch folder of the test's own."""
    monkeypatch.setenv(mirror.SCRATCH, str(tmp_path / "scratch"))
    return tmp_path / "scratch"


@pytest.fixture
def remote_small(s3, small, bucket, scratch):
    """`small` (4 RLDS shards) in a bucket; its URL."""
    return s3.put_tree(small.folder, f"{bucket}/droid/1.0.0")


def is_stub(path) -> bool:
    return stat.S_IMODE(os.lstat(path).st_mode) == 0


def fetched(root) -> list[str]:
    """The names of the files below a mirror's root that are no stubs."""
    return sorted(p.name for p in root.rglob("*") if p.is_file() and not is_stub(p))


def refused(capsys, *words) -> str:
    """The one line that a refusal gives."""
    assert cli.main([str(word) for word in words]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("wristaugment: error: ")
    return said[0]


# ---- every format


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_dataset_is_the_same_from_afar(kind, s3, bucket, scratch, tmp_path, capsys):
    path = kind.create(tmp_path / "local")
    s3.put_tree(tmp_path / "local", f"{bucket}/data")
    url = f"{bucket}/data/{path.relative_to(tmp_path / 'local').as_posix()}".rstrip("/.")
    for given, file in ((path, "near.json"), (url, "far.json")):
        assert cli.main(["inspect", str(given), "--json", str(tmp_path / file)]) == 0
    near, far = (json.loads((tmp_path / f).read_text()) for f in ("near.json", "far.json"))
    assert far.pop("folder") == url and near.pop("folder") == str(path)
    assert far == near and far["ready"]
    assert url in capsys.readouterr().out

    ours, theirs = open_dataset(localise(url)), open_dataset(path)
    assert (ours.name, ours.place, ours.version) == (theirs.name, theirs.place, theirs.version)
    assert [s.name for s in ours.splits] == [s.name for s in theirs.splits]
    pairs = [
        pair
        for mine, other in zip(ours.splits, theirs.splits, strict=True)
        for pair in zip(mine.shards, other.shards, strict=True)
    ]
    assert pairs
    for mine, other in pairs:
        assert list(ours.shared_content(mine)) == list(theirs.shared_content(other))
        for a, b in zip(ours.records(mine), theirs.records(other), strict=True):
            assert a.error is None and b.error is None
            assert list(ours.content(a)) == list(theirs.content(b))
            left, right = ours.episode(a), theirs.episode(b)
            assert [v.key for v in left.anchors] == [v.key for v in right.anchors]
            for v, w in zip(left.anchors, right.anchors, strict=True):
                assert (v.frames[:] == w.frames[:]).all()
    shards = [s for split in ours.splits for s in split.shards]
    plain = [s for split in theirs.splits for s in split.shards]
    assert source_fingerprint(ours, shards) == source_fingerprint(theirs, plain)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_copy_of_a_remote_dataset_is_the_same(kind, s3, bucket, scratch, tmp_path, lab):
    path = kind.create(tmp_path / "local")
    s3.put_tree(tmp_path / "local", f"{bucket}/data")
    url = f"{bucket}/data/{path.relative_to(tmp_path / 'local').as_posix()}".rstrip("/.")
    for given, out in ((path, tmp_path / "near"), (localise(url), tmp_path / "far")):
        dataset = open_dataset(given)
        mirror.release_all()  # what was fetched to open it must be asked for again
        copy = open_copy(dataset, out, size=SIZE, description="synthetic")

        def make(raw, dataset=dataset):
            steps = dataset.steps(raw)
            frames = np.full((steps, *SIZE, 3), 120, np.uint8)
            return WristStream(frames, np.ones(steps, bool), np.ones(steps, np.float32))

        assert not [bad for result in write_copy(copy, make) for bad in result.bad]
    assert lab.tree(tmp_path / "near") == lab.tree(tmp_path / "far")


# ---- only what is needed


def test_opening_fetches_no_shard_and_a_shard_fetches_itself(remote_small, small):
    dataset = open_dataset(root := localise(remote_small), "droid")
    assert fetched(root) == ["dataset_info.json", "features.json"]
    shards = dataset.splits[0].shards
    source_fingerprint(dataset, shards)  # by ranges alone
    assert fetched(root) == ["dataset_info.json", "features.json"]
    raws = list(dataset.records(shards[1]))
    assert [raw.error for raw in raws] == [None, None]
    assert fetched(root) == ["dataset_info.json", "features.json", shards[1].path.name]
    sizes = {p.name: p.stat().st_size for p in root.iterdir()}
    assert sizes == {p.name: p.stat().st_size for p in small.folder.iterdir()}


@pytest.mark.parametrize("name", ["libero", "aloha"])
def test_hdf5_files_are_looked_into_from_afar(name, s3, bucket, scratch, tmp_path, monkeypatch):
    kind = next(kind for kind in KINDS if kind.name == name)
    path = kind.create(tmp_path)
    for file in path.rglob("*.hdf5"):  # a file that is larger than what is read of it
        with h5py.File(file, "r+") as opened:
            opened["zeros"] = np.zeros(1 << 20, np.uint8)
    read, ranges = remote.Remote.read_range, []
    monkeypatch.setattr(
        remote.Remote, "read_range", lambda *a: (ranges.append(a[3] - a[2]), read(*a))[1]
    )
    root = localise(s3.put_tree(path, f"{bucket}/{path.name}"))
    dataset = open_dataset(root)
    files = sorted(p.name for p in root.rglob("*") if p.is_file())
    assert len(files) > 2 and fetched(root) == files[:1]
    assert 0 < sum(ranges) < (1 << 20) * len(files) / 2
    shards = dataset.splits[0].shards
    assert [s.records for s in shards] == [s.records for s in open_dataset(path).splits[0].shards]
    assert all(raw.error is None for raw in dataset.records(shards[1]))
    assert fetched(root) == files[:2]


def test_hdf5_files_that_lead_elsewhere_are_found_out_when_they_are_read(
    s3, bucket, scratch, tmp_path
):
    kind = next(kind for kind in KINDS if kind.name == "aloha")
    path = kind.create(tmp_path)
    last = sorted(path.rglob("*.hdf5"))[-1]
    with h5py.File(last, "r+") as opened:
        opened["away"] = h5py.ExternalLink("/etc/passwd", "/")
    dataset = open_dataset(localise(s3.put_tree(path, f"{bucket}/{path.name}")))
    (raw,) = dataset.records(dataset.splits[0].shards[-1])
    assert "outside the dataset; it was not followed" in str(raw.error)


def test_a_store_that_fails_while_hdf5_looks_is_no_damage(
    s3, bucket, scratch, tmp_path, monkeypatch
):
    kind = next(kind for kind in KINDS if kind.name == "aloha")
    path = kind.create(tmp_path)
    root = localise(s3.put_tree(path, f"{bucket}/{path.name}"))

    def gone(*_):
        raise RemoteError("the other end hung up")

    monkeypatch.setattr(remote.Remote, "read_range", gone)
    with pytest.raises(RemoteError, match="hung up"):
        open_dataset(root)


def test_ranges_of_stubs_are_those_of_files(remote_small, small):
    there = small.shard(2)
    path = localise(remote_small) / there.name
    data = there.read_bytes()
    for start, length in ((0, 10), (100, 65536), (len(data) - 3, 50), (len(data), 5), (0, 1 << 40)):
        assert read_range(path, start, length) == data[start : start + length]
        assert read_range(there, start, length) == data[start : start + length]
    assert edge_sha256(path) == edge_sha256(there) and is_stub(path)
    present(path)
    assert read_range(path, 7, 9) == data[7:16] == path.read_bytes()[7:16]


def test_ordinary_files_are_left_alone(tmp_path, remote_small):
    localise(remote_small)
    file = tmp_path / "of mine"
    file.write_bytes(b"abc")
    file.chmod(0)
    assert present(file) is file and present(str(file)) == str(file)
    assert mirror_of(file) is None and file.stat().st_mode & 0o777 == 0
    present(tmp_path / "missing")


def test_released_files_take_no_room_and_come_again(remote_small, small):
    root = localise(remote_small)
    path, own = root / small.shard(0).name, mirror_of(root)
    other = root / small.shard(1).name
    before = path.stat()
    present(path), present(other)
    assert path.stat().st_blocks and path.stat().st_mtime_ns == before.st_mtime_ns
    assert own.release([path]) == before.st_size
    assert is_stub(path) and path.stat().st_blocks == 0 and not is_stub(other)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert present(path).read_bytes() == small.shard(0).read_bytes()
    mirror.release_all(keep=[other])
    assert fetched(root) == [other.name]
    assert not list((own.top.parent / "parts").iterdir())


_HOLD = """
import sys
from wristaugment.jobs.mirror import localise
from wristaugment.readers.files import present
path = present(localise(sys.argv[1]) / sys.argv[2])
print("held", flush=True)
sys.stdin.read()
"""


def test_what_another_process_reads_is_not_released(remote_small, small):
    root, name = localise(remote_small), small.shard(0).name
    other = subprocess.Popen(
        [sys.executable, "-c", _HOLD, remote_small, name],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert other.stdout.readline() == "held\n"
        present(root / name)
        assert mirror_of(root).release([root / name]) == 0 and not is_stub(root / name)
    finally:
        other.kill()  # whatever way it ends
        other.communicate()
    assert mirror_of(root).release([root / name]) > 0 and is_stub(root / name)


def test_frames_in_files_of_their_own_come_several_at_a_time(
    s3, bucket, scratch, tmp_path, monkeypatch
):
    kind = next(kind for kind in KINDS if kind.name == "calvin")
    path = kind.create(tmp_path)
    dataset = open_dataset(localise(s3.put_tree(path, f"{bucket}/{path.name}")))
    together, most = [0], [0]
    get, guard = remote.Remote.get, threading.Lock()

    def counted(self, *given):
        with guard:
            together[0] += 1
            most[0] = max(most[0], together[0])
        time.sleep(0.05)
        get(self, *given)
        with guard:
            together[0] -= 1

    monkeypatch.setattr(remote.Remote, "get", counted)
    raw = next(dataset.records(dataset.splits[0].shards[0]))
    assert dataset.episode(raw).anchors[0].frames[:].any()
    assert most[0] > 4


# ---- several processes, and what dies

_READ = """
import hashlib, sys
from wristaugment.jobs.mirror import localise
from wristaugment.readers.files import present
root = localise(sys.argv[1])
for path in sorted(root.iterdir()):
    print(path.name, hashlib.sha256(present(path).read_bytes()).hexdigest())
print(root)
"""


def test_processes_share_one_mirror(remote_small, small, scratch, lab):
    command = [sys.executable, "-c", _READ, remote_small]
    jobs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    said = {job.communicate(timeout=120)[0] for job in jobs}
    assert [job.returncode for job in jobs] == [0] * 4 and len(said) == 1
    *lines, root = said.pop().splitlines()
    assert dict(line.split() for line in lines) == lab.tree(small.folder)
    assert root == str(localise(remote_small))
    homes = [path for path in scratch.iterdir() if path.is_dir()]
    assert len(homes) == 1 and not list((homes[0] / "parts").iterdir())


def test_a_file_is_fetched_once_by_all_its_threads(remote_small, small, monkeypatch):
    got, get = [], remote.Remote.get
    monkeypatch.setattr(
        remote.Remote, "get", lambda self, *given: (got.append(given[0]), get(self, *given))
    )
    path = localise(remote_small) / small.shard(0).name
    threads = [threading.Thread(target=present, args=(path,)) for _ in range(8)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert got == [path.name] and path.read_bytes() == small.shard(0).read_bytes()


def test_a_mirror_that_was_not_made_whole_is_made_anew(remote_small, small, monkeypatch):
    made, write = [], mirror._write_stub

    def killed(*given):
        made.append(given)
        if len(made) > 3:
            raise KeyboardInterrupt
        write(*given)

    with monkeypatch.context() as patch:
        patch.setattr(mirror, "_write_stub", killed)
        with pytest.raises(KeyboardInterrupt):
            localise(remote_small)
    root = localise(remote_small)
    assert sorted(p.name for p in root.iterdir()) == sorted(p.name for p in small.folder.iterdir())


def test_a_changed_source_is_another_mirror(s3, remote_small, scratch, small):
    first = mirror_of(localise(remote_small))
    name = small.shard(0).name
    data = small.shard(0).read_bytes()
    flipped = bytes([data[0] ^ 1]) + data[1:]
    s3.put(f"{remote_small}/{name}", flipped)  # of the same size
    second = mirror_of(localise(remote_small))
    assert second.key != first.key
    assert present(second.root / name).read_bytes() == flipped
    # What a job was begun with is found by its key without looking at the source, on this machine,
    assert localise(remote_small, key=first.key) == first.root
    shutil.rmtree(scratch)
    # and on another one only as long as the source is what it was.
    with pytest.raises(SourceError, match="not what it was when the job began"):
        localise(remote_small, key=first.key)
    assert mirror_of(localise(remote_small, key=second.key)).key == second.key


def test_a_known_mirror_is_not_listed_again(remote_small, monkeypatch):
    first = mirror_of(localise(remote_small))
    monkeypatch.setattr(remote.Remote, "listing", lambda self: pytest.fail("listed"))
    assert localise(remote_small, key=first.key) == first.root


# ---- what goes wrong


def test_a_bucket_or_folder_that_is_not_there(s3, bucket, scratch, capsys):
    for url in ("s3://no-such-bucket-here/data", f"{bucket}/nothing"):
        assert url in refused(capsys, "inspect", url)
    assert "gs://" in refused(capsys, "inspect", "nonsense://bucket/data")
    assert "s3://bucket/folder" in refused(capsys, "inspect", "s3://")


def test_what_is_needed_and_not_installed_is_named(scratch, capsys, monkeypatch):
    registry = importlib.import_module("fsspec.registry")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(registry._registry, "s3", raising=False)
    said = refused(capsys, "inspect", "s3://some-bucket/data")
    assert "s3fs" in said and "pip install 'wristaugment[remote]'" in said


def test_nothing_secret_is_said(scratch, capsys):
    said = refused(capsys, "inspect", "s3://me:hunter2@no-such-bucket-here/data")
    assert "hunter2" not in said and "no-such-bucket-here/data" in said
    assert remote.clean("https://host/a.zip?X-Amz-Signature=abc") == "https://host/a.zip"
    assert remote.clean("s3://bucket/what?/of@it/") == "s3://bucket/what?/of@it"


def test_a_wrong_key_is_told_from_a_wrong_place(s3, remote_small, scratch, capsys, monkeypatch):
    from botocore.exceptions import NoCredentialsError

    def denied(*_, **__):
        raise NoCredentialsError

    fs = type(s3.fs)
    monkeypatch.setattr(fs, "find", denied)
    said = refused(capsys, "inspect", remote_small)
    assert "may not be read" in said and "AWS_PROFILE" in said


def test_a_download_that_ends_early_is_refused(s3, remote_small, capsys, monkeypatch):
    get = remote.Remote.get

    def cut(self, name, path, url):
        get(self, name, path, url)
        os.truncate(path, os.stat(path).st_size - 1)

    monkeypatch.setattr(remote.Remote, "get", cut)
    said = refused(capsys, "inspect", remote_small)
    assert f"{remote_small}/dataset_info.json" in said or f"{remote_small}/features.json" in said
    assert "bytes long" in said
    root = localise(remote_small)
    assert fetched(root) == [] and not list((mirror_of(root).top.parent / "parts").iterdir())


def test_one_short_answer_is_asked_for_again(remote_small, small, monkeypatch):
    get, calls = remote.Remote.get, []

    def cut_once(self, name, path, url):
        get(self, name, path, url)
        if not calls:
            os.truncate(path, 5)
        calls.append(name)

    monkeypatch.setattr(remote.Remote, "get", cut_once)
    path = localise(remote_small) / small.shard(3).name
    assert present(path).read_bytes() == small.shard(3).read_bytes() and len(calls) == 2


def test_an_object_that_went_away_is_damage_of_its_record_alone(s3, remote_small, small):
    dataset = open_dataset(localise(remote_small), "droid")
    s3.remove(f"{remote_small}/{small.shard(1).name}")
    (lost,) = dataset.records(dataset.splits[0].shards[1])
    assert "is not there" in str(lost.error) and f"{remote_small}/{small.shard(1).name}" in str(
        lost.error
    )
    assert all(raw.error is None for raw in dataset.records(dataset.splits[0].shards[2]))


def test_a_store_that_does_not_answer_is_no_damage(remote_small, capsys, monkeypatch):
    dataset = open_dataset(localise(remote_small), "droid")

    def gone(*_, **__):
        raise ConnectionResetError("the other end hung up")

    monkeypatch.setattr(mirror_of(dataset.folder).remote(dataset.folder)[0], "get_file", gone)
    with pytest.raises(RemoteError, match="hung up"):
        list(dataset.records(dataset.splits[0].shards[0]))
    mirror.release_all()
    assert cli.main(["inspect", remote_small]) == 4
    said = capsys.readouterr().err
    assert remote_small in said and "hung up" in said and "Traceback" not in said


def test_a_full_scratch_says_so(remote_small, scratch, capsys, monkeypatch):
    import errno

    def full(self, name, path, url):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(remote.Remote, "get", full)
    assert cli.main(["inspect", remote_small]) == 4
    said = capsys.readouterr().err
    assert str(scratch) in said and "No space" in said


@pytest.mark.parametrize("name", ["a/../../x", "a//x", "n" * 300, "f/g"])
def test_names_that_no_file_can_have(name, s3, bucket, scratch, capsys):
    import boto3

    client = boto3.client("s3", endpoint_url=s3.endpoint)
    for key in (f"set/{name}", "set/f"):
        client.put_object(Bucket=bucket.removeprefix("s3://"), Key=key, Body=b"x")
    said = refused(capsys, "inspect", f"{bucket}/set")
    assert "rename it in the store" in said and bucket in said
    assert not [path for path in scratch.iterdir() if path.name.endswith("x")]


def test_marks_of_folders_are_no_files(s3, bucket, scratch):
    import boto3

    client = boto3.client("s3", endpoint_url=s3.endpoint)
    for key in ("set/", "set/sub/", "set/sub/file", "settle/other"):
        client.put_object(Bucket=bucket.removeprefix("s3://"), Key=key, Body=b"x")
    root = localise(f"{bucket}/set")
    assert [p.relative_to(root).as_posix() for p in root.rglob("*")] == ["sub", "sub/file"]


def test_a_folder_that_is_not_ours_is_not_used(tmp_path, monkeypatch):
    monkeypatch.delenv(mirror.SCRATCH, raising=False)
    monkeypatch.setattr(mirror.tempfile, "gettempdir", lambda: str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / f"wristaugment-{os.getuid()}")
    with pytest.raises(SourceError, match="not this user's"):
        mirror.scratch_folder()


def test_forty_thousand_stubs(tmp_path, monkeypatch):
    listing = [(f"data/{n // 1000:03d}/{n:07d}", n, "tag", 10**18) for n in range(40_000)]
    monkeypatch.setattr(remote.Remote, "listing", lambda self: listing)
    root = Mirror("s3://bucket/many", tmp_path).root
    found = [p for p in root.rglob("*") if p.is_file()]
    assert len(found) == len(listing) and all(map(is_stub, found))
    assert (root / "data/012/0012345").stat().st_size == 12345


# ---- commands


def test_a_copy_in_a_bucket_is_verified_and_scored(
    s3, small, remote_small, bucket, lab, tmp_path, capsys
):
    out = tmp_path / "out"
    assert lab.without_ray(small.args(out)).returncode == 0
    copy = s3.put_tree(out, f"{bucket}/copy")
    assert cli.main(["verify", copy]) == 0
    assert copy in capsys.readouterr().out
    assert not [name for name in fetched(localise(copy)) if "tfrecord" in name]
    assert cli.main(["verify", copy, "--source", remote_small]) == 0
    said = capsys.readouterr().out
    assert "8 records compared" in said and f"whole: every byte of the source is in {copy}" in said
    # Shards are let go of when they have been compared.
    assert not [name for name in fetched(localise(remote_small)) if "tfrecord" in name]

    left, right = "exterior_image_1_left", "exterior_image_2_left"
    words = ["evaluate", "--dataset", "droid", "--data-dir", remote_small, "--copy", copy]
    words += ["--against", right, "--anchor-keys", left, "--json", str(tmp_path / "figures.json")]
    assert cli.main(words) == 0
    assert len(json.loads((tmp_path / "figures.json").read_text())["episodes"]) == 8

    shard = next(name for name in s3.tree(copy) if "00002-of" in name)
    data = bytearray(s3.get(f"{copy}/{shard}"))
    data[len(data) // 2] ^= 1
    s3.put(f"{copy}/{shard}", bytes(data))
    assert cli.main(["verify", copy, "--source", remote_small]) == 3
    assert f"{copy}/{shard}" in capsys.readouterr().out


def test_other_formats_are_made_of_a_remote_corpus(s3, bucket, scratch, tmp_path, lab):
    from format_kinds import CORPUS

    url = s3.put_tree(CORPUS, f"{bucket}/droid_101/1.0.1")
    for name, source in (("near", str(CORPUS)), ("far", url)):
        words = ["simulate", "--from", source, "--format", "calvin", "--out", str(tmp_path / name)]
        assert cli.main(words) == 0
    assert lab.tree(tmp_path / "near") == lab.tree(tmp_path / "far")


def test_ranks_of_a_training_read_what_the_command_saw(s3, remote_small, monkeypatch):
    from wristaugment.jobs.stages import TrainJob

    data_dir, key = mirror.pinned(remote_small)
    job = TrainJob("reconstruction", None, "droid", data_dir, ("train",), None, None, data_key=key)
    monkeypatch.setattr(remote.Remote, "listing", lambda self: pytest.fail("listed"))
    assert job.open_source().folder == localise(remote_small, key=key)
    assert mirror.pinned("some/folder") == (os.path.abspath("some/folder"), None)

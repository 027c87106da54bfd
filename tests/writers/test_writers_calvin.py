"""The augmented copy of a CALVIN dataset, and new ones from recorded episodes."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import zipfile
from pathlib import Path

import calvin_kit as kit
import numpy as np
import pytest
import yaml
from wristaugment.readers.calvin import open_source
from wristaugment.readers.errors import SourceError
from wristaugment.writers import atomic
from wristaugment.writers.calvin import Copy
from wristaugment.writers.calvin_create import create
from wristaugment.writers.copy import staged_files
from wristaugment.writers.recorded import recorded_splits

CORPUS = Path("tests/fixtures/corpus/droid_101/1.0.1")
SAYS = "synthetic: made by a test\nin two lines"


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """A dataset without rgb_gripper. Do not write to it."""
    return kit.build(tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="module")
def handed(tmp_path_factory) -> Path:
    """A dataset with rgb_gripper. Do not write to it."""
    return kit.build(tmp_path_factory.mktemp("handed"), gripper=True)


def _copy(source: Path, out: Path, **options) -> Copy:
    options = {"size": kit.SIZE, "description": SAYS} | options
    return Copy(open_source(source), out, **options)


def _contents(dataset, more: tuple[str, ...] = ()) -> dict:
    return {
        (str(raw.record), key): value
        for raw in kit.raws(dataset)
        for key, value in dataset.content(raw)
        if key.rpartition("/")[2] not in more
    }


@pytest.mark.parametrize("gripper", [False, True])
def test_all_that_was_there_is_in_the_copy_and_the_new_stream_beside_it(
    bare, handed, tmp_path, gripper
):
    source = handed if gripper else bare
    copy = _copy(source, tmp_path / "out")
    key = "wrist_rgb" if gripper else "rgb_gripper"
    assert (copy.wrist_key, copy.stream_key, copy.replaces) == (key, key, False)
    results = kit.write(copy, tmp_path / "staged")
    json.dumps([dataclasses.asdict(result) for result in results])
    assert [result.bad for result in results] == [[], []]
    assert [result.records for result in results] == [3, 1]
    old, new = kit.tree(source), kit.tree(copy.folder)
    added = {f"wristaugment_{key}.json"}
    added |= {"wristaugment_observation_space.yaml"} if gripper else set()
    assert new.keys() == old.keys() | added
    frames = [name for name in old if "/episode_" in name]
    assert len(frames) == 38
    for name, data in old.items():
        if name not in frames:
            assert new[name] == data, name
            continue
        # The old archive's members are an exact prefix of the new one.
        with zipfile.ZipFile(source / name) as before, zipfile.ZipFile(copy.folder / name) as after:
            assert after.testzip() is None
            assert new[name].startswith(data[: before.start_dir])
            count = len(before.infolist())
            names = [entry.filename for entry in after.infolist()]
            assert names[count:] == [f"{key}.npy", "wrist_valid.npy", "wrist_confidence.npy"]
            for a, b in zip(before.infolist(), after.infolist(), strict=False):
                assert (a.filename, a.CRC, a.date_time) == (b.filename, b.CRC, b.date_time)
            assert after.infolist()[-1].date_time == (1980, 1, 1, 0, 0, 0)
        number = np.array([int(name[-11:-4])])
        want = kit.stream(number)
        with np.load(copy.folder / name) as arrays:
            assert arrays[key].dtype == np.uint8
            assert np.array_equal(arrays[key], want.frames[0])
            assert arrays["wrist_valid"].dtype == bool and arrays["wrist_valid"].shape == ()
            assert arrays["wrist_valid"] == want.valid[0]
            told = arrays["wrist_confidence"]
            assert told.dtype == np.float32 and told.shape == ()
            assert np.array_equal(told, want.confidence[0], equal_nan=True)
    again = open_source(copy.folder, plain=True)
    assert _contents(again, copy.new_keys) == _contents(open_source(source))
    for raw in kit.raws(again):
        assert np.array_equal(again.frames(raw, key)[:], kit.make(raw).frames)
        assert np.array_equal(again.flags(raw, "wrist_valid"), kit.make(raw).valid)
    says = json.loads((copy.folder / f"wristaugment_{key}.json").read_text())
    assert says["synthetic"] is True and says["description"] == SAYS
    assert ("note" in says) == (not gripper)


def test_trainers_read_the_copy(bare, handed, tmp_path):
    copy = _copy(handed, tmp_path / "a")
    kit.write(copy, tmp_path / "staged")
    space = copy.folder / "wristaugment_observation_space.yaml"
    episode = kit.read_as_trainers_do(copy.folder / "training", space, 40, 8)
    assert episode["wrist_rgb"].shape == (8, *kit.SIZE, 3)
    assert np.array_equal(episode["wrist_rgb"], kit.stream(np.arange(40, 48)).frames)
    assert episode["rgb_static"].shape == (8, 20, 20, 3) and episode["scene_obs"].shape == (8, 24)
    assert yaml.safe_load(space.read_text())["language"] == ["language"]
    # Without a hand camera the trainer's own configuration is enough.
    copy = _copy(bare, tmp_path / "b", size=(84, 84))
    kit.write(copy, tmp_path / "staged", lambda raw: kit.stream(raw.numbers, (84, 84)))
    space = tmp_path / "lang_rgb_static_gripper.yaml"
    space.write_text("rgb_obs: ['rgb_static', 'rgb_gripper']\nstate_obs: ['robot_obs']\n")
    episode = kit.read_as_trainers_do(copy.folder / "validation", space, 100, 6)
    assert episode["rgb_gripper"].shape == (6, 84, 84, 3)
    assert "note" not in json.loads((copy.folder / "wristaugment_rgb_gripper.json").read_text())


def test_the_same_again_gives_the_same_bytes(handed, tmp_path):
    first, second = _copy(handed, tmp_path / "a"), _copy(handed, tmp_path / "b")
    one = kit.write(first, tmp_path / "staged")
    two = kit.write(second, tmp_path / "elsewhere")
    assert one == two
    assert kit.tree(first.folder) == kit.tree(second.folder)
    # What a stopped write has left is overwritten.
    staged = tmp_path / "left"
    (staged / "training").mkdir(parents=True)
    (staged / "training" / "episode_0000005.npz").write_bytes(b"half" * 100_000)
    result = second.write_shard(second.shards[0], staged, kit.make)
    assert result == one[0]
    third = {name: (staged / name).read_bytes() for name in result.files}
    assert all(kit.tree(first.folder)[name] == data for name, data in third.items())
    moved = shutil.copytree(handed, tmp_path / "moved" / "task_T")
    kit.write(_copy(moved, tmp_path / "c"), tmp_path / "staged")
    assert kit.tree(tmp_path / "c") == kit.tree(tmp_path / "a")


def test_names_that_are_taken_are_refused(bare, handed, tmp_path):
    with pytest.raises(SourceError, match=r"stream of this name already.*--replace"):
        _copy(handed, tmp_path, wrist_key="rgb_gripper")
    for name, found in (
        ("robot_obs", "no picture"),
        ("../x", "cannot be the name"),
        ("", "cannot be the name"),
        ("language", "cannot be the name"),
        ("wrist_valid", "have this key already"),
    ):
        with pytest.raises(SourceError, match=found):
            _copy(handed, tmp_path, wrist_key=name)
    assert _copy(bare, tmp_path, wrist_key="hand").stream_key == "hand"
    assert _copy(bare, tmp_path, wrist_key="observation/wrist_rgb").stream_key == "rgb_gripper"
    with pytest.raises(SourceError, match="lie in the dataset"):
        _copy(bare, bare.parent)
    copy = _copy(handed, tmp_path / "out")
    kit.write(copy, tmp_path / "staged")
    with pytest.raises(SourceError, match=r"key 'wrist_valid': .*--replace"):
        _copy(copy.folder, tmp_path / "again", wrist_key="second")


def test_replace_overwrites_in_the_copy_alone(handed, tmp_path):
    before = kit.tree(handed)
    copy = _copy(handed, tmp_path / "out", wrist_key="rgb_gripper", replace=True)
    assert copy.replaces
    kit.write(copy, tmp_path / "staged")
    assert kit.tree(handed) == before
    for path in copy.folder.rglob("episode_*.npz"):
        name = path.relative_to(copy.folder)
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
        with np.load(handed / name) as old, np.load(path) as new:
            keys = [key for key in old.files if key != "rgb_gripper"]
            assert new.files == [*keys, "rgb_gripper", "wrist_valid", "wrist_confidence"]
            assert all(np.array_equal(old[key], new[key]) for key in keys)
            want = kit.stream(np.array([int(path.stem[8:])])).frames[0]
            assert np.array_equal(new["rgb_gripper"], want)
    # A stream of ours, replaced by itself, gives the same files again.
    third = _copy(copy.folder, tmp_path / "third", wrist_key="rgb_gripper", replace=True)
    kit.write(third, tmp_path / "staged")
    assert kit.tree(third.folder) == kit.tree(copy.folder)


def test_what_is_not_wanted_is_black(bare, tmp_path):
    copy = _copy(bare, tmp_path / "out", limit=1)
    assert [shard.records for shard in copy.shards] == [1, 0]
    asked = []
    results = kit.write(copy, tmp_path / "staged", lambda raw: asked.append(raw) or kit.make(raw))
    assert len(asked) == 1 and [result.bad for result in results] == [[], []]
    found = open_source(copy.folder)
    raws = kit.raws(found)
    assert np.array_equal(found.frames(raws[0], "rgb_gripper")[:], kit.make(raws[0]).frames)
    for raw in raws[1:]:
        assert not found.frames(raw, "rgb_gripper")[:].any()
        assert not found.flags(raw, "wrist_valid").any()
    only = _copy(bare, tmp_path / "only", splits=["validation"])
    assert [shard.records for shard in only.shards] == [0, 1]


def test_damage_is_named_and_the_rest_completes(handed, tmp_path):
    source = shutil.copytree(handed, tmp_path / "task_T")
    training = source / "training"
    (training / "episode_0000007.npz").unlink()
    cut = training / "episode_0000044.npz"
    cut.write_bytes(cut.read_bytes()[:-60])
    long = training / "episode_0000030.npz"
    np.savez_compressed(long, **dict(np.load(long)), wrist_rgb=np.zeros(3))
    copy = _copy(source, tmp_path / "out")
    asked = []
    results = kit.write(copy, tmp_path / "staged", lambda raw: asked.append(raw) or kit.make(raw))
    rows = [(r["record"], r["what"], r["file"], r["key"]) for r in results[0].bad]
    assert rows == [
        (0, "placeholder", "episode_0000007.npz", None),
        (1, "placeholder", "episode_0000030.npz", "wrist_rgb"),
        (2, "placeholder", "episode_0000044.npz", None),
    ]
    assert "no whole archive" in results[0].bad[2]["found"]
    assert results[1].bad == [] and [str(raw.record) for raw in asked] == ["validation/0/0"]
    # Damaged files are in the copy as they are; the others of their records got black frames.
    for name in ("episode_0000044.npz", "episode_0000030.npz"):
        path = copy.folder / "training" / name
        assert path.read_bytes() == (training / name).read_bytes()
    assert not (copy.folder / "training" / "episode_0000007.npz").exists()
    with np.load(copy.folder / "training" / "episode_0000043.npz") as arrays:
        assert not arrays["wrist_rgb"].any() and not arrays["wrist_valid"]
        assert arrays["rgb_static"].any()
    with np.load(copy.folder / "validation" / "episode_0000103.npz") as arrays:
        assert arrays["wrist_rgb"].any() and arrays["wrist_valid"]


def test_what_a_recipe_cannot_do_is_a_placeholder(bare, tmp_path):
    def make(raw):
        raise SourceError("no geometry", key="rgb_static")

    copy = _copy(bare, tmp_path / "out")
    results = kit.write(copy, tmp_path / "staged", make)
    assert [row["found"] for result in results for row in result.bad] == ["no geometry"] * 4
    found = open_source(copy.folder)
    assert not any(found.flags(raw, "wrist_valid").any() for raw in kit.raws(found))
    with pytest.raises(ValueError, match="where"):
        kit.write(copy, tmp_path / "staged", lambda raw: kit.stream(raw.numbers, (8, 8)))


def test_a_file_that_cannot_be_read_does_no_harm(bare, tmp_path):
    source = shutil.copytree(bare, tmp_path / "task_T")
    place = source / "validation" / "episode_0000102.npz"
    place.unlink()
    os.mkfifo(place)
    (source / "validation" / "episode_0000104.npz").unlink()
    (source / "validation" / "episode_0000104.npz").symlink_to("/nowhere/at/all")
    copy = _copy(source, tmp_path / "out")
    results = kit.write(copy, tmp_path / "staged")
    assert [row["file"] for row in results[1].bad] == ["episode_0000102.npz"]
    assert "no regular file" in results[1].bad[0]["found"]
    names = {path.name for path in (copy.folder / "validation").glob("*.npz")}
    assert names == {f"episode_0000{n}.npz" for n in (100, 101, 103, 105)}


def test_a_refused_pickle_is_carried_and_never_loaded(bare, tmp_path):
    source = shutil.copytree(bare, tmp_path / "task_T")
    marker = tmp_path / "pwned"

    class Runs:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    path = source / "training" / "lang_annotations" / "auto_lang_ann.npy"
    np.save(path, np.array(Runs(), dtype=object), allow_pickle=True)
    copy = _copy(source, tmp_path / "out")
    dataset = copy.dataset
    assert dataset.episode(kit.raws(dataset)[0]).language == ""
    assert dataset.episode(kit.raws(dataset)[-1]).language == "open the drawer 0"
    (note,) = dataset.notes()
    assert "asks for posix.system" in note and "without language" in note
    kit.write(copy, tmp_path / "staged")
    same = copy.folder / "training" / "lang_annotations" / "auto_lang_ann.npy"
    assert same.read_bytes() == path.read_bytes() and not marker.exists()


def test_staged_files_are_hashed_and_brought_to_the_disk(tmp_path, monkeypatch):
    names = [f"a/{i}" for i in range(20)]
    (tmp_path / "a").mkdir()
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    want = staged_files(tmp_path)
    assert list(want) == sorted(names) and want["a/3"][0] == 3
    assert staged_files(tmp_path, {"a/3": [9, 9]}) == want | {"a/3": [9, 9]}
    for many, whole in ((1, True), (1, False), (100, True)):
        synced, called = [], []
        monkeypatch.setattr(atomic, "_MANY", many)
        monkeypatch.setattr(atomic, "_syncs_whole", lambda folder, whole=whole: whole)
        monkeypatch.setattr(atomic, "_sync_file_system", called.append)
        monkeypatch.setattr(atomic, "_fsync", synced.append)
        atomic.sync_files(tmp_path, names)
        everything = {tmp_path / name for name in names}
        assert called == ([tmp_path] if many == 1 and whole else [])
        assert set(synced) == (set() if called else everything)
    monkeypatch.undo()
    atomic._sync_file_system(tmp_path)
    with pytest.raises(OSError):
        atomic._sync_file_system(tmp_path / "nowhere")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return create(tmp_path_factory.mktemp("made"), recorded_splits(CORPUS), wrist=True)


def test_new_datasets_are_as_the_real_ones(made, tmp_path):
    again = create(tmp_path, recorded_splits(CORPUS), wrist=True)
    assert kit.tree(made) == kit.tree(again)
    without = create(tmp_path / "without", recorded_splits(CORPUS))
    assert sorted(p.name for p in made.iterdir()) == ["training", "validation"]
    assert len(list((made / "training").glob("episode_*.npz"))) == 24
    with np.load(made / "training" / "episode_0000000.npz") as arrays:
        found = {key: (arrays[key].shape, arrays[key].dtype.name) for key in arrays.files}
        assert arrays["actions"][6] in (-1.0, 1.0)
    vectors = {"actions": 7, "rel_actions": 7, "robot_obs": 15, "scene_obs": 24}
    assert found == {key: ((count,), "float64") for key, count in vectors.items()} | {
        "rgb_static": ((200, 200, 3), "uint8"),
        "rgb_gripper": ((84, 84, 3), "uint8"),
        "depth_static": ((200, 200), "float32"),
        "depth_gripper": ((84, 84), "float32"),
    }
    with np.load(without / "training" / "episode_0000000.npz") as arrays:
        assert not [key for key in arrays.files if "gripper" in key]
    language = np.load(
        made / "training" / "lang_annotations" / "auto_lang_ann.npy", allow_pickle=True
    ).item()
    assert language["info"]["indx"] == [(0, 7), (8, 15), (16, 23)]
    assert language["language"]["emb"].shape == (3, 1, 384)
    dataset = open_source(made)
    words = [dataset.episode(raw).language for raw in kit.raws(dataset)]
    assert words == [r.language[0] for split in recorded_splits(CORPUS).values() for r in split]


def test_poses_and_depth_of_new_datasets_agree(made):
    """What the hand camera sees lies where the static camera sees it."""
    dataset = open_source(made)
    for raw in kit.raws(dataset):
        episode = dataset.episode(raw, wrist="rgb_gripper", depth=True)
        hand, static = episode.wrist, episode.anchors[0]
        assert static.depth[0].max() < 10
        v, u = np.mgrid[: hand.size[0], : hand.size[1]].reshape(2, -1)
        z = hand.depth[3].ravel()
        rays = np.linalg.inv(hand.K) @ np.stack([u, v, np.ones_like(u)])
        points = np.vstack([rays * z, np.ones_like(z)])
        seen = (static.pose @ np.linalg.inv(hand.pose[3]) @ points)[:3, z > 0]
        x, y, _ = np.rint(static.K @ (seen / seen[2])).astype(int)
        inside = (x >= 0) & (x < 200) & (y >= 0) & (y < 200)
        apart = np.abs(static.depth[3][y[inside], x[inside]] - seen[2, inside])
        # The hand hides what lies behind it from the static camera; all else agrees.
        assert inside.mean() > 0.5 and (apart < 0.02).mean() > 0.5


def test_a_copy_of_a_new_dataset(made, tmp_path):
    copy = _copy(made, tmp_path / "out", size=Copy.default_size)
    kit.write(copy, tmp_path / "staged", lambda raw: kit.stream(raw.numbers, (84, 84)))
    space = copy.folder / "wristaugment_observation_space.yaml"
    episode = kit.read_as_trainers_do(copy.folder / "validation", space, 0, 8)
    assert episode["wrist_rgb"].shape == (8, 84, 84, 3)
    assert episode["robot_obs"].dtype == np.float64

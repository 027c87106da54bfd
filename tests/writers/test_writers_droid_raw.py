"""Copies of raw DROID: every old file byte for byte, one more video, and a sidecar of flags."""

import dataclasses
import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from raw_episodes import (
    SIZE,
    STEPS,
    copy_dataset,
    make_dataset,
    make_episode,
    pictures,
    records,
    smooth,
    stream,
    tree,
    write_video,
)
from wristaugment.readers.droid_raw import open_source
from wristaugment.readers.errors import SourceError
from wristaugment.writers.droid_raw_create import create
from wristaugment.writers.recorded import recorded_splits

CORPUS = Path("tests/fixtures/corpus/droid_101/1.0.1")
NEW = ("recordings/MP4/wrist_rgb.mp4", "wristaugment.json")


@pytest.fixture
def source(tmp_path):
    return make_dataset(tmp_path / "droid_raw")


def test_copy_holds_the_source_and_the_new_stream(source, tmp_path):
    before = tree(source)
    out, results = copy_dataset(source, tmp_path / "out")
    after = tree(out)
    assert {key: after[key] for key in before} == before == tree(source)
    assert all(key.endswith(NEW) for key in after.keys() - before.keys())
    assert len(after) == len(before) + 2 * 3
    a, b = open_source(source), open_source(out)
    assert a.profile == b.profile
    for result, old, new in zip(results, records(a), records(b), strict=True):
        assert result.records == 1 and result.bad == []
        json.dumps(dataclasses.asdict(result))
        steps = a.steps(old)
        made = stream(steps, old.record.shard)
        frames = b.frames(new, "recordings/MP4/wrist_rgb")[:]
        assert frames.shape == (steps, *SIZE, 3) and frames.dtype == np.uint8
        assert np.abs(frames.astype(int) - made.frames).mean() < 6
        assert b.flags(new, "wrist_valid").tolist() == made.valid.tolist()
        told = b.flags(new, "wrist_confidence").astype(np.float32)
        assert np.array_equal(told, made.confidence, equal_nan=True)
        sidecar = b.file_of(new.record) / "wristaugment.json"
        assert "NaN" not in sidecar.read_text()  # which is no JSON
        own = ("recordings/MP4/wrist_rgb", "wristaugment.json:wrist_rgb")
        kept = [item for item in b.content(new) if item[0] not in own]
        assert kept == list(a.content(old))
    path = out / "LAB/success/2023-07-07/ep0" / NEW[0]
    with av.open(str(path)) as container:  # as any player sees it
        video = container.streams.video[0]
        assert (video.frames, video.average_rate) == (STEPS, 60)
        assert (video.codec_context.height, video.codec_context.width) == SIZE
    about = json.loads((path.parents[2] / "wristaugment.json").read_text())["streams"]["wrist_rgb"]
    assert about["description"] == "synthetic, for tests" and about["synthetic"] is True


def test_same_bytes_again_and_after_an_interruption(source, tmp_path):
    out, results = copy_dataset(source, tmp_path / "a")
    dataset = open_source(source)

    def stops(raw):
        if raw.record.split == "failure":
            raise OSError(28, "No space left on device")
        return smooth(dataset)(raw)

    with pytest.raises(OSError, match="No space"):
        copy_dataset(source, tmp_path / "b", stops)
    moved = Path(shutil.move(source, tmp_path / "elsewhere")).rename(tmp_path / "droid_raw")
    again, second = copy_dataset(moved, tmp_path / "b")
    assert tree(out) == tree(again) and results == second


def test_collisions_are_refused_and_replace_replaces_in_the_copy_alone(source, tmp_path):
    episode = source / "LAB/success/2023-07-07/ep0"
    write_video(episode / NEW[0], pictures(STEPS, *SIZE, seed=3))
    before = tree(source)
    with pytest.raises(SourceError, match="a stream of this name already"):
        copy_dataset(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    out, _ = copy_dataset(source, tmp_path / "out", replace=True)
    assert tree(source) == before
    changed = [key for key in before if tree(out)[key] != before[key]]
    assert changed == [(episode / NEW[0]).relative_to(source).as_posix()]


def test_a_second_stream_joins_the_first(source, tmp_path):
    one, _ = copy_dataset(source, tmp_path / "one")
    two, _ = copy_dataset(one, tmp_path / "two", wrist_key="recordings/MP4/other.mp4")
    a, b = open_source(one), open_source(two)
    for old, new in zip(records(a), records(b), strict=True):
        kept = [item for item in b.content(new) if "other" not in item[0]]
        assert kept == list(a.content(old))
        assert (b.flags(new, "wrist_valid") == stream(b.steps(new), new.record.shard).valid).all()


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".hidden", "wrist_valid", "111-stereo"])
def test_unusable_names_and_sizes_are_refused(source, tmp_path, name):
    with pytest.raises(SourceError, match="cannot be the name"):
        copy_dataset(source, tmp_path / "out", wrist_key=name)
    with pytest.raises(SourceError, match="even"):
        copy_dataset(source, tmp_path / "out", size=(15, 32))


def test_damage_is_listed_and_the_rest_is_made(source, tmp_path):
    whole, _ = copy_dataset(source, tmp_path / "whole")
    first, last = source / "LAB/success/2023-07-07/ep0", source / "LAB/success/2023-07-07/ep2"
    video = first / "recordings/MP4/222.mp4"
    video.unlink()
    table = last / "trajectory.h5"
    table.write_bytes(table.read_bytes()[:1000])
    next(last.glob("metadata_*.json")).write_text("{")
    dataset = open_source(source)

    def make(raw):
        dataset.episode(raw)
        return smooth(dataset)(raw)

    out, results = copy_dataset(source, tmp_path / "out", make)
    bad = [row for result in results for row in result.bad]
    assert [(row["what"], row["file"]) for row in bad] == [
        ("placeholder", "222.mp4"),
        ("left out", next(last.glob("metadata_*.json")).name),
    ]
    assert [result.records for result in results] == [1, 0, 1]
    after, want = tree(out), tree(whole)
    assert all(after[key] == want[key] for key in want if "failure" in key)
    assert not any("ep2" in key for key in after)
    copied = open_source(out)
    black = records(copied)[0]
    assert not copied.flags(black, "wrist_valid").any()
    assert copied.frames(black, "wrist_rgb")[:].max() < 4
    assert copied.frames(black, "wrist_rgb").shape == (STEPS, *SIZE, 3)


def test_splits_and_limits_leave_the_rest_out(source, tmp_path):
    out, results = copy_dataset(source, tmp_path / "out", limit=1)
    assert len(results) == 1 and [s.records for s in open_source(out).splits] == [1]
    out, results = copy_dataset(source, tmp_path / "out2", splits=["failure"])
    assert [s.name for s in open_source(out).splits] == ["failure"]
    assert (out / "README.txt").read_text() == "about it"


def test_one_episode_can_be_copied_by_its_own_folder(tmp_path):
    source = make_episode(tmp_path / "ep7")
    out, _ = copy_dataset(source, tmp_path / "out")
    assert out.name == "ep7" and (out / NEW[0]).is_file() and (out / "trajectory.h5").is_file()


def test_created_episodes_hold_the_recorded_ones(tmp_path):
    splits = recorded_splits(CORPUS)
    root = create(tmp_path / "a", splits, wrist=True)
    assert tree(root) == tree(create(tmp_path / "b", splits, wrist=True))
    dataset = open_source(root)
    recorded = [episode for split in splits.values() for episode in split]
    for raw, want in zip(records(dataset), recorded, strict=True):
        got = dataset.episode(raw, wrist="wrist")
        assert got.language == want.language[0]
        np.testing.assert_allclose(got.eef_pose, want.eef, atol=1e-9)
        np.testing.assert_allclose(got.gripper, want.gripper)
        views = {"exterior_1": got.anchors[0], "exterior_2": got.anchors[1], "wrist": got.wrist}
        for name, view in views.items():
            source = want.views[name]
            np.testing.assert_allclose(view.pose, source.pose, atol=1e-6)
            np.testing.assert_allclose(view.K, source.K)
            assert np.abs(view.frames[:].astype(int) - source.frames).mean() < 5
    plain = open_source(create(tmp_path / "c", splits))
    assert plain.profile.wrist is None and len(plain.profile.anchors) == 2
    assert plain.episode(records(plain)[0]).wrist_mount is not None

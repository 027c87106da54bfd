"""The contract that every format keeps, through its own reader and writer and through the job."""

import json

import numpy as np
import pytest
from copying import confidences, maker, picture, write_copy
from format_kinds import KINDS, SIZE
from wristaugment.jobs.verify_copy import first_difference, is_new
from wristaugment.readers import open_dataset
from wristaugment.readers.errors import SourceError
from wristaugment.readers.formats import FORMATS, recognise
from wristaugment.writers.copy import CONFIDENCE, VALID
from wristaugment.writers.formats import open_copy

LOSSY = 8  # grey levels: JPEG and video round colours, and halve their resolution


def every(dataset):
    """Every record with its shard, in order."""
    return [
        (shard, raw)
        for split in dataset.splits
        for shard in split.shards
        for raw in dataset.records(shard)
    ]


def opened(copy, dataset):
    """The copy, as its own reader opens it."""
    path = copy.folder
    return open_dataset(path if dataset.folder.is_dir() else path / dataset.folder.name, plain=True)


def run_words(made, out, *more):
    return "run", "--data-dir", made.path, "--out", out, "--recipe", "constant", *more


@pytest.fixture
def pair(dataset, tmp_path):
    """(source, its copy with pictures in it, the copy opened)."""
    source = open_dataset(dataset.path)
    copy = open_copy(source, tmp_path / "out", size=SIZE, description="synthetic, for tests")
    write_copy(copy, maker(source, SIZE, invalid=2))
    return source, copy, opened(copy, source)


def test_every_format_of_the_table_is_in_the_contract():
    assert {row.name for row in FORMATS} == {kind.format for kind in KINDS}


def test_it_is_recognised_and_its_episodes_are_whole(dataset):
    row = recognise(dataset.path)
    assert row is not None and row.name == dataset.kind.format
    source = open_dataset(dataset.path)
    assert source.format == row.name and source.profile.anchors
    streams = {stream.key: stream for stream in source.streams()}
    records = every(source)
    assert sum(source.steps(raw) for _, raw in records) == 4 * 8
    for shard, raw in records:
        assert raw.error is None and raw.record.split == shard.split
        episode = source.episode(raw)
        assert episode.length == source.steps(raw) > 0
        for view in episode.anchors:
            assert view.key in streams and not streams[view.key].depth
            frames = np.asarray(view.frames)
            assert frames.shape[0] == episode.length and frames.shape[3] == 3
            assert frames.dtype == np.uint8 and frames.std() > 5
            # Upright: the simulated table's lower half is the wooden top, the upper the wall.
            assert source.frames(raw, view.key)[0].shape[:2] == frames.shape[1:3]


def test_everything_is_kept_and_the_stream_is_added(pair):
    source, copy, made = pair
    assert [(s.name, s.records) for s in made.splits] == [
        (s.name, s.records) for s in source.splits
    ]
    own = lambda key: is_new(key, copy)
    for (shard, old), (twin, new) in zip(every(source), every(made), strict=True):
        assert old.record == new.record and new.error is None
        kept = list(source.content(old))
        assert len({key for key, _ in kept}) > 1
        assert first_difference(iter(kept), made.content(new), own) is None
        shared = source.shared_content(shard), made.shared_content(twin)
        assert first_difference(*shared, own) is None
        steps = source.steps(old)
        frames = np.asarray(made.frames(new, copy.stream_key)[:])
        assert frames.shape == (steps, *SIZE, 3) and frames.dtype == np.uint8
        valid = made.flags(new, VALID)
        assert valid.astype(bool).tolist() == [step != 2 for step in range(steps)]
        told = made.flags(new, CONFIDENCE)
        assert np.array_equal(
            told.astype(np.float32), confidences(valid.astype(bool)), equal_nan=True
        )
        assert source.flags(old, VALID) is None and source.flags(old, CONFIDENCE) is None


def test_frames_are_the_same_way_up_as_the_anchors_are_stored(pair):
    source, copy, made = pair
    for (_, old), (_, new) in zip(every(source), every(made), strict=True):
        anchor = source.episode(old).anchors[0]
        upright, stored = anchor.frames[0], source.frames(old, anchor.key)[0]
        flipped = not np.array_equal(np.asarray(upright), np.asarray(stored))
        if flipped:
            assert np.array_equal(np.asarray(upright)[::-1], np.asarray(stored))
        frames = made.frames(new, copy.stream_key)
        for step in (0, 1, source.steps(old) - 1):
            want = picture(new.record, step, SIZE).astype(int)
            want = want[::-1] if flipped else want
            off = np.abs(np.asarray(frames[step]).astype(int) - want).mean()
            assert off < LOSSY
            assert off < np.abs(want - want[::-1]).mean() / 2
        assert np.asarray(frames[2]).max() <= 4


def test_the_same_streams_give_the_same_bytes(dataset, tmp_path, tree):
    source = open_dataset(dataset.path)
    for name in ("a", "b"):
        copy = open_copy(source, tmp_path / name, size=SIZE, description="synthetic")
        results = write_copy(copy, maker(source, SIZE))
        copy.finish(results)  # again
        json.dumps([vars(result) for result in results])
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_collisions_are_refused_and_replace_replaces(pair, tmp_path):
    source, copy, made = pair
    again = open_dataset(made.folder)
    key = copy.stream_key
    with pytest.raises(SourceError, match="--wrist-key") as caught:
        open_copy(again, tmp_path / "no", wrist_key=key, size=SIZE, description="")
    assert key in str(caught.value)
    assert not (tmp_path / "no").exists()
    size = (SIZE[0] + 8, SIZE[1] + 16)
    second = open_copy(
        again, tmp_path / "yes", wrist_key=key, size=size, description="", replace=True
    )
    assert second.replaces and second.stream_key == key
    write_copy(second, maker(again, size))
    result = opened(second, again)
    own = lambda name: is_new(name, second)
    for (_, old), (_, new) in zip(every(source), every(result), strict=True):
        assert first_difference(source.content(old), result.content(new), own) is None
        assert np.asarray(result.frames(new, key)[:]).shape[1:] == (*size, 3)
        assert result.flags(new, VALID).all()


def test_a_record_that_cannot_be_made_is_black_and_listed(dataset, tmp_path):
    source = open_dataset(dataset.path)
    copy = open_copy(source, tmp_path / "out", size=SIZE, description="")
    draw, bad = maker(source, SIZE), every(source)[-1][1].record

    def make(raw):
        if raw.record == bad:
            raise SourceError("no usable camera", key="cam", todo="name another")
        return draw(raw)

    results = write_copy(copy, make)
    (row,) = [row for result in results for row in result.bad]
    assert (row["record"], row["found"], row["key"]) == (bad.index, "no usable camera", "cam")
    made = opened(copy, source)
    for _, raw in every(made):
        valid = made.flags(raw, VALID)
        assert not valid.any() if raw.record == bad else valid.all()
    assert np.asarray(made.frames(raw, copy.stream_key)[:]).max() <= 4


def test_streams_of_another_length_or_size_are_a_fault(dataset, tmp_path):
    source = open_dataset(dataset.path)
    copy = open_copy(source, tmp_path / "out", size=SIZE, description="")
    for size, cut in (((SIZE[0] + 2, SIZE[1]), 0), (SIZE, 1)):

        def make(raw, size=size, cut=cut):
            stream = maker(source, size)(raw)
            stream.frames = stream.frames[cut:]
            return stream

        with pytest.raises(ValueError, match=r"where .* is due"):
            write_copy(copy, make)


def test_the_job_makes_it_verifies_it_and_changes_nothing_the_second_time(
    dataset, tmp_path, job, tree
):
    before, out = tree(dataset.root), tmp_path / "out"
    size = f"{SIZE[0]}x{SIZE[1]}"
    words = run_words(dataset, out, "--wrist-size", size)
    code, said = job(*words)
    assert code == 0, said
    first = tree(out)
    code, said = job("verify", out, "--source", dataset.path)
    assert code == 0 and "whole" in said, said
    code, said = job(*words)
    assert code == 0 and tree(out) == first, said
    assert tree(dataset.root) == before  # the source is only read
    code, said = job("status", out)
    assert code == 0 and "complete" in said
    assert "generated" in (out / ".wristaugment" / "README.md").read_text()


@pytest.mark.parametrize("point", ["staged", "renamed", "finishing"])
def test_killed_and_resumed_it_is_the_same_tree(dataset, tmp_path, job, tree, point):
    size = f"{SIZE[0]}x{SIZE[1]}"
    code, said = job(*run_words(dataset, tmp_path / "whole", "--wrist-size", size))
    assert code == 0, said
    words = run_words(dataset, tmp_path / "killed", "--wrist-size", size)
    code, said = job(*words, crash=point)
    assert code == -9, said
    code, said = job(*words)
    assert code == 0, said
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")


def test_only_the_first_episode_when_only_it_is_wanted(dataset, tmp_path, job):
    out = tmp_path / "out"
    words = run_words(dataset, out, "--episodes", "1", "--wrist-size", f"{SIZE[0]}x{SIZE[1]}")
    code, said = job(*words)
    assert code == 0, said
    assert job("verify", out, "--source", dataset.path)[0] == 0
    source = open_dataset(dataset.path)
    copy = open_copy(source, out, size=SIZE, description="", limit=1)
    made = opened(copy, source)
    valid = [made.flags(raw, VALID).all() for _, raw in every(made)]
    assert valid[0] and not any(valid[1:])


def test_inspect_says_what_a_run_would_do(dataset, job, tmp_path):
    code, said = job("inspect", dataset.path, "--json", tmp_path / "found.json")
    assert code == 0, said
    report = json.loads((tmp_path / "found.json").read_text())
    assert report["format"] == dataset.kind.format and report["ready"], report
    assert report["anchors"] and not report["damage"] and not report["missing"]
    roles = {camera["key"]: camera["role"] for camera in report["cameras"]}
    assert all(roles[key] == "anchor" for key in report["anchors"])
    assert report["stream"] not in roles
    assert report["stream"] in report["run"]


@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_a_damaged_piece_is_named_and_the_rest_is_made(own, tmp_path, job, damage):
    piece, out = own.kind.piece(own.path), tmp_path / "out"
    if damage == "cut":
        piece.write_bytes(piece.read_bytes()[: piece.stat().st_size // 2])
    elif piece == own.path or not own.kind.declared:
        pytest.skip("nothing says that there was such a file")
    else:
        piece.unlink()
    size = f"{SIZE[0]}x{SIZE[1]}"
    code, said = job(*run_words(own, out, "--wrist-size", size))
    assert code in (2, 3) and piece.name in said, said
    if code == 2:  # nothing could be made of it
        assert not out.exists() and len(said.splitlines()) == 1, said
        return
    code, said = job("verify", out, "--source", own.path)
    assert code == 0, said
    job("verify", out, "--source", own.path, "--json", tmp_path / "verified.json")
    verified = json.loads((tmp_path / "verified.json").read_text())
    summary = json.loads((out / ".wristaugment" / "manifest.json").read_text())
    assert verified["left_out"] == summary["lost_episodes"]
    assert summary["bad"] and summary["blank_episodes"] + summary["lost_episodes"] >= 1
    assert summary["valid_frames"] > 0 or own.kind.together


def test_frames_are_as_large_as_the_format_s_readers_expect(dataset, tmp_path, job):
    code, said = job(*run_words(dataset, tmp_path / "out"))
    assert code == 0, said
    source = open_dataset(dataset.path)
    plan = json.loads((tmp_path / "out" / ".wristaugment" / "plan.json").read_text())
    shapes = {stream.key: stream.shape[:2] for stream in source.streams()}
    sibling = shapes[source.profile.anchors[0].key]
    wanted = {"calvin": (84, 84), "rlds": (96, 176), "droid_raw": (96, 176)}
    assert tuple(plan["wrist_size"]) == wanted.get(source.format, sibling)


def test_nano_fills_calvin_s_gripper_camera_from_exact_geometry(datasets, tmp_path, job):
    (kind,) = [kind for kind in KINDS if kind.name == "calvin"]
    made, out = datasets(kind), tmp_path / "out"
    words = ["--data-dir", made.path, "--out", out, "--split", "validation", "--min-ssim", "none"]
    code, said = job("run", *words)
    assert code == 0, said
    manifest = json.loads((out / ".wristaugment" / "manifest.json").read_text())
    assert (manifest["wrist_size"], manifest["made_size"]) == ([84, 84], [96, 96])
    notes = [row["notes"] for row in manifest["records"] if row["record"].startswith("validation")]
    assert notes and all(note["pose"].startswith("measured") for note in notes)
    why = "recorded: every anchor has depth and calibration"
    geometry = f"depth and cameras of the dataset ({why})"
    assert all(note["geometry"] == geometry for note in notes)
    source = open_dataset(made.path)
    copy = open_copy(source, out, size=(84, 84), description="", splits=["validation"])
    copied = opened(copy, source)
    rows = [(raw, copied.flags(raw, VALID).all()) for _, raw in every(copied)]
    assert [raw.record.split == "validation" for raw, _ in rows] == [valid for _, valid in rows]
    frames = np.asarray(copied.frames(rows[-1][0], "rgb_gripper")[:])
    assert frames.shape[1:] == (84, 84, 3) and frames.std() > 10


def test_a_copy_is_scored_against_a_recorded_wrist_view(tmp_path, job):
    for name in ("calvin", "libero", "zarr-zip"):
        (kind,) = [kind for kind in KINDS if kind.name == name]
        source = kind.create(tmp_path / name, wrist=True)
        key = open_dataset(source).profile.wrist.key
        out, report = tmp_path / f"{name}-out", tmp_path / f"{name}.json"
        assert job("run", "--data-dir", source, "--out", out, "--recipe", "constant")[0] == 0
        stream = json.loads((out / ".wristaugment" / "plan.json").read_text())["wrist_key"]
        code, said = job(
            *("evaluate", "--data-dir", source, "--against", key, "--copy", out),
            *("--wrist-key", stream, "--recipes", "mean", "--json", report),
        )
        assert code == 0, said
        scores = json.loads(report.read_text())["recipes"]
        assert len(scores) == 2 and all(row["psnr"]["mean"] > 3 for row in scores.values())


def test_what_a_run_does_without_is_said(datasets, tmp_path, job):
    (kind,) = [kind for kind in KINDS if kind.name == "calvin"]
    made = datasets(kind).copy(tmp_path / "source")
    path = made.path / "training" / "lang_annotations" / "auto_lang_ann.npy"
    np.save(path, {"run": Harm()}, allow_pickle=True)
    code, said = job("inspect", made.path)
    assert code == 0 and "done without" in said and path.name in said
    code, said = job(*run_words(made, tmp_path / "out"))
    assert code == 0 and "done without" in said and path.name in said


class Harm:
    """A pickle that would run code."""

    def __reduce__(self):
        return exec, ("raise SystemExit('it ran')",)

"""`verify`: a whole copy passes; every kind of damage is named by file, record and key."""

import argparse
import dataclasses
import hashlib
import json
import shutil

import numpy as np
import pytest
from copying import write_copy
from wristaugment.jobs import verify as command
from wristaugment.jobs.checksums import collect, staged_sha256
from wristaugment.jobs.ledger import to_json
from wristaugment.readers import open_dataset
from wristaugment.readers.episode import WristStream
from wristaugment.readers.errors import SourceError
from wristaugment.readers.tfrecord import frame, read_frames
from wristaugment.writers.rlds import RldsCopy
from wristaugment.writers.splice import addition, encode_jpeg

SIZE = (16, 20)
KEY = "steps/observation/wrist_rgb"


def unknown(steps):
    """The confidences of a stream of which nothing is known."""
    return {"steps/observation/wrist_confidence": [float("nan")] * steps}


def make_copy(source, out, *, ledger=True, failing=(), **options):
    """A finished copy, with the ledger that a job leaves beside it."""
    dataset = open_dataset(source, "droid")
    copy = RldsCopy(dataset, out, size=SIZE, description="synthetic", **options)

    def make(raw):
        if raw.record.index in failing:
            return SourceError("no usable camera")
        steps = dataset.steps(raw)
        frames = np.full((steps, *SIZE, 3), 120, np.uint8)
        return WristStream(frames, np.ones(steps, bool), np.ones(steps, np.float32))

    results = write_copy(copy, make)
    if ledger:
        folder = out / ".wristaugment"
        (folder / "shards").mkdir(parents=True)
        (folder / "quality").mkdir()
        plan = {
            "dataset": dataset.name,
            "version": dataset.version,
            "place": dataset.place.as_posix(),
            "splits": [split.name for split in copy.splits],
            "episodes": options.get("limit"),
            "wrist_key": copy.wrist_key,
        }
        texts = {"plan.json": to_json(plan), "manifest.json": "{}\n"}
        for result in results:
            hashes = staged_sha256(copy.folder, result.files)
            entry = {"result": dataclasses.asdict(result), "sha256": hashes}
            name = f"{result.split}-{result.shard:05d}"
            texts |= {f"shards/{name}.json": to_json(entry), f"quality/{name}.json": to_json([])}
        own = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
        texts["checksums.json"] = collect(plan["place"], copy.finish(results), own)
        for name, text in texts.items():
            (folder / name).write_text(text)
    return copy


def call(*words):
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    return command.run(parser.parse_args(["verify", *map(str, words)]))


@pytest.fixture
def check(tmp_path, capsys):
    """Run verify; returns (exit code, report)."""

    def run(out, source):
        code = call(out, "--source", source, "--json", tmp_path / "report.json")
        return code, json.loads((tmp_path / "report.json").read_text())

    return run


def patch_record(path, index, change):
    """Rewrite a shard with record `index` changed, all crcs right."""
    payloads = [place.payload for place in read_frames(path)]
    payloads[index] = change(payloads[index])
    path.write_bytes(b"".join(map(frame, payloads)))


@pytest.mark.parametrize("ledger", [True, False])
def test_a_whole_copy_passes(droid_source, tmp_path, check, capsys, ledger):
    make_copy(droid_source, tmp_path / "out", ledger=ledger)
    code, report = check(tmp_path / "out", droid_source.parents[1])
    assert code == 0 and report["problems"] == []
    assert (report["records"], report["frames"]) == (7, 28)
    assert report["valid_frames"] == 28 and report["wrist_key"] == "wrist_rgb"
    assert "every byte of the source is in" in capsys.readouterr().out


def test_a_copy_of_some_records_passes_as_the_plan_says(droid_source, tmp_path, check):
    make_copy(droid_source, tmp_path / "a", limit=4)
    assert check(tmp_path / "a", droid_source)[0] == 0
    make_copy(droid_source, tmp_path / "b", splits=["val"])
    code, report = check(tmp_path / "b", droid_source)
    assert code == 0 and report["records"] == 2


def test_a_part_without_a_plan_is_incomplete(droid_source, tmp_path, check):
    make_copy(droid_source, tmp_path / "out", ledger=False, splits=["train"])
    code, report = check(tmp_path / "out", droid_source)
    assert code == 3 and "lacks the splits val" in report["problems"][0]["found"]


def test_a_replaced_stream_passes(droid_source, tmp_path, check):
    make_copy(droid_source, tmp_path / "out", wrist_key="wrist_image_left", replace=True)
    code, report = check(tmp_path / "out", droid_source)
    assert code == 0 and report["wrist_key"] == "wrist_image_left", report


def test_quarantined_records_are_accounted_for(droid_folder, tmp_path, check):
    shard = next(droid_folder.glob("*train*00000-of*"))
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(bytes(data))
    make_copy(droid_folder, tmp_path / "out", failing=(1,))
    code, report = check(tmp_path / "out", droid_folder)
    assert code == 0, report
    assert (report["left_out"], report["placeholders"]) == (1, 3)
    assert report["records"] == 6


def test_a_repaired_source_shows_what_the_copy_lacks(droid_folder, droid_source, tmp_path, check):
    shard = next(droid_folder.glob("*train*00000-of*"))
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(bytes(data))
    make_copy(droid_folder, tmp_path / "out")
    code, report = check(tmp_path / "out", droid_source)
    (problem,) = report["problems"]
    assert code == 3 and problem["record"] == 0 and "can be read now" in problem["found"]


def test_a_source_that_broke_later_is_named(droid_folder, tmp_path, check):
    make_copy(droid_folder, tmp_path / "out")
    shard = next(droid_folder.glob("*train*00000-of*"))
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(bytes(data))
    code, report = check(tmp_path / "out", droid_folder)
    (problem,) = report["problems"]
    assert code == 3 and problem["file"] == str(shard) and "crc" in problem["found"]


@pytest.fixture
def whole(droid_source, tmp_path):
    """(out, version folder, its first shard) of a good copy."""
    copy = make_copy(droid_source, tmp_path / "out")
    return tmp_path / "out", copy.folder, copy.shard_path(copy.shards[0])


def test_a_flipped_byte_is_named(whole, droid_source, check):
    out, _, shard = whole
    data = bytearray(shard.read_bytes())
    data[200] ^= 1
    shard.write_bytes(bytes(data))
    code, report = check(out, droid_source)
    (problem,) = report["problems"]
    assert code == 3 and (problem["file"], problem["record"]) == (str(shard), 0)
    assert problem["todo"] and report["records"] == 6  # the rest was compared


def test_an_old_value_changed_with_right_crcs_is_named_by_key(whole, droid_source, check):
    out, _, shard = whole

    def change(payload):
        return payload.replace(b"pick object 1", b"pick object 7")

    patch_record(shard, 1, change)
    code, report = check(out, droid_source)
    problem = report["problems"][0]
    assert code == 3 and problem["record"] == 1
    assert problem["key"] == "steps/language_instruction_2"


def spoil_jpeg(steps):
    good = encode_jpeg(np.full((*SIZE, 3), 120, np.uint8), 95)
    return [good] * (steps - 1) + [good[: len(good) // 2]], [1] * steps


def too_few(steps):
    good = encode_jpeg(np.full((*SIZE, 3), 120, np.uint8), 95)
    return [good] * (steps - 1), [1] * steps


def too_few_flags(steps):
    good = encode_jpeg(np.full((*SIZE, 3), 120, np.uint8), 95)
    return [good] * steps, [1] * (steps - 1)


def wrong_size(steps):
    return [encode_jpeg(np.full((8, 8, 3), 120, np.uint8), 95)] * steps, [1] * steps


def invalid_but_bright(steps):
    good = encode_jpeg(np.full((*SIZE, 3), 120, np.uint8), 95)
    return [good] * steps, [1] * (steps - 1) + [0]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (spoil_jpeg, "step 5: the picture cannot be decoded"),
        (too_few, "5 for 6 steps"),
        (too_few_flags, "5 for 6 steps"),
        (wrong_size, "step 0 is 8x8, not 16x20"),
        (invalid_but_bright, "step 5: a frame marked as not made"),
    ],
)
def test_bad_new_frames_are_named(whole, droid_source, check, change, found):
    out, _, shard = whole
    source = next(droid_source.glob("*train*00000-of*"))
    old = [place.payload for place in read_frames(source)][1]
    pictures, flags = change(6)
    extra = addition({KEY: pictures}, {"steps/observation/wrist_valid": flags}, unknown(len(flags)))
    patch_record(shard, 1, lambda payload: old + extra)
    code, report = check(out, droid_source)
    problem = report["problems"][0]
    assert code == 3 and problem["record"] == 1 and found in problem["found"]


def test_frames_changed_in_good_form_differ_from_the_ledger(whole, droid_source, check):
    out, _, shard = whole
    other = np.full((*SIZE, 3), 121, np.uint8)
    blob = encode_jpeg(other, 95)
    source = next(droid_source.glob("*train*00000-of*"))
    old = next(place.payload for place in read_frames(source))
    valid = {"steps/observation/wrist_valid": [1] * 4}
    extra = addition({KEY: [blob] * 4}, valid, unknown(4))
    patch_record(shard, 0, lambda payload: old + extra)
    code, report = check(out, droid_source)
    found = [problem["found"] for problem in report["problems"]]
    assert code == 3 and any("SHA-256" in text for text in found)


def test_missing_and_additional_records(whole, droid_source, check):
    out, _, shard = whole
    payloads = [place.payload for place in read_frames(shard)]
    shard.write_bytes(b"".join(map(frame, payloads[:2])))
    code, report = check(out, droid_source)
    assert code == 3 and "record 2 of the source is missing" in report["problems"][0]["found"]
    shard.write_bytes(b"".join(map(frame, [*payloads, payloads[0]])))
    code, report = check(out, droid_source)
    assert code == 3 and "more than the source's records" in report["problems"][0]["found"]


def test_missing_changed_and_stray_files(whole, droid_source, check):
    out, folder, shard = whole
    (folder / "notes" / "readme.txt").write_text("changed\n")
    (folder / "stray.bin").write_bytes(b"x")
    shard.unlink()
    code, report = check(out, droid_source)
    found = {problem["file"]: problem["found"] for problem in report["problems"]}
    assert code == 3
    assert found[str(folder / "notes" / "readme.txt")] == "is not as in the source"
    assert "does not belong" in found[str(folder / "stray.bin")]
    assert str(shard) in found


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_missing_metadata_means_incomplete(whole, droid_source, check, name):
    out, folder, _ = whole
    (folder / name).unlink()
    code, report = check(out, droid_source)
    assert code == 3 and report["problems"][0]["file"] == str(folder / name)


def test_changed_metadata_is_named(whole, droid_source, check):
    out, folder, _ = whole
    path = folder / "dataset_info.json"
    text = path.read_text()
    tree = json.loads(text)
    tree["splits"][0]["numBytes"] = "5"
    tree["description"] = "another"
    path.write_text(json.dumps(tree))
    code, report = check(out, droid_source)
    assert code == 3 and {p["file"] for p in report["problems"]} == {str(path)}
    assert [p["key"] for p in report["problems"]] == [None, "numBytes"]
    path.write_text(text)
    path = folder / "features.json"
    path.write_text(path.read_text().replace('"float32"', '"float64"', 1))
    code, report = check(out, droid_source)
    assert code == 3 and report["problems"][0]["file"] == str(path)


def test_an_unfinished_job_is_named(whole, droid_source, check):
    out, _, _ = whole
    (out / ".wristaugment" / "manifest.json").unlink()
    (out / ".wristaugment" / "shards" / "val-00000.json").unlink()
    code, report = check(out, droid_source)
    found = [problem["found"] for problem in report["problems"]]
    assert code == 3 and "the job is not complete" in found
    assert "the ledger has no record of this shard" in found


def test_what_cannot_be_compared_is_refused(whole, droid_folder, tmp_path):
    out, _, _ = whole
    info = droid_folder / "dataset_info.json"
    other = tmp_path / "other" / "my_set" / "1.0.1"
    shutil.copytree(droid_folder, other)
    text = info.read_text().replace("droid_101", "my_set")
    (other / "dataset_info.json").write_text(text)
    with pytest.raises(SourceError, match="holds my_set"):
        call(out, "--source", other)
    with pytest.raises(SourceError, match="no such folder"):
        call(tmp_path / "none", "--source", droid_folder)
    with pytest.raises(SourceError, match="no dataset"):
        (tmp_path / "empty").mkdir()
        call(out, "--source", tmp_path / "empty")

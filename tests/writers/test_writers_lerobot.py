"""The augmented copy of a LeRobot dataset: everything as it was, and one camera more."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot_sets import (
    CORPUS,
    FRONT,
    KEY,
    SIZE,
    STEPS,
    VERSIONS,
    copied,
    edit_info,
    every,
    gathered,
    hashes,
    made,
    picture,
    stream_of,
    written,
)
from wristaugment.readers.errors import SourceError
from wristaugment.readers.lerobot import open_source
from wristaugment.readers.video import open_video
from wristaugment.writers.lerobot import Copy
from wristaugment.writers.lerobot_stats import ImageStats, aggregate
from wristaugment.writers.recorded import recorded_splits
from wristaugment.writers.video import VideoWriter

BACK = "observation.images.exterior_2_left"
PEER = Path(__file__).parents[1] / "peers" / "lerobot.py"
CHANGED = {
    "v2.1": {"meta/info.json", "meta/episodes_stats.jsonl"},
    "v3.0": {"meta/info.json", "meta/stats.json", "meta/episodes/chunk-000/file-000.parquet"},
}


@pytest.fixture(scope="module", params=VERSIONS)
def original(request, tmp_path_factory):
    return made(tmp_path_factory.mktemp("lerobot"), request.param)


@pytest.fixture
def source(original, tmp_path):
    """A copy that may be changed."""
    return shutil.copytree(original, tmp_path / "source" / original.name)


def frames_of(dataset, key=KEY):
    """(frames, flags) of every episode, in order."""
    return [
        (dataset.frames(raw, key)[:], dataset.flags(raw, "wrist_valid"))
        for _, raw in every(dataset)
    ]


def stats_of(folder, key=KEY):
    """The statistics of each episode, whatever the version."""
    path = folder / "meta" / "episodes_stats.jsonl"
    if path.exists():
        return [json.loads(line)["stats"][key] for line in path.read_text().splitlines()]
    rows = pq.read_table(folder / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    prefix = f"stats/{key}/"
    return [{k.removeprefix(prefix): v for k, v in row.items() if prefix in k} for row in rows]


def colour(frame):
    """The mean colour of a frame in [0, 1]."""
    return frame.reshape(-1, 3).mean(axis=0) / 255


def test_everything_is_equal_but_what_must_name_the_stream(original, tmp_path):
    copy, results = copied(original, tmp_path / "out")
    assert copy.folder == tmp_path / "out" / "droid_sim"
    assert (copy.wrist_key, copy.stream_key) == ("wrist", KEY)
    old, new = hashes(original), hashes(copy.folder)
    version = open_source(original).version
    assert {name for name in old if new.get(name) != old[name]} == CHANGED[version]
    added = set(new) - set(old)
    assert added == {name for result in results for name in result.files}
    assert all(f"/{KEY}/" in name or "meta/wristaugment/" in name for name in added)
    assert len(added) == {"v2.1": 4 + 2, "v3.0": 2 + 2}[version]
    a, b = open_source(original), open_source(copy.folder, plain=True)
    for (shard, one), (same, two) in zip(every(a), every(b), strict=True):
        left, right = gathered(a.content(one)), gathered(b.content(two))
        assert all(right[key] == left[key] for key in left)
        assert all(KEY in key for key in set(right) - set(left)) and KEY in right
        left, right = gathered(a.shared_content(shard)), gathered(b.shared_content(same))
        assert all(right[key] == left[key] for key in left)
        assert all(KEY in key for key in set(right) - set(left))


def test_the_new_stream_is_what_was_made(original, tmp_path):
    copy, results = copied(original, tmp_path / "out")
    dataset = open_source(copy.folder, plain=True)
    found = frames_of(dataset)
    assert len(found) == 4 and all(not result.bad for result in results)
    for number, (frames, valid) in enumerate(found):
        assert frames.shape == (STEPS, *SIZE, 3) and frames.dtype == np.uint8
        assert valid.dtype == bool and valid.tolist() == [True] * (STEPS - 1) + [False]
        for step in range(STEPS - 1):
            assert np.abs(frames[step].astype(int) - picture(number, step)).mean() < 3
        assert frames[-1].max() <= 6
    stream = next(s for s in dataset.streams() if s.key == KEY)
    assert (stream.shape, stream.encoding, stream.depth) == ((*SIZE, 3), "h264", False)


def test_the_metadata_names_it(original, tmp_path):
    copy, _ = copied(original, tmp_path / "out")
    old = json.loads((original / "meta" / "info.json").read_text())
    text = (copy.folder / "meta" / "info.json").read_text()
    new = json.loads(text)
    assert text == json.dumps(new, indent=4)  # spelled as it was
    node = new["features"][KEY]
    keys = list(old["features"])
    last = keys.index(BACK) + 1
    assert list(new["features"]) == [*keys[:last], KEY, *keys[last:]]
    assert list(new) == list(old)
    assert {k: v for k, v in node.items() if k != "info"} == {
        "dtype": "video",
        "shape": [*SIZE, 3],
        "names": ["height", "width", "channels"],
    }
    assert node["info"] == {
        **old["features"][FRONT]["info"],
        "video.height": SIZE[0],
        "video.width": SIZE[1],
        "video.synthetic": True,
        "video.description": "synthetic, for tests",
    }
    expected = {**old, "features": new["features"]}
    if "total_videos" in old:
        expected["total_videos"] = old["total_videos"] + 4
    assert new == expected
    for path in sorted((copy.folder / "meta" / "wristaugment").iterdir()):
        table = pq.read_table(path)
        flags = [f"wristaugment.{name}" for name in ("wrist_valid", "wrist_confidence")]
        assert table.column_names == ["episode_index", "frame_index", *flags]
        assert table.schema.field(flags[1]).type == "float"
        assert table.schema.metadata[b"description"] == b"synthetic, for tests"


def test_statistics_are_those_of_the_frames(original, tmp_path):
    copy, _ = copied(original, tmp_path / "out")
    for number, stats in enumerate(stats_of(copy.folder)):
        frames = np.stack([picture(number, step) for step in range(STEPS)]).astype(float) / 255
        frames[-1] = 0
        pixels = frames.reshape(-1, 3)
        assert stats["count"] == [STEPS]
        for name in ("min", "max", "mean", "std"):
            assert np.shape(stats[name]) == (3, 1, 1)
            assert np.allclose(np.ravel(stats[name]), getattr(pixels, name)(axis=0))
        for name, share in (("q01", 0.01), ("q50", 0.5), ("q99", 0.99)):
            if name in stats:
                want = np.quantile(pixels, share, axis=0, method="inverted_cdf")
                assert np.allclose(np.ravel(stats[name]), want, atol=1.01 / 255)
    joined = copy.folder / "meta" / "stats.json"
    assert joined.exists() == ("q50" in stats)
    if joined.exists():
        every_mean = np.mean([stats["mean"] for stats in stats_of(copy.folder)], axis=0)
        found = json.loads(joined.read_text())[KEY]
        assert np.allclose(found["mean"], every_mean) and found["count"] == [4 * STEPS]


def test_writing_twice_gives_the_same_bytes(original, tmp_path):
    first, _ = copied(original, tmp_path / "a")
    elsewhere = shutil.copytree(original, tmp_path / "deep" / "er" / original.name)
    second, _ = copied(elsewhere, tmp_path / "b")
    assert hashes(first.folder) == hashes(second.folder)


def test_a_shard_that_was_interrupted_is_written_again(original, tmp_path):
    dataset = open_source(original)
    copy = Copy(dataset, tmp_path / "out", size=SIZE, description="synthetic, for tests")
    shard, calls = copy.shards[0], []

    def dies(raw):
        calls.append(raw)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return stream_of(raw, STEPS)

    with pytest.raises(KeyboardInterrupt):
        written(copy, shard, dies)
    results = [written(copy, s, lambda raw: stream_of(raw, STEPS)) for s in copy.shards]
    shutil.rmtree(copy.folder / ".staged", ignore_errors=True)
    copy.finish(results)
    whole, _ = copied(original, tmp_path / "whole")
    assert hashes(copy.folder) == hashes(whole.folder)


def test_what_is_not_wanted_is_black(original, tmp_path):
    copy, results = copied(original, tmp_path / "out", splits=["train"], limit=2)
    found = frames_of(open_source(copy.folder, plain=True))
    assert [bool(valid.any()) for _, valid in found] == [True, True, False, False]
    assert max(frames.max() for frames, _ in found[2:]) <= 4
    assert all(not result.bad for result in results)
    copied(original, tmp_path / "again", splits=["val"])


def test_an_episode_that_cannot_be_made_is_listed_and_black(original, tmp_path):
    dataset = open_source(original)

    def make(raw):
        if raw.episode == 1:
            return dataset.error(raw, "no pose", FRONT, "none")
        return stream_of(raw, STEPS)

    copy, results = copied(original, tmp_path / "out", make, dataset)
    (bad,) = [row for result in results for row in result.bad]
    assert (bad["record"], bad["what"], bad["key"], bad["found"]) == (
        1, "placeholder", FRONT, "no pose",
    )  # fmt: skip
    found = frames_of(open_source(copy.folder, plain=True))
    assert [bool(valid.any()) for _, valid in found] == [True, False, True, True]


@pytest.mark.parametrize("what", ["video", "table", "length"])
def test_damage_is_quarantined(source, tmp_path, what):
    dataset = open_source(source)
    single = dataset.version == "v2.1"
    if what == "length" and single:
        path = source / "meta" / "episodes.jsonl"
        path.write_text(path.read_text().replace('"length": 8', '"length": 9', 1))
    elif what == "length":
        path = source / "meta/episodes/chunk-000/file-000.parquet"
        table = pq.read_table(path)
        at = table.schema.get_field_index("length")
        pq.write_table(table.set_column(at, "length", pa.array([9, 8, 8, 8])), path)
    else:
        folder = source / ("videos" if what == "video" else "data")
        path = next(
            p
            for p in sorted(folder.rglob("*.*"))
            if p.is_file() and (what == "table" or FRONT in str(p))
        )
        path.write_bytes(path.read_bytes()[:-300])
    dataset = open_source(source)

    def make(raw):
        np.asarray(dataset.episode(raw).anchors[0].frames)
        return stream_of(raw, STEPS)

    copy, results = copied(source, tmp_path / "out", make, dataset)
    bad = [(result.split, row) for result in results for row in result.bad]
    broken = 1 if single or what == "length" else 4
    assert len(bad) == broken and bad[0][1]["record"] == 0
    assert all(row["what"] == "placeholder" and row["file"] and row["found"] for _, row in bad)
    if what == "video":
        assert bad[0][1]["key"] == FRONT
    if what == "table":
        assert "cannot be read" in bad[0][1]["found"]
        return
    found = frames_of(open_source(copy.folder, plain=True))
    assert [bool(valid.any()) for _, valid in found] == [False] * broken + [True] * (4 - broken)
    assert all(len(frames) == STEPS for frames, _ in found)


def test_names(original, tmp_path):
    dataset = open_source(original)

    def named(name, **options):
        return Copy(
            dataset, tmp_path / "o", wrist_key=name, size=SIZE, description="", **options
        ).stream_key

    assert named("wrist_rgb") == KEY
    assert named("hand") == "observation.images.hand"
    assert named("observation.images.wrist_rgb") == "observation.images.wrist_rgb"
    assert named("observation.image_wrist") == "observation.image_wrist"
    for bad in ("", "a/b", "..", "a b", "../x", ".x", "{video_key}", "a\n"):
        with pytest.raises(SourceError, match="cannot be the name"):
            named(bad)
    with pytest.raises(SourceError, match="--replace"):
        named("exterior_1_left")
    with pytest.raises(SourceError, match="no video"):
        named("observation.state", replace=True)
    with pytest.raises(SourceError, match="45x64"):
        Copy(dataset, tmp_path / "o", size=(45, 64), description="")
    with pytest.raises(SourceError, match="would lie in the dataset"):
        Copy(dataset, original.parent, size=SIZE, description="")


def test_a_stream_is_replaced_in_the_copy_only(original, tmp_path):
    before = hashes(original)
    copy, _ = copied(original, tmp_path / "out", wrist_key="exterior_2_left", replace=True)
    assert hashes(original) == before and copy.replaces
    dataset = open_source(copy.folder, plain=True)
    for number, (frames, valid) in enumerate(frames_of(dataset, BACK)):
        assert frames.shape == (STEPS, *SIZE, 3) and valid.sum() == STEPS - 1
        assert np.abs(frames[0].astype(int) - picture(number, 0)).mean() < 3
    assert [s["count"] for s in stats_of(copy.folder, BACK)] == [[STEPS]] * 4
    assert np.allclose(
        np.ravel(stats_of(copy.folder, BACK)[1]["max"]) * 255,
        [picture(1, STEPS - 2)[..., c].max() for c in range(3)],
    )
    info = json.loads((copy.folder / "meta" / "info.json").read_text())
    assert list(info["features"]) == list(
        json.loads((original / "meta" / "info.json").read_text())["features"]
    )
    videos = [p for p in copy.folder.rglob("*.mp4") if BACK in str(p)]
    assert len(videos) == (4 if dataset.version == "v2.1" else 2)
    # A copy that has a synthetic stream is not taken for a recording by accident.
    with pytest.raises(SourceError, match="synthetic stream already"):
        copied(copy.folder, tmp_path / "second", wrist_key="other")
    again, _ = copied(copy.folder, tmp_path / "second", wrist_key=BACK, replace=True)
    assert hashes(again.folder) == hashes(copy.folder)


def test_gr00t_finds_the_stream(source, tmp_path):
    path = source / "meta" / "modality.json"
    tree = {"state": {"arm": {"start": 0, "end": 7}}, "video": {"front": {"original_key": FRONT}}}
    path.write_text(json.dumps(tree, indent=2) + "\n")
    copy, _ = copied(source, tmp_path / "out")
    tree["video"]["wrist"] = {"original_key": KEY}
    found = copy.folder / "meta" / "modality.json"
    assert found.read_text() == json.dumps(tree, indent=2) + "\n"


def test_a_dataset_without_videos_gets_its_first(source, tmp_path):
    shutil.rmtree(source / "videos")

    def change(tree):
        tree["features"] = {k: v for k, v in tree["features"].items() if v["dtype"] != "video"}
        tree["video_path"] = None

    edit_info(source, change)
    for path in (source / "meta").glob("episodes/*/*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.drop_columns([n for n in table.column_names if "images" in n]), path)
    dataset = open_source(source, plain=True)
    copy, _ = copied(source, tmp_path / "out", dataset=dataset)
    info = json.loads((copy.folder / "meta" / "info.json").read_text())
    assert "{video_key}" in info["video_path"]
    assert len(frames_of(open_source(copy.folder, plain=True))) == 4


def test_episode_tables_keep_their_form(tmp_path):
    source = made(tmp_path / "source", "v3.0")
    path = source / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    value, double = {"dtype": "int64", "_type": "Value"}, {"dtype": "float64", "_type": "Value"}
    features = {name: value for name in table.column_names if "stats/" not in name}
    features[f"stats/{FRONT}/mean"] = {"feature": double, "_type": "Sequence"}
    note = {"info": {"features": features}, "other": 1}
    table = table.replace_schema_metadata({"huggingface": json.dumps(note), "mine": "kept"})
    codecs = {"length": "gzip"} | {n: "zstd" for n in table.column_names if n != "length"}
    pq.write_table(table, path, row_group_size=3, compression=codecs, use_dictionary=False)
    copy, _ = copied(source, tmp_path / "out")
    new = pq.ParquetFile(copy.folder / path.relative_to(source))
    old = pq.ParquetFile(path)
    assert new.read(table.column_names).equals(table)
    groups = [new.metadata.row_group(n) for n in range(new.num_row_groups)]
    assert [group.num_rows for group in groups] == [3, 1]
    columns = [groups[0].column(n) for n in range(groups[0].num_columns)]
    by_path = {column.path_in_schema: column.compression for column in columns}
    for n in range(old.metadata.num_columns):
        column = old.metadata.row_group(0).column(n)
        if "list" not in column.path_in_schema:
            assert by_path[column.path_in_schema] == column.compression
    names = new.schema_arrow.names
    assert names[: len(table.column_names)] == table.column_names
    assert all(KEY in name for name in names[len(table.column_names) :])
    kinds = {name.rsplit("/", 1)[1]: str(new.schema_arrow.field(name).type) for name in names[-14:]}
    assert kinds["file_index"] == "int64" and kinds["to_timestamp"] == "double"
    assert new.schema_arrow.metadata[b"mine"] == b"kept"
    found = json.loads(new.schema_arrow.metadata[b"huggingface"])
    assert found["other"] == 1
    assert found["info"]["features"][f"stats/{KEY}/mean"] == features[f"stats/{FRONT}/mean"]
    assert found["info"]["features"][f"videos/{KEY}/file_index"] == value
    rows = new.read([f"videos/{KEY}/{n}" for n in ("file_index", "from_timestamp")]).to_pylist()
    assert [tuple(row.values()) for row in rows] == [(0, 0), (0, 8 / 15), (0, 16 / 15), (1, 0)]


def test_new_files_hold_the_episodes_that_lay_together(tmp_path):
    source = made(tmp_path / "source", "v3.0")
    columns = {}
    for key in (FRONT, BACK):
        (path,) = [p for p in source.rglob("*.mp4") if key in str(p)]
        frames = open_video(path).read(np.arange(4 * STEPS))
        for number in range(2):
            with VideoWriter(path.with_name(f"file-00{number}.mp4"), (90, 160), 15) as video:
                for frame in frames[number * 2 * STEPS : (number + 1) * 2 * STEPS]:
                    video.add(frame)
        columns[f"videos/{key}/file_index"] = [0, 0, 1, 1]
        columns[f"videos/{key}/from_timestamp"] = [0.0, STEPS / 15] * 2
        columns[f"videos/{key}/to_timestamp"] = [STEPS / 15, 2 * STEPS / 15] * 2
    path = source / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    for name, values in columns.items():
        at = table.schema.get_field_index(name)
        table = table.set_column(at, name, pa.array(values))
    pq.write_table(table, path)
    dataset = open_source(source)
    assert [[s.records for s in split.shards] for split in dataset.splits] == [[2, 1], [1]]
    views = [dataset.episode(raw).anchors[0].frames[:] for _, raw in every(dataset)]
    truth = [e.views["exterior_1"].frames for s in recorded_splits(CORPUS).values() for e in s]
    assert all(np.abs(a.astype(int) - b).mean() < 5 for a, b in zip(views, truth, strict=True))
    copy, results = copied(source, tmp_path / "out", dataset=dataset)
    names = [f"videos/{KEY}/{n}" for n in ("chunk_index", "file_index", "from_timestamp")]
    rows = pq.read_table(copy.folder / path.relative_to(source), columns=names).to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        (0, 0, 0), (0, 0, STEPS / 15), (0, 1, 0), (0, 2, 0),
    ]  # fmt: skip
    for number, (frames, _) in enumerate(frames_of(open_source(copy.folder, plain=True))):
        assert np.abs(frames[3].astype(int) - picture(number, 3)).mean() < 3
    assert len(results) == 3


def test_version_2_0_keeps_its_statistics_in_one_file(tmp_path):
    source = made(tmp_path / "source", "v2.1")
    edit_info(source, lambda tree: tree.update(codebase_version="v2.0"))
    (source / "meta" / "episodes_stats.jsonl").unlink()
    stats = {FRONT: {"mean": [[[0.1]], [[0.2]], [[0.3]]]}}
    (source / "meta" / "stats.json").write_text(json.dumps(stats, indent=4))
    copy, _ = copied(source, tmp_path / "out")
    found = json.loads((copy.folder / "meta" / "stats.json").read_text())
    assert list(found) == [FRONT, KEY] and found[FRONT] == stats[FRONT]
    assert list(found[KEY]) == ["min", "max", "mean", "std", "count"]
    assert found[KEY]["count"] == [4 * STEPS] and found[KEY]["min"] == [[[0.0]]] * 3


def test_an_episode_of_absurd_length_is_left_out(tmp_path):
    """Its table is unreadable and its declared length would fill the disk with black frames."""
    source = made(tmp_path / "source", "v2.1")
    path = source / "meta" / "episodes.jsonl"
    path.write_text(path.read_text().replace('"length": 8', f'"length": {10**9}', 1))
    table = source / "data/chunk-000/episode_000000.parquet"
    table.write_bytes(table.read_bytes()[:-50])
    copy, results = copied(source, tmp_path / "out")
    (bad,) = [row for result in results for row in result.bad]
    assert (bad["record"], bad["what"]) == (0, "left out") and results[0].records == 2
    assert len(list(copy.folder.rglob(f"{KEY}/*.mp4"))) == 3
    lines = (copy.folder / "meta" / "episodes_stats.jsonl").read_text().splitlines()
    assert [KEY in line for line in lines] == [False, True, True, True]
    info = json.loads((copy.folder / "meta" / "info.json").read_text())
    assert info["total_videos"] == 8 + 3


# ---- lerobot's own class, where there is an environment for it ----


def peer(version, *arguments):
    """Run tests/peers/lerobot.py; what it printed."""
    name = {"v2.1": "lerobot21", "v3.0": "lerobot"}[version]
    variable = f"WRISTAUGMENT_PEER_{name.upper()}"
    python = os.environ.get(variable) or PEER.parents[2] / f".venv-{name}" / "bin" / "python"
    if not Path(python).exists():
        pytest.skip(f"no lerobot for {version}: {variable} is not set, and there is no {python}")
    done = subprocess.run(
        [str(python), str(PEER), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def consumed(original, tmp_path_factory):
    """{what: (source, its dataset, copy, what lerobot reads of the source, of the copy)}."""
    folder = tmp_path_factory.mktemp("consumed")
    version = open_source(original).version
    sources = {name: folder / name / "kitchen" for name in ("videos", "images")}
    for path in sources.values():
        path.parent.mkdir()
    assert peer(version, "make", *sources.values()) == [{"length": 10}] * 2
    sources["ours"] = original
    copies = {name: copied(path, folder / "out" / name)[0] for name, path in sources.items()}
    paths = [*sources.values(), *(copy.folder for copy in copies.values())]
    found = peer(version, "read", *paths)
    old, new = found[: len(sources)], found[len(sources) :]
    return {
        name: (sources[name], copies[name], *read)
        for name, *read in zip(sources, old, new, strict=True)
    }


@pytest.mark.slow
def test_lerobot_reads_the_copy(consumed):
    _, _, old, new = consumed["ours"]
    assert new["cameras"] == [FRONT, BACK, KEY]
    assert (new["length"], new["episodes"]) == (old["length"], old["episodes"]) == (4 * STEPS, 4)
    assert new["digests"] == old["digests"] and new["tasks"] == old["tasks"]
    assert {key: new["colours"][key] for key in old["cameras"]} == old["colours"]
    assert new["shapes"][KEY] == [3, *SIZE]
    assert new["windows"][KEY] == [2, 3, *SIZE] and new["batch"][KEY] == [2, 2, 3, *SIZE]
    for number, found in enumerate(new["colours"][KEY]):
        episode, step = divmod(number, STEPS)
        want = 0 * colour(picture(0, 0)) if step == STEPS - 1 else colour(picture(episode, step))
        assert np.abs(np.array(found) - want).max() < 0.02
    whole = np.stack([picture(e, s) for e in range(4) for s in range(STEPS - 1)])
    mean = colour(whole) * (STEPS - 1) / STEPS
    assert np.allclose(np.ravel(new["stats"][KEY]["mean"]), mean, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["videos", "images"])
def test_datasets_of_lerobot_are_read_and_copied(consumed, kind):
    source, copy, before, after = consumed[kind]
    dataset = open_source(source)
    assert [c.key for c in dataset.profile.anchors] == [
        "observation.images.front",
        "observation.images.dark",
    ]
    tolerance = 0.5 if kind == "images" else 12
    for (_, raw), (length, number) in zip(every(dataset), ((6, 0), (4, 1)), strict=True):
        episode = dataset.episode(raw)
        assert episode.length == length and episode.dropped.keys() == {"observation.images.dark"}
        assert episode.language == ("open the drawer", "close it")[number]
        blue = episode.anchors[0].frames[:].astype(float)[..., 2].mean(axis=(1, 2))
        want = np.arange(length) * 20 + 100 * number
        assert np.abs(blue - want).max() < tolerance
    form = lambda row: {name: np.shape(value) for name, value in row.items()}
    old = stats_of(source, "observation.images.front")
    assert [form(row) for row in stats_of(copy.folder)] == [form(row) for row in old]
    assert after["digests"] == before["digests"]
    assert after["cameras"] == [*before["cameras"], KEY]
    assert {key: after["colours"][key] for key in before["colours"]} == before["colours"]
    assert len(after["colours"][KEY]) == 10


@pytest.mark.slow
def test_statistics_are_as_lerobot_computes_them(consumed):
    """Of the cameras that lerobot itself wrote; it takes some of the frames, we take all."""
    source, _, read, _ = consumed["images"]
    key = "observation.images.front"
    dataset, parts = open_source(source), []
    for _, raw in every(dataset):
        stats = ImageStats()
        for frame in dataset.frames(raw, key)[:]:
            stats.add(frame)
        parts.append(stats.result())
    ours = aggregate(parts)
    for name, theirs in read["stats"][key].items():
        if name == "std" and "q50" in read["stats"][key]:
            continue  # lerobot 0.4.4 squares 8-bit numbers, which overflow
        assert np.allclose(ours[name], theirs, atol=1 / 255)

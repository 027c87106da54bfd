"""LeRobot datasets, read: the right frames of the right episode, whatever the version."""

import io
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot_sets import CORPUS, FRONT, STEPS, VERSIONS, edit_info, every, gathered, made
from PIL import Image
from wristaugment.readers.errors import SourceError
from wristaugment.readers.formats import FORMATS
from wristaugment.readers.frames import Frames
from wristaugment.readers.lerobot import open_source, recognise
from wristaugment.writers.recorded import recorded_splits
from wristaugment.writers.video import VideoWriter

BACK = "observation.images.exterior_2_left"
HAND = "observation.images.wrist_left"


@pytest.fixture(scope="module", params=VERSIONS)
def original(request, tmp_path_factory):
    return made(tmp_path_factory.mktemp("lerobot"), request.param, wrist=True)


@pytest.fixture
def source(original, tmp_path):
    """A copy that may be damaged."""
    return shutil.copytree(original, tmp_path / original.name)


@pytest.fixture(scope="module")
def recorded():
    return [episode for split in recorded_splits(CORPUS).values() for episode in split]


def videos(source, key):
    return sorted(path for path in (source / "videos").rglob("*.mp4") if key in str(path))


def errors(dataset):
    """The damage of each record: from the walk, or from reading its episode whole."""
    found = []
    for _, raw in every(dataset):
        try:
            for view in dataset.episode(raw).anchors:
                np.asarray(view.frames)
            found.append(None)
        except SourceError as error:
            found.append(error)
    return found


def rename_camera(source, old, new):
    """Call a camera otherwise, in both versions' metadata and folders."""

    def change(tree):
        rows = tree["features"].items()
        tree["features"] = {new if key == old else key: node for key, node in rows}

    edit_info(source, change)
    for folder in [path for path in source.rglob(old) if path.is_dir()]:
        folder.rename(folder.with_name(new))
    for path in (source / "meta").glob("episodes/*/*.parquet"):
        table = pq.read_table(path)
        table = table.rename_columns([name.replace(old, new) for name in table.column_names])
        pq.write_table(table, path)


def test_only_a_dataset_folder_is_recognised(original, tmp_path):
    assert recognise(original)
    assert "lerobot" in [row.name for row in FORMATS]
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "info.json").write_text('{"features": {}}')
    for path in (tmp_path, original / "meta", original / "meta" / "info.json", tmp_path / "none"):
        assert not recognise(path)


def test_what_is_declared(original):
    dataset = open_source(original)
    assert (dataset.name, str(dataset.place)) == ("droid_sim", "droid_sim")
    assert [(s.name, s.records, len(s.shards)) for s in dataset.splits] == [
        ("train", 3, 1),
        ("val", 1, 1),
    ]
    assert [(s.key, s.shape, s.dtype, s.encoding, s.depth) for s in dataset.streams()] == [
        (key, (90, 160, 3), "uint8", "h264", False) for key in (FRONT, BACK, HAND)
    ]
    assert dataset.profile.name == "droid"
    assert [dataset.steps(raw) for _, raw in every(dataset)] == [STEPS] * 4


def test_an_episode_is_what_was_recorded(original, recorded):
    dataset = open_source(original)
    assert len(recorded) == 4
    for (_, raw), truth in zip(every(dataset), recorded, strict=True):
        episode = dataset.episode(raw, wrist="wrist_left")
        assert [view.key for view in episode.anchors] == [FRONT, BACK]
        assert all(isinstance(view.frames, Frames) for view in episode.anchors)
        for view, name in zip(episode.anchors, ("exterior_1", "exterior_2"), strict=True):
            want = truth.views[name]
            assert np.abs(view.frames[:].astype(int) - want.frames).mean() < 4
            assert np.allclose(view.pose, want.pose, atol=1e-4)
        assert episode.language == truth.language[0]
        assert np.allclose(episode.eef_pose, truth.eef, atol=1e-4)
        assert np.allclose(episode.gripper, truth.gripper, atol=1e-6)
        hand = truth.views["wrist"]
        assert np.abs(episode.wrist.frames[:].astype(int) - hand.frames).mean() < 4
        assert np.allclose(episode.wrist.pose, hand.pose, atol=2e-3)
        # Steps are not mixed up: each is nearer to its own frame than to any other.
        found, want = episode.wrist.frames[:].astype(float), hand.frames.astype(float)
        gap = np.abs(found[:, None] - want[None]).mean(axis=(2, 3, 4))
        assert (gap.argmin(axis=1) == np.arange(STEPS)).all()
        assert (dataset.frames(raw, FRONT)[5] == episode.anchors[0].frames[5]).all()


def test_cameras_are_chosen_by_name(source):
    assert [c.key for c in open_source(source, "droid").profile.anchors] == [FRONT, BACK]
    assert [c.key for c in open_source(source, "droid_sim").profile.anchors] == [FRONT, BACK]
    chosen = open_source(source, anchor_keys=["exterior_2_left", BACK]).profile.anchors
    assert [c.key for c in chosen] == [BACK] and chosen[0].extrinsics
    assert open_source(source, plain=True).profile.anchors == ()
    with pytest.raises(SourceError, match=r"'kitchen'.*--dataset droid_sim.*droid_100"):
        open_source(source, "kitchen")
    with pytest.raises(SourceError, match=f"no such camera.*{FRONT}"):
        open_source(source, anchor_keys=["nope"])


def test_unknown_datasets_are_understood_by_the_names_of_their_streams(source):
    rename_camera(source, FRONT, "observation.images.cam_high")
    rename_camera(source, BACK, "observation.images.depth_high")
    rename_camera(source, HAND, "observation.images.left_gripper_cam")
    dataset = open_source(source)
    assert dataset.profile.name == "droid_sim"
    assert [c.key for c in dataset.profile.anchors] == ["observation.images.cam_high"]
    assert dataset.profile.wrist.key == "observation.images.left_gripper_cam"
    assert [s.depth for s in dataset.streams()] == [False, True, False]
    episode = dataset.episode(every(dataset)[0][1])
    # The state's numbers are named x, y, z, roll, pitch and yaw; the gripper's sense is not told.
    assert episode.eef_pose is not None and episode.gripper is None
    with pytest.raises(SourceError, match="expects"):
        open_source(source, "droid")
    rename_camera(source, "observation.images.cam_high", "observation.images.hand_high")
    with pytest.raises(SourceError, match="--anchor-keys"):
        open_source(source)


def test_a_black_camera_is_dropped(source):
    for path in videos(source, BACK):
        count = STEPS if "episode_" in path.name else 4 * STEPS
        with VideoWriter(path, (90, 160), 15) as video:
            for _ in range(count):
                video.add(np.zeros((90, 160, 3), np.uint8))
    dataset = open_source(source)
    episode = dataset.episode(every(dataset)[0][1])
    assert [view.key for view in episode.anchors] == [FRONT]
    assert episode.dropped == {BACK: "black from start to end"}


def test_pictures_in_the_tables_are_cameras_too(source, recorded):
    def png(frame):
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "PNG")
        return {"bytes": file.getvalue(), "path": None}

    pictures = [png(frame) for e in recorded for frame in e.views["exterior_1"].frames]
    for path in sorted((source / "data").rglob("*.parquet")):
        table = pq.read_table(path)
        rows = [pictures[number] for number in table["index"].to_pylist()]
        table = table.append_column("observation.images.stored", pa.array(rows))
        pq.write_table(table, path, row_group_size=5)
    node = {"dtype": "image", "shape": [90, 160, 3], "names": ["height", "width", "channels"]}
    edit_info(source, lambda tree: tree["features"].update({"observation.images.stored": node}))
    dataset = open_source(source, anchor_keys=["stored"])
    for (_, raw), truth in zip(every(dataset), recorded, strict=True):
        (view,) = dataset.episode(raw).anchors
        assert (view.frames[:] == truth.views["exterior_1"].frames).all()
        assert (view.frames[[6, 1]] == truth.views["exterior_1"].frames[[6, 1]]).all()
        assert dataset.streams()[-1].encoding == "png"


def test_content_tells_every_difference(source, tmp_path):
    other = shutil.copytree(source, tmp_path / "other")
    path = sorted((other / "data").rglob("*.parquet"))[0]
    table = pq.read_table(path)
    column = table["action"].to_pylist()
    column[2][0] += 1
    at = table.schema.get_field_index("action")
    changed = table.set_column(
        at, table.schema.field("action"), pa.array(column, table["action"].type)
    )
    pq.write_table(changed, path)
    a, b = open_source(source), open_source(other, plain=True)
    unequal = []
    for (_, one), (_, two) in zip(every(a), every(b), strict=True):
        left, right = gathered(a.content(one)), gathered(b.content(two))
        assert left.keys() == right.keys() and {FRONT, "action", "timestamp"} <= left.keys()
        unequal.append([key for key in left if left[key] != right[key]])
    assert unequal == [["action"], [], [], []]


@pytest.mark.parametrize("how", ["cut", "gone", "flipped"])
def test_a_damaged_video_is_named(source, how):
    # v2.1: the second episode's own file; v3.0: the file of all.
    path = videos(source, FRONT)[1 if "2.1" in open_source(source).version else 0]
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        start = data.index(b"mdat") + 4
        middle = start + (data.index(b"moov") - start) // 2
        path.write_bytes(data[:middle] + b"\0" * 400 + data[middle + 400 :])
    found = errors(open_source(source))
    if "episode_" in path.name:
        assert [error is None for error in found] == [True, False, True, True]
    else:
        assert any(found) and (how == "flipped" or all(found))
    error = next(error for error in found if error)
    assert str(path) == error.file and error.key == FRONT and error.record is not None


@pytest.mark.parametrize("how", ["cut", "gone", "rows", "flipped"])
def test_a_damaged_table_is_named(source, how):
    paths = sorted((source / "data").rglob("*.parquet"))
    path, major = paths[len(paths) // 2 - (len(paths) > 1)], len(paths) > 1
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[:-100])
    elif how == "flipped":
        path.write_bytes(data[:4] + bytes(255 - byte for byte in data[4:4000]) + data[4000:])
    else:
        table = pq.read_table(path)
        pq.write_table(table.slice(1), path)
    found = errors(open_source(source))
    assert [error is None for error in found] == [True, False, True, True] if major else any(found)
    error = next(error for error in found if error)
    assert error.file == str(path) and error.record is not None


def test_a_wrong_length_is_named(source):
    path = source / "meta" / "episodes.jsonl"
    if path.exists():
        lines = path.read_text().splitlines()
        lines[1] = json.dumps(json.loads(lines[1]) | {"length": STEPS + 1})
        path.write_text("\n".join(lines))
    else:
        path = source / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
        table = pq.read_table(path)
        at = table.schema.get_field_index("length")
        lengths = pa.array([STEPS, STEPS + 1, STEPS, STEPS])
        pq.write_table(table.set_column(at, "length", lengths), path)
    found = errors(open_source(source))
    assert [error is None for error in found] == [True, False, True, True]
    assert "holds 8 rows, where 9 are declared" in str(found[1])


def _set(key, value):
    return lambda tree: tree.update({key: value})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (_set("data_path", "../{episode_index}{chunk_index}.parquet"), "path template|leads out"),
        (_set("data_path", "../../x.parquet"), "leads out"),
        (_set("data_path", "/etc/passwd"), "leads out"),
        (_set("video_path", "/{video_key}.mp4"), "leads out"),
        (_set("video_path", "a.mp4"), "tell the cameras apart"),
        (_set("video_path", "{video_key.__class__}.mp4"), "path template"),
        (_set("video_path", "{video_key:>99999999999}.mp4"), "path template"),
        (_set("video_path", "{video_key"), "path template"),
        (_set("codebase_version", "v9.0"), "v9.0.*known: v2.0, v2.1, v3.0"),
        (_set("fps", 0), "fps"),
        (_set("fps", "fast"), "fps"),
        (_set("chunks_size", 0), "chunks_size"),
        (_set("total_episodes", 10**15), "lists 4 episodes"),
        (_set("total_episodes", 2), "lists 4 episodes"),
        (_set("splits", {"train": "0:x"}), "splits"),
        (_set("splits", {"../train": "0:4"}), "splits"),
        (_set("features", []), "features"),
        (lambda t: t["features"].update({"a/../b": t["features"][FRONT]}), "name of a feature"),
        (lambda t: t["features"][FRONT].update(shape=[10**12, 10**12, 3]), "dtype and shape"),
        (lambda t: t["features"][FRONT].update(shape="big"), "dtype and shape"),
    ],
)
def test_metadata_that_lies_is_refused(source, change, match):
    edit_info(source, change)
    with pytest.raises(SourceError, match=match):
        open_source(source)


def test_declared_sizes_are_not_believed(source):
    edit_info(source, lambda t: t["features"][FRONT].update(shape=[2**30, 2**30, 3]))
    found = errors(open_source(source))
    assert all("1073741824x1073741824 is declared" in str(error) for error in found)


def test_a_table_of_more_rows_than_the_dataset_is_not_read(source):
    edit_info(source, _set("total_frames", STEPS - 1))
    assert all(
        "rows, but the dataset 7 in all" in str(error) for error in errors(open_source(source))
    )


@pytest.mark.parametrize("text", ["", "[]", '{"codebase_version": "v2.1"', "\xff", "[" * 100_000])
def test_damaged_json_is_refused(source, text):
    (source / "meta" / "info.json").write_text(text, encoding="latin-1")
    with pytest.raises(SourceError, match=r"info\.json"):
        open_source(source)


def test_damaged_episode_lists_are_refused(source):
    lines = source / "meta" / "episodes.jsonl"
    path = lines if lines.exists() else source / "meta/episodes/chunk-000/file-000.parquet"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - 30])
    with pytest.raises(SourceError, match=path.name):
        open_source(source)
    path.unlink()
    with pytest.raises(SourceError, match="episodes"):
        open_source(source)


def test_links_out_of_the_dataset_are_refused(source, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("mine")
    (source / "meta" / "extra.txt").symlink_to(secret)
    with pytest.raises(SourceError, match=r"extra\.txt.*outside the dataset"):
        open_source(source)
    (source / "meta" / "extra.txt").unlink()
    (source / "more").symlink_to(tmp_path)
    with pytest.raises(SourceError, match="link to a folder"):
        open_source(source)


def test_the_hubs_cache_is_a_dataset(source, tmp_path):
    """There, files are links to blobs beside the snapshot."""
    snapshot = tmp_path / "datasets--x" / "snapshots" / "abc"
    blobs = tmp_path / "datasets--x" / "blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(p for p in source.rglob("*") if p.is_file())):
        link = snapshot / path.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, blobs / str(number))
        link.symlink_to(blobs / str(number))
    dataset = open_source(snapshot)
    assert all(error is None for error in errors(dataset))

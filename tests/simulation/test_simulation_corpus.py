"""The corpus on disk: its geometry, its bytes, its plan, and other programs' view of it."""

import io
import json
from functools import partial

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation
from tensorflow_datasets.proto import tf_example_pb2
from wristaugment.jobs.cli import main
from wristaugment.readers.errors import SourceError

pytestmark = pytest.mark.render
SIDES = ("exterior_cam_1", "exterior_cam_2")


def pose(vector):
    out = np.eye(4)
    out[:3, :3] = Rotation.from_euler("xyz", vector[3:]).as_matrix()
    out[:3, 3] = vector[:3]
    return out


def matrix(vector):
    fx, fy, cx, cy = vector
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


@pytest.fixture(scope="module")
def episode(renderer):
    """One episode of six steps, from its record: ({flat key: array}, {key: pictures})."""
    from wristaugment.simulation.corpus import Plan, make_payload

    payload = renderer(make_payload, Plan("train", 2, 1, 6, 2, True), 1)
    values, pictures = {}, {}
    for key, feature in tf_example_pb2.Example.FromString(payload).features.feature.items():
        name = key.removeprefix("steps/").removeprefix("episode_metadata/")
        if "image" in key or "depth" in key:
            images = [Image.open(io.BytesIO(data)) for data in feature.bytes_list.value]
            pictures[name.removeprefix("observation/")] = np.stack([np.asarray(i) for i in images])
        else:
            kind = feature.WhichOneof("kind")
            values[name] = np.array(getattr(feature, kind).value)
    for name, width in {"cartesian_position": 6, "joint_position": 7}.items():
        for place in ("observation", "action_dict"):
            values[f"{place}/{name}"] = values[f"{place}/{name}"].reshape(6, width)
    return values, pictures


def wrist_poses(made):
    """[T, 4, 4] base <- hand camera, from the flange and the hand camera's first pose alone."""
    flange = [pose(v) for v in made["observation/cartesian_position"]]
    first = pose(made["extrinsics_wrist_cam"])
    return np.array([f @ np.linalg.inv(flange[0]) @ first for f in flange])


def reproject(made, pictures, step, side):
    """Wrist pixels carried into a side view: (difference in depth in metres, colours there)."""
    depth = pictures["wrist_depth_left"][step] / 1000.0
    v, u = np.mgrid[: depth.shape[0], : depth.shape[1]]
    rays = np.linalg.inv(matrix(made["intrinsics_wrist_cam"])) @ np.stack(
        [u.ravel(), v.ravel(), np.ones(u.size)]
    )
    points = wrist_poses(made)[step] @ np.vstack([rays * depth.ravel(), np.ones(u.size)])
    there = np.linalg.inv(pose(made[f"extrinsics_{SIDES[side]}"])) @ points
    seen = matrix(made[f"intrinsics_{SIDES[side]}"]) @ there[:3]
    x, y = np.round(seen[0] / seen[2]).astype(int), np.round(seen[1] / seen[2]).astype(int)
    inside = (seen[2] > 0.05) & (x >= 0) & (x < 320) & (y >= 0) & (y < 180)
    other = pictures[f"exterior_depth_{side + 1}_left"][step] / 1000.0
    gap = other[y[inside], x[inside]] - there[2, inside]
    colours = pictures[f"exterior_image_{side + 1}_left"][step][y[inside], x[inside]]
    own = pictures["wrist_image_left"][step].reshape(-1, 3)[inside]
    return gap, colours.astype(float), own.astype(float)


def test_hand_camera_is_rigid_in_the_flange(robot):
    """Its pose at any step follows from the flange and its pose at the first step."""
    from wristaugment.simulation.episode import Request, _stage
    from wristaugment.simulation.motion import show

    scene, arm, _, motion, _ = _stage(Request(2, "train", 1, 6, False))
    mounts = []
    for step in range(0, len(motion.joints), 7):
        show(scene, arm, motion, step)
        mounts.append(np.linalg.inv(arm.link8()) @ scene.camera_pose("wrist"))
    assert np.ptp(np.array(mounts), axis=0).max() < 1e-9


def test_mount_is_the_same_in_every_scene_up_to_its_jitter(robot, mujoco):
    from wristaugment.simulation.robot import Arm
    from wristaugment.simulation.scene import build_scene

    mounts = []
    for seed in range(8):
        scene = build_scene(np.random.default_rng(seed), robot)
        arm = Arm(scene.model, scene.data, robot)
        arm.set(np.zeros(7))
        mujoco.mj_camlight(scene.model, scene.data)
        mounts.append(np.linalg.inv(arm.link8()) @ scene.camera_pose("wrist"))
    mounts = np.array(mounts)
    middle = mounts[:, :3, 3].mean(0)
    away = np.linalg.norm(mounts[:, :3, 3] - middle, axis=1)
    assert 1e-4 < away.max() < 0.01
    turns = Rotation.from_matrix(mounts[:, :3, :3])
    spread = np.rad2deg((turns * turns.mean().inv()).magnitude())
    assert 0.1 < spread.max() < 2.5
    # On the side perpendicular to the fingers' travel (y of the tool).
    across = robot.tool_in_link8[:3, :3].T @ middle
    assert abs(across[1]) < 0.006 and abs(across[0]) > 0.06


@pytest.mark.parametrize("side", [0, 1])
def test_wrist_depth_lands_on_the_side_views_surfaces(episode, side):
    made, pictures = episode
    for step in range(6):
        gap, colours, own = reproject(made, pictures, step, side)
        visible = abs(gap) < 0.03
        assert visible.mean() > 0.4
        assert np.median(abs(gap[visible])) < 0.004
        # Lit alike from both sides, up to highlights, edges and JPEG.
        assert np.median(abs(colours[visible] - own[visible])) < 12


def test_a_wrong_pose_would_be_seen(episode):
    """The check above has teeth: three centimetres off, and the surfaces no longer meet."""
    made, pictures = episode
    raised = made["extrinsics_wrist_cam"] + np.array([0, 0, 0.03, 0, 0, 0])
    moved = made | {"extrinsics_wrist_cam": raised}
    gap, _, _ = reproject(moved, pictures, 0, 0)
    assert np.median(abs(gap[abs(gap) < 0.06])) > 0.01


def test_pictures_show_what_they_must(episode):
    pictures = episode[1]
    assert pictures["wrist_image_left"].shape == (6, 180, 320, 3)
    for key in ("wrist_image_left", "exterior_image_1_left", "exterior_image_2_left"):
        assert pictures[key].std() > 15
        assert np.abs(np.diff(pictures[key].astype(float), axis=0)).max() > 60
    depth = pictures["wrist_depth_left"]
    assert depth.dtype == np.uint16
    # The gripper is near, at the top of the picture; below it the table is in view.
    assert np.percentile(depth[:, :40], 5) < 200
    assert np.median(depth[:, -30:]) > 100
    still = pictures["exterior_depth_1_left"][:, :4, :4]
    assert np.ptp(still.astype(int), axis=0).max() <= 1


def test_actions_lead_to_the_next_step(episode):
    values = episode[0]
    for name in ("cartesian_position", "joint_position"):
        following = values[f"observation/{name}"][1:]
        assert np.allclose(values[f"action_dict/{name}"][:-1], following)
    assert abs(values["action"]).max() < 3
    assert values["is_first"].tolist() == [1, 0, 0, 0, 0, 0]
    assert values["is_last"].tolist() == [0, 0, 0, 0, 0, 1]


def test_one_process_writes_the_same_bytes_as_two(corpus, renderer, tmp_path):
    from wristaugment.simulation.corpus import Plan, write_corpus

    plan = Plan("train", episodes=3, shards=2, steps=4, seed=5, depth=True)
    folder = renderer(partial(write_corpus, tmp_path, [plan], workers=1, progress=False))
    names = sorted(path.name for path in corpus[1].iterdir())
    assert names == sorted(path.name for path in folder.iterdir()) and len(names) == 5
    for name in names:
        assert (folder / name).read_bytes() == (corpus[1] / name).read_bytes(), name


def test_only_missing_shards_are_made_again(corpus, renderer):
    from wristaugment.simulation.corpus import Plan, write_corpus

    root, folder = corpus
    plan = Plan("train", episodes=3, shards=2, steps=4, seed=5, depth=True)
    first, second = sorted(folder.glob("*.tfrecord-*"))
    before, times = second.read_bytes(), first.stat().st_mtime_ns
    second.unlink()
    renderer(partial(write_corpus, root, [plan], progress=False))
    assert second.read_bytes() == before
    assert first.stat().st_mtime_ns == times


def test_another_plan_and_foreign_folders_are_refused(corpus, tmp_path):
    from wristaugment.simulation.corpus import Plan, write_corpus

    root, _ = corpus
    with pytest.raises(SourceError, match=r"simulate\.json.*'train'.*seed 5"):
        write_corpus(root, [Plan("train", 3, 2, 4, 6, True)], progress=False)
    with pytest.raises(SourceError, match="depth"):
        write_corpus(root, [Plan("val", 3, 2, 4, 5, False)], progress=False)
    foreign = tmp_path / "droid_101" / "1.0.1"
    foreign.mkdir(parents=True)
    (foreign / "features.json").write_text("{}")
    with pytest.raises(SourceError, match="another origin"):
        write_corpus(tmp_path, [Plan("train", 3, 2, 4, 5, True)], progress=False)


def test_the_projects_own_reader_takes_it(corpus, robot):
    from wristaugment.readers import open_dataset

    dataset = open_dataset(corpus[0], "droid_101")
    (split,) = dataset.splits
    assert (split.name, [shard.records for shard in split.shards]) == ("train", [1, 2])
    raw = list(dataset.records(split.shards[1]))[1]
    key = "observation/wrist_image_left"
    found = dataset.episode(raw, wrist=key, depth=True)
    assert [view.key for view in found.anchors] == [
        "observation/exterior_image_1_left",
        "observation/exterior_image_2_left",
    ]
    assert found.length == 4 and found.language
    assert found.wrist is not None and found.wrist.frames.shape == (4, 180, 320, 3)
    poses = found.measured_wrist_pose()
    # The fingertips are in front of the hand camera and inside its picture.
    tips = found.eef_pose @ robot.tool_in_link8
    seen = np.einsum("tij,tj->ti", poses, tips[:, :, 3])[:, :3]
    scale = found.wrist_size[1] / 320
    pixel = np.einsum("ij,tj->ti", found.wrist_K, seen / seen[:, 2:])[:, :2] / scale
    assert np.all(seen[:, 2] > 0.1)
    assert np.all((pixel > 0) & (pixel < [320, 180]))
    for view in found.anchors:
        assert view.depth.shape == (4, 180, 320) and 0.3 < np.median(view.depth) < 3


def test_tensorflow_datasets_reads_it(corpus):
    pytest.importorskip("tensorflow")
    tfds = pytest.importorskip("tensorflow_datasets")
    builder = tfds.builder_from_directory(str(corpus[1]))
    assert (builder.info.name, str(builder.info.version)) == ("droid_101", "1.0.1")
    episodes = list(builder.as_dataset("train"))
    assert len(episodes) == 3
    steps = list(episodes[0]["steps"].as_numpy_iterator())
    assert len(steps) == 4 and steps[-1]["is_terminal"]
    assert steps[0]["observation"]["wrist_image_left"].shape == (180, 320, 3)
    assert steps[0]["observation"]["wrist_depth_left"].dtype == np.uint16
    assert steps[0]["observation"]["cartesian_position"].dtype == np.float64
    assert episodes[0]["episode_metadata"]["intrinsics_wrist_cam"].numpy()[0] > 150


@pytest.mark.slow
def test_command_line_makes_all_splits_from_different_seeds(renderer, tmp_path):
    report = tmp_path / "report.json"
    command = ["simulate", "--episodes", "10", "--steps", "1", "--split", "all", "--seed", "4"]
    assert renderer(main, [*command, "--out", str(tmp_path), "--json", str(report)]) == 0
    assert json.loads(report.read_text())["splits"] == {"train": [8], "val": [1], "test": [1]}
    folder = tmp_path / "droid_101" / "1.0.1"
    shards = sorted(folder.glob("*.tfrecord-*"))
    assert len(shards) == 3
    info = json.loads((folder / "dataset_info.json").read_text())
    assert [split["name"] for split in info["splits"]] == ["train", "val", "test"]
    test, val = (path.read_bytes() for path in (shards[0], shards[2]))
    assert test != val


def test_command_line_refuses_what_cannot_be(tmp_path, capsys):
    asked = ["simulate", "--episodes", "2", "--shards", "3", "--out", str(tmp_path)]
    assert main(asked) == 2
    assert "--episodes" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["simulate", "--episodes", "0", "--out", str(tmp_path)])

"""Corpora with one, two and three side cameras: the same episodes, seen by fewer or more."""

import json
from functools import partial

import numpy as np
import pytest
from tensorflow_datasets.proto import tf_example_pb2
from wristaugment.jobs.cli import main
from wristaugment.models.geometry import project, transform, unproject
from wristaugment.readers import open_dataset
from wristaugment.readers.errors import SourceError
from wristaugment.simulation.corpus import PLAN, Plan, make_payload, write_corpus
from wristaugment.writers.recorded import recorded_splits

pytestmark = pytest.mark.render
ONE, TWO, THREE = (f"observation/exterior_image_{n}_left" for n in (1, 2, 3))


def features(renderer, views: int) -> dict[str, bytes]:
    plan = Plan("train", 1, 1, 3, 11, True, views)
    payload = renderer(make_payload, plan, 0)
    found = tf_example_pb2.Example.FromString(payload).features.feature
    return {key: value.SerializeToString(deterministic=True) for key, value in found.items()}


@pytest.fixture(scope="module")
def three(renderer, tmp_path_factory):
    root = tmp_path_factory.mktemp("three")
    plan = Plan("train", 2, 1, 3, 11, True, 3)
    renderer(partial(write_corpus, root, [plan], progress=False))
    return root


def test_more_cameras_change_nothing_of_what_the_others_see(renderer):
    one, two, three = (features(renderer, views) for views in (1, 2, 3))
    assert two == {key: value for key, value in three.items() if key in two}
    assert one == {key: value for key, value in two.items() if key in one}
    assert sorted(three.keys() - two.keys()) == [
        "episode_metadata/extrinsics_exterior_cam_3",
        "episode_metadata/intrinsics_exterior_cam_3",
        "steps/observation/exterior_depth_3_left",
        "steps/observation/exterior_image_3_left",
    ]
    assert sorted(two.keys() - one.keys()) == [
        key.replace("3", "2") for key in sorted(three.keys() - two.keys())
    ]


def test_the_third_camera_is_where_it_is_said_to_be(robot):
    """In front of the robot, looking back at the workspace, and never at the same place."""
    from wristaugment.simulation.scene import SIDE_CAMERAS, build_scene

    places, ahead = [], []
    for seed in range(12):
        third = np.random.default_rng([seed, 1])
        scene = build_scene(np.random.default_rng(seed), robot, third)
        camera = scene.model.camera(SIDE_CAMERAS[2])
        places.append(camera.pos)
        ahead.append(-camera.mat0.reshape(3, 3)[:, 2])  # MuJoCo's cameras look along -z
        assert 33.3 < camera.fovy[0] < 43.1  # of pictures of 16:9, 56 to 70 degrees wide
    places, ahead = np.array(places), np.array(ahead)
    assert np.all(places > [0.80, -0.15, 0.65]) and np.all(places < [0.93, 0.15, 0.85])
    assert np.all(np.ptp(places, axis=0) > 0.02)
    assert np.all(ahead[:, 0] < -0.3) and np.all(ahead[:, 2] < -0.5)
    distance = np.linalg.norm(places - [0.53, 0, 0], axis=1)
    assert np.all((distance > 0.6) & (distance < 1.0))


def test_the_reader_takes_the_third_camera_with_its_calibration(three):
    import torch

    dataset = open_dataset(three, "droid")
    assert [camera.key for camera in dataset.profile.anchors] == [ONE, TWO, THREE]
    raw = next(iter(dataset.records(dataset.splits[0].shards[0])))
    episode = dataset.episode(raw, wrist="observation/wrist_image_left", depth=True)
    front, wrist = episode.anchors[2], episode.wrist
    assert front.key == THREE and np.asarray(front.frames).std() > 15
    # Both depths are of one world: what the hand camera sees lies on what the third one sees.
    poses = torch.as_tensor(episode.measured_wrist_pose()).float()
    K = torch.as_tensor(episode.wrist_K).float().expand(3, 3, 3)
    points = unproject(torch.as_tensor(np.asarray(wrist.depth)), K, poses).flatten(1, 2)
    seen_K = torch.as_tensor(front.K).float().expand(3, 3, 3)
    pose = torch.as_tensor(front.pose).float().expand(3, 4, 4)
    pixels, z = project(points, seen_K, pose)
    x, y = pixels.round().long().unbind(-1)
    inside = (z > 0.05) & (x >= 0) & (x < 320) & (y >= 0) & (y < 180)
    step = torch.arange(3)[:, None].expand_as(x)[inside]
    other = torch.as_tensor(np.asarray(front.depth))[step, y[inside], x[inside]]
    gap = (other - z[inside]).abs()
    assert inside.float().mean() > 0.4
    assert (gap < 0.03).float().mean() > 0.4 and gap[gap < 0.03].median() < 0.004
    raised = transform(pose, points + torch.tensor([0, 0, 0.05]))[..., 2]
    assert (raised[inside] - z[inside]).abs().median() > 0.02  # the check has teeth


def test_cameras_can_be_named_with_what_is_known_of_them(three):
    dataset = open_dataset(three, "droid", anchor_keys=["exterior_image_3_left"])
    raw = next(iter(dataset.records(dataset.splits[0].shards[0])))
    (view,) = dataset.episode(raw, depth=True).anchors
    assert view.key == THREE and view.K is not None and view.pose is not None
    assert view.depth is not None


def test_the_usual_plan_is_written_as_before_and_others_are_refused(corpus, three):
    fields = json.loads((corpus[1] / PLAN).read_text())["splits"]["train"]
    assert sorted(fields) == ["depth", "episodes", "seed", "shards", "split", "steps"]
    assert (
        json.loads((three / "droid_101/1.0.1" / PLAN).read_text())["splits"]["train"]["views"] == 3
    )
    with pytest.raises(SourceError, match="'train' was begun with views 3"):
        write_corpus(three, [Plan("train", 2, 1, 3, 11, True)], progress=False)
    with pytest.raises(SourceError, match=r"as many views; found \[2, 3\].*--views"):
        write_corpus(three, [Plan("val", 2, 1, 3, 11, True)], progress=False)


def test_other_formats_are_made_of_two_views(three, tmp_path, capsys):
    with pytest.raises(SourceError, match="has 3 side views"):
        recorded_splits(three)
    asked = ["simulate", "--episodes", "1", "--out", str(tmp_path / "a"), "--views", "3"]
    assert main([*asked, "--format", "calvin"]) == 2
    assert "--views" in capsys.readouterr().err and not (tmp_path / "a").exists()
    with pytest.raises(SystemExit):
        main(["simulate", "--episodes", "1", "--out", str(tmp_path), "--views", "4"])


def test_the_command_makes_one_view(renderer, tmp_path):
    asked = ["simulate", "--episodes", "1", "--steps", "1", "--views", "1", "--out", str(tmp_path)]
    assert renderer(main, asked) == 0
    with pytest.raises(SourceError, match=r"exterior_image_2_left.*--anchor-keys"):
        open_dataset(tmp_path, "droid")
    dataset = open_dataset(tmp_path, "droid", anchor_keys=["exterior_image_1_left"])
    assert [leaf.key for leaf in dataset.features.pictures()] == [
        ONE,
        "observation/wrist_image_left",
    ]

"""Every row of the profile tables against a dataset that is made after it."""

import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation
from tensorflow_datasets.proto import tf_example_pb2
from wristaugment.readers import open_dataset
from wristaugment.readers.errors import SourceError
from wristaugment.readers.poses import ENCODINGS
from wristaugment.readers.profiles import PROFILES, find_profile, known
from wristaugment.readers.tfrecord import frame

T = 3
# The sets of octo's and openvla's tables, by the names that they load them by.
_TABLE = """
fractal20220817_data kuka bridge_dataset bridge_orig bridge_oxe bridge taco_play jaco_play
berkeley_cable_routing roboturk nyu_door_opening_surprising_effectiveness viola
berkeley_autolab_ur5 toto language_table columbia_cairlab_pusht_real
stanford_kuka_multimodal_dataset_converted_externally_to_rlds
nyu_rot_dataset_converted_externally_to_rlds stanford_hydra_dataset_converted_externally_to_rlds
austin_buds_dataset_converted_externally_to_rlds
nyu_franka_play_dataset_converted_externally_to_rlds
maniskill_dataset_converted_externally_to_rlds furniture_bench_dataset_converted_externally_to_rlds
cmu_franka_exploration_dataset_converted_externally_to_rlds
ucsd_kitchen_dataset_converted_externally_to_rlds
ucsd_pick_and_place_dataset_converted_externally_to_rlds
austin_sailor_dataset_converted_externally_to_rlds
austin_sirius_dataset_converted_externally_to_rlds bc_z
utokyo_pr2_opening_fridge_converted_externally_to_rlds
utokyo_pr2_tabletop_manipulation_converted_externally_to_rlds
utokyo_xarm_pick_and_place_converted_externally_to_rlds
utokyo_xarm_bimanual_converted_externally_to_rlds robo_net
berkeley_mvp_converted_externally_to_rlds berkeley_rpt_converted_externally_to_rlds
kaist_nonprehensile_converted_externally_to_rlds stanford_mask_vit_converted_externally_to_rlds
tokyo_u_lsmo_converted_externally_to_rlds dlr_sara_pour_converted_externally_to_rlds
dlr_sara_grid_clamp_converted_externally_to_rlds
dlr_edan_shared_control_converted_externally_to_rlds
asu_table_top_converted_externally_to_rlds stanford_robocook_converted_externally_to_rlds
imperialcollege_sawyer_wrist_cam iamlab_cmu_pickup_insert_converted_externally_to_rlds uiuc_d3field
utaustin_mutex berkeley_fanuc_manipulation cmu_playing_with_food cmu_play_fusion cmu_stretch
berkeley_gnm_recon berkeley_gnm_cory_hall berkeley_gnm_sac_son gnm_dataset aloha_static_dataset
aloha_dagger_dataset aloha_mobile_dataset fmb_dataset dobbe roboset rh20t mujoco_manip droid
"""
TABLE = _TABLE.split()
KEY = re.compile(r"(observation|ground_truth_states|episode_metadata)(/[A-Za-z0-9_]+)+")
TURN = Rotation.from_euler("xyz", [(0.3, -0.2, 1.1), (0.4, -0.1, 1.0), (2.9, 0.2, -0.6)])
PLACE = np.array([(0.4, 0.1, 0.3), (0.42, 0.1, 0.31), (0.44, -0.1, 0.32)])


def numbers_of(profile):
    for numbers in (profile.eef, profile.gripper):
        if numbers is not None:
            yield numbers
            if numbers.rotation is not None:
                yield numbers.rotation


def test_every_set_of_the_public_tables_is_known():
    for name in TABLE:
        profile = find_profile(name)
        assert profile is not None, name
        assert find_profile(name.removesuffix("_converted_externally_to_rlds")) is profile
    assert len({find_profile(name).name for name in TABLE}) == len(PROFILES)
    assert all(find_profile(name.strip()) for name in known().split(","))


def test_names_are_unique_and_rows_well_formed():
    names = [name for profile in PROFILES for name in profile.names]
    assert len(set(names)) == len(names)
    for profile in PROFILES:
        cameras = [camera.key for camera in profile.cameras()]
        assert len(set(cameras)) == len(cameras), profile.name
        keys = cameras + [numbers.key for numbers in numbers_of(profile)]
        for camera in profile.cameras():
            keys += filter(None, (camera.extrinsics, camera.intrinsics, camera.depth))
        assert all(KEY.fullmatch(key) for key in keys), (profile.name, keys)
        assert profile.language and not any(key.startswith("steps/") for key in profile.language)
        if eef := profile.eef:
            due = ENCODINGS[eef.encoding]
            assert eef.count + (eef.rotation.count if eef.rotation else 0) == due, profile.name
        if profile.gripper:
            assert profile.gripper.count == 1 and profile.gripper.highest > profile.gripper.lowest


def picture(seed: int) -> bytes:
    buffer = io.BytesIO()
    values = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def spelled(encoding: str) -> np.ndarray:
    if encoding == "matrix":
        out = np.tile(np.eye(4), (T, 1, 1))
        out[:, :3, :3], out[:, :3, 3] = TURN.as_matrix(), PLACE
        return np.swapaxes(out, 1, 2).reshape(T, 16)  # by columns, as libfranka does
    quat = TURN.as_quat()
    if encoding == "position":
        return PLACE
    turn = {"quat_xyzw": quat, "quat_wxyz": quat[:, [3, 0, 1, 2]], "rotvec": TURN.as_rotvec()}
    if encoding.startswith("euler_"):
        turn[encoding] = TURN.as_euler(encoding[6:])
    return np.hstack((PLACE, turn[encoding]))


def tables(profile) -> dict[str, np.ndarray]:
    """Key -> [T, N] numbers, as the row says they lie, with other numbers around them."""
    sizes: dict[str, int] = {}
    for numbers in numbers_of(profile):
        sizes[numbers.key] = max(sizes.get(numbers.key, 0), numbers.start + numbers.count)
    out = {key: np.full((T, size), 7.25) for key, size in sizes.items()}
    if eef := profile.eef:
        values = spelled(eef.encoding)
        parts = [(eef, values[:, : eef.count])]
        if eef.rotation:
            parts.append((eef.rotation, values[:, eef.count :]))
        for numbers, part in parts:
            out[numbers.key][:, numbers.start : numbers.start + numbers.count] = part
    if grip := profile.gripper:
        out[grip.key][:, grip.start] = np.linspace(grip.lowest, grip.highest, T)
    return out


def node(kind: str, **spec) -> dict:
    field = {"Image": "image", "Text": "text", "FeaturesDict": "featuresDict"}.get(kind, "tensor")
    return {"pythonClassName": f"tensorflow_datasets.core.features.{kind}", field: spec}


def place_in(tree: dict, path: list[str], leaf: dict) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = leaf


def as_node(tree: dict) -> dict:
    if "pythonClassName" in tree:
        return tree
    return node("FeaturesDict", features={name: as_node(child) for name, child in tree.items()})


def make(profile, root):
    """A dataset of one episode whose tree is made from a row."""
    tree: dict = {}
    example = tf_example_pb2.Example()
    feature = example.features.feature

    def add(key: str, leaf: dict) -> str:
        head, *rest = key.split("/", 1)  # names may hold slashes themselves
        place_in(tree, [head, *rest], leaf)
        return f"steps/{key}"

    for seed, camera in enumerate(profile.cameras()):
        spec = {"shape": {"dimensions": ["8", "8", "3"]}, "dtype": "uint8"}
        flat = add(camera.key, node("Image", **spec))
        feature[flat].bytes_list.value.extend(picture(10 * seed + step) for step in range(T))
    for key, values in tables(profile).items():
        shape = {"dimensions": [str(values.shape[1])]}
        flat = add(key, node("Tensor", shape=shape, dtype="float32"))
        feature[flat].float_list.value.extend(values.ravel().tolist())
    flat = add("is_first", node("Scalar", shape={}, dtype="bool"))
    feature[flat].int64_list.value.extend([1, 0, 0])
    text = profile.language[0]
    feature[add(text, node("Text"))].bytes_list.value.extend([b"open it"] * T)
    folder = root / profile.name / "0.1.0"
    folder.mkdir(parents=True)
    steps = {
        "pythonClassName": "tensorflow_datasets.core.features.dataset_feature.Dataset",
        "sequence": {"feature": as_node(tree), "length": "-1"},
    }
    (folder / "features.json").write_text(
        json.dumps(node("FeaturesDict", features={"steps": steps}))
    )
    name = f"{profile.name}-train.tfrecord-00000-of-00001"
    (folder / name).write_bytes(frame(example.SerializeToString()))
    info = {
        "name": profile.name,
        "version": "0.1.0",
        "fileFormat": "tfrecord",
        "splits": [{"name": "train", "shardLengths": ["1"], "numBytes": "1"}],
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_a_dataset_made_after_the_row_opens_with_it(profile, tmp_path):
    folder = make(profile, tmp_path)
    dataset = open_dataset(folder, min(profile.names, key=len))
    found = dataset.profile
    assert [camera.key for camera in found.anchors] == [camera.key for camera in profile.anchors]
    assert (found.wrist and found.wrist.key) == (profile.wrist and profile.wrist.key)
    assert found.eef == profile.eef and found.gripper == profile.gripper
    (raw,) = dataset.records(dataset.splits[0].shards[0])
    wrist = profile.wrist.key if profile.wrist else None
    episode = dataset.episode(raw, wrist=wrist)
    assert [view.key for view in episode.anchors] == [camera.key for camera in profile.anchors]
    assert all(view.frames.shape == (T, 8, 8, 3) for view in episode.anchors)
    assert wrist is None or episode.wrist.frames.shape == (T, 8, 8, 3)
    assert episode.language == "open it"
    if profile.eef is None or profile.eef.encoding == "position":
        assert episode.eef_pose is None
    else:
        np.testing.assert_allclose(episode.eef_pose[:, :3, 3], PLACE, atol=1e-5)
        np.testing.assert_allclose(episode.eef_pose[:, :3, :3], TURN.as_matrix(), atol=1e-5)
    if profile.gripper is None:
        assert episode.gripper is None
    else:
        want = np.linspace(0, 1, T)
        np.testing.assert_allclose(
            episode.gripper, want[::-1] if profile.gripper.inverted else want, atol=1e-5
        )


def test_the_open_x_copy_of_bridge_has_one_camera(tmp_path):
    """A version of a dataset with fewer cameras than its row opens with those it has."""
    from dataclasses import replace

    profile = find_profile("bridge")
    folder = make(replace(profile, name="bridge", anchors=profile.anchors[-1:]), tmp_path)
    dataset = open_dataset(folder, "bridge")
    assert [camera.key for camera in dataset.profile.anchors] == ["observation/image"]
    with pytest.raises(SourceError, match="key 'image_2': there is no such key"):
        open_dataset(folder, "bridge", anchor_keys=["image", "image_2"])

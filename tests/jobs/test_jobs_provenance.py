"""What a finished job says of itself: the card, the manifest, the settings to paste."""

from __future__ import annotations

import json
import re

import pytest


@pytest.fixture(scope="module")
def out(lab, small, tmp_path_factory):
    out = tmp_path_factory.mktemp("provenance") / "out"
    done = lab.without_ray(small.args(out, "--wrist-key", "observation/hand_rgb", "--seed", "4"))
    assert done.returncode == 0, done.stderr
    return out


def test_the_manifest_tells_how_every_episode_was_made(out, lab):
    text = (out / ".wristaugment" / "manifest.json").read_text()
    manifest = json.loads(text)
    assert manifest["synthetic"] is True
    assert (manifest["recipe"]["name"], manifest["seed"]) == ("constant", 4)
    assert manifest["wrist_key"] == "hand_rgb"
    assert manifest["anchor_keys"][0] == "observation/exterior_image_1_left"
    assert (manifest["frames"], manifest["valid_frames"]) == (8 * lab.steps, 8 * lab.steps)
    assert len(manifest["records"]) == 8
    assert manifest["records"][3]["record"] == "train/1/1"
    assert set(manifest["records"][3]) == {
        "record",
        "frames",
        "valid",
        "below",
        "unmade",
        "confidence",
        "coverage",
        "notes",
    }
    ledger = (out / ".wristaugment" / "shards").glob("*.json")
    added = sorted(
        json.loads(path.read_text())["result"]["facts"]["added_sha256"] for path in ledger
    )
    assert sorted(manifest["checks"].values()) == added and all(added)


def test_the_card_says_synthetic_and_its_settings_are_python(out):
    card = (out / ".wristaugment" / "README.md").read_text()
    assert card.startswith("---\nannotations_creators:\n- machine-generated\n")
    assert "generated**, not recorded" in card
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        compile(block, "card", "exec")
    table: dict = {"droid": {"image_obs_keys": {"wrist": None}}}
    exec(blocks[1], {"OXE_DATASET_CONFIGS": table})
    assert table["droid"]["image_obs_keys"]["wrist"] == "hand_rgb"
    names: dict = {}
    exec(blocks[3], names)
    step = {"observation": {"exterior_image_1_left": 1, "hand_rgb": 2, "wrist_valid": True}}
    assert names["use_synthetic_wrist"](step)["image"] == {"base_0_rgb": 1, "left_wrist_0_rgb": 2}


def test_tfds_reads_the_copy(out, lab):
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("tensorflow")
    data = tfds.builder_from_directory(str(out / "droid" / "1.0.0")).as_dataset(split="train")
    texts = []
    for episode in data:
        steps = list(episode["steps"])
        assert len(steps) == lab.steps
        assert steps[0]["observation"]["hand_rgb"].shape == (96, 176, 3)
        assert all(bool(step["observation"]["wrist_valid"]) for step in steps)
        texts.append(steps[0]["language_instruction"].numpy().decode())
    assert sorted(texts) == sorted(f"put {a} on {b}" for a in range(4) for b in range(2))

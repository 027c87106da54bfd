"""The dataset card of a copy: what it is, how it was made, and what to paste into each consumer."""

from __future__ import annotations

from collections.abc import Callable


def card(plan: dict, totals: dict, stream: str, replaced: bool) -> str:
    """The text of OUT/.wristaugment/README.md; the same for the same plan and totals.

    Args:
        plan: as of `make_plan`.
        totals: {"episodes", "frames", "valid_frames", "bad", "expected"} of the finished job.
        stream: the new stream's key, as the format's reader knows it.
        replaced: whether the key held a recorded stream in the source.
    """
    place = plan["place"].split("/")[0]
    name = place if place != "." else plan["dataset"]
    title = f"{name} {plan['version']}".strip()
    height, width = plan["wrist_size"]
    weights = "\n".join(
        f"  - `{file}`: {digest}" for file, digest in sorted(plan["weights"].items())
    )
    origin = (
        "**It takes the place of the recorded stream of that name (`--replace`).**"
        if replaced
        else "Every byte of the source is kept; only this stream and its flags were added."
    )
    expected = "\n".join(f"- expected quality: {line}" for line in totals["expected"])
    head = f"""---
annotations_creators:
- machine-generated
source_datasets:
- {"/".join(filter(None, (name, plan["version"])))}
tags:
- robotics
- synthetic-wrist-view
---

# {title} with a synthetic wrist view

`{stream}` ({height}x{width}x3) was **generated**, not recorded, from the
third-person views {", ".join(f"`{key}`" for key in plan["anchor_keys"]) or "of the source"}.
{origin}
`wrist_valid` is False for a frame that could not be made (that frame is black), and for one of
which a lower SSIM is expected than was asked for (its pixels are there).
`wrist_confidence` is the SSIM that is expected of a frame, from 0 to 1, told without the truth; 0
for one that could not be made, NaN where nothing is known.

- made by: wristaugment {plan["wristaugment"]}, recipe `{plan["recipe"]["name"]}`, \
pose `{plan["pose"]}`, seed {plan["seed"]}, on {plan["device"]}
- weights (SHA-256):{chr(10) + weights if weights else " none"}
- {totals["episodes"]} episodes, {totals["frames"]} frames ({totals["valid_frames"]} valid), \
{totals["bad"]} bad records
{expected}
- settings, and the quality of each episode: `plan.json` and `manifest.json` beside this file

OUT in what follows is the folder of this copy (`--out`).
"""
    snippets = _SNIPPETS.get(plan["format"])
    return head + (snippets(plan, stream) if snippets else "")


def _rlds(plan: dict, stream: str) -> str:
    # Training code asks for a dataset by its folder, which need not be the builder's name.
    name, key = plan["place"].split("/")[0], stream.removeprefix("observation/")
    anchors = [anchor.removeprefix("observation/") for anchor in plan["anchor_keys"]]
    primary = anchors[0] if anchors else "PRIMARY_CAMERA_KEY"
    return f"""
## TensorFlow Datasets

```python
import tensorflow_datasets as tfds

builder = tfds.builder_from_directory("OUT/{plan["place"]}")
```

## octo (octo/data/oxe/oxe_dataset_configs.py)

```python
OXE_DATASET_CONFIGS["{name}"]["image_obs_keys"]["wrist"] = "{key}"
# and load_camera_views=("primary", "wrist")
```

## OpenVLA-OFT (prismatic/vla/datasets/rlds/oxe/configs.py)

```python
OXE_DATASET_CONFIGS["{name}"]["image_obs_keys"]["wrist"] = "{key}"
# and --num_images_in_input 2
```

It reads no mask: leave out episodes with `wrist_valid` False if black frames must not be learnt.

## openpi (a transform before its own; its DROID loader reads `wrist_image_left`)

```python
def use_synthetic_wrist(step):
    obs = step["observation"]
    return {{
        "image": {{
            "base_0_rgb": obs["{primary}"],
            "left_wrist_0_rgb": obs["{key}"],
        }},
        "image_mask": {{"base_0_rgb": True, "left_wrist_0_rgb": obs["wrist_valid"]}},
    }}
```
"""


def _calvin(plan: dict, stream: str) -> str:
    return f"""
## calvin_agent, MDT, GR-1 (a datamodule's observation_space yaml)

```yaml
rgb_obs: ["rgb_static", "{stream}"]
```

Every frame has it as `np.load("episode_0000000.npz")["{stream}"]`, with `wrist_valid` beside it.
"""


def _robomimic(plan: dict, stream: str) -> str:
    key = stream.rpartition("/")[2]
    return f"""
## robomimic (the training config)

```python
config.observation.modalities.obs.rgb.append("{key}")
```

## LIBERO (the policy's config)

```yaml
data:
  obs:
    modality:
      rgb: ["agentview_rgb", "{key}"]
```

Frames are stored the same way up as the file's other cameras.
"""


def _aloha(plan: dict, stream: str) -> str:
    return f"""
## ACT (constants.py)

```python
TASK_CONFIGS["YOUR_TASK"]["camera_names"].append("{stream.rpartition("/")[2]}")
```
"""


def _droid_raw(plan: dict, stream: str) -> str:
    return f"""
## Reading it

```python
import av

frames = av.open("EPISODE/{stream}.mp4").decode(video=0)  # frame i is step i of trajectory.h5
```
"""


def _replay_buffer(plan: dict, stream: str) -> str:
    key = stream.rpartition("/")[2]
    height, width = plan["wrist_size"]
    return f"""
## diffusion_policy (the task's yaml)

```yaml
shape_meta:
  obs:
    {key}:
      shape: [3, {height}, {width}]
      type: rgb
```
"""


def _lerobot(plan: dict, stream: str) -> str:
    name = plan["place"]
    primary = plan["anchor_keys"][0] if plan["anchor_keys"] else "observation.images.PRIMARY"
    return f"""
## LeRobot

```python
from lerobot.datasets.lerobot_dataset import LeRobotDataset

dataset = LeRobotDataset("{name}", root="OUT/{name}")
wrist = dataset[0]["{stream}"]
```

## openpi (the data config's repack transform)

```python
RepackTransform({{
    "observation/image": "{primary}",
    "observation/wrist_image": "{stream}",
}})
```

## GR00T (meta/modality.json)

```json
{{"video": {{"wrist": {{"original_key": "{stream}"}}}}}}
```
"""


_SNIPPETS: dict[str, Callable[[dict, str], str]] = {
    "rlds": _rlds,
    "calvin": _calvin,
    "robomimic": _robomimic,
    "aloha": _aloha,
    "droid_raw": _droid_raw,
    "replay_buffer": _replay_buffer,
    "lerobot": _lerobot,
}

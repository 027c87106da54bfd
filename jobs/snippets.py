"""The dataset card of a copy: what it is, how it was made, and what to paste into each consumer."""

from __future__ import annotations


def card(plan: dict, totals: dict, replaced: bool) -> str:
    """The text of OUT/.wristaugment/README.md; the same for the same plan and totals.

    Args:
        plan: as of `make_plan`.
        totals: {"episodes", "frames", "valid_frames", "bad"} of the finished job.
        replaced: whether the key held a recorded stream in the source.
    """
    # Training code asks for a dataset by its folder, which need not be the builder's name.
    name, version, key = plan["place"].split("/")[0], plan["version"], plan["wrist_key"]
    height, width = plan["wrist_size"]
    anchors = [anchor.removeprefix("observation/") for anchor in plan["anchor_keys"]]
    primary = anchors[0] if anchors else "PRIMARY_CAMERA_KEY"
    weights = "\n".join(
        f"  - `{file}`: {digest}" for file, digest in sorted(plan["weights"].items())
    )
    origin = (
        "**It takes the place of the recorded stream of that name (`--replace`).**"
        if replaced
        else "Every byte of the source is kept; only this stream and its flags were added."
    )
    return f"""---
annotations_creators:
- machine-generated
source_datasets:
- {name}/{version}
tags:
- robotics
- synthetic-wrist-view
---

# {name} {version} with a synthetic wrist view

`steps/observation/{key}` ({height}x{width}x3, JPEG) was **generated**, not recorded, from the
third-person views {", ".join(f"`{anchor}`" for anchor in anchors) or "of the source"}.
{origin}
`steps/observation/wrist_valid` is False for a frame that could not be made; that frame is black.

- made by: wristaugment {plan["wristaugment"]}, recipe `{plan["recipe"]["name"]}`, \
pose `{plan["pose"]}`, seed {plan["seed"]}, on {plan["device"]}
- weights (SHA-256):{chr(10) + weights if weights else " none"}
- {totals["episodes"]} episodes, {totals["frames"]} frames ({totals["valid_frames"]} valid), \
{totals["bad"]} bad records
- settings, and the quality of each episode: `plan.json` and `manifest.json` beside this file

## TensorFlow Datasets

```python
import tensorflow_datasets as tfds

builder = tfds.builder_from_directory("OUT/{plan["place"]}")  # OUT: where this copy is
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

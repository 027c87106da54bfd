"""What the rlds package reads of a dataset, as JSON; needs tests/peers/rlds018.txt.

python tests/peers/rlds018.py FOLDER SPLIT KEY     (KEY may be "": only the other observations)
"""

from __future__ import annotations

import hashlib
import json
import sys

import numpy as np
import rlds
import tensorflow as tf
import tensorflow_datasets as tfds


def main(folder: str, split: str, key: str) -> dict:
    """Each episode's frames of `key`, its steps in pairs, and a hash of its other observations."""
    builder = tfds.builder_from_directory(folder)
    config = tfds.ReadConfig(interleave_cycle_length=1)
    episodes = builder.as_dataset(split=split, shuffle_files=False, read_config=config)
    rows = []
    for episode in episodes:
        steps = episode[rlds.STEPS]
        pairs = rlds.transformations.batch(steps, size=2, shift=1, drop_remainder=True)
        pairs = [pair[rlds.OBSERVATION] for pair in pairs]
        shapes = {tuple(pair[key].shape) for pair in pairs if key}
        frames = [step[rlds.OBSERVATION][key].numpy() for step in steps if key]
        other = hashlib.sha256()
        for step in steps:
            observation = step[rlds.OBSERVATION]
            for name in sorted(set(observation) - {key, "wrist_valid", "wrist_confidence"}):
                other.update(observation[name].numpy().tobytes())
        rows.append(
            {
                "steps": rlds.transformations.episode_length(steps).numpy().item(),
                "shape": list(np.shape(frames)),
                "dtype": str(np.asarray(frames).dtype),
                "means": [float(frame.mean()) for frame in frames],
                "pairs": sorted(map(list, shapes)),
                "valid": [bool(s[rlds.OBSERVATION].get("wrist_valid", True)) for s in steps],
                "others": other.hexdigest(),
            }
        )
    lengths = rlds.transformations.map_nested_steps(
        episodes, lambda step: {rlds.IS_FIRST: step[rlds.IS_FIRST]}
    )
    firsts = [sum(int(s[rlds.IS_FIRST]) for s in row[rlds.STEPS]) for row in lengths]
    return {"tensorflow": tf.__version__, "episodes": rows, "firsts": firsts}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:4])))

"""What loaders that others wrote read of an HDF5 dataset, as JSON; needs tests/peers/hdf5.txt.

python tests/peers/hdf5.py robomimic FILE KEY [KEY ...] [--next-obs]
python tests/peers/hdf5.py aloha FOLDER CAMERA [CAMERA ...]
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import sys
from pathlib import Path

import h5py
import numpy as np


def robomimic(choices: argparse.Namespace) -> dict:
    """Every sequence of robomimic's SequenceDataset, made as LIBERO's get_dataset makes it."""
    import robomimic.utils.obs_utils as obs_utils
    from robomimic.utils.dataset import SequenceDataset

    def sequences(mask: str | None = None) -> SequenceDataset:
        return SequenceDataset(
            hdf5_path=choices.path,
            obs_keys=choices.keys,
            dataset_keys=["actions"],
            load_next_obs=choices.next_obs,
            frame_stack=1,
            seq_length=1,
            pad_frame_stack=True,
            pad_seq_length=True,
            get_pad_mask=False,
            goal_mode=None,
            hdf5_cache_mode="low_dim",
            hdf5_use_swmr=False,
            hdf5_normalize_obs=None,
            filter_by_attribute=mask,
        )

    obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"rgb": choices.keys}})
    dataset = sequences()
    items = [dataset[index] for index in range(len(dataset))]
    found = {"demos": dataset.n_demos, "sequences": len(dataset)}
    for part in ("obs", "next_obs") if choices.next_obs else ("obs",):
        streams = {key: np.concatenate([item[part][key] for item in items]) for key in choices.keys}
        found[part] = {key: told(pixels) for key, pixels in streams.items()}
    with h5py.File(choices.path) as file:
        masks = list(file.get("mask", ()))
    return found | {"masks": {mask: sequences(mask).n_demos for mask in masks}}


def aloha(choices: argparse.Namespace) -> list[dict]:
    """Every episode as ACT's and ALOHA's scripts read it, with h5py and OpenCV."""
    import cv2

    found = []
    count = len(list(Path(choices.path).glob("episode_*.hdf5")))
    for number in range(count):
        with h5py.File(Path(choices.path) / f"episode_{number}.hdf5", "r") as root:
            compressed = root.attrs.get("compress", False)
            action, qpos = root["/action"][()], root["/observations/qpos"][()]
            lengths = root["/compress_len"][()] if compressed else None
            cameras = {}
            for place, name in enumerate(root["/observations/images"].keys()):
                rows = root[f"/observations/images/{name}"][()]
                if lengths is not None:
                    # The lengths are walked beside the cameras, and not needed by the decoder.
                    assert all(int(length) >= 0 for length in lengths[place])
                    rows = np.stack([cv2.imdecode(row, 1) for row in rows])
                cameras[name] = rows
        assert len(action) == len(qpos)
        first = [cameras[name][0] for name in choices.keys]
        even = len({picture.shape for picture in first}) == 1
        batch = list(np.stack(first).transpose(0, 3, 1, 2).shape) if even else "ragged"
        streams = {name: told(cameras[name]) for name in choices.keys}
        found.append({"steps": len(action), "batch": batch, "cameras": streams})
    return found


def told(pixels: np.ndarray) -> dict:
    """Shape, type, checksum and mean colour of [N, H, W, 3] pixels."""
    pixels = np.ascontiguousarray(pixels)
    return {
        "shape": list(pixels.shape),
        "dtype": str(pixels.dtype),
        "sha256": hashlib.sha256(pixels.tobytes()).hexdigest(),
        "means": pixels.reshape(-1, pixels.shape[-1]).mean(0).tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("loader", choices=["robomimic", "aloha"])
    parser.add_argument("path")
    parser.add_argument("keys", nargs="+")
    parser.add_argument("--next-obs", action="store_true")
    choices = parser.parse_args()
    with contextlib.redirect_stdout(sys.stderr):  # loaders talk
        found = {"robomimic": robomimic, "aloha": aloha}[choices.loader](choices)
    print(json.dumps(found))


if __name__ == "__main__":
    main()

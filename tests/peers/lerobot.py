"""What lerobot's own class makes of a dataset, as JSON; run in an environment that has lerobot.

    python lerobot.py read FOLDER ...         reads every step of each
    python lerobot.py make VIDEOS IMAGES      writes two datasets, cameras as videos and as images

The same script serves both versions: what it runs in decides. Several at once, since loading
lerobot takes longer than all the rest.
"""

import argparse
import hashlib
import json
import os
import sys
import tempfile
import warnings

# This file's own folder must not shadow the package of the same name.
_HERE = os.path.dirname(os.path.realpath(__file__))
sys.path = [path for path in sys.path if os.path.realpath(path) != _HERE]
_CACHE = tempfile.TemporaryDirectory()
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": _CACHE.name, "HF_DATASETS_CACHE": _CACHE.name}
warnings.simplefilter("ignore")

import numpy as np  # noqa: E402
import torch  # noqa: E402

# The operators that torchvision's compiled part would define; nothing here calls them.
_OPERATORS = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _OPERATORS.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from lerobot.datasets.lerobot_dataset import LeRobotDataset  # noqa: E402

SIZE, FPS = (48, 64), 10


def opened(folder, **options):
    return LeRobotDataset("local/test", root=folder, video_backend="pyav", **options)


def read(folder):
    """Every step of a dataset: cameras as their mean colour, the rest as a checksum."""
    dataset = opened(folder)
    cameras = dataset.meta.camera_keys
    digests, colours, tasks = {}, {key: [] for key in cameras}, []
    for step in range(len(dataset)):
        item = dataset[step]
        tasks.append(item["task"])
        for key, value in item.items():
            if key in cameras:
                colours[key].append([round(v, 4) for v in value.mean(dim=(1, 2)).tolist()])
                continue
            data = value.numpy().tobytes() if isinstance(value, torch.Tensor) else value.encode()
            digests.setdefault(key, hashlib.sha256()).update(data)
    window = opened(folder, delta_timestamps={key: [-1 / dataset.fps, 0.0] for key in cameras})
    last = window[len(window) - 1]
    loader = torch.utils.data.DataLoader(window, batch_size=2)
    batch = next(iter(loader))
    return {
        "version": dataset.meta.info["codebase_version"],
        "length": len(dataset),
        "episodes": dataset.num_episodes,
        "cameras": cameras,
        "shapes": {key: list(item[key].shape) for key in cameras},
        "windows": {key: list(last[key].shape) for key in cameras},
        "batch": {key: list(batch[key].shape) for key in cameras},
        "colours": colours,
        "digests": {key: digest.hexdigest() for key, digest in digests.items()},
        "tasks": tasks,
        "stats": {
            key: {
                name: np.asarray(value).tolist() for name, value in dataset.meta.stats[key].items()
            }
            for key in cameras
        },
    }


def make(folder, images):
    """Two episodes of 6 and 4 steps with two cameras, written by lerobot itself."""
    kind = "image" if images else "video"
    picture = {"dtype": kind, "shape": (*SIZE, 3), "names": ["height", "width", "channels"]}
    numbers = {"dtype": "float32", "shape": (2,), "names": ["a", "b"]}
    dataset = LeRobotDataset.create(
        "local/test",
        FPS,
        {
            "observation.images.front": picture,
            "observation.images.dark": picture,
            "observation.state": numbers,
            "action": numbers,
        },
        root=folder,
        use_videos=not images,
    )
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    for episode, length in enumerate((6, 4)):
        for step in range(length):
            frame = {
                "observation.images.front": np.stack(
                    [4 * x, 4 * y, np.full_like(x, 20 * step + 100 * episode)], -1
                ).astype(np.uint8),
                "observation.images.dark": np.zeros((*SIZE, 3), np.uint8),
                "observation.state": np.array([step, episode], np.float32),
                "action": np.array([-step, 0], np.float32),
            }
            task = ("open the drawer", "close it")[episode]
            if "task" in LeRobotDataset.add_frame.__code__.co_varnames[:3]:
                dataset.add_frame(frame, task)
            else:
                dataset.add_frame(frame | {"task": task})
        dataset.save_episode()
    if hasattr(dataset, "finalize"):
        dataset.finalize()
    return {"length": len(dataset)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("read", "make"))
    parser.add_argument("folders", nargs="+")
    args = parser.parse_args()
    if args.what == "read":
        found = [read(folder) for folder in args.folders]
    else:
        found = [make(folder, bool(images)) for images, folder in enumerate(args.folders)]
    print(json.dumps(found))


if __name__ == "__main__":
    main()

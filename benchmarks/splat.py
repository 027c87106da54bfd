"""The splat's frames per second against a loop that draws one disc per point.

    python benchmarks/splat.py [--json [FILE]] [--points 2x294x518] [--size 480x640]

Both draw the same condition maps, with the settings of the released WristWorld: points farther
than `near` whose projection falls into the image, far to near, each a filled disc. The loop is the
released way, one drawing call a point: in numpy (a slice assignment for each of the disc's rows),
and with `cv2.circle` where OpenCV is installed. They take turns, and the best of each counts.
Exit status 1 if the splat is not 4 times as fast as the fastest loop or its picture is another.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from wristaugment.models.geometry import project, unproject
from wristaugment.models.splat import RELEASED, splat

RATIO, AGREEMENT = 4.0, 0.995


def scene(views: int, height: int, width: int, size: tuple[int, int], seed: int = 0) -> dict:
    """What `splat` draws: a smooth relief seen by `views` cameras, and a hand camera before it.

    Returns:
        points, colors [1, N, 3] (uint8 colours), valid [1, N], K [1, 3, 3] and pose [1, 4, 4] of
        the hand camera at `size` (H, W).
    """
    rng = np.random.default_rng(seed)
    points, colors = [], []
    v, u = np.mgrid[:height, :width].astype(np.float32)
    for view in range(views):
        K = torch.tensor([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1]])
        pose = torch.eye(4)
        pose[0, 3] = 0.1 * (view - (views - 1) / 2)  # side by side
        waves = np.zeros((height, width))
        for _ in range(4):
            a, b = rng.uniform(0.01, 0.04, 2)
            waves += rng.uniform(0.02, 0.06) * np.sin(a * u + b * v)
        depth = torch.from_numpy(np.float32(1 + waves))
        points.append(unproject(depth, K.float(), pose).reshape(-1, 3))
        colors.append(torch.from_numpy(rng.integers(1, 256, (height * width, 3), dtype=np.uint8)))
    H, W = size
    K = torch.tensor([[0.9 * W, 0, W / 2], [0, 0.9 * W, H / 2], [0, 0, 1.0]])
    pose = torch.eye(4)
    pose[2, 3] = -0.1  # nearer than the anchors
    cloud = torch.cat(points)[None]
    return {
        "points": cloud,
        "colors": torch.cat(colors)[None],
        "valid": torch.ones(cloud.shape[:2], dtype=torch.bool),
        "K": K[None],
        "pose": pose[None],
        "size": size,
    }


def far_to_near(points: Tensor, colors: Tensor, K: Tensor, pose: Tensor, size: tuple[int, int]):
    """(x, y, colours) of the discs' centres in the order of drawing, as lists of plain numbers."""
    H, W = size
    pixels, z = (x[0] for x in project(points, K, pose))
    inside = (pixels >= 0).all(-1) & (pixels[:, 0] < W) & (pixels[:, 1] < H)
    seen = ((z > RELEASED["near"]) & inside).nonzero()[:, 0]
    order = seen[z[seen].argsort(descending=True, stable=True)]
    x, y = pixels[order].long().unbind(-1)
    return x.tolist(), y.tolist(), colors[0, order].tolist()


def numpy_loop(x: list[int], y: list[int], colors: list, size: tuple[int, int]) -> np.ndarray:
    """Discs |dx| + |dy| <= radius, row by row; a margin makes clipping needless."""
    r = RELEASED["radius"]
    H, W = size
    image = np.zeros((H + 2 * r, W + 2 * r, 3), np.uint8)
    rows = [(dy + r, abs(dy), 2 * r + 1 - abs(dy)) for dy in range(-r, r + 1)]
    for column, row, color in zip(x, y, colors, strict=True):
        for below, left, right in rows:
            image[row + below, column + left : column + right] = color
    return image[r : r + H, r : r + W]


def cv2_loop(x: list[int], y: list[int], colors: list, size: tuple[int, int]) -> np.ndarray:
    """Discs by OpenCV, as the released code draws them."""
    import cv2  # type: ignore[import-not-found]

    image = np.zeros((*size, 3), np.uint8)
    for column, row, color in zip(x, y, colors, strict=True):
        cv2.circle(image, (column, row), RELEASED["radius"], color, -1)
    return image


def measure(views: int, height: int, width: int, size: tuple[int, int], turns: int) -> dict:
    """Frames per second of the splat and of the loops, and the share of pixels that agree."""
    what = scene(views, height, width, size)
    cloud = {name: what[name] for name in ("points", "colors", "K", "pose", "size")}
    pictures: dict[str, np.ndarray] = {}

    def vectorised() -> np.ndarray:
        return splat(**what, **RELEASED).color[0].numpy()

    ways: dict[str, Callable[[], np.ndarray]] = {
        "splat": vectorised,
        "numpy loop": lambda: numpy_loop(*far_to_near(**cloud), size),
    }
    if importlib.util.find_spec("cv2"):
        ways["cv2 loop"] = lambda: cv2_loop(*far_to_near(**cloud), size)
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(turns):
        for name, way in ways.items():
            start = time.perf_counter()
            pictures[name] = way()
            best[name] = min(best[name], time.perf_counter() - start)
    agree = {
        name: float((picture == pictures["splat"]).all(-1).mean())
        for name, picture in pictures.items()
        if name != "splat"
    }
    return {
        "points": what["points"].shape[1],
        "size": list(size),
        "covered": float(pictures["splat"].any(-1).mean()),
        "threads": torch.get_num_threads(),
        "frames_per_second": {name: 1 / value for name, value in best.items()},
        "ratio": min(value for name, value in best.items() if name != "splat") / best["splat"],
        "ratio_limit": RATIO,
        "agreement": agree,
        "agreement_limit": AGREEMENT,
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; 1 if a bound is passed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--points", default="2x294x518", help="VxHxW: views and their size")
    parser.add_argument("--size", default="480x640", help="HxW of the condition map")
    parser.add_argument("--turns", type=int, default=5, help="how often each is measured")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="- = stdout")
    args = parser.parse_args(arguments)
    try:
        views, rows, columns = map(int, args.points.split("x"))
        height, width = map(int, args.size.split("x"))
    except ValueError:
        parser.error(f"sizes are VxHxW and HxW; found {args.points} and {args.size}")
    found = measure(views, rows, columns, (height, width), args.turns)
    out = sys.stderr if args.json == "-" else sys.stdout
    share = f"{100 * found['covered']:.0f}% covered"
    print(f"{found['points']:,} points to {height}x{width}, {share}, {found['threads']} threads",
          file=out)  # fmt: skip
    for name, speed in found["frames_per_second"].items():
        same = found["agreement"].get(name)
        note = "" if same is None else f"  {100 * same:.2f}% of the pixels agree"
        print(f"{name:<12}{speed:8.2f} frames a second{note}", file=out)
    print(f"ratio       {found['ratio']:8.2f} (at least {RATIO:g})", file=out)
    if args.json:
        text = json.dumps(found, indent=2) + "\n"
        sys.stdout.write(text) if args.json == "-" else Path(args.json).write_text(text)
    agreed = all(share >= AGREEMENT for share in found["agreement"].values())
    return 0 if found["ratio"] >= RATIO and agreed else 1


if __name__ == "__main__":
    sys.exit(main())

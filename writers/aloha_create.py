"""New ALOHA episodes from recorded ones: a file each, raw pictures or padded JPEGs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np

from ..readers.aloha import COMPRESS, IMAGES, LENGTHS
from .atomic import fsync_dir, publish, staged_name
from .hdf5 import put, sync
from .recorded import ANCHORS, WRIST, Recorded, RecordedSplit
from .splice import encode_jpeg

CAMERAS = {ANCHORS[0]: "cam_high", ANCHORS[1]: "cam_low"}
HAND = "cam_right_wrist"
_ARM = 7  # six joints and a gripper
_QUALITY = 95  # OpenCV's own


def create(
    out: Path,
    splits: Mapping[str, RecordedSplit],
    *,
    wrist: bool = False,
    compress: bool = False,
) -> Path:
    """Write `out`/aloha_simulated/episode_<n>.hdf5; equal episodes give equal bytes.

    An ALOHA has two arms of six joints: the left one stands still here, the right one gets the
    first six joints of the recorded arm.

    Args:
        out: where the folder goes.
        splits: the episodes; ALOHA knows no splits, so all go into the folder in their order.
        wrist: store the recorded wrist view too, as cam_right_wrist.
        compress: store JPEGs, as real robots do; else raw pictures, as simulated ones do.

    Returns:
        The folder.
    """
    folder = Path(out) / "aloha_simulated"
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    for episodes in splits.values():
        for episode in episodes:
            path = folder / f"episode_{number}.hdf5"
            staged = staged_name(path)
            with h5py.File(staged, "w", rdcc_nbytes=2 << 20) as file:
                _episode(file, episode, wrist, compress)
            sync(staged)
            publish(staged, path)
            number += 1
    fsync_dir(folder)
    return folder


def _episode(file: h5py.File, episode: Recorded, wrist: bool, compress: bool) -> None:
    file.attrs["sim"] = True
    file.attrs[COMPRESS] = compress
    names = {**CAMERAS, **({WRIST: HAND} if wrist else {})}
    images = file.create_group(IMAGES)
    streams = {name: np.asarray(episode.views[view].frames) for view, name in names.items()}
    if compress:
        _jpegs(file, images, streams)
    else:
        for name, frames in streams.items():
            put(images, name, frames, chunks=(1, *frames.shape[1:]))
    right = np.hstack([episode.joints[:, :6], 1.0 - episode.gripper[:, None]])
    both = np.hstack([np.zeros((episode.steps, _ARM)), right]).astype(np.float32)
    put(file, "observations/qpos", both)
    put(file, "observations/qvel", np.gradient(both, 1 / episode.hz, axis=0).astype(np.float32))
    put(file, "action", np.concatenate([both[1:], both[-1:]]))


def _jpegs(file: h5py.File, images: h5py.Group, streams: Mapping[str, np.ndarray]) -> None:
    # Red and blue exchanged, as OpenCV makes of an RGB array (see readers/aloha).
    encoded = {
        name: [encode_jpeg(np.ascontiguousarray(frame[:, :, ::-1]), _QUALITY) for frame in frames]
        for name, frames in streams.items()
    }
    lengths = np.array([[len(blob) for blob in blobs] for blobs in encoded.values()], np.float32)
    width = int(lengths.max())
    for name, blobs in encoded.items():
        rows = np.stack([np.frombuffer(blob.ljust(width, b"\0"), np.uint8) for blob in blobs])
        put(images, name, rows, chunks=(1, width))
    put(file, LENGTHS, lengths)

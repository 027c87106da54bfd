"""Read ReplayBuffers with zarr 2.16 as diffusion_policy's loader does, and print what was read.

Run it in the environment of zarr2.txt: python zarr2.py STORE... (folders or zips).
"""

import hashlib
import json
import sys

import numpy as np
import zarr


def read(path):
    """One store: the layout that ReplayBuffer insists on, and every array by its contents."""
    try:
        from imagecodecs.numcodecs import register_codecs

        register_codecs(verbose=False)
    except ImportError:
        pass
    store = zarr.ZipStore(path, mode="r") if path.endswith(".zip") else zarr.DirectoryStore(path)
    root = zarr.group(store)
    ends = root["meta"]["episode_ends"]
    found = {}
    for key, value in root["data"].items():
        if value.shape[0] != ends[-1]:
            raise AssertionError(f"{key} has {value.shape[0]} steps, not {ends[-1]}")
        numbers = np.ascontiguousarray(value[:])
        found[key] = {
            "shape": list(value.shape),
            "chunks": list(value.chunks),
            "dtype": str(value.dtype),
            "sha256": hashlib.sha256(numbers.tobytes()).hexdigest(),
            "attributes": dict(value.attrs),
        }
    consolidated = ".zmetadata" in store and sorted(zarr.open_consolidated(store)["data"])
    return {"zarr": zarr.__version__, "ends": ends[:].tolist(), "data": found,
            "consolidated": consolidated}  # fmt: skip


if __name__ == "__main__":
    print(json.dumps([read(path) for path in sys.argv[1:]]))

"""HDF5 in two threads: one file is written while another is read, as an actor does it."""

from __future__ import annotations

import subprocess
import sys

# In a process of its own, since what goes wrong ends the process.
PROGRAM = """
import sys, threading, time
import h5py, numpy as np
from wristaugment.readers.hdf5 import walk
from wristaugment.writers.hdf5 import write_frames

folder, shape = sys.argv[1], (50, 24, 32, 3)
how = dict(chunks=(1, *shape[1:]), compression="gzip")
noise = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
with h5py.File(f"{folder}/source.hdf5", "w") as file:
    file.create_dataset("x", data=noise, **how)
frames, end, wrong = np.zeros(shape, np.uint8), time.monotonic() + 4, []
frames[::2] = 7

def read():
    with h5py.File(f"{folder}/source.hdf5", locking=False) as file:
        assert np.array_equal(file["x"][3:9], noise[3:9])
        list(walk(file, ""))

def write():
    with h5py.File(f"{folder}/copy.hdf5", "w") as file:
        write_frames(frames, file.create_dataset("x", shape, np.uint8, **how))
        assert np.array_equal(file["x"][()], frames)

def repeat(call):
    try:
        while time.monotonic() < end:
            call()
    except BaseException as error:
        wrong.append(error)

threads = [threading.Thread(target=repeat, args=(call,)) for call in (read, write)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
sys.exit(repr(wrong[0]) if wrong else 0)
"""


def test_a_file_is_written_while_another_is_read(tmp_path):
    line = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, (done.returncode, done.stderr)

"""The C library's allocator, told to keep what a network frees."""

from __future__ import annotations

import ctypes
import sys

# <malloc.h> of glibc; the largest threshold that it takes without being told a wrong number.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEEP = 2**31 - 1
_MAP_FROM = 2**30


def keep_freed_memory() -> bool:
    """Let freed arrays below a gigabyte stay with the process, to be used for the next ones.

    glibc gives every array above 32 MiB back to the system at once, and the next of the same size
    is faulted in again, page by page: a forward pass of VGGT-1B spends a tenth of its time so, and
    a batch more, since its arrays are larger. The peak is the same; what is freed after it is kept
    by the process. Other allocators and systems are left as they are.

    Returns:
        Whether the allocator was told.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _MAP_FROM) and mallopt(_M_TRIM_THRESHOLD, _KEEP))

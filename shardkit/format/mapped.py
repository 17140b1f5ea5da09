"""Files as memory that can only be read."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from pathlib import Path

import numpy as np

_MAP_FIXED = 0x10
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long
]  # fmt: skip


def map_file(path: str | Path) -> mmap.mmap:
    """The file as memory that can only be read; no descriptor stays open for it.

    Where nobody raised the limits a process may open 1,024 files, but map 65,530.
    """
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if sys.version_info >= (3, 13):
            return mmap.mmap(file, 0, access=mmap.ACCESS_READ, trackfd=False)
        return _laid_over(file)
    finally:
        os.close(file)


def _laid_over(file: int) -> mmap.mmap:
    """Before Python 3.13 a map of a file keeps a descriptor, a map of no file has none. So the
    file is laid over the memory of a map of no file, which frees it in the end as its own."""
    n_bytes = os.fstat(file).st_size
    anonymous = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = mmap.mmap(-1, n_bytes, flags=anonymous, prot=mmap.PROT_READ)
    address = np.frombuffer(memory, np.uint8).__array_interface__["data"][0]
    flags = mmap.MAP_SHARED | _MAP_FIXED
    if _libc.mmap(address, n_bytes, mmap.PROT_READ, flags, file, 0) != address:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return memory

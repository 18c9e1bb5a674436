"""A pool of output memory: fresh pages cost more than what these kernels compute in them.

A large tensor that the C library allocates is usually mapped anew, and the kernel of the operating
system then faults in and zeroes every page on first touch: 4 to 5 ms for the two gradients of 256 x
8192 in float32, half as much as the products that fill them. Accelerator backends cache memory for
the same reason. `empty` returns tensors over mappings that return to a pool when the last
reference to their storage dies, on huge pages where the system grants them.

Environment: BARLOW_FAST_CPU_POOL_MIB = most mebibytes of free memory that are kept (default
    512; 0 = no pool).
"""

from __future__ import annotations

import math
import mmap
import threading
import weakref
from collections import deque

import torch
from torch import Tensor

from ..environment import whole_number

HUGE_PAGE = 2 << 20
SMALLEST = 64 << 10  # below this the C library's own free lists serve well


class Pool:
    """Free mappings by size; at most `limit` bytes of them, the longest unused are released
    first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._free: list[mmap.mmap] = []  # longest unused first
        self._lent: dict[int, tuple[weakref.ref, mmap.mmap]] = {}
        self._returned: deque[mmap.mmap] = deque()
        self._lock = threading.Lock()

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialised contiguous CPU tensor."""
        count = math.prod(shape)
        if count * dtype.itemsize < SMALLEST or self.limit <= 0:
            return torch.empty(shape, dtype=dtype, device="cpu")
        mapping = self._take(-(-count * dtype.itemsize // mmap.PAGESIZE) * mmap.PAGESIZE)
        # The tensor's storage holds this very view; its death is the storage's death.
        view = memoryview(mapping)
        reference = weakref.ref(view, self._give_back)
        self._lent[id(reference)] = (reference, mapping)
        return torch.frombuffer(view, dtype=dtype, count=count).view(shape)

    def free_bytes(self) -> int:
        """Bytes of free memory that are kept."""
        with self._lock:
            self._collect()
            return sum(map(len, self._free))

    def _take(self, size: int) -> mmap.mmap:
        with self._lock:
            self._collect()
            for index in range(len(self._free) - 1, -1, -1):
                if len(self._free[index]) == size:
                    return self._free.pop(index)
        mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if size >= HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
            mapping.madvise(mmap.MADV_HUGEPAGE)
        return mapping

    def _give_back(self, reference: weakref.ref) -> None:
        # May run at any point of any thread, also of one that holds the lock: it never waits.
        _, mapping = self._lent.pop(id(reference))
        self._returned.append(mapping)
        if self._lock.acquire(blocking=False):
            try:
                self._collect()
            finally:
                self._lock.release()

    def _collect(self) -> None:
        while self._returned:
            self._free.append(self._returned.popleft())
        surplus = sum(map(len, self._free)) - self.limit
        while surplus > 0:
            surplus -= len(self._free.pop(0))


POOL = Pool(whole_number("BARLOW_FAST_CPU_POOL_MIB", 512) << 20)

"""The last of several programs to arrive finishes what all of them made: a launch less.

Each program stores its part and adds to an integer counter, and the one that completes the count
adds up the parts. These are read in a fixed order, so results do not depend on who was last.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import round_up

# Counters of a device, 1 MiB, and of them those of a stream: more than a launch has blocks of
# columns, except where D exceeds 100 000.
POOL = 1 << 18
STREAM = 1 << 12


@triton.jit
def arrived(counter_ptr, amount, expected):
    """Adds `amount` to the counter; True in the program with which it reaches `expected`, which
    sets it back to zero.

    Memory order: the barrier puts the stores of all threads of this program before the atomic of
    one of them, which releases them at the scope of the device, and acquires what the programs
    released that were counted before. The last program therefore reads the parts of all others.
    The value passes to its other threads through a barrier as well.
    """
    tl.debug_barrier()
    last = tl.atomic_add(counter_ptr, amount, sem="acq_rel", scope="gpu") + amount == expected
    if last:
        tl.store(counter_ptr, 0)
    return last


@dataclass
class _Pool:
    """Zeros of one device, of which the first `used` are given away for good."""

    zeros: Tensor
    used: int = 0
    streams: dict[int, Tensor] = field(default_factory=dict)

    def take(self, count: int) -> Tensor | None:
        if self.used + count > self.zeros.numel():
            return None
        self.used += count
        return self.zeros[self.used - count : self.used]


_pools: dict[int, _Pool] = {}
_lock = threading.Lock()


def counters(device: torch.device, count: int) -> Tensor:
    """`count` int32 zeros on the device, which the launch that counts in them leaves zero.

    Launches of one stream run one after the other and share theirs. Those of a captured graph may
    be replayed on any stream, so each has its own. Where the pool has none left they are made zero
    by a launch.
    """
    count = round_up(count, 4)  # what kernels know of the alignment of a pointer stays the same
    found = _pooled(device, count) if device.type == "cuda" else None
    return torch.zeros(count, dtype=torch.int32, device=device) if found is None else found


def _pooled(device: torch.device, count: int) -> Tensor | None:
    capturing = torch.cuda.is_current_stream_capturing()
    stream = torch.cuda.current_stream(device)
    with _lock:
        pool = _pools.get(device.index)
        if pool is None:
            pool = None if capturing else _new_pool(device)
            if pool is None:
                return None
            _pools[device.index] = pool
        if capturing:
            return pool.take(count)
        if stream.cuda_stream not in pool.streams:
            mine = pool.take(STREAM)
            if mine is None:
                return None
            pool.streams[stream.cuda_stream] = mine
        mine = pool.streams[stream.cuda_stream]
    return mine[:count] if count <= STREAM else None


def _new_pool(device: torch.device) -> _Pool | None:
    """None where memory comes from a private pool, whose owner does not let tensors live on: that
    of the graphs of torch.compile while it warms up, for example."""
    zeros = torch.zeros(POOL, dtype=torch.int32, device=device)
    address = zeros.data_ptr()
    for segment in torch.cuda.memory_snapshot():
        if segment["address"] <= address < segment["address"] + segment["total_size"]:
            if tuple(segment["segment_pool_id"]) != (0, 0):
                return None
            # Other streams use it without waiting for this one. Once for each device.
            torch.cuda.current_stream(device).synchronize()
            return _Pool(zeros)
    return None

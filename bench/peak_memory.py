"""Memory of this process, a limit on it, and the peak of one forward and backward pass beyond its
inputs and gradients.

On a CPU each pass is measured in a process of its own, as the highest resident memory (VmHWM)
during it, less the resident memory just before it, when torch, its threads and both inputs are
there. The pool of reused outputs of barlow_fast is off there, so its outputs are allocated like
anyone's; in normal use it keeps outputs of past steps up to BARLOW_FAST_CPU_POOL_MIB. On a CUDA
device it is the most that torch's allocator handed out during the pass, less what it had before,
after one pass of the same shape.

From both, the bytes of both gradients are taken off. Everything else counts: matrices kept for the
backward pass, temporaries, packing buffers of the GEMM library; workspaces that a GPU's library
keeps for good do not.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bench import agreement, lifetime
from bench.inputs import VARIANTS, Pair, Variant, random_pair
from bench.peers import Peer, discover

STATUS = Path("/proc/self/status")
MEMINFO = Path("/proc/meminfo")
MEMORY_WORDS = re.compile(r"alloc|memory", re.IGNORECASE)
NO_MEMORY = "does not fit into memory"
SECONDS = 180.0  # for one measurement

Fields = dict[str, Any]


def of_process(key: str) -> int:
    """Bytes of a line of /proc/self/status, such as VmRSS, VmHWM or VmSize."""
    return int(re.search(rf"^{key}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)[1]) << 10


def available() -> int:
    """Bytes that could be allocated now without swapping."""
    return int(re.search(r"MemAvailable:\s+(\d+) kB", MEMINFO.read_text())[1]) << 10


@contextlib.contextmanager
def within(size: int | None = None, share: float = 0.85) -> Iterator[None]:
    """Allocations beyond `size` bytes more than now fail; without it, beyond `share` of the
    available memory. The limit before is put back."""
    if not STATUS.exists():
        yield
        return
    import resource

    limit = of_process("VmSize") + (int(share * available()) if size is None else size)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def is_memory_error(error: BaseException) -> bool:
    """Whether an exception reports that memory ran out, by its type or its text."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and MEMORY_WORDS.search(str(error)) is not None
    )


def in_child(
    n: int, d: int, dtype: str, peer: str, limit_bytes: int = 0, seconds: float = SECONDS
) -> Fields:
    """The figures of one case on a CPU, or {'problem': why there are none}.

    limit_bytes: what the pass may use, inputs and gradients included; 0 for most of what is free.
    """
    arguments = [str(n), str(d), dtype, peer, str(limit_bytes)]
    try:
        return lifetime.result_of(
            ["-m", "bench.peak_memory", *arguments], seconds, {"BARLOW_FAST_CPU_POOL_MIB": "0"}
        )
    except lifetime.ChildError as error:
        no_memory = MEMORY_WORDS.search(str(error))
        return {"problem": f"{NO_MEMORY} ({error})" if no_memory else str(error)}


def resident(n: int, d: int, dtype: str, name: str, limit_bytes: int = 0) -> Fields:
    """Runs one case on the CPU in this process, which should be fresh."""
    variant, peer = VARIANTS[dtype], discover()[name]
    generator = torch.Generator().manual_seed(0)
    # Threads, libraries and code are loaded by a pass too small to matter.
    agreement.run(
        peer.build(8, 16, variant.dtype), random_pair(8, 16, variant.dtype, generator), variant
    )
    with within(limit_bytes or None):
        pair = random_pair(n, d, variant.dtype, generator)
        loss = peer.build(n, d, variant.dtype)
        if peer.compiles:
            agreement.run(loss, pair, variant)
        _give_back_free_memory()
        before = of_process("VmRSS")
        # The kernel's documented way to reset the high-water mark.
        Path("/proc/self/clear_refs").write_text("5")
        outcome = agreement.run(loss, pair, variant)
        peak = of_process("VmHWM")
    return _figures(pair, outcome, peak - before)


def by_allocator(n: int, d: int, variant: Variant, peer: Peer, device: Any) -> Fields:
    """The figures of one case on a CUDA device."""
    pair = random_pair(n, d, variant.dtype, torch.Generator(device.torch).manual_seed(0))
    chosen = agreement.built(peer, n, d, variant, device.torch)
    agreement.run(chosen, pair, variant)
    device.release()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    outcome = agreement.run(chosen, pair, variant)
    torch.cuda.synchronize()
    return _figures(pair, outcome, torch.cuda.max_memory_allocated() - before)


def _figures(pair: Pair, outcome: agreement.Outcome, peak: int) -> Fields:
    inputs = sum(z.nbytes for z in pair)
    gradients = sum(gradient.nbytes for gradient in outcome.gradients)
    extra = max(peak - gradients, 0)
    return {
        "input_bytes": inputs,
        "gradient_bytes": gradients,
        "peak_bytes": peak,
        "extra_bytes": extra,
        "extra_over_inputs": round(extra / inputs, 4),
    }


def _give_back_free_memory() -> None:
    """Blocks that the C library keeps would be reused by the pass and hide part of its memory."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


if __name__ == "__main__":
    n, d, dtype, peer, limit = sys.argv[1:]
    print(json.dumps(resident(int(n), int(d), dtype, peer, int(limit))))

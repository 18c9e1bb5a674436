"""Memory of this process, and a limit on it, so that too large an allocation raises an error
instead of waking the system's killer. Linux only; elsewhere nothing is limited."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

STATUS = Path("/proc/self/status")
MEMINFO = Path("/proc/meminfo")
MEMORY_WORDS = re.compile(r"alloc|memory", re.IGNORECASE)


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

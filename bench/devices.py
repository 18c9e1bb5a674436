"""What differs between measuring on a CPU and on a CUDA device: suites ask the device, never which
one it is.

A device knows its clock, its caches, its memory, its measured peaks, its grid of shapes, its name
and its part of the provenance. A CUDA device also captures graphs. All times are in seconds, all
sizes in bytes.
"""

from __future__ import annotations

import contextlib
import gc
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import torch

from bench import floor, peak_memory, provenance
from bench.inputs import CPU_GRID, CUDA_GRID, CUDA_VARIANTS, VARIANTS, Variant
from bench.timing import Budget, NoGraphError

Action = Callable[[], object]
T = TypeVar("T")
KINDS = ("cpu", "cuda")
CROWDED_SHARE = 0.6  # of the memory: beyond it the peers push each other's cached blocks out
EVICT_BYTES = 256 << 20  # read to empty the L2; at least four times its size
GRAPH_WARM_UPS = 3
# Cubes, and the long thin products that the loss consists of.
GEMM_SHAPES = (
    (512, 512, 512),
    (1024, 1024, 1024),
    (2048, 2048, 2048),
    (256, 256, 8192),
    (256, 8192, 256),
)
COPY_MIB = (128, 256)  # beyond most last-level caches
# The same of a GPU, and the most of its memory that they may take.
GEMM_SIZE, GEMM_SHARE = 8192, 0.05
COPY_BYTES, COPY_SHARE = 2 << 30, 0.1
PEAK_TRIES = 15
DEFAULT_L2 = 50 << 20
# The times of a pass by the prefix of their columns in a row.
WHOLE, FORWARD, GRAPH = "", "forward_", "graph_"


class DeviceLostError(Exception):
    """The CUDA context is broken: whatever runs next in this process fails as well."""


class Cpu:
    """This machine's processor; `Cuda` overrides what differs.

    Attributes:
        kind: 'cpu' or 'cuda': a key of tables, and nothing to branch on.
        torch: the same as torch has it.
        variants: dtypes that are timed.
        grid: shapes that are timed.
        measures: prefixes of the columns of times that rows have.
        budget: of the calls of one peer.
        judges_others: whether another's wrong result makes a run fail, as one of ours does.
        first_call_compiles: whether the first call is not representative of later ones.
        identity: fields of the provenance that rows share which need not be measured again.
        pins_memory: whether a DataLoader does, for quicker copies to the device.
        loader_workers: processes or threads that make views; None for one on each core.
        slug: the name of its file of results, without the suffix.
        row: what its rows of the loss and of memory begin with.
        cache_bytes: the last-level cache.
        cores: that the processes of a comparison share; None for all.
        gemm_shapes: (M, N, K) of the products whose best rate is the peak.
        copy_sizes: bytes of the copies whose best rate is the peak.
    """

    kind = "cpu"
    variants = VARIANTS
    grid = CPU_GRID
    measures: tuple[str, ...] = (WHOLE, FORWARD)
    budget = Budget(0.3, few_from=2.0)
    judges_others = True
    first_call_compiles = False
    identity: tuple[str, ...] = ("sources", "torch", "cpu", "cores")
    pins_memory = False
    loader_workers: int | None = 2
    row: Mapping[str, Any] = {}
    cores: set[int] | None = None

    def __init__(self) -> None:
        self.torch = torch.device("cpu")
        self.slug = f"cpu-{provenance.slug(provenance.cpu_model())}"
        self.cache_bytes = provenance.last_level_cache()
        self.cores = provenance.two_cores()
        self.gemm_shapes: Sequence[tuple[int, int, int]] = GEMM_SHAPES
        self.copy_sizes = [mib << 20 for mib in COPY_MIB]

    def origin(self) -> dict[str, Any]:
        """The provenance of its rows."""
        return provenance.collect()

    def peaks(self) -> floor.Peaks:
        """Measured now."""
        return floor.measure(self)

    def tile_rate(self, seconds: float) -> float | None:
        """GFLOP/s of bfloat16 products by matrix tiles alone; None where a GEMM is no slower."""
        return floor.tile_rate(seconds)

    def sustained(self, action: Action, seconds: float) -> float:
        """Seconds of one call among many, for a peak: the best of those in `seconds`."""
        action()
        best, end = float("inf"), time.perf_counter() + seconds
        while time.perf_counter() < end:
            best = min(best, self.call_seconds(action))
        return best

    def call_seconds(self, action: Action) -> float:
        """One call, as `timed` takes it."""
        return self.timed(action, lambda outcome: outcome)[0][WHOLE]

    def timed(
        self, forward: Callable[[], object], backward: Callable[[object], T]
    ) -> tuple[dict[str, float], T]:
        """(seconds by measure, outcome) of one pass; dropping the outcome is not timed."""
        start = time.perf_counter()
        value = forward()
        middle = time.perf_counter()
        outcome = backward(value)
        return {WHOLE: time.perf_counter() - start, FORWARD: middle - start}, outcome

    def capture(self, action: Action) -> tuple[Callable[[], None], object]:
        """(replay, outcome): a graph of one call, whose replays rewrite `outcome`. NoGraphError
        with the reason where the call cannot be captured."""
        raise NoGraphError("a CPU has no captured graphs")

    def replay_seconds(self, replay: Callable[[], None]) -> float:
        """One replay with cold caches."""
        raise NoGraphError("a CPU has no captured graphs")

    def new_graphs(self) -> None:
        """Graphs from now on share no memory with earlier ones."""

    def synchronize(self) -> None:
        """Until the device has finished what was launched."""

    def release(self) -> None:
        """Frees what Python's cycles still hold, and gives cached memory back."""
        gc.collect()

    def check_alive(self) -> None:
        """DeviceLostError if an earlier kernel broke the context."""

    def crowded(self) -> bool:
        """Whether torch's cache holds most of the memory."""
        return False

    def memory_limit(self) -> AbstractContextManager:
        """Inside, what does not fit raises instead of waking a system that kills for it."""
        return peak_memory.within()

    def problem(self, error: BaseException) -> str:
        """An exception in one line; that memory ran out, in the same words always."""
        if not isinstance(error, torch.OutOfMemoryError) and peak_memory.is_memory_error(error):
            return f"{peak_memory.NO_MEMORY}: {next(iter(str(error).splitlines()), '')}"
        return brief(error)

    def why_no_memory(self) -> str | None:
        """None if it can measure the memory of a pass, else the reason."""
        known = peak_memory.STATUS.exists()
        return None if known else "the memory of a pass is read from /proc, which this system lacks"

    def peak_memory(self, n: int, d: int, variant: Variant, peer: Any) -> dict[str, Any]:
        """Fields of a row: bytes of one pass, or `problem`. May raise what the peer raises."""
        return peak_memory.in_child(n, d, variant.name, peer.name)


Device = Cpu  # of either kind


class Cuda(Cpu):
    """One CUDA device. Nothing here changes a setting of the device."""

    kind = "cuda"
    variants = CUDA_VARIANTS
    grid = CUDA_GRID
    measures = (WHOLE, GRAPH)
    budget = Budget(0.12, few_from=0.5)
    identity = ("sources", "torch", "gpu")
    judges_others = False
    first_call_compiles = True
    pins_memory = True
    loader_workers = None

    def __init__(self, index: int = 0) -> None:
        """RuntimeError, with the reason, where torch cannot use one."""
        problem = why_no_cuda()
        if problem is not None:
            raise RuntimeError(problem)
        self.torch = torch.device("cuda", index)
        torch.cuda.set_device(self.torch)
        self.properties = torch.cuda.get_device_properties(self.torch)
        self.slug = f"gpu-{provenance.slug(self.properties.name)}"
        self.row = {"device": self.properties.name}
        self.cache_bytes = getattr(self.properties, "L2_cache_size", 0) or DEFAULT_L2
        memory, size = self.properties.total_memory, GEMM_SIZE
        while 3 * 4 * size**2 > GEMM_SHARE * memory:  # three float32 matrices
            size //= 2
        self.gemm_shapes = [(size, size, size)]
        self.copy_sizes = [int(min(COPY_BYTES, COPY_SHARE * memory))]
        self._evicted: torch.Tensor | None = None
        self._pool = None
        # Captures share memory only if they share their stream, too.
        self._stream = torch.cuda.Stream(self.torch)

    def origin(self) -> dict[str, Any]:
        p = self.properties
        return provenance.collect() | {
            "gpu": p.name,
            "compute_capability": f"{p.major}.{p.minor}",
            "multiprocessors": p.multi_processor_count,
            "memory_bytes": p.total_memory,
            "last_level_cache_bytes": self.cache_bytes,
            "driver": driver_version(),
            "cuda": torch.version.cuda,
            "triton": provenance.version("triton"),
        }

    def memory_limit(self) -> AbstractContextManager:
        return contextlib.nullcontext()

    def problem(self, error: BaseException) -> str:
        return brief(error)

    def why_no_memory(self) -> str | None:
        return None

    def tile_rate(self, seconds: float) -> float | None:
        return None

    def sustained(self, action: Action, seconds: float) -> float:
        """The median of some, warm, as the rate of a long computation is."""
        for _ in range(GRAPH_WARM_UPS):
            action()
        torch.cuda.synchronize()
        samples: list[float] = []
        end = time.perf_counter() + seconds
        while len(samples) < 5 or (len(samples) < PEAK_TRIES and time.perf_counter() < end):
            samples.append(_elapsed(action)[0])
        return statistics.median(samples)

    def timed(
        self, forward: Callable[[], object], backward: Callable[[object], T]
    ) -> tuple[dict[str, float], T]:
        """One pass on an idle device with cold caches, from its first kernel's launch to the end of
        its last kernel: events around what user code does, launches included."""
        self._evict()
        torch.cuda.synchronize()
        seconds, outcome = _elapsed(lambda: backward(forward()))
        return {WHOLE: seconds}, outcome

    def capture(self, action: Action) -> tuple[Callable[[], None], object]:
        """Graphs share one memory pool, so an outcome is valid only until another graph is captured
        or replayed."""
        try:
            return self._captured(action)
        except Exception as error:  # whatever stops a capture, it is the reason to report
            reason = brief(error)
        self._pool = None  # the pool of a failed capture is not used again
        self.check_alive()
        self.release()
        raise NoGraphError(reason)

    def _captured(self, action: Action) -> tuple[Callable[[], None], object]:
        stream = self._stream
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(GRAPH_WARM_UPS):
                action()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        before, collecting = torch.cuda.current_stream(), gc.isenabled()
        gc.disable()  # a collection may free CUDA objects, which a capture does not survive
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=stream):
                outcome = action()
        finally:
            # A capture that fails to end leaves its own stream in place.
            torch.cuda.set_stream(before)
            if collecting:
                gc.enable()
        return graph.replay, outcome

    def replay_seconds(self, replay: Callable[[], None]) -> float:
        """It is queued behind the read that empties the caches, so the launch is hidden and what
        remains is the time of the device."""
        self._evict()
        return _elapsed(replay)[0]

    def new_graphs(self) -> None:
        """The pool of earlier graphs goes with the last of them."""
        self._pool = None

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.torch)

    def release(self) -> None:
        super().release()
        torch.cuda.empty_cache()

    def check_alive(self) -> None:
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            raise DeviceLostError(brief(error)) from None

    def crowded(self) -> bool:
        return torch.cuda.memory_reserved() > CROWDED_SHARE * self.properties.total_memory

    def peak_memory(self, n: int, d: int, variant: Variant, peer: Any) -> dict[str, Any]:
        return peak_memory.by_allocator(n, d, variant, peer, self)

    def _evict(self) -> None:
        """Reads more than the L2 holds. Reading leaves no dirty lines behind, which the next kernel
        would pay for."""
        if self._evicted is None:
            size = max(EVICT_BYTES, 4 * self.cache_bytes)
            self._evicted = torch.ones(size // 4, device=self.torch)
        self._evicted.sum()


def _elapsed(action: Callable[[], T]) -> tuple[float, T]:
    """(seconds between events, outcome)."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    outcome = action()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3, outcome


def choose(kind: str) -> Device:
    """'cpu' or 'cuda'; ValueError for another name, RuntimeError where there is no such device."""
    if kind not in KINDS:
        raise ValueError(f"unknown device {kind!r}; known are {', '.join(KINDS)}")
    return Cpu() if kind == "cpu" else Cuda()


def why_no_cuda() -> str | None:
    """None if torch can use a CUDA device, else the reason in one line."""
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    return "torch finds no CUDA device (is there a GPU and its driver?)"


def driver_version() -> str | None:
    """The driver's version; None where it is unknown."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        text = ""
    found = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", text)
    return found and found.group(1)


def out_of_memory(problem: str) -> bool:
    """Whether a problem, as a device puts it, is that memory ran out."""
    return problem.startswith(("out of memory", peak_memory.NO_MEMORY))


def brief(error: BaseException) -> str:
    """An exception in one line of at most 200 characters."""
    if isinstance(error, torch.OutOfMemoryError):
        asked = re.search(r"Tried to allocate ([\d.]+ \w+)", str(error))
        return "out of memory" + (f" (requested {asked.group(1)})" if asked else "")
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}"[:200]

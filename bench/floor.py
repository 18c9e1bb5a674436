"""What the machine could do: its measured peaks, and the time that no implementation can beat.

    floor = 6 N D min(N, D) / (GEMM rate) + bytes / (copy bandwidth)
    bytes = (each input read twice + each gradient written once) = 6 N D * (element size)

6 N D min(N, D) operations are what the loss and its gradients take on the smaller side, with
symmetric products halved (kernels/README.md). Peaks are the best of several sizes and many tries,
in warm memory where that helps: the most favourable reading of the machine gives the hardest floor.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

# Cubes, and the long thin products that the loss consists of.
GEMM_SHAPES = (
    (512, 512, 512),
    (1024, 1024, 1024),
    (2048, 2048, 2048),
    (256, 256, 8192),
    (256, 8192, 256),
)
PEAK_SECONDS = 8.0
# Memory is shared with whoever else is on the machine: its best takes longer to see.
COPY_WEIGHT = 3
COPY_MIB = (128, 256)  # beyond most last-level caches; the best counts


@dataclass(frozen=True)
class Peaks:
    """Measured rates: GEMM in GFLOP/s; copy in GB/s, bytes read and bytes written both counted;
    one operation on one element, called from Python, in microseconds."""

    gemm_fp32: float
    gemm_bf16: float
    copy: float
    launch: float = 0.0

    def gemm(self, name: str) -> float:
        """The rate that bounds products of `name`: 'fp32' or 'bf16'."""
        return {"fp32": self.gemm_fp32, "bf16": self.gemm_bf16}[name]

    def as_fields(self) -> dict[str, float]:
        """For a row of results."""
        names = {
            "gemm_fp32": "gemm_fp32_gflops",
            "gemm_bf16": "gemm_bf16_gflops",
            "copy": "copy_gbps",
            "launch": "launch_eager_us",
        }
        return {names[key]: round(value, 2) for key, value in asdict(self).items()}


def operations(n: int, d: int) -> int:
    """Multiplications and additions of one forward and backward pass."""
    return 6 * n * d * min(n, d)


def moved_bytes(n: int, d: int, element_size: int) -> int:
    """Two inputs read twice and two gradients written once."""
    return 6 * n * d * element_size


def floor_seconds(n: int, d: int, element_size: int, gemm_gflops: float, copy_gbps: float) -> float:
    """The floor of one forward and backward pass."""
    compute = operations(n, d) / (gemm_gflops * 1e9)
    return compute + moved_bytes(n, d, element_size) / (copy_gbps * 1e9)


def measure_peaks() -> Peaks:
    """Measures all of them in about PEAK_SECONDS."""
    share = PEAK_SECONDS / (2 * len(GEMM_SHAPES) + COPY_WEIGHT * len(COPY_MIB))
    return Peaks(
        gemm_fp32=max(_gemm_rate(*shape, torch.float32, share) for shape in GEMM_SHAPES),
        gemm_bf16=max(_gemm_rate(*shape, torch.bfloat16, share) for shape in GEMM_SHAPES),
        copy=max(_copy_rate(mib << 20, COPY_WEIGHT * share) for mib in COPY_MIB),
        launch=_launch_microseconds(),
    )


def _launch_microseconds() -> float:
    one, calls = torch.zeros(1), 1000

    def call() -> None:
        for _ in range(calls):
            one.add_(1)

    return _best(call, 0.05) / calls * 1e6


def _gemm_rate(m: int, n: int, k: int, dtype: torch.dtype, seconds: float) -> float:
    a, b = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype)
    out = torch.empty(m, n, dtype=dtype)
    return 2 * m * n * k / _best(lambda: torch.mm(a, b, out=out), seconds) / 1e9


def _copy_rate(size: int, seconds: float) -> float:
    source = torch.randn(size // 4)
    target = torch.zeros_like(source)  # written, so that no page is faulted in while the clock runs
    return 2 * size / _best(lambda: target.copy_(source), seconds) / 1e9


def _best(action: Callable[[], object], seconds: float) -> float:
    action()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - start)
    return best

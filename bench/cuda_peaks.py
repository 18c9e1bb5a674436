"""What a CUDA device reaches in the same run: products, copies, launches.

Everything is the median of several tries on random data: a rate that holds, not a lucky one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

GEMM_SIZE = 8192
GEMM_SHARE = 0.05  # of the memory: three float32 matrices take no more
COPY_BYTES, COPY_SHARE = 2 << 30, 0.1
WARM_UPS, TRIES, TRY_SECONDS = 3, 15, 0.5
LAUNCHES = 200


@dataclass(frozen=True)
class CudaPeaks:
    """GEMM in GFLOP/s; copy in GB/s, bytes read and written both counted; one launch in
    microseconds, from Python and within a graph."""

    gemm_fp32: float
    gemm_tf32: float
    gemm_bf16: float
    gemm_fp16: float
    copy: float
    launch_eager_us: float
    launch_graph_us: float

    def gemm(self, name: str) -> float:
        """The rate that bounds products of 'fp32', 'tf32', 'bf16' or 'fp16'.

        Three TF32 products give float32 quality, so float32 is bounded by the better of the float32
        units and a third of the TF32 rate.
        """
        if name == "fp32":
            return max(self.gemm_fp32, self.gemm_tf32 / 3)
        return {"tf32": self.gemm_tf32, "bf16": self.gemm_bf16, "fp16": self.gemm_fp16}[name]

    def as_fields(self) -> dict[str, Any]:
        """For a row of results."""
        values = {key: round(value, 3) for key, value in asdict(self).items()}
        rates = {f"{key}_gflops": value for key, value in values.items() if "gemm" in key}
        launches = {key: value for key, value in values.items() if "launch" in key}
        source = "TF32 GEMM / 3" if self.gemm_tf32 / 3 > self.gemm_fp32 else "fp32 GEMM"
        return rates | {"copy_gbps": values["copy"]} | launches | {"fp32_floor_rate": source}


def measure(device: Any) -> CudaPeaks:
    """All peaks, in about five seconds."""
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        gemm_fp32 = _gemm_rate(device, torch.float32)
        torch.set_float32_matmul_precision("high")
        gemm_tf32 = _gemm_rate(device, torch.float32)
    finally:
        torch.set_float32_matmul_precision(before)
    eager, graph = _launches(device)
    peaks = CudaPeaks(
        gemm_fp32=gemm_fp32,
        gemm_tf32=gemm_tf32,
        gemm_bf16=_gemm_rate(device, torch.bfloat16),
        gemm_fp16=_gemm_rate(device, torch.float16),
        copy=_copy_rate(device),
        launch_eager_us=eager,
        launch_graph_us=graph,
    )
    device.release()
    return peaks


def _gemm_rate(device: Any, dtype: torch.dtype) -> float:
    size = GEMM_SIZE
    while 3 * 4 * size**2 > GEMM_SHARE * device.properties.total_memory:
        size //= 2
    a, b = (torch.randn(size, size, device=device.torch).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * size**3 / _median(lambda: torch.mm(a, b, out=out)) / 1e9


def _copy_rate(device: Any) -> float:
    size = int(min(COPY_BYTES, COPY_SHARE * device.properties.total_memory)) // 4
    source = torch.randn(size, device=device.torch)
    target = torch.zeros_like(source)
    return 2 * 4 * size / _median(lambda: target.copy_(source)) / 1e9


def _launches(device: Any) -> tuple[float, float]:
    """Microseconds for one of many one-element kernels in a row: from Python, and in a graph."""
    x = torch.zeros(1, device=device.torch)

    def many() -> None:
        for _ in range(LAUNCHES):
            x.add_(1)

    replay, _ = device.capture(many)
    times = _median(many), _median(replay)
    device.new_graphs()
    return times[0] / LAUNCHES * 1e6, times[1] / LAUNCHES * 1e6


def _median(action: Callable[[], object]) -> float:
    """Seconds by events; warm, as the rate of a long computation is."""
    for _ in range(WARM_UPS):
        action()
    torch.cuda.synchronize()
    samples, end = [], time.perf_counter() + TRY_SECONDS
    while len(samples) < 5 or (len(samples) < TRIES and time.perf_counter() < end):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        action()
        last.record()
        last.synchronize()
        samples.append(first.elapsed_time(last) / 1e3)
    return statistics.median(samples)

"""What the machine could do: its measured peaks, and the time that no implementation can beat.

    floor = 6 N D min(N, D) / (GEMM rate) + bytes / (copy bandwidth)
    bytes = (each input read twice + each gradient written once) = 6 N D * (element size)

6 N D min(N, D) operations are what the loss and its gradients take on the smaller side, with
symmetric products halved (kernels/README.md). A device decides how a rate is taken (`sustained`):
a CPU's is the best of several sizes and many tries, in warm memory where that helps, as the most
favourable reading of the machine gives the hardest floor; a GPU's is the median of several tries.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from barlow_fast.doctor import cpu_model_and_features
from bench.inputs import Variant
from bench.timing import NoGraphError

TILES = Path(__file__).with_name("tile_rate.cpp")
FLAGS = ("-O2", "-std=c++17", "-mamx-tile", "-mamx-bf16", "-pthread")
SECONDS = 0.5  # for each product, and for a launch
# Memory is shared with all other programs of the machine: its best takes longer to see.
COPY_SECONDS = 1.5
LAUNCHES = 200


@dataclass(frozen=True)
class Peaks:
    """Measured rates: GEMM in GFLOP/s; copy in GB/s, bytes read and bytes written both counted;
    bfloat16 products by a CPU's matrix tiles alone in GFLOP/s; one operation on one element in
    microseconds, called from Python and within a captured graph. None where the device has none."""

    gemm_fp32: float
    gemm_bf16: float
    copy: float
    launch_eager_us: float = 0.0
    gemm_tf32: float | None = None
    gemm_fp16: float | None = None
    launch_graph_us: float | None = None
    tiles_bf16: float | None = None

    def gemm(self, name: str) -> float:
        """The rate that bounds products of 'fp32', 'tf32', 'bf16' or 'fp16'.

        Three TF32 products give float32 quality, so float32 is bounded by the better of the float32
        units and a third of the TF32 rate. Three bfloat16 products give more than TF32 quality.
        """
        bf16 = max(self.gemm_bf16, self.tiles_bf16 or 0.0)
        if name == "fp32":
            return max(self.gemm_fp32, (self.gemm_tf32 or 0.0) / 3)
        if name == "tf32":
            return max(self.gemm_tf32 or 0.0, bf16 / 3)
        return bf16 if name == "bf16" else getattr(self, f"gemm_{name}")

    def as_fields(self) -> dict[str, Any]:
        """For a row of results."""
        units = {"gemm": "_gflops", "tiles": "_gflops", "copy": "_gbps", "launch": ""}
        fields: dict[str, Any] = {
            f"{name}{units[name.partition('_')[0]]}": round(value, 3)
            for name, value in asdict(self).items()
            if value is not None
        }
        if self.gemm_tf32 is not None:
            thirds = self.gemm_tf32 / 3 > self.gemm_fp32
            fields["fp32_floor_rate"] = "TF32 GEMM / 3" if thirds else "fp32 GEMM"
        return fields


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


def measure(device: Any) -> Peaks:
    """Measures all peaks of a device, in about eight seconds on a CPU, five on a GPU."""
    rates = {}
    for variant in device.variants.values():
        name = f"gemm_{variant.gemm}"
        rates[name] = rates.get(name) or _gemm_rate(device, variant)
    copy = max(_copy_rate(device, size) for size in device.copy_sizes)
    tiles = device.tile_rate(SECONDS)
    eager, graph = _launch_microseconds(device)
    device.release()
    return Peaks(**rates, copy=copy, tiles_bf16=tiles, launch_eager_us=eager, launch_graph_us=graph)


def _gemm_rate(device: Any, variant: Variant) -> float:
    dtype = variant.half if variant.autocast else variant.dtype
    with variant.products(), device.torch:
        return max(_product_rate(device, *shape, dtype) for shape in device.gemm_shapes)


def _product_rate(device: Any, m: int, n: int, k: int, dtype: torch.dtype) -> float:
    a, b = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype)
    out = torch.empty(m, n, dtype=dtype)
    return 2 * m * n * k / device.sustained(lambda: torch.mm(a, b, out=out), SECONDS) / 1e9


def _copy_rate(device: Any, size: int) -> float:
    source = torch.randn(size // 4, device=device.torch)
    target = torch.zeros_like(source)  # written, so that no page is faulted in while the clock runs
    return 2 * size / device.sustained(lambda: target.copy_(source), COPY_SECONDS) / 1e9


def _launch_microseconds(device: Any) -> tuple[float, float | None]:
    one = torch.zeros(1, device=device.torch)

    def many() -> None:
        for _ in range(LAUNCHES):
            one.add_(1)

    eager, scale = device.sustained(many, SECONDS / 10), 1e6 / LAUNCHES
    try:
        replay, _ = device.capture(many)
    except NoGraphError:
        return eager * scale, None
    graph = device.sustained(replay, SECONDS)
    device.new_graphs()
    return eager * scale, graph * scale


def tile_rate(seconds: float) -> float | None:
    """GFLOP/s of bfloat16 products by AMX tiles, which may exceed that of torch's GEMM, on torch's
    threads: the best in `seconds`. None without AMX, or without a compiler that knows it."""
    compiler = shutil.which("c++")
    if compiler is None or "amx_bf16" not in cpu_model_and_features()[1]:
        return None
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "tile_rate"
        built = subprocess.run(
            [compiler, *FLAGS, str(TILES), "-o", str(program)], capture_output=True, check=False
        )
        if built.returncode != 0:
            return None
        command = [str(program), str(torch.get_num_threads()), str(seconds)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    return float(done.stdout) if done.returncode == 0 else None

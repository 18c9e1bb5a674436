"""The rate of bfloat16 products by AMX tiles, which may exceed that of torch's GEMM."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from barlow_fast.doctor import cpu_model_and_features

SOURCE = Path(__file__).with_suffix(".cpp")
FLAGS = ("-O2", "-std=c++17", "-mamx-tile", "-mamx-bf16", "-pthread")


def measure(seconds: float) -> float | None:
    """GFLOP/s on torch's threads: the best in `seconds`. None without AMX, or without a compiler
    that knows it."""
    compiler = shutil.which("c++")
    if compiler is None or "amx_bf16" not in cpu_model_and_features()[1]:
        return None
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "tile_rate"
        built = subprocess.run(
            [compiler, *FLAGS, str(SOURCE), "-o", str(program)], capture_output=True, check=False
        )
        if built.returncode != 0:
            return None
        command = [str(program), str(torch.get_num_threads()), str(seconds)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    return float(done.stdout) if done.returncode == 0 else None

"""The floor's arithmetic, and what the peaks are made of."""

from __future__ import annotations

import pytest

from bench.devices import Cpu
from bench.floor import Peaks, floor_seconds, measure, moved_bytes, operations


@pytest.mark.parametrize(("n", "d"), [(256, 8192), (65536, 128), (1024, 1024)])
def test_work_is_done_on_the_smaller_side(n, d):
    assert operations(n, d) == operations(d, n) == 6 * n * d * min(n, d)


def test_inputs_are_read_twice_and_gradients_written_once():
    one_matrix = 256 * 8192 * 4
    assert moved_bytes(256, 8192, 4) == 2 * 2 * one_matrix + 2 * one_matrix
    assert moved_bytes(256, 8192, 2) == moved_bytes(256, 8192, 4) / 2


def test_floor_adds_compute_and_traffic():
    # 6 * 1000 * 10 * 10 = 600 000 operations at 1 GFLOP/s; 6 * 1000 * 10 * 4 bytes at 0.1 GB/s.
    assert floor_seconds(1000, 10, 4, gemm_gflops=1, copy_gbps=0.1) == pytest.approx(6e-4 + 2.4e-3)


def test_peaks_are_positive_and_named():
    peaks = measure(Cpu())
    assert min(peaks.gemm_fp32, peaks.gemm_bf16, peaks.copy) > 0
    assert 0.05 < peaks.launch_eager_us < 1000  # microseconds
    assert peaks.gemm("bf16") == max(peaks.gemm_bf16, peaks.tiles_bf16 or 0)
    assert peaks.gemm("tf32") >= peaks.gemm("bf16") / 3
    assert Peaks(1.0, 2.0, 3.0, 4.0).as_fields() == {
        "gemm_fp32_gflops": 1.0,
        "gemm_bf16_gflops": 2.0,
        "copy_gbps": 3.0,
        "launch_eager_us": 4.0,
    }
    tiles = Peaks(300.0, 1500.0, 20.0, gemm_tf32=310.0, tiles_bf16=2000.0)
    assert tiles.as_fields()["tiles_bf16_gflops"] == 2000.0
    assert (tiles.gemm("fp32"), tiles.gemm("bf16")) == (300.0, 2000.0)
    assert tiles.gemm("tf32") == pytest.approx(2000 / 3)
